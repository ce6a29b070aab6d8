/*
 * Memory slots: the engine's list of (guest-physical range, host pointer), kept equal to the flat view of
 * the attached memory space. For the files of accel/ that listen to that space.
 *
 * Invariants: 1. `live` is sorted by gpa and disjoint; 2. each live slot is exactly what the engine was
 * told last under its id; 3. an id is either live or on the free stack. Changes come under the topology
 * lock of the memory handle, which is this table's lock; `info_lock` guards it for readers of other threads.
 */
#ifndef STRATA_ACCEL_SLOTS_H
#define STRATA_ACCEL_SLOTS_H

#include "accel/internal.h"
#include "base/addr.h"
#include "strata/listener.h"
#include "strata/region.h"

struct accel_slot {
    uint64_t gpa, size, hva;
    uint32_t id, flags;             /* KVM_MEM_* */
    struct strata_ram *ram;         /* block behind it, or NULL; borrowed as long as the slot lives */
    uint64_t ram_offset;            /* of gpa in the block */
};

struct accel_slot_list {
    struct accel_slot *v;
    size_t count, room;
};

struct accel_slots {
    struct accel *accel;
    struct strata_listener *memory_listener, *io_listener;
    pthread_mutex_t info_lock;
    struct accel_slot_list live;          /* sorted by gpa */
    struct accel_slot_list adding, going; /* queued until commit */
    uint32_t *free_ids;
    size_t free_count;
    uint32_t next_id; /* ids from here up were never used */
    int error;        /* first failure of an update that could not be refused */
    char error_text[160];
};

/* The slot a section becomes: whole host pages of a range that has host memory. false: none. */
bool accel_slot_of_section(const struct accel_slots *s, const struct strata_section *section,
                           struct accel_slot *out);
int accel_slot_list_push(struct accel_slot_list *l, const struct accel_slot *slot);
/* Index of the live slot that begins at gpa, or of the first beyond. */
size_t accel_slots_find(const struct accel_slots *s, uint64_t gpa);
/* Apply what is queued: deletions, then additions. */
void accel_slots_commit(struct accel_slots *s);
/* Tell the engine one slot (size 0: delete). */
int accel_slot_tell(struct accel_slots *s, const struct accel_slot *slot, uint64_t size);
void accel_slots_fail(struct accel_slots *s, int code, const char *what);

/* dirty.c */
void accel_dirty_log_set(struct accel_slots *s, const struct strata_section *section, bool on);
void accel_dirty_sync(struct accel_slots *s, const struct strata_section *section);
void accel_dirty_sync_slot(struct accel_slots *s, const struct accel_slot *slot);

/* eventfd.c */
void accel_eventfd_assign(struct accel_slots *s, const struct strata_eventfd *ev, bool is_pio, bool assign);
void accel_coalesced_zone(struct accel_slots *s, uint64_t start, uint64_t size, bool is_pio, bool add);

#endif
