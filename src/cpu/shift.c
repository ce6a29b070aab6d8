/*
 * Shifts and rotates: SHL SHR SAR ROL ROR RCL RCR by 1, an immediate or CL; SHLD, SHRD.
 *
 * A count that is 0 after masking changes no flag. Immediate counts are masked when emitted, so a zero there is
 * a move, and shifts know their count at run time without testing it.
 */
#include <errno.h>

#include "cpu/insn.h"

enum shift { SHL, SHR, SAR, ROL, ROR, RCL, RCR };

static always_inline unsigned count_mask(unsigned size)
{
    return size == 8 ? 63 : 31;
}

/* The shift proper; n is 1 to 63 (may reach past the width for 8 and 16 bits). *last: the value before
 * the last bit went out. */
static always_inline uint64_t shift_value(enum shift k, unsigned size, uint64_t a, unsigned n, uint64_t *last)
{
    int64_t s;

    switch (k) {
    case SHL:
        *last = trunc_to(a << (n - 1), size);
        return trunc_to(*last << 1, size);
    case SHR:
        *last = a >> (n - 1);
        return *last >> 1;
    default:
        s = sign_of(a, size) >> (n - 1);
        *last = trunc_to((uint64_t)s, size);
        return trunc_to((uint64_t)(s >> 1), size);
    }
}

static always_inline uint64_t rotate_value(enum shift k, unsigned size, uint64_t a, unsigned n)
{
    unsigned bits = size * 8;

    n &= bits - 1;
    if (n == 0) {
        return a;
    }
    if (k == ROR) {
        n = bits - n;
    }
    return trunc_to(a << n | a >> (bits - n), size);
}

/* Through CF: a ring of bits + 1 places. */
static uint64_t rotate_carry(enum shift k, unsigned size, uint64_t a, unsigned n, unsigned *cf)
{
    unsigned bits = size * 8;

    for (n %= bits + 1; n > 0; n--) {
        unsigned out = k == RCL ? (unsigned)(a >> (bits - 1)) & 1 : (unsigned)a & 1;

        a = k == RCL ? trunc_to(a << 1, size) | *cf : a >> 1 | (uint64_t)*cf << (bits - 1);
        *cf = out;
    }
    return a;
}

/* CF and OF after a rotate; the others stay. */
static void rotate_flags(struct cpu *cpu, enum shift k, unsigned size, uint64_t r, unsigned cf)
{
    unsigned bits = size * 8, top = (unsigned)(r >> (bits - 1)) & 1;
    unsigned of = k == ROL || k == RCL ? top ^ cf : top ^ ((unsigned)(r >> (bits - 2)) & 1);
    uint32_t flags = cpu_arith_flags(cpu) & ~(X86_CF | X86_OF);

    cpu_set_arith_flags(cpu, flags | (cf ? X86_CF : 0) | (of ? X86_OF : 0));
}

static always_inline bool is_shift(enum shift k)
{
    return k == SHL || k == SHR || k == SAR;
}

/* Result and the flags to set afterwards. */
struct shifted {
    uint64_t r, last;
    unsigned cf;
};

static always_inline struct shifted shift_do(const struct cpu *cpu, enum shift k, unsigned size, uint64_t a, unsigned n)
{
    struct shifted s = {0, 0, 0};

    if (is_shift(k)) {
        s.r = shift_value(k, size, a, n, &s.last);
    } else if (k == RCL || k == RCR) {
        s.cf = cpu_carry(cpu);
        s.r = rotate_carry(k, size, a, n, &s.cf);
    } else {
        s.r = rotate_value(k, size, a, n);
        s.cf = k == ROL ? (unsigned)s.r & 1 : (unsigned)(s.r >> (size * 8 - 1)) & 1;
    }
    return s;
}

static always_inline void shift_flags(struct cpu *cpu, enum shift k, unsigned size, const struct shifted *s)
{
    if (is_shift(k)) {
        cc_set(cpu, k == SHL ? CPU_CC_SHL : CPU_CC_SHR, size, s->r, s->last);
    } else {
        rotate_flags(cpu, k, size, s->r, s->cf);
    }
}

/* by_cl: the count is in CL, else in aux and not 0. */
static always_inline void shift_reg(struct cpu *cpu, const struct cpu_op *op, enum shift k, unsigned size, bool by_cl,
                                    bool flags)
{
    unsigned n = by_cl ? (unsigned)cpu->regs[CPU_RCX] & count_mask(size) : op->aux;
    uint64_t a = reg_get(cpu, op->dst, size);
    struct shifted s;

    if (by_cl && n == 0) {
        if (size == 4) {
            reg_set(cpu, op->dst, size, a);
        }
        cpu_next(cpu, op);
        return;
    }
    s = shift_do(cpu, k, size, a, n);
    reg_set(cpu, op->dst, size, s.r);
    if (flags) {
        shift_flags(cpu, k, size, &s);
    }
    cpu_next(cpu, op);
}

static always_inline void shift_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    enum shift k, unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);
    struct mem_rw w;
    unsigned n = op->aux ? op->aux : (unsigned)cpu->regs[CPU_RCX] & count_mask(size);
    struct shifted s;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load_rw(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    if (n == 0) {
        cpu_next(cpu, op);
        return;
    }
    s = shift_do(cpu, k, size, w.v, n);
    if (unlikely(!mem_store_rw(cpu, op, path, la.v, size, &w, s.r))) {
        MEM_BAIL();
    }
    shift_flags(cpu, k, size, &s);
    cpu_next(cpu, op);
}

#define SHIFT_REG(name, k, size, by_cl, flags)                                                     \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        shift_reg(cpu, op, k, size, by_cl, flags);                                                 \
    }
#define SHIFT_SIZE(k, size)                                                                        \
    SHIFT_REG(k##_rc_##size, k, size, true, true)                                                  \
    SHIFT_REG(k##_ri_##size, k, size, false, true)                                                 \
    SHIFT_REG(k##_ri_n_##size, k, size, false, false)                                              \
    MEM_OP(k##_m_##size, shift_mem, k, size)
#define SHIFT_KIND(k)                                                                              \
    SHIFT_SIZE(k, 1)                                                                               \
    SHIFT_SIZE(k, 2)                                                                               \
    SHIFT_SIZE(k, 4)                                                                               \
    SHIFT_SIZE(k, 8)

SHIFT_KIND(SHL)
SHIFT_KIND(SHR)
SHIFT_KIND(SAR)
SHIFT_KIND(ROL)
SHIFT_KIND(ROR)
SHIFT_KIND(RCL)
SHIFT_KIND(RCR)

struct shift_fns {
    cpu_op_fn *rc, *ri, *ri_n;
    struct mem_fns m;
};
#define SHIFT_ENTRY(k, size)                                                                       \
    {                                                                                              \
        k##_rc_##size, k##_ri_##size, k##_ri_n_##size, MEM_FNS(k##_m_##size)                       \
    }
#define SHIFT_ROW(k) [k] = {SHIFT_ENTRY(k, 1), SHIFT_ENTRY(k, 2), SHIFT_ENTRY(k, 4), SHIFT_ENTRY(k, 8)}
static const struct shift_fns shift_table[7][4] = {
    SHIFT_ROW(SHL), SHIFT_ROW(SHR), SHIFT_ROW(SAR), SHIFT_ROW(ROL), SHIFT_ROW(ROR), SHIFT_ROW(RCL), SHIFT_ROW(RCR),
};

/* A count of 0: the register is written (a 32-bit one is widened), memory is read, flags stay. */
static void shift_none_4(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] = (uint32_t)cpu->regs[op->dst];
    cpu_next(cpu, op);
}

static void shift_none(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_next(cpu, op);
}

static void shift_none_m(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la = cpu_ea_word(cpu, op, op->aux, true);

    if (la.ok && cpu_load_rw_slow(cpu, op, la.v, op->aux).ok) {
        cpu_next(cpu, op);
    }
}

static int emit_none(struct cpu_emit *e, int size)
{
    static const struct mem_fns mem = {shift_none_m, shift_none_m, shift_none_m};
    const ZydisDecodedOperand *d = &e->opnd[0];
    struct cpu_op *op = is_mem(d) ? cpu_emit_mem_op(e, &mem, d) : cpu_emit_op(e, size == 2 ? shift_none_4 : shift_none);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)(1u << size);
    op->dst = is_reg(d) ? emit_reg_any(d) : 0;
    e->cc_new = e->cc_hint;
    return 0;
}

static int emit_shift(struct cpu_emit *e, enum shift k)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];
    int size = emit_size(e);
    const struct shift_fns *f;
    struct cpu_op *op;
    uint8_t n = 0;

    if (size < 0) {
        return -ENOSYS;
    }
    f = &shift_table[k][size];
    if (is_imm(s)) {
        n = (uint8_t)(s->imm.value.u & count_mask(1u << size));
        if (n == 0) {
            return emit_none(e, size);
        }
        e->cc_new = is_shift(k) ? (uint8_t)((k == SHL ? CPU_CC_SHL : CPU_CC_SHR) | size) : (uint8_t)CPU_CC_UNKNOWN;
    }
    if (is_mem(d)) {
        op = cpu_emit_mem_op(e, &f->m, d);
    } else {
        op = cpu_emit_op(e, n == 0 ? f->rc : e->flags_live ? f->ri : f->ri_n);
    }
    if (!op) {
        return -ENOSPC;
    }
    op->aux = n;
    if (is_reg(d)) {
        op->dst = emit_reg_any(d);
    }
    return 0;
}

#define EMIT_SHIFT(name, k)                                                                        \
    int name(struct cpu_emit *e)                                                                   \
    {                                                                                              \
        return emit_shift(e, k);                                                                   \
    }
EMIT_SHIFT(cpu_emit_shl, SHL)
EMIT_SHIFT(cpu_emit_shr, SHR)
EMIT_SHIFT(cpu_emit_sar, SAR)
EMIT_SHIFT(cpu_emit_rol, ROL)
EMIT_SHIFT(cpu_emit_ror, ROR)
EMIT_SHIFT(cpu_emit_rcl, RCL)
EMIT_SHIFT(cpu_emit_rcr, RCR)

/*
 * SHLD, SHRD: dst shifted, filled from src. A 16-bit count above 16 is undefined; processors take the bits of
 * dst:src:dst, and so does this. aux: 0 for CL.
 */
static always_inline uint64_t double_value(bool left, unsigned size, uint64_t a, uint64_t b, unsigned n, uint64_t *last)
{
    unsigned bits = size * 8;
    unsigned __int128 v;

    if (size == 2) {
        v = left ? (unsigned __int128)(a << 32 | b << 16 | a) : (unsigned __int128)(a << 32 | b << 16 | a);
        if (left) {
            *last = (uint16_t)((v << (n - 1)) >> 32);
            return (uint16_t)((v << n) >> 32);
        }
        *last = (uint16_t)(v >> (n - 1));
        return (uint16_t)(v >> n);
    }
    if (left) {
        v = (unsigned __int128)a << bits | b;
        *last = trunc_to((uint64_t)((v << (n - 1)) >> bits), size);
        return trunc_to((uint64_t)((v << n) >> bits), size);
    }
    v = (unsigned __int128)b << bits | a;
    *last = trunc_to((uint64_t)(v >> (n - 1)), size);
    return trunc_to((uint64_t)(v >> n), size);
}

static always_inline void double_reg(struct cpu *cpu, const struct cpu_op *op, bool left, unsigned size)
{
    unsigned n = op->aux ? op->aux : (unsigned)cpu->regs[CPU_RCX] & count_mask(size);
    uint64_t a = reg_get(cpu, op->dst, size), last, r;

    if (n == 0) {
        reg_set(cpu, op->dst, size, a);
        cpu_next(cpu, op);
        return;
    }
    r = double_value(left, size, a, reg_get(cpu, op->src, size), n, &last);
    reg_set(cpu, op->dst, size, r);
    cc_set(cpu, left ? CPU_CC_SHL : CPU_CC_SHR, size, r, last);
    cpu_next(cpu, op);
}

static always_inline void double_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                     bool left, unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);
    struct mem_rw w;
    unsigned n = op->aux ? op->aux : (unsigned)cpu->regs[CPU_RCX] & count_mask(size);
    uint64_t last, r;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load_rw(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    if (n == 0) {
        cpu_next(cpu, op);
        return;
    }
    r = double_value(left, size, w.v, reg_get(cpu, op->src, size), n, &last);
    if (unlikely(!mem_store_rw(cpu, op, path, la.v, size, &w, r))) {
        MEM_BAIL();
    }
    cc_set(cpu, left ? CPU_CC_SHL : CPU_CC_SHR, size, r, last);
    cpu_next(cpu, op);
}

#define DOUBLE_SIZE(name, left, size)                                                              \
    static void name##_r_##size(struct cpu *cpu, const struct cpu_op *op)                          \
    {                                                                                              \
        double_reg(cpu, op, left, size);                                                           \
    }                                                                                              \
    MEM_OP(name##_m_##size, double_mem, left, size)
#define DOUBLE_KIND(name, left)                                                                    \
    DOUBLE_SIZE(name, left, 2)                                                                     \
    DOUBLE_SIZE(name, left, 4)                                                                     \
    DOUBLE_SIZE(name, left, 8)                                                                     \
    static cpu_op_fn *const name##_r[3] = {name##_r_2, name##_r_4, name##_r_8};                    \
    static const struct mem_fns name##_m[3] = {MEM_FNS(name##_m_2), MEM_FNS(name##_m_4), MEM_FNS(name##_m_8)};
DOUBLE_KIND(shld, true)
DOUBLE_KIND(shrd, false)

static int emit_double(struct cpu_emit *e, cpu_op_fn *const *reg, const struct mem_fns *mem)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *c = &e->opnd[2];
    int size = emit_size(e);
    struct cpu_op *op;
    uint8_t n = 0;

    if (size < 1) {
        return -ENOSYS;
    }
    if (is_imm(c)) {
        n = (uint8_t)(c->imm.value.u & count_mask(1u << size));
        if (n == 0) {
            return emit_none(e, size);
        }
    }
    op = is_mem(d) ? cpu_emit_mem_op(e, &mem[size - 1], d) : cpu_emit_op(e, reg[size - 1]);
    if (!op) {
        return -ENOSPC;
    }
    op->aux = n;
    op->dst = is_reg(d) ? emit_reg_any(d) : 0;
    op->src = emit_reg_any(&e->opnd[1]);
    return 0;
}

int cpu_emit_shld(struct cpu_emit *e)
{
    return emit_double(e, shld_r, shld_m);
}

int cpu_emit_shrd(struct cpu_emit *e)
{
    return emit_double(e, shrd_r, shrd_m);
}
