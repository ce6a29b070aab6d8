/*
 * Help for guests that write the task priority often, as 32-bit ones without CR8 do: user space hears of
 * each access to the register (TPR reporting), patches the instruction, and gives the guest a word in its
 * own memory instead (the virtual APIC word), which is read before interrupts are looked at and written
 * after:
 *
 *   bits 0-7 task priority (the guest's to write)   12-15 class in service   24-31 highest vector requested
 *
 * Locks: the owner's thread, in a read section.
 */
#include "softkvm/irqchip/lapic.h"

#include <errno.h>

int kvm_lapic_set_vapic(struct kvm_lapic *apic, uint64_t addr)
{
    uint32_t word;

    if (addr && ((addr & 3) || kvm_guest_read(apic->vcpu->vm, gpa(addr), &word, sizeof(word)) < 0)) {
        return -EINVAL;
    }
    apic->vapic_addr = addr;
    kvm_lapic_look_again(apic);
    return 0;
}

void kvm_lapic_from_vapic(struct kvm_lapic *apic)
{
    uint32_t word;

    if (unlikely(apic->vapic_addr) &&
        kvm_guest_read(apic->vcpu->vm, gpa(apic->vapic_addr), &word, sizeof(word)) == 0 &&
        (word & 0xff) != kvm_lapic_reg(apic, APIC_TPR)) {
        kvm_lapic_write(apic, APIC_TPR, word & 0xff);
    }
}

void kvm_lapic_to_vapic(struct kvm_lapic *apic)
{
    int irr, isr;
    uint32_t word, old;

    if (likely(!apic->vapic_addr)) {
        return;
    }
    irr = kvm_lapic_highest(apic, APIC_IRR);
    isr = kvm_lapic_highest(apic, APIC_ISR);
    word = kvm_lapic_reg(apic, APIC_TPR) | (isr < 0 ? 0 : ((uint32_t)isr & 0xf0) << 8) |
           (irr < 0 ? 0 : (uint32_t)irr << 24);
    /* A write marks the page dirty: none without a change. */
    if (kvm_guest_read(apic->vcpu->vm, gpa(apic->vapic_addr), &old, sizeof(old)) == 0 && old != word) {
        (void)!kvm_guest_write(apic->vcpu, gpa(apic->vapic_addr), &word, sizeof(word));
    }
}

void kvm_lapic_report_tpr(struct kvm_lapic *apic, bool is_write)
{
    if (unlikely(apic->tpr.reports)) {
        apic->tpr.pending = true;
        apic->tpr.is_write = is_write;
        apic->tpr.rip = is_write ? apic->vcpu->cpu->device_rip : apic->vcpu->cpu->rip;
        atomic_fetch_or(&apic->vcpu->requests, KVM_REQUEST_APIC_EXIT);
    }
}

bool kvm_lapic_tpr_exit(struct kvm_lapic *apic)
{
    struct kvm_run *run = apic->vcpu->run;

    if (!apic->tpr.pending) {
        return false;
    }
    apic->tpr.pending = false;
    run->exit_reason = KVM_EXIT_TPR_ACCESS;
    run->tpr_access.rip = apic->tpr.rip;
    run->tpr_access.is_write = apic->tpr.is_write;
    run->tpr_access.pad = 0;
    return true;
}
