/* The painter; see memory_painter.h. Slow on purpose. */
#include "oracle/memory_painter.h"

#include <string.h>

void painter_init(struct painter *p)
{
    memset(p, 0, sizeof(*p));
    for (int i = 0; i < PAINTER_MAX; i++) {
        p->node[i].target = p->node[i].parent = -1;
    }
}

void painter_place(struct painter *p, int node, int parent, int64_t addr, int priority)
{
    p->node[node].parent = parent;
    p->node[node].addr = addr;
    p->node[node].priority = priority;
    p->node[node].placed = ++p->clock;
}

/* The best child not yet tried: highest priority, among equals the one placed last. */
static int next_child(const struct painter *p, int parent, const bool *tried)
{
    int best = -1;

    for (int i = 0; i < PAINTER_MAX; i++) {
        const struct painter_node *n = &p->node[i];

        if (!n->used || n->parent != parent || tried[i]) {
            continue;
        }
        if (best < 0 || n->priority > p->node[best].priority ||
            (n->priority == p->node[best].priority && n->placed > p->node[best].placed)) {
            best = i;
        }
    }
    return best;
}

static bool look(const struct painter *p, int node, int64_t unit, struct painter_spot *spot)
{
    const struct painter_node *n = &p->node[node];
    struct painter_spot before = *spot;
    bool tried[PAINTER_MAX] = {false};
    int child;

    if (!n->enabled || unit < 0 || unit >= n->size) {
        return false;
    }
    spot->readonly |= n->readonly;
    spot->nonvolatile |= n->nonvolatile;
    spot->unmergeable |= n->unmergeable;
    spot->path = spot->path * 1000003 + (uint64_t)node + 1;
    if (n->target >= 0) {
        if (look(p, n->target, unit + n->offset, spot)) {
            return true;
        }
        *spot = before;
        return false;
    }
    while ((child = next_child(p, node, tried)) >= 0) {
        struct painter_spot inner = *spot;

        tried[child] = true;
        if (look(p, child, unit - p->node[child].addr, &inner)) {
            *spot = inner;
            return true;
        }
    }
    if (n->answers) {
        spot->node = node;
        spot->offset = unit;
        return true;
    }
    *spot = before;
    return false;
}

struct painter_spot painter_look(const struct painter *p, int root, int64_t unit)
{
    struct painter_spot spot = {.node = -1};

    look(p, root, unit, &spot);
    return spot;
}

static bool goes_on(const struct painter_spot *a, const struct painter_spot *b)
{
    bool alike = a->node == b->node && a->offset + 1 == b->offset && a->readonly == b->readonly &&
                 a->nonvolatile == b->nonvolatile && a->unmergeable == b->unmergeable;

    return alike && (a->path == b->path || !a->unmergeable);
}

int painter_pieces(const struct painter *p, int root, int64_t units, struct painter_piece *out)
{
    struct painter_spot last = {.node = -1};
    int n = 0;

    for (int64_t unit = 0; unit < units; unit++) {
        struct painter_spot spot = painter_look(p, root, unit);

        if (spot.node >= 0 && last.node >= 0 && goes_on(&last, &spot)) {
            out[n - 1].last = unit;
        } else if (spot.node >= 0) {
            out[n++] = (struct painter_piece){unit,          unit,
                                              spot.offset,   spot.node,
                                              spot.readonly, spot.nonvolatile,
                                              spot.unmergeable};
        }
        last = spot;
    }
    return n;
}

/* Is `what` among `from` and all it contains or shows? */
bool painter_contains(const struct painter *p, int from, int what)
{
    if (from == what) {
        return true;
    }
    if (p->node[from].target >= 0 && painter_contains(p, p->node[from].target, what)) {
        return true;
    }
    for (int i = 0; i < PAINTER_MAX; i++) {
        if (p->node[i].used && p->node[i].parent == from && painter_contains(p, i, what)) {
            return true;
        }
    }
    return false;
}
