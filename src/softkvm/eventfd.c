/*
 * Event counters by descriptor (eventfd.h). What the kernel's KVM asks of the file behind a descriptor is
 * asked here through kcmp and /proc; where a sandbox has neither, any descriptor is believed to be one,
 * and any two the same.
 */
#include "softkvm/eventfd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* False only when the kernel says that it is something else. */
static bool is_eventfd(int fd)
{
    char path[40], target[64];
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    n = readlink(path, target, sizeof(target) - 1);
    if (n < 0) {
        return true;
    }
    target[n] = '\0';
    return strcmp(target, "anon_inode:[eventfd]") == 0;
}

int kvm_eventfd_get(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    if (copy < 0) {
        return -errno;
    }
    if (!is_eventfd(copy)) {
        close(copy);
        return -EINVAL;
    }
    return copy;
}

/* The kernel numbers event counters: "eventfd-id: N" of fdinfo. -1 where it does not say. */
static long eventfd_id(int fd)
{
    char path[48], line[80];
    long id = -1;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
    f = fopen(path, "re");
    while (f && id < 0 && fgets(line, sizeof(line), f)) {
        (void)!sscanf(line, "eventfd-id: %ld", &id);
    }
    if (f) {
        fclose(f);
    }
    return id;
}

bool kvm_eventfd_same(int a, int b)
{
    pid_t pid = getpid();
    long r = syscall(SYS_kcmp, pid, pid, KCMP_FILE, a, b);

    if (r >= 0) {
        return r == 0;
    }
    return eventfd_id(a) == eventfd_id(b);
}

void kvm_eventfd_signal(int fd)
{
    const uint64_t one = 1;
    ssize_t n;

    do {
        n = write(fd, &one, sizeof(one));
    } while (n < 0 && errno == EINTR);
}

uint64_t kvm_eventfd_take(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t count = 0;

    /* The descriptor may be a blocking one of user space's, who may also read it. */
    if (poll(&p, 1, 0) != 1 || !(p.revents & POLLIN) || read(fd, &count, sizeof(count)) < 0) {
        return 0;
    }
    return count;
}
