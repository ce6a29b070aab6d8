/*
 * Views and spaces. A view is the flat picture of one canonical root; spaces with the same canonical
 * root share it.
 *
 *   strata_space ──▶ memory_view ──▶ root entry of the dispatch radix ──▶ memory_range (leaf)
 *                        └── ranges: ordered index of the same memory_ranges, for writers
 *
 * Readers go through `head` of space, view and range (the public structs of strata/fast.h) under
 * RCU. A commit builds a plan per changed view and publishes it by storing the radix root.
 *
 * Invariants of a view between commits: (1) ranges are sorted, disjoint, non-empty, and maximal;
 * (2) the radix maps exactly their bytes; (3) each range is in its region's list and holds a
 * reference on the region.
 * Locks: the handle's for everything but the heads.
 */
#ifndef STRATA_MEMORY_VIEW_H
#define STRATA_MEMORY_VIEW_H

#include "memory/region.h"
#include "strata/address_space.h"
#include "strata/fast.h"

/* A piece of a rendering, and what a range is made of. */
struct memory_piece {
    uint64_t start, last;
    struct strata_region *region;
    uint64_t offset;        /* in the region, of `start` */
    bool readonly;          /* by region or path */
    bool nonvolatile;
    bool unmergeable;
    bool romd;
    uint8_t log_mask;
};

struct memory_range {
    struct strata_fast_range head;
    struct memory_piece piece;    /* log_mask: atomic */
    struct itree_node node;       /* in view->ranges */
    struct list region_node;      /* in region->ranges */
    struct memory_view *view;
    struct memory_events *events; /* as last told to listeners */
    struct memory_range *plan_next;
    struct memory_retired retired;
};

struct memory_window {
    uint64_t start, last;
};

struct memory_plan;

struct memory_view {
    struct strata_fast_view head;
    struct strata_memory *mem;
    struct strata_region *root;  /* canonical; null: shows nothing */
    struct itree ranges;
    size_t nranges;
    unsigned spaces;             /* how many show it */
    unsigned leaving, arriving;  /* of them, and new ones, in the commit being planned */
    struct memory_window *windows; /* to be rendered again */
    size_t nwindows, cap_windows;
    struct list dirty_node;      /* in mem->dirty_views */
    struct memory_plan *plan;    /* during a commit */
    struct memory_retired retired;
};

struct memory_account;
struct memory_waiter;

struct strata_space {
    struct strata_fast_space head; /* view: RCU */
    struct strata_memory *mem;
    char *name;
    struct strata_region *root;
    bool open_bus;               /* atomic */
    struct list node;            /* in mem->spaces */
    struct list root_node;       /* in root->spaces */
    struct list moved_node;      /* in mem->moved_spaces */
    bool listened;               /* some listener wants this space */
    bool listened_nop;
    struct memory_account *accounts; /* what listeners were told: see sum.h */
    size_t cap_accounts;
    struct memory_view *next_view; /* during a commit */
    uint64_t bounce_budget, bounce_used; /* atomic */
    pthread_mutex_t wait_lock;
    struct memory_waiter *waiters;
    struct memory_retired retired;
};

static inline struct memory_view *memory_space_view(const struct strata_space *space)
{
    return (struct memory_view *)space->head.view;
}

/* view.c */
struct memory_dispatch_plan;
must_check int memory_view_new(struct strata_memory *mem, struct strata_region *root,
                               struct memory_dispatch_plan *dispatch, struct memory_view **view);
void memory_view_drop(struct memory_view *view);
void memory_view_discard(struct memory_view *view);
must_check int memory_view_mark(struct memory_view *view, uint64_t start, uint64_t last);
void memory_view_sort_windows(struct memory_view *view);
void memory_view_clear_windows(struct memory_view *view);
struct strata_region *memory_canonical_root(struct strata_region *root);

/* range.c */
struct memory_range *memory_range_new(struct memory_view *view, const struct memory_piece *piece);
void memory_range_discard(struct memory_range *range);
void memory_range_retire(struct memory_range *range);
void memory_range_refresh(struct memory_range *range, uint8_t log_mask);
bool memory_piece_equal(const struct memory_piece *a, const struct memory_piece *b);
bool memory_piece_joins(const struct memory_piece *a, const struct memory_piece *b);
struct memory_range *memory_range_after(const struct memory_view *view, uint64_t addr);
void memory_range_section(const struct memory_range *range, struct strata_space *space,
                          struct strata_section *section);
unsigned memory_region_logs(const struct strata_region *region);

/* space.c */
void memory_space_suspect(struct strata_space *space);

#endif
