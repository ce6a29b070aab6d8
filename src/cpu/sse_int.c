/*
 * SSE integer and bitwise instructions of the regular form xmm, xmm/m: the rows INT, BOTH, PART and
 * SHIFT of simd_rows.def. Each becomes a kernel and two operations (register source, memory source).
 * Flow: emitter -> row -> operation -> kernel. No state, no locks. The same mnemonics with MMX
 * registers are mmx.c's.
 */
#include "cpu/simd.h"

#define KERNEL(M, insn)                                                                            \
    static always_inline void M##_k(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)        \
    {                                                                                              \
        simd_vec a = *(const simd_vec *)d;                                                         \
                                                                                                   \
        __asm__(insn " %1, %0" : "+x"(a) : "x"(*(const simd_vec *)s));                             \
        *(simd_vec *)d = a;                                                                        \
    }

#define OPS(M, insn, bytes)                                                                        \
    KERNEL(M, insn)                                                                                \
    static void M##_r(struct cpu *cpu, const struct cpu_op *op)                                    \
    {                                                                                              \
        cpu_simd_do_reg(cpu, op, M##_k);                                                           \
    }                                                                                              \
    MEM_OP(M##_m, cpu_simd_mem_body, M##_k, bytes, false, false)

/* A shift also takes its count from the immediate, which the kernel sees as a register's low half. */
#define SHIFT_OPS(M, insn)                                                                         \
    OPS(M, insn, 16)                                                                               \
    static void M##_i(struct cpu *cpu, const struct cpu_op *op)                                    \
    {                                                                                              \
        union cpu_xmm count = {.u64 = {op->imm & 0xff, 0}};                                        \
                                                                                                   \
        if (!cpu_simd_ready(cpu, op)) {                                                            \
            return;                                                                                \
        }                                                                                          \
        M##_k(&cpu->xmm[op->dst], &count, 0);                                                      \
        cpu_next(cpu, op);                                                                         \
    }

#define SIMD_INT(M, insn)         OPS(M, insn, 16)
#define SIMD_BOTH(M, insn, bytes) OPS(M, insn, 16)
#define SIMD_PART(M, insn, bytes) OPS(M, insn, bytes)
#define SIMD_SHIFT(M, insn)       SHIFT_OPS(M, insn)
#include "cpu/simd_rows.def"

static const struct cpu_simd_row rows[] = {
#define SIMD_INT(M, insn)         {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#define SIMD_BOTH(M, insn, bytes) {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#define SIMD_PART(M, insn, bytes) {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#define SIMD_SHIFT(M, insn)       {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#include "cpu/simd_rows.def"
};

static const struct cpu_simd_row imm_rows[] = {
#define SIMD_SHIFT(M, insn) {ZYDIS_MNEMONIC_##M, M##_i, {NULL, NULL, NULL}},
#include "cpu/simd_rows.def"
};

/*
 * Emit one instruction of the rows above, or its MMX form.
 * Returns 0, or as cpu_emit_fn. Source: the manual's instruction pages.
 */
int cpu_emit_simd_int(struct cpu_emit *e)
{
    if (ZydisRegisterGetClass(e->opnd[0].reg.value) == ZYDIS_REGCLASS_MMX) {
        return cpu_mmx_emit(e);
    }
    if (e->opnd[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        return cpu_simd_emit_rows(e, imm_rows, ARRAY_LEN(imm_rows));
    }
    return cpu_simd_emit_rows(e, rows, ARRAY_LEN(rows));
}
