/* KVM_X86_SET_MSR_FILTER: see msr_filter.c. */
#ifndef STRATA_SOFTKVM_MSR_FILTER_H
#define STRATA_SOFTKVM_MSR_FILTER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_vm;
struct kvm_vcpu;
struct kvm_msr_policy;

int kvm_msr_filter_set(struct kvm_vm *vm, const void *arg) must_check;
bool kvm_msr_filter_allows(struct kvm_vm *vm, uint32_t index, bool is_write);
/* On KVM_REQUEST_MSR_FILTER. In the vCPU's read section. */
void kvm_msr_filter_load(struct kvm_vcpu *v);
/* With no reader left. f may be null. */
void kvm_msr_filter_free(struct kvm_msr_policy *f);

#endif
