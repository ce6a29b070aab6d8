/*
 * The plan for one view: splice newly rendered windows into what is there.
 *
 * Windows are dealt with in groups; a group's windows touch the same old ranges, so that what stays
 * of a range to the left, between and to the right of them can be put together with what is new:
 *
 *   old      |-----P-----|      |--Q--|------S------|
 *   windows        [......]        [.....]
 *   pieces   |--P--|new|..|      |Q|new..|----S-----|     then neighbours that may be one are joined
 *
 * Pieces equal to an old range keep that range; the rest of the old leaves, the rest of the pieces
 * come. A window edge inside or at a range that must not be merged is moved to that range's edge,
 * because whether its parts are one range can only be told by rendering it whole.
 *
 * Source: own. Invariant: the result is what rendering the whole view would give.
 */
#include "memory/plan.h"

#include "memory/events.h"

struct splice {
    struct memory_commit *commit;
    struct memory_plan *plan;
    struct memory_view *view;
    struct memory_pieces pieces; /* of the group */
    struct memory_ranges old;    /* of the group */
};

/* Append, joining with what is there when the two could be one range. */
static int splice_piece(struct splice *s, const struct memory_piece *piece)
{
    struct memory_pieces *out = &s->pieces;

    if (out->count && memory_piece_joins(&out->item[out->count - 1], piece)) {
        out->item[out->count - 1].last = piece->last;
        return 0;
    }
    return memory_pieces_add(out, piece);
}

/* The part of an old range that lies in [start, last], with its present log mask. */
static int splice_old(struct splice *s, const struct memory_range *range, uint64_t start,
                      uint64_t last)
{
    struct memory_piece piece = range->piece;

    if (piece.start < start) {
        piece.offset += start - piece.start;
        piece.start = start;
    }
    if (piece.last > last) {
        piece.last = last;
    }
    piece.log_mask = (uint8_t)memory_region_logs(piece.region);
    return splice_piece(s, &piece);
}

static int splice_window(struct splice *s, const struct memory_window *w)
{
    struct memory_pieces now = {.mem = s->view->mem};
    int err = memory_render(s->view->root, w->start, w->last, &now);

    for (size_t i = 0; i < now.count && !err; i++) {
        err = splice_piece(s, &now.item[i]);
    }
    memory_pieces_fini(&now);
    return err;
}

/* Move a window's edges out of ranges that must not be merged. */
static void window_widen(const struct memory_view *view, struct memory_window *w)
{
    uint64_t edge = w->last == UINT64_MAX ? UINT64_MAX : w->last + 1;
    const struct memory_range *range = memory_range_after(view, w->start ? w->start - 1 : 0);

    if (range && range->piece.unmergeable && range->head.start < w->start) {
        w->start = range->head.start;
    }
    range = memory_range_after(view, edge);
    if (range && range->piece.unmergeable && range->head.start <= edge &&
        range->head.last > w->last) {
        w->last = range->head.last;
    }
}

/* Collect the old ranges that intersect or touch a window; `from`: the lowest address not yet seen. */
static int old_collect(struct splice *s, const struct memory_window *w, uint64_t *from, bool *any)
{
    uint64_t at = w->start ? w->start - 1 : 0;
    uint64_t edge = w->last == UINT64_MAX ? UINT64_MAX : w->last + 1;
    struct memory_range *range;
    int err = 0;

    if (s->old.count && s->old.item[s->old.count - 1]->head.last == UINT64_MAX) {
        return 0; /* the highest range there can be is collected */
    }
    if (*any && at < *from) {
        at = *from;
    }
    while (!err && (range = memory_range_after(s->view, at)) && range->head.start <= edge) {
        err = memory_delta_add(s->view->mem, &s->old, range);
        *any = true;
        if (range->head.last == UINT64_MAX) {
            *from = UINT64_MAX;
            break;
        }
        at = *from = range->head.last + 1;
    }
    return err;
}

/* Put together the pieces of windows[first..n) of a group. */
static int group_pieces(struct splice *s, const struct memory_window *w, size_t n)
{
    struct memory_range *low = s->old.count ? s->old.item[0] : NULL;
    struct memory_range *high = s->old.count ? s->old.item[s->old.count - 1] : NULL;
    int err = 0;

    if (low && low->head.start < w[0].start) {
        err = splice_old(s, low, 0, w[0].start - 1);
    }
    for (size_t i = 0; i < n && !err; i++) {
        err = splice_window(s, &w[i]);
        if (!err && i + 1 < n) {
            struct memory_range *mid = memory_range_after(s->view, w[i].last + 1);

            if (mid && mid->head.start < w[i + 1].start) {
                err = splice_old(s, mid, w[i].last + 1, w[i + 1].start - 1);
            }
        }
    }
    if (!err && high && w[n - 1].last < high->head.last) {
        err = splice_old(s, high, w[n - 1].last + 1, UINT64_MAX);
    }
    return err;
}

static int group_keep(struct splice *s, struct memory_range *range, uint8_t mask)
{
    struct memory_kept kept = {range, range, range->piece.log_mask, mask};

    return memory_delta_keep(s->view->mem, &s->plan->delta, &kept);
}

static int group_add(struct splice *s, const struct memory_piece *piece)
{
    struct memory_range *range = memory_range_new(s->view, piece);
    int err;

    if (!range) {
        return memory_fail_alloc(s->view->mem);
    }
    err = memory_delta_add(s->view->mem, &s->plan->delta.added, range);
    if (err) {
        memory_range_discard(range);
    }
    return err;
}

/* Compare the group's pieces with its old ranges, both in address order. */
static int group_diff(struct splice *s)
{
    size_t i = 0, j = 0;
    int err = 0;

    while (!err && (i < s->old.count || j < s->pieces.count)) {
        struct memory_range *range = i < s->old.count ? s->old.item[i] : NULL;
        struct memory_piece *piece = j < s->pieces.count ? &s->pieces.item[j] : NULL;

        if (range && piece && memory_piece_equal(&range->piece, piece)) {
            err = group_keep(s, range, piece->log_mask);
            i++, j++;
        } else if (range && (!piece || range->head.start <= piece->start)) {
            err = memory_delta_add(s->view->mem, &s->plan->delta.removed, range);
            i++;
        } else {
            err = group_add(s, piece);
            j++;
        }
    }
    return err;
}

/* Take as many windows as touch the same old ranges, and deal with them; returns how many. */
static int group_next(struct splice *s, const struct memory_window *w, size_t n, size_t *taken)
{
    uint64_t from = 0;
    bool any = false;
    int err;

    s->pieces.count = s->old.count = 0;
    err = old_collect(s, &w[0], &from, &any);
    *taken = 1;
    while (!err && *taken < n && any && w[*taken].start <= from) {
        err = old_collect(s, &w[*taken], &from, &any);
        (*taken)++;
    }
    err = err ? err : group_pieces(s, w, *taken);
    return err ? err : group_diff(s);
}

static int plan_dispatch(struct memory_commit *commit, struct memory_plan *plan)
{
    struct memory_delta *d = &plan->delta;
    uintptr_t root = plan->view->head.root;

    for (size_t i = 0; i < d->removed.count; i++) {
        const struct strata_fast_range *r = &d->removed.item[i]->head;

        root = memory_dispatch_set(&commit->dispatch, root,
                                   &(struct memory_window){r->start, r->last}, NULL);
    }
    for (size_t i = 0; i < d->added.count; i++) {
        struct memory_range *r = d->added.item[i];

        root = memory_dispatch_set(&commit->dispatch, root,
                                   &(struct memory_window){r->head.start, r->head.last}, r);
    }
    plan->root = root;
    return commit->dispatch.err;
}

/*
 * Work out what the windows of a view come to, and chain the plan into the commit and to the view.
 * Returns 0 or -ENOMEM; in both cases the commit owns what was made.
 */
int memory_plan_view(struct memory_commit *commit, struct memory_view *view)
{
    struct memory_plan *plan = memory_zalloc(commit->mem, sizeof(*plan));
    struct splice s = {.commit = commit, .plan = plan, .view = view, .pieces.mem = commit->mem};
    int err = 0;

    if (!plan) {
        return memory_fail_alloc(commit->mem);
    }
    plan->view = view;
    plan->next = commit->plans;
    commit->plans = plan;
    view->plan = plan;
    memory_view_sort_windows(view);
    TRACE(&commit->mem->trace, topology_render, "%llu windows of %llu ranges", view->nwindows,
          view->nranges);
    for (size_t i = 0; i < view->nwindows; i++) {
        window_widen(view, &view->windows[i]);
    }
    memory_view_sort_windows(view);
    for (size_t i = 0, taken; i < view->nwindows && !err; i += taken) {
        err = group_next(&s, &view->windows[i], view->nwindows - i, &taken);
    }
    memory_pieces_fini(&s.pieces);
    memory_free(commit->mem, s.old.item, s.old.cap * sizeof(*s.old.item));
    return err ? err : plan_dispatch(commit, plan);
}

/* Put a plan into force: one store for readers, then the writers' index. Once per plan. */
void memory_plan_publish(struct memory_plan *plan)
{
    struct memory_view *view = plan->view;
    struct memory_delta *d = &plan->delta;

    if (plan->published) {
        return;
    }
    plan->published = true;
    TRACE(&view->mem->trace, topology_publish, "%llu ranges out, %llu in", d->removed.count, d->added.count);
    base_rcu_publish(&view->head.root, plan->root);
    for (size_t i = 0; i < d->removed.count; i++) {
        memory_itree_remove(&view->ranges, &d->removed.item[i]->node);
        list_del(&d->removed.item[i]->region_node);
    }
    for (size_t i = 0; i < d->added.count; i++) {
        struct memory_range *range = d->added.item[i];

        memory_itree_insert(&view->ranges, &range->node);
        list_add_tail(&range->piece.region->ranges, &range->region_node);
    }
    view->nranges += d->added.count - d->removed.count;
    for (size_t i = 0; i < d->nkept; i++) {
        memory_range_refresh(d->kept[i].is, d->kept[i].new_mask);
    }
}

/* The commit is over: free the plan; discard: it never came into force. */
void memory_plan_free(struct strata_memory *mem, struct memory_plan *plan, bool discard)
{
    struct memory_delta *d = &plan->delta;

    for (size_t i = 0; discard && i < d->added.count; i++) {
        memory_range_discard(d->added.item[i]);
    }
    for (size_t i = 0; !discard && i < d->removed.count; i++) {
        memory_range_retire(d->removed.item[i]);
    }
    for (size_t i = 0; !discard && i < d->nkept; i++) {
        struct memory_range *range = d->kept[i].is;

        if (range->events != range->piece.region->events) {
            memory_events_put(mem, range->events);
            range->events = memory_events_get(range->piece.region->events);
        }
    }
    plan->view->plan = NULL;
    memory_delta_fini(mem, d);
    memory_free(mem, plan, sizeof(*plan));
}
