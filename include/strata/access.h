/*
 * libstrata: accesses from devices, device models and debuggers. No lock is taken; each call sees
 * one commit's view. Results are ORed over the pieces of an access; a piece that fails reads as 0.
 */
#ifndef STRATA_ACCESS_H
#define STRATA_ACCESS_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

STRATA_PUBLIC enum strata_result strata_read(struct strata_space *space, strata_addr addr,
                                             struct strata_attrs attrs, void *buf, size_t len);
STRATA_PUBLIC enum strata_result strata_write(struct strata_space *space, strata_addr addr,
                                              struct strata_attrs attrs, const void *buf, size_t len);
STRATA_PUBLIC enum strata_result strata_fill(struct strata_space *space, strata_addr addr,
                                             struct strata_attrs attrs, uint8_t byte, size_t len);
/* A loader's write: RAM and ROM are written, everything else is skipped in silence. */
STRATA_PUBLIC enum strata_result strata_write_rom(struct strata_space *space, strata_addr addr,
                                                  const void *buf, size_t len);
/* Would an access of these bytes be let through (RAM, or the region's valid rules)? */
STRATA_PUBLIC bool strata_access_valid(struct strata_space *space, strata_addr addr, size_t len,
                                       bool write, struct strata_attrs attrs);
STRATA_PUBLIC bool strata_is_io(struct strata_space *space, strata_addr addr);

/* One value of 1, 2, 4 or 8 bytes, stored in memory in the given order; to a device, one access. */
STRATA_PUBLIC enum strata_result strata_load(struct strata_space *space, strata_addr addr,
                                             unsigned size, enum strata_endian endian,
                                             uint64_t *value);
STRATA_PUBLIC enum strata_result strata_store(struct strata_space *space, strata_addr addr,
                                              unsigned size, enum strata_endian endian,
                                              uint64_t value);

/* Atomics on RAM, naturally aligned, size 1, 2, 4 or 8; anything else: STRATA_ACCESS_ERROR.
 * cmpxchg stores `desired` if memory equals *expected; *expected becomes what was there. */
STRATA_PUBLIC enum strata_result strata_cmpxchg(struct strata_space *space, strata_addr addr,
                                                unsigned size, uint64_t *expected,
                                                uint64_t desired);
STRATA_PUBLIC enum strata_result strata_fetch_add(struct strata_space *space, strata_addr addr,
                                                  unsigned size, uint64_t add, uint64_t *old);

/* Directly at a region, past the views: for buses that do their own decoding. size 1, 2, 4, 8. */
STRATA_PUBLIC enum strata_result strata_region_read(struct strata_region *region, strata_addr addr,
                                                    unsigned size, struct strata_attrs attrs,
                                                    uint64_t *value);
STRATA_PUBLIC enum strata_result strata_region_write(struct strata_region *region, strata_addr addr,
                                                     unsigned size, struct strata_attrs attrs,
                                                     uint64_t value);

/* Direct mappings, for DMA. */
struct strata_mapping {
    void *ptr;
    uint64_t len;
    /* private */
    struct strata_space *space;
    struct strata_region *region;
    strata_addr addr;
    strata_addr offset;
    void *bounce;
    uint64_t magic;
    struct strata_attrs attrs;
    bool write;
};

/* Maps up to *len bytes at addr: a pointer into guest RAM as far as one region reaches, or a bounce
 * buffer out of the space's budget, perhaps shorter. m->len says how much. -EAGAIN: budget spent
 * (len 0, ptr null); wait with strata_map_wait(). -EACCES: attrs.memory,
 * and no memory there. */
STRATA_PUBLIC int strata_map(struct strata_space *space, strata_addr addr, uint64_t len, bool write,
                             struct strata_mapping *m);
/* Like strata_map, with attributes in m->attrs, which in strict mode travel with the write-back, too. */
STRATA_PUBLIC int strata_map_attrs(struct strata_space *space, strata_addr addr, uint64_t len,
                                   bool write, struct strata_mapping *m);
/* accessed: bytes really read or written (marked dirty, or written back). -EINVAL: not a mapping. */
STRATA_PUBLIC int strata_unmap(struct strata_mapping *m, uint64_t accessed);
/* Total bounce bytes of a space; default 4096. */
STRATA_PUBLIC void strata_space_set_bounce_budget(struct strata_space *space, uint64_t bytes);
/* fn runs once, when budget came back, in the thread that unmapped. Waiters are woken in order. */
STRATA_PUBLIC int strata_map_wait(struct strata_space *space, void (*fn)(void *opaque), void *opaque);
STRATA_PUBLIC void strata_map_cancel(struct strata_space *space, void (*fn)(void *opaque),
                                     void *opaque);

STRATA_DECLS_END

#endif
