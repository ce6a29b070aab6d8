/*
 * Keeping the journal. Calls are noted as they are made, into the entry of the commit to come; the
 * commit fills in what came and went, all of it allocated before anybody is told, so that a journal
 * never has a hole. What memory does not suffice for among the notes is left out.
 * Lock: the handle's.
 */
#include "memory/journal.h"

#include <errno.h>
#include <string.h>

static void text_free(struct strata_memory *mem, char *text)
{
    if (text) {
        memory_free(mem, text, strlen(text) + 1);
    }
}

static void pieces_free(struct strata_memory *mem, struct memory_journal_entry *e)
{
    for (size_t i = 0; i < e->npieces; i++) {
        text_free(mem, e->pieces[i].region);
        text_free(mem, e->pieces[i].space_name);
    }
    memory_free(mem, e->pieces, e->cap_pieces * sizeof(*e->pieces));
    e->pieces = NULL;
    e->npieces = e->cap_pieces = 0;
}

static void entry_free(struct strata_memory *mem, struct memory_journal_entry *e)
{
    if (!e) {
        return;
    }
    pieces_free(mem, e);
    for (size_t i = 0; i < e->nops; i++) {
        text_free(mem, e->ops[i].subject);
    }
    memory_free(mem, e->ops, e->cap_ops * sizeof(*e->ops));
    text_free(mem, e->actor);
    memory_free(mem, e, sizeof(*e));
}

static struct memory_journal_entry *pending_entry(struct strata_memory *mem)
{
    struct memory_journal *j = mem->journal;

    if (!j->pending) {
        j->pending = memory_zalloc(mem, sizeof(*j->pending));
    }
    return j->pending;
}

/* Note a call for the entry of the next commit. The journal is on. */
void memory_journal_note(struct strata_memory *mem, const char *what,
                         const struct strata_region *subject)
{
    struct memory_journal_entry *e = pending_entry(mem);

    if (!e || memory_grow(mem, &e->ops, &e->cap_ops, e->nops + 1, sizeof(*e->ops)) != 0) {
        return;
    }
    e->ops[e->nops].what = what;
    e->ops[e->nops++].subject = subject ? memory_strdup(mem, subject->name) : NULL;
}

/* Say whose doing the present transaction is; see strata/journal.h. Lock: taken. */
void strata_journal_actor(struct strata_memory *mem, const char *actor)
{
    struct memory_journal_entry *e;

    memory_lock(mem);
    e = mem->journal ? pending_entry(mem) : NULL;
    if (e) {
        text_free(mem, e->actor);
        e->actor = actor ? memory_strdup(mem, actor) : NULL;
    }
    memory_unlock(mem);
}

static int piece_fill(struct strata_memory *mem, struct memory_journal_entry *e,
                      const struct memory_space_plan *sp, const struct memory_range *range, bool added)
{
    struct memory_journal_piece *p = &e->pieces[e->npieces];

    *p = (struct memory_journal_piece){
        .space = sp->space,
        .space_name = memory_strdup(mem, sp->space->name),
        .region = memory_strdup(mem, range->piece.region->name),
        .start = range->head.start,
        .last = range->head.last,
        .offset = range->piece.offset,
        .readonly = range->piece.readonly || range->piece.region->readonly,
        .added = added,
    };
    if (!p->space_name || !p->region) {
        text_free(mem, p->space_name);
        text_free(mem, p->region);
        return memory_fail_alloc(mem);
    }
    e->npieces++;
    return 0;
}

static int pieces_fill(struct strata_memory *mem, struct memory_journal_entry *e,
                       const struct memory_commit *c)
{
    int err = 0;

    for (size_t i = 0; i < c->nspaces; i++) {
        const struct memory_delta *d = c->spaces[i].delta;

        for (size_t k = 0; k < d->removed.count && !err; k++) {
            err = piece_fill(mem, e, &c->spaces[i], d->removed.item[k], false);
        }
        for (size_t k = 0; k < d->added.count && !err; k++) {
            err = piece_fill(mem, e, &c->spaces[i], d->added.item[k], true);
        }
    }
    return err;
}

/* Get ready to record a commit: all that can fail. 0 or -ENOMEM. */
int memory_journal_reserve(struct strata_memory *mem, const struct memory_commit *c)
{
    struct memory_journal_entry *e;
    size_t n = 0;
    int err = 0;

    if (!mem->journal || !c->topology) {
        return 0;
    }
    mem->journal->ready = false;
    e = pending_entry(mem);
    if (!e) {
        return memory_fail_alloc(mem);
    }
    pieces_free(mem, e); /* of a commit that was refused */
    for (size_t i = 0; i < c->nspaces; i++) {
        n += c->spaces[i].delta->removed.count + c->spaces[i].delta->added.count;
    }
    if (n) {
        err = memory_grow(mem, &e->pieces, &e->cap_pieces, n, sizeof(*e->pieces));
    }
    err = err ? err : pieces_fill(mem, e, c);
    if (err) {
        pieces_free(mem, e);
    }
    mem->journal->ready = err == 0;
    return err;
}

/* The commit happens: the entry is history. Cannot fail. */
void memory_journal_record(struct strata_memory *mem, const struct memory_commit *c)
{
    struct memory_journal *j = mem->journal;
    struct memory_journal_entry *e = j ? j->pending : NULL;

    if (!e || !c->topology || !j->ready) {
        return;
    }
    e->generation = mem->generation + 1;
    j->pending = NULL;
    j->ready = false;
    if (j->newest) {
        j->newest->next = e;
    } else {
        j->oldest = e;
    }
    j->newest = e;
    if (++j->count > j->max) {
        struct memory_journal_entry *old = j->oldest;

        j->oldest = old->next;
        j->count--;
        entry_free(mem, old);
    }
}

/* Forget all, journal off. */
void memory_journal_free(struct strata_memory *mem)
{
    struct memory_journal *j = mem->journal;

    while (j && j->oldest) {
        struct memory_journal_entry *e = j->oldest;

        j->oldest = e->next;
        entry_free(mem, e);
    }
    if (j) {
        entry_free(mem, j->pending);
        memory_free(mem, j, sizeof(*j));
    }
    mem->journal = NULL;
}
