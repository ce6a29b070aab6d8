/*
 * Instructions with both MMX and XMM operands: moves and conversions between them; and those of SSE
 * that touch single words or bytes of an MMX register. No locks.
 *
 * Conversions of two elements are done with the instruction of four (or the XMM form of two): the
 * elements beyond hold zero, which converts exactly and sets no flag.
 */
#include <errno.h>

#include "cpu/mmx.h"
#include "cpu/simd.h"

#define CONVERT(name, insn)                                                                        \
    static void name(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)                       \
    {                                                                                              \
        simd_vec a;                                                                                \
                                                                                                   \
        __asm__ volatile(insn " %1, %0" : "=x"(a) : "x"(*(const simd_vec *)s));                    \
        *(simd_vec *)d = a;                                                                        \
    }

CONVERT(pi2ps, "cvtdq2ps")
CONVERT(pi2pd, "cvtdq2pd")
CONVERT(ps2pi, "cvtps2dq")
CONVERT(tps2pi, "cvttps2dq")
CONVERT(pd2pi, "cvtpd2dq")
CONVERT(tpd2pi, "cvttpd2dq")

static cpu_simd_kernel *kernel_of(const struct cpu_op *op)
{
    return (cpu_simd_kernel *)(uintptr_t)op->imm;
}

/* aux: 8 = two singles, the upper half of the destination is kept; 16 = two doubles. */
static void commit_xmm(struct cpu *cpu, const struct cpu_op *op, const union cpu_xmm *v)
{
    cpu->xmm[op->dst].u64[0] = v->u64[0];
    if (op->aux == 16) {
        cpu->xmm[op->dst].u64[1] = v->u64[1];
    }
}

CPU_SIMD_OP(from_mm)
{
    union cpu_xmm s = {.u64 = {cpu->x87.st[op->src].mant, 0}}, d = {.u64 = {0, 0}};

    if (!cpu_simd_ready(cpu, op) || !cpu_mmx_begin(cpu, op)) {
        return false;
    }
    cpu_mmx_touch(cpu);
    if (!cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &s)) {
        return false;
    }
    commit_xmm(cpu, op, &d);
    return true;
}

CPU_SIMD_OP(from_mem)
{
    union cpu_xmm s, d = {.u64 = {0, 0}};

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_load_part(cpu, op, 8, &s) ||
        !cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &s)) {
        return false;
    }
    commit_xmm(cpu, op, &d);
    return true;
}

/* XMM (aux 16: whole, 8: its low half) to MMX. */
static bool to_mm(struct cpu *cpu, const struct cpu_op *op, union cpu_xmm *s)
{
    union cpu_xmm d = {.u64 = {0, 0}};

    if (op->aux == 8) {
        s->u64[1] = 0;
    }
    cpu_mmx_touch(cpu);
    if (!cpu_simd_fp_run(cpu, op, kernel_of(op), &d, s)) {
        return false;
    }
    cpu_mmx_set(cpu, op->dst, d.u64[0]);
    return true;
}

CPU_SIMD_OP(to_mm_reg)
{
    union cpu_xmm s = cpu->xmm[op->src];

    return cpu_simd_ready(cpu, op) && cpu_mmx_begin(cpu, op) && to_mm(cpu, op, &s);
}

CPU_SIMD_OP(to_mm_mem)
{
    union cpu_xmm s;

    return cpu_simd_ready(cpu, op) && cpu_mmx_begin(cpu, op) && cpu_simd_operand(cpu, op, op->aux, &s) &&
           to_mm(cpu, op, &s);
}

static void movq2dq(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op) || !cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_touch(cpu);
    cpu->xmm[op->dst] = (union cpu_xmm){.u64 = {cpu->x87.st[op->src].mant, 0}};
    cpu_next(cpu, op);
}

static void movdq2q(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op) || !cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_set(cpu, op->dst, cpu->xmm[op->src].u64[0]);
    cpu_next(cpu, op);
}

/* Words of MMX registers; aux: which. */

static void insert_word(struct cpu *cpu, const struct cpu_op *op, uint16_t v)
{
    unsigned shift = (op->aux & 3) * 16;
    uint64_t d = cpu->x87.st[op->dst].mant;

    cpu_mmx_set(cpu, op->dst, (d & ~(UINT64_C(0xffff) << shift)) | (uint64_t)v << shift);
}

CPU_SIMD_OP(pinsrw_reg)
{
    if (!cpu_mmx_begin(cpu, op)) {
        return false;
    }
    insert_word(cpu, op, (uint16_t)cpu->regs[op->src]);
    return true;
}

CPU_SIMD_OP(pinsrw_mem)
{
    uint64_t la;
    uint16_t v;

    if (!cpu_mmx_begin(cpu, op) || !cpu_ea(cpu, op, 2, false, &la) || !cpu_load16(cpu, op, la, &v)) {
        return false;
    }
    insert_word(cpu, op, v);
    return true;
}

static void pextrw(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_touch(cpu);
    cpu->regs[op->dst] = (uint16_t)(cpu->x87.st[op->src].mant >> (op->aux & 3) * 16);
    cpu_next(cpu, op);
}

/* Emitters. */

static bool is_class(const struct cpu_emit *e, unsigned o, ZydisRegisterClass c)
{
    return e->opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(e->opnd[o].reg.value) == c;
}

static uint8_t number(const struct cpu_emit *e, unsigned o)
{
    if (is_class(e, o, ZYDIS_REGCLASS_MMX) || is_class(e, o, ZYDIS_REGCLASS_XMM)) {
        return (uint8_t)ZydisRegisterGetId(e->opnd[o].reg.value);
    }
    return cpu_emit_reg(e->opnd[o].reg.value);
}

static int emit(struct cpu_emit *e, cpu_op_fn *reg, cpu_op_fn *mem, uint8_t aux, cpu_simd_kernel *k)
{
    bool is_mem = e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op = cpu_emit_op(e, is_mem ? mem : reg);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = aux;
    op->imm = (uintptr_t)k;
    op->dst = number(e, 0);
    if (is_mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
    } else {
        op->src = number(e, 1);
    }
    return 0;
}

/* MOVQ2DQ, MOVDQ2Q, CVTPI2PS, CVTPI2PD, CVT(T)PS2PI, CVT(T)PD2PI. */
int cpu_emit_mmx_cvt(struct cpu_emit *e)
{
    switch (e->in.mnemonic) {
    case ZYDIS_MNEMONIC_MOVQ2DQ:
        return emit(e, movq2dq, NULL, 0, NULL);
    case ZYDIS_MNEMONIC_MOVDQ2Q:
        return emit(e, movdq2q, NULL, 0, NULL);
    case ZYDIS_MNEMONIC_CVTPI2PS:
        return emit(e, from_mm, from_mem, 8, pi2ps);
    case ZYDIS_MNEMONIC_CVTPI2PD:
        return emit(e, from_mm, from_mem, 16, pi2pd);
    case ZYDIS_MNEMONIC_CVTPS2PI:
        return emit(e, to_mm_reg, to_mm_mem, 8, ps2pi);
    case ZYDIS_MNEMONIC_CVTTPS2PI:
        return emit(e, to_mm_reg, to_mm_mem, 8, tps2pi);
    case ZYDIS_MNEMONIC_CVTPD2PI:
        return emit(e, to_mm_reg, to_mm_mem, 16, pd2pi);
    case ZYDIS_MNEMONIC_CVTTPD2PI:
        return emit(e, to_mm_reg, to_mm_mem, 16, tpd2pi);
    default:
        return -ENOSYS;
    }
}

/* PINSRW and PEXTRW with an MMX register. */
int cpu_mmx_emit_word(struct cpu_emit *e)
{
    bool insert = e->in.mnemonic == ZYDIS_MNEMONIC_PINSRW;

    return emit(e, insert ? pinsrw_reg : pextrw, insert ? pinsrw_mem : NULL,
                (uint8_t)e->opnd[2].imm.value.u, NULL);
}
