/*
 * Entry formats of the radix tables of x86: the guest's own tables (and NPT, which has the same
 * format) and EPT. Data only; the iterator over any such table is radix.h.
 *
 *   63  62..52   51..12           11..9  8 7  6 5 4   3   2   1 0
 *   NX  pk/sw    page frame       sw     G PS D A PCD PWT U/S W P     guest, NPT
 *   SVE ...      page frame       sw     . PS D A .   mt  X   W R     EPT (A, D when EPTP bit 6)
 */
#ifndef STRATA_ARCH_PAGING_H
#define STRATA_ARCH_PAGING_H

#include <stdint.h>

#define X86_PTE_P   UINT64_C(0x1)
#define X86_PTE_W   UINT64_C(0x2)
#define X86_PTE_U   UINT64_C(0x4)
#define X86_PTE_PWT UINT64_C(0x8)
#define X86_PTE_PCD UINT64_C(0x10)
#define X86_PTE_A   UINT64_C(0x20)
#define X86_PTE_D   UINT64_C(0x40)
#define X86_PTE_PS  UINT64_C(0x80)
#define X86_PTE_G   UINT64_C(0x100)
#define X86_PTE_NX  (UINT64_C(1) << 63)

#define X86_PTE_ADDR_MASK UINT64_C(0x000ffffffffff000)

#define EPT_R          UINT64_C(0x1)
#define EPT_W          UINT64_C(0x2)
#define EPT_X          UINT64_C(0x4)
#define EPT_RWX        UINT64_C(0x7)
#define EPT_MT_SHIFT   3
#define EPT_MT_MASK    (UINT64_C(7) << EPT_MT_SHIFT)
#define EPT_MT_UC      (UINT64_C(0) << EPT_MT_SHIFT)
#define EPT_MT_WB      (UINT64_C(6) << EPT_MT_SHIFT)
#define EPT_IPAT       UINT64_C(0x40)
#define EPT_PS         UINT64_C(0x80)
#define EPT_A          UINT64_C(0x100)
#define EPT_D          UINT64_C(0x200)
#define EPT_ADDR_MASK  UINT64_C(0x000ffffffffff000)

/* EPT pointer: memory type 6, walk length minus one in bits 5:3, accessed/dirty enable in bit 6. */
#define EPTP_MT_WB     UINT64_C(6)
#define EPTP_LEVEL(n)  ((uint64_t)((n)-1) << 3)
#define EPTP_AD        UINT64_C(0x40)

/* EPT-violation qualification: the access, then what the walk would have allowed. */
#define EPT_VIOL_READ     0x1u
#define EPT_VIOL_WRITE    0x2u
#define EPT_VIOL_FETCH    0x4u
#define EPT_VIOL_CAN_R    0x8u
#define EPT_VIOL_CAN_W    0x10u
#define EPT_VIOL_CAN_X    0x20u
#define EPT_VIOL_GVA      0x80u  /* a guest-virtual address is valid */
#define EPT_VIOL_FINAL    0x100u /* the final translation, not a guest-table access */

/* Nested page faults (AMD): EXITINFO1. */
#define NPF_PRESENT     UINT64_C(0x1)
#define NPF_WRITE       UINT64_C(0x2)
#define NPF_USER        UINT64_C(0x4)  /* always: nested walks are a user's */
#define NPF_RESERVED    UINT64_C(0x8)
#define NPF_FETCH       UINT64_C(0x10)
#define NPF_FINAL       (UINT64_C(1) << 32) /* the guest's final address was refused */
#define NPF_GUEST_TABLE (UINT64_C(1) << 33) /* a table of the guest's was refused */

/* Physical address bits that the simulated host has not, of those that an entry has room for. */
#define HOST_PHYS_BITS 48
#define NPT_RSVD_HIGH  (X86_PTE_ADDR_MASK & ~((UINT64_C(1) << HOST_PHYS_BITS) - 1))

/* Entries per table and address bits per level: the same in every 64-bit format. */
#define PT_ENTRIES    512
#define PT_LEVEL_BITS 9

/* Shift of the address bits that index a table of `level` (1 = 4 KiB leaf ... 5). */
static inline unsigned pt_level_shift(unsigned level)
{
    return 12 + PT_LEVEL_BITS * (level - 1);
}

static inline unsigned pt_index(uint64_t addr, unsigned level)
{
    return (unsigned)(addr >> pt_level_shift(level)) & (PT_ENTRIES - 1);
}

/* Bytes that a leaf at `level` maps: 4 KiB, 2 MiB, 1 GiB, 512 GiB. */
static inline uint64_t pt_leaf_size(unsigned level)
{
    return UINT64_C(1) << pt_level_shift(level);
}

#endif
