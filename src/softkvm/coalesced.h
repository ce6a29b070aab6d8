/* The coalesced ring's place in the vCPUs' mappings; the zones are in bus.h. */
#ifndef STRATA_SOFTKVM_COALESCED_H
#define STRATA_SOFTKVM_COALESCED_H

#include "base/compiler.h"

struct kvm_vcpu;

/* A new vCPU: its ring page becomes the VM's, or a second mapping of it. 0 or -ENOMEM. Lock: vm->lock. */
int kvm_coalesced_share_ring(struct kvm_vcpu *v) must_check;

/* Its pages go away. */
void kvm_coalesced_forget_ring(struct kvm_vcpu *v);

#endif
