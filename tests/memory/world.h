/*
 * A small world kept twice, in the library and in the painter, with a listener that keeps the sum of
 * what it was told; for tests and fuzzers of topology. Every step is compared as a whole.
 */
#ifndef STRATA_TESTS_MEMORY_WORLD_H
#define STRATA_TESTS_MEMORY_WORLD_H

#include "oracle/memory_painter.h"
#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/region.h"

#define WORLD_UNITS  64
#define WORLD_SPACES 3
#define WORLD_PIECES (WORLD_UNITS * 2)

struct world_sum {
    struct strata_section piece[WORLD_PIECES];
    int count;
    const char *fault; /* first thing that did not add up */
    unsigned calls;
};

struct world {
    struct strata_memory *mem;
    struct painter painter;
    struct strata_region *region[PAINTER_MAX];
    int nodes;
    unsigned shift; /* a unit is 2^shift bytes */
    struct strata_space *space[WORLD_SPACES];
    int root[WORLD_SPACES];
    struct world_sum sum[WORLD_SPACES];
    struct strata_listener *listener;
    uint64_t seed;
    char why[256];
};

uint64_t world_random(struct world *w, uint64_t below);
bool world_init(struct world *w, unsigned shift, uint64_t seed, const struct strata_memory_config *c);
void world_fini(struct world *w);
int world_add_node(struct world *w, enum strata_kind kind, bool answers, int64_t size, int target,
                   int64_t offset);
bool world_add_space(struct world *w, int index, int root);
int world_step(struct world *w, unsigned op, unsigned a, unsigned b, unsigned c);
bool world_agrees(struct world *w);
void world_populate(struct world *w, int nodes);
void world_slice(struct world *w);
int world_random_step(struct world *w);

#endif
