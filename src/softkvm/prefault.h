/* KVM_PRE_FAULT_MEMORY: see prefault.c. */
#ifndef STRATA_SOFTKVM_PREFAULT_H
#define STRATA_SOFTKVM_PREFAULT_H

#include "base/compiler.h"

struct kvm_vcpu;

/* In the vCPU's read section, with vcpu->lock. */
int kvm_prefault(struct kvm_vcpu *v, void *arg) must_check;

#endif
