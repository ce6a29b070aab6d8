/*
 * Slots against an oracle that is an array and a loop: random create, move, delete, re-flag and bad
 * requests over a small world; after each the answer, every gfn, every hva range and both sets must
 * agree. Also the order of errors, and every allocation made to fail.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../src/softkvm/lpage.c"
#include "../src/softkvm/slot.c"
#include "../src/softkvm/slot_change.c"

/* ---- what slots need of the rest ---- */

static long fail_after = -1;
static unsigned zaps, protects, recovers;
static struct { uint64_t first, n; } last_zap;

void *kvm_alloc(struct softkvm *s, size_t bytes)
{
    if (fail_after == 0) {
        return NULL;
    }
    fail_after -= fail_after > 0;
    return calloc(1, bytes);
}

void *kvm_alloc_array(struct softkvm *s, size_t count, size_t bytes)
{
    return kvm_alloc(s, count * bytes);
}

void kvm_readers_wait(struct kvm_vm *vm)
{
}

void kvm_host_ram_note(struct kvm_vm *vm, uint64_t hva_start, uint64_t bytes)
{
}

void kvm_mmu_zap_range(struct kvm_vm *vm, gfn_t first, uint64_t npages)
{
    const struct kvm_memslot *s = kvm_slots_find(kvm_slots_active(&vm->slots), first);

    /* While old translations go, faults must find the slot invalid. */
    assert_non_null(s);
    assert_true(s->flags & KVM_SLOT_INVALID);
    last_zap.first = first.v;
    last_zap.n = npages;
    zaps++;
}

void kvm_mmu_zap_mmio(struct kvm_vm *vm)
{
}

/* No private memory here: gmem_test.c has it. */
int kvm_gmem_bind(struct kvm_vm *vm, struct kvm_memslot *slot, int fd, uint64_t offset)
{
    return -EBADF;
}

void kvm_gmem_unbind(struct kvm_memslot *slot)
{
}

/* No rings here: ring_test.c has them. */
bool kvm_ring_push(struct kvm_vcpu *v, const struct kvm_memslot *slot, uint64_t offset)
{
    return false;
}

bool kvm_ring_allows_bitmap(const struct kvm_vm *vm)
{
    return true;
}

void kvm_mmu_protect_slot(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    assert_non_null(slot->dirty);
    protects++;
}

void kvm_mmu_recover_huge(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    recovers++;
}

/* ---- the oracle ---- */

#define IDS    48
#define FRAMES 1024

struct plain_slot {
    uint64_t gpa, size, hva;
    uint32_t flags;
};

static struct plain_slot plain[IDS];

static int oracle(const struct kvm_userspace_memory_region2 *m)
{
    struct plain_slot *old = &plain[m->slot];

    if (m->flags & ~3u) {
        return -EINVAL;
    }
    if ((m->memory_size | m->guest_phys_addr | m->userspace_addr) & 4095) {
        return -EINVAL;
    }
    if (m->memory_size == 0) {
        if (old->size == 0) {
            return -EINVAL;
        }
        memset(old, 0, sizeof(*old));
        return 0;
    }
    if (old->size && (old->hva != m->userspace_addr || old->size != m->memory_size ||
                      (old->flags & 2) != (m->flags & 2))) {
        return -EINVAL;
    }
    if (!old->size || old->gpa != m->guest_phys_addr) {
        for (unsigned i = 0; i < IDS; i++) {
            if (i != m->slot && plain[i].size && plain[i].gpa < m->guest_phys_addr + m->memory_size &&
                m->guest_phys_addr < plain[i].gpa + plain[i].size) {
                return -EEXIST;
            }
        }
    }
    *old = (struct plain_slot){m->guest_phys_addr, m->memory_size, m->userspace_addr, m->flags};
    return 0;
}

struct seen {
    unsigned hits, wrong;
    uint64_t start, end;
};

static void see(void *opaque, struct kvm_memslot *slot)
{
    struct seen *s = opaque;
    const struct plain_slot *p = &plain[slot->id];

    s->hits++;
    s->wrong += !(p->size && p->hva < s->end && s->start < p->hva + p->size);
}

static void compare_gfns(const struct kvm_slot_set *set)
{
    int owner[FRAMES];

    memset(owner, 0xff, sizeof(owner));
    for (int i = 0; i < IDS; i++) {
        for (uint64_t f = plain[i].gpa / 4096; plain[i].size && f < (plain[i].gpa + plain[i].size) / 4096;
             f++) {
            owner[f] = i;
        }
        assert_int_equal(kvm_slots_find_id(set, 0, (unsigned)i) != NULL, plain[i].size != 0);
    }
    for (unsigned f = 0; f < FRAMES; f++) {
        const struct kvm_memslot *s = kvm_slots_find(set, gfn(f));

        assert_int_equal(s ? s->id : -1, owner[f]);
        if (s) {
            const struct plain_slot *p = &plain[s->id];

            assert_int_equal(kvm_slot_hva(s, gfn(f)).v, p->hva + (f * 4096ull - p->gpa));
            assert_int_equal(s->flags, p->flags);
            assert_int_equal(s->dirty != NULL, p->flags & 1);
        }
    }
}

static void compare_hvas(const struct kvm_slot_set *set)
{
    for (int round = 0; round < 8; round++) {
        struct seen s = {.start = 0x100000 + (uint64_t)(rand() % 2048) * 4096};
        unsigned want = 0;

        s.end = s.start + 4096 * (1 + (uint64_t)(rand() % 64));
        for (int i = 0; i < IDS; i++) {
            want += plain[i].size && plain[i].hva < s.end && s.start < plain[i].hva + plain[i].size;
        }
        kvm_slots_for_hva(set, hva(s.start), hva(s.end), see, &s);
        assert_int_equal(s.hits, want);
        assert_int_equal(s.wrong, 0);
    }
}

static struct kvm_vm *new_vm(void)
{
    struct kvm_vm *vm = calloc(1, sizeof(*vm));

    vm->s = calloc(1, sizeof(*vm->s));
    memset(plain, 0, sizeof(plain));
    fail_after = -1;
    pthread_mutex_init(&vm->slots_lock, NULL);
    pthread_rwlock_init(&vm->mmu.lock, NULL);
    kvm_slots_init(vm);
    return vm;
}

static void free_vm(struct kvm_vm *vm)
{
    kvm_slots_fini(vm);
    pthread_mutex_destroy(&vm->slots_lock);
    pthread_rwlock_destroy(&vm->mmu.lock);
    free(vm->s);
    free(vm);
}

static struct kvm_userspace_memory_region2 random_request(void)
{
    struct kvm_userspace_memory_region2 m = {.slot = (uint32_t)(rand() % IDS)};
    const struct plain_slot *old = &plain[m.slot];

    m.guest_phys_addr = (uint64_t)(rand() % (FRAMES - 64)) * 4096;
    m.memory_size = (uint64_t)(rand() % 64) * 4096;
    m.userspace_addr = 0x100000 + (uint64_t)(rand() % 2048) * 4096;
    m.flags = (uint32_t)rand() % 4;
    if (old->size && rand() % 4) {
        /* Mostly legal changes of what exists. */
        m.userspace_addr = old->hva;
        m.memory_size = rand() % 5 ? old->size : 0;
        m.flags = (old->flags & 2) | ((uint32_t)rand() & 1);
        m.guest_phys_addr = rand() % 2 ? old->gpa : m.guest_phys_addr;
    }
    switch (rand() % 40) {
    case 0:
        m.flags |= 8;
        break;
    case 1:
        m.guest_phys_addr |= 8;
        break;
    case 2:
        m.userspace_addr |= 16;
        break;
    case 3:
        m.memory_size |= 32;
        break;
    default:
        break;
    }
    return m;
}

static void random_storm(void **state)
{
    struct kvm_vm *vm = new_vm();
    uint64_t gen = atomic_load(&vm->slots.generation);

    srand(7);
    for (int i = 0; i < 6000; i++) {
        struct kvm_userspace_memory_region2 m = random_request();
        struct plain_slot before = plain[m.slot];
        unsigned zapped = zaps;
        int want = oracle(&m);

        assert_int_equal(kvm_slots_set_region(vm, &m), want);
        if (want == 0 && before.size && (m.memory_size == 0 || before.gpa != m.guest_phys_addr)) {
            assert_int_equal(zaps, zapped + 1);
            assert_int_equal(last_zap.first, before.gpa / 4096);
            assert_int_equal(last_zap.n, before.size / 4096);
        } else {
            assert_int_equal(zaps, zapped);
        }
        assert_true(atomic_load(&vm->slots.generation) >= gen);
        assert_false(atomic_load(&vm->slots.generation) & KVM_GEN_IN_PROGRESS);
        gen = atomic_load(&vm->slots.generation);
        if (i % 16 == 0) {
            compare_gfns(&vm->slots.set[0]);
            compare_gfns(&vm->slots.set[1]);
            compare_hvas(kvm_slots_active(&vm->slots));
        }
    }
    assert_true(zaps > 500);
    assert_true(protects > 100);
    assert_true(recovers > 100);
    free_vm(vm);
}

#define LIMIT UINT64_C(0x7ffffffff000)

/* Each line breaks one rule and all rules after it: the code must be that of the first. */
static void error_order(void **state)
{
    static const struct {
        struct kvm_userspace_memory_region2 m;
        int want;
    } rows[] = {
        {{32764, 0, 0, 4096, 0x10000}, -EINVAL},
        {{32763, 0, 0, 4096, 0x10000}, 0},
        {{1, 8, 0x100000, 4096, 0x10000}, -EINVAL},
        {{1, 0, 0x100000, 4095, 0x10000}, -EINVAL},
        {{1, 0, 0x100001, 4096, 0x10000}, -EINVAL},
        {{1, 0, 0x100000, 4096, 0x10001}, -EINVAL},
        {{1, 0, 0x100000, 4096, LIMIT}, -EINVAL},
        {{1, 0, 0x100000, 8192, LIMIT - 4096}, -EINVAL},
        {{1, 0, 0x100000, 4096, LIMIT - 4096}, 0},
        {{0x10001, 0, 0x200000, 4096, 0x10000}, -EINVAL},
        {{2, 0, UINT64_MAX & ~UINT64_C(4095), 8192, 0x10000}, -EINVAL},
        {{2, 0, 0x40000000, UINT64_C(1) << 43, 0x10000}, -EINVAL},
        {{2, 0, 0x40000000, 0, 0x10000}, -EINVAL},            /* delete what is not there */
        {{1, 0, 0x100000, 4096, 0x20000}, -EINVAL},           /* another hva */
        {{1, 0, 0x100000, 8192, LIMIT - 8192}, -EINVAL},      /* another size */
        {{1, KVM_MEM_READONLY, 0x100000, 4096, LIMIT - 4096}, -EINVAL},
        {{1, 0, 0x100000, 4096, LIMIT - 4096}, 0},            /* nothing changes */
        {{2, 0, 0x100000, 4096, 0x10000}, -EEXIST},
        {{2, 0, 0xff000, 8192, 0x10000}, -EEXIST},
        {{1, 0, 0, 4096, LIMIT - 4096}, -EEXIST},             /* move onto 32763 */
        {{2, 0, UINT64_C(1) << KVM_GUEST_PHYS_BITS, 4096, 0x10000}, -EINVAL},
        {{2, 0, (UINT64_C(1) << KVM_GUEST_PHYS_BITS) - 4096, 4096, 0x10000}, 0},
        {{1, 0, 0x200000, 4096, LIMIT - 4096}, 0},            /* move */
        {{1, 0, 0, 0, 0}, 0},
        {{1, 0, 0, 0, 0}, -EINVAL},
    };
    struct kvm_vm *vm = new_vm();

    for (size_t i = 0; i < ARRAY_LEN(rows); i++) {
        int got = kvm_slots_set_region(vm, &rows[i].m);

        if (got != rows[i].want) {
            fail_msg("row %zu: %d, wanted %d", i, got, rows[i].want);
        }
    }
    free_vm(vm);
}

/* Every allocation of every verb fails once: the answer is ENOMEM and nothing has changed. */
static void failing_allocations(void **state)
{
    const struct kvm_userspace_memory_region2 steps[] = {
        {3, 0, 0x10000, 0x8000, 0x100000},
        {3, KVM_MEM_LOG_DIRTY_PAGES, 0x10000, 0x8000, 0x100000},
        {3, KVM_MEM_LOG_DIRTY_PAGES, 0x40000, 0x8000, 0x100000},
        {3, 0, 0x40000, 0x8000, 0x100000},
        {3, 0, 0, 0, 0},
        {4, KVM_MEM_LOG_DIRTY_PAGES, 0x10000, 0x8000, 0x100000},
    };
    struct kvm_vm *vm = new_vm();

    for (size_t i = 0; i < ARRAY_LEN(steps); i++) {
        int failures = 0, r;

        do {
            uint64_t gen = atomic_load(&vm->slots.generation), total = vm->slots.total_pages;

            fail_after = failures++;
            r = kvm_slots_set_region(vm, &steps[i]);
            if (r < 0) {
                assert_int_equal(r, -ENOMEM);
                assert_int_equal(vm->slots.total_pages, total);
                assert_int_equal(atomic_load(&vm->slots.generation), gen);
                compare_gfns(&vm->slots.set[0]);
                compare_gfns(&vm->slots.set[1]);
            }
        } while (r < 0);
        assert_true(failures > 1);
        fail_after = -1;
        assert_int_equal(oracle(&steps[i]), 0);
        compare_gfns(kvm_slots_active(&vm->slots));
    }
    free_vm(vm);
}

/* The dirty bitmap survives a move and a change of flags; initially-set fills exactly npages bits. */
static void bitmap_life(void **state)
{
    struct kvm_vm *vm = new_vm();
    struct kvm_userspace_memory_region2 m = {5, KVM_MEM_LOG_DIRTY_PAGES, 0x10000, 70 * 4096, 0x100000};
    struct kvm_vcpu v = {.vm = vm};
    struct kvm_memslot *s;

    assert_int_equal(kvm_slots_set_region(vm, &m), 0);
    s = kvm_slots_find_id(kvm_slots_active(&vm->slots), 0, 5);
    kvm_slot_mark_dirty(&v, s, gfn(0x10 + 69));
    m.guest_phys_addr = 0x100000;
    assert_int_equal(kvm_slots_set_region(vm, &m), 0);
    s = kvm_slots_find_id(kvm_slots_active(&vm->slots), 0, 5);
    assert_int_equal(s->dirty[0], 0);
    assert_int_equal(s->dirty[1], 1u << 5);
    vm->manual_dirty = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
    m = (struct kvm_userspace_memory_region2){6, KVM_MEM_LOG_DIRTY_PAGES, 0x400000, 70 * 4096, 0x100000};
    assert_int_equal(kvm_slots_set_region(vm, &m), 0);
    s = kvm_slots_find_id(kvm_slots_active(&vm->slots), 0, 6);
    assert_true(s->dirty[0] == UINT64_MAX);
    assert_int_equal(s->dirty[1], 0x3f);
    free_vm(vm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_storm),
        cmocka_unit_test(error_order),
        cmocka_unit_test(failing_allocations),
        cmocka_unit_test(bitmap_life),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
