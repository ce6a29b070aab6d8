/*
 * Eventfds and coalesced ranges. A region's eventfds are an immutable sorted array, replaced whole:
 * accesses match writes against it without a lock, flat ranges remember which version listeners
 * were told of. Source: QEMU memory_region_add_eventfd(), memory_region_add_coalescing(), by rule.
 */
#include "memory/events.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "memory/notify.h"

static size_t events_size(unsigned count)
{
    return sizeof(struct memory_events) + count * sizeof(struct strata_eventfd);
}

/* One more holder; null is fine. Lock: held. */
struct memory_events *memory_events_get(struct memory_events *events)
{
    if (events) {
        events->refs++;
    }
    return events;
}

static void events_free(struct strata_memory *mem, struct memory_retired *retired)
{
    struct memory_events *events = container_of(retired, struct memory_events, retired);

    memory_free(mem, events, events_size(events->count));
}

/* One holder less; the last retires it, as an access may be looking. Lock: held. */
void memory_events_put(struct strata_memory *mem, struct memory_events *events)
{
    if (events && --events->refs == 0) {
        memory_retire(mem, &events->retired, events_free);
    }
}

/* Order by address, size, match flag, data (when it counts), descriptor. */
int memory_event_compare(const struct strata_eventfd *a, const struct strata_eventfd *b)
{
    if (a->addr != b->addr) {
        return a->addr < b->addr ? -1 : 1;
    }
    if (a->size != b->size) {
        return a->size < b->size ? -1 : 1;
    }
    if (a->match_data != b->match_data) {
        return a->match_data < b->match_data ? -1 : 1;
    }
    if (a->match_data && a->data != b->data) {
        return a->data < b->data ? -1 : 1;
    }
    return a->fd < b->fd ? -1 : a->fd > b->fd;
}

static int event_fails(const struct strata_region *region, const struct strata_eventfd *ev)
{
    bool size_ok = ev->size == 0 || ev->size == 1 || ev->size == 2 || ev->size == 4 || ev->size == 8;

    if (!size_ok || (ev->size == 0 && ev->match_data) || ev->fd < 0) {
        return memory_fail(region->mem, EINVAL, "eventfd of '%s': size %u", region->name, ev->size);
    }
    if ((i128)ev->addr + ev->size > region->size) {
        return memory_fail(region->mem, EINVAL, "eventfd of '%s' beyond its end", region->name);
    }
    return 0;
}

/* What a listener compares with: the bytes as the bus carries them. */
static struct strata_eventfd event_normal(const struct strata_region *region,
                                          const struct strata_eventfd *ev)
{
    struct strata_eventfd out = *ev;

    if (!out.match_data) {
        out.data = 0;
    } else if (region->ops && region->ops->endian == STRATA_BIG_ENDIAN && out.size > 1) {
        out.data = __builtin_bswap64(out.data) >> (64 - 8 * out.size);
    }
    return out;
}

/* Swap a region's array for one with (add) or without the event at `at`, and commit. */
static int events_replace(struct strata_region *region, unsigned at, const struct strata_eventfd *add)
{
    struct strata_memory *mem = region->mem;
    struct memory_events *old = region->events, *now = NULL;
    unsigned n = old ? old->count : 0, count = add ? n + 1 : n - 1;
    bool was_pending = region->events_pending;
    int err;

    if (count) {
        now = memory_alloc(mem, events_size(count));
        if (!now) {
            return memory_fail_alloc(mem);
        }
        now->refs = 1;
        now->count = count;
        for (unsigned i = 0; i < at; i++) {
            now->item[i] = old->item[i];
        }
        if (add) {
            now->item[at] = *add;
        }
        for (unsigned i = at + !add; i < n; i++) {
            now->item[i + (add ? 1 : -1)] = old->item[i];
        }
    }
    base_rcu_publish(&region->events, now);
    if (!was_pending) {
        region->events_pending = true;
        list_add_tail(&mem->event_regions, &region->event_node);
    }
    err = memory_change_commit(mem);
    if (err) {
        base_rcu_publish(&region->events, old);
        if (!was_pending) {
            region->events_pending = false;
            list_del(&region->event_node);
        }
        memory_events_put(mem, now);
        return err;
    }
    memory_events_put(mem, old);
    return 0;
}

static int event_change(struct strata_region *region, const struct strata_eventfd *ev, bool add)
{
    struct strata_memory *mem = region->mem;
    struct strata_eventfd wanted;
    unsigned at = 0, n;
    int order = 1, err = memory_change_begin(mem, add ? "eventfd add" : "eventfd del", region);

    if (err) {
        return err;
    }
    n = region->events ? region->events->count : 0;
    wanted = event_normal(region, ev);
    while (at < n && (order = memory_event_compare(&region->events->item[at], &wanted)) < 0) {
        at++;
    }
    order = at < n ? order : 1;
    if (add) {
        err = event_fails(region, ev);
        if (!err && order == 0) {
            err = memory_fail(mem, EEXIST, "eventfd of '%s' is there already", region->name);
        }
    } else if (order != 0) {
        err = memory_fail(mem, ENOENT, "'%s' has no such eventfd", region->name);
    }
    if (!err) {
        err = events_replace(region, at, add ? &wanted : NULL);
    }
    memory_change_done(mem);
    return err;
}

/*
 * Let a write to a region signal a descriptor: told to listeners, and matched by this library's own
 * accesses before the callback. Returns 0; -EINVAL, -EEXIST as in strata/eventfd.h; -EBUSY, -ENOMEM.
 * Lock: taken. Differs: QEMU asserts on what is refused here.
 */
int strata_region_add_eventfd(struct strata_region *region, const struct strata_eventfd *ev)
{
    return event_change(region, ev, true);
}

/* Take back what was added with the same description. 0; -ENOENT, -EBUSY, -ENOMEM. Lock: taken. */
int strata_region_del_eventfd(struct strata_region *region, const struct strata_eventfd *ev)
{
    return event_change(region, ev, false);
}

/*
 * Signal the first eventfd of a region that a write of `size` bytes of `data` at `addr` hits; true
 * when one was. data: host representation of the bytes as the bus carries them. In a read section.
 */
bool memory_events_signal(struct strata_region *region, strata_addr addr, unsigned size,
                          uint64_t data)
{
    const struct memory_events *events = base_rcu_load(&region->events);
    static const uint64_t one = 1;

    for (unsigned i = 0; events && i < events->count; i++) {
        const struct strata_eventfd *ev = &events->item[i];

        if (ev->addr == addr && (ev->size == 0 || ev->size == size) &&
            (!ev->match_data || ev->data == data)) {
            /* A full counter (EAGAIN) has been signalled already; any other failure is the owner of
             * the descriptor's, as it is when the kernel signals. */
            return write(ev->fd, &one, sizeof(one)) == (ssize_t)sizeof(one) || errno == EAGAIN;
        }
    }
    return false;
}

/* The part of a coalesced range that a section shows, absolute; false when none. */
bool memory_coalesced_clip(const struct strata_section *s, const struct memory_coalesced *c,
                           strata_addr *start, uint64_t *size)
{
    struct addr_range shown = addr_range_make(s->offset, (i128)s->last - s->start + 1);
    struct addr_range both =
        addr_range_intersect(shown, addr_range_make(c->start, (i128)c->size));

    if (addr_range_is_empty(both)) {
        return false;
    }
    *start = (uint64_t)(both.start - s->offset + s->start);
    *size = (uint64_t)both.size;
    return true;
}

/* Tell every listener of one coalesced range of a region, wherever it shows. */
static void coalesced_tell(struct strata_region *region, const struct memory_coalesced *c, bool add)
{
    struct strata_memory *mem = region->mem;
    struct list *it, *jt;

    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);

        list_for_each(jt, &region->ranges) {
            struct memory_range *range = list_entry(jt, struct memory_range, region_node);
            struct strata_section s;
            strata_addr start;
            uint64_t size;

            if (!space->listened || range->view != memory_space_view(space)) {
                continue;
            }
            memory_range_section(range, space, &s);
            if (memory_coalesced_clip(&s, c, &start, &size)) {
                memory_notify_coalesced(&s, start, size, add);
            }
        }
    }
}

/*
 * Let writes to [addr, addr + size) of a region be buffered by the accelerator. Returns 0; -EINVAL
 * for an empty range or one beyond the end; -EBUSY in a callback; -ENOMEM. Told at once.
 * Lock: taken. Source: QEMU memory_region_add_coalescing().
 */
int strata_region_add_coalesced(struct strata_region *region, strata_addr addr, uint64_t size)
{
    struct strata_memory *mem = region->mem;
    int err = memory_change_begin(mem, "coalesce", region);

    if (err) {
        return err;
    }
    if (!size || (i128)addr + size > region->size) {
        err = memory_fail(mem, EINVAL, "coalesced range of '%s' is empty or beyond its end",
                          region->name);
    }
    if (!err) {
        err = memory_grow(mem, &region->coalesced, &region->cap_coalesced, region->ncoalesced + 1,
                          sizeof(*region->coalesced));
    }
    if (!err) {
        struct memory_coalesced *c = &region->coalesced[region->ncoalesced++];

        *c = (struct memory_coalesced){addr, size};
        strata_region_set_flush_coalesced(region, true);
        mem->in_callback = true;
        coalesced_tell(region, c, true);
        mem->in_callback = false;
    }
    memory_change_done(mem);
    return err;
}

/* Deliver what is buffered, then remove every coalesced range of a region. 0 or -EBUSY. Lock: taken.
 * Source: QEMU memory_region_clear_coalescing(). */
int strata_region_clear_coalesced(struct strata_region *region)
{
    struct strata_memory *mem = region->mem;
    int err = memory_change_begin(mem, "uncoalesce", region); /* drains */

    if (err) {
        return err;
    }
    mem->in_callback = true;
    while (region->ncoalesced) {
        coalesced_tell(region, &region->coalesced[--region->ncoalesced], false);
    }
    mem->in_callback = false;
    strata_region_set_flush_coalesced(region, false);
    memory_change_done(mem);
    return 0;
}

/* Deliver what is buffered before any access to this region. Takes effect at once. */
void strata_region_set_flush_coalesced(struct strata_region *region, bool flush)
{
    __atomic_store_n(&region->flush_coalesced, flush, __ATOMIC_RELAXED);
}
