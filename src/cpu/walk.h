/*
 * Translation: linear to guest-physical by the guest's tables, guest-physical to a frame by the second
 * stage. One struct describes a translation in flight; the result is an enum, and the details of a
 * fault or of an exit stay in the struct until the caller records them.
 *
 * The second stage is EPT, AMD's nested paging, or none at all (shadow tables: frames' addresses in the
 * first); cpu_nested_translate() is its one entry point.
 */
#ifndef STRATA_CPU_WALK_H
#define STRATA_CPU_WALK_H

#include "cpu/state.h"

/* Rights as the levels of a guest walk leave them. */
#define CPU_RIGHT_W      0x1u
#define CPU_RIGHT_U      0x2u
#define CPU_RIGHT_NX     0x4u
#define CPU_RIGHT_G      0x8u
#define CPU_RIGHT_D      0x10u /* the leaf's dirty bit is set */

enum cpu_access {
    CPU_ACCESS_READ = 1,
    CPU_ACCESS_WRITE = 2,
    CPU_ACCESS_FETCH = 4,
};

/* Whose rights an access has. */
enum cpu_priv {
    CPU_PRIV_USER,
    CPU_PRIV_SUPER,    /* SMAP in force */
    CPU_PRIV_SUPER_AC, /* SMAP off, or overridden by AC */
};

enum cpu_xlate_result {
    CPU_XLATE_OK,
    CPU_XLATE_FAULT,     /* the guest's: error_code */
    CPU_XLATE_CANONICAL, /* not a canonical address: #GP or #SS */
    CPU_XLATE_VIOLATION, /* second stage: qualification, gpa */
    CPU_XLATE_MISCONFIG, /* second stage: gpa is a device's */
    CPU_XLATE_PML_FULL,  /* second stage: a page is to become dirty and the log has no room */
};

/* Second-stage result for one guest page. */
struct cpu_nested {
    uint8_t *host;      /* of the page's first byte */
    uint64_t pfn;
    uint32_t rights;    /* EPT_RWX, W taken away while the dirty bit is clear and this was no write */
    uint32_t qualification;
    bool present;       /* refused: for lack of rights or for reserved bits, not because nothing is mapped */
};

struct cpu_xlate {
    /* in */
    uint64_t la;
    uint8_t access;  /* enum cpu_access */
    uint8_t priv;    /* enum cpu_priv */
    bool quiet;      /* change nothing: no accessed or dirty bits, no caches */
    /* out */
    uint64_t gpa;    /* also on second-stage results: the address that failed */
    uint32_t rights; /* CPU_RIGHT_* */
    uint32_t error_code;
    unsigned page_level; /* of the guest leaf: 1 = 4 KiB; 0: paging is off */
    bool final;      /* second-stage failure was at the final address, not at a guest table */
    struct cpu_nested nested;
};

/* Translate x->la through both stages. */
enum cpu_xlate_result cpu_xlate(struct cpu *cpu, struct cpu_xlate *x);

/* The guest's stage only: fills gpa, rights, page_level. */
enum cpu_xlate_result cpu_guest_walk(struct cpu *cpu, struct cpu_xlate *x);

/*
 * Second stage: the frame behind gpa. access: enum cpu_access bits that must be allowed; quiet as above.
 * CPU_XLATE_OK, _VIOLATION, _MISCONFIG or _PML_FULL; *out is complete on OK, and has `qualification` and `present` on
 * a violation.
 */
enum cpu_xlate_result cpu_nested_translate(struct cpu *cpu, uint64_t gpa, unsigned access, bool quiet,
                                           struct cpu_nested *out);

/* Read a 32- or 64-bit guest table entry; compare-and-exchange bits into one. The pointer comes from
 * cpu_gtab_host(). */
enum cpu_xlate_result cpu_gtab_host(struct cpu *cpu, struct cpu_xlate *x, uint64_t gpa, bool write, uint8_t **host);

/* Has the hypervisor said that a refused write to this page is a device's, or needs no effect? */
static inline bool cpu_is_device_write(const struct cpu *cpu, uint64_t addr)
{
    for (unsigned i = 0; i < CPU_DEVICE_WRITES && cpu->device_write_page[i]; i++) {
        if (cpu->device_write_page[i] == (addr >> PAGE_SHIFT) + 1) {
            return true;
        }
    }
    return false;
}

/* Record a second-stage failure in cpu->exit (fetch.c). */
void cpu_exit_second_stage(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res);

/* PAE: load the four PDPTEs from CR3. False: one has reserved bits set (the caller raises #GP), or the
 * second stage denies them (an exit is recorded). */
struct cpu_op;
enum cpu_xlate_result cpu_reload_pdptes(struct cpu *cpu, struct cpu_xlate *x);
bool cpu_load_pdptes(struct cpu *cpu, const struct cpu_op *op, uint64_t cr3) must_check;

#endif
