/*
 * Deltas: what a listener of one space is told. A space that stays on its view shares the view's
 * delta; one that changes its view gets the difference of the two views, by merging them.
 */
#include <stdlib.h>
#include <string.h>

#include "memory/events.h"
#include "memory/plan.h"

/* Append a range. 0 or -ENOMEM. */
int memory_delta_add(struct strata_memory *mem, struct memory_ranges *ranges,
                     struct memory_range *range)
{
    int err = memory_grow(mem, &ranges->item, &ranges->cap, ranges->count + 1,
                          sizeof(struct memory_range *));

    if (!err) {
        ranges->item[ranges->count++] = range;
    }
    return err;
}

/* Append an unchanged range. 0 or -ENOMEM. */
int memory_delta_keep(struct strata_memory *mem, struct memory_delta *delta,
                      const struct memory_kept *kept)
{
    int err = memory_grow(mem, &delta->kept, &delta->cap_kept, delta->nkept + 1, sizeof(*kept));

    if (!err) {
        delta->kept[delta->nkept++] = *kept;
    }
    return err;
}

/* Free the arrays; the ranges are others'. */
void memory_delta_fini(struct strata_memory *mem, struct memory_delta *delta)
{
    memory_free(mem, delta->removed.item, delta->removed.cap * sizeof(struct memory_range *));
    memory_free(mem, delta->added.item, delta->added.cap * sizeof(struct memory_range *));
    memory_free(mem, delta->kept, delta->cap_kept * sizeof(*delta->kept));
    *delta = (struct memory_delta){0};
}

/* All ranges a view has now, or will have once its plan is in force. */
struct listing {
    struct strata_memory *mem;
    struct memory_ranges *out;
    const struct memory_delta *plan; /* null: as it is */
    size_t removed, added;           /* of the plan, dealt with */
};

static int list_range(void *opaque, struct itree_node *node)
{
    struct listing *l = opaque;
    struct memory_range *range = container_of(node, struct memory_range, node);
    int err = 0;

    while (!err && l->plan && l->added < l->plan->added.count &&
           l->plan->added.item[l->added]->head.start < range->head.start) {
        err = memory_delta_add(l->mem, l->out, l->plan->added.item[l->added++]);
    }
    if (l->plan && l->removed < l->plan->removed.count &&
        l->plan->removed.item[l->removed] == range) {
        l->removed++;
        return err;
    }
    return err ? err : memory_delta_add(l->mem, l->out, range);
}

static int list_view(struct strata_memory *mem, const struct memory_view *view, bool planned,
                     struct memory_ranges *out)
{
    struct listing l = {mem, out, planned && view->plan ? &view->plan->delta : NULL, 0, 0};
    int err = memory_itree_visit(&view->ranges, 0, UINT64_MAX, list_range, &l);

    while (!err && l.plan && l.added < l.plan->added.count) {
        err = memory_delta_add(mem, out, l.plan->added.item[l.added++]);
    }
    return err;
}

static int diff_lists(struct strata_memory *mem, const struct memory_ranges *was,
                      const struct memory_ranges *is, struct memory_delta *delta)
{
    size_t i = 0, j = 0;
    int err = 0;

    while (!err && (i < was->count || j < is->count)) {
        struct memory_range *a = i < was->count ? was->item[i] : NULL;
        struct memory_range *b = j < is->count ? is->item[j] : NULL;

        if (a && b && memory_piece_equal(&a->piece, &b->piece)) {
            struct memory_kept kept = {a, b, a->piece.log_mask,
                                       (uint8_t)memory_region_logs(b->piece.region)};

            err = memory_delta_keep(mem, delta, &kept);
            i++, j++;
        } else if (a && (!b || a->head.start <= b->head.start)) {
            err = memory_delta_add(mem, &delta->removed, a);
            i++;
        } else {
            err = memory_delta_add(mem, &delta->added, b);
            j++;
        }
    }
    return err;
}

/*
 * The difference between a view as it is and another (or the same) as planned, with every unchanged
 * range listed. Returns 0 or -ENOMEM. Lock: held. Cost: the sizes of both views.
 */
int memory_delta_between(struct strata_memory *mem, const struct memory_view *from,
                         const struct memory_view *to, struct memory_delta *delta)
{
    struct memory_ranges was = {0}, is = {0};
    int err = list_view(mem, from, false, &was);

    err = err ? err : list_view(mem, to, true, &is);
    err = err ? err : diff_lists(mem, &was, &is, delta);
    memory_free(mem, was.item, was.cap * sizeof(struct memory_range *));
    memory_free(mem, is.item, is.cap * sizeof(struct memory_range *));
    return err;
}

/* An eventfd at its absolute place; false when a range shows none of it. */
bool memory_event_place(const struct memory_range *range, const struct strata_eventfd *ev,
                        struct strata_eventfd *placed)
{
    const struct memory_piece *p = &range->piece;
    i128 start = (i128)ev->addr - p->offset + p->start;
    bool shows = (start >= p->start && start <= p->last) ||
                 ((i128)p->start >= start && (i128)p->start < start + ev->size);

    if (shows && start >= 0) {
        *placed = *ev;
        placed->addr = (uint64_t)start;
        return true;
    }
    return false;
}

static int events_gather(struct strata_memory *mem, const struct memory_range *range,
                         const struct memory_events *events, struct memory_event_delta *out,
                         bool old)
{
    struct strata_eventfd **list = old ? &out->old : &out->now;
    size_t *n = old ? &out->nold : &out->nnow, *cap = old ? &out->cap_old : &out->cap_now;
    struct strata_eventfd placed;
    int err = 0;

    for (unsigned i = 0; events && i < events->count && !err; i++) {
        if (!memory_event_place(range, &events->item[i], &placed)) {
            continue;
        }
        err = memory_grow(mem, list, cap, *n + 1, sizeof(**list));
        if (!err) {
            (*list)[(*n)++] = placed;
        }
    }
    return err;
}

static int by_event(const void *a, const void *b)
{
    return memory_event_compare(a, b);
}

/*
 * The eventfds that a delta's ranges told listeners of, and those they should have told them of;
 * both sorted, the difference is what changes. Returns 0 or -ENOMEM. Lock: held.
 */
int memory_delta_events(struct strata_memory *mem, const struct memory_delta *d,
                        struct memory_event_delta *out)
{
    int err = 0;

    for (size_t i = 0; i < d->removed.count && !err; i++) {
        err = events_gather(mem, d->removed.item[i], d->removed.item[i]->events, out, true);
    }
    for (size_t i = 0; i < d->added.count && !err; i++) {
        err = events_gather(mem, d->added.item[i], d->added.item[i]->piece.region->events, out,
                            false);
    }
    for (size_t i = 0; i < d->nkept && !err; i++) {
        struct memory_range *was = d->kept[i].was;
        struct memory_events *now = was->piece.region->events;

        if (was->events != now) {
            err = events_gather(mem, was, was->events, out, true);
            err = err ? err : events_gather(mem, was, now, out, false);
        }
    }
    if (out->nold > 1) {
        qsort(out->old, out->nold, sizeof(*out->old), by_event);
    }
    if (out->nnow > 1) {
        qsort(out->now, out->nnow, sizeof(*out->now), by_event);
    }
    return err;
}

/* Free the lists. */
void memory_event_delta_fini(struct strata_memory *mem, struct memory_event_delta *events)
{
    memory_free(mem, events->old, events->cap_old * sizeof(*events->old));
    memory_free(mem, events->now, events->cap_now * sizeof(*events->now));
    *events = (struct memory_event_delta){0};
}
