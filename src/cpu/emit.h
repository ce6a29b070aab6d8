/*
 * From decoded instruction to compact operations. One emitter per mnemonic, listed in the family's
 * .def file as CPU_INSN(MNEMONIC, emitter); emit_table.c collects them. An emitter is called with the
 * Zydis-decoded instruction and appends one or more operations.
 */
#ifndef STRATA_CPU_EMIT_H
#define STRATA_CPU_EMIT_H

#include <Zydis/Zydis.h>

#include "cpu/op.h"

struct cpu_block;

/* One instruction on its way into a block. */
struct cpu_emit {
    struct cpu *cpu;
    uint32_t mode;             /* CPU_MODE_* of the block */
    ZydisDecodedInstruction in;
    ZydisDecodedOperand opnd[ZYDIS_MAX_OPERAND_COUNT];
    const uint8_t *bytes;      /* in.length of them */
    uint16_t pgoff;            /* of the first byte in the code page */
    struct cpu_op *ops;        /* where to append */
    unsigned nops, max_ops;
    uint8_t nth;               /* of this instruction in its block, from 1 */
    uint32_t flags_live;       /* arithmetic flags that somebody may look at after this instruction */
    const ZydisDecodedInstruction *next; /* the instruction behind, if it is in this block, else NULL */
    const ZydisDecodedOperand *next_opnd;
    uint8_t cc_hint;           /* what cc_op is known to be before this instruction, or CPU_CC_UNKNOWN */
    uint8_t cc_new;            /* set by an emitter that knows what cc_op will be after it */
    bool ends_block;           /* set by the emitter: control transfer, or a system instruction */
    bool fused;                /* set by the emitter: the instruction behind is done too */
    bool terminated;           /* set by the emitter: its last operation never calls cpu_next() */
};

/* Emitter: 0, or -ENOSYS when this form is not known (the instruction then raises #UD and is counted),
 * or -EINVAL when the encoding is architecturally undefined (raises #UD). */
typedef int cpu_emit_fn(struct cpu_emit *e);

/* Append an operation with len, pgoff, EA defaults and flags set. NULL when the block is full (the emitter
 * then returns -ENOSPC and the block ends before this instruction). */
struct cpu_op *cpu_emit_op(struct cpu_emit *e, cpu_op_fn *fn);

/* Fill base, index, shift, seg, disp and the EA flags from a memory operand. */
void cpu_emit_mem(struct cpu_emit *e, struct cpu_op *op, const ZydisDecodedOperand *m);

/* Number in regs[] of a general register of 16, 32 or 64 bits; cpu_emit_reg8: byte offset into regs[]
 * (AH, CH, DH, BH are offset 8*n+1). */
uint8_t cpu_emit_reg(ZydisRegister r);
uint8_t cpu_emit_reg8(ZydisRegister r);

#define CPU_CC_UNKNOWN 0xffu

/* CMP or TEST with the Jcc behind it in one operation (branch.c). False: nothing was emitted. */
bool cpu_emit_fused(struct cpu_emit *e, bool is_test);

/* The table over all families, indexed by ZydisMnemonic. */
cpu_emit_fn *cpu_emit_find(ZydisMnemonic m);

#endif
