/*
 * libstrata: ioeventfds (a guest write that signals a file descriptor) and coalesced ranges (guest
 * writes that may be delivered late, in a batch).
 */
#ifndef STRATA_EVENTFD_H
#define STRATA_EVENTFD_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

/* Registered on a region: addr is relative to it. Told to listeners: addr is absolute. */
struct strata_eventfd {
    strata_addr addr;
    unsigned size;   /* 0 (any length), 1, 2, 4 or 8 bytes */
    bool match_data; /* only writes of `data` (host representation; swapped for big-endian regions) */
    uint64_t data;
    int fd;
};

/* -EINVAL: bad size, beyond the region, data match with size 0; -EEXIST: the very same is there. */
STRATA_PUBLIC int strata_region_add_eventfd(struct strata_region *region,
                                            const struct strata_eventfd *ev);
/* -ENOENT: no such. */
STRATA_PUBLIC int strata_region_del_eventfd(struct strata_region *region,
                                            const struct strata_eventfd *ev);

/* [addr, addr + size) of the region may be coalesced. */
STRATA_PUBLIC int strata_region_add_coalesced(struct strata_region *region, strata_addr addr,
                                              uint64_t size);
/* Drains what is buffered, then removes every coalesced range of the region. */
STRATA_PUBLIC int strata_region_clear_coalesced(struct strata_region *region);
/* Drain what is buffered before any access to the region. */
STRATA_PUBLIC void strata_region_set_flush_coalesced(struct strata_region *region, bool flush);
/* Asks every listener to deliver what it has buffered now. */
STRATA_PUBLIC void strata_coalesced_flush(struct strata_memory *mem);

STRATA_DECLS_END

#endif
