/*
 * Runs of elements over host memory, as string instructions do them: strictly ascending or descending, one
 * element after the other, so that overlapping source and destination replicate as the architecture says.
 *
 * All pointers are to plain guest RAM within one page (cpu_host_ptr()); for descending runs they point at
 * the first element to be done, which is the highest. n: elements of `size` bytes (1, 2, 4, 8).
 */
#ifndef STRATA_CPU_STRING_BULK_H
#define STRATA_CPU_STRING_BULK_H

#include "cpu/guest_mem.h"

void cpu_bulk_copy_up(void *dst, const void *src, unsigned n, unsigned size);
void cpu_bulk_copy_down(void *dst, const void *src, unsigned n, unsigned size);
void cpu_bulk_fill(void *first_byte, uint64_t value, unsigned n, unsigned size);

/*
 * Compare until elements are equal (`stop_equal`) or differ: how many elements were looked at, the last pair in *a
 * and *b. step: bytes from one element to the next in a and b, 0 for a fixed one.
 */
struct cpu_bulk_cmp {
    const uint8_t *a, *b;
    int step_a, step_b;
    unsigned size;
    bool stop_equal;
    uint64_t last_a, last_b;
};

unsigned cpu_bulk_compare(struct cpu_bulk_cmp *c, unsigned n);

#endif
