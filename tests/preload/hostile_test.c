/* A program that means ill, or is careless: it gets errors. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guest.h"

static uint64_t state = 88172645463325252u;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Requests of KVM's with nonsense for arguments, on every kind of descriptor. */
static void garbage(void *arg)
{
    static uint8_t room[65536];
    struct guest g;
    int fds[3];

    if (!guest_make(&g, 1 << 20)) {
        _exit(1);
    }
    fds[0] = g.kvm;
    fds[1] = g.vm;
    fds[2] = g.vcpu;
    for (int i = 0; i < 60000; i++) {
        unsigned nr = (unsigned)(rnd() & 0xff), size = (unsigned)(rnd() % 600);
        unsigned long request = _IOC(rnd() & 3, KVMIO, nr, rnd() & 1 ? size : 0);
        uintptr_t bad[] = {0, 8, UINTPTR_MAX - 64, (uintptr_t)room, (uintptr_t)room + sizeof(room) - 16, rnd(),
                           rnd() & 0x3f};

        if (nr == _IOC_NR(KVM_RUN)) {
            continue;
        }
        for (size_t n = 0; n < 256; n += 8) {
            uint64_t word = rnd() & 1 ? rnd() : rnd() & 0xff;

            memcpy(room + n, &word, 8);
        }
        (void)ioctl(fds[rnd() % 3], request, bad[rnd() % 7]);
        /* What it may have made: descriptors of VMs and vCPUs. */
        if (i % 512 == 0) {
            close_range((unsigned)g.vcpu + 1, ~0u, 0);
        }
    }
    _exit(0);
}

/* Descriptors left open, mappings left behind, threads in KVM_RUN at the end. */
static void *forever(void *arg)
{
    struct guest *g = arg;

    ioctl(g->vcpu, KVM_RUN, 0);
    return NULL;
}

static void leaks(void *arg)
{
    static struct guest g[40];
    pthread_t t;

    for (int i = 0; i < 40; i++) {
        if (!guest_make(&g[i], 1 << 20)) {
            _exit(1);
        }
    }
    guest_code(&g[3], guest_counts, sizeof(guest_counts));
    pthread_create(&t, NULL, forever, &g[3]);
    usleep(10000);
    exit(0);
}

/* Everything closed under a running vCPU. */
static void close_running(void *arg)
{
    struct guest g;
    pthread_t t;

    if (!guest_make(&g, 1 << 20)) {
        _exit(1);
    }
    guest_code(&g, guest_counts, sizeof(guest_counts));
    pthread_create(&t, NULL, forever, &g);
    usleep(10000);
    close(g.vm);
    close(g.vcpu);
    close(g.kvm);
    munmap(g.run, g.run_size);
    munmap(g.ram, g.ram_size);
    pthread_join(t, NULL); /* it ends since its memory is gone */
}

/* Opens and closes from two threads at once. */
static void *churn(void *arg)
{
    for (int i = 0; i < 300; i++) {
        int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0), copy = dup(vm);

        close(vm);
        if (ioctl(copy, KVM_CREATE_VCPU, 0) < 0) {
            *(int *)arg = errno;
        }
        close(copy);
        close(kvm);
    }
    return NULL;
}

static void churn_twice(void *arg)
{
    int bad[2] = {0, 0};
    pthread_t t[2];

    for (int i = 0; i < 2; i++) {
        pthread_create(&t[i], NULL, churn, &bad[i]);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
    }
    _exit(bad[0] || bad[1] ? 1 : 0);
}

void test_hostile(void)
{
    tap(in_child(garbage, NULL), "60000 requests of nonsense: errors, no crash");
    tap(in_child(leaks, NULL), "40 VMs left open, one of them running: a clean exit");
    tap(in_child(close_running, NULL), "everything closed and unmapped under a running vCPU");
    tap(in_child(churn_twice, NULL), "VMs made and dropped by two threads");
}
