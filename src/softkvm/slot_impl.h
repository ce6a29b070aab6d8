/* The primitives under the slot verbs; for slot.c, slot_change.c and tests. Lock: slots_lock. */
#ifndef STRATA_SOFTKVM_SLOT_IMPL_H
#define STRATA_SOFTKVM_SLOT_IMPL_H

#include "softkvm/slot.h"

/* In one set: take old out (if any), put new in (if any). The set must not be the active one while
 * anybody can read it. */
void kvm_slots_replace(struct kvm_slot_set *set, struct kvm_memslot *old, struct kvm_memslot *new);

struct kvm_slot_set *kvm_slots_inactive(struct kvm_slot_space *s);

/* Make the inactive set the active one and wait until nobody reads the other. */
void kvm_slots_swap(struct kvm_vm *vm);

/* Lowest slot with a page at or above f, or null. */
struct kvm_memslot *kvm_slots_first_from(const struct kvm_slot_set *set, gfn_t f);

/* What of a request can be judged by itself: 0 or -EINVAL. */
int kvm_slot_check(const struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m) must_check;

/* Can a guest name all of these frames? npages > 0. */
bool kvm_slot_is_reachable(const struct kvm_vm *vm, uint64_t first, uint64_t npages);

/* A slot as requested, in no set, with a bitmap if it logs: that of `old`, which it replaces, or a new one. Null: out
 * of memory. */
struct kvm_memslot *kvm_slot_make(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m,
                                  const struct kvm_memslot *old) must_check;

/* Free a slot that is in no set, with its bitmap. */
void kvm_slot_free(struct kvm_memslot *slot);

#endif
