/* Discard policy, managers and their sources, seen from inside the folder. */
#ifndef STRATA_MEMORY_DISCARD_H
#define STRATA_MEMORY_DISCARD_H

#include "memory/region.h"
#include "strata/discard.h"

/* One opinion on which granules are there; a bit set: populated. */
struct strata_discard_source {
    struct strata_discard_manager *manager;
    struct strata_discard_source *next; /* RCU */
    uint64_t granularity;
    uint64_t granules;
    uint64_t *populated; /* atomic words */
    struct memory_retired retired;
};

struct strata_discard_manager {
    struct strata_region *region;
    struct strata_discard_source *sources; /* RCU; never empty */
    struct strata_discard_source *own;     /* made with the manager; null: taken away */
    struct strata_discard_listener *listeners; /* in order of registration */
    struct memory_retired retired;
};

bool memory_discard_is_forbidden(const struct strata_memory *mem);

/* discard_source.c */
void memory_discard_free_sources(struct strata_memory *mem, struct strata_discard_manager *m);
uint64_t memory_discard_run(const struct strata_discard_manager *m, uint64_t *offset, uint64_t end,
                            bool populated, const struct strata_discard_source *except);

#endif
