/*
 * The table of descriptors that stand for the engine's; see preload.h. Entries are found by a load
 * from a two-level array, so that neither a million descriptors nor their absence costs anything.
 */
#include "preload/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK_BITS 10
#define CHUNK      (1 << CHUNK_BITS)
#define CHUNKS     4096

struct chunk {
    _Atomic(struct preload_fd *) fd[CHUNK];
};

pthread_mutex_t preload_lock = PTHREAD_MUTEX_INITIALIZER;
_Atomic(struct softkvm *) preload_engine;
static _Atomic(struct chunk *) chunks[CHUNKS];

static _Atomic(struct preload_fd *) *slot_of(int fd, bool make)
{
    unsigned n = (unsigned)fd >> CHUNK_BITS;
    struct chunk *c, *expected = NULL;

    if (fd < 0 || n >= CHUNKS) {
        return NULL;
    }
    c = atomic_load_explicit(&chunks[n], memory_order_acquire);
    if (!c && make) {
        c = calloc(1, sizeof(*c));
        if (c && !atomic_compare_exchange_strong(&chunks[n], &expected, c)) {
            free(c);
            c = expected;
        }
    }
    return c ? &c->fd[(unsigned)fd & (CHUNK - 1)] : NULL;
}

struct preload_fd *preload_find(int fd)
{
    _Atomic(struct preload_fd *) *slot;

    if (!preload_active()) {
        return NULL;
    }
    slot = slot_of(fd, false);
    return slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;
}

/* Entries are small and few; a reader may still hold one that is replaced, so they are not freed
 * before the process ends but put on a list for reuse by preload_install(). */
static struct preload_fd *put_entry(int fd, struct preload_fd *e)
{
    _Atomic(struct preload_fd *) *slot = slot_of(fd, true);

    return slot ? atomic_exchange(slot, e) : e;
}

static struct preload_fd *new_entry(int soft, enum preload_kind kind)
{
    struct preload_fd *e = calloc(1, sizeof(*e));

    if (e) {
        e->soft = soft;
        e->kind = kind;
        e->owner = getpid();
    }
    return e;
}

int preload_install(int soft, enum preload_kind kind, bool cloexec)
{
    static const char *const names[] = {"kvm", "kvm", "kvm-vm", "kvm-vcpu", "kvm-stats"};
    struct preload_fd *e = new_entry(soft, kind);
    int fd = e ? memfd_create(names[kind], cloexec ? MFD_CLOEXEC : 0) : -1;
    int saved = e ? errno : ENOMEM;

    if (fd < 0 || put_entry(fd, e) == e) {
        saved = fd < 0 ? saved : EMFILE;
        if (fd >= 0) {
            syscall(SYS_close, fd);
        }
        free(e);
        softkvm_close(preload_active(), soft);
        errno = saved;
        return -1;
    }
    return fd;
}

int preload_copy(int fd, int fd2)
{
    struct preload_fd *e = preload_find(fd), *copy;
    int soft;

    if (!e) {
        preload_forget(fd2);
        return 0;
    }
    soft = softkvm_dup(preload_active(), e->soft);
    if (soft < 0) {
        return soft;
    }
    copy = new_entry(soft, e->kind);
    preload_forget(fd2);
    if (!copy || put_entry(fd2, copy) == copy) {
        free(copy);
        softkvm_close(preload_active(), soft);
        return copy ? -EMFILE : -ENOMEM;
    }
    copy->owner = e->owner;
    return 0;
}

void preload_forget(int fd)
{
    _Atomic(struct preload_fd *) *slot = preload_active() ? slot_of(fd, false) : NULL;
    struct preload_fd *e = slot ? atomic_exchange(slot, NULL) : NULL;

    if (e && e->owner == getpid()) {
        softkvm_close(preload_active(), e->soft);
    }
}

long preload_result(long ret)
{
    if (ret < 0) {
        errno = (int)-ret;
        return -1;
    }
    return ret;
}

bool preload_is_device(const char *path)
{
    return path && strcmp(path, PRELOAD_PATH) == 0;
}

static void log_line(void *opaque, int level, const char *line)
{
    if (level <= 4 || getenv("STRATA_KVM_TRACE")) {
        fprintf(stderr, "softkvm: %s\n", line);
    }
}

static struct softkvm *make_engine(char *err, size_t size)
{
    struct softkvm_options options = {.size = sizeof(options), .log = log_line};
    const char *mmu = getenv("STRATA_KVM_MMU");

    if (mmu && strcmp(mmu, "npt") == 0) {
        options.mmu = SOFTKVM_MMU_NPT;
    } else if (mmu && strcmp(mmu, "shadow") == 0) {
        options.mmu = SOFTKVM_MMU_SHADOW;
    } else if (mmu && strcmp(mmu, "ept") != 0) {
        snprintf(err, size, "STRATA_KVM_MMU=%s: ept, npt or shadow", mmu);
        return NULL;
    }
    return softkvm_new(&options, err, size);
}

int preload_open(int flags)
{
    struct softkvm *s;
    char err[256] = "";
    int soft;

    pthread_mutex_lock(&preload_lock);
    s = preload_active();
    if (!s) {
        s = make_engine(err, sizeof(err));
        atomic_store_explicit(&preload_engine, s, memory_order_release);
    }
    pthread_mutex_unlock(&preload_lock);
    if (!s) {
        fprintf(stderr, "softkvm: cannot start the engine: %s\n", err);
        errno = ENODEV;
        return -1;
    }
    soft = softkvm_open_system(s);
    return soft < 0 ? (int)preload_result(soft)
                    : preload_install(soft, PRELOAD_SYSTEM, flags & O_CLOEXEC);
}

/* In a forked child the engine's threads are gone: it starts anew, and old descriptors answer EIO. */
static void after_fork_in_child(void)
{
    preload_cancel_forked();
    pthread_mutex_init(&preload_lock, NULL);
}

__attribute__((constructor)) static void init(void)
{
    pthread_atfork(NULL, NULL, after_fork_in_child);
}
