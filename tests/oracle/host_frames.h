/* Oracle for page frames: one byte per frame says who has it. Nothing clever, nothing shared with
 * src. */
#ifndef STRATA_TESTS_ORACLE_HOST_FRAMES_H
#define STRATA_TESTS_ORACLE_HOST_FRAMES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

struct oracle_frames {
    unsigned char *taken;
    uint64_t n, used;
};

static inline struct oracle_frames oracle_frames_make(uint64_t n)
{
    return (struct oracle_frames){.taken = calloc(n, 1), .n = n};
}

/* False when the block is unaligned, out of range, frame 0, or overlaps something taken. */
static inline bool oracle_frames_take(struct oracle_frames *o, uint64_t first, uint64_t count)
{
    if (first % count != 0 || first == 0 || first + count > o->n) {
        return false;
    }
    for (uint64_t i = 0; i < count; i++) {
        if (o->taken[first + i]) {
            return false;
        }
        o->taken[first + i] = 1;
    }
    o->used += count;
    return true;
}

static inline void oracle_frames_give(struct oracle_frames *o, uint64_t first, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        o->taken[first + i] = 0;
    }
    o->used -= count;
}

/* Reproducible numbers for tests. */
static inline uint64_t oracle_random(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

#endif
