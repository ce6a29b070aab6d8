/*
 * IOMMU regions: translation on the access path, notifiers, replay.
 *
 * A walk ends after a bounded number of IOMMUs, so that ones that point at each other cannot hold an
 * access for ever. Notifiers are kept in order of registration under the handle's lock; translate()
 * runs in a read section without it.
 * Source: QEMU address_space_translate_iommu(), memory_region_register_iommu_notifier(), by rule.
 */
#include <errno.h>

#include "memory/discard.h"
#include "memory/ram.h"
#include "memory/translate.h"

#define WALK_MAX 32

struct memory_iommu {
    const struct strata_iommu_ops *ops;
    struct strata_iommu_notifier *notifiers;
    unsigned kinds; /* that are wanted */
};

/* Make a region an IOMMU. 0 or -ENOMEM. */
int memory_iommu_init(struct strata_region *region, const struct strata_iommu_ops *ops)
{
    region->iommu = memory_zalloc(region->mem, sizeof(*region->iommu));
    if (!region->iommu) {
        return memory_fail_alloc(region->mem);
    }
    region->iommu->ops = ops;
    return 0;
}

/* The region goes; its notifiers are forgotten. */
void memory_iommu_free(struct strata_region *region)
{
    memory_free(region->mem, region->iommu, sizeof(*region->iommu));
    region->iommu = NULL;
}

/* One step: translate `addr`, which `range` (an IOMMU's) shows. False: refused. In a read section. */
bool memory_iommu_translate(const struct memory_access *access, const struct memory_range *range,
                            strata_addr addr, struct strata_iotlb *entry)
{
    const struct strata_region *region = range->piece.region;
    const struct strata_iommu_ops *ops = region->iommu->ops;
    enum strata_iommu_perm need = access->write ? STRATA_IOMMU_WO : STRATA_IOMMU_RO;
    int index = ops->attrs_to_index ? ops->attrs_to_index(region->opaque, access->attrs) : 0;

    *entry = ops->translate(region->opaque, addr - range->head.start + range->piece.offset, need,
                            index);
    return (entry->perm & need) == need && entry->target && (entry->mask & (entry->mask + 1)) == 0;
}

struct walk {
    struct strata_space *space;
    const struct memory_range *range; /* null: refused or nothing there */
    strata_addr addr;
    uint64_t mask;                    /* AND of the masks met */
};

static void walk_down(const struct memory_access *access, strata_addr addr, struct walk *w)
{
    *w = (struct walk){.space = access->space, .addr = addr, .mask = UINT64_MAX};
    for (int step = 0; step <= WALK_MAX; step++) {
        struct strata_fast_view *view = base_rcu_load(&w->space->head.view);
        struct strata_iotlb entry;
        uint64_t offset;

        w->range = memory_dispatch_find(base_rcu_load(&view->root), w->addr);
        if (!w->range || w->range->piece.region->kind != STRATA_IOMMU) {
            return;
        }
        offset = w->addr - w->range->head.start + w->range->piece.offset;
        if (!memory_iommu_translate(access, w->range, w->addr, &entry)) {
            break;
        }
        w->addr = (entry.translated & ~entry.mask) | (offset & entry.mask);
        w->mask &= entry.mask;
        w->space = entry.target;
    }
    w->range = NULL;
}

/* The general form of memory_translate(), for spaces with IOMMUs in them. In a read section. */
void memory_translate_slow(const struct memory_access *access, strata_addr addr, uint64_t len,
                           struct memory_place *place)
{
    struct walk w;
    uint64_t room;

    walk_down(access, addr, &w);
    room = (w.addr | w.mask) - w.addr; /* bytes behind the first, in the translated page */
    place->range = w.range;
    place->addr = w.addr;
    place->len = room < len - 1 ? room + 1 : len;
    if (w.range && w.range->piece.region->ram && w.range->head.last - w.addr < place->len) {
        place->len = w.range->head.last - w.addr + 1;
    }
}

/*
 * Translate an address for a device (vhost and the like) until the target is no IOMMU. entry: the
 * page around it, as far as every step maps it as one. Returns 0; -EACCES: refused, or nothing there.
 * In a read section. Source: QEMU address_space_get_iotlb_entry().
 */
int strata_iommu_walk(struct strata_space *space, strata_addr addr, bool write,
                      struct strata_attrs attrs, struct strata_iotlb *entry)
{
    struct memory_access access = {space, attrs, write};
    struct walk w;

    walk_down(&access, addr, &w);
    if (!w.range) {
        return -EACCES;
    }
    if (w.mask == UINT64_MAX) { /* no IOMMU on the way: a page will do */
        w.mask = 0xfff;
    }
    *entry = (struct strata_iotlb){
        .target = w.space,
        .iova = addr & ~w.mask,
        .translated = w.addr & ~w.mask,
        .mask = w.mask,
        .perm = STRATA_IOMMU_RW,
    };
    return 0;
}

/* The RAM behind an entry; see strata/iommu.h. In a read section. Source: QEMU memory_get_xlat_addr(). */
int strata_iotlb_resolve(const struct strata_iotlb *entry, struct strata_ram **ram,
                         uint64_t *ram_offset, bool *readonly)
{
    struct memory_access access = {.space = entry->target, .write = entry->perm & STRATA_IOMMU_WO};
    uint64_t len = entry->mask == UINT64_MAX ? UINT64_MAX : entry->mask + 1;
    struct strata_discard_manager *manager;
    struct strata_region *region;
    struct memory_place place;

    memory_translate(&access, entry->translated, len, &place);
    if (!place.range || !memory_place_region(&place)->ram) {
        return -EFAULT;
    }
    region = memory_place_region(&place);
    if (place.len < len) {
        return -ERANGE;
    }
    manager = base_rcu_load(&region->discard);
    if (manager && !strata_discard_is_populated(manager, memory_place_offset(&place), len)) {
        return -ENODATA;
    }
    *ram = region->ram;
    *ram_offset = memory_place_offset(&place);
    *readonly = !access.write || memory_region_is_readonly(region) || region->kind != STRATA_RAM;
    return 0;
}

/* Ask the IOMMU whether the set of wanted kinds may change to what the notifiers say. */
static int update_kinds(struct strata_region *region)
{
    struct memory_iommu *iommu = region->iommu;
    unsigned kinds = 0;
    int err = 0;

    for (struct strata_iommu_notifier *n = iommu->notifiers; n; n = n->next) {
        kinds |= n->kinds;
    }
    if (kinds != iommu->kinds && iommu->ops->notify_flag_changed) {
        err = iommu->ops->notify_flag_changed(region->opaque, iommu->kinds, kinds);
    }
    if (!err) {
        iommu->kinds = kinds;
    }
    return err;
}

static struct strata_iommu_notifier **notifier_slot(struct memory_iommu *iommu,
                                                    const struct strata_iommu_notifier *n)
{
    struct strata_iommu_notifier **at = &iommu->notifiers;

    while (*at && *at != n) {
        at = &(*at)->next;
    }
    return at;
}

/* Register a notifier, which stays the caller's. 0; -EINVAL, or the IOMMU's veto: it is not in.
 * Lock: taken. */
int strata_iommu_notifier_add(struct strata_region *region, struct strata_iommu_notifier *n)
{
    struct memory_iommu *iommu;
    int indexes, err = -EINVAL;

    while (region->target) {
        region = region->target;
    }
    iommu = region->iommu;
    if (!iommu || !n->kinds || n->last < n->start) {
        return err;
    }
    memory_lock(region->mem);
    indexes = iommu->ops->num_indexes ? iommu->ops->num_indexes(region->opaque) : 1;
    if (n->index >= 0 && n->index < indexes && !*notifier_slot(iommu, n)) {
        struct strata_iommu_notifier **at = notifier_slot(iommu, NULL);

        n->region = region;
        n->next = NULL;
        *at = n;
        err = update_kinds(region);
        *at = err ? NULL : n;
    }
    memory_unlock(region->mem);
    return err;
}

/* Take a notifier out. 0; -ENOENT; the IOMMU's veto: it is still in. Lock: taken. */
int strata_iommu_notifier_del(struct strata_iommu_notifier *n)
{
    struct strata_region *region = n->region;
    struct strata_iommu_notifier **at;
    int err = -ENOENT;

    memory_lock(region->mem);
    at = notifier_slot(region->iommu, n);
    if (*at) {
        *at = n->next;
        err = update_kinds(region);
        if (err) {
            n->next = *at;
            *at = n;
        }
    }
    memory_unlock(region->mem);
    return err;
}

static void notify_one(struct strata_iommu_notifier *n, const struct strata_iommu_event *event)
{
    struct strata_iotlb entry = event->entry;
    strata_addr last = entry.iova + entry.mask;

    if (!(event->kind & n->kinds) || n->start > last || n->last < entry.iova) {
        return;
    }
    if (entry.iova < n->start) {
        entry.translated += n->start - entry.iova;
        entry.iova = n->start;
    }
    entry.mask = (last < n->last ? last : n->last) - entry.iova;
    n->notify(n, &entry);
}

/*
 * Tell of a change of mappings; only what a notifier's range covers, so the mask it sees may be the
 * length less one of any range. Returns 0; -EINVAL: not an IOMMU, a bad mask, or an unmap with
 * permissions. Lock: taken around the calls.
 */
int strata_iommu_notify(struct strata_region *region, int index, const struct strata_iommu_event *event)
{
    const struct strata_iotlb *e = &event->entry;
    struct strata_iommu_notifier *n, *next;

    if (!region->iommu || (e->mask & (e->mask + 1)) || (e->iova & e->mask) ||
        (event->kind != STRATA_IOMMU_MAP && e->perm != STRATA_IOMMU_NONE)) {
        return -EINVAL;
    }
    memory_lock(region->mem);
    for (n = region->iommu->notifiers; n; n = next) {
        next = n->next;
        if (n->index == index) {
            notify_one(n, event);
        }
    }
    memory_unlock(region->mem);
    return 0;
}

/* The smallest page it maps; at least 1. */
uint64_t strata_iommu_min_page_size(struct strata_region *region)
{
    uint64_t size = region->iommu && region->iommu->ops->min_page_size
                        ? region->iommu->ops->min_page_size(region->opaque)
                        : 4096;

    return size && !(size & (size - 1)) ? size : 4096;
}

static void replay_pages(struct strata_region *region, struct strata_iommu_notifier *n)
{
    const struct strata_iommu_ops *ops = region->iommu->ops;
    uint64_t page = strata_iommu_min_page_size(region), at = n->start & ~(page - 1), step;
    uint64_t last = (i128)n->last < region->size ? n->last : memory_region_last(region);

    do {
        struct strata_iotlb entry = ops->translate(region->opaque, at, STRATA_IOMMU_NONE, n->index);

        if (entry.perm != STRATA_IOMMU_NONE) {
            struct strata_iommu_event event = {STRATA_IOMMU_MAP, entry};

            notify_one(n, &event);
        }
        step = !(entry.mask & (entry.mask + 1)) && entry.mask > page - 1 ? entry.mask : page - 1;
        at |= step;
    } while (at < last && ++at);
}

/* Tell a notifier of every mapping in its range, by the IOMMU's own way or page by page; whole
 * entries are stepped over, also of holes that translate() gives a mask for. 0; -EINVAL.
 * Lock: taken around the calls. Source: QEMU memory_region_iommu_replay(). */
int strata_iommu_replay(struct strata_region *region, struct strata_iommu_notifier *n)
{
    if (!region->iommu || region->size == 0) {
        return -EINVAL;
    }
    memory_lock(region->mem);
    if (region->iommu->ops->replay) {
        region->iommu->ops->replay(region->opaque, n);
    } else {
        base_rcu_read_lock();
        replay_pages(region, n);
        base_rcu_read_unlock();
    }
    memory_unlock(region->mem);
    return 0;
}

/* Tell a notifier that its whole range is unmapped, in aligned powers of two. 0; -EINVAL.
 * Source: QEMU memory_region_unmap_iommu_notifier_range(). */
int strata_iommu_unmap_all(struct strata_region *region, struct strata_iommu_notifier *n)
{
    uint64_t at = n->start;

    if (!region->iommu || n->last < n->start) {
        return -EINVAL;
    }
    memory_lock(region->mem);
    for (;;) {
        uint64_t mask = at ? (at & -at) - 1 : UINT64_MAX;
        struct strata_iommu_event event = {STRATA_IOMMU_UNMAP, {.iova = at}};

        while (mask && mask > n->last - at) {
            mask >>= 1;
        }
        event.entry.mask = mask;
        notify_one(n, &event);
        if (n->last - at <= mask) {
            break;
        }
        at += mask + 1;
    }
    memory_unlock(region->mem);
    return 0;
}
