/*
 * Reasons against huge leaves; see lpage.h.
 */
#include "softkvm/lpage.h"

#include <stdlib.h>

#include "arch/paging.h"
#include "softkvm/engine.h"

static unsigned region_shift(unsigned level)
{
    return PT_LEVEL_BITS * (level - 1);
}

static bool is_skewed(const struct kvm_memslot *slot, unsigned level)
{
    uint64_t mask = (UINT64_C(1) << region_shift(level)) - 1;

    return ((slot->base_gfn ^ (slot->hva >> PAGE_SHIFT)) & mask) != 0;
}

/* Reasons that a region has from where the slot begins and ends. */
static uint32_t edges(const struct kvm_memslot *slot, uint64_t region, unsigned level)
{
    uint64_t pages = UINT64_C(1) << region_shift(level), first = region * pages;

    return (first < slot->base_gfn) + (first + pages > slot->base_gfn + slot->npages);
}

struct kvm_lpage *kvm_lpage_new(struct softkvm *s, const struct kvm_memslot *slot)
{
    uint64_t first[KVM_LPAGE_LEVELS], count[KVM_LPAGE_LEVELS];
    struct kvm_lpage *l;
    _Atomic uint32_t *reasons;

    for (unsigned i = 0; i < KVM_LPAGE_LEVELS; i++) {
        unsigned shift = region_shift(i + 2);

        first[i] = slot->base_gfn >> shift;
        count[i] = ((slot->base_gfn + slot->npages - 1) >> shift) - first[i] + 1;
    }
    l = kvm_alloc(s, sizeof(*l) + (count[0] + count[1]) * sizeof(*reasons));
    if (!l) {
        return NULL;
    }
    reasons = (_Atomic uint32_t *)(void *)(l + 1);
    for (unsigned i = 0; i < KVM_LPAGE_LEVELS; i++) {
        l->level[i].first = first[i];
        l->level[i].count = count[i];
        l->level[i].skewed = is_skewed(slot, i + 2);
        l->level[i].reasons = reasons;
        /* An edge cuts the first or the last region only. */
        reasons[0] = edges(slot, first[i], i + 2);
        reasons[count[i] - 1] = edges(slot, first[i] + count[i] - 1, i + 2);
        reasons += count[i];
    }
    return l;
}

static _Atomic uint32_t *reasons_of(const struct kvm_memslot *slot, gfn_t f, unsigned level)
{
    const struct kvm_lpage *l = slot->lpage;
    uint64_t i = (f.v >> region_shift(level)) - l->level[level - 2].first;

    return i < l->level[level - 2].count ? &l->level[level - 2].reasons[i] : NULL;
}

/* Lock: what lets the caller read the slot. Source: KVM's lpage_info. */
bool kvm_lpage_allowed(const struct kvm_memslot *slot, gfn_t f, unsigned level)
{
    const _Atomic uint32_t *r = reasons_of(slot, f, level);

    return !slot->lpage->level[level - 2].skewed && r &&
           atomic_load_explicit(r, memory_order_relaxed) == 0;
}

/* Lock: the caller's, so that what it counts and the count agree. */
void kvm_lpage_disallow(const struct kvm_memslot *slot, gfn_t f, int delta)
{
    for (unsigned level = 2; level <= 3; level++) {
        _Atomic uint32_t *r = reasons_of(slot, f, level);

        if (r) {
            atomic_fetch_add_explicit(r, (uint32_t)delta, memory_order_relaxed);
        }
    }
}

/* Lock: as above. */
void kvm_lpage_set_mixed(const struct kvm_memslot *slot, gfn_t f, unsigned level, bool mixed)
{
    _Atomic uint32_t *r = reasons_of(slot, f, level);

    if (r && mixed) {
        atomic_fetch_or_explicit(r, KVM_LPAGE_MIXED, memory_order_relaxed);
    } else if (r) {
        atomic_fetch_and_explicit(r, ~KVM_LPAGE_MIXED, memory_order_relaxed);
    }
}

uint32_t kvm_lpage_reasons(const struct kvm_memslot *slot, gfn_t f, unsigned level)
{
    const _Atomic uint32_t *r = reasons_of(slot, f, level);

    return r ? atomic_load_explicit(r, memory_order_relaxed) : 0;
}

uint32_t kvm_lpage_shape(const struct kvm_memslot *slot, gfn_t f, unsigned level)
{
    return edges(slot, f.v >> region_shift(level), level);
}
