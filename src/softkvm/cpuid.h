/* CPUID: what the engine can offer, what a vCPU was given, and what a guest reads. */
#ifndef STRATA_SOFTKVM_CPUID_H
#define STRATA_SOFTKVM_CPUID_H

#include <linux/kvm.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_vcpu;
struct softkvm;

/* KVM_GET_SUPPORTED_CPUID: all entries. Returns how many; out: room for KVM_MAX_CPUID_ENTRIES. */
unsigned kvm_cpuid_supported(struct softkvm *s, struct kvm_cpuid_entry2 *out);

/* KVM_SET_CPUID2: take over a copy. 0; -EINVAL (impossible after the first run with other contents), -ENOMEM. */
int kvm_cpuid_set(struct kvm_vcpu *v, const struct kvm_cpuid_entry2 *entries, uint32_t n) must_check;

/* Derive what depends on it: features of the processor, physical width. */
void kvm_cpuid_changed(struct kvm_vcpu *v);

/* The four registers that CPUID gives the guest. */
void kvm_cpuid_read(struct kvm_vcpu *v, uint32_t function, uint32_t index, uint32_t out[4]);

/* A feature bit as the guest was given it. reg: 0 EAX .. 3 EDX. */
bool kvm_cpuid_has(const struct kvm_vcpu *v, uint32_t function, unsigned reg, unsigned bit);

#endif
