/*
 * The tree: placing regions into containers and taking them out, cycles, destruction.
 *
 * Invariants: (1) a child is in its container's index under [addr, addr + size), cut at 2^64;
 * (2) nenabled and enabled_xor describe the container's enabled children; (3) mapped_via_alias of a
 * region counts the attached aliases in all chains that end at it.
 */
#include "memory/region.h"

#include <errno.h>
#include <stdio.h>

/* Keep the parent's record of enabled children when the child's flag or parent changes. */
void memory_tree_count_enabled(struct strata_region *child, bool enabled)
{
    struct strata_region *parent = child->container;

    if (parent) {
        parent->nenabled += enabled ? 1 : -1u;
        parent->enabled_xor ^= (uintptr_t)child;
    }
}

/*
 * Put a child under a parent at child->addr, with child->priority and child->seq. Never fails; takes
 * no reference and marks nothing. Lock: held.
 */
void memory_tree_link(struct strata_region *parent, struct strata_region *child)
{
    i128 last = (i128)child->addr + child->size - 1;
    struct strata_region *it;

    child->container = parent;
    child->node.start = child->addr;
    child->node.last = last >= ADDR_SPACE_SIZE ? UINT64_MAX
                       : last < (i128)child->addr ? child->addr : (uint64_t)last;
    child->node.heap = memory_random(child->mem);
    memory_itree_insert(&parent->children, &child->node);
    parent->nchildren++;
    if (child->enabled) {
        memory_tree_count_enabled(child, true);
    }
    for (it = child->target; it; it = it->target) {
        it->mapped_via_alias++;
    }
}

/* Undo memory_tree_link(). Lock: held. */
void memory_tree_unlink(struct strata_region *child)
{
    struct strata_region *parent = child->container, *it;

    memory_itree_remove(&parent->children, &child->node);
    parent->nchildren--;
    if (child->enabled) {
        memory_tree_count_enabled(child, false);
    }
    child->container = NULL;
    for (it = child->target; it; it = it->target) {
        it->mapped_via_alias--;
    }
}

static int add_fails(struct strata_region *parent, struct strata_region *child)
{
    struct strata_memory *mem = parent->mem;
    bool found;

    if (child->mem != mem || child == parent) {
        return memory_fail(mem, EINVAL, "'%s' cannot go into '%s'", child->name, parent->name);
    }
    if (child->container) {
        return memory_fail(mem, EINVAL, "'%s' is in '%s' already", child->name,
                           child->container->name);
    }
    if (parent->target) {
        return memory_fail(mem, EINVAL, "'%s' is an alias and takes no children", parent->name);
    }
    if (parent->dead || child->dead) {
        return memory_fail(mem, EINVAL, "'%s' or '%s' has been destroyed", parent->name,
                           child->name);
    }
    if (!child->nchildren && !child->target) {
        return 0; /* neither contains nor shows anything */
    }
    found = memory_reach_search(parent, child);
    return found ? memory_fail(mem, ELOOP, "'%s' in '%s' would contain or show itself",
                               child->name, parent->name)
                 : 0;
}

/* Is the container part of a space that shows things? */
static bool is_in_a_space(const struct strata_region *region)
{
    while (region->container) {
        region = region->container;
    }
    return !list_is_empty(&region->spaces);
}

static int find_tie(void *opaque, struct itree_node *node)
{
    const struct strata_region *child = opaque;
    const struct strata_region *other = container_of(node, struct strata_region, node);

    return other != child && other->priority == child->priority && other->enabled && other->size &&
           (other->terminates || child->terminates);
}

/* Strict mode: say so when a region that was just placed shows nothing, or ties with a sibling. */
static void warn_if_odd(const struct strata_region *child)
{
    const struct strata_memory_config *config = &child->mem->config;
    const struct strata_region *parent = child->container;
    char text[256] = "";

    if (config->mode != STRATA_STRICT || !config->warn || !child->enabled || !child->size ||
        child->mem->depth > 1) {
        return;
    }
    if (memory_itree_visit(&parent->children, child->node.start, child->node.last, find_tie,
                           (void *)child)) {
        snprintf(text, sizeof(text), "'%s' overlaps a sibling of the same priority in '%s'",
                 child->name, parent->name);
    } else if (child->terminates && list_is_empty(&child->ranges) && is_in_a_space(parent)) {
        snprintf(text, sizeof(text), "'%s' in '%s' is hidden altogether", child->name, parent->name);
    }
    if (text[0]) {
        config->warn(config->warn_ctx, text);
    }
}

/*
 * Place a region in a container.
 * addr: offset in the parent, anywhere (what sticks out is cut); priority: higher wins.
 * Returns 0; -EINVAL, -ELOOP as in strata/region.h; -EBUSY in a callback; -ENOMEM; what a listener's
 * prepare refused with. The parent holds the child from then on.
 * Lock: taken. Source: QEMU memory_region_add_subregion_overlap().
 * Differs: QEMU asserts where this returns errors, and does not look for cycles through aliases.
 */
int strata_region_add_overlap(struct strata_region *parent, strata_addr addr,
                              struct strata_region *child, int priority)
{
    struct strata_memory *mem = parent->mem;
    int err = memory_change_begin(mem, "add", child);

    if (err) {
        return err;
    }
    err = add_fails(parent, child);
    if (!err && child->enabled) {
        err = memory_reach_mark_child(parent, addr, child->size);
    }
    if (!err) {
        struct strata_region old = *child;

        child->addr = addr;
        child->priority = priority;
        child->seq = mem->next_seq++;
        memory_tree_link(parent, child);
        err = memory_change_commit(mem);
        if (err) {
            memory_tree_unlink(child);
            child->addr = old.addr;
            child->priority = old.priority;
            child->seq = old.seq;
        } else {
            memory_region_get(child, parent->owner);
            warn_if_odd(child);
        }
    }
    memory_change_done(mem);
    return err;
}

/* The same with priority 0. Source: QEMU memory_region_add_subregion(). */
int strata_region_add(struct strata_region *parent, strata_addr addr, struct strata_region *child)
{
    return strata_region_add_overlap(parent, addr, child, 0);
}

/*
 * Take a region out of its container. Returns 0; -EINVAL when it is in none; -EBUSY, -ENOMEM or a
 * refusal as above, and then it is still in. Lock: taken. Source: QEMU memory_region_del_subregion().
 */
int strata_region_remove(struct strata_region *child)
{
    struct strata_memory *mem = child->mem;
    struct strata_region *parent;
    int err = memory_change_begin(mem, "remove", child);

    if (err) {
        return err;
    }
    parent = child->container;
    if (!parent) {
        err = memory_fail(mem, EINVAL, "'%s' is in no container", child->name);
    } else if (child->enabled) {
        err = memory_reach_mark_child(parent, child->addr, child->size);
    }
    if (!err) {
        memory_tree_unlink(child);
        err = memory_change_commit(mem);
        if (err) {
            memory_tree_link(parent, child);
        } else {
            memory_region_put(child, parent->owner);
        }
    }
    memory_change_done(mem);
    return err;
}

/* Unlink all children into a chain, to be linked back or let go. */
static struct strata_region *children_unlink(struct strata_region *region)
{
    struct strata_region *chain = NULL;
    struct itree_node *node;

    while ((node = region->children.root)) {
        struct strata_region *child = container_of(node, struct strata_region, node);

        memory_tree_unlink(child);
        child->undo_next = chain;
        chain = child;
    }
    return chain;
}

static void children_finish(struct strata_region *region, struct strata_region *chain, bool undo)
{
    while (chain) {
        struct strata_region *child = chain;

        chain = child->undo_next;
        child->undo_next = NULL;
        if (undo) {
            memory_tree_link(region, child);
        } else {
            memory_region_put(child, region->owner);
        }
    }
}

/*
 * Finalise a region: out of its container, its children out of it, one transaction, and the
 * creator's reference dropped. Views, mappings and aliases may hold it a while longer, but it shows
 * no children and cannot be attached again. Returns 0; -EINVAL for a second call; -EBUSY, -ENOMEM or
 * a refusal, with nothing changed. Lock: taken. Source: QEMU memory_region_finalize().
 * Differs: an alias on a destroyed region goes on showing it; QEMU leaves that to reference counts.
 */
int strata_region_destroy(struct strata_region *region)
{
    struct strata_memory *mem = region->mem;
    struct strata_region *parent, *chain;
    int err = memory_change_begin(mem, "destroy", region);

    if (err) {
        return err;
    }
    parent = region->container;
    if (region->dead) {
        err = memory_fail(mem, EINVAL, "'%s' has been destroyed", region->name);
    } else if (parent || region->nchildren) {
        err = memory_reach_mark_all(region);
    }
    if (!err) {
        if (parent) {
            memory_tree_unlink(region);
        }
        chain = children_unlink(region);
        err = memory_change_commit(mem);
        if (err && parent) {
            memory_tree_link(parent, region);
        }
        children_finish(region, chain, err != 0);
        if (!err) {
            region->dead = true;
            mem->retire.urgent = true;
            if (parent) {
                memory_region_put(region, parent->owner);
            }
            memory_region_put(region, NULL);
        }
    }
    memory_change_done(mem);
    return err;
}
