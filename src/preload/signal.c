/*
 * Signals and KVM_RUN. The kernel ends KVM_RUN with EINTR when a handler is about to run; a library
 * learns of it only inside the handler. So handlers are wrapped: after the program's own has run, a
 * KVM_RUN of this thread is told to stop. Asking for a handler gives back the program's own.
 *
 * Locks: one of its own orders changes, taken with all signals blocked, since sigaction() may be called from
 * a handler. A wrapper takes none: it reads an entry that was written before the system call that made the
 * handler ours.
 */
#include "preload/preload.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "preload/real.h"

PRELOAD_REAL(int, sigaction, int sig, const struct sigaction *act, struct sigaction *old)

static struct sigaction handlers[NSIG]; /* the program's own, while ours stands in for it */
static pthread_mutex_t handlers_lock = PTHREAD_MUTEX_INITIALIZER;

static void stop_run(void)
{
    struct preload_run *run = &preload_run;

    if (run->active) {
        run->signalled = 1;
        preload_lib.interrupt(run->engine, run->soft);
    }
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
    struct sigaction act = handlers[sig];
    int saved = errno;

    if (act.sa_flags & SA_SIGINFO) {
        act.sa_sigaction(sig, info, context);
    } else {
        act.sa_handler(sig);
    }
    stop_run();
    errno = saved;
}

static bool is_function(const struct sigaction *act)
{
    return (act->sa_flags & SA_SIGINFO) ||
           (act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN);
}

static bool is_wrapper(const struct sigaction *act)
{
    return (act->sa_flags & SA_SIGINFO) && act->sa_sigaction == on_signal;
}

static int set_action(int sig, const struct sigaction *act, struct sigaction *old)
{
    struct sigaction wrapped, before, mine;
    sigset_t all, mask;
    int ret;

    if (sig <= 0 || sig >= NSIG) {
        return real_sigaction()(sig, act, old);
    }
    if (!act) {
        ret = real_sigaction()(sig, NULL, old);
        if (ret != 0 || !old || !is_wrapper(old)) {
            return ret;
        }
    }
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &mask);
    pthread_mutex_lock(&handlers_lock);
    mine = handlers[sig];
    if (act && is_function(act)) {
        wrapped = *act;
        wrapped.sa_sigaction = on_signal;
        wrapped.sa_flags |= SA_SIGINFO;
        handlers[sig] = *act;
        ret = real_sigaction()(sig, &wrapped, &before);
        if (ret != 0) {
            handlers[sig] = mine;
        }
    } else {
        ret = real_sigaction()(sig, act, &before);
    }
    pthread_mutex_unlock(&handlers_lock);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (ret == 0 && old) {
        *old = is_wrapper(&before) ? mine : before;
    }
    return ret;
}

PRELOAD_EXPORT int sigaction(int sig, const struct sigaction *act, struct sigaction *old)
{
    return PRELOAD_INSIDE ? real_sigaction()(sig, act, old) : set_action(sig, act, old);
}

PRELOAD_EXPORT sighandler_t signal(int sig, sighandler_t handler)
{
    struct sigaction act = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;

    sigemptyset(&act.sa_mask);
    if (set_action(sig, &act, &old) != 0) {
        return SIG_ERR;
    }
    return old.sa_handler;
}
