/*
 * Memory slots: which guest-physical pages are which bytes of the process.
 *
 * Two sets, of which one is active: readers look at the active one; a change edits the other, makes
 * it active, waits until nobody reads the old one, and repeats the edit there. A slot sits in both
 * sets through two nodes; every set has a tree by gfn, an interval tree by hva and a hash by id.
 *
 * Locks: sets are edited under vm->slots_lock. The active set is read by vCPUs in a read section
 * (vm.h), by threads with slots_lock, and by MMU notifiers under mmu.lock (the swap takes it too).
 * A slot's fields are constant once it is active, but `dirty` (bits are set with atomics).
 */
#ifndef STRATA_SOFTKVM_SLOT_H
#define STRATA_SOFTKVM_SLOT_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"
#include "softkvm/kvm_abi.h"

struct kvm_vm;
struct kvm_vcpu;

#define KVM_AS_COUNT        1  /* address spaces: no system-management one */
#define KVM_GUEST_PHYS_BITS 46 /* MAXPHYADDR that CPUID reports */

#define KVM_SLOT_INVALID (1u << 16) /* being deleted or moved: faults retry */

#define KVM_SLOT_IDS       32767 /* ids 0..32763 are the user's, three are internal */
#define KVM_SLOT_INTERNAL  3
#define KVM_SLOT_HASH_BITS 12
#define KVM_SLOT_MAX_PAGES ((UINT64_C(1) << 31) - 1)

/* A slot in one set. Trees are treaps: `prio` from the id, so their shape is that of a random one. */
struct kvm_slot_node {
    struct kvm_slot_node *gfn_left, *gfn_right;
    struct kvm_slot_node *hva_left, *hva_right;
    struct kvm_slot_node *id_next;
    uint64_t hva_last; /* largest last byte in the hva subtree */
    struct kvm_memslot *slot;
};

struct kvm_memslot {
    uint64_t base_gfn, npages;
    uint64_t hva;          /* of the first byte */
    uint32_t flags;        /* KVM_MEM_* and KVM_SLOT_INVALID */
    uint16_t id, as_id;
    uint32_t prio;
    _Atomic(uint64_t) *dirty; /* bitmap of npages bits, LSB first; the second half of the allocation
                               * serves KVM_GET_DIRTY_LOG's copy; null when not logging */
    size_t dirty_words;
    _Atomic uint32_t may_be_dirty; /* 0: no bit of `dirty` is set, or who sets one has yet to say so here */
    struct kvm_lpage *lpage;  /* reasons against huge leaves: lpage.h; never null in a slot of a set */
    /* The private half, when there is one: gmem.h */
    struct kvm_memslot *priv; /* same frames, at the address of their private contents; in hva trees only */
    struct kvm_gmem *gmem;
    uint64_t gmem_offset;
    struct kvm_memslot *gmem_next; /* under slots_lock */
    struct kvm_slot_node node[2];
};

struct kvm_slot_set {
    struct kvm_slot_node *gfn_root, *hva_root;
    struct kvm_slot_node *ids[1u << KVM_SLOT_HASH_BITS];
    uint64_t generation; /* of the set when it became active */
    unsigned index;      /* which node[] of a slot is its */
};

#define KVM_GEN_IN_PROGRESS (UINT64_C(1) << 63)

struct kvm_slot_space {
    _Atomic(struct kvm_slot_set *) active;
    _Atomic uint64_t generation; /* changes with every swap; KVM_GEN_IN_PROGRESS during one */
    struct kvm_slot_set set[2];
    uint64_t total_pages;        /* under slots_lock, as the rest */
    uint32_t count;
};

void kvm_slots_init(struct kvm_vm *vm);
void kvm_slots_fini(struct kvm_vm *vm);

/* KVM_SET_USER_MEMORY_REGION2, and the older one, with their checks in KVM's order. Takes slots_lock.
 * 0 or -errno. */
int kvm_slots_set_region(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *mem);

/* The slot of gfn, or null; in a set the caller may read. */
struct kvm_memslot *kvm_slots_find(const struct kvm_slot_set *set, gfn_t f);
/* The same with the vCPU's last hit tried first. In its read section. */
struct kvm_memslot *kvm_slots_find_vcpu(struct kvm_vcpu *v, gfn_t f);
struct kvm_memslot *kvm_slots_find_id(const struct kvm_slot_set *set, unsigned as_id, unsigned id);

/* Call fn for every slot that maps a byte of [start, end), in no order; for its private half, fn gets
 * slot->priv. */
typedef void kvm_slot_fn(void *opaque, struct kvm_memslot *slot);
void kvm_slots_for_hva(const struct kvm_slot_set *set, hva_t start, hva_t end, kvm_slot_fn *fn,
                       void *opaque);
/* Call fn for every slot in gfn order. */
void kvm_slots_for_each(const struct kvm_slot_set *set, kvm_slot_fn *fn, void *opaque);

static inline struct kvm_slot_set *kvm_slots_active(struct kvm_slot_space *s)
{
    return atomic_load_explicit(&s->active, memory_order_acquire);
}

static inline hva_t kvm_slot_hva(const struct kvm_memslot *slot, gfn_t f)
{
    return hva(slot->hva + ((f.v - slot->base_gfn) << PAGE_SHIFT));
}

static inline bool kvm_slot_has(const struct kvm_memslot *slot, gfn_t f)
{
    return f.v - slot->base_gfn < slot->npages;
}

/* Does the slot tell which pages are written? */
static inline bool kvm_slot_is_logged(const struct kvm_memslot *slot)
{
    return slot->flags & KVM_MEM_LOG_DIRTY_PAGES;
}

/* Mark one page of a logging slot, in v's ring or in the slot's bitmap; nothing for others. v: whose
 * thread it is, in its read section. */
void kvm_slot_mark_dirty(struct kvm_vcpu *v, struct kvm_memslot *slot, gfn_t f);

#endif
