/*
 * SOFTKVM_SLOT_TRANSACTION: several slots changed at one generation, with vCPUs running.
 *
 *   check all -> make all that is new -> publish what goes as invalid -> zap, once -> carry dirty bits
 *             -> publish the outcome -> free
 *
 * Between the two publications an access to what changes is retried, so nobody sees a hole or half of it.
 * Everything that can fail is done before the first.
 *
 * Locks: slots_lock throughout.
 */
#include "softkvm/slot_transaction.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/gmem.h"
#include "softkvm/lpage.h"
#include "softkvm/mmu_walk.h"
#include "softkvm/slot_impl.h"
#include "softkvm/slots.h"
#include "softkvm/user.h"
#include "softkvm/vm.h"

#define MAX_CHANGES KVM_SLOT_TRANSACTION_MAX

struct change {
    struct kvm_userspace_memory_region2 m;
    uint32_t index;              /* in the caller's array */
    struct kvm_memslot *old;     /* null: a new id */
    struct kvm_memslot *invalid; /* stands for old while it goes */
    struct kvm_memslot *new;     /* null: deleted */
};

struct transaction {
    struct kvm_vm *vm;
    struct change *change;
    uint32_t count, failed;
    uint64_t dirty_lost;
};

static int failed_at(struct transaction *t, const struct change *c, int error)
{
    t->failed = c->index;
    return error;
}

/* ---- checks ---- */

static int by_slot(const void *a, const void *b)
{
    const struct change *x = a, *y = b;

    return x->m.slot < y->m.slot ? -1 : x->m.slot > y->m.slot;
}

static const struct change *find_change(const struct transaction *t, const struct kvm_memslot *s)
{
    struct change key = {.m = {.slot = (uint32_t)s->as_id << 16 | s->id}};

    return bsearch(&key, t->change, t->count, sizeof(key), by_slot);
}

/* Is a slot that stays in the way? Those that go are passed over. */
static bool meets_staying(const struct transaction *t, uint64_t first, uint64_t end)
{
    const struct kvm_slot_set *set = kvm_slots_active(&t->vm->slots);
    struct kvm_memslot *s = kvm_slots_first_from(set, gfn(first));

    while (s && s->base_gfn < end) {
        if (!find_change(t, s)) {
            return true;
        }
        s = kvm_slots_first_from(set, gfn(s->base_gfn + s->npages));
    }
    return false;
}

static int by_place(const void *a, const void *b)
{
    const struct change *x = *(const struct change *const *)a, *y = *(const struct change *const *)b;

    return x->m.guest_phys_addr < y->m.guest_phys_addr ? -1 : x->m.guest_phys_addr > y->m.guest_phys_addr;
}

/* Do two of the outcome's new slots overlap? */
static int check_places(struct transaction *t)
{
    const struct change **order = kvm_alloc_array(t->vm->s, t->count + 1, sizeof(*order));
    uint32_t n = 0;
    int r = 0;

    if (!order) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].m.memory_size) {
            order[n++] = &t->change[i];
        }
    }
    qsort(order, n, sizeof(*order), by_place);
    for (uint32_t i = 1; i < n && r == 0; i++) {
        if (order[i]->m.guest_phys_addr - order[i - 1]->m.guest_phys_addr < order[i - 1]->m.memory_size) {
            r = failed_at(t, order[i], -EEXIST);
        }
    }
    free(order);
    return r;
}

static int check_one(struct transaction *t, struct change *c)
{
    struct kvm_vm *vm = t->vm;
    const struct kvm_userspace_memory_region2 *m = &c->m;
    uint64_t first = m->guest_phys_addr >> PAGE_SHIFT, npages = m->memory_size >> PAGE_SHIFT;
    int r = kvm_slot_check(vm, m);

    if (r < 0) {
        return r;
    }
    c->old = kvm_slots_find_id(kvm_slots_active(&vm->slots), m->slot >> 16, m->slot & 0xffff);
    if (c->old && kvm_slot_is_logged(c->old) && vm->ring_bytes) {
        return -EOPNOTSUPP;
    }
    if (!npages) {
        return c->old ? 0 : -EINVAL;
    }
    if (meets_staying(t, first, first + npages)) {
        return -EEXIST;
    }
    return kvm_slot_is_reachable(vm, first, npages) ? 0 : -EINVAL;
}

static int check_all(struct transaction *t)
{
    qsort(t->change, t->count, sizeof(*t->change), by_slot);
    for (uint32_t i = 0; i < t->count; i++) {
        struct change *c = &t->change[i];
        int r = i && c->m.slot == c[-1].m.slot ? -EINVAL : check_one(t, c);

        if (r < 0) {
            return failed_at(t, c, r);
        }
    }
    return check_places(t);
}

/* ---- preparation ---- */

static int make_one(struct kvm_vm *vm, struct change *c)
{
    if (c->old) {
        c->invalid = kvm_alloc(vm->s, sizeof(*c->invalid));
        if (!c->invalid) {
            return -ENOMEM;
        }
        *c->invalid = *c->old;
        c->invalid->flags |= KVM_SLOT_INVALID;
    }
    if (!c->m.memory_size) {
        return 0;
    }
    c->new = kvm_slot_make(vm, &c->m, NULL);
    if (!c->new) {
        return -ENOMEM;
    }
    return c->m.flags & KVM_MEM_GUEST_MEMFD
               ? kvm_gmem_bind(vm, c->new, (int)c->m.guest_memfd, c->m.guest_memfd_offset)
               : 0;
}

/* The invalid copy shares all that the old slot has. */
static void free_invalid(struct change *c)
{
    free(c->invalid);
    c->invalid = NULL;
}

static void unmake_all(struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        free_invalid(&t->change[i]);
        if (t->change[i].new) {
            kvm_slot_free(t->change[i].new);
        }
    }
}

static int make_all(struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        int r = make_one(t->vm, &t->change[i]);

        if (r < 0) {
            unmake_all(t);
            return failed_at(t, &t->change[i], r);
        }
    }
    return 0;
}

/* ---- commit ---- */

static void hide_in(struct kvm_slot_set *set, struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].old) {
            kvm_slots_replace(set, t->change[i].old, t->change[i].invalid);
        }
    }
}

/* All that goes first: what comes may lie where it was. */
static void settle_in(struct kvm_slot_set *set, struct transaction *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].old) {
            kvm_slots_replace(set, t->change[i].invalid, NULL);
        }
    }
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].new) {
            kvm_slots_replace(set, NULL, t->change[i].new);
        }
    }
}

/* Every write to what goes is in its log when this returns, and none can come. */
static void quiesce(struct transaction *t)
{
    struct kvm_vm *vm = t->vm;
    struct kvm_dead_tables dead = {0};

    pthread_rwlock_wrlock(&vm->mmu.lock);
    for (uint32_t i = 0; i < t->count; i++) {
        const struct kvm_memslot *old = t->change[i].old;

        if (old) {
            kvm_mmu_zap_frames_locked(vm, gfn(old->base_gfn), gfn(old->base_gfn + old->npages - 1), &dead);
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_finish(vm, &dead);
    kvm_walkers_wait(vm);
    kvm_mmu_pml_sync(vm);
}

static bool test_bit(const struct kvm_memslot *s, uint64_t i)
{
    return atomic_load_explicit(&s->dirty[i / 64], memory_order_relaxed) >> (i % 64) & 1;
}

static void put_bit(struct kvm_memslot *s, uint64_t i, bool on)
{
    uint64_t bit = UINT64_C(1) << (i % 64);

    if (on) {
        atomic_fetch_or_explicit(&s->dirty[i / 64], bit, memory_order_relaxed);
    } else {
        atomic_fetch_and_explicit(&s->dirty[i / 64], ~bit, memory_order_relaxed);
    }
}

/* The pages of `from` that `to` maps as well, by address, have in `to` the bits that they had. taken: one bit a page
 * of `from`, set for those. */
static void carry(const struct kvm_memslot *from, struct kvm_memslot *to, uint64_t *taken)
{
    uint64_t start = from->hva > to->hva ? from->hva : to->hva;
    uint64_t a = from->hva + (from->npages << PAGE_SHIFT), b = to->hva + (to->npages << PAGE_SHIFT);
    uint64_t end = a < b ? a : b;

    for (uint64_t at = start; at < end; at += PAGE_SIZE) {
        uint64_t i = (at - from->hva) >> PAGE_SHIFT;

        put_bit(to, (at - to->hva) >> PAGE_SHIFT, test_bit(from, i));
        taken[i / 64] |= UINT64_C(1) << (i % 64);
    }
}

static void carry_from(struct transaction *t, const struct kvm_memslot *from)
{
    /* The half of the bitmap that serves KVM_GET_DIRTY_LOG's copy is free to be used. */
    uint64_t *taken = (uint64_t *)from->dirty + from->dirty_words;

    memset(taken, 0, from->dirty_words * 8);
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].new && t->change[i].new->dirty) {
            carry(from, t->change[i].new, taken);
        }
    }
    for (size_t w = 0; w < from->dirty_words; w++) {
        uint64_t left = atomic_load_explicit(&from->dirty[w], memory_order_relaxed) & ~taken[w];

        t->dirty_lost += (uint64_t)__builtin_popcountll(left);
    }
}

static void count_slots(struct transaction *t)
{
    struct kvm_slot_space *s = &t->vm->slots;

    for (uint32_t i = 0; i < t->count; i++) {
        const struct change *c = &t->change[i];

        s->total_pages += (c->new ? c->new->npages : 0) - (c->old ? c->old->npages : 0);
        s->count += (c->new ? 1u : 0u) - (c->old ? 1u : 0u);
    }
}

static void commit(struct transaction *t)
{
    struct kvm_vm *vm = t->vm;

    hide_in(kvm_slots_inactive(&vm->slots), t);
    kvm_slots_swap(vm);
    hide_in(kvm_slots_inactive(&vm->slots), t);
    quiesce(t);
    for (uint32_t i = 0; i < t->count; i++) {
        if (t->change[i].old && t->change[i].old->dirty) {
            carry_from(t, t->change[i].old);
        }
    }
    settle_in(kvm_slots_inactive(&vm->slots), t);
    kvm_slots_swap(vm);
    settle_in(kvm_slots_inactive(&vm->slots), t);
    count_slots(t);
    for (uint32_t i = 0; i < t->count; i++) {
        free_invalid(&t->change[i]);
        if (t->change[i].old) {
            kvm_slot_free(t->change[i].old);
        }
    }
    atomic_fetch_add_explicit(&vm->counters.slot_updates, 1, memory_order_relaxed);
}

/* ---- the call ---- */

static int run_locked(struct transaction *t, struct softkvm_slot_transaction *u)
{
    int r = check_all(t);

    if (r == 0) {
        r = make_all(t);
    }
    if (r == 0 && t->count) {
        commit(t);
    }
    u->generation = atomic_load(&t->vm->slots.generation);
    u->dirty_lost = t->dirty_lost;
    return r;
}

static int read_changes(struct transaction *t, const struct softkvm_slot_transaction *u)
{
    const struct kvm_userspace_memory_region2 *from = (const void *)(uintptr_t)u->changes;
    int r = 0;

    for (uint32_t i = 0; i < t->count && r == 0; i++) {
        t->change[i].index = i;
        r = kvm_user_read(&t->change[i].m, from + i, sizeof(*from));
    }
    return r;
}

/* See softkvm/slots.h. Lock: takes slots_lock, mmu.lock; not from a read section. Source: own. */
int kvm_slots_transaction(struct kvm_vm *vm, void *arg)
{
    struct softkvm_slot_transaction u;
    struct transaction t = {.vm = vm};
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.size != sizeof(u) || u.flags) {
        return -EINVAL;
    }
    if (u.count > MAX_CHANGES) {
        return -E2BIG;
    }
    t.count = t.failed = u.count;
    t.change = kvm_alloc_array(vm->s, u.count + 1, sizeof(*t.change));
    r = t.change ? read_changes(&t, &u) : -ENOMEM;
    if (r == 0) {
        pthread_mutex_lock(&vm->slots_lock);
        r = run_locked(&t, &u);
        pthread_mutex_unlock(&vm->slots_lock);
    }
    free(t.change);
    u.failed = t.failed;
    if (kvm_user_write(arg, &u, sizeof(u)) < 0 && r == 0) {
        r = -EFAULT; /* done all the same */
    }
    return r;
}
