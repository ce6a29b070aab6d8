/*
 * libstrata: listeners, told of every change of the flat views.
 *
 * Order of one commit: begin of all; per space that changed: region_del for what went, then
 * region_add (or region_nop), log_start, log_stop for the new view; eventfd differences; then commit
 * of all. When nothing but eventfds changed there is no begin and no commit.
 * Listeners are sorted by priority, equals in order of registration. Called in that order: begin,
 * region_add, region_nop, log_start, coalesced_add, eventfd_del, commit; in the reverse order:
 * region_del, log_stop, coalesced_del, eventfd_add, log_global_stop.
 * Callbacks run under the topology lock and get borrowed sections.
 */
#ifndef STRATA_LISTENER_H
#define STRATA_LISTENER_H

#include "strata/address_space.h"
#include "strata/common.h"
#include "strata/eventfd.h"

STRATA_DECLS_BEGIN

enum strata_change_kind {
    STRATA_CHANGE_DEL,  /* sections of `old` leave */
    STRATA_CHANGE_ADD,  /* `now` appears */
    STRATA_CHANGE_LOG,  /* same piece, other log mask: old -> now */
    STRATA_CHANGE_MOVE, /* same region bytes, other address: old -> now (offsets and sizes equal) */
    STRATA_CHANGE_SPLIT, /* `now` is a part of the piece `old`, at the same place; further parts follow */
    STRATA_CHANGE_MERGE, /* `old` is a part of the piece `now`, at the same place */
    STRATA_CHANGE_FLAGS, /* same place, same bytes, other attributes: old -> now */
};

struct strata_change {
    enum strata_change_kind kind;
    struct strata_section old, now; /* which are valid: see the kind */
};

/* All changes of one commit in one space, in address order of `now` (or `old`). */
struct strata_change_set {
    struct strata_space *space;
    const struct strata_change *changes;
    size_t count;
};

struct strata_listener_ops {
    void (*begin)(void *opaque);
    void (*commit)(void *opaque);
    void (*region_add)(void *opaque, const struct strata_section *section);
    void (*region_del)(void *opaque, const struct strata_section *section);
    /* Costs a walk over the whole view at every commit that touches the space. */
    void (*region_nop)(void *opaque, const struct strata_section *section);
    void (*log_start)(void *opaque, const struct strata_section *section, unsigned old_mask,
                      unsigned new_mask);
    void (*log_stop)(void *opaque, const struct strata_section *section, unsigned old_mask,
                     unsigned new_mask);
    void (*log_sync)(void *opaque, const struct strata_section *section);
    void (*log_sync_global)(void *opaque, bool last_stage); /* instead of log_sync */
    void (*log_clear)(void *opaque, const struct strata_section *section);
    /* 0 or -errno: the ones already started are stopped again. */
    int (*log_global_start)(void *opaque);
    void (*log_global_stop)(void *opaque);
    void (*log_global_after_sync)(void *opaque);
    void (*eventfd_add)(void *opaque, struct strata_space *space, const struct strata_eventfd *ev);
    void (*eventfd_del)(void *opaque, struct strata_space *space, const struct strata_eventfd *ev);
    /* [start, start + size) absolute, of the section's region. */
    void (*coalesced_add)(void *opaque, const struct strata_section *section, strata_addr start,
                          uint64_t size);
    void (*coalesced_del)(void *opaque, const struct strata_section *section, strata_addr start,
                          uint64_t size);
    void (*coalesced_flush)(void *opaque);
    /* Sees all changes of a commit, per space, before anybody is told; nonzero (-errno) refuses the
     * commit. A refusal later in the list calls abort of those that agreed. */
    int (*prepare)(void *opaque, const struct strata_change_set *sets, size_t count);
    void (*abort)(void *opaque);
    /* The same sets, to be applied as one; comes between the last region call and commit. Without
     * region_add and region_del it also brings what is there at registration (one batch of ADD), and
     * takes it away at the end (DEL). */
    void (*apply)(void *opaque, const struct strata_change_set *sets, size_t count);
};

struct strata_listener_desc {
    const char *name;                      /* copied */
    int priority;                          /* low is called first in forward order */
    const struct strata_listener_ops *ops; /* must outlive the registration */
    void *opaque;
    struct strata_space *space; /* only this one; null: all spaces, also later ones */
};

/* Registers and replays: begin; log_global_start if tracking is on; per range region_add, coalesced,
 * log_start; eventfds; commit. -EINVAL: both log_sync and log_sync_global. */
STRATA_PUBLIC int strata_listener_register(struct strata_memory *mem,
                                           const struct strata_listener_desc *desc,
                                           struct strata_listener **listener);
/* begin; per range log_stop, coalesced del, region_del; eventfds; commit. */
STRATA_PUBLIC void strata_listener_unregister(struct strata_listener *listener);

STRATA_DECLS_END

#endif
