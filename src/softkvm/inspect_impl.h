/* The inspection ioctls of include/softkvm/inspect.h; -ENOTTY for any other request. */
#ifndef STRATA_SOFTKVM_INSPECT_IMPL_H
#define STRATA_SOFTKVM_INSPECT_IMPL_H

#include <stddef.h>
#include <stdint.h>

#include "arch/format.h"
#include "base/compiler.h"
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
void kvm_explain_entry(struct softkvm_entry *o, enum arch_format_id id, unsigned level, uint64_t value);
void kvm_explain_frame(struct softkvm *s, uint64_t pfn, struct softkvm_frame_info *out);

/* SOFTKVM_CHECK: 0 or -EUCLEAN with text. Takes slots_lock and mmu.lock. */
struct kvm_checker;
int kvm_check_vm(struct kvm_vm *vm, char *text, size_t size);

/* For struct kvm_mmu_ops.check_locked: an invariant does not hold. The first one reported counts. */
void kvm_breach(struct kvm_checker *c, const char *fmt, ...) printf_like(2, 3);

#endif
