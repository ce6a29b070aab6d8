/*
 * Character back ends: where a serial port's bytes go and come from. Null, a file, or this process's
 * standard streams, plain or shared with Ctrl-A commands (mux).
 *
 * Locks: output is called with the machine's device lock held; input runs in the machine's main loop, which
 * takes that lock before it hands bytes to a device.
 */
#ifndef STRATA_DEVICES_CHARDEV_H
#define STRATA_DEVICES_CHARDEV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct devices_chardev;

enum devices_chardev_command { DEVICE_CHARDEV_QUIT, DEVICE_CHARDEV_BREAK };

/* Sees every byte that the guest sends, after it has been written; for marks on the console. */
typedef void devices_chardev_tap(void *opaque, uint8_t byte);
typedef void devices_chardev_act(void *opaque, enum devices_chardev_command what);

/* spec: "stdio", "mon:stdio", "null", "none", "file:PATH". */
int devices_chardev_new(struct devices_chardev **out, const char *spec, struct base_error *err) must_check;
void devices_chardev_free(struct devices_chardev *c);

void devices_chardev_set_tap(struct devices_chardev *c, devices_chardev_tap *tap, void *opaque);
void devices_chardev_set_act(struct devices_chardev *c, devices_chardev_act *act, void *opaque);

void devices_chardev_write(struct devices_chardev *c, uint8_t byte);

/* The descriptor to wait on for input, or -1. */
int devices_chardev_input_fd(const struct devices_chardev *c);
/* Read at most room bytes for the guest, commands taken out; 0: none now; -1: end of input. */
int devices_chardev_read(struct devices_chardev *c, uint8_t *to, size_t room);

#endif
