/*
 * Address spaces, and looking things up in them. A space is its root and the view it shows now; all
 * that changes views is in commit.c.
 */
#include <errno.h>
#include <string.h>

#include "memory/dispatch.h"
#include "memory/notify.h"
#include "memory/space.h"
#include "memory/sum.h"

/* The canonical root of a space may have changed: look at the next commit. Lock: held. */
void memory_space_suspect(struct strata_space *space)
{
    if (list_is_empty(&space->moved_node)) {
        list_add_tail(&space->mem->moved_spaces, &space->moved_node);
    }
}

static void space_destroy(struct strata_space *space)
{
    struct strata_memory *mem = space->mem;

    memory_space_fini_waiters(space);
    pthread_mutex_destroy(&space->wait_lock);
    memory_sums_free(space);
    memory_free(mem, space->name, strlen(space->name) + 1);
    memory_free(mem, space, sizeof(*space));
}

static void space_free(struct strata_memory *mem, struct memory_retired *retired)
{
    space_destroy(container_of(retired, struct strata_space, retired));
}

static void space_unlink(struct strata_space *space)
{
    struct strata_region *root = space->root;

    list_del(&space->root_node);
    list_del(&space->node);
    list_del(&space->moved_node);
    memory_space_view(space)->spaces--;
    space->root = NULL;
    memory_listeners_count(space->mem);
    memory_region_put(root, NULL);
}

static struct strata_space *space_make(struct strata_memory *mem, const char *name)
{
    struct strata_space *space = memory_zalloc(mem, sizeof(*space));

    if (!space || !(space->name = memory_strdup(mem, name ? name : ""))) {
        memory_free(mem, space, sizeof(*space));
        return NULL;
    }
    space->mem = mem;
    if (memory_sums_for_space(space) != 0) {
        memory_sums_free(space);
        memory_free(mem, space->name, strlen(space->name) + 1);
        memory_free(mem, space, sizeof(*space));
        return NULL;
    }
    space->bounce_budget = MEMORY_BOUNCE_DEFAULT;
    pthread_mutex_init(&space->wait_lock, NULL);
    list_init(&space->node);
    list_init(&space->root_node);
    list_init(&space->moved_node);
    return space;
}

/*
 * Make a space that shows a region tree. name: for printers and journals, copied. The root is held.
 * Returns 0; -EBUSY in a callback; -ENOMEM or a listener's refusal: nothing is left of it.
 * Lock: taken. Source: QEMU address_space_init().
 */
int strata_space_new(struct strata_memory *mem, const char *name, struct strata_region *root,
                     struct strata_space **out)
{
    struct strata_space *space;
    int err = memory_change_begin(mem, "space new", NULL);

    if (err) {
        return err;
    }
    space = root && root->mem == mem ? space_make(mem, name) : NULL;
    if (!space) {
        err = root && root->mem == mem ? memory_fail_alloc(mem)
                                       : memory_fail(mem, EINVAL, "a space needs a root");
        goto out;
    }
    space->root = root;
    space->head.view = &mem->empty_view->head;
    mem->empty_view->spaces++;
    memory_region_get(root, NULL);
    list_add_tail(&root->spaces, &space->root_node);
    list_add_tail(&mem->spaces, &space->node);
    memory_listeners_count(mem);
    memory_space_suspect(space);
    err = memory_change_commit(mem);
    if (err) {
        space_unlink(space);
        space_destroy(space);
    } else {
        *out = space;
    }
out:
    memory_change_done(mem);
    return err;
}

/*
 * Take a space away: listeners are told that all it showed is gone; accesses that are under way end
 * undisturbed. Mappings in it must have been given back. In a transaction it goes at once, with
 * everything else that is pending. Returns 0; -EBUSY in a callback; -ENOMEM or a refusal: it stays.
 * Lock: taken. Source: QEMU address_space_destroy().
 */
int strata_space_free(struct strata_space *space)
{
    struct strata_memory *mem = space->mem;
    struct strata_region *root = space->root;
    struct list *it, *tmp;
    int err = memory_change_begin(mem, "space free", NULL);

    if (err) {
        return err;
    }
    space->root = NULL;
    memory_space_suspect(space);
    err = memory_commit_now(mem);
    space->root = root;
    if (!err) {
        list_for_each_safe(it, tmp, &mem->listeners) {
            struct strata_listener *l = list_entry(it, struct strata_listener, node);

            if (l->space == space) { /* nothing is left to tell it */
                strata_listener_unregister(l);
            }
        }
        space_unlink(space);
        memory_retire(mem, &space->retired, space_free);
    }
    memory_change_done(mem);
    return err;
}

/* The handle goes and there is no memory to commit with: leave the space without telling. Lock: held,
 * and no listener is left. */
void memory_space_abandon(struct strata_space *space)
{
    struct memory_view *view = memory_space_view(space);

    space_unlink(space);
    if (view->spaces == 0 && view != space->mem->empty_view) {
        memory_view_drop(view);
    }
    memory_retire(space->mem, &space->retired, space_free);
}

/* Its name. */
const char *strata_space_name(const struct strata_space *space)
{
    return space->name;
}

/* Its root region. */
struct strata_region *strata_space_root(const struct strata_space *space)
{
    return space->root;
}

/* The handle it belongs to. */
struct strata_memory *strata_space_memory(const struct strata_space *space)
{
    return space->mem;
}

/* Do both show one view object? */
bool strata_space_shares_view(const struct strata_space *a, const struct strata_space *b)
{
    return base_rcu_load(&a->head.view) == base_rcu_load(&b->head.view);
}

/* What an unassigned read gives: all ones, or zero (the default). Takes effect at once. */
void strata_space_set_open_bus(struct strata_space *space, bool ones)
{
    __atomic_store_n(&space->open_bus, ones, __ATOMIC_RELAXED);
}

/* The radix root that readers use now. In a read section. */
uintptr_t memory_space_dispatch(const struct strata_space *space)
{
    struct strata_fast_view *view = base_rcu_load(&space->head.view);

    return base_rcu_load(&view->root);
}

/*
 * What shows at an address. section: filled on success; borrowed from the read section that the
 * caller is in. Returns 0 or -ENOENT.
 */
int strata_space_lookup(struct strata_space *space, strata_addr addr, struct strata_section *section)
{
    const struct memory_range *range = memory_dispatch_find(memory_space_dispatch(space), addr);

    if (!range) {
        return -ENOENT;
    }
    memory_range_section(range, space, section);
    return 0;
}

/* The lowest range at or above addr under an entry; the entry covers up to the node's own end. */
static const struct memory_range *dispatch_next(uintptr_t entry, strata_addr addr)
{
    const struct memory_node *node;
    uint64_t i;

    if (!(entry & 1)) {
        const struct memory_range *range = (const struct memory_range *)entry;

        return range && range->head.last >= addr ? range : NULL;
    }
    node = memory_node_of(entry);
    i = addr > node->head.base ? (addr - node->head.base) >> node->head.shift : 0;
    for (; i < node->head.count; i++) {
        const struct memory_range *range =
            node->head.slot[i] ? dispatch_next(node->head.slot[i], addr) : NULL;

        if (range) {
            return range;
        }
    }
    return NULL;
}

static void section_clip(struct strata_section *s, strata_addr start, strata_addr last)
{
    if (s->start < start) {
        s->offset += start - s->start;
        s->host = s->host ? (char *)s->host + (start - s->start) : NULL;
        s->start = start;
    }
    if (s->last > last) {
        s->last = last;
    }
}

/* The lowest piece in [addr, last], clipped to it; see strata/address_space.h. 0 or -ENOENT. */
int strata_space_next(struct strata_space *space, strata_addr addr, strata_addr last,
                      struct strata_section *section)
{
    const struct memory_range *range = dispatch_next(memory_space_dispatch(space), addr);

    if (!range || range->head.start > last) {
        return -ENOENT;
    }
    memory_range_section(range, space, section);
    section_clip(section, addr, last);
    return 0;
}

/* The space whose root is the top of the tree that a region is in, and where the region begins. */
static struct strata_space *top_space(const struct strata_region *region, i128 *base)
{
    *base = 0;
    for (; region->container; region = region->container) {
        *base += region->addr;
    }
    return list_is_empty(&region->spaces)
               ? NULL
               : list_entry(region->spaces.next, struct strata_space, root_node);
}

/*
 * Find what shows first in [addr, addr + size) of a region, through containers (not aliases) up to
 * the space they end in. section: addresses relative to the region; its region is referenced.
 * Returns 0 or -ENOENT. Lock: taken. Source: QEMU memory_region_find().
 * Differs: the un-mergeable attribute is reported.
 */
int strata_region_find(struct strata_region *parent, strata_addr addr, uint64_t size,
                       struct strata_section *section)
{
    struct strata_memory *mem = parent->mem;
    struct strata_space *space;
    struct strata_section s;
    i128 base, start, last;
    int err = -ENOENT;

    memory_lock(mem);
    space = top_space(parent, &base);
    start = base + addr;
    last = size == STRATA_SIZE_ALL ? ADDR_SPACE_SIZE - 1 : start + size - 1;
    if (last >= ADDR_SPACE_SIZE) {
        last = ADDR_SPACE_SIZE - 1;
    }
    if (space && size && start <= last) {
        base_rcu_read_lock();
        err = strata_space_next(space, (uint64_t)start, (uint64_t)last, &s);
        if (!err) {
            strata_region_ref(s.region);
        }
        base_rcu_read_unlock();
    }
    if (!err) {
        s.start = (uint64_t)((i128)s.start - base);
        s.last = (uint64_t)((i128)s.last - base);
        *section = s;
    }
    memory_unlock(mem);
    return err;
}

/* Does something other than the region itself show at addr of it? Lock: taken.
 * Source: QEMU memory_region_present(). */
bool strata_region_present(struct strata_region *parent, strata_addr addr)
{
    struct strata_section s;
    bool present;

    if (strata_region_find(parent, addr, 1, &s) != 0) {
        return false;
    }
    present = s.region != parent;
    strata_region_unref(s.region);
    return present;
}

struct walk {
    struct strata_space *space;
    int (*fn)(void *opaque, const struct strata_section *section);
    void *opaque;
};

static int walk_range(void *opaque, struct itree_node *node)
{
    struct walk *w = opaque;
    struct strata_section s;

    memory_range_section(container_of(node, struct memory_range, node), w->space, &s);
    return w->fn(w->opaque, &s);
}

/* Call fn for each piece in address order until it returns nonzero, which is returned. fn must not
 * change the topology (-EBUSY). Lock: held during the calls. */
int strata_space_for_each(struct strata_space *space,
                          int (*fn)(void *opaque, const struct strata_section *section), void *opaque)
{
    struct strata_memory *mem = space->mem;
    struct walk w = {space, fn, opaque};
    bool nested;
    int ret;

    memory_lock(mem);
    nested = mem->in_callback;
    mem->in_callback = true;
    ret = memory_itree_visit(&memory_space_view(space)->ranges, 0, UINT64_MAX, walk_range, &w);
    mem->in_callback = nested;
    memory_unlock(mem);
    return ret;
}
