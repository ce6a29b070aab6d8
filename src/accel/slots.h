/*
 * Memory slots: the engine's list of (guest-physical range, host pointer), kept equal to the flat view of
 * the attached memory space. For the files of accel/ that listen to that space.
 *
 * Invariants: 1. a live slot of the table is exactly what the engine was told last under its id; 2. what
 * is queued is applied at commit, and nothing else changes the table.
 *
 * Locks: callbacks come under the topology lock of the memory handle, which guards the queues. `lock`
 * guards the table, the logs and the dirty rings' read indices; vCPU threads and the reaper take it, too.
 * Order: device lock, topology lock, lock. The gate is closed before `lock` is taken, never under it.
 */
#ifndef STRATA_ACCEL_SLOTS_H
#define STRATA_ACCEL_SLOTS_H

#include "accel/internal.h"
#include "accel/slot_table.h"
#include "base/addr.h"
#include "strata/listener.h"
#include "strata/ram.h"
#include "strata/region.h"

struct accel_slot_list {
    struct accel_slot_desc *v;
    size_t count, room;
};

struct accel_slots {
    struct accel *accel;
    struct strata_listener *memory_listener, *io_listener;
    struct strata_ram_notifier ram_notifier;
    bool notified; /* ram_notifier is in the list */
    bool closing;
    struct accel_slot_list adding, going; /* queued until commit */
    pthread_mutex_t lock;
    struct accel_slot_table table;
    struct accel_private *privates; /* private.c */
    int error; /* first failure of an update that could not be refused */
    char error_text[256];
};

/* slots.c */
/* The slots that a section becomes, as one range: whole host pages of a range that has host memory. false: none.
 * Pieces of at most accel->max_slot_size each: accel_slot_piece(). */
bool accel_slot_of_section(const struct accel_slots *s, const struct strata_section *section,
                           struct accel_slot_desc *out);
/* Cut the first piece off *rest into *piece; false when nothing is left. */
bool accel_slot_piece(const struct accel_slots *s, struct accel_slot_desc *rest,
                      struct accel_slot_desc *piece);
/* How many pieces that makes. */
uint64_t accel_slot_pieces(const struct accel_slots *s, const struct accel_slot_desc *d);
int accel_slot_list_reserve(struct accel *a, struct accel_slot_list *l, size_t more);
int accel_slot_list_push(struct accel *a, struct accel_slot_list *l, const struct accel_slot_desc *d);
/* Apply what is queued: deletions, then additions. */
void accel_slots_commit(struct accel_slots *s);
/* together.c: the same as one transaction, with vCPUs running; false: it was not tried. */
bool accel_slots_apply_together(struct accel_slots *s);
/* Tell the engine one slot (size 0: delete) with its flags. */
int accel_slot_tell(struct accel_slots *s, const struct accel_slot *slot, uint64_t size);
void accel_slots_fail(struct accel_slots *s, int code, const char *fmt, ...) printf_like(3, 4);
/* The same for an ioctl on a slot: names its id, address, size and flags. */
void accel_slot_fail(struct accel_slots *s, int code, const struct accel_slot *slot, const char *what);

/* dirty.c */
void accel_dirty_log_set(struct accel_slots *s, const struct strata_section *section, bool on);
void accel_dirty_sync(struct accel_slots *s, const struct strata_section *section);
void accel_dirty_sync_slot(struct accel_slots *s, struct accel_slot *slot);
void accel_dirty_clear(struct accel_slots *s, const struct strata_section *section);

/* ring.c */
void accel_ring_sync(struct accel_slots *s, bool last_stage);
/* Collect every ring into the blocks' bitmaps and give the entries back. s->lock is held. */
void accel_ring_collect_locked(struct accel_slots *s);

/* private.c */
struct accel_private;
/* The descriptor of a block's private half, made if need be; or -errno. s->lock is held. */
int accel_private_fd(struct accel_slots *s, struct strata_ram *ram);
/* Pages of a new slot begin private. */
int accel_private_begin(struct accel_slots *s, const struct accel_slot *slot);
void accel_private_fini(struct accel_slots *s);
/* A block goes, or part of it was given back: the private half follows. */
void accel_private_removed(struct accel_slots *s, struct strata_ram *ram);
void accel_private_discarded(struct accel_slots *s, struct strata_ram *ram, uint64_t start, uint64_t len);

/* eventfd.c */
void accel_eventfd_assign(struct accel_slots *s, const struct strata_eventfd *ev, bool is_pio, bool assign);
void accel_coalesced_zone(struct accel_slots *s, uint64_t start, uint64_t size, bool is_pio, bool add);

#endif
