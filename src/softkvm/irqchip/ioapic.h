/*
 * An I/O APIC with 24 inputs, version 0x11. A model alone: messages leave through a callback, the
 * owner (irq_lock) serialises calls, and looks at `acked` after each.
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_IOAPIC_H
#define STRATA_SOFTKVM_IRQCHIP_IOAPIC_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define KVM_IOAPIC_BASE 0xfec00000u
#define KVM_IOAPIC_LEN  0x100u

struct kvm_ioapic {
    uint64_t base;
    uint32_t id; /* bits 27:24 of the register, here 0-15 */
    uint32_t regsel;
    uint32_t irr;       /* inputs that are requested: high lines, and edges not delivered */
    uint32_t delivered; /* edges of irr that have left as messages */
    uint64_t redir[KVM_IOAPIC_NUM_PINS];
    uint32_t lines[KVM_IOAPIC_NUM_PINS]; /* by source, one bit each */
    uint32_t storm[KVM_IOAPIC_NUM_PINS]; /* level interrupts raised again straight at their EOI */
    uint32_t delayed;   /* pins held back by `storm` until kvm_ioapic_resend() */
    uint32_t acked;     /* pins whose EOI has come since the owner last cleared it */
    bool changed;       /* the redirection table, since the owner last cleared it */
    /* Send the message of an entry; returns as kvm_apic_deliver(). */
    int (*send)(void *opaque, uint64_t entry);
    void *opaque;
};

void kvm_ioapic_init(struct kvm_ioapic *io, int (*send)(void *opaque, uint64_t entry), void *opaque);

/* Source drives a pin. Returns > 0: that many took it, 0: merged with a pending one, < 0: masked. */
int kvm_ioapic_set_line(struct kvm_ioapic *io, unsigned source, unsigned pin, bool level);

/* End of interrupt from a LAPIC. level: the LAPIC had it as level-triggered. */
void kvm_ioapic_eoi(struct kvm_ioapic *io, uint8_t vector, bool level);

/* Send what was held back after a storm of level interrupts. */
void kvm_ioapic_resend(struct kvm_ioapic *io);

/* Register window; offset from the base. */
uint32_t kvm_ioapic_read(struct kvm_ioapic *io, unsigned offset);
void kvm_ioapic_write(struct kvm_ioapic *io, unsigned offset, uint32_t value);

void kvm_ioapic_get_state(const struct kvm_ioapic *io, struct kvm_ioapic_state *out);
void kvm_ioapic_set_state(struct kvm_ioapic *io, const struct kvm_ioapic_state *in);

#endif
