/*
 * Ranges of a 64-bit address space, in signed 128-bit arithmetic so that a range of 2^64 bytes, and
 * a base made negative by an alias offset, are ordinary values. Half-open: [start, start + size).
 * Modelled on nothing but arithmetic; source: own. No state, no locks.
 */
#ifndef STRATA_BASE_RANGE_H
#define STRATA_BASE_RANGE_H

#include <stdbool.h>
#include <stdint.h>

typedef __int128 i128;
typedef unsigned __int128 u128;

/* The size of a whole 64-bit address space, 2^64. */
#define ADDR_SPACE_SIZE ((i128)1 << 64)

struct addr_range {
    i128 start; /* bytes; may be negative while rendering */
    i128 size;  /* bytes, >= 0 */
};

static inline struct addr_range addr_range_make(i128 start, i128 size)
{
    return (struct addr_range){.start = start, .size = size};
}

static inline i128 addr_range_end(struct addr_range r)
{
    return r.start + r.size;
}

static inline bool addr_range_is_empty(struct addr_range r)
{
    return r.size <= 0;
}

static inline bool addr_range_eq(struct addr_range a, struct addr_range b)
{
    return a.start == b.start && a.size == b.size;
}

static inline bool addr_range_has(struct addr_range r, i128 addr)
{
    return addr >= r.start && addr < addr_range_end(r);
}

static inline struct addr_range addr_range_shift(struct addr_range r, i128 delta)
{
    r.start += delta;
    return r;
}

static inline bool addr_range_intersects(struct addr_range a, struct addr_range b)
{
    return a.start < addr_range_end(b) && b.start < addr_range_end(a) && a.size > 0 && b.size > 0;
}

/* The common part; an empty range at the later start when there is none. */
static inline struct addr_range addr_range_intersect(struct addr_range a, struct addr_range b)
{
    i128 start = a.start > b.start ? a.start : b.start;
    i128 end_a = addr_range_end(a), end_b = addr_range_end(b);
    i128 end = end_a < end_b ? end_a : end_b;

    return addr_range_make(start, end > start ? end - start : 0);
}

/* True, with *sum set, when a + b fits 64 bits: for every sum that guest data enters. */
static inline bool add_u64_fits(uint64_t a, uint64_t b, uint64_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

#endif
