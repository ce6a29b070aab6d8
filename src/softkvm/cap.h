/* Capabilities: what KVM_CHECK_EXTENSION says. */
#ifndef STRATA_SOFTKVM_CAP_H
#define STRATA_SOFTKVM_CAP_H

#include <linux/kvm.h>

struct softkvm;
struct kvm_vm;

/* The value for an extension: 0 when it is not there. vm: asked of a VM descriptor, else null. */
int kvm_cap_check(struct softkvm *s, struct kvm_vm *vm, long extension);

/* KVM_ENABLE_CAP on a VM. 0 or -EINVAL. Takes vm->lock. */
int kvm_cap_enable(struct kvm_vm *vm, const struct kvm_enable_cap *cap);

#endif
