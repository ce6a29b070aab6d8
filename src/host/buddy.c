/*
 * Zones and the binary buddy allocator; see buddy.h for the face and pcp.c for what is in front.
 *
 *   free list [order][migrate type]: doubly linked by host_frame.next/prev, heads flagged BUDDY
 *   zone:  | taken and freed frames ........ | next: never taken ................ |
 *
 * Invariants (checked by host_memory_check()):
 *  1. A free block is aligned to its size, lies in one zone below `next`, and its head alone is
 *     flagged BUDDY with its order. No free block's buddy is a free block of the same order
 *     (below the largest).
 *  2. zone.free = frames in lists + (end - next). (Two 2 MiB blocks of which one is, or was
 *     just, closed for compaction may stay unmerged.)
 *  3. A free block is on the list of the migrate type of the 2 MiB block that it starts in.
 *  4. Blocks of 2 MiB and more whose arena part was used have given it back.
 *
 * Locks: each zone's lock; taken here, leaf. Deliberately left out: NUMA nodes, memory hot-plug.
 */
#include <errno.h>
#include <sys/mman.h>

#include "host/memory_impl.h"

/* Which types to take from when the wanted one has nothing, best first. */
static const uint8_t fallbacks[HOST_NR_MIGRATE][HOST_NR_MIGRATE - 1] = {
    [HOST_MIGRATE_UNMOVABLE] = {HOST_MIGRATE_RECLAIMABLE, HOST_MIGRATE_MOVABLE},
    [HOST_MIGRATE_MOVABLE] = {HOST_MIGRATE_RECLAIMABLE, HOST_MIGRATE_UNMOVABLE},
    [HOST_MIGRATE_RECLAIMABLE] = {HOST_MIGRATE_UNMOVABLE, HOST_MIGRATE_MOVABLE},
};

static struct host_frame *frame(struct host_memory_impl *m, uint64_t pfn)
{
    return &m->hm.frames[pfn];
}

static uint64_t zone_free(const struct host_zone *z)
{
    return __atomic_load_n(&z->free, __ATOMIC_RELAXED);
}

static void zone_account(struct host_zone *z, int64_t frames)
{
    __atomic_store_n(&z->free, z->free + (uint64_t)frames, __ATOMIC_RELAXED);
}

static void list_push(struct host_memory_impl *m, struct host_zone *z, uint64_t pfn, unsigned order,
                      unsigned mt)
{
    struct host_frame *f = frame(m, pfn);

    f->order = (uint8_t)order;
    f->prev = 0;
    f->next = z->head[order][mt];
    if (f->next) {
        frame(m, f->next)->prev = (uint32_t)pfn;
    }
    z->head[order][mt] = (uint32_t)pfn;
    z->blocks[order][mt]++;
    host_frame_set(f, HOST_FRAME_BUDDY);
}

static void list_remove(struct host_memory_impl *m, struct host_zone *z, uint64_t pfn, unsigned mt)
{
    struct host_frame *f = frame(m, pfn);

    if (f->prev) {
        frame(m, f->prev)->next = f->next;
    } else {
        z->head[f->order][mt] = f->next;
    }
    if (f->next) {
        frame(m, f->next)->prev = f->prev;
    }
    f->next = f->prev = 0;
    z->blocks[f->order][mt]--;
    host_frame_clear(f, HOST_FRAME_BUDDY);
}

/* Give the arena storage under free 2 MiB blocks back to the process. */
static void drop_storage(struct host_memory_impl *m, uint64_t pfn, unsigned order)
{
    uint64_t end = pfn + (UINT64_C(1) << order);

    for (; pfn < end; pfn += HOST_PAGEBLOCK_PAGES) {
        uint8_t *block = &m->blocks[pfn >> HOST_PAGEBLOCK_ORDER];

        if (!(*block & HOST_BLOCK_STALE)) {
            continue;
        }
        if (madvise(m->hm.arena + (pfn << PAGE_SHIFT), HOST_PAGEBLOCK_PAGES << PAGE_SHIFT,
                    MADV_DONTNEED) != 0) {
            continue; /* the frames stay stale and are cleared by hand when used again */
        }
        __atomic_fetch_and(block, (uint8_t)~HOST_BLOCK_STALE, __ATOMIC_RELAXED);
        for (uint64_t i = 0; i < HOST_PAGEBLOCK_PAGES; i++) {
            host_frame_clear(frame(m, pfn + i), HOST_FRAME_STALE);
        }
        __atomic_fetch_add(&m->arena_drops, 1, __ATOMIC_RELAXED);
    }
}

/* A closed 2 MiB block stays by itself, or the other half would be closed with it. */
static bool may_merge_blocks(const struct host_memory_impl *m, uint64_t a, uint64_t b)
{
    return host_block_mt(m, a) != HOST_MIGRATE_ISOLATED &&
           host_block_mt(m, b) != HOST_MIGRATE_ISOLATED;
}

/* Free a block, merging it with its buddies as far as they are free. Lock: zone lock held. */
static void give_locked(struct host_memory_impl *m, struct host_zone *z, uint64_t pfn,
                        unsigned order)
{
    zone_account(z, (int64_t)(UINT64_C(1) << order));
    while (order < HOST_MAX_ORDER) {
        uint64_t buddy = pfn ^ (UINT64_C(1) << order);
        struct host_frame *b = frame(m, buddy);

        if (order >= HOST_PAGEBLOCK_ORDER && !may_merge_blocks(m, pfn, buddy)) {
            break;
        }
        if (buddy >= z->next || !host_frame_test(b, HOST_FRAME_BUDDY) || b->order != order) {
            break;
        }
        list_remove(m, z, buddy, host_block_mt(m, buddy));
        pfn &= ~(UINT64_C(1) << order);
        order++;
    }
    if (order >= HOST_PAGEBLOCK_ORDER) {
        drop_storage(m, pfn, order);
    }
    list_push(m, z, pfn, order, host_block_mt(m, pfn));
}

static void set_block_mt(struct host_memory_impl *m, uint64_t pfn, unsigned mt)
{
    uint8_t *block = &m->blocks[pfn >> HOST_PAGEBLOCK_ORDER];
    uint8_t old = __atomic_load_n(block, __ATOMIC_RELAXED);

    __atomic_store_n(block, (uint8_t)((old & ~HOST_BLOCK_MT_MASK) | mt), __ATOMIC_RELAXED);
}

/* Cut a block that is on no list down to `want`, returning upper halves to the lists. */
static void expand(struct host_memory_impl *m, struct host_zone *z, uint64_t pfn, unsigned have,
                   unsigned want)
{
    while (have > want) {
        have--;
        uint64_t half = pfn + (UINT64_C(1) << have);

        list_push(m, z, half, have, host_block_mt(m, half));
    }
}

/* Take from the lists of one type. */
static bool take_from(struct host_memory_impl *m, struct host_zone *z, unsigned order, unsigned mt,
                      uint64_t *pfn)
{
    for (unsigned o = order; o <= HOST_MAX_ORDER; o++) {
        if (z->head[o][mt]) {
            *pfn = z->head[o][mt];
            list_remove(m, z, *pfn, mt);
            expand(m, z, *pfn, o, order);
            return true;
        }
    }
    return false;
}

/* Take from the part of the zone that was never used: it has no type yet. */
static bool take_untouched(struct host_memory_impl *m, struct host_zone *z, unsigned order,
                           unsigned mt, uint64_t *pfn)
{
    if (z->next == z->end) {
        return false;
    }
    *pfn = z->next;
    __atomic_store_n(&z->next, *pfn + HOST_MAX_PAGES, __ATOMIC_RELAXED); /* compaction looks without the lock */
    /* One call for the metadata instead of a page fault for each 128 frames; older kernels
     * refuse. */
    (void)madvise(frame(m, *pfn), HOST_MAX_PAGES * sizeof(struct host_frame), MADV_POPULATE_WRITE);
    for (uint64_t p = *pfn; p < z->next; p += HOST_PAGEBLOCK_PAGES) {
        set_block_mt(m, p, mt);
    }
    expand(m, z, *pfn, HOST_MAX_ORDER, order);
    return true;
}

/* Move the free frames of one 2 MiB block to another type's lists. */
static void convert_pageblock(struct host_memory_impl *m, struct host_zone *z, uint64_t pfn,
                              unsigned mt)
{
    uint64_t p = pfn & ~(HOST_PAGEBLOCK_PAGES - 1), end = p + HOST_PAGEBLOCK_PAGES;
    unsigned old = host_block_mt(m, pfn);

    set_block_mt(m, pfn, mt);
    while (p < end) {
        struct host_frame *f = p ? frame(m, p) : NULL;

        if (!f || !host_frame_test(f, HOST_FRAME_BUDDY)) {
            p++;
            continue;
        }
        unsigned order = f->order;

        list_remove(m, z, p, old);
        list_push(m, z, p, order, mt);
        p += UINT64_C(1) << order;
    }
}

/* Take the largest block of another type, so that types mix in as few 2 MiB blocks as possible;
 * when it is a good part of its 2 MiB block, the whole of that changes its type. */
static bool take_other(struct host_memory_impl *m, struct host_zone *z, unsigned order, unsigned mt,
                       uint64_t *pfn)
{
    for (int o = HOST_MAX_ORDER; o >= (int)order; o--) {
        for (unsigned i = 0; i < HOST_NR_MIGRATE - 1; i++) {
            unsigned other = fallbacks[mt][i];

            if (!z->head[o][other]) {
                continue;
            }
            *pfn = z->head[o][other];
            list_remove(m, z, *pfn, other);
            z->steals++;
            if (o >= HOST_PAGEBLOCK_ORDER) {
                for (uint64_t p = 0; p < UINT64_C(1) << o; p += HOST_PAGEBLOCK_PAGES) {
                    set_block_mt(m, *pfn + p, mt);
                }
            } else if (o >= HOST_PAGEBLOCK_ORDER - 1 || mt != HOST_MIGRATE_MOVABLE) {
                convert_pageblock(m, z, *pfn, mt);
            }
            expand(m, z, *pfn, (unsigned)o, order);
            return true;
        }
    }
    return false;
}

/* Lock: zone lock held. */
static bool take_locked(struct host_memory_impl *m, struct host_zone *z, unsigned order,
                        unsigned mt, uint64_t *pfn)
{
    if (take_from(m, z, order, mt, pfn) || take_untouched(m, z, order, mt, pfn) ||
        take_other(m, z, order, mt, pfn)) {
        zone_account(z, -(int64_t)(UINT64_C(1) << order));
        return true;
    }
    return false;
}

/* May a request leave the zone with this many frames fewer? `mark`: watermark to keep. */
static bool watermark_ok(const struct host_zone *z, uint64_t frames, uint64_t mark)
{
    return zone_free(z) >= frames + mark;
}

static unsigned highest_zone(unsigned flags)
{
    if (flags & HOST_GFP_DMA) {
        return HOST_ZONE_DMA;
    }
    return flags & HOST_GFP_DMA32 ? HOST_ZONE_DMA32 : HOST_ZONE_NORMAL;
}

/* Frames that the request must leave in a zone. pass 0: the low watermark; pass 1: min, or half of
 * it for those who may use the reserve. */
static uint64_t mark_of(const struct host_zone *z, unsigned flags, unsigned pass, bool lower_zone)
{
    uint64_t mark = z->low;

    if (pass) {
        mark = flags & HOST_GFP_ATOMIC ? z->min / 2 : z->min;
    }
    return mark + (lower_zone ? z->reserve : 0);
}

/*
 * Take up to n blocks of an order from the first zone that can give any.
 * Returns how many; remembers pressure when the low watermark had to be crossed.
 */
static unsigned take_many(struct host_memory_impl *m, unsigned order, unsigned flags,
                          uint32_t *pfns, unsigned n)
{
    unsigned top = highest_zone(flags), mt = flags & HOST_GFP_MT_MASK, got = 0;
    uint64_t frames = UINT64_C(1) << order, pfn;

    for (unsigned pass = 0; pass < 2 && !got; pass++) {
        for (int i = (int)top; i >= 0 && !got; i--) {
            struct host_zone *z = &m->zone[i];
            uint64_t mark = mark_of(z, flags, pass, i < (int)top);

            if (!z->managed || !watermark_ok(z, frames, mark)) {
                continue;
            }
            pthread_mutex_lock(&z->lock);
            while (got < n && watermark_ok(z, frames, mark) && take_locked(m, z, order, mt, &pfn)) {
                pfns[got++] = (uint32_t)pfn;
            }
            pthread_mutex_unlock(&z->lock);
        }
        if (!got) {
            __atomic_store_n(&m->pressure, true, __ATOMIC_RELAXED);
        }
    }
    return got;
}

/*
 * Take one block. order: 0..HOST_MAX_ORDER; flags: HOST_GFP_*.
 * Returns 0 with *pfn, or -ENOMEM. Lock: takes zone locks. Source: own, after the kernel's rules.
 */
int host_zones_take(struct host_memory_impl *m, unsigned order, unsigned flags, uint64_t *pfn)
{
    uint32_t one;

    if (!take_many(m, order, flags, &one, 1)) {
        return -ENOMEM;
    }
    *pfn = one;
    return 0;
}

/* Take up to n single frames; returns how many. Lock: takes zone locks. */
unsigned host_zones_take_batch(struct host_memory_impl *m, unsigned flags, uint32_t *pfns,
                               unsigned n)
{
    return take_many(m, 0, flags, pfns, n);
}

/* Give a block back to its zone. Lock: takes the zone lock. */
void host_zones_give(struct host_memory_impl *m, uint64_t pfn, unsigned order)
{
    struct host_zone *z = host_zone_of(m, pfn);

    pthread_mutex_lock(&z->lock);
    give_locked(m, z, pfn, order);
    pthread_mutex_unlock(&z->lock);
}

/* Give n single frames back. Lock: takes zone locks, one hold per run of frames of a zone. */
void host_zones_give_batch(struct host_memory_impl *m, const uint32_t *pfns, unsigned n)
{
    struct host_zone *held = NULL;

    for (unsigned i = 0; i < n; i++) {
        struct host_zone *z = host_zone_of(m, pfns[i]);

        if (z != held) {
            if (held) {
                pthread_mutex_unlock(&held->lock);
            }
            pthread_mutex_lock(&z->lock);
            held = z;
        }
        give_locked(m, z, pfns[i], 0);
    }
    if (held) {
        pthread_mutex_unlock(&held->lock);
    }
}

/* See memory_impl.h. Skipped blocks of the largest order go to the free lists. Lock: takes the
 * zone's. */
int host_zones_take_gigantic(struct host_memory_impl *m, uint64_t *pfn)
{
    struct host_zone *z = &m->zone[HOST_ZONE_NORMAL];
    uint64_t size = UINT64_C(1) << HOST_GIGANTIC_ORDER, start;
    int err = -ENOMEM;

    pthread_mutex_lock(&z->lock);
    start = (z->next + size - 1) & ~(size - 1);
    if (start < z->end && z->end - start >= size && watermark_ok(z, size, z->low)) {
        while (z->next < start) {
            list_push(m, z, z->next, HOST_MAX_ORDER, host_block_mt(m, z->next));
            __atomic_store_n(&z->next, z->next + HOST_MAX_PAGES, __ATOMIC_RELAXED);
        }
        __atomic_store_n(&z->next, z->next + size, __ATOMIC_RELAXED);
        zone_account(z, -(int64_t)size);
        for (uint64_t p = start; p < z->next; p += HOST_PAGEBLOCK_PAGES) {
            set_block_mt(m, p, HOST_MIGRATE_MOVABLE);
        }
        *pfn = start;
        err = 0;
    }
    pthread_mutex_unlock(&z->lock);
    return err;
}

/* See memory_impl.h. Lock: takes the zone's. */
bool host_block_close(struct host_memory_impl *m, uint64_t pfn)
{
    struct host_zone *z = host_zone_of(m, pfn);
    bool ok;

    pthread_mutex_lock(&z->lock);
    ok = pfn < z->next && host_block_mt(m, pfn) == HOST_MIGRATE_MOVABLE;
    if (ok) {
        /* Free as a whole: part of a block of order 9 or 10 that starts here or one block
         * before. */
        const struct host_frame *f = frame(m, pfn), *before = frame(m, pfn & ~(HOST_MAX_PAGES - 1));

        ok = !(host_frame_test(f, HOST_FRAME_BUDDY) && f->order >= HOST_PAGEBLOCK_ORDER) &&
             !(host_frame_test(before, HOST_FRAME_BUDDY) && before->order == HOST_MAX_ORDER);
    }
    if (ok) {
        convert_pageblock(m, z, pfn, HOST_MIGRATE_ISOLATED);
    }
    pthread_mutex_unlock(&z->lock);
    return ok;
}

/* See memory_impl.h. True when the block has become free as a whole. Lock: takes the zone's. */
bool host_block_open(struct host_memory_impl *m, uint64_t pfn)
{
    struct host_zone *z = host_zone_of(m, pfn);
    const struct host_frame *f = frame(m, pfn);
    bool whole;

    pthread_mutex_lock(&z->lock);
    whole = host_frame_test(f, HOST_FRAME_BUDDY) && f->order == HOST_PAGEBLOCK_ORDER;
    convert_pageblock(m, z, pfn, HOST_MIGRATE_MOVABLE);
    if (whole) { /* let it find its other half */
        list_remove(m, z, pfn, HOST_MIGRATE_MOVABLE);
        zone_account(z, -(int64_t)HOST_PAGEBLOCK_PAGES);
        give_locked(m, z, pfn, HOST_PAGEBLOCK_ORDER);
    }
    pthread_mutex_unlock(&z->lock);
    return whole;
}

static uint64_t int_sqrt(uint64_t x)
{
    uint64_t r = 0;

    for (uint64_t bit = UINT64_C(1) << 31; bit; bit >>= 1) {
        if ((r + bit) * (r + bit) <= x) {
            r += bit;
        }
    }
    return r;
}

/* min of all zones together is 4 * sqrt(KiB), between 128 KiB and 256 MiB, shared out by size; low
 * and high are a quarter and a half above it, or 0.1% and 0.2% of the zone when that is more. */
static void set_watermarks(struct host_memory_impl *m)
{
    uint64_t kib = m->hm.nr_frames * (PAGE_SIZE / 1024);
    uint64_t min_kib = int_sqrt(kib * 16), above = 0;

    min_kib = min_kib < 128 ? 128 : min_kib > 262144 ? 262144 : min_kib;
    for (int i = HOST_NR_ZONES - 1; i >= 0; i--) {
        struct host_zone *z = &m->zone[i];
        uint64_t step;

        z->min = min_kib / (PAGE_SIZE / 1024) * z->managed / m->hm.nr_frames;
        step = z->min / 4 > z->managed / 1000 ? z->min / 4 : z->managed / 1000;
        z->low = z->min + step;
        z->high = z->min + 2 * step;
        z->reserve = above / 256 < z->managed / 2 ? above / 256 : z->managed / 2;
        above += z->managed;
    }
}

/*
 * Set up the zones over hm.nr_frames frames (a multiple of the largest block). Frame 0 is reserved,
 * so the first block of the lowest zone starts out as pieces; all else is untouched.
 */
void host_zone_init(struct host_memory_impl *m)
{
    static const uint64_t ends[HOST_NR_ZONES] = {UINT64_C(1) << 12, UINT64_C(1) << 20, UINT64_MAX};
    uint64_t start = 0;

    for (unsigned i = 0; i < HOST_NR_ZONES; i++) {
        struct host_zone *z = &m->zone[i];

        pthread_mutex_init(&z->lock, NULL);
        base_lock_set_rank(&z->lock, BASE_RANK_ZONE);
        z->start = z->next = start;
        z->end = ends[i] < m->hm.nr_frames ? ends[i] : m->hm.nr_frames;
        z->managed = z->free = z->end - z->start;
        start = z->end;
    }
    m->zone[0].managed--;
    m->zone[0].free--;
    m->zone[0].next = HOST_MAX_PAGES;
    m->hm.frames[0].type = HOST_FRAME_RESERVED;
    for (unsigned order = 0; order < HOST_MAX_ORDER; order++) {
        list_push(m, &m->zone[0], UINT64_C(1) << order, order, HOST_MIGRATE_UNMOVABLE);
    }
    set_watermarks(m);
}
