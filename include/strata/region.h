/*
 * libstrata: regions, the nodes of the tree that describes a machine's address map.
 *
 * A region is placed into a container at an offset, with a priority among its siblings: the higher
 * wins, among equals the one placed last. Only siblings compare. A container without callbacks has
 * holes through which lower siblings show. An alias shows a window of another region.
 *
 * Every mutator below is a transaction of its own unless one is open, takes effect in the views at
 * the outermost commit, and on failure (-ENOMEM, or a listener refused) changes nothing.
 */
#ifndef STRATA_REGION_H
#define STRATA_REGION_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_kind {
    STRATA_CONTAINER,   /* with ops: a container that answers where its children do not */
    STRATA_RAM,
    STRATA_ROM,         /* RAM that guests cannot write; see strata_write_rom() */
    STRATA_ROM_DEVICE,  /* reads direct while in ROMD mode, writes to callbacks (flash) */
    STRATA_RAM_DEVICE,  /* mmapped device memory: RAM for slots, exact-width accesses from here */
    STRATA_IO,          /* callbacks */
    STRATA_IOMMU,       /* translates: see strata/iommu.h */
    STRATA_ALIAS,
    STRATA_RESERVATION, /* nothing may appear there; accesses are refused */
};

/* Callbacks of a device. addr is relative to the region. Values are in host representation after
 * the endian conversion that `endian` asks for. Give read or read_attrs, write or write_attrs; a
 * missing one makes that direction a decode error. The structure must outlive the region. */
struct strata_io_ops {
    uint64_t (*read)(void *opaque, strata_addr addr, unsigned size);
    void (*write)(void *opaque, strata_addr addr, uint64_t value, unsigned size);
    enum strata_result (*read_attrs)(void *opaque, strata_addr addr, uint64_t *value, unsigned size,
                                     struct strata_attrs attrs);
    enum strata_result (*write_attrs)(void *opaque, strata_addr addr, uint64_t value, unsigned size,
                                      struct strata_attrs attrs);
    enum strata_endian endian;
    struct { /* what the bus lets through; max 0: anything */
        unsigned min, max;
        bool unaligned;
        bool (*accepts)(void *opaque, strata_addr addr, unsigned size, bool write,
                        struct strata_attrs attrs);
    } valid;
    struct { /* what the callbacks take; 0: 1 and 4. Other sizes are composed. */
        unsigned min, max;
        bool unaligned;
    } impl;
};

struct strata_iommu_ops;

struct strata_region_desc {
    enum strata_kind kind;
    const char *name;            /* copied; may repeat */
    uint64_t size;               /* bytes, STRATA_SIZE_ALL: 2^64 */
    struct strata_owner *owner;  /* null: the region stands for itself */
    const struct strata_io_ops *ops;
    const struct strata_iommu_ops *iommu;
    void *opaque;                /* for ops and iommu */
    struct strata_ram *ram;      /* RAM kinds; null: an anonymous block of `size` named `name` */
    struct strata_region *target; /* alias */
    strata_addr offset;           /* alias: where in target the window begins */
};

/* Makes a region, enabled, in ROMD mode, not in any container. The caller holds one reference: give
 * it back with strata_region_destroy(). Size 0 shows nothing. -EINVAL: a missing or superfluous part; -EBUSY: the
 * RAM block has a region; -ELOOP (strict): alias cycle. */
STRATA_PUBLIC int strata_region_new(struct strata_memory *mem, const struct strata_region_desc *desc,
                                    struct strata_region **region);

/* Takes the region out of its container and its children out of it, in one transaction, and drops
 * the creator's reference; memory goes when the last view, alias and mapping let go. */
STRATA_PUBLIC int strata_region_destroy(struct strata_region *region);

STRATA_PUBLIC void strata_region_ref(struct strata_region *region);
STRATA_PUBLIC void strata_region_unref(struct strata_region *region);

/* Owners. release() runs when the last reference to the owner is gone: after its regions left every
 * view and a grace period passed; under the topology lock, in a thread that changes topology. */
STRATA_PUBLIC int strata_owner_new(struct strata_memory *mem, const char *name,
                                   void (*release)(void *opaque), void *opaque,
                                   struct strata_owner **owner);
STRATA_PUBLIC void strata_owner_ref(struct strata_owner *owner);
STRATA_PUBLIC void strata_owner_unref(struct strata_owner *owner);
STRATA_PUBLIC unsigned strata_owner_refs(const struct strata_owner *owner);
/* Let this device's callbacks be entered again from within (default: refused, and counted). */
STRATA_PUBLIC void strata_owner_allow_reentry(struct strata_owner *owner, bool allow);
STRATA_PUBLIC uint64_t strata_owner_reentries(const struct strata_owner *owner);

/* Tree. -EINVAL: the child has a container, or the parent is an alias or the child itself;
 * -ELOOP: would make a cycle through containers (or aliases). */
STRATA_PUBLIC int strata_region_add(struct strata_region *parent, strata_addr addr,
                                    struct strata_region *child);
STRATA_PUBLIC int strata_region_add_overlap(struct strata_region *parent, strata_addr addr,
                                            struct strata_region *child, int priority);
STRATA_PUBLIC int strata_region_remove(struct strata_region *child);

/* Mutators. */
STRATA_PUBLIC int strata_region_set_enabled(struct strata_region *region, bool enabled);
STRATA_PUBLIC int strata_region_set_address(struct strata_region *region, strata_addr addr);
STRATA_PUBLIC int strata_region_set_size(struct strata_region *region, uint64_t size);
STRATA_PUBLIC int strata_region_set_alias_offset(struct strata_region *region, strata_addr offset);
STRATA_PUBLIC int strata_region_set_readonly(struct strata_region *region, bool readonly);
STRATA_PUBLIC int strata_region_set_nonvolatile(struct strata_region *region, bool nonvolatile);
STRATA_PUBLIC int strata_region_set_unmergeable(struct strata_region *region, bool unmergeable);
STRATA_PUBLIC int strata_region_set_romd(struct strata_region *region, bool romd);
/* Neither needs a commit. Lockless also switches the re-entrancy guard off for the region. */
STRATA_PUBLIC void strata_region_set_lockless(struct strata_region *region, bool lockless);
STRATA_PUBLIC void strata_region_set_reentrant(struct strata_region *region, bool reentrant);

/* Queries. */
STRATA_PUBLIC enum strata_kind strata_region_kind(const struct strata_region *region);
STRATA_PUBLIC const char *strata_region_name(const struct strata_region *region);
STRATA_PUBLIC uint64_t strata_region_size(const struct strata_region *region);
STRATA_PUBLIC strata_addr strata_region_addr(const struct strata_region *region);
STRATA_PUBLIC int strata_region_priority(const struct strata_region *region);
STRATA_PUBLIC struct strata_region *strata_region_parent(const struct strata_region *region);
STRATA_PUBLIC struct strata_region *strata_region_target(const struct strata_region *region);
STRATA_PUBLIC struct strata_owner *strata_region_owner(const struct strata_region *region);
STRATA_PUBLIC struct strata_ram *strata_region_ram(const struct strata_region *region);
STRATA_PUBLIC struct strata_memory *strata_region_memory(const struct strata_region *region);
STRATA_PUBLIC void *strata_region_opaque(const struct strata_region *region);
STRATA_PUBLIC bool strata_region_is_enabled(const struct strata_region *region);
STRATA_PUBLIC bool strata_region_is_readonly(const struct strata_region *region);
STRATA_PUBLIC bool strata_region_is_romd(const struct strata_region *region);
/* True for RAM, ROM, RAM devices, and ROM devices: what has host memory. */
STRATA_PUBLIC bool strata_region_is_memory(const struct strata_region *region);
/* In a container, or reached by an alias chain one end of which is. */
STRATA_PUBLIC bool strata_region_is_mapped(const struct strata_region *region);
/* Host memory of a region that has some (through aliases); null otherwise. */
STRATA_PUBLIC void *strata_region_host(const struct strata_region *region);

STRATA_DECLS_END

#endif
