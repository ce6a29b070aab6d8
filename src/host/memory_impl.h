/*
 * The inside of a simulated physical memory, shared by memory.c, buddy.c and pcp.c only.
 *
 *   struct host_memory_impl
 *     hm.frames[]   one per pfn        (address space only, until touched)
 *     hm.arena      4 KiB per pfn      (the same)
 *     blocks[]      one byte per 2 MiB: migrate type, and whether its arena part was used
 *     zone[]        free lists by order and migrate type, and `next`, the first frame never taken
 *     pcp[]         per-CPU lists of single frames, by migrate type
 */
#ifndef STRATA_HOST_MEMORY_IMPL_H
#define STRATA_HOST_MEMORY_IMPL_H

#include <pthread.h>

#include "base/lock.h"
#include "host/buddy.h"

#define HOST_PCP_HIGH  256u /* frames of one type that a CPU keeps before it gives some back */
#define HOST_PCP_BATCH 64u  /* frames moved between a CPU and its zone at a time */
#define HOST_MAX_CPUS  64u

/* Bits of host_memory_impl.blocks[]. */
#define HOST_BLOCK_MT_MASK 0x03u
#define HOST_BLOCK_STALE   0x04u /* some frame's arena page was written since the last drop */

#define HOST_PAGEBLOCK_PAGES (UINT64_C(1) << HOST_PAGEBLOCK_ORDER)
#define HOST_MAX_PAGES       (UINT64_C(1) << HOST_MAX_ORDER)

struct host_zone {
    pthread_mutex_t lock;
    uint64_t start, end; /* pfns; both multiples of the largest block */
    uint64_t next;       /* first frame never taken: [next, end) is free and in no list */
    uint64_t managed;
    uint64_t free; /* in lists + untouched; written under the lock, read relaxed anywhere */
    uint64_t min, low, high;
    uint64_t reserve; /* extra frames kept from requests that could use a higher zone */
    uint64_t steals;
    uint32_t head[HOST_MAX_ORDER + 1][HOST_NR_FREE_LISTS];
    uint64_t blocks[HOST_MAX_ORDER + 1][HOST_NR_FREE_LISTS];
};

struct host_pcp {
    pthread_mutex_t lock;
    uint32_t count[HOST_NR_MIGRATE];
    uint64_t allocs[HOST_MAX_ORDER + 1];
    uint64_t frees[HOST_MAX_ORDER + 1];
    int64_t in_use[HOST_FRAME_NR_TYPES];
    uint32_t pfns[HOST_NR_MIGRATE][HOST_PCP_HIGH];
} __attribute__((aligned(64)));

struct host_memory_impl {
    struct host_memory hm; /* first: the public part */
    struct host_zone zone[HOST_NR_ZONES];
    struct host_pcp *pcp;
    unsigned nr_cpus;
    uint8_t *blocks;
    bool (*fail_alloc)(void *opaque);
    void *opaque;
    uint64_t failures;                                                    /* atomic */
    uint64_t arena_drops;                                                 /* atomic */
    bool pressure;                                                        /* atomic */
    uint64_t compact_runs, compact_blocks, compact_moved, compact_failed; /* atomic */

    pthread_rwlock_t mms_lock; /* outside of every mmap lock */
    struct host_mm *mms[256];  /* by id, 0 unused; mms_lock */
};

static inline struct host_memory_impl *host_impl(struct host_memory *hm)
{
    return (struct host_memory_impl *)hm;
}

static inline struct host_zone *host_zone_of(struct host_memory_impl *m, uint64_t pfn)
{
    for (unsigned z = 0; z < HOST_NR_ZONES - 1; z++) {
        if (pfn < m->zone[z].end) {
            return &m->zone[z];
        }
    }
    return &m->zone[HOST_NR_ZONES - 1];
}

static inline unsigned host_block_mt(const struct host_memory_impl *m, uint64_t pfn)
{
    return __atomic_load_n(&m->blocks[pfn >> HOST_PAGEBLOCK_ORDER], __ATOMIC_RELAXED) &
           HOST_BLOCK_MT_MASK;
}

/* What an allocation asks for, and what its frames are to hold. */
struct host_alloc {
    unsigned order;
    unsigned flags; /* HOST_GFP_* */
    enum host_frame_type type;
    uint8_t owner;
    bool own_storage; /* contents are the frames' arena pages, not cleared here */
    void *data;       /* else: contents of the first frame, the others following; null: none */
};

/* Allocate and fill in the frames. 0, -ENOMEM, -EINVAL. */
int host_block_alloc(struct host_memory_impl *m, const struct host_alloc *req,
                     pfn_t *out) must_check;

/* buddy.c; zone lock taken inside. */
void host_zone_init(struct host_memory_impl *m);
int host_zones_take(struct host_memory_impl *m, unsigned order, unsigned flags, uint64_t *pfn);
unsigned host_zones_take_batch(struct host_memory_impl *m, unsigned flags, uint32_t *pfns,
                               unsigned n);
void host_zones_give(struct host_memory_impl *m, uint64_t pfn, unsigned order);
/* A gigantic block from untouched memory. 0 or -ENOMEM. */
int host_zones_take_gigantic(struct host_memory_impl *m, uint64_t *pfn);
/* Compaction: close a 2 MiB block (its free frames go to the isolated list), and open it again.
 * Closing fails (false) for a block that is not movable, was never used, or is free as a whole. */
bool host_block_close(struct host_memory_impl *m, uint64_t pfn);
bool host_block_open(struct host_memory_impl *m, uint64_t pfn);
void host_zones_give_batch(struct host_memory_impl *m, const uint32_t *pfns, unsigned n);

/* The frame's arena page is about to be written: it must be cleared before it is a table's
 * again. */
void host_frame_mark_storage(struct host_memory *hm, pfn_t p);

/* calloc() that the owner of the memory can make fail. Freed by free(). */
void *host_calloc(struct host_memory *hm, size_t n, size_t size) must_check;

/* The same at an alignment, a power of two that divides size. */
void *host_calloc_aligned(struct host_memory *hm, size_t align, size_t size) must_check;

/* pcp.c: return what the per-CPU lists hold. */
void host_pcp_drain(struct host_memory_impl *m);

#endif
