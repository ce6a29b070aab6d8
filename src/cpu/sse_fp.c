/*
 * SSE floating point of the regular form xmm, xmm/m[, imm8]: rows FP and FPIMM of simd_rows.def.
 * Arithmetic, comparison to a mask, rounding, and conversions that stay in XMM registers. Results and
 * flags are the host's under the guest's MXCSR (simd.h). No state, no locks.
 */
#include "cpu/simd.h"
#include "cpu/system.h"

#define KERNEL(M, insn)                                                                            \
    static always_inline void M##_k(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm)        \
    {                                                                                              \
        simd_vec a = *(const simd_vec *)d;                                                         \
                                                                                                   \
        __asm__ volatile(insn " %1, %0" : "+x"(a) : "x"(*(const simd_vec *)s));                    \
        *(simd_vec *)d = a;                                                                        \
    }

#define IMM_KERNEL(M, insn)                                                                        \
    static __attribute__((noinline)) void M##_k(union cpu_xmm *d, const union cpu_xmm *s,          \
                                                unsigned imm)                                      \
    {                                                                                              \
        register simd_vec a __asm__("xmm0") = *(const simd_vec *)d;                                \
        register simd_vec b __asm__("xmm1") = *(const simd_vec *)s;                                \
        uint64_t i = imm & 0xff, t;                                                                \
                                                                                                   \
        CPU_SIMD_IMM8(insn " $simd_imm8, %%xmm1, %%xmm0",                                          \
                      : "+x"(a), [i] "+&r"(i), [t] "=&r"(t) : "x"(b) : "cc");                      \
        *(simd_vec *)d = a;                                                                        \
    }

#define OPS(M, bytes, far)                                                                              \
    static void M##_r(struct cpu *cpu, const struct cpu_op *op)                                    \
    {                                                                                              \
        cpu_simd_do_fp_reg(cpu, op, M##_k);                                                        \
    }                                                                                              \
    MEM_OP(M##_m, cpu_simd_mem_body, M##_k, bytes, true, far)

#define SIMD_FP(M, insn, bytes)    KERNEL(M, insn) OPS(M, bytes, false)
#define SIMD_FPIMM(M, insn, bytes) IMM_KERNEL(M, insn) OPS(M, bytes, true)
#include "cpu/simd_rows.def"

static const struct cpu_simd_row rows[] = {
#define SIMD_FP(M, insn, bytes)    {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#define SIMD_FPIMM(M, insn, bytes) {ZYDIS_MNEMONIC_##M, M##_r, MEM_FNS(M##_m)},
#include "cpu/simd_rows.def"
};

/* Emit one instruction of the rows above (or the string instruction CMPSD). Returns as cpu_emit_fn. */
int cpu_emit_simd_fp(struct cpu_emit *e)
{
    if (ZydisRegisterGetClass(e->opnd[0].reg.value) != ZYDIS_REGCLASS_XMM) {
        return cpu_emit_cmps(e);
    }
    return cpu_simd_emit_rows(e, rows, ARRAY_LEN(rows));
}
