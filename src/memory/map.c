/*
 * Mappings for DMA: a pointer into guest RAM, or a bounce buffer for what cannot be pointed at.
 *
 * A direct mapping reaches over neighbouring ranges as long as they show the same region without a
 * gap. Bounce buffers come out of a budget per space; when it is spent, a device waits, and all that
 * wait are called, once and in order, when some of it comes back. A bounce buffer is zeroed when it
 * is not read into, and never written back further than it reaches.
 * Source: QEMU address_space_map() and _unmap(), by rule. Differs: in strict mode the write-back has
 * the attributes of the mapping; QEMU and compatible mode drop them.
 */
#include <errno.h>

#include "memory/access.h"
#include "memory/ram.h"
#include "memory/space.h"

#define MAGIC_DIRECT UINT64_C(0x7374726174614d44)
#define MAGIC_BOUNCE UINT64_C(0x7374726174614d42)

struct memory_waiter {
    struct memory_waiter *next;
    void (*fn)(void *opaque);
    void *opaque;
};

/* How far the region goes on without a gap, from a place on. */
static uint64_t extend(const struct memory_access *access, const struct memory_place *first,
                       strata_addr addr, uint64_t len)
{
    struct strata_region *region = memory_place_region(first);
    uint64_t offset = memory_place_offset(first), done = first->len;

    while (done < len && addr + done > addr) {
        struct memory_place next;

        memory_translate(access, addr + done, len - done, &next);
        if (!next.range || memory_place_region(&next) != region ||
            memory_place_offset(&next) != offset + done ||
            !memory_place_is_direct(&next, access)) {
            break;
        }
        done += next.len;
    }
    return done;
}

/* Take up to `want` bytes out of a space's budget. */
static uint64_t budget_take(struct strata_space *space, uint64_t want)
{
    uint64_t used = __atomic_load_n(&space->bounce_used, __ATOMIC_RELAXED), take;

    do {
        uint64_t budget = __atomic_load_n(&space->bounce_budget, __ATOMIC_RELAXED);

        take = used < budget ? budget - used : 0;
        take = take < want ? take : want;
    } while (take && !__atomic_compare_exchange_n(&space->bounce_used, &used, used + take, false,
                                                  __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
    return take;
}

/* Give bytes back, and call those who wait. */
static void budget_return(struct strata_space *space, uint64_t bytes)
{
    struct memory_waiter *list, *next;

    __atomic_fetch_sub(&space->bounce_used, bytes, __ATOMIC_ACQ_REL);
    pthread_mutex_lock(&space->wait_lock);
    list = space->waiters;
    space->waiters = NULL;
    pthread_mutex_unlock(&space->wait_lock);
    for (; list; list = next) {
        next = list->next;
        list->fn(list->opaque);
        memory_free(space->mem, list, sizeof(*list));
    }
}

static int map_bounce(struct strata_mapping *m, struct strata_region *region, uint64_t len)
{
    struct strata_space *space = m->space;
    uint64_t take = budget_take(space, len);

    m->len = 0;
    if (!take) {
        return -EAGAIN;
    }
    m->bounce = memory_zalloc(space->mem, take);
    if (!m->bounce) {
        budget_return(space, take);
        return -ENOMEM;
    }
    m->magic = MAGIC_BOUNCE;
    m->ptr = m->bounce;
    m->len = take;
    m->region = region;
    if (region) {
        strata_region_ref(region);
    }
    if (!m->write) {
        strata_read(space, m->addr, m->attrs, m->bounce, take);
    }
    return 0;
}

/*
 * Map [addr, addr + len); m->attrs is given. On success m->ptr and m->len (1..len) are set and the
 * region is held until strata_unmap(). Failure leaves ptr null and len 0: -EAGAIN when the bounce
 * budget is spent; -EACCES when only memory will do and there is none; -EINVAL for len 0; -ENOMEM.
 */
int strata_map_attrs(struct strata_space *space, strata_addr addr, uint64_t len, bool write,
                     struct strata_mapping *m)
{
    struct memory_access access = {space, m->attrs, write};
    struct memory_place place;
    int err = 0;

    *m = (struct strata_mapping){.space = space, .addr = addr, .attrs = access.attrs, .write = write};
    if (!len) {
        return -EINVAL;
    }
    base_rcu_read_lock();
    memory_translate(&access, addr, len, &place);
    if (memory_place_is_direct(&place, &access)) {
        m->ptr = memory_place_host(&place);
        m->region = memory_place_region(&place);
        m->offset = memory_place_offset(&place);
        m->len = extend(&access, &place, addr, len);
        m->magic = MAGIC_DIRECT;
        strata_region_ref(m->region);
    } else if (m->attrs.memory) {
        err = -EACCES;
    } else {
        err = map_bounce(m, place.range ? memory_place_region(&place) : NULL, place.len);
    }
    base_rcu_read_unlock();
    return err;
}

/* Map without attributes. */
int strata_map(struct strata_space *space, strata_addr addr, uint64_t len, bool write,
               struct strata_mapping *m)
{
    m->attrs = (struct strata_attrs){0};
    return strata_map_attrs(space, addr, len, write, m);
}

/*
 * Give a mapping back. accessed: bytes that were read or written, cut to the mapping's length; what
 * was written is marked dirty, or written to the device. Returns 0; -EINVAL: not mapped (again).
 */
int strata_unmap(struct strata_mapping *m, uint64_t accessed)
{
    struct strata_space *space = m->space;
    struct strata_region *region = m->region;
    uint64_t len = accessed < m->len ? accessed : m->len, total = m->len;
    void *bounce = m->bounce;

    if (m->magic != MAGIC_DIRECT && m->magic != MAGIC_BOUNCE) {
        return -EINVAL;
    }
    if (m->magic == MAGIC_DIRECT && m->write) {
        strata_region_set_dirty(region, m->offset, len);
    } else if (m->write && len) {
        bool keep = space->mem->config.mode == STRATA_STRICT;

        strata_write(space, m->addr, keep ? m->attrs : STRATA_ATTRS_NONE, bounce, len);
    }
    *m = (struct strata_mapping){0};
    if (bounce) {
        memory_free(space->mem, bounce, total);
        budget_return(space, total);
    }
    if (region) {
        strata_region_unref(region);
    }
    return 0;
}

/* How many bytes of bounce buffers a space may have out at once. Takes effect at once. */
void strata_space_set_bounce_budget(struct strata_space *space, uint64_t bytes)
{
    __atomic_store_n(&space->bounce_budget, bytes, __ATOMIC_RELAXED);
}

/*
 * Be called once when budget has come back; at once when there is some already. fn runs in the
 * thread that unmapped, and may map. Returns 0 or -ENOMEM.
 */
int strata_map_wait(struct strata_space *space, void (*fn)(void *opaque), void *opaque)
{
    struct memory_waiter *waiter = memory_zalloc(space->mem, sizeof(*waiter)), **at;

    if (!waiter) {
        return -ENOMEM;
    }
    waiter->fn = fn;
    waiter->opaque = opaque;
    pthread_mutex_lock(&space->wait_lock);
    for (at = &space->waiters; *at; at = &(*at)->next) {
    }
    *at = waiter;
    pthread_mutex_unlock(&space->wait_lock);
    if (__atomic_load_n(&space->bounce_used, __ATOMIC_ACQUIRE) <
        __atomic_load_n(&space->bounce_budget, __ATOMIC_RELAXED)) {
        budget_return(space, 0);
    }
    return 0;
}

/* Do not call after all. Nothing happens when it has been called. */
void strata_map_cancel(struct strata_space *space, void (*fn)(void *opaque), void *opaque)
{
    struct memory_waiter **at, *gone = NULL;

    pthread_mutex_lock(&space->wait_lock);
    for (at = &space->waiters; *at; at = &(*at)->next) {
        if ((*at)->fn == fn && (*at)->opaque == opaque) {
            gone = *at;
            *at = gone->next;
            break;
        }
    }
    pthread_mutex_unlock(&space->wait_lock);
    memory_free(space->mem, gone, sizeof(*gone));
}

/* The space goes: forget who waits. */
void memory_space_fini_waiters(struct strata_space *space)
{
    while (space->waiters) {
        struct memory_waiter *waiter = space->waiters;

        space->waiters = waiter->next;
        memory_free(space->mem, waiter, sizeof(*waiter));
    }
}
