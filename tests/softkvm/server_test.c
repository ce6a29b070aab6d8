/*
 * Rules of the slot and device calls that only many slots or a running guest show: 32,000 slots and what one more
 * costs, device accesses in pieces, ids of address spaces, host-side writes into rings.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"

#define DATA 0x400000u
#define MANY 32000u

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

/* Median nanoseconds of adding and removing slot `id`, over 101 times. */
static uint64_t cost(struct mini *m, uint32_t id, void *mem)
{
    uint64_t t[101];

    for (int i = 0; i < 101; i++) {
        uint64_t start = now_ns();

        assert_int_equal(mini_slot(m, id, 0, UINT64_C(1) << 40, 4096, mem), 0);
        assert_int_equal(mini_slot(m, id, 0, 0, 0, mem), 0);
        t[i] = now_ns() - start;
    }
    qsort(t, 101, sizeof(t[0]), by_value);
    return t[50];
}

static void many_slots(void **state)
{
    struct mini *m = mini_vm(0);
    void *mem = mini_pages(4096);
    uint64_t few, many;

    mini_vcpus(m, 1);
    few = cost(m, 32763, mem);
    for (uint32_t i = 1; i <= MANY; i++) {
        assert_int_equal(mini_slot(m, i, 0, DATA + i * UINT64_C(8192), 4096, mem), 0);
    }
    many = cost(m, 32763, mem);
    printf("# one slot more and less: %llu ns among few, %llu ns among %u\n", (unsigned long long)few,
           (unsigned long long)many, MANY);
    assert_true(many < 8 * few + 20000); /* a copy of all would be hundreds of times as much */
    assert_int_equal(mini_slot(m, 32764, 0, UINT64_C(1) << 40, 4096, mem), -EINVAL);
    mini_free(m);
    munmap(mem, 4096);
}

/* 32-bit code: EDI an address. An 8-byte store by FPU, a 4-byte load across two pages. */
static const uint8_t wide_code[] = {0xd9, 0xe8, 0xdd, 0x1f, 0xf4};  /* fld1; fstp qword [edi]; hlt */
static const uint8_t cross_code[] = {0x8b, 0x07, 0xf4};             /* mov eax, [edi]; hlt */
static const uint8_t store_code[] = {0x89, 0x07, 0xf4};             /* mov [edi], eax; hlt */

static void start(struct mini *m, const void *code, size_t n, uint64_t at, uint64_t rax)
{
    struct kvm_regs r = {.rdi = at, .rax = rax};

    mini_start(m, 0, code, n, &r);
}

static void device_pieces(void **state)
{
    struct mini *m = mini_vm(0);
    struct kvm_regs r;
    uint64_t one = 0x3ff0000000000000;

    mini_vcpus(m, 1);
    start(m, wide_code, sizeof(wide_code), DATA, 0);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.len, 8);
    assert_int_equal(m->run[0]->mmio.is_write, 1);
    assert_memory_equal(m->run[0]->mmio.data, &one, 8);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    /* Across two pages: two fragments, in order, consumed on re-entry. */
    start(m, cross_code, sizeof(cross_code), DATA + 0xffd, 0);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.phys_addr, DATA + 0xffd);
    assert_int_equal(m->run[0]->mmio.len, 3);
    memcpy(m->run[0]->mmio.data, "\x11\x22\x33", 3);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.phys_addr, DATA + 0x1000);
    assert_int_equal(m->run[0]->mmio.len, 1);
    m->run[0]->mmio.data[0] = 0x44;
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    mini_regs(m, 0, &r);
    assert_int_equal(r.rax, 0x44332211);
    start(m, store_code, sizeof(store_code), DATA + 0xfff, 0x55667788);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.len, 1);
    assert_int_equal(m->run[0]->mmio.data[0], 0x88);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.len, 3);
    assert_memory_equal(m->run[0]->mmio.data, "\x77\x66\x55", 3);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    mini_free(m);
}

/* A slot that goes and comes under a device's address: the first access after either is served rightly. */
static void generations(void **state)
{
    struct mini *m = mini_vm(0);
    char *mem = mini_pages(4096);

    mini_vcpus(m, 1);
    for (uint32_t i = 0; i < 40; i++) {
        start(m, store_code, sizeof(store_code), DATA, i);
        assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
        assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
        assert_int_equal(mini_slot(m, 1, 0, DATA, 4096, mem), 0);
        start(m, store_code, sizeof(store_code), DATA, i + 1000);
        assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
        assert_int_equal(*(volatile uint32_t *)(void *)mem, i + 1000);
        assert_int_equal(mini_slot(m, 1, 0, 0, 0, mem), 0);
    }
    mini_free(m);
    munmap(mem, 4096);
}

/* The hypervisor's own stores (the clock page) are told in the ring of the vCPU that they are for. */
static void clock_in_ring(void **state)
{
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry e;
    } msr = {{.nmsrs = 1}, {.index = 0x4b564d01}};
    struct mini *m = mini_vm(0);
    char *mem = mini_pages(16 * 4096);
    struct kvm_dirty_gfn *ring;
    static const uint8_t hlt[] = {0xf4};
    int e = 0;

    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 4096), 0);
    mini_vcpus(m, 2);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, DATA, 16 * 4096, mem), 0);
    ring = softkvm_mmap(m->s, m->vcpu[1], 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
                        KVM_DIRTY_LOG_PAGE_OFFSET * 4096, &e);
    assert_non_null(ring);
    msr.e.data = (DATA + 7 * 4096) | 1;
    assert_int_equal(mini_cpu_ioctl(m, 1, KVM_SET_MSRS, &msr), 1);
    mini_start(m, 1, hlt, sizeof(hlt), NULL);
    assert_int_equal(mini_run(m, 1), KVM_EXIT_HLT);
    assert_int_equal(ring[0].flags, KVM_DIRTY_GFN_F_DIRTY);
    assert_int_equal(ring[0].slot, 1);
    assert_int_equal(ring[0].offset, 7);
    mini_free(m);
    munmap(mem, 16 * 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_slots),
        cmocka_unit_test(device_pieces),
        cmocka_unit_test(generations),
        cmocka_unit_test(clock_in_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
