/*
 * Attributes of regions that the views depend on. Each mutator is a change of its own: mark what
 * showed and what will show, apply, commit, and put the old value back when the commit failed.
 * Setting a value to what it is does nothing. All but size and enabled leave the views alone while
 * the region is disabled.
 */
#include <errno.h>

#include "memory/ram.h"
#include "memory/region.h"
#include "memory/view.h"

/*
 * Show or hide a region and what is below. Returns 0; -EBUSY in a callback, -ENOMEM, or a refusal,
 * with nothing changed. Lock: taken. Source: QEMU memory_region_set_enabled().
 */
int strata_region_set_enabled(struct strata_region *region, bool enabled)
{
    struct strata_memory *mem = region->mem;
    int err = memory_change_begin(mem, enabled ? "enable" : "disable", region);

    if (err) {
        return err;
    }
    if (region->enabled != enabled) {
        err = memory_reach_mark_all(region);
        if (!err) {
            region->enabled = enabled;
            memory_tree_count_enabled(region, enabled);
            err = memory_change_commit(mem);
            if (err) {
                region->enabled = !enabled;
                memory_tree_count_enabled(region, !enabled);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

/* Take a child out and put it back as the winner among its equals, with new place or size. */
static void replace_child(struct strata_region *child, uint64_t addr, i128 size, uint64_t seq)
{
    struct strata_region *parent = child->container;

    if (parent) {
        memory_tree_unlink(child);
    }
    child->addr = addr;
    child->size = size;
    child->seq = seq;
    if (parent) {
        memory_tree_link(parent, child);
    }
}

/*
 * Move a region within its container; it becomes the winner among siblings of its priority. Without
 * a container only the value is noted. Errors as above. Lock: taken.
 * Source: QEMU memory_region_set_address().
 */
int strata_region_set_address(struct strata_region *region, strata_addr addr)
{
    struct strata_memory *mem = region->mem;
    uint64_t old_addr, old_seq;
    int err = memory_change_begin(mem, "move", region);

    if (err) {
        return err;
    }
    if (region->addr != addr) {
        if (region->container && region->enabled) {
            err = memory_reach_mark_child(region->container, region->addr, region->size);
            err = err ? err : memory_reach_mark_child(region->container, addr, region->size);
        }
        if (!err) {
            old_addr = region->addr;
            old_seq = region->seq;
            replace_child(region, addr, region->size, mem->next_seq++);
            err = memory_change_commit(mem);
            if (err) {
                replace_child(region, old_addr, region->size, old_seq);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

static int resize_marks(struct strata_region *region, i128 size)
{
    i128 larger = size > region->size ? size : region->size;
    i128 old = region->size;
    int err;

    /* The way up cuts at the region's own edge: mark with the larger of the two sizes in force. */
    region->size = larger;
    err = memory_reach_mark_all(region);
    region->size = old;
    return err;
}

/*
 * Change a region's size in bytes (STRATA_SIZE_ALL: 2^64); 0 shows nothing. Keeps its place among its
 * siblings. Errors as above. Lock: taken. Source: QEMU memory_region_set_size().
 */
int strata_region_set_size(struct strata_region *region, uint64_t size)
{
    struct strata_memory *mem = region->mem;
    i128 wide = size == STRATA_SIZE_ALL ? ADDR_SPACE_SIZE : (i128)size;
    int err = memory_change_begin(mem, "resize", region);

    if (err) {
        return err;
    }
    if (region->size != wide) {
        i128 old = region->size;

        err = region->ram && wide > strata_ram_max_size(region->ram)
                  ? memory_fail(mem, EINVAL, "'%s' is larger than its memory", region->name)
                  : resize_marks(region, wide);
        if (!err) {
            replace_child(region, region->addr, wide, region->seq);
            err = memory_change_commit(mem);
            if (err) {
                replace_child(region, region->addr, old, region->seq);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

/*
 * Slide an alias's window over its target. -EINVAL: not an alias; else as above. Lock: taken.
 * Source: QEMU memory_region_set_alias_offset().
 */
int strata_region_set_alias_offset(struct strata_region *region, strata_addr offset)
{
    struct strata_memory *mem = region->mem;
    int err = memory_change_begin(mem, "slide", region);

    if (err) {
        return err;
    }
    if (!region->target) {
        err = memory_fail(mem, EINVAL, "'%s' is not an alias", region->name);
    } else if (region->offset != offset) {
        uint64_t old = region->offset;

        err = region->enabled ? memory_reach_mark_all(region) : 0;
        if (!err) {
            region->offset = offset;
            err = memory_change_commit(mem);
            if (err) {
                region->offset = old;
            }
        }
    }
    memory_change_done(mem);
    return err;
}

static int set_flag(struct strata_region *region, bool *flag, bool value, const char *actor)
{
    struct strata_memory *mem = region->mem;
    int err = memory_change_begin(mem, actor, region);

    if (err) {
        return err;
    }
    if (*flag != value) {
        err = region->enabled ? memory_reach_mark_all(region) : 0;
        if (!err) {
            __atomic_store_n(flag, value, __ATOMIC_RELAXED);
            err = memory_change_commit(mem);
            if (err) {
                __atomic_store_n(flag, !value, __ATOMIC_RELAXED);
            }
        }
    }
    memory_change_done(mem);
    return err;
}

/* Forbid or allow writes; of a container or alias: of all that shows through it (see the modes).
 * Errors as above. Lock: taken. Source: QEMU memory_region_set_readonly(). */
int strata_region_set_readonly(struct strata_region *region, bool readonly)
{
    return set_flag(region, &region->readonly, readonly, "readonly");
}

/* Mark as non-volatile what shows through the region. Source: QEMU memory_region_set_nonvolatile(). */
int strata_region_set_nonvolatile(struct strata_region *region, bool nonvolatile)
{
    return set_flag(region, &region->nonvolatile, nonvolatile, "nonvolatile");
}

/* Keep what shows through the region from being joined with its neighbours.
 * Source: QEMU memory_region_set_unmergeable(). */
int strata_region_set_unmergeable(struct strata_region *region, bool unmergeable)
{
    return set_flag(region, &region->unmergeable, unmergeable, "unmergeable");
}

/* ROM devices: reads direct (true), or to the callbacks. -EINVAL: not a ROM device.
 * Source: QEMU memory_region_rom_device_set_romd(). */
int strata_region_set_romd(struct strata_region *region, bool romd)
{
    return region->kind == STRATA_ROM_DEVICE ? set_flag(region, &region->romd, romd, "romd")
                                             : -EINVAL;
}

/* Call back without the big lock and without the re-entrancy guard. Takes effect at once. */
void strata_region_set_lockless(struct strata_region *region, bool lockless)
{
    __atomic_store_n(&region->lockless, lockless, __ATOMIC_RELAXED);
}

/* Opt this region out of its device's re-entrancy guard. Takes effect at once. */
void strata_region_set_reentrant(struct strata_region *region, bool reentrant)
{
    __atomic_store_n(&region->reentrant, reentrant, __ATOMIC_RELAXED);
}
