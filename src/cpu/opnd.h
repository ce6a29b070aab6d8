/*
 * The one operand of a system instruction that may be a register or memory, as emitted into an
 * operation: `aux` has its size in bytes and whether it is memory; a register's number is in `dst`.
 *
 * Also what every system emitter and operation needs: append, raise, leave.
 */
#ifndef STRATA_CPU_OPND_H
#define STRATA_CPU_OPND_H

#include <errno.h>

#include "cpu/access.h"
#include "cpu/emit.h"
#include "cpu/exception.h"

#define CPU_OPND_MEM  0x80u
#define CPU_OPND_SIZE 0x1fu

/* Append an operation; it ends the block if `ends`. NULL: the block is full. */
static inline struct cpu_op *cpu_opnd_emit_plain(struct cpu_emit *e, cpu_op_fn *fn, bool ends)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (op && ends) {
        e->ends_block = true;
        e->terminated = true;
    }
    return op;
}

/* Describe operand i in op. */
static inline void cpu_opnd_set(struct cpu_emit *e, struct cpu_op *op, unsigned i)
{
    const ZydisDecodedOperand *o = &e->opnd[i];

    op->aux = (uint8_t)(e->in.operand_width / 8);
    if (o->type == ZYDIS_OPERAND_TYPE_MEMORY) {
        op->aux |= CPU_OPND_MEM;
        cpu_emit_mem(e, op, o);
    } else {
        op->dst = cpu_emit_reg(o->reg.value);
    }
}

/* Write the low `size` (2, 4, 8) bytes of v to a register as an instruction does. */
static inline void cpu_opnd_put_reg(struct cpu *cpu, unsigned reg, unsigned size, uint64_t v)
{
    if (size == 2) {
        cpu->regs[reg] = (cpu->regs[reg] & ~UINT64_C(0xffff)) | (v & 0xffff);
    } else {
        cpu->regs[reg] = size == 4 ? (uint32_t)v : v;
    }
}

/* The operand's low 16 bits. */
static inline bool cpu_opnd_get16(struct cpu *cpu, const struct cpu_op *op, uint16_t *v)
{
    uint64_t la;

    if (!(op->aux & CPU_OPND_MEM)) {
        *v = (uint16_t)cpu->regs[op->dst];
        return true;
    }
    return cpu_ea(cpu, op, 2, false, &la) && cpu_load16(cpu, op, la, v);
}

/* Store a system value: 16 bits to memory, whatever the operand size; the operand's size to a register. */
static inline bool cpu_opnd_put_word(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    uint64_t la;

    if (!(op->aux & CPU_OPND_MEM)) {
        cpu_opnd_put_reg(cpu, op->dst, op->aux & CPU_OPND_SIZE, v);
        return true;
    }
    return cpu_ea(cpu, op, 2, true, &la) && cpu_store16(cpu, op, la, (uint16_t)v);
}

/* #GP(0) unless at privilege level 0. */
static inline bool cpu_need_cpl0(struct cpu *cpu, const struct cpu_op *op)
{
    return likely(cpu->cpl == 0) ? true : cpu_raise_code(cpu, op, X86_GP, 0);
}

/* Leave to the hypervisor with RIP at the instruction. */
static inline void cpu_leave(struct cpu *cpu, const struct cpu_op *op, enum cpu_exit_reason reason)
{
    cpu_sync_rip(cpu, op);
    cpu->exit.reason = reason;
    cpu->exit.insn_len = op->len;
}

#endif
