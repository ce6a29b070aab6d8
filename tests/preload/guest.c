#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

const uint8_t guest_counts[6] = {0xfe, 0x06, 0x00, 0x20, 0xeb, 0xfa};
const uint8_t guest_reads[4] = {0xa0, 0x00, 0x20, 0xf4};

static unsigned count, failures;

bool tap(bool ok, const char *what)
{
    printf("%sok %u - %s\n", ok ? "" : "not ", ++count, what);
    fflush(stdout);
    failures += !ok;
    return ok;
}

bool tap_fails(long result, int expected, const char *what)
{
    int got = result < 0 ? errno : 0;

    if (got != expected) {
        printf("# result %ld, errno %d (%s), expected %d (%s)\n", result, got, strerror(got), expected,
               strerror(expected));
    }
    return tap(result < 0 && got == expected, what);
}

int tap_end(void)
{
    printf("1..%u\n", count);
    return failures != 0;
}

static bool set_up(struct guest *g)
{
    struct kvm_userspace_memory_region region = {.memory_size = g->ram_size};
    struct kvm_sregs sregs;

    region.userspace_addr = (uintptr_t)g->ram;
    if (ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) {
        return false;
    }
    g->vcpu = ioctl(g->vm, KVM_CREATE_VCPU, 0);
    g->run_size = (size_t)ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    g->run = mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
    if (g->vcpu < 0 || g->run == MAP_FAILED || ioctl(g->vcpu, KVM_GET_SREGS, &sregs) != 0) {
        return false;
    }
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    return ioctl(g->vcpu, KVM_SET_SREGS, &sregs) == 0;
}

bool guest_make(struct guest *g, size_t ram_size)
{
    memset(g, 0, sizeof(*g));
    g->ram_size = ram_size;
    g->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    g->vm = g->kvm < 0 ? -1 : ioctl(g->kvm, KVM_CREATE_VM, 0);
    g->ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return g->vm >= 0 && g->ram != MAP_FAILED && set_up(g);
}

void guest_drop(struct guest *g)
{
    munmap(g->run, g->run_size);
    munmap(g->ram, g->ram_size);
    close(g->vcpu);
    close(g->vm);
    close(g->kvm);
}

void guest_code(struct guest *g, const void *code, size_t n)
{
    struct kvm_regs regs = {.rip = 0x1000, .rflags = 2, .rsp = 0x800};

    memcpy(g->ram + 0x1000, code, n);
    if (ioctl(g->vcpu, KVM_SET_REGS, &regs) != 0) {
        perror("# KVM_SET_REGS");
    }
}

bool in_child(void (*fn)(void *), void *arg)
{
    int status = -1;
    pid_t pid = fork();

    if (pid == 0) {
        alarm(60);
        fn(arg);
        _exit(0);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid) {
        return false;
    }
    if (status) {
        printf("# the child ended with status 0x%x\n", (unsigned)status);
    }
    return status == 0;
}
