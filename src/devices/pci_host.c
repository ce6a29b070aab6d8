/*
 * PCI host bridge with i440FX's identity: CONFIG_ADDRESS at 0xcf8, CONFIG_DATA at 0xcfc..0xcff, and the
 * reset control register at 0xcf9, which lies inside the address register's four ports and is reached by
 * byte accesses only. Functions that are not there read as all ones.
 *
 *   CONFIG_ADDRESS: | 31 enable | 23..16 bus | 15..11 device | 10..8 function | 7..2 register |
 *
 * Leaves out: buses other than 0; the memory effect of the PAM and SMRAM registers, which are stored only.
 * Lock: the machine's device lock.
 */
#include "devices/pci_host.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define ADDRESS_ENABLE UINT32_C(0x80000000)
#define RESET_CPU      0x04u
#define SLOTS          256u

struct devices_pci_host {
    struct devices_board board;
    struct strata_region *regions[3]; /* address, data, reset */
    uint32_t address;
    uint8_t reset;
    struct devices_pci_function bridge;
    struct devices_pci_function *functions[SLOTS]; /* by device << 3 | function; borrowed */
};

static struct devices_pci_function *selected(struct devices_pci_host *h)
{
    if (!(h->address & ADDRESS_ENABLE) || (h->address >> 16 & 0xff) != 0) {
        return NULL;
    }
    return h->functions[h->address >> 8 & 0xff];
}

static uint64_t data_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_pci_host *h = opaque;
    struct devices_pci_function *f = selected(h);
    unsigned offset = (h->address & 0xfc) + addr;
    uint64_t value = 0;

    if (!f || offset + size > sizeof(f->config)) {
        return UINT64_MAX;
    }
    memcpy(&value, f->config + offset, size);
    return value;
}

static void data_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_pci_host *h = opaque;
    struct devices_pci_function *f = selected(h);
    unsigned i, offset = (h->address & 0xfc) + addr;

    if (!f || offset + size > sizeof(f->config)) {
        return;
    }
    for (i = 0; i < size; i++) {
        uint8_t mask = f->writable[offset + i];

        f->config[offset + i] = (f->config[offset + i] & ~mask) | (value >> (8 * i) & mask);
    }
    if (f->written) {
        f->written(f, offset, size);
    }
}

static uint64_t address_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_pci_host *h = opaque;

    return size == 4 && addr == 0 ? h->address : UINT64_MAX;
}

static void address_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_pci_host *h = opaque;

    if (size == 4 && addr == 0) {
        h->address = value & 0x80fffffc;
    }
}

static uint64_t reset_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_pci_host *h = opaque;

    return h->reset;
}

static void reset_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_pci_host *h = opaque;

    if (!(h->reset & RESET_CPU) && (value & RESET_CPU)) {
        h->board.request(h->board.opaque, DEVICE_RESET, 0);
    }
    h->reset = value & 0x02;
}

static const struct strata_io_ops address_ops = {
    .read = address_read,
    .write = address_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 4, true},
};

static const struct strata_io_ops data_ops = {
    .read = data_read,
    .write = data_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 4, true},
};

static bool byte_only(void *opaque, strata_addr addr, unsigned size, bool write, struct strata_attrs attrs)
{
    return size == 1;
}

static const struct strata_io_ops reset_ops = {
    .read = reset_read,
    .write = reset_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 1, true, byte_only},
    .impl = {1, 1, true},
};

static void fill_bridge(struct devices_pci_function *f)
{
    static const uint8_t head[16] = {0x86, 0x80, 0x37, 0x12, 0x06, 0x00, 0x80, 0x02,
                                     0x02, 0x00, 0x00, 0x06, 0x00, 0x00, 0x00, 0x00};

    memcpy(f->config, head, sizeof(head));
    f->config[0x2c] = 0xf4; /* subsystem, as PC monitors have it */
    f->config[0x2d] = 0x1a;
    f->config[0x2f] = 0x11;
    f->config[0x72] = 0x02;
    memset(f->writable + 0x50, 0xff, 0x30);
}

/* The reset port comes after the address register that it lies in: among equals the later one wins. */
static int add_regions(struct devices_pci_host *h, struct base_error *err)
{
    static const struct {
        const char *name;
        const struct strata_io_ops *ops;
        uint16_t base, size;
    } parts[3] = {
        {"pci-conf-idx", &address_ops, 0xcf8, 4},
        {"pci-conf-data", &data_ops, 0xcfc, 4},
        {"reset-control", &reset_ops, 0xcf9, 1},
    };
    unsigned i;
    int ret = 0;

    for (i = 0; ret == 0 && i < ARRAY_LEN(parts); i++) {
        struct strata_region_desc desc = {.kind = STRATA_IO,
                                          .name = parts[i].name,
                                          .size = parts[i].size,
                                          .ops = parts[i].ops,
                                          .opaque = h};

        ret = devices_ports_add(&h->board, &desc, parts[i].base, &h->regions[i], err);
    }
    return ret;
}

/*
 * Make the bridge; it is function 0:0 itself.
 * Returns: 0 with *out; -errno with err. Lock: the device lock, or before the guest runs. Source: PCI 2.1,
 * configuration mechanism 1; Intel's 82441FX and PIIX3 data sheets.
 */
int devices_pci_host_new(struct devices_pci_host **out, const struct devices_board *board,
                        struct base_error *err)
{
    struct devices_pci_host *h = calloc(1, sizeof(*h));
    int ret;

    if (!h) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    h->board = *board;
    fill_bridge(&h->bridge);
    h->functions[0] = &h->bridge;
    ret = add_regions(h, err);
    if (ret < 0) {
        devices_pci_host_free(h);
        return ret;
    }
    *out = h;
    return 0;
}

/* Take it out and free it; functions are their owners'. NULL is allowed. Source: own. */
void devices_pci_host_free(struct devices_pci_host *h)
{
    unsigned i;

    if (!h) {
        return;
    }
    for (i = 0; i < ARRAY_LEN(h->regions); i++) {
        if (h->regions[i]) {
            strata_region_destroy(h->regions[i]);
        }
    }
    free(h);
}

/*
 * Put a function on bus 0. f: borrowed, outlives the bridge.
 * Returns: 0; -EINVAL no such place; -EBUSY taken. Lock: the device lock. Source: own.
 */
int devices_pci_function_add(struct devices_pci_host *h, unsigned device, unsigned function,
                            struct devices_pci_function *f)
{
    if (device > 31 || function > 7) {
        return -EINVAL;
    }
    if (h->functions[device << 3 | function]) {
        return -EBUSY;
    }
    h->functions[device << 3 | function] = f;
    return 0;
}
