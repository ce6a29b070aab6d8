/* The naive bus; see memory_bus.h. Results: 1 error, 2 decode error, ORed. */
#include "oracle/memory_bus.h"

#include <string.h>

static void trace(struct bus_part *part, char what, uint64_t addr, unsigned size, uint64_t value)
{
    part->trace = part->trace * 6364136223846793005u + (uint64_t)what * 31 + addr * 7 + size;
    part->trace ^= value + (part->trace >> 29);
}

uint64_t bus_device_read(struct bus_part *part, uint64_t addr, unsigned size)
{
    uint64_t value = 0;

    for (unsigned i = 0; i < size; i++) {
        value |= (uint64_t)part->byte[(addr + i) % BUS_BYTES]
                 << 8 * (part->big ? size - 1 - i : i);
    }
    trace(part, 'r', addr, size, 0);
    return value;
}

void bus_device_write(struct bus_part *part, uint64_t addr, uint64_t value, unsigned size)
{
    trace(part, 'w', addr, size, value);
    for (unsigned i = 0; i < size; i++) {
        part->byte[(addr + i) % BUS_BYTES] = (uint8_t)(value >> 8 * (part->big ? size - 1 - i : i));
    }
}

static struct bus_part *find(struct bus *bus, uint64_t addr)
{
    for (int i = 0; i < bus->parts; i++) {
        if (addr - bus->part[i].start < bus->part[i].len) {
            return &bus->part[i];
        }
    }
    return NULL;
}

static unsigned floor_power(uint64_t n)
{
    unsigned p = 1;

    while (p * 2 <= n && p < 8) {
        p *= 2;
    }
    return p;
}

/* U33: how many bytes go into one access. `at`: offset in the device, or the address in a hole. */
static unsigned piece(const struct bus_part *part, uint64_t at, size_t len)
{
    unsigned max = part && part->vmax ? part->vmax : 4;

    while ((!part || !part->impl_unaligned) && at % max != 0) {
        max /= 2;
    }
    return floor_power(len < max ? len : max);
}

/* U34 */
static bool valid(const struct bus_part *part, uint64_t at, unsigned size)
{
    if (!part->valid_unaligned && at % size != 0) {
        return false;
    }
    return part->vmax == 0 || (part->vmin <= size && size <= part->vmax);
}

/* U35: the device's own access size. */
static unsigned own_size(const struct bus_part *part, unsigned size)
{
    unsigned min = part->imin ? part->imin : 1, max = part->imax ? part->imax : 4;

    size = size > max ? max : size;
    return size < min ? min : size;
}

/* The value as the device means it, for `size` bytes at `at`; 128-bit, so that shifts cannot fall
 * out on either side. */
static uint64_t gather(struct bus_part *part, uint64_t at, unsigned size)
{
    unsigned own = own_size(part, size);
    unsigned __int128 all = 0;

    for (unsigned i = 0; i < size; i += own) {
        unsigned __int128 v = bus_device_read(part, at + i, own);
        int up = part->big ? (int)size - (int)own - (int)i : (int)i;

        v <<= 32;
        v = up < 0 ? v >> 8 * -up : v << 8 * up;
        all |= v >> 32;
    }
    return size == 8 ? (uint64_t)all : (uint64_t)all & ((UINT64_C(1) << 8 * size) - 1);
}

static void scatter(struct bus_part *part, uint64_t at, unsigned size, uint64_t value)
{
    unsigned own = own_size(part, size);
    uint64_t mask = own == 8 ? UINT64_MAX : (UINT64_C(1) << 8 * own) - 1;

    for (unsigned i = 0; i < size; i += own) {
        int down = part->big ? (int)size - (int)own - (int)i : (int)i;
        uint64_t v = down < 0 ? value << 8 * -down : value >> 8 * down;

        bus_device_write(part, at + i, v & mask, own);
    }
}

/* Bytes in memory order to a number in the device's order, and back. */
static uint64_t number(const struct bus_part *part, const uint8_t *buf, unsigned size)
{
    uint64_t v = 0;

    for (unsigned i = 0; i < size; i++) {
        v |= (uint64_t)buf[i] << 8 * (part->big ? size - 1 - i : i);
    }
    return v;
}

static void bytes(const struct bus_part *part, uint64_t v, uint8_t *buf, unsigned size)
{
    for (unsigned i = 0; i < size; i++) {
        buf[i] = (uint8_t)(v >> 8 * (part->big ? size - 1 - i : i));
    }
}

unsigned bus_read(struct bus *bus, uint64_t addr, uint8_t *buf, size_t len)
{
    unsigned result = 0;

    while (len > 0) {
        struct bus_part *part = find(bus, addr);
        uint64_t at = part ? addr - part->start : addr;
        unsigned n;

        if (part && part->kind != BUS_DEVICE) {
            n = 1;
            buf[0] = part->byte[at];
        } else {
            n = piece(part, at, len);
            if (part && valid(part, at, n)) {
                bytes(part, gather(part, at, n), buf, n);
            } else {
                memset(buf, 0, n);
                result |= 2;
            }
        }
        buf += n;
        addr += n;
        len -= n;
    }
    return result;
}

unsigned bus_write(struct bus *bus, uint64_t addr, const uint8_t *buf, size_t len)
{
    unsigned result = 0;

    while (len > 0) {
        struct bus_part *part = find(bus, addr);
        uint64_t at = part ? addr - part->start : addr;
        unsigned n = 1;

        if (part && part->kind == BUS_RAM) {
            part->byte[at] = buf[0];
        } else if (part && part->kind == BUS_ROM) {
            n = piece(NULL, at, len < part->len - at ? len : part->len - at);
            result |= 2;
        } else {
            n = piece(part, at, len);
            if (part && valid(part, at, n)) {
                scatter(part, at, n, number(part, buf, n));
            } else {
                result |= 2;
            }
        }
        buf += n;
        addr += n;
        len -= n;
    }
    return result;
}
