/* The inspection ioctls of include/softkvm/inspect.h; -ENOTTY for any other request. */
#ifndef STRATA_SOFTKVM_INSPECT_IMPL_H
#define STRATA_SOFTKVM_INSPECT_IMPL_H

#include <stddef.h>
#include <stdint.h>

#include "softkvm/inspect.h"

struct softkvm;
struct kvm_vm;
struct kvm_vcpu;

int kvm_inspect_system(struct softkvm *s, unsigned long request, void *arg);
int kvm_inspect_vm(struct kvm_vm *vm, unsigned long request, void *arg);
/* Under vcpu->lock. */
int kvm_inspect_vcpu(struct kvm_vcpu *v, unsigned long request, void *arg);

/* Follow x->gpa (or, of a vCPU, x->gva) through the layers. Lock: slots_lock, and vcpu->lock. */
void kvm_explain_gpa(struct kvm_vm *vm, struct softkvm_explain *x);
void kvm_explain_gva(struct kvm_vcpu *v, struct softkvm_explain *x);
void kvm_explain_frame(struct softkvm *s, uint64_t pfn, struct softkvm_frame_info *out);

/* SOFTKVM_CHECK: 0 or -EUCLEAN with text. Takes slots_lock and mmu.lock. */
int kvm_check_vm(struct kvm_vm *vm, char *text, size_t size);

#endif
