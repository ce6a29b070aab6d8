/*
 * Attributes of guest-physical pages: one bit each, private or not, kept apart from slots.
 *
 *   top[1024] -> middle[512] -> leaf: bits of 32,768 pages      34 bits of frame number
 *                            -> null: all clear;  ALL: all set
 *
 * A set bit means "other than the type's start": a confidential VM's pages start private.
 *
 * Change: bits first, then mmu.inv_seq under mmu.lock, then everything in the range is zapped and flushed.
 * A fault that saw the old bit sampled inv_seq before, and is found stale under mmu.lock.
 *
 * Locks: changed under slots_lock; read by anybody with none (a node, once linked, stays until the VM ends).
 */
#include "softkvm/attributes.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/kvm_abi.h"
#include "softkvm/user.h"
#include "softkvm/vm.h"

#define LEAF_BITS   15
#define MID_BITS    9
#define LEAF_PAGES  (UINT64_C(1) << LEAF_BITS)
#define LEAF_WORDS  (LEAF_PAGES / 64)
#define MID_SLOTS   (1u << MID_BITS)
#define TOP_SLOTS   (1u << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT - LEAF_BITS - MID_BITS))
#define FRAME_LIMIT (UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT))

struct leaf {
    _Atomic uint64_t word[LEAF_WORDS];
};

struct middle {
    _Atomic(struct leaf *) leaf[MID_SLOTS];
};

struct kvm_attributes {
    bool start_private;
    _Atomic(struct middle *) top[TOP_SLOTS];
};

/* Stands for a leaf with all bits set. */
static struct leaf *const ALL = (struct leaf *)1;

static struct leaf *leaf_of(const struct kvm_attributes *a, uint64_t frame)
{
    struct middle *m = atomic_load_explicit(&a->top[frame >> (LEAF_BITS + MID_BITS)], memory_order_acquire);

    return m ? atomic_load_explicit(&m->leaf[(frame >> LEAF_BITS) % MID_SLOTS], memory_order_acquire) : NULL;
}

static bool has_storage(const struct leaf *l)
{
    return l && l != ALL;
}

bool kvm_page_is_private(const struct kvm_vm *vm, gfn_t f)
{
    const struct kvm_attributes *a = vm->attrs;
    const struct leaf *l;
    bool bit;

    if (likely(!a) || f.v >= FRAME_LIMIT) {
        return false;
    }
    l = leaf_of(a, f.v);
    bit = has_storage(l)
              ? atomic_load_explicit(&l->word[f.v % LEAF_PAGES / 64], memory_order_relaxed) >> (f.v % 64) & 1
              : l == ALL;
    return bit != a->start_private;
}

/* The bits of one word that [first, end) covers. */
static uint64_t word_mask(uint64_t first, uint64_t end, uint64_t word)
{
    uint64_t lo = word * 64 > first ? 0 : first - word * 64, hi = end - word * 64;
    uint64_t mask = UINT64_MAX << lo;

    return hi < 64 ? mask & ((UINT64_C(1) << hi) - 1) : mask;
}

/* Are the bits [first, end) of one leaf all `bit`? first, end: within the leaf. */
static bool leaf_is(const struct leaf *l, uint64_t first, uint64_t end, bool bit)
{
    if (!has_storage(l)) {
        return (l == ALL) == bit;
    }
    for (uint64_t w = first / 64; w * 64 < end; w++) {
        uint64_t mask = word_mask(first, end, w);
        uint64_t v = atomic_load_explicit(&l->word[w], memory_order_relaxed) & mask;

        if (v != (bit ? mask : 0)) {
            return false;
        }
    }
    return true;
}

/* Call for each leaf's share of [first, end): frames, and the same within the leaf. */
#define for_each_leaf(at, first, end, stop)                                                        \
    for (uint64_t at = (first), stop; at < (end) && (stop = leaf_end(at, end), true); at = stop)

static uint64_t leaf_end(uint64_t at, uint64_t end)
{
    uint64_t stop = (at | (LEAF_PAGES - 1)) + 1;

    return stop < end ? stop : end;
}

static bool range_is(const struct kvm_attributes *a, uint64_t first, uint64_t end, bool bit)
{
    for_each_leaf (at, first, end, stop) {
        if (!leaf_is(leaf_of(a, at), at % LEAF_PAGES, (stop - 1) % LEAF_PAGES + 1, bit)) {
            return false;
        }
    }
    return true;
}

bool kvm_pages_are_alike(const struct kvm_vm *vm, gfn_t first, uint64_t npages)
{
    const struct kvm_attributes *a = vm->attrs;

    return likely(!a) || first.v + npages > FRAME_LIMIT ||
           range_is(a, first.v, first.v + npages, kvm_page_is_private(vm, first) != a->start_private);
}

/* ---- changing ---- */

static struct middle *need_middle(struct softkvm *s, struct kvm_attributes *a, uint64_t frame)
{
    _Atomic(struct middle *) *at = &a->top[frame >> (LEAF_BITS + MID_BITS)];
    struct middle *m = atomic_load_explicit(at, memory_order_relaxed);

    if (!m) {
        m = kvm_alloc(s, sizeof(*m));
        atomic_store_explicit(at, m, memory_order_release);
    }
    return m;
}

/*
 * Give every leaf that [first, end) covers in part storage, unless its bits are right already. This changes
 * no bit, so what was done before a failure does no harm.
 */
static int prepare(struct softkvm *s, struct kvm_attributes *a, uint64_t first, uint64_t end, bool bit)
{
    for_each_leaf (at, first, end, stop) {
        struct middle *m = need_middle(s, a, at);
        struct leaf *old = m ? leaf_of(a, at) : NULL, *l;

        if (!m) {
            return -ENOMEM;
        }
        if (stop - at == LEAF_PAGES || has_storage(old) || (old == ALL) == bit) {
            continue;
        }
        l = kvm_alloc(s, sizeof(*l));
        if (!l) {
            return -ENOMEM;
        }
        if (old == ALL) {
            memset((void *)l, 0xff, sizeof(*l));
        }
        atomic_store_explicit(&m->leaf[(at >> LEAF_BITS) % MID_SLOTS], l, memory_order_release);
    }
    return 0;
}

static void fill(struct leaf *l, uint64_t first, uint64_t end, bool bit)
{
    for (uint64_t w = first / 64; w * 64 < end; w++) {
        uint64_t mask = word_mask(first, end, w);

        if (bit) {
            atomic_fetch_or_explicit(&l->word[w], mask, memory_order_relaxed);
        } else {
            atomic_fetch_and_explicit(&l->word[w], ~mask, memory_order_relaxed);
        }
    }
}

static void apply(struct kvm_attributes *a, uint64_t first, uint64_t end, bool bit)
{
    for_each_leaf (at, first, end, stop) {
        struct middle *m = atomic_load_explicit(&a->top[at >> (LEAF_BITS + MID_BITS)], memory_order_relaxed);
        struct leaf *l = leaf_of(a, at);

        if (has_storage(l)) {
            fill(l, at % LEAF_PAGES, (stop - 1) % LEAF_PAGES + 1, bit);
        } else {
            atomic_store_explicit(&m->leaf[(at >> LEAF_BITS) % MID_SLOTS], bit ? ALL : NULL,
                                  memory_order_release);
        }
    }
}

/* Lock: slots_lock. */
static int set_range(struct kvm_vm *vm, uint64_t first, uint64_t end, bool is_private)
{
    struct kvm_attributes *a = vm->attrs;
    bool bit = is_private != a->start_private;
    int r;

    if (range_is(a, first, end, bit)) {
        return 0;
    }
    r = prepare(vm->s, a, first, end, bit);
    if (r < 0) {
        return r;
    }
    apply(a, first, end, bit);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    atomic_fetch_add(&vm->mmu.inv_seq, 1);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_zap_range(vm, gfn(first), end - first);
    return 0;
}

uint64_t kvm_attributes_supported(const struct kvm_vm *vm)
{
    return !vm || vm->attrs ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
}

/*
 * KVM_SET_MEMORY_ATTRIBUTES. Returns 0; -EFAULT; -EINVAL (flags, an attribute that the VM's type has not,
 * empty, wrapping or unaligned range); -ENOMEM with nothing changed. When it returns, no vCPU uses a
 * translation of the other half. Frames beyond the guest's physical width have no attributes.
 * Lock: takes slots_lock, mmu.lock. Source: KVM's kvm_vm_ioctl_set_mem_attributes().
 */
int kvm_attributes_set(struct kvm_vm *vm, const void *arg)
{
    struct kvm_memory_attributes u;
    uint64_t first, end, limit;
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.flags || (u.attributes & ~kvm_attributes_supported(vm))) {
        return -EINVAL;
    }
    if (!u.size || u.address + u.size < u.address || page_offset(u.address) || page_offset(u.size)) {
        return -EINVAL;
    }
    first = u.address >> PAGE_SHIFT;
    end = first + (u.size >> PAGE_SHIFT);
    limit = kvm_vm_has_shared_bit(vm) ? KVM_SHARED_GFN_BIT : FRAME_LIMIT;
    end = end > limit ? limit : end;
    if (!vm->attrs || first >= end) {
        return 0;
    }
    pthread_mutex_lock(&vm->slots_lock);
    r = set_range(vm, first, end, u.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE);
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}

/* ---- life ---- */

/* By the VM's type: none for a default VM. 0 or -ENOMEM. */
int kvm_attributes_init(struct kvm_vm *vm)
{
    if (vm->type == KVM_X86_DEFAULT_VM) {
        return 0;
    }
    vm->attrs = kvm_alloc(vm->s, sizeof(*vm->attrs));
    if (!vm->attrs) {
        return -ENOMEM;
    }
    vm->attrs->start_private = kvm_vm_has_shared_bit(vm);
    return 0;
}

static void free_middle(struct middle *m)
{
    for (unsigned i = 0; m && i < MID_SLOTS; i++) {
        struct leaf *l = atomic_load_explicit(&m->leaf[i], memory_order_relaxed);

        if (has_storage(l)) {
            free(l);
        }
    }
    free(m);
}

void kvm_attributes_fini(struct kvm_vm *vm)
{
    for (unsigned i = 0; vm->attrs && i < TOP_SLOTS; i++) {
        free_middle(atomic_load_explicit(&vm->attrs->top[i], memory_order_relaxed));
    }
    free(vm->attrs);
}
