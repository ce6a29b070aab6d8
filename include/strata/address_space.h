/*
 * libstrata: address spaces (memory, I/O ports, SMM, one per bus-master device) and looking things
 * up in their flat views.
 */
#ifndef STRATA_ADDRESS_SPACE_H
#define STRATA_ADDRESS_SPACE_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

/* A piece of a flat view: [start, last] of the space shows `region` from `offset` on. Borrowed: valid
 * during the callback it is passed to, or the read section it was looked up in. */
struct strata_section {
    struct strata_space *space;
    struct strata_region *region;
    strata_addr start, last;
    strata_addr offset;
    void *host;          /* first byte, for regions with host memory; else null */
    uint8_t log_mask;    /* 1 << enum strata_dirty_client */
    bool readonly;       /* by the region or anything on the path (strict), or the region (compatible) */
    bool path_readonly;  /* by anything on the path, whatever the mode */
    bool nonvolatile;
    bool unmergeable;
    bool romd;           /* reads are direct: RAM kinds, and ROM devices in ROMD mode */
};

/* root: referenced until the space is freed. Listeners are told of what it shows. */
STRATA_PUBLIC int strata_space_new(struct strata_memory *mem, const char *name,
                                   struct strata_region *root, struct strata_space **space);
/* Tells listeners that all is gone; the structure itself goes after a grace period. */
STRATA_PUBLIC int strata_space_free(struct strata_space *space);
STRATA_PUBLIC const char *strata_space_name(const struct strata_space *space);
STRATA_PUBLIC struct strata_region *strata_space_root(const struct strata_space *space);
STRATA_PUBLIC struct strata_memory *strata_space_memory(const struct strata_space *space);
/* True when both show the same view object (same canonical root). */
STRATA_PUBLIC bool strata_space_shares_view(const struct strata_space *a,
                                            const struct strata_space *b);
/* Unassigned reads give all ones instead of zero, as I/O ports do. */
STRATA_PUBLIC void strata_space_set_open_bus(struct strata_space *space, bool ones);

/* The piece that shows at addr. 0, -ENOENT. Inside a read section. */
STRATA_PUBLIC int strata_space_lookup(struct strata_space *space, strata_addr addr,
                                      struct strata_section *section);
/* The lowest piece of the flat view that intersects [addr, last], clipped to it. 0, -ENOENT. Inside
 * a read section. */
STRATA_PUBLIC int strata_space_next(struct strata_space *space, strata_addr addr, strata_addr last,
                                    struct strata_section *section);
/* The lowest flat range of `parent`'s top-level space that intersects [addr, addr + size) of
 * `parent`, clipped to that, with a reference on its region: strata_region_unref() it. 0, -ENOENT. */
STRATA_PUBLIC int strata_region_find(struct strata_region *parent, strata_addr addr, uint64_t size,
                                     struct strata_section *section);
/* True if something other than `parent` itself shows at addr of parent. */
STRATA_PUBLIC bool strata_region_present(struct strata_region *parent, strata_addr addr);
/* Calls fn for each piece, in address order, under the topology lock, until it returns nonzero. */
STRATA_PUBLIC int strata_space_for_each(struct strata_space *space,
                                        int (*fn)(void *opaque, const struct strata_section *section),
                                        void *opaque);

STRATA_DECLS_END

#endif
