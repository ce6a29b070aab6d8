/*
 * The slow ways of SIMD: why an instruction is refused, unmasked floating-point exceptions, partial
 * loads, and choosing a row's operation. See simd.h. No state, no locks.
 */
#include "cpu/simd.h"

#include <errno.h>

/*
 * Raise what forbids an SSE instruction now: #UD for CR0.EM or no CR4.OSFXSR, else #NM for CR0.TS.
 * Returns false. Source: the manual's exception classes for legacy SSE.
 */
bool cpu_simd_refuse(struct cpu *cpu, const struct cpu_op *op)
{
    if ((cpu->cr0 & X86_CR0_EM) || !(cpu->cr4 & X86_CR4_OSFXSR)) {
        return cpu_raise(cpu, op, X86_UD);
    }
    return cpu_raise(cpu, op, X86_NM);
}

static unsigned run_counted(cpu_simd_kernel *k, union cpu_xmm *d, const union cpu_xmm *s,
                            const struct cpu_op *op, unsigned control)
{
    uint32_t csr = (control & ~CPU_MXCSR_FLAGS) | CPU_MXCSR_MASKS;

    __asm__ volatile("ldmxcsr %0" : : "m"(csr));
    k(d, s, (unsigned)op->imm & 0xff);
    __asm__ volatile("stmxcsr %0" : "=m"(csr));
    return csr & CPU_MXCSR_FLAGS;
}

/*
 * Run kernel k for a guest with an unmasked exception.
 * Returns true with *d the result; false with *d unchanged, flags in MXCSR and a fault recorded.
 * An exception before computation (invalid, denormal, division) hides those after it. Unmasked
 * underflow is "tiny" alone, exact or not: flushing to zero shows that, so a second run asks for it.
 * Source: the manual's section on SIMD floating-point exception conditions.
 * Differs: with an unmasked underflow PE may be set where only the denormalised result, not the one with an
 * unbounded exponent, is inexact; and DPPS, DPPD gather the flags of all their steps.
 */
bool cpu_simd_fp_checked(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k,
                         union cpu_xmm *d, const union cpu_xmm *s)
{
    unsigned unmasked = ~(cpu->mxcsr >> 7) & CPU_MXCSR_FLAGS;
    union cpu_xmm out = *d, probe = *d;
    unsigned flags;

    cpu_mxcsr_sync(cpu);
    flags = run_counted(k, &out, s, op, cpu->mxcsr & ~(unmasked & 0x10 ? CPU_MXCSR_FTZ : 0));
    if (unmasked & 0x10) {
        flags |= run_counted(k, &probe, s, op, cpu->mxcsr | CPU_MXCSR_FTZ) & 0x10;
    }
    if (flags & unmasked & 7) {
        flags &= 7;
    }
    cpu->mxcsr |= flags;
    cpu_mxcsr_changed(cpu);
    if (flags & unmasked) {
        return cpu_raise(cpu, op, cpu->cr4 & X86_CR4_OSXMMEXCPT ? X86_XM : X86_UD);
    }
    *d = out;
    return true;
}

/*
 * Load a memory operand of size 1, 2, 4, 8 or 16 bytes at any alignment into the low bytes of *v, the
 * rest zero. Returns false with the fault recorded.
 */
bool cpu_simd_load_part(struct cpu *cpu, const struct cpu_op *op, unsigned size, union cpu_xmm *v)
{
    uint64_t la;

    if (!cpu_ea(cpu, op, size, false, &la)) {
        return false;
    }
    v->u64[0] = v->u64[1] = 0;
    switch (size) {
    case 1:
        return cpu_load8(cpu, op, la, &v->u8[0]);
    case 2:
        return cpu_load16(cpu, op, la, &v->u16[0]);
    case 4:
        return cpu_load32(cpu, op, la, &v->u32[0]);
    case 8:
        return cpu_load64(cpu, op, la, &v->u64[0]);
    default:
        return cpu_load128(cpu, op, la, v);
    }
}

/*
 * Gate, operand of `size` bytes and kernel k of a row's operation; fp: with MXCSR.
 * Returns true when done; false with the fault recorded and no register changed.
 */
bool cpu_simd_slow_mem(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k, unsigned size, bool fp)
{
    union cpu_xmm v;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_operand(cpu, op, size, &v)) {
        return false;
    }
    if (fp) {
        return cpu_simd_fp_run(cpu, op, k, &cpu->xmm[op->dst], &v);
    }
    k(&cpu->xmm[op->dst], &v, (unsigned)op->imm & 0xff);
    return true;
}

/*
 * Gate and load of a move from memory: `size` bytes, zero-extended, to XMM register op->dst; aligned: 16 bytes
 * that must lie on a boundary of 16. Returns false with the fault recorded and the register unchanged.
 */
bool cpu_simd_load_register(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool aligned)
{
    union cpu_xmm v;

    if (!cpu_simd_ready(cpu, op) ||
        (aligned ? !cpu_simd_load(cpu, op, &v) : !cpu_simd_load_part(cpu, op, size, &v))) {
        return false;
    }
    cpu->xmm[op->dst] = v;
    return true;
}

/*
 * Append the operation that rows (n of them) hold for e's mnemonic: XMM destination, XMM or memory
 * source, or none; an immediate operand, last, goes to imm. 0, -ENOSYS not there, -ENOSPC block full.
 */
int cpu_simd_emit_rows(struct cpu_emit *e, const struct cpu_simd_row *rows, unsigned n)
{
    const ZydisDecodedOperand *src = &e->opnd[1];
    bool mem = src->type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op;
    unsigned i = 0;

    while (i < n && rows[i].mnemonic != e->in.mnemonic) {
        i++;
    }
    if (i == n || !(mem ? rows[i].mem.s : rows[i].reg)) {
        return -ENOSYS;
    }
    op = mem ? cpu_emit_mem_op(e, &rows[i].mem, src) : cpu_emit_op(e, rows[i].reg);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = (uint8_t)ZydisRegisterGetId(e->opnd[0].reg.value);
    if (src->type == ZYDIS_OPERAND_TYPE_REGISTER) {
        op->src = (uint8_t)ZydisRegisterGetId(src->reg.value);
    }
    for (unsigned o = 1; o < e->in.operand_count_visible; o++) {
        if (e->opnd[o].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
            op->imm = e->opnd[o].imm.value.u & 0xff;
        }
    }
    return 0;
}
