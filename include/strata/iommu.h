/*
 * libstrata: IOMMU regions. A lookup that ends in one is translated and goes on in another space.
 */
#ifndef STRATA_IOMMU_H
#define STRATA_IOMMU_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_iommu_perm { STRATA_IOMMU_NONE, STRATA_IOMMU_RO, STRATA_IOMMU_WO, STRATA_IOMMU_RW };

/* A translation: [iova, iova + mask] goes to `target` at `translated`; both aligned to mask + 1. */
struct strata_iotlb {
    struct strata_space *target;
    strata_addr iova;
    strata_addr translated;
    uint64_t mask;
    enum strata_iommu_perm perm;
};

enum strata_iommu_event_kind {
    STRATA_IOMMU_UNMAP = 1,
    STRATA_IOMMU_MAP = 2,
    STRATA_IOMMU_DEVIOTLB_UNMAP = 4,
};

struct strata_iommu_event {
    enum strata_iommu_event_kind kind;
    struct strata_iotlb entry;
};

struct strata_iommu_notifier;

struct strata_iommu_ops {
    /* perm: what the access needs (NONE: just look); index: from attrs_to_index. Inside a read
     * section; `target` must stay alive until the section ends. */
    struct strata_iotlb (*translate)(void *opaque, strata_addr addr, enum strata_iommu_perm need,
                                     int index);
    int (*attrs_to_index)(void *opaque, struct strata_attrs attrs);
    int (*num_indexes)(void *opaque);
    uint64_t (*min_page_size)(void *opaque); /* default 4096 */
    /* Which event kinds are now wanted; nonzero vetoes, and the (un)registration is undone. */
    int (*notify_flag_changed)(void *opaque, unsigned old_flags, unsigned new_flags);
    /* Instead of a walk page by page. */
    void (*replay)(void *opaque, struct strata_iommu_notifier *notifier);
};

/* The caller's; lives while registered. */
struct strata_iommu_notifier {
    void (*notify)(struct strata_iommu_notifier *n, const struct strata_iotlb *entry);
    unsigned kinds; /* enum strata_iommu_event_kind */
    strata_addr start, last;
    int index;
    struct strata_region *region;       /* private */
    struct strata_iommu_notifier *next; /* private */
};

/* -EINVAL: no kinds, last < start, index out of range, or the region is no IOMMU; or what the veto
 * said. */
STRATA_PUBLIC int strata_iommu_notifier_add(struct strata_region *region,
                                            struct strata_iommu_notifier *n);
STRATA_PUBLIC int strata_iommu_notifier_del(struct strata_iommu_notifier *n);
/* Tells every notifier of that index and kind, the range cropped to what it asked for. -EINVAL: an
 * unmap with permissions, or a mask that is not 2^n - 1. */
STRATA_PUBLIC int strata_iommu_notify(struct strata_region *region, int index,
                                      const struct strata_iommu_event *event);
/* Tells a notifier of all mappings in its range. */
STRATA_PUBLIC int strata_iommu_replay(struct strata_region *region, struct strata_iommu_notifier *n);
/* Unmaps everything for the notifier: what a reset does. */
STRATA_PUBLIC int strata_iommu_unmap_all(struct strata_region *region,
                                         struct strata_iommu_notifier *n);
STRATA_PUBLIC uint64_t strata_iommu_min_page_size(struct strata_region *region);

/* Where an IOTLB entry's bytes are in RAM. -EFAULT: not RAM; -ENODATA: discarded; -ERANGE: the target
 * is contiguous for less than the entry. Inside a read section. */
STRATA_PUBLIC int strata_iotlb_resolve(const struct strata_iotlb *entry, struct strata_ram **ram,
                                       uint64_t *ram_offset, bool *readonly);
/* The whole walk for a device: translate addr until the target is no IOMMU. -EACCES: refused. */
STRATA_PUBLIC int strata_iommu_walk(struct strata_space *space, strata_addr addr, bool write,
                                    struct strata_attrs attrs, struct strata_iotlb *entry);

STRATA_DECLS_END

#endif
