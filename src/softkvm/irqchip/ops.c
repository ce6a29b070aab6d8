/*
 * The table through which the rest of softkvm reaches chips, clock and buses (irq.h).
 *
 * Locks: as irq.h says for each callback.
 */
#include "softkvm/irq.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <string.h>

#include "arch/regs.h"
#include "softkvm/bus.h"
#include "softkvm/coalesced.h"
#include "softkvm/irqchip/chips.h"
#include "softkvm/irqchip/lapic.h"
#include "softkvm/quirks.h"
#include "softkvm/kvmclock.h"

/* How much later than the vCPU itself the timer thread looks, while the vCPU sleeps on its own timer. */
#define BACKSTOP_NS UINT64_C(2000000)

/* ---- life ---- */

static int vm_init(struct kvm_vm *vm)
{
    int err = kvm_chips_init(vm);

    if (!err) {
        err = kvm_clock_init(vm);
    }
    return err ? err : kvm_buses_init(vm);
}

static void vm_fini(struct kvm_vm *vm)
{
    kvm_buses_fini(vm);
    kvm_clock_fini(vm);
    kvm_chips_fini(vm);
}

static int vcpu_init(struct kvm_vcpu *v)
{
    int err = kvm_pvclock_init(v);

    if (!err) {
        err = kvm_coalesced_share_ring(v);
    }
    if (!err && kvm_chips_mode(v->vm) != KVM_CHIPS_NONE) {
        err = kvm_lapic_new(v);
    }
    return err;
}

static void vcpu_fini(struct kvm_vcpu *v)
{
    kvm_lapic_free(v->lapic);
    v->lapic = NULL;
    kvm_coalesced_forget_ring(v);
    kvm_pvclock_fini(v);
}

static void vcpu_reset(struct kvm_vcpu *v, bool init)
{
    kvm_lapic_reset(v->lapic, init);
    kvm_pvclock_reset(v);
}

/* ---- interrupts ---- */

/* What the PIC offers to this vCPU, or -1. */
static int pic_vector(struct kvm_vcpu *v)
{
    int vector = atomic_load(&v->vm->chips->pic_vector);

    return vector >= 0 && kvm_lapic_takes_pic(v->lapic) ? vector : -1;
}

static int highest_vector(struct kvm_vcpu *v)
{
    int vector = pic_vector(v);

    return vector >= 0 ? vector : kvm_lapic_pending(v->lapic);
}

static int pending_vector(struct kvm_vcpu *v)
{
    if (!v->lapic) {
        return -1;
    }
    kvm_lapic_timer_awake(v->lapic);
    kvm_lapic_from_vapic(v->lapic);
    kvm_lapic_to_vapic(v->lapic);
    return highest_vector(v);
}

static int ack_pic(struct kvm_chips *chips)
{
    int vector = -1;

    kvm_chips_lock(chips);
    if (chips->pic.output) {
        vector = kvm_pic_ack(&chips->pic);
    }
    kvm_chips_unlock(chips);
    return vector;
}

static int ack_vector(struct kvm_vcpu *v)
{
    int vector = -1;

    if (!v->lapic) {
        return -1;
    }
    if (pic_vector(v) >= 0) {
        vector = ack_pic(v->vm->chips);
    }
    vector = vector >= 0 ? vector : kvm_lapic_ack(v->lapic);
    kvm_lapic_to_vapic(v->lapic);
    return vector;
}

static bool has_work(struct kvm_vcpu *v)
{
    if (v->lapic) {
        kvm_lapic_from_vapic(v->lapic);
    }
    return v->lapic && (v->cpu->rflags_rest & X86_IF) && highest_vector(v) >= 0;
}

static uint64_t next_timer(struct kvm_vcpu *v)
{
    return v->lapic ? kvm_lapic_timer_asleep(v->lapic, BACKSTOP_NS) : UINT64_MAX;
}

static void timer_expired(struct kvm_vcpu *v)
{
    if (v->lapic) {
        kvm_lapic_timer_check(v->lapic);
    }
    kvm_pvclock_tick(v);
}

static void clock_update(struct kvm_vcpu *v)
{
    if (v->lapic) {
        kvm_lapic_timer_rearm(v->lapic);
    }
    kvm_pvclock_update(v);
}

static bool user_exit(struct kvm_vcpu *v)
{
    int vector = v->lapic ? atomic_exchange(&v->lapic->eoi_exit, -1) : -1;

    if (vector < 0) {
        return v->lapic && kvm_lapic_tpr_exit(v->lapic);
    }
    if (v->lapic->tpr.pending) {
        atomic_fetch_or(&v->requests, KVM_REQUEST_APIC_EXIT); /* one at a time */
    }
    v->run->exit_reason = KVM_EXIT_IOAPIC_EOI;
    v->run->eoi.vector = (uint8_t)vector;
    return true;
}

static void set_cr8(struct kvm_vcpu *v, uint64_t cr8)
{
    if (v->lapic) {
        kvm_lapic_write(v->lapic, APIC_TPR, (uint32_t)cr8 << 4);
    }
}

static uint64_t get_cr8(struct kvm_vcpu *v)
{
    return v->lapic ? kvm_lapic_reg(v->lapic, APIC_TPR) >> 4 & 0xf : v->cpu->cr8;
}

/* ---- accesses ---- */

static int bus_access(struct kvm_vcpu *v, const struct kvm_bus_access *a)
{
    if (a->bus == KVM_BUS_MEM && v->lapic && kvm_lapic_mmio(v->lapic, a) == 0) {
        return 0;
    }
    if (a->size > 8) {
        return -ENXIO; /* no device here takes vectors whole */
    }
    return kvm_bus_access(v->vm->buses, v, a) == 0 ? 0 : -ENXIO;
}

static enum kvm_msr_result result_of(int err)
{
    return err == 0 ? KVM_MSR_DONE : KVM_MSR_FAULT;
}

static enum kvm_msr_result get_msr(struct kvm_vcpu *v, uint32_t index, uint64_t *value, bool by_host)
{
    (void)by_host;
    if (v->lapic && index >= X86_MSR_X2APIC_FIRST && index <= X86_MSR_X2APIC_LAST) {
        return result_of(kvm_lapic_read_msr(v->lapic, index, value));
    }
    switch (index) {
    case X86_MSR_APIC_BASE:
        if (!v->lapic) {
            return KVM_MSR_UNKNOWN;
        }
        *value = kvm_lapic_base(v->lapic);
        return KVM_MSR_DONE;
    case X86_MSR_TSC_DEADLINE:
        *value = v->lapic ? kvm_lapic_timer_deadline(v->lapic) : 0;
        return KVM_MSR_DONE;
    case MSR_KVM_PV_EOI_EN:
        if (!kvm_guest_pv_has(v, KVM_FEATURE_PV_EOI)) {
            return KVM_MSR_FAULT;
        }
        *value = v->lapic ? v->lapic->pv_eoi.msr : 0;
        return KVM_MSR_DONE;
    default:
        return kvm_pvclock_get_msr(v, index, value);
    }
}

static enum kvm_msr_result set_msr(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host)
{
    if (v->lapic && index >= X86_MSR_X2APIC_FIRST && index <= X86_MSR_X2APIC_LAST) {
        return result_of(kvm_lapic_write_msr(v->lapic, index, value));
    }
    switch (index) {
    case X86_MSR_APIC_BASE:
        return v->lapic ? result_of(kvm_lapic_set_base(v->lapic, value, by_host)) : KVM_MSR_UNKNOWN;
    case X86_MSR_TSC_DEADLINE:
        if (v->lapic) {
            kvm_lapic_timer_set_deadline(v->lapic, value);
        }
        return KVM_MSR_DONE;
    case X86_MSR_TSC:
    case X86_MSR_TSC_ADJUST:
        /* The write is the processor's; the clock page and the deadline follow it. */
        atomic_fetch_or(&v->requests, KVM_REQUEST_CLOCK);
        return KVM_MSR_UNKNOWN;
    case MSR_KVM_PV_EOI_EN:
        if (!kvm_guest_pv_has(v, KVM_FEATURE_PV_EOI)) {
            return KVM_MSR_FAULT;
        }
        if (!v->lapic) {
            return value & 2 ? KVM_MSR_FAULT : KVM_MSR_DONE; /* nothing will ever be ended so */
        }
        return result_of(kvm_lapic_set_pv_eoi(v->lapic, value));
    default:
        return kvm_pvclock_set_msr(v, index, value);
    }
}

/* ---- hypercalls ---- */

static int64_t hc_kick(struct kvm_vm *vm, uint64_t apic_id)
{
    struct kvm_vcpu *v = apic_id <= UINT32_MAX ? kvm_vm_find_vcpu(vm, (uint32_t)apic_id) : NULL;

    if (v) {
        kvm_vcpu_request(v, KVM_REQUEST_UNHALT);
    }
    return 0;
}

/* args: bitmap of 128 destinations (or 64 in 32-bit mode), lowest APIC ID, ICR. */
static int64_t hc_send_ipi(struct kvm_vcpu *src, const uint64_t args[5])
{
    unsigned bits = src->cpu->mode & CPU_MODE_64 ? 64 : 32;
    struct kvm_apic_msg msg = {
        .vector = (uint8_t)args[4],
        .mode = args[4] >> 8 & 7,
        .assert_level = true,
    };
    int64_t sent = 0;

    if (args[4] & (0xc0000u | 0x800u)) {
        return -KVM_EINVAL; /* shorthands and logical destinations have no place here */
    }
    for (unsigned i = 0; i < 2 * bits; i++) {
        struct kvm_vcpu *dst;

        if (!(args[1 + i / bits] >> (i % bits) & 1)) {
            continue;
        }
        dst = kvm_vm_find_vcpu(src->vm, (uint32_t)args[3] + i);
        if (dst && dst->lapic) {
            sent += kvm_lapic_accept(dst->lapic, &msg);
        }
    }
    return sent;
}

/* Hypercalls that a feature bit of the guest's offers. */
static bool is_offered(const struct kvm_vcpu *v, uint64_t number)
{
    return number == KVM_HC_KICK_CPU     ? kvm_guest_pv_has(v, KVM_FEATURE_PV_UNHALT)
           : number == KVM_HC_SEND_IPI   ? kvm_guest_pv_has(v, KVM_FEATURE_PV_SEND_IPI)
           : number == KVM_HC_SCHED_YIELD ? kvm_guest_pv_has(v, KVM_FEATURE_PV_SCHED_YIELD)
                                          : true;
}

static bool hypercall(struct kvm_vcpu *v, const uint64_t args[5], uint64_t *ret)
{
    if (!is_offered(v, args[0])) {
        return false;
    }
    switch (args[0]) {
    case KVM_HC_KICK_CPU:
        *ret = (uint64_t)hc_kick(v->vm, args[2]);
        return true;
    case KVM_HC_SEND_IPI:
        *ret = (uint64_t)hc_send_ipi(v, args);
        return true;
    case KVM_HC_CLOCK_PAIRING:
        *ret = (uint64_t)kvm_clock_pairing(v, args[1], args[2]);
        return true;
    case KVM_HC_SCHED_YIELD:
        *ret = 0; /* the host's scheduler knows best: a hint need not be taken */
        return true;
    default:
        return false;
    }
}

static const uint32_t msr_list[] = {
    X86_MSR_APIC_BASE,     X86_MSR_TSC_DEADLINE, MSR_KVM_WALL_CLOCK,   MSR_KVM_SYSTEM_TIME,
    MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_ASYNC_PF_EN, MSR_KVM_STEAL_TIME,
    MSR_KVM_PV_EOI_EN,     MSR_KVM_POLL_CONTROL, MSR_KVM_ASYNC_PF_INT, 0,
};

const struct kvm_irq_ops kvm_irq_chips = {
    .check_extension = kvm_chips_check_extension,
    .vm_init = vm_init,
    .vm_stop = kvm_chips_stop,
    .vm_fini = vm_fini,
    .vcpu_init = vcpu_init,
    .vcpu_fini = vcpu_fini,
    .vcpu_reset = vcpu_reset,
    .vm_ioctl = kvm_chips_vm_ioctl,
    .vcpu_ioctl = kvm_chips_vcpu_ioctl,
    .enable_cap = kvm_chips_enable_cap,
    .pending_vector = pending_vector,
    .ack_vector = ack_vector,
    .has_work = has_work,
    .next_timer = next_timer,
    .timer_expired = timer_expired,
    .clock_update = clock_update,
    .user_exit = user_exit,
    .set_cr8 = set_cr8,
    .get_cr8 = get_cr8,
    .bus_access = bus_access,
    .get_msr = get_msr,
    .set_msr = set_msr,
    .msr_list = msr_list,
    .hypercall = hypercall,
};
