/*
 * Discarding: the policy counters of a handle, and managers of regions that are populated in parts.
 *
 * What is there is up to a manager's sources (discard_source.c); here are the manager, its listeners
 * and its own source, the one that gives memory back. Lock: the handle's, held around the calls.
 * Source: QEMU ram_block_discard_require() and RamDiscardManager, by rule.
 */
#include "memory/discard.h"

#include <errno.h>

#include "memory/ram.h"

/* May pages be given back at all? Lock: held. */
bool memory_discard_is_forbidden(const struct strata_memory *mem)
{
    return mem->discard_counts[STRATA_DISCARD_FORBID_ANY] > 0;
}

/* Which policies contradict each: bits of 1 << policy. */
static const unsigned contradicts[4] = {
    [STRATA_DISCARD_NEED_ANY] =
        1u << STRATA_DISCARD_FORBID_ANY | 1u << STRATA_DISCARD_FORBID_UNCOORDINATED,
    [STRATA_DISCARD_NEED_COORDINATED] = 1u << STRATA_DISCARD_FORBID_ANY,
    [STRATA_DISCARD_FORBID_ANY] =
        1u << STRATA_DISCARD_NEED_ANY | 1u << STRATA_DISCARD_NEED_COORDINATED,
    [STRATA_DISCARD_FORBID_UNCOORDINATED] = 1u << STRATA_DISCARD_NEED_ANY,
};

/*
 * Count a need or a ban, or take it back. Returns 0; -EBUSY when its opposite is in force; -EINVAL
 * for one that was not there. Lock: taken.
 */
int strata_discard_require(struct strata_memory *mem, enum strata_discard_policy policy, bool on)
{
    int err = 0;

    memory_lock(mem);
    if ((unsigned)policy >= 4 || (!on && !mem->discard_counts[policy])) {
        err = memory_fail(mem, EINVAL, "no such discard policy in force");
    }
    for (unsigned i = 0; on && !err && i < 4; i++) {
        if (contradicts[policy] & 1u << i && mem->discard_counts[i]) {
            err = memory_fail(mem, EBUSY, "discarding is needed and forbidden at once");
        }
    }
    if (!err) {
        mem->discard_counts[policy] += on ? 1 : -1;
    }
    memory_unlock(mem);
    return err;
}

/* Does anything discard? */
bool strata_discard_is_needed(const struct strata_memory *mem)
{
    return mem->discard_counts[STRATA_DISCARD_NEED_ANY] > 0 ||
           mem->discard_counts[STRATA_DISCARD_NEED_COORDINATED] > 0;
}

/* Does anything forbid it, at least without telling? */
bool strata_discard_is_forbidden(const struct strata_memory *mem)
{
    return memory_discard_is_forbidden(mem) ||
           mem->discard_counts[STRATA_DISCARD_FORBID_UNCOORDINATED] > 0;
}

/*
 * Make a region's manager, with a source of its own in which everything begins discarded.
 * granularity: bytes, a power of two, at least the block's page size. Returns 0; -EINVAL: no RAM or a
 * bad granularity; -EBUSY: it has one; -ENOMEM. Lock: taken.
 */
int strata_discard_manager_new(struct strata_region *region, uint64_t granularity,
                               struct strata_discard_manager **out)
{
    struct strata_memory *mem = region->mem;
    struct strata_discard_manager *m;
    int err = 0;

    memory_lock(mem);
    if (!region->ram) {
        err = memory_fail(mem, EINVAL, "'%s' has no RAM to manage", region->name);
        goto out;
    }
    if (region->discard) {
        err = memory_fail(mem, EBUSY, "'%s' has a manager", region->name);
        goto out;
    }
    m = memory_zalloc(mem, sizeof(*m));
    if (!m) {
        err = memory_fail_alloc(mem);
        goto out;
    }
    m->region = region;
    err = strata_discard_source_new(m, granularity, false, &m->own);
    if (err) {
        memory_free(mem, m, sizeof(*m));
        goto out;
    }
    base_rcu_publish(&region->discard, m);
    *out = m;
out:
    memory_unlock(mem);
    return err;
}

static void manager_free(struct strata_memory *mem, struct memory_retired *retired)
{
    struct strata_discard_manager *m = container_of(retired, struct strata_discard_manager, retired);

    memory_discard_free_sources(mem, m);
    memory_free(mem, m, sizeof(*m));
}

/* Free the manager of a region that goes: no reader is left. */
void memory_discard_free(struct strata_region *region)
{
    if (region->discard) {
        manager_free(region->mem, &region->discard->retired);
        region->discard = NULL;
    }
}

/* Take a manager away, after a grace period; its listeners are told that all is discarded. Lock: taken. */
void strata_discard_manager_free(struct strata_discard_manager *m)
{
    struct strata_memory *mem = m->region->mem;

    memory_lock(mem);
    while (m->listeners) {
        strata_discard_listener_del(m->listeners);
    }
    base_rcu_publish(&m->region->discard, NULL);
    memory_retire(mem, &m->retired, manager_free);
    memory_retire_kick(mem);
    memory_unlock(mem);
}

/* A region's manager, or null. */
struct strata_discard_manager *strata_region_discard_manager(const struct strata_region *region)
{
    return base_rcu_load(&region->discard);
}

/*
 * Populate whole granules of the manager's own source. Returns as strata_discard_source_populate();
 * -EINVAL when that source was taken away. Lock: taken.
 */
int strata_discard_populate(struct strata_discard_manager *m, uint64_t offset, uint64_t len)
{
    return m->own ? strata_discard_source_populate(m->own, offset, len) : -EINVAL;
}

/* Discard whole granules of the manager's own source: listeners are told, then the memory is given
 * back. Returns 0; -EINVAL, -EALREADY; what strata_ram_discard() failed with. Lock: taken. */
int strata_discard_drop(struct strata_discard_manager *m, uint64_t offset, uint64_t len)
{
    struct strata_memory *mem = m->region->mem;
    int err;

    memory_lock(mem);
    err = m->own ? strata_discard_source_drop(m->own, offset, len) : -EINVAL;
    if (!err) {
        uint64_t room = m->region->ram->max_size - offset;

        err = strata_ram_discard(m->region->ram, offset, len < room ? len : room);
    }
    memory_unlock(mem);
    return err;
}

/*
 * Call fn for each maximal run of populated (or discarded) memory in [offset, offset + len), clipped
 * to it, until it returns nonzero, which is returned. Lock: taken around the calls.
 */
int strata_discard_replay(struct strata_discard_manager *m, bool populated, uint64_t offset,
                          uint64_t len, strata_discard_fn fn, void *opaque)
{
    struct strata_memory *mem = m->region->mem;
    uint64_t end = m->region->ram->max_size, at = offset, n;
    int ret = 0;

    memory_lock(mem);
    end = (end + strata_discard_granularity(m) - 1) & ~(strata_discard_granularity(m) - 1);
    if (offset < end && len < end - offset) {
        end = offset + len;
    }
    while (!ret && (n = memory_discard_run(m, &at, end, populated, NULL)) != 0) {
        ret = fn(opaque, at, n);
        at += n;
    }
    memory_unlock(mem);
    return ret;
}

static int replay_one(void *opaque, uint64_t offset, uint64_t len)
{
    struct strata_discard_listener *l = opaque;

    return l->populate ? l->populate(l, offset, len) : 0;
}

static int undo_one(void *opaque, uint64_t offset, uint64_t len)
{
    struct strata_discard_listener *l = opaque;

    if (l->discard) {
        l->discard(l, offset, len);
    }
    return 0;
}

/* Register a listener and replay what is populated to it. Returns 0, or what populate() refused
 * with: it was told to discard then, and is not registered. Lock: taken. */
int strata_discard_listener_add(struct strata_discard_manager *m, struct strata_discard_listener *l)
{
    struct strata_memory *mem = m->region->mem;
    struct strata_discard_listener **at;
    int err;

    memory_lock(mem);
    err = strata_discard_replay(m, true, l->offset, l->len, replay_one, l);
    if (err) {
        strata_discard_replay(m, true, l->offset, l->len, undo_one, l);
    } else {
        for (at = &m->listeners; *at; at = &(*at)->next) {
        }
        l->manager = m;
        l->next = NULL;
        *at = l;
    }
    memory_unlock(mem);
    return err;
}

/* Tell a listener that all is discarded, and forget it. Lock: taken. */
void strata_discard_listener_del(struct strata_discard_listener *l)
{
    struct strata_discard_manager *m = l->manager;
    struct strata_memory *mem = m->region->mem;
    struct strata_discard_listener **at;

    memory_lock(mem);
    for (at = &m->listeners; *at && *at != l; at = &(*at)->next) {
    }
    if (*at) {
        *at = l->next;
        strata_discard_replay(m, true, l->offset, l->len, undo_one, l);
    }
    memory_unlock(mem);
}
