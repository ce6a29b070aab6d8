/*
 * What a commit is going to do, worked out before anybody is told: per view that has windows, which
 * ranges leave, come, and stay; per space that is listened to, the same as a delta, its eventfd
 * differences and its change set. Building may fail and leaves no trace; carrying it out cannot.
 *
 * Lock: the handle's, held throughout.
 */
#ifndef STRATA_MEMORY_PLAN_H
#define STRATA_MEMORY_PLAN_H

#include "memory/dispatch.h"
#include "memory/render.h"
#include "memory/view.h"
#include "strata/listener.h"

/* A range that listeners see as unchanged; was and is differ when the space changes its view. */
struct memory_kept {
    struct memory_range *was, *is;
    uint8_t old_mask, new_mask;
};

struct memory_ranges {
    struct memory_range **item;
    size_t count, cap;
};

/* Each sorted by address. */
struct memory_delta {
    struct memory_ranges removed, added;
    struct memory_kept *kept;
    size_t nkept, cap_kept;
};

struct memory_plan {
    struct memory_view *view;
    struct memory_delta delta; /* kept: everything in the windows that stays */
    uintptr_t root;            /* of the new radix */
    bool published;
    struct memory_plan *next;
};

struct memory_event_delta {
    struct strata_eventfd *old, *now; /* sorted */
    size_t nold, nnow, cap_old, cap_now;
};

/* One space that changes and is listened to. */
struct memory_space_plan {
    struct strata_space *space;
    struct memory_view *view;    /* where it goes; may be where it is */
    const struct memory_delta *delta;
    struct memory_delta own;     /* when not the view's */
    struct memory_event_delta events;
    struct strata_change *changes;
    size_t nchanges, cap_changes;
};

struct memory_commit {
    struct strata_memory *mem;
    bool topology;               /* false: only eventfds */
    struct memory_dispatch_plan dispatch;
    struct memory_plan *plans;
    struct memory_space_plan *spaces;
    size_t nspaces, cap_spaces;
    struct strata_change_set *sets;
    size_t nsets;
};

/* plan.c */
must_check int memory_plan_view(struct memory_commit *commit, struct memory_view *view);
void memory_plan_publish(struct memory_plan *plan);
void memory_plan_free(struct strata_memory *mem, struct memory_plan *plan, bool discard);

/* delta.c */
void memory_delta_fini(struct strata_memory *mem, struct memory_delta *delta);
must_check int memory_delta_add(struct strata_memory *mem, struct memory_ranges *ranges,
                                struct memory_range *range);
must_check int memory_delta_keep(struct strata_memory *mem, struct memory_delta *delta,
                                 const struct memory_kept *kept);
must_check int memory_delta_between(struct strata_memory *mem, const struct memory_view *from,
                                    const struct memory_view *to, struct memory_delta *delta);
must_check int memory_delta_events(struct strata_memory *mem, const struct memory_delta *delta,
                                   struct memory_event_delta *events);
bool memory_event_place(const struct memory_range *range, const struct strata_eventfd *ev,
                        struct strata_eventfd *placed);
void memory_event_delta_fini(struct strata_memory *mem, struct memory_event_delta *events);

/* changes.c */
must_check int memory_changes_build(struct strata_memory *mem, struct memory_space_plan *sp);

/* commit.c */
must_check int memory_commit_now(struct strata_memory *mem);

#endif
