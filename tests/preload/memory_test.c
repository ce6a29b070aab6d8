/* What a program does to guest memory while a VM has it. */
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

/* AL as the guest reads it at 0x2000; -1: KVM_RUN failed (errno), -2: another exit. */
static int guest_byte(struct guest *g)
{
    struct kvm_regs regs;

    guest_code(g, guest_reads, sizeof(guest_reads));
    if (ioctl(g->vcpu, KVM_RUN, 0) != 0) {
        return -1;
    }
    ioctl(g->vcpu, KVM_GET_REGS, &regs);
    return g->run->exit_reason == KVM_EXIT_HLT ? (int)(regs.rax & 0xff) : -2;
}

static void test_discard(struct guest *g)
{
    g->ram[0x2000] = 42;
    tap(guest_byte(g) == 42, "the guest reads what is there");
    madvise(g->ram + 0x2000, 4096, MADV_DONTNEED);
    tap(guest_byte(g) == 0, "madvise(MADV_DONTNEED): zeros");
    g->ram[0x2000] = 43;
    tap(guest_byte(g) == 43, "and what comes then");
    if (mmap(g->ram + 0x2000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED) {
        tap(false, "mmap");
        return;
    }
    tap(guest_byte(g) == 0, "mmap over it: the new page");
}

static void test_rights(struct guest *g)
{
    g->ram[0x2000] = 9;
    mprotect(g->ram + 0x2000, 4096, PROT_NONE);
    tap_fails(guest_byte(g), EFAULT, "mprotect(PROT_NONE): EFAULT");
    mprotect(g->ram + 0x2000, 4096, PROT_READ);
    tap(guest_byte(g) == 9, "PROT_READ: it can be read");
    guest_code(g, guest_counts, sizeof(guest_counts));
    tap_fails(ioctl(g->vcpu, KVM_RUN, 0), EFAULT, "and not written: EFAULT");
    mprotect(g->ram + 0x2000, 4096, PROT_READ | PROT_WRITE);
    tap(guest_byte(g) == 9, "back again");
}

static void test_move(struct guest *g)
{
    uint8_t *moved;

    g->ram[0x2000] = 77;
    moved = mremap(g->ram + 0x2000, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED,
                   mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    tap(moved != MAP_FAILED && moved[0] == 77, "mremap takes the page away");
    tap_fails(guest_byte(g), EFAULT, "the guest gets EFAULT");
    moved = mremap(moved, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, g->ram + 0x2000);
    tap(moved == g->ram + 0x2000 && guest_byte(g) == 77, "and the page when it is back");
}

static void test_file(void)
{
    int fd = memfd_create("ram", 0);
    struct guest g;
    uint8_t *p;

    if (!guest_make(&g, 1 << 20) || ftruncate(fd, 1 << 20) != 0) {
        tap(false, "a VM with a file for memory");
        return;
    }
    p = mmap(g.ram, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    p[0x2000] = 5;
    tap(guest_byte(&g) == 5, "a file mapped over guest memory");
    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0x2000, 4096);
    tap(guest_byte(&g) == 0, "a hole punched into it: zeros");
    p[0x2000] = 6;
    tap(guest_byte(&g) == 6, "and what comes then");
    if (ftruncate(fd, 0x2000) == 0) {
        tap_fails(guest_byte(&g), EFAULT, "the file's end cut off: EFAULT");
    }
    guest_drop(&g);
    close(fd);
}

struct running {
    struct guest *g;
    int result, error;
};

static void *run_thread(void *arg)
{
    struct running *r = arg;

    r->result = ioctl(r->g->vcpu, KVM_RUN, 0);
    r->error = errno;
    return NULL;
}

/* Memory that goes while the guest writes it. */
static void test_unmap_running(void)
{
    struct guest g;
    struct running r = {&g, 0, 0};
    uint8_t before;
    pthread_t t;

    if (!guest_make(&g, 1 << 20)) {
        tap(false, "a VM");
        return;
    }
    guest_code(&g, guest_counts, sizeof(guest_counts));
    pthread_create(&t, NULL, run_thread, &r);
    for (int i = 0; i < 200; i++) {
        madvise(g.ram + 0x2000, 4096, MADV_DONTNEED);
        mprotect(g.ram + 0x2000, 4096, PROT_READ);
        mprotect(g.ram + 0x2000, 4096, PROT_READ | PROT_WRITE);
        if (i == 0) {
            usleep(20000);
        }
        if (((volatile struct kvm_run *)g.run)->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
            break;
        }
    }
    before = g.ram[0x2000];
    munmap(g.ram + 0x2000, 4096);
    pthread_join(t, NULL);
    (void)before;
    tap(r.result == -1 && r.error == EFAULT, "munmap under a running vCPU: KVM_RUN ends with EFAULT");
    guest_drop(&g);
}

void test_memory(void)
{
    struct guest g;

    if (!tap(guest_make(&g, 1 << 20), "a VM")) {
        return;
    }
    test_discard(&g);
    test_rights(&g);
    test_move(&g);
    guest_drop(&g);
    test_file();
    test_unmap_running();
}
