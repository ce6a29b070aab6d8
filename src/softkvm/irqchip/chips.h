/*
 * What the files of src/softkvm/irqchip share. Their door is kvm_irq_chips of softkvm/irq.h.
 *
 *   device --KVM_IRQ_LINE, irqfd, PIT--> routing --> PIC ----INTR----+
 *                                           |--> IOAPIC --\          v
 *   device --KVM_SIGNAL_MSI-----------------+------------> deliver -> LAPIC IRR -> kick -> inject
 *   vCPU  --ICR write----------------------------------------^
 *
 * No wake-up is lost: a sender makes its event visible (IRR, PIC output), then kicks; the vCPU
 * publishes that it runs or sleeps, then looks. Both sides are sequentially consistent.
 *
 * Locks: vm->irq_lock guards PIC, IOAPIC, routing and line states: taken by kvm_chips_lock(), and
 * given back by kvm_chips_unlock(), which only then does what must not be done under it: wakes the
 * vCPU that takes the PIC's output, and tells acknowledge listeners (PIT, resampling irqfds). The PIT's
 * and the irqfds' locks are outer to it, the timers' lock inner.
 * LAPIC registers are written by their owner, but IRR and TMR by anyone; all are atomics.
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_CHIPS_H
#define STRATA_SOFTKVM_IRQCHIP_CHIPS_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "softkvm/irqchip/ioapic.h"
#include "softkvm/irqchip/pic.h"
#include "softkvm/timer.h"
#include "softkvm/vcpu.h"

struct kvm_irqfds;
struct kvm_lapic;
struct kvm_pit;
struct kvm_route_table;

enum kvm_chips_mode {
    KVM_CHIPS_NONE,
    KVM_CHIPS_KERNEL, /* LAPICs, IOAPIC, PIC */
    KVM_CHIPS_SPLIT,  /* LAPICs alone */
};

#define KVM_MAX_IRQ_ROUTES 4096

/* How long a level interrupt waits that its handler does not get rid of. */
#define KVM_IOAPIC_PAUSE_NS UINT64_C(10000000)

/* Who drives a line: a line is high while any of them holds it. */
#define KVM_SOURCE_USER     0
#define KVM_SOURCE_RESAMPLE 1
#define KVM_SOURCE_PIT      2

struct kvm_chips {
    struct kvm_vm *vm;
    _Atomic uint32_t mode;        /* enum kvm_chips_mode; set once */
    _Atomic(struct kvm_timers *) timers; /* set once, with the first LAPIC */
    _Atomic(struct kvm_pit *) pit;       /* set once */
    struct kvm_irqfds *irqfds;    /* from the first KVM_IRQFD on; own lock */
    pthread_mutex_t irqfds_lock;  /* guards the pointer */
    uint32_t reserved_pins;       /* split: GSIs of user space's IOAPIC */
    struct kvm_timer resend;      /* for what the IOAPIC holds back */
    _Atomic bool x2apic_format, broadcast_quirk_off; /* KVM_CAP_X2APIC_API */
    /* Vectors whose EOI the IOAPIC wants to hear though they are edge-triggered. */
    _Atomic uint32_t eoi_watch[8];
    _Atomic uint32_t eoi_exits[8]; /* split: vectors whose EOI user space's IOAPIC wants to hear */
    _Atomic int32_t pic_vector;   /* what the PIC would answer now, -1: its output is low */
    _Atomic uint32_t nmi_watchdogs; /* LAPICs whose LINT0 is an NMI */

    /* under irq_lock */
    struct kvm_pic pic;
    struct kvm_ioapic ioapic;
    struct kvm_route_table *routes; /* null: none */
    uint16_t ack_watch[KVM_MAX_IRQ_ROUTES]; /* how many want to know when the GSI is acknowledged */
    bool timer_masked[2];         /* GSI 0 as last seen in PIC and IOAPIC */
};

static inline enum kvm_chips_mode kvm_chips_mode(const struct kvm_vm *vm)
{
    return (enum kvm_chips_mode)atomic_load_explicit(&vm->chips->mode, memory_order_acquire);
}

/* chips.c */
int kvm_chips_init(struct kvm_vm *vm) must_check;
void kvm_chips_stop(struct kvm_vm *vm); /* threads and timers */
void kvm_chips_fini(struct kvm_vm *vm);
void kvm_chips_lock(struct kvm_chips *chips);
void kvm_chips_unlock(struct kvm_chips *chips);
/* The IOAPIC holds a level interrupt back: give it after a pause. Lock: irq_lock held. */
void kvm_chips_resend_later(struct kvm_chips *chips);
int kvm_chips_create_irqchip(struct kvm_vm *vm);
int kvm_chips_create_split(struct kvm_vm *vm, uint64_t pins);
/* Someone (PIT, resampling irqfd) wants, or no longer wants, acknowledgements of gsi. Lock: takes irq_lock. */
void kvm_chips_watch_ack(struct kvm_chips *chips, uint32_t gsi, bool on);

/* ioctl.c */
int kvm_chips_vm_ioctl(struct kvm_vm *vm, unsigned long request, void *arg);
int kvm_chips_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg);
int kvm_chips_enable_cap(struct kvm_vm *vm, uint32_t cap, const uint64_t *args);
int kvm_chips_check_extension(struct softkvm *s, struct kvm_vm *vm, long extension);

/* deliver.c: messages between APICs */

struct kvm_apic_msg {
    uint32_t dest;
    uint8_t vector;
    uint8_t mode;      /* APIC_DM_* >> 8: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 SIPI, 7 ExtINT */
    uint8_t shorthand; /* 0 none, 1 self, 2 all, 3 all but self */
    bool logical, level_trig, assert_level, redirect_hint;
    bool from_owner;   /* the target's own thread sends: it need not be kicked */
};

#define KVM_APIC_FIXED  0
#define KVM_APIC_LOWEST 1
#define KVM_APIC_SMI    2
#define KVM_APIC_NMI    4
#define KVM_APIC_INIT   5
#define KVM_APIC_SIPI   6
#define KVM_APIC_EXTINT 7

/* Deliver to every LAPIC that the destination names. src: the sender, null for a device. Returns how
 * many took it; -1 for a broadcast that names nobody. */
int kvm_apic_deliver(struct kvm_chips *chips, struct kvm_lapic *src, const struct kvm_apic_msg *msg);

/* An MSI as a device would write it. Returns as kvm_apic_deliver(), or -EINVAL. */
int kvm_apic_deliver_msi(struct kvm_chips *chips, uint64_t address, uint32_t data);

/* Does the message name this LAPIC? */
bool kvm_apic_is_target(struct kvm_chips *chips, struct kvm_lapic *dst, struct kvm_lapic *src,
                        const struct kvm_apic_msg *msg);

/* routing.c */

/* Drive a GSI. Returns the number of inputs that took it, 0: merged with one pending, < 0: masked or
 * nowhere routed. Lock: takes irq_lock. */
int kvm_irq_set_line(struct kvm_chips *chips, unsigned source, uint32_t gsi, bool level);
/* Raise and lower: an edge. */
int kvm_irq_pulse(struct kvm_chips *chips, unsigned source, uint32_t gsi);
/* KVM_SET_GSI_ROUTING; the table as created. 0 or -errno. Lock: take irq_lock. */
int kvm_routes_set(struct kvm_chips *chips, const struct kvm_irq_routing_entry *entries, uint32_t n);
int kvm_routes_set_default(struct kvm_chips *chips);
/* The routing table has changed: what follows from it. Lock: irq_lock held. */
void kvm_chips_update_watch(struct kvm_chips *chips);
/* GSI of an input: pic 0-15, IOAPIC 0-23; -1 when it has none. Lock: irq_lock held. */
int kvm_routes_gsi_of_pic(const struct kvm_chips *chips, unsigned input);
int kvm_routes_gsi_of_ioapic(const struct kvm_chips *chips, unsigned pin);
void kvm_routes_free(struct kvm_chips *chips);
/* Vectors of level-triggered MSI routes below `gsis`. Lock: irq_lock held. */
void kvm_routes_level_vectors(const struct kvm_chips *chips, uint32_t gsis, uint32_t set[8]);

/* irqfd.c */
int kvm_irqfd_change(struct kvm_chips *chips, const struct kvm_irqfd *args);
void kvm_irqfds_stop(struct kvm_chips *chips);
/* gsi has been acknowledged: lower the line and signal resampling descriptors. No lock held. */
void kvm_irqfds_ack(struct kvm_chips *chips, uint32_t gsi);

#endif
