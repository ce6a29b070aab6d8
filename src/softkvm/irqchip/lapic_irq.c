/*
 * The local APIC as a priority encoder: what it accepts, what it offers to the processor, how an
 * interrupt ends.
 *
 *   message --> IRR --(above PPR?)--> ack: ISR --> EOI --> IOAPIC, if level-triggered
 *
 * PPR = max(TPR, class of the highest vector in ISR). It is computed when asked, never cached, so that
 * another thread's answer is as good as the owner's.
 *
 * Locks: none; see lapic.h. EOI of a vector that the IOAPIC waits for takes irq_lock.
 */
#include "softkvm/irqchip/lapic.h"

#include <errno.h>
#include <linux/kvm_para.h>

int kvm_lapic_highest(const struct kvm_lapic *apic, unsigned first)
{
    for (int word = 7; word >= 0; word--) {
        uint32_t bits = atomic_load_explicit(&apic->reg[(first >> 4) + (unsigned)word],
                                             memory_order_seq_cst);

        if (bits) {
            return word * 32 + 31 - __builtin_clz(bits);
        }
    }
    return -1;
}

uint32_t kvm_lapic_ppr(const struct kvm_lapic *apic)
{
    int in_service = kvm_lapic_highest(apic, APIC_ISR);
    uint32_t tpr = kvm_lapic_reg(apic, APIC_TPR);
    uint32_t service_class = in_service < 0 ? 0 : (uint32_t)in_service & 0xf0;

    return (tpr & 0xf0) >= service_class ? tpr & 0xff : service_class;
}

int kvm_lapic_pending(struct kvm_lapic *apic)
{
    int vector;

    if (!kvm_lapic_hw_enabled(apic)) {
        return -1;
    }
    vector = kvm_lapic_highest(apic, APIC_IRR);
    if (vector < 0 || ((uint32_t)vector & 0xf0) <= (kvm_lapic_ppr(apic) & 0xf0)) {
        return -1;
    }
    return vector;
}

int kvm_lapic_ack(struct kvm_lapic *apic)
{
    int vector = kvm_lapic_pending(apic);
    unsigned irr, isr;

    if (vector < 0) {
        return -1;
    }
    irr = kvm_lapic_vector_reg(APIC_IRR, (uint8_t)vector);
    isr = kvm_lapic_vector_reg(APIC_ISR, (uint8_t)vector);
    atomic_fetch_and(&apic->reg[irr >> 4], ~kvm_lapic_vector_bit((uint8_t)vector));
    kvm_lapic_put(apic, isr, kvm_lapic_reg(apic, isr) | kvm_lapic_vector_bit((uint8_t)vector));
    kvm_lapic_put(apic, APIC_PPR, kvm_lapic_ppr(apic));
    return vector;
}

void kvm_lapic_look_again(struct kvm_lapic *apic)
{
    /* No kick: requests are looked at before the guest is entered. */
    atomic_fetch_or(&apic->vcpu->requests, KVM_REQUEST_EVENT);
}

/* Request a vector. */
static void accept_fixed(struct kvm_lapic *apic, const struct kvm_apic_msg *msg)
{
    uint8_t vector = msg->vector;
    _Atomic uint32_t *tmr = &apic->reg[kvm_lapic_vector_reg(APIC_TMR, vector) >> 4];
    _Atomic uint32_t *irr = &apic->reg[kvm_lapic_vector_reg(APIC_IRR, vector) >> 4];
    uint32_t bit = kvm_lapic_vector_bit(vector);
    bool is_level = atomic_load_explicit(tmr, memory_order_relaxed) & bit;
    bool fresh;

    /* Before the request, so that its EOI finds the right mode. */
    if (msg->level_trig && !is_level) {
        atomic_fetch_or(tmr, bit);
    } else if (!msg->level_trig && is_level) {
        atomic_fetch_and(tmr, ~bit);
    }
    fresh = !(atomic_fetch_or(irr, bit) & bit);
    /* A request that was there already has been announced by who made it. */
    if (fresh && msg->from_owner) {
        kvm_lapic_look_again(apic);
    } else if (fresh) {
        kvm_vcpu_request(apic->vcpu, KVM_REQUEST_EVENT);
    }
}

bool kvm_lapic_accept(struct kvm_lapic *apic, const struct kvm_apic_msg *msg)
{
    switch (msg->mode) {
    case KVM_APIC_LOWEST:
    case KVM_APIC_FIXED:
        if (!kvm_lapic_enabled(apic) || (msg->level_trig && !msg->assert_level)) {
            return false;
        }
        accept_fixed(apic, msg);
        return true;
    case KVM_APIC_NMI:
        kvm_vcpu_post_nmi(apic->vcpu);
        return true;
    case KVM_APIC_INIT:
        if (msg->level_trig && !msg->assert_level) {
            return false; /* the de-assert of old synchronised arbitration IDs only */
        }
        kvm_vcpu_post_init(apic->vcpu);
        return true;
    case KVM_APIC_SIPI:
        kvm_vcpu_post_sipi(apic->vcpu, msg->vector);
        return true;
    default:
        return false; /* SMI: there is no SMM; ExtINT comes over LINT0 only */
    }
}

bool kvm_lapic_deliver_lvt(struct kvm_lapic *apic, unsigned lvt)
{
    uint32_t entry = kvm_lapic_reg(apic, lvt);
    struct kvm_apic_msg msg = {
        .vector = (uint8_t)entry,
        .mode = APIC_LVT_MODE(entry),
        .assert_level = true,
    };

    if (!kvm_lapic_hw_enabled(apic) || (entry & APIC_LVT_MASKED)) {
        return false;
    }
    return kvm_lapic_accept(apic, &msg);
}

bool kvm_lapic_takes_pic(const struct kvm_lapic *apic)
{
    uint32_t lint0 = kvm_lapic_reg(apic, APIC_LVT0);

    if (!kvm_lapic_hw_enabled(apic)) {
        return true; /* as if the pins were INTR and NMI */
    }
    return !(lint0 & APIC_LVT_MASKED) && APIC_LVT_MODE(lint0) == KVM_APIC_EXTINT;
}

/* Tell the IOAPIC, ours or user space's, that `vector` has ended. */
static void broadcast_eoi(struct kvm_lapic *apic, uint8_t vector, bool level)
{
    struct kvm_chips *chips = apic->chips;
    unsigned word = vector >> 5;

    if (kvm_chips_mode(chips->vm) == KVM_CHIPS_SPLIT) {
        if (atomic_load_explicit(&chips->eoi_exits[word], memory_order_relaxed) &
            kvm_lapic_vector_bit(vector)) {
            atomic_store(&apic->eoi_exit, vector);
            kvm_vcpu_request(apic->vcpu, KVM_REQUEST_APIC_EXIT);
        }
        return;
    }
    if (!level && !(atomic_load_explicit(&chips->eoi_watch[word], memory_order_relaxed) &
                    kvm_lapic_vector_bit(vector))) {
        return;
    }
    kvm_chips_lock(chips);
    kvm_ioapic_eoi(&chips->ioapic, vector,
                   level && !(kvm_lapic_reg(apic, APIC_SPIV) & APIC_SPIV_NO_BCAST));
    if (chips->ioapic.delayed) {
        kvm_chips_resend_later(chips);
    }
    kvm_chips_unlock(chips);
}

void kvm_lapic_eoi(struct kvm_lapic *apic)
{
    int vector = kvm_lapic_highest(apic, APIC_ISR);
    unsigned isr;
    bool level;

    if (vector < 0) {
        return;
    }
    isr = kvm_lapic_vector_reg(APIC_ISR, (uint8_t)vector);
    kvm_lapic_put(apic, isr, kvm_lapic_reg(apic, isr) & ~kvm_lapic_vector_bit((uint8_t)vector));
    kvm_lapic_put(apic, APIC_PPR, kvm_lapic_ppr(apic));
    level = kvm_lapic_reg(apic, kvm_lapic_vector_reg(APIC_TMR, (uint8_t)vector)) &
            kvm_lapic_vector_bit((uint8_t)vector);
    kvm_lapic_look_again(apic);
    broadcast_eoi(apic, (uint8_t)vector, level);
}

int kvm_lapic_set_pv_eoi(struct kvm_lapic *apic, uint64_t value)
{
    if ((value & KVM_MSR_ENABLED) && (value & 2)) {
        return -EINVAL;
    }
    apic->pv_eoi.msr = value;
    apic->pv_eoi.set = false;
    return 0;
}

void kvm_lapic_send_icr(struct kvm_lapic *apic, uint32_t low, uint32_t high)
{
    struct kvm_apic_msg msg = {
        .dest = kvm_lapic_is_x2apic(apic) ? high : high >> 24,
        .vector = (uint8_t)low,
        .mode = (low >> 8) & 7,
        .logical = low >> 11 & 1,
        .assert_level = low >> 14 & 1,
        .level_trig = low >> 15 & 1,
        .shorthand = low >> 18 & 3,
    };

    kvm_apic_deliver(apic->chips, apic, &msg);
}

void kvm_lapic_pit_watchdogs(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    kvm_for_each_vcpu (i, v, vm) {
        if (v->lapic && atomic_load_explicit(&v->lapic->nmi_watchdog, memory_order_relaxed)) {
            kvm_lapic_deliver_lvt(v->lapic, APIC_LVT0);
        }
    }
}
