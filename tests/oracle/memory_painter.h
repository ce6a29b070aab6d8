/*
 * The painter: what an address shows, by the definition of visibility and nothing else. It shares no
 * code with src/memory and knows no view: every question walks the whole tree for one address.
 *
 * A world is a number of units; a unit is 2^shift bytes, so that the same small world is tried at one
 * byte, at a page, and spread over all 2^64 bytes. Addresses here are in units, signed 64-bit.
 */
#ifndef STRATA_TESTS_ORACLE_MEMORY_PAINTER_H
#define STRATA_TESTS_ORACLE_MEMORY_PAINTER_H

#include <stdbool.h>
#include <stdint.h>

#define PAINTER_MAX 40

struct painter_node {
    bool used, enabled, answers; /* answers: shows itself where no child does */
    bool readonly, nonvolatile, unmergeable;
    int64_t addr, size, offset;
    int target; /* alias: node number, else -1 */
    int parent; /* or -1 */
    int priority;
    uint64_t placed; /* when it was put there; later wins among equals */
};

struct painter {
    struct painter_node node[PAINTER_MAX];
    uint64_t clock;
};

/* What one unit shows. node -1: nothing. path: tells ways through the tree apart. */
struct painter_spot {
    int node;
    int64_t offset;
    bool readonly, nonvolatile, unmergeable;
    uint64_t path;
};

/* A maximal piece. */
struct painter_piece {
    int64_t start, last, offset;
    int node;
    bool readonly, nonvolatile, unmergeable;
};

void painter_init(struct painter *p);
void painter_place(struct painter *p, int node, int parent, int64_t addr, int priority);
struct painter_spot painter_look(const struct painter *p, int root, int64_t unit);
int painter_pieces(const struct painter *p, int root, int64_t units, struct painter_piece *out);
bool painter_contains(const struct painter *p, int from, int what);

#endif
