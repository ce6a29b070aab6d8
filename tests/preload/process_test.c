/* Fork, vfork and exec: whose VM it is. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guest.h"

/* In a forked child: the parent's VM is not to be had, its /dev/kvm is. */
static void child_of_fork(void *arg)
{
    struct guest *g = arg, own;

    if (ioctl(g->vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) != -1 || errno != EIO) {
        _exit(1);
    }
    if (ioctl(g->vcpu, KVM_RUN, 0) != -1 || errno != EIO) {
        _exit(2);
    }
    if (dup(g->vm) < 0 || close(g->vm) != 0 || close(g->vcpu) != 0) {
        _exit(3);
    }
    if (ioctl(g->kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION || ioctl(g->kvm, KVM_CREATE_VM, 0) < 0) {
        _exit(4);
    }
    if (!guest_make(&own, 1 << 20)) {
        _exit(5);
    }
    guest_code(&own, guest_reads, sizeof(guest_reads));
    if (ioctl(own.vcpu, KVM_RUN, 0) != 0 || own.run->exit_reason != KVM_EXIT_HLT) {
        _exit(6);
    }
}

static void grandchild(void *arg)
{
    struct guest own;

    if (!guest_make(&own, 1 << 20) || !in_child(child_of_fork, &own)) {
        _exit(1);
    }
}

/* A vfork child shares memory, but not descriptors. */
static bool vfork_closes(struct guest *g)
{
    int status = -1;
    pid_t pid = vfork();

    if (pid == 0) {
        close(g->vm);
        close(g->vcpu);
        close_range(3, ~0u, 0);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    guest_code(g, guest_reads, sizeof(guest_reads));
    return status == 0 && ioctl(g->vm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) == 1 &&
           ioctl(g->vcpu, KVM_RUN, 0) == 0 && g->run->exit_reason == KVM_EXIT_HLT;
}

static bool exec_inherits(struct guest *g, const char *self)
{
    int kvm = open("/dev/kvm", O_RDWR), vm = dup(g->vm), status = -1;
    char a[16], b[16];
    pid_t pid;

    snprintf(a, sizeof(a), "%d", kvm);
    snprintf(b, sizeof(b), "%d", vm);
    pid = fork();
    if (pid == 0) {
        execl(self, self, "--inherited", a, b, (char *)NULL);
        _exit(100);
    }
    waitpid(pid, &status, 0);
    if (status) {
        printf("# status 0x%x\n", (unsigned)status);
    }
    close(kvm);
    close(vm);
    return status == 0;
}

void test_processes(const char *self)
{
    struct guest g;

    if (!tap(guest_make(&g, 1 << 20), "a VM")) {
        return;
    }
    tap(in_child(child_of_fork, &g), "fork: EIO for the parent's VM; /dev/kvm and a VM of its own work");
    guest_code(&g, guest_reads, sizeof(guest_reads));
    g.ram[0x2000] = 7;
    tap(ioctl(g.vcpu, KVM_RUN, 0) == 0 && g.run->exit_reason == KVM_EXIT_HLT, "the parent's VM goes on");
    tap(in_child(grandchild, NULL), "a child of a child");
    tap(vfork_closes(&g), "what a vfork child closes stays open here");
    tap(exec_inherits(&g, self), "exec: /dev/kvm works, the VM answers EIO");
    guest_drop(&g);
}
