/* Registering listeners, and the coalesced buffers that some of them keep. */
#include <errno.h>
#include <string.h>

#include "memory/notify.h"
#include "memory/sum.h"

/* Work out anew which spaces are listened to, and by somebody who wants unchanged ranges as well: a
 * space or a listener came or went. Lock: held. */
void memory_listeners_count(struct strata_memory *mem)
{
    struct list *it, *jt;
    unsigned flushers = 0;

    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);

        space->listened = mem->journal != NULL; /* it listens, too */
        space->listened_nop = false;
        list_for_each(jt, &mem->listeners) {
            struct strata_listener *l = list_entry(jt, struct strata_listener, node);

            if (memory_listener_wants(l, space)) {
                space->listened = true;
                space->listened_nop |= l->ops.region_nop != NULL;
            }
        }
    }
    list_for_each(it, &mem->listeners) {
        flushers += list_entry(it, struct strata_listener, node)->ops.coalesced_flush != NULL;
    }
    __atomic_store_n(&mem->flush_listeners, flushers, __ATOMIC_RELAXED);
}

static void listener_link(struct strata_listener *l)
{
    struct list *it;

    list_for_each(it, &l->mem->listeners) {
        if (list_entry(it, struct strata_listener, node)->priority > l->priority) {
            break;
        }
    }
    list_add_before(it, &l->node);
    memory_listeners_count(l->mem);
}

static void listener_free(struct strata_listener *l)
{
    memory_free(l->mem, l->name, strlen(l->name) + 1);
    memory_free(l->mem, l, sizeof(*l));
}

/* Who takes change sets and no single pieces gets what is there as change sets, too. Who takes both
 * has been told by pieces. */
static void tell_sets(struct strata_listener *l, const struct memory_replay *all)
{
    if (l->ops.apply) {
        memory_sum_applied(l, all->sets, all->count);
    }
    if (l->ops.apply && !l->ops.region_add && !l->ops.region_del && all->count) {
        l->ops.apply(l->opaque, all->sets, all->count);
    }
}

static int tell_all(struct strata_listener *l)
{
    struct strata_memory *mem = l->mem;
    struct memory_replay all = {0};
    struct list *it;
    int err = l->ops.apply ? memory_replay_init(l, true, &all) : 0;

    if (err) {
        return err;
    }
    mem->in_callback = true;
    if (l->ops.begin) {
        l->ops.begin(l->opaque);
    }
    if (mem->tracking_told && l->ops.log_global_start) {
        err = l->ops.log_global_start(l->opaque);
    }
    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);

        if (!err && memory_listener_wants(l, space)) {
            memory_notify_replay(l, space);
        }
    }
    if (!err) {
        tell_sets(l, &all);
    }
    if (l->ops.commit) {
        l->ops.commit(l->opaque);
    }
    mem->in_callback = false;
    memory_replay_fini(mem, &all);
    return err;
}

/*
 * Register a listener and tell it of everything that is there. What a transaction has pending is
 * told with its commit. Returns 0; -EINVAL for log_sync together with log_sync_global; -EBUSY inside
 * a callback; -ENOMEM; what log_global_start answered while tracking is on (not registered then).
 * Lock: taken. Source: QEMU memory_listener_register().
 */
int strata_listener_register(struct strata_memory *mem, const struct strata_listener_desc *desc,
                             struct strata_listener **listener)
{
    struct strata_listener *l;
    int err = 0;

    memory_lock(mem);
    if (mem->in_callback) {
        err = memory_fail(mem, EBUSY, "a listener cannot be registered from a callback");
        goto out;
    }
    if (!desc->ops || (desc->ops->log_sync && desc->ops->log_sync_global)) {
        err = memory_fail(mem, EINVAL, "a listener syncs by range or globally, not both");
        goto out;
    }
    l = memory_zalloc(mem, sizeof(*l));
    if (!l || !(l->name = memory_strdup(mem, desc->name ? desc->name : ""))) {
        memory_free(mem, l, sizeof(*l));
        err = memory_fail_alloc(mem);
        goto out;
    }
    l->mem = mem;
    l->priority = desc->priority;
    l->ops = *desc->ops;
    l->opaque = desc->opaque;
    l->space = desc->space;
    err = memory_sums_for_listener(l);
    if (err) {
        listener_free(l);
        goto out;
    }
    listener_link(l);
    err = tell_all(l);
    if (err) {
        list_del(&l->node);
        memory_listeners_count(mem);
        listener_free(l);
        goto out;
    }
    *listener = l;
out:
    memory_unlock(mem);
    return err;
}

/*
 * Tell a listener that everything goes, and forget it. Not from a callback (nothing happens then).
 * Lock: taken. Source: QEMU memory_listener_unregister().
 */
void strata_listener_unregister(struct strata_listener *l)
{
    struct strata_memory *mem = l->mem;
    struct memory_replay all = {0};
    struct list *it;

    memory_lock(mem);
    if (mem->in_callback) {
        memory_unlock(mem);
        return;
    }
    if (l->ops.apply && memory_replay_init(l, false, &all) != 0) {
        all.count = 0; /* no memory to say it with: it is only told that it is over */
    }
    mem->in_callback = true;
    if (l->ops.begin) {
        l->ops.begin(l->opaque);
    }
    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);

        if (memory_listener_wants(l, space)) {
            memory_notify_unplay(l, space);
        }
    }
    tell_sets(l, &all);
    if (l->ops.commit) {
        l->ops.commit(l->opaque);
    }
    mem->in_callback = false;
    memory_replay_fini(mem, &all);
    list_del(&l->node);
    memory_listeners_count(mem);
    listener_free(l);
    memory_unlock(mem);
}

/*
 * Ask every listener to deliver the writes it has buffered. A delivery may touch regions that want a
 * flush themselves; that one does nothing. Lock: taken. Source: QEMU qemu_flush_coalesced_mmio_buffer().
 */
void strata_coalesced_flush(struct strata_memory *mem)
{
    struct list *it, *tmp;

    if (!__atomic_load_n(&mem->flush_listeners, __ATOMIC_RELAXED)) {
        return;
    }
    memory_lock(mem);
    if (!mem->flush_depth && !mem->in_callback) {
        mem->flush_depth++;
        list_for_each_safe(it, tmp, &mem->listeners) {
            struct strata_listener *l = list_entry(it, struct strata_listener, node);

            if (l->ops.coalesced_flush) {
                l->ops.coalesced_flush(l->opaque);
            }
        }
        mem->flush_depth--;
    }
    memory_unlock(mem);
}
