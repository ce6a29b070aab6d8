/*
 * MMX: packed integers in the low 64 bits of the x87 registers. The rows BOTH and SHIFT of
 * simd_rows.def with MMX operands, the moves, and PALIGNR, PSHUFW, PINSRW, PEXTRW, PMOVMSKB, MASKMOVQ.
 *
 * Invariants
 *  1. Every MMX instruction sets TOP to 0 and all tags to valid (EMMS: to empty); one that writes a register
 *     sets its sign and exponent to ones.
 *  2. Kernels leave the host's x87 unit empty (EMMS), as the calling convention wants it.
 *
 * Conversions between MMX and XMM are mmx_cvt.c's. No locks.
 */
#include "cpu/simd.h"

#include <errno.h>

#include "cpu/mmx.h"

/*
 * The gate of MMX instructions: #UD for CR0.EM, #NM for CR0.TS, #MF for a pending x87 exception.
 * Does not change state: cpu_mmx_touch() does, once nothing can fail any more.
 */
bool cpu_mmx_begin(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->cr0 & X86_CR0_EM) {
        return cpu_raise(cpu, op, X86_UD);
    }
    if (cpu->cr0 & X86_CR0_TS) {
        return cpu_raise(cpu, op, X86_NM);
    }
    if (cpu_x87_pending(&cpu->x87) && (cpu->cr0 & X86_CR0_NE)) {
        return cpu_raise(cpu, op, X86_MF);
    }
    return true;
}

#define KERNEL(M, insn)                                                                            \
    static void M##_k(uint64_t *d, const uint64_t *s, unsigned imm)                                \
    {                                                                                              \
        __asm__ volatile("movq %0, %%mm0\n\tmovq %1, %%mm1\n\t" insn " %%mm1, %%mm0\n\t"           \
                         "movq %%mm0, %0\n\temms"                                                  \
                         : "+m"(*d) : "m"(*s) : "mm0", "mm1", "st", "st(1)", "st(2)", "st(3)",     \
                           "st(4)", "st(5)", "st(6)", "st(7)");                                    \
    }

#define IMM_KERNEL(M, insn)                                                                        \
    static void M##_k(uint64_t *d, const uint64_t *s, unsigned imm)                                \
    {                                                                                              \
        uint64_t i = imm & 0xff, t;                                                                \
                                                                                                   \
        __asm__ volatile("movq %0, %%mm0\n\tmovq %1, %%mm1" : : "m"(*d), "m"(*s));                 \
        CPU_SIMD_IMM8(insn " $simd_imm8, %%mm1, %%mm0", : [i] "+&r"(i), [t] "=&r"(t) : : "cc");    \
        __asm__ volatile("movq %%mm0, %0\n\temms" : "=m"(*d));                                     \
    }

#define SIMD_BOTH(M, insn, bytes) KERNEL(M, insn)
#define SIMD_SHIFT(M, insn)       KERNEL(M, insn)
#include "cpu/simd_rows.def"

IMM_KERNEL(PALIGNR, "palignr")
IMM_KERNEL(PSHUFW, "pshufw")

typedef void mmx_kernel(uint64_t *d, const uint64_t *s, unsigned imm);

struct mmx_row {
    uint16_t mnemonic;
    uint8_t size; /* of the memory operand, bytes */
    mmx_kernel *k;
};

static const struct mmx_row rows[] = {
#define SIMD_BOTH(M, insn, bytes) {ZYDIS_MNEMONIC_##M, bytes, M##_k},
#define SIMD_SHIFT(M, insn)       {ZYDIS_MNEMONIC_##M, 8, M##_k},
#include "cpu/simd_rows.def"
    {ZYDIS_MNEMONIC_PALIGNR, 8, PALIGNR_k},
    {ZYDIS_MNEMONIC_PSHUFW, 8, PSHUFW_k},
};

/* The kernel is in imm's upper part, the immediate in aux (regular) or src (shift by immediate). */
static void finish(struct cpu *cpu, const struct cpu_op *op, const uint64_t *s)
{
    mmx_kernel *k = (mmx_kernel *)(uintptr_t)op->imm;
    uint64_t d = cpu->x87.st[op->dst].mant;

    k(&d, s, op->aux);
    cpu_mmx_set(cpu, op->dst, d);
}

CPU_SIMD_OP(mmx_reg)
{
    uint64_t s = cpu->x87.st[op->src].mant;

    if (!cpu_mmx_begin(cpu, op)) {
        return false;
    }
    finish(cpu, op, &s);
    return true;
}

CPU_SIMD_OP(mmx_mem64)
{
    uint64_t la, s;

    if (!cpu_mmx_begin(cpu, op) || !cpu_ea(cpu, op, 8, false, &la) || !cpu_load64(cpu, op, la, &s)) {
        return false;
    }
    finish(cpu, op, &s);
    return true;
}

CPU_SIMD_OP(mmx_mem32)
{
    uint64_t la, s;
    uint32_t v;

    if (!cpu_mmx_begin(cpu, op) || !cpu_ea(cpu, op, 4, false, &la) || !cpu_load32(cpu, op, la, &v)) {
        return false;
    }
    s = v;
    finish(cpu, op, &s);
    return true;
}

CPU_SIMD_OP(mmx_shift_imm)
{
    uint64_t count = op->src;

    if (!cpu_mmx_begin(cpu, op)) {
        return false;
    }
    finish(cpu, op, &count);
    return true;
}

/* Moves. */

static void copy_mm(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_set(cpu, op->dst, cpu->x87.st[op->src].mant);
    cpu_next(cpu, op);
}

static void from_gpr(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_set(cpu, op->dst, op->aux == 8 ? cpu->regs[op->src] : (uint32_t)cpu->regs[op->src]);
    cpu_next(cpu, op);
}

static void to_gpr(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t v = cpu->x87.st[op->src].mant;

    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_touch(cpu);
    cpu->regs[op->dst] = op->aux == 8 ? v : (uint32_t)v;
    cpu_next(cpu, op);
}

CPU_SIMD_OP(load_mm)
{
    union cpu_xmm v;

    if (!cpu_mmx_begin(cpu, op) || !cpu_simd_load_part(cpu, op, op->aux, &v)) {
        return false;
    }
    cpu_mmx_set(cpu, op->dst, v.u64[0]);
    return true;
}

CPU_SIMD_OP(store_mm)
{
    uint64_t la, v = cpu->x87.st[op->src].mant;

    if (!cpu_mmx_begin(cpu, op) || !cpu_ea(cpu, op, op->aux, true, &la)) {
        return false;
    }
    cpu->x87.top = 0; /* even if the store faults, as observed on Intel's processors */
    if (op->aux == 8 ? !cpu_store64(cpu, op, la, v) : !cpu_store32(cpu, op, la, (uint32_t)v)) {
        return false;
    }
    cpu_mmx_touch(cpu);
    return true;
}

static void mask_mm(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t v = cpu->x87.st[op->src].mant & UINT64_C(0x8080808080808080);

    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu_mmx_touch(cpu);
    /* Gathers bit 7 of byte n at bit 56 + n: no two partial products meet. */
    cpu->regs[op->dst] = (v >> 7) * UINT64_C(0x0102040810204080) >> 56;
    cpu_next(cpu, op);
}

static void emms(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_mmx_begin(cpu, op)) {
        return;
    }
    cpu->x87.top = 0;
    cpu->x87.ftw = 0;
    cpu_next(cpu, op);
}

/* Emitters. */

static bool in_memory(const struct cpu_emit *e, unsigned o)
{
    return e->opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static bool is_mm(const struct cpu_emit *e, unsigned o)
{
    return e->opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(e->opnd[o].reg.value) == ZYDIS_REGCLASS_MMX;
}

static uint8_t number(const struct cpu_emit *e, unsigned o)
{
    return is_mm(e, o) ? (uint8_t)ZydisRegisterGetId(e->opnd[o].reg.value)
                       : cpu_emit_reg(e->opnd[o].reg.value);
}

static int emit_move(struct cpu_emit *e)
{
    bool store = in_memory(e, 0), load = in_memory(e, 1);
    cpu_op_fn *fn = store ? store_mm : load ? load_mm : !is_mm(e, 1) ? from_gpr : !is_mm(e, 0) ? to_gpr : copy_mm;
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = e->in.mnemonic == ZYDIS_MNEMONIC_MOVD ? 4 : 8;
    if (store || load) {
        cpu_emit_mem(e, op, &e->opnd[store ? 0 : 1]);
    }
    if (!store) {
        op->dst = number(e, 0);
    }
    if (!load) {
        op->src = number(e, 1);
    }
    return 0;
}

static int emit_row(struct cpu_emit *e, const struct mmx_row *row)
{
    bool mem = in_memory(e, 1), by_imm = e->opnd[1].type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
    cpu_op_fn *fn = by_imm ? mmx_shift_imm : !mem ? mmx_reg : row->size == 4 ? mmx_mem32 : mmx_mem64;
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->imm = (uintptr_t)row->k;
    op->dst = number(e, 0);
    if (mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
    } else if (by_imm) {
        op->src = (uint8_t)e->opnd[1].imm.value.u;
    } else {
        op->src = number(e, 1);
    }
    if (e->in.operand_count_visible > 2 && e->opnd[2].type == ZYDIS_OPERAND_TYPE_IMMEDIATE) {
        op->aux = (uint8_t)e->opnd[2].imm.value.u;
    }
    return 0;
}

/*
 * Emit an instruction with MMX operands. Returns 0, or as cpu_emit_fn.
 */
int cpu_mmx_emit(struct cpu_emit *e)
{
    struct cpu_op *op;

    switch (e->in.mnemonic) {
    case ZYDIS_MNEMONIC_MOVD:
    case ZYDIS_MNEMONIC_MOVQ:
    case ZYDIS_MNEMONIC_MOVNTQ:
        return emit_move(e);
    case ZYDIS_MNEMONIC_PMOVMSKB:
        op = cpu_emit_op(e, mask_mm);
        if (!op) {
            return -ENOSPC;
        }
        op->dst = number(e, 0);
        op->src = number(e, 1);
        return 0;
    default:
        break;
    }
    for (unsigned i = 0; i < ARRAY_LEN(rows); i++) {
        if (rows[i].mnemonic == e->in.mnemonic) {
            return emit_row(e, &rows[i]);
        }
    }
    return -ENOSYS;
}

int cpu_emit_mmx(struct cpu_emit *e)
{
    return cpu_mmx_emit(e);
}

int cpu_emit_emms(struct cpu_emit *e)
{
    return cpu_emit_op(e, emms) ? 0 : -ENOSPC;
}
