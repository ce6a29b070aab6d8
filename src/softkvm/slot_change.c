/*
 * KVM_SET_USER_MEMORY_REGION2: the checks in KVM's order, then one of four verbs (create, delete, move,
 * flags) over the primitives of slot.c.
 *
 *   delete, move:  [old] -> publish a copy flagged invalid -> zap -> publish none / the new -> free
 *   create, flags: publish the new -> what the flags ask of the MMU -> free the old
 *
 * Everything that can fail (allocation) is done before the first publication, so a change happens
 * whole or not at all. vCPUs run on meanwhile: a fault that meets an invalid slot is retried.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/state.h"
#include "softkvm/lpage.h"
#include "softkvm/gmem.h"
#include "softkvm/slot_impl.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

/* Highest address that a program's memory can have, exclusive, and the guest's physical width. */
#define USER_LIMIT    UINT64_C(0x7ffffffff000)
#define MAX_GUEST_GFN ((UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT)) - 1)

bool kvm_slot_is_reachable(const struct kvm_vm *vm, uint64_t first, uint64_t npages)
{
    return first + npages - 1 <= (kvm_vm_has_shared_bit(vm) ? KVM_SHARED_GFN_BIT - 1 : MAX_GUEST_GFN);
}

static uint32_t mix(uint32_t id)
{
    uint64_t x = (id + 1) * UINT64_C(0x9e3779b97f4a7c15);

    return (uint32_t)(x >> 32);
}

void kvm_slot_free(struct kvm_memslot *slot)
{
    kvm_gmem_unbind(slot);
    free((void *)slot->dirty);
    free(slot->lpage);
    free(slot);
}

void kvm_slot_mark_dirty(struct kvm_vcpu *v, struct kvm_memslot *slot, gfn_t f)
{
    uint64_t i = f.v - slot->base_gfn;
    uint64_t bit = UINT64_C(1) << (i & 63);

    if (v->ring.entries && kvm_slot_is_logged(slot) && kvm_ring_push(v, slot, i)) {
        return;
    }
    if (slot->dirty &&
        !(atomic_load_explicit(&slot->dirty[i / 64], memory_order_relaxed) & bit)) {
        atomic_fetch_or(&slot->dirty[i / 64], bit);
        if (!atomic_load(&slot->may_be_dirty)) {
            atomic_store(&slot->may_be_dirty, 1);
        }
    }
}

/* ---- checks ---- */

/* The flags that may be together on this VM. */
static uint32_t allowed_flags(const struct kvm_vm *vm, uint32_t flags)
{
    if (flags & KVM_MEM_GUEST_MEMFD) {
        return KVM_MEM_GUEST_MEMFD; /* private memory is neither logged nor read-only */
    }
    return KVM_MEM_READONLY | (kvm_vm_has_shared_bit(vm) ? 0 : KVM_MEM_LOG_DIRTY_PAGES);
}

int kvm_slot_check(const struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m)
{
    uint64_t end;

    if ((m->slot & 0xffff) >= KVM_SLOT_IDS - KVM_SLOT_INTERNAL) {
        return -EINVAL;
    }
    if (m->flags & ~allowed_flags(vm, m->flags)) {
        return -EINVAL;
    }
    if (page_offset(m->memory_size) || page_offset(m->guest_phys_addr)) {
        return -EINVAL;
    }
    if (page_offset(m->userspace_addr) ||
        __builtin_add_overflow(m->userspace_addr, m->memory_size, &end) || end > USER_LIMIT) {
        return -EINVAL;
    }
    if ((m->flags & KVM_MEM_GUEST_MEMFD) &&
        (page_offset(m->guest_memfd_offset) ||
         __builtin_add_overflow(m->guest_memfd_offset, m->memory_size, &end))) {
        return -EINVAL;
    }
    if (m->slot >> 16 >= KVM_AS_COUNT) {
        return -EINVAL;
    }
    if (__builtin_add_overflow(m->guest_phys_addr, m->memory_size, &end)) {
        return -EINVAL;
    }
    return m->memory_size >> PAGE_SHIFT > KVM_SLOT_MAX_PAGES ? -EINVAL : 0;
}

static bool overlaps(const struct kvm_slot_set *set, uint32_t id, uint64_t first, uint64_t npages)
{
    struct kvm_memslot *s = kvm_slots_first_from(set, gfn(first));

    while (s && s->base_gfn < first + npages) {
        if (s->id != id) {
            return true;
        }
        s = kvm_slots_first_from(set, gfn(s->base_gfn + s->npages));
    }
    return false;
}

/* ---- preparation ---- */

/* All pages count as dirty when logging goes on, and none is protected until its bit is cleared. Rings have
 * no such start: there, what is not protected would be missed. */
static bool is_initially_set(const struct kvm_vm *vm)
{
    return (vm->manual_dirty & KVM_DIRTY_LOG_INITIALLY_SET) && !vm->ring_bytes;
}

/* Free `slot`, but not what the other that replaces it (or that it was to replace; may be null) has of it. */
static void free_replaced(struct kvm_memslot *slot, const struct kvm_memslot *other)
{
    if (other && other->dirty == slot->dirty) {
        slot->dirty = NULL;
    }
    if (other && other->lpage == slot->lpage) {
        slot->lpage = NULL;
    }
    kvm_slot_free(slot);
}

/* A bitmap for the slot, or over from the old one. Twice the size: see slot.h. */
static int make_bitmap(struct kvm_vm *vm, struct kvm_memslot *new, const struct kvm_memslot *old)
{
    new->dirty_words = (new->npages + 63) / 64;
    if (!kvm_slot_is_logged(new) || !kvm_ring_allows_bitmap(vm)) {
        return 0;
    }
    if (old && old->dirty) {
        new->dirty = old->dirty;
        return 0;
    }
    new->dirty = kvm_alloc_array(vm->s, new->dirty_words, 16);
    if (!new->dirty) {
        return -ENOMEM;
    }
    if (is_initially_set(vm)) {
        memset((void *)new->dirty, 0xff, new->npages / 64 * 8);
        if (new->npages % 64) {
            new->dirty[new->npages / 64] = (UINT64_C(1) << new->npages % 64) - 1;
        }
    }
    return 0;
}

struct kvm_memslot *kvm_slot_make(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m,
                                  const struct kvm_memslot *old)
{
    struct kvm_memslot *slot = kvm_alloc(vm->s, sizeof(*slot));

    if (!slot) {
        return NULL;
    }
    slot->base_gfn = m->guest_phys_addr >> PAGE_SHIFT;
    slot->npages = m->memory_size >> PAGE_SHIFT;
    slot->hva = m->userspace_addr;
    slot->flags = m->flags;
    slot->id = (uint16_t)m->slot;
    slot->as_id = (uint16_t)(m->slot >> 16);
    slot->prio = mix(m->slot);
    atomic_store(&slot->may_be_dirty, 1); /* the bitmap may come from elsewhere */
    slot->lpage = old && old->base_gfn == slot->base_gfn ? old->lpage : kvm_lpage_new(vm->s, slot);
    if (!slot->lpage || make_bitmap(vm, slot, old) < 0) {
        free_replaced(slot, old);
        return NULL;
    }
    return slot;
}

/* ---- verbs ---- */

/* Edit the inactive set, publish it, make the same edit in the other. */
static void publish(struct kvm_vm *vm, struct kvm_memslot *old, struct kvm_memslot *new)
{
    kvm_slots_replace(kvm_slots_inactive(&vm->slots), old, new);
    kvm_slots_swap(vm);
    kvm_slots_replace(kvm_slots_inactive(&vm->slots), old, new);
    atomic_fetch_add_explicit(&vm->counters.slot_updates, 1, memory_order_relaxed);
}

/* All of a slot, while vCPUs may mark its pages dirty. */
static void copy_slot(struct kvm_memslot *to, struct kvm_memslot *from)
{
    size_t at = offsetof(struct kvm_memslot, may_be_dirty), past = at + sizeof(from->may_be_dirty);

    memcpy(to, from, at);
    memcpy((char *)to + past, (char *)from + past, sizeof(*from) - past);
    atomic_store(&to->may_be_dirty, atomic_load(&from->may_be_dirty));
}

/* Delete (new null) or move: no translation of the old place is left when this returns. */
static int replace_by_way_of_invalid(struct kvm_vm *vm, struct kvm_memslot *old,
                                     struct kvm_memslot *new)
{
    struct kvm_memslot *invalid = kvm_alloc(vm->s, sizeof(*invalid));

    if (!invalid) {
        return -ENOMEM;
    }
    copy_slot(invalid, old);
    invalid->flags |= KVM_SLOT_INVALID;
    publish(vm, old, invalid);
    kvm_mmu_zap_range(vm, gfn(old->base_gfn), old->npages);
    publish(vm, invalid, new);
    invalid->dirty = NULL;
    invalid->lpage = NULL;
    invalid->gmem = NULL;
    kvm_slot_free(invalid);
    return 0;
}

static int slot_delete(struct kvm_vm *vm, struct kvm_memslot *old)
{
    int r = replace_by_way_of_invalid(vm, old, NULL);

    if (r == 0) {
        vm->slots.total_pages -= old->npages;
        vm->slots.count--;
        kvm_slot_free(old);
    }
    return r;
}

static int slot_create(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m)
{
    struct kvm_memslot *new = kvm_slot_make(vm, m, NULL);

    int r = new && (m->flags & KVM_MEM_GUEST_MEMFD)
                ? kvm_gmem_bind(vm, new, (int)m->guest_memfd, m->guest_memfd_offset)
                : 0;

    if (!new) {
        return -ENOMEM;
    }
    if (r < 0) {
        kvm_slot_free(new);
        return r;
    }
    vm->slots.total_pages += new->npages;
    vm->slots.count++;
    kvm_host_ram_note(vm, new->hva, new->npages << PAGE_SHIFT);
    publish(vm, NULL, new);
    return 0;
}

static int slot_move(struct kvm_vm *vm, struct kvm_memslot *old,
                     const struct kvm_userspace_memory_region2 *m)
{
    struct kvm_memslot *new = kvm_slot_make(vm, m, old);
    int r;

    if (!new) {
        return -ENOMEM;
    }
    r = replace_by_way_of_invalid(vm, old, new);
    if (r < 0) {
        free_replaced(new, old);
        return r;
    }
    free_replaced(old, new);
    return 0;
}

static int slot_set_flags(struct kvm_vm *vm, struct kvm_memslot *old,
                          const struct kvm_userspace_memory_region2 *m)
{
    struct kvm_memslot *new = kvm_slot_make(vm, m, old);
    bool was = old->flags & KVM_MEM_LOG_DIRTY_PAGES, is = m->flags & KVM_MEM_LOG_DIRTY_PAGES;

    if (!new) {
        return -ENOMEM;
    }
    publish(vm, old, new);
    if (is && !was && !is_initially_set(vm)) {
        kvm_mmu_protect_slot(vm, new);
    } else if (was && !is) {
        kvm_mmu_recover_huge(vm, new);
    }
    free_replaced(old, new);
    return 0;
}

/* State checks and the choice of the verb. Lock: slots_lock. */
static int set_region_locked(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m)
{
    struct kvm_slot_set *set = kvm_slots_active(&vm->slots);
    struct kvm_memslot *old = kvm_slots_find_id(set, m->slot >> 16, m->slot & 0xffff);
    uint64_t first = m->guest_phys_addr >> PAGE_SHIFT, npages = m->memory_size >> PAGE_SHIFT;
    uint64_t total;

    if (!npages) {
        return old ? slot_delete(vm, old) : -EINVAL;
    }
    if (!old) {
        if (__builtin_add_overflow(vm->slots.total_pages, npages, &total)) {
            return -EINVAL;
        }
    } else if (m->flags & KVM_MEM_GUEST_MEMFD) {
        return -EINVAL; /* as it was bound, so it stays */
    } else if (m->userspace_addr != old->hva || npages != old->npages ||
               ((m->flags ^ old->flags) & (KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD))) {
        return -EINVAL;
    } else if (first == old->base_gfn) {
        return m->flags == old->flags ? 0 : slot_set_flags(vm, old, m);
    }
    if (overlaps(set, m->slot & 0xffff, first, npages)) {
        return -EEXIST;
    }
    if (!kvm_slot_is_reachable(vm, first, npages)) {
        return -EINVAL;
    }
    return old ? slot_move(vm, old, m) : slot_create(vm, m);
}

/*
 * Create, delete, move or re-flag a slot as `m` says. Returns 0; -EINVAL, -EEXIST, -ENOMEM with nothing
 * changed. When it returns, no vCPU uses a translation of what the slot was before.
 * Lock: takes slots_lock; not from a read section. Source: KVM's __kvm_set_memory_region(), with only
 * the slot's own range zapped.
 */
int kvm_slots_set_region(struct kvm_vm *vm, const struct kvm_userspace_memory_region2 *m)
{
    int r = kvm_slot_check(vm, m);

    if (r < 0) {
        return r;
    }
    pthread_mutex_lock(&vm->slots_lock);
    r = set_region_locked(vm, m);
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}
