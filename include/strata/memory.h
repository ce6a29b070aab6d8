/*
 * libstrata: the handle that everything hangs from, and transactions.
 *
 * Threads. Any thread may call anything. Calls that change the topology (regions, spaces, listeners,
 * transactions, logging, eventfds) serialise on one recursive lock of the handle, held from the
 * outermost strata_begin() to its strata_commit(). Accesses take no lock: they see the topology of
 * the last commit, whole. A listener callback runs under the lock and must not change the topology
 * (such a call returns -EBUSY).
 */
#ifndef STRATA_MEMORY_H
#define STRATA_MEMORY_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_mode {
    STRATA_COMPATIBLE, /* QEMU's rules, with its oddities */
    STRATA_STRICT,     /* the same rules made exact: see strata_memory(7) for the differences */
};

struct strata_memory_config {
    enum strata_mode mode;
    /* Allocator; all null: malloc's. realloc(ctx, p, 0, old) frees. */
    void *(*realloc)(void *ctx, void *p, size_t size, size_t old_size);
    void *alloc_ctx;
    /* The embedder's big lock around device callbacks of regions that are not lockless. io_lock
     * returns true when it took the lock (false: this thread held it already). Both null: none. */
    bool (*io_lock)(void *ctx);
    void (*io_unlock)(void *ctx);
    void *io_lock_ctx;
    /* Warnings (one line, no newline): re-entrant devices, hidden regions in strict mode. */
    void (*warn)(void *ctx, const char *text);
    void *warn_ctx;
    /* The steps of each change of topology, as docs/flows/topology.md lists them: the point's name, its
     * file and function, and its values in words. Called under the handle's lock; must not call back. */
    void (*trace)(void *ctx, const char *name, const char *file, const char *function,
                  const char *text);
    void *trace_ctx;
};

/* config may be null. */
STRATA_PUBLIC int strata_memory_new(const struct strata_memory_config *config,
                                    struct strata_memory **mem);

/* Frees the handle and whatever spaces, listeners, regions and RAM are left in it. No access may be
 * in flight, no mapping or cache held. */
STRATA_PUBLIC void strata_memory_free(struct strata_memory *mem);

STRATA_PUBLIC enum strata_mode strata_memory_mode(const struct strata_memory *mem);

/* Words for the last failed call on this handle by the calling side; "" when there is none. Valid
 * until the next failing call. */
STRATA_PUBLIC const char *strata_memory_error(const struct strata_memory *mem);

/* Transactions nest; only the outermost strata_commit() acts. If it fails (out of memory, or a
 * listener's prepare() refused) no listener has been told, the old view stands, the changes stay
 * pending, and the transaction is still open: commit again later, or undo and commit. */
STRATA_PUBLIC void strata_begin(struct strata_memory *mem);
STRATA_PUBLIC int strata_commit(struct strata_memory *mem);

/* Commits so far; bumped whenever a view changes. */
STRATA_PUBLIC uint64_t strata_memory_generation(const struct strata_memory *mem);

/* Waits until nothing that was unmapped before the call is in use, and frees it (owners are released
 * by then). Not inside a read section, a callback or a transaction: -EBUSY. */
STRATA_PUBLIC int strata_memory_drain(struct strata_memory *mem);

/* A read section: between the two, a thread's accesses are cheaper and pointers it got from
 * lookups stay valid. They nest. Never sleep long inside one: memory is freed late. */
STRATA_PUBLIC void strata_read_begin(struct strata_memory *mem);
STRATA_PUBLIC void strata_read_end(struct strata_memory *mem);

/* Walks trees, views, dispatch and listener sums; 0 when all agree. -EUCLEAN: the first disagreement
 * is in words in strata_memory_error(). -ENOMEM: could not be checked. */
STRATA_PUBLIC int strata_check(struct strata_memory *mem);

STRATA_DECLS_END

#endif
