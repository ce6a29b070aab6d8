/*
 * Sources of a discard manager: each says of its own granules whether they are there; a byte is when
 * all sources agree. A change of one source is told to listeners where it changes that, which is where
 * all the others have it populated: as runs, clipped to what each listener asked for.
 *
 *   source "hot plug"   ++++++++--------++++++++
 *   source "shared"     ++++----++++----++++++++
 *   listeners           ++++------------++++++++
 *
 * Sources are chained for readers under RCU; their bits are atomic. Lock: the handle's for the rest.
 * Source: QEMU's RamDiscardManager with several RamDiscardSources, by rule.
 */
#include <errno.h>

#include "memory/discard.h"
#include "memory/ram.h"

static bool granule_get(const struct strata_discard_source *s, uint64_t g)
{
    return __atomic_load_n(&s->populated[g / 64], __ATOMIC_RELAXED) >> (g % 64) & 1;
}

static void granules_set(struct strata_discard_source *s, uint64_t offset, uint64_t len, bool on)
{
    for (uint64_t g = offset / s->granularity; g < (offset + len) / s->granularity; g++) {
        uint64_t bit = UINT64_C(1) << (g % 64);

        if (on) {
            __atomic_fetch_or(&s->populated[g / 64], bit, __ATOMIC_RELAXED);
        } else {
            __atomic_fetch_and(&s->populated[g / 64], ~bit, __ATOMIC_RELAXED);
        }
    }
}

/* Bytes of the region, in whole granules of the coarsest kind that the source knows. */
static uint64_t source_end(const struct strata_discard_source *s)
{
    return s->granules * s->granularity;
}

static uint64_t finest(const struct strata_discard_manager *m)
{
    const struct strata_discard_source *s = base_rcu_load(&m->sources);
    uint64_t granularity = s->granularity;

    for (; s; s = base_rcu_load(&s->next)) {
        granularity = s->granularity < granularity ? s->granularity : granularity;
    }
    return granularity;
}

/* Do all sources but `except` have the byte populated? Any thread, in a read section or locked. */
static bool agreed(const struct strata_discard_manager *m, uint64_t offset,
                   const struct strata_discard_source *except)
{
    const struct strata_discard_source *s = base_rcu_load(&m->sources);

    for (; s; s = base_rcu_load(&s->next)) {
        if (s != except && (offset >= source_end(s) || !granule_get(s, offset / s->granularity))) {
            return false;
        }
    }
    return true;
}

/*
 * The next maximal run in [*offset, end) where agreed() is `populated`. *offset: moved to its start.
 * Returns its length, 0: there is none.
 */
uint64_t memory_discard_run(const struct strata_discard_manager *m, uint64_t *offset, uint64_t end,
                            bool populated, const struct strata_discard_source *except)
{
    uint64_t step = finest(m), at = *offset, from;

    while (at < end && agreed(m, at, except) != populated) {
        at = (at / step + 1) * step;
    }
    from = at;
    while (at < end && agreed(m, at, except) == populated) {
        at = (at / step + 1) * step;
    }
    *offset = from;
    at = at < end ? at : end;
    return from < at ? at - from : 0;
}

/* The part of [offset, offset + len) that a listener asked for, as [*from, *end). */
static void clip(const struct strata_discard_listener *l, uint64_t offset, uint64_t len,
                 uint64_t *from, uint64_t *end)
{
    *from = offset > l->offset ? offset : l->offset;
    *end = offset + len;
    if (l->len < UINT64_MAX - l->offset && l->offset + l->len < *end) {
        *end = l->offset + l->len;
    }
}

/* Tell one listener of the runs that all but `s` have populated, up to `until`: gone. */
static void tell_discard(struct strata_discard_listener *l, const struct strata_discard_source *s,
                         uint64_t from, uint64_t until)
{
    uint64_t len;

    for (; l->discard && (len = memory_discard_run(s->manager, &from, until, true, s)) != 0;
         from += len) {
        l->discard(l, from, len);
    }
}

static void tell_discard_all(struct strata_discard_source *s, uint64_t offset, uint64_t len,
                             const struct strata_discard_listener *stop)
{
    uint64_t from, end;

    for (struct strata_discard_listener *l = s->manager->listeners; l != stop; l = l->next) {
        clip(l, offset, len, &from, &end);
        tell_discard(l, s, from, end);
    }
}

/* The same: there. The first refusal takes back what this listener and those before it agreed to. */
static int tell_populate_all(struct strata_discard_source *s, uint64_t offset, uint64_t len)
{
    struct strata_discard_listener *l;
    uint64_t from, end, at, n;
    int err = 0;

    for (l = s->manager->listeners; l; l = l->next) {
        clip(l, offset, len, &from, &end);
        at = from;
        while (l->populate && (n = memory_discard_run(s->manager, &at, end, true, s)) != 0) {
            err = l->populate(l, at, n);
            if (err) {
                tell_discard(l, s, from, at);
                tell_discard_all(s, offset, len, l);
                return err;
            }
            at += n;
        }
    }
    return 0;
}

/* Are these whole granules that are all in the state `populated`? */
static int granules_fail(const struct strata_discard_source *s, uint64_t offset, uint64_t len,
                         bool populated)
{
    if (!len || offset >= source_end(s) || len > source_end(s) - offset ||
        offset % s->granularity || len % s->granularity) {
        return -EINVAL;
    }
    for (uint64_t g = offset / s->granularity; g < (offset + len) / s->granularity; g++) {
        if (granule_get(s, g) != populated) {
            return -EALREADY;
        }
    }
    return 0;
}

static void source_free(struct strata_memory *mem, struct strata_discard_source *s)
{
    memory_free(mem, s->populated, (s->granules + 63) / 64 * sizeof(uint64_t));
    memory_free(mem, s, sizeof(*s));
}

static struct strata_discard_source *source_alloc(struct strata_discard_manager *m,
                                                  uint64_t granularity, bool populated)
{
    struct strata_memory *mem = m->region->mem;
    struct strata_discard_source *s = memory_zalloc(mem, sizeof(*s));

    if (!s) {
        return NULL;
    }
    s->manager = m;
    s->granularity = granularity;
    s->granules = (m->region->ram->max_size + granularity - 1) / granularity;
    s->populated = memory_zalloc(mem, (s->granules + 63) / 64 * sizeof(uint64_t));
    if (!s->populated) {
        memory_free(mem, s, sizeof(*s));
        return NULL;
    }
    if (populated) {
        granules_set(s, 0, source_end(s), true);
    }
    return s;
}

/*
 * Add a source to a region's manager; see strata/discard.h. Where it is not populated and all others
 * are, listeners are told to discard. Returns 0; -EINVAL: bad granularity; -ENOMEM. Lock: taken.
 */
int strata_discard_source_new(struct strata_discard_manager *m, uint64_t granularity, bool populated,
                              struct strata_discard_source **out)
{
    struct strata_region *region = m->region;
    struct strata_memory *mem = region->mem;
    struct strata_discard_source *s;
    int err = 0;

    memory_lock(mem);
    if (!granularity || granularity & (granularity - 1) || granularity < region->ram->page_size) {
        err = memory_fail(mem, EINVAL, "'%s' cannot be managed in such granules", region->name);
        goto out;
    }
    s = source_alloc(m, granularity, populated);
    if (!s) {
        err = memory_fail_alloc(mem);
        goto out;
    }
    s->next = m->sources;
    if (m->sources && !populated) {
        tell_discard_all(s, 0, source_end(s), NULL);
    }
    base_rcu_publish(&m->sources, s);
    *out = s;
out:
    memory_unlock(mem);
    return err;
}

static void source_retired(struct strata_memory *mem, struct memory_retired *retired)
{
    source_free(mem, container_of(retired, struct strata_discard_source, retired));
}

/* Call fn for each run that the source alone keeps from being there. */
static int tell_held_back(struct strata_discard_source *s)
{
    uint64_t at = 0, from;
    int err = 0;

    while (!err && at < source_end(s)) {
        while (at < source_end(s) && granule_get(s, at / s->granularity)) {
            at += s->granularity;
        }
        from = at;
        while (at < source_end(s) && !granule_get(s, at / s->granularity)) {
            at += s->granularity;
        }
        err = at > from ? tell_populate_all(s, from, at - from) : 0;
        if (err) { /* the runs before this one had been agreed to */
            for (uint64_t g = 0; g < from; g += s->granularity) {
                if (!granule_get(s, g / s->granularity)) {
                    tell_discard_all(s, g, s->granularity, NULL);
                }
            }
        }
    }
    return err;
}

/*
 * Take a source away: what it alone kept away is there again, for which listeners are asked. Returns
 * 0; -EBUSY for the only source; what a listener refused with: the source stays. Lock: taken.
 */
int strata_discard_source_free(struct strata_discard_source *s)
{
    struct strata_discard_manager *m = s->manager;
    struct strata_memory *mem = m->region->mem;
    struct strata_discard_source **at;
    int err;

    memory_lock(mem);
    err = m->sources == s && !s->next ? -EBUSY : tell_held_back(s);
    if (!err) {
        for (at = &m->sources; *at != s; at = &(*at)->next) {
        }
        base_rcu_publish(at, s->next);
        m->own = m->own == s ? NULL : m->own;
        memory_retire(mem, &s->retired, source_retired);
    }
    memory_unlock(mem);
    return err;
}

/*
 * Populate whole granules of one source. Returns 0; -EINVAL; -EALREADY when some are populated; what a
 * listener refused with: those told before were told to discard, and nothing changed. Lock: taken.
 */
int strata_discard_source_populate(struct strata_discard_source *s, uint64_t offset, uint64_t len)
{
    struct strata_memory *mem = s->manager->region->mem;
    int err;

    memory_lock(mem);
    err = granules_fail(s, offset, len, false);
    err = err ? err : tell_populate_all(s, offset, len);
    if (!err) {
        granules_set(s, offset, len, true);
    }
    memory_unlock(mem);
    return err;
}

/* Discard whole granules of one source: listeners are told; the memory itself is the source's affair.
 * Returns 0; -EINVAL, -EALREADY. Lock: taken. */
int strata_discard_source_drop(struct strata_discard_source *s, uint64_t offset, uint64_t len)
{
    struct strata_memory *mem = s->manager->region->mem;
    int err;

    memory_lock(mem);
    err = granules_fail(s, offset, len, true);
    if (!err) {
        granules_set(s, offset, len, false);
        tell_discard_all(s, offset, len, NULL);
    }
    memory_unlock(mem);
    return err;
}

/* The manager goes, with all its sources. Lock: held; no reader is left. */
void memory_discard_free_sources(struct strata_memory *mem, struct strata_discard_manager *m)
{
    while (m->sources) {
        struct strata_discard_source *s = m->sources;

        m->sources = s->next;
        source_free(mem, s);
    }
}

/* Bytes per granule: of the finest source. */
uint64_t strata_discard_granularity(const struct strata_discard_manager *m)
{
    uint64_t granularity;

    base_rcu_read_lock();
    granularity = finest(m);
    base_rcu_read_unlock();
    return granularity;
}

/* Is every byte of the range populated, by all sources? Any thread. */
bool strata_discard_is_populated(const struct strata_discard_manager *m, uint64_t offset,
                                 uint64_t len)
{
    uint64_t at = offset;
    bool all;

    if (!len || offset + (len - 1) < offset) {
        return false;
    }
    base_rcu_read_lock();
    all = memory_discard_run(m, &at, offset + len, true, NULL) == len && at == offset;
    base_rcu_read_unlock();
    return all;
}
