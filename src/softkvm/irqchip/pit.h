/*
 * The 8254 of a VM: three counters, the speaker port, and the timer that drives GSI 0.
 *
 * Locks: its own, outer to irq_lock and to the timers' lock; never held while an interrupt is raised.
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_PIT_H
#define STRATA_SOFTKVM_IRQCHIP_PIT_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_chips;
struct kvm_pit;
struct kvm_vm;

#define KVM_PIT_GSI 0

/* KVM_CREATE_PIT2: sets chips->pit and puts the ports on the bus; unknown flags are ignored. 0, -ENOENT (no irqchip), -EEXIST, -ENOMEM,
 * -ENOSPC. */
int kvm_pit_create(struct kvm_vm *vm, uint32_t flags) must_check;

/* Stop its timer, after which nothing of it runs by itself; free it. Null is allowed. */
void kvm_pit_stop(struct kvm_pit *pit);
void kvm_pit_free(struct kvm_pit *pit);

void kvm_pit_get_state(struct kvm_pit *pit, struct kvm_pit_state2 *out);
void kvm_pit_set_state(struct kvm_pit *pit, const struct kvm_pit_state2 *in);

/* KVM_REINJECT_CONTROL: make up for ticks that the guest was too slow to take. */
void kvm_pit_set_reinject(struct kvm_pit *pit, bool on);

/* GSI 0 has been acknowledged; it has been unmasked in a chip. No lock held. */
void kvm_pit_acked(struct kvm_pit *pit);
void kvm_pit_unmasked(struct kvm_pit *pit);

#endif
