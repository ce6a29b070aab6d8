/* Dirty log: reading and clearing (KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG). */
#ifndef STRATA_SOFTKVM_DIRTY_H
#define STRATA_SOFTKVM_DIRTY_H

#include <linux/kvm.h>

#include "base/compiler.h"

struct kvm_vm;

int kvm_dirty_get_log(struct kvm_vm *vm, const struct kvm_dirty_log *log);
int kvm_dirty_clear_log(struct kvm_vm *vm, const struct kvm_clear_dirty_log *log);

#endif
