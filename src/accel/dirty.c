/*
 * Dirty logging by bitmap: the slot's flag on and off, the engine's log into the RAM block's bitmaps, and,
 * where protection is manual, the engine told of what has been taken over.
 *
 * With manual protection KVM_GET_DIRTY_LOG changes nothing: pages stay writable and their bits set until
 * KVM_CLEAR_DIRTY_LOG names them. `reported` of a slot remembers what was read and not yet cleared, so that
 * a bit is cleared only after it was entered into the block (a bit set since was never seen by anybody).
 *
 *     guest             sync                       taker
 *     store, set bit    read bits, mark block      clear block's bits, then the engine's; read the page
 *
 * Memory may be short at any of these: then every page of the slot counts as written, which loses nothing.
 * Locks: s->lock for everything here, taken under the topology lock. Leaves out: the dirty ring (ring.c).
 */
#include "accel/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "strata/dirty.h"

#define GROUP_PAGES 64u
#define GROUP_BYTES (GROUP_PAGES * PAGE_SIZE)

/*
 * Turn logging of the section's slots on or off. A slot still queued carries the flag already.
 * Lock: topology. Errors: accel_slots_fail(). Source: KVM_MEM_LOG_DIRTY_PAGES.
 */
void accel_dirty_log_set(struct accel_slots *s, const struct strata_section *section, bool on)
{
    struct accel_slot_desc rest, piece;

    if (!accel_slot_of_section(s, section, &rest)) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    while (accel_slot_piece(s, &rest, &piece)) {
        struct accel_slot *slot = accel_slot_table_find(&s->table, piece.gpa, piece.size);
        uint32_t old;
        int ret;

        if (!slot || !(slot->d.flags & KVM_MEM_LOG_DIRTY_PAGES) == !on) {
            continue;
        }
        if (!on) {
            accel_dirty_sync_slot(s, slot);
            free(slot->reported);
            slot->reported = NULL;
        }
        old = slot->d.flags;
        slot->d.flags ^= KVM_MEM_LOG_DIRTY_PAGES;
        ret = accel_slot_tell(s, slot, slot->d.size);
        if (ret < 0) {
            slot->d.flags = old;
            accel_slot_fail(s, ret, slot, on ? "dirty log of" : "end of the dirty log");
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* Enter a bitmap of the slot's pages into its block. */
static void import(const struct accel_slot *slot, const uint64_t *bitmap)
{
    uint64_t i, pages = slot->d.size >> PAGE_SHIFT;

    if (slot->d.ram_offset % GROUP_BYTES == 0) {
        strata_ram_import_dirty(slot->d.ram, slot->d.ram_offset, bitmap, pages);
        return;
    }
    for (i = 0; i < pages; i += GROUP_PAGES) {
        uint64_t n = pages - i < GROUP_PAGES ? pages - i : GROUP_PAGES;

        if (bitmap[i / GROUP_PAGES]) {
            strata_ram_import_dirty(slot->d.ram, slot->d.ram_offset + i * PAGE_SIZE,
                                    &bitmap[i / GROUP_PAGES], n);
        }
    }
}

/* No memory to read the log into: all of it counts as written, and the engine keeps its bits. */
static void import_all(const struct accel_slot *slot)
{
    uint64_t ones = UINT64_MAX, i, pages = slot->d.size >> PAGE_SHIFT;

    for (i = 0; i < pages; i += GROUP_PAGES) {
        strata_ram_import_dirty(slot->d.ram, slot->d.ram_offset + i * PAGE_SIZE, &ones,
                                pages - i < GROUP_PAGES ? pages - i : GROUP_PAGES);
    }
}

static bool has_buffer(struct accel_slots *s, struct accel_slot *slot)
{
    if (!slot->reported) {
        slot->words = ((slot->d.size >> PAGE_SHIFT) + 63) / 64;
        slot->reported = accel_calloc(s->accel, slot->words, 2 * sizeof(uint64_t));
    }
    return slot->reported;
}

/*
 * Fetch a slot's log and enter it into its block. A slot that the engine does not log counts as clean.
 * Lock: s->lock. Errors: accel_slot_fail(), since a log that is lost would lose writes. Source: KVM_GET_DIRTY_LOG.
 */
void accel_dirty_sync_slot(struct accel_slots *s, struct accel_slot *slot)
{
    struct kvm_dirty_log log = {.slot = slot->id};
    int ret;

    if (!slot->d.ram || !(slot->d.flags & KVM_MEM_LOG_DIRTY_PAGES) ||
        (s->accel->ring_entries && !s->accel->ring_bitmap)) {
        return;
    }
    if (!has_buffer(s, slot)) {
        import_all(slot);
        return;
    }
    log.dirty_bitmap = slot->reported;
    ret = accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_GET_DIRTY_LOG, &log);
    if (ret == 0) {
        import(slot, slot->reported);
    } else if (ret != -ENOENT) {
        accel_slot_fail(s, ret, slot, "reading the dirty log");
    }
}

/* The same for the slots of a section. Lock: topology. Source: own. */
void accel_dirty_sync(struct accel_slots *s, const struct strata_section *section)
{
    struct accel_slot_desc rest, piece;

    if (!accel_slot_of_section(s, section, &rest)) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    while (accel_slot_piece(s, &rest, &piece)) {
        struct accel_slot *slot = accel_slot_table_find(&s->table, piece.gpa, piece.size);

        if (slot) {
            accel_dirty_sync_slot(s, slot);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* Pages [first, end) of the slot: clear in the engine what was reported of them. The engine wants whole
 * groups of 64 pages, so the window is widened and the bits of others are left out of the mask. */
static void clear_pages(struct accel_slots *s, struct accel_slot *slot, uint64_t first, uint64_t end)
{
    uint64_t low = first / 64, high = (end + 63) / 64, pages = slot->d.size >> PAGE_SHIFT, w;
    uint64_t *mask = slot->reported + slot->words;
    struct kvm_clear_dirty_log log = {.slot = slot->id};
    int ret;

    for (w = low; w < high; w++) {
        mask[w] = slot->reported[w];
        mask[w] &= w == first / 64 ? UINT64_MAX << first % 64 : UINT64_MAX;
        mask[w] &= w == end / 64 ? (UINT64_C(1) << end % 64) - 1 : UINT64_MAX;
    }
    while (low < high && !mask[low]) {
        low++;
    }
    while (high > low && !mask[high - 1]) {
        high--;
    }
    if (low == high) {
        return;
    }
    log.first_page = low * 64;
    log.num_pages = (uint32_t)((high * 64 < pages ? high * 64 : pages) - log.first_page);
    log.dirty_bitmap = mask + low;
    ret = accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_CLEAR_DIRTY_LOG, &log);
    if (ret < 0 && ret != -ENOENT) {
        accel_slot_fail(s, ret, slot, "clearing the dirty log");
        return;
    }
    for (w = low; w < high; w++) {
        slot->reported[w] &= ~mask[w];
    }
}

/*
 * Pages of a section have been taken over: the engine may protect them again.
 * section: clipped to the range meant. Lock: topology. Errors: accel_slot_fail(). Source: KVM_CLEAR_DIRTY_LOG,
 * QEMU kvm_physical_log_clear().
 */
void accel_dirty_clear(struct accel_slots *s, const struct strata_section *section)
{
    uint64_t end = section->last == UINT64_MAX ? UINT64_MAX : section->last + 1;
    struct accel_slot *slot;

    if (!s->accel->manual_protect) {
        return;
    }
    pthread_mutex_lock(&s->lock);
    for (slot = accel_slot_table_from(&s->table, section->start); slot && slot->d.gpa < end;
         slot = accel_slot_table_from(&s->table, slot->d.gpa + slot->d.size)) {
        uint64_t from = section->start > slot->d.gpa ? section->start - slot->d.gpa : 0;
        uint64_t to = end - slot->d.gpa < slot->d.size ? end - slot->d.gpa : slot->d.size;

        if (slot->d.flags & KVM_MEM_LOG_DIRTY_PAGES && slot->reported) {
            clear_pages(s, slot, from >> PAGE_SHIFT, (to + PAGE_SIZE - 1) >> PAGE_SHIFT);
        }
    }
    pthread_mutex_unlock(&s->lock);
}
