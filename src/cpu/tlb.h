/*
 * The TLB, and everything else that remembers a translation: the paging-structure cache, the cache of
 * second-stage tables, the cache of code pages, and the keys that make a flush cost one store.
 *
 *   linear address --- tlb (direct-mapped, one array per privilege) ----------------> host pointer
 *        | miss
 *        +-- psc (linear >> 21 -> guest table) -- guest entry -- epsc (gpa >> 21 -> EPT table) --> frame
 *        | miss
 *        +-- whole walk: walk.c, each step through nested.c
 *
 *   tag of an entry = linear page | generation (12 bits, never 0)
 *   place of an entry = window of the current PCID + page number modulo CPU_TLB_SIZE
 *
 * Windows overlap by half and more: two address spaces that use the same linear pages keep them in different
 * places, so both sets survive a switch. What is global may be in every window.
 *
 * There is one generation for each half of the linear addresses. A CR3 load changes the lower one, and
 * the upper one only if an entry that is not global was put there since; with PCIDs each identifier
 * keeps its generations while it is switched out, so its entries live on. Beside each generation goes
 * a 32-bit code key, never reused, that is part of what a block is found by (block.h).
 *
 * Invariants
 *  1. A valid tag_w means: guest and second stage allow writing at this privilege, both dirty bits are
 *     set where the stage has them, and the frame holds no decoded code.
 *  2. Every linear page whose code a valid code key leads to is in the filter `code_pages`; every 2 MiB
 *     region with an entry cut from a larger page is in `large_pages`. So INVLPG knows when it must do more.
 *  3. Nothing here outlives cpu_tlb_flush_all(), which second-stage changes ask for.
 *
 * Locks: the processor's own thread, except tag_w, which another processor clears with a relaxed store
 * when it decodes code on the frame (block.c).
 */
#ifndef STRATA_CPU_TLB_H
#define STRATA_CPU_TLB_H

#include "cpu/state.h"

#define CPU_TLB_BITS 11
#define CPU_TLB_SIZE (1u << CPU_TLB_BITS)
#define CPU_TLB_WINDOWS 4u
#define CPU_TLB_STEP    (CPU_TLB_SIZE / CPU_TLB_WINDOWS) /* from one window to the next, entries */
#define CPU_TLB_ENTRIES (CPU_TLB_SIZE + (CPU_TLB_WINDOWS - 1) * CPU_TLB_STEP)

/* One page at one privilege. */
struct cpu_tlb_entry {
    uint64_t tag_r, tag_w; /* 0: never matches */
    uint64_t addend;       /* host pointer = linear address + addend */
    uint64_t info;         /* pfn << 12 | CPU_TLBI_* */
};

#define CPU_TLBI_CODE_W 0x1u /* writable but for the code on the frame: stores go the slow way */
#define CPU_TLBI_LARGE  0x2u /* cut from a guest page larger than 4 KiB */

/* Which array an access looks in. */
enum cpu_tlb_set {
    CPU_TLB_USER,
    CPU_TLB_SUPER,    /* CR4.SMAP on and RFLAGS.AC clear: user pages are forbidden */
    CPU_TLB_SUPER_AC,
    CPU_TLB_NONE,     /* stays empty: every access must be looked at (alignment checks) */
    CPU_TLB_NSETS
};

/* Linear page of code at a privilege: for fetching only. */
struct cpu_itlb_entry {
    uint64_t tag; /* as in the TLB */
    const uint8_t *host;
    uint64_t pfn;
};

#define CPU_ITLB_SIZE 256u
#define CPU_PSC_SIZE  512u
#define CPU_EPSC_SIZE 1024u
#define CPU_GTAB_SIZE 512u
#define CPU_PCIDS     4096u

/*
 * Paging-structure cache: where the last-level guest table of a 2 MiB region is, and the rights so far. Tables are
 * never global, so an entry also belongs to one CR3. What invalidates these caches changes `fresh`; an entry
 * that is no longer fresh is not dropped but checked: if the entries above still hold what they held, so does it.
 */
#define CPU_PSC_ABOVE 4u
struct cpu_psc_entry {
    uint64_t tag;    /* (linear >> 21) + 1; 0 empty */
    uint64_t cr3;
    uint64_t fresh;  /* mmu->psc_key << 12 | generation, when filled or checked last */
    uint64_t *pt;    /* host pointer to the guest's table; if level > 1, to the entry that maps the region */
    uint32_t rights; /* CPU_RIGHT_* of the levels above */
    uint32_t key;    /* mmu->guest_key: mode and second stage under which it was filled */
    uint8_t level;   /* of the leaf */
    uint8_t above;   /* entries above it that can be checked; 0: none, drop it instead (PAE: the PDPTEs are
                      * registers; shadow tables: the hypervisor's to replace) */
    struct {
        const uint64_t *slot; /* host pointer */
        uint64_t seen;        /* what it held */
    } up[CPU_PSC_ABOVE];
} __attribute__((aligned(64)));

/* Second-stage structure cache: the last-level EPT table of a 2 MiB region of guest-physical memory, or
 * the entry that maps all of it. */
struct cpu_epsc_entry {
    uint64_t tag;    /* (gpa >> 21) + 1; 0 empty */
    uint64_t *table; /* level 1: host pointer to the EPT table; else to the entry */
    uint32_t rights; /* EPT_RWX of the levels above */
    uint32_t key;    /* mmu->stage2_key when filled */
    uint32_t level;
};

/* A guest page that holds a guest table: gfn to host pointer, second stage checked for reading. */
struct cpu_gtab_entry {
    uint64_t tag; /* gfn + 1 */
    uint8_t *host;
    uint32_t writable;
    uint32_t key; /* mmu->stage2_key */
};

struct cpu_mmu {
    struct cpu_tlb_entry tlb[CPU_TLB_NSETS][CPU_TLB_ENTRIES];
    struct cpu_itlb_entry itlb[2][CPU_ITLB_SIZE]; /* supervisor, user */
    struct cpu_psc_entry psc[CPU_PSC_SIZE];
    struct cpu_epsc_entry epsc[CPU_EPSC_SIZE];
    struct cpu_gtab_entry gtab[CPU_GTAB_SIZE];
    uint64_t code_pages[64];  /* filters by linear page; see invariant 2 */
    uint64_t large_pages[64];
    uint32_t window;          /* of the current PCID: its first entry */
    uint32_t windows_used;    /* under the upper half's generation: a bit each */
    uint32_t psc_key;         /* changed by INVLPG, as the architecture flushes these caches then */
    uint32_t guest_key;       /* changed when the guest's paging mode or the second stage did */
    uint32_t stage2_key;
    uint16_t next_gen;        /* 1 to 4095 */
    uint32_t next_key;
    uint16_t pcid;            /* current */
    bool has_1g;              /* an entry was cut from a 1 GiB page */
    bool upper_has_local;     /* an entry of the upper half that is not global was made under this generation */
    struct {
        uint16_t gen; /* 0: none */
        uint32_t key;
    } pcids[CPU_PCIDS];       /* of the lower half */
};

struct cpu_mmu *cpu_mmu_new(void);
void cpu_mmu_free(struct cpu_mmu *mmu);

/* Forget everything, global entries and second stage included. */
void cpu_tlb_flush_all(struct cpu *cpu);

/* Forget the guest's translations, all PCIDs; keep what is known of the second stage.
 * For changes of CR0.PG, CR0.WP, CR4.PGE, CR4.PSE, CR4.PAE, CR4.SMEP, EFER.NXE, PKRU and their like. */
void cpu_tlb_flush_guest(struct cpu *cpu);

/*
 * CR3 has been written: value as the instruction had it, bit 63 (keep this PCID's entries) included. Sets cpu->cr3
 * and switches generations; costs no walk over the TLB. Does not load PDPTEs.
 */
void cpu_tlb_load_cr3(struct cpu *cpu, uint64_t value);

/* INVLPG at the current PCID, global entries included. */
void cpu_tlb_flush_page(struct cpu *cpu, uint64_t la);

/* INVPCID types 0 and 1: one address, or all, of one PCID; global entries stay. */
void cpu_tlb_flush_pcid_page(struct cpu *cpu, unsigned pcid, uint64_t la);
void cpu_tlb_flush_pcid(struct cpu *cpu, unsigned pcid);

/* INVPCID type 3: all PCIDs, global entries may stay. */
void cpu_tlb_flush_local(struct cpu *cpu);

/* CPL, mode bits, CR4.SMAP, CR0.AM or RFLAGS.AC changed: choose the array, form the code keys. Cheap. */
void cpu_mode_changed(struct cpu *cpu);

/* Put a linear page into the filters of invariant 2. */
void cpu_tlb_note_code(struct cpu *cpu, uint64_t la);
void cpu_tlb_note_large(struct cpu *cpu, uint64_t la);

/* Tag of a linear address now; its entry in a set. */
static always_inline uint64_t cpu_tlb_tag(const struct cpu *cpu, uint64_t la)
{
    return (la & PAGE_MASK) | cpu->tlb_gen[la >> 63];
}

/* Place of a linear address in its window. */
static always_inline unsigned cpu_tlb_index(uint64_t la)
{
    return (unsigned)(la >> PAGE_SHIFT) & (CPU_TLB_SIZE - 1);
}

/* Its entry in a set. */
static always_inline struct cpu_tlb_entry *cpu_tlb_entry_of(const struct cpu *cpu, enum cpu_tlb_set set, uint64_t la)
{
    return &cpu->mmu->tlb[set][cpu->mmu->window + cpu_tlb_index(la)];
}

#endif
