/*
 * The dispatch radix: from an address to its flat range in a few dependent loads, without a lock.
 *
 * Levels, by address bits:   63..57  56..48  47..39  38..30  29..21  20..12  11..3  2..0
 *                  slots:      128     512     512     512     512     512    512     8
 *
 * The lower two are the sub-page tables: a page that one range does not fill. A slot whose whole span
 * one range fills holds that range at once, and a node that would have a single node below it is
 * left out (the child says itself which span it covers).
 *
 * Persistent: a node that readers may see is never written. A plan copies the nodes on the way to a
 * change once (nodes made under the plan's stamp are its own to write) and gets a new root entry;
 * publishing it is one store, dropping it frees what it made.
 *
 * Invariants: (1) an entry is 0, a range that covers the slot's whole span, or a node with bit 0 set
 * whose span lies in the slot's; (2) `used` counts the slots that are not 0, and is >= 1; (3) no node
 * has one node as its only entry, or one range in all slots.
 * Locks: the handle's for building; RCU for reading.
 */
#ifndef STRATA_MEMORY_DISPATCH_H
#define STRATA_MEMORY_DISPATCH_H

#include "memory/view.h"

struct memory_node {
    struct memory_retired retired;
    struct memory_node *next; /* in the plan that made or dropped it, or in the cache */
    uint64_t stamp;
    uint16_t used;
    uint8_t level;
    bool dropped;             /* made and dropped by the same plan */
    struct strata_fast_node head; /* ends in the slots */
};

/* Changes to radixes that are published or dropped together. */
struct memory_dispatch_plan {
    struct strata_memory *mem;
    uint64_t stamp;
    struct memory_node *made;
    struct memory_node *gone;
    int err;
};

void memory_dispatch_begin(struct strata_memory *mem, struct memory_dispatch_plan *plan);
must_check uintptr_t memory_dispatch_set(struct memory_dispatch_plan *plan, uintptr_t root,
                                         const struct memory_window *span,
                                         const struct memory_range *range);
void memory_dispatch_publish(struct memory_dispatch_plan *plan);
void memory_dispatch_drop(struct memory_dispatch_plan *plan);
void memory_dispatch_free(struct strata_memory *mem, uintptr_t root);
void memory_dispatch_fini(struct strata_memory *mem);

static inline const struct memory_range *memory_dispatch_find(uintptr_t root, uint64_t addr)
{
    return (const struct memory_range *)strata_fast_find(root, addr);
}

static inline struct memory_node *memory_node_of(uintptr_t entry)
{
    return (struct memory_node *)(entry - 1 - offsetof(struct memory_node, head));
}

static inline uintptr_t memory_node_entry(const struct memory_node *node)
{
    return (uintptr_t)&node->head + 1;
}

#endif
