/*
 * The checker: walks trees, views, radixes and lists, and names the first thing that does not hold.
 *
 *   tree     parent and child agree; counts of children, enabled children, aliases are right
 *   views    ranges sorted, disjoint, non-empty, maximal; each in its region's list, flags up to date;
 *            equal to what rendering the whole tree gives
 *   radix    maps just the ranges' bytes; no node empty, alone with one node, or one range throughout
 *   spaces   show the view of their canonical root
 *   sums     what each listener was told so far, added up, is what each space shows: see sum.h
 *
 * With a transaction open or changes pending, views are not compared with trees, only checked in
 * themselves; from a callback, sums are not looked at. Lock: the handle's, taken. Source: own (invariants 1 to 3 of docs/architecture.md).
 */
#include <errno.h>

#include "memory/dispatch.h"
#include "memory/render.h"
#include "memory/sum.h"
#include "memory/view.h"

struct checker {
    struct strata_memory *mem;
    const struct memory_view *view;
    const struct memory_range *prev;
    size_t ranges;
    int err;
};

#define COMPLAIN(c, ...) ((c)->err = memory_fail((c)->mem, EUCLEAN, __VA_ARGS__))

struct children {
    struct checker *c;
    const struct strata_region *parent;
    unsigned count, enabled;
    uintptr_t enabled_xor;
};

static int check_child(void *opaque, struct itree_node *node)
{
    struct children *k = opaque;
    struct strata_region *child = container_of(node, struct strata_region, node);

    if (child->container != k->parent || node->start != child->addr) {
        return COMPLAIN(k->c, "'%s' is indexed in '%s' but not its child there", child->name,
                        k->parent->name);
    }
    k->count++;
    if (child->enabled) {
        k->enabled++;
        k->enabled_xor ^= (uintptr_t)child;
    }
    return 0;
}

static unsigned attached_aliases(const struct strata_region *region)
{
    unsigned n = 0;
    struct list *it;

    list_for_each(it, &region->aliases) {
        struct strata_region *alias = list_entry(it, struct strata_region, alias_node);

        n += (alias->container != NULL) + alias->mapped_via_alias;
    }
    return n;
}

static int check_region(struct checker *c, const struct strata_region *r)
{
    struct children k = {.c = c, .parent = r};

    if (memory_itree_visit(&r->children, 0, UINT64_MAX, check_child, &k)) {
        return c->err;
    }
    if (k.count != r->nchildren || k.enabled != r->nenabled || k.enabled_xor != r->enabled_xor) {
        return COMPLAIN(c, "'%s' miscounts its children", r->name);
    }
    if (attached_aliases(r) != r->mapped_via_alias) {
        return COMPLAIN(c, "'%s' miscounts the aliases that show it", r->name);
    }
    return 0;
}

static bool listed_in_region(const struct memory_range *range)
{
    struct list *it;

    list_for_each(it, &range->piece.region->ranges) {
        if (it == &range->region_node) {
            return true;
        }
    }
    return false;
}

static int check_range(void *opaque, struct itree_node *node)
{
    struct checker *c = opaque;
    const struct memory_range *r = container_of(node, struct memory_range, node);
    const struct memory_range *prev = c->prev;

    if (r->head.start > r->head.last || r->head.start != r->piece.start ||
        r->head.last != r->piece.last || r->view != c->view) {
        return COMPLAIN(c, "range at %llx of '%s' is malformed", (unsigned long long)r->head.start,
                        r->piece.region->name);
    }
    if (prev && prev->head.last >= r->head.start) {
        return COMPLAIN(c, "ranges overlap at %llx", (unsigned long long)r->head.start);
    }
    if (prev && memory_piece_joins(&prev->piece, &r->piece)) {
        return COMPLAIN(c, "ranges of '%s' meet at %llx and are not one", r->piece.region->name,
                        (unsigned long long)r->head.start);
    }
    if (!listed_in_region(r)) {
        return COMPLAIN(c, "range at %llx is unknown to '%s'", (unsigned long long)r->head.start,
                        r->piece.region->name);
    }
    if (memory_dispatch_find(c->view->head.root, r->head.start) != r ||
        memory_dispatch_find(c->view->head.root, r->head.last) != r) {
        return COMPLAIN(c, "the radix misses the range at %llx", (unsigned long long)r->head.start);
    }
    c->prev = r;
    c->ranges++;
    return 0;
}

/* Below an entry that covers [base, last]. Depth is at most 8. */
static int check_radix(struct checker *c, uintptr_t entry, uint64_t base, uint64_t last)
{
    const struct memory_node *node;
    unsigned used = 0, nodes = 0, i;

    if (!(entry & 1)) {
        const struct memory_range *range = (const struct memory_range *)entry;

        if (range && (range->head.start > base || range->head.last < last)) {
            return COMPLAIN(c, "a radix slot at %llx shows a range that does not fill it",
                            (unsigned long long)base);
        }
        return 0;
    }
    node = memory_node_of(entry);
    for (i = 0; i < node->head.count && !c->err; i++) {
        uint64_t at = node->head.base + ((uint64_t)i << node->head.shift);

        used += node->head.slot[i] != 0;
        nodes += node->head.slot[i] & 1;
        check_radix(c, node->head.slot[i], at, at + ((UINT64_C(1) << node->head.shift) - 1));
    }
    if (!c->err && (used != node->used || !used || (used == 1 && nodes == 1) ||
                    node->head.base < base)) {
        return COMPLAIN(c, "radix node at %llx is empty, superfluous or miscounted",
                        (unsigned long long)node->head.base);
    }
    return c->err;
}

/* Every byte the radix shows belongs to a range of the view: count what it shows. */
static i128 radix_bytes(uintptr_t entry, i128 span)
{
    const struct memory_node *node;
    i128 sum = 0;

    if (!(entry & 1)) {
        return entry ? span : 0;
    }
    node = memory_node_of(entry);
    for (unsigned i = 0; i < node->head.count; i++) {
        sum += radix_bytes(node->head.slot[i], (i128)1 << node->head.shift);
    }
    return sum;
}

static int add_bytes(void *opaque, struct itree_node *node)
{
    *(i128 *)opaque += (i128)node->last - node->start + 1;
    return 0;
}

static int check_rendering(struct checker *c, const struct memory_view *view)
{
    struct memory_pieces pieces = {.mem = c->mem};
    const struct memory_range *range = memory_range_after(view, 0);
    int err = memory_render(view->root, 0, UINT64_MAX, &pieces);

    for (size_t i = 0; i < pieces.count && !err; i++) {
        const struct memory_piece *p = &pieces.item[i];

        if (!range || !memory_piece_equal(&range->piece, p) ||
            range->piece.log_mask != p->log_mask) {
            err = COMPLAIN(c, "the view differs from its tree at %llx ('%s')",
                           (unsigned long long)p->start, p->region->name);
        }
        range = range && range->head.last != UINT64_MAX
                    ? memory_range_after(view, range->head.last + 1) : NULL;
    }
    if (!err && pieces.count != view->nranges) {
        err = COMPLAIN(c, "the view has %zu ranges, its tree %zu", view->nranges, pieces.count);
    }
    memory_pieces_fini(&pieces);
    return err;
}

static int check_view(struct checker *c, const struct memory_view *view, bool settled)
{
    i128 bytes = 0;

    c->view = view;
    c->prev = NULL;
    c->ranges = 0;
    if (memory_itree_visit(&view->ranges, 0, UINT64_MAX, check_range, c)) {
        return c->err;
    }
    if (c->ranges != view->nranges) {
        return COMPLAIN(c, "a view miscounts its ranges");
    }
    if (check_radix(c, view->head.root, 0, UINT64_MAX)) {
        return c->err;
    }
    memory_itree_visit(&view->ranges, 0, UINT64_MAX, add_bytes, &bytes);
    if (bytes != radix_bytes(view->head.root, ADDR_SPACE_SIZE)) {
        return COMPLAIN(c, "the radix shows bytes that no range has");
    }
    return settled && view->root ? check_rendering(c, view) : 0;
}

static int check_spaces(struct checker *c, bool settled)
{
    struct strata_memory *mem = c->mem;
    struct list *it;
    int err = 0;

    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);
        struct memory_view *view = memory_space_view(space);
        struct strata_region *root = memory_canonical_root(space->root);

        if (settled && (root ? root->view : mem->empty_view) != view) {
            return COMPLAIN(c, "space '%s' does not show the view of its root", space->name);
        }
        err = check_view(c, view, settled);
        err = err || mem->in_callback ? err : memory_sums_check(space);
        if (err) {
            break;
        }
    }
    return err;
}

/* Check everything; see strata/memory.h. 0, -EUCLEAN with words, -ENOMEM. Cost: all there is. */
int strata_check(struct strata_memory *mem)
{
    struct checker c = {.mem = mem};
    struct list *it;
    bool settled;
    int err = 0;

    memory_lock(mem);
    settled = !mem->depth && list_is_empty(&mem->dirty_views) && list_is_empty(&mem->moved_spaces);
    list_for_each(it, &mem->regions) {
        err = check_region(&c, list_entry(it, struct strata_region, all_node));
        if (err) {
            break;
        }
    }
    err = err ? err : check_spaces(&c, settled);
    memory_unlock(mem);
    return err;
}
