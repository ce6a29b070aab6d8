/*
 * Cancelling a thread that is inside KVM_RUN. In the kernel a cancellation's signal ends the ioctl and the
 * thread unwinds behind it; here the thread is deep in the engine, perhaps with its locks. So KVM_RUN runs
 * with cancellation off, pthread_cancel() also interrupts the run, and the thread acts on the request when
 * the run has come back.
 *
 * Locks: `lock` for the list of threads that have been in KVM_RUN. Between setting `active` and leaving, the
 * thread cannot go away, so the list's entries live as long as they are on it.
 */
#include "preload/preload.h"

#include <stdlib.h>

#include "preload/real.h"

PRELOAD_REAL(int, pthread_cancel, pthread_t thread)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct preload_run *runs;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void forget_run(void *arg)
{
    struct preload_run *run = arg, **p;

    pthread_mutex_lock(&lock);
    for (p = &runs; *p; p = &(*p)->next) {
        if (*p == run) {
            *p = run->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    run->listed = 0;
}

static void make_key(void)
{
    (void)pthread_key_create(&key, forget_run);
}

static void list_run(struct preload_run *run)
{
    (void)pthread_once(&once, make_key);
    if (pthread_setspecific(key, run) != 0) {
        return; /* out of memory: a cancellation then waits for the run's own end */
    }
    run->listed = 1;
    run->thread = pthread_self();
    pthread_mutex_lock(&lock);
    run->next = runs;
    runs = run;
    pthread_mutex_unlock(&lock);
}

/*
 * Before KVM_RUN: no cancellation from here on. Returns the state to give to preload_cancel_allow().
 */
int preload_cancel_hold(struct preload_run *run)
{
    int old = PTHREAD_CANCEL_ENABLE;

    if (!run->listed) {
        list_run(run);
    }
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &old);
    return old;
}

/* After KVM_RUN. Does not return if the thread was cancelled meanwhile and its type is asynchronous: it ends as the C
 * library ends it. */
void preload_cancel_allow(int state)
{
    int type;

    if (preload_run.cancelled && state == PTHREAD_CANCEL_ENABLE) {
        (void)pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
        if (type == PTHREAD_CANCEL_ASYNCHRONOUS) {
            pthread_exit(PTHREAD_CANCELED);
        }
        (void)pthread_setcanceltype(type, NULL);
    }
    (void)pthread_setcancelstate(state, NULL);
}

/* A forked child has one thread, and may have inherited the lock and others' entries. */
void preload_cancel_forked(void)
{
    pthread_mutex_init(&lock, NULL);
    runs = NULL;
    preload_run.listed = 0;
}

PRELOAD_EXPORT int pthread_cancel(pthread_t thread)
{
    int ret = real_pthread_cancel()(thread);
    struct preload_run *run;

    pthread_mutex_lock(&lock);
    for (run = runs; ret == 0 && run; run = run->next) {
        if (pthread_equal(run->thread, thread)) {
            run->cancelled = 1;
            if (run->active) {
                preload_lib.interrupt(run->engine, run->soft);
            }
        }
    }
    pthread_mutex_unlock(&lock);
    return ret;
}
