/* Model-specific registers: the processor's, the chips', and those that the hypervisor keeps. */
#ifndef STRATA_SOFTKVM_MSR_H
#define STRATA_SOFTKVM_MSR_H

#include <stdint.h>

#include "base/compiler.h"
#include "softkvm/irq.h"

struct kvm_vcpu;
struct kvm_vm;

/* Any of them; by_host: user space's access (may do what a guest may not). */
enum kvm_msr_result kvm_msr_get(struct kvm_vcpu *v, uint32_t index, uint64_t *value, bool by_host);
enum kvm_msr_result kvm_msr_set(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host);

/* Values at reset (INIT keeps them). */
void kvm_msr_reset(struct kvm_vcpu *v);

/* KVM_GET_MSR_INDEX_LIST, _MSR_FEATURE_INDEX_LIST. Returns how many; out: room for KVM_MSR_LIST_MAX. */
#define KVM_MSR_LIST_MAX 256
unsigned kvm_msr_list(uint32_t *out);
unsigned kvm_msr_feature_list(uint32_t *out);
/* KVM_GET_MSRS on the system descriptor. -EINVAL: not a feature MSR. */
int kvm_msr_feature(uint32_t index, uint64_t *value) must_check;

#endif
