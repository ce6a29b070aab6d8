/*
 * ioctl() of engine descriptors: new descriptors become real ones, descriptors in arguments become the
 * engine's, and a signal that arrives during KVM_RUN ends it with EINTR, as in the kernel. The engine
 * cannot see signals; the hook on sigaction() (signal.c) wraps handlers, and a wrapped handler that runs
 * on a thread inside KVM_RUN kicks it.
 */
#include "preload/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <unistd.h>

#include "preload/real.h"
#include "softkvm/abi_list.h"
#include "softkvm/kvm_abi.h"

__thread struct preload_run preload_run __attribute__((tls_model("initial-exec")));

PRELOAD_REAL(int, ioctl, int fd, unsigned long request, ...)

static int run_vcpu(struct preload_fd *e, void *arg)
{
    struct softkvm *s = preload_active();
    int ret, state;

    preload_run.engine = s;
    preload_run.soft = e->soft;
    preload_run.signalled = 0;
    state = preload_cancel_hold(&preload_run);
    preload_run.active = 1;
    if (preload_run.cancelled) {
        preload_lib.interrupt(s, e->soft); /* it came before `active` was seen */
    }
    ret = preload_lib.ioctl(s, e->soft, KVM_RUN, arg);
    preload_run.active = 0;
    preload_cancel_allow(state);
    return ret;
}

static int install_result(int soft, enum preload_kind kind, int flags)
{
    int fd;

    if (soft < 0) {
        return soft;
    }
    fd = preload_install(soft, kind, flags);
    return fd < 0 ? -errno : fd;
}

/* A region with a private half names its guest_memfd by descriptor: the engine wants its own. */
static int set_region2(struct preload_fd *e, void *arg)
{
    struct kvm_userspace_memory_region2 region;
    struct iovec local = {&region, sizeof(region)}, remote = {arg, sizeof(region)};
    struct preload_fd *memory;

    if (process_vm_readv(getpid(), &local, 1, &remote, 1, 0) != sizeof(region)) {
        return preload_lib.ioctl(preload_active(), e->soft, KVM_SET_USER_MEMORY_REGION2, arg);
    }
    if (region.flags & KVM_MEM_GUEST_MEMFD) {
        memory = preload_find((int)region.guest_memfd);
        if (!memory || memory->kind != PRELOAD_MEMORY || preload_is_foreign(memory)) {
            return fcntl((int)region.guest_memfd, F_GETFD) < 0 ? -EBADF : -EINVAL;
        }
        region.guest_memfd = (uint32_t)memory->soft;
    }
    return preload_lib.ioctl(preload_active(), e->soft, KVM_SET_USER_MEMORY_REGION2, &region);
}

static int vm_ioctl(struct preload_fd *e, unsigned long request, void *arg)
{
    struct softkvm *s = preload_active();
    int ret;

    if (request == KVM_SET_USER_MEMORY_REGION2) {
        return set_region2(e, arg);
    }
    ret = preload_lib.ioctl(s, e->soft, request, arg);
    switch (request) {
    case KVM_CREATE_VCPU:
        return install_result(ret, PRELOAD_VCPU, O_CLOEXEC);
    case KVM_GET_STATS_FD:
        return install_result(ret, PRELOAD_STATS, 0);
    case KVM_CREATE_GUEST_MEMFD:
        return install_result(ret, PRELOAD_MEMORY, 0);
    default:
        return ret;
    }
}

static int vcpu_ioctl(struct preload_fd *e, unsigned long request, void *arg)
{
    if (request == KVM_RUN) {
        return run_vcpu(e, arg);
    }
    if (request == KVM_GET_STATS_FD) {
        return install_result(preload_lib.ioctl(preload_active(), e->soft, request, arg), PRELOAD_STATS, 0);
    }
    return preload_lib.ioctl(preload_active(), e->soft, request, arg);
}

static int dispatch(struct preload_fd *e, unsigned long request, void *arg)
{
    int ret;

    switch (e->kind) {
    case PRELOAD_SYSTEM:
        ret = preload_lib.ioctl(preload_active(), e->soft, request, arg);
        return request == KVM_CREATE_VM ? install_result(ret, PRELOAD_VM, O_CLOEXEC) : ret;
    case PRELOAD_VM:
        return vm_ioctl(e, request, arg);
    case PRELOAD_VCPU:
        return vcpu_ioctl(e, request, arg);
    case PRELOAD_STATS:
    case PRELOAD_MEMORY:
        break;
    }
    return -ENOTTY;
}

/* Requests that the engine does not have are named once in the trace. */
static void name_unknown(const struct preload_fd *e, unsigned long request)
{
    static _Atomic unsigned char named[256];
    const char *name = "no request of KVM's that is known";
    unsigned n;
    const struct softkvm_abi_ioctl *list = preload_lib.abi_ioctls(&n);

    for (unsigned i = 0; i < n; i++) {
        if ((uint32_t)list[i].number == request) {
            if (list[i].is_there) {
                return;
            }
            name = list[i].name;
        }
    }
    if (!atomic_exchange(&named[request & 0xff], 1)) {
        preload_trace("ioctl 0x%lx (%s) of a %s descriptor: not there, answered as a kernel without it\n", request,
                      name, e->kind == PRELOAD_SYSTEM ? "system" : e->kind == PRELOAD_VM ? "VM" : "vCPU");
    }
}

/* The generic ioctls that the kernel answers for any file. */
static bool is_generic(unsigned long request)
{
    return request == FIOCLEX || request == FIONCLEX || request == FIONBIO || request == FIOASYNC;
}

int preload_ioctl(int fd, struct preload_fd *e, unsigned long request, void *arg)
{
    int ret;

    request = (uint32_t)request;
    if (preload_is_foreign(e)) {
        /* A VM belongs to the address space that made it; /dev/kvm is everybody's. */
        ret = e->kind == PRELOAD_SYSTEM ? preload_adopt(fd) : -EIO;
        e = preload_find(fd);
        if (ret < 0 || !e) {
            return ret < 0 ? ret : -EBADF;
        }
    }
    ret = dispatch(e, request, arg);
    if (ret == -ENOTTY || ret == -EINVAL) {
        name_unknown(e, request);
    }
    return ret;
}

/* A KVM request failed on what is no terminal: is it ours, from another process? */
static int try_stranger(int fd, unsigned long request, void *arg)
{
    int ret = preload_adopt_stranger(fd);
    struct preload_fd *e = ret == 0 ? preload_find(fd) : NULL;

    if (e) {
        ret = preload_ioctl(fd, e, request, arg);
    }
    return (int)preload_result(ret);
}

PRELOAD_EXPORT int ioctl(int fd, unsigned long request, ...)
{
    struct preload_fd *e = preload_find(fd);
    va_list args;
    void *arg;
    int ret;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (!e || is_generic((uint32_t)request)) {
        ret = real_ioctl()(fd, request, arg);
        return ret < 0 && errno == ENOTTY && _IOC_TYPE(request) == KVMIO ? try_stranger(fd, request, arg)
                                                                         : ret;
    }
    return (int)preload_result(preload_ioctl(fd, e, request, arg));
}
