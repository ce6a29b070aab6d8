/*
 * A naive model of accesses: what reading and writing an address space does, piece by piece, by the
 * rules as they are written down (features U32 to U36, U40), with none of src/memory's code.
 */
#ifndef STRATA_TESTS_ORACLE_MEMORY_BUS_H
#define STRATA_TESTS_ORACLE_MEMORY_BUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BUS_PARTS 8
#define BUS_BYTES 64

enum bus_kind { BUS_RAM, BUS_ROM, BUS_DEVICE };

/* Registers of a device, or a piece of memory: BUS_BYTES bytes from `start` on. Parts are disjoint. */
struct bus_part {
    enum bus_kind kind;
    uint64_t start;
    unsigned len;
    uint8_t byte[BUS_BYTES];
    unsigned vmin, vmax, imin, imax; /* as given: 0 is "not said" */
    bool valid_unaligned, impl_unaligned, big;
    uint64_t trace; /* of the callbacks: a running digest */
};

struct bus {
    struct bus_part part[BUS_PARTS];
    int parts;
};

unsigned bus_read(struct bus *bus, uint64_t addr, uint8_t *buf, size_t len);
unsigned bus_write(struct bus *bus, uint64_t addr, const uint8_t *buf, size_t len);
/* What a device does when called; model and test device alike go by this. */
uint64_t bus_device_read(struct bus_part *part, uint64_t addr, unsigned size);
void bus_device_write(struct bus_part *part, uint64_t addr, uint64_t value, unsigned size);

#endif
