/*
 * Where a slot may have huge leaves: for each 2 MiB and each 1 GiB region that the slot touches, a count of the
 * reasons against. A region has one when the slot's edge cuts it, when guest and host addresses are not
 * congruent, for each guest table in it that is watched (shadow paging), and a mark when its pages
 * have mixed attributes.
 *
 * Owned by the slot; a change of flags hands it from the old slot to the new. Counts are atomics: any
 * thread that may read the slot may ask; who counts brings a lock of its own (mmu.lock, slots_lock).
 */
#ifndef STRATA_SOFTKVM_LPAGE_H
#define STRATA_SOFTKVM_LPAGE_H

#include <stdint.h>

#include "softkvm/slot.h"

#define KVM_LPAGE_LEVELS 2 /* 2 MiB and 1 GiB */
#define KVM_LPAGE_MIXED  (UINT32_C(1) << 31)

struct kvm_lpage {
    struct {
        uint64_t first; /* region number (gfn >> 9 or >> 18) of entry 0 */
        uint64_t count; /* regions */
        bool skewed;    /* not congruent: none may be huge */
        _Atomic uint32_t *reasons;
    } level[KVM_LPAGE_LEVELS];
};

struct softkvm;

/* The counts for a slot whose base_gfn, npages and hva are set. Null: out of memory. free() frees. */
struct kvm_lpage *kvm_lpage_new(struct softkvm *s, const struct kvm_memslot *slot) must_check;

/* May a leaf of `level` (2, 3) cover f, as far as the slot is concerned? */
bool kvm_lpage_allowed(const struct kvm_memslot *slot, gfn_t f, unsigned level);

/* One reason more (delta 1) or less (-1) against huge leaves over f, at both levels. */
void kvm_lpage_disallow(const struct kvm_memslot *slot, gfn_t f, int delta);

/* The region of `level` around f has pages of mixed attributes, or has no longer. */
void kvm_lpage_set_mixed(const struct kvm_memslot *slot, gfn_t f, unsigned level, bool mixed);

/* For checks: the count for f, KVM_LPAGE_MIXED included; and what the slot's shape alone gives. */
uint32_t kvm_lpage_reasons(const struct kvm_memslot *slot, gfn_t f, unsigned level);
uint32_t kvm_lpage_shape(const struct kvm_memslot *slot, gfn_t f, unsigned level);

#endif
