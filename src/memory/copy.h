/*
 * Guest memory is shared with the guest: it may change under any access. These helpers are the only
 * places where this folder touches it, and are marked so for the thread sanitizer. A value of 1, 2, 4
 * or 8 bytes moves in one access.
 */
#ifndef STRATA_MEMORY_COPY_H
#define STRATA_MEMORY_COPY_H

#include <string.h>

#include "strata/fast.h"

#if defined(__SANITIZE_THREAD__)
#define MEMORY_COPY_BYTES 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define MEMORY_COPY_BYTES 1
#endif
#endif

#ifdef MEMORY_COPY_BYTES
STRATA_RACY static void memory_copy(void *to, const void *from, size_t len)
{
    volatile uint8_t *t = to;
    const volatile uint8_t *f = from;

    while (len-- > 0) {
        *t++ = *f++;
    }
}

STRATA_RACY static void memory_set(void *to, int byte, size_t len)
{
    volatile uint8_t *t = to;

    while (len-- > 0) {
        *t++ = (uint8_t)byte;
    }
}
#else
static inline void memory_set(void *to, int byte, size_t len)
{
    memset(to, byte, len);
}

static inline void memory_copy(void *to, const void *from, size_t len)
{
    switch (len) {
    case 1:
        strata_racy_write8((uintptr_t)to, strata_racy_read8((uintptr_t)from));
        break;
    case 2:
        strata_racy_write16((uintptr_t)to, strata_racy_read16((uintptr_t)from));
        break;
    case 4:
        strata_racy_write32((uintptr_t)to, strata_racy_read32((uintptr_t)from));
        break;
    case 8:
        strata_racy_write64((uintptr_t)to, strata_racy_read64((uintptr_t)from));
        break;
    default:
        memcpy(to, from, len);
    }
}
#endif

/* A value in host order, in one access; size 1, 2, 4, 8. */
static inline uint64_t memory_peek(const void *from, unsigned size)
{
    switch (size) {
    case 1:
        return strata_racy_read8((uintptr_t)from);
    case 2:
        return strata_racy_read16((uintptr_t)from);
    case 4:
        return strata_racy_read32((uintptr_t)from);
    default:
        return strata_racy_read64((uintptr_t)from);
    }
}

static inline void memory_poke(void *to, unsigned size, uint64_t value)
{
    switch (size) {
    case 1:
        strata_racy_write8((uintptr_t)to, (uint8_t)value);
        break;
    case 2:
        strata_racy_write16((uintptr_t)to, (uint16_t)value);
        break;
    case 4:
        strata_racy_write32((uintptr_t)to, (uint32_t)value);
        break;
    default:
        strata_racy_write64((uintptr_t)to, value);
    }
}

/* The low `size` bytes turned round. */
static inline uint64_t memory_swap(uint64_t value, unsigned size)
{
    return __builtin_bswap64(value) >> (64 - 8 * size);
}

static inline uint64_t memory_mask(unsigned size)
{
    return size >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << (8 * size)) - 1;
}

#endif
