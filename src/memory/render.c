/*
 * Rendering in two steps.
 *
 * Collect: walk the tree from the root, highest priority first, children before their container, and
 * note every region that answers for itself, cut to the window. The order of the notes is the order
 * of visibility: an earlier one hides a later one.
 *
 * Sweep: go over the notes by address, keeping those that reach the current address in a heap by
 * order; the top of the heap shows. Neighbours that could be one range become one. So n notes cost
 * n log n, whatever the priorities.
 *
 * The walk keeps its own stack, because trees may be deeper than ours. A region is pushed with the
 * base address it has in the view (negative when an alias's offset makes it so) and the window that
 * the containers above leave of it.
 *
 * Locks: the handle's, held. Source: QEMU render_memory_region() and flatview_simplify(), by rule.
 * Differs: QEMU inserts into the view as it walks; the result is the same.
 */
#include "memory/render.h"

#include <stdlib.h>

/* One region on the stack, and one note. */
struct visit {
    struct strata_region *region;
    i128 base;
    uint64_t start, last; /* window */
    bool readonly, nonvolatile, unmergeable; /* by the path */
    bool self;            /* children are done: note the region itself */
};

struct note {
    struct memory_piece piece;
    size_t order;
};

struct collector {
    struct strata_memory *mem;
    struct visit *stack;
    size_t depth, cap_stack;
    struct note *notes;
    size_t nnotes, cap_notes;
    struct strata_region **kids; /* scratch: children in the window */
    size_t nkids, cap_kids;
    int err;
};

/* Cut a visit to what lies in [base, base + size); false when nothing is left. */
static bool visit_clip(struct visit *v, i128 base, i128 size)
{
    i128 start = v->start > base ? (i128)v->start : base;
    i128 last = (i128)v->last < base + size - 1 ? (i128)v->last : base + size - 1;

    if (start > last) {
        return false;
    }
    v->start = (uint64_t)start;
    v->last = (uint64_t)last;
    return true;
}

static void stack_push(struct collector *c, const struct visit *v)
{
    if (!c->err) {
        c->err = memory_grow(c->mem, &c->stack, &c->cap_stack, c->depth + 1, sizeof(*c->stack));
    }
    if (!c->err) {
        c->stack[c->depth++] = *v;
    }
}

static int note_kid(void *opaque, struct itree_node *node)
{
    struct collector *c = opaque;
    struct strata_region *child = container_of(node, struct strata_region, node);

    if (!child->enabled || child->size == 0) {
        return 0;
    }
    c->err = memory_grow(c->mem, &c->kids, &c->cap_kids, c->nkids + 1, sizeof(struct strata_region *));
    if (!c->err) {
        c->kids[c->nkids++] = child;
    }
    return c->err;
}

/* Lowest first, because the stack turns the order round. */
static int by_rank(const void *pa, const void *pb)
{
    const struct strata_region *a = *(struct strata_region *const *)pa;
    const struct strata_region *b = *(struct strata_region *const *)pb;

    if (a->priority != b->priority) {
        return a->priority < b->priority ? -1 : 1;
    }
    return a->seq < b->seq ? -1 : 1;
}

static void push_children(struct collector *c, const struct visit *v)
{
    c->nkids = 0;
    memory_itree_visit(&v->region->children, (uint64_t)((i128)v->start - v->base),
                       (uint64_t)((i128)v->last - v->base), note_kid, c);
    if (c->nkids > 1) {
        qsort(c->kids, c->nkids, sizeof(*c->kids), by_rank);
    }
    for (size_t i = 0; i < c->nkids && !c->err; i++) {
        struct visit kid = *v;

        kid.region = c->kids[i];
        kid.base = v->base + kid.region->addr;
        kid.self = false;
        stack_push(c, &kid);
    }
}

static void note_self(struct collector *c, const struct visit *v)
{
    struct note *note;

    c->err = memory_grow(c->mem, &c->notes, &c->cap_notes, c->nnotes + 1, sizeof(*c->notes));
    if (c->err) {
        return;
    }
    note = &c->notes[c->nnotes];
    note->order = c->nnotes++;
    note->piece = (struct memory_piece){
        .start = v->start,
        .last = v->last,
        .region = v->region,
        .offset = (uint64_t)((i128)v->start - v->base),
        .readonly = v->readonly,
        .nonvolatile = v->nonvolatile,
        .unmergeable = v->unmergeable,
        .romd = v->region->romd,
        .log_mask = (uint8_t)memory_region_logs(v->region),
    };
}

static void visit_one(struct collector *c, struct visit v)
{
    struct strata_region *region = v.region;

    if (v.self) {
        note_self(c, &v);
        return;
    }
    if (!region->enabled || !visit_clip(&v, v.base, region->size)) {
        return;
    }
    v.readonly |= region->readonly;
    v.nonvolatile |= region->nonvolatile;
    v.unmergeable |= region->unmergeable;
    if (region->target) {
        v.region = region->target;
        v.base -= region->offset;
        stack_push(c, &v);
        return;
    }
    if (region->terminates) {
        v.self = true;
        stack_push(c, &v);
    }
    if (region->nchildren) {
        push_children(c, &v);
    }
}

static int by_start(const void *pa, const void *pb)
{
    const struct note *a = pa, *b = pb;

    if (a->piece.start != b->piece.start) {
        return a->piece.start < b->piece.start ? -1 : 1;
    }
    return a->order < b->order ? -1 : 1;
}

/* The heap of notes that reach the sweep's address, smallest order on top. */
struct heap {
    struct note **item;
    size_t count;
};

static void heap_push(struct heap *heap, struct note *note)
{
    size_t i = heap->count++;

    while (i > 0 && heap->item[(i - 1) / 2]->order > note->order) {
        heap->item[i] = heap->item[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap->item[i] = note;
}

static void heap_pop(struct heap *heap)
{
    struct note *note = heap->item[--heap->count];
    size_t i = 0, kid;

    while ((kid = 2 * i + 1) < heap->count) {
        if (kid + 1 < heap->count && heap->item[kid + 1]->order < heap->item[kid]->order) {
            kid++;
        }
        if (heap->item[kid]->order > note->order) {
            break;
        }
        heap->item[i] = heap->item[kid];
        i = kid;
    }
    heap->item[i] = note;
}

/* Append a piece, or lengthen the last one: the same note goes on, or two could be one. */
static int emit(struct memory_pieces *out, size_t first, const struct note *note,
                const struct memory_piece *piece, const struct note **last)
{
    struct memory_piece *prev = out->count > first ? &out->item[out->count - 1] : NULL;
    bool same = prev && *last == note && prev->last + 1 == piece->start;

    *last = note;
    if (prev && (same || memory_piece_joins(prev, piece))) {
        prev->last = piece->last;
        return 0;
    }
    return memory_pieces_add(out, piece);
}

static int sweep(struct note *notes, size_t n, struct heap *heap, struct memory_pieces *out)
{
    size_t i = 0, first = out->count;
    const struct note *last = NULL;
    uint64_t at = 0;
    int err = 0;

    while (!err && (i < n || heap->count)) {
        struct memory_piece piece;

        if (!heap->count) {
            at = notes[i].piece.start;
        }
        while (i < n && notes[i].piece.start <= at) {
            heap_push(heap, &notes[i++]);
        }
        while (heap->count && heap->item[0]->piece.last < at) {
            heap_pop(heap);
        }
        if (!heap->count) {
            continue;
        }
        piece = heap->item[0]->piece;
        piece.offset += at - piece.start;
        piece.start = at;
        if (i < n && notes[i].piece.start <= piece.last) {
            piece.last = notes[i].piece.start - 1;
        }
        err = emit(out, first, heap->item[0], &piece, &last);
        if (piece.last == UINT64_MAX) {
            break;
        }
        at = piece.last + 1;
    }
    return err;
}

static int sweep_notes(struct collector *c, struct memory_pieces *out)
{
    struct heap heap = {0};
    int err;

    if (c->nnotes == 1) {
        return memory_pieces_add(out, &c->notes[0].piece);
    }
    heap.item = memory_alloc(c->mem, c->nnotes * sizeof(*heap.item));
    if (!heap.item) {
        return memory_fail_alloc(c->mem);
    }
    qsort(c->notes, c->nnotes, sizeof(*c->notes), by_start);
    err = sweep(c->notes, c->nnotes, &heap, out);
    memory_free(c->mem, heap.item, c->nnotes * sizeof(*heap.item));
    return err;
}

/*
 * Append to `out` what root shows in [start, last], in address order: disjoint, non-empty, maximal
 * within the window. root may be null or disabled: nothing. Returns 0 or -ENOMEM.
 * Lock: held. Cost: n log n for the n regions that reach the window, hidden ones included.
 */
int memory_render(struct strata_region *root, uint64_t start, uint64_t last,
                  struct memory_pieces *out)
{
    struct collector c = {.mem = out->mem};
    struct visit v = {.region = root, .start = start, .last = last};

    if (!root) {
        return 0;
    }
    stack_push(&c, &v);
    while (c.depth > 0 && !c.err) {
        visit_one(&c, c.stack[--c.depth]);
    }
    if (!c.err && c.nnotes) {
        c.err = sweep_notes(&c, out);
    }
    memory_free(c.mem, c.stack, c.cap_stack * sizeof(*c.stack));
    memory_free(c.mem, c.notes, c.cap_notes * sizeof(*c.notes));
    memory_free(c.mem, c.kids, c.cap_kids * sizeof(*c.kids));
    return c.err;
}

/* Append one piece. 0 or -ENOMEM. */
int memory_pieces_add(struct memory_pieces *pieces, const struct memory_piece *piece)
{
    int err = memory_grow(pieces->mem, &pieces->item, &pieces->cap, pieces->count + 1,
                          sizeof(*pieces->item));

    if (!err) {
        pieces->item[pieces->count++] = *piece;
    }
    return err;
}

/* Free the array. */
void memory_pieces_fini(struct memory_pieces *pieces)
{
    memory_free(pieces->mem, pieces->item, pieces->cap * sizeof(*pieces->item));
    pieces->item = NULL;
    pieces->count = pieces->cap = 0;
}
