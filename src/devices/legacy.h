/*
 * The small ports of a PC board: keyboard controller's reset line, port 0x92, delay port 0x80, and the two
 * debugging devices isa-debug-exit and debugcon.
 */
#ifndef STRATA_DEVICES_LEGACY_H
#define STRATA_DEVICES_LEGACY_H

#include "devices/board.h"
#include "devices/chardev.h"

struct devices_legacy;

struct devices_legacy_options {
    int has_debug_exit;
    uint16_t debug_exit_base, debug_exit_size; /* size: 1, 2 or 4 */
    int has_debugcon;
    uint16_t debugcon_base;
    struct devices_chardev *debugcon; /* borrowed */
};

int devices_legacy_new(struct devices_legacy **out, const struct devices_board *board,
                      const struct devices_legacy_options *opts, struct base_error *err) must_check;
void devices_legacy_free(struct devices_legacy *l);

#endif
