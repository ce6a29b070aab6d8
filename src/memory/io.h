/*
 * One access to one device region: validity, size adaptation, byte order, re-entrancy, locking.
 * Values are what the bus carries: the bytes of memory order, read as a little-endian number.
 */
#ifndef STRATA_MEMORY_IO_H
#define STRATA_MEMORY_IO_H

#include "memory/region.h"

struct memory_io {
    struct strata_region *region;
    strata_addr addr; /* in the region */
    unsigned size;
    struct strata_attrs attrs;
};

bool memory_io_valid(const struct memory_io *io, bool write);
unsigned memory_io_piece(const struct strata_region *region, strata_addr addr, uint64_t len);
enum strata_result memory_io_read(const struct memory_io *io, uint64_t *value);
enum strata_result memory_io_write(const struct memory_io *io, uint64_t value);

#endif
