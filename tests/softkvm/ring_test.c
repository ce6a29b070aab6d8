/*
 * Dirty rings: enabling, mapping, errors in KVM's order; the soft limit; harvest and reset in windows,
 * forwards, backwards and with stale entries; the bitmap beside it; and that no write of two running
 * vCPUs is missed while this thread harvests.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"
#include "softkvm/kvm_abi.h"

#define RING_BYTES  4096u
#define RING        (RING_BYTES / 16)
#define SOFT        (RING - 64)
#define RING_OFFSET (KVM_DIRTY_LOG_PAGE_OFFSET * 4096)
#define DATA        0x400000u
#define PAGES       1024u

/* EDI: first address, ECX: pages, EDX: step. Store, go on; HLT. */
static const uint8_t store_code[] = {
    0xff, 0x07,       /* inc dword [edi] */
    0x01, 0xd7,       /* add edi, edx */
    0x49, 0x75, 0xf9, /* dec ecx; jnz */
    0xf4,
};

/* The same for ever: EBX first, ESI pages. */
static const uint8_t loop_code[] = {
    0x89, 0xdf, 0x89, 0xf1, 0xff, 0x07, 0x01, 0xd7, 0x49, 0x75, 0xf9, 0xeb, 0xf3,
};

static struct kvm_dirty_gfn *map_ring(struct mini *m, unsigned i)
{
    int e = 0;
    void *p = softkvm_mmap(m->s, m->vcpu[i], RING_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, RING_OFFSET,
                           &e);

    assert_non_null(p);
    return p;
}

static struct mini *ring_vm(unsigned cpus, void **data)
{
    struct mini *m = mini_vm(0);

    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, RING_BYTES), 0);
    mini_vcpus(m, cpus);
    *data = mini_pages(PAGES * 4096);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, DATA, PAGES * 4096, *data), 0);
    return m;
}

static void check(struct mini *m)
{
    struct softkvm_check c = {.size = sizeof(c)};
    int r = mini_vm_ioctl(m, SOFTKVM_CHECK, &c);

    if (r) {
        fail_msg("%s", c.text);
    }
}

static void enabling(void **state)
{
    struct mini *m = mini_vm(0);
    int e = 0;

    assert_int_equal(mini_has(m, KVM_CAP_DIRTY_LOG_RING), 65536 * 16);
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 0), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 5000), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 2048), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 65536 * 32), -E2BIG);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), 0);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), -EINVAL);
    mini_vcpus(m, 1);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), -EINVAL); /* a slot exists */
    assert_null(softkvm_mmap(m->s, m->vcpu[0], RING_BYTES, PROT_READ, MAP_PRIVATE, RING_OFFSET, &e));
    assert_int_equal(e, EINVAL);
    assert_null(softkvm_mmap(m->s, m->vcpu[0], RING_BYTES, PROT_EXEC, MAP_SHARED, RING_OFFSET, &e));
    assert_null(softkvm_mmap(m->s, m->vcpu[0], 2 * RING_BYTES, PROT_READ, MAP_SHARED, RING_OFFSET, &e));
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), 0);
    mini_free(m);
    m = mini_vm(0);
    mini_vcpus(m, 1);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), -EINVAL); /* a vCPU exists */
    assert_null(softkvm_mmap(m->s, m->vcpu[0], RING_BYTES, PROT_READ, MAP_SHARED, RING_OFFSET, &e));
    mini_free(m);
}

static void bitmap_calls(void **state)
{
    uint64_t map[PAGES / 64];
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};
    struct kvm_clear_dirty_log clear = {.slot = 1, .first_page = 1, .num_pages = 64, .dirty_bitmap = map};
    struct mini *m;
    void *data;

    m = ring_vm(1, &data);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, NULL), -EFAULT);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, &log), -ENXIO);
    log.slot = 0xffff;
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, &log), -ENXIO);
    assert_int_equal(mini_vm_ioctl(m, KVM_CLEAR_DIRTY_LOG, &clear), -ENXIO);
    mini_free(m);
    m = mini_vm(0);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, RING_BYTES), 0);
    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 0), 0);
    mini_vcpus(m, 1);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, DATA, PAGES * 4096, data), 0);
    log.slot = 1;
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, &log), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_CLEAR_DIRTY_LOG, &clear), -EINVAL);
    mini_free(m);
    munmap(data, PAGES * 4096);
}

static int store(struct mini *m, uint32_t first, uint32_t count, int32_t step)
{
    struct kvm_regs r = {.rdi = DATA + first * 4096, .rcx = count, .rdx = (uint32_t)(step * 4096)};

    mini_start(m, 0, store_code, sizeof(store_code), &r);
    return mini_run(m, 0);
}

/* The soft limit: exits until reset, and goes on where it was. */
static void soft_full(void **state)
{
    void *data;
    struct mini *m = ring_vm(1, &data);
    struct kvm_dirty_gfn *ring = map_ring(m, 0);

    assert_int_equal(store(m, 0, PAGES, 1), KVM_EXIT_DIRTY_RING_FULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_DIRTY_RING_FULL);
    for (unsigned i = 0; i < SOFT; i++) {
        assert_int_equal(ring[i].flags, KVM_DIRTY_GFN_F_DIRTY);
        assert_int_equal(ring[i].slot, 1);
        assert_int_equal(ring[i].offset, i);
    }
    assert_int_equal(ring[SOFT].flags, 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), 0); /* nothing harvested */
    ring[1].flags |= KVM_DIRTY_GFN_F_RESET;
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), 0); /* in order only */
    ring[0].flags |= KVM_DIRTY_GFN_F_RESET;
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), 2);
    assert_int_equal(ring[0].flags, 0);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_DIRTY_RING_FULL);
    assert_int_equal(ring[SOFT + 1].offset, SOFT + 1);
    assert_int_equal(ring[SOFT + 2].flags, 0);
    /* Marked without having been dirty: not taken for harvested. */
    for (unsigned i = 0; i < RING; i++) {
        ring[i].flags = KVM_DIRTY_GFN_F_RESET;
    }
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), SOFT);
    check(m);
    mini_free(m);
    munmap(data, PAGES * 4096);
}

static unsigned harvest(struct mini *m, struct kvm_dirty_gfn *ring, uint32_t *at, uint8_t *seen)
{
    unsigned n = 0;

    for (;; n++, (*at)++) {
        struct kvm_dirty_gfn *e = &ring[*at % RING];

        if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) {
            return n;
        }
        if (e->slot == 1 && seen) {
            assert_true(e->offset < PAGES);
            seen[e->offset]++;
        }
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY | KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
    }
}

/* After a reset every page is told again, whatever the order in which it was written. */
static void windows(void **state)
{
    static const struct {
        uint32_t first, count;
        int32_t step;
    } rows[] = {{0, 190, 1}, {189, 190, -1}, {0, 30, 3}, {1000, 12, -63}, {1000, 12, -64}, {7, 1, 1},
                {64, 128, 1}, {63, 64, -1}};
    void *data;
    struct mini *m = ring_vm(1, &data);
    struct kvm_dirty_gfn *ring = map_ring(m, 0);
    uint32_t at = 0;

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        for (int again = 0; again < 2; again++) {
            uint8_t seen[PAGES] = {0};

            assert_int_equal(store(m, rows[i].first, rows[i].count, rows[i].step), KVM_EXIT_HLT);
            assert_int_equal(harvest(m, ring, &at, seen), rows[i].count);
            for (uint32_t k = 0; k < rows[i].count; k++) {
                assert_int_equal(seen[rows[i].first + k * (uint32_t)rows[i].step], 1);
            }
            assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), rows[i].count);
            check(m);
        }
    }
    /* Entries of a slot that has shrunk away are stale. */
    assert_int_equal(store(m, 500, 20, 1), KVM_EXIT_HLT);
    harvest(m, ring, &at, NULL);
    assert_int_equal(mini_slot(m, 1, 0, DATA, 0, data), 0);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, DATA, 510 * 4096, data), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), 20);
    mini_free(m);
    munmap(data, PAGES * 4096);
}

struct runner {
    struct mini *m;
    unsigned i;
    int stop, result;
};

static void *run_until_stopped(void *opaque)
{
    struct runner *r = opaque;

    do {
        r->result = mini_run(r->m, r->i);
    } while (r->result == KVM_EXIT_DIRTY_RING_FULL && !__atomic_load_n(&r->stop, __ATOMIC_ACQUIRE));
    return NULL;
}

static uint32_t word_of(const char *data, unsigned page)
{
    return __atomic_load_n((const uint32_t *)(const void *)(data + page * 4096), __ATOMIC_RELAXED);
}

/* KVM's protocol: collect, reset, then copy. */
static void collect(struct mini *m, struct kvm_dirty_gfn *const ring[2], uint32_t at[2], const char *data,
                    uint32_t *copy)
{
    uint8_t seen[PAGES] = {0};

    for (int i = 0; i < 2; i++) {
        harvest(m, ring[i], &at[i], seen);
    }
    assert_true(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL) >= 0);
    for (unsigned p = 0; p < PAGES; p++) {
        if (seen[p]) {
            copy[p] = word_of(data, p);
        }
    }
}

static void nothing_is_missed(void **state)
{
    static uint32_t copy[PAGES];
    void *data;
    struct mini *m = ring_vm(2, &data);
    struct kvm_dirty_gfn *ring[2] = {map_ring(m, 0), map_ring(m, 1)};
    uint32_t at[2] = {0};

    memset(copy, 0, sizeof(copy));
    for (int round = 0; round < 20; round++) {
        struct runner r[2];
        pthread_t t[2];

        for (unsigned i = 0; i < 2; i++) {
            struct kvm_regs regs = {.rbx = DATA + i * 4096, .rsi = PAGES / 2, .rdx = 8192};

            r[i] = (struct runner){.m = m, .i = i};
            mini_start(m, i, loop_code, sizeof(loop_code), &regs);
            pthread_create(&t[i], NULL, run_until_stopped, &r[i]);
        }
        for (int k = 0; k < 60; k++) {
            collect(m, ring, at, data, copy);
            usleep(100);
        }
        for (unsigned i = 0; i < 2; i++) {
            __atomic_store_n(&r[i].stop, 1, __ATOMIC_RELEASE);
            softkvm_interrupt(m->s, m->vcpu[i]);
            pthread_join(t[i], NULL);
            assert_true(r[i].result == -EINTR || r[i].result == KVM_EXIT_DIRTY_RING_FULL);
        }
        collect(m, ring, at, data, copy);
        collect(m, ring, at, data, copy);
        for (unsigned p = 0; p < PAGES; p++) {
            assert_int_equal(copy[p], word_of(data, p));
        }
        check(m);
    }
    mini_free(m);
    munmap(data, PAGES * 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(enabling),  cmocka_unit_test(bitmap_calls), cmocka_unit_test(soft_full),
        cmocka_unit_test(windows),   cmocka_unit_test(nothing_is_missed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
