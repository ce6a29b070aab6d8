/*
 * Page frames: allocation and freeing. A binary buddy allocator per zone, with lists per migrate
 * type, watermarks and per-CPU lists of single frames in front. Zones are set up lazily: a zone of
 * 60 GiB is one number until its first block is taken.
 *
 *   host_frames_alloc --> per-CPU list (order 0) --> zone: free lists --> never used rest
 *                                                          |
 *                                                          +--> other migrate types, other zones
 *
 * Nothing here reclaims: an allocation fails, or leaves host_memory_pressure() set, and who can
 * afford to reclaim (a fault that holds no lock) does.
 *
 * Invariants: see buddy.c. Locks: per-CPU list lock, then zone lock; both are leaves: no callback
 * is made under them, and callers may hold anything else.
 */
#ifndef STRATA_HOST_BUDDY_H
#define STRATA_HOST_BUDDY_H

#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"
#include "host/frame.h"

#define HOST_MAX_ORDER       10
#define HOST_GIGANTIC_ORDER  18 /* 1 GiB: only from memory that was never used */
#define HOST_PAGEBLOCK_ORDER 9  /* migrate types are kept per 2 MiB */

enum host_zone_id {
    HOST_ZONE_DMA,    /* below 16 MiB */
    HOST_ZONE_DMA32,  /* below 4 GiB */
    HOST_ZONE_NORMAL, /* the rest */
    HOST_NR_ZONES,
};

enum host_migrate {
    HOST_MIGRATE_UNMOVABLE,
    HOST_MIGRATE_MOVABLE,
    HOST_MIGRATE_RECLAIMABLE,
    HOST_NR_MIGRATE,
    HOST_MIGRATE_ISOLATED =
        HOST_NR_MIGRATE, /* a 2 MiB block being emptied: nothing is taken from it */
    HOST_NR_FREE_LISTS,
};

/* Flags of an allocation. */
#define HOST_GFP_UNMOVABLE   0x00u
#define HOST_GFP_MOVABLE     0x01u
#define HOST_GFP_RECLAIMABLE 0x02u
#define HOST_GFP_MT_MASK     0x03u
#define HOST_GFP_ATOMIC      0x04u /* may dip into the reserve below the min watermark */
#define HOST_GFP_TRY         0x08u /* fail soon: the caller has another way */
#define HOST_GFP_DMA32       0x10u /* below 4 GiB */
#define HOST_GFP_DMA         0x20u /* below 16 MiB */

/*
 * Allocate 2^order physically contiguous frames, naturally aligned. The head has refcount 1; each
 * has a new `gen`, no contents (`data` null) and type HOST_FRAME_KERNEL.
 * order: 0..HOST_MAX_ORDER, or HOST_GIGANTIC_ORDER. flags: HOST_GFP_*.
 * Returns 0 with *out the first frame, -ENOMEM, -EINVAL (order).
 */
int host_frames_alloc(struct host_memory *hm, unsigned order, unsigned flags,
                      pfn_t *out) must_check;

/* Give back 2^order frames starting at `first`, as allocated. The contents are forgotten. */
void host_frames_free(struct host_memory *hm, pfn_t first, unsigned order);

/* Split an allocated block of `order` into 2^order single frames, each with refcount 1. */
void host_frames_split(struct host_memory *hm, pfn_t first, unsigned order);

/*
 * Allocate one frame with zeroed storage of its own, for a table of 512 entries or a kernel page.
 * type: HOST_FRAME_TABLE, HOST_FRAME_HOST_PT or HOST_FRAME_KERNEL.
 * Returns 0 with *out its address (host_table_at() gives the pointer), or -ENOMEM.
 */
int host_table_alloc(struct host_memory *hm, enum host_frame_type type, hpa_t *out) must_check;

/* Free a frame of host_table_alloc(). Nobody may hold a pointer into it any more. */
void host_table_free(struct host_memory *hm, hpa_t addr);

/* Change the type of an allocated block of frames; keeps the figures per type right. */
void host_frame_set_type(struct host_memory *hm, pfn_t head, enum host_frame_type type);

/* Take or drop a reference on the block that holds `f`; the last drop frees the block. Taking fails
 * (returns false) on a free frame, so it may be used on a frame found without a lock. */
bool host_frame_try_get(struct host_memory *hm, pfn_t f) must_check;
void host_frame_put(struct host_memory *hm, pfn_t f);

struct host_zone_stats {
    uint64_t start_pfn, end_pfn;
    uint64_t managed;                    /* frames */
    uint64_t free;                       /* frames in free lists, untouched ones included */
    uint64_t untouched;                  /* frames never taken so far */
    uint64_t min, low, high;             /* watermarks, frames */
    uint64_t blocks[HOST_MAX_ORDER + 1]; /* free blocks per order, untouched ones as the largest */
    uint64_t by_migrate[HOST_NR_FREE_LISTS]; /* free frames per migrate type */
    uint64_t steals;                         /* blocks taken over from another migrate type */
};

struct host_memory_stats {
    struct host_zone_stats zone[HOST_NR_ZONES];
    uint64_t allocs[HOST_MAX_ORDER + 1]; /* successful allocations */
    uint64_t frees[HOST_MAX_ORDER + 1];
    uint64_t failures;
    uint64_t pcp_frames;                    /* frames in per-CPU lists */
    uint64_t in_use[HOST_FRAME_NR_TYPES];   /* frames per type */
    uint64_t arena_drops;                   /* times that storage was given back to the process */
    uint64_t compact_runs, compact_blocks;  /* compactions; 2 MiB blocks they freed */
    uint64_t compact_moved, compact_failed; /* frames moved; blocks given up */
};

/* Fill in the statistics: a consistent view of each zone, not across zones. */
void host_memory_get_stats(struct host_memory *hm, struct host_memory_stats *out);

/*
 * Fragmentation of a zone for an order, in thousandths: how far a failing request is due to
 * fragmentation (towards 1000) rather than to lack of memory (towards 0); -1000 when it would
 * succeed.
 */
int host_zone_fragmentation(struct host_memory *hm, enum host_zone_id zone, unsigned order);

/*
 * Compaction: empty up to `blocks` 2 MiB blocks of movable frames by giving their pages other
 * frames, so that huge pages can be had again. Pinned, locked and kernel frames stay where they
 * are, and so does their block. Returns how many blocks became free.
 * Lock: takes every address space's mmap lock in turn; nothing that a notifier takes may be held.
 */
unsigned host_memory_compact(struct host_memory *hm, unsigned blocks);

/* True when some zone fell below its low watermark since the last call; asking clears it. */
bool host_memory_pressure(struct host_memory *hm);

/* Return the per-CPU lists to the zones and the storage of free frames to the process. */
void host_memory_trim(struct host_memory *hm);

/* Check every invariant of zones and frames. Returns 0, or -EUCLEAN at the first that fails, with
 * one line in `text` (size bytes). No allocation may run meanwhile. */
int host_memory_check(struct host_memory *hm, char *text, size_t size);

#endif
