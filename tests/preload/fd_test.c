/* Paths and descriptors. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "guest.h"

static int api_version(int fd)
{
    int version = fd < 0 ? -1 : ioctl(fd, KVM_GET_API_VERSION, 0);

    if (fd >= 0) {
        close(fd);
    }
    return version;
}

void test_paths(void)
{
    int dev = open("/dev", O_RDONLY | O_DIRECTORY);
    struct stat st, again;
    int fd = open("/dev/kvm", O_RDWR);

    tap(stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && st.st_rdev == makedev(10, 232),
        "stat: a character device, 10:232");
    tap(lstat("/dev/kvm", &st) == 0 && fstat(fd, &again) == 0 && again.st_rdev == st.st_rdev,
        "lstat and fstat say the same");
    tap(access("/dev/kvm", R_OK | W_OK) == 0, "access: it may be read and written");
    tap_fails(access("/dev/kvm", X_OK), EACCES, "access: but not executed");
    tap(api_version(fd) == 12, "open");
    tap(api_version(openat(dev, "kvm", O_RDWR)) == 12, "openat, relative to /dev");
    tap(api_version(open("/dev/../dev//./kvm", O_RDWR)) == 12, "open, spelt otherwise");
    tap_fails(open("/dev/kvm", O_RDONLY | O_DIRECTORY), ENOTDIR, "open as a folder");
    tap_fails(open("/dev/kvm-none", O_RDWR), ENOENT, "a longer name is another file");
    tap_fails(openat(dev, "none/kvm", O_RDWR), ENOENT, "and so is one in another folder");
    close(dev);
}

static void test_flags(struct guest *g)
{
    int plain = open("/dev/kvm", O_RDWR);

    tap(!(fcntl(plain, F_GETFD) & FD_CLOEXEC) && (fcntl(g->kvm, F_GETFD) & FD_CLOEXEC),
        "O_CLOEXEC of /dev/kvm is the caller's choice");
    tap((fcntl(g->vm, F_GETFD) & FD_CLOEXEC) && (fcntl(g->vcpu, F_GETFD) & FD_CLOEXEC),
        "VMs and vCPUs are closed on exec");
    close(plain);
}

static void test_dup(struct guest *g)
{
    int copy = dup(g->vm), high = fcntl(g->vm, F_DUPFD_CLOEXEC, 700), over = open("/dev/null", O_RDWR), fd;

    tap(ioctl(copy, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "dup: another descriptor of the VM");
    tap(high >= 700 && ioctl(high, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "fcntl(F_DUPFD_CLOEXEC)");
    tap(dup2(g->vm, over) == over && ioctl(over, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "dup2 over a file");
    fd = open("/dev/null", O_RDWR);
    tap(dup3(fd, over, O_CLOEXEC) == over, "dup3 of a file over it");
    tap_fails(ioctl(over, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), ENOTTY, "is the file");
    close(fd);
    close(over);
    close(copy);
    tap_fails(ioctl(copy, KVM_CHECK_EXTENSION, 1), EBADF, "closed is closed");
    fd = open("/dev/null", O_RDWR);
    tap_fails(ioctl(fd, KVM_CHECK_EXTENSION, 1), ENOTTY, "a file that gets the number is a file");
    close(fd);
    tap(close_range((unsigned)high, (unsigned)high + 10, 0) == 0, "close_range");
    tap_fails(ioctl(high, KVM_CHECK_EXTENSION, 1), EBADF, "closes it");
    tap(close_range(600, 800, CLOSE_RANGE_CLOEXEC) == 0 &&
            ioctl(g->vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "close_range that only marks");
}

static void test_files(struct guest *g)
{
    struct pollfd p = {.fd = g->vm, .events = POLLIN | POLLOUT};
    struct kvm_stats_header h;
    char byte = 0;
    int stats = ioctl(g->vcpu, KVM_GET_STATS_FD, NULL);

    tap_fails(read(g->vm, &byte, 1), EINVAL, "a VM cannot be read");
    tap_fails(write(g->vcpu, &byte, 1), EINVAL, "nor a vCPU be written");
    tap(poll(&p, 1, 0) == 1 && p.revents == (POLLIN | POLLOUT), "poll: ready, as files without a wait are");
    tap(read(stats, &h, sizeof(h)) == sizeof(h) && h.num_desc > 10, "statistics: read");
    tap(pread(stats, &byte, 1, h.id_offset) == 1 && byte == 'k', "statistics: pread");
    tap_fails(pread(stats, &byte, 1, -1), EINVAL, "statistics: pread before the start");
    tap_fails(ioctl(stats, KVM_RUN, 0), ENOTTY, "statistics take no requests");
    close(stats);
    tap_fails(ioctl(g->vm, KVM_RUN, 0), ENOTTY, "a VM does not run");
    tap_fails(ioctl(g->vcpu, KVM_CREATE_VCPU, 0), EINVAL, "a vCPU makes none");
}

static void test_mappings(struct guest *g)
{
    uint8_t *room = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct kvm_run *run = mmap(room + 0x10000, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, g->vcpu, 0);

    tap((uint8_t *)run == room + 0x10000, "mmap: MAP_FIXED is where it says");
    g->run->request_interrupt_window = 1;
    tap(run != MAP_FAILED && run->request_interrupt_window == 1, "and shows the same page");
    g->run->request_interrupt_window = 0;
    tap(mprotect(run, 4096, PROT_READ) == 0 && run->request_interrupt_window == 0, "mprotect of it");
    tap(munmap(room, 1 << 20) == 0, "munmap with what is around it");
    guest_code(g, guest_reads, sizeof(guest_reads));
    tap(ioctl(g->vcpu, KVM_RUN, 0) == 0 && g->run->exit_reason == KVM_EXIT_HLT, "the vCPU does not mind");
    tap_fails((long)mmap(NULL, 4096, PROT_READ, MAP_SHARED, g->vm, 0), ENODEV, "a VM cannot be mapped");
}

/* Over a socket and back: what arrives stands for the same VM. */
static void test_passing(struct guest *g)
{
    union {
        struct cmsghdr h;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    char byte = 'x';
    struct iovec io = {&byte, 1};
    struct msghdr m = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = control.room,
                       .msg_controllen = sizeof(control.room)};
    struct cmsghdr *c;
    int pair[2], fd = -1;

    memset(&control, 0, sizeof(control));
    c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &g->vm, sizeof(int));
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && sendmsg(pair[0], &m, 0) == 1 &&
        recvmsg(pair[1], &m, 0) == 1) {
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
    }
    tap(fd >= 0 && ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1, "passed over a socket: the same VM");
    close(fd);
    close(pair[0]);
    close(pair[1]);
}

static void on_alarm(int sig)
{
}

/* A handler that runs ends KVM_RUN, whichever call installed it. */
static void test_signals(struct guest *g)
{
    struct sigaction sa = {.sa_handler = on_alarm}, old;

    guest_code(g, guest_counts, sizeof(guest_counts));
    sigaction(SIGALRM, &sa, NULL);
    ualarm(20000, 0);
    tap_fails(ioctl(g->vcpu, KVM_RUN, 0), EINTR, "a signal with a handler ends KVM_RUN (sigaction)");
    tap(g->run->exit_reason == KVM_EXIT_INTR, "with KVM_EXIT_INTR");
    tap(sigaction(SIGALRM, NULL, &old) == 0 && old.sa_handler == on_alarm && !(old.sa_flags & SA_SIGINFO),
        "sigaction gives back what was set");
    signal(SIGALRM, on_alarm);
    ualarm(20000, 0);
    tap_fails(ioctl(g->vcpu, KVM_RUN, 0), EINTR, "a signal with a handler ends KVM_RUN (signal)");
    tap(signal(SIGALRM, SIG_DFL) == on_alarm, "signal gives back what was set");
    alarm(120);
}

void test_descriptors(void)
{
    struct guest g, second;

    if (!tap(guest_make(&g, 1 << 20) && guest_make(&second, 1 << 20), "two VMs, each with a /dev/kvm of its own")) {
        return;
    }
    test_flags(&g);
    test_dup(&g);
    test_files(&g);
    test_mappings(&g);
    test_passing(&g);
    test_signals(&g);
    guest_drop(&g);
    guest_code(&second, guest_reads, sizeof(guest_reads));
    tap(ioctl(second.vcpu, KVM_RUN, 0) == 0 && second.run->exit_reason == KVM_EXIT_HLT, "one VM outlives the other");
    close(second.kvm);
    close(second.vm);
    guest_code(&second, guest_reads, sizeof(guest_reads));
    tap(ioctl(second.vcpu, KVM_RUN, 0) == 0 && second.run->exit_reason == KVM_EXIT_HLT,
        "a vCPU outlives the descriptor of its VM");
    second.kvm = second.vm = -1;
    guest_drop(&second);
}
