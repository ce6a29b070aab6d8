/*
 * MUL, IMUL, DIV, IDIV. After a multiplication SF, ZF, PF follow the low half (the manuals leave them
 * undefined); after a division all flags stay.
 */
#include <errno.h>

#include "cpu/exception.h"
#include "cpu/insn.h"

typedef unsigned __int128 wide;
typedef __int128 swide;

/* Accumulator pair: AX for bytes, rDX:rAX otherwise. */
static always_inline wide acc_get(const struct cpu *cpu, unsigned size)
{
    if (size == 1) {
        return (uint16_t)cpu->regs[CPU_RAX];
    }
    return (wide)reg_get(cpu, CPU_RDX, size) << (size * 8) | reg_get(cpu, CPU_RAX, size);
}

static always_inline void acc_set(struct cpu *cpu, unsigned size, uint64_t low, uint64_t high)
{
    if (size == 1) {
        reg_set(cpu, CPU_RAX, 2, (low & 0xff) | (high & 0xff) << 8);
        return;
    }
    reg_set(cpu, CPU_RAX, size, low);
    reg_set(cpu, CPU_RDX, size, high);
}

static always_inline void mul_do(struct cpu *cpu, unsigned size, bool is_signed, uint64_t b)
{
    uint64_t a = cpu->regs[CPU_RAX], low, high;
    bool over;

    if (is_signed) {
        swide v = (swide)sign_of(a, size) * sign_of(b, size);

        low = trunc_to((uint64_t)v, size);
        high = trunc_to((uint64_t)(v >> (size * 8)), size);
        over = v != (swide)sign_of((uint64_t)v, size);
    } else {
        wide v = (wide)trunc_to(a, size) * b;

        low = trunc_to((uint64_t)v, size);
        high = trunc_to((uint64_t)(v >> (size * 8)), size);
        over = high != 0;
    }
    acc_set(cpu, size, low, high);
    cc_set(cpu, CPU_CC_MUL, size, low, over);
}

/* Quotient and remainder. False: #DE. */
static always_inline bool div_do(struct cpu *cpu, unsigned size, bool is_signed, uint64_t b)
{
    wide n = acc_get(cpu, size);
    uint64_t q, r;

    if (b == 0) {
        return false;
    }
    if (is_signed) {
        unsigned shift = 128 - size * 16;
        swide sn = (swide)(n << shift) >> shift, d = sign_of(b, size), sq;

        if (size == 8 && sn == (swide)((wide)1 << 127)) {
            return false; /* no quotient fits, and the host's own division would trap */
        }
        if (size == 8 && (int64_t)(sn >> 64) == (int64_t)sn >> 63) {
            /* fits 64 bits: spare the long division */
            if (d == -1 && (int64_t)sn == INT64_MIN) {
                return false;
            }
            q = (uint64_t)((int64_t)sn / (int64_t)d);
            r = (uint64_t)((int64_t)sn % (int64_t)d);
        } else {
            sq = sn / d;
            q = (uint64_t)sq;
            r = (uint64_t)(sn % d);
            if (sq != (swide)sign_of(q, size)) {
                return false;
            }
        }
    } else {
        if (size == 8 && (uint64_t)(n >> 64) == 0) {
            q = (uint64_t)n / b;
            r = (uint64_t)n % b;
        } else {
            if (n >> (size * 8) >= b) {
                return false;
            }
            q = (uint64_t)(n / b);
            r = (uint64_t)(n % b);
        }
    }
    acc_set(cpu, size, q, r);
    return true;
}

#define ACC_OP(name, do_it)                                                                        \
    static always_inline void name##_reg(struct cpu *cpu, const struct cpu_op *op, unsigned size,  \
                                         bool is_signed)                                           \
    {                                                                                              \
        uint64_t b = reg_get(cpu, op->src, size);                                                  \
                                                                                                   \
        do_it;                                                                                     \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    static always_inline void name##_mem(struct cpu *cpu, const struct cpu_op *op,                 \
                                         enum mem_path path, cpu_op_fn *slow, unsigned size,       \
                                         bool is_signed)                                           \
    {                                                                                              \
        struct cpu_word la = mem_ea(cpu, op, path, size, false), w;                                \
        uint64_t b;                                                                                \
                                                                                                   \
        if (unlikely(!la.ok)) {                                                                    \
            return;                                                                                \
        }                                                                                          \
        w = mem_load(cpu, op, path, la.v, size);                                                   \
        if (unlikely(!w.ok)) {                                                                     \
            MEM_BAIL();                                                                            \
        }                                                                                          \
        b = w.v;                                                                                   \
        do_it;                                                                                     \
        cpu_next(cpu, op);                                                                         \
    }

#define DIVIDE                                                                                     \
    if (unlikely(!div_do(cpu, size, is_signed, b))) {                                              \
        (void)cpu_raise(cpu, op, X86_DE);                                                          \
        return;                                                                                    \
    }

ACC_OP(mul, mul_do(cpu, size, is_signed, b))
ACC_OP(div, DIVIDE)

#define ACC_SIZE(name, body, size, is_signed)                                                      \
    static void name##_r_##size(struct cpu *cpu, const struct cpu_op *op)                          \
    {                                                                                              \
        body##_reg(cpu, op, size, is_signed);                                                      \
    }                                                                                              \
    MEM_OP(name##_m_##size, body##_mem, size, is_signed)
#define ACC_KIND(name, body, is_signed)                                                            \
    ACC_SIZE(name, body, 1, is_signed)                                                             \
    ACC_SIZE(name, body, 2, is_signed)                                                             \
    ACC_SIZE(name, body, 4, is_signed)                                                             \
    ACC_SIZE(name, body, 8, is_signed)                                                             \
    static const struct acc_fns name##_fns[4] = {{name##_r_1, MEM_FNS(name##_m_1)},                \
                                                 {name##_r_2, MEM_FNS(name##_m_2)},                \
                                                 {name##_r_4, MEM_FNS(name##_m_4)},                \
                                                 {name##_r_8, MEM_FNS(name##_m_8)}};

struct acc_fns {
    cpu_op_fn *r;
    struct mem_fns m;
};

ACC_KIND(umul, mul, false)
ACC_KIND(smul, mul, true)
ACC_KIND(udiv, div, false)
ACC_KIND(sdiv, div, true)

static int emit_acc(struct cpu_emit *e, const struct acc_fns *fns)
{
    const ZydisDecodedOperand *s = &e->opnd[0];
    int size = emit_size(e);
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    op = is_mem(s) ? cpu_emit_mem_op(e, &fns[size].m, s) : cpu_emit_op(e, fns[size].r);
    if (!op) {
        return -ENOSPC;
    }
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    }
    return 0;
}

int cpu_emit_mul(struct cpu_emit *e)
{
    return emit_acc(e, umul_fns);
}

int cpu_emit_div(struct cpu_emit *e)
{
    e->cc_new = e->cc_hint;
    return emit_acc(e, udiv_fns);
}

int cpu_emit_idiv(struct cpu_emit *e)
{
    e->cc_new = e->cc_hint;
    return emit_acc(e, sdiv_fns);
}

/* IMUL with a destination: dst = src1 * src2, truncated. */
static always_inline uint64_t imul_do(struct cpu *cpu, unsigned size, uint64_t a, uint64_t b, bool flags)
{
    swide v;

    if (!flags) {
        return trunc_to(a * b, size);
    }
    v = (swide)sign_of(a, size) * sign_of(b, size);
    cc_set(cpu, CPU_CC_MUL, size, trunc_to((uint64_t)v, size), v != (swide)sign_of((uint64_t)v, size));
    return trunc_to((uint64_t)v, size);
}

static always_inline void imul_reg(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool imm, bool flags)
{
    uint64_t a = reg_get(cpu, imm ? op->src : op->dst, size), b = imm ? op->imm : reg_get(cpu, op->src, size);

    reg_set(cpu, op->dst, size, imul_do(cpu, size, a, b, flags));
    cpu_next(cpu, op);
}

static always_inline void imul_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                   unsigned size, bool imm)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    reg_set(cpu, op->dst, size, imul_do(cpu, size, w.v, imm ? op->imm : reg_get(cpu, op->dst, size), true));
    cpu_next(cpu, op);
}

#define IMUL_REG(name, size, imm, flags)                                                           \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        imul_reg(cpu, op, size, imm, flags);                                                       \
    }
#define IMUL_SIZE(size)                                                                            \
    IMUL_REG(imul_rr_##size, size, false, true)                                                    \
    IMUL_REG(imul_ri_##size, size, true, true)                                                     \
    IMUL_REG(imul_rr_n_##size, size, false, false)                                                 \
    IMUL_REG(imul_ri_n_##size, size, true, false)                                                  \
    MEM_OP(imul_rm_##size, imul_mem, size, false)                                                  \
    MEM_OP(imul_rmi_##size, imul_mem, size, true)
IMUL_SIZE(2)
IMUL_SIZE(4)
IMUL_SIZE(8)

struct imul_fns {
    cpu_op_fn *reg[2][2]; /* [imm][flags] */
    struct mem_fns mem[2];
};
#define IMUL_ENTRY(size)                                                                           \
    {                                                                                              \
        {{imul_rr_n_##size, imul_rr_##size}, {imul_ri_n_##size, imul_ri_##size}},                  \
        {                                                                                          \
            MEM_FNS(imul_rm_##size), MEM_FNS(imul_rmi_##size)                                      \
        }                                                                                          \
    }
static const struct imul_fns imul_table[3] = {IMUL_ENTRY(2), IMUL_ENTRY(4), IMUL_ENTRY(8)};

int cpu_emit_imul(struct cpu_emit *e)
{
    const ZydisDecodedOperand *s = &e->opnd[1], *i = &e->opnd[2];
    bool imm = e->in.operand_count_visible == 3;
    int size = emit_size(e);
    struct cpu_op *op;

    if (e->in.operand_count_visible == 1) {
        return emit_acc(e, smul_fns);
    }
    if (size < 1) {
        return -ENOSYS;
    }
    op = is_mem(s) ? cpu_emit_mem_op(e, &imul_table[size - 1].mem[imm], s)
                   : cpu_emit_op(e, imul_table[size - 1].reg[imm][e->flags_live != 0]);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = emit_reg_any(&e->opnd[0]);
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    }
    if (imm) {
        op->imm = i->imm.value.u;
    }
    return 0;
}
