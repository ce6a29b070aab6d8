/*
 * The check of the order of locks; see lock.h. Only in debug builds.
 *
 * Ranks are kept beside the locks, in a table by address, so that a lock is a plain pthread lock in every build. What a
 * thread holds is a short stack of its own.
 *
 * Locks: `table_lock` around the table; a leaf, and not itself ranked.
 */
#include "base/lock.h"

#ifdef STRATA_DEBUG

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#undef pthread_mutex_lock
#undef pthread_mutex_unlock

#define TABLE_BITS 16
#define TABLE_SIZE (1u << TABLE_BITS)
#define MAX_HELD   32

static struct {
    const void *lock;
    enum base_lock_rank rank; /* NONE: the place of one that is gone */
} table[TABLE_SIZE];
static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;

static __thread struct {
    const void *lock;
    enum base_lock_rank rank;
} held[MAX_HELD];
static __thread unsigned nr_held;

/* Place of a lock, or of the first free one; the table is never full in what tests do. */
static unsigned find(const void *lock)
{
    unsigned i = (unsigned)((uintptr_t)lock * UINT64_C(0x9e3779b97f4a7c15) >> (64 - TABLE_BITS));

    while (table[i].lock && table[i].lock != lock) {
        i = (i + 1) % TABLE_SIZE;
    }
    return i;
}

static enum base_lock_rank rank_of(const void *lock)
{
    enum base_lock_rank rank;

    pthread_mutex_lock(&table_lock);
    rank = table[find(lock)].rank;
    pthread_mutex_unlock(&table_lock);
    return rank;
}

void base_lock_set_rank(const void *lock, enum base_lock_rank rank)
{
    unsigned i;

    pthread_mutex_lock(&table_lock);
    i = find(lock);
    table[i].lock = lock;
    table[i].rank = rank;
    pthread_mutex_unlock(&table_lock);
}

void base_lock_forget(const void *lock)
{
    base_lock_set_rank(lock, BASE_RANK_NONE);
}

void base_lock_taking(const void *lock, const char *file, int line)
{
    enum base_lock_rank rank = rank_of(lock);

    for (unsigned i = 0; rank != BASE_RANK_NONE && i < nr_held; i++) {
        if (held[i].rank >= rank) {
            fprintf(stderr, "%s:%d: a lock of rank %d is taken under one of rank %d\n", file, line, (int)rank,
                    (int)held[i].rank);
            abort();
        }
    }
}

void base_lock_taken(const void *lock)
{
    enum base_lock_rank rank = rank_of(lock);

    if (rank != BASE_RANK_NONE && nr_held < MAX_HELD) {
        held[nr_held].lock = lock;
        held[nr_held++].rank = rank;
    }
}

void base_lock_dropped(const void *lock)
{
    for (unsigned i = nr_held; i-- > 0;) {
        if (held[i].lock == lock) {
            held[i] = held[--nr_held];
            return;
        }
    }
}

#else

typedef int base_lock_is_empty; /* a file must hold something */

#endif
