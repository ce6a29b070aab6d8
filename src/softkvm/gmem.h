/* guest_memfd: see gmem.c. */
#ifndef STRATA_SOFTKVM_GMEM_H
#define STRATA_SOFTKVM_GMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"

struct kvm_gmem;
struct kvm_memslot;
struct kvm_vm;
struct softkvm;

/* KVM_CREATE_GUEST_MEMFD: a descriptor, or -errno. */
int kvm_gmem_create(struct kvm_vm *vm, const void *arg) must_check;
/* The flags that the VM's type allows; vm null: any type. */
uint64_t kvm_gmem_flags(const struct kvm_vm *vm);

/* Descriptors and mappings; with the last one the contents go. */
void kvm_gmem_open(struct kvm_gmem *g);
void kvm_gmem_close(struct kvm_gmem *g);

/* Give a slot that nobody sees yet its private half: [offset, + the slot's size) of descriptor fd. */
int kvm_gmem_bind(struct kvm_vm *vm, struct kvm_memslot *slot, int fd, uint64_t offset) must_check;
/* The slot is in no set any more. */
void kvm_gmem_unbind(struct kvm_memslot *slot);

/* May a fault take pages of it? False once it is closed. In a read section. */
bool kvm_gmem_is_open(const struct kvm_gmem *g);

/* Where a page's contents are for the guest, by its frame in the second stage: the slot itself, or its
 * private half. In a read section. */
const struct kvm_memslot *kvm_slot_half(const struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t f);

/* SOFTKVM_POPULATE_PRIVATE. Takes slots_lock. */
int kvm_gmem_populate(struct kvm_vm *vm, const void *arg) must_check;

/* As fallocate() and mmap() of the descriptor. *owned: the address is a mapping made for this call. */
int kvm_gmem_fallocate(struct kvm_gmem *g, int mode, int64_t offset, int64_t length) must_check;
int kvm_gmem_mmap(struct kvm_gmem *g, size_t length, int flags, int64_t offset, void **out,
                  bool *owned) must_check;

#endif
