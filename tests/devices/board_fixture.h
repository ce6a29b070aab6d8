/* A board for device tests: an I/O space, interrupt levels and requests recorded, a clock that the test turns. */
#ifndef TESTS_DEVICES_BOARD_FIXTURE_H
#define TESTS_DEVICES_BOARD_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/board.h"
#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/memory.h"

struct fixture {
    struct strata_memory *memory;
    struct strata_region *ports;
    struct strata_space *io;
    struct devices_board board;
    int level[24];
    unsigned edges[24];
    uint64_t clock;
    uint64_t rtc_when;
    int requested; /* enum devices_request, -1: none */
    uint32_t value;
};

static void fixture_irq(void *opaque, unsigned gsi, int level)
{
    struct fixture *f = opaque;

    f->edges[gsi] += level && !f->level[gsi];
    f->level[gsi] = level;
}

static uint64_t fixture_clock(void *opaque)
{
    return ((struct fixture *)opaque)->clock;
}

static void fixture_request(void *opaque, enum devices_request what, uint32_t value)
{
    struct fixture *f = opaque;

    f->requested = what;
    f->value = value;
}

static void fixture_rtc_timer(void *opaque, uint64_t when)
{
    ((struct fixture *)opaque)->rtc_when = when;
}

static inline void fixture_init(struct fixture *f)
{
    struct strata_region_desc desc = {.kind = STRATA_CONTAINER, .name = "io", .size = 65536};

    memset(f, 0, sizeof(*f));
    f->requested = -1;
    assert_int_equal(strata_memory_new(NULL, &f->memory), 0);
    assert_int_equal(strata_region_new(f->memory, &desc, &f->ports), 0);
    assert_int_equal(strata_space_new(f->memory, "I/O", f->ports, &f->io), 0);
    strata_space_set_open_bus(f->io, true);
    f->board = (struct devices_board){f->memory, f->ports, fixture_irq, fixture_clock, fixture_request, f,
                                      fixture_rtc_timer};
    f->rtc_when = UINT64_MAX;
}

static inline void fixture_fini(struct fixture *f)
{
    strata_space_free(f->io);
    strata_region_destroy(f->ports);
    strata_memory_free(f->memory);
}

static inline uint32_t in(struct fixture *f, uint16_t port, unsigned size)
{
    uint64_t v = UINT64_MAX;

    strata_load(f->io, port, size, STRATA_LITTLE_ENDIAN, &v);
    return v & (size == 4 ? 0xffffffff : (1u << 8 * size) - 1);
}

static inline void out(struct fixture *f, uint16_t port, unsigned size, uint32_t v)
{
    strata_store(f->io, port, size, STRATA_LITTLE_ENDIAN, v);
}

#endif
