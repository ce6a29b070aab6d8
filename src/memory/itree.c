/* The interval index; see itree.h. Recursion is as deep as the treap: about 2.5 log2(n). */
#include "memory/itree.h"

#include <stdbool.h>
#include <stddef.h>

static bool is_less(const struct itree_node *a, const struct itree_node *b)
{
    return a->start != b->start ? a->start < b->start : (uintptr_t)a < (uintptr_t)b;
}

static void refresh(struct itree_node *t)
{
    uint64_t max = t->last;

    if (t->left && t->left->max_last > max) {
        max = t->left->max_last;
    }
    if (t->right && t->right->max_last > max) {
        max = t->right->max_last;
    }
    t->max_last = max;
}

static void split(struct itree_node *t, const struct itree_node *at, struct itree_node **low,
                  struct itree_node **high)
{
    if (!t) {
        *low = *high = NULL;
    } else if (is_less(t, at)) {
        split(t->right, at, &t->right, high);
        refresh(t);
        *low = t;
    } else {
        split(t->left, at, low, &t->left);
        refresh(t);
        *high = t;
    }
}

static struct itree_node *merge(struct itree_node *low, struct itree_node *high)
{
    if (!low || !high) {
        return low ? low : high;
    }
    if (low->heap > high->heap) {
        low->right = merge(low->right, high);
        refresh(low);
        return low;
    }
    high->left = merge(low, high->left);
    refresh(high);
    return high;
}

static struct itree_node *insert(struct itree_node *t, struct itree_node *node)
{
    if (!t || node->heap > t->heap) {
        split(t, node, &node->left, &node->right);
        refresh(node);
        return node;
    }
    if (is_less(node, t)) {
        t->left = insert(t->left, node);
    } else {
        t->right = insert(t->right, node);
    }
    refresh(t);
    return t;
}

static struct itree_node *remove_from(struct itree_node *t, struct itree_node *node)
{
    if (!t) {
        return NULL;
    }
    if (t == node) {
        return merge(t->left, t->right);
    }
    if (is_less(node, t)) {
        t->left = remove_from(t->left, node);
    } else {
        t->right = remove_from(t->right, node);
    }
    refresh(t);
    return t;
}

/*
 * Put a node in. The caller has set start, last (>= start) and heap; the links are overwritten.
 * Source: own.
 */
void memory_itree_insert(struct itree *tree, struct itree_node *node)
{
    tree->root = insert(tree->root, node);
}

/* Take a node out; nothing happens when it is not in. Its start must be what it was put in with. */
void memory_itree_remove(struct itree *tree, struct itree_node *node)
{
    tree->root = remove_from(tree->root, node);
    node->left = node->right = NULL;
}

/*
 * The node with the lowest start among those whose last >= addr: for disjoint intervals, the one
 * that holds addr, else the next above it. Null: none.
 */
struct itree_node *memory_itree_after(const struct itree *tree, uint64_t addr)
{
    struct itree_node *t = tree->root;

    while (t && t->max_last >= addr) {
        if (t->left && t->left->max_last >= addr) {
            t = t->left;
        } else if (t->last >= addr) {
            return t;
        } else {
            t = t->right;
        }
    }
    return NULL;
}

struct itree_node *memory_itree_first(const struct itree *tree)
{
    struct itree_node *t = tree->root;

    while (t && t->left) {
        t = t->left;
    }
    return t;
}

static int visit(struct itree_node *t, const struct itree_node *window,
                 int (*fn)(void *, struct itree_node *), void *opaque)
{
    int ret = 0;

    if (!t || t->max_last < window->start) {
        return 0;
    }
    ret = visit(t->left, window, fn, opaque);
    if (ret || t->start > window->last) {
        return ret;
    }
    if (t->last >= window->start) {
        ret = fn(opaque, t);
    }
    return ret ? ret : visit(t->right, window, fn, opaque);
}

/*
 * Call fn for each node that intersects [start, last], in order of start, until it returns nonzero;
 * returns what the last call returned. fn must not change the tree.
 */
int memory_itree_visit(const struct itree *tree, uint64_t start, uint64_t last,
                       int (*fn)(void *opaque, struct itree_node *node), void *opaque)
{
    struct itree_node window = {.start = start, .last = last};

    return visit(tree->root, &window, fn, opaque);
}
