/*
 * libstrata: cached translations, for a device that accesses the same few bytes over and over (a
 * queue's rings). A cache pins its region and its place as of the moment it was made: make it anew
 * when the topology changes (a listener's commit).
 */
#ifndef STRATA_CACHE_H
#define STRATA_CACHE_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

struct strata_cache {
    void *ptr;    /* direct pointer, or null: accesses go through the space */
    uint64_t len; /* how much of what was asked for is covered */
    /* private */
    struct strata_space *space;
    struct strata_region *region;
    strata_addr addr, offset;
    bool write;
};

/* Covers as much of [addr, addr + len) as one piece of the view shows. 0; -ENOENT: nothing there;
 * -EINVAL: len 0. */
STRATA_PUBLIC int strata_cache_init(struct strata_cache *cache, struct strata_space *space,
                                    strata_addr addr, uint64_t len, bool write);
STRATA_PUBLIC void strata_cache_fini(struct strata_cache *cache);
/* Offsets in the cache; beyond its length: STRATA_DECODE_ERROR, nothing is touched. Writes through
 * a cache made for reading: STRATA_ACCESS_ERROR. */
STRATA_PUBLIC enum strata_result strata_cache_read(struct strata_cache *cache, uint64_t offset,
                                                   void *buf, size_t len);
STRATA_PUBLIC enum strata_result strata_cache_write(struct strata_cache *cache, uint64_t offset,
                                                    const void *buf, size_t len);
/* Bytes were written through cache->ptr: mark them dirty. */
STRATA_PUBLIC void strata_cache_invalidate(struct strata_cache *cache, uint64_t offset,
                                           uint64_t len);

STRATA_DECLS_END

#endif
