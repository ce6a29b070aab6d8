/* Guest RAM of a test: one block of host memory, every write checked against it. Header of tests and fuzzers. */
#ifndef TESTS_MACHINE_FAKE_RAM_H
#define TESTS_MACHINE_FAKE_RAM_H

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "machine/loader.h"

struct fake_ram {
    struct machine_ram ram;
    uint8_t *bytes;
};

static int fake_ram_write(void *opaque, gpa_t addr, const void *data, size_t length)
{
    struct fake_ram *f = opaque;

    if (addr.v > f->ram.below_4g || length > f->ram.below_4g - addr.v) {
        abort(); /* the loader wrote where it had not looked */
    }
    memcpy(f->bytes + addr.v, data, length);
    return 0;
}

static inline void fake_ram_init(struct fake_ram *f, uint64_t size)
{
    f->bytes = calloc(1, size);
    f->ram = (struct machine_ram){.below_4g = size, .write = fake_ram_write, .opaque = f};
}

static inline void fake_ram_fini(struct fake_ram *f)
{
    free(f->bytes);
}

#endif
