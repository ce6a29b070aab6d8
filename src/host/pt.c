/*
 * The page tables of a host address space: building a path, finding an entry, taking entries out,
 * and splitting a huge entry. Flow: access, step "host tables".
 *
 * Invariants:
 *  1. A present leaf holds one reference on its frame's block, unless it is SPECIAL.
 *  2. A huge leaf names the first of 512 contiguous frames whose contents are contiguous too.
 *  3. A table is reached by one entry only, and freed only after host_walk_sync().
 *
 * Locks: entries go from absent to present under the mmap lock held for reading, by compare-and-
 * exchange; they change in other ways only as the functions below say.
 */
#include <errno.h>

#include "host/mm_impl.h"

#define TABLE_BITS (X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A)

/* Make an absent entry point to a new table. Another thread may have been faster. 0 or -ENOMEM. */
static int add_table(struct host_mm *mm, uint64_t *entry, uint64_t *value)
{
    uint64_t old = 0;
    hpa_t table;
    int err = host_table_alloc(mm->hm, HOST_FRAME_HOST_PT, &table);

    if (err) {
        return err;
    }
    *value = table.v | TABLE_BITS;
    if (!__atomic_compare_exchange_n(entry, &old, *value, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
        host_table_free(mm->hm, table);
        host_mm_count(mm, HOST_MM_raced, 1);
        *value = old;
        return 0;
    }
    host_mm_count(mm, HOST_MM_rss_tables, 1);
    return 0;
}

/* See mm_impl.h. *level: wanted level. Lock: mmap lock held, either way. */
int host_pt_build(struct host_mm *mm, uint64_t addr, unsigned *level, uint64_t **out)
{
    uint64_t *table = host_table_at(mm->hm, mm->root);

    for (unsigned l = mm->levels;; l--) {
        uint64_t *entry = table + pt_index(addr, l), value;
        int err;

        *out = entry;
        if (l == *level) {
            return 0;
        }
        value = host_pte_load(entry);
        if (!value) {
            err = add_table(mm, entry, &value);
            if (err) {
                return err;
            }
        }
        if (host_pte_is_leaf(value, l)) {
            *level = l;
            return -EEXIST;
        }
        table = host_pte_table(mm, value);
    }
}

/* See mm_impl.h. Lock: mmap lock held, or inside a walk. */
uint64_t *host_pt_find(struct host_mm *mm, uint64_t addr, unsigned *level)
{
    uint64_t *table = host_table_at(mm->hm, mm->root);

    for (unsigned l = mm->levels;; l--) {
        uint64_t *entry = table + pt_index(addr, l);
        uint64_t value = host_pte_load(entry);

        if (!(value & X86_PTE_P) || host_pte_is_leaf(value, l)) {
            *level = l;
            return entry;
        }
        table = host_pte_table(mm, value);
    }
}

/* See mm_impl.h. */
enum host_mm_counter host_rss_of(struct host_mm *mm, uint64_t entry)
{
    const struct host_frame *f = &mm->hm->frames[(entry & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];

    return f->type == HOST_FRAME_ANON || f->type == HOST_FRAME_KSM ? HOST_MM_rss_anon
                                                                   : HOST_MM_rss_file;
}

/* Take one leaf, which maps `addr`, out and let go of its frame. */
static void zap_leaf(struct host_mm *mm, uint64_t *entry, uint64_t addr, struct host_zap *zap)
{
    uint64_t value = __atomic_exchange_n(entry, 0, __ATOMIC_SEQ_CST);
    uint64_t frames = value & X86_PTE_PS ? zap->leaf_frames : 1;
    pfn_t p = hpa_to_pfn(hpa(value & X86_PTE_ADDR_MASK));

    zap->frames += frames;
    if (mm->zero_pfn.v && p.v == mm->zero_pfn.v) {
        return;
    }
    if (!(value & HOST_PTE_SPECIAL)) {
        host_mm_count(mm, host_rss_of(mm, value), -(int64_t)frames);
    }
    if (host_frame_is_cached(mm, p)) {
        host_cache_unmapped(mm, p, addr, frames);
    }
    host_frame_put(mm->hm, p);
}

/* Take a table out of the entry that points to it, for freeing later. */
static void unlink_table(struct host_mm *mm, uint64_t *entry, struct host_zap *zap)
{
    uint64_t value = __atomic_exchange_n(entry, 0, __ATOMIC_SEQ_CST);
    uint32_t p = (uint32_t)((value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT);

    mm->hm->frames[p].next = zap->tables;
    zap->tables = p;
}

/* Zap what of [zap->start, zap->end) lies under a table of `level` that starts at `base`. */
static void zap_table(struct host_mm *mm, uint64_t *table, unsigned level, uint64_t base,
                      struct host_zap *zap)
{
    uint64_t span = pt_leaf_size(level), reach = span * PT_ENTRIES;
    uint64_t start = zap->start > base ? zap->start : base;
    uint64_t end = zap->end - base < reach ? zap->end : base + reach;

    for (uint64_t at = start & ~(span - 1); at < end; at += span) {
        uint64_t *entry = table + pt_index(at, level);
        uint64_t value = host_pte_load(entry);

        if (!value) {
            continue;
        }
        if (!(value & X86_PTE_P)) {
            if (!zap->keep_swap) {
                __atomic_store_n(entry, 0, __ATOMIC_SEQ_CST);
                if (host_pte_is_swap(value)) {
                    host_swap_drop(mm, value);
                }
            }
            continue;
        }
        if (host_pte_is_leaf(value, level)) {
            zap->leaf_frames = span >> PAGE_SHIFT;
            zap_leaf(mm, entry, at, zap);
            continue;
        }
        zap_table(mm, host_pte_table(mm, value), level - 1, at, zap);
        if (at >= zap->start && zap->end - at >= span && !zap->keep_swap) {
            unlink_table(mm, entry, zap);
        }
    }
}

static void free_tables(struct host_mm *mm, uint32_t chain)
{
    if (chain) {
        host_walk_sync(mm);
    }
    while (chain) {
        uint32_t next = mm->hm->frames[chain].next;

        host_table_free(mm->hm, pfn_to_hpa(pfn(chain)));
        host_mm_count(mm, HOST_MM_rss_tables, -1);
        chain = next;
    }
}

static void zap_range(struct host_mm *mm, struct host_zap *zap)
{
    if (zap->start < zap->end) {
        zap_table(mm, host_table_at(mm->hm, mm->root), mm->levels, 0, zap);
    }
    free_tables(mm, zap->tables);
    host_mm_count(mm, HOST_MM_unmapped, (int64_t)zap->frames);
}

/* See mm_impl.h. */
void host_pt_zap(struct host_mm *mm, uint64_t start, uint64_t end)
{
    zap_range(mm, &(struct host_zap){.start = start, .end = end});
}

/* See mm_impl.h. */
void host_pt_zap_present(struct host_mm *mm, uint64_t start, uint64_t end)
{
    zap_range(mm, &(struct host_zap){.start = start, .end = end, .keep_swap = true});
}

/* Let the 512 small entries own what the huge one did. The frames come apart when nobody else
 * holds the block; else each small entry holds a reference on the block, which is freed as a
 * whole. */
static void split_references(struct host_mm *mm, pfn_t head)
{
    struct host_frame *f = &mm->hm->frames[head.v];
    uint32_t one = 1;

    if (__atomic_compare_exchange_n(&f->refcount, &one, 0, false, __ATOMIC_ACQUIRE,
                                    __ATOMIC_RELAXED)) {
        host_frames_split(mm->hm, head, HOST_PAGEBLOCK_ORDER);
    } else {
        __atomic_fetch_add(&f->refcount, PT_ENTRIES - 1, __ATOMIC_ACQ_REL);
    }
}

/* See mm_impl.h. Source: own, after the kernel's split of a huge PMD. */
int host_pt_split(struct host_mm *mm, uint64_t addr)
{
    struct host_mmu_range range = {hva(addr & ~(HOST_HUGE_SIZE - 1)),
                                   hva((addr & ~(HOST_HUGE_SIZE - 1)) + HOST_HUGE_SIZE),
                                   HOST_MMU_SPLIT};
    unsigned level;
    uint64_t *entry = host_pt_find(mm, addr, &level), value = host_pte_load(entry), *small;
    hpa_t table;
    int err;

    if (!(value & X86_PTE_P) || level != 2) {
        return 0;
    }
    err = host_table_alloc(mm->hm, HOST_FRAME_HOST_PT, &table);
    if (err) {
        return err;
    }
    host_mm_count(mm, HOST_MM_rss_tables, 1);
    host_mm_count(mm, HOST_MM_splits, 1);
    host_notify_start(mm, &range);
    small = host_table_at(mm->hm, table);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        __atomic_store_n(small + i, (value & ~X86_PTE_PS) + ((uint64_t)i << PAGE_SHIFT),
                         __ATOMIC_RELAXED);
    }
    __atomic_store_n(entry, table.v | TABLE_BITS, __ATOMIC_SEQ_CST);
    split_references(mm, hpa_to_pfn(hpa(value & X86_PTE_ADDR_MASK)));
    host_notify_end(mm, &range);
    return 0;
}

/* See mm_impl.h. */
int host_pt_split_ends(struct host_mm *mm, uint64_t start, uint64_t end)
{
    int err = start & (HOST_HUGE_SIZE - 1) ? host_pt_split(mm, start) : 0;

    if (!err && (end & (HOST_HUGE_SIZE - 1))) {
        err = host_pt_split(mm, end);
    }
    return err;
}

/* See mm_impl.h. Lock: nobody else uses the address space any more. */
void host_pt_free_all(struct host_mm *mm)
{
    host_pt_zap(mm, 0, host_mm_limit(mm));
    host_table_free(mm->hm, mm->root);
}
