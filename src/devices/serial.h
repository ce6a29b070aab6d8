/* A 16550A serial port: eight registers at a port base, one interrupt line, a character back end. */
#ifndef STRATA_DEVICES_SERIAL_H
#define STRATA_DEVICES_SERIAL_H

#include "devices/board.h"
#include "devices/chardev.h"

struct devices_serial;

/* base: 0x3f8 for COM1; gsi: 4. chardev: borrowed, outlives the port; NULL: bytes go nowhere. */
int devices_serial_new(struct devices_serial **out, const struct devices_board *board, uint16_t base,
                      unsigned gsi, struct devices_chardev *chardev, struct base_error *err) must_check;
void devices_serial_free(struct devices_serial *s);

/* Bytes that the receiver can take now. Device lock held. */
size_t devices_serial_room(const struct devices_serial *s);
/* Bytes from outside; at most devices_serial_room(). Device lock held. */
void devices_serial_receive(struct devices_serial *s, const uint8_t *bytes, size_t n);
void devices_serial_break(struct devices_serial *s);

#endif
