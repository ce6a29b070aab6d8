/* Telling listeners; see notify.h for the order. Source: QEMU's address_space_update_topology_pass(),
 * address_space_add_del_ioeventfds(), listener_add_address_space(), by rule. */
#include "memory/notify.h"

#include "memory/events.h"
#include "memory/sum.h"

#define for_each_forward(l, mem)                                                                   \
    for (struct list *l##_it = (mem)->listeners.next;                                              \
         l##_it != &(mem)->listeners && (l = list_entry(l##_it, struct strata_listener, node));    \
         l##_it = l##_it->next)

#define for_each_reverse(l, mem)                                                                   \
    for (struct list *l##_it = (mem)->listeners.prev;                                              \
         l##_it != &(mem)->listeners && (l = list_entry(l##_it, struct strata_listener, node));    \
         l##_it = l##_it->prev)

/* begin of all. */
void memory_notify_begin(struct strata_memory *mem)
{
    struct strata_listener *l;

    TRACE(&mem->trace, topology_begin, "generation %llu", mem->generation);
    for_each_forward(l, mem) {
        if (l->ops.begin) {
            l->ops.begin(l->opaque);
        }
    }
}

/* commit of all. */
void memory_notify_commit(struct strata_memory *mem)
{
    struct strata_listener *l;

    TRACE(&mem->trace, topology_end, "generation %llu", mem->generation);
    for_each_forward(l, mem) {
        if (l->ops.commit) {
            l->ops.commit(l->opaque);
        }
    }
}

static void tell_coalesced(struct strata_listener *l, const struct strata_section *s, bool add)
{
    const struct strata_region *region = s->region;
    void (*fn)(void *, const struct strata_section *, strata_addr, uint64_t) =
        add ? l->ops.coalesced_add : l->ops.coalesced_del;
    strata_addr start;
    uint64_t size;

    for (size_t i = 0; fn && i < region->ncoalesced; i++) {
        if (memory_coalesced_clip(s, &region->coalesced[i], &start, &size)) {
            fn(l->opaque, s, start, size);
        }
    }
}

/* The delete pass of one space: per range, its coalesced ranges and then itself. */
void memory_notify_removed(struct strata_space *space, const struct memory_delta *delta)
{
    struct strata_listener *l;
    struct strata_section s;
    struct memory_sum term;

    for (size_t i = 0; i < delta->removed.count; i++) {
        memory_range_section(delta->removed.item[i], space, &s);
        TRACE(&space->mem->trace, topology_region_del, "first %llx last %llx", delta->removed.item[i]->head.start,
              delta->removed.item[i]->head.last);
        if (s.region->ncoalesced) {
            for_each_reverse(l, space->mem) {
                if (memory_listener_wants(l, space)) {
                    tell_coalesced(l, &s, false);
                }
            }
        }
        term = memory_sum_piece(&s);
        for_each_reverse(l, space->mem) {
            if (memory_listener_wants(l, space)) {
                memory_sum_count(&memory_account(l, space)->told, &term, false);
                if (l->ops.region_del) {
                    l->ops.region_del(l->opaque, &s);
                }
            }
        }
    }
}

static void tell_added(struct strata_space *space, struct strata_section *s)
{
    struct memory_sum term = memory_sum_piece(s);
    struct strata_listener *l;

    for_each_forward(l, space->mem) {
        if (memory_listener_wants(l, space)) {
            memory_sum_count(&memory_account(l, space)->told, &term, true);
            if (l->ops.region_add) {
                l->ops.region_add(l->opaque, s);
            }
        }
    }
    if (s->region->ncoalesced) {
        for_each_forward(l, space->mem) {
            if (memory_listener_wants(l, space)) {
                tell_coalesced(l, s, true);
            }
        }
    }
}

/* The same piece has another log mask: so do the accounts. */
static void count_logs(struct strata_space *space, const struct strata_section *s, unsigned was)
{
    struct strata_section before = *s;
    struct memory_sum now = memory_sum_piece(s), old;
    struct strata_listener *l;

    before.log_mask = (uint8_t)was;
    old = memory_sum_piece(&before);
    for_each_forward(l, space->mem) {
        if (memory_listener_wants(l, space)) {
            memory_sum_count(&memory_account(l, space)->told, &old, false);
            memory_sum_count(&memory_account(l, space)->told, &now, true);
        }
    }
}

static void tell_kept(struct strata_space *space, struct strata_section *s,
                      const struct memory_kept *kept, bool nop)
{
    struct strata_listener *l;
    unsigned was = kept->old_mask, now = kept->new_mask;

    for_each_forward(l, space->mem) {
        if (nop && l->ops.region_nop && memory_listener_wants(l, space)) {
            l->ops.region_nop(l->opaque, s);
        }
    }
    if (now != was) {
        count_logs(space, s, was);
    }
    if (now & ~was) {
        for_each_forward(l, space->mem) {
            if (l->ops.log_start && memory_listener_wants(l, space)) {
                l->ops.log_start(l->opaque, s, was, now);
            }
        }
    }
    if (was & ~now) {
        for_each_reverse(l, space->mem) {
            if (l->ops.log_stop && memory_listener_wants(l, space)) {
                l->ops.log_stop(l->opaque, s, was, now);
            }
        }
    }
}

/* The add pass of one space, new and unchanged ranges together in address order. */
void memory_notify_added(struct strata_space *space, const struct memory_delta *delta, bool nop)
{
    struct strata_section s;
    size_t i = 0, j = 0;

    while (i < delta->added.count || j < delta->nkept) {
        struct memory_range *added = i < delta->added.count ? delta->added.item[i] : NULL;
        const struct memory_kept *kept = j < delta->nkept ? &delta->kept[j] : NULL;

        if (added && (!kept || added->head.start < kept->is->head.start)) {
            memory_range_section(added, space, &s);
            TRACE(&space->mem->trace, topology_region_add, "first %llx last %llx", added->head.start,
                  added->head.last);
            tell_added(space, &s);
            i++;
        } else {
            if (nop || kept->old_mask != kept->new_mask) {
                memory_range_section(kept->is, space, &s);
                s.log_mask = kept->new_mask;
                tell_kept(space, &s, kept, nop);
            }
            j++;
        }
    }
}

static void tell_event(struct strata_space *space, const struct strata_eventfd *ev, bool add)
{
    struct memory_sum term = memory_sum_event(ev);
    struct strata_listener *l;

    if (add) {
        for_each_reverse(l, space->mem) {
            if (memory_listener_wants(l, space)) {
                memory_sum_count(&memory_account(l, space)->events, &term, true);
                if (l->ops.eventfd_add) {
                    l->ops.eventfd_add(l->opaque, space, ev);
                }
            }
        }
        return;
    }
    for_each_forward(l, space->mem) {
        if (memory_listener_wants(l, space)) {
            memory_sum_count(&memory_account(l, space)->events, &term, false);
            if (l->ops.eventfd_del) {
                l->ops.eventfd_del(l->opaque, space, ev);
            }
        }
    }
}

/* The symmetric difference of a space's eventfds, in their order. */
void memory_notify_events(struct strata_space *space, const struct memory_event_delta *e)
{
    size_t i = 0, j = 0;

    while (i < e->nold || j < e->nnow) {
        int order = i == e->nold ? 1 : j == e->nnow ? -1 : memory_event_compare(&e->old[i], &e->now[j]);

        if (order < 0) {
            tell_event(space, &e->old[i++], false);
        } else if (order > 0) {
            tell_event(space, &e->now[j++], true);
        } else {
            i++, j++;
        }
    }
}

/* Does anybody want change sets? */
bool memory_notify_wants_sets(struct strata_memory *mem)
{
    struct strata_listener *l;

    for_each_forward(l, mem) {
        if (l->ops.prepare || l->ops.apply) {
            return true;
        }
    }
    return false;
}

/* A filtered listener gets its space's set alone. */
static size_t sets_for(const struct strata_listener *l, const struct strata_change_set **sets,
                       size_t count)
{
    if (!l->space) {
        return count;
    }
    for (size_t i = 0; i < count; i++) {
        if ((*sets)[i].space == l->space) {
            *sets += i;
            return 1;
        }
    }
    return 0;
}

/* Ask all who want to be asked; the first refusal takes back the agreement of those before. */
int memory_notify_prepare(struct strata_memory *mem, const struct strata_change_set *sets,
                          size_t count)
{
    struct strata_listener *l;
    int err = 0;

    for_each_forward(l, mem) {
        const struct strata_change_set *mine = sets;
        size_t n = sets_for(l, &mine, count);

        l->prepared = false;
        if (!err && l->ops.prepare && n) {
            err = l->ops.prepare(l->opaque, mine, n);
            l->prepared = err == 0;
            if (err) {
                err = memory_fail(mem, -err, "listener '%s' refused the change", l->name);
            }
        }
    }
    if (err) {
        for_each_reverse(l, mem) {
            if (l->prepared && l->ops.abort) {
                l->ops.abort(l->opaque);
            }
        }
    }
    return err;
}

/* Give the sets to those who apply them as one. */
void memory_notify_apply(struct strata_memory *mem, const struct strata_change_set *sets,
                         size_t count)
{
    struct strata_listener *l;

    for_each_forward(l, mem) {
        const struct strata_change_set *mine = sets;
        size_t n = sets_for(l, &mine, count);

        if (l->ops.apply && n) {
            memory_sum_applied(l, mine, n);
            l->ops.apply(l->opaque, mine, n);
        }
    }
}

/* One coalesced range that has come or goes, where a section shows it. */
void memory_notify_coalesced(const struct strata_section *s, strata_addr start, uint64_t size,
                             bool add)
{
    struct strata_listener *l;

    if (add) {
        for_each_forward(l, s->space->mem) {
            if (l->ops.coalesced_add && memory_listener_wants(l, s->space)) {
                l->ops.coalesced_add(l->opaque, s, start, size);
            }
        }
        return;
    }
    for_each_reverse(l, s->space->mem) {
        if (l->ops.coalesced_del && memory_listener_wants(l, s->space)) {
            l->ops.coalesced_del(l->opaque, s, start, size);
        }
    }
}

struct play {
    struct strata_listener *l;
    struct strata_space *space;
    bool add;
};

/* Coalesced ranges at attach and detach. In compatible mode the walk ends at the first one that the
 * range does not show, as QEMU's does. */
static void play_coalesced(struct play *p, const struct strata_section *s)
{
    bool stops = p->l->mem->config.mode == STRATA_COMPATIBLE;
    void (*fn)(void *, const struct strata_section *, strata_addr, uint64_t) =
        p->add ? p->l->ops.coalesced_add : p->l->ops.coalesced_del;
    strata_addr start;
    uint64_t size;

    for (size_t i = 0; fn && i < s->region->ncoalesced; i++) {
        if (memory_coalesced_clip(s, &s->region->coalesced[i], &start, &size)) {
            fn(p->l->opaque, s, start, size);
        } else if (stops) {
            break;
        }
    }
}

static int play_range(void *opaque, struct itree_node *node)
{
    struct play *p = opaque;
    struct strata_listener *l = p->l;
    struct strata_section s;
    struct memory_sum term;

    memory_range_section(container_of(node, struct memory_range, node), p->space, &s);
    term = memory_sum_piece(&s);
    memory_sum_count(&memory_account(l, p->space)->told, &term, p->add);
    if (p->add) {
        if (l->ops.region_add) {
            l->ops.region_add(l->opaque, &s);
        }
        play_coalesced(p, &s);
        if (s.log_mask && l->ops.log_start) {
            l->ops.log_start(l->opaque, &s, 0, s.log_mask);
        }
        return 0;
    }
    if (s.log_mask && l->ops.log_stop) {
        l->ops.log_stop(l->opaque, &s, s.log_mask, 0);
    }
    play_coalesced(p, &s);
    if (l->ops.region_del) {
        l->ops.region_del(l->opaque, &s);
    }
    return 0;
}

static int play_events(void *opaque, struct itree_node *node)
{
    struct play *p = opaque;
    struct memory_range *range = container_of(node, struct memory_range, node);
    void (*fn)(void *, struct strata_space *, const struct strata_eventfd *) =
        p->add ? p->l->ops.eventfd_add : p->l->ops.eventfd_del;

    for (unsigned i = 0; range->events && i < range->events->count; i++) {
        struct strata_eventfd placed;
        struct memory_sum term;

        if (memory_event_place(range, &range->events->item[i], &placed)) {
            term = memory_sum_event(&placed);
            memory_sum_count(&memory_account(p->l, p->space)->events, &term, p->add);
            if (fn) {
                fn(p->l->opaque, p->space, &placed);
            }
        }
    }
    return 0;
}

static void play(struct strata_listener *l, struct strata_space *space, bool add)
{
    struct play p = {l, space, add};
    const struct itree *ranges = &memory_space_view(space)->ranges;

    memory_itree_visit(ranges, 0, UINT64_MAX, play_range, &p);
    memory_itree_visit(ranges, 0, UINT64_MAX, play_events, &p);
}

/* Tell one listener all that a space shows. */
void memory_notify_replay(struct strata_listener *l, struct strata_space *space)
{
    play(l, space, true);
}

/* Tell one listener that all of it goes. */
void memory_notify_unplay(struct strata_listener *l, struct strata_space *space)
{
    play(l, space, false);
}
