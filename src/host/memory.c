/*
 * A simulated physical memory: creation, statistics, and the check of its invariants. The frame
 * array and the arena are reserved address space; what is never touched never costs memory.
 *
 * Locks: statistics take each zone's and each per-CPU list's lock in turn. The check wants silence.
 */
#include "host/buddy.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/memory_impl.h"

#define DEFAULT_BYTES (UINT64_C(64) << 30)
#define MAX_BYTES     (UINT64_C(2) << 40)
#define LARGEST_BLOCK (HOST_MAX_PAGES << PAGE_SHIFT)

/* See memory_impl.h. Source: own. */
void *host_calloc(struct host_memory *hm, size_t n, size_t size)
{
    struct host_memory_impl *m = host_impl(hm);

    if (m->fail_alloc && m->fail_alloc(m->opaque)) {
        return NULL;
    }
    return calloc(n, size);
}

/* See memory_impl.h. Source: own. */
void *host_calloc_aligned(struct host_memory *hm, size_t align, size_t size)
{
    struct host_memory_impl *m = host_impl(hm);
    void *p;

    if (m->fail_alloc && m->fail_alloc(m->opaque)) {
        return NULL;
    }
    p = aligned_alloc(align, size);
    return p ? memset(p, 0, size) : NULL;
}

/* Address space that costs memory only where it is touched. Null when there is none. */
static void *reserve(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    if (p == MAP_FAILED) {
        return NULL;
    }
    /* One frame in use must not cost 2 MiB. A kernel without huge pages refuses: all the better. */
    (void)madvise(p, bytes, MADV_NOHUGEPAGE);
    return p;
}

static int map_arrays(struct host_memory_impl *m)
{
    uint64_t n = m->hm.nr_frames;

    m->hm.frames = reserve(n * sizeof(struct host_frame));
    m->hm.arena = reserve(n << PAGE_SHIFT);
    m->blocks = reserve(n >> HOST_PAGEBLOCK_ORDER);
    return m->hm.frames && m->hm.arena && m->blocks ? 0 : -ENOMEM;
}

static int make_cpus(struct host_memory_impl *m, unsigned wanted)
{
    long online = sysconf(_SC_NPROCESSORS_CONF);

    m->nr_cpus = wanted ? wanted : online > 0 ? (unsigned)online : 1;
    m->nr_cpus = m->nr_cpus > HOST_MAX_CPUS ? HOST_MAX_CPUS : m->nr_cpus;
    m->pcp = aligned_alloc(64, m->nr_cpus * sizeof(*m->pcp));
    if (!m->pcp) {
        return -ENOMEM;
    }
    memset(m->pcp, 0, m->nr_cpus * sizeof(*m->pcp));
    for (unsigned i = 0; i < m->nr_cpus; i++) {
        pthread_mutex_init(&m->pcp[i].lock, NULL);
        base_lock_set_rank(&m->pcp[i].lock, BASE_RANK_PCP);
    }
    return 0;
}

/*
 * See frame.h. bytes is rounded down to 4 MiB and must leave at least 8 MiB.
 * Source: own.
 */
int host_memory_new(const struct host_memory_options *options, struct host_memory **out)
{
    struct host_memory_options none = {0};
    const struct host_memory_options *o = options ? options : &none;
    uint64_t bytes = (o->bytes ? o->bytes : DEFAULT_BYTES) & ~(LARGEST_BLOCK - 1);
    struct host_memory_impl *m;
    int err;

    if (bytes < 2 * LARGEST_BLOCK || bytes > MAX_BYTES) {
        return -EINVAL;
    }
    if (o->fail_alloc && o->fail_alloc(o->opaque)) {
        return -ENOMEM;
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        return -ENOMEM;
    }
    m->hm.nr_frames = bytes >> PAGE_SHIFT;
    m->fail_alloc = o->fail_alloc;
    m->opaque = o->opaque;
    pthread_rwlock_init(&m->mms_lock, NULL);
    base_lock_set_rank(&m->mms_lock, BASE_RANK_MMS);
    err = map_arrays(m);
    if (!err) {
        err = make_cpus(m, o->nr_cpus);
    }
    if (err) {
        host_memory_free(&m->hm);
        return err;
    }
    host_zone_init(m);
    *out = &m->hm;
    return 0;
}

static void unmap(void *p, uint64_t bytes)
{
    if (p) {
        munmap(p, bytes);
    }
}

/* See frame.h. Also undoes a half-made memory. */
void host_memory_free(struct host_memory *hm)
{
    struct host_memory_impl *m = host_impl(hm);

    if (!hm) {
        return;
    }
    for (unsigned i = 0; m->pcp && i < m->nr_cpus; i++) {
        pthread_mutex_destroy(&m->pcp[i].lock);
    }
    for (unsigned i = 0; m->zone[0].end && i < HOST_NR_ZONES; i++) {
        pthread_mutex_destroy(&m->zone[i].lock);
    }
    pthread_rwlock_destroy(&m->mms_lock);
    unmap(hm->frames, hm->nr_frames * sizeof(struct host_frame));
    unmap(hm->arena, hm->nr_frames << PAGE_SHIFT);
    unmap(m->blocks, hm->nr_frames >> HOST_PAGEBLOCK_ORDER);
    free(m->pcp);
    free(m);
}

static void zone_get_stats(struct host_zone *z, struct host_zone_stats *out)
{
    pthread_mutex_lock(&z->lock);
    out->start_pfn = z->start;
    out->end_pfn = z->end;
    out->managed = z->managed;
    out->free = z->free;
    out->untouched = z->end - z->next;
    out->min = z->min;
    out->low = z->low;
    out->high = z->high;
    out->steals = z->steals;
    for (unsigned o = 0; o <= HOST_MAX_ORDER; o++) {
        for (unsigned mt = 0; mt < HOST_NR_FREE_LISTS; mt++) {
            out->blocks[o] += z->blocks[o][mt];
            out->by_migrate[mt] += z->blocks[o][mt] << o;
        }
    }
    out->blocks[HOST_MAX_ORDER] += out->untouched / HOST_MAX_PAGES;
    pthread_mutex_unlock(&z->lock);
}

/* See buddy.h. */
void host_memory_get_stats(struct host_memory *hm, struct host_memory_stats *out)
{
    struct host_memory_impl *m = host_impl(hm);

    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < HOST_NR_ZONES; i++) {
        zone_get_stats(&m->zone[i], &out->zone[i]);
    }
    for (unsigned i = 0; i < m->nr_cpus; i++) {
        struct host_pcp *pcp = &m->pcp[i];

        pthread_mutex_lock(&pcp->lock);
        for (unsigned o = 0; o <= HOST_MAX_ORDER; o++) {
            out->allocs[o] += pcp->allocs[o];
            out->frees[o] += pcp->frees[o];
        }
        for (unsigned mt = 0; mt < HOST_NR_MIGRATE; mt++) {
            out->pcp_frames += pcp->count[mt];
        }
        for (unsigned t = 0; t < HOST_FRAME_NR_TYPES; t++) {
            out->in_use[t] += (uint64_t)pcp->in_use[t];
        }
        pthread_mutex_unlock(&pcp->lock);
    }
    out->failures = __atomic_load_n(&m->failures, __ATOMIC_RELAXED);
    out->arena_drops = __atomic_load_n(&m->arena_drops, __ATOMIC_RELAXED);
    out->compact_runs = __atomic_load_n(&m->compact_runs, __ATOMIC_RELAXED);
    out->compact_blocks = __atomic_load_n(&m->compact_blocks, __ATOMIC_RELAXED);
    out->compact_moved = __atomic_load_n(&m->compact_moved, __ATOMIC_RELAXED);
    out->compact_failed = __atomic_load_n(&m->compact_failed, __ATOMIC_RELAXED);
}

/* See buddy.h. Source: the kernel's fragmentation index, in its own words: 1 minus (1 + free
 * frames / wanted frames) / free blocks. */
int host_zone_fragmentation(struct host_memory *hm, enum host_zone_id zone, unsigned order)
{
    struct host_zone_stats s = {0};
    uint64_t blocks = 0;

    if (zone >= HOST_NR_ZONES || order > HOST_MAX_ORDER) {
        return 0;
    }
    zone_get_stats(&host_impl(hm)->zone[zone], &s);
    for (unsigned o = 0; o <= HOST_MAX_ORDER; o++) {
        blocks += s.blocks[o];
        if (o >= order && s.blocks[o]) {
            return -1000;
        }
    }
    if (!blocks) {
        return 0;
    }
    return 1000 - (int)((1000 + s.free * 1000 / (UINT64_C(1) << order)) / blocks);
}

/* See buddy.h. */
bool host_memory_pressure(struct host_memory *hm)
{
    bool *flag = &host_impl(hm)->pressure;

    return __atomic_load_n(flag, __ATOMIC_RELAXED) &&
           __atomic_exchange_n(flag, false, __ATOMIC_RELAXED);
}

/* Drop the arena pages of the free frames of one zone. Lock: zone lock held. */
static void trim_zone(struct host_memory_impl *m, struct host_zone *z)
{
    for (uint64_t p = z->start ? z->start : 1; p < z->next;) {
        struct host_frame *f = &m->hm.frames[p];
        uint64_t n = host_frame_test(f, HOST_FRAME_BUDDY) ? UINT64_C(1) << f->order : 0;

        for (uint64_t i = 0; i < n; i++) {
            if (!host_frame_test(f + i, HOST_FRAME_STALE)) {
                continue;
            }
            if (madvise(m->hm.arena + ((p + i) << PAGE_SHIFT), PAGE_SIZE, MADV_DONTNEED) == 0) {
                host_frame_clear(f + i, HOST_FRAME_STALE);
            }
        }
        p += n ? n : 1;
    }
}

/* See buddy.h. Lock: takes all per-CPU list locks and zone locks in turn. */
void host_memory_trim(struct host_memory *hm)
{
    struct host_memory_impl *m = host_impl(hm);

    host_pcp_drain(m);
    for (unsigned i = 0; i < HOST_NR_ZONES; i++) {
        pthread_mutex_lock(&m->zone[i].lock);
        trim_zone(m, &m->zone[i]);
        pthread_mutex_unlock(&m->zone[i].lock);
    }
}

struct check_out {
    char *text;
    size_t size;
};

static int printf_like(2, 3) broken(const struct check_out *out, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(out->text, out->size, fmt, args);
    va_end(args);
    return -EUCLEAN;
}

static unsigned long long ull(uint64_t v)
{
    return v;
}

/* One free block against invariants 1, 3 and 4 of buddy.c. */
static int check_block(struct host_memory_impl *m, const struct host_zone *z, uint64_t p,
                       const struct check_out *out)
{
    const struct host_frame *f = &m->hm.frames[p];
    uint64_t n = UINT64_C(1) << f->order, buddy = p ^ n;

    if (p & (n - 1) || p < z->start || p + n > z->next) {
        return broken(out, "free block %llx of order %u lies wrong", ull(p), f->order);
    }
    if (f->order < HOST_MAX_ORDER && buddy < z->next &&
        host_frame_test(&m->hm.frames[buddy], HOST_FRAME_BUDDY) &&
        m->hm.frames[buddy].order == f->order) {
        return broken(out, "free buddies %llx and %llx did not merge", ull(p), ull(buddy));
    }
    for (uint64_t i = 0; i < n; i++) {
        if (f[i].type != HOST_FRAME_FREE || f[i].data || f[i].refcount) {
            return broken(out, "free frame %llx is in use", ull(p + i));
        }
        if (i && host_frame_test(f + i, HOST_FRAME_BUDDY)) {
            return broken(out, "free block %llx inside block %llx", ull(p + i), ull(p));
        }
        if (f->order >= HOST_PAGEBLOCK_ORDER && host_frame_test(f + i, HOST_FRAME_STALE)) {
            return broken(out, "free block %llx kept its storage", ull(p));
        }
    }
    return 0;
}

/* All lists of a zone: lengths, links, types. */
static int check_lists(struct host_memory_impl *m, const struct host_zone *z, uint64_t *listed,
                       const struct check_out *out)
{
    for (unsigned i = 0; i < (HOST_MAX_ORDER + 1) * HOST_NR_FREE_LISTS; i++) {
        unsigned order = i / HOST_NR_FREE_LISTS, mt = i % HOST_NR_FREE_LISTS;
        uint64_t n = 0, prev = 0;

        for (uint64_t p = z->head[order][mt]; p; prev = p, p = m->hm.frames[p].next) {
            const struct host_frame *f = &m->hm.frames[p];
            int err;

            if (f->prev != prev || f->order != order || !host_frame_test(f, HOST_FRAME_BUDDY) ||
                host_block_mt(m, p) != mt || ++n > z->managed) {
                return broken(out, "free list %u/%u is damaged at %llx", order, mt, ull(p));
            }
            err = check_block(m, z, p, out);
            if (err) {
                return err;
            }
        }
        if (n != z->blocks[order][mt]) {
            return broken(out, "free list %u/%u: counted %llu", order, mt, ull(n));
        }
        *listed += n << order;
    }
    return 0;
}

/* See buddy.h. */
int host_memory_check(struct host_memory *hm, char *text, size_t size)
{
    struct host_memory_impl *m = host_impl(hm);
    struct check_out out = {text, size};

    for (unsigned i = 0; i < HOST_NR_ZONES; i++) {
        struct host_zone *z = &m->zone[i];
        uint64_t listed = 0, heads = 0;
        int err = check_lists(m, z, &listed, &out);

        if (err) {
            return err;
        }
        if (z->free != listed + (z->end - z->next)) {
            return broken(&out, "zone %u: %llu frames listed, %llu counted", i, ull(listed),
                          ull(z->free));
        }
        for (uint64_t p = z->start; p < z->next; p++) {
            const struct host_frame *f = &hm->frames[p];

            heads += host_frame_test(f, HOST_FRAME_BUDDY) ? UINT64_C(1) << f->order : 0;
        }
        if (heads != listed) {
            return broken(&out, "zone %u: frames flagged free that no list has", i);
        }
    }
    return 0;
}
