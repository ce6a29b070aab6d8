/*
 * Flat ranges: the leaves of a view. A range never changes where it is and what it shows; a change
 * replaces it. Only its log mask and the flags derived from it and from the region's read-only flag
 * are brought up to date in place.
 */
#include "memory/events.h"
#include "memory/ram.h"
#include "memory/view.h"

/*
 * The clients that want to know of writes to a region, as a mask of 1 << client.
 * Lock: held. Source: QEMU memory_region_get_dirty_log_mask().
 */
unsigned memory_region_logs(const struct strata_region *region)
{
    const struct strata_memory *mem = region->mem;
    unsigned mask = region->display_logs ? 1u << STRATA_DIRTY_DISPLAY : 0;

    if (mem->tracking &&
        ((region->ram && memory_ram_is_migratable(region->ram)) || region->kind == STRATA_IOMMU)) {
        mask |= 1u << STRATA_DIRTY_MIGRATION;
    }
    if (mem->code_tracking && region->ram) {
        mask |= 1u << STRATA_DIRTY_CODE;
    }
    return mask;
}

static uint32_t fast_flags(const struct memory_piece *piece)
{
    const struct strata_region *region = piece->region;
    bool strict = region->mem->config.mode == STRATA_STRICT;
    bool readonly = region->readonly || (strict && piece->readonly);
    uint32_t flags = STRATA_FAST_MEMORY;

    if (!region->ram) {
        return region->kind == STRATA_IOMMU ? STRATA_FAST_IOMMU : 0;
    }
    if (region->kind == STRATA_RAM_DEVICE) {
        return flags;
    }
    if (region->kind != STRATA_ROM_DEVICE || piece->romd) {
        flags |= STRATA_FAST_READ;
    }
    if (region->kind == STRATA_RAM && !readonly) {
        flags |= piece->log_mask ? STRATA_FAST_MARK : STRATA_FAST_MARK | STRATA_FAST_WRITE;
    }
    return flags;
}

/* The bitmap of the one client that wants to know of writes; null when there are more, or when
 * writers may not look at it without a fence (see dirty.c). */
static const uint64_t *fast_marks(const struct memory_piece *piece)
{
    const struct strata_region *region = piece->region;
    unsigned mask = piece->log_mask;

    if (!region->ram || !region->mem->fenceless || !mask || mask & (mask - 1)) {
        return NULL;
    }
    return region->ram->dirty[__builtin_ctz(mask)];
}

/*
 * A range for a piece, in no index yet, holding its region and the eventfds of the moment. Null: no
 * memory. Lock: held.
 */
struct memory_range *memory_range_new(struct memory_view *view, const struct memory_piece *piece)
{
    struct strata_region *region = piece->region;
    struct memory_range *range = memory_zalloc(view->mem, sizeof(*range));

    if (!range) {
        return NULL;
    }
    range->head.start = piece->start;
    range->head.last = piece->last;
    if (region->ram) {
        range->head.bias = (uintptr_t)strata_ram_host(region->ram) + piece->offset - piece->start;
    }
    range->head.flags = fast_flags(piece);
    range->head.marks = fast_marks(piece);
    range->head.marks_bias = piece->offset - piece->start;
    range->piece = *piece;
    range->view = view;
    range->node.start = piece->start;
    range->node.last = piece->last;
    range->node.heap = memory_random(view->mem);
    range->events = memory_events_get(region->events);
    list_init(&range->region_node);
    memory_region_get(region, NULL);
    return range;
}

/* Free a range that no reader ever saw, or can see any more. Lock: held. */
void memory_range_discard(struct memory_range *range)
{
    struct strata_memory *mem = range->view->mem;

    memory_events_put(mem, range->events);
    memory_region_put(range->piece.region, NULL);
    memory_free(mem, range, sizeof(*range));
}

static void range_free(struct strata_memory *mem, struct memory_retired *retired)
{
    struct memory_range *range = container_of(retired, struct memory_range, retired);

    memory_region_put(range->piece.region, NULL);
    memory_free(mem, range, sizeof(*range));
}

/* Free a range after a grace period; it is in no index any more. Lock: held. */
void memory_range_retire(struct memory_range *range)
{
    struct strata_memory *mem = range->view->mem;

    memory_events_put(mem, range->events);
    range->events = NULL;
    list_del(&range->region_node);
    memory_retire(mem, &range->retired, range_free);
}

/* Bring what may change in place up to date. Lock: held; readers may look on. */
void memory_range_refresh(struct memory_range *range, uint8_t log_mask)
{
    __atomic_store_n(&range->piece.log_mask, log_mask, __ATOMIC_RELAXED);
    __atomic_store_n(&range->head.marks, fast_marks(&range->piece), __ATOMIC_RELAXED);
    __atomic_store_n(&range->head.flags, fast_flags(&range->piece), __ATOMIC_RELEASE);
}

/* Is it the same range to a listener? The log mask does not count. Source: QEMU flatrange_equal(). */
bool memory_piece_equal(const struct memory_piece *a, const struct memory_piece *b)
{
    return a->start == b->start && a->last == b->last && a->region == b->region &&
           a->offset == b->offset && a->readonly == b->readonly && a->romd == b->romd &&
           a->nonvolatile == b->nonvolatile && a->unmergeable == b->unmergeable;
}

/* Could a and b, b right behind a, be one range? Source: QEMU can_merge(). */
bool memory_piece_joins(const struct memory_piece *a, const struct memory_piece *b)
{
    return a->last + 1 == b->start && b->start != 0 && a->region == b->region &&
           b->offset > a->offset && b->offset - a->offset == b->start - a->start && a->log_mask == b->log_mask &&
           a->readonly == b->readonly && a->romd == b->romd && a->nonvolatile == b->nonvolatile &&
           !a->unmergeable && !b->unmergeable;
}

/* The range of a view that holds addr, else the next above, else null. Lock: held. */
struct memory_range *memory_range_after(const struct memory_view *view, uint64_t addr)
{
    struct itree_node *node = memory_itree_after(&view->ranges, addr);

    return node ? container_of(node, struct memory_range, node) : NULL;
}

/* What a range looks like from outside. Lock: held, or in a read section. */
void memory_range_section(const struct memory_range *range, struct strata_space *space,
                          struct strata_section *section)
{
    const struct memory_piece *piece = &range->piece;
    const struct strata_region *region = piece->region;
    bool strict = region->mem->config.mode == STRATA_STRICT;

    *section = (struct strata_section){
        .space = space,
        .region = piece->region,
        .start = piece->start,
        .last = piece->last,
        .offset = piece->offset,
        .host = region->ram ? (void *)(range->head.bias + piece->start) : NULL,
        .log_mask = __atomic_load_n(&piece->log_mask, __ATOMIC_RELAXED),
        .readonly = region->readonly || (strict && piece->readonly),
        .path_readonly = piece->readonly,
        .nonvolatile = piece->nonvolatile,
        .unmergeable = piece->unmergeable,
        .romd = region->ram && piece->romd,
    };
}
