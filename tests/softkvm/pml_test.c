/*
 * The log of modified pages with a processor that really keeps it: it fills, exits when there is no room, and every
 * page written is in the bitmap, also for a harvest while the vCPU runs; pages that are only read are not; a page is
 * logged once until its bit is taken.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"

#define RAM   0x400000u
#define PAGES 2048u

/* ESI times: access [EDI], EDI += EBX; then HLT. */
static const uint8_t store[] = {0x89, 0x07, 0x01, 0xdf, 0x4e, 0x75, 0xf9, 0xf4};
static const uint8_t load[] = {0x8b, 0x07, 0x01, 0xdf, 0x4e, 0x75, 0xf9, 0xf4};
/* For ever: inc [EDI] */
static const uint8_t spin[] = {0xff, 0x07, 0xeb, 0xfc};

static struct mini *open_with_log(void **ram, uint32_t flags)
{
    struct softkvm_options o = {.size = sizeof(o), .stage2 = SOFTKVM_STAGE2_PML};
    struct mini *m = mini_vm_with(&o, 0);

    mini_vcpus(m, 2);
    *ram = mini_pages(PAGES * 4096);
    assert_int_equal(mini_slot(m, 1, flags, RAM, PAGES * 4096, *ram), 0);
    return m;
}

static uint64_t counter(struct mini *m, const char *name)
{
    struct softkvm_counter c[200];
    struct softkvm_counters all = {.size = sizeof(all), .count = 200, .counters = (uintptr_t)c};

    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_COUNTERS, &all), 0);
    for (uint32_t i = 0; i < all.count && i < 200; i++) {
        if (strcmp(c[i].name, name) == 0) {
            return c[i].value;
        }
    }
    fail_msg("no counter %s", name);
    return 0;
}

static unsigned take(struct mini *m, uint64_t *map)
{
    struct kvm_dirty_log log = {.slot = 1, .dirty_bitmap = map};
    unsigned n = 0;

    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, &log), 0);
    for (unsigned i = 0; i < PAGES / 64; i++) {
        n += (unsigned)__builtin_popcountll(map[i]);
    }
    return n;
}

static void access_pages(struct mini *m, const uint8_t *code, unsigned first, unsigned n)
{
    struct kvm_regs r = {.rdi = RAM + first * 4096, .rbx = 4096, .rsi = n};

    mini_start(m, 0, code, 8, &r);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
}

static void the_log_fills(void **state)
{
    uint64_t map[PAGES / 64], faults;
    void *ram;
    struct mini *m = open_with_log(&ram, 0);

    access_pages(m, store, 0, PAGES);
    assert_int_equal(counter(m, "pml_logged"), 0); /* nobody asked */
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, RAM, PAGES * 4096, ram), 0);
    assert_int_equal(take(m, map), 0);
    faults = counter(m, "pf_taken");
    access_pages(m, store, 0, PAGES);
    assert_int_equal(counter(m, "pf_taken"), faults); /* no page needed a fault */
    assert_int_equal(counter(m, "pml_logged"), PAGES);
    assert_int_equal(counter(m, "pml_full"), PAGES / 512 - 1);
    access_pages(m, store, 0, PAGES);
    assert_int_equal(counter(m, "pml_logged"), PAGES); /* they are in the bitmap already */
    assert_int_equal(take(m, map), PAGES);
    access_pages(m, load, 0, PAGES);
    assert_int_equal(take(m, map), 0);
    access_pages(m, store, 7, 1);
    assert_int_equal(take(m, map), 1);
    assert_int_equal(map[0], 1 << 7);
    mini_free(m);
}

static void *run(void *opaque)
{
    mini_run(opaque, 0);
    return NULL;
}

/* A harvest sees what a vCPU has written that never leaves the guest by itself. */
static void a_running_vcpu_is_asked(void **state)
{
    uint64_t map[PAGES / 64];
    void *ram;
    struct mini *m = open_with_log(&ram, KVM_MEM_LOG_DIRTY_PAGES);
    struct kvm_regs r = {.rdi = RAM + 5 * 4096};
    volatile uint32_t *word = (volatile uint32_t *)((char *)ram + 5 * 4096);
    pthread_t t;

    mini_start(m, 0, spin, sizeof(spin), &r);
    assert_int_equal(pthread_create(&t, NULL, run, m), 0);
    for (unsigned round = 0; round < 50; round++) {
        uint32_t now = *word;

        while (*word == now) {
            usleep(50);
        }
        assert_int_equal(take(m, map), 1);
        assert_int_equal(map[0], 1 << 5);
    }
    softkvm_interrupt(m->s, m->vcpu[0]);
    pthread_join(t, NULL);
    mini_free(m);
}

/* ---- with a dirty ring ---- */

#define RING 1024u

/* Take what the ring has; each page is there once at most until it is reset. */
static unsigned collect(struct mini *m, struct kvm_dirty_gfn *ring, uint32_t *at, uint8_t *seen)
{
    unsigned n = 0;

    while (__atomic_load_n(&ring[*at % RING].flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY) {
        struct kvm_dirty_gfn *e = &ring[(*at)++ % RING];

        assert_int_equal(e->slot, 1);
        assert_true(e->offset < PAGES);
        seen[e->offset]++;
        __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        n++;
    }
    assert_int_equal(mini_vm_ioctl(m, KVM_RESET_DIRTY_RINGS, NULL), n);
    return n;
}

/* A ring that is full long before the guest is done: it never overflows, and no page is left out. */
static void the_log_goes_to_the_ring(void **state)
{
    struct softkvm_options o = {.size = sizeof(o), .stage2 = SOFTKVM_STAGE2_PML};
    struct mini *m = mini_vm_with(&o, 0);
    uint8_t seen[PAGES] = {0};
    struct kvm_dirty_gfn *ring;
    unsigned total = 0, full = 0;
    uint32_t at = 0;
    void *ram;
    int e = 0;

    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, RING * sizeof(*ring)), 0);
    mini_vcpus(m, 1);
    ram = mini_pages(PAGES * 4096);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_LOG_DIRTY_PAGES, RAM, PAGES * 4096, ram), 0);
    ring = softkvm_mmap(m->s, m->vcpu[0], RING * sizeof(*ring), PROT_READ | PROT_WRITE, MAP_SHARED,
                        KVM_DIRTY_LOG_PAGE_OFFSET * 4096, &e);
    assert_non_null(ring);
    for (unsigned round = 0; round < 3; round++) {
        struct kvm_regs r = {.rdi = RAM, .rbx = 4096, .rsi = PAGES};
        int exit;

        mini_start(m, 0, store, sizeof(store), &r);
        while ((exit = mini_run(m, 0)) == KVM_EXIT_DIRTY_RING_FULL) {
            total += collect(m, ring, &at, seen);
            full++;
        }
        assert_int_equal(exit, KVM_EXIT_HLT);
        total += collect(m, ring, &at, seen);
        for (unsigned p = 0; p < PAGES; p++) {
            assert_true(seen[p] > round);
        }
    }
    assert_true(full >= 3);
    assert_true(counter(m, "pml_logged") > PAGES);
    mini_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_log_fills),
        cmocka_unit_test(a_running_vcpu_is_asked),
        cmocka_unit_test(the_log_goes_to_the_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
