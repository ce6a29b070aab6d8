/*
 * What a program sees of /dev/kvm through libc: run with the preload library it must be what the kernel gives. The
 * same program runs on a kernel's KVM.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "guest.h"

/* Executed by a test of descriptors over exec: an inherited /dev/kvm works, an inherited VM answers EIO. */
static int after_exec(char **argv)
{
    int kvm = atoi(argv[2]), vm = atoi(argv[3]);

    if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
        return 1;
    }
    if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) != -1 || errno != EIO) {
        return 2;
    }
    return ioctl(kvm, KVM_CREATE_VM, 0) < 0 ? 3 : 0;
}

int main(int argc, char **argv)
{
    struct guest g;

    if (argc == 4 && strcmp(argv[1], "--inherited") == 0) {
        return after_exec(argv);
    }
    alarm(120);
    if (!guest_make(&g, 1 << 20)) {
        printf("1..0 # skip no /dev/kvm: %s\n", strerror(errno));
        return 0;
    }
    guest_drop(&g);
    test_paths();
    test_descriptors();
    test_processes(argv[0]);
    test_memory();
    test_hostile();
    return tap_end();
}
