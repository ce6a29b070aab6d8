/*
 * The outermost commit. First everything is worked out (what each view and each listened space comes
 * to), which may fail; then listeners that want to be asked are; then, with nothing left that can
 * fail, all are told in QEMU's order and the views are published:
 *
 *   begin of all
 *   per space: delete pass, add pass, view published, eventfd differences
 *   apply of those who take change sets
 *   commit of all
 *
 * A change of eventfds alone is told without begin and commit.
 * Lock: the handle's, held. Source: QEMU memory_region_transaction_commit(), by rule.
 */
#include "memory/events.h"
#include "memory/journal.h"
#include "memory/notify.h"

/* Ranges that show a region with changed eventfds are looked at again, like windows. */
static int mark_events(struct strata_memory *mem)
{
    struct list *it, *jt;
    int err = 0;

    list_for_each(it, &mem->event_regions) {
        struct strata_region *region = list_entry(it, struct strata_region, event_node);

        list_for_each(jt, &region->ranges) {
            struct memory_range *range = list_entry(jt, struct memory_range, region_node);

            err = memory_view_mark(range->view, range->head.start, range->head.last);
            if (err) {
                return err;
            }
        }
    }
    return 0;
}

/* Where each space that may have moved goes. */
static int plan_moves(struct memory_commit *c)
{
    struct strata_memory *mem = c->mem;
    struct list *it, *tmp;
    int err = 0;

    list_for_each_safe(it, tmp, &mem->moved_spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, moved_node);
        struct strata_region *root = memory_canonical_root(space->root);
        struct memory_view *view = root ? root->view : mem->empty_view;

        if (!err && !view) {
            err = memory_view_new(mem, root, &c->dispatch, &view);
        }
        if (err) {
            break;
        }
        if (view != memory_space_view(space)) {
            space->next_view = view;
            view->arriving++;
            memory_space_view(space)->leaving++;
        }
    }
    return err;
}

static int plan_views(struct memory_commit *c)
{
    struct list *it, *tmp;
    int err = 0;

    list_for_each_safe(it, tmp, &c->mem->dirty_views) {
        struct memory_view *view = list_entry(it, struct memory_view, dirty_node);

        if (!err && view->nwindows && view->spaces + view->arriving > view->leaving) {
            err = memory_plan_view(c, view);
        }
    }
    return err;
}

static int plan_space(struct memory_commit *c, struct strata_space *space)
{
    struct strata_memory *mem = c->mem;
    struct memory_view *now = memory_space_view(space);
    struct memory_view *then = space->next_view ? space->next_view : now;
    struct memory_space_plan *sp;
    int err;

    if (then == now && (!then->plan || !space->listened)) {
        return 0; /* nothing changes, or nobody wants to hear of it */
    }
    err = memory_grow(mem, &c->spaces, &c->cap_spaces, c->nspaces + 1, sizeof(*c->spaces));
    if (err) {
        return err;
    }
    sp = &c->spaces[c->nspaces++];
    *sp = (struct memory_space_plan){.space = space, .view = then};
    if (!space->listened) {
        return 0;
    }
    if (then != now || (space->listened_nop && c->topology)) {
        err = memory_delta_between(mem, now, then, &sp->own);
    } else {
        sp->delta = &then->plan->delta;
    }
    if (!err) {
        err = memory_delta_events(mem, sp->delta ? sp->delta : &sp->own, &sp->events);
    }
    return err;
}

static int plan_spaces(struct memory_commit *c)
{
    struct list *it;
    int err = 0;

    list_for_each(it, &c->mem->spaces) {
        err = plan_space(c, list_entry(it, struct strata_space, node));
        if (err) {
            return err;
        }
    }
    for (size_t i = 0; i < c->nspaces; i++) { /* the array has stopped moving */
        c->spaces[i].delta = c->spaces[i].delta ? c->spaces[i].delta : &c->spaces[i].own;
    }
    return 0;
}

static int plan_sets(struct memory_commit *c)
{
    int err = 0;

    if (!c->topology || !memory_notify_wants_sets(c->mem)) {
        return 0;
    }
    c->sets = memory_zalloc(c->mem, (c->nspaces + 1) * sizeof(*c->sets));
    if (!c->sets) {
        return memory_fail_alloc(c->mem);
    }
    for (size_t i = 0; i < c->nspaces && !err; i++) {
        struct memory_space_plan *sp = &c->spaces[i];

        err = memory_changes_build(c->mem, sp);
        if (!err && sp->nchanges) {
            c->sets[c->nsets++] =
                (struct strata_change_set){sp->space, sp->changes, sp->nchanges};
        }
    }
    return err ? err : memory_notify_prepare(c->mem, c->sets, c->nsets);
}

/* A space changes its view: one store, and the old view may go. */
static void space_move(struct strata_space *space, struct memory_view *to)
{
    struct memory_view *from = memory_space_view(space);

    base_rcu_publish(&space->head.view, &to->head);
    TRACE(&space->mem->trace, topology_publish_space, "ranges of another view, %llu spaces share it", to->spaces);
    if (--from->spaces == 0 && from != space->mem->empty_view) {
        memory_view_drop(from);
    }
}

static void carry_out_space(struct memory_space_plan *sp, bool topology)
{
    struct strata_space *space = sp->space;

    if (topology && space->listened) {
        memory_notify_removed(space, sp->delta);
        memory_notify_added(space, sp->delta, space->listened_nop);
    }
    if (sp->view->plan) {
        memory_plan_publish(sp->view->plan);
    }
    if (sp->view != memory_space_view(space)) {
        space_move(space, sp->view);
    }
    memory_notify_events(space, &sp->events);
}

/* The counts that plan_moves() made. */
static void forget_moves(struct strata_memory *mem)
{
    struct list *it;

    list_for_each(it, &mem->moved_spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, moved_node);

        memory_space_view(space)->leaving = 0;
        if (space->next_view) {
            space->next_view->arriving = 0;
        }
    }
}

static void settle_pending(struct strata_memory *mem)
{
    struct list *it, *tmp;

    list_for_each_safe(it, tmp, &mem->dirty_views) {
        memory_view_clear_windows(list_entry(it, struct memory_view, dirty_node));
    }
    list_for_each_safe(it, tmp, &mem->moved_spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, moved_node);

        space->next_view = NULL;
        list_del(it);
    }
    list_for_each_safe(it, tmp, &mem->event_regions) {
        list_entry(it, struct strata_region, event_node)->events_pending = false;
        list_del(it);
    }
}

/* Views made for a commit that did not happen. */
static void discard_new_views(struct strata_memory *mem)
{
    struct list *it;

    forget_moves(mem);
    list_for_each(it, &mem->moved_spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, moved_node);
        struct memory_view *view = space->next_view;
        struct list *jt;

        if (view && view->spaces == 0 && view != mem->empty_view) {
            list_for_each(jt, &mem->moved_spaces) {
                struct strata_space *other = list_entry(jt, struct strata_space, moved_node);

                other->next_view = other->next_view == view ? NULL : other->next_view;
            }
            memory_view_discard(view);
        }
        space->next_view = NULL;
    }
}

static void commit_fini(struct memory_commit *c, bool failed)
{
    struct strata_memory *mem = c->mem;
    struct memory_plan *plan, *next;

    for (size_t i = 0; i < c->nspaces; i++) {
        memory_delta_fini(mem, &c->spaces[i].own);
        memory_event_delta_fini(mem, &c->spaces[i].events);
        memory_free(mem, c->spaces[i].changes,
                    c->spaces[i].cap_changes * sizeof(struct strata_change));
    }
    if (c->sets) {
        memory_free(mem, c->sets, (c->nspaces + 1) * sizeof(*c->sets));
    }
    memory_free(mem, c->spaces, c->cap_spaces * sizeof(*c->spaces));
    for (plan = c->plans; plan; plan = next) {
        next = plan->next;
        memory_plan_free(mem, plan, failed);
    }
    if (failed) {
        discard_new_views(mem);
        memory_dispatch_drop(&c->dispatch);
    } else {
        memory_dispatch_publish(&c->dispatch);
        settle_pending(mem);
    }
}

static void carry_out(struct memory_commit *c)
{
    struct strata_memory *mem = c->mem;

    forget_moves(mem);
    for (size_t i = 0; i < c->nspaces; i++) { /* before any leaves: a view in use must not go */
        if (c->spaces[i].view != memory_space_view(c->spaces[i].space)) {
            c->spaces[i].view->spaces++;
        }
    }
    mem->in_callback = true;
    if (c->topology) {
        memory_notify_begin(mem);
    }
    for (size_t i = 0; i < c->nspaces; i++) {
        carry_out_space(&c->spaces[i], c->topology);
    }
    for (struct memory_plan *plan = c->plans; plan; plan = plan->next) {
        memory_plan_publish(plan); /* of views that nobody listens to */
    }
    if (c->topology) {
        memory_notify_apply(mem, c->sets, c->nsets);
        memory_notify_commit(mem);
        __atomic_fetch_add(&mem->generation, 1, __ATOMIC_RELEASE);
    }
    mem->in_callback = false;
}

/*
 * Bring the views up to the trees. Nothing pending: nothing happens, nobody is told. Returns 0;
 * -ENOMEM or what a listener refused with: nobody was told, everything stays pending.
 */
int memory_commit_now(struct strata_memory *mem)
{
    struct memory_commit c = {.mem = mem};
    int err;

    c.topology = !list_is_empty(&mem->dirty_views) || !list_is_empty(&mem->moved_spaces);
    if (!c.topology && list_is_empty(&mem->event_regions)) {
        return 0;
    }
    TRACE(&mem->trace, topology_commit, "generation %llu", mem->generation);
    memory_dispatch_begin(mem, &c.dispatch);
    err = mark_events(mem);
    err = err ? err : plan_moves(&c);
    err = err ? err : plan_views(&c);
    err = err ? err : plan_spaces(&c);
    err = err ? err : memory_journal_reserve(mem, &c);
    err = err ? err : plan_sets(&c);
    if (!err) {
        memory_journal_record(mem, &c);
        carry_out(&c);
    }
    commit_fini(&c, err != 0);
    memory_retire_collect(mem);
    memory_retire_kick(mem);
    return err;
}
