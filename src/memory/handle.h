/*
 * The handle's inside: what a set of address spaces shares. Everything below hangs from it.
 *
 * Locks: `lock` is recursive and guards every field but those marked atomic; it is held from the
 * outermost begin to its commit. Readers of views take none.
 */
#ifndef STRATA_MEMORY_HANDLE_H
#define STRATA_MEMORY_HANDLE_H

#include <pthread.h>

#include "base/error.h"
#include "base/list.h"
#include "base/range.h"
#include "base/rcu.h"
#include "base/trace.h"
#include "memory/itree.h"
#include "strata/memory.h"

struct memory_journal;
struct memory_node;
struct memory_view;

/* Something unlinked that readers may still use; freed by fn under the lock, a grace period later. */
struct memory_retired {
    struct memory_retired *next;
    void (*fn)(struct strata_memory *mem, struct memory_retired *retired);
};

/* Deferred freeing: objects gather in `waiting`; one batch at a time is out for a grace period. */
struct memory_retire {
    struct memory_retired *waiting;
    unsigned count;
    bool urgent;                    /* somebody waits for an owner's release: do not gather */
    bool direct;                    /* somebody waits for grace periods himself: send nothing */
    bool in_flight;
    struct memory_retired *batch;
    struct rcu_head rcu;
    int done;                       /* atomic: the batch's grace period is over */
    int running;                    /* atomic: callbacks that have not yet ended */
};

struct strata_memory {
    struct strata_memory_config config;
    struct base_trace trace; /* to config.trace */
    pthread_mutex_t lock;
    unsigned depth;         /* open transactions */
    unsigned holds;         /* how often this thread holds the lock */
    bool in_callback;       /* a listener is being told: no changes */
    struct base_error error;
    uint64_t generation;    /* atomic: read without the lock */
    uint64_t next_seq;      /* tie-breaking among siblings */
    uint64_t random;
    struct list regions;
    struct list owners;
    struct list spaces;     /* in order of creation */
    struct list listeners;  /* by priority, then registration */
    unsigned flush_listeners; /* how many want coalesced_flush */
    unsigned flush_depth;
    struct strata_ram *rams; /* RCU; by size, largest first */
    struct itree ram_addrs; /* the same by linear number */
    uint64_t ram_version;   /* atomic */
    struct strata_ram_notifier *ram_notifiers;
    struct list dirty_views;   /* views with windows to render again */
    struct list moved_spaces;  /* spaces whose canonical root may have changed */
    struct list event_regions; /* regions whose eventfds changed */
    struct memory_view *empty_view;
    struct memory_retire retire;
    struct memory_node *node_cache;
    unsigned node_cached;
    struct memory_climb *climb; /* scratch of reach.c */
    size_t climb_cap;
    uint64_t stamp;         /* of the plan being built: see dispatch.h */
    unsigned tracking;      /* enum strata_tracking_reason flags */
    bool tracking_told;     /* listeners have been started */
    unsigned stop_later;    /* reasons whose stop waits for the machine to run */
    bool paused;
    bool fenceless;         /* dirty bits may be tested without a fence: see dirty.c */
    bool code_tracking;
    int discard_counts[4];  /* see discard.c */
    struct memory_journal *journal; /* null: off */
};

must_check void *memory_alloc(struct strata_memory *mem, size_t size);
must_check void *memory_zalloc(struct strata_memory *mem, size_t size);
void memory_free(struct strata_memory *mem, void *p, size_t size);
must_check int memory_grow(struct strata_memory *mem, void *array, size_t *cap, size_t need,
                           size_t item_size);
must_check char *memory_strdup(struct strata_memory *mem, const char *text);

void memory_lock(struct strata_memory *mem);
void memory_unlock(struct strata_memory *mem);
uint32_t memory_random(struct strata_memory *mem);
int memory_fail(struct strata_memory *mem, int code, const char *fmt, ...) printf_like(3, 4);
int memory_fail_alloc(struct strata_memory *mem);

/* Around one change of the topology. begin takes the lock and refuses inside a callback; commit acts
 * when no transaction is open, and when it fails nobody was told: the caller undoes its change; done
 * lets go of the lock. */
must_check int memory_change_begin(struct strata_memory *mem, const char *what,
                                   const struct strata_region *subject);
must_check int memory_change_commit(struct strata_memory *mem);
void memory_change_done(struct strata_memory *mem);

void memory_retire(struct strata_memory *mem, struct memory_retired *retired,
                   void (*fn)(struct strata_memory *mem, struct memory_retired *retired));
void memory_retire_kick(struct strata_memory *mem);
void memory_retire_wait(struct strata_memory *mem);
void memory_retire_now(struct strata_memory *mem);
bool memory_retire_collect(struct strata_memory *mem);

#endif
