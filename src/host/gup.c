/*
 * Get-user-pages: an HVA becomes a frame. The fast way walks the tables without a lock, the slow
 * way faults first. Flow: access, step "host page".
 *
 * Lock-free walks against freed tables:
 *
 *   walker                                    who frees a table (mmap lock held for writing)
 *   walks[parity] += 1   (full barrier)       entry = 0            (full barrier)
 *   load entries down to the leaf             wait for walks[other parity] == 0
 *   [take a reference, reload the leaf]       epoch += 1
 *   walks[parity] -= 1                        wait for walks[first parity] == 0
 *                                             free
 *
 * Either the walker's first load comes after the entry went, and it does not see the table; or its
 * count is seen by one of the waits. A frame found without a reference is only good under the
 * invalidate protocol of the notifiers; with one, the leaf is loaded again after taking it, so
 * that a frame freed and reused in between is noticed.
 */
#include <errno.h>
#include <sched.h>

#include "host/mm_impl.h"

static void wait_for_walks(struct host_mm *mm, unsigned parity)
{
    for (unsigned i = 0; i < HOST_WALK_SLOTS; i++) {
        while (__atomic_load_n(&mm->slot[i].walks[parity], __ATOMIC_SEQ_CST)) {
            sched_yield();
        }
    }
}

/* See mm_impl.h. Lock: mmap lock held for writing, so one at a time. */
void host_walk_sync(struct host_mm *mm)
{
    unsigned parity = (unsigned)(__atomic_load_n(&mm->epoch, __ATOMIC_RELAXED) & 1);

    wait_for_walks(mm, parity ^ 1);
    __atomic_fetch_add(&mm->epoch, 1, __ATOMIC_SEQ_CST);
    wait_for_walks(mm, parity);
}

static void fill_page(struct host_page *out, uint64_t addr, uint64_t value, unsigned level)
{
    uint64_t inside = addr & (pt_leaf_size(level) - 1);

    out->pfn = hpa_to_pfn(hpa((value & X86_PTE_ADDR_MASK & ~(pt_leaf_size(level) - 1)) + inside));
    out->level = level;
    out->writable = (value & X86_PTE_W) != 0;
    out->counted = !(value & HOST_PTE_SPECIAL);
}

/* Does the leaf allow what the flags ask? */
static bool leaf_allows(uint64_t value, unsigned flags)
{
    return (value & X86_PTE_P) && (!(flags & HOST_FAULT_WRITE) || (value & X86_PTE_W));
}

/* Take a reference on what the entry named when it was loaded; false when it has changed since. */
static bool pin(struct host_mm *mm, const uint64_t *entry, uint64_t value,
                const struct host_page *page)
{
    if (!page->counted) {
        return true;
    }
    if (!host_frame_try_get(mm->hm, page->pfn)) {
        return false;
    }
    if (((host_pte_load(entry) ^ value) & ~(X86_PTE_A | X86_PTE_D)) != 0) {
        host_frame_put(mm->hm, page->pfn);
        return false;
    }
    return true;
}

/* One walk to the leaf, with the caller's protection against freed tables. */
static int walk_once(struct host_mm *mm, uint64_t addr, unsigned flags, struct host_page *out)
{
    unsigned level;
    uint64_t *entry = host_pt_find(mm, addr, &level);
    uint64_t value = host_pte_load(entry);
    struct host_page page;

    if (!leaf_allows(value, flags) || !host_pte_is_leaf(value, level)) {
        return -EAGAIN;
    }
    fill_page(&page, addr, value, level);
    if ((flags & HOST_FAULT_PIN) && !pin(mm, entry, value, &page)) {
        return -EAGAIN;
    }
    *out = page;
    return 0;
}

static void trace_page(struct host_mm *mm, hva_t addr, const struct host_page *page)
{
    TRACE(mm->trace, access_host_page, "hva %llx pfn %llx level %llx", addr.v, page->pfn.v,
          page->level);
}

/* See mm.h. Lock: none; may be called with anything held. Source: after
 * get_user_pages_fast_only(). */
int host_gup_fast(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out)
{
    struct host_mm_slot *slot;
    unsigned parity;
    int err = -EAGAIN;

    if (addr.v >= host_mm_limit(mm)) {
        return -EAGAIN;
    }
    parity = host_walk_begin(mm, &slot);
    err = walk_once(mm, addr.v, flags, out);
    host_walk_end(slot, parity);
    if (!err) {
        trace_page(mm, addr, out);
    }
    host_mm_count(mm, err ? HOST_MM_gup_fast_miss : HOST_MM_gup_fast, 1);
    return err;
}

/* See mm.h. Lock: takes the mmap lock; none of the callee's may be held. The entry that the fault
 * filled may go again before the walk: then once more. */
int host_gup_slow(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out)
{
    host_mm_count(mm, HOST_MM_gup_slow, 1);
    for (;;) {
        int err = host_handle_mm_fault(mm, addr, flags);

        if (err) {
            return err;
        }
        pthread_rwlock_rdlock(&mm->mmap_lock);
        err = walk_once(mm, addr.v, flags, out);
        pthread_rwlock_unlock(&mm->mmap_lock);
        if (!err) {
            trace_page(mm, addr, out);
            return 0;
        }
    }
}

/* See mm.h. */
int host_gup(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out)
{
    int err = host_gup_fast(mm, addr, flags, out);

    return err ? host_gup_slow(mm, addr, flags, out) : 0;
}

/* See mm.h. Lock: none; may be called with anything held. */
void host_page_put(struct host_mm *mm, const struct host_page *page)
{
    if (page->counted) {
        host_frame_put(mm->hm, page->pfn);
    }
}

/* See mm.h. Lock: none. */
unsigned host_mapping_level(struct host_mm *mm, hva_t addr)
{
    struct host_mm_slot *slot;
    unsigned parity, level;
    uint64_t value;

    if (addr.v >= host_mm_limit(mm)) {
        return 0;
    }
    parity = host_walk_begin(mm, &slot);
    value = host_pte_load(host_pt_find(mm, addr.v, &level));
    host_walk_end(slot, parity);
    return value & X86_PTE_P && host_pte_is_leaf(value, level) ? level : 0;
}

/* See mm.h. Lock: none. */
unsigned host_mm_walk(struct host_mm *mm, hva_t addr, unsigned levels[HOST_MAX_LEVELS],
                      uint64_t entries[HOST_MAX_LEVELS])
{
    struct host_mm_slot *slot;
    uint64_t *table = host_table_at(mm->hm, mm->root);
    unsigned parity, n = 0;

    if (addr.v >= host_mm_limit(mm)) {
        return 0;
    }
    parity = host_walk_begin(mm, &slot);
    for (unsigned l = mm->levels; l > 0; l--) {
        uint64_t value = host_pte_load(table + pt_index(addr.v, l));

        levels[n] = l;
        entries[n++] = value;
        if (!(value & X86_PTE_P) || host_pte_is_leaf(value, l)) {
            break;
        }
        table = host_pte_table(mm, value);
    }
    host_walk_end(slot, parity);
    return n;
}

/* See mm.h. Lock: none. */
hpa_t host_mm_root(const struct host_mm *mm)
{
    return mm->root;
}
