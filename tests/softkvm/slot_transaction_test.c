/*
 * Slot transactions: errors with nothing changed, every allocation made to fail, slots that change places, dirty
 * bits that follow their memory; and two vCPUs that never meet a hole while a slot is split, merged and re-cut under
 * them, with no write missed.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"
#include "softkvm/slots.h"

#define DATA  0x400000u
#define PAGES 512u
#define LOG   KVM_MEM_LOG_DIRTY_PAGES

typedef struct kvm_userspace_memory_region2 region;

static const uint8_t store_code[] = {0x89, 0x07, 0xf4}; /* mov [edi], eax; hlt */

/* EBX first, ESI pages, EDX step: increment a word in each, for ever. */
static const uint8_t loop_code[] = {
    0x89, 0xdf, 0x89, 0xf1, 0xff, 0x07, 0x01, 0xd7, 0x49, 0x75, 0xf9, 0xeb, 0xf3,
};

static region pages(uint32_t slot, uint32_t flags, uint32_t first, uint32_t n, char *mem)
{
    return (region){.slot = slot, .flags = flags, .guest_phys_addr = DATA + first * 4096u, .memory_size = n * 4096u,
                    .userspace_addr = (uintptr_t)mem};
}

static int transact(struct mini *m, region *r, uint32_t n, struct softkvm_slot_transaction *out)
{
    struct softkvm_slot_transaction t = {.size = sizeof(t), .count = n, .changes = (uintptr_t)r};
    int ret = mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, &t);

    if (out) {
        *out = t;
    }
    return ret;
}

static void check(struct mini *m)
{
    struct softkvm_check c = {.size = sizeof(c)};

    if (mini_vm_ioctl(m, SOFTKVM_CHECK, &c)) {
        fail_msg("%s", c.text);
    }
}

static unsigned nr_slots(struct mini *m, uint64_t *generation)
{
    struct softkvm_slots s = {.size = sizeof(s)};

    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOTS, &s), 0);
    if (generation) {
        *generation = s.generation;
    }
    return s.count;
}

static void refusals(void **state)
{
    struct mini *m = mini_vm(0);
    struct softkvm_slot_transaction t = {.size = sizeof(t)};
    char *mem = mini_pages(PAGES * 4096);
    region r[3];
    uint64_t before, after;

    mini_vcpus(m, 1);
    assert_int_equal(mini_has(m, SOFTKVM_CAP_SLOT_TRANSACTION), 1024);
    assert_int_equal(mini_slot(m, 1, 0, DATA, 8 * 4096, mem), 0);
    nr_slots(m, &before);
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, NULL), -EFAULT);
    t.size--;
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, &t), -EINVAL);
    t.size++;
    t.flags = 1;
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, &t), -EINVAL);
    t.flags = 0;
    t.count = 1025;
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, &t), -E2BIG);
    t.count = 1;
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_SLOT_TRANSACTION, &t), -EFAULT);
    r[0] = pages(2, 0, 100, 8, mem);
    r[1] = pages(3, 0, 120, 8, mem + 1);
    assert_int_equal(transact(m, r, 2, &t), -EINVAL);
    assert_int_equal(t.failed, 1);
    r[1] = pages(2, 0, 120, 8, mem);
    assert_int_equal(transact(m, r, 2, &t), -EINVAL); /* named twice */
    r[1] = pages(3, 0, 0, 0, mem);
    assert_int_equal(transact(m, r, 2, &t), -EINVAL); /* there is none */
    assert_int_equal(t.failed, 1);
    r[1] = pages(3, 0, 107, 1, mem);
    assert_int_equal(transact(m, r, 2, &t), -EEXIST); /* two of the outcome */
    r[1] = pages(3, 0, 7, 1, mem);
    assert_int_equal(transact(m, r, 2, &t), -EEXIST); /* one that stays */
    r[1] = pages(3, KVM_MEM_GUEST_MEMFD, 120, 1, mem);
    r[1].guest_memfd = 999;
    assert_int_equal(transact(m, r, 2, &t), -EBADF);
    r[1] = pages(3, 0, 1, 1, mem);
    r[1].guest_phys_addr = UINT64_C(1) << 60;
    assert_int_equal(transact(m, r, 2, &t), -EINVAL);
    assert_int_equal(nr_slots(m, &after), 2);
    assert_int_equal(after, before);
    assert_int_equal(transact(m, r, 0, &t), 0);
    check(m);
    mini_free(m);
    munmap(mem, PAGES * 4096);
}

static int store(struct mini *m, uint32_t page, uint32_t value)
{
    struct kvm_regs r = {.rdi = DATA + page * 4096, .rax = value};

    mini_start(m, 0, store_code, sizeof(store_code), &r);
    return mini_run(m, 0);
}

static void dirty_log(struct mini *m, uint32_t slot, uint64_t *map)
{
    struct kvm_dirty_log log = {.slot = slot, .dirty_bitmap = map};

    memset(map, 0, PAGES / 8);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_DIRTY_LOG, &log), 0);
}

/* Two slots change places, and their dirty pages with them; a third shrinks and loses one. */
static void places(void **state)
{
    struct mini *m = mini_vm(0);
    struct softkvm_slot_transaction t;
    char *a = mini_pages(64 * 4096), *b = mini_pages(64 * 4096), *c = mini_pages(64 * 4096);
    uint64_t map[PAGES / 64], before, after;
    region r[3];

    mini_vcpus(m, 1);
    r[0] = pages(1, LOG, 0, 64, a);
    r[1] = pages(2, LOG, 64, 64, b);
    r[2] = pages(3, LOG, 128, 64, c);
    assert_int_equal(transact(m, r, 3, NULL), 0);
    assert_int_equal(nr_slots(m, &before), 4);
    assert_int_equal(store(m, 3, 0xa), KVM_EXIT_HLT);
    assert_int_equal(store(m, 64 + 5, 0xb), KVM_EXIT_HLT);
    assert_int_equal(store(m, 128 + 7, 0xc), KVM_EXIT_HLT);
    assert_int_equal(store(m, 128 + 60, 0xd), KVM_EXIT_HLT);
    r[0] = pages(1, LOG, 64, 64, a);
    r[1] = pages(2, LOG, 0, 64, b);
    r[2] = pages(3, LOG, 128 + 4, 28, c + 4 * 4096);
    assert_int_equal(transact(m, r, 3, &t), 0);
    assert_int_equal(nr_slots(m, &after), 4);
    assert_int_equal(t.generation, after);
    assert_int_equal(t.dirty_lost, 1);
    check(m);
    dirty_log(m, 1, map);
    assert_int_equal(map[0], 1u << 3);
    dirty_log(m, 2, map);
    assert_int_equal(map[0], 1u << 5);
    dirty_log(m, 3, map);
    assert_int_equal(map[0], 1u << 3);
    assert_int_equal(store(m, 64, 0x99), KVM_EXIT_HLT); /* now slot 1's first page */
    assert_int_equal(*(volatile uint32_t *)(void *)a, 0x99);
    dirty_log(m, 1, map);
    assert_int_equal(map[0], 1);
    r[0] = pages(1, 0, 0, 0, NULL);
    r[1] = pages(2, 0, 0, 0, NULL);
    assert_int_equal(transact(m, r, 2, &t), 0);
    assert_int_equal(nr_slots(m, NULL), 2);
    assert_int_equal(store(m, 0, 1), KVM_EXIT_MMIO);
    check(m);
    mini_free(m);
    munmap(a, 64 * 4096);
    munmap(b, 64 * 4096);
    munmap(c, 64 * 4096);
}

static void rings_refuse(void **state)
{
    struct mini *m = mini_vm(0);
    char *a = mini_pages(64 * 4096);
    region r = pages(1, LOG, 0, 64, a);

    assert_int_equal(mini_cap(m, KVM_CAP_DIRTY_LOG_RING, 4096), 0);
    mini_vcpus(m, 1);
    assert_int_equal(transact(m, &r, 1, NULL), 0);
    r.guest_phys_addr += 4096;
    assert_int_equal(transact(m, &r, 1, NULL), -EOPNOTSUPP);
    mini_free(m);
    munmap(a, 64 * 4096);
}

/* ---- under load ---- */

struct runner {
    struct mini *m;
    unsigned i;
    int result;
};

static void *run(void *opaque)
{
    struct runner *r = opaque;

    r->result = mini_run(r->m, r->i);
    return NULL;
}

/* The same memory cut at `cut` (0: not at all), by ids that go round. */
static uint32_t cut_at(region *r, uint32_t n_now, const uint32_t *ids_now, uint32_t cut, uint32_t round, char *mem,
                       uint32_t *ids)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < n_now; i++) {
        r[n++] = pages(ids_now[i], 0, 0, 0, NULL);
    }
    ids[0] = 10 + round % 2 * 2;
    ids[1] = ids[0] + 1;
    r[n++] = pages(ids[0], LOG, 0, cut ? cut : PAGES, mem);
    if (cut) {
        r[n++] = pages(ids[1], LOG, cut, PAGES - cut, mem + cut * 4096);
    }
    return n;
}

static uint32_t word_of(const char *mem, unsigned page)
{
    return __atomic_load_n((const uint32_t *)(const void *)(mem + page * 4096), __ATOMIC_RELAXED);
}

static void harvest(struct mini *m, uint32_t id, uint32_t first, const char *mem, uint32_t *copy)
{
    uint64_t map[PAGES / 64];

    dirty_log(m, id, map);
    for (unsigned p = 0; first + p < PAGES; p++) {
        if (map[p / 64] >> (p % 64) & 1) {
            copy[first + p] = word_of(mem, first + p);
        }
    }
}

/* Both vCPUs store something, or 20 ms pass: slots change under running guests, not only around sleeping ones. */
static void wait_for_progress(const char *mem)
{
    uint32_t before[2] = {word_of(mem, 0), word_of(mem, 1)};

    for (int i = 0; i < 200 && (word_of(mem, 0) == before[0] || word_of(mem, 1) == before[1]); i++) {
        usleep(100);
    }
}

static void under_load(void **state)
{
    static uint32_t copy[PAGES];
    struct mini *m = mini_vm(0);
    char *mem = mini_pages(PAGES * 4096);
    struct runner r[2];
    pthread_t t[2];
    uint32_t ids[2] = {1, 0}, n = 1, cut = 0;
    struct softkvm_slot_transaction out;

    memset(copy, 0, sizeof(copy));
    mini_vcpus(m, 2);
    assert_int_equal(mini_slot(m, 1, LOG, DATA, PAGES * 4096, mem), 0);
    for (unsigned i = 0; i < 2; i++) {
        struct kvm_regs regs = {.rbx = DATA + i * 4096, .rsi = PAGES / 2, .rdx = 8192};

        r[i] = (struct runner){.m = m, .i = i};
        mini_start(m, i, loop_code, sizeof(loop_code), &regs);
        pthread_create(&t[i], NULL, run, &r[i]);
    }
    for (uint32_t round = 0; round < 300; round++) {
        region changes[4];
        uint32_t next[2], count;

        if (round % 3 == 0) {
            harvest(m, ids[0], 0, mem, copy);
        }
        cut = round % 5 == 4 ? 0 : 1 + round * 37 % (PAGES - 1);
        count = cut_at(changes, n, ids, cut, round, mem, next);
        assert_int_equal(transact(m, changes, count, &out), 0);
        assert_int_equal(out.dirty_lost, 0);
        wait_for_progress(mem);
        memcpy(ids, next, sizeof(ids));
        n = cut ? 2 : 1;
    }
    for (unsigned i = 0; i < 2; i++) {
        softkvm_interrupt(m->s, m->vcpu[i]);
        pthread_join(t[i], NULL);
        assert_int_equal(r[i].result, -EINTR); /* never an exit: nobody saw a hole */
    }
    harvest(m, ids[0], 0, mem, copy);
    if (n == 2) {
        harvest(m, ids[1], cut, mem, copy);
    }
    for (unsigned p = 0; p < PAGES; p++) {
        assert_int_equal(copy[p], word_of(mem, p));
    }
    assert_true(word_of(mem, 0) > 10 && word_of(mem, 1) > 10);
    check(m);
    mini_free(m);
    munmap(mem, PAGES * 4096);
}

/* ---- memory runs out ---- */

static long allowed = -1;

static bool fail_alloc(void *opaque)
{
    (void)opaque;
    if (allowed == 0) {
        return true;
    }
    allowed -= allowed > 0;
    return false;
}

static void out_of_memory(void **state)
{
    struct softkvm_options o = {.size = sizeof(o), .fail_alloc = fail_alloc};
    struct mini m = {0};
    char *a = mini_pages(64 * 4096);
    region r[3];
    int ret, failures = 0;

    m.s = softkvm_new(&o, NULL, 0);
    m.kvm = softkvm_open_system(m.s);
    m.vm = mini_sys(&m, KVM_CREATE_VM, NULL);
    assert_int_equal(mini_slot(&m, 1, LOG, DATA, 32 * 4096, a), 0);
    r[0] = pages(1, LOG, 32, 32, a);
    r[1] = pages(2, LOG, 0, 32, a);
    for (long n = 0;; n++) {
        uint64_t before, after;

        nr_slots(&m, &before);
        allowed = n;
        ret = transact(&m, r, 2, NULL);
        allowed = -1;
        if (ret == 0) {
            break;
        }
        failures++;
        assert_int_equal(ret, -ENOMEM);
        assert_int_equal(nr_slots(&m, &after), 1);
        assert_int_equal(after, before);
        check(&m);
    }
    assert_true(failures > 5);
    assert_int_equal(nr_slots(&m, NULL), 2);
    check(&m);
    softkvm_free(m.s);
    munmap(a, 64 * 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refusals),   cmocka_unit_test(places),        cmocka_unit_test(rings_refuse),
        cmocka_unit_test(under_load), cmocka_unit_test(out_of_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
