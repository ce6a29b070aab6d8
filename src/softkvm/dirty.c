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
 *  3. A set bit is followed by may_be_dirty: a log that finds the mark absent is clean, but for bits whose setters
 *     have not come so far; they are in the next one.
 *
 * Locks: slots_lock for the slot, mmu.lock exclusive for bits and entries together.
 */
#include "softkvm/dirty.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/ring.h"
#include "softkvm/user.h"
#include "softkvm/vm.h"

/* The logging slot that `slot` (id and address space) names. Lock: slots_lock. */
static int find_logging(struct kvm_vm *vm, uint32_t slot, struct kvm_memslot **out)
{
    if (!kvm_ring_allows_bitmap(vm)) {
        return -ENXIO;
    }
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

    TRACE(&vm->s->trace, dirty_take, "slot %llu pages %llx", slot->id, slot->npages);
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
    kvm_mmu_pml_sync(vm);
    if (!atomic_exchange(&slot->may_be_dirty, 0)) {
        return kvm_user_clear(log->dirty_bitmap, slot->dirty_words * 8);
    }
    copy = (uint64_t *)slot->dirty + slot->dirty_words;
    if (vm->manual_dirty) {
        uint64_t any = 0;

        for (size_t i = 0; i < slot->dirty_words; i++) {
            copy[i] = atomic_load_explicit(&slot->dirty[i], memory_order_relaxed);
            any |= copy[i];
        }
        if (any) {
            atomic_store(&slot->may_be_dirty, 1); /* they stay until cleared */
        }
    } else if (take_all(vm, slot, copy)) {
        kvm_mmu_flush(vm);
    }
    return kvm_user_write(log->dirty_bitmap, copy, slot->dirty_words * 8);
}

/*
 * KVM_GET_DIRTY_LOG: copy the bitmap out (padded to 64 bits); unless protection is manual, also take
 * the bits and protect the pages anew. 0; -ENXIO (rings, no bitmap), -EINVAL bad id, -ENOENT no such slot or it does not log,
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

/* Huge leaves of pages that are to be protected one by one; there are none, unless logging began with all bits
 * set. The mask is the second half of the bitmap. */
static void split_masked(struct kvm_vm *vm, const struct kvm_memslot *slot, size_t first, size_t words)
{
    const uint64_t *mask = (const uint64_t *)slot->dirty + slot->dirty_words;

    for (size_t i = 0; (vm->manual_dirty & KVM_DIRTY_LOG_INITIALLY_SET) && i < words; i++) {
        uint64_t at = (first + i) * 64, n = slot->npages - at;

        if (mask[i]) {
            kvm_mmu_split_slot(vm, slot, at, n < 64 ? n : 64);
        }
    }
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
    kvm_mmu_pml_sync(vm);
    split_masked(vm, slot, first, words);
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
 * their pages. -ENXIO (rings), -EINVAL (alignment, range), -ENOENT, -EFAULT. Lock: takes slots_lock, mmu.lock.
 */
int kvm_dirty_clear_log(struct kvm_vm *vm, const struct kvm_clear_dirty_log *log)
{
    int r;

    if (!kvm_ring_allows_bitmap(vm)) {
        return -ENXIO;
    }
    if (log->first_page & 63) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->slots_lock);
    r = clear_log_locked(vm, log);
    pthread_mutex_unlock(&vm->slots_lock);
    return r;
}
