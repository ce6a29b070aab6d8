/*
 * libsoftkvm-preload.so: puts libsoftkvm behind /dev/kvm for a program that reaches it through libc.
 *
 * A descriptor that the program sees is a real one (an empty memfd, so that dup, close, poll and
 * /proc/self/fd behave), and a table tells which of them stand for a descriptor of the engine. All
 * others go straight to the real functions: until /dev/kvm is opened, a hook is one load and a branch.
 *
 * State is the process's own here, by nature: one engine, made at the first open of /dev/kvm.
 *
 * Limits: static programs and those that bypass libc cannot be reached; a VM does not survive fork in
 * the child (its ioctls answer EIO there, as the kernel's do) nor exec.
 *
 * Locks: preload_lock orders creation of the engine and changes of the table; look-ups take none.
 */
#ifndef STRATA_PRELOAD_PRELOAD_H
#define STRATA_PRELOAD_PRELOAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "softkvm/softkvm.h"

#define PRELOAD_PATH  "/dev/kvm"
#define PRELOAD_EXPORT __attribute__((visibility("default")))

enum preload_kind { PRELOAD_NONE, PRELOAD_SYSTEM, PRELOAD_VM, PRELOAD_VCPU, PRELOAD_OTHER };

/* What a descriptor of the process stands for. Immutable while in the table. */
struct preload_fd {
    int soft;           /* descriptor of the engine */
    enum preload_kind kind;
    pid_t owner;        /* process that made it: a forked child may not use it */
    _Atomic uint64_t offset; /* of read() on statistics descriptors */
};

extern pthread_mutex_t preload_lock;
extern _Atomic(struct softkvm *) preload_engine; /* null until /dev/kvm is opened */

static inline struct softkvm *preload_active(void)
{
    return atomic_load_explicit(&preload_engine, memory_order_acquire);
}

/* The entry of fd, or null. No lock; valid until fd is closed, as with any descriptor. */
struct preload_fd *preload_find(int fd);

/* Give the engine's descriptor a real one. cloexec as O_CLOEXEC. Returns it, or -1 with errno; the
 * engine's descriptor is closed then. */
int preload_install(int soft, enum preload_kind kind, bool cloexec);

/* fd2 stands for what fd stands for, too. 0 or -errno. */
int preload_copy(int fd, int fd2);

/* Forget fd, and close the engine's descriptor. Called before the real close. */
void preload_forget(int fd);

/* Open /dev/kvm on the engine. Returns a descriptor, or -1 with errno. */
int preload_open(int flags);

/* True if the path is the device's. */
bool preload_is_device(const char *path);

/* Set errno from a negative result; what a libc function returns. */
long preload_result(long ret);

/* Mappings of vCPU descriptors, so that munmap() of one finds the engine. */
void *preload_map_vcpu(struct preload_fd *e, size_t length, int prot, int flags, int64_t offset);
bool preload_unmap_vcpu(void *addr, size_t length, int *ret);

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
int preload_ioctl(struct preload_fd *e, unsigned long request, void *arg);

#endif
