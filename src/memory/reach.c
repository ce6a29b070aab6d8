/*
 * From a region up to the views that show it: which window of which view must be rendered again
 * when a part of the region changes. The way up leads from a region to its container, and to every
 * alias that shows it; each step moves the window and cuts it at the edge of what it comes to.
 *
 * Marking before a change and with the places it will have afterwards covers all that the change can
 * alter: see docs/flows/topology.md. Marking too much is only slow. Ancestors that are disabled show
 * nothing and end the way.
 *
 * Lock: the handle's, held by every function here. Source: own.
 */
#include "memory/region.h"

#include <errno.h>

#include "memory/view.h"

struct memory_climb {
    struct strata_region *region;
    uint64_t start, last; /* in the region's own offsets */
};

static int push(struct strata_memory *mem, size_t *n, struct strata_region *region, i128 start,
                i128 last)
{
    i128 end = region->size ? region->size - 1 : 0;
    int err;

    if (start < 0) {
        start = 0;
    }
    if (last > end) {
        last = end;
    }
    if (start > last) {
        return 0;
    }
    err = memory_grow(mem, &mem->climb, &mem->climb_cap, *n + 1, sizeof(*mem->climb));
    if (err) {
        return err;
    }
    mem->climb[(*n)++] = (struct memory_climb){region, (uint64_t)start, (uint64_t)last};
    return 0;
}

static bool passes_attributes(const struct strata_region *r)
{
    return r->readonly || r->nonvolatile || r->unmergeable;
}

/* Will the region go on being the canonical root of its view, whatever one change below it does? */
static bool stays_root(const struct strata_region *r)
{
    return r->view && !r->target && (r->terminates || r->nenabled >= 3);
}

/*
 * Is all that an alias of such a root leads up to a container of its own whose spaces show the root's
 * view (or wait for the commit already)? Then nothing there can change: a machine has hundreds of
 * these, one per bus-master device.
 */
static bool only_shares_view(const struct strata_region *alias, const struct strata_region *root)
{
    const struct strata_region *box = alias->container;

    return box && !alias->offset && alias->size >= root->size && !alias->addr &&
           alias->size <= box->size && box->enabled && !box->terminates && box->nenabled == 1 &&
           !box->container && !box->view && list_is_empty(&box->aliases) &&
           list_is_empty(&alias->aliases) && list_is_empty(&alias->spaces) &&
           !passes_attributes(alias) && !passes_attributes(box);
}

/* One region's window: its own view and spaces, then on to what shows it. changes: it is the region
 * that changes, not one above. */
static int climb_one(struct strata_memory *mem, size_t *n, struct memory_climb at, bool changes)
{
    struct strata_region *r = at.region;
    bool stays = !changes && stays_root(r);
    struct list *it;
    int err = 0;

    if (r->view) {
        err = memory_view_mark(r->view, at.start, at.last);
    }
    list_for_each(it, &r->spaces) {
        memory_space_suspect(list_entry(it, struct strata_space, root_node));
    }
    if (!err && r->container) {
        i128 end = r->container->size ? r->container->size - 1 : 0;
        i128 start = (i128)at.start + r->addr;

        /* Never lost at the edge: a child that does not show still counts for the root. */
        err = push(mem, n, r->container, start < end ? start : end, (i128)at.last + r->addr);
    }
    list_for_each(it, &r->aliases) {
        struct strata_region *alias = list_entry(it, struct strata_region, alias_node);

        if (err) {
            break;
        }
        if (alias->enabled && !(stays && only_shares_view(alias, r))) {
            err = push(mem, n, alias, (i128)at.start - alias->offset,
                       (i128)at.last - alias->offset);
        }
    }
    return err;
}

/* What lies beyond the region's end shows nothing, but may count for which root its spaces have: the
 * way up is gone all the same, from the region's last byte. */
static int climb(struct strata_region *region, uint64_t start, uint64_t last, bool changes)
{
    struct strata_memory *mem = region->mem;
    uint64_t end = region->size ? memory_region_last(region) : 0;
    struct memory_climb at = {region, start < end ? start : end, last < end ? last : end};
    size_t n = 0;
    int err = climb_one(mem, &n, at, changes);

    while (!err && n > 0) {
        at = mem->climb[--n];
        if (at.region->enabled) {
            err = climb_one(mem, &n, at, false);
        }
    }
    return err;
}

/*
 * Mark what shows [start, last] of a region that changes, whatever its own enabled flag. start, last:
 * offsets in the region. Returns 0 or -ENOMEM; marks already made stay, which is harmless.
 */
int memory_reach_mark(struct strata_region *region, uint64_t start, uint64_t last)
{
    return climb(region, start, last, true);
}

/* The same for the whole region; an empty one still has its spaces looked at. */
int memory_reach_mark_all(struct strata_region *region)
{
    return memory_reach_mark(region, 0, region->size ? memory_region_last(region) : 0);
}

/* Mark what shows [addr, addr + size) of a container: where a child is, was, or will be. */
int memory_reach_mark_child(struct strata_region *parent, uint64_t addr, i128 size)
{
    i128 last = (i128)addr + size - 1;

    if (last >= parent->size) {
        last = parent->size - 1;
    }
    if (last < (i128)addr) { /* shows nothing, but counts as a child: spaces may share otherwise */
        last = addr;
    }
    return parent->enabled ? climb(parent, addr, (uint64_t)last, false) : 0;
}


/* Free the scratch. */
void memory_reach_fini(struct strata_memory *mem)
{
    memory_free(mem, mem->climb, mem->climb_cap * sizeof(*mem->climb));
}

/*
 * Would a container `from`, given `what` as a child, contain or show itself? True when `what` is
 * `from`, or one of the regions that contain or show it.
 * Every region that the way up meets is looked at once, chained by undo_next.
 */
bool memory_reach_search(struct strata_region *from, const struct strata_region *what)
{
    struct strata_region *end = from, *r;
    struct list *it;
    bool found = false;

    from->undo_next = from; /* the last of the chain names itself; null: not yet seen */
    for (r = from; r; r = r->undo_next == r ? NULL : r->undo_next) {
        struct strata_region *up = r->container;

        if (r == what) {
            found = true;
            break;
        }
        if (up && !up->undo_next) {
            end->undo_next = up;
            end = up->undo_next = up;
        }
        list_for_each(it, &r->aliases) {
            up = list_entry(it, struct strata_region, alias_node);
            if (!up->undo_next) {
                end->undo_next = up;
                end = up->undo_next = up;
            }
        }
    }
    for (r = from; r;) {
        struct strata_region *next = r->undo_next == r ? NULL : r->undo_next;

        r->undo_next = NULL;
        r = next;
    }
    return found;
}
