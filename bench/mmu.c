/*
 * What translating costs in libsoftkvm, kind of MMU by kind: faults of 4 KiB and 2 MiB from one and two
 * vCPUs, the fast page fault, accesses that hit and miss the TLB, the dirty log over 1 GiB, zapping 1 GiB, notifier
 * storms. The guest is real code in 32-bit mode without paging. Figures are processor time per operation, medians of
 * rounds, the kinds in turns. Usage: bench_mmu [--json FILE]
 */
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>

#include "measure.h"
#include "softkvm/softkvm.h"

#define MIB   (UINT64_C(1) << 20)
#define CODE  0x1000u
#define RAM   0x40000000u /* guest-physical start of the memory measured */
#define BYTES (UINT64_C(1) << 30)
#define KINDS 3

/* ESI times: access [EDI], EDI += EBX; then HLT. */
static const uint8_t store_loop[] = {0x89, 0x07, 0x01, 0xdf, 0x4e, 0x75, 0xf9, 0xf4};
static const uint8_t load_loop[] = {0x8b, 0x07, 0x01, 0xdf, 0x4e, 0x75, 0xf9, 0xf4};

struct machine {
    struct softkvm *s;
    int kvm, vm, vcpu[2];
    struct kvm_run *run[2];
    uint8_t *low, *ram;
    uint64_t *bitmap;
};

/* A figure: prepare puts the machine into the state before, run does n operations. Only run is timed. */
struct figure {
    const char *what, *unit;
    double scale, bar; /* ns per unit; bar in units, below 0: none */
    void (*prepare)(struct machine *m);
    uint64_t (*run)(struct machine *m); /* how many operations */
};

static void must(int ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bench_mmu: %s\n", what);
        exit(1);
    }
}

static int vm_ioctl(struct machine *m, unsigned long request, void *arg)
{
    return softkvm_ioctl(m->s, m->vm, request, arg);
}

static void slot(struct machine *m, uint32_t flags, uint64_t bytes)
{
    struct kvm_userspace_memory_region r = {1, flags, RAM, bytes, (uintptr_t)m->ram};

    must(vm_ioctl(m, KVM_SET_USER_MEMORY_REGION, &r) == 0, "slot");
}

static void flat(struct machine *m, int i)
{
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .db = 1, .g = 1};
    struct kvm_sregs s;

    must(softkvm_ioctl(m->s, m->vcpu[i], KVM_GET_SREGS, &s) == 0, "sregs");
    s.cr0 |= 1;
    s.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    s.ds = s.es = s.ss = s.fs = s.gs = seg;
    must(softkvm_ioctl(m->s, m->vcpu[i], KVM_SET_SREGS, &s) == 0, "sregs");
}

static void *pages(uint64_t bytes)
{
    uint64_t align = UINT64_C(1) << 30;
    uint8_t *p = mmap(NULL, bytes + align, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    must(p != MAP_FAILED, "memory");
    return (uint8_t *)(((uintptr_t)p + align - 1) & ~(uintptr_t)(align - 1));
}

static void machine_open(struct machine *m, enum softkvm_mmu mmu, unsigned level, unsigned stage2)
{
    struct softkvm_options o = {.size = sizeof(o), .mmu = mmu, .max_page_level = level,
                                .stage2 = SOFTKVM_STAGE2_NO_PREFETCH | stage2, .host_memory = 4 * BYTES};
    struct kvm_userspace_memory_region low = {0, 0, 0, MIB, 0};
    char err[120] = "";
    int e;

    m->s = softkvm_new(&o, err, sizeof(err));
    must(m->s != NULL, err);
    m->kvm = softkvm_open_system(m->s);
    m->vm = softkvm_ioctl(m->s, m->kvm, KVM_CREATE_VM, NULL);
    m->low = pages(MIB);
    m->ram = pages(BYTES);
    m->bitmap = calloc(1, BYTES / 4096 / 8);
    low.userspace_addr = (uintptr_t)m->low;
    must(vm_ioctl(m, KVM_SET_USER_MEMORY_REGION, &low) == 0, "slot 0");
    slot(m, 0, BYTES);
    for (int i = 0; i < 2; i++) {
        m->vcpu[i] = softkvm_ioctl(m->s, m->vm, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        must(m->vcpu[i] >= 0, "vcpu");
        m->run[i] = softkvm_mmap(m->s, m->vcpu[i], 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
        flat(m, i);
    }
}

static void machine_close(struct machine *m)
{
    softkvm_free(m->s);
    munmap(m->ram, BYTES);
    free(m->bitmap);
}

/* ---- the guest ---- */

struct job {
    struct machine *m;
    int i;
    uint64_t first, step, times;
    int write;
};

static void *guest(void *opaque)
{
    struct job *j = opaque;
    struct kvm_regs r = {.rip = CODE + (j->write ? 0 : 64), .rflags = 2, .rdi = RAM + j->first, .rbx = j->step,
                         .rsi = j->times};

    must(softkvm_ioctl(j->m->s, j->m->vcpu[j->i], KVM_SET_REGS, &r) == 0, "regs");
    must(softkvm_ioctl(j->m->s, j->m->vcpu[j->i], KVM_RUN, NULL) == 0, "run");
    must(j->m->run[j->i]->exit_reason == KVM_EXIT_HLT, "the guest did not halt");
    return NULL;
}

static uint64_t touch(struct machine *m, uint64_t bytes, uint64_t step, int write)
{
    struct job j = {m, 0, 0, step, bytes / step, write};

    guest(&j);
    return j.times;
}

static uint64_t touch_two(struct machine *m, uint64_t bytes, uint64_t step)
{
    struct job j[2] = {{m, 0, 0, step, bytes / step / 2, 1}, {m, 1, bytes / 2, step, bytes / step / 2, 1}};
    pthread_t t[2];

    for (int i = 0; i < 2; i++) {
        must(pthread_create(&t[i], NULL, guest, &j[i]) == 0, "thread");
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
    }
    return bytes / step;
}

/* ---- states ---- */

#define SOME (64 * MIB)

/* Nothing is mapped by the engine; the host has the pages of the first 64 MiB. */
static void engine_empty(struct machine *m)
{
    touch(m, SOME, 4096, 1);
    slot(m, 0, 0);
    slot(m, 0, BYTES);
}

static void all_mapped(struct machine *m)
{
    slot(m, 0, 0);
    slot(m, 0, BYTES);
    touch(m, BYTES, 4096, 0);
}

static void host_empty(struct machine *m)
{
    must(softkvm_memory_discarded(m->s, m->ram, BYTES) == 0, "discard");
    touch(m, 4096, 4096, 1);
}

/* Everything mapped, logging on, nothing dirty. */
static void logging_clean(struct machine *m)
{
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = m->bitmap};

    slot(m, 0, BYTES);
    touch(m, SOME, 4096, 1);
    slot(m, KVM_MEM_LOG_DIRTY_PAGES, BYTES);
    must(vm_ioctl(m, KVM_GET_DIRTY_LOG, &log) == 0, "log");
}

static void logging_dirty(struct machine *m)
{
    logging_clean(m);
    touch(m, SOME, 4096, 1);
}

/* ---- operations ---- */

static uint64_t fault_small(struct machine *m)
{
    return touch(m, SOME, 4096, 1);
}

static uint64_t fault_small_two(struct machine *m)
{
    return touch_two(m, SOME, 4096);
}

static uint64_t fault_huge(struct machine *m)
{
    return touch(m, BYTES, 2 * MIB, 0);
}

static uint64_t fault_host(struct machine *m)
{
    return touch(m, SOME, 4096, 0);
}

static uint64_t hit(struct machine *m)
{
    struct job j = {m, 0, 0, 0, 4000000, 0}; /* one page, over and over */

    guest(&j);
    return j.times;
}

static uint64_t miss(struct machine *m)
{
    for (int i = 0; i < 64; i++) {
        touch(m, SOME, 4096, 0);
    }
    return 64 * (SOME / 4096);
}

static uint64_t protect(struct machine *m)
{
    slot(m, KVM_MEM_LOG_DIRTY_PAGES, BYTES);
    return 1;
}

static uint64_t unprotect(struct machine *m)
{
    slot(m, 0, BYTES);
    return 1;
}

static void protected_all(struct machine *m)
{
    all_mapped(m);
    slot(m, KVM_MEM_LOG_DIRTY_PAGES, BYTES);
}

static uint64_t harvest(struct machine *m)
{
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = m->bitmap};

    must(vm_ioctl(m, KVM_GET_DIRTY_LOG, &log) == 0, "log");
    return 1;
}

static uint64_t zap(struct machine *m)
{
    slot(m, 0, 0);
    return 1;
}

static uint64_t storm(struct machine *m)
{
    for (int i = 0; i < 4096; i++) {
        must(softkvm_memory_discarded(m->s, m->ram + (uint64_t)i * 4096, 4096) == 0, "discard");
    }
    return 4096;
}

static void back(struct machine *m)
{
    slot(m, 0, BYTES);
}

static const struct figure small[] = {
    {"4K fault served, host page present", "ns", 1, 300, engine_empty, fault_small},
    {"the same, two vCPUs (processor time)", "ns", 1, 300, engine_empty, fault_small_two},
    {"4K fault served, host absent (maps 2M)", "ns", 1, -1, host_empty, fault_host},
    {"write to a logged clean page", "ns", 1, -1, logging_clean, fault_small},
    {"load that hits the TLB, in a loop of 4", "ns", 1, -1, back, hit},
    {"load that misses the TLB, in a loop of 4", "ns", 1, 40, engine_empty, miss},
    {"logging on for 1 GiB of 4K leaves", "ms", 1e6, -1, all_mapped, protect},
    {"logging off", "ms", 1e6, -1, protected_all, unprotect},
    {"dirty log of 1 GiB, 64 MiB of it written", "ms", 1e6, -1, logging_dirty, harvest},
    {"zap of 1 GiB of 4K leaves", "ms", 1e6, -1, all_mapped, zap},
    {"notifier storm, one page at a time", "ns", 1, -1, engine_empty, storm},
};

static const struct figure huge[] = {
    {"2M fault served, host page present", "ns", 1, 400, engine_empty, fault_huge},
    {"logging on for 1 GiB of 2M leaves, split", "ms", 1e6, -1, all_mapped, protect},
    {"logging off, 2M leaves back in place", "ms", 1e6, -1, protected_all, unprotect},
    {"zap of 1 GiB of 2M leaves", "ms", 1e6, -1, all_mapped, zap},
};

/* Median of rounds for each kind, the kinds in turns. */
static void measure(struct measure *out, const struct figure *f, struct machine *m)
{
    double took[KINDS][MEASURE_ROUNDS], value[4];

    for (int round = 0; round < MEASURE_ROUNDS; round++) {
        for (int k = 0; k < KINDS; k++) {
            double start;
            uint64_t n;

            back(&m[k]);
            f->prepare(&m[k]);
            start = measure_now();
            n = f->run(&m[k]);
            took[k][round] = (measure_now() - start) / (double)n / f->scale;
            back(&m[k]);
        }
    }
    for (int k = 0; k < KINDS; k++) {
        qsort(took[k], MEASURE_ROUNDS, sizeof(double), measure_by_value);
        value[k] = took[k][MEASURE_ROUNDS / 2];
    }
    value[3] = f->bar;
    measure_row_peers(out, f->what, f->unit, value);
}

static void set(struct measure *out, const struct figure *f, size_t n, unsigned level)
{
    static const enum softkvm_mmu kinds[KINDS] = {SOFTKVM_MMU_EPT, SOFTKVM_MMU_NPT, SOFTKVM_MMU_SHADOW};
    static struct machine m[KINDS];

    for (int k = 0; k < KINDS; k++) {
        machine_open(&m[k], kinds[k], level, 0);
        memcpy(m[k].low + CODE, store_loop, sizeof(store_loop));
        memcpy(m[k].low + CODE + 64, load_loop, sizeof(load_loop));
    }
    for (size_t i = 0; i < n; i++) {
        measure(out, &f[i], m);
    }
    for (int k = 0; k < KINDS; k++) {
        machine_close(&m[k]);
    }
}

/* The log of modified pages beside write-protection: EPT has both. */
static void log_figures(struct measure *out)
{
    static const struct figure f = {"write to a logged clean page", "ns", 1, -1, logging_clean, fault_small};
    double took[MEASURE_ROUNDS], value[4] = {0, -1, -1, -1};
    static struct machine m;

    machine_open(&m, SOFTKVM_MMU_EPT, 1, SOFTKVM_STAGE2_PML);
    memcpy(m.low + CODE, store_loop, sizeof(store_loop));
    memcpy(m.low + CODE + 64, load_loop, sizeof(load_loop));
    for (int round = 0; round < MEASURE_ROUNDS; round++) {
        double start;
        uint64_t n;

        f.prepare(&m);
        start = measure_now();
        n = f.run(&m);
        took[round] = (measure_now() - start) / (double)n;
        back(&m);
    }
    qsort(took, MEASURE_ROUNDS, sizeof(double), measure_by_value);
    value[0] = took[MEASURE_ROUNDS / 2];
    measure_row_peers(out, "the same, by the log of modified pages", "ns", value);
    machine_close(&m);
}

int main(int argc, char **argv)
{
    static const char *const peers[2] = {"npt", "shadow"};
    struct measure out = measure_open_peers(argc, argv, peers);

    set(&out, small, sizeof(small) / sizeof(small[0]), 1);
    log_figures(&out);
    set(&out, huge, sizeof(huge) / sizeof(huge[0]), 2);
    measure_close(&out);
    return 0;
}
