/*
 * The table of descriptors that stand for the engine's; see preload.h. Entries are found by a load
 * from a two-level array, so that neither a million descriptors nor their absence costs anything.
 * An entry that leaves the table is not freed: a reader may still hold it. There are few.
 */
#include "preload/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHUNK_BITS 10
#define CHUNK      (1 << CHUNK_BITS)
#define CHUNKS     4096

struct chunk {
    _Atomic(struct preload_fd *) fd[CHUNK];
};

static _Atomic(struct chunk *) chunks[CHUNKS];

/* Bounds of this library in memory, from the linker. */
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));

bool preload_is_inside(const void *return_address)
{
    return ((const char *)return_address >= __ehdr_start && (const char *)return_address < _end) ||
           preload_lib_has(return_address);
}

/* Names of the memfds, by which another process knows what it was given. */
static const char *const names[] = {"kvm", "kvm-vm", "kvm-vcpu", "kvm-stats", "guest_memfd"};

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

    if (!atomic_load_explicit(&preload_engine, memory_order_acquire)) {
        return NULL;
    }
    slot = slot_of(fd, false);
    return slot ? atomic_load_explicit(slot, memory_order_acquire) : NULL;
}

bool preload_is_foreign(const struct preload_fd *e)
{
    return e->mark != atomic_load_explicit(preload_mark, memory_order_relaxed);
}

static _Atomic pid_t table_owner; /* whose descriptors the table has */

bool preload_is_vfork(void)
{
    return preload_active() && atomic_load(&table_owner) != getpid();
}

static struct preload_fd *new_entry(int soft, enum preload_kind kind)
{
    struct preload_fd *e = calloc(1, sizeof(*e));

    if (e) {
        e->soft = soft;
        e->kind = kind;
        e->owner = getpid();
        e->mark = atomic_load(preload_mark);
        e->stats = preload_stats_open(soft, kind);
        atomic_store(&table_owner, e->owner);
    }
    return e;
}

/* Put an entry, or null, into the slot of fd; what was there is closed. False: no memory, or fd too high. */
static bool put_entry(int fd, struct preload_fd *e)
{
    _Atomic(struct preload_fd *) *slot = slot_of(fd, e != NULL);
    struct preload_fd *old;

    if (!slot) {
        return false;
    }
    old = atomic_exchange(slot, e);
    if (old && !preload_is_foreign(old)) {
        preload_stats_show(fd, old);
        if (old->stats >= 0) {
            preload_lib.close(preload_active(), old->stats);
        }
        preload_lib.close(preload_active(), old->soft);
    }
    return true;
}

/* An empty file that cannot be written or grown. */
static int make_file(enum preload_kind kind, int flags)
{
    int fd = memfd_create(names[kind], MFD_ALLOW_SEALING | (flags & O_CLOEXEC ? MFD_CLOEXEC : 0));

    if (fd >= 0) {
        (void)fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL);
    }
    return fd;
}

int preload_install(int soft, enum preload_kind kind, int flags)
{
    struct preload_fd *e = new_entry(soft, kind);
    int fd = e ? make_file(kind, flags) : -1;
    int saved = e ? errno : ENOMEM;

    if (fd < 0 || !put_entry(fd, e)) {
        if (fd >= 0) {
            saved = EMFILE;
            syscall(SYS_close, fd);
        }
        free(e);
        preload_lib.close(preload_active(), soft);
        errno = saved;
        return -1;
    }
    return fd;
}

int preload_copy(int fd, int fd2)
{
    struct preload_fd *e = preload_find(fd), *copy;
    int soft = -1;

    if (!e) {
        preload_forget(fd2);
        return 0;
    }
    if (!preload_is_foreign(e)) {
        soft = preload_lib.dup(preload_active(), e->soft);
        if (soft < 0) {
            return soft;
        }
    }
    copy = new_entry(soft, e->kind);
    if (copy) {
        copy->mark = e->mark;
    }
    if (!copy || !put_entry(fd2, copy)) {
        free(copy);
        if (soft >= 0) {
            preload_lib.close(preload_active(), soft);
        }
        return copy ? -EMFILE : -ENOMEM;
    }
    return 0;
}

void preload_forget(int fd)
{
    if (preload_find(fd) && !preload_is_vfork()) {
        put_entry(fd, NULL);
    }
}

void preload_forget_range(unsigned first, unsigned last)
{
    unsigned end = last < CHUNKS * CHUNK - 1 ? last : CHUNKS * CHUNK - 1;

    if (!atomic_load(&preload_engine) || preload_is_vfork()) {
        return;
    }
    for (unsigned fd = first; fd <= end; fd++) {
        if (!atomic_load(&chunks[fd >> CHUNK_BITS])) {
            fd |= CHUNK - 1;
        } else {
            preload_forget((int)fd);
        }
    }
}

void preload_for_each(void (*fn)(int fd, struct preload_fd *e))
{
    for (int fd = 0; fd < CHUNKS * CHUNK; fd++) {
        struct preload_fd *e;

        if (!atomic_load(&chunks[fd >> CHUNK_BITS])) {
            fd |= CHUNK - 1;
            continue;
        }
        e = preload_find(fd);
        if (e && e->owner == getpid()) {
            fn(fd, e);
        }
    }
}

int preload_adopt(int fd)
{
    struct softkvm *s = preload_engine_get();
    struct preload_fd *e;
    int soft;

    if (!s) {
        return -ENODEV;
    }
    soft = preload_lib.open_system(s);
    if (soft < 0) {
        return soft;
    }
    e = new_entry(soft, PRELOAD_SYSTEM);
    if (!e || !put_entry(fd, e)) {
        free(e);
        preload_lib.close(s, soft);
        return -ENOMEM;
    }
    return 0;
}

/* A descriptor of this process that is the same file: one that came back over a socket. -1: none. */
static int same_file(int fd)
{
    struct stat st, other;

    if (fstatat(fd, "", &st, AT_EMPTY_PATH) != 0) {
        return -1;
    }
    for (int i = 0; i < CHUNKS * CHUNK; i++) {
        struct preload_fd *e;

        if (!atomic_load(&chunks[i >> CHUNK_BITS])) {
            i |= CHUNK - 1;
            continue;
        }
        e = preload_find(i);
        if (e && !preload_is_foreign(e) && fstatat(i, "", &other, AT_EMPTY_PATH) == 0 &&
            other.st_ino == st.st_ino && other.st_dev == st.st_dev) {
            return i;
        }
    }
    return -1;
}

int preload_adopt_stranger(int fd)
{
    int same = same_file(fd);
    char path[40], target[64], wanted[48];
    ssize_t n;

    if (same >= 0) {
        return preload_copy(same, fd);
    }
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = readlink(path, target, sizeof(target) - 1);
    if (n < 0) {
        return -ENOTTY;
    }
    target[n] = '\0';
    for (unsigned kind = PRELOAD_SYSTEM; kind <= PRELOAD_VCPU; kind++) {
        snprintf(wanted, sizeof(wanted), "/memfd:%s (deleted)", names[kind]);
        if (strcmp(target, wanted) == 0) {
            return kind == PRELOAD_SYSTEM ? preload_adopt(fd) : -EIO;
        }
    }
    return -ENOTTY;
}

long preload_result(long ret)
{
    if (ret < 0) {
        errno = (int)-ret;
        return -1;
    }
    return ret;
}

int preload_open(int flags)
{
    struct softkvm *s = preload_engine_get();
    int soft;

    if (!s) {
        return -1;
    }
    soft = preload_lib.open_system(s);
    return soft < 0 ? (int)preload_result(soft) : preload_install(soft, PRELOAD_SYSTEM, flags);
}
