/*
 * What a device may ask of the machine that holds it: a place for its ports, interrupt lines, the guest's
 * clock, and the end of the run. Devices know nothing else of the machine; each is one file.
 *
 * Locks: every callback of a device runs with the machine's device lock held; functions of a device
 * that other threads call say so.
 */
#ifndef STRATA_DEVICES_BOARD_H
#define STRATA_DEVICES_BOARD_H

#include <stdint.h>

#include "base/error.h"
#include "strata/region.h"

enum devices_request {
    DEVICE_RESET,      /* restart the machine */
    DEVICE_POWEROFF,   /* S5 */
    DEVICE_DEBUG_EXIT, /* value: what the guest wrote */
};

struct devices_board {
    struct strata_memory *memory;
    struct strata_region *ports; /* root of the I/O space */
    void (*irq)(void *opaque, unsigned gsi, int level);
    uint64_t (*clock_ns)(void *opaque);
    void (*request)(void *opaque, enum devices_request what, uint32_t value);
    void *opaque;
    /* The clock wants devices_rtc_expire() when clock_ns() reaches `when` (UINT64_MAX: no more), instead of what it
     * wanted before. May be null: then its interrupts come late, at its next access. */
    void (*rtc_timer)(void *opaque, uint64_t when);
};

/*
 * Make an I/O region of `size` ports and put it at `base`. Returns: 0 with *out (owned by the caller:
 * strata_region_destroy()), or -errno with err. The ports stay the device's until then.
 */
static inline int devices_ports_add(const struct devices_board *board, const struct strata_region_desc *desc,
                                   uint16_t base, struct strata_region **out, struct base_error *err)
{
    int ret = strata_region_new(board->memory, desc, out);

    if (ret == 0) {
        ret = strata_region_add_overlap(board->ports, base, *out, 1);
        if (ret < 0) {
            strata_region_destroy(*out);
            *out = NULL;
        }
    }
    return ret < 0 ? base_error_set(err, -ret, "%s: ports at 0x%x cannot be had", desc->name, base) : 0;
}

#endif
