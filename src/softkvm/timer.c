/*
 * The timer thread (timer.h). A binary heap on `deadline`; timers know their slot, so that re-arming
 * moves them. The thread sleeps until the earliest deadline that it has seen; an arming that is earlier
 * wakes it, a later one or a disarming does not: it wakes once for nothing and sleeps again.
 */
#include "softkvm/timer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#define NS_PER_S UINT64_C(1000000000)

struct kvm_timers {
    pthread_mutex_t lock;
    pthread_cond_t wake;  /* an earlier deadline, or stop */
    pthread_cond_t fired; /* `firing` has changed */
    pthread_t thread;
    /* under lock */
    struct kvm_timer **heap;
    uint32_t count, room;
    uint32_t reserved;
    struct kvm_timer *firing;
    uint64_t sleeping_until; /* 0: the thread is awake and will look again */
    bool stop;
};

uint64_t kvm_timer_now(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static void heap_put(struct kvm_timers *set, uint32_t i, struct kvm_timer *t)
{
    set->heap[i] = t;
    t->slot = i + 1;
}

static void heap_up(struct kvm_timers *set, uint32_t i, struct kvm_timer *t)
{
    while (i > 0 && set->heap[(i - 1) / 2]->deadline > t->deadline) {
        heap_put(set, i, set->heap[(i - 1) / 2]);
        i = (i - 1) / 2;
    }
    heap_put(set, i, t);
}

static void heap_down(struct kvm_timers *set, uint32_t i, struct kvm_timer *t)
{
    for (uint32_t child; (child = 2 * i + 1) < set->count; i = child) {
        if (child + 1 < set->count && set->heap[child + 1]->deadline < set->heap[child]->deadline) {
            child++;
        }
        if (set->heap[child]->deadline >= t->deadline) {
            break;
        }
        heap_put(set, i, set->heap[child]);
    }
    heap_put(set, i, t);
}

static void heap_remove(struct kvm_timers *set, struct kvm_timer *t)
{
    uint32_t i = t->slot - 1;
    struct kvm_timer *last = set->heap[--set->count];

    t->slot = 0;
    if (last != t) {
        heap_put(set, i, last);
        heap_up(set, i, last);
        heap_down(set, last->slot - 1, last);
    }
}

/* Room for at least n timers. Lock: held. */
static int heap_grow(struct kvm_timers *set, uint32_t n)
{
    uint32_t room = set->room ? set->room : 8;
    struct kvm_timer **heap;

    while (room < n) {
        room *= 2;
    }
    if (room == set->room) {
        return 0;
    }
    heap = realloc(set->heap, room * sizeof(*heap));
    if (!heap) {
        return -ENOMEM;
    }
    set->heap = heap;
    set->room = room;
    return 0;
}

/* Sleep until the earliest deadline, a wake-up, or for good when the heap is empty. Lock: held. */
static void sleep_locked(struct kvm_timers *set)
{
    struct timespec ts;

    if (set->count == 0) {
        set->sleeping_until = UINT64_MAX;
        pthread_cond_wait(&set->wake, &set->lock);
    } else {
        set->sleeping_until = set->heap[0]->deadline;
        ts.tv_sec = (time_t)(set->sleeping_until / NS_PER_S);
        ts.tv_nsec = (long)(set->sleeping_until % NS_PER_S);
        pthread_cond_timedwait(&set->wake, &set->lock, &ts);
    }
    set->sleeping_until = 0;
}

static void *timer_thread(void *opaque)
{
    struct kvm_timers *set = opaque;

    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
    pthread_mutex_lock(&set->lock);
    while (!set->stop) {
        struct kvm_timer *t = set->count ? set->heap[0] : NULL;

        if (!t || t->deadline > kvm_timer_now()) {
            sleep_locked(set);
            continue;
        }
        heap_remove(set, t);
        set->firing = t;
        pthread_mutex_unlock(&set->lock);
        t->fire(t->opaque);
        pthread_mutex_lock(&set->lock);
        set->firing = NULL;
        pthread_cond_broadcast(&set->fired);
    }
    pthread_mutex_unlock(&set->lock);
    return NULL;
}

static int start_thread(struct kvm_timers *set)
{
    sigset_t all, old;
    int err;

    /* The embedding program's signals are not for this thread. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&set->thread, NULL, timer_thread, set);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}

int kvm_timers_new(struct kvm_timers **out)
{
    struct kvm_timers *set = calloc(1, sizeof(*set));
    pthread_condattr_t attr;
    int err;

    if (!set) {
        return -ENOMEM;
    }
    pthread_mutex_init(&set->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&set->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_cond_init(&set->fired, NULL);
    err = start_thread(set);
    if (err) {
        pthread_cond_destroy(&set->wake);
        pthread_cond_destroy(&set->fired);
        pthread_mutex_destroy(&set->lock);
        free(set);
        return err;
    }
    *out = set;
    return 0;
}

void kvm_timers_stop(struct kvm_timers *set)
{
    bool was_stopped;

    if (!set) {
        return;
    }
    pthread_mutex_lock(&set->lock);
    was_stopped = set->stop;
    set->stop = true;
    pthread_cond_signal(&set->wake);
    pthread_mutex_unlock(&set->lock);
    if (!was_stopped) {
        pthread_join(set->thread, NULL);
    }
}

void kvm_timers_free(struct kvm_timers *set)
{
    if (!set) {
        return;
    }
    kvm_timers_stop(set);
    pthread_cond_destroy(&set->wake);
    pthread_cond_destroy(&set->fired);
    pthread_mutex_destroy(&set->lock);
    free(set->heap);
    free(set);
}

void kvm_timer_init(struct kvm_timer *t, void (*fire)(void *opaque), void *opaque)
{
    *t = (struct kvm_timer){.fire = fire, .opaque = opaque};
}

int kvm_timers_reserve(struct kvm_timers *set, unsigned more)
{
    int err;

    pthread_mutex_lock(&set->lock);
    err = heap_grow(set, set->reserved + more);
    if (!err) {
        set->reserved += more;
    }
    pthread_mutex_unlock(&set->lock);
    return err;
}

int kvm_timer_arm(struct kvm_timers *set, struct kvm_timer *t, uint64_t deadline)
{
    int err = 0;

    pthread_mutex_lock(&set->lock);
    if (t->slot) {
        heap_remove(set, t);
    } else {
        err = heap_grow(set, set->count + 1);
    }
    if (!err) {
        t->deadline = deadline;
        heap_up(set, set->count++, t);
        if (deadline < set->sleeping_until) {
            /* One wake-up is enough, however many arm before the thread runs. */
            set->sleeping_until = 0;
            pthread_cond_signal(&set->wake);
        }
    }
    pthread_mutex_unlock(&set->lock);
    return err;
}

void kvm_timer_cancel(struct kvm_timers *set, struct kvm_timer *t)
{
    pthread_mutex_lock(&set->lock);
    if (t->slot) {
        heap_remove(set, t);
    }
    pthread_mutex_unlock(&set->lock);
}

void kvm_timer_cancel_sync(struct kvm_timers *set, struct kvm_timer *t)
{
    pthread_mutex_lock(&set->lock);
    /* A timer may re-arm itself while it fires: look again after it has. */
    for (;;) {
        if (t->slot) {
            heap_remove(set, t);
        }
        if (set->firing != t) {
            break;
        }
        pthread_cond_wait(&set->fired, &set->lock);
    }
    pthread_mutex_unlock(&set->lock);
}
