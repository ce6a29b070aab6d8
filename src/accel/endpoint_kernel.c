/*
 * The endpoint of the kernel's KVM: every call is the system call of the same name on /dev/kvm and the
 * descriptors that it gives. Holds no state but itself; thread-safe as the kernel is.
 */
#include "accel/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int kernel_open_system(struct accel_endpoint *ep)
{
    int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

static int kernel_ioctl(struct accel_endpoint *ep, int fd, unsigned long request, unsigned long arg)
{
    int ret = ioctl(fd, request, arg);

    return ret < 0 ? -errno : ret;
}

static void *kernel_mmap(struct accel_endpoint *ep, int fd, size_t length, off_t offset, int *error)
{
    void *p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);

    if (p == MAP_FAILED) {
        *error = -errno;
        return NULL;
    }
    return p;
}

static void kernel_munmap(struct accel_endpoint *ep, void *addr, size_t length)
{
    munmap(addr, length);
}

static ssize_t kernel_pread(struct accel_endpoint *ep, int fd, void *buf, size_t length, off_t offset)
{
    ssize_t n = pread(fd, buf, length, offset);

    return n < 0 ? -errno : n;
}

static void kernel_close(struct accel_endpoint *ep, int fd)
{
    close(fd);
}

static void kernel_kick(struct accel_endpoint *ep, int vcpu_fd, pthread_t thread)
{
    pthread_kill(thread, ACCEL_KICK_SIGNAL);
}

static int kernel_fallocate(struct accel_endpoint *ep, int fd, int mode, off_t offset, off_t length)
{
    return fallocate(fd, mode, offset, length) < 0 ? -errno : 0;
}

static void kernel_free(struct accel_endpoint *ep)
{
    free(ep);
}

static const struct accel_endpoint_ops kernel_ops = {
    .name = "kvm",
    .open_system = kernel_open_system,
    .ioctl = kernel_ioctl,
    .mmap = kernel_mmap,
    .munmap = kernel_munmap,
    .pread = kernel_pread,
    .close = kernel_close,
    .kick = kernel_kick,
    .fallocate = kernel_fallocate,
    .free = kernel_free,
};

/*
 * Make the endpoint of the kernel's KVM.
 * Returns: the endpoint, freed by its ops->free, or NULL when memory is short.
 * Lock: none. Source: own.
 */
struct accel_endpoint *accel_endpoint_kernel_new(void)
{
    struct accel_endpoint *ep = calloc(1, sizeof(*ep));

    if (ep) {
        ep->ops = &kernel_ops;
    }
    return ep;
}
