/*
 * libsoftkvm-preload.so: puts libsoftkvm behind /dev/kvm for a program that reaches it through libc.
 *
 * A descriptor that the program sees is a real one (an empty, sealed memfd, so that dup, close, poll and
 * /proc/self/fd behave), and a table tells which of them stand for a descriptor of the engine. All
 * others go straight to the real functions: until /dev/kvm is opened, a hook is one load and a branch.
 *
 * State is the process's own here, by nature: one engine, made at the first open of /dev/kvm.
 *
 * Fork, as the kernel has it. A VM belongs to the address space that made it: in a forked child its
 * ioctls answer EIO, while an inherited /dev/kvm works (on an engine of the child's own, made then). A
 * vfork child shares the address space but not the descriptors: what it closes or duplicates leaves the
 * table alone. Two facts tell the cases apart:
 *
 *                    same getpid()   same address space ("mark", a page that the kernel wipes at fork)
 *     the process         yes             yes
 *     a vfork child       no              yes
 *     a forked child      no              no
 *
 * The engine is libsoftkvm.so, loaded at that first open (lib.h): a program without it carries the hooks alone.
 * Calls that the engine itself makes (mmap, close, ...) come through the hooks, too, and are told by
 * their return address: they go to the real function at once.
 *
 * Limits: static programs and those that bypass libc cannot be reached. A VM's or vCPU's descriptor that
 * is passed to another process or over exec answers EIO there, as the kernel's does; statistics and
 * mappings are not to be had there, other than the kernel's.
 *
 * Locks: preload_lock orders creation of the engine; look-ups take none.
 */
#ifndef STRATA_PRELOAD_PRELOAD_H
#define STRATA_PRELOAD_PRELOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "preload/lib.h"
#include "softkvm/softkvm.h"

#define PRELOAD_PATH   "/dev/kvm"
#define PRELOAD_EXPORT __attribute__((visibility("default")))

enum preload_kind {
    PRELOAD_SYSTEM,
    PRELOAD_VM,
    PRELOAD_VCPU,
    PRELOAD_STATS,
    PRELOAD_MEMORY, /* guest_memfd */
};

/* What a descriptor of the process stands for. Immutable while in the table, but for the offset. */
struct preload_fd {
    int soft;           /* descriptor of the engine */
    enum preload_kind kind;
    pid_t owner;        /* the process in whose table of descriptors it is */
    uint32_t mark;      /* the address space that it belongs to */
    int stats;          /* the engine's descriptor of its counters, -1: none wanted */
    _Atomic uint64_t offset; /* of read() on statistics descriptors */
};

extern pthread_mutex_t preload_lock;
extern _Atomic(struct softkvm *) preload_engine; /* null until /dev/kvm is opened */
extern _Atomic uint32_t *preload_mark;           /* of this address space; 0 in a forked child */

/* The engine of this address space, or null. */
static inline struct softkvm *preload_active(void)
{
    struct softkvm *s = atomic_load_explicit(&preload_engine, memory_order_acquire);

    return __builtin_expect(s != NULL, 0) && atomic_load_explicit(preload_mark, memory_order_relaxed)
               ? s
               : NULL;
}

/* The entry of fd, or null. No lock; valid until fd is closed, as with any descriptor. */
struct preload_fd *preload_find(int fd);

/* True if the entry's engine is another address space's: the kernel's KVM answers EIO then. */
bool preload_is_foreign(const struct preload_fd *e);

/* True in a vfork child, whose descriptors are not those of the table. */
bool preload_is_vfork(void);

/* Give the engine's descriptor a real one. flags: O_CLOEXEC or 0. Returns it, or -1 with errno; the
 * engine's descriptor is closed then. */
int preload_install(int soft, enum preload_kind kind, int flags);

/* fd2 stands for what fd stands for, too (for nothing, if fd does). 0 or -errno. */
int preload_copy(int fd, int fd2);

/* Forget fd, and close the engine's descriptor. Called before the real close. */
void preload_forget(int fd);

/* Forget all of [first, last]. */
void preload_forget_range(unsigned first, unsigned last);

/* An inherited /dev/kvm gets a descriptor of this address space's engine. 0 or -errno. */
int preload_adopt(int fd);

/* fd came over a socket or exec: it stands for what another descriptor of the same file does, or for what its
 * name says. 0: adopted; -EIO: a VM or vCPU of another process; -ENOTTY: none of ours. */
int preload_adopt_stranger(int fd);

/* Open /dev/kvm on the engine. Returns a descriptor, or -1 with errno. */
int preload_open(int flags);

/* Call fn for each entry of this process. Other threads may change the table meanwhile. */
void preload_for_each(void (*fn)(int fd, struct preload_fd *e));

/* The engine of this address space, made if there is none. Null with errno. (engine.c) */
struct softkvm *preload_engine_get(void);

/* Get at the counters of a new VM or vCPU, if they are wanted: later its lock may be held by KVM_RUN. Print them.
 * (stats.c) */
int preload_stats_open(int soft, enum preload_kind kind);
void preload_stats_show(int fd, struct preload_fd *e);
extern bool preload_wants_stats;

/* A line of the trace, if one is wanted; may be called from anywhere. (engine.c) */
void preload_trace(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Does this call come from this library itself? From a hook: PRELOAD_INSIDE. (table.c) */
bool preload_is_inside(const void *return_address);
#define PRELOAD_INSIDE preload_is_inside(__builtin_return_address(0))

/* Set errno from a negative result; what a libc function returns. */
long preload_result(long ret);

/* mmap() of a descriptor of the engine. (map.c) */
void *preload_map(struct preload_fd *e, void *addr, size_t length, int prot, int flags, int64_t offset);

/* Memory that [offset, offset + length) of the file behind fd is mapped at has lost its contents. (file.c) */
void preload_file_discarded(struct softkvm *s, int fd, int64_t offset, int64_t length);

/* A KVM_RUN on this thread, for signal handlers to interrupt. */
struct preload_run {
    struct softkvm *engine;
    int soft;
    volatile int active;
    volatile int signalled;
    volatile int cancelled; /* pthread_cancel() was called for this thread */
    int listed;             /* cancel.c's */
    pthread_t thread;
    struct preload_run *next;
};
extern __thread struct preload_run preload_run
    __attribute__((tls_model("initial-exec")));

/* Around KVM_RUN, against cancellation in its midst (cancel.c). */
int preload_cancel_hold(struct preload_run *run);
void preload_cancel_allow(int state);
void preload_cancel_forked(void);

/* The ioctl of an engine descriptor, with new descriptors installed and signals honoured. */
int preload_ioctl(int fd, struct preload_fd *e, unsigned long request, void *arg);

#endif
