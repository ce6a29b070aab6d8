/*
 * SSE moves: whole registers, halves and scalars, non-temporal forms (plain stores here: the model has
 * no write-combining), moves between XMM, MMX and general registers, and the sign-mask extractions.
 *
 * An emitter picks by the shape of its operands. Loads commit after their access, stores change no
 * register, so a fault leaves no trace. No state, no locks. MOVQ and MOVD with MMX registers are mmx.c's.
 */
#include "cpu/simd.h"

#include <errno.h>

#include "cpu/system.h"

/* Whole registers. */

static void copy128(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst] = cpu->xmm[op->src];
    cpu_next(cpu, op);
}

/* Load `size` bytes to the low end and clear the rest. */
static always_inline void load_body(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                    cpu_op_fn *slow, unsigned size, bool aligned)
{
    struct cpu_word la;
    const uint8_t *p;

    if (path == MEM_SLOW) {
        if (cpu_simd_load_register(cpu, op, size, aligned)) {
            cpu_next(cpu, op);
        }
        return;
    }
    la = mem_ea(cpu, op, path, size, false);
    p = cpu_fast_read(cpu, la.v, size);
    if (unlikely(!p || (aligned && (la.v & 15))) || !cpu_simd_is_on(cpu)) {
        slow(cpu, op);
        return;
    }
    CPU_PIN(op);
    cpu->xmm[op->dst] = cpu_simd_get(p, size);
    CPU_PIN(op);
    cpu_next(cpu, op);
}

/* A whole register out. */
static always_inline void store_body(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                     cpu_op_fn *slow, bool aligned)
{
    const union cpu_xmm *v = &cpu->xmm[op->src];
    struct cpu_word la;
    uint8_t *p;

    if (path == MEM_SLOW && !cpu_simd_ready(cpu, op)) {
        return;
    }
    la = mem_ea(cpu, op, path, 16, true);
    if (path == MEM_SLOW) {
        if (la.ok && aligned && (la.v & 15)) {
            cpu_raise_code(cpu, op, X86_GP, 0);
        } else if (la.ok && cpu_store128(cpu, op, la.v, v)) {
            cpu_next(cpu, op);
        }
        return;
    }
    p = cpu_fast_write(cpu, la.v, 16);
    if (unlikely(!p || (aligned && (la.v & 15))) || !cpu_simd_is_on(cpu)) {
        slow(cpu, op);
        return;
    }
    CPU_PIN(op);
    cpu_simd_put(p, v);
    CPU_PIN(op);
    cpu_next(cpu, op);
}

MEM_OP(load_aligned, load_body, 16, true)
MEM_OP(load_unaligned, load_body, 16, false)
MEM_OP(load_low32z, load_body, 4, false)
MEM_OP(load_low64z, load_body, 8, false)
MEM_OP(store_aligned, store_body, true)
MEM_OP(store_unaligned, store_body, false)

/* Scalars and halves. */

/* Load one half (0 low, 1 high) and keep the other. */
static always_inline void load_half_body(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                         cpu_op_fn *slow, unsigned half)
{
    struct cpu_word la, v;

    if (path == MEM_SLOW ? !cpu_simd_ready(cpu, op) : !cpu_simd_is_on(cpu)) {
        MEM_BAIL();
    }
    la = mem_ea(cpu, op, path, 8, false);
    if (!la.ok) {
        MEM_BAIL();
    }
    v = mem_load(cpu, op, path, la.v, 8);
    if (unlikely(!v.ok)) {
        MEM_BAIL();
    }
    cpu->xmm[op->dst].u64[half] = v.v;
    cpu_next(cpu, op);
}

/* Store size bytes of one half. */
static always_inline void store_part_body(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                          cpu_op_fn *slow, unsigned size, unsigned half)
{
    struct cpu_word la;

    if (path == MEM_SLOW ? !cpu_simd_ready(cpu, op) : !cpu_simd_is_on(cpu)) {
        MEM_BAIL();
    }
    la = mem_ea(cpu, op, path, size, true);
    if (!la.ok || unlikely(!mem_store(cpu, op, path, la.v, size, cpu->xmm[op->src].u64[half]))) {
        MEM_BAIL();
    }
    cpu_next(cpu, op);
}

MEM_OP(load_low, load_half_body, 0)
MEM_OP(load_high, load_half_body, 1)
MEM_OP(store_low32, store_part_body, 4, 0)
MEM_OP(store_low64, store_part_body, 8, 0)
MEM_OP(store_high, store_part_body, 8, 1)

static void merge_low32(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst].u32[0] = cpu->xmm[op->src].u32[0];
    cpu_next(cpu, op);
}

/* Copy half (aux & 1) of the source to half (aux >> 1) of the destination. */
static void merge_half(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst].u64[op->aux >> 1] = cpu->xmm[op->src].u64[op->aux & 1];
    cpu_next(cpu, op);
}

static void copy_low64z(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst] = (union cpu_xmm){.u64 = {cpu->xmm[op->src].u64[0], 0}};
    cpu_next(cpu, op);
}

/* General registers. */

static void from_gpr32(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst] = (union cpu_xmm){.u64 = {(uint32_t)cpu->regs[op->src], 0}};
    cpu_next(cpu, op);
}

static void from_gpr64(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->xmm[op->dst] = (union cpu_xmm){.u64 = {cpu->regs[op->src], 0}};
    cpu_next(cpu, op);
}

static void to_gpr32(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->regs[op->dst] = cpu->xmm[op->src].u32[0];
    cpu_next(cpu, op);
}

static void to_gpr64(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->regs[op->dst] = cpu->xmm[op->src].u64[0];
    cpu_next(cpu, op);
}

#define MASK_OP(name, insn)                                                                        \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        uint32_t mask;                                                                             \
                                                                                                   \
        if (!cpu_simd_ready(cpu, op)) {                                                            \
            return;                                                                                \
        }                                                                                          \
        __asm__(insn " %1, %0" : "=r"(mask) : "x"(*(const simd_vec *)&cpu->xmm[op->src]));         \
        cpu->regs[op->dst] = mask;                                                                 \
        cpu_next(cpu, op);                                                                         \
    }

MASK_OP(mask_bytes, "pmovmskb")
MASK_OP(mask_singles, "movmskps")
MASK_OP(mask_doubles, "movmskpd")

/* Emitters. */

static int emit_rr(struct cpu_emit *e, cpu_op_fn *fn, uint8_t dst, uint8_t src)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->dst = dst;
    op->src = src;
    return 0;
}

static uint8_t id(const struct cpu_emit *e, unsigned o)
{
    return (uint8_t)ZydisRegisterGetId(e->opnd[o].reg.value);
}

/* A load into or a store from an XMM register, whichever operand is memory. */
static int emit_mem(struct cpu_emit *e, const struct mem_fns *load, const struct mem_fns *store)
{
    bool is_store = e->opnd[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    const struct mem_fns *fns = is_store ? store : load;
    struct cpu_op *op = cpu_emit_mem_op(e, fns, &e->opnd[is_store ? 0 : 1]);

    if (!op) {
        return -ENOSPC;
    }
    if (is_store) {
        op->src = id(e, 1);
    } else {
        op->dst = id(e, 0);
    }
    return 0;
}

static const struct mem_fns aligned_load = MEM_FNS(load_aligned), aligned_store = MEM_FNS(store_aligned),
                            unaligned_load = MEM_FNS(load_unaligned),
                            unaligned_store = MEM_FNS(store_unaligned), load32 = MEM_FNS(load_low32z),
                            store32 = MEM_FNS(store_low32), load64 = MEM_FNS(load_low64z),
                            store64 = MEM_FNS(store_low64), low_load = MEM_FNS(load_low),
                            high_load = MEM_FNS(load_high), high_store = MEM_FNS(store_high);

static bool is_class(const struct cpu_emit *e, unsigned o, ZydisRegisterClass c)
{
    return e->opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER &&
           ZydisRegisterGetClass(e->opnd[o].reg.value) == c;
}

static bool has_mem(const struct cpu_emit *e)
{
    return e->opnd[0].type == ZYDIS_OPERAND_TYPE_MEMORY || e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
}

/* MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD, MOVNTDQ, MOVNTDQA. */
int cpu_emit_simd_mova(struct cpu_emit *e)
{
    return has_mem(e) ? emit_mem(e, &aligned_load, &aligned_store)
                      : emit_rr(e, copy128, id(e, 0), id(e, 1));
}

/* MOVUPS, MOVUPD, MOVDQU, LDDQU. */
int cpu_emit_simd_movu(struct cpu_emit *e)
{
    return has_mem(e) ? emit_mem(e, &unaligned_load, &unaligned_store)
                      : emit_rr(e, copy128, id(e, 0), id(e, 1));
}

int cpu_emit_simd_movss(struct cpu_emit *e)
{
    return has_mem(e) ? emit_mem(e, &load32, &store32)
                      : emit_rr(e, merge_low32, id(e, 0), id(e, 1));
}

/* MOVSD of SSE2; the string instruction of that name, which has no XMM operand, is handed on. */
int cpu_emit_sse_movsd(struct cpu_emit *e)
{
    if (!is_class(e, 0, ZYDIS_REGCLASS_XMM) && !is_class(e, 1, ZYDIS_REGCLASS_XMM)) {
        return cpu_emit_movs(e);
    }
    return has_mem(e) ? emit_mem(e, &load64, &store64)
                      : emit_rr(e, merge_half, id(e, 0), id(e, 1));
}

int cpu_emit_simd_movlp(struct cpu_emit *e)
{
    return emit_mem(e, &low_load, &store64);
}

int cpu_emit_simd_movhp(struct cpu_emit *e)
{
    return emit_mem(e, &high_load, &high_store);
}

static int emit_half(struct cpu_emit *e, uint8_t halves)
{
    struct cpu_op *op = cpu_emit_op(e, merge_half);

    if (!op) {
        return -ENOSPC;
    }
    op->dst = id(e, 0);
    op->src = id(e, 1);
    op->aux = halves;
    return 0;
}

int cpu_emit_simd_movhlps(struct cpu_emit *e)
{
    return emit_half(e, 1);
}

int cpu_emit_simd_movlhps(struct cpu_emit *e)
{
    return emit_half(e, 2);
}

/* MOVD and MOVQ: between XMM (or MMX), a general register of either size, and memory. */
int cpu_emit_simd_movd(struct cpu_emit *e)
{
    bool wide = e->in.mnemonic == ZYDIS_MNEMONIC_MOVQ;

    if (is_class(e, 0, ZYDIS_REGCLASS_MMX) || is_class(e, 1, ZYDIS_REGCLASS_MMX)) {
        return cpu_mmx_emit(e);
    }
    if (has_mem(e)) {
        return wide ? emit_mem(e, &load64, &store64)
                    : emit_mem(e, &load32, &store32);
    }
    if (is_class(e, 0, ZYDIS_REGCLASS_XMM) && is_class(e, 1, ZYDIS_REGCLASS_XMM)) {
        return emit_rr(e, copy_low64z, id(e, 0), id(e, 1));
    }
    if (is_class(e, 0, ZYDIS_REGCLASS_XMM)) {
        return emit_rr(e, wide ? from_gpr64 : from_gpr32, id(e, 0), cpu_emit_reg(e->opnd[1].reg.value));
    }
    return emit_rr(e, wide ? to_gpr64 : to_gpr32, cpu_emit_reg(e->opnd[0].reg.value), id(e, 1));
}

/* PMOVMSKB, MOVMSKPS, MOVMSKPD. */
int cpu_emit_simd_mask(struct cpu_emit *e)
{
    cpu_op_fn *fn = e->in.mnemonic == ZYDIS_MNEMONIC_PMOVMSKB   ? mask_bytes
                    : e->in.mnemonic == ZYDIS_MNEMONIC_MOVMSKPS ? mask_singles
                                                                : mask_doubles;

    if (is_class(e, 1, ZYDIS_REGCLASS_MMX)) {
        return cpu_mmx_emit(e);
    }
    return emit_rr(e, fn, cpu_emit_reg(e->opnd[0].reg.value), id(e, 1));
}
