/*
 * RAM blocks, seen from inside the folder.
 *
 * Blocks are chained by size, largest first, for readers under RCU; `version` of the handle moves
 * after each change of the chain. Dirty bitmaps: one per client, a bit per 4 KiB page of the block's
 * largest size, written with relaxed atomics from any thread.
 *
 * Locks: the handle's, but for fields marked atomic.
 */
#ifndef STRATA_MEMORY_RAM_H
#define STRATA_MEMORY_RAM_H

#include "memory/region.h"
#include "strata/dirty.h"
#include "strata/ram.h"

#define MEMORY_DIRTY_SHIFT 12
#define MEMORY_DIRTY_ALL   ((1u << STRATA_DIRTY_CLIENTS) - 1)

struct strata_ram {
    struct strata_memory *mem;
    struct strata_ram *next;      /* RCU */
    struct itree_node addr_node;  /* in mem->ram_addrs: linear numbers */
    char *name;
    unsigned flags;               /* atomic */
    enum strata_backing backing;
    uint8_t *host;
    uint64_t size;                /* atomic: bytes in use, rounded to pages */
    uint64_t max_size;
    uint64_t page_size;
    uint64_t map_size;            /* of our mapping; 0: not ours */
    uint64_t addr;                /* linear number of byte 0 */
    int fd;                       /* -1: none */
    bool own_fd;
    uint64_t fd_offset;
    int guest_fd;
    struct strata_region *region; /* the one that shows it; not counted */
    uint64_t *dirty[STRATA_DIRTY_CLIENTS];
    size_t dirty_words;
    unsigned refs;                /* atomic */
    void (*resized)(void *opaque, const char *name, uint64_t size, void *host);
    void *opaque;
    struct memory_retired retired;
};

static inline bool memory_ram_is_migratable(const struct strata_ram *ram)
{
    return !(__atomic_load_n(&ram->flags, __ATOMIC_RELAXED) & STRATA_RAM_NOT_MIGRATABLE);
}

/* ram.c */
must_check int memory_region_join_ram(struct strata_region *region, struct strata_ram *ram);
void memory_region_leave_ram(struct strata_region *region);
void memory_ram_free_all(struct strata_memory *mem);

/* ram_map.c */
struct base_error;
must_check int memory_ram_map(struct strata_ram *ram, const struct strata_ram_desc *desc);
void memory_ram_unmap(struct strata_ram *ram);

/* dirty.c */
must_check int memory_dirty_init(struct strata_ram *ram);
void memory_dirty_fini(struct strata_ram *ram);
void memory_dirty_clear(struct strata_ram *ram, uint64_t start, uint64_t len);

/* ram_notify.c */
void memory_ram_notify_added(struct strata_ram *ram);
void memory_ram_notify_removed(struct strata_ram *ram);
void memory_ram_notify_resized(struct strata_ram *ram, uint64_t size);
void memory_ram_notify_discarded(struct strata_ram *ram, uint64_t start, uint64_t len);

#endif
