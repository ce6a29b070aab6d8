/*
 * Telling listeners. The order in which they are called is decided here and nowhere else:
 * forward for begin, region_add, region_nop, log_start, coalesced_add, eventfd_del, commit;
 * reverse for region_del, log_stop, coalesced_del, eventfd_add, log_global_stop.
 * Lock: the handle's, held; mem->in_callback is set around the calls.
 */
#ifndef STRATA_MEMORY_NOTIFY_H
#define STRATA_MEMORY_NOTIFY_H

#include "memory/plan.h"
#include "strata/listener.h"

struct strata_listener {
    struct strata_memory *mem;
    struct list node;
    char *name;
    int priority;
    struct strata_listener_ops ops; /* a copy: absent callbacks are null */
    void *opaque;
    struct strata_space *space;     /* null: all */
    bool prepared;
    size_t slot;                    /* of its accounts: see sum.h */
};

static inline bool memory_listener_wants(const struct strata_listener *l,
                                         const struct strata_space *space)
{
    return !l->space || l->space == space;
}

void memory_notify_begin(struct strata_memory *mem);
void memory_notify_commit(struct strata_memory *mem);
void memory_notify_removed(struct strata_space *space, const struct memory_delta *delta);
void memory_notify_added(struct strata_space *space, const struct memory_delta *delta, bool nop);
void memory_notify_events(struct strata_space *space, const struct memory_event_delta *events);
must_check int memory_notify_prepare(struct strata_memory *mem,
                                     const struct strata_change_set *sets, size_t count);
void memory_notify_apply(struct strata_memory *mem, const struct strata_change_set *sets,
                         size_t count);
void memory_notify_coalesced(const struct strata_section *section, strata_addr start, uint64_t size,
                             bool add);
bool memory_notify_wants_sets(struct strata_memory *mem);

/* listener.c */
void memory_listeners_count(struct strata_memory *mem);

/* changes.c: everything that a listener's spaces show, as one batch. */
struct memory_replay {
    struct strata_change_set *sets;
    struct strata_change *changes;
    size_t count;           /* sets that are not empty */
    size_t nsets, nchanges; /* as allocated */
};
must_check int memory_replay_init(const struct strata_listener *l, bool add,
                                  struct memory_replay *all);
void memory_replay_fini(struct strata_memory *mem, struct memory_replay *all);

/* One listener, for registration and its end. */
void memory_notify_replay(struct strata_listener *l, struct strata_space *space);
void memory_notify_unplay(struct strata_listener *l, struct strata_space *space);

#endif
