/*
 * Two-operand arithmetic and logic (ADD OR ADC SBB AND SUB XOR CMP TEST) in all operand forms and sizes,
 * and the one-operand INC DEC NEG NOT.
 *
 * Register forms of 32 and 64 bits also exist without flags, for when nobody looks (cpu_emit.flags_live).
 * A result is stored before flags are changed, as the store may fail. LOCKed forms are in atomic.c.
 */
#include <errno.h>

#include "cpu/atomic.h"
#include "cpu/insn.h"

enum alu { ADD, OR, ADC, SBB, AND, SUB, XOR, CMP, TEST };

static always_inline uint64_t alu_result(enum alu k, uint64_t a, uint64_t b, unsigned c)
{
    switch (k) {
    case ADD:
    case ADC:
        return a + b + c;
    case SUB:
    case SBB:
    case CMP:
        return a - b - c;
    case OR:
        return a | b;
    case XOR:
        return a ^ b;
    default:
        return a & b;
    }
}

static always_inline void alu_flags(struct cpu *cpu, enum alu k, unsigned size, uint64_t r, uint64_t b, unsigned c)
{
    switch (k) {
    case ADD:
    case ADC:
        cc_set(cpu, c ? CPU_CC_ADC : CPU_CC_ADD, size, r, b);
        break;
    case SUB:
    case SBB:
    case CMP:
        cc_set(cpu, c ? CPU_CC_SBB : CPU_CC_SUB, size, r, b);
        break;
    default:
        cpu->cc_op = CPU_CC_LOGIC | log2_size(size);
        cpu->cc_dst = r;
    }
}

static always_inline unsigned carry_in(const struct cpu *cpu, enum alu k)
{
    return k == ADC || k == SBB ? cpu_carry(cpu) : 0;
}

static always_inline bool is_test(enum alu k)
{
    return k == CMP || k == TEST;
}

/* reg, reg or reg, imm */
static always_inline void alu_reg(struct cpu *cpu, const struct cpu_op *op, enum alu k, unsigned size, bool imm,
                                  bool flags)
{
    uint64_t a = reg_get(cpu, op->dst, size);
    uint64_t b = imm ? trunc_to(op->imm, size) : reg_get(cpu, op->src, size);
    unsigned c = carry_in(cpu, k);
    uint64_t r = trunc_to(alu_result(k, a, b, c), size);

    if (!is_test(k)) {
        reg_set(cpu, op->dst, size, r);
    }
    if (flags) {
        alu_flags(cpu, k, size, r, b, c);
    }
    cpu_next(cpu, op);
}

/* reg, mem */
static always_inline void alu_load(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                   enum alu k, unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;
    uint64_t r;
    unsigned c;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    c = carry_in(cpu, k);
    r = trunc_to(alu_result(k, reg_get(cpu, op->dst, size), w.v, c), size);
    if (!is_test(k)) {
        reg_set(cpu, op->dst, size, r);
    }
    alu_flags(cpu, k, size, r, w.v, c);
    cpu_next(cpu, op);
}

/* mem, reg or mem, imm */
static always_inline void alu_store(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    enum alu k, unsigned size, bool imm)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);
    uint64_t b = imm ? trunc_to(op->imm, size) : reg_get(cpu, op->src, size), r;
    struct mem_rw w;
    unsigned c;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load_rw(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    c = carry_in(cpu, k);
    r = trunc_to(alu_result(k, w.v, b, c), size);
    if (unlikely(!mem_store_rw(cpu, op, path, la.v, size, &w, r))) {
        MEM_BAIL();
    }
    alu_flags(cpu, k, size, r, b, c);
    cpu_next(cpu, op);
}

/* The same of CMP and TEST, which only read. */
static always_inline void alu_look(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                   enum alu k, unsigned size, bool imm)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;
    uint64_t b = imm ? trunc_to(op->imm, size) : reg_get(cpu, op->src, size);

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    alu_flags(cpu, k, size, trunc_to(alu_result(k, w.v, b, 0), size), b, 0);
    cpu_next(cpu, op);
}

#define ALU_REG(name, k, size, imm, flags)                                                         \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        alu_reg(cpu, op, k, size, imm, flags);                                                     \
    }

#define ALU_SIZE(k, size, mem)                                                                     \
    ALU_REG(k##_rr_##size, k, size, false, true)                                                   \
    ALU_REG(k##_ri_##size, k, size, true, true)                                                    \
    ALU_REG(k##_rr_n_##size, k, size, false, false)                                                \
    ALU_REG(k##_ri_n_##size, k, size, true, false)                                                 \
    MEM_OP(k##_rm_##size, alu_load, k, size)                                                       \
    MEM_OP(k##_mr_##size, mem, k, size, false)                                                     \
    MEM_OP(k##_mi_##size, mem, k, size, true)

#define ALU_KIND(k, mem)                                                                           \
    ALU_SIZE(k, 1, mem)                                                                            \
    ALU_SIZE(k, 2, mem)                                                                            \
    ALU_SIZE(k, 4, mem)                                                                            \
    ALU_SIZE(k, 8, mem)

ALU_KIND(ADD, alu_store)
ALU_KIND(OR, alu_store)
ALU_KIND(ADC, alu_store)
ALU_KIND(SBB, alu_store)
ALU_KIND(AND, alu_store)
ALU_KIND(SUB, alu_store)
ALU_KIND(XOR, alu_store)
ALU_KIND(CMP, alu_look)
ALU_KIND(TEST, alu_look)

struct alu_fns {
    cpu_op_fn *rr, *ri, *rr_n, *ri_n;
    struct mem_fns rm, mr, mi;
};

#define ALU_ENTRY(k, size)                                                                         \
    {                                                                                              \
        k##_rr_##size, k##_ri_##size, k##_rr_n_##size, k##_ri_n_##size, MEM_FNS(k##_rm_##size),    \
            MEM_FNS(k##_mr_##size), MEM_FNS(k##_mi_##size)                                         \
    }
#define ALU_ROW(k) [k] = {ALU_ENTRY(k, 1), ALU_ENTRY(k, 2), ALU_ENTRY(k, 4), ALU_ENTRY(k, 8)}

static const struct alu_fns alu_table[9][4] = {
    ALU_ROW(ADD), ALU_ROW(OR),  ALU_ROW(ADC), ALU_ROW(SBB),  ALU_ROW(AND),
    ALU_ROW(SUB), ALU_ROW(XOR), ALU_ROW(CMP), ALU_ROW(TEST),
};

static uint8_t hint_of(enum alu k, int size)
{
    unsigned kind = CPU_CC_LOGIC;

    if (k == SUB || k == CMP) {
        kind = CPU_CC_SUB;
    } else if (k == ADD) {
        kind = CPU_CC_ADD;
    } else if (k == ADC || k == SBB) {
        return CPU_CC_UNKNOWN;
    }
    return (uint8_t)(kind | (unsigned)size);
}

/* XOR r, r and SUB r, r: the result does not depend on the register, but flags and effects are the same. */
static int emit_alu(struct cpu_emit *e, enum alu k)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];
    int size = emit_size(e);
    const struct alu_fns *f;
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    if (e->in.attributes & ZYDIS_ATTRIB_HAS_LOCK) {
        return cpu_emit_locked(e);
    }
    f = &alu_table[k][size];
    e->cc_new = hint_of(k, size);
    if (is_mem(d)) {
        op = cpu_emit_mem_op(e, is_imm(s) ? &f->mi : &f->mr, d);
    } else if (is_mem(s)) {
        op = cpu_emit_mem_op(e, &f->rm, s);
    } else if (e->flags_live) {
        op = cpu_emit_op(e, is_imm(s) ? f->ri : f->rr);
    } else {
        op = cpu_emit_op(e, is_imm(s) ? f->ri_n : f->rr_n);
    }
    if (!op) {
        return -ENOSPC;
    }
    if (is_reg(d)) {
        op->dst = emit_reg_any(d);
    }
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    } else if (is_imm(s)) {
        op->imm = s->imm.value.u;
    }
    return 0;
}

#define EMIT_ALU(name, k)                                                                          \
    int name(struct cpu_emit *e)                                                                   \
    {                                                                                              \
        return emit_alu(e, k);                                                                     \
    }

EMIT_ALU(cpu_emit_add, ADD)
EMIT_ALU(cpu_emit_or, OR)
EMIT_ALU(cpu_emit_adc, ADC)
EMIT_ALU(cpu_emit_sbb, SBB)
EMIT_ALU(cpu_emit_and, AND)
EMIT_ALU(cpu_emit_sub, SUB)
EMIT_ALU(cpu_emit_xor, XOR)

/* CMP and TEST try to take a following Jcc with them (branch.c). */
int cpu_emit_cmp(struct cpu_emit *e)
{
    return cpu_emit_fused(e, false) ? 0 : emit_alu(e, CMP);
}

int cpu_emit_test(struct cpu_emit *e)
{
    return cpu_emit_fused(e, true) ? 0 : emit_alu(e, TEST);
}

/* One operand. INC and DEC keep CF, which is asked for only if somebody will. */
enum unary { INC, DEC, NEG, NOT, INC_NC, DEC_NC };

static always_inline uint64_t unary_result(enum unary k, uint64_t a)
{
    switch (k) {
    case INC:
    case INC_NC:
        return a + 1;
    case DEC:
    case DEC_NC:
        return a - 1;
    case NEG:
        return 0 - a;
    default:
        return ~a;
    }
}

/* is_carry_kept: cc_src is CF already. */
static always_inline void unary_flags(struct cpu *cpu, enum unary k, unsigned size, uint64_t a, uint64_t r,
                                      bool is_carry_kept)
{
    if (k == NEG) {
        cc_set(cpu, CPU_CC_SUB, size, r, a);
    } else if (k == INC_NC || k == DEC_NC) {
        cc_set(cpu, k == INC_NC ? CPU_CC_INC : CPU_CC_DEC, size, r, 0);
    } else if (k != NOT) {
        if (!is_carry_kept && (CPU_CC_KIND(cpu->cc_op) & ~4u) != CPU_CC_INC) {
            cpu->cc_src = cpu_carry(cpu);
        }
        cpu->cc_op = (k == INC ? CPU_CC_INC : CPU_CC_DEC) | log2_size(size);
        cpu->cc_dst = r;
    }
}

/* Bring CF to where INC and DEC expect it, then do op. Apart, so that the usual way needs no stack frame. */
CPU_COLD static void carry_first(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned cf = cpu_carry(cpu);

    cc_set(cpu, CPU_CC_INC, 8, 0, cf);
    op->fn(cpu, op);
}

static always_inline void unary_reg(struct cpu *cpu, const struct cpu_op *op, enum unary k, unsigned size, bool flags)
{
    uint64_t a = reg_get(cpu, op->dst, size), r = trunc_to(unary_result(k, a), size);

    if (flags && (k == INC || k == DEC) && unlikely((CPU_CC_KIND(cpu->cc_op) & ~4u) != CPU_CC_INC)) {
        carry_first(cpu, op);
        return;
    }
    reg_set(cpu, op->dst, size, r);
    if (flags) {
        unary_flags(cpu, k, size, a, r, true);
    }
    cpu_next(cpu, op);
}

static always_inline void unary_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    enum unary k, unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);
    struct mem_rw w;
    uint64_t r;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load_rw(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    r = trunc_to(unary_result(k, w.v), size);
    if (unlikely(!mem_store_rw(cpu, op, path, la.v, size, &w, r))) {
        MEM_BAIL();
    }
    unary_flags(cpu, k, size, w.v, r, false);
    cpu_next(cpu, op);
}

#define UNARY_REG(name, k, size, flags)                                                            \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        unary_reg(cpu, op, k, size, flags);                                                        \
    }
#define UNARY_SIZE(k, size)                                                                        \
    UNARY_REG(k##_r_##size, k, size, true)                                                         \
    UNARY_REG(k##_r_n_##size, k, size, false)                                                      \
    MEM_OP(k##_m_##size, unary_mem, k, size)
#define UNARY_KIND(k)                                                                              \
    UNARY_SIZE(k, 1)                                                                               \
    UNARY_SIZE(k, 2)                                                                               \
    UNARY_SIZE(k, 4)                                                                               \
    UNARY_SIZE(k, 8)

UNARY_KIND(INC)
UNARY_KIND(DEC)
UNARY_KIND(NEG)
UNARY_KIND(NOT)
UNARY_KIND(INC_NC)
UNARY_KIND(DEC_NC)

struct unary_fns {
    cpu_op_fn *r, *r_n;
    struct mem_fns m;
};

#define UNARY_ENTRY(k, size)                                                                       \
    {                                                                                              \
        k##_r_##size, k##_r_n_##size, MEM_FNS(k##_m_##size)                                        \
    }
#define UNARY_ROW(k) [k] = {UNARY_ENTRY(k, 1), UNARY_ENTRY(k, 2), UNARY_ENTRY(k, 4), UNARY_ENTRY(k, 8)}

static const struct unary_fns unary_table[6][4] = {
    UNARY_ROW(INC), UNARY_ROW(DEC), UNARY_ROW(NEG), UNARY_ROW(NOT), UNARY_ROW(INC_NC), UNARY_ROW(DEC_NC),
};

static int emit_unary(struct cpu_emit *e, enum unary k, uint8_t hint)
{
    const struct unary_fns *f;
    int size = emit_size(e);
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    if (e->in.attributes & ZYDIS_ATTRIB_HAS_LOCK) {
        return cpu_emit_locked(e);
    }
    f = &unary_table[k][size];
    e->cc_new = (uint8_t)(hint | (unsigned)size);
    if (is_mem(&e->opnd[0])) {
        return cpu_emit_mem_op(e, &f->m, &e->opnd[0]) ? 0 : -ENOSPC;
    }
    op = cpu_emit_op(e, e->flags_live ? f->r : f->r_n);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = emit_reg_any(&e->opnd[0]);
    return 0;
}

int cpu_emit_inc(struct cpu_emit *e)
{
    return emit_unary(e, e->flags_live & X86_CF ? INC : INC_NC, CPU_CC_INC);
}

int cpu_emit_dec(struct cpu_emit *e)
{
    return emit_unary(e, e->flags_live & X86_CF ? DEC : DEC_NC, CPU_CC_DEC);
}

int cpu_emit_neg(struct cpu_emit *e)
{
    return emit_unary(e, NEG, CPU_CC_SUB);
}

int cpu_emit_not(struct cpu_emit *e)
{
    return emit_unary(e, NOT, 0);
}
