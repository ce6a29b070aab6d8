/*
 * Regions: making and unmaking, references, queries. The tree is in tree.c, attributes in mutate.c.
 */
#include "memory/region.h"

#include <errno.h>
#include <string.h>

#include "memory/events.h"
#include "memory/ram.h"

/*
 * Take a reference on a region for a holder that belongs to `holder` (null: to nobody). The owner
 * takes one as well unless it is the holder itself. Any thread that already relies on the region.
 */
void memory_region_get(struct strata_region *region, const struct strata_owner *holder)
{
    __atomic_fetch_add(&region->refs, 1, __ATOMIC_RELAXED);
    if (region->owner != holder) {
        memory_owner_get(region->owner);
    }
}

/* Free one region without references; returns its target, whose reference is the caller's now. */
static struct strata_region *region_free(struct strata_region *region)
{
    struct strata_memory *mem = region->mem;
    struct strata_region *target = region->target;

    list_del(&region->alias_node);
    list_del(&region->all_node);
    list_del(&region->event_node);
    memory_events_put(mem, region->events);
    memory_region_leave_ram(region);
    memory_iommu_free(region);
    memory_discard_free(region);
    memory_free(mem, region->coalesced, region->cap_coalesced * sizeof(*region->coalesced));
    memory_free(mem, region->name, strlen(region->name) + 1);
    memory_free(mem, region, sizeof(*region));
    return target;
}

/* Drop a reference taken by memory_region_get() for the same holder. Lock: taken for the last. */
void memory_region_put(struct strata_region *region, const struct strata_owner *holder)
{
    while (region) {
        struct strata_memory *mem = region->mem;
        struct strata_owner *owner = region->owner;
        bool counted = owner != holder;

        if (__atomic_sub_fetch(&region->refs, 1, __ATOMIC_ACQ_REL) == 0) {
            memory_lock(mem);
            region = region_free(region);
            memory_unlock(mem);
            holder = owner; /* the alias held its target in its owner's name */
        } else {
            region = NULL;
        }
        if (counted) {
            memory_owner_put(owner);
        }
    }
}

static int desc_fails(struct strata_memory *mem, const struct strata_region_desc *d)
{
    bool ram = d->kind == STRATA_RAM || d->kind == STRATA_ROM || d->kind == STRATA_ROM_DEVICE ||
               d->kind == STRATA_RAM_DEVICE;

    if (d->kind > STRATA_RESERVATION || !d->name) {
        return memory_fail(mem, EINVAL, "region without a name or of an unknown kind");
    }
    if ((d->target != NULL) != (d->kind == STRATA_ALIAS) || (d->ram && !ram)) {
        return memory_fail(mem, EINVAL, "region '%s': target or RAM does not go with its kind",
                           d->name);
    }
    if ((d->kind == STRATA_IO || d->kind == STRATA_ROM_DEVICE) && !d->ops) {
        return memory_fail(mem, EINVAL, "region '%s' needs callbacks", d->name);
    }
    if ((d->kind == STRATA_IOMMU) != (d->iommu != NULL) || (d->iommu && !d->iommu->translate)) {
        return memory_fail(mem, EINVAL, "region '%s': translation does not go with its kind",
                           d->name);
    }
    if (d->target && d->target->mem != mem) {
        return memory_fail(mem, EINVAL, "region '%s': target of another handle", d->name);
    }
    return 0;
}

static void region_init(struct strata_region *r, struct strata_memory *mem,
                        const struct strata_region_desc *d)
{
    r->mem = mem;
    r->kind = (uint8_t)d->kind;
    r->terminates = d->kind != STRATA_ALIAS && (d->kind != STRATA_CONTAINER || d->ops);
    r->readonly = d->kind == STRATA_ROM;
    r->romd = true;
    r->enabled = true;
    r->ops = d->ops;
    r->opaque = d->opaque;
    r->size = d->size == STRATA_SIZE_ALL ? ADDR_SPACE_SIZE : (i128)d->size;
    r->offset = d->offset;
    r->refs = 1;
    list_init(&r->aliases);
    list_init(&r->alias_node);
    list_init(&r->spaces);
    list_init(&r->ranges);
    list_init(&r->event_node);
    list_init(&r->all_node);
}

/* The parts that can fail. On failure the region is freed again by the caller. */
static int region_build(struct strata_region *r, const struct strata_region_desc *d)
{
    bool wants_ram = d->kind == STRATA_RAM || d->kind == STRATA_ROM || d->kind == STRATA_ROM_DEVICE;
    int err = 0;

    r->name = memory_strdup(r->mem, d->name);
    if (!r->name) {
        return memory_fail_alloc(r->mem);
    }
    if (d->ram || wants_ram) {
        err = memory_region_join_ram(r, d->ram);
    } else if (d->iommu) {
        err = memory_iommu_init(r, d->iommu);
    } else if (d->kind == STRATA_RAM_DEVICE) {
        err = memory_fail(r->mem, EINVAL, "RAM device '%s' needs its memory", d->name);
    }
    return err;
}

/*
 * Make a region; see strata/region.h for the description's fields.
 * Returns 0; -EINVAL for a description that does not add up; -EBUSY when the block has a region;
 * -ENOMEM; what making the anonymous block failed with. A target is held until the alias goes.
 * Lock: taken. Source: QEMU memory_region_init*().
 */
int strata_region_new(struct strata_memory *mem, const struct strata_region_desc *desc,
                      struct strata_region **region)
{
    struct strata_region *r;
    int err;

    memory_lock(mem);
    err = desc_fails(mem, desc);
    if (err) {
        goto out;
    }
    r = memory_zalloc(mem, sizeof(*r));
    if (!r) {
        err = memory_fail_alloc(mem);
        goto out;
    }
    region_init(r, mem, desc);
    err = region_build(r, desc);
    if (err) {
        memory_region_leave_ram(r);
        if (r->name) {
            memory_free(mem, r->name, strlen(r->name) + 1);
        }
        memory_free(mem, r, sizeof(*r));
        goto out;
    }
    r->owner = desc->owner;
    memory_owner_get(r->owner);
    if (desc->target) {
        r->target = desc->target;
        memory_region_get(r->target, r->owner);
        list_add_tail(&r->target->aliases, &r->alias_node);
    }
    list_add_tail(&mem->regions, &r->all_node);
    *region = r;
out:
    memory_unlock(mem);
    return err;
}

/* One more reference for the caller, who already holds or looks at one. */
void strata_region_ref(struct strata_region *region)
{
    memory_region_get(region, NULL);
}

/* Give back what strata_region_ref() or strata_region_find() took. */
void strata_region_unref(struct strata_region *region)
{
    memory_region_put(region, NULL);
}

/* What kind of region it is. */
enum strata_kind strata_region_kind(const struct strata_region *region)
{
    return (enum strata_kind)region->kind;
}

/* Its name, as long as the region lives. */
const char *strata_region_name(const struct strata_region *region)
{
    return region->name;
}

/* Its size in bytes; STRATA_SIZE_ALL for 2^64. Source: QEMU memory_region_size(). */
uint64_t strata_region_size(const struct strata_region *region)
{
    return region->size == ADDR_SPACE_SIZE ? STRATA_SIZE_ALL : (uint64_t)region->size;
}

/* Its offset in its container. */
strata_addr strata_region_addr(const struct strata_region *region)
{
    return region->addr;
}

/* Its priority among its siblings. */
int strata_region_priority(const struct strata_region *region)
{
    return region->priority;
}

/* Its container, or null. */
struct strata_region *strata_region_parent(const struct strata_region *region)
{
    return region->container;
}

/* What an alias shows, or null. */
struct strata_region *strata_region_target(const struct strata_region *region)
{
    return region->target;
}

/* Its owner, or null. */
struct strata_owner *strata_region_owner(const struct strata_region *region)
{
    return region->owner;
}

/* Its RAM block, or null; not through aliases. */
struct strata_ram *strata_region_ram(const struct strata_region *region)
{
    return region->ram;
}

/* The handle it belongs to. */
struct strata_memory *strata_region_memory(const struct strata_region *region)
{
    return region->mem;
}

/* What its callbacks get. */
void *strata_region_opaque(const struct strata_region *region)
{
    return region->opaque;
}

/* Its own flag; an enabled region in a disabled container does not show. */
bool strata_region_is_enabled(const struct strata_region *region)
{
    return region->enabled;
}

/* Its own flag; the path to it may make it read-only besides. */
bool strata_region_is_readonly(const struct strata_region *region)
{
    return region->readonly;
}

/* ROM devices: do reads go straight to memory? True for every fresh region. */
bool strata_region_is_romd(const struct strata_region *region)
{
    return region->romd;
}

/* Has host memory. */
bool strata_region_is_memory(const struct strata_region *region)
{
    return region->ram != NULL;
}

/* In a container, or shown by an alias chain that is. Source: QEMU memory_region_is_mapped(). */
bool strata_region_is_mapped(const struct strata_region *region)
{
    return region->container || region->mapped_via_alias > 0;
}

/* Host address of byte 0, through aliases; null when there is no memory behind. */
void *strata_region_host(const struct strata_region *region)
{
    uint64_t offset = 0;

    while (region->target) {
        offset += region->offset;
        region = region->target;
    }
    return region->ram ? (char *)strata_ram_host(region->ram) + offset : NULL;
}
