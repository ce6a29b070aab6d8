/*
 * SSE integer instructions with an immediate: row IMM of simd_rows.def (shuffles, blends, PALIGNR,
 * MPSADBW, PCLMULQDQ, ...), the byte shifts of a whole register, and the variable blends, whose third
 * operand is XMM0. No state, no locks.
 */
#include "cpu/simd.h"

#define IMM_KERNEL(M, insn)                                                                        \
    static __attribute__((noinline)) void M##_k(union cpu_xmm *d, const union cpu_xmm *s,          \
                                                unsigned imm)                                      \
    {                                                                                              \
        register simd_vec a __asm__("xmm0") = *(const simd_vec *)d;                                \
        register simd_vec b __asm__("xmm1") = *(const simd_vec *)s;                                \
        uint64_t i = imm & 0xff, t;                                                                \
                                                                                                   \
        CPU_SIMD_IMM8(insn, : "+x"(a), [i] "+&r"(i), [t] "=&r"(t) : "x"(b) : "cc");                \
        *(simd_vec *)d = a;                                                                        \
    }

#define OPS(M, bytes)                                                                              \
    static void M##_r(struct cpu *cpu, const struct cpu_op *op)                                    \
    {                                                                                              \
        cpu_simd_do_reg(cpu, op, M##_k);                                                           \
    }                                                                                              \
    MEM_OP(M##_m, cpu_simd_mem_body, M##_k, bytes, false, true)

#define SIMD_IMM(M, insn, bytes) IMM_KERNEL(M, insn " $simd_imm8, %%xmm1, %%xmm0") OPS(M, bytes)
#include "cpu/simd_rows.def"

IMM_KERNEL(PSLLDQ, "pslldq $simd_imm8, %%xmm0")
IMM_KERNEL(PSRLDQ, "psrldq $simd_imm8, %%xmm0")

static void PSLLDQ_r(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_simd_do_reg(cpu, op, PSLLDQ_k);
}

static void PSRLDQ_r(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_simd_do_reg(cpu, op, PSRLDQ_k);
}

static const struct cpu_simd_row rows[] = {
#define SIMD_IMM(M, insn, bytes) {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#include "cpu/simd_rows.def"
    {ZYDIS_MNEMONIC_PSLLDQ, PSLLDQ_r, {NULL, NULL, NULL}},
    {ZYDIS_MNEMONIC_PSRLDQ, PSRLDQ_r, {NULL, NULL, NULL}},
};

/* Emit one instruction of the rows above (PALIGNR also with MMX registers). Returns as cpu_emit_fn. */
int cpu_emit_simd_imm(struct cpu_emit *e)
{
    int rc;

    if (ZydisRegisterGetClass(e->opnd[0].reg.value) == ZYDIS_REGCLASS_MMX) {
        return cpu_mmx_emit(e);
    }
    rc = cpu_simd_emit_rows(e, rows, ARRAY_LEN(rows));
    if (!rc && e->in.mnemonic == ZYDIS_MNEMONIC_INSERTPS && is_mem(&e->opnd[1])) {
        e->ops[e->nops - 1].imm &= 0x3f; /* the selection of a source element means registers */
    }
    return rc;
}

/* Blend by the sign bits of XMM0's elements. */
#define BLENDV(M, insn)                                                                            \
    static always_inline bool M##_do(struct cpu *cpu, const struct cpu_op *op,                     \
                                     const union cpu_xmm *s)                                       \
    {                                                                                              \
        register simd_vec mask __asm__("xmm0") = *(const simd_vec *)&cpu->xmm[0];                  \
        simd_vec a = *(const simd_vec *)&cpu->xmm[op->dst];                                        \
                                                                                                   \
        __asm__(insn " %%xmm0, %1, %0" : "+x"(a) : "x"(*(const simd_vec *)s), "x"(mask));          \
        *(simd_vec *)&cpu->xmm[op->dst] = a;                                                       \
        return true;                                                                               \
    }                                                                                              \
    CPU_SIMD_OP(M##_r)                                                                             \
    {                                                                                              \
        return cpu_simd_ready(cpu, op) && M##_do(cpu, op, &cpu->xmm[op->src]);                     \
    }                                                                                              \
    CPU_SIMD_OP(M##_m)                                                                             \
    {                                                                                              \
        union cpu_xmm v;                                                                           \
                                                                                                   \
        return cpu_simd_ready(cpu, op) && cpu_simd_load(cpu, op, &v) && M##_do(cpu, op, &v);       \
    }

BLENDV(BLENDVPS, "blendvps")
BLENDV(BLENDVPD, "blendvpd")
BLENDV(PBLENDVB, "pblendvb")

static const struct cpu_simd_row blend_rows[] = {
    {ZYDIS_MNEMONIC_BLENDVPS, BLENDVPS_r, {BLENDVPS_m, BLENDVPS_m, BLENDVPS_m}},
    {ZYDIS_MNEMONIC_BLENDVPD, BLENDVPD_r, {BLENDVPD_m, BLENDVPD_m, BLENDVPD_m}},
    {ZYDIS_MNEMONIC_PBLENDVB, PBLENDVB_r, {PBLENDVB_m, PBLENDVB_m, PBLENDVB_m}},
};

/* Emit BLENDVPS, BLENDVPD or PBLENDVB. Returns as cpu_emit_fn. */
int cpu_emit_simd_blendv(struct cpu_emit *e)
{
    return cpu_simd_emit_rows(e, blend_rows, ARRAY_LEN(blend_rows));
}
