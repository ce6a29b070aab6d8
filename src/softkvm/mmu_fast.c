/*
 * The ways of a fault that need neither the host nor a lock: the fast page fault, in a walk section
 * (mmu_walk.h), and the prefetch of neighbours, under the lock that the slow way holds anyhow.
 *
 *   fast fault                         harvest of the dirty log, under mmu.lock
 *   W := 1 by compare-exchange         take the bit
 *   set the bit                        W := 0
 *                                      flush; hand the bit out
 *
 * In whichever order these meet: a W that the harvest does not see is followed by a bit that it does not take,
 * so the page is in the next harvest. Source: KVM's fast_page_fault().
 */
#include "softkvm/mmu_fault.h"
#include "softkvm/mmu_walk.h"

#define FAST_TRIES 4

/* What the entry must become; 0: the fast way cannot serve this. */
static uint64_t repaired(const struct kvm_fault *f, uint64_t old, unsigned level)
{
    const struct kvm_pte_format *fmt = f->vm->mmu.fmt;
    uint64_t new = kvm_pte_untrack(fmt, old) | fmt->accessed;

    if (kvm_fault_is_write(f)) {
        /* A huge leaf in a logging slot is split, which takes a table. */
        if (!(old & fmt->mmu_w) || (level > 1 && kvm_slot_is_logged(f->slot))) {
            return 0;
        }
        new |= KVM_PTE_W | fmt->dirty;
    }
    return kvm_pte_allows(fmt, new, f->access) ? new : 0;
}

/* One try. RETRY: the slow way; *again: the entry changed meanwhile. Inside a walk section. */
static enum kvm_fault_result try_once(struct kvm_fault *f, bool *again)
{
    const struct kvm_pte_format *fmt = f->vm->mmu.fmt;
    unsigned level;
    uint64_t *e = kvm_pte_find_leaf(f->vm, f->gfn, &level);
    uint64_t old = kvm_pte_load(e), new;

    *again = false;
    if (!kvm_pte_is_page(old, level)) {
        return KVM_FAULT_RETRY;
    }
    if (kvm_pte_allows(fmt, old, f->access)) {
        return KVM_FAULT_SPURIOUS;
    }
    new = repaired(f, old, level);
    if (!new) {
        return KVM_FAULT_RETRY;
    }
    if (!kvm_pte_exchange(f->vm, e, level, old, new)) {
        *again = true;
        return KVM_FAULT_RETRY;
    }
    if (new & ~old & KVM_PTE_W) {
        kvm_slot_mark_dirty(f->v, f->slot, f->frame);
        TRACE(&f->vm->s->trace, dirty_mark_fast, "gfn %llx", f->frame.v);
    }
    if (kvm_pte_is_tracked(fmt, old)) {
        KVM_COUNT(&f->v->counters.untracked);
    }
    return KVM_FAULT_FIXED;
}

enum kvm_fault_result kvm_fault_fast(struct kvm_fault *f)
{
    enum kvm_fault_result r = KVM_FAULT_RETRY;
    bool again = true;

    if (!kvm_walk_begin(f->v)) {
        return KVM_FAULT_RETRY;
    }
    for (unsigned i = 0; again && i < FAST_TRIES; i++) {
        r = try_once(f, &again);
    }
    kvm_walk_end(f->v);
    if (r == KVM_FAULT_FIXED) {
        KVM_COUNT(&f->v->counters.faults_fast);
        TRACE(&f->vm->s->trace, access_fast, "gfn %llx", f->gfn.v);
    }
    return r;
}

/* ---- prefetch ---- */

#define PREFETCH_PAGES 8

/*
 * Neighbours within an aligned group of eight, where nothing is mapped yet and the host has a page at hand.
 * They come without the accessed bit, so that they do not look used. Not while an invalidation runs: its range
 * is known for the faulting page only. Not in logging slots, where a writable page would count as dirty, nor where neighbours may be of the other half.
 * host_gup_fast() takes no lock, so it may be called here; what it finds holds, as an invalidation that
 * has not begun must wait for mmu.lock.
 */
void kvm_fault_prefetch(struct kvm_fault *f, uint64_t *leaf)
{
    const struct kvm_mmu *mmu = &f->vm->mmu;
    uint64_t first = f->gfn.v & ~(uint64_t)(PREFETCH_PAGES - 1);

    if (!mmu->prefetch || !mmu->fmt->accessed || f->level > 1 || kvm_slot_is_logged(f->slot) ||
        f->vm->attrs || atomic_load_explicit(&mmu->inv_count, memory_order_relaxed)) {
        return;
    }
    for (uint64_t at = first; at < first + PREFETCH_PAGES; at++) {
        uint64_t *e = leaf + (int64_t)(at - f->gfn.v);
        struct host_page page;

        if (at == f->gfn.v || kvm_pte_load(e) || !kvm_slot_has(f->slot, gfn(at)) ||
            host_gup_fast(f->vm->s->mm, kvm_slot_hva(f->half, gfn(at)), 0, &page) < 0) {
            continue;
        }
        if (kvm_pte_exchange(f->vm, e, 1, 0, kvm_fault_leaf(f, &page, 1, false) & ~mmu->fmt->accessed)) {
            KVM_COUNT(&f->v->counters.prefetched);
        }
    }
}
