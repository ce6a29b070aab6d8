/*
 * Small ports, one register or two each:
 *   0x60, 0x64  keyboard controller: no keyboard; command 0xfe pulses the reset line, 0xd1 writes the output
 *               port (bit 0 low resets), 0xaa and 0x20 answer as an idle controller does
 *   0x92        fast A20 (always on) and reset
 *   0x80        delay and diagnostic port: keeps what was written
 *   isa-debug-exit  a write ends the run with status 2 * value + 1
 *   debugcon    a write is a byte of output; a read gives 0xe9
 *
 * Leaves out: keyboard and mouse. Lock: the machine's device lock.
 */
#include "devices/legacy.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KBD_FULL   0x01u
#define KBD_SYSTEM 0x04u
#define KBD_UNLOCK 0x10u

#define MAX_PORTS 6u

struct devices_legacy {
    struct devices_board board;
    struct devices_legacy_options opts;
    struct strata_region *regions[MAX_PORTS];
    unsigned count;
    uint8_t kbd_data, kbd_status, kbd_expect; /* expect: command whose data byte comes next */
    uint8_t port92, port80;
};

static void request_reset(struct devices_legacy *l)
{
    l->board.request(l->board.opaque, DEVICE_RESET, 0);
}

static uint64_t kbd_data_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_legacy *l = opaque;

    l->kbd_status &= ~KBD_FULL;
    return l->kbd_data;
}

static void kbd_data_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    if (l->kbd_expect == 0xd1 && !(value & 1)) {
        request_reset(l);
    }
    l->kbd_expect = 0;
}

static uint64_t kbd_status_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_legacy *l = opaque;

    return l->kbd_status | KBD_SYSTEM | KBD_UNLOCK;
}

static void kbd_answer(struct devices_legacy *l, uint8_t value)
{
    l->kbd_data = value;
    l->kbd_status |= KBD_FULL;
}

static void kbd_command(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    l->kbd_expect = 0;
    switch (value & 0xff) {
    case 0xfe:
        request_reset(l);
        break;
    case 0xaa:
        kbd_answer(l, 0x55);
        break;
    case 0xab:
        kbd_answer(l, 0x00);
        break;
    case 0x20:
        kbd_answer(l, 0x74);
        break;
    case 0xd0:
        kbd_answer(l, 0x03);
        break;
    case 0x60:
    case 0xd1:
        l->kbd_expect = value;
        break;
    }
}

static uint64_t port92_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_legacy *l = opaque;

    return l->port92;
}

static void port92_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    if (!(l->port92 & 1) && (value & 1)) {
        request_reset(l);
    }
    l->port92 = value | 2;
}

static uint64_t port80_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_legacy *l = opaque;

    return l->port80;
}

static void port80_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    l->port80 = value;
}

static uint64_t debug_exit_read(void *opaque, strata_addr addr, unsigned size)
{
    return 0;
}

static void debug_exit_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    l->board.request(l->board.opaque, DEVICE_DEBUG_EXIT, (uint32_t)value);
}

static uint64_t debugcon_read(void *opaque, strata_addr addr, unsigned size)
{
    return 0xe9;
}

static void debugcon_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_legacy *l = opaque;

    if (l->opts.debugcon) {
        devices_chardev_write(l->opts.debugcon, value);
    }
}

#define BYTE_OPS(r, w)                                                                             \
    {                                                                                              \
        .read = r, .write = w, .endian = STRATA_LITTLE_ENDIAN, .valid = {1, 4, true, NULL},        \
        .impl = {1, 1, true},                                                                      \
    }

static const struct strata_io_ops kbd_data_ops = BYTE_OPS(kbd_data_read, kbd_data_write);
static const struct strata_io_ops kbd_command_ops = BYTE_OPS(kbd_status_read, kbd_command);
static const struct strata_io_ops port92_ops = BYTE_OPS(port92_read, port92_write);
static const struct strata_io_ops port80_ops = BYTE_OPS(port80_read, port80_write);
static const struct strata_io_ops debugcon_ops = BYTE_OPS(debugcon_read, debugcon_write);
static const struct strata_io_ops debug_exit_ops = {
    .read = debug_exit_read,
    .write = debug_exit_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 4, true},
};

struct port {
    const char *name;
    const struct strata_io_ops *ops;
    uint16_t base, size;
};

static int add_port(struct devices_legacy *l, const struct port *p, struct base_error *err)
{
    struct strata_region_desc desc = {
        .kind = STRATA_IO, .name = p->name, .size = p->size, .ops = p->ops, .opaque = l};
    int ret = devices_ports_add(&l->board, &desc, p->base, &l->regions[l->count], err);

    l->count += ret == 0;
    return ret;
}

static int add_all(struct devices_legacy *l, struct base_error *err)
{
    const struct devices_legacy_options *o = &l->opts;
    const struct port fixed[] = {
        {"i8042-data", &kbd_data_ops, 0x60, 1},
        {"i8042-cmd", &kbd_command_ops, 0x64, 1},
        {"port92", &port92_ops, 0x92, 1},
        {"ioport80", &port80_ops, 0x80, 1},
    };
    const struct port debug_exit = {"isa-debug-exit", &debug_exit_ops, o->debug_exit_base,
                                    o->debug_exit_size};
    const struct port debugcon = {"isa-debugcon", &debugcon_ops, o->debugcon_base, 1};
    unsigned i;
    int ret = 0;

    for (i = 0; ret == 0 && i < ARRAY_LEN(fixed); i++) {
        ret = add_port(l, &fixed[i], err);
    }
    if (ret == 0 && o->has_debug_exit) {
        ret = add_port(l, &debug_exit, err);
    }
    if (ret == 0 && o->has_debugcon) {
        ret = add_port(l, &debugcon, err);
    }
    return ret;
}

/*
 * Make the small ports.
 * Returns: 0 with *out; -errno with err. Lock: the device lock, or before the guest runs. Source: IBM AT
 * technical reference; isa-debug-exit and debugcon as QEMU has them.
 */
int devices_legacy_new(struct devices_legacy **out, const struct devices_board *board,
                      const struct devices_legacy_options *opts, struct base_error *err)
{
    struct devices_legacy *l = calloc(1, sizeof(*l));
    int ret;

    if (!l) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    l->board = *board;
    l->opts = *opts;
    l->port92 = 2;
    ret = add_all(l, err);
    if (ret < 0) {
        devices_legacy_free(l);
        return ret;
    }
    *out = l;
    return 0;
}

/* Take the ports out and free; NULL is allowed. vCPUs are stopped. Source: own. */
void devices_legacy_free(struct devices_legacy *l)
{
    if (!l) {
        return;
    }
    while (l->count > 0) {
        strata_region_destroy(l->regions[--l->count]);
    }
    free(l);
}
