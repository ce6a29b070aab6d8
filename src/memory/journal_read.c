/*
 * Reading the journal: listing it, and the map as it was, by taking back from the present view what
 * later commits did, the latest first. Lock: the handle's, taken.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "memory/journal.h"
#include "memory/notify.h"
#include "memory/print.h"

/*
 * Switch the journal on, keeping the last max_entries commits, or off with 0. 0 or -ENOMEM.
 */
int strata_journal_set(struct strata_memory *mem, size_t max_entries)
{
    struct memory_journal *j = NULL;
    int err = 0;

    memory_lock(mem);
    if (max_entries) {
        j = memory_zalloc(mem, sizeof(*j));
        err = j ? 0 : memory_fail_alloc(mem);
    }
    if (!err) {
        memory_journal_free(mem);
        if (j) {
            j->max = max_entries;
        }
        mem->journal = j;
        memory_listeners_count(mem);
    }
    memory_unlock(mem);
    return err;
}

static void print_text(struct memory_printer *p, const struct memory_journal_entry *e)
{
    memory_print(p, "commit %llu", (unsigned long long)e->generation);
    if (e->actor) {
        memory_print(p, " by ");
        memory_print_name(p, e->actor);
    }
    memory_print(p, "\n");
    for (size_t i = 0; i < e->nops; i++) {
        memory_print(p, "  %s ", e->ops[i].what);
        memory_print_name(p, e->ops[i].subject ? e->ops[i].subject : "");
        memory_print(p, "\n");
    }
    for (size_t i = 0; i < e->npieces; i++) {
        const struct memory_journal_piece *piece = &e->pieces[i];

        memory_print(p, "  %c %016llx-%016llx ", piece->added ? '+' : '-',
                     (unsigned long long)piece->start, (unsigned long long)piece->last);
        memory_print_name(p, piece->region);
        memory_print(p, " @%016llx in ", (unsigned long long)piece->offset);
        memory_print_name(p, piece->space_name);
        memory_print(p, "\n");
    }
}

static void print_ops_json(struct memory_printer *p, const struct memory_journal_entry *e)
{
    memory_print(p, "{\"commit\":%llu,\"actor\":", (unsigned long long)e->generation);
    if (e->actor) {
        memory_print_json(p, e->actor);
    } else {
        memory_print(p, "null");
    }
    memory_print(p, ",\"calls\":[");
    for (size_t i = 0; i < e->nops; i++) {
        memory_print(p, "%s{\"call\":\"%s\",\"region\":", i ? "," : "", e->ops[i].what);
        memory_print_json(p, e->ops[i].subject ? e->ops[i].subject : "");
        memory_print(p, "}");
    }
    memory_print(p, "]");
}

static void print_json(struct memory_printer *p, const struct memory_journal_entry *e)
{
    print_ops_json(p, e);
    memory_print(p, ",\"pieces\":[");
    for (size_t i = 0; i < e->npieces; i++) {
        const struct memory_journal_piece *piece = &e->pieces[i];

        memory_print(p, "%s{\"added\":%s,\"start\":%llu,\"last\":%llu,\"offset\":%llu,\"region\":",
                     i ? "," : "", piece->added ? "true" : "false", (unsigned long long)piece->start,
                     (unsigned long long)piece->last, (unsigned long long)piece->offset);
        memory_print_json(p, piece->region);
        memory_print(p, ",\"space\":");
        memory_print_json(p, piece->space_name);
        memory_print(p, "}");
    }
    memory_print(p, "]}\n");
}

/* All that is kept, oldest first. Always 0. */
int strata_journal_print(struct strata_memory *mem, unsigned flags, strata_sink sink, void *opaque)
{
    struct memory_printer p = {sink, opaque, flags};

    memory_lock(mem);
    for (const struct memory_journal_entry *e = mem->journal ? mem->journal->oldest : NULL; e;
         e = e->next) {
        if (flags & STRATA_PRINT_JSON) {
            print_json(&p, e);
        } else {
            print_text(&p, e);
        }
    }
    memory_unlock(mem);
    return 0;
}

/* The pieces of the past, while later commits are taken back. */
struct past {
    struct strata_memory *mem;
    const struct strata_space *space;
    struct strata_past_piece *piece;
    size_t count, cap;
    int err;
};

static int past_add(struct past *p, const struct strata_past_piece *piece)
{
    p->err = memory_grow(p->mem, &p->piece, &p->cap, p->count + 1, sizeof(*p->piece));
    if (!p->err) {
        p->piece[p->count++] = *piece;
    }
    return p->err;
}

static int past_range(void *opaque, struct itree_node *node)
{
    const struct memory_range *range = container_of(node, struct memory_range, node);
    struct strata_past_piece piece = {
        .region = range->piece.region->name,
        .start = range->head.start,
        .last = range->head.last,
        .offset = range->piece.offset,
        .readonly = range->piece.readonly || range->piece.region->readonly,
    };

    return past_add(opaque, &piece);
}

static void take_back(struct past *p, const struct memory_journal_entry *e)
{
    for (size_t i = 0; i < e->npieces && !p->err; i++) {
        const struct memory_journal_piece *it = &e->pieces[i];

        for (size_t k = 0; it->space == p->space && it->added && k < p->count; k++) {
            if (p->piece[k].start == it->start) {
                p->piece[k] = p->piece[--p->count];
                break;
            }
        }
    }
    for (size_t i = 0; i < e->npieces && !p->err; i++) {
        const struct memory_journal_piece *it = &e->pieces[i];

        if (it->space == p->space && !it->added) {
            past_add(p, &(struct strata_past_piece){it->region, it->start, it->last, it->offset,
                                                    it->readonly});
        }
    }
}

/* Newest first: those after `generation`. */
static void take_back_after(struct past *p, uint64_t generation)
{
    const struct memory_journal_entry *from = p->mem->journal->oldest, *end = NULL;

    while (from && from->generation <= generation) {
        from = from->next;
    }
    while (from && from != end && !p->err) { /* the last one not yet dealt with */
        const struct memory_journal_entry *e = from;

        while (e->next != end) {
            e = e->next;
        }
        take_back(p, e);
        end = e;
    }
}

static int by_start(const void *pa, const void *pb)
{
    const struct strata_past_piece *a = pa, *b = pb;

    return a->start < b->start ? -1 : a->start > b->start;
}

static bool is_kept(const struct strata_memory *mem, uint64_t generation)
{
    const struct memory_journal *j = mem->journal;

    if (!j || generation > mem->generation) {
        return false;
    }
    return generation == mem->generation || (j->oldest && generation + 1 >= j->oldest->generation);
}

/*
 * The map of a space after the commit `generation`: fn is called per piece in address order until it
 * returns nonzero, which is returned. -ENOENT: not to be had any more, or not yet; -ENOMEM.
 */
int strata_journal_map(struct strata_memory *mem, struct strata_space *space, uint64_t generation,
                       int (*fn)(void *opaque, const struct strata_past_piece *piece), void *opaque)
{
    struct past p = {.mem = mem, .space = space};
    int ret = -ENOENT;

    memory_lock(mem);
    if (is_kept(mem, generation)) {
        memory_itree_visit(&memory_space_view(space)->ranges, 0, UINT64_MAX, past_range, &p);
        if (!p.err) {
            take_back_after(&p, generation);
        }
        ret = p.err;
    }
    if (!ret && p.count) {
        qsort(p.piece, p.count, sizeof(*p.piece), by_start);
    }
    for (size_t i = 0; i < p.count && !ret; i++) {
        ret = fn(opaque, &p.piece[i]);
    }
    memory_free(mem, p.piece, p.cap * sizeof(*p.piece));
    memory_unlock(mem);
    return ret;
}
