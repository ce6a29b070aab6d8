/*
 * A region's inside. Shared by the files that keep the tree: region.c (making, references),
 * tree.c (attaching), mutate.c (attributes), reach.c (which views see a region), render.c.
 *
 * Lifetime: `refs` counts the creator, the container, each alias on it, each flat range, mapping and
 * cache. The owner carries one reference per such holder unless the holder is of the same owner.
 * Locks: the handle's, except for fields marked atomic and those that never change.
 */
#ifndef STRATA_MEMORY_REGION_H
#define STRATA_MEMORY_REGION_H

#include "base/list.h"
#include "base/range.h"
#include "memory/handle.h"
#include "memory/itree.h"
#include "strata/eventfd.h"
#include "strata/iommu.h"
#include "strata/region.h"

struct strata_owner {
    struct strata_memory *mem;
    struct list node;
    char *name;
    void (*release)(void *opaque);
    void *opaque;
    unsigned refs;        /* atomic */
    uintptr_t busy;       /* atomic: the thread inside a callback of this device, or 0 */
    bool allow_reentry;
    bool warned;
    uint64_t reentries;   /* atomic */
    struct memory_retired retired;
};

/* An immutable version of a region's eventfds, sorted; replaced whole. */
struct memory_events {
    struct memory_retired retired;
    unsigned refs;
    unsigned count;
    struct strata_eventfd item[];
};

struct memory_coalesced {
    strata_addr start;
    uint64_t size;
};

struct strata_region {
    /* what an access needs, together */
    const struct strata_io_ops *ops;
    void *opaque;
    uint8_t kind;         /* never changes */
    bool terminates;      /* never changes: answers lookups itself */
    bool readonly;        /* atomic for accesses, as are the next four */
    bool romd;
    bool lockless;
    bool reentrant;
    bool flush_coalesced;
    bool enabled;
    bool nonvolatile;
    bool unmergeable;
    bool dead;            /* destroyed by its creator */
    uint8_t log_mask;     /* atomic */
    struct strata_owner *owner;
    struct strata_memory *mem;
    struct strata_ram *ram;
    struct memory_events *events; /* RCU; null when there are none */
    struct memory_iommu *iommu;
    struct strata_discard_manager *discard;

    /* tree */
    char *name;
    i128 size;
    uint64_t addr;        /* in the container */
    int priority;
    uint64_t seq;         /* higher: placed later */
    struct strata_region *container;
    struct strata_region *target; /* alias; never changes */
    uint64_t offset;              /* alias: start of the window in target */
    struct itree_node node;       /* in the container's children */
    struct itree children;
    unsigned nchildren;
    unsigned nenabled;            /* enabled children, and the XOR of their addresses: gives the */
    uintptr_t enabled_xor;        /* one child when there is just one */
    struct list aliases;          /* regions whose target this is */
    struct list alias_node;
    unsigned mapped_via_alias;

    /* what shows it */
    struct list spaces;           /* whose root this is */
    struct memory_view *view;     /* of spaces whose canonical root this is */
    struct list ranges;           /* flat ranges */

    unsigned refs;                /* atomic */
    unsigned display_logs;
    bool events_pending;
    struct list event_node;       /* in the handle's event_regions */
    struct memory_coalesced *coalesced;
    size_t ncoalesced, cap_coalesced;
    struct strata_region *undo_next; /* scratch of a change that may have to be undone */
    struct list all_node;
    struct memory_retired retired;
};

static inline bool memory_region_is_readonly(const struct strata_region *region)
{
    return __atomic_load_n(&region->readonly, __ATOMIC_RELAXED);
}

/* The highest byte offset; the region is not empty. */
static inline uint64_t memory_region_last(const struct strata_region *region)
{
    return (uint64_t)(region->size - 1);
}

void memory_region_get(struct strata_region *region, const struct strata_owner *holder);
void memory_region_put(struct strata_region *region, const struct strata_owner *holder);
void memory_owner_get(struct strata_owner *owner);
void memory_owner_put(struct strata_owner *owner);

/* iommu.c, discard.c */
must_check int memory_iommu_init(struct strata_region *region, const struct strata_iommu_ops *ops);
void memory_iommu_free(struct strata_region *region);
void memory_discard_free(struct strata_region *region);

/* tree.c */
void memory_tree_link(struct strata_region *parent, struct strata_region *child);
void memory_tree_unlink(struct strata_region *child);
void memory_tree_count_enabled(struct strata_region *child, bool enabled);

/* reach.c */
void memory_reach_fini(struct strata_memory *mem);
must_check int memory_reach_mark(struct strata_region *region, uint64_t start, uint64_t last);
must_check int memory_reach_mark_all(struct strata_region *region);
must_check int memory_reach_mark_child(struct strata_region *parent, uint64_t addr, i128 size);
must_check bool memory_reach_search(struct strata_region *from, const struct strata_region *what);

#endif
