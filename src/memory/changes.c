/*
 * Change sets: a delta told as one list of deletions, additions, splits, merges, moves and changed
 * flags, for listeners that apply a commit as one.
 *
 * A removed and an added range that show the same bytes of the same region at the same place belong
 * together: the new within the old is a split (a part is left), the old within the new a merge (it
 * grew), the same extent changed flags. A removed and an added range of the same bytes elsewhere are
 * a move. What is left was deleted or added. Source: own.
 */
#include <stdlib.h>

#include "memory/sum.h"

struct pairing {
    struct strata_memory *mem;
    struct memory_space_plan *sp;
    uint8_t *old_used, *new_used; /* per removed, added range */
};

static int change_add(struct pairing *p, const struct strata_change *change)
{
    struct memory_space_plan *sp = p->sp;
    int err = memory_grow(p->mem, &sp->changes, &sp->cap_changes, sp->nchanges + 1, sizeof(*change));

    if (!err) {
        sp->changes[sp->nchanges++] = *change;
    }
    return err;
}

static int change_pair(struct pairing *p, enum strata_change_kind kind, const struct memory_range *old,
                       const struct memory_range *now)
{
    struct strata_change change = {.kind = kind};

    if (old) {
        memory_range_section(old, p->sp->space, &change.old);
    }
    if (now) {
        memory_range_section(now, p->sp->space, &change.now);
    }
    return change_add(p, &change);
}

static bool same_place(const struct memory_range *a, const struct memory_range *b)
{
    return a->piece.region == b->piece.region &&
           a->piece.offset - a->piece.start == b->piece.offset - b->piece.start;
}

static bool within(const struct memory_range *inner, const struct memory_range *outer)
{
    return inner->head.start >= outer->head.start && inner->head.last <= outer->head.last;
}

/* Pairs at the same place: both lists are sorted, overlapping ones meet in one pass. */
static int pair_places(struct pairing *p)
{
    const struct memory_delta *d = p->sp->delta;
    size_t i = 0, j = 0;
    int err = 0;

    while (!err && i < d->removed.count && j < d->added.count) {
        struct memory_range *old = d->removed.item[i], *now = d->added.item[j];
        bool in = within(now, old), out = within(old, now);

        if (same_place(old, now) && (in || out)) {
            err = change_pair(p, in && out ? STRATA_CHANGE_FLAGS
                                 : in      ? STRATA_CHANGE_SPLIT
                                           : STRATA_CHANGE_MERGE, old, now);
            p->old_used[i] = p->new_used[j] = 1;
        }
        if (old->head.last <= now->head.last) {
            i++;
        } else {
            j++;
        }
    }
    return err;
}

struct slot {
    const struct memory_range *range;
    size_t index;
};

/* By region, offset, size, then address: equal contents meet in a merge. */
static int by_content(const void *pa, const void *pb)
{
    const struct memory_range *a = ((const struct slot *)pa)->range;
    const struct memory_range *b = ((const struct slot *)pb)->range;
    uint64_t la = a->head.last - a->head.start, lb = b->head.last - b->head.start;

    if (a->piece.region != b->piece.region) {
        return (uintptr_t)a->piece.region < (uintptr_t)b->piece.region ? -1 : 1;
    }
    if (a->piece.offset != b->piece.offset) {
        return a->piece.offset < b->piece.offset ? -1 : 1;
    }
    return la < lb ? -1 : la > lb;
}

static size_t slots_fill(struct slot *slots, const struct memory_ranges *ranges, const uint8_t *used)
{
    size_t n = 0;

    for (size_t i = 0; i < ranges->count; i++) {
        if (!used[i]) {
            slots[n++] = (struct slot){ranges->item[i], i};
        }
    }
    qsort(slots, n, sizeof(*slots), by_content);
    return n;
}

static int pair_moves(struct pairing *p)
{
    const struct memory_delta *d = p->sp->delta;
    size_t total = d->removed.count + d->added.count, nold, nnow, i = 0, j = 0;
    struct slot *old = memory_alloc(p->mem, (total + 1) * sizeof(*old)), *now;
    int err = 0;

    if (!old) {
        return memory_fail_alloc(p->mem);
    }
    nold = slots_fill(old, &d->removed, p->old_used);
    now = old + nold;
    nnow = slots_fill(now, &d->added, p->new_used);
    while (!err && i < nold && j < nnow) {
        int order = by_content(&old[i], &now[j]);

        if (order == 0) {
            err = change_pair(p, STRATA_CHANGE_MOVE, old[i].range, now[j].range);
            p->old_used[old[i].index] = p->new_used[now[j].index] = 1;
        }
        i += order <= 0;
        j += order >= 0;
    }
    memory_free(p->mem, old, (total + 1) * sizeof(*old));
    return err;
}

static int rest(struct pairing *p)
{
    const struct memory_delta *d = p->sp->delta;
    int err = 0;

    for (size_t i = 0; i < d->removed.count && !err; i++) {
        err = p->old_used[i] ? 0 : change_pair(p, STRATA_CHANGE_DEL, d->removed.item[i], NULL);
    }
    for (size_t i = 0; i < d->added.count && !err; i++) {
        err = p->new_used[i] ? 0 : change_pair(p, STRATA_CHANGE_ADD, NULL, d->added.item[i]);
    }
    for (size_t i = 0; i < d->nkept && !err; i++) {
        const struct memory_kept *kept = &d->kept[i];
        struct strata_change change = {.kind = STRATA_CHANGE_LOG};

        if (kept->old_mask != kept->new_mask) {
            memory_range_section(kept->was, p->sp->space, &change.old);
            change.now = change.old;
            change.old.log_mask = kept->old_mask;
            change.now.log_mask = kept->new_mask;
            err = change_add(p, &change);
        }
    }
    return err;
}

static strata_addr change_addr(const struct strata_change *c)
{
    return c->kind == STRATA_CHANGE_DEL ? c->old.start : c->now.start;
}

static int by_address(const void *pa, const void *pb)
{
    const struct strata_change *a = pa, *b = pb;

    if (change_addr(a) != change_addr(b)) {
        return change_addr(a) < change_addr(b) ? -1 : 1;
    }
    return (int)a->kind - (int)b->kind;
}

/* Work out a space's change set from its delta. 0 or -ENOMEM. Lock: held. */
int memory_changes_build(struct strata_memory *mem, struct memory_space_plan *sp)
{
    size_t nold = sp->delta->removed.count, nnow = sp->delta->added.count;
    uint8_t *used = memory_zalloc(mem, nold + nnow + 1);
    struct pairing p = {mem, sp, used, used + nold};
    int err;

    if (!used) {
        return memory_fail_alloc(mem);
    }
    err = pair_places(&p);
    err = err ? err : pair_moves(&p);
    err = err ? err : rest(&p);
    memory_free(mem, used, nold + nnow + 1);
    if (!err && sp->nchanges > 1) {
        qsort(sp->changes, sp->nchanges, sizeof(*sp->changes), by_address);
    }
    return err;
}

static int count_spaces(const struct strata_listener *l, size_t *ranges)
{
    struct list *it;
    int spaces = 0;

    *ranges = 0;
    list_for_each(it, &l->mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);

        if (memory_listener_wants(l, space)) {
            *ranges += memory_space_view(space)->nranges;
            spaces++;
        }
    }
    return spaces;
}

struct filling {
    struct strata_space *space;
    struct strata_change *at;
    bool add;
};

static int fill_change(void *opaque, struct itree_node *node)
{
    struct filling *f = opaque;
    struct strata_change *c = f->at++;

    *c = (struct strata_change){.kind = f->add ? STRATA_CHANGE_ADD : STRATA_CHANGE_DEL};
    memory_range_section(container_of(node, struct memory_range, node), f->space,
                         f->add ? &c->now : &c->old);
    return 0;
}

/*
 * All that a listener's spaces show as one batch of change sets: at its registration (add) or its end.
 * all: filled, for memory_replay_fini(). Returns 0 or -ENOMEM. Lock: held.
 */
int memory_replay_init(const struct strata_listener *l, bool add, struct memory_replay *all)
{
    struct strata_memory *mem = l->mem;
    struct filling f = {.add = add};
    struct list *it;

    *all = (struct memory_replay){0};
    all->nsets = (size_t)count_spaces(l, &all->nchanges);
    all->sets = memory_alloc(mem, (all->nsets + 1) * sizeof(*all->sets));
    all->changes = memory_alloc(mem, (all->nchanges + 1) * sizeof(*all->changes));
    if (!all->sets || !all->changes) {
        memory_replay_fini(mem, all);
        return memory_fail_alloc(mem);
    }
    f.at = all->changes;
    list_for_each(it, &mem->spaces) {
        struct strata_change_set *set = &all->sets[all->count];

        f.space = list_entry(it, struct strata_space, node);
        if (memory_listener_wants(l, f.space) && memory_space_view(f.space)->nranges) {
            *set = (struct strata_change_set){f.space, f.at, memory_space_view(f.space)->nranges};
            memory_itree_visit(&memory_space_view(f.space)->ranges, 0, UINT64_MAX, fill_change, &f);
            all->count++;
        }
    }
    return 0;
}

/* Free a batch. */
void memory_replay_fini(struct strata_memory *mem, struct memory_replay *all)
{
    memory_free(mem, all->sets, (all->nsets + 1) * sizeof(*all->sets));
    memory_free(mem, all->changes, (all->nchanges + 1) * sizeof(*all->changes));
    *all = (struct memory_replay){0};
}
