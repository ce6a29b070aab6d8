/* Running sums of what listeners were told; see sum.h. Source: own (invariant 3 of
 * docs/architecture.md). */
#include "memory/sum.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "memory/events.h"

/* Spread the bits of what is there so far and one more word. */
static uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * UINT64_C(0x9e3779b97f4a7c15);
    return h ^ h >> 29;
}

/* The term of one piece: all that makes it another piece to a listener, and its log mask. */
struct memory_sum memory_sum_piece(const struct strata_section *s)
{
    uint64_t flags = s->log_mask | (uint64_t)s->path_readonly << 8 | (uint64_t)s->nonvolatile << 9 |
                     (uint64_t)s->unmergeable << 10 | (uint64_t)s->romd << 11;
    uint64_t h = mix(mix(mix(mix(1, s->start), s->last), (uintptr_t)s->region), s->offset);

    return (struct memory_sum){1, s->start, mix(h, flags)};
}

/* The term of an eventfd at its absolute place. */
struct memory_sum memory_sum_event(const struct strata_eventfd *ev)
{
    uint64_t h = mix(mix(mix(2, ev->addr), ev->size), ev->match_data);

    return (struct memory_sum){1, ev->addr, mix(mix(h, ev->data), (uint64_t)ev->fd)};
}

/* Enter a term, or take it back. */
void memory_sum_count(struct memory_sum *sum, const struct memory_sum *term, bool add)
{
    uint64_t sign = add ? 1 : UINT64_MAX; /* modulo 2^64 */

    sum->count += sign * term->count;
    sum->starts += sign * term->starts;
    sum->hashes += sign * term->hashes;
}

static void count_piece(struct memory_sum *sum, const struct strata_section *s, bool add)
{
    struct memory_sum term = memory_sum_piece(s);

    memory_sum_count(sum, &term, add);
}

/* One space's changes. A piece that is split or merged stands in several changes, next to each other
 * but for what appears between the parts, and counts once. */
static void count_changes(struct memory_sum *sum, const struct strata_change_set *set)
{
    const struct strata_change *split = NULL, *merged = NULL;

    for (size_t i = 0; i < set->count; i++) {
        const struct strata_change *c = &set->changes[i];
        bool old = c->kind != STRATA_CHANGE_ADD, now = c->kind != STRATA_CHANGE_DEL;

        if (c->kind == STRATA_CHANGE_SPLIT) {
            old = !split || split->old.start != c->old.start;
            split = c;
        }
        if (c->kind == STRATA_CHANGE_MERGE) {
            now = !merged || merged->now.start != c->now.start;
            merged = c;
        }
        if (old) {
            count_piece(sum, &c->old, false);
        }
        if (now) {
            count_piece(sum, &c->now, true);
        }
    }
}

/* A listener is given change sets to apply. */
void memory_sum_applied(struct strata_listener *l, const struct strata_change_set *sets, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        count_changes(&memory_account(l, sets[i].space)->applied, &sets[i]);
    }
}

static int accounts_grow(struct strata_space *space, size_t need)
{
    size_t old = space->cap_accounts;
    int err = memory_grow(space->mem, &space->accounts, &space->cap_accounts, need,
                          sizeof(*space->accounts));

    if (!err && space->cap_accounts > old) {
        memset(&space->accounts[old], 0, (space->cap_accounts - old) * sizeof(*space->accounts));
    }
    return err;
}

/*
 * Give a listener that is not yet linked the lowest free slot, and every space an empty account for
 * it. Returns 0 or -ENOMEM. Lock: held.
 */
int memory_sums_for_listener(struct strata_listener *l)
{
    struct list *it, *jt;
    int err = 0;

    l->slot = 0;
    for (bool taken = true; taken; l->slot += taken) {
        taken = false;
        list_for_each(it, &l->mem->listeners) {
            taken |= list_entry(it, struct strata_listener, node)->slot == l->slot;
        }
    }
    list_for_each(jt, &l->mem->spaces) {
        struct strata_space *space = list_entry(jt, struct strata_space, node);

        err = err ? err : accounts_grow(space, l->slot + 1);
        if (!err) {
            memset(memory_account(l, space), 0, sizeof(struct memory_account));
        }
    }
    return err;
}

/* Give a space that is not yet linked an account for every listener. 0 or -ENOMEM. Lock: held. */
int memory_sums_for_space(struct strata_space *space)
{
    struct list *it;
    int err = 0;

    list_for_each(it, &space->mem->listeners) {
        size_t slot = list_entry(it, struct strata_listener, node)->slot;

        err = err ? err : accounts_grow(space, slot + 1);
    }
    return err;
}

/* Free a space's accounts. */
void memory_sums_free(struct strata_space *space)
{
    memory_free(space->mem, space->accounts, space->cap_accounts * sizeof(*space->accounts));
    space->accounts = NULL;
    space->cap_accounts = 0;
}

struct truth {
    struct strata_space *space;
    struct memory_sum pieces, events;
};

static int count_range(void *opaque, struct itree_node *node)
{
    struct truth *t = opaque;
    struct memory_range *range = container_of(node, struct memory_range, node);
    struct strata_eventfd placed;
    struct strata_section s;

    memory_range_section(range, t->space, &s);
    count_piece(&t->pieces, &s, true);
    for (unsigned i = 0; range->events && i < range->events->count; i++) {
        if (memory_event_place(range, &range->events->item[i], &placed)) {
            struct memory_sum term = memory_sum_event(&placed);

            memory_sum_count(&t->events, &term, true);
        }
    }
    return 0;
}

static bool sums_equal(const struct memory_sum *a, const struct memory_sum *b)
{
    return a->count == b->count && a->starts == b->starts && a->hashes == b->hashes;
}

/* Words for an account that does not add up. When the counts differ by one it is most likely that one
 * piece which is told too much or too little, and the difference of the addresses is its own. */
static int complain(const struct strata_listener *l, const struct strata_space *space,
                    const char *what, const struct memory_sum *told, const struct memory_sum *real)
{
    uint64_t more = told->count - real->count, at = told->starts - real->starts;
    unsigned long long has = told->count, should = real->count;
    char which[64] = "";

    if (more == 1 || more == UINT64_MAX) {
        snprintf(which, sizeof(which), more == 1 ? ": one too many, at %llx" : ": none at %llx",
                 (unsigned long long)(more == 1 ? at : -at));
    }
    return memory_fail(l->mem, EUCLEAN, "listener '%s' knows %llu %s of '%s', there are %llu%s",
                       l->name, has, what, space->name, should,
                       more ? which : ", but not the same");
}

/*
 * Compare every listener's account of a space with the view. Returns 0, or -EUCLEAN with words for
 * the first that differs. Lock: held, not from a callback (a commit may be half told).
 */
int memory_sums_check(struct strata_space *space)
{
    struct truth t = {.space = space};
    struct list *it;

    memory_itree_visit(&memory_space_view(space)->ranges, 0, UINT64_MAX, count_range, &t);
    list_for_each(it, &space->mem->listeners) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);
        const struct memory_account *a = memory_account(l, space);

        if (!memory_listener_wants(l, space)) {
            continue;
        }
        if (!sums_equal(&a->told, &t.pieces)) {
            return complain(l, space, "pieces", &a->told, &t.pieces);
        }
        if (l->ops.apply && !sums_equal(&a->applied, &t.pieces)) {
            return complain(l, space, "applied pieces", &a->applied, &t.pieces);
        }
        if (!sums_equal(&a->events, &t.events)) {
            return complain(l, space, "eventfds", &a->events, &t.events);
        }
    }
    return 0;
}
