/*
 * Guarded accesses; see guard.h.
 *
 *   SIGSEGV, SIGBUS --> fixup for the PC?      go on at the fixup
 *                   --> a guard of the thread claims it?   jump back to where it was set
 *                   --> the handler that was there before
 *
 * Handlers there before are kept in the order in which they were covered. One that was put over ours may hold
 * ours as the one before it, and pass on to it: then we are called again within our own passing on, and
 * go one further down. So `passing` of the thread tells which is next.
 *
 * Locks: `lock` for install and uninstall; the handler takes none. The guard of a thread is in its TLS, in the
 * initial-exec model, so that the handler's access allocates nothing.
 */
#include "base/guard.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <ucontext.h>

/* A faulting instruction and where to go on, both relative to their own place. */
struct fixup {
    int32_t at, to;
};

extern const struct fixup fixups_start[] __asm__("__start_strata_fixups") __attribute__((visibility("hidden")));
extern const struct fixup fixups_end[] __asm__("__stop_strata_fixups") __attribute__((visibility("hidden")));

#define FIXUP(at, to)                                                                              \
    ".pushsection strata_fixups, \"a\"\n\t"                                                        \
    ".balign 4\n\t"                                                                                \
    ".long " at " - .\n\t"                                                                         \
    ".long " to " - .\n\t"                                                                         \
    ".popsection\n\t"

#define MAX_COVERED 8

static struct {
    pthread_mutex_t lock;
    unsigned users;
    _Atomic bool on;
    _Atomic unsigned nr_covered; /* entries are whole before they are counted, and stay */
    struct sigaction covered[MAX_COVERED][2]; /* SIGSEGV's, SIGBUS's */
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

static __thread struct base_guard *current __attribute__((tls_model("initial-exec")));
/* The signal that is being passed on, and how far down it is. */
static __thread unsigned passing __attribute__((tls_model("initial-exec")));
static __thread const siginfo_t *passed __attribute__((tls_model("initial-exec")));

static uintptr_t fixup_for(uintptr_t pc)
{
    for (const struct fixup *f = fixups_start; f < fixups_end; f++) {
        if ((uintptr_t)&f->at + (uintptr_t)(intptr_t)f->at == pc) {
            return (uintptr_t)&f->to + (uintptr_t)(intptr_t)f->to;
        }
    }
    return 0;
}

/* Made by an access of this thread, at an address that the kernel knows. */
static bool is_access(int signo, const siginfo_t *si)
{
    if (signo == SIGSEGV) {
        return si->si_code == SEGV_MAPERR || si->si_code == SEGV_ACCERR;
    }
    return si->si_code == BUS_ADRERR || si->si_code == BUS_OBJERR || si->si_code == BUS_MCEERR_AR;
}

static _Noreturn void jump_back(struct base_guard *g)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__clang__)
    siglongjmp(g->env, 1);
#else
    __builtin_longjmp(g->env, 1);
#endif
}

/* Does a guard of this thread take it? Then this does not return. Outer ones are asked too. */
static void try_guards(int signo, const siginfo_t *si, const ucontext_t *uc)
{
    struct base_guard_fault f = {
        .addr = (uintptr_t)si->si_addr,
        .pc = (uintptr_t)uc->uc_mcontext.gregs[REG_RIP],
        .second_argument = (uintptr_t)uc->uc_mcontext.gregs[REG_RSI],
        .mxcsr = uc->uc_mcontext.fpregs ? uc->uc_mcontext.fpregs->mxcsr : 0x1f80,
        .is_bus = signo == SIGBUS,
        .is_poison = signo == SIGBUS && si->si_code == BUS_MCEERR_AR,
    };

    for (struct base_guard *g = current; g; g = g->outer) {
        if (g->claims(g, &f)) {
            g->fault = f;
            current = g->outer;
            pthread_sigmask(SIG_SETMASK, &uc->uc_sigmask, NULL); /* as before the fault, whoever blocked more */
            jump_back(g);
        }
    }
}

/* The handler that is next to be asked. */
static const struct sigaction *covered(int signo)
{
    static const struct sigaction none = {.sa_handler = SIG_DFL};
    unsigned n = atomic_load(&process.nr_covered);

    return passing < n ? &process.covered[n - 1 - passing][signo == SIGBUS] : &none;
}

/* What would have happened without us. */
static void pass_on(int signo, siginfo_t *si, void *uc)
{
    const struct sigaction *old = covered(signo);
    struct sigaction dfl = {.sa_handler = SIG_DFL};
    sigset_t mask = old->sa_mask, before;

    if (!(old->sa_flags & SA_SIGINFO) && old->sa_handler == SIG_IGN && !is_access(signo, si)) {
        return;
    }
    if (!(old->sa_flags & SA_SIGINFO) && (old->sa_handler == SIG_DFL || old->sa_handler == SIG_IGN)) {
        sigaction(signo, &dfl, NULL);
        if (!is_access(signo, si)) {
            raise(signo); /* one that was sent; an access is repeated on return, and ends the process */
        }
        return;
    }
    if (!(old->sa_flags & SA_NODEFER)) {
        sigaddset(&mask, signo);
    }
    pthread_sigmask(SIG_BLOCK, &mask, &before);
    passing++;
    passed = si;
    if (old->sa_flags & SA_SIGINFO) {
        old->sa_sigaction(signo, si, uc);
    } else {
        old->sa_handler(signo);
    }
    passing = 0;
    passed = NULL;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* errno is the interrupted code's. Not blocked while it runs, since it may leave by a jump. */
static void on_signal(int signo, siginfo_t *si, void *opaque)
{
    ucontext_t *uc = opaque;
    int saved = errno;

    if (passed != si) {
        passing = 0; /* a new one: the last may have been left by a jump */
    }
    if (is_access(signo, si)) {
        uintptr_t to = fixup_for((uintptr_t)uc->uc_mcontext.gregs[REG_RIP]);

        if (to) {
            uc->uc_mcontext.gregs[REG_RIP] = (greg_t)to;
            return;
        }
        try_guards(signo, si, uc);
    }
    pass_on(signo, si, opaque);
    errno = saved;
}

static const struct sigaction ours = {.sa_sigaction = on_signal,
                                      .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};

static bool is_ours(int signo)
{
    struct sigaction now;

    return sigaction(signo, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
           now.sa_sigaction == on_signal;
}

/* Put both handlers on top of what is there now. Lock: held. 0 or -errno. */
static int cover(void)
{
    unsigned n = atomic_load(&process.nr_covered);

    if (is_ours(SIGSEGV) && is_ours(SIGBUS)) {
        return 0;
    }
    if (n == MAX_COVERED) {
        return -ENOSPC;
    }
    if (sigaction(SIGSEGV, NULL, &process.covered[n][0]) != 0 ||
        sigaction(SIGBUS, NULL, &process.covered[n][1]) != 0) {
        return -errno;
    }
    for (unsigned i = 0; i < 2; i++) {
        if (is_ours(i ? SIGBUS : SIGSEGV)) {
            process.covered[n][i] = n ? process.covered[n - 1][i] : (struct sigaction){0};
        }
    }
    atomic_store(&process.nr_covered, n + 1);
    if (sigaction(SIGSEGV, &ours, NULL) != 0 || sigaction(SIGBUS, &ours, NULL) != 0) {
        return -errno;
    }
    return 0;
}

/* See guard.h. -errno: of sigaction(); -ENOSPC: covered too often. Source: own. */
int base_guard_install(void)
{
    int err;

    pthread_mutex_lock(&process.lock);
    err = cover();
    if (!err) {
        process.users++;
        process.on = true;
    }
    pthread_mutex_unlock(&process.lock);
    return err;
}

/* See guard.h. */
void base_guard_refresh(void)
{
    pthread_mutex_lock(&process.lock);
    if (process.users) {
        (void)cover(); /* where it cannot be, a fault is somebody else's, as before */
    }
    pthread_mutex_unlock(&process.lock);
}

/* See guard.h. Handlers that somebody has put others over stay: they pass on. */
void base_guard_uninstall(void)
{
    pthread_mutex_lock(&process.lock);
    if (--process.users == 0 && is_ours(SIGSEGV) && is_ours(SIGBUS)) {
        unsigned n = atomic_load(&process.nr_covered) - 1;

        sigaction(SIGSEGV, &process.covered[n][0], NULL);
        sigaction(SIGBUS, &process.covered[n][1], NULL);
        atomic_store(&process.nr_covered, n);
        process.on = n != 0;
    }
    pthread_mutex_unlock(&process.lock);
}

bool base_guard_is_on(void)
{
    return atomic_load_explicit(&process.on, memory_order_relaxed);
}

void base_guard_enter(struct base_guard *g)
{
    g->outer = current;
    atomic_signal_fence(memory_order_seq_cst);
    current = g;
}

void base_guard_leave(struct base_guard *g)
{
    atomic_signal_fence(memory_order_seq_cst);
    current = g->outer;
}

bool base_guard_copy(void *dst, const void *src, size_t n)
{
    __asm__ volatile("1: rep movsb\n\t"
                     "2:\n\t" FIXUP("1b", "2b")
                     : "+D"(dst), "+S"(src), "+c"(n)
                     :
                     : "memory");
    return n == 0;
}

/* `bad` is set before the access and cleared behind it; the fixup skips the clearing. */
#define GUARDED_LOAD(bits)                                                                         \
    bool base_guard_load##bits(const void *p, uint##bits##_t *v)                                   \
    {                                                                                              \
        uint##bits##_t got = 0;                                                                    \
        uint32_t bad;                                                                              \
                                                                                                   \
        __asm__ volatile("movl $1, %[bad]\n\t"                                                     \
                         "1: mov (%[p]), %[got]\n\t"                                               \
                         "xorl %[bad], %[bad]\n\t"                                                 \
                         "2:\n\t" FIXUP("1b", "2b")                                                \
                         : [bad] "=&r"(bad), [got] "+r"(got)                                       \
                         : [p] "r"(p)                                                              \
                         : "memory", "cc");                                                        \
        if (bad) {                                                                                 \
            return false;                                                                          \
        }                                                                                          \
        *v = got;                                                                                  \
        return true;                                                                               \
    }

#define GUARDED_STORE(bits)                                                                        \
    bool base_guard_store##bits(void *p, uint##bits##_t v)                                         \
    {                                                                                              \
        uint32_t bad;                                                                              \
                                                                                                   \
        __asm__ volatile("movl $1, %[bad]\n\t"                                                     \
                         "1: mov %[v], (%[p])\n\t"                                                 \
                         "xorl %[bad], %[bad]\n\t"                                                 \
                         "2:\n\t" FIXUP("1b", "2b")                                                \
                         : [bad] "=&r"(bad)                                                        \
                         : [p] "r"(p), [v] "r"(v)                                                  \
                         : "memory", "cc");                                                        \
        return !bad;                                                                               \
    }

GUARDED_LOAD(32)
GUARDED_LOAD(64)
GUARDED_STORE(32)
GUARDED_STORE(64)

bool base_guard_exchange(void *p, unsigned size, uint64_t old, uint64_t new_value, bool *done)
{
    uint64_t found = old;
    uint32_t bad;

    if (size == 8) {
        __asm__ volatile("movl $1, %[bad]\n\t"
                         "1: lock cmpxchgq %[new], (%[p])\n\t"
                         "movl $0, %[bad]\n\t"
                         "2:\n\t" FIXUP("1b", "2b")
                         : [bad] "=&r"(bad), "+a"(found)
                         : [p] "r"(p), [new] "r"(new_value)
                         : "memory", "cc");
    } else {
        __asm__ volatile("movl $1, %[bad]\n\t"
                         "1: lock cmpxchgl %k[new], (%[p])\n\t"
                         "movl $0, %[bad]\n\t"
                         "2:\n\t" FIXUP("1b", "2b")
                         : [bad] "=&r"(bad), "+a"(found)
                         : [p] "r"(p), [new] "r"(new_value)
                         : "memory", "cc");
    }
    if (bad) {
        return false;
    }
    *done = found == old;
    return true;
}
