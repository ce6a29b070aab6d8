/*
 * Statistics: the names and values of all counters, for the inspection ABI, and the same in the
 * kernel's binary format behind a descriptor (KVM_GET_STATS_FD): header, id, descriptions, values.
 *
 * Locks: none; counters are relaxed and each is whole in itself.
 */
#include "softkvm/stats.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/shadow/shadow.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

#define NAME_SIZE 48
#define CUMULATIVE (KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10)
#define INSTANT    (KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10)
#define NANOSEC    (KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10)

struct kvm_stats_file {
    _Atomic uint32_t refs;
    struct kvm_vm *vm;
    struct kvm_vcpu *vcpu; /* null: of the VM */
    char id[NAME_SIZE];
};

struct source {
    const char *name;
    size_t offset;
    uint32_t flags;
    int16_t exponent;
};

#define V(n, f) {n, offsetof(struct kvm_vcpu, counters.f), CUMULATIVE, 0}
#define X(n, r) {n, offsetof(struct kvm_vcpu, counters.exit_reason) + 8 * (r), CUMULATIVE, 0}
#define C(n, f) {n, offsetof(struct cpu, counters.f), CUMULATIVE, 0}

static const struct source vcpu_sources[] = {
    V("exits", exits),
    V("entries", entries),
    V("user_exits", user_exits),
    V("kicks", kicks),
    V("mmio_exits", mmio_exits),
    V("io_exits", io_exits),
    V("mmio_kernel", mmio_kernel),
    V("io_kernel", io_kernel),
    V("irq_window_exits", irq_window_exits),
    V("nmi_window_exits", nmi_window_exits),
    V("request_irq_exits", request_irq_exits),
    V("signal_exits", signal_exits),
    V("halt_exits", halts),
    V("halt_wakeup", halt_wakeups),
    {"halt_wait_ns", offsetof(struct kvm_vcpu, counters.halt_ns), NANOSEC, -9},
    V("irq_injections", irq_injections),
    V("nmi_injections", nmi_injections),
    V("hypercalls", hypercalls),
    V("insn_emulation_fail", insn_errors),
    V("pf_taken", faults),
    V("pf_fixed", faults_fixed),
    V("pf_spurious", faults_spurious),
    V("pf_fast", faults_fast),
    V("pf_retry", faults_retry),
    V("pf_emulate", faults_mmio),
    V("pf_readonly", faults_ro),
    V("pf_error", faults_error),
    V("pf_mmio_spte_created", mapped[0]),
    V("pf_mapped_4k", mapped[1]),
    V("pf_mapped_2m", mapped[2]),
    V("pf_mapped_1g", mapped[3]),
    V("mmio_stale", mmio_stale),
    V("host_faults", host_faults),
    V("pf_prefetched", prefetched),
    V("pf_untracked", untracked),
    V("nx_lpage_splits", nx_splits),
    V("pml_logged", pml_logged),
    V("pml_full", pml_full),
    X("exit_kick", CPU_EXIT_KICK),
    X("exit_hlt", CPU_EXIT_HLT),
    X("exit_io", CPU_EXIT_IO),
    X("exit_ept_violation", CPU_EXIT_EPT_VIOLATION),
    X("exit_ept_misconfig", CPU_EXIT_EPT_MISCONFIG),
    X("exit_npf", CPU_EXIT_NPF),
    X("exit_pml_full", CPU_EXIT_PML_FULL),
    X("exit_cpuid", CPU_EXIT_CPUID),
    X("exit_rdmsr", CPU_EXIT_RDMSR),
    X("exit_wrmsr", CPU_EXIT_WRMSR),
    X("exit_intr_window", CPU_EXIT_INTR_WINDOW),
    X("exit_nmi_window", CPU_EXIT_NMI_WINDOW),
    X("exit_hypercall", CPU_EXIT_HYPERCALL),
    X("exit_triple_fault", CPU_EXIT_TRIPLE_FAULT),
    X("exit_debug", CPU_EXIT_DEBUG),
    X("exit_cr8", CPU_EXIT_CR8),
    X("exit_xsetbv", CPU_EXIT_XSETBV),
    X("exit_pause", CPU_EXIT_PAUSE),
    X("exit_host_fault", CPU_EXIT_HOST_FAULT),
    X("exit_page_fault", CPU_EXIT_PAGE_FAULT),
    X("exit_cr_write", CPU_EXIT_CR_WRITE),
    X("exit_invalidate", CPU_EXIT_INVALIDATE),
    X("exit_pdptes", CPU_EXIT_PDPTES),
    X("exit_table_write", CPU_EXIT_TABLE_WRITE),
    X("exit_error", CPU_EXIT_ERROR),
};

/* The processor's own; its thread writes them plainly, a reader may be a little behind. */
static const struct source cpu_sources[] = {
    {"guest_instructions", offsetof(struct cpu, icount), CUMULATIVE, 0},
    C("blocks_decoded", blocks_decoded),
    C("insns_decoded", insns_decoded),
    C("blocks_verified", blocks_verified),
    C("blocks_stale", blocks_stale),
    C("tlb_misses", tlb_misses),
    C("tlb_flush", tlb_flushes),
    C("guest_walks", guest_walks),
    C("ept_walks", ept_walks),
    C("ept_violations", ept_violations),
    C("ept_misconfigs", ept_misconfigs),
    C("exceptions", exceptions),
    C("interrupts", interrupts),
    C("guest_page_faults", page_faults),
    C("smc_writes", smc_writes),
};

#define S(n, f) {"shadow_" n, offsetof(struct kvm_shadow, counters.f), CUMULATIVE, 0}

/* Of the shadow kind of MMU alone. */
static const struct source shadow_sources[] = {
    S("walks", walks), S("table_refs", table_refs), S("guest_faults", guest_faults), S("fixed", fixed),
    S("retries", retries), S("mmio_fast", mmio), S("device_grants", device_grants), S("write_grants", write_protected),
    S("pages_new", pages_new), S("pages_found", pages_found), S("pages_zapped", pages_zapped),
    S("pages_recycled", pages_recycled), S("pages_obsolete", pages_obsolete), S("table_writes", table_writes),
    S("table_write_zaps", table_write_zaps), S("floods", floods), S("unprotects", unprotects), S("unsyncs", unsyncs),
    S("syncs", syncs), S("sync_dropped", sync_dropped), S("sync_kept", sync_kept), S("root_loads", root_loads),
    S("root_hits", root_hits), S("cr3_writes", cr3_writes), S("invlpgs", invlpgs), S("flushes", flushes),
    S("split_large", split_large),
};

static uint64_t read_at(const void *base, size_t offset)
{
    return __atomic_load_n((const uint64_t *)(const void *)((const char *)base + offset),
                           __ATOMIC_RELAXED);
}

static unsigned collect_vcpu(struct kvm_vcpu *v, struct kvm_stat *out, bool add)
{
    unsigned n = 0;

    for (size_t i = 0; i < ARRAY_LEN(vcpu_sources) + ARRAY_LEN(cpu_sources); i++, n++) {
        bool own = i < ARRAY_LEN(vcpu_sources);
        const struct source *s = own ? &vcpu_sources[i] : &cpu_sources[i - ARRAY_LEN(vcpu_sources)];
        uint64_t value = v ? read_at(own ? (const void *)v : v->cpu, s->offset) : 0;

        out[n].value = add ? out[n].value + value : value;
        out[n].name = s->name;
        out[n].flags = s->flags;
        out[n].exponent = s->exponent;
    }
    return n;
}

static void put(struct kvm_stat *out, unsigned *n, const char *name, uint64_t value, uint32_t flags)
{
    out[*n] = (struct kvm_stat){.name = name, .value = value, .flags = flags};
    ++*n;
}

static unsigned collect_vm(struct kvm_vm *vm, struct kvm_stat *out)
{
    static const char *const pages[] = {"mmio_entries", "pages_4k", "pages_2m", "pages_1g"};
    unsigned n = 0;

    put(out, &n, "remote_tlb_flush", atomic_load(&vm->counters.remote_flushes), CUMULATIVE);
    put(out, &n, "slot_updates", atomic_load(&vm->counters.slot_updates), CUMULATIVE);
    put(out, &n, "zapped_ranges", atomic_load(&vm->counters.zapped_ranges), CUMULATIVE);
    put(out, &n, "invalidations", atomic_load(&vm->counters.invalidations), CUMULATIVE);
    put(out, &n, "eager_splits", atomic_load(&vm->counters.eager_splits), CUMULATIVE);
    put(out, &n, "huge_recovered", atomic_load(&vm->counters.huge_recovered), CUMULATIVE);
    put(out, &n, "nx_lpage_recovered", atomic_load(&vm->counters.nx_recovered), CUMULATIVE);
    put(out, &n, "nx_split_tables", (uint64_t)atomic_load(&vm->mmu.nx_split), INSTANT);
    for (int i = 0; i < 4; i++) {
        put(out, &n, pages[i], (uint64_t)atomic_load(&vm->mmu.pages[i]), INSTANT);
    }
    put(out, &n, "ept_tables", (uint64_t)atomic_load(&vm->mmu.tables), INSTANT);
    for (size_t i = 0; vm->mmu.ops == &kvm_mmu_shadow && i < ARRAY_LEN(shadow_sources); i++) {
        put(out, &n, shadow_sources[i].name, read_at(kvm_shadow(vm), shadow_sources[i].offset), CUMULATIVE);
    }
    put(out, &n, "slots", vm->slots.count, INSTANT);
    put(out, &n, "slot_pages", vm->slots.total_pages, INSTANT);
    put(out, &n, "vcpus", kvm_vm_nr_vcpus(vm), INSTANT);
    return n;
}

/*
 * See stats.h. Lock: none.
 */
unsigned kvm_stats_collect(struct kvm_vm *vm, struct kvm_vcpu *v, struct kvm_stat *out)
{
    unsigned n, total;
    uint32_t i;

    _Static_assert(ARRAY_LEN(vcpu_sources) + ARRAY_LEN(cpu_sources) + ARRAY_LEN(shadow_sources) + 16 <= KVM_STATS_MAX,
                   "all figures fit");
    if (v) {
        return collect_vcpu(v, out, false);
    }
    n = collect_vm(vm, out);
    total = n + collect_vcpu(NULL, out + n, false);
    kvm_for_each_vcpu (i, v, vm) {
        collect_vcpu(v, out + n, true);
    }
    return total;
}

/* ---- the descriptor ---- */

int kvm_stats_open(struct kvm_vm *vm, struct kvm_vcpu *v)
{
    struct kvm_stats_file *f = kvm_alloc(vm->s, sizeof(*f));
    int fd;

    if (!f) {
        return -ENOMEM;
    }
    atomic_store(&f->refs, 1);
    f->vm = vm;
    f->vcpu = v;
    if (v) {
        snprintf(f->id, sizeof(f->id), "kvm-%u/vcpu-%u", vm->number, v->id);
    } else {
        snprintf(f->id, sizeof(f->id), "kvm-%u", vm->number);
    }
    fd = kvm_file_open(vm->s, KVM_FILE_STATS, f);
    if (fd < 0) {
        free(f);
        return fd;
    }
    kvm_vm_get(vm);
    return fd;
}

void kvm_stats_get(struct kvm_stats_file *f)
{
    atomic_fetch_add_explicit(&f->refs, 1, memory_order_relaxed);
}

void kvm_stats_put(struct kvm_stats_file *f)
{
    if (atomic_fetch_sub_explicit(&f->refs, 1, memory_order_acq_rel) == 1) {
        kvm_vm_put(f->vm);
        free(f);
    }
}

#define DESC_SIZE (sizeof(struct kvm_stats_desc) + NAME_SIZE)
#define IMAGE_MAX (sizeof(struct kvm_stats_header) + NAME_SIZE + KVM_STATS_MAX * (DESC_SIZE + 8))

static size_t build_image(struct kvm_stats_file *f, char *image)
{
    struct kvm_stat stats[KVM_STATS_MAX];
    unsigned n = kvm_stats_collect(f->vm, f->vcpu, stats);
    struct kvm_stats_header h = {.name_size = NAME_SIZE, .num_desc = n,
                                 .id_offset = sizeof(h), .desc_offset = sizeof(h) + NAME_SIZE};

    h.data_offset = h.desc_offset + n * (uint32_t)DESC_SIZE;
    memset(image, 0, IMAGE_MAX);
    memcpy(image, &h, sizeof(h));
    memcpy(image + h.id_offset, f->id, NAME_SIZE);
    for (unsigned i = 0; i < n; i++) {
        struct kvm_stats_desc d = {.flags = stats[i].flags, .exponent = stats[i].exponent,
                                   .size = 1, .offset = i * 8};
        char *at = image + h.desc_offset + i * DESC_SIZE;

        memcpy(at, &d, sizeof(d));
        snprintf(at + sizeof(d), NAME_SIZE, "%s", stats[i].name);
        memcpy(image + h.data_offset + i * 8, &stats[i].value, 8);
    }
    return h.data_offset + n * 8;
}

int64_t kvm_stats_read(struct kvm_stats_file *f, void *buf, size_t len, uint64_t offset)
{
    char image[IMAGE_MAX];
    size_t size = build_image(f, image);

    if (offset >= size) {
        return 0;
    }
    if (len > size - offset) {
        len = size - offset;
    }
    memcpy(buf, image + offset, len);
    return (int64_t)len;
}
