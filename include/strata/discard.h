/*
 * libstrata: RAM of which only parts are there (hot-plugged memory, balloons).
 *
 * Discarding by policy: who needs every page to stay (a pinning device), who discards without telling
 * (a balloon), who only through a manager that tells listeners.
 */
#ifndef STRATA_DISCARD_H
#define STRATA_DISCARD_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

/* Four counters. -EBUSY where they contradict:
 *   need_any           | forbid_any, forbid_uncoordinated
 *   need_coordinated   | forbid_any
 *   forbid_any         | need_any, need_coordinated
 *   forbid_uncoordinated | need_any */
enum strata_discard_policy {
    STRATA_DISCARD_NEED_ANY,
    STRATA_DISCARD_NEED_COORDINATED,
    STRATA_DISCARD_FORBID_ANY,
    STRATA_DISCARD_FORBID_UNCOORDINATED,
};
STRATA_PUBLIC int strata_discard_require(struct strata_memory *mem,
                                         enum strata_discard_policy policy, bool on);
STRATA_PUBLIC bool strata_discard_is_needed(const struct strata_memory *mem);
STRATA_PUBLIC bool strata_discard_is_forbidden(const struct strata_memory *mem);

/* A manager keeps which granules of a region's RAM are populated, and tells listeners. One per region.
 * It has a source of its own, in which granules begin discarded; more can be added. */
struct strata_discard_manager;
STRATA_PUBLIC int strata_discard_manager_new(struct strata_region *region, uint64_t granularity,
                                             struct strata_discard_manager **manager);
STRATA_PUBLIC void strata_discard_manager_free(struct strata_discard_manager *manager);
STRATA_PUBLIC uint64_t strata_discard_granularity(const struct strata_discard_manager *manager);
STRATA_PUBLIC bool strata_discard_is_populated(const struct strata_discard_manager *manager,
                                               uint64_t offset, uint64_t len);

/* Populate: every listener is asked; when one refuses, those already told are told to discard again,
 * and its error is returned. Discard: every listener is told. Offsets in the region; whole granules. */
STRATA_PUBLIC int strata_discard_populate(struct strata_discard_manager *manager, uint64_t offset,
                                          uint64_t len);
STRATA_PUBLIC int strata_discard_drop(struct strata_discard_manager *manager, uint64_t offset,
                                      uint64_t len);

/* Further sources, for example hot-plugging and conversion to private memory: what is there is what all
 * sources have populated, and listeners hear where that changes. Each has granules of its own size and
 * begins populated or discarded throughout. Dropping in a further source gives no memory back. The
 * last source cannot go (-EBUSY); all go with the manager. */
struct strata_discard_source;
STRATA_PUBLIC int strata_discard_source_new(struct strata_discard_manager *manager,
                                            uint64_t granularity, bool populated,
                                            struct strata_discard_source **source);
STRATA_PUBLIC int strata_discard_source_free(struct strata_discard_source *source);
STRATA_PUBLIC int strata_discard_source_populate(struct strata_discard_source *source,
                                                 uint64_t offset, uint64_t len);
STRATA_PUBLIC int strata_discard_source_drop(struct strata_discard_source *source, uint64_t offset,
                                             uint64_t len);

/* Calls fn for each populated (or discarded) run within the range until it returns nonzero. */
typedef int (*strata_discard_fn)(void *opaque, uint64_t offset, uint64_t len);
STRATA_PUBLIC int strata_discard_replay(struct strata_discard_manager *manager, bool populated,
                                        uint64_t offset, uint64_t len, strata_discard_fn fn,
                                        void *opaque);

/* The caller's; lives while registered. Registering replays what is populated (and fails, undone,
 * when populate() does); unregistering discards all. */
struct strata_discard_listener {
    int (*populate)(struct strata_discard_listener *l, uint64_t offset, uint64_t len);
    void (*discard)(struct strata_discard_listener *l, uint64_t offset, uint64_t len);
    uint64_t offset, len; /* of the region; the calls are clipped to it */
    struct strata_discard_manager *manager; /* private */
    struct strata_discard_listener *next;   /* private */
};
STRATA_PUBLIC int strata_discard_listener_add(struct strata_discard_manager *manager,
                                              struct strata_discard_listener *l);
STRATA_PUBLIC void strata_discard_listener_del(struct strata_discard_listener *l);
STRATA_PUBLIC struct strata_discard_manager *strata_region_discard_manager(
    const struct strata_region *region);

STRATA_DECLS_END

#endif
