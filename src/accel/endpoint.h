/*
 * An endpoint: whatever answers the KVM ioctl ABI. Two exist, the kernel's /dev/kvm and libsoftkvm, and
 * all of src/accel drives either through this table with the same struct kvm_*.
 *
 * Place in the flow: below everything in accel/; the double line of the architecture picture.
 * Descriptors are small integers that mean something to their own endpoint only. Errors are -errno in
 * the return value; `errno` is not used.
 */
#ifndef STRATA_ACCEL_ENDPOINT_H
#define STRATA_ACCEL_ENDPOINT_H

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

struct accel_endpoint;

struct accel_endpoint_ops {
    const char *name; /* "kvm" or "soft" */
    /* The system descriptor (what open("/dev/kvm") gives), or -errno. */
    int (*open_system)(struct accel_endpoint *ep);
    /* >= 0 or -errno. arg: a pointer or an integer, as the request wants. */
    int (*ioctl)(struct accel_endpoint *ep, int fd, unsigned long request, unsigned long arg);
    /* A shared mapping of length bytes, or NULL with *error = -errno. */
    void *(*mmap)(struct accel_endpoint *ep, int fd, size_t length, off_t offset, int *error);
    void (*munmap)(struct accel_endpoint *ep, void *addr, size_t length);
    /* Bytes read, or -errno (statistics descriptors). */
    ssize_t (*pread)(struct accel_endpoint *ep, int fd, void *buf, size_t length, off_t offset);
    void (*close)(struct accel_endpoint *ep, int fd);
    /* Break KVM_RUN of a vCPU whose run->immediate_exit has just been set. thread: who runs it. */
    void (*kick)(struct accel_endpoint *ep, int vcpu_fd, pthread_t thread);
    /* This process gave back or changed its own memory under a slot; an engine that sees mappings
     * by itself leaves it NULL. */
    void (*memory_discarded)(struct accel_endpoint *ep, void *start, size_t length);
    /* As fallocate() on a guest_memfd: 0 or -errno. */
    int (*fallocate)(struct accel_endpoint *ep, int fd, int mode, off_t offset, off_t length);
    void (*free)(struct accel_endpoint *ep);
};

struct accel_endpoint {
    const struct accel_endpoint_ops *ops;
};

/* Knobs of the software engine; ignored by the kernel's. */
struct accel_soft_options {
    uint64_t host_memory;    /* bytes of simulated host memory; 0: as the engine likes */
    uint64_t swap;           /* bytes that may be swapped out; 0: no swap */
    unsigned max_page_level; /* largest second-stage page: 1..3; 0: as the engine likes */
    unsigned mmu;            /* enum softkvm_mmu; 0: EPT */
    unsigned stage2;         /* SOFTKVM_STAGE2_* */
    unsigned levels;         /* of second-stage tables: 4 or 5; 0: as the engine likes */
    /* The engine's trace points; may be NULL. From any thread, with its locks held: must not call back. */
    void (*trace)(void *opaque, const char *name, const char *file, const char *function, const char *text);
    void *trace_opaque;
};

/* The signal that breaks a KVM_RUN of the kernel's; its handler does nothing. */
#define ACCEL_KICK_SIGNAL (SIGRTMIN + 3)

/* Make the endpoint of /dev/kvm. The device is opened by open_system(). NULL: out of memory. */
struct accel_endpoint *accel_endpoint_kernel_new(void);

/* Make the endpoint of libsoftkvm. opts may be NULL. On failure NULL, with the reason in err. */
struct accel_endpoint *accel_endpoint_soft_new(const struct accel_soft_options *opts,
                                               struct base_error *err);

static inline int accel_ioctl(struct accel_endpoint *ep, int fd, unsigned long request,
                              unsigned long arg)
{
    return ep->ops->ioctl(ep, fd, request, arg);
}

static inline int accel_ioctl_ptr(struct accel_endpoint *ep, int fd, unsigned long request, void *arg)
{
    return ep->ops->ioctl(ep, fd, request, (unsigned long)arg);
}

#endif
