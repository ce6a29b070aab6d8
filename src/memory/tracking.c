/*
 * Who wants to know of writes: the display client per region, code and migration for everything;
 * starting and stopping listeners; pulling their logs in; snapshots.
 *
 * Whole-memory tracking: the first reason starts every listener in order (undone in reverse when one
 * fails), then all views are rendered again with the migration bit in their masks. The last reason
 * to go takes the bit out first, then stops the listeners. A stop asked for while the machine is
 * paused waits for it to run again, or for the next start, which then finds all running.
 * Source: QEMU memory_global_dirty_log_start() and _stop(), by rule. Lock: the handle's.
 */
#include <errno.h>
#include <string.h>

#include "memory/dirty.h"
#include "memory/notify.h"
#include "memory/ram.h"

/* Every range may have another mask now: render all views at the next commit. */
static int mark_all_views(struct strata_memory *mem)
{
    struct list *it;
    int err = 0;

    list_for_each(it, &mem->spaces) {
        struct memory_view *view = memory_space_view(list_entry(it, struct strata_space, node));

        err = err || !view->root ? err : memory_view_mark(view, 0, UINT64_MAX);
    }
    return err;
}

/* Which clients an accelerator's log is for. */
unsigned memory_dirty_import_mask(const struct strata_memory *mem)
{
    unsigned mask = 1u << STRATA_DIRTY_DISPLAY;

    if (__atomic_load_n(&mem->tracking, __ATOMIC_RELAXED)) {
        mask |= 1u << STRATA_DIRTY_MIGRATION;
    }
    if (__atomic_load_n(&mem->code_tracking, __ATOMIC_RELAXED)) {
        mask |= 1u << STRATA_DIRTY_CODE;
    }
    return mask;
}

/*
 * Log writes to a region for the display client, counted: as many off as on.
 * Returns 0; -EINVAL: another client, or off without on; -EBUSY, -ENOMEM, a refusal.
 * Lock: taken. Source: QEMU memory_region_set_log().
 */
int strata_region_set_log(struct strata_region *region, bool log, enum strata_dirty_client client)
{
    struct strata_memory *mem = region->mem;
    unsigned old = region->display_logs;
    int err = memory_change_begin(mem, "log", region);

    if (err) {
        return err;
    }
    old = region->display_logs;
    if (client != STRATA_DIRTY_DISPLAY || (!log && !old)) {
        err = memory_fail(mem, EINVAL, "'%s': only the display client logs by region, in pairs",
                          region->name);
        goto out;
    }
    if (region->enabled && (!old || (!log && old == 1))) {
        err = memory_reach_mark_all(region);
    }
    if (!err) {
        region->display_logs = log ? old + 1 : old - 1;
        err = memory_change_commit(mem);
        region->display_logs = err ? old : region->display_logs;
    }
out:
    memory_change_done(mem);
    return err;
}

/* The clients that want to know of writes to a region now, 1 << client each. Lock: taken. */
unsigned strata_region_log_mask(const struct strata_region *region)
{
    unsigned mask;

    memory_lock(region->mem);
    mask = memory_region_logs(region);
    memory_unlock(region->mem);
    return mask;
}

/* What shows a region has another mask now: render it at the next commit. */
static int mark_ranges(const struct strata_region *region)
{
    struct list *it;
    int err = 0;

    list_for_each(it, &region->ranges) {
        struct memory_range *range = list_entry(it, struct memory_range, region_node);

        err = err ? err : memory_view_mark(range->view, range->head.start, range->head.last);
    }
    return err;
}

static void flip_migratable(struct strata_ram *ram)
{
    __atomic_fetch_xor(&ram->flags, (unsigned)STRATA_RAM_NOT_MIGRATABLE, __ATOMIC_RELAXED);
}

/*
 * Whether migration takes the block along. While memory is tracked listeners are told at once, by
 * log_start or log_stop. A block that joins is dirty as a whole: nobody has logged what was written
 * to it so far. Returns 0; -EBUSY, -ENOMEM, a refusal: nothing changed.
 * Lock: taken. Source: QEMU qemu_ram_set_migratable(), qemu_ram_unset_migratable().
 * Differs: there, masks follow only when something else has the map rendered.
 */
int strata_ram_set_migratable(struct strata_ram *ram, bool on)
{
    struct strata_memory *mem = ram->mem;
    int err = memory_change_begin(mem, "migratable", ram->region);

    if (err) {
        return err;
    }
    if (memory_ram_is_migratable(ram) != on) {
        err = ram->region && mem->tracking ? mark_ranges(ram->region) : 0;
        if (!err) {
            flip_migratable(ram);
            err = memory_change_commit(mem);
            if (err) {
                flip_migratable(ram);
            } else if (on) {
                strata_ram_set_dirty(ram, 0, strata_ram_size(ram), 1u << STRATA_DIRTY_MIGRATION);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

/* Translated code exists (or no more): the code client joins every block's mask. 0; -EBUSY, -ENOMEM,
 * a refusal. Lock: taken. */
int strata_memory_set_code_tracking(struct strata_memory *mem, bool on)
{
    int err = memory_change_begin(mem, "code tracking", NULL);

    if (err) {
        return err;
    }
    if (mem->code_tracking != on) {
        err = mark_all_views(mem);
        if (!err) {
            __atomic_store_n(&mem->code_tracking, on, __ATOMIC_RELAXED);
            err = memory_change_commit(mem);
            if (err) {
                __atomic_store_n(&mem->code_tracking, !on, __ATOMIC_RELAXED);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

static void stop_listeners(struct strata_memory *mem, struct list *from)
{
    struct list *it;

    for (it = from; it != &mem->listeners; it = it->prev) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);

        if (l->ops.log_global_stop) {
            l->ops.log_global_stop(l->opaque);
        }
    }
}

/* In order; those already started are stopped again when one fails. */
static int start_listeners(struct strata_memory *mem)
{
    struct list *it;
    int err = 0;

    mem->in_callback = true;
    list_for_each(it, &mem->listeners) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);

        err = l->ops.log_global_start ? l->ops.log_global_start(l->opaque) : 0;
        if (err) {
            memory_fail(mem, -err, "listener '%s' could not start logging", l->name);
            stop_listeners(mem, it->prev);
            break;
        }
    }
    mem->in_callback = false;
    mem->tracking_told = err == 0;
    return err;
}

static void stop_all(struct strata_memory *mem)
{
    mem->in_callback = true;
    stop_listeners(mem, mem->listeners.prev);
    mem->in_callback = false;
    mem->tracking_told = false;
}

static int set_tracking(struct strata_memory *mem, unsigned reasons)
{
    unsigned old = mem->tracking;
    int err = mark_all_views(mem);

    if (!err) {
        __atomic_store_n(&mem->tracking, reasons, __ATOMIC_RELAXED);
        err = memory_change_commit(mem);
        if (err) {
            __atomic_store_n(&mem->tracking, old, __ATOMIC_RELAXED);
        }
    }
    return err;
}

/*
 * Begin to track all memory for a reason. Returns 0; -EINVAL: unknown or already given reason;
 * -EBUSY, -ENOMEM, a listener's failure: nothing is on that was not before. Lock: taken.
 */
int strata_tracking_start(struct strata_memory *mem, enum strata_tracking_reason reason)
{
    int err = memory_change_begin(mem, "tracking start", NULL);

    if (err) {
        return err;
    }
    if (reason != STRATA_TRACK_MIGRATION && reason != STRATA_TRACK_RATE &&
        reason != STRATA_TRACK_LIMIT) {
        err = memory_fail(mem, EINVAL, "unknown reason to track");
    } else if (mem->tracking & reason & ~mem->stop_later) {
        err = memory_fail(mem, EINVAL, "tracking is on for this reason already");
    } else if (mem->tracking) { /* on, perhaps only because a stop was postponed */
        __atomic_store_n(&mem->tracking, (mem->tracking & ~mem->stop_later) | reason,
                         __ATOMIC_RELAXED);
        mem->stop_later = 0;
    } else {
        err = start_listeners(mem);
        if (!err) {
            err = set_tracking(mem, reason);
            if (err) {
                stop_all(mem);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

static int tracking_end(struct strata_memory *mem, unsigned reasons)
{
    unsigned left = mem->tracking & ~reasons;
    int err = 0;

    if (left) {
        __atomic_store_n(&mem->tracking, left, __ATOMIC_RELAXED);
        return 0;
    }
    err = mem->tracking ? set_tracking(mem, 0) : 0;
    if (!err && mem->tracking_told) {
        stop_all(mem);
    }
    return err;
}

/*
 * One reason less. While the machine is paused nothing stops yet. Returns 0; -EINVAL: not a reason
 * that is on; -EBUSY, -ENOMEM, a refusal: it stays on. Lock: taken.
 */
int strata_tracking_stop(struct strata_memory *mem, enum strata_tracking_reason reason)
{
    int err = memory_change_begin(mem, "tracking stop", NULL);

    if (err) {
        return err;
    }
    if (!(mem->tracking & reason & ~mem->stop_later)) {
        err = memory_fail(mem, EINVAL, "tracking is not on for this reason");
    } else if (mem->paused) {
        mem->stop_later |= reason;
    } else {
        err = tracking_end(mem, reason);
    }
    memory_change_done(mem);
    return err;
}

/* The reasons that are on, postponed stops counted out. Lock: taken. */
unsigned strata_tracking_reasons(const struct strata_memory *mem)
{
    struct strata_memory *m = (struct strata_memory *)mem;
    unsigned reasons;

    memory_lock(m);
    reasons = m->tracking & ~m->stop_later;
    memory_unlock(m);
    return reasons;
}

/* The machine is paused, or runs again: then postponed stops happen. 0; errors as for a stop. */
int strata_tracking_set_paused(struct strata_memory *mem, bool paused)
{
    int err = memory_change_begin(mem, paused ? "pause" : "resume", NULL);

    if (err) {
        return err;
    }
    if (!paused && mem->stop_later) {
        err = tracking_end(mem, mem->stop_later);
    }
    if (!err) {
        mem->paused = paused;
        mem->stop_later = paused ? mem->stop_later : 0;
    }
    memory_change_done(mem);
    return err;
}

static void sync_range(struct strata_space *space, const struct memory_range *range)
{
    struct strata_memory *mem = space->mem;
    struct strata_section s;
    struct list *it;

    memory_range_section(range, space, &s);
    if (!s.log_mask) {
        return;
    }
    list_for_each(it, &mem->listeners) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);

        if (l->ops.log_sync && memory_listener_wants(l, space)) {
            l->ops.log_sync(l->opaque, &s);
        }
    }
}

static void sync_global(struct strata_memory *mem, bool last_stage)
{
    struct list *it;

    list_for_each(it, &mem->listeners) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);

        if (l->ops.log_sync_global) {
            l->ops.log_sync_global(l->opaque, last_stage);
        }
    }
}

/* Every logging range of a region (null: of everything), in every listened space. */
static int sync_ranges(struct strata_memory *mem, struct strata_region *region, bool last_stage)
{
    struct list *it;

    memory_lock(mem);
    if (mem->in_callback) {
        memory_unlock(mem);
        return -EBUSY;
    }
    mem->in_callback = true;
    list_for_each(it, &mem->spaces) {
        struct strata_space *space = list_entry(it, struct strata_space, node);
        struct memory_view *view = memory_space_view(space);
        struct memory_range *range = space->listened ? memory_range_after(view, 0) : NULL;

        while (range) {
            if (!region || range->piece.region == region) {
                sync_range(space, range);
            }
            range = range->head.last == UINT64_MAX ? NULL
                                                   : memory_range_after(view, range->head.last + 1);
        }
    }
    sync_global(mem, last_stage);
    mem->in_callback = false;
    memory_unlock(mem);
    return 0;
}

/* Pull what accelerators logged of a region into its bitmaps. 0 or -EBUSY. Lock: taken.
 * Source: QEMU memory_region_sync_dirty_bitmap(). */
int strata_region_sync_dirty(struct strata_region *region)
{
    return sync_ranges(region->mem, region, false);
}

/* The same for everything. last_stage: the guest will not run again before migration ends.
 * Source: QEMU memory_global_dirty_log_sync(). */
int strata_sync_dirty(struct strata_memory *mem, bool last_stage)
{
    return sync_ranges(mem, NULL, last_stage);
}

/* What was synced has been taken over: accelerators may re-protect. Lock: taken. */
void strata_after_sync(struct strata_memory *mem)
{
    struct list *it;

    memory_lock(mem);
    list_for_each(it, &mem->listeners) {
        struct strata_listener *l = list_entry(it, struct strata_listener, node);

        if (l->ops.log_global_after_sync) {
            l->ops.log_global_after_sync(l->opaque);
        }
    }
    memory_unlock(mem);
}
