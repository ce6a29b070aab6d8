/*
 * What a host does in the background: reclaim before memory runs out (kswapd), huge pages made of small ones
 * (khugepaged), equal pages merged (ksmd). Each is a step that a test or a deterministic run calls by itself; or a thread
 * calls all of them again and again.
 *
 *   reclaim   free frames below the zones' low marks together -> reclaim up to the high ones
 *   collapse  the next few 2 MiB ranges behind the hand
 *   merge     the next pages of mergeable VMAs
 *
 * Locks: `lock` guards the thread's state and the hand; the mmap lock is taken inside by each step.
 */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "host/mm_impl.h"

#define RECLAIM_MAX     1024u
#define COLLAPSE_CHUNKS 8u
#define COLLAPSE_ABSENT 64u /* pages that may be missing: more would cost frames for what nobody used */
#define MERGE_PAGES     256u

struct host_daemon {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    pthread_t thread;
    unsigned what, period_ms;
    bool runs, stop;
    uint64_t hand; /* collapse's */
};

static uint64_t reclaim_step(struct host_mm *mm)
{
    struct host_memory_impl *m = host_impl(mm->hm);
    uint64_t free_frames = 0, low = 0, high = 0, want;

    for (unsigned z = 0; z < HOST_NR_ZONES; z++) {
        free_frames += __atomic_load_n(&m->zone[z].free, __ATOMIC_RELAXED);
        low += m->zone[z].low;
        high += m->zone[z].high;
    }
    if (!mm->swap || free_frames >= low) {
        return 0;
    }
    want = high - free_frames;
    return host_mm_reclaim(mm, want < RECLAIM_MAX ? want : RECLAIM_MAX);
}

/* The next 2 MiB range at or behind the hand that lies whole in a VMA; false: a pass has ended. */
static bool next_chunk(struct host_mm *mm, uint64_t *hand)
{
    bool found = false;

    pthread_rwlock_rdlock(&mm->mmap_lock);
    for (size_t i = host_vma_lower(&mm->vmas, *hand); i < mm->vmas.n && !found; i++) {
        uint64_t at = *hand > mm->vmas.v[i].start.v ? *hand : mm->vmas.v[i].start.v;

        at = (at + HOST_HUGE_SIZE - 1) & ~(HOST_HUGE_SIZE - 1);
        found = at < mm->vmas.v[i].end.v && mm->vmas.v[i].end.v - at >= HOST_HUGE_SIZE;
        *hand = found ? at : *hand;
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return found;
}

static uint64_t collapse_step(struct host_mm *mm)
{
    struct host_daemon *d = mm->daemon;
    uint64_t done = 0;

    for (unsigned i = 0; i < COLLAPSE_CHUNKS; i++) {
        if (!next_chunk(mm, &d->hand)) {
            d->hand = 0;
            break;
        }
        done += host_mm_collapse(mm, hva(d->hand), COLLAPSE_ABSENT) == 0;
        d->hand += HOST_HUGE_SIZE;
    }
    return done;
}

static uint64_t merge_step(struct host_mm *mm)
{
    int64_t n = host_mm_merge_scan(mm, MERGE_PAGES);

    return n > 0 ? (uint64_t)n : 0;
}

/* See mm.h. Lock: takes the daemon's lock, inside it the mmap lock. Source: own, after kswapd, khugepaged and ksmd. */
uint64_t host_mm_work(struct host_mm *mm, unsigned what)
{
    uint64_t done = 0;

    pthread_mutex_lock(&mm->daemon->lock);
    done += what & HOST_WORK_RECLAIM ? reclaim_step(mm) : 0;
    done += what & HOST_WORK_COLLAPSE ? collapse_step(mm) : 0;
    done += what & HOST_WORK_MERGE ? merge_step(mm) : 0;
    pthread_mutex_unlock(&mm->daemon->lock);
    return done;
}

/* Sleep a period, or until told. True: to go on. Lock: held, let go meanwhile. */
static bool pause_a_period(struct host_daemon *d)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    ts.tv_nsec += (long)(d->period_ms % 1000) * 1000000;
    ts.tv_sec += d->period_ms / 1000 + ts.tv_nsec / 1000000000;
    ts.tv_nsec %= 1000000000;
    while (!d->stop && pthread_cond_timedwait(&d->cond, &d->lock, &ts) == 0) {
    }
    return !d->stop;
}

static void *work(void *opaque)
{
    struct host_mm *mm = opaque;
    struct host_daemon *d = mm->daemon;
    bool go_on = true;

    while (go_on) {
        host_mm_work(mm, d->what);
        pthread_mutex_lock(&d->lock);
        go_on = pause_a_period(d);
        pthread_mutex_unlock(&d->lock);
    }
    return NULL;
}

/* See mm.h. -EINVAL: nothing to do, or no period; -EBUSY: it runs; -EAGAIN: no thread to be had. */
int host_mm_work_start(struct host_mm *mm, unsigned what, unsigned period_ms)
{
    struct host_daemon *d = mm->daemon;
    int err = 0;

    if (!what || (what & ~HOST_WORK_ALL) || !period_ms) {
        return -EINVAL;
    }
    pthread_mutex_lock(&d->lock);
    if (d->runs) {
        err = -EBUSY;
    } else {
        d->what = what;
        d->period_ms = period_ms;
        d->stop = false;
        err = -pthread_create(&d->thread, NULL, work, mm);
        d->runs = !err;
    }
    pthread_mutex_unlock(&d->lock);
    return err;
}

/* See mm.h. Lock: none held that the steps take. */
void host_mm_work_stop(struct host_mm *mm)
{
    struct host_daemon *d = mm->daemon;
    bool ran;

    pthread_mutex_lock(&d->lock);
    ran = d->runs;
    d->runs = false;
    d->stop = true;
    pthread_cond_signal(&d->cond);
    pthread_mutex_unlock(&d->lock);
    if (ran) {
        pthread_join(d->thread, NULL);
    }
}

/* See mm_impl.h. */
int host_daemon_new(struct host_mm *mm)
{
    pthread_condattr_t attr;

    mm->daemon = host_calloc(mm->hm, 1, sizeof(*mm->daemon));
    if (!mm->daemon) {
        return -ENOMEM;
    }
    pthread_mutex_init(&mm->daemon->lock, NULL);
    base_lock_set_rank(&mm->daemon->lock, BASE_RANK_DAEMON);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&mm->daemon->cond, &attr);
    pthread_condattr_destroy(&attr);
    return 0;
}

/* See mm_impl.h. Null is allowed. */
void host_daemon_free(struct host_mm *mm)
{
    if (!mm->daemon) {
        return;
    }
    host_mm_work_stop(mm);
    pthread_cond_destroy(&mm->daemon->cond);
    pthread_mutex_destroy(&mm->daemon->lock);
    free(mm->daemon);
    mm->daemon = NULL;
}
