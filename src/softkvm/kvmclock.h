/*
 * kvmclock: the guest's time as KVM offers it. Each vCPU that asks has a page with (TSC, ns) of one
 * common instant and the factor between them; the guest reads its TSC and computes.
 *
 *     ns(tsc) = base_ns + (((tsc - base_tsc) << shift) * mul >> 32)
 *
 * All vCPUs of a VM share one instant (the master), so that time never steps back between them and
 * the stable bit can be set; it moves only when user space sets the clock or a TSC.
 *
 * Locks: the VM's part has a lock of its own, a leaf. A vCPU's part is its owner's.
 */
#ifndef STRATA_SOFTKVM_KVMCLOCK_H
#define STRATA_SOFTKVM_KVMCLOCK_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "softkvm/irq.h"

struct kvm_clock;
struct kvm_pvclock;

/* vm->clock: starts at 0 now. 0 or -ENOMEM. */
int kvm_clock_init(struct kvm_vm *vm) must_check;
void kvm_clock_fini(struct kvm_vm *vm);

/* v->pvclock. 0 or -ENOMEM. */
int kvm_pvclock_init(struct kvm_vcpu *v) must_check;
void kvm_pvclock_fini(struct kvm_vcpu *v);
void kvm_pvclock_reset(struct kvm_vcpu *v);

/* KVM_GET_CLOCK, KVM_SET_CLOCK (0 or -EINVAL: unknown flag). Lock: takes the clock's. */
void kvm_clock_get(struct kvm_vm *vm, struct kvm_clock_data *out);
int kvm_clock_set(struct kvm_vm *vm, const struct kvm_clock_data *in);

/* Write the pages of this vCPU anew. Owner, in its read section. */
void kvm_pvclock_update(struct kvm_vcpu *v);

/* The guest's timer has ticked: see to the steal time, now and then. Owner, in its read section. */
void kvm_pvclock_tick(struct kvm_vcpu *v);

/* KVM_KVMCLOCK_CTRL: tell the guest's watchdogs that it was stopped. 0, or -EINVAL without a page. */
int kvm_pvclock_was_stopped(struct kvm_vcpu *v);

/* The paravirtual MSRs. KVM_MSR_UNKNOWN for all others. */
enum kvm_msr_result kvm_pvclock_get_msr(struct kvm_vcpu *v, uint32_t index, uint64_t *value);
enum kvm_msr_result kvm_pvclock_set_msr(struct kvm_vcpu *v, uint32_t index, uint64_t value);

/* KVM_HC_CLOCK_PAIRING: the guest's RAX. */
int64_t kvm_clock_pairing(struct kvm_vcpu *v, uint64_t gpa, uint64_t type);

/* Factor and shift such that ((delta << shift) * mul) >> 32 turns units of 1/hz s into ns (a negative
 * shift is to the right). hz: > 0. */
void kvm_clock_scale(uint64_t hz, uint32_t *mul, int8_t *shift);

/* What the guest computes from a page: ns of `delta` ticks. */
uint64_t kvm_clock_ticks_to_ns(uint64_t delta, uint32_t mul, int8_t shift);

#endif
