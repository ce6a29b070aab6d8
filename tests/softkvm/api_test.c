/*
 * The public face: descriptors and their lives, answers to wrong calls in KVM's words, statistics in
 * the binary format, and every allocation of a VM's start made to fail once.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "fake_cpu.h"
#include "softkvm/inspect.h"
#include "softkvm/softkvm.h"

static struct softkvm *engine(void)
{
    char err[128];
    struct softkvm *s = softkvm_new(NULL, err, sizeof(err));

    assert_non_null(s);
    return s;
}

static void wrong_calls(void **state)
{
    struct softkvm *s = engine();
    int kvm = softkvm_open_system(s), vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL);
    int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    const struct {
        int fd;
        unsigned long request;
        uintptr_t arg;
        int want;
    } rows[] = {
        {99, KVM_RUN, 0, -EBADF},
        {-1, KVM_RUN, 0, -EBADF},
        {kvm, KVM_GET_API_VERSION, 0, 12},
        {kvm, KVM_GET_API_VERSION, 1, -EINVAL},
        {kvm, KVM_CREATE_VM, 77, -EINVAL},
        {kvm, KVM_GET_VCPU_MMAP_SIZE, 0, 3 * 4096},
        {kvm, KVM_GET_VCPU_MMAP_SIZE, 5, -EINVAL},
        {kvm, KVM_RUN, 0, -EINVAL},
        {kvm, KVM_CHECK_EXTENSION, 99999, 0},
        {kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY, 1},
        {kvm, KVM_GET_SUPPORTED_CPUID, 0, -EFAULT},
        {kvm, KVM_GET_SUPPORTED_CPUID, 0xdead0000, -EFAULT},
        {vm, KVM_RUN, 0, -ENOTTY},
        {vm, KVM_CREATE_VCPU, 0, -EEXIST},
        {vm, KVM_CREATE_VCPU, 100000, -EINVAL},
        {vm, KVM_SET_USER_MEMORY_REGION, 0, -EFAULT},
        {vm, KVM_SET_USER_MEMORY_REGION, 0xdead0000, -EFAULT},
        {vm, KVM_GET_DIRTY_LOG, 8, -EFAULT},
        {vm, KVM_SET_IDENTITY_MAP_ADDR, (uintptr_t) & (uint64_t){0}, -EINVAL},
        {vm, KVM_SET_NR_MMU_PAGES, 63, -EINVAL},
        {vm, KVM_SET_NR_MMU_PAGES, 64, 0},
        {vcpu, KVM_RUN, 1, -EINVAL},
        {vcpu, KVM_GET_REGS, 0, -EFAULT},
        {vcpu, KVM_SET_REGS, 0xdead0000, -EFAULT},
        {vcpu, KVM_CREATE_VM, 0, -EINVAL},
        {vcpu, _IO(0xAE, 0xfe), 0, -EINVAL},
        {vm, _IO(0xAE, 0xfe), 0, -ENOTTY},
    };

    assert_true(vm >= 0 && vcpu >= 0);
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        int got = softkvm_ioctl(s, rows[i].fd, rows[i].request, (void *)rows[i].arg);

        if (got != rows[i].want) {
            fail_msg("row %zu: %d, wanted %d", i, got, rows[i].want);
        }
    }
    softkvm_free(s);
}

/* A VM outlives its descriptor while a vCPU's is open, a vCPU while its pages are mapped. */
static void lives(void **state)
{
    struct softkvm *s = engine();
    int kvm = softkvm_open_system(s), vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL), e = 0, again;
    int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    struct kvm_run *run = softkvm_mmap(s, vcpu, 3 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    struct kvm_regs regs;

    assert_non_null(run);
    assert_null(softkvm_mmap(s, vcpu, 4 * 4096, PROT_READ, MAP_SHARED, 0, &e));
    assert_int_equal(e, EINVAL);
    assert_null(softkvm_mmap(s, vm, 4096, PROT_READ, MAP_SHARED, 0, &e));
    assert_int_equal(e, ENODEV);
    assert_int_equal(softkvm_close(s, vm), 0);
    assert_int_equal(softkvm_close(s, vm), -EBADF);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_GET_REGS, &regs), 0);
    again = softkvm_dup(s, vcpu);
    assert_int_equal(softkvm_close(s, vcpu), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_GET_REGS, &regs), -EBADF);
    assert_int_equal(softkvm_ioctl(s, again, KVM_GET_REGS, &regs), 0);
    assert_int_equal(softkvm_close(s, again), 0);
    run->immediate_exit = 1; /* still mapped: still there */
    assert_int_equal(softkvm_munmap(s, run, 4096), -EINVAL);
    assert_int_equal(softkvm_munmap(s, run, 3 * 4096), 0);
    /* The lowest free number is taken again. */
    assert_int_equal(softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL), vm);
    softkvm_free(s);
}

static void kicks(void **state)
{
    struct softkvm *s = engine();
    int kvm = softkvm_open_system(s), vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL), e = 0;
    int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    struct kvm_run *run = softkvm_mmap(s, vcpu, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);

    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(run->exit_reason, KVM_EXIT_HLT);
    run->immediate_exit = 1;
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), -EINTR);
    assert_int_equal(run->exit_reason, KVM_EXIT_HLT); /* of the exit before: nothing has run */
    run->immediate_exit = 0;
    /* A kick alone asks to look at immediate_exit; an interruption ends the next run, once. */
    assert_int_equal(softkvm_kick(s, vcpu), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(softkvm_interrupt(s, vcpu), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), -EINTR);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(softkvm_kick(s, vm), -EINVAL);
    assert_int_equal(softkvm_kick(s, 1234), -EBADF);
    softkvm_free(s);
}

static void statistics(void **state)
{
    struct softkvm *s = engine();
    int kvm = softkvm_open_system(s), vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL);
    int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    int fd = softkvm_ioctl(s, vcpu, KVM_GET_STATS_FD, NULL);
    struct kvm_stats_header h;
    uint64_t exits = 0;
    char desc[sizeof(struct kvm_stats_desc) + 48];

    assert_true(fd >= 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(softkvm_read(s, fd, &h, sizeof(h), 0), sizeof(h));
    assert_int_equal(h.name_size, 48);
    assert_true(h.num_desc > 20);
    for (uint32_t i = 0; i < h.num_desc; i++) {
        const struct kvm_stats_desc *d = (const void *)desc;

        assert_int_equal(softkvm_read(s, fd, desc, sizeof(desc), h.desc_offset + i * sizeof(desc)),
                         sizeof(desc));
        assert_true(d->name[0] != 0);
        assert_int_equal(d->size, 1);
        if (!strcmp(d->name, "exits")) {
            assert_int_equal(softkvm_read(s, fd, &exits, 8, h.data_offset + d->offset), 8);
        }
    }
    assert_int_equal(exits, 1);
    assert_int_equal(softkvm_read(s, vcpu, &h, 8, 0), -EINVAL);
    assert_int_equal(softkvm_close(s, vm), 0);
    assert_int_equal(softkvm_close(s, vcpu), 0);
    assert_int_equal(softkvm_read(s, fd, &h, sizeof(h), 0), sizeof(h)); /* keeps the VM */
    softkvm_free(s);
}

static void cpuid_and_msrs(void **state)
{
    struct softkvm *s = engine();
    int kvm = softkvm_open_system(s), vm = softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL);
    int vcpu = softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    struct {
        struct kvm_cpuid2 h;
        struct kvm_cpuid_entry2 e[256];
    } c = {.h.nent = 3}, back = {.h.nent = 256};
    struct {
        struct kvm_msrs h;
        struct kvm_msr_entry e[3];
    } m = {.h.nmsrs = 3, .e = {{.index = 0x10a}, {.index = 0x12345678}, {.index = 0x8b}}};

    assert_int_equal(softkvm_ioctl(s, kvm, KVM_GET_SUPPORTED_CPUID, &c), -E2BIG);
    c.h.nent = 256;
    assert_int_equal(softkvm_ioctl(s, kvm, KVM_GET_SUPPORTED_CPUID, &c), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_SET_CPUID2, &c), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_GET_CPUID2, &back), 0);
    assert_int_equal(back.h.nent, c.h.nent);
    assert_memory_equal(back.e, c.e, c.h.nent * sizeof(c.e[0]));
    /* The list stops at the first register that is none. */
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_GET_MSRS, &m), 1);
    assert_int_equal(m.e[0].data & 1, 1);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_SET_CPUID2, &c), 0); /* the same again */
    c.e[1].ebx ^= 0x100;
    assert_int_equal(softkvm_ioctl(s, vcpu, KVM_SET_CPUID2, &c), -EINVAL);
    softkvm_free(s);
}

static long allocations_left;

static bool fail_nth(void *opaque)
{
    return allocations_left-- == 0;
}

/* One pass through a VM's life; returns 0, or the error that the failed allocation became. */
static int life(char *ram)
{
    struct softkvm_options o = {.size = sizeof(o), .fail_alloc = fail_nth,
                                .host_memory = UINT64_C(256) << 20};
    struct softkvm *s = softkvm_new(&o, NULL, 0);
    struct kvm_userspace_memory_region m = {1, KVM_MEM_LOG_DIRTY_PAGES, 0, 1 << 20, (uintptr_t)ram};
    int kvm, vm, vcpu, r;

    if (!s) {
        return -ENOMEM;
    }
    kvm = softkvm_open_system(s);
    vm = kvm < 0 ? kvm : softkvm_ioctl(s, kvm, KVM_CREATE_VM, NULL);
    r = vm < 0 ? vm : softkvm_ioctl(s, vm, KVM_CREATE_IRQCHIP, NULL);
    vcpu = r < 0 ? r : softkvm_ioctl(s, vm, KVM_CREATE_VCPU, NULL);
    r = vcpu < 0 ? vcpu : softkvm_ioctl(s, vm, KVM_SET_USER_MEMORY_REGION, &m);
    if (r >= 0) {
        m.guest_phys_addr = 1 << 20;
        r = softkvm_ioctl(s, vm, KVM_SET_USER_MEMORY_REGION, &m);
    }
    if (r >= 0) {
        m.memory_size = 0;
        r = softkvm_ioctl(s, vm, KVM_SET_USER_MEMORY_REGION, &m);
    }
    softkvm_free(s);
    return r;
}

static void failing_allocations(void **state)
{
    static char ram[1 << 20] __attribute__((aligned(4096)));
    long n = 0;
    int r;

    do {
        allocations_left = n++;
        r = life(ram);
        assert_true(r == 0 || r == -ENOMEM);
    } while (r < 0);
    assert_true(n > 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_calls), cmocka_unit_test(lives),
        cmocka_unit_test(kicks),       cmocka_unit_test(statistics),
        cmocka_unit_test(cpuid_and_msrs), cmocka_unit_test(failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
