/* From an address of a space to a range, through IOMMUs. Shared by all access paths. */
#ifndef STRATA_MEMORY_TRANSLATE_H
#define STRATA_MEMORY_TRANSLATE_H

#include "memory/dispatch.h"
#include "strata/iommu.h"

/* Where an access goes. */
struct memory_place {
    const struct memory_range *range; /* null: nothing there */
    strata_addr addr;                 /* in the range's space */
    uint64_t len;                     /* of the bytes asked for, how many one step may take */
};

struct memory_access {
    struct strata_space *space;
    struct strata_attrs attrs;
    bool write;
};

void memory_translate_slow(const struct memory_access *access, strata_addr addr, uint64_t len,
                           struct memory_place *place);
bool memory_iommu_translate(const struct memory_access *access, const struct memory_range *range,
                            strata_addr addr, struct strata_iotlb *entry);

static inline struct strata_region *memory_place_region(const struct memory_place *place)
{
    return place->range->piece.region;
}

static inline strata_addr memory_place_offset(const struct memory_place *place)
{
    return place->addr - place->range->head.start + place->range->piece.offset;
}

static inline void *memory_place_host(const struct memory_place *place)
{
    return (void *)(place->range->head.bias + place->addr);
}

/*
 * Find where [addr, addr + len) of access->space begins. RAM is cut to its range; of devices and
 * holes the whole length comes back, because their registers decide how much they take.
 * In a read section.
 */
static inline void memory_translate(const struct memory_access *access, strata_addr addr, uint64_t len,
                                    struct memory_place *place)
{
    struct strata_fast_view *view = base_rcu_load(&access->space->head.view);
    const struct memory_range *range = memory_dispatch_find(base_rcu_load(&view->root), addr);
    uint32_t flags = range ? __atomic_load_n(&range->head.flags, __ATOMIC_RELAXED) : 0;

    if (unlikely(flags & STRATA_FAST_IOMMU)) {
        memory_translate_slow(access, addr, len, place);
        return;
    }
    place->range = range;
    place->addr = addr;
    place->len = len;
    if (flags & STRATA_FAST_MEMORY && range->head.last - addr < len) {
        place->len = range->head.last - addr + 1;
    }
}

#endif
