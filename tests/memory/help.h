/* What every test of src/memory begins with: cmocka, and short ways to make things. */
#ifndef STRATA_TESTS_MEMORY_HELP_H
#define STRATA_TESTS_MEMORY_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/dirty.h"
#include "strata/eventfd.h"
#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/print.h"
#include "strata/ram.h"
#include "strata/region.h"

static const struct strata_io_ops help_quiet_ops __attribute__((unused));

struct board {
    struct strata_memory *mem;
    struct strata_region *root;
    struct strata_space *space;
};

static inline struct strata_region *help_region(struct strata_memory *mem, enum strata_kind kind,
                                                const char *name, uint64_t size)
{
    struct strata_region_desc d = {.kind = kind, .name = name, .size = size};
    struct strata_region *r = NULL;

    d.ops = kind == STRATA_IO || kind == STRATA_ROM_DEVICE ? &help_quiet_ops : NULL;
    assert_int_equal(strata_region_new(mem, &d, &r), 0);
    return r;
}

static inline struct strata_region *help_device(struct strata_memory *mem, const char *name,
                                                uint64_t size, const struct strata_io_ops *ops,
                                                void *opaque)
{
    struct strata_region_desc d = {
        .kind = STRATA_IO, .name = name, .size = size, .ops = ops, .opaque = opaque};
    struct strata_region *r = NULL;

    assert_int_equal(strata_region_new(mem, &d, &r), 0);
    return r;
}

static inline struct strata_region *help_alias(struct strata_memory *mem, const char *name,
                                               struct strata_region *target, uint64_t offset,
                                               uint64_t size)
{
    struct strata_region_desc d = {
        .kind = STRATA_ALIAS, .name = name, .size = size, .target = target, .offset = offset};
    struct strata_region *r = NULL;

    assert_int_equal(strata_region_new(mem, &d, &r), 0);
    return r;
}

static inline void help_add(struct strata_region *parent, uint64_t addr, struct strata_region *child,
                            int priority)
{
    assert_int_equal(strata_region_add_overlap(parent, addr, child, priority), 0);
}

static inline struct board help_board(const struct strata_memory_config *config)
{
    struct board b;

    assert_int_equal(strata_memory_new(config, &b.mem), 0);
    b.root = help_region(b.mem, STRATA_CONTAINER, "root", STRATA_SIZE_ALL);
    assert_int_equal(strata_space_new(b.mem, "memory", b.root, &b.space), 0);
    return b;
}

static inline struct board help_strict_board(void)
{
    struct strata_memory_config config = {.mode = STRATA_STRICT};

    return help_board(&config);
}

/* What shows at addr, by name; "-" for nothing. */
static inline const char *help_at(const struct board *b, uint64_t addr)
{
    struct strata_section s;
    const char *name = "-";

    strata_read_begin(b->mem);
    if (strata_space_lookup(b->space, addr, &s) == 0) {
        name = strata_region_name(s.region);
    }
    strata_read_end(b->mem);
    return name;
}

static inline void help_done(const struct board *b)
{
    assert_int_equal(strata_check(b->mem), 0);
    strata_memory_free(b->mem);
}

#define help_shows(b, addr, name) assert_string_equal(help_at(b, addr), name)

#endif
