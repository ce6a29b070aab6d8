/*
 * Discarding: the policy counters of a handle, and managers of regions that are populated in parts.
 *
 * A manager's bitmap has a bit per granule, set: populated. Listeners hear of whole runs, clipped to
 * what they asked for. Populating is all or nothing: a listener that refuses makes those before it
 * discard again. Lock: the handle's, held around the calls.
 * Source: QEMU ram_block_discard_require() and RamDiscardManager, by rule.
 */
#include "memory/discard.h"

#include <errno.h>

#include "memory/ram.h"

struct strata_discard_manager {
    struct strata_region *region;
    uint64_t granularity;
    uint64_t granules;
    uint64_t *populated;
    struct strata_discard_listener *listeners; /* in order of registration */
};

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
 * Make a region's manager; everything begins discarded. granularity: bytes, a power of two, at least
 * the block's page size. Returns 0; -EINVAL: no RAM or a bad granularity; -EBUSY: it has one; -ENOMEM.
 */
int strata_discard_manager_new(struct strata_region *region, uint64_t granularity,
                               struct strata_discard_manager **out)
{
    struct strata_memory *mem = region->mem;
    struct strata_discard_manager *m = NULL;
    int err = 0;

    memory_lock(mem);
    if (!region->ram || !granularity || granularity & (granularity - 1) ||
        granularity < region->ram->page_size) {
        err = memory_fail(mem, EINVAL, "'%s' cannot be managed in such granules", region->name);
    } else if (region->discard) {
        err = memory_fail(mem, EBUSY, "'%s' has a manager", region->name);
    } else {
        uint64_t n = (region->ram->max_size + granularity - 1) / granularity;

        m = memory_zalloc(mem, sizeof(*m));
        if (m) {
            m->populated = memory_zalloc(mem, (n + 63) / 64 * sizeof(uint64_t));
        }
        if (!m || !m->populated) {
            memory_free(mem, m, sizeof(*m));
            err = memory_fail_alloc(mem);
        } else {
            m->region = region;
            m->granularity = granularity;
            m->granules = n;
            region->discard = m;
            *out = m;
        }
    }
    memory_unlock(mem);
    return err;
}

/* Free the manager of a region that goes. */
void memory_discard_free(struct strata_region *region)
{
    struct strata_discard_manager *m = region->discard;

    if (m) {
        memory_free(region->mem, m->populated, (m->granules + 63) / 64 * sizeof(uint64_t));
        memory_free(region->mem, m, sizeof(*m));
        region->discard = NULL;
    }
}

/* Take a manager away; its listeners are told that all is discarded. */
void strata_discard_manager_free(struct strata_discard_manager *m)
{
    struct strata_memory *mem = m->region->mem;

    memory_lock(mem);
    while (m->listeners) {
        strata_discard_listener_del(m->listeners);
    }
    memory_discard_free(m->region);
    memory_unlock(mem);
}

/* Bytes per granule. */
uint64_t strata_discard_granularity(const struct strata_discard_manager *m)
{
    return m->granularity;
}

/* A region's manager, or null. */
struct strata_discard_manager *strata_region_discard_manager(const struct strata_region *region)
{
    return region->discard;
}

static bool granule_get(const struct strata_discard_manager *m, uint64_t g)
{
    return __atomic_load_n(&m->populated[g / 64], __ATOMIC_RELAXED) >> (g % 64) & 1;
}

static void granules_set(struct strata_discard_manager *m, uint64_t from, uint64_t to, bool on)
{
    for (uint64_t g = from; g < to; g++) {
        uint64_t bit = UINT64_C(1) << (g % 64);

        if (on) {
            __atomic_fetch_or(&m->populated[g / 64], bit, __ATOMIC_RELAXED);
        } else {
            __atomic_fetch_and(&m->populated[g / 64], ~bit, __ATOMIC_RELAXED);
        }
    }
}

static bool in_region(const struct strata_discard_manager *m, uint64_t offset, uint64_t len)
{
    return len && offset < m->granules * m->granularity &&
           len <= m->granules * m->granularity - offset;
}

/* Is every byte of the range populated? */
bool strata_discard_is_populated(const struct strata_discard_manager *m, uint64_t offset,
                                 uint64_t len)
{
    if (!in_region(m, offset, len)) {
        return false;
    }
    for (uint64_t g = offset / m->granularity; g <= (offset + len - 1) / m->granularity; g++) {
        if (!granule_get(m, g)) {
            return false;
        }
    }
    return true;
}

/* The part of a run that a listener asked for; false: none. */
static bool clip(const struct strata_discard_listener *l, uint64_t *offset, uint64_t *len)
{
    uint64_t start = *offset > l->offset ? *offset : l->offset;
    uint64_t end = *offset + *len;

    if (l->len < UINT64_MAX - l->offset && l->offset + l->len < end) {
        end = l->offset + l->len;
    }
    if (start >= end) {
        return false;
    }
    *offset = start;
    *len = end - start;
    return true;
}

static void tell_discard(struct strata_discard_manager *m, uint64_t offset, uint64_t len,
                         const struct strata_discard_listener *until)
{
    for (struct strata_discard_listener *l = m->listeners; l != until; l = l->next) {
        uint64_t o = offset, n = len;

        if (clip(l, &o, &n) && l->discard) {
            l->discard(l, o, n);
        }
    }
}

/* Whole granules that are all in the state `populated`? */
static int granules_fail(struct strata_discard_manager *m, uint64_t offset, uint64_t len,
                         bool populated)
{
    if (!in_region(m, offset, len) || offset % m->granularity || len % m->granularity) {
        return -EINVAL;
    }
    for (uint64_t g = offset / m->granularity; g < (offset + len) / m->granularity; g++) {
        if (granule_get(m, g) != populated) {
            return -EALREADY;
        }
    }
    return 0;
}

/*
 * Populate whole granules that are discarded. Returns 0; -EINVAL; -EALREADY when some are populated;
 * what a listener refused with: those told before it were told to discard, and nothing changed.
 * Lock: taken.
 */
int strata_discard_populate(struct strata_discard_manager *m, uint64_t offset, uint64_t len)
{
    struct strata_memory *mem = m->region->mem;
    struct strata_discard_listener *l;
    int err;

    memory_lock(mem);
    err = granules_fail(m, offset, len, false);
    for (l = m->listeners; l && !err; l = l->next) {
        uint64_t o = offset, n = len;

        err = clip(l, &o, &n) && l->populate ? l->populate(l, o, n) : 0;
        if (err) {
            tell_discard(m, offset, len, l);
        }
    }
    if (!err) {
        granules_set(m, offset / m->granularity, (offset + len) / m->granularity, true);
    }
    memory_unlock(mem);
    return err;
}

/* Discard whole granules that are populated: listeners are told, then the memory is given back.
 * Returns 0; -EINVAL, -EALREADY; what strata_ram_discard() failed with. Lock: taken. */
int strata_discard_drop(struct strata_discard_manager *m, uint64_t offset, uint64_t len)
{
    struct strata_memory *mem = m->region->mem;
    int err;

    memory_lock(mem);
    err = granules_fail(m, offset, len, true);
    if (!err) {
        uint64_t room = m->region->ram->max_size - offset;

        granules_set(m, offset / m->granularity, (offset + len) / m->granularity, false);
        tell_discard(m, offset, len, NULL);
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
    uint64_t end = m->granules * m->granularity, at = offset;
    int ret = 0;

    memory_lock(mem);
    if (offset < end && len < end - offset) {
        end = offset + len;
    }
    while (at < end && !ret) {
        uint64_t g = at / m->granularity, from = at;

        while (at < end && granule_get(m, g) == populated) {
            at = ++g * m->granularity;
        }
        at = at < end ? at : end;
        if (at > from) {
            ret = fn(opaque, from, at - from);
        } else {
            at = (g + 1) * m->granularity;
        }
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
