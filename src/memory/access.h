/* Accesses, seen from inside the folder. */
#ifndef STRATA_MEMORY_ACCESS_H
#define STRATA_MEMORY_ACCESS_H

#include "memory/translate.h"
#include "strata/access.h"

/* May the bytes be copied straight to or from host memory? */
static inline bool memory_place_is_direct(const struct memory_place *place,
                                          const struct memory_access *access)
{
    const struct memory_range *range = place->range;
    uint32_t flags = range ? __atomic_load_n(&range->head.flags, __ATOMIC_ACQUIRE) : 0;

    if (!access->write) {
        return flags & STRATA_FAST_READ;
    }
    if (access->attrs.debug) {
        return flags & STRATA_FAST_MEMORY && range->piece.region->kind != STRATA_RAM_DEVICE;
    }
    return flags & STRATA_FAST_MARK;
}

void memory_place_mark_dirty(const struct memory_place *place, uint64_t len);
unsigned memory_place_piece(const struct memory_place *place, const struct memory_access *access);
enum strata_result memory_place_read(const struct memory_place *place,
                                     const struct memory_access *access, unsigned size,
                                     uint64_t *value);
enum strata_result memory_place_write(const struct memory_place *place,
                                      const struct memory_access *access, unsigned size,
                                      uint64_t value);

#endif
