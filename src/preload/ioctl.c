/*
 * ioctl() of engine descriptors: new descriptors become real ones, and a signal that arrives during
 * KVM_RUN ends it with EINTR, as in the kernel. The engine cannot see signals; the hook on sigaction()
 * (signal.c) wraps handlers, and a wrapped handler that runs on a thread inside KVM_RUN kicks it.
 */
#include "preload/preload.h"

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "preload/real.h"

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
        softkvm_interrupt(s, e->soft); /* it came before `active` was seen */
    }
    ret = softkvm_ioctl(s, e->soft, KVM_RUN, arg);
    preload_run.active = 0;
    preload_cancel_allow(state);
    return ret;
}

static int install_result(int soft, enum preload_kind kind)
{
    int fd;

    if (soft < 0) {
        return soft;
    }
    fd = preload_install(soft, kind, true);
    return fd < 0 ? -errno : fd;
}

int preload_ioctl(struct preload_fd *e, unsigned long request, void *arg)
{
    struct softkvm *s = preload_active();
    int ret;

    if (e->owner != getpid() && e->kind != PRELOAD_SYSTEM) {
        return -EIO; /* a VM belongs to the process that made it */
    }
    switch (request) {
    case KVM_RUN:
        return e->kind == PRELOAD_VCPU ? run_vcpu(e, arg) : softkvm_ioctl(s, e->soft, request, arg);
    case KVM_CREATE_VM:
        ret = softkvm_ioctl(s, e->soft, request, arg);
        return e->kind == PRELOAD_SYSTEM ? install_result(ret, PRELOAD_VM) : ret;
    case KVM_CREATE_VCPU:
        ret = softkvm_ioctl(s, e->soft, request, arg);
        return e->kind == PRELOAD_VM ? install_result(ret, PRELOAD_VCPU) : ret;
    case KVM_GET_STATS_FD:
        return install_result(softkvm_ioctl(s, e->soft, request, arg), PRELOAD_OTHER);
    default:
        return softkvm_ioctl(s, e->soft, request, arg);
    }
}

PRELOAD_EXPORT int ioctl(int fd, unsigned long request, ...)
{
    struct preload_fd *e = preload_find(fd);
    va_list args;
    void *arg;

    va_start(args, request);
    arg = va_arg(args, void *);
    va_end(args);
    if (!e) {
        return real_ioctl()(fd, request, arg);
    }
    return (int)preload_result(preload_ioctl(e, request, arg));
}
