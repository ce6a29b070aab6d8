/*
 * KVM_SET_SIGNAL_MASK: which signals end KVM_RUN while the thread blocks them. See sigmask.c.
 */
#ifndef STRATA_SOFTKVM_SIGMASK_H
#define STRATA_SOFTKVM_SIGMASK_H

#include <signal.h>

#include "softkvm/vcpu.h"

int kvm_sigmask_set(struct kvm_vcpu *v, const void *arg) must_check;
bool kvm_sigmask_pending(const struct kvm_vcpu *v);
void kvm_sigmask_enter(struct kvm_vcpu *v, sigset_t *old);
void kvm_sigmask_leave(struct kvm_vcpu *v, const sigset_t *old);

#endif
