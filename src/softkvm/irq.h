/*
 * What the rest of softkvm asks of interrupt chips, clocks and the in-kernel buses, as a table that
 * src/softkvm/irqchip fills. With kvm_irq_none (a VM without any) every question has its null answer,
 * so that the run loop and the MMU are complete without chips.
 *
 * Locks: unless said otherwise a vCPU's callback runs on its own thread with vcpu->lock held, inside a
 * read section; a VM's runs with no lock held. Callbacks take irq_lock and their own locks; they must
 * not take vcpu->lock of any vCPU, vm->slots_lock (but in vm_ioctl), nor mmu.lock.
 */
#ifndef STRATA_SOFTKVM_IRQ_H
#define STRATA_SOFTKVM_IRQ_H

#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"

struct softkvm;
struct kvm_vm;
struct kvm_vcpu;

enum kvm_bus_id {
    KVM_BUS_MEM,  /* MMIO */
    KVM_BUS_PORT, /* ports */
};

/* A device access on its way over the in-kernel bus. */
struct kvm_bus_access {
    enum kvm_bus_id bus;
    uint64_t addr; /* gpa or port */
    uint8_t size;  /* bytes, 1..16 */
    bool is_write;
    uint8_t *data; /* read: filled in; write: the value, little-endian */
};

enum kvm_msr_result {
    KVM_MSR_DONE,
    KVM_MSR_UNKNOWN, /* not the chips' */
    KVM_MSR_FAULT,   /* the guest gets #GP */
    KVM_MSR_FILTERED, /* KVM_X86_SET_MSR_FILTER forbids it */
};

struct kvm_irq_ops {
    /* KVM_CHECK_EXTENSION: the value, or -ENOTTY when the extension is not the chips'. vm may be null. */
    int (*check_extension)(struct softkvm *s, struct kvm_vm *vm, long extension);

    /* Life. vm_init: 0 or -ENOMEM; vm_fini also after a failed init; chips and vcpus are still there
     * in vm_fini, and no vCPU runs. vcpu_init: before the vCPU is visible to others. */
    int (*vm_init)(struct kvm_vm *vm);
    void (*vm_stop)(struct kvm_vm *vm); /* first: stop threads and timers, no callback afterwards */
    void (*vm_fini)(struct kvm_vm *vm);
    int (*vcpu_init)(struct kvm_vcpu *v);
    void (*vcpu_fini)(struct kvm_vcpu *v);
    void (*vcpu_reset)(struct kvm_vcpu *v, bool init); /* RESET# or INIT */

    /* Ioctls that are the chips': irqchip, PIT, LAPIC, routing, irqfd, ioeventfd, coalesced zones,
     * clock, MSI, line status. -ENOTTY for any other. vm_ioctl: no lock held. */
    int (*vm_ioctl)(struct kvm_vm *vm, unsigned long request, void *arg);
    int (*vcpu_ioctl)(struct kvm_vcpu *v, unsigned long request, void *arg);
    /* KVM_ENABLE_CAP of a chips' capability (split irqchip, x2apic API, ...): -EINVAL if not theirs. */
    int (*enable_cap)(struct kvm_vm *vm, uint32_t cap, const uint64_t *args);

    /*
     * The highest vector that the guest's APIC and PIC have for delivery now, TPR considered, or -1.
     * ack: take it (INTA cycle): returns the vector to inject. May be called from has_work's thread.
     */
    int (*pending_vector)(struct kvm_vcpu *v);
    int (*ack_vector)(struct kvm_vcpu *v);
    /* An event that should end HLT (deliverable interrupt, expired timer). Any of vcpu's threads. */
    bool (*has_work)(struct kvm_vcpu *v);
    /* CLOCK_MONOTONIC nanoseconds at which a timer of this vCPU fires, UINT64_MAX if none: a vCPU in
     * HLT sleeps until then itself and calls timer_expired, so that no other thread need wake it. */
    uint64_t (*next_timer)(struct kvm_vcpu *v);
    void (*timer_expired)(struct kvm_vcpu *v); /* also on KVM_REQUEST_TIMER */
    void (*clock_update)(struct kvm_vcpu *v);  /* on KVM_REQUEST_CLOCK and _STEAL; outside a guest */
    /* KVM_REQUEST_APIC_EXIT: fill run for a user exit; true: leave. */
    bool (*user_exit)(struct kvm_vcpu *v);

    /* CR8 when there is an in-kernel APIC. */
    void (*set_cr8)(struct kvm_vcpu *v, uint64_t cr8);
    uint64_t (*get_cr8)(struct kvm_vcpu *v);

    /* Device access: 0 served; -ENXIO: nobody's, goes to user space. 1: coalesced, done (writes). */
    int (*bus_access)(struct kvm_vcpu *v, const struct kvm_bus_access *a);

    /* MSRs of APIC (base, x2APIC, deadline), kvmclock and friends. by_host: user space's access. */
    enum kvm_msr_result (*get_msr)(struct kvm_vcpu *v, uint32_t index, uint64_t *value, bool by_host);
    enum kvm_msr_result (*set_msr)(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host);
    /* Their numbers for KVM_GET_MSR_INDEX_LIST; ends with 0. */
    const uint32_t *msr_list;

    /* KVM_HC_*: true with *ret set when it is the chips' (kick, send IPI, yield, clock pairing). */
    bool (*hypercall)(struct kvm_vcpu *v, const uint64_t args[5], uint64_t *ret);
};

extern const struct kvm_irq_ops kvm_irq_none;

/* The real ones: src/softkvm/irqchip defines it. */
extern const struct kvm_irq_ops kvm_irq_chips;

#endif
