/* Runs of elements over host memory; string_bulk.h says what they promise. No state, no locks. */
#include "cpu/string_bulk.h"

#if defined(__SANITIZE_THREAD__)
#define BULK_IS_WATCHED 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BULK_IS_WATCHED 1
#endif
#endif

/* Bytes whose ascending copy is what memmove() does. */
static void move(void *dst, const void *src, size_t n)
{
#ifdef BULK_IS_WATCHED
    /* One by one in the racy accessors, which the sanitizer knows. */
    for (size_t i = 0; i < n; i++) {
        cpu_guest_put8((uint8_t *)dst + i, cpu_guest_get8((const uint8_t *)src + i));
    }
#else
    memmove(dst, src, n);
#endif
}

/* Ascending copy. Where the destination begins inside the source, each element must see what the ones before it
 * wrote; everywhere else the order cannot be told from memmove()'s. */
void cpu_bulk_copy_up(void *dst, const void *src, unsigned n, unsigned size)
{
    uint8_t *d = dst;
    const uint8_t *s = src;
    uintptr_t distance = (uintptr_t)d - (uintptr_t)s;

    if (likely(distance >= (uintptr_t)n * size || distance == 0)) {
        move(dst, src, (size_t)n * size);
        return;
    }
    for (; n > 0; n--, d += size, s += size) {
        cpu_guest_put_sized(d, size, cpu_guest_get_sized(s, size));
    }
}

/* Descending copy, element by element. */
void cpu_bulk_copy_down(void *dst, const void *src, unsigned n, unsigned size)
{
    uint8_t *d = dst;
    const uint8_t *s = src;

    for (; n > 0; n--, d -= size, s -= size) {
        cpu_guest_put_sized(d, size, cpu_guest_get_sized(s, size));
    }
}

/* Fill n elements; order does not show. */
void cpu_bulk_fill(void *first_byte, uint64_t value, unsigned n, unsigned size)
{
    uint64_t pattern = value;
    uint8_t *d = first_byte;
    unsigned i, bytes = n * size;

    if (size < 8) {
        pattern &= (UINT64_C(1) << size * 8) - 1;
        pattern *= size == 1 ? UINT64_C(0x0101010101010101) : size == 2 ? UINT64_C(0x0001000100010001)
                                                                        : UINT64_C(0x0000000100000001);
    }
#ifndef BULK_IS_WATCHED
    if (pattern == (uint8_t)pattern * UINT64_C(0x0101010101010101)) {
        memset(d, (int)(pattern & 0xff), bytes);
        return;
    }
#endif
    for (i = 0; i + 8 <= bytes; i += 8) {
        cpu_guest_put64(d + i, pattern);
    }
    for (; i < bytes; i += size) {
        cpu_guest_put_sized(d + i, size, value);
    }
}

/* The loop for one element size. */
#define COMPARE_LOOP(bits)                                                                         \
    static unsigned compare##bits(struct cpu_bulk_cmp *c, unsigned n)                              \
    {                                                                                              \
        const uint8_t *a = c->a, *b = c->b;                                                        \
        const int step_a = c->step_a, step_b = c->step_b;                                          \
        uint##bits##_t va = 0, vb = 0;                                                             \
        unsigned i = 0;                                                                            \
                                                                                                   \
        while (i < n) {                                                                            \
            va = cpu_guest_get##bits(a);                                                           \
            vb = cpu_guest_get##bits(b);                                                           \
            a += step_a;                                                                           \
            b += step_b;                                                                           \
            i++;                                                                                   \
            if ((va == vb) == c->stop_equal) {                                                     \
                break;                                                                             \
            }                                                                                      \
        }                                                                                          \
        c->last_a = va;                                                                            \
        c->last_b = vb;                                                                            \
        return i;                                                                                  \
    }

COMPARE_LOOP(8)
COMPARE_LOOP(16)
COMPARE_LOOP(32)
COMPARE_LOOP(64)

/* See string_bulk.h. n: at least 1. */
unsigned cpu_bulk_compare(struct cpu_bulk_cmp *c, unsigned n)
{
    switch (c->size) {
    case 1:
        return compare8(c, n);
    case 2:
        return compare16(c, n);
    case 4:
        return compare32(c, n);
    default:
        return compare64(c, n);
    }
}
