/*
 * Dirty logging by bitmap: the slot's flag on and off, and the engine's log into the RAM block's bitmaps.
 * Lock of everything here: the topology lock of the memory handle. Leaves out: the dirty ring.
 */
#include "accel/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "strata/dirty.h"

#define GROUP_PAGES 64u
#define GROUP_BYTES (GROUP_PAGES * PAGE_SIZE)

static struct accel_slot *live_slot(struct accel_slots *s, const struct strata_section *section)
{
    struct accel_slot wanted;
    size_t i;

    if (!accel_slot_of_section(s, section, &wanted)) {
        return NULL;
    }
    i = accel_slots_find(s, wanted.gpa);
    if (i == s->live.count || s->live.v[i].gpa != wanted.gpa || s->live.v[i].size != wanted.size) {
        return NULL;
    }
    return &s->live.v[i];
}

/*
 * Turn logging of the section's slot on or off. A slot still queued carries the flag already.
 * Lock: topology. Errors: accel_slots_fail(). Source: KVM_MEM_LOG_DIRTY_PAGES.
 */
void accel_dirty_log_set(struct accel_slots *s, const struct strata_section *section, bool on)
{
    struct accel_slot *slot = live_slot(s, section);
    uint32_t flags;
    int ret;

    if (!slot) {
        return;
    }
    flags = on ? slot->flags | KVM_MEM_LOG_DIRTY_PAGES : slot->flags & ~KVM_MEM_LOG_DIRTY_PAGES;
    if (flags == slot->flags) {
        return;
    }
    if (!on) {
        accel_dirty_sync_slot(s, slot);
    }
    slot->flags = flags;
    ret = accel_slot_tell(s, slot, slot->size);
    if (ret < 0) {
        accel_slots_fail(s, ret, "switching a slot's dirty log");
    }
}

static void import(const struct accel_slot *slot, const uint64_t *bitmap)
{
    uint64_t i, pages = slot->size >> PAGE_SHIFT;

    if (slot->ram_offset % GROUP_BYTES == 0) {
        strata_ram_import_dirty(slot->ram, slot->ram_offset, bitmap, pages);
        return;
    }
    for (i = 0; i < pages; i += GROUP_PAGES) {
        uint64_t n = pages - i < GROUP_PAGES ? pages - i : GROUP_PAGES;

        if (bitmap[i / GROUP_PAGES]) {
            strata_ram_import_dirty(slot->ram, slot->ram_offset + i * PAGE_SIZE,
                                    &bitmap[i / GROUP_PAGES], n);
        }
    }
}

/*
 * Fetch a slot's log and enter it into its block. A slot that the engine does not log counts as clean.
 * Lock: topology. Errors: accel_slots_fail(), since a log that is lost would lose writes. Source: KVM_GET_DIRTY_LOG.
 */
void accel_dirty_sync_slot(struct accel_slots *s, const struct accel_slot *slot)
{
    uint64_t words = ((slot->size >> PAGE_SHIFT) + 63) / 64;
    uint64_t *bitmap;
    int ret;

    if (!slot->ram || !(slot->flags & KVM_MEM_LOG_DIRTY_PAGES)) {
        return;
    }
    bitmap = calloc(words, sizeof(*bitmap));
    if (!bitmap) {
        accel_slots_fail(s, -ENOMEM, "reading a dirty log");
        return;
    }
    {
        struct kvm_dirty_log log = {.slot = slot->id, .dirty_bitmap = bitmap};

        ret = accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_GET_DIRTY_LOG, &log);
    }
    if (ret == 0) {
        import(slot, bitmap);
    } else if (ret != -ENOENT) {
        accel_slots_fail(s, ret, "reading a dirty log");
    }
    free(bitmap);
}

/* The same for the slot of a section. Lock: topology. Source: own. */
void accel_dirty_sync(struct accel_slots *s, const struct strata_section *section)
{
    struct accel_slot *slot = live_slot(s, section);

    if (slot) {
        accel_dirty_sync_slot(s, slot);
    }
}
