/*
 * Typed addresses: one-member structs, so that the compiler refuses a mix-up.
 *
 *   gva  guest-virtual      what a guest program uses
 *   gpa  guest-physical     after the guest's own page tables
 *   hva  host-virtual       a byte in this process
 *   hpa  host-physical      a byte of a frame of src/host
 *   gfn  gpa >> 12, pfn  hpa >> 12
 *
 * They cost nothing: each is passed in a register. No state, no locks.
 */
#ifndef STRATA_BASE_ADDR_H
#define STRATA_BASE_ADDR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE  (UINT64_C(1) << PAGE_SHIFT)
#define PAGE_MASK  (~(PAGE_SIZE - 1))

#define BASE_DEFINE_ADDR(name)                                                                     \
    typedef struct {                                                                               \
        uint64_t v;                                                                                \
    } name##_t;                                                                                    \
    static inline name##_t name(uint64_t v)                                                        \
    {                                                                                              \
        return (name##_t){v};                                                                      \
    }                                                                                              \
    static inline bool name##_eq(name##_t a, name##_t b)                                           \
    {                                                                                              \
        return a.v == b.v;                                                                         \
    }

BASE_DEFINE_ADDR(gva)
BASE_DEFINE_ADDR(gpa)
BASE_DEFINE_ADDR(hva)
BASE_DEFINE_ADDR(hpa)
BASE_DEFINE_ADDR(gfn)
BASE_DEFINE_ADDR(pfn)

static inline gfn_t gpa_to_gfn(gpa_t a)
{
    return gfn(a.v >> PAGE_SHIFT);
}

static inline gpa_t gfn_to_gpa(gfn_t f)
{
    return gpa(f.v << PAGE_SHIFT);
}

static inline pfn_t hpa_to_pfn(hpa_t a)
{
    return pfn(a.v >> PAGE_SHIFT);
}

static inline hpa_t pfn_to_hpa(pfn_t f)
{
    return hpa(f.v << PAGE_SHIFT);
}

static inline void *hva_to_ptr(hva_t a)
{
    return (void *)(uintptr_t)a.v;
}

static inline hva_t ptr_to_hva(const void *p)
{
    return hva((uintptr_t)p);
}

static inline uint64_t page_offset(uint64_t addr)
{
    return addr & (PAGE_SIZE - 1);
}

#endif
