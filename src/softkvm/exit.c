/*
 * Exits: what the processor could not do by itself, done here or handed to user space.
 *
 *   cpu_run() -> kvm_exit_handle() -> in-kernel device, tables, CPUID, MSR ... -> guest again
 *                      \-> run page filled, KVM_LEAVE -> user space -> KVM_RUN -> kvm_exit_complete()
 *
 * Invariant: v->pending says what the next KVM_RUN has to finish; nothing is pending while the guest
 * runs.
 * Locks: vcpu->lock, read section. Nothing here allocates or makes a system call.
 */
#include "softkvm/exit.h"

#include <errno.h>
#include <string.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "cpu/walk.h"
#include "softkvm/cpuid.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/msr.h"
#include "softkvm/shadow/shadow.h"
#include "softkvm/msr_filter.h"
#include "softkvm/state.h"
#include "softkvm/vcpu.h"

#define DR6_STEPPED 0xffff4ff0u /* BS, and the bits that are always one */

static int leave(struct kvm_vcpu *v, uint32_t reason)
{
    v->run->exit_reason = reason;
    return KVM_LEAVE;
}

/*
 * The instruction that the processor left to us is done. KVM_GO_ON; KVM_LEAVE when user space steps through the guest.
 * Source: KVM's kvm_skip_emulated_instruction() and kvm_vcpu_do_singlestep().
 */
int kvm_exit_skip_insn(struct kvm_vcpu *v)
{
    struct kvm_debug_exit_arch *d = &v->run->debug.arch;

    cpu_skip_insn(v->cpu);
    if (likely(!v->cpu->single_step)) {
        return KVM_GO_ON;
    }
    d->exception = X86_DB;
    d->pc = v->cpu->rip + v->cpu->seg_base[CPU_CS];
    d->dr6 = DR6_STEPPED;
    d->dr7 = v->cpu->dr7;
    return leave(v, KVM_EXIT_DEBUG);
}

static int inject_gp(struct kvm_vcpu *v)
{
    struct cpu_event ev = {.type = CPU_EVENT_EXCEPTION, .vector = X86_GP, .has_error = 1};

    cpu_inject(v->cpu, &ev);
    return KVM_GO_ON;
}

/* ---- device memory ---- */

/* Put the next piece (8 bytes at most) of the pending access on the run page. */
static int mmio_piece(struct kvm_vcpu *v)
{
    struct kvm_pending *p = &v->pending;
    unsigned n = p->size - p->done > 8 ? 8 : p->size - p->done;

    v->run->mmio.phys_addr = p->gpa.v + p->done;
    v->run->mmio.len = n;
    v->run->mmio.is_write = p->kind == KVM_PENDING_MMIO_WRITE;
    memset(v->run->mmio.data, 0, sizeof(v->run->mmio.data));
    if (p->kind == KVM_PENDING_MMIO_WRITE) {
        memcpy(v->run->mmio.data, p->data + p->done, n);
    }
    KVM_COUNT(&v->counters.mmio_exits);
    TRACE(&v->vm->s->trace, access_mmio_user, "gpa %llx len %llu write %llu", v->run->mmio.phys_addr, n,
          v->run->mmio.is_write);
    return leave(v, KVM_EXIT_MMIO);
}

/* The address of the exit as slots and devices number it: without the bit for shared memory. */
static gpa_t plain_gpa(const struct kvm_vcpu *v)
{
    gpa_t addr = v->cpu->exit.ept.gpa;

    return gpa(gfn_to_gpa(kvm_slot_frame(v->vm, gpa_to_gfn(addr))).v | page_offset(addr.v));
}

/* A device access at a guest-physical address. */
static int device_access(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    struct kvm_pending *p = &v->pending;
    struct kvm_bus_access a = {.bus = KVM_BUS_MEM, .addr = plain_gpa(v).v, .size = e->ept.size,
                               .is_write = e->ept.is_write, .data = p->data};

    p->gpa = gpa(a.addr);
    p->size = e->ept.size;
    p->done = 0;
    memcpy(p->data, e->ept.data, sizeof(p->data));
    TRACE(&v->vm->s->trace, access_mmio, "gpa %llx size %llu write %llu", a.addr, a.size, a.is_write);
    if (v->vm->irq->bus_access(v, &a) >= 0) {
        TRACE(&v->vm->s->trace, access_mmio_kernel, "gpa %llx", a.addr);
        KVM_COUNT(&v->counters.mmio_kernel);
        if (!a.is_write) {
            cpu_complete_read(v->cpu, p->data, p->size);
        }
        return KVM_GO_ON;
    }
    p->kind = a.is_write ? KVM_PENDING_MMIO_WRITE : KVM_PENDING_MMIO_READ;
    return mmio_piece(v);
}

/* A guest's page table, or code to execute, where there is no memory: nothing can answer that. */
static int walk_outside_memory(struct kvm_vcpu *v)
{
    struct cpu_exit *e = &v->cpu->exit;
    uint64_t where = e->ept.gpa.v;

    e->error.len = 0;
    v->run->internal.ndata = 2;
    v->run->internal.data[0] = where;
    v->run->internal.data[1] = v->cpu->rip;
    v->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    return leave(v, KVM_EXIT_INTERNAL_ERROR);
}

/* The call fails, and the run page says where and which half: KVM_CAP_MEMORY_FAULT_INFO. */
static int fault_error(struct kvm_vcpu *v, int error)
{
    kvm_log(v->vm->s, 4, "vm %u vcpu %u: memory at gpa 0x%llx: error %d", v->vm->number, v->id,
            (unsigned long long)v->cpu->exit.ept.gpa.v, -error);
    if (error == -EFAULT || error == -EHWPOISON) {
        struct softkvm_memory_fault *mf = softkvm_run_memory_fault(v->run);

        v->run->exit_reason = KVM_EXIT_MEMORY_FAULT;
        mf->flags = v->fault_private ? KVM_MEMORY_EXIT_FLAG_PRIVATE : 0;
        mf->gpa = gfn_to_gpa(kvm_slot_frame(v->vm, gpa_to_gfn(v->cpu->exit.ept.gpa))).v;
        mf->size = PAGE_SIZE;
    }
    return error;
}

/* From now on, for the instruction at hand, the processor takes a refused write to this page for a device's. */
static void note_device_write(struct kvm_vcpu *v, gpa_t addr)
{
    uint64_t *page = v->cpu->device_write_page;

    memmove(page + 1, page, (CPU_DEVICE_WRITES - 1) * sizeof(*page));
    page[0] = (addr.v >> PAGE_SHIFT) + 1;
}

static int handle_violation(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    int error = 0;

    TRACE(&v->vm->s->trace, access_violation, "gpa %llx gva %llx qualification %llx", e->ept.gpa.v,
          e->ept.gva.v, e->ept.qualification);
    switch (kvm_mmu_fault(v, e->ept.gpa, e->ept.qualification, &error)) {
    case KVM_FAULT_EMULATE:
        return e->ept.size ? KVM_GO_ON : walk_outside_memory(v);
    case KVM_FAULT_WRITE_RO:
        /* Tried again with this page's writes taken for a device's: then the processor posts it. */
        note_device_write(v, e->ept.gpa);
        return KVM_GO_ON;
    case KVM_FAULT_ERROR:
        return fault_error(v, error);
    case KVM_FAULT_FIXED:
    case KVM_FAULT_SPURIOUS:
    case KVM_FAULT_RETRY:
        break;
    }
    return KVM_GO_ON;
}

static bool is_readonly_write(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    const struct kvm_memslot *slot;

    if (!e->ept.is_write || !cpu_is_device_write(v->cpu, e->ept.gpa.v)) {
        return false;
    }
    slot = kvm_slots_find_vcpu(v, gpa_to_gfn(plain_gpa(v)));
    if (!slot || (slot->flags & KVM_MEM_READONLY)) {
        return true; /* remembered: a piece on another page restarts the instruction */
    }
    memset(v->cpu->device_write_page, 0, sizeof(v->cpu->device_write_page));
    return false;
}

/*
 * Memory has come where a posted write met a device a moment ago (slots changed meanwhile): the
 * instruction is done, so the write itself is made good here. Where the host does not give the page, KVM_RUN fails
 * and the next one tries again: nothing is lost.
 */
static int late_write(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    gfn_t f = kvm_slot_frame(v->vm, gpa_to_gfn(e->ept.gpa));
    const struct kvm_memslot *slot;

    v->pending.kind = KVM_PENDING_NONE;
    for (;;) {
        int r;

        slot = kvm_slots_find_vcpu(v, f);
        if (!slot || (slot->flags & (KVM_MEM_READONLY | KVM_SLOT_INVALID))) {
            return device_access(v);
        }
        if (kvm_guest_store(v, e->ept.gpa, e->ept.data, e->ept.size) == 0) {
            return KVM_GO_ON;
        }
        if (kvm_slots_find_vcpu(v, f) != slot) {
            continue; /* the slot went, not the host's page */
        }
        r = kvm_host_gone(v, kvm_slot_hva(slot, f), false);
        if (r < 0) {
            v->pending.kind = KVM_PENDING_LATE_WRITE;
            return r;
        }
    }
}

static int handle_misconfig(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    int error = 0;

    if (v->cpu->shadow.on) {
        if (kvm_shadow_is_device(v)) {
            return device_access(v);
        }
        cpu_shadow_forget_grants(v->cpu);
        return e->ept.is_write ? late_write(v) : KVM_GO_ON;
    }
    if (is_readonly_write(v)) {
        return device_access(v);
    }
    if (kvm_mmu_mmio_is_fresh(v, e->ept.gpa)) {
        return e->ept.size ? device_access(v) : walk_outside_memory(v);
    }
    switch (kvm_mmu_fault(v, e->ept.gpa, e->ept.is_write ? EPT_VIOL_WRITE : EPT_VIOL_READ, &error)) {
    case KVM_FAULT_EMULATE:
        return e->ept.size ? device_access(v) : walk_outside_memory(v);
    case KVM_FAULT_ERROR:
        if (!e->ept.is_write || !e->ept.size) {
            return fault_error(v, error);
        }
        break; /* the write is posted already, and needs no entry */
    case KVM_FAULT_WRITE_RO:
        return device_access(v);
    case KVM_FAULT_FIXED:
    case KVM_FAULT_SPURIOUS:
    case KVM_FAULT_RETRY:
        break;
    }
    return e->ept.is_write && e->ept.size ? late_write(v) : KVM_GO_ON;
}

/* AMD's one exit for both: reserved bits are an MMIO entry, all else is a fault to serve. */
static int handle_npf(struct kvm_vcpu *v)
{
    struct cpu_exit *e = &v->cpu->exit;
    uint64_t code = e->ept.error_code;

    if (code & NPF_RESERVED) {
        return handle_misconfig(v);
    }
    e->ept.qualification = (code & NPF_WRITE ? EPT_VIOL_WRITE : 0) | (code & NPF_FETCH ? EPT_VIOL_FETCH : 0);
    if (!e->ept.qualification) {
        e->ept.qualification = EPT_VIOL_READ;
    }
    return handle_violation(v);
}

/* ---- ports ---- */

static int handle_io(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    struct kvm_pending *p = &v->pending;
    struct kvm_bus_access a = {.bus = KVM_BUS_PORT, .addr = e->io.port, .size = e->io.size,
                               .is_write = !e->io.is_in, .data = p->data};
    uint8_t *page = (uint8_t *)v->run + KVM_VCPU_PIO_PAGE * PAGE_SIZE;

    memcpy(p->data, &e->io.data, sizeof(e->io.data));
    if (v->vm->irq->bus_access(v, &a) >= 0) {
        KVM_COUNT(&v->counters.io_kernel);
        if (e->io.is_in) {
            cpu_complete_read(v->cpu, p->data, e->io.size);
        }
        return KVM_GO_ON;
    }
    p->kind = e->io.is_in ? KVM_PENDING_PIO_IN : KVM_PENDING_PIO_OUT;
    p->port = e->io.port;
    p->size = e->io.size;
    memcpy(page, &e->io.data, sizeof(e->io.data));
    v->run->io.direction = e->io.is_in ? KVM_EXIT_IO_IN : KVM_EXIT_IO_OUT;
    v->run->io.size = e->io.size;
    v->run->io.port = e->io.port;
    v->run->io.count = e->io.count;
    v->run->io.data_offset = KVM_VCPU_PIO_PAGE * PAGE_SIZE;
    KVM_COUNT(&v->counters.io_exits);
    return leave(v, KVM_EXIT_IO);
}

/* ---- instructions ---- */

static int handle_cpuid(struct kvm_vcpu *v)
{
    uint64_t *r = v->cpu->regs;
    uint32_t out[4];

    kvm_cpuid_read(v, (uint32_t)r[CPU_RAX], (uint32_t)r[CPU_RCX], out);
    r[CPU_RAX] = out[0];
    r[CPU_RBX] = out[1];
    r[CPU_RCX] = out[2];
    r[CPU_RDX] = out[3];
    return kvm_exit_skip_insn(v);
}

/* Give an MSR access that failed to user space if it asked for that. */
static int msr_to_user(struct kvm_vcpu *v, enum kvm_msr_result why)
{
    const struct cpu_exit *e = &v->cpu->exit;
    bool is_write = e->reason == CPU_EXIT_WRMSR;
    uint32_t reason = why == KVM_MSR_UNKNOWN    ? KVM_MSR_EXIT_REASON_UNKNOWN
                      : why == KVM_MSR_FILTERED ? KVM_MSR_EXIT_REASON_FILTER
                                                : KVM_MSR_EXIT_REASON_INVAL;

    if (!(v->vm->user_msr_mask & reason)) {
        return inject_gp(v);
    }
    v->pending.kind = is_write ? KVM_PENDING_WRMSR : KVM_PENDING_RDMSR;
    v->run->msr.error = 0;
    memset(v->run->msr.pad, 0, sizeof(v->run->msr.pad));
    v->run->msr.reason = reason;
    v->run->msr.index = e->msr.index;
    v->run->msr.data = is_write ? e->msr.value : 0;
    return leave(v, is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR);
}

static int finish_rdmsr(struct kvm_vcpu *v, uint64_t value)
{
    v->cpu->regs[CPU_RAX] = (uint32_t)value;
    v->cpu->regs[CPU_RDX] = value >> 32;
    return kvm_exit_skip_insn(v);
}

static int handle_rdmsr(struct kvm_vcpu *v)
{
    uint32_t index = v->cpu->exit.msr.index;
    uint64_t value = 0;
    enum kvm_msr_result r = kvm_msr_filter_allows(v->vm, index, false)
                                ? kvm_msr_get(v, index, &value, false)
                                : KVM_MSR_FILTERED;

    if (r != KVM_MSR_DONE) {
        TRACE(&v->vm->s->trace, exit_msr, "read %llx failed", index);
        return msr_to_user(v, r);
    }
    return finish_rdmsr(v, value);
}

static int handle_wrmsr(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    enum kvm_msr_result r = kvm_msr_filter_allows(v->vm, e->msr.index, true)
                                ? kvm_msr_set(v, e->msr.index, e->msr.value, false)
                                : KVM_MSR_FILTERED;

    if (r != KVM_MSR_DONE) {
        TRACE(&v->vm->s->trace, exit_msr, "write %llx of %llx failed", e->msr.index, e->msr.value);
        return msr_to_user(v, r);
    }
    return kvm_exit_skip_insn(v);
}

static int handle_xsetbv(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;

    if (cpu_set_xcr(v->cpu, e->xcr.index, e->xcr.value) < 0) {
        return inject_gp(v);
    }
    return kvm_exit_skip_insn(v);
}

/* A lower CR8 may let interrupts through; user space hears of it when it owns the APIC. */
static int handle_cr8(struct kvm_vcpu *v)
{
    uint64_t old = v->run->cr8, cr8 = v->cpu->exit.cr8;

    if (v->lapic) {
        v->vm->irq->set_cr8(v, cr8);
        kvm_vcpu_request(v, KVM_REQUEST_EVENT);
        return KVM_GO_ON;
    }
    v->run->cr8 = cr8;
    return old <= cr8 ? KVM_GO_ON : leave(v, KVM_EXIT_SET_TPR);
}

static int handle_hlt(struct kvm_vcpu *v)
{
    KVM_COUNT(&v->counters.halts);
    if (!v->lapic) {
        return leave(v, KVM_EXIT_HLT);
    }
    atomic_store(&v->mp_state, KVM_MP_STATE_HALTED);
    return KVM_GO_ON;
}

static int handle_debug(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;

    v->run->debug.arch.exception = e->debug.vector;
    v->run->debug.arch.pc = e->debug.pc;
    v->run->debug.arch.dr6 = e->debug.vector == X86_DB ? e->debug.dr6 | 0xffff0ff0u : 0;
    v->run->debug.arch.dr7 = v->cpu->dr7;
    return leave(v, KVM_EXIT_DEBUG);
}

int kvm_exit_internal_error(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;

    KVM_COUNT(&v->counters.insn_errors);
    kvm_log(v->vm->s, 3, "vm %u vcpu %u: %s at rip 0x%llx", v->vm->number, v->id, e->error.what,
            (unsigned long long)v->cpu->rip);
    memset(&v->run->emulation_failure, 0, sizeof(v->run->emulation_failure));
    v->run->emulation_failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
    v->run->emulation_failure.ndata = 3;
    v->run->emulation_failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
    v->run->emulation_failure.insn_size = e->error.len;
    memcpy(v->run->emulation_failure.insn_bytes, e->error.bytes,
           sizeof(v->run->emulation_failure.insn_bytes));
    return leave(v, KVM_EXIT_INTERNAL_ERROR);
}

static int handle_triple_fault(struct kvm_vcpu *v)
{
    return leave(v, KVM_EXIT_SHUTDOWN);
}

/* The log of modified pages was emptied on the way here. */
static int handle_pml_full(struct kvm_vcpu *v)
{
    KVM_COUNT(&v->counters.pml_full);
    return KVM_GO_ON;
}

/* A request came before the guest was entered. */
static int handle_nothing(struct kvm_vcpu *v)
{
    return KVM_GO_ON;
}

static int handle_kick(struct kvm_vcpu *v)
{
    KVM_COUNT(&v->counters.kicks);
    return KVM_GO_ON;
}

/* The guest spins: for another processor, perhaps, whose thread waits for this one's place. */
static int handle_pause(struct kvm_vcpu *v)
{
    v->spun = true;
    return KVM_GO_ON;
}

static int handle_window(struct kvm_vcpu *v)
{
    v->cpu->want_intr_window = 0;
    KVM_COUNT(&v->counters.irq_window_exits);
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return KVM_GO_ON;
}

static int handle_nmi_window(struct kvm_vcpu *v)
{
    v->cpu->want_nmi_window = 0;
    KVM_COUNT(&v->counters.nmi_window_exits);
    return KVM_GO_ON;
}

static int (*const handlers[])(struct kvm_vcpu *v) = {
    [CPU_EXIT_NONE] = handle_nothing,
    [CPU_EXIT_KICK] = handle_kick,
    [CPU_EXIT_HLT] = handle_hlt,
    [CPU_EXIT_IO] = handle_io,
    [CPU_EXIT_EPT_VIOLATION] = handle_violation,
    [CPU_EXIT_EPT_MISCONFIG] = handle_misconfig,
    [CPU_EXIT_NPF] = handle_npf,
    [CPU_EXIT_PML_FULL] = handle_pml_full,
    [CPU_EXIT_CPUID] = handle_cpuid,
    [CPU_EXIT_RDMSR] = handle_rdmsr,
    [CPU_EXIT_WRMSR] = handle_wrmsr,
    [CPU_EXIT_INTR_WINDOW] = handle_window,
    [CPU_EXIT_NMI_WINDOW] = handle_nmi_window,
    [CPU_EXIT_HYPERCALL] = kvm_exit_hypercall,
    [CPU_EXIT_TRIPLE_FAULT] = handle_triple_fault,
    [CPU_EXIT_DEBUG] = handle_debug,
    [CPU_EXIT_CR8] = handle_cr8,
    [CPU_EXIT_XSETBV] = handle_xsetbv,
    [CPU_EXIT_PAUSE] = handle_pause,
    [CPU_EXIT_HOST_FAULT] = kvm_exit_host_fault,
    [CPU_EXIT_PAGE_FAULT] = kvm_shadow_exit,
    [CPU_EXIT_CR_WRITE] = kvm_shadow_exit,
    [CPU_EXIT_INVALIDATE] = kvm_shadow_exit,
    [CPU_EXIT_PDPTES] = kvm_shadow_exit,
    [CPU_EXIT_TABLE_WRITE] = kvm_shadow_exit,
    [CPU_EXIT_ERROR] = kvm_exit_internal_error,
};

int kvm_exit_handle(struct kvm_vcpu *v, enum cpu_exit_reason reason)
{
    if (never(reason >= ARRAY_LEN(handlers))) {
        kvm_vm_bug(v->vm, "exit reason out of range");
        return -EIO;
    }
    KVM_COUNT(&v->counters.exit_reason[reason]);
    TRACE(&v->vm->s->trace, exit, "reason %llu rip %llx", reason, v->cpu->rip);
    return handlers[reason](v);
}

/* ---- second half ---- */

static int complete_mmio(struct kvm_vcpu *v)
{
    struct kvm_pending *p = &v->pending;
    unsigned n = p->size - p->done > 8 ? 8 : p->size - p->done;

    if (p->kind == KVM_PENDING_MMIO_READ) {
        memcpy(p->data + p->done, v->run->mmio.data, n);
    }
    p->done = (uint8_t)(p->done + n);
    if (p->done < p->size) {
        return mmio_piece(v);
    }
    if (p->kind == KVM_PENDING_MMIO_READ) {
        cpu_complete_read(v->cpu, p->data, p->size);
    }
    p->kind = KVM_PENDING_NONE;
    return KVM_GO_ON;
}

static int complete_msr(struct kvm_vcpu *v, bool is_read)
{
    if (v->run->msr.error) {
        return inject_gp(v);
    }
    return is_read ? finish_rdmsr(v, v->run->msr.data) : kvm_exit_skip_insn(v);
}

int kvm_exit_complete(struct kvm_vcpu *v)
{
    struct kvm_pending *p = &v->pending;
    enum kvm_pending_kind kind = p->kind;

    if (kind == KVM_PENDING_MMIO_READ || kind == KVM_PENDING_MMIO_WRITE) {
        return complete_mmio(v);
    }
    p->kind = KVM_PENDING_NONE;
    if (kind == KVM_PENDING_PIO_IN) {
        /* As many as the exit said, whatever the run page says now. */
        cpu_complete_in(v->cpu, (uint8_t *)v->run + KVM_VCPU_PIO_PAGE * PAGE_SIZE, v->cpu->exit.io.count);
    } else if (kind == KVM_PENDING_RDMSR || kind == KVM_PENDING_WRMSR) {
        return complete_msr(v, kind == KVM_PENDING_RDMSR);
    } else if (kind == KVM_PENDING_HYPERCALL) {
        return kvm_exit_complete_hypercall(v);
    } else if (kind == KVM_PENDING_LATE_WRITE) {
        return late_write(v);
    }
    return KVM_GO_ON;
}
