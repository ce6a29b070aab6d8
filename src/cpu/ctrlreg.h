/* Control registers: the rules of what may be in them, for instructions and for the hypervisor. */
#ifndef STRATA_CPU_CTRLREG_H
#define STRATA_CPU_CTRLREG_H

#include "cpu/emit.h"

/* Bits of CR4 that this processor has, by its features. */
uint64_t cpu_cr4_valid(const struct cpu *cpu);

/* Is CR0 a combination that any mode allows? */
bool cpu_cr0_is_legal(uint64_t cr0);

/* Load CR0 or CR4 with all checks and effects (mode, LMA, translations). False: recorded. */
bool cpu_write_cr0(struct cpu *cpu, const struct cpu_op *op, uint64_t v) must_check;
bool cpu_write_cr3(struct cpu *cpu, const struct cpu_op *op, uint64_t v) must_check;
bool cpu_write_cr4(struct cpu *cpu, const struct cpu_op *op, uint64_t v) must_check;

/* MOV from and to debug registers (dbgreg.c): emitters for the forms that MOV's emitter hands over. */
int cpu_emit_mov_from_dr(struct cpu_emit *e);
int cpu_emit_mov_to_dr(struct cpu_emit *e);

#endif
