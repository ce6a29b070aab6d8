/*
 * Slot sets: the two trees and the hash, and the two primitives over them, replace and swap.
 * See slot.h for sets, nodes and locks; slot_change.c for the verbs built from these.
 *
 * Invariants
 *  1. A slot is in both sets, or a change of it is in progress under slots_lock.
 *  2. Slots of a set do not overlap in guest-physical space.
 *  3. hva_last of a node is the largest last byte of its hva subtree.
 */
#include <stdlib.h>

#include "softkvm/mmu_entry.h"
#include "softkvm/slot_impl.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

static uint32_t prio(const struct kvm_slot_node *n)
{
    return n->slot->prio;
}

/* ---- tree by gfn: keys are disjoint ranges ---- */

static void gfn_split(struct kvm_slot_node *t, uint64_t gfn, struct kvm_slot_node **l,
                      struct kvm_slot_node **r)
{
    while (t) {
        if (t->slot->base_gfn < gfn) {
            *l = t;
            l = &t->gfn_right;
            t = t->gfn_right;
        } else {
            *r = t;
            r = &t->gfn_left;
            t = t->gfn_left;
        }
    }
    *l = NULL;
    *r = NULL;
}

static void gfn_insert(struct kvm_slot_node **root, struct kvm_slot_node *n)
{
    uint64_t gfn = n->slot->base_gfn;
    struct kvm_slot_node *t;

    while ((t = *root) && prio(t) >= prio(n)) {
        root = gfn < t->slot->base_gfn ? &t->gfn_left : &t->gfn_right;
    }
    *root = n;
    gfn_split(t, gfn, &n->gfn_left, &n->gfn_right);
}

static void gfn_erase(struct kvm_slot_node **root, struct kvm_slot_node *n)
{
    uint64_t gfn = n->slot->base_gfn;
    struct kvm_slot_node *a = n->gfn_left, *b = n->gfn_right;

    while (*root != n) {
        root = gfn < (*root)->slot->base_gfn ? &(*root)->gfn_left : &(*root)->gfn_right;
    }
    while (a && b) {
        if (prio(a) >= prio(b)) {
            *root = a;
            root = &a->gfn_right;
            a = a->gfn_right;
        } else {
            *root = b;
            root = &b->gfn_left;
            b = b->gfn_left;
        }
    }
    *root = a ? a : b;
}

/* ---- interval tree by hva: keys may be equal, the id breaks the tie ---- */

static bool hva_less(const struct kvm_slot_node *a, const struct kvm_slot_node *b)
{
    return a->slot->hva != b->slot->hva ? a->slot->hva < b->slot->hva : a->slot < b->slot;
}

static uint64_t slot_hva_last(const struct kvm_memslot *s)
{
    return s->hva + (s->npages << PAGE_SHIFT) - 1;
}

static void hva_update(struct kvm_slot_node *n)
{
    uint64_t last = slot_hva_last(n->slot);

    if (n->hva_left && n->hva_left->hva_last > last) {
        last = n->hva_left->hva_last;
    }
    if (n->hva_right && n->hva_right->hva_last > last) {
        last = n->hva_right->hva_last;
    }
    n->hva_last = last;
}

/* Split t into what is less than n, to n's left, and the rest. Depth: that of the tree. */
static void hva_split(struct kvm_slot_node *t, const struct kvm_slot_node *n,
                      struct kvm_slot_node **l, struct kvm_slot_node **r)
{
    if (!t) {
        *l = *r = NULL;
        return;
    }
    if (hva_less(t, n)) {
        *l = t;
        hva_split(t->hva_right, n, &t->hva_right, r);
    } else {
        *r = t;
        hva_split(t->hva_left, n, l, &t->hva_left);
    }
    hva_update(t);
}

static struct kvm_slot_node *hva_insert(struct kvm_slot_node *t, struct kvm_slot_node *n)
{
    if (!t || prio(t) < prio(n)) {
        hva_split(t, n, &n->hva_left, &n->hva_right);
        hva_update(n);
        return n;
    }
    if (hva_less(n, t)) {
        t->hva_left = hva_insert(t->hva_left, n);
    } else {
        t->hva_right = hva_insert(t->hva_right, n);
    }
    hva_update(t);
    return t;
}

static struct kvm_slot_node *hva_merge(struct kvm_slot_node *a, struct kvm_slot_node *b)
{
    if (!a || !b) {
        return a ? a : b;
    }
    if (prio(a) >= prio(b)) {
        a->hva_right = hva_merge(a->hva_right, b);
        hva_update(a);
        return a;
    }
    b->hva_left = hva_merge(a, b->hva_left);
    hva_update(b);
    return b;
}

static struct kvm_slot_node *hva_erase(struct kvm_slot_node *t, struct kvm_slot_node *n)
{
    if (t == n) {
        return hva_merge(n->hva_left, n->hva_right);
    }
    if (hva_less(n, t)) {
        t->hva_left = hva_erase(t->hva_left, n);
    } else {
        t->hva_right = hva_erase(t->hva_right, n);
    }
    hva_update(t);
    return t;
}

/* ---- hash by id ---- */

static unsigned id_bucket(unsigned as_id, unsigned id)
{
    return (id ^ (as_id << (KVM_SLOT_HASH_BITS - 1))) & ((1u << KVM_SLOT_HASH_BITS) - 1);
}

static void id_erase(struct kvm_slot_set *set, struct kvm_slot_node *n)
{
    struct kvm_slot_node **p = &set->ids[id_bucket(n->slot->as_id, n->slot->id)];

    while (*p != n) {
        p = &(*p)->id_next;
    }
    *p = n->id_next;
}

static void id_insert(struct kvm_slot_set *set, struct kvm_slot_node *n)
{
    struct kvm_slot_node **p = &set->ids[id_bucket(n->slot->as_id, n->slot->id)];

    n->id_next = *p;
    *p = n;
}

/* ---- primitives ---- */

void kvm_slots_replace(struct kvm_slot_set *set, struct kvm_memslot *old, struct kvm_memslot *new)
{
    if (old) {
        gfn_erase(&set->gfn_root, &old->node[set->index]);
        set->hva_root = hva_erase(set->hva_root, &old->node[set->index]);
        id_erase(set, &old->node[set->index]);
        if (old->priv) {
            set->hva_root = hva_erase(set->hva_root, &old->priv->node[set->index]);
        }
    }
    if (new) {
        struct kvm_slot_node *n = &new->node[set->index];

        n->slot = new;
        gfn_insert(&set->gfn_root, n);
        set->hva_root = hva_insert(set->hva_root, n);
        id_insert(set, n);
        if (new->priv) {
            new->priv->node[set->index].slot = new->priv;
            set->hva_root = hva_insert(set->hva_root, &new->priv->node[set->index]);
        }
    }
}

struct kvm_slot_set *kvm_slots_inactive(struct kvm_slot_space *s)
{
    return &s->set[kvm_slots_active(s)->index ^ 1];
}

void kvm_slots_swap(struct kvm_vm *vm)
{
    struct kvm_slot_space *s = &vm->slots;
    struct kvm_slot_set *next = kvm_slots_inactive(s);
    uint64_t gen = atomic_load(&s->generation);

    next->generation = gen + 1;
    atomic_store(&s->generation, gen | KVM_GEN_IN_PROGRESS);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    atomic_store_explicit(&s->active, next, memory_order_release);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_readers_wait(vm);
    if (((gen + 1) & KVM_MMIO_GEN_MASK) == 0) {
        kvm_mmu_zap_mmio(vm); /* entries of one round ago would look fresh */
    }
    atomic_store(&s->generation, gen + 1);
    TRACE(&vm->s->trace, slots_swap, "generation %llx", gen + 1);
}

/* ---- lookups ---- */

struct kvm_memslot *kvm_slots_find(const struct kvm_slot_set *set, gfn_t f)
{
    const struct kvm_slot_node *n = set->gfn_root;

    while (n) {
        if (kvm_slot_has(n->slot, f)) {
            return n->slot;
        }
        n = f.v < n->slot->base_gfn ? n->gfn_left : n->gfn_right;
    }
    return NULL;
}

struct kvm_memslot *kvm_slots_find_vcpu(struct kvm_vcpu *v, gfn_t f)
{
    struct kvm_slot_set *set = kvm_slots_active(&v->vm->slots);
    struct kvm_memslot *slot;

    if (v->last_slot && v->last_slot_gen == set->generation && kvm_slot_has(v->last_slot, f)) {
        return v->last_slot;
    }
    slot = kvm_slots_find(set, f);
    if (slot) {
        v->last_slot = slot;
        v->last_slot_gen = set->generation;
    }
    return slot;
}

struct kvm_memslot *kvm_slots_find_id(const struct kvm_slot_set *set, unsigned as_id, unsigned id)
{
    const struct kvm_slot_node *n = set->ids[id_bucket(as_id, id)];

    while (n && (n->slot->id != id || n->slot->as_id != as_id)) {
        n = n->id_next;
    }
    return n ? n->slot : NULL;
}

/* The first slot at or above gfn, or null. */
static struct kvm_memslot *first_from(const struct kvm_slot_set *set, uint64_t gfn)
{
    const struct kvm_slot_node *n = set->gfn_root;
    struct kvm_memslot *best = NULL;

    while (n) {
        if (n->slot->base_gfn + n->slot->npages > gfn) {
            best = n->slot;
            n = n->gfn_left;
        } else {
            n = n->gfn_right;
        }
    }
    return best;
}

struct kvm_memslot *kvm_slots_first_from(const struct kvm_slot_set *set, gfn_t f)
{
    return first_from(set, f.v);
}

void kvm_slots_for_each(const struct kvm_slot_set *set, kvm_slot_fn *fn, void *opaque)
{
    struct kvm_memslot *s = first_from(set, 0);

    while (s) {
        struct kvm_memslot *next = first_from(set, s->base_gfn + s->npages);

        fn(opaque, s);
        s = next;
    }
}

static void for_hva(const struct kvm_slot_node *n, const uint64_t range[2], kvm_slot_fn *fn,
                    void *opaque)
{
    if (!n || n->hva_last < range[0]) {
        return;
    }
    for_hva(n->hva_left, range, fn, opaque);
    if (n->slot->hva <= range[1]) {
        if (slot_hva_last(n->slot) >= range[0]) {
            fn(opaque, n->slot);
        }
        for_hva(n->hva_right, range, fn, opaque);
    }
}

void kvm_slots_for_hva(const struct kvm_slot_set *set, hva_t start, hva_t end, kvm_slot_fn *fn,
                       void *opaque)
{
    const uint64_t range[2] = {start.v, end.v - 1};

    if (end.v > start.v) {
        for_hva(set->hva_root, range, fn, opaque);
    }
}

/* ---- life ---- */

void kvm_slots_init(struct kvm_vm *vm)
{
    struct kvm_slot_space *s = &vm->slots;

    s->set[1].index = 1;
    atomic_store(&s->active, &s->set[0]);
    s->set[0].generation = 1;
    atomic_store(&s->generation, 1);
}

static void free_slot(void *opaque, struct kvm_memslot *slot)
{
    kvm_slot_free(slot);
}

void kvm_slots_fini(struct kvm_vm *vm)
{
    struct kvm_slot_set *set = kvm_slots_active(&vm->slots);

    while (set->gfn_root) {
        struct kvm_memslot *slot = set->gfn_root->slot;

        kvm_slots_replace(set, slot, NULL);
        free_slot(NULL, slot);
    }
}
