/*
 * The handle from outside: making and freeing it, transactions, read sections, draining.
 */
#include "strata/memory.h"

#include <errno.h>
#include <stdlib.h>

#include "memory/dirty.h"
#include "memory/dispatch.h"
#include "memory/journal.h"
#include "memory/notify.h"
#include "memory/plan.h"
#include "memory/ram.h"
#include "memory/space.h"
#include "memory/view.h"

static struct strata_memory *handle_alloc(const struct strata_memory_config *config)
{
    if (config && config->realloc) {
        return config->realloc(config->alloc_ctx, NULL, sizeof(struct strata_memory), 0);
    }
    return malloc(sizeof(struct strata_memory));
}

static void handle_free(struct strata_memory *mem)
{
    struct strata_memory_config config = mem->config;

    pthread_mutex_destroy(&mem->lock);
    if (config.realloc) {
        config.realloc(config.alloc_ctx, mem, 0, sizeof(*mem));
    } else {
        free(mem);
    }
}

/* From a trace point to the embedder's function. */
static void trace_sink(void *opaque, const struct base_trace_point *point, const uint64_t *args)
{
    struct strata_memory *mem = opaque;
    char text[200];

    base_trace_format(point, args, text, sizeof(text));
    mem->config.trace(mem->config.trace_ctx, point->name, point->file, point->function, text);
}

static void handle_init(struct strata_memory *mem, const struct strata_memory_config *config)
{
    pthread_mutexattr_t attr;

    *mem = (struct strata_memory){.random = 0x5eed};
    if (config) {
        mem->config = *config;
    }
    if (mem->config.trace) {
        mem->trace = (struct base_trace){trace_sink, mem};
    }
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&mem->lock, &attr);
    pthread_mutexattr_destroy(&attr);
    list_init(&mem->regions);
    list_init(&mem->owners);
    list_init(&mem->spaces);
    list_init(&mem->listeners);
    list_init(&mem->dirty_views);
    list_init(&mem->moved_spaces);
    list_init(&mem->event_regions);
}

/*
 * Make a handle. config: see strata/memory.h, copied; null for all defaults. Returns 0 or -ENOMEM.
 * Source: own.
 */
int strata_memory_new(const struct strata_memory_config *config, struct strata_memory **out)
{
    struct strata_memory *mem = handle_alloc(config);
    struct memory_dispatch_plan none = {0};
    int err;

    if (!mem) {
        return -ENOMEM;
    }
    handle_init(mem, config);
    err = memory_view_new(mem, NULL, &none, &mem->empty_view);
    if (err) {
        handle_free(mem);
        return err;
    }
    mem->fenceless = memory_dirty_register();
    mem->empty_view->spaces = 1; /* the handle's own: it is never dropped */
    *out = mem;
    return 0;
}

static void free_listeners_and_spaces(struct strata_memory *mem)
{
    while (!list_is_empty(&mem->listeners)) {
        strata_listener_unregister(list_entry(mem->listeners.next, struct strata_listener, node));
    }
    while (!list_is_empty(&mem->spaces)) {
        struct strata_space *space = list_entry(mem->spaces.next, struct strata_space, node);

        if (strata_space_free(space) != 0) {
            memory_space_abandon(space); /* no memory to render nothing: take it apart by hand */
        }
    }
}

/* The tree is taken apart without commits: no view is left to change. */
static void free_regions(struct strata_memory *mem)
{
    struct list *it, *tmp;
    struct strata_region *live = NULL, *next;

    list_for_each(it, &mem->regions) {
        struct strata_region *r = list_entry(it, struct strata_region, all_node);

        if (r->container) {
            struct strata_region *parent = r->container;

            memory_tree_unlink(r);
            memory_region_put(r, parent->owner);
        }
    }
    list_for_each_safe(it, tmp, &mem->regions) {
        struct strata_region *r = list_entry(it, struct strata_region, all_node);

        if (!r->dead) { /* freeing one may free its target: collect first */
            r->undo_next = live;
            live = r;
        }
    }
    for (; live; live = next) {
        next = live->undo_next;
        live->undo_next = NULL;
        memory_region_put(live, NULL);
    }
}

/* Wait for grace periods until nothing waits for one; what is freed may let go of more. */
static void free_retired(struct strata_memory *mem)
{
    mem->retire.direct = true;
    while (mem->retire.waiting || mem->retire.in_flight) {
        memory_unlock(mem);
        memory_retire_wait(mem);
        memory_lock(mem);
        memory_retire_collect(mem);
        memory_retire_now(mem);
    }
    mem->retire.direct = false;
}

/* Free everything; see strata/memory.h for what must be over. Null is fine. Not in a read section. */
void strata_memory_free(struct strata_memory *mem)
{
    if (!mem) {
        return;
    }
    memory_lock(mem);
    mem->retire.direct = true;
    free_listeners_and_spaces(mem);
    free_retired(mem);
    mem->retire.direct = true;
    free_regions(mem);
    while (!list_is_empty(&mem->owners)) {
        memory_owner_put(list_entry(mem->owners.next, struct strata_owner, node));
    }
    memory_ram_free_all(mem);
    free_retired(mem);
    memory_view_discard(mem->empty_view);
    memory_journal_free(mem);
    memory_dispatch_fini(mem);
    memory_reach_fini(mem);
    memory_unlock(mem);
    memory_retire_wait(mem);
    handle_free(mem);
}

/* Compatible or strict. */
enum strata_mode strata_memory_mode(const struct strata_memory *mem)
{
    return mem->config.mode;
}

/* Words for the last failure; see strata/memory.h. */
const char *strata_memory_error(const struct strata_memory *mem)
{
    return mem->error.text;
}

/* Commits that changed the topology so far. Any thread. */
uint64_t strata_memory_generation(const struct strata_memory *mem)
{
    return __atomic_load_n(&mem->generation, __ATOMIC_ACQUIRE);
}

/*
 * Open a transaction; buffered coalesced writes are delivered first. Holds the topology lock until
 * the matching strata_commit(). Source: QEMU memory_region_transaction_begin().
 */
void strata_begin(struct strata_memory *mem)
{
    memory_lock(mem);
    if (!mem->in_callback) {
        strata_coalesced_flush(mem);
    }
    mem->depth++;
}

/*
 * Close a transaction; the outermost brings the views up to date. Returns 0; -EINVAL when none is
 * open; -ENOMEM or a listener's refusal: then the transaction is still open and nobody was told.
 * Source: QEMU memory_region_transaction_commit(). Differs: QEMU's cannot fail.
 */
int strata_commit(struct strata_memory *mem)
{
    int err = 0;

    memory_lock(mem);
    if (!mem->depth || mem->holds < 2) {
        err = memory_fail(mem, EINVAL, "no transaction is open");
        memory_unlock(mem);
        return err;
    }
    if (mem->depth == 1 && !mem->in_callback) {
        err = memory_commit_now(mem);
    }
    if (!err) {
        mem->depth--;
        memory_unlock(mem);
    }
    memory_unlock(mem);
    return err;
}

/*
 * Begin one change: take the lock, deliver buffered writes. what, subject: for the journal; what is a
 * constant text, subject may be null. Returns 0, or -EBUSY (lock not held) inside a callback.
 */
int memory_change_begin(struct strata_memory *mem, const char *what,
                        const struct strata_region *subject)
{
    memory_lock(mem);
    if (mem->in_callback) {
        int err = memory_fail(mem, EBUSY, "the topology cannot change from a listener's callback");

        memory_unlock(mem);
        return err;
    }
    if (mem->flush_listeners) {
        strata_coalesced_flush(mem);
    }
    mem->depth++;
    if (mem->journal) {
        memory_journal_note(mem, what, subject);
    }
    memory_retire_collect(mem);
    return 0;
}

/* Commit the change if it is no part of a transaction. 0; -ENOMEM, refusal: undo the change. */
int memory_change_commit(struct strata_memory *mem)
{
    return mem->depth == 1 ? memory_commit_now(mem) : 0;
}

/* The change is over, done or undone. Lock: released. */
void memory_change_done(struct strata_memory *mem)
{
    mem->depth--;
    memory_retire_kick(mem);
    memory_unlock(mem);
}

/*
 * Wait until what was unmapped before the call is out of use and freed, owners released. Returns 0;
 * -EBUSY inside a read section, callback or transaction. Blocks for as long as read sections last.
 */
int strata_memory_drain(struct strata_memory *mem)
{
    bool busy = base_rcu_in_section();

    memory_lock(mem);
    busy = busy || mem->in_callback || mem->depth || mem->holds > 1;
    if (!busy) {
        free_retired(mem);
    }
    memory_unlock(mem);
    return busy ? -EBUSY : 0;
}

/* Open a read section; they nest. */
void strata_read_begin(struct strata_memory *mem)
{
    base_rcu_read_lock();
}

/* Close a read section. */
void strata_read_end(struct strata_memory *mem)
{
    base_rcu_read_unlock();
}
