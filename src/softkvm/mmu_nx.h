/* The worker of the NX mitigation (mmu_nx.c): one thread per VM that has it. */
#ifndef STRATA_SOFTKVM_MMU_NX_H
#define STRATA_SOFTKVM_MMU_NX_H

#include "softkvm/vm.h"

/* -ENOMEM, -EAGAIN (no thread). */
int kvm_nx_start(struct kvm_vm *vm) must_check;
/* Ends the thread; nothing to do is fine. No lock may be held. */
void kvm_nx_stop(struct kvm_vm *vm);

/* KVM_CAP_VM_DISABLE_NX_HUGE_PAGES. -EPERM, -EINVAL. Lock: vm->lock. */
int kvm_nx_disable(struct kvm_vm *vm);

#endif
