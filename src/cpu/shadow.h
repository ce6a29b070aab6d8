/*
 * Shadow paging, the silicon's side. There is no second stage then (eptp is 0): what the walk finds are frames'
 * addresses. The hypervisor gives the tables to walk and the control registers that the walk obeys; the guest reads
 * and writes its own values in cpu->cr0, cr3, cr4 and efer, which decide everything but the walk.
 *
 *   guest does                        silicon                              hypervisor
 *   access that the tables refuse     CPU_EXIT_PAGE_FAULT                  fills tables and retries, or reflects the
 *                                                                          fault, or gives a grant and retries
 *   MOV to CR0, CR3, CR4, EFER        checks, does it, drops the root,     loads a root
 *                                     CPU_EXIT_CR_WRITE
 *   the same with PAE tables          CPU_EXIT_PDPTES first                gives the PDPTEs
 *   INVLPG, INVPCID                   does it, CPU_EXIT_INVALIDATE         brings its tables up to date
 *
 * Grants. A store to a guest page table that the hypervisor keeps write-protected, and an access to a device, cannot be
 * allowed by tables. The hypervisor grants the page to the instruction at hand, as it would by a private view of memory
 * and the monitor trap flag: the instruction runs alone, its access goes through, and
 * CPU_EXIT_TABLE_WRITE follows it (or, for a device, the exits of the replay list).
 *
 * Invariants
 *  1. shadow.root is not 0 only while it belongs to the guest's registers as they are.
 *  2. A grant dies with its instruction, and with every flush: it is never older than what the tables say.
 *
 * Locks: the processor's own thread, outside cpu_run() for what the hypervisor calls.
 */
#ifndef STRATA_CPU_SHADOW_H
#define STRATA_CPU_SHADOW_H

#include "cpu/op.h"

struct cpu_xlate;

/* Physical-address bits that entries may use: the others raise a reserved-bit fault, as device entries do. */
#define CPU_SHADOW_PHYS_BITS 46

/* Tables for the guest's registers as they are now. */
struct cpu_shadow_root {
    uint8_t levels;          /* 3, 4, 5 */
    hpa_t root;              /* 4 and 5 levels: the top table */
    uint64_t pdptr[4];       /* 3 levels: entries of PAE's PDPT format */
    uint64_t cr0, cr4, efer; /* what the walk obeys */
};

/* From now on, or no longer, by shadow tables. No root is loaded then. */
void cpu_shadow_enable(struct cpu *cpu, bool on);

/* Load a root. Translations are kept: the caller flushes where the guest's registers demand it. */
void cpu_shadow_load(struct cpu *cpu, const struct cpu_shadow_root *root);

/* Drop it: every access exits until the next load. */
void cpu_shadow_unload(struct cpu *cpu);

/* Answer CPU_EXIT_PDPTES: the entries at cr3, which the restarted instruction takes. */
void cpu_shadow_give_pdptes(struct cpu *cpu, uint64_t cr3, const uint64_t pdptes[4]);

/* Grant a page to the instruction at RIP. */
void cpu_shadow_grant(struct cpu *cpu, const struct cpu_grant *g);

/* Has the instruction at RIP been granted this linear page already? */
bool cpu_shadow_is_granted(const struct cpu *cpu, uint64_t la, bool user);

/* The last CPU_EXIT_PAGE_FAULT was the guest's own fault: it is delivered at the next cpu_run(). code: as the guest
 * shall see it. False: it was met while another fault was delivered, and the two make a triple fault. */
bool cpu_shadow_reflect(struct cpu *cpu, uint32_t code) must_check;

/* ---- for src/cpu ---- */

static inline void cpu_shadow_forget_grants(struct cpu *cpu)
{
    cpu->shadow.nr_grants = 0;
    cpu->shadow.next_grant = 0;
}

/* The grant of an access by op to la, or null. */
const struct cpu_grant *cpu_shadow_find_grant(const struct cpu *cpu, const struct cpu_op *op, uint64_t la, bool user);

/* Record the exit that follows a translation which the tables refuse. op: null for fetches. */
void cpu_shadow_refused(struct cpu *cpu, const struct cpu_op *op, const struct cpu_xlate *x, bool is_fault);

/* May op write through a grant now? False: it must be restarted alone; RIP is synchronised. */
bool cpu_shadow_may_write(struct cpu *cpu, const struct cpu_op *op) must_check;

/* A write of len bytes within a granted page has been done. */
void cpu_shadow_wrote(struct cpu *cpu, uint64_t addr, unsigned len);

/* A control register has been written: drop the root and exit behind the instruction. */
void cpu_shadow_cr_written(struct cpu *cpu, unsigned reg, uint64_t value);

/* Translations have been invalidated by an instruction. */
void cpu_shadow_invalidated(struct cpu *cpu, unsigned type, unsigned pcid, uint64_t la);

/* The PDPTEs of cr3, or an exit that asks for them (false). */
bool cpu_shadow_pdptes(struct cpu *cpu, const struct cpu_op *op, uint64_t cr3, uint64_t pdpte[4]) must_check;

#endif
