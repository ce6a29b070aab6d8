/*
 * Pages change frames: migration of one page, compaction of memory, collapse of small mappings
 * into a huge one, and the opposite. The bytes never move: a page keeps them at its HVA, and only
 * the frame that names them changes, with all that was derived from it. So each of these is
 * notifiers, entries, frames.
 *
 *   compaction   close a 2 MiB block -> move each of its pages -> open it: free as a whole, or not
 *   collapse     512 small entries out, none pinned -> 512 contiguous frames -> one huge entry
 *
 * Locks: memory's mms lock, then the mmap lock for writing. A page with a reference beside its
 * mapping's is pinned and stays: the entry goes first, then the count is looked at (see gup.c for
 * the other side).
 */
#include <errno.h>

#include "host/mm_impl.h"

#define RIGHTS (X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A | X86_PTE_D | X86_PTE_NX)

/* The small entry that maps frame `f` of this address space, or null. */
static uint64_t *find_mapping(struct host_mm *mm, pfn_t f)
{
    const struct host_frame *frame = &mm->hm->frames[f.v];
    uint64_t addr = (uintptr_t)host_frame_data(frame);
    unsigned level;
    uint64_t *entry, value;

    if (!addr || addr >= host_mm_limit(mm)) {
        return NULL;
    }
    entry = host_pt_find(mm, addr, &level);
    value = host_pte_load(entry);
    return level == 1 && (value & X86_PTE_P) && (value & X86_PTE_ADDR_MASK) == f.v << PAGE_SHIFT
               ? entry
               : NULL;
}

/* Give the page that frame `f` holds another frame. Lock: mmap write. 0, -EBUSY (pinned, or not a
 * page that can move), -ENOMEM. */
static int move_page(struct host_mm *mm, pfn_t f)
{
    const struct host_frame *frame = &mm->hm->frames[f.v];
    uint64_t *entry = find_mapping(mm, f), old;
    struct host_mmu_range range;
    struct host_alloc req = {.flags = HOST_GFP_MOVABLE, .owner = mm->id};
    pfn_t to;
    int err;

    if (!entry || (host_pte_load(entry) & HOST_PTE_SPECIAL) || host_frame_is_cached(mm, f)) {
        return -EBUSY;
    }
    req.type = (enum host_frame_type)frame->type;
    req.data = host_frame_data(frame);
    range = (struct host_mmu_range){ptr_to_hva(req.data), hva((uintptr_t)req.data + PAGE_SIZE),
                                    HOST_MMU_CLEAR};
    err = host_block_alloc(host_impl(mm->hm), &req, &to);
    if (err) {
        return err;
    }
    host_notify_start(mm, &range);
    old = __atomic_exchange_n(entry, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&frame->refcount, __ATOMIC_SEQ_CST) == 1) {
        __atomic_store_n(entry, (old & ~X86_PTE_ADDR_MASK) | to.v << PAGE_SHIFT, __ATOMIC_SEQ_CST);
        host_frame_put(mm->hm, f);
        host_mm_count(mm, HOST_MM_migrated, 1);
    } else {
        __atomic_store_n(entry, old, __ATOMIC_SEQ_CST);
        host_frame_put(mm->hm, to);
        err = -EBUSY;
    }
    host_notify_end(mm, &range);
    return err;
}

/* See mm.h. Lock: takes the mmap lock. Source: after migrate_pages(). */
int host_mm_migrate(struct host_mm *mm, hva_t addr)
{
    unsigned level;
    uint64_t value;
    int err = -EBUSY;

    if (addr.v >= host_mm_limit(mm)) {
        return -EFAULT;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    value = host_pte_load(host_pt_find(mm, addr.v, &level));
    if (!(value & X86_PTE_P)) {
        err = -EFAULT;
    } else if (level == 1) {
        err = move_page(mm, hpa_to_pfn(hpa(value & X86_PTE_ADDR_MASK)));
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* ---- compaction ---- */

/* May the frame be moved, or is it free? What is read without a lock is only a hint. */
static bool is_movable(const struct host_frame *f)
{
    unsigned type = __atomic_load_n(&f->type, __ATOMIC_RELAXED);

    return type == HOST_FRAME_FREE || ((type == HOST_FRAME_ANON || type == HOST_FRAME_FILE) &&
                                       __atomic_load_n(&f->refcount, __ATOMIC_RELAXED) <= 1 &&
                                       !host_frame_test(f, HOST_FRAME_HEAD | HOST_FRAME_TAIL));
}

static bool block_looks_movable(struct host_memory_impl *m, uint64_t pfn, uint64_t *used)
{
    *used = 0;
    for (uint64_t i = 0; i < HOST_PAGEBLOCK_PAGES; i++) {
        const struct host_frame *f = &m->hm.frames[pfn + i];

        if (!is_movable(f)) {
            return false;
        }
        *used += __atomic_load_n(&f->type, __ATOMIC_RELAXED) != HOST_FRAME_FREE;
    }
    return *used > 0;
}

/* Move one frame of a closed block by its owner's tables. Lock: mms lock held for reading. */
static int move_frame(struct host_memory_impl *m, uint64_t pfn_v)
{
    struct host_frame *f = &m->hm.frames[pfn_v];
    struct host_mm *mm = m->mms[__atomic_load_n(&f->owner, __ATOMIC_RELAXED)];
    int err;

    if (!mm) {
        return -EBUSY;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = __atomic_load_n(&f->type, __ATOMIC_RELAXED) == HOST_FRAME_FREE
              ? 0
              : move_page(mm, pfn(pfn_v));
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* Empty one block. True when it became free. */
static bool compact_block(struct host_memory_impl *m, uint64_t pfn_v)
{
    bool whole;
    int err = 0;

    if (!host_block_close(m, pfn_v)) {
        return false;
    }
    host_pcp_drain(m); /* frames of this block that CPUs keep go to its list */
    for (uint64_t i = 0; i < HOST_PAGEBLOCK_PAGES && !err; i++) {
        if (__atomic_load_n(&m->hm.frames[pfn_v + i].type, __ATOMIC_RELAXED) != HOST_FRAME_FREE) {
            err = move_frame(m, pfn_v + i);
            __atomic_fetch_add(&m->compact_moved, !err, __ATOMIC_RELAXED);
        }
    }
    whole = host_block_open(m, pfn_v);
    __atomic_fetch_add(whole ? &m->compact_blocks : &m->compact_failed, 1, __ATOMIC_RELAXED);
    return whole;
}

/* Blocks of a zone that are no fuller than `limit`, one after the other. */
static unsigned compact_zone(struct host_memory_impl *m, const struct host_zone *z, uint64_t limit,
                             unsigned want)
{
    uint64_t end = __atomic_load_n(&z->next, __ATOMIC_RELAXED), used;
    unsigned done = 0;

    for (uint64_t p = z->start; p < end && done < want; p += HOST_PAGEBLOCK_PAGES) {
        if (host_block_mt(m, p) == HOST_MIGRATE_MOVABLE && block_looks_movable(m, p, &used) &&
            used <= limit && compact_block(m, p)) {
            done++;
        }
    }
    return done;
}

/* See buddy.h. Emptier blocks first: they cost least and fill the others. Source: own; differs
 * from the kernel's two scanners in that it empties whole blocks. */
unsigned host_memory_compact(struct host_memory *hm, unsigned blocks)
{
    struct host_memory_impl *m = host_impl(hm);
    unsigned done = 0;

    __atomic_fetch_add(&m->compact_runs, 1, __ATOMIC_RELAXED);
    host_pcp_drain(m);
    pthread_rwlock_rdlock(&m->mms_lock);
    for (uint64_t limit = 64; limit < HOST_PAGEBLOCK_PAGES && done < blocks; limit *= 2) {
        for (int z = HOST_NR_ZONES - 1; z >= 0 && done < blocks; z--) {
            done += compact_zone(m, &m->zone[z], limit, blocks - done);
        }
    }
    pthread_rwlock_unlock(&m->mms_lock);
    return done;
}

/* ---- collapse and split ---- */

/* Are all entries of the table plain private pages? Up to `missing` may be absent, not all. */
static bool can_collapse(struct host_mm *mm, const uint64_t *table, unsigned missing)
{
    missing = missing < PT_ENTRIES ? missing : PT_ENTRIES - 1;
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t e = host_pte_load(table + i);
        const struct host_frame *f;

        if (!e && missing) {
            missing--;
            continue;
        }
        f = &mm->hm->frames[(e & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];
        if (!(e & X86_PTE_P) || (e & (HOST_PTE_SPECIAL | HOST_PTE_COW)) ||
            f->type != HOST_FRAME_ANON || __atomic_load_n(&f->refcount, __ATOMIC_RELAXED) != 1 ||
            host_frame_test(f, HOST_FRAME_HEAD | HOST_FRAME_TAIL)) {
            return false;
        }
    }
    return true;
}

/* Take all entries out; if any page is pinned put them back. *bits: what the huge entry
 * inherits. */
static bool take_entries(struct host_mm *mm, uint64_t *table, uint64_t saved[PT_ENTRIES],
                         uint64_t *bits)
{
    bool pinned = false;

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        saved[i] = __atomic_exchange_n(table + i, 0, __ATOMIC_SEQ_CST);
        *bits |= saved[i] & (X86_PTE_A | X86_PTE_D);
    }
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t p = (saved[i] & X86_PTE_ADDR_MASK) >> PAGE_SHIFT;

        pinned |= saved[i] && __atomic_load_n(&mm->hm->frames[p].refcount, __ATOMIC_SEQ_CST) != 1;
    }
    for (unsigned i = 0; pinned && i < PT_ENTRIES; i++) {
        __atomic_store_n(table + i, saved[i], __ATOMIC_SEQ_CST);
    }
    return !pinned;
}

/* Replace the table under the level-2 `entry` by a huge entry for `block`. 0 or -EBUSY. */
static int replace_table(struct host_mm *mm, uint64_t *entry, uint64_t base, pfn_t block)
{
    struct host_mmu_range range = {hva(base), hva(base + HOST_HUGE_SIZE), HOST_MMU_COLLAPSE};
    const struct host_vma *vma = host_vma_find(&mm->vmas, base);
    uint64_t table_entry = host_pte_load(entry), *table = host_pte_table(mm, table_entry);
    uint64_t saved[PT_ENTRIES], bits = X86_PTE_P | X86_PTE_U | X86_PTE_PS;
    int64_t had = 0;

    bits |= vma->flags & HOST_VMA_WRITE ? X86_PTE_W : 0;
    bits |= vma->flags & HOST_VMA_EXEC ? 0 : X86_PTE_NX;
    host_notify_start(mm, &range);
    if (!take_entries(mm, table, saved, &bits)) {
        host_notify_end(mm, &range);
        return -EBUSY;
    }
    __atomic_store_n(entry, block.v << PAGE_SHIFT | bits, __ATOMIC_SEQ_CST);
    host_notify_end(mm, &range);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        if (saved[i]) {
            host_frame_put(mm->hm, hpa_to_pfn(hpa(saved[i] & X86_PTE_ADDR_MASK)));
            had++;
        }
    }
    host_walk_sync(mm);
    host_table_free(mm->hm, hpa(table_entry & X86_PTE_ADDR_MASK));
    host_mm_count(mm, HOST_MM_rss_tables, -1);
    host_mm_count(mm, HOST_MM_rss_anon, PT_ENTRIES - had);
    host_mm_count(mm, HOST_MM_collapses, 1);
    return 0;
}

static bool vma_allows_huge(const struct host_mm *mm, const struct host_vma *vma, uint64_t base)
{
    const unsigned never_flags = HOST_VMA_FILE | HOST_VMA_SHARED | HOST_VMA_PFNMAP |
                                 HOST_VMA_NOHUGEPAGE | HOST_VMA_UFFD_MISSING | HOST_VMA_UFFD_WP;

    return vma && vma->start.v <= base && vma->end.v - base >= HOST_HUGE_SIZE &&
           !(vma->flags & never_flags) &&
           (vma->flags & (HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_EXEC)) &&
           mm->thp != HOST_THP_NEVER &&
           (mm->thp == HOST_THP_ALWAYS || (vma->flags & HOST_VMA_HUGEPAGE));
}

/* The level-2 entry for addr if there is a table for it. */
static uint64_t *find_level2(struct host_mm *mm, uint64_t addr)
{
    uint64_t *table = host_table_at(mm->hm, mm->root);

    for (unsigned l = mm->levels; l > 2; l--) {
        uint64_t value = host_pte_load(table + pt_index(addr, l));

        if (!(value & X86_PTE_P) || host_pte_is_leaf(value, l)) {
            return NULL;
        }
        table = host_pte_table(mm, value);
    }
    return table + pt_index(addr, 2);
}

/* Lock: mmap write. */
static int collapse_at(struct host_mm *mm, uint64_t base, unsigned missing)
{
    struct host_alloc req = {.order = HOST_PAGEBLOCK_ORDER,
                             .flags = HOST_GFP_MOVABLE,
                             .type = HOST_FRAME_ANON,
                             .owner = mm->id,
                             .data = hva_to_ptr(hva(base))};
    uint64_t *entry = find_level2(mm, base), value = entry ? host_pte_load(entry) : 0;
    pfn_t block;
    int err;

    if (!vma_allows_huge(mm, host_vma_find(&mm->vmas, base), base)) {
        return -EINVAL;
    }
    if (!(value & X86_PTE_P) || host_pte_is_leaf(value, 2) ||
        !can_collapse(mm, host_pte_table(mm, value), missing)) {
        return -EBUSY;
    }
    err = host_block_alloc(host_impl(mm->hm), &req, &block);
    if (err) {
        return err;
    }
    err = replace_table(mm, entry, base, block);
    if (err) {
        host_frame_put(mm->hm, block);
    }
    return err;
}

/* See mm.h. Lock: takes the mmap lock. Source: after MADV_COLLAPSE and khugepaged. */
int host_mm_collapse(struct host_mm *mm, hva_t addr, unsigned missing)
{
    int err;

    if (addr.v >= host_mm_limit(mm)) {
        return -EINVAL;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = collapse_at(mm, addr.v & ~(HOST_HUGE_SIZE - 1), missing);
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* See mm.h. The lock is let go between chunks, so that faults get in. */
unsigned host_mm_collapse_scan(struct host_mm *mm, hva_t start, hva_t end, unsigned missing)
{
    unsigned done = 0;

    for (uint64_t at = start.v & ~(HOST_HUGE_SIZE - 1); at < end.v && at < host_mm_limit(mm);
         at += HOST_HUGE_SIZE) {
        done += host_mm_collapse(mm, hva(at), missing) == 0;
    }
    return done;
}

/* See mm.h. Lock: takes the mmap lock. */
int host_mm_split(struct host_mm *mm, hva_t addr)
{
    int err;

    if (addr.v >= host_mm_limit(mm)) {
        return -EINVAL;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = host_pt_split(mm, addr.v);
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* See mm.h. Lock: takes the mmap lock. Source: after memory_failure(). */
int host_mm_poison(struct host_mm *mm, hva_t addr)
{
    uint64_t at = addr.v & PAGE_MASK, *entry, value;
    struct host_mmu_range range = {hva(at), hva(at + PAGE_SIZE), HOST_MMU_UNMAP};
    struct host_frame *f;
    unsigned level;
    int err;

    if (addr.v >= host_mm_limit(mm)) {
        return -EFAULT;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = host_pt_split(mm, at);
    entry = host_pt_find(mm, at, &level);
    value = host_pte_load(entry);
    f = &mm->hm->frames[(value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];
    if (!err && !(value & X86_PTE_P)) {
        err = -EFAULT;
    }
    if (!err && (level != 1 || f->type != HOST_FRAME_ANON ||
                 host_frame_test(f, HOST_FRAME_HEAD | HOST_FRAME_TAIL))) {
        err = -EBUSY;
    }
    if (!err) {
        host_notify_start(mm, &range);
        __atomic_store_n(entry, HOST_PTE_POISON, __ATOMIC_SEQ_CST);
        host_frame_set(f, HOST_FRAME_POISONED); /* the mapping's reference stays for ever */
        host_frame_set_type(mm->hm, host_frame_pfn(mm->hm, f), HOST_FRAME_RESERVED);
        host_mm_count(mm, HOST_MM_rss_anon, -1);
        host_notify_end(mm, &range);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}
