/*
 * SSE conversions between XMM and general or MMX registers, and the comparisons that set RFLAGS
 * (COMISx, UCOMISx, PTEST). Kernels as in simd.h; what goes to a general register passes through the
 * low quadword of a 16-byte temporary, so that unmasked exceptions are handled in one place.
 * No state, no locks.
 */
#include "cpu/simd.h"

#include <errno.h>

#include "cpu/flags.h"

/* Integer in the source's low half to a scalar in the destination. */
#define FROM_INT(name, insn, type)                                                                 \
    static void name(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)                       \
    {                                                                                              \
        simd_vec a = *(const simd_vec *)d;                                                         \
                                                                                                   \
        __asm__ volatile(insn " %1, %0" : "+x"(a) : "r"((type)s->u64[0]));                         \
        *(simd_vec *)d = a;                                                                        \
    }

FROM_INT(si2ss_32, "cvtsi2ssl", uint32_t)
FROM_INT(si2ss_64, "cvtsi2ssq", uint64_t)
FROM_INT(si2sd_32, "cvtsi2sdl", uint32_t)
FROM_INT(si2sd_64, "cvtsi2sdq", uint64_t)

/* Scalar in the source to an integer in the destination's low quadword. */
#define TO_INT(name, insn, type)                                                                   \
    static void name(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)                       \
    {                                                                                              \
        type v;                                                                                    \
                                                                                                   \
        __asm__ volatile(insn " %1, %0" : "=r"(v) : "x"(*(const simd_vec *)s));                    \
        d->u64[0] = v;                                                                             \
    }

TO_INT(ss2si_32, "cvtss2si", uint32_t)
TO_INT(ss2si_64, "cvtss2si", uint64_t)
TO_INT(sd2si_32, "cvtsd2si", uint32_t)
TO_INT(sd2si_64, "cvtsd2si", uint64_t)
TO_INT(tss2si_32, "cvttss2si", uint32_t)
TO_INT(tss2si_64, "cvttss2si", uint64_t)
TO_INT(tsd2si_32, "cvttsd2si", uint32_t)
TO_INT(tsd2si_64, "cvttsd2si", uint64_t)

/* Compare d with s and leave ZF, PF and CF, in their RFLAGS places, in d's low quadword. */
#define COMPARE(name, insn)                                                                        \
    static void name(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)                       \
    {                                                                                              \
        bool z, p, c;                                                                              \
                                                                                                   \
        __asm__ volatile(insn " %4, %3"                                                            \
                         : "=@ccz"(z), "=@ccp"(p), "=@ccc"(c)                                      \
                         : "x"(*(const simd_vec *)d), "x"(*(const simd_vec *)s));                  \
        d->u64[0] = (z ? X86_ZF : 0) | (p ? X86_PF : 0) | (c ? X86_CF : 0);                        \
    }

COMPARE(comiss, "comiss")
COMPARE(comisd, "comisd")
COMPARE(ucomiss, "ucomiss")
COMPARE(ucomisd, "ucomisd")
COMPARE(ptest, "ptest")

struct cvt_row {
    uint16_t mnemonic;
    cpu_simd_kernel *narrow, *wide; /* by the general register's size */
};

static const struct cvt_row from_rows[] = {
    {ZYDIS_MNEMONIC_CVTSI2SS, si2ss_32, si2ss_64},
    {ZYDIS_MNEMONIC_CVTSI2SD, si2sd_32, si2sd_64},
};

static const struct cvt_row to_rows[] = {
    {ZYDIS_MNEMONIC_CVTSS2SI, ss2si_32, ss2si_64},
    {ZYDIS_MNEMONIC_CVTSD2SI, sd2si_32, sd2si_64},
    {ZYDIS_MNEMONIC_CVTTSS2SI, tss2si_32, tss2si_64},
    {ZYDIS_MNEMONIC_CVTTSD2SI, tsd2si_32, tsd2si_64},
};

static const struct cvt_row flag_rows[] = {
    {ZYDIS_MNEMONIC_COMISS, comiss, comiss},
    {ZYDIS_MNEMONIC_COMISD, comisd, comisd},
    {ZYDIS_MNEMONIC_UCOMISS, ucomiss, ucomiss},
    {ZYDIS_MNEMONIC_UCOMISD, ucomisd, ucomisd},
    {ZYDIS_MNEMONIC_PTEST, ptest, ptest},
};

static cpu_simd_kernel *kernel_of(const struct cpu_op *op)
{
    return (cpu_simd_kernel *)(uintptr_t)op->imm;
}

/* The operations keep their kernel in imm; kernels here have no immediate of their own. */
CPU_SIMD_OP(from_gpr)
{
    union cpu_xmm s = {.u64 = {cpu->regs[op->src], 0}};

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_fp_run(cpu, op, kernel_of(op), &cpu->xmm[op->dst], &s)) {
        return false;
    }
    return true;
}

CPU_SIMD_OP(from_mem)
{
    union cpu_xmm s;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_load_part(cpu, op, op->aux, &s) ||
        !cpu_simd_fp_run(cpu, op, kernel_of(op), &cpu->xmm[op->dst], &s)) {
        return false;
    }
    return true;
}

CPU_SIMD_OP(to_gpr_reg)
{
    union cpu_xmm d = {.u64 = {0, 0}};

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &cpu->xmm[op->src])) {
        return false;
    }
    cpu->regs[op->dst] = d.u64[0];
    return true;
}

CPU_SIMD_OP(to_gpr_mem)
{
    union cpu_xmm d = {.u64 = {0, 0}}, s;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_load_part(cpu, op, op->aux, &s) ||
        !cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &s)) {
        return false;
    }
    cpu->regs[op->dst] = d.u64[0];
    return true;
}

CPU_SIMD_OP(flags_reg)
{
    union cpu_xmm d = cpu->xmm[op->dst];

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &cpu->xmm[op->src])) {
        return false;
    }
    cpu_set_arith_flags(cpu, d.u32[0]);
    return true;
}

CPU_SIMD_OP(flags_mem)
{
    union cpu_xmm d = cpu->xmm[op->dst], s;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_operand(cpu, op, op->aux, &s) ||
        !cpu_simd_fp_run(cpu, op, kernel_of(op), &d, &s)) {
        return false;
    }
    cpu_set_arith_flags(cpu, d.u32[0]);
    return true;
}

static const struct cvt_row *find(const struct cvt_row *rows, unsigned n, ZydisMnemonic m)
{
    for (unsigned i = 0; i < n; i++) {
        if (rows[i].mnemonic == m) {
            return &rows[i];
        }
    }
    return NULL;
}

static uint8_t number(ZydisRegister r)
{
    ZydisRegisterClass c = ZydisRegisterGetClass(r);

    return c == ZYDIS_REGCLASS_XMM ? (uint8_t)ZydisRegisterGetId(r) : cpu_emit_reg(r);
}

static int emit_row(struct cpu_emit *e, const struct cvt_row *row, cpu_op_fn *reg, cpu_op_fn *mem)
{
    bool is_mem = e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    bool wide = (e->in.attributes & ZYDIS_ATTRIB_HAS_REX) && e->in.raw.rex.W;
    struct cpu_op *op;

    if (!row) {
        return -ENOSYS;
    }
    op = cpu_emit_op(e, is_mem ? mem : reg);
    if (!op) {
        return -ENOSPC;
    }
    op->imm = (uintptr_t)(wide ? row->wide : row->narrow);
    op->dst = number(e->opnd[0].reg.value);
    if (is_mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
        op->aux = (uint8_t)(e->opnd[1].size / 8);
    } else {
        op->src = number(e->opnd[1].reg.value);
    }
    return 0;
}

/* CVTSI2SS, CVTSI2SD. */
int cpu_emit_simd_from_int(struct cpu_emit *e)
{
    return emit_row(e, find(from_rows, ARRAY_LEN(from_rows), e->in.mnemonic), from_gpr, from_mem);
}

/* CVT(T)SS2SI, CVT(T)SD2SI. */
int cpu_emit_simd_to_int(struct cpu_emit *e)
{
    return emit_row(e, find(to_rows, ARRAY_LEN(to_rows), e->in.mnemonic), to_gpr_reg, to_gpr_mem);
}

/* COMISS, COMISD, UCOMISS, UCOMISD, PTEST. */
int cpu_emit_simd_flags(struct cpu_emit *e)
{
    return emit_row(e, find(flag_rows, ARRAY_LEN(flag_rows), e->in.mnemonic), flags_reg, flags_mem);
}
