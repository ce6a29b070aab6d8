/*
 * Dirty rings: each vCPU tells in a ring of its own, mapped by user space, which pages it has made
 * writable; user space harvests the entries in order and hands them back, upon which the pages are
 * protected anew.
 *
 *      00 --push--> DIRTY --user space--> DIRTY|RESET --KVM_RESET_DIRTY_RINGS--> 00
 *
 * Invariants
 *  1. dirty - reset <= size: the soft limit keeps a vCPU out of the guest while fewer than the reserved
 *     entries are free, and one stay in the hypervisor pushes fewer than those.
 *  2. Only entries between reset and dirty are ever reset, whatever user space writes into the others.
 *
 * Locks: `dirty` is the vCPU thread's; `reset` is moved under slots_lock and read by the vCPU. Entries are
 * published by a release store of `flags`, taken by an acquire load of it.
 * Differs from KVM: an entry that user space marks without its having been dirty is not taken for one.
 */
#include "softkvm/ring.h"

#include <errno.h>
#include <sys/mman.h>

#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

static uint32_t reserved(const struct kvm_vm *vm)
{
    return KVM_RING_RESERVED + (vm->mmu.pml ? KVM_RING_RESERVED_PML : 0);
}

/*
 * KVM_CAP_DIRTY_LOG_RING: rings of so many bytes for all vCPUs to come. -EINVAL (no power of two, below a
 * page or the reserved entries, set already, a vCPU exists); -E2BIG.
 * Lock: vm->lock held. Source: KVM's kvm_vm_ioctl_enable_dirty_log_ring().
 */
int kvm_ring_enable(struct kvm_vm *vm, uint64_t bytes)
{
    uint32_t size = (uint32_t)bytes; /* the kernel's parameter has 32 bits */

    if (!size || (size & (size - 1)) || size < reserved(vm) * sizeof(struct kvm_dirty_gfn) ||
        size < PAGE_SIZE) {
        return -EINVAL;
    }
    if (size > KVM_RING_MAX_BYTES) {
        return -E2BIG;
    }
    if (vm->ring_bytes || kvm_vm_nr_vcpus(vm)) {
        return -EINVAL;
    }
    vm->ring_bytes = size;
    return 0;
}

/*
 * KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP: writes that no vCPU makes go to slots' bitmaps. -EINVAL without
 * rings or with a slot. Lock: vm->lock held; takes slots_lock.
 */
int kvm_ring_enable_bitmap(struct kvm_vm *vm)
{
    int r = -EINVAL;

    if (!vm->ring_bytes) {
        return r;
    }
    pthread_mutex_lock(&vm->slots_lock);
    if (!vm->slots.count) {
        vm->ring_with_bitmap = true;
        r = 0;
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}

bool kvm_ring_allows_bitmap(const struct kvm_vm *vm)
{
    return !vm->ring_bytes || vm->ring_with_bitmap;
}

int kvm_ring_init(struct kvm_vcpu *v)
{
    struct kvm_vm *vm = v->vm;
    const struct softkvm_options *o = &vm->s->options;
    void *p;

    if (!vm->ring_bytes) {
        return 0;
    }
    if (o->fail_alloc && o->fail_alloc(o->fail_opaque)) {
        return -ENOMEM;
    }
    p = mmap(NULL, vm->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        return -ENOMEM;
    }
    v->ring.entries = p;
    v->ring.size = vm->ring_bytes / sizeof(struct kvm_dirty_gfn);
    v->ring.soft_limit = v->ring.size - reserved(vm);
    return 0;
}

void kvm_ring_fini(struct kvm_vcpu *v)
{
    if (v->ring.entries) {
        munmap(v->ring.entries, v->ring.size * sizeof(struct kvm_dirty_gfn));
    }
}

static uint32_t used(const struct kvm_ring *r)
{
    return r->dirty - atomic_load_explicit(&r->reset, memory_order_acquire);
}

bool kvm_ring_is_soft_full(const struct kvm_vcpu *v)
{
    return v->ring.entries && used(&v->ring) >= v->ring.soft_limit;
}

/*
 *   vCPU                                     user space
 *   slot, offset = ...                       flags & DIRTY? (acquire)
 *   flags = DIRTY (release)                  read slot, offset
 *   dirty++                                  flags |= RESET (release)
 */
bool kvm_ring_push(struct kvm_vcpu *v, const struct kvm_memslot *slot, uint64_t offset)
{
    struct kvm_ring *r = &v->ring;
    struct kvm_dirty_gfn *e = &r->entries[r->dirty & (r->size - 1)];

    if (never(used(r) >= r->size)) {
        kvm_log(v->vm->s, 3, "vm %u vcpu %u: dirty ring overflow", v->vm->number, v->id);
        return false;
    }
    __atomic_store_n(&e->slot, (uint32_t)slot->as_id << 16 | slot->id, __ATOMIC_RELAXED);
    __atomic_store_n(&e->offset, offset, __ATOMIC_RELAXED);
    __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_DIRTY, __ATOMIC_RELEASE);
    __atomic_store_n(&r->dirty, r->dirty + 1, __ATOMIC_RELEASE); /* pairs with the loop of reset_ring() */
    return true;
}

/* ---- reset ---- */

/* A window of 64 pages of one slot that are to be protected together. */
struct window {
    uint32_t slot;
    uint64_t offset, mask; /* mask 0: nothing yet */
};

/* Lock: mmu.lock exclusive. Entries of slots that are gone, or beyond their end, are stale: ignored. */
static bool protect_window(struct kvm_vm *vm, const struct window *w)
{
    struct kvm_memslot *slot;

    if (!w->mask || w->slot >> 16 >= KVM_AS_COUNT) {
        return false;
    }
    slot = kvm_slots_find_id(kvm_slots_active(&vm->slots), w->slot >> 16, w->slot & 0xffff);
    if (!slot || w->offset >= slot->npages ||
        w->offset + 63 - (unsigned)__builtin_clzll(w->mask) >= slot->npages) {
        return false;
    }
    return kvm_mmu_protect_mask_locked(vm, slot, w->offset, w->mask);
}

/* Add a page to the window if it fits, forwards or backwards. */
static bool window_add(struct window *w, uint32_t slot, uint64_t offset)
{
    uint64_t ahead = offset - w->offset, back = w->offset - offset;

    if (!w->mask || slot != w->slot) {
        return false;
    }
    if (ahead < 64) {
        w->mask |= UINT64_C(1) << ahead;
        return true;
    }
    if (back < 64 && w->mask << back >> back == w->mask) {
        w->offset = offset;
        w->mask = w->mask << back | 1;
        return true;
    }
    return false;
}

/* One vCPU's harvested entries. Lock: slots_lock, mmu.lock exclusive. */
static int reset_ring(struct kvm_vm *vm, struct kvm_ring *r, bool *flush)
{
    uint32_t at = atomic_load_explicit(&r->reset, memory_order_relaxed);
    struct window w = {0};
    int count = 0;

    while (at != __atomic_load_n(&r->dirty, __ATOMIC_ACQUIRE)) {
        struct kvm_dirty_gfn *e = &r->entries[at & (r->size - 1)];
        uint32_t slot;
        uint64_t offset;

        if (!(__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_RESET)) {
            break;
        }
        slot = __atomic_load_n(&e->slot, __ATOMIC_RELAXED);
        offset = __atomic_load_n(&e->offset, __ATOMIC_RELAXED);
        __atomic_store_n(&e->flags, 0, __ATOMIC_RELEASE);
        atomic_store_explicit(&r->reset, ++at, memory_order_release);
        count++;
        if (!window_add(&w, slot, offset)) {
            *flush |= protect_window(vm, &w);
            w = (struct window){slot, offset, 1};
        }
    }
    *flush |= protect_window(vm, &w);
    return count;
}

/*
 * KVM_RESET_DIRTY_RINGS: take back what user space has harvested from all rings, and protect the pages
 * again. Returns how many entries; -EINVAL without rings. When it returns, a write to any of the pages
 * makes a new entry. Lock: takes slots_lock, mmu.lock. Source: KVM's kvm_dirty_ring_reset().
 */
int kvm_ring_reset_all(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    bool flush = false;
    int count = 0;
    uint32_t i;

    if (!vm->ring_bytes) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->slots_lock);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    kvm_for_each_vcpu (i, v, vm) {
        count += reset_ring(vm, &v->ring, &flush);
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    if (flush) {
        kvm_mmu_flush(vm);
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return count;
}
