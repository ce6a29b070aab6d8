/*
 * Flag instructions that need no privilege (CLC STC CMC CLD STD LAHF SAHF SALC), decimal arithmetic (DAA DAS AAA AAS AAM
 * AAD), BOUND and PAUSE. Each is one operation on whole flags.
 */
#include <errno.h>

#include "cpu/exception.h"
#include "cpu/insn.h"

/* A spin loop that goes on this long without any other exit is told to the hypervisor. */
#define PAUSES_BEFORE_EXIT 200u

#define FLAG_OP(name, body)                                                                        \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        uint32_t flags = cpu_arith_flags(cpu);                                                     \
                                                                                                   \
        body;                                                                                      \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    int cpu_emit_##name(struct cpu_emit *e)                                                        \
    {                                                                                              \
        return cpu_emit_op(e, name) ? 0 : -ENOSPC;                                                 \
    }

#define SAHF_FLAGS (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF)

FLAG_OP(clc, cpu_set_arith_flags(cpu, flags & ~X86_CF))
FLAG_OP(stc, cpu_set_arith_flags(cpu, flags | X86_CF))
FLAG_OP(cmc, cpu_set_arith_flags(cpu, flags ^ X86_CF))
FLAG_OP(lahf, reg_set(cpu, 1, 1, (flags & SAHF_FLAGS) | X86_RF1))
FLAG_OP(sahf, cpu_set_arith_flags(cpu, (flags & X86_OF) | ((uint32_t)reg_get(cpu, 1, 1) & SAHF_FLAGS)))
FLAG_OP(salc, reg_set(cpu, 0, 1, flags & X86_CF ? 0xff : 0))

static void cld(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->rflags_rest &= ~X86_DF;
    cpu_next(cpu, op);
}

static void std(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->rflags_rest |= X86_DF;
    cpu_next(cpu, op);
}

int cpu_emit_cld(struct cpu_emit *e)
{
    return cpu_emit_op(e, cld) ? 0 : -ENOSPC;
}

int cpu_emit_std(struct cpu_emit *e)
{
    return cpu_emit_op(e, std) ? 0 : -ENOSPC;
}

/* SF, ZF, PF of a byte. */
static uint32_t byte_flags(uint8_t v)
{
    return (v & 0x80 ? X86_SF : 0) | (v == 0 ? X86_ZF : 0) | (__builtin_parity(v) ? 0 : X86_PF);
}

/* DAA and DAS. Source: Intel, DAA, "Operation". */
static void decimal_adjust(struct cpu *cpu, bool subtract)
{
    uint32_t flags = cpu_arith_flags(cpu), out = 0;
    uint8_t old = (uint8_t)cpu->regs[CPU_RAX], al = old;

    if ((old & 0xf) > 9 || (flags & X86_AF)) {
        al = (uint8_t)(subtract ? al - 6 : al + 6);
        out |= X86_AF;
        if (subtract && old < 6) {
            out |= X86_CF;
        }
    }
    if (old > 0x99 || (flags & X86_CF)) {
        al = (uint8_t)(subtract ? al - 0x60 : al + 0x60);
        out |= X86_CF;
    }
    reg_set(cpu, 0, 1, al);
    cpu_set_arith_flags(cpu, out | byte_flags(al));
}

/* AAA and AAS. */
static void ascii_adjust(struct cpu *cpu, bool subtract)
{
    uint32_t flags = cpu_arith_flags(cpu), out = 0;
    uint16_t ax = (uint16_t)cpu->regs[CPU_RAX];

    if ((ax & 0xf) > 9 || (flags & X86_AF)) {
        ax = (uint16_t)(subtract ? ax - 0x106 : ax + 0x106);
        out = X86_AF | X86_CF;
    }
    ax &= 0xff0f;
    reg_set(cpu, CPU_RAX, 2, ax);
    cpu_set_arith_flags(cpu, out | byte_flags((uint8_t)ax));
}

FLAG_OP(daa, (void)flags; decimal_adjust(cpu, false))
FLAG_OP(das, (void)flags; decimal_adjust(cpu, true))
FLAG_OP(aaa, (void)flags; ascii_adjust(cpu, false))
FLAG_OP(aas, (void)flags; ascii_adjust(cpu, true))

static void aam(struct cpu *cpu, const struct cpu_op *op)
{
    uint8_t al = (uint8_t)cpu->regs[CPU_RAX], base = (uint8_t)op->imm;

    if (base == 0) {
        (void)cpu_raise(cpu, op, X86_DE);
        return;
    }
    reg_set(cpu, CPU_RAX, 2, (uint64_t)(al / base) << 8 | al % base);
    cpu_set_arith_flags(cpu, byte_flags(al % base));
    cpu_next(cpu, op);
}

static void aad(struct cpu *cpu, const struct cpu_op *op)
{
    uint8_t al = (uint8_t)(cpu->regs[CPU_RAX] + (uint8_t)(cpu->regs[CPU_RAX] >> 8) * (uint8_t)op->imm);

    reg_set(cpu, CPU_RAX, 2, al);
    cpu_set_arith_flags(cpu, byte_flags(al));
    cpu_next(cpu, op);
}

static int emit_imm(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->imm = e->opnd[0].imm.value.u;
    return 0;
}

int cpu_emit_aam(struct cpu_emit *e)
{
    return emit_imm(e, aam);
}

int cpu_emit_aad(struct cpu_emit *e)
{
    return emit_imm(e, aad);
}

/* BOUND: #BR unless lower <= index <= upper, signed. */
static void bound(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned size = op->aux;
    struct cpu_word la = cpu_ea_word(cpu, op, 2 * size, false), low, high;
    int64_t index = sign_of(reg_get(cpu, op->dst, size), size);

    if (!la.ok) {
        return;
    }
    low = cpu_load_slow(cpu, op, la.v, size);
    if (!low.ok) {
        return;
    }
    high = cpu_load_slow(cpu, op, la.v + size, size);
    if (!high.ok) {
        return;
    }
    if (index < sign_of(low.v, size) || index > sign_of(high.v, size)) {
        (void)cpu_raise(cpu, op, X86_BR);
        return;
    }
    cpu_next(cpu, op);
}

int cpu_emit_bound(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, bound);

    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[1]);
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    op->aux = (uint8_t)(e->opnd[0].size / 8);
    return 0;
}

static void pause_op(struct cpu *cpu, const struct cpu_op *op)
{
    if (likely(++cpu->pause_count < PAUSES_BEFORE_EXIT)) {
        cpu_next(cpu, op);
        return;
    }
    cpu->pause_count = 0;
    cpu->exit.reason = CPU_EXIT_PAUSE;
    cpu_end_block(cpu, op);
}

int cpu_emit_pause(struct cpu_emit *e)
{
    return cpu_emit_op(e, pause_op) ? 0 : -ENOSPC;
}
