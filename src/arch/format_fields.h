/*
 * Every field of every entry shape, once: X(shape, name, shift, width, kind, printed name). From
 * these lists come the getters below, the printers' tables and the overlap proofs in format.c.
 * Bits that no list names are reserved (must be zero) or ignored, as the manuals say.
 *
 *   long, leaf   63 XD | 62:59 PK | 58:52 sw | 51:12 frame | 11:9 sw | 8 G | 7 PAT/PS | 6 D | 5 A | 4 PCD | 3 PWT | 2 U | 1 W | 0 P
 *   EPT, leaf    63 SVE | 62:57,56:52 sw | 51:12 frame | 11 sw | 10 XU | 9 D | 8 A | 7 PS | 6 IPAT | 5:3 type | 2 X | 1 W | 0 R
 *
 * Source: Intel volume 3 "Paging" and "The extended page table mechanism"; AMD volume 2 "Nested
 * paging".
 */
#ifndef STRATA_ARCH_FORMAT_FIELDS_H
#define STRATA_ARCH_FORMAT_FIELDS_H

#include <stdint.h>

/* Low bits that all non-EPT entries share. */
#define ARCH_LOW_FIELDS(X, s)                                                                      \
    X(s, p, 0, 1, FLAG, "P")                                                                       \
    X(s, w, 1, 1, FLAG, "W")                                                                       \
    X(s, u, 2, 1, FLAG, "U")                                                                       \
    X(s, pwt, 3, 1, FLAG, "PWT")                                                                   \
    X(s, pcd, 4, 1, FLAG, "PCD")                                                                   \
    X(s, a, 5, 1, FLAG, "A")

/* 32-bit paging. */
#define ARCH_P32_TABLE_FIELDS(X, s)                                                                \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, sw, 8, 4, SOFTWARE, "sw")                                                                 \
    X(s, frame, 12, 20, FRAME, "")
#define ARCH_P32_PAGE_FIELDS(X, s)                                                                 \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, d, 6, 1, FLAG, "D")                                                                       \
    X(s, pat, 7, 1, FLAG, "PAT")                                                                   \
    X(s, g, 8, 1, FLAG, "G")                                                                       \
    X(s, sw, 9, 3, SOFTWARE, "sw")                                                                 \
    X(s, frame, 12, 20, FRAME, "")
/* 4 MiB page: bits 20:13 are address bits 39:32 (PSE-36). */
#define ARCH_P32_LARGE_FIELDS(X, s)                                                                \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, d, 6, 1, FLAG, "D")                                                                       \
    X(s, ps, 7, 1, FLAG, "PS")                                                                     \
    X(s, g, 8, 1, FLAG, "G")                                                                       \
    X(s, sw, 9, 3, SOFTWARE, "sw")                                                                 \
    X(s, pat, 12, 1, FLAG, "PAT")                                                                  \
    X(s, high, 13, 8, NUMBER, "high")                                                              \
    X(s, frame, 22, 10, FRAME, "")

/* PAE, the four top-level registers: no rights. */
#define ARCH_PAE_PDPTE_FIELDS(X, s)                                                                \
    X(s, p, 0, 1, FLAG, "P")                                                                       \
    X(s, pwt, 3, 1, FLAG, "PWT")                                                                   \
    X(s, pcd, 4, 1, FLAG, "PCD")                                                                   \
    X(s, sw, 9, 3, SOFTWARE, "sw")                                                                 \
    X(s, frame, 12, 40, FRAME, "")

/* Eight-byte entries: PAE below the top, four- and five-level, NPT. */
#define ARCH_LONG_TABLE_FIELDS(X, s)                                                               \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, sw, 8, 4, SOFTWARE, "sw")                                                                 \
    X(s, frame, 12, 40, FRAME, "")                                                                 \
    X(s, swhigh, 52, 11, SOFTWARE, "swh")                                                          \
    X(s, nx, 63, 1, FLAG, "nx")
#define ARCH_LONG_PAGE_FIELDS(X, s)                                                                \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, d, 6, 1, FLAG, "D")                                                                       \
    X(s, pat, 7, 1, FLAG, "PAT")                                                                   \
    X(s, g, 8, 1, FLAG, "G")                                                                       \
    X(s, sw, 9, 3, SOFTWARE, "sw")                                                                 \
    X(s, frame, 12, 40, FRAME, "")                                                                 \
    X(s, swhigh, 52, 7, SOFTWARE, "swh")                                                           \
    X(s, pk, 59, 4, NUMBER, "pk")                                                                  \
    X(s, nx, 63, 1, FLAG, "nx")
#define ARCH_LONG_LARGE_FIELDS(X, s)                                                               \
    ARCH_LOW_FIELDS(X, s)                                                                          \
    X(s, d, 6, 1, FLAG, "D")                                                                       \
    X(s, ps, 7, 1, FLAG, "PS")                                                                     \
    X(s, g, 8, 1, FLAG, "G")                                                                       \
    X(s, sw, 9, 3, SOFTWARE, "sw")                                                                 \
    X(s, pat, 12, 1, FLAG, "PAT")                                                                  \
    X(s, frame, 21, 31, FRAME, "")                                                                 \
    X(s, swhigh, 52, 7, SOFTWARE, "swh")                                                           \
    X(s, pk, 59, 4, NUMBER, "pk")                                                                  \
    X(s, nx, 63, 1, FLAG, "nx")

/* EPT. Bits 11 and 62:52 are ignored by hardware, but for bit 63, suppress #VE. */
#define ARCH_EPT_LOW_FIELDS(X, s)                                                                  \
    X(s, r, 0, 1, FLAG, "R")                                                                       \
    X(s, w, 1, 1, FLAG, "W")                                                                       \
    X(s, x, 2, 1, FLAG, "X")                                                                       \
    X(s, a, 8, 1, FLAG, "A")                                                                       \
    X(s, xu, 10, 1, FLAG, "XU")                                                                    \
    X(s, sw, 11, 1, SOFTWARE, "sw")                                                                \
    X(s, swhigh, 52, 11, SOFTWARE, "swh")                                                          \
    X(s, sve, 63, 1, FLAG, "sve")
#define ARCH_EPT_TABLE_FIELDS(X, s)                                                                \
    ARCH_EPT_LOW_FIELDS(X, s)                                                                      \
    X(s, sw9, 9, 1, SOFTWARE, "sw9")                                                               \
    X(s, frame, 12, 40, FRAME, "")
#define ARCH_EPT_PAGE_FIELDS(X, s)                                                                 \
    ARCH_EPT_LOW_FIELDS(X, s)                                                                      \
    X(s, d, 9, 1, FLAG, "D")                                                                       \
    X(s, mt, 3, 3, MEMTYPE, "")                                                                    \
    X(s, ipat, 6, 1, FLAG, "IPAT")                                                                 \
    X(s, frame, 12, 40, FRAME, "")
#define ARCH_EPT_LARGE_FIELDS(X, s)                                                                \
    ARCH_EPT_LOW_FIELDS(X, s)                                                                      \
    X(s, d, 9, 1, FLAG, "D")                                                                       \
    X(s, mt, 3, 3, MEMTYPE, "")                                                                    \
    X(s, ipat, 6, 1, FLAG, "IPAT")                                                                 \
    X(s, ps, 7, 1, FLAG, "PS")                                                                     \
    X(s, frame, 21, 31, FRAME, "")

/* Every shape of every format. */
#define ARCH_FOR_EACH_SHAPE(S)                                                                     \
    S(p32_table, ARCH_P32_TABLE_FIELDS)                                                            \
    S(p32_page, ARCH_P32_PAGE_FIELDS)                                                              \
    S(p32_large, ARCH_P32_LARGE_FIELDS)                                                            \
    S(pae_pdpte, ARCH_PAE_PDPTE_FIELDS)                                                            \
    S(long_table, ARCH_LONG_TABLE_FIELDS)                                                          \
    S(long_page, ARCH_LONG_PAGE_FIELDS)                                                            \
    S(long_large, ARCH_LONG_LARGE_FIELDS)                                                          \
    S(ept_table, ARCH_EPT_TABLE_FIELDS)                                                            \
    S(ept_page, ARCH_EPT_PAGE_FIELDS)                                                              \
    S(ept_large, ARCH_EPT_LARGE_FIELDS)

#define ARCH_FIELD_MASK(shift, width) (((UINT64_C(1) << (width)) - 1) << (shift))

/* Getters: arch_long_page_w(entry), arch_ept_large_mt(entry), ... */
#define ARCH_DEFINE_GETTER(shape, name, shift, width, kind, text)                                  \
    static inline uint64_t arch_##shape##_##name(uint64_t entry)                                   \
    {                                                                                              \
        return (entry & ARCH_FIELD_MASK(shift, width)) >> (shift);                                 \
    }
#define ARCH_DEFINE_GETTERS(shape, FIELDS) FIELDS(ARCH_DEFINE_GETTER, shape)
ARCH_FOR_EACH_SHAPE(ARCH_DEFINE_GETTERS)

#endif
