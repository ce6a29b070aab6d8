/*
 * Deferred freeing: what a commit unlinked is freed when no reader can see it any more.
 *
 * Objects gather until there are enough to be worth a grace period; then one batch goes out, and
 * liburcu's worker marks it done. Freeing happens under the topology lock: in that worker when the
 * lock is free, else by whoever lets go of the lock (handle.c). Nothing here allocates, so unlinking
 * cannot fail.
 */
#include <time.h>

#include "memory/handle.h"

#define BATCH_MIN 256

static void grace_period_over(struct rcu_head *head)
{
    struct memory_retire *retire = container_of(head, struct memory_retire, rcu);
    struct strata_memory *mem = container_of(retire, struct strata_memory, retire);

    base_rcu_callback_begin();
    /* Partner: the load in memory_unlock(). Set before the attempt on the lock: if that fails, its
     * holder will see the mark after letting go. */
    __atomic_store_n(&retire->done, 1, __ATOMIC_SEQ_CST);
    if (pthread_mutex_trylock(&mem->lock) == 0) {
        mem->holds++;
        memory_retire_collect(mem);
        memory_unlock(mem);
    }
    /* The last thing done with the handle: whoever frees it waits for this. */
    __atomic_fetch_sub(&retire->running, 1, __ATOMIC_RELEASE);
}

/* Wait until no callback is on its way. Lock: not held; not in a read section. */
void memory_retire_wait(struct strata_memory *mem)
{
    const struct timespec nap = {.tv_nsec = 50000};

    while (__atomic_load_n(&mem->retire.running, __ATOMIC_ACQUIRE)) {
        nanosleep(&nap, NULL);
    }
}

/* Send what has gathered for a grace period, if none is out and it is worth it. Lock: held. */
void memory_retire_kick(struct strata_memory *mem)
{
    struct memory_retire *retire = &mem->retire;

    if (retire->in_flight || retire->direct || !retire->waiting || (retire->count < BATCH_MIN && !retire->urgent)) {
        return;
    }
    retire->batch = retire->waiting;
    retire->waiting = NULL;
    retire->count = 0;
    retire->urgent = false;
    retire->in_flight = true;
    __atomic_fetch_add(&retire->running, 1, __ATOMIC_RELAXED);
    base_rcu_call(&retire->rcu, grace_period_over);
}

/* Wait for a grace period here and free what has gathered. Lock: held, let go of while waiting; not
 * in a read section. */
void memory_retire_now(struct strata_memory *mem)
{
    struct memory_retired *it = mem->retire.waiting, *next;

    mem->retire.waiting = NULL;
    mem->retire.count = 0;
    if (!it) {
        return;
    }
    memory_unlock(mem);
    base_rcu_synchronize();
    memory_lock(mem);
    for (; it; it = next) {
        next = it->next;
        it->fn(mem, it);
    }
}

/* Put an unlinked object in the queue. Lock: held. */
void memory_retire(struct strata_memory *mem, struct memory_retired *retired,
                   void (*fn)(struct strata_memory *mem, struct memory_retired *retired))
{
    retired->fn = fn;
    retired->next = mem->retire.waiting;
    mem->retire.waiting = retired;
    mem->retire.count++;
}

/*
 * Free the batch whose grace period is over; true if there was one. Not inside a listener's
 * callback, which may still look at sections. Lock: held.
 */
bool memory_retire_collect(struct strata_memory *mem)
{
    struct memory_retire *retire = &mem->retire;
    struct memory_retired *it, *next;

    if (mem->in_callback || !__atomic_load_n(&retire->done, __ATOMIC_ACQUIRE)) {
        return false;
    }
    it = retire->batch;
    retire->batch = NULL;
    retire->in_flight = false;
    __atomic_store_n(&retire->done, 0, __ATOMIC_RELEASE);
    for (; it; it = next) {
        next = it->next;
        it->fn(mem, it);
    }
    memory_retire_kick(mem);
    return true;
}
