/*
 * Views: canonical roots, making a whole view, dropping one, and the windows that wait for the next
 * commit. Changes of an existing view are plan.c's.
 */
#include <stdlib.h>

#include "memory/dispatch.h"
#include "memory/render.h"
#include "memory/view.h"

/* The only enabled child, at 0 and not sticking out; null when it is not so. */
static struct strata_region *only_child(const struct strata_region *region)
{
    struct strata_region *child = (struct strata_region *)region->enabled_xor;

    return region->nenabled == 1 && child->addr == 0 && child->size <= region->size ? child : NULL;
}

/*
 * The region whose view a root's view is, or null when it shows nothing: an alias that covers its
 * target from 0, and a pure container whose only enabled child sits at 0 and fits, show just what is
 * below them. Lock: held. Source: QEMU memory_region_get_flatview_root().
 * Differs: a region that passes attributes down is not skipped, so none is lost.
 */
struct strata_region *memory_canonical_root(struct strata_region *root)
{
    while (root && root->enabled) {
        struct strata_region *next = NULL;

        if (root->target) {
            next = !root->offset && root->size >= root->target->size ? root->target : NULL;
        } else if (!root->terminates) {
            if (!root->nenabled) {
                return NULL;
            }
            next = only_child(root);
        }
        if (!next || root->readonly || root->nonvolatile || root->unmergeable) {
            return root;
        }
        root = next;
    }
    return NULL;
}

static int view_fill(struct memory_view *view, struct memory_dispatch_plan *dispatch,
                     const struct memory_pieces *pieces)
{
    uintptr_t root = 0;

    for (size_t i = 0; i < pieces->count; i++) {
        const struct memory_piece *piece = &pieces->item[i];
        struct memory_range *range = memory_range_new(view, piece);

        if (!range) {
            return memory_fail_alloc(view->mem);
        }
        memory_itree_insert(&view->ranges, &range->node);
        list_add_tail(&piece->region->ranges, &range->region_node);
        view->nranges++;
        root = memory_dispatch_set(dispatch, root,
                                   &(struct memory_window){piece->start, piece->last}, range);
    }
    if (!dispatch->err) {
        view->head.root = root;
    }
    return dispatch->err;
}

/*
 * Make the whole view of a canonical root (null: the empty view) and note it at the root. Its radix
 * is part of `dispatch`. Returns 0 or -ENOMEM. Lock: held.
 */
int memory_view_new(struct strata_memory *mem, struct strata_region *root,
                    struct memory_dispatch_plan *dispatch, struct memory_view **view)
{
    struct memory_pieces pieces = {.mem = mem};
    struct memory_view *v = memory_zalloc(mem, sizeof(*v));
    int err;

    if (!v) {
        return memory_fail_alloc(mem);
    }
    v->mem = mem;
    v->root = root;
    list_init(&v->dirty_node);
    err = memory_render(root, 0, UINT64_MAX, &pieces);
    if (!err && root) {
        err = view_fill(v, dispatch, &pieces);
    }
    memory_pieces_fini(&pieces);
    if (err) {
        v->head.root = 0; /* its nodes go with the dispatch plan */
        memory_view_discard(v);
        return err;
    }
    if (root) {
        root->view = v;
    }
    *view = v;
    return 0;
}

/* Take every range out of its region's list and free it; how is `let_go`. */
static void ranges_remove(struct memory_view *view, void (*let_go)(struct memory_range *range))
{
    struct itree_node *node;

    while ((node = view->ranges.root)) {
        struct memory_range *range = container_of(node, struct memory_range, node);

        memory_itree_remove(&view->ranges, node);
        list_del(&range->region_node);
        let_go(range);
    }
    view->nranges = 0;
}

static void view_unlink(struct memory_view *view)
{
    list_del(&view->dirty_node);
    memory_free(view->mem, view->windows, view->cap_windows * sizeof(*view->windows));
    view->windows = NULL;
    view->nwindows = view->cap_windows = 0;
    if (view->root && view->root->view == view) {
        view->root->view = NULL;
    }
}

/* Free a view that no reader has seen; its radix belongs to a plan that is dropped. Lock: held. */
void memory_view_discard(struct memory_view *view)
{
    view_unlink(view);
    ranges_remove(view, memory_range_discard);
    memory_free(view->mem, view, sizeof(*view));
}

static void view_free(struct strata_memory *mem, struct memory_retired *retired)
{
    struct memory_view *view = container_of(retired, struct memory_view, retired);

    memory_dispatch_free(mem, view->head.root);
    memory_free(mem, view, sizeof(*view));
}

/* Let go of a view that no space shows any more; its ranges and radix go after a grace period.
 * Lock: held. */
void memory_view_drop(struct memory_view *view)
{
    view_unlink(view);
    ranges_remove(view, memory_range_retire);
    memory_retire(view->mem, &view->retired, view_free);
}

static int by_start(const void *pa, const void *pb)
{
    const struct memory_window *a = pa, *b = pb;

    return a->start < b->start ? -1 : a->start > b->start;
}

/* Sort the windows and join those that overlap or touch. Lock: held. */
void memory_view_sort_windows(struct memory_view *view)
{
    size_t n = 0;

    if (view->nwindows < 2) {
        return;
    }
    qsort(view->windows, view->nwindows, sizeof(*view->windows), by_start);
    for (size_t i = 1; i < view->nwindows; i++) {
        struct memory_window *kept = &view->windows[n], *w = &view->windows[i];

        if (kept->last == UINT64_MAX || w->start <= kept->last + 1) {
            kept->last = w->last > kept->last ? w->last : kept->last;
        } else {
            view->windows[++n] = *w;
        }
    }
    view->nwindows = n + 1;
}

/* Note that [start, last] of a view must be rendered at the next commit. 0 or -ENOMEM. Lock: held. */
int memory_view_mark(struct memory_view *view, uint64_t start, uint64_t last)
{
    struct memory_window *w = view->nwindows ? &view->windows[view->nwindows - 1] : NULL;
    int err;

    if (w && start >= w->start && last <= w->last) {
        return 0;
    }
    if (view->nwindows == view->cap_windows && view->nwindows >= 64) {
        memory_view_sort_windows(view);
    }
    err = memory_grow(view->mem, &view->windows, &view->cap_windows, view->nwindows + 1,
                      sizeof(*view->windows));
    if (err) {
        return err;
    }
    view->windows[view->nwindows++] = (struct memory_window){start, last};
    if (list_is_empty(&view->dirty_node)) {
        list_add_tail(&view->mem->dirty_views, &view->dirty_node);
    }
    return 0;
}

/* The windows have been dealt with. Lock: held. */
void memory_view_clear_windows(struct memory_view *view)
{
    view->nwindows = 0;
    list_del(&view->dirty_node);
}
