/*
 * Data movement without flags: MOV, MOVZX, MOVSX, MOVSXD, LEA, XCHG, BSWAP, sign extensions of the accumulator,
 * XLAT, MOVBE, NOP and the hints that do nothing here.
 */
#include <errno.h>

#include "cpu/atomic.h"
#include "cpu/insn.h"
#include "cpu/system.h"

static always_inline void mov_load(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                   unsigned size, unsigned to, bool is_signed)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    reg_set(cpu, op->dst, to, is_signed ? (uint64_t)sign_of(w.v, size) : w.v);
    cpu_next(cpu, op);
}

static always_inline void mov_store(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    unsigned size, bool imm)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);

    if (unlikely(!la.ok)) {
        return;
    }
    if (unlikely(!mem_store(cpu, op, path, la.v, size, imm ? op->imm : reg_get(cpu, op->src, size)))) {
        MEM_BAIL();
    }
    cpu_next(cpu, op);
}

#define MOV_SIZE(size)                                                                             \
    static void mov_rr_##size(struct cpu *cpu, const struct cpu_op *op)                            \
    {                                                                                              \
        reg_set(cpu, op->dst, size, reg_get(cpu, op->src, size));                                  \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    static void mov_ri_##size(struct cpu *cpu, const struct cpu_op *op)                            \
    {                                                                                              \
        reg_set(cpu, op->dst, size, op->imm);                                                      \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    MEM_OP(mov_rm_##size, mov_load, size, size, false)                                             \
    MEM_OP(mov_mr_##size, mov_store, size, false)                                                  \
    MEM_OP(mov_mi_##size, mov_store, size, true)

MOV_SIZE(1)
MOV_SIZE(2)
MOV_SIZE(4)
MOV_SIZE(8)

struct mov_fns {
    cpu_op_fn *rr, *ri;
    struct mem_fns rm, mr, mi;
};
#define MOV_ENTRY(size)                                                                            \
    {                                                                                              \
        mov_rr_##size, mov_ri_##size, MEM_FNS(mov_rm_##size), MEM_FNS(mov_mr_##size),              \
            MEM_FNS(mov_mi_##size)                                                                 \
    }
static const struct mov_fns mov_table[4] = {MOV_ENTRY(1), MOV_ENTRY(2), MOV_ENTRY(4), MOV_ENTRY(8)};

static bool is_system_register(const ZydisDecodedOperand *o)
{
    ZydisRegisterClass c = is_reg(o) ? ZydisRegisterGetClass(o->reg.value) : ZYDIS_REGCLASS_INVALID;

    return c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG ||
           c == ZYDIS_REGCLASS_TEST;
}

/* MOV with a 64-bit absolute address: the address goes through a scratch register. */
static void mov_address(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[CPU_TMP0] = op->imm;
    cpu_next(cpu, op);
}

static int emit_mov_absolute(struct cpu_emit *e, const struct mem_fns *fns, const ZydisDecodedOperand *m,
                             struct cpu_op **out)
{
    struct cpu_op *op = cpu_emit_op(e, mov_address);

    if (!op) {
        return -ENOSPC;
    }
    op->imm = (uint64_t)m->mem.disp.value;
    *out = cpu_emit_mem_op(e, fns, m);
    if (!*out) {
        return -ENOSPC;
    }
    (*out)->base = CPU_TMP0;
    (*out)->disp = 0;
    return 0;
}

static int emit_mov_mem(struct cpu_emit *e, const struct mem_fns *fns, const ZydisDecodedOperand *m,
                        struct cpu_op **out)
{
    if (m->mem.disp.value != (int32_t)m->mem.disp.value) {
        return emit_mov_absolute(e, fns, m, out);
    }
    *out = cpu_emit_mem_op(e, fns, m);
    return *out ? 0 : -ENOSPC;
}

int cpu_emit_mov(struct cpu_emit *e)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];
    const struct mov_fns *f;
    int size = emit_size(e), err = 0;
    struct cpu_op *op;

    if (is_system_register(d) || is_system_register(s)) {
        return cpu_emit_mov_system(e);
    }
    if (size < 0) {
        return -ENOSYS;
    }
    f = &mov_table[size];
    if (is_mem(d)) {
        err = emit_mov_mem(e, is_imm(s) ? &f->mi : &f->mr, d, &op);
    } else if (is_mem(s)) {
        err = emit_mov_mem(e, &f->rm, s, &op);
    } else {
        op = cpu_emit_op(e, is_imm(s) ? f->ri : f->rr);
        err = op ? 0 : -ENOSPC;
    }
    if (err) {
        return err;
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

/* Widening moves: from 1, 2 or 4 bytes to 2, 4 or 8. */
#define WIDEN(name, from, to, is_signed)                                                           \
    static void name##_r(struct cpu *cpu, const struct cpu_op *op)                                 \
    {                                                                                              \
        uint64_t v = reg_get(cpu, op->src, from);                                                  \
                                                                                                   \
        reg_set(cpu, op->dst, to, is_signed ? (uint64_t)sign_of(v, from) : v);                     \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    MEM_OP(name##_m, mov_load, from, to, is_signed)

WIDEN(movzx_1_2, 1, 2, false)
WIDEN(movzx_1_4, 1, 4, false)
WIDEN(movzx_2_4, 2, 4, false)
WIDEN(movsx_1_2, 1, 2, true)
WIDEN(movsx_1_4, 1, 4, true)
WIDEN(movsx_1_8, 1, 8, true)
WIDEN(movsx_2_4, 2, 4, true)
WIDEN(movsx_2_8, 2, 8, true)
WIDEN(movsx_4_8, 4, 8, true)
WIDEN(mov_2_2, 2, 2, false)
WIDEN(mov_4_4, 4, 4, false)

struct widen {
    uint8_t from, to; /* bits */
    bool is_signed;
    cpu_op_fn *r;
    struct mem_fns m;
};
#define WIDEN_ENTRY(name, from, to, is_signed)                                                     \
    {                                                                                              \
        from, to, is_signed, name##_r, MEM_FNS(name##_m)                                           \
    }
/* Zero-extension to 64 bits is that to 32; MOVSXD to 16 bits takes the low half. */
static const struct widen widen_table[] = {
    WIDEN_ENTRY(movzx_1_2, 8, 16, false), WIDEN_ENTRY(movzx_1_4, 8, 32, false), WIDEN_ENTRY(movzx_1_4, 8, 64, false),
    WIDEN_ENTRY(movzx_2_4, 16, 32, false), WIDEN_ENTRY(movzx_2_4, 16, 64, false), WIDEN_ENTRY(mov_2_2, 16, 16, false),
    WIDEN_ENTRY(movsx_1_2, 8, 16, true), WIDEN_ENTRY(movsx_1_4, 8, 32, true), WIDEN_ENTRY(movsx_1_8, 8, 64, true),
    WIDEN_ENTRY(movsx_2_4, 16, 32, true), WIDEN_ENTRY(movsx_2_8, 16, 64, true), WIDEN_ENTRY(movsx_4_8, 32, 64, true),
    WIDEN_ENTRY(mov_2_2, 16, 16, true), WIDEN_ENTRY(mov_4_4, 32, 32, true), WIDEN_ENTRY(mov_2_2, 32, 16, true),
};

static int emit_widen(struct cpu_emit *e, bool is_signed)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];

    for (unsigned i = 0; i < ARRAY_LEN(widen_table); i++) {
        const struct widen *w = &widen_table[i];
        struct cpu_op *op;

        if (w->from != s->size || w->to != d->size || w->is_signed != is_signed) {
            continue;
        }
        op = is_mem(s) ? cpu_emit_mem_op(e, &w->m, s) : cpu_emit_op(e, w->r);
        if (!op) {
            return -ENOSPC;
        }
        op->dst = emit_reg_any(d);
        if (is_reg(s)) {
            op->src = emit_reg_any(s);
        }
        return 0;
    }
    return -ENOSYS;
}

int cpu_emit_movzx(struct cpu_emit *e)
{
    return emit_widen(e, false);
}

int cpu_emit_movsx(struct cpu_emit *e)
{
    return emit_widen(e, true);
}

/* LEA: the address, without segment base, at the operand's size. */
static void lea_b(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] = cpu->regs[op->base] + (uint64_t)(int64_t)op->disp;
    cpu_next(cpu, op);
}

static void lea_x(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] =
        cpu->regs[op->base] + (cpu->regs[op->index] << op->shift) + (uint64_t)(int64_t)op->disp;
    cpu_next(cpu, op);
}

static void lea_x_4(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] =
        (uint32_t)(cpu->regs[op->base] + (cpu->regs[op->index] << op->shift) + (uint64_t)(int64_t)op->disp);
    cpu_next(cpu, op);
}

static void lea_s(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t v = cpu->regs[op->base] + (cpu->regs[op->index] << op->shift) + (uint64_t)(int64_t)op->disp;

    if (op->flags & CPU_OPF_EA_MASK) {
        v = op->flags & CPU_OPF_EA16 ? (uint16_t)v : (uint32_t)v;
    }
    reg_set(cpu, op->dst, op->aux, v);
    cpu_next(cpu, op);
}

int cpu_emit_lea(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, lea_s);

    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[1]);
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    op->aux = (uint8_t)(e->opnd[0].size / 8);
    if ((e->mode & CPU_MODE_64) && !(op->flags & CPU_OPF_EA_MASK)) {
        if (op->aux == 8) {
            op->fn = op->index == CPU_ZERO ? lea_b : lea_x;
        } else if (op->aux == 4) {
            op->fn = lea_x_4;
        }
    }
    return 0;
}

#define XCHG_SIZE(size)                                                                            \
    static void xchg_##size(struct cpu *cpu, const struct cpu_op *op)                              \
    {                                                                                              \
        uint64_t a = reg_get(cpu, op->dst, size), b = reg_get(cpu, op->src, size);                 \
                                                                                                   \
        reg_set(cpu, op->dst, size, b);                                                            \
        reg_set(cpu, op->src, size, a);                                                            \
        cpu_next(cpu, op);                                                                         \
    }
XCHG_SIZE(1)
XCHG_SIZE(2)
XCHG_SIZE(4)
XCHG_SIZE(8)

int cpu_emit_xchg(struct cpu_emit *e)
{
    static cpu_op_fn *const fns[4] = {xchg_1, xchg_2, xchg_4, xchg_8};
    int size = emit_size(e);
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    if (is_mem(&e->opnd[0]) || is_mem(&e->opnd[1])) {
        return cpu_emit_locked(e);
    }
    op = cpu_emit_op(e, fns[size]);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = emit_reg_any(&e->opnd[0]);
    op->src = emit_reg_any(&e->opnd[1]);
    return 0;
}

static void bswap_4(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] = __builtin_bswap32((uint32_t)cpu->regs[op->dst]);
    cpu_next(cpu, op);
}

static void bswap_8(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->regs[op->dst] = __builtin_bswap64(cpu->regs[op->dst]);
    cpu_next(cpu, op);
}

/* Of a 16-bit register: undefined, zero on real processors. */
static void bswap_2(struct cpu *cpu, const struct cpu_op *op)
{
    reg_set(cpu, op->dst, 2, 0);
    cpu_next(cpu, op);
}

int cpu_emit_bswap(struct cpu_emit *e)
{
    unsigned bits = e->opnd[0].size;
    struct cpu_op *op = cpu_emit_op(e, bits == 64 ? bswap_8 : bits == 32 ? bswap_4 : bswap_2);

    if (!op) {
        return -ENOSPC;
    }
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    return 0;
}

/* CBW, CWDE, CDQE widen the accumulator; CWD, CDQ, CQO spread its sign over RDX. */
#define ACC_WIDEN(name, from)                                                                      \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        reg_set(cpu, CPU_RAX, 2 * from, (uint64_t)sign_of(cpu->regs[CPU_RAX], from));              \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    int cpu_emit_##name(struct cpu_emit *e)                                                        \
    {                                                                                              \
        return cpu_emit_op(e, name) ? 0 : -ENOSPC;                                                 \
    }
ACC_WIDEN(cbw, 1)
ACC_WIDEN(cwde, 2)
ACC_WIDEN(cdqe, 4)

#define ACC_SPREAD(name, size)                                                                     \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        reg_set(cpu, CPU_RDX, size, (uint64_t)(sign_of(cpu->regs[CPU_RAX], size) >> 63));          \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    int cpu_emit_##name(struct cpu_emit *e)                                                        \
    {                                                                                              \
        return cpu_emit_op(e, name) ? 0 : -ENOSPC;                                                 \
    }
ACC_SPREAD(cwd, 2)
ACC_SPREAD(cdq, 4)
ACC_SPREAD(cqo, 8)

/* XLAT: AL = [RBX + AL]. */
static void xlat(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_op at = *op;
    uint8_t v;
    uint64_t la;

    cpu->regs[CPU_TMP0] = cpu->regs[CPU_RBX] + (uint8_t)cpu->regs[CPU_RAX];
    at.base = CPU_TMP0;
    at.index = CPU_ZERO;
    if (!cpu_ea(cpu, &at, 1, false, &la) || !cpu_load8(cpu, op, la, &v)) {
        return;
    }
    reg_set(cpu, 0, 1, v);
    cpu_end_block(cpu, op);
}

int cpu_emit_xlat(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, xlat);

    if (!op) {
        return -ENOSPC;
    }
    for (unsigned i = 0; i < e->in.operand_count; i++) {
        if (is_mem(&e->opnd[i])) {
            cpu_emit_mem(e, op, &e->opnd[i]);
        }
    }
    e->ends_block = e->terminated = true;
    return 0;
}

/* MOVBE: a load or store with the bytes turned round. */
static always_inline uint64_t turned(uint64_t v, unsigned size)
{
    return size == 2 ? __builtin_bswap16((uint16_t)v) : size == 4 ? __builtin_bswap32((uint32_t)v) : __builtin_bswap64(v);
}

static always_inline void movbe_load(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                     unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    reg_set(cpu, op->dst, size, turned(w.v, size));
    cpu_next(cpu, op);
}

static always_inline void movbe_store(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                      unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);

    if (unlikely(!la.ok)) {
        return;
    }
    if (unlikely(!mem_store(cpu, op, path, la.v, size, turned(reg_get(cpu, op->src, size), size)))) {
        MEM_BAIL();
    }
    cpu_next(cpu, op);
}

#define MOVBE_SIZE(size)                                                                           \
    MEM_OP(movbe_rm_##size, movbe_load, size)                                                      \
    MEM_OP(movbe_mr_##size, movbe_store, size)
MOVBE_SIZE(2)
MOVBE_SIZE(4)
MOVBE_SIZE(8)

int cpu_emit_movbe(struct cpu_emit *e)
{
    static const struct mem_fns loads[3] = {MEM_FNS(movbe_rm_2), MEM_FNS(movbe_rm_4), MEM_FNS(movbe_rm_8)};
    static const struct mem_fns stores[3] = {MEM_FNS(movbe_mr_2), MEM_FNS(movbe_mr_4), MEM_FNS(movbe_mr_8)};
    int size = emit_size(e) - 1;
    bool is_store = is_mem(&e->opnd[0]);
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    op = cpu_emit_mem_op(e, is_store ? &stores[size] : &loads[size], &e->opnd[is_store ? 0 : 1]);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = op->src = emit_reg_any(&e->opnd[is_store ? 1 : 0]);
    return 0;
}

/* NOP, ENDBR, PREFETCH and the like: nothing to do, but an instruction. */
static void nop(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_next(cpu, op);
}

int cpu_emit_nop(struct cpu_emit *e)
{
    return cpu_emit_op(e, nop) ? 0 : -ENOSPC;
}
