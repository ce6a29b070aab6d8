/*
 * The 16550A. Transmission takes no time: a byte written has left before the next instruction, so the
 * transmitter is always empty and its interrupt follows at once. Reception goes through the 16-byte FIFO,
 * which the main loop fills only as far as there is room.
 *
 *   offset 0 RBR/THR (DLL)  1 IER (DLM)  2 IIR/FCR  3 LCR  4 MCR  5 LSR  6 MSR  7 SCR
 *
 * Leaves out: the rate (the divisor is stored only), modem lines from outside, the receive time-out's
 * duration (bytes below the trigger level interrupt at once).
 * Lock: the machine's device lock for everything.
 */
#include "devices/serial.h"

#include <errno.h>
#include <stdlib.h>

#define FIFO_SIZE 16u

#define IER_RX   0x01u
#define IER_TX   0x02u
#define IER_LINE 0x04u
#define IER_MSR  0x08u

#define IIR_NONE    0x01u
#define IIR_MSR     0x00u
#define IIR_TX      0x02u
#define IIR_RX      0x04u
#define IIR_LINE    0x06u
#define IIR_TIMEOUT 0x0cu
#define IIR_FIFO    0xc0u

#define FCR_ENABLE   0x01u
#define FCR_CLEAR_RX 0x02u

#define LCR_DLAB 0x80u

#define MCR_OUT2 0x08u
#define MCR_LOOP 0x10u

#define LSR_DR    0x01u
#define LSR_OE    0x02u
#define LSR_BI    0x10u
#define LSR_EMPTY 0x60u

#define MSR_IDLE 0xb0u /* carrier, data set ready, clear to send */

struct devices_serial {
    struct devices_board board;
    struct strata_region *region;
    struct devices_chardev *chardev;
    unsigned gsi;
    uint8_t ier, lcr, mcr, lsr, scr, fcr, msr_delta;
    uint16_t divisor;
    bool tx_pending; /* the "transmitter empty" interrupt has not been read away */
    int line;        /* level last told */
    uint8_t fifo[FIFO_SIZE];
    unsigned head, count;
};

static unsigned trigger_level(const struct devices_serial *s)
{
    static const uint8_t levels[4] = {1, 4, 8, 14};

    return s->fcr & FCR_ENABLE ? levels[s->fcr >> 6] : 1;
}

static unsigned pending(const struct devices_serial *s)
{
    if ((s->ier & IER_LINE) && (s->lsr & (LSR_OE | LSR_BI))) {
        return IIR_LINE;
    }
    if ((s->ier & IER_RX) && s->count) {
        return s->count >= trigger_level(s) ? IIR_RX : IIR_TIMEOUT;
    }
    if ((s->ier & IER_TX) && s->tx_pending) {
        return IIR_TX;
    }
    return (s->ier & IER_MSR) && s->msr_delta ? IIR_MSR : IIR_NONE;
}

static void update_line(struct devices_serial *s)
{
    int level = pending(s) != IIR_NONE && (s->mcr & MCR_OUT2) && !(s->mcr & MCR_LOOP);

    if (level != s->line) {
        s->line = level;
        s->board.irq(s->board.opaque, s->gsi, level);
    }
}

static void push(struct devices_serial *s, uint8_t byte)
{
    unsigned room = s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;

    if (s->count >= room) {
        s->lsr |= LSR_OE;
        return;
    }
    s->fifo[(s->head + s->count) % FIFO_SIZE] = byte;
    s->count++;
}

static uint8_t pop(struct devices_serial *s)
{
    uint8_t byte;

    if (s->count == 0) {
        return 0;
    }
    byte = s->fifo[s->head];
    s->head = (s->head + 1) % FIFO_SIZE;
    s->count--;
    return byte;
}

static uint8_t modem_status(struct devices_serial *s)
{
    uint8_t lines = MSR_IDLE, delta = s->msr_delta;

    s->msr_delta = 0;
    if (s->mcr & MCR_LOOP) {
        /* The four outputs come back as inputs: RTS, DTR, OUT1, OUT2. */
        lines = (s->mcr & 2) << 3 | (s->mcr & 1) << 5 | (s->mcr & 4) << 4 | (s->mcr & 8) << 4;
    }
    return lines | delta;
}

static uint8_t read_iir(struct devices_serial *s)
{
    unsigned id = pending(s);

    if (id == IIR_TX) {
        s->tx_pending = false;
    }
    return id | (s->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct devices_serial *s)
{
    uint8_t value = s->lsr | LSR_EMPTY | (s->count ? LSR_DR : 0);

    s->lsr &= ~(LSR_OE | LSR_BI);
    return value;
}

static uint64_t serial_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_serial *s = opaque;
    uint8_t value = 0;

    switch (addr) {
    case 0:
        value = s->lcr & LCR_DLAB ? s->divisor & 0xff : pop(s);
        break;
    case 1:
        value = s->lcr & LCR_DLAB ? s->divisor >> 8 : s->ier;
        break;
    case 2:
        value = read_iir(s);
        break;
    case 3:
        value = s->lcr;
        break;
    case 4:
        value = s->mcr;
        break;
    case 5:
        value = read_lsr(s);
        break;
    case 6:
        value = modem_status(s);
        break;
    case 7:
        value = s->scr;
        break;
    }
    update_line(s);
    return value;
}

static void transmit(struct devices_serial *s, uint8_t byte)
{
    if (s->mcr & MCR_LOOP) {
        push(s, byte);
    } else if (s->chardev) {
        devices_chardev_write(s->chardev, byte);
    }
    s->tx_pending = true;
}

static void write_fcr(struct devices_serial *s, uint8_t value)
{
    bool toggled = (value ^ s->fcr) & FCR_ENABLE;

    s->fcr = value & FCR_ENABLE ? value & 0xc9 : 0;
    if (toggled || (value & FCR_CLEAR_RX)) {
        s->head = s->count = 0;
    }
}

static void write_ier(struct devices_serial *s, uint8_t value)
{
    /* Enabling the transmitter's interrupt while it is empty raises it. */
    if ((value & IER_TX) && !(s->ier & IER_TX)) {
        s->tx_pending = true;
    }
    s->ier = value & 0x0f;
}

static void serial_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_serial *s = opaque;
    bool dlab = s->lcr & LCR_DLAB;

    switch (addr) {
    case 0:
        if (dlab) {
            s->divisor = (s->divisor & 0xff00) | (value & 0xff);
        } else {
            transmit(s, value);
        }
        break;
    case 1:
        if (dlab) {
            s->divisor = (s->divisor & 0xff) | (value & 0xff) << 8;
        } else {
            write_ier(s, value);
        }
        break;
    case 2:
        write_fcr(s, value);
        break;
    case 3:
        s->lcr = value;
        break;
    case 4:
        s->mcr = value & 0x1f;
        break;
    case 7:
        s->scr = value;
        break;
    }
    update_line(s);
}

static const struct strata_io_ops serial_ops = {
    .read = serial_read,
    .write = serial_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 1, true},
};

/*
 * Make a serial port at `base`.
 * Returns: 0 with *out; -errno with err. Lock: the device lock, or before the guest runs. Source: National
 * Semiconductor's PC16550D data sheet.
 */
int devices_serial_new(struct devices_serial **out, const struct devices_board *board, uint16_t base,
                      unsigned gsi, struct devices_chardev *chardev, struct base_error *err)
{
    struct strata_region_desc desc = {.kind = STRATA_IO, .name = "serial", .size = 8, .ops = &serial_ops};
    struct devices_serial *s = calloc(1, sizeof(*s));
    int ret;

    if (!s) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    s->board = *board;
    s->gsi = gsi;
    s->chardev = chardev;
    s->divisor = 12;
    s->mcr = MCR_OUT2;
    desc.opaque = s;
    ret = devices_ports_add(board, &desc, base, &s->region, err);
    if (ret < 0) {
        free(s);
        return ret;
    }
    *out = s;
    return 0;
}

/* Take the port out and free it; NULL is allowed. vCPUs are stopped. Source: own. */
void devices_serial_free(struct devices_serial *s)
{
    if (s) {
        strata_region_destroy(s->region);
        free(s);
    }
}

/* Lock: the device lock. Source: own. */
size_t devices_serial_room(const struct devices_serial *s)
{
    unsigned room = s->fcr & FCR_ENABLE ? FIFO_SIZE : 1;

    return s->mcr & MCR_LOOP || s->count >= room ? 0 : room - s->count;
}

/* n: at most devices_serial_room(). Lock: the device lock. Source: own. */
void devices_serial_receive(struct devices_serial *s, const uint8_t *bytes, size_t n)
{
    size_t i;

    for (i = 0; i < n; i++) {
        push(s, bytes[i]);
    }
    update_line(s);
}

/* A break on the line: a zero byte with the break flag. Lock: the device lock. Source: PC16550D. */
void devices_serial_break(struct devices_serial *s)
{
    push(s, 0);
    s->lsr |= LSR_BI;
    update_line(s);
}
