/*
 * An ordered index of intervals [start, last] of 64-bit addresses: children of a container (which
 * may overlap) and flat ranges of a view (which do not). A treap, intrusive, so that a change of the
 * topology needs no allocation; each node knows the greatest `last` below it.
 *
 * Invariants: (1) in-order by (start, address of the node); (2) heap-ordered by `heap`, which the
 * caller fills with random bits; (3) max_last is the maximum over the subtree.
 * Locks: the owner's. Readers without a lock use the dispatch radix instead.
 */
#ifndef STRATA_MEMORY_ITREE_H
#define STRATA_MEMORY_ITREE_H

#include <stdint.h>

struct itree_node {
    struct itree_node *left, *right;
    uint64_t start, last, max_last;
    uint32_t heap;
};

struct itree {
    struct itree_node *root;
};

void memory_itree_insert(struct itree *tree, struct itree_node *node);
void memory_itree_remove(struct itree *tree, struct itree_node *node);
struct itree_node *memory_itree_after(const struct itree *tree, uint64_t addr);
struct itree_node *memory_itree_first(const struct itree *tree);
int memory_itree_visit(const struct itree *tree, uint64_t start, uint64_t last,
                       int (*fn)(void *opaque, struct itree_node *node), void *opaque);

#endif
