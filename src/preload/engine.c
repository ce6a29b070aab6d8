/*
 * The engine of this address space: made at the first open of /dev/kvm from what the environment asks for
 * (`strata kvm-run` sets it), told of forks, and made anew in a child that opens /dev/kvm itself.
 *
 *   STRATA_KVM_MMU=ept|npt|shadow   STRATA_KVM_STATS=1   STRATA_KVM_TRACE=1 or a file's name
 *
 * Locks: preload_lock.
 */
#include "preload/preload.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

pthread_mutex_t preload_lock = PTHREAD_MUTEX_INITIALIZER;
_Atomic(struct softkvm *) preload_engine;
_Atomic uint32_t *preload_mark;
bool preload_wants_stats;

static uint32_t last_mark;
static FILE *trace_to;

void preload_trace(const char *fmt, ...)
{
    va_list ap;

    if (!trace_to) {
        return;
    }
    va_start(ap, fmt);
    vfprintf(trace_to, fmt, ap);
    va_end(ap);
    fflush(trace_to);
}

static void log_line(void *opaque, int level, const char *line)
{
    if (level <= 3) {
        fprintf(stderr, "softkvm: %s\n", line);
    }
    preload_trace("log: %s\n", line);
}

static void trace_line(void *opaque, const char *name, const char *file, const char *function,
                       const char *text)
{
    fprintf(trace_to, "%s (%s:%s)\n", text, file, function);
}

static void start_trace(void)
{
    const char *to = getenv("STRATA_KVM_TRACE");

    if (to && *to && !trace_to) {
        trace_to = strcmp(to, "1") == 0 ? stderr : fopen(to, "ae");
        if (!trace_to) {
            fprintf(stderr, "softkvm: STRATA_KVM_TRACE=%s: %s\n", to, strerror(errno));
        }
    }
}

static struct softkvm *make_engine(char *err, size_t size)
{
    struct softkvm_options options = {.size = sizeof(options), .log = log_line};
    const char *mmu = getenv("STRATA_KVM_MMU"), *stats = getenv("STRATA_KVM_STATS");

    if (mmu && strcmp(mmu, "npt") == 0) {
        options.mmu = SOFTKVM_MMU_NPT;
    } else if (mmu && strcmp(mmu, "shadow") == 0) {
        options.mmu = SOFTKVM_MMU_SHADOW;
    } else if (mmu && *mmu && strcmp(mmu, "ept") != 0) {
        snprintf(err, size, "STRATA_KVM_MMU=%s: ept, npt or shadow", mmu);
        return NULL;
    }
    start_trace();
    options.trace = trace_to ? trace_line : NULL;
    preload_wants_stats = stats && strcmp(stats, "1") == 0;
    return preload_lib.new(&options, err, size);
}

/* The page of preload_mark: zeros in a forked child. */
static int make_mark(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED || madvise(p, 4096, MADV_WIPEONFORK) != 0) {
        return -1;
    }
    preload_mark = p;
    return 0;
}

static struct softkvm *engine_get_locked(char *err, size_t size)
{
    struct softkvm *s = preload_active();

    if (s) {
        return s;
    }
    if (!preload_mark && make_mark() < 0) {
        snprintf(err, size, "no memory");
        return NULL;
    }
    s = preload_lib_load(err, size) == 0 ? make_engine(err, size) : NULL;
    if (s) {
        /* A child's copy of its parent's engine stays where it is: nothing in it may be touched. */
        atomic_store(preload_mark, ++last_mark);
        atomic_store_explicit(&preload_engine, s, memory_order_release);
    }
    return s;
}

struct softkvm *preload_engine_get(void)
{
    struct softkvm *s;
    char err[256] = "";

    pthread_mutex_lock(&preload_lock);
    s = engine_get_locked(err, sizeof(err));
    pthread_mutex_unlock(&preload_lock);
    if (!s) {
        fprintf(stderr, "softkvm: cannot start the engine: %s\n", err);
        errno = ENODEV;
    }
    return s;
}

/* ---- fork: the host model write-protects as the kernel does, and is held still meanwhile ---- */

static struct softkvm_memory_change fork_change;
static bool fork_announced;

static void before_fork(void)
{
    struct softkvm *s;

    pthread_mutex_lock(&preload_lock);
    s = preload_active();
    fork_announced = s && preload_lib.memory_begin(s, &fork_change, SOFTKVM_CHANGE_FORK, NULL, 0, 0) == 0;
}

static void after_fork_in_parent(void)
{
    if (fork_announced) {
        preload_lib.memory_end(&fork_change, true);
    }
    pthread_mutex_unlock(&preload_lock);
}

static void after_fork_in_child(void)
{
    preload_cancel_forked();
    pthread_mutex_init(&preload_lock, NULL);
}

__attribute__((constructor)) static void init(void)
{
    pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

__attribute__((destructor)) static void fini(void)
{
    if (preload_wants_stats && preload_active()) {
        preload_for_each(preload_stats_show);
    }
}
