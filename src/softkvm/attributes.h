/* Attributes of guest-physical pages: see attributes.c. */
#ifndef STRATA_SOFTKVM_ATTRIBUTES_H
#define STRATA_SOFTKVM_ATTRIBUTES_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"

struct kvm_vm;
struct kvm_attributes;

/* What the VM's type allows: KVM_MEMORY_ATTRIBUTE_*. vm null: what any type does. */
uint64_t kvm_attributes_supported(const struct kvm_vm *vm);

int kvm_attributes_init(struct kvm_vm *vm) must_check;
void kvm_attributes_fini(struct kvm_vm *vm);

/* KVM_SET_MEMORY_ATTRIBUTES. */
int kvm_attributes_set(struct kvm_vm *vm, const void *arg) must_check;

/* Is the page private? Any thread, no lock; a fault samples mmu.inv_seq before it asks. */
bool kvm_page_is_private(const struct kvm_vm *vm, gfn_t f);

/* Have the pages all the same attributes? */
bool kvm_pages_are_alike(const struct kvm_vm *vm, gfn_t first, uint64_t npages);

#endif
