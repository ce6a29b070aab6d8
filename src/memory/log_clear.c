/*
 * Clearing dirty state where accelerators keep a copy of it: they are told of the sections that show
 * the cleared bytes. And what is built upon: marking by region, snapshots.
 */
#include <errno.h>
#include <string.h>

#include "memory/notify.h"
#include "memory/ram.h"

struct strata_dirty_snapshot {
    struct strata_memory *mem;
    uint64_t offset, len; /* in the region; offset rounded down to 64 pages */
    size_t words;
    uint64_t bits[];
};

/* The part of a range that shows [offset, offset + len) of its region, as a section. */
static bool section_of(const struct memory_range *range, struct strata_space *space,
                       const struct memory_coalesced *part, struct strata_section *s)
{
    struct addr_range shown =
        addr_range_make(range->piece.offset, (i128)range->head.last - range->head.start + 1);
    struct addr_range both =
        addr_range_intersect(shown, addr_range_make(part->start, (i128)part->size));

    if (addr_range_is_empty(both)) {
        return false;
    }
    memory_range_section(range, space, s);
    s->host = s->host ? (char *)s->host + (uint64_t)(both.start - s->offset) : NULL;
    s->start += (uint64_t)(both.start - s->offset);
    s->offset = (uint64_t)both.start;
    s->last = s->start + (uint64_t)(both.size - 1);
    return true;
}

/*
 * Tell accelerators that [offset, offset + len) of a region has been taken over, so that they may
 * protect it again. Lock: taken. Source: QEMU memory_region_clear_dirty_bitmap().
 */
void strata_region_clear_dirty(struct strata_region *region, strata_addr offset, uint64_t len)
{
    struct strata_memory *mem = region->mem;
    struct memory_coalesced part = {offset, len};
    struct list *it, *jt, *kt;
    struct strata_section s;

    memory_lock(mem);
    list_for_each(it, &region->ranges) {
        struct memory_range *range = list_entry(it, struct memory_range, region_node);

        list_for_each(jt, &mem->spaces) {
            struct strata_space *space = list_entry(jt, struct strata_space, node);

            if (!space->listened || memory_space_view(space) != range->view ||
                !section_of(range, space, &part, &s)) {
                continue;
            }
            list_for_each(kt, &mem->listeners) {
                struct strata_listener *l = list_entry(kt, struct strata_listener, node);

                if (l->ops.log_clear && memory_listener_wants(l, space)) {
                    l->ops.log_clear(l->opaque, &s);
                }
            }
        }
    }
    memory_unlock(mem);
}

/* Note a write to [offset, offset + len) of a region's RAM for the clients that want to know.
 * Any thread. Source: QEMU memory_region_set_dirty(). */
void strata_region_set_dirty(struct strata_region *region, strata_addr offset, uint64_t len)
{
    if (region->ram) {
        strata_ram_set_dirty(region->ram, offset, len, strata_region_log_mask(region));
    }
}

/*
 * Take one client's bits of a part of a region, clearing them as they are taken.
 * offset, len: bytes; the pages touched are meant, from the last multiple of 256 KiB on.
 * Returns 0; -EINVAL: no RAM, or beyond its end; -ENOMEM: nothing was cleared.
 * Source: QEMU memory_region_snapshot_and_clear_dirty().
 */
int strata_dirty_snapshot_new(struct strata_region *region, strata_addr offset, uint64_t len,
                              enum strata_dirty_client client, struct strata_dirty_snapshot **out)
{
    struct strata_memory *mem = region->mem;
    uint64_t align = UINT64_C(64) << MEMORY_DIRTY_SHIFT, end, from = offset & ~(align - 1);
    struct strata_dirty_snapshot *snap;
    size_t words;
    int err;

    if (!region->ram || !len || offset > region->ram->max_size ||
        len > region->ram->max_size - offset) {
        return -EINVAL;
    }
    err = strata_region_sync_dirty(region);
    if (err) {
        return err;
    }
    end = offset + len;
    end = end + align - 1 < region->ram->max_size ? (end + align - 1) & ~(align - 1)
                                                  : region->ram->max_size;
    words = (size_t)((((end - from) >> MEMORY_DIRTY_SHIFT) + 63) / 64 + 1);
    snap = memory_zalloc(mem, sizeof(*snap) + words * sizeof(uint64_t));
    if (!snap) {
        return -ENOMEM;
    }
    snap->mem = mem;
    snap->offset = from;
    snap->len = end - from;
    snap->words = words;
    strata_ram_harvest_dirty(region->ram, from, end - from, client, snap->bits);
    *out = snap;
    return 0;
}

/* Was any page of [offset, offset + len) of the region dirty when the snapshot was taken? */
bool strata_dirty_snapshot_get(const struct strata_dirty_snapshot *snap, strata_addr offset,
                               uint64_t len)
{
    uint64_t first, last;

    if (!len || offset < snap->offset || offset - snap->offset >= snap->len) {
        return false;
    }
    len = len < snap->len - (offset - snap->offset) ? len : snap->len - (offset - snap->offset);
    first = (offset - snap->offset) >> MEMORY_DIRTY_SHIFT;
    last = (offset - snap->offset + len - 1) >> MEMORY_DIRTY_SHIFT;
    for (uint64_t page = first; page <= last; page++) {
        if (snap->bits[page / 64] >> (page % 64) & 1) {
            return true;
        }
    }
    return false;
}

/* Free a snapshot; null is fine. */
void strata_dirty_snapshot_free(struct strata_dirty_snapshot *snap)
{
    if (snap) {
        memory_free(snap->mem, snap, sizeof(*snap) + snap->words * sizeof(uint64_t));
    }
}
