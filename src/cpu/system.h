/*
 * What the system family offers its siblings in src/cpu: emitters for the forms of shared mnemonics
 * (MOV, PUSH, POP, CALL, JMP, RET, MOVSD, CMPSD) that are system's, the mode derivation, and the
 * debug hooks of the run loop and the memory path.
 */
#ifndef STRATA_CPU_SYSTEM_H
#define STRATA_CPU_SYSTEM_H

#include "cpu/emit.h"

/*
 * Shared mnemonics. The owner of the mnemonic calls these for:
 *   MOV     an operand that is a segment, control or debug register
 *   PUSH, POP  of a segment register
 *   CALL, JMP, RET  with in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR
 *   MOVSD, CMPSD    without an XMM operand (the string instructions)
 */
cpu_emit_fn cpu_emit_mov_system;
cpu_emit_fn cpu_emit_push_seg;
cpu_emit_fn cpu_emit_pop_seg;
cpu_emit_fn cpu_emit_call_far;
cpu_emit_fn cpu_emit_jmp_far;
cpu_emit_fn cpu_emit_ret_far;
cpu_emit_fn cpu_emit_movs;
cpu_emit_fn cpu_emit_cmps;

/* The emitters of system.def, as emit_table.c declares them. */
#define CPU_INSN(mnemonic, fn) cpu_emit_fn fn;
#include "cpu/system.def"
#undef CPU_INSN

/*
 * Derive mode, cpl and seg_base[] from CR0, EFER, RFLAGS and the segment registers. To be called after any
 * change of these; cheap. CPL is SS.DPL in protected mode. Does not flush anything.
 */
void cpu_update_mode(struct cpu *cpu);

/*
 * Debug hooks; all three matter only when cpu->mode has CPU_MODE_TF, which is set by RFLAGS.TF, by any
 * breakpoint enabled in DR7 and by single_step. Blocks hold one instruction then.
 *
 * before: at cpu->rip, ahead of an instruction's fetch. False: #DB is recorded in cpu->fault (instruction
 *         breakpoint, unless RFLAGS.RF), to be delivered instead of running it.
 * data:   a data access of len bytes at linear address la is about to be done (memory path, slow side: the
 *         TLB must not answer by itself while CPU_MODE_TF is set).
 * io:     the same for a port.
 * after:  the instruction has retired. Clears RFLAGS.RF; records the #DB trap (single step, data
 *         breakpoints) in cpu->fault. `tf` is RFLAGS.TF as it was before the instruction.
 */
bool cpu_debug_before(struct cpu *cpu) must_check;
void cpu_debug_data(struct cpu *cpu, uint64_t la, unsigned len, bool write);
void cpu_debug_io(struct cpu *cpu, uint16_t port, unsigned len);
void cpu_debug_after(struct cpu *cpu, bool tf);

#endif
