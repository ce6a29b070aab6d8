/*
 * libstrata: dirty tracking. Clients ask for logging per region (display) or for everything
 * (migration, dirty rate, dirty limit); written pages collect in bitmaps of each RAM block, one per
 * client, one bit per 4 KiB page. No written page is ever missed; one may be reported twice.
 */
#ifndef STRATA_DIRTY_H
#define STRATA_DIRTY_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_dirty_client { STRATA_DIRTY_DISPLAY, STRATA_DIRTY_CODE, STRATA_DIRTY_MIGRATION };
#define STRATA_DIRTY_CLIENTS 3

enum strata_tracking_reason {
    STRATA_TRACK_MIGRATION = 1,
    STRATA_TRACK_RATE = 2,
    STRATA_TRACK_LIMIT = 4,
};

/* Display client only, reference counted: log per region. -EINVAL: another client. */
STRATA_PUBLIC int strata_region_set_log(struct strata_region *region, bool log,
                                        enum strata_dirty_client client);
STRATA_PUBLIC unsigned strata_region_log_mask(const struct strata_region *region);
/* Translated code exists: the code client joins every RAM region's mask. */
STRATA_PUBLIC int strata_memory_set_code_tracking(struct strata_memory *mem, bool on);

/* Whole-memory tracking for a reason (flag). The first reason starts listeners, in order, rolling
 * back on failure; the last one stops them. While the machine is paused a stop is postponed. */
STRATA_PUBLIC int strata_tracking_start(struct strata_memory *mem,
                                        enum strata_tracking_reason reason);
STRATA_PUBLIC int strata_tracking_stop(struct strata_memory *mem,
                                       enum strata_tracking_reason reason);
STRATA_PUBLIC unsigned strata_tracking_reasons(const struct strata_memory *mem);
STRATA_PUBLIC int strata_tracking_set_paused(struct strata_memory *mem, bool paused);

/* Pulls what accelerators have logged into the bitmaps: per logging range, or globally. */
STRATA_PUBLIC int strata_region_sync_dirty(struct strata_region *region);
STRATA_PUBLIC int strata_sync_dirty(struct strata_memory *mem, bool last_stage);
STRATA_PUBLIC void strata_after_sync(struct strata_memory *mem);

/* Marks [offset, offset + len) of a region's RAM as written, for the clients in its mask. */
STRATA_PUBLIC void strata_region_set_dirty(struct strata_region *region, strata_addr offset,
                                           uint64_t len);

/* Bitmaps of a block. start and len in bytes; pages touched are meant. */
STRATA_PUBLIC bool strata_ram_get_dirty(const struct strata_ram *ram, uint64_t start, uint64_t len,
                                        enum strata_dirty_client client);
STRATA_PUBLIC void strata_ram_set_dirty(struct strata_ram *ram, uint64_t start, uint64_t len,
                                        unsigned client_mask);
/* Clears and tells whether any was set; listeners get log_clear for the range if so. */
STRATA_PUBLIC bool strata_ram_test_clear_dirty(struct strata_ram *ram, uint64_t start, uint64_t len,
                                               enum strata_dirty_client client);
/* Accelerators: OR a kernel bitmap (bit 0 = page at start, which is a multiple of 256 KiB when
 * npages > 64) into the block: display always, migration while tracking, code while tracked.
 * Returns how many pages of the migration client were newly set. */
STRATA_PUBLIC uint64_t strata_ram_import_dirty(struct strata_ram *ram, uint64_t start,
                                               const uint64_t *bitmap, uint64_t npages);
/* Moves the bits of [start, start + len) out into `bitmap` (LSB first, bit 0 = page of start, start a
 * multiple of 256 KiB), clearing them; returns how many were set. Calls log_clear if any were. */
STRATA_PUBLIC uint64_t strata_ram_harvest_dirty(struct strata_ram *ram, uint64_t start, uint64_t len,
                                                enum strata_dirty_client client, uint64_t *bitmap);
STRATA_PUBLIC uint64_t strata_ram_count_dirty(const struct strata_ram *ram,
                                              enum strata_dirty_client client);
/* Accelerators that delay re-protection: told of cleared ranges (section clipped), through log_clear. */
STRATA_PUBLIC void strata_region_clear_dirty(struct strata_region *region, strata_addr offset,
                                             uint64_t len);

/* Snapshot of one client's bits of a region, cleared as it is taken. */
struct strata_dirty_snapshot;
STRATA_PUBLIC int strata_dirty_snapshot_new(struct strata_region *region, strata_addr offset,
                                            uint64_t len, enum strata_dirty_client client,
                                            struct strata_dirty_snapshot **snapshot);
STRATA_PUBLIC bool strata_dirty_snapshot_get(const struct strata_dirty_snapshot *snapshot,
                                             strata_addr offset, uint64_t len);
STRATA_PUBLIC void strata_dirty_snapshot_free(struct strata_dirty_snapshot *snapshot);

STRATA_DECLS_END

#endif
