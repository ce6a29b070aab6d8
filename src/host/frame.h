/*
 * Physical memory of the simulated host, as far as the silicon sees it: frames, and how a
 * host-physical address becomes a pointer. Everything else about the host (who owns a frame, how it
 * was chosen) is buddy.h and mm.h; this is the one header of src/host that src/cpu includes.
 *
 *     hpa --------- pfn --------> frames[pfn].data ---> 4 KiB of contents
 *                                  |
 *                                  +-- guest RAM: the page's own HVA in the embedding process,
 *                                  |   which the host really allocates at the first touch only
 *                                  +-- tables and kernel pages: arena + pfn * 4 KiB
 *
 * Invariants:
 *  1. frames[pfn].data is null exactly when the frame has no contents (free, or reserved).
 *  2. Frame 0 is never handed out: pfn 0 is the null of every list of frames.
 *  3. A frame with its own storage has it at arena + hpa, so that a walk over tables needs no
 *     load of the frame: host_table_at().
 *  4. `gen` changes whenever the frame gets other contents (allocation, another HVA), so that
 *     what a processor cached of a frame's contents can be told from what is there now.
 *
 * Locks: `flags` and `refcount` are atomic; `data` is published by the release store of the table
 * entry that names the frame; the rest belongs to whoever owns the frame (buddy zone lock while
 * free, the mm afterwards).
 */
#ifndef STRATA_HOST_FRAME_H
#define STRATA_HOST_FRAME_H

#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"

/* Bits of host_frame.flags, all atomic. */
#define HOST_FRAME_HAS_CODE 0x01u /* a processor holds decoded instructions of this frame */
#define HOST_FRAME_STALE    0x02u /* the arena page may hold non-zero bytes */
#define HOST_FRAME_BUDDY    0x04u /* head of a free block of `order` */
#define HOST_FRAME_HEAD     0x08u /* first frame of an allocated block of `order` > 0 */
#define HOST_FRAME_TAIL     0x10u /* another frame of such a block; `link` is the head's pfn */
#define HOST_FRAME_POISONED 0x20u /* memory failure: contents are lost, never map again */
#define HOST_FRAME_ACCESSED 0x40u /* referenced since reclaim last looked */
#define HOST_FRAME_DIRTY    0x80u /* written since the last write-back */

enum host_frame_type {
    HOST_FRAME_FREE = 0,
    HOST_FRAME_TABLE,    /* second-stage or shadow table, own storage */
    HOST_FRAME_HOST_PT,  /* page table of a host_mm, own storage */
    HOST_FRAME_KERNEL,   /* other kernel page, own storage */
    HOST_FRAME_ANON,     /* anonymous page, contents at its HVA */
    HOST_FRAME_FILE,     /* page of a shared file or memfd mapping, contents at an HVA */
    HOST_FRAME_HUGETLB,  /* part of a hugetlb page, contents at its HVA */
    HOST_FRAME_ZERO,     /* the shared zero page */
    HOST_FRAME_KSM,      /* a merged page, own storage, read-only */
    HOST_FRAME_PFNMAP,   /* named by a pfn-mapped VMA; not counted, no owner */
    HOST_FRAME_RESERVED, /* frame 0 and holes */
    HOST_FRAME_NR_TYPES,
};

/* 32 bytes; the array is indexed by pfn and mapped without reserve: untouched parts cost
 * nothing. */
struct host_frame {
    void *data;        /* the contents; see host_frame_data() */
    uint32_t refcount; /* atomic; mappings + pins + holders; 0 when free */
    uint8_t flags;     /* atomic; HOST_FRAME_* */
    uint8_t order;     /* of the block this frame heads, 0..10 (18 for a 1 GiB page) */
    uint8_t type;      /* enum host_frame_type */
    uint8_t owner;     /* id of the owning mm, 0 = none */
    uint32_t next;     /* list links, as pfn; 0 = none: buddy list while free, lru list in use */
    uint32_t prev;
    uint32_t gen;  /* changes with the contents' place */
    uint32_t link; /* tail: pfn of the head; head: users' own (mapping count) */
};
_Static_assert(sizeof(struct host_frame) == 32, "frame metadata must stay under 1% of memory");

/* What inlines need of a simulated physical memory; the rest is private to src/host. */
struct host_memory {
    struct host_frame *frames;
    uint64_t nr_frames;   /* pfns are < nr_frames */
    unsigned char *arena; /* storage of frames that have their own, at arena + hpa */
};

struct host_memory_options {
    uint64_t bytes;   /* simulated physical memory; 0 = 64 GiB; at most 2 TiB */
    unsigned nr_cpus; /* per-CPU frame lists; 0 = as many as the machine has, at most 64 */
    /* Called for every internal allocation; true makes it fail. Null: never. For tests. */
    bool (*fail_alloc)(void *opaque);
    void *opaque;
};

/*
 * Create a simulated physical memory. Costs address space (32 bytes per frame, and the arena) but
 * memory only for what is used. options may be null.
 * Returns 0 with *out, or -EINVAL (size), -ENOMEM.
 */
int host_memory_new(const struct host_memory_options *options, struct host_memory **out) must_check;

/* Free it; no frame may be in use by anyone any more. Null is allowed. */
void host_memory_free(struct host_memory *hm);

/* The frame of `f`, or null when out of range. */
static inline struct host_frame *host_frame_at(const struct host_memory *hm, pfn_t f)
{
    return likely(f.v < hm->nr_frames) ? &hm->frames[f.v] : NULL;
}

static inline pfn_t host_frame_pfn(const struct host_memory *hm, const struct host_frame *frame)
{
    return pfn((uint64_t)(frame - hm->frames));
}

/* The contents of a frame, or null when it has none. */
static inline void *host_frame_data(const struct host_frame *frame)
{
    return __atomic_load_n(&frame->data, __ATOMIC_RELAXED);
}

/* Pointer to the byte at `addr`; null for an address out of range or a frame without contents. The
 * pointer is good to the end of its 4 KiB page, until the mapping that named the frame is
 * zapped. */
static inline void *host_hpa_to_ptr(const struct host_memory *hm, hpa_t addr)
{
    unsigned char *data;

    if (unlikely(addr.v >> PAGE_SHIFT >= hm->nr_frames)) {
        return NULL;
    }
    data = host_frame_data(&hm->frames[addr.v >> PAGE_SHIFT]);
    return likely(data != NULL) ? data + page_offset(addr.v) : NULL;
}

/* The same for a frame known to have its own storage (tables): one add, no load. The caller vouches
 * for the address: it comes from an entry that this stack itself wrote. */
static inline void *host_table_at(const struct host_memory *hm, hpa_t addr)
{
    return hm->arena + addr.v;
}

/* The inverse of host_table_at(). */
static inline hpa_t host_table_hpa(const struct host_memory *hm, const void *table)
{
    return hpa((uint64_t)((const unsigned char *)table - hm->arena));
}

static inline unsigned host_frame_flags(const struct host_frame *frame)
{
    return __atomic_load_n(&frame->flags, __ATOMIC_RELAXED);
}

static inline bool host_frame_test(const struct host_frame *frame, unsigned flag)
{
    return (host_frame_flags(frame) & flag) != 0;
}

/* Set or clear flags; returns the flags before. Full barriers, so that "set HAS_CODE, then read the
 * bytes" and "write the bytes, then test HAS_CODE" cannot both miss. */
static inline unsigned host_frame_set(struct host_frame *frame, unsigned flag)
{
    return __atomic_fetch_or(&frame->flags, (uint8_t)flag, __ATOMIC_SEQ_CST);
}

static inline unsigned host_frame_clear(struct host_frame *frame, unsigned flag)
{
    return __atomic_fetch_and(&frame->flags, (uint8_t)~flag, __ATOMIC_SEQ_CST);
}

static inline uint32_t host_frame_gen(const struct host_frame *frame)
{
    return __atomic_load_n(&frame->gen, __ATOMIC_RELAXED);
}

#endif
