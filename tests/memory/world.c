/* A small world kept twice; see world.h. */
#include "memory/world.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const struct strata_io_ops quiet_ops;

uint64_t world_random(struct world *w, uint64_t below)
{
    w->seed ^= w->seed << 13;
    w->seed ^= w->seed >> 7;
    w->seed ^= w->seed << 17;
    return below ? (w->seed >> 11) % below : 0;
}

static uint64_t bytes(const struct world *w, int64_t units)
{
    __uint128_t wide = (__uint128_t)units << w->shift;

    return wide > UINT64_MAX ? STRATA_SIZE_ALL : (uint64_t)wide;
}

static struct world_sum *sum_of(struct world *w, const struct strata_space *space)
{
    for (int i = 0; i < WORLD_SPACES; i++) {
        if (w->space[i] == space) {
            return &w->sum[i];
        }
    }
    return NULL;
}

__attribute__((noinline)) static void fault(struct world_sum *sum, const char *what)
{
    if (!sum->fault) {
        sum->fault = what;
    }
}

static void on_add(void *opaque, const struct strata_section *s)
{
    struct world_sum *sum = sum_of(opaque, s->space);

    if (!sum) {
        return; /* a space that is just being made: its sum is taken at the end of it */
    }
    sum->calls++;
    for (int i = 0; i < sum->count; i++) {
        if (s->start <= sum->piece[i].last && sum->piece[i].start <= s->last) {
            fault(sum, "added over a piece that is there");
        }
    }
    if (sum->count == WORLD_PIECES || s->start > s->last) {
        fault(sum, "too many or empty pieces");
        return;
    }
    sum->piece[sum->count++] = *s;
}

static void on_del(void *opaque, const struct strata_section *s)
{
    struct world_sum *sum = sum_of(opaque, s->space);

    if (!sum) {
        return;
    }
    sum->calls++;
    for (int i = 0; i < sum->count; i++) {
        if (sum->piece[i].start == s->start) {
            if (sum->piece[i].last != s->last || sum->piece[i].region != s->region ||
                sum->piece[i].offset != s->offset) {
                fault(sum, "deleted something else than was added");
            }
            sum->piece[i] = sum->piece[--sum->count];
            return;
        }
    }
    fault(sum, "deleted a piece that is not there");
}

static const struct strata_listener_ops sum_ops = {.region_add = on_add, .region_del = on_del};

bool world_init(struct world *w, unsigned shift, uint64_t seed, const struct strata_memory_config *c)
{
    struct strata_listener_desc desc = {.name = "sum", .ops = &sum_ops, .opaque = w};

    memset(w, 0, sizeof(*w));
    painter_init(&w->painter);
    w->shift = shift;
    w->seed = seed * 2654435761u + 88172645463325252u;
    if (strata_memory_new(c, &w->mem) != 0) {
        return false;
    }
    return strata_listener_register(w->mem, &desc, &w->listener) == 0;
}

void world_fini(struct world *w)
{
    strata_memory_free(w->mem);
}

int world_add_node(struct world *w, enum strata_kind kind, bool answers, int64_t size, int target,
                   int64_t offset)
{
    int i = w->nodes;
    char name[16];
    struct strata_region_desc d = {.kind = kind, .name = name, .size = bytes(w, size)};

    snprintf(name, sizeof(name), "r%d", i);
    if (kind == STRATA_IO || (kind == STRATA_CONTAINER && answers)) {
        d.ops = &quiet_ops;
    }
    if (kind == STRATA_ALIAS) {
        d.target = w->region[target];
        d.offset = bytes(w, offset);
    }
    if (i == PAINTER_MAX || strata_region_new(w->mem, &d, &w->region[i]) != 0) {
        return -1;
    }
    w->painter.node[i] = (struct painter_node){
        .used = true,
        .enabled = true,
        .answers = kind != STRATA_ALIAS && (kind != STRATA_CONTAINER || answers),
        .size = size,
        .offset = offset,
        .target = kind == STRATA_ALIAS ? target : -1,
        .parent = -1,
    };
    return w->nodes++;
}

static int take_piece(void *opaque, const struct strata_section *s)
{
    struct world_sum *sum = opaque;

    if (sum->count < WORLD_PIECES) {
        sum->piece[sum->count++] = *s;
    }
    return 0;
}

bool world_add_space(struct world *w, int index, int root)
{
    char name[16];

    snprintf(name, sizeof(name), "s%d", index);
    w->root[index] = root;
    if (strata_space_new(w->mem, name, w->region[root], &w->space[index]) != 0) {
        w->space[index] = NULL;
        return false;
    }
    memset(&w->sum[index], 0, sizeof(w->sum[index]));
    strata_space_for_each(w->space[index], take_piece, &w->sum[index]);
    return true;
}

/* Random nodes: containers, devices, aliases of what is there, not yet placed. Node 0 is a root. */
void world_populate(struct world *w, int nodes)
{
    world_add_node(w, STRATA_CONTAINER, world_random(w, 4) == 0, WORLD_UNITS, -1, 0);
    while (w->nodes < nodes) {
        unsigned kind = (unsigned)world_random(w, 10);
        int64_t size = 1 + (int64_t)world_random(w, world_random(w, 3) ? 16 : WORLD_UNITS);
        int64_t offset = (int64_t)world_random(w, world_random(w, 2) ? 4 : WORLD_UNITS / 2);
        int made;

        if (kind < 3) {
            made = world_add_node(w, STRATA_CONTAINER, kind == 0, size, -1, 0);
        } else if (kind < 6) {
            made = world_add_node(w, STRATA_ALIAS, false, size,
                                  (int)world_random(w, (uint64_t)w->nodes), offset);
        } else {
            made = world_add_node(w, kind == 9 ? STRATA_RESERVATION : STRATA_IO, true, size, -1, 0);
        }
        if (made < 0) {
            return;
        }
        if (world_random(w, 5)) { /* most are in the tree, many right under the root */
            world_step(w, 0, (unsigned)made,
                       world_random(w, 2) ? 0 : (unsigned)world_random(w, (uint64_t)made),
                       (unsigned)world_random(w, 100000));
        }
    }
}

/* A device shown in slices by neighbouring aliases, some of which must not be merged: the case in
 * which two ways of cutting a window could differ. */
void world_slice(struct world *w)
{
    int target = world_add_node(w, STRATA_IO, true, WORLD_UNITS, -1, 0);

    for (int i = 0; i < 8; i++) {
        int made = world_add_node(w, STRATA_ALIAS, false, 4, target, 4 * i);

        if (made < 0) {
            return;
        }
        world_step(w, 0, (unsigned)made, 0, (unsigned)(8 + 4 * i) + 64 * 2);
        world_step(w, 11, (unsigned)made, (unsigned)world_random(w, 2), 0);
    }
}

/* A random change, leaning towards trees in which much shows. */
int world_random_step(struct world *w)
{
    unsigned op = (unsigned)world_random(w, 12), a = (unsigned)world_random(w, (uint64_t)w->nodes);
    unsigned b = (unsigned)world_random(w, 1000);

    if (a == 0 && world_random(w, 8)) {
        a = (unsigned)world_random(w, (uint64_t)w->nodes);
    }
    if (w->painter.node[a].parent < 0 && a != 0 && world_random(w, 4)) {
        op = 0;
        b = world_random(w, 2) ? 0 : b;
    }
    return world_step(w, op, a, b, (unsigned)world_random(w, 100000));
}

static int step_add(struct world *w, int node, int parent, int64_t addr, int priority)
{
    struct painter_node *n = &w->painter.node[node];
    bool cycle = painter_contains(&w->painter, node, parent);
    int err = strata_region_add_overlap(w->region[parent], bytes(w, addr), w->region[node], priority);

    if (n->parent >= 0 || w->painter.node[parent].target >= 0 || node == parent || cycle) {
        if (err != -EINVAL && err != -ELOOP) {
            snprintf(w->why, sizeof(w->why), "add of r%d to r%d: %d", node, parent, err);
            return -EPROTO;
        }
        return 0;
    }
    if (err == 0) {
        painter_place(&w->painter, node, parent, addr, priority);
    }
    return err;
}

static int step_flag(struct world *w, int node, unsigned which, bool on)
{
    struct painter_node *n = &w->painter.node[node];
    bool *flag = which == 0 ? &n->readonly : which == 1 ? &n->nonvolatile : &n->unmergeable;
    int err = which == 0   ? strata_region_set_readonly(w->region[node], on)
              : which == 1 ? strata_region_set_nonvolatile(w->region[node], on)
                           : strata_region_set_unmergeable(w->region[node], on);

    if (err == 0) {
        *flag = on;
    }
    return err;
}

/* One random change in both worlds: 0, -ENOMEM (nothing changed), -EPROTO: the library answered
 * wrongly. */
int world_step(struct world *w, unsigned op, unsigned a, unsigned b, unsigned c)
{
    int node = (int)(a % (unsigned)w->nodes), other = (int)(b % (unsigned)w->nodes), err = 0;
    struct painter_node *n = &w->painter.node[node];
    int64_t addr = (int64_t)(c % WORLD_UNITS);

    switch (op % 12) {
    case 0:
    case 1:
    case 2:
        return step_add(w, node, other, addr, (int)(c / 64 % 5) - 2);
    case 3:
        err = strata_region_remove(w->region[node]);
        if ((err == -EINVAL) != (n->parent < 0)) {
            return err == -ENOMEM ? err : -EPROTO;
        }
        n->parent = err == 0 ? -1 : n->parent;
        return err == -EINVAL ? 0 : err;
    case 4:
    case 5:
        err = strata_region_set_enabled(w->region[node], b % 3 != 0);
        n->enabled = err ? n->enabled : b % 3 != 0;
        return err;
    case 6:
        err = strata_region_set_address(w->region[node], bytes(w, addr));
        if (!err && n->addr != addr) {
            n->addr = addr;
            n->placed = n->parent >= 0 ? ++w->painter.clock : n->placed;
        }
        return err;
    case 7:
        err = strata_region_set_size(w->region[node], bytes(w, addr + (b % 8 != 0)));
        n->size = err ? n->size : addr + (b % 8 != 0);
        return err;
    case 8:
        if (n->target < 0) {
            return strata_region_set_alias_offset(w->region[node], 0) == -EINVAL ? 0 : -EPROTO;
        }
        err = strata_region_set_alias_offset(w->region[node], bytes(w, addr));
        n->offset = err ? n->offset : addr;
        return err;
    default:
        return step_flag(w, node, op % 12 - 9, b % 2);
    }
}

static int by_start(const struct strata_section *list, int n, int from)
{
    int best = from;

    for (int i = from; i < n; i++) {
        best = list[i].start < list[best].start ? i : best;
    }
    return best;
}

static bool piece_agrees(struct world *w, const struct painter_piece *p, const struct strata_section *s)
{
    uint64_t unit_last = (((uint64_t)p->last << w->shift) | (((uint64_t)1 << w->shift) - 1));

    return s->start == (uint64_t)p->start << w->shift && s->last == unit_last &&
           s->region == w->region[p->node] && s->offset == (uint64_t)p->offset << w->shift &&
           s->path_readonly == p->readonly && s->nonvolatile == p->nonvolatile &&
           s->unmergeable == p->unmergeable;
}

static bool list_agrees(struct world *w, int index, struct world_sum *list, const char *what)
{
    struct painter_piece want[WORLD_UNITS];
    int n = painter_pieces(&w->painter, w->root[index], WORLD_UNITS, want);

    if (list->fault || n != list->count) {
        snprintf(w->why, sizeof(w->why), "space %d, %s: %d pieces, want %d; %s", index, what,
                 list->count, n, list->fault ? list->fault : "");
        return false;
    }
    for (int i = 0; i < n; i++) {
        int at = by_start(list->piece, n, i);
        struct strata_section s = list->piece[at];

        list->piece[at] = list->piece[i];
        list->piece[i] = s;
        if (!piece_agrees(w, &want[i], &s)) {
            snprintf(w->why, sizeof(w->why),
                     "space %d, %s: piece %d is [%llx, %llx] of %s+%llx, want [%llx, %llx] of r%d+%llx",
                     index, what, i, (unsigned long long)s.start, (unsigned long long)s.last,
                     strata_region_name(s.region), (unsigned long long)s.offset,
                     (unsigned long long)want[i].start, (unsigned long long)want[i].last,
                     want[i].node, (unsigned long long)want[i].offset);
            return false;
        }
    }
    return true;
}

/* Lookups of the first and last byte of every unit. */
static bool lookups_agree(struct world *w, int index)
{
    for (int64_t unit = 0; unit < WORLD_UNITS; unit++) {
        struct painter_spot spot = painter_look(&w->painter, w->root[index], unit);
        uint64_t first = (uint64_t)unit << w->shift;
        uint64_t probe[2] = {first, first + (((uint64_t)1 << w->shift) - 1)};

        for (int i = 0; i < 2; i++) {
            struct strata_section s;
            int err = strata_space_lookup(w->space[index], probe[i], &s);

            if ((err == 0) != (spot.node >= 0) ||
                (!err && (s.region != w->region[spot.node] ||
                          s.offset + (probe[i] - s.start) !=
                              ((uint64_t)spot.offset << w->shift) + (probe[i] - first)))) {
                snprintf(w->why, sizeof(w->why), "space %d: lookup of %llx differs from r%d", index,
                         (unsigned long long)probe[i], spot.node);
                return false;
            }
        }
    }
    return true;
}

bool world_agrees(struct world *w)
{
    bool ok = strata_check(w->mem) == 0;

    if (!ok) {
        snprintf(w->why, sizeof(w->why), "checker: %s", strata_memory_error(w->mem));
    }
    for (int i = 0; i < WORLD_SPACES && ok; i++) {
        struct world_sum view = {.count = 0};

        if (!w->space[i]) {
            continue;
        }
        strata_space_for_each(w->space[i], take_piece, &view);
        strata_read_begin(w->mem);
        ok = list_agrees(w, i, &view, "view") && list_agrees(w, i, &w->sum[i], "listener sum") &&
             lookups_agree(w, i);
        strata_read_end(w->mem);
    }
    return ok;
}
