/*
 * The memory map that firmware would report: conventional memory, the firmware area, RAM below and above
 * the hole, and the chips' windows. Entries are sorted and disjoint.
 */
#include "machine/loader.h"

/*
 * Fill the map for this RAM.
 * out: room for MACHINE_E820_MAX. Returns: entries filled. Lock: none. Source: the INT 15h E820h convention.
 */
unsigned machine_e820_fill(const struct machine_ram *ram, struct machine_e820_entry *out)
{
    unsigned n = 0;
    uint64_t low = ram->below_4g < MACHINE_LOW_END ? ram->below_4g : MACHINE_LOW_END;

    out[n++] = (struct machine_e820_entry){0, low, MACHINE_E820_RAM};
    out[n++] = (struct machine_e820_entry){MACHINE_LOW_END, 0xa0000 - MACHINE_LOW_END,
                                           MACHINE_E820_RESERVED};
    out[n++] = (struct machine_e820_entry){
        MACHINE_FIRMWARE_START, MACHINE_HIGH_START - MACHINE_FIRMWARE_START, MACHINE_E820_RESERVED};
    if (ram->below_4g > MACHINE_HIGH_START) {
        out[n++] = (struct machine_e820_entry){MACHINE_HIGH_START, ram->below_4g - MACHINE_HIGH_START,
                                               MACHINE_E820_RAM};
    }
    /* The real-mode helper pages of accel/vm.c. */
    out[n++] = (struct machine_e820_entry){0xfeffc000, 0x4000, MACHINE_E820_RESERVED};
    if (ram->above_4g) {
        out[n++] = (struct machine_e820_entry){UINT64_C(1) << 32, ram->above_4g, MACHINE_E820_RAM};
    }
    return n;
}
