/*
 * Loads and stores of guest memory through a host pointer. Guest memory is shared with other virtual
 * processors and with devices, and races as real memory does; these helpers are the places where the
 * thread sanitizer is told so. Sizes are compile-time constants; any alignment; aligned accesses of up to
 * 8 bytes are single instructions, as the architecture promises.
 */
#ifndef STRATA_CPU_GUEST_MEM_H
#define STRATA_CPU_GUEST_MEM_H

#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

#if defined(__SANITIZE_THREAD__)
#define CPU_GUEST_RACY static __attribute__((noinline, unused, no_sanitize("thread")))
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CPU_GUEST_RACY static __attribute__((noinline, unused, no_sanitize("thread")))
#endif
#endif
#ifndef CPU_GUEST_RACY
#define CPU_GUEST_RACY static always_inline
#endif

#define CPU_GUEST_ACCESSORS(bits)                                                                  \
    struct cpu_guest_u##bits {                                                                     \
        uint##bits##_t v;                                                                          \
    } __attribute__((packed, may_alias));                                                          \
    CPU_GUEST_RACY uint##bits##_t cpu_guest_get##bits(const void *p)                               \
    {                                                                                              \
        return ((const volatile struct cpu_guest_u##bits *)p)->v;                                  \
    }                                                                                              \
    CPU_GUEST_RACY void cpu_guest_put##bits(void *p, uint##bits##_t v)                             \
    {                                                                                              \
        ((volatile struct cpu_guest_u##bits *)p)->v = v;                                           \
    }

CPU_GUEST_ACCESSORS(8)
CPU_GUEST_ACCESSORS(16)
CPU_GUEST_ACCESSORS(32)
CPU_GUEST_ACCESSORS(64)

/* 1, 2, 4 or 8 bytes, zero-extended; one access. */
static always_inline uint64_t cpu_guest_get_sized(const void *p, unsigned size)
{
    switch (size) {
    case 1:
        return cpu_guest_get8(p);
    case 2:
        return cpu_guest_get16(p);
    case 4:
        return cpu_guest_get32(p);
    default:
        return cpu_guest_get64(p);
    }
}

static always_inline void cpu_guest_put_sized(void *p, unsigned size, uint64_t v)
{
    switch (size) {
    case 1:
        cpu_guest_put8(p, (uint8_t)v);
        break;
    case 2:
        cpu_guest_put16(p, (uint16_t)v);
        break;
    case 4:
        cpu_guest_put32(p, (uint32_t)v);
        break;
    default:
        cpu_guest_put64(p, v);
    }
}

/* Bytes in ascending order, one by one where the sanitizer watches. */
CPU_GUEST_RACY void cpu_guest_read(void *dst, const void *src, size_t n)
{
#if defined(__SANITIZE_THREAD__)
    for (size_t i = 0; i < n; i++) {
        ((unsigned char *)dst)[i] = ((const volatile unsigned char *)src)[i];
    }
#else
    memcpy(dst, src, n);
#endif
}

/* Are n bytes of guest memory still what `copy` says? */
CPU_GUEST_RACY bool cpu_guest_equal(const void *copy, const void *guest, size_t n)
{
#if defined(__SANITIZE_THREAD__)
    for (size_t i = 0; i < n; i++) {
        if (((const unsigned char *)copy)[i] != ((const volatile unsigned char *)guest)[i]) {
            return false;
        }
    }
    return true;
#else
    return memcmp(copy, guest, n) == 0;
#endif
}

CPU_GUEST_RACY void cpu_guest_write(void *dst, const void *src, size_t n)
{
#if defined(__SANITIZE_THREAD__)
    for (size_t i = 0; i < n; i++) {
        ((volatile unsigned char *)dst)[i] = ((const unsigned char *)src)[i];
    }
#else
    memcpy(dst, src, n);
#endif
}

#endif
