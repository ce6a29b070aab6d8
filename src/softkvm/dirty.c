/*
 * Dirty logging by write-protection. A logging slot has a bitmap; a page's first write after its bit
 * was taken faults, sets the bit and makes the page writable.
 *
 * Invariants
 *  1. In a logging slot a leaf with W has its bit set, or the bit was taken and the leaf is about to be
 *     write-protected under the mmu.lock that is held.
 *  2. Whoever took bits flushes all processors before the bits are handed out: a write after that is
 *     seen by the next reading.
 *
 * Locks: slots_lock for the slot, mmu.lock exclusive for bits and entries together.
 */
#include "softkvm/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch/radix.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/user.h"

/* Take W away; MMU-W stays, so the next write is the fast path's. Returns true if it was there. A plain
 * store is enough: only accessed and dirty bits may change under us, and losing one loses nothing. */
static bool protect_entry(uint64_t *e, uint64_t old)
{
    if (!(old & EPT_W)) {
        return false;
    }
    __atomic_store_n(e, old & ~(EPT_W | EPT_D), __ATOMIC_RELEASE);
    return true;
}

/* The table of level 1 that holds gfn, or null; *huge: the huge leaf in the way, or null. */
static uint64_t *find_table(struct kvm_vm *vm, gfn_t f, uint64_t **huge)
{
    hpa_t table = vm->mmu.root;

    *huge = NULL;
    for (unsigned level = vm->mmu.levels; level > 1; level--) {
        uint64_t *e = kvm_ept_slot(vm, table, f, level);
        uint64_t v = kvm_ept_load(e);

        if (!kvm_ept_is_table(v, level)) {
            *huge = kvm_ept_is_page(v, level) ? e : NULL;
            return NULL;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
    return host_table_at(vm->s->hm, table);
}

/* One page of a table of level 1. */
static bool protect_in_table(uint64_t *table, uint64_t frame)
{
    uint64_t *e = &table[frame & (PT_ENTRIES - 1)];
    uint64_t old = __atomic_load_n(e, __ATOMIC_RELAXED);

    return kvm_ept_is_page(old, 1) && protect_entry(e, old);
}

/*
 * Write-protect the pages slot->base_gfn + offset + i for every bit i of mask. Lock: exclusive, by the
 * caller. Returns true if a processor may still hold a writable translation.
 */
bool kvm_mmu_protect_mask_locked(struct kvm_vm *vm, struct kvm_memslot *slot, uint64_t offset,
                                 uint64_t mask)
{
    uint64_t first = slot->base_gfn + offset, region = UINT64_MAX;
    uint64_t *table = NULL, *huge = NULL;
    bool flush = false;

    while (mask) {
        uint64_t f = first + (unsigned)__builtin_ctzll(mask);

        mask &= mask - 1;
        if (f >> PT_LEVEL_BITS != region) {
            region = f >> PT_LEVEL_BITS;
            table = find_table(vm, gfn(f), &huge);
            if (huge) {
                flush |= protect_entry(huge, kvm_ept_load(huge));
            }
        }
        if (table) {
            flush |= protect_in_table(table, f);
        }
    }
    return flush;
}

/*
 * Write-protect all of a slot whose logging has just gone on. Huge leaves stay, protected: the first
 * write splits them. Lock: takes mmu.lock; flushes after.
 */
void kvm_mmu_protect_slot(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {slot->base_gfn << PAGE_SHIFT,
                                     ((slot->base_gfn + slot->npages) << PAGE_SHIFT) - 1,
                                     vm->mmu.levels, 1};
    bool flush = false;

    pthread_rwlock_wrlock(&vm->mmu.lock);
    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (kvm_ept_is_page(it.entry, it.level)) {
            flush |= protect_entry(arch_radix_slot(&it), it.entry);
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    if (flush) {
        kvm_mmu_flush(vm);
    }
}

/*
 * Logging has gone off: tables of small pages that a huge page could cover are dropped, so that the
 * next access maps it. Lock: takes mmu.lock.
 */
void kvm_mmu_recover_huge(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    struct kvm_dead_tables dead = {0};
    uint64_t end = slot->base_gfn + slot->npages;
    uint64_t f = (slot->base_gfn + PT_ENTRIES - 1) & ~(uint64_t)(PT_ENTRIES - 1);

    if (vm->mmu.max_level < 2 ||
        ((slot->base_gfn ^ (slot->hva >> PAGE_SHIFT)) & (PT_ENTRIES - 1))) {
        return;
    }
    pthread_rwlock_wrlock(&vm->mmu.lock);
    for (; f + PT_ENTRIES <= end; f += PT_ENTRIES) {
        hva_t at = kvm_slot_hva(slot, gfn(f));
        uint64_t *e = kvm_ept_find(vm, gfn(f), 2);

        if (e && kvm_ept_is_table(kvm_ept_load(e), 2) && host_mapping_level(vm->s->mm, at) > 1) {
            kvm_ept_set(vm, e, 2, 0, &dead);
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_ept_finish(vm, &dead);
}

/* The logging slot that `slot` (id and address space) names. Lock: slots_lock. */
static int find_logging(struct kvm_vm *vm, uint32_t slot, struct kvm_memslot **out)
{
    if (slot >> 16 >= KVM_AS_COUNT || (slot & 0xffff) >= KVM_SLOT_IDS - KVM_SLOT_INTERNAL) {
        return -EINVAL;
    }
    *out = kvm_slots_find_id(kvm_slots_active(&vm->slots), slot >> 16, slot & 0xffff);
    return *out && (*out)->dirty ? 0 : -ENOENT;
}

/* Take all bits into the second half of the bitmap and protect the pages. Returns "flush". */
static bool take_all(struct kvm_vm *vm, struct kvm_memslot *slot, uint64_t *copy)
{
    bool flush = false;

    memset(copy, 0, slot->dirty_words * 8);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    for (size_t i = 0; i < slot->dirty_words; i++) {
        if (atomic_load_explicit(&slot->dirty[i], memory_order_relaxed)) {
            copy[i] = atomic_exchange(&slot->dirty[i], 0);
            flush |= kvm_mmu_protect_mask_locked(vm, slot, i * 64, copy[i]);
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    return flush;
}

static int get_log_locked(struct kvm_vm *vm, const struct kvm_dirty_log *log)
{
    struct kvm_memslot *slot;
    uint64_t *copy;
    int r = find_logging(vm, log->slot, &slot);

    if (r < 0) {
        return r;
    }
    copy = (uint64_t *)slot->dirty + slot->dirty_words;
    if (vm->manual_dirty) {
        for (size_t i = 0; i < slot->dirty_words; i++) {
            copy[i] = atomic_load_explicit(&slot->dirty[i], memory_order_relaxed);
        }
    } else if (take_all(vm, slot, copy)) {
        kvm_mmu_flush(vm);
    }
    return kvm_user_write(log->dirty_bitmap, copy, slot->dirty_words * 8);
}

/*
 * KVM_GET_DIRTY_LOG: copy the bitmap out (padded to 64 bits); unless protection is manual, also take
 * the bits and protect the pages anew. 0; -EINVAL bad id, -ENOENT no such slot or it does not log,
 * -EFAULT. Lock: takes slots_lock, mmu.lock.
 */
int kvm_dirty_get_log(struct kvm_vm *vm, const struct kvm_dirty_log *log)
{
    int r;

    pthread_mutex_lock(&vm->slots_lock);
    r = get_log_locked(vm, log);
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}

static int check_clear(const struct kvm_memslot *slot, const struct kvm_clear_dirty_log *log)
{
    if (log->first_page > slot->npages || log->num_pages > slot->npages - log->first_page) {
        return -EINVAL;
    }
    return log->num_pages < slot->npages - log->first_page && (log->num_pages & 63) ? -EINVAL : 0;
}

static int clear_log_locked(struct kvm_vm *vm, const struct kvm_clear_dirty_log *log)
{
    struct kvm_memslot *slot;
    size_t words = ((size_t)log->num_pages + 63) / 64, first = log->first_page / 64;
    uint64_t *mask;
    bool flush = false;
    int r = find_logging(vm, log->slot, &slot);

    if (r == 0) {
        r = check_clear(slot, log);
    }
    if (r < 0) {
        return r;
    }
    mask = (uint64_t *)slot->dirty + slot->dirty_words;
    r = kvm_user_read(mask, log->dirty_bitmap, words * 8);
    if (r < 0) {
        return r;
    }
    pthread_rwlock_wrlock(&vm->mmu.lock);
    for (size_t i = 0; i < words; i++) {
        uint64_t taken = mask[i] ? atomic_fetch_and(&slot->dirty[first + i], ~mask[i]) & mask[i] : 0;

        flush |= kvm_mmu_protect_mask_locked(vm, slot, (first + i) * 64, taken);
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    if (flush) {
        kvm_mmu_flush(vm);
    }
    return 0;
}

/*
 * KVM_CLEAR_DIRTY_LOG: take the bits that are both in the log and in the caller's bitmap, and protect
 * their pages. -EINVAL (alignment, range), -ENOENT, -EFAULT. Lock: takes slots_lock, mmu.lock.
 */
int kvm_dirty_clear_log(struct kvm_vm *vm, const struct kvm_clear_dirty_log *log)
{
    int r;

    if (log->first_page & 63) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->slots_lock);
    r = clear_log_locked(vm, log);
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}
