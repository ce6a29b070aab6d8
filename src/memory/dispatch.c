/* Building the dispatch radix; see dispatch.h. Reading it is strata_fast_find(). */
#include "memory/dispatch.h"

#include <string.h>

#define LEVELS     8
#define CACHE_MAX  64
#define FULL_COUNT 512

/* Of the nodes of each level: how far a slot index is shifted, and how many slots there are. */
static const uint8_t level_shift[LEVELS] = {57, 48, 39, 30, 21, 12, 3, 0};
static const uint16_t level_count[LEVELS] = {128, 512, 512, 512, 512, 512, 512, 8};

/* What a subtree may cover: a node's or a slot's span. */
struct span {
    uint64_t base, last;
    unsigned level; /* of the nodes that cover exactly this */
};

/* The change that is carried down. */
struct change {
    struct memory_dispatch_plan *plan;
    uint64_t start, last;
    uintptr_t value;
};

static size_t node_size(unsigned level)
{
    return sizeof(struct memory_node) + level_count[level] * sizeof(uintptr_t);
}

static struct memory_node *node_alloc(struct strata_memory *mem, unsigned level)
{
    struct memory_node *node = mem->node_cache;

    if (level_count[level] == FULL_COUNT && node) {
        mem->node_cache = node->next;
        mem->node_cached--;
        return node;
    }
    return memory_alloc(mem, node_size(level));
}

static void node_free(struct strata_memory *mem, struct memory_node *node)
{
    if (node->head.count == FULL_COUNT && mem->node_cached < CACHE_MAX) {
        node->next = mem->node_cache;
        mem->node_cache = node;
        mem->node_cached++;
    } else {
        memory_free(mem, node, node_size(node->level));
    }
}

static void node_retired(struct strata_memory *mem, struct memory_retired *retired)
{
    node_free(mem, container_of(retired, struct memory_node, retired));
}

/* A node of this plan, its slots not yet set. Null with plan->err on failure. */
static struct memory_node *node_make(struct memory_dispatch_plan *plan, unsigned level)
{
    struct memory_node *node = node_alloc(plan->mem, level);

    if (!node) {
        plan->err = memory_fail_alloc(plan->mem);
        return NULL;
    }
    node->level = (uint8_t)level;
    node->stamp = plan->stamp;
    node->dropped = false;
    node->head.shift = level_shift[level];
    node->head.count = level_count[level];
    node->next = plan->made;
    plan->made = node;
    return node;
}

/* A node for a span, all slots alike. */
static struct memory_node *node_new(struct memory_dispatch_plan *plan, const struct span *span,
                                    uintptr_t fill)
{
    struct memory_node *node = node_make(plan, span->level);

    if (node) {
        node->head.base = span->base;
        node->used = fill ? level_count[span->level] : 0;
        for (unsigned i = 0; i < node->head.count; i++) {
            node->head.slot[i] = fill;
        }
    }
    return node;
}

/* The plan lets go of a node; its slots are somebody else's. */
static void node_drop(struct memory_dispatch_plan *plan, struct memory_node *node)
{
    if (node->stamp == plan->stamp) {
        node->dropped = true;
    } else {
        node->next = plan->gone;
        plan->gone = node;
    }
}

/* A version of the node that the plan may write. */
static struct memory_node *node_own(struct memory_dispatch_plan *plan, struct memory_node *node)
{
    struct memory_node *copy;

    if (node->stamp == plan->stamp) {
        return node;
    }
    copy = node_make(plan, node->level);
    if (copy) {
        copy->head.base = node->head.base;
        copy->used = node->used;
        memcpy(copy->head.slot, node->head.slot, node->head.count * sizeof(uintptr_t));
        node_drop(plan, node);
    }
    return copy;
}

static void subtree_drop(struct memory_dispatch_plan *plan, uintptr_t entry)
{
    struct memory_node *node;

    if (!(entry & 1)) {
        return;
    }
    node = memory_node_of(entry);
    for (unsigned i = 0, left = node->used; left > 0 && i < node->head.count; i++) {
        left -= node->head.slot[i] != 0;
        subtree_drop(plan, node->head.slot[i]);
    }
    node_drop(plan, node);
}

static uint64_t node_last(const struct memory_node *node)
{
    return node->head.base + (((uint64_t)node->head.count << node->head.shift) - 1);
}

static unsigned slot_index(uint64_t addr, const struct span *span)
{
    return (unsigned)((addr - span->base) >> level_shift[span->level]);
}

static struct span slot_span(const struct span *span, unsigned i)
{
    unsigned shift = level_shift[span->level];
    uint64_t base = span->base + ((uint64_t)i << shift);

    return (struct span){base, base + ((UINT64_C(1) << shift) - 1), span->level + 1};
}

/* Keep invariants 2 and 3 after the node's slots changed. */
static uintptr_t node_settle(struct memory_dispatch_plan *plan, struct memory_node *node)
{
    uintptr_t first = node->head.slot[0];

    if (node->used == 0) {
        node_drop(plan, node);
        return 0;
    }
    if (first && !(first & 1)) {
        const struct strata_fast_range *range = (const struct strata_fast_range *)first;

        if (range->last >= node_last(node) && node->head.slot[node->head.count - 1] == first) {
            node_drop(plan, node);
            return first;
        }
    }
    if (node->used == 1) {
        unsigned i = 0;

        while (!node->head.slot[i]) {
            i++;
        }
        if (node->head.slot[i] & 1) {
            uintptr_t only = node->head.slot[i];

            node_drop(plan, node);
            return only;
        }
    }
    return memory_node_entry(node);
}

static uintptr_t set_entry(struct change *c, uintptr_t entry, struct span span);

/* Set what lies in a node's span, slot by slot. */
static uintptr_t set_in_node(struct change *c, struct memory_node *node, const struct span *span)
{
    uint64_t start = c->start > span->base ? c->start : span->base;
    uint64_t last = c->last < span->last ? c->last : span->last;
    unsigned first_slot = slot_index(start, span), last_slot = slot_index(last, span);

    node = node_own(c->plan, node);
    for (unsigned i = first_slot; node && i <= last_slot && !c->plan->err; i++) {
        uintptr_t old = node->head.slot[i];
        uintptr_t now = set_entry(c, old, slot_span(span, i));

        node->head.slot[i] = now;
        node->used = (uint16_t)(node->used + (now != 0) - (old != 0));
    }
    return c->plan->err ? 0 : node_settle(c->plan, node);
}

/* The span that both the change and `low`..`high` lie in, as far down as they stay in one slot. */
static struct span narrow(const struct change *c, struct span span, uint64_t low, uint64_t high)
{
    uint64_t start = c->start > span.base ? c->start : span.base;
    uint64_t last = c->last < span.last ? c->last : span.last;

    low = low < start ? low : start;
    high = high > last ? high : last;
    while (slot_index(low, &span) == slot_index(high, &span)) {
        struct span slot = slot_span(&span, slot_index(low, &span));

        if (slot.level == LEVELS || (low == slot.base && high == slot.last)) {
            break;
        }
        span = slot;
    }
    return span;
}

/*
 * The entry for a span after the change. Nothing or a range there: make a node. A node that covers
 * just this span: change its slots. A node further down: join the change below, beside or above it.
 */
static uintptr_t set_entry(struct change *c, uintptr_t entry, struct span span)
{
    struct memory_node *node, *old;

    if (c->start <= span.base && c->last >= span.last) {
        subtree_drop(c->plan, entry);
        return c->value;
    }
    if (!(entry & 1)) {
        if (entry == c->value) {
            return entry;
        }
        if (!entry) {
            span = narrow(c, span, c->start > span.base ? c->start : span.base,
                          c->last < span.last ? c->last : span.last);
        }
        node = node_new(c->plan, &span, entry);
        return node ? set_in_node(c, node, &span) : 0;
    }
    old = memory_node_of(entry);
    if (c->last < old->head.base || c->start > node_last(old)) {
        if (!c->value) {
            return entry;
        }
    } else if (!c->value && c->start <= old->head.base && c->last >= node_last(old)) {
        subtree_drop(c->plan, entry);
        return 0;
    }
    if ((c->start > span.base ? c->start : span.base) >= old->head.base &&
        (c->last < span.last ? c->last : span.last) <= node_last(old)) {
        span = (struct span){old->head.base, node_last(old), old->level};
        return set_in_node(c, old, &span);
    }
    span = narrow(c, span, old->head.base, node_last(old));
    node = node_new(c->plan, &span, 0);
    if (!node) {
        return 0;
    }
    node->head.slot[slot_index(old->head.base, &span)] = entry;
    node->used = 1;
    return set_in_node(c, node, &span);
}

/* Start a plan; nothing is allocated. Lock: held until it is published or dropped. */
void memory_dispatch_begin(struct strata_memory *mem, struct memory_dispatch_plan *plan)
{
    *plan = (struct memory_dispatch_plan){.mem = mem, .stamp = ++mem->stamp};
}

/*
 * Make [span->start, span->last] show `range` (null: nothing) in the radix under `root`, an entry of
 * a published radix or of this plan. Returns the new root entry; meaningless when plan->err is set.
 */
uintptr_t memory_dispatch_set(struct memory_dispatch_plan *plan, uintptr_t root,
                              const struct memory_window *span, const struct memory_range *range)
{
    struct change c = {plan, span->start, span->last, (uintptr_t)(range ? &range->head : NULL)};
    struct span all = {0, UINT64_MAX, 0};

    return plan->err ? root : set_entry(&c, root, all);
}

/* The new roots are in force: retire what they replaced. Never fails. */
void memory_dispatch_publish(struct memory_dispatch_plan *plan)
{
    struct memory_node *node, *next;

    for (node = plan->made; node; node = next) {
        next = node->next;
        if (node->dropped) {
            node_free(plan->mem, node);
        }
    }
    for (node = plan->gone; node; node = next) {
        next = node->next;
        memory_retire(plan->mem, &node->retired, node_retired);
    }
    plan->made = plan->gone = NULL;
}

/* Forget the plan: the old roots stay. */
void memory_dispatch_drop(struct memory_dispatch_plan *plan)
{
    struct memory_node *node, *next;

    for (node = plan->made; node; node = next) {
        next = node->next;
        node_free(plan->mem, node);
    }
    plan->made = plan->gone = NULL;
}

/* Free a radix that no reader can see. */
void memory_dispatch_free(struct strata_memory *mem, uintptr_t root)
{
    struct memory_node *node;

    if (!(root & 1)) {
        return;
    }
    node = memory_node_of(root);
    for (unsigned i = 0; i < node->head.count; i++) {
        memory_dispatch_free(mem, node->head.slot[i]);
    }
    node_free(mem, node);
}

/* Free the cache of nodes. */
void memory_dispatch_fini(struct strata_memory *mem)
{
    struct memory_node *node, *next;

    for (node = mem->node_cache; node; node = next) {
        next = node->next;
        memory_free(mem, node, node_size(node->level));
    }
    mem->node_cache = NULL;
    mem->node_cached = 0;
}
