/*
 * Bits and conditions: BT BTS BTR BTC, BSF BSR, SETcc, CMOVcc.
 *
 * BT with memory and a register index reaches beyond the operand: the address moves by the signed index.
 */
#include <errno.h>

#include "cpu/atomic.h"
#include "cpu/cond.h"

enum bit_test { BT, BTS, BTR, BTC };

static always_inline uint64_t bit_result(enum bit_test k, uint64_t v, unsigned bit)
{
    uint64_t m = UINT64_C(1) << bit;

    return k == BTS ? v | m : k == BTR ? v & ~m : k == BTC ? v ^ m : v;
}

/* Only CF changes. The carry of an addition of the bit to itself leaves nothing else intact, so flags become whole. */
static always_inline void bit_flag(struct cpu *cpu, unsigned cf)
{
    uint32_t flags = cpu_arith_flags(cpu) & ~X86_CF;

    cpu_set_arith_flags(cpu, flags | cf);
}

/* With no other flag looked at, the bit is kept as the carry of an increment with a result of 1. */
static always_inline void bit_flag_only(struct cpu *cpu, unsigned cf)
{
    cc_set(cpu, CPU_CC_INC, 8, 1, cf);
}

static always_inline void bt_reg(struct cpu *cpu, const struct cpu_op *op, enum bit_test k, unsigned size, bool only)
{
    unsigned bit = (op->aux ? (unsigned)op->imm : (unsigned)cpu->regs[op->src]) & (size * 8 - 1);
    uint64_t v = reg_get(cpu, op->dst, size);

    if (k != BT) {
        reg_set(cpu, op->dst, size, bit_result(k, v, bit));
    }
    if (only) {
        bit_flag_only(cpu, (unsigned)(v >> bit) & 1);
    } else {
        bit_flag(cpu, (unsigned)(v >> bit) & 1);
    }
    cpu_next(cpu, op);
}

static always_inline void bt_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                 enum bit_test k, unsigned size)
{
    int64_t index = op->aux ? (int64_t)(op->imm & (size * 8 - 1)) : sign_of(reg_get(cpu, op->src, size), size);
    struct cpu_op at = *op;
    struct cpu_word la, w;
    unsigned bit = (unsigned)index & (size * 8 - 1);

    (void)slow;
    (void)path;
    cpu->regs[CPU_TMP0] = cpu->regs[op->base] + (uint64_t)((index >> (log2_size(size) + 3)) * (int64_t)size);
    at.base = CPU_TMP0;
    la = cpu_ea_word(cpu, &at, size, k != BT);
    if (unlikely(!la.ok)) {
        return;
    }
    w = k == BT ? cpu_load_slow(cpu, op, la.v, size) : cpu_load_rw_slow(cpu, op, la.v, size);
    if (unlikely(!w.ok) || (k != BT && !cpu_store_slow(cpu, op, la.v, bit_result(k, w.v, bit), size))) {
        return;
    }
    bit_flag(cpu, (unsigned)(w.v >> bit) & 1);
    cpu->next_op = op; /* the continuation is the wrapper's, which has no locals to give out */
}

#define BT_SIZE(k, size)                                                                           \
    static void k##_r_##size(struct cpu *cpu, const struct cpu_op *op)                             \
    {                                                                                              \
        bt_reg(cpu, op, k, size, false);                                                           \
    }                                                                                              \
    static void k##_ro_##size(struct cpu *cpu, const struct cpu_op *op)                            \
    {                                                                                              \
        bt_reg(cpu, op, k, size, true);                                                            \
    }                                                                                              \
    __attribute__((noinline)) static void k##_m_do_##size(struct cpu *cpu, const struct cpu_op *op) \
    {                                                                                              \
        bt_mem(cpu, op, MEM_SLOW, NULL, k, size);                                                  \
    }                                                                                              \
    static void k##_m_##size(struct cpu *cpu, const struct cpu_op *op)                             \
    {                                                                                              \
        cpu->next_op = NULL;                                                                       \
        k##_m_do_##size(cpu, op);                                                                  \
        if (likely(cpu->next_op == op)) {                                                          \
            cpu->next_op = NULL;                                                                   \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }
#define BT_KIND(k)                                                                                 \
    BT_SIZE(k, 2)                                                                                  \
    BT_SIZE(k, 4)                                                                                  \
    BT_SIZE(k, 8)

BT_KIND(BT)
BT_KIND(BTS)
BT_KIND(BTR)
BT_KIND(BTC)

struct bt_fns {
    cpu_op_fn *r, *ro, *m;
};
#define BT_ENTRY(k, size)                                                                          \
    {                                                                                              \
        k##_r_##size, k##_ro_##size, k##_m_##size                                                  \
    }
#define BT_ROW(k) [k] = {BT_ENTRY(k, 2), BT_ENTRY(k, 4), BT_ENTRY(k, 8)}
static const struct bt_fns bt_table[4][3] = {BT_ROW(BT), BT_ROW(BTS), BT_ROW(BTR), BT_ROW(BTC)};

static int emit_bt(struct cpu_emit *e, enum bit_test k)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];
    int size = emit_size(e) - 1;
    bool only = (e->flags_live & ~X86_CF) == 0;
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    if (e->in.attributes & ZYDIS_ATTRIB_HAS_LOCK) {
        return cpu_emit_locked(e);
    }
    op = cpu_emit_op(e, is_mem(d) ? bt_table[k][size].m : only ? bt_table[k][size].ro : bt_table[k][size].r);
    if (!op) {
        return -ENOSPC;
    }
    if (is_mem(d)) {
        cpu_emit_mem(e, op, d);
    } else {
        op->dst = emit_reg_any(d);
    }
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    } else {
        op->imm = s->imm.value.u & 0xff;
        op->aux = 1;
    }
    return 0;
}

int cpu_emit_bt(struct cpu_emit *e)
{
    return emit_bt(e, BT);
}

int cpu_emit_bts(struct cpu_emit *e)
{
    return emit_bt(e, BTS);
}

int cpu_emit_btr(struct cpu_emit *e)
{
    return emit_bt(e, BTR);
}

int cpu_emit_btc(struct cpu_emit *e)
{
    return emit_bt(e, BTC);
}

/* BSF, BSR: of zero the destination stays, as processors do; ZF tells. */
enum scan { BSF, BSR };

static always_inline void scan_do(struct cpu *cpu, const struct cpu_op *op, enum scan k, unsigned size, uint64_t v)
{
    if (v) {
        reg_set(cpu, op->dst, size, (uint64_t)(k == BSF ? __builtin_ctzll(v) : 63 - __builtin_clzll(v)));
    }
    cc_set(cpu, CPU_CC_LOGIC, size, v, 0);
}

static always_inline void scan_reg(struct cpu *cpu, const struct cpu_op *op, enum scan k, unsigned size)
{
    scan_do(cpu, op, k, size, reg_get(cpu, op->src, size));
    cpu_next(cpu, op);
}

static always_inline void scan_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                   enum scan k, unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, false), w;

    if (unlikely(!la.ok)) {
        return;
    }
    w = mem_load(cpu, op, path, la.v, size);
    if (unlikely(!w.ok)) {
        MEM_BAIL();
    }
    scan_do(cpu, op, k, size, w.v);
    cpu_next(cpu, op);
}

#define SCAN_SIZE(k, size)                                                                         \
    static void k##_r_##size(struct cpu *cpu, const struct cpu_op *op)                             \
    {                                                                                              \
        scan_reg(cpu, op, k, size);                                                                \
    }                                                                                              \
    MEM_OP(k##_m_##size, scan_mem, k, size)
#define SCAN_KIND(k)                                                                               \
    SCAN_SIZE(k, 2)                                                                                \
    SCAN_SIZE(k, 4)                                                                                \
    SCAN_SIZE(k, 8)                                                                                \
    static cpu_op_fn *const k##_r[3] = {k##_r_2, k##_r_4, k##_r_8};                                \
    static const struct mem_fns k##_m[3] = {MEM_FNS(k##_m_2), MEM_FNS(k##_m_4), MEM_FNS(k##_m_8)};
SCAN_KIND(BSF)
SCAN_KIND(BSR)

static int emit_scan(struct cpu_emit *e, cpu_op_fn *const *reg, const struct mem_fns *mem)
{
    const ZydisDecodedOperand *s = &e->opnd[1];
    int size = emit_size(e) - 1;
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    op = is_mem(s) ? cpu_emit_mem_op(e, &mem[size], s) : cpu_emit_op(e, reg[size]);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = emit_reg_any(&e->opnd[0]);
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    }
    return 0;
}

int cpu_emit_bsf(struct cpu_emit *e)
{
    return emit_scan(e, BSF_r, BSF_m);
}

int cpu_emit_bsr(struct cpu_emit *e)
{
    return emit_scan(e, BSR_r, BSR_m);
}

#define SETCC(name, kind, size, cc)                                                                \
    static void setcc_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)             \
    {                                                                                              \
        reg_set(cpu, op->dst, 1, cond_eval(cpu, COND_##kind, size, cc));                           \
        cpu_next(cpu, op);                                                                         \
    }
COND_ALL(SETCC, setcc)
static cpu_op_fn *const setcc_table[COND_CLASSES][16] = COND_TABLE(setcc);

static always_inline void setcc_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    unsigned size)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);

    if (unlikely(!la.ok)) {
        return;
    }
    if (unlikely(!mem_store(cpu, op, path, la.v, size, cpu_condition(cpu, op->src)))) {
        MEM_BAIL();
    }
    cpu_next(cpu, op);
}

MEM_OP(setcc_m, setcc_mem, 1)

int cpu_emit_setcc(struct cpu_emit *e)
{
    static const struct mem_fns mem = MEM_FNS(setcc_m);
    unsigned cc = cond_of(&e->in);
    const ZydisDecodedOperand *d = &e->opnd[0];
    struct cpu_op *op;

    op = is_mem(d) ? cpu_emit_mem_op(e, &mem, d) : cpu_emit_op(e, setcc_table[cond_class(e->cc_hint, cc)][cc]);
    if (!op) {
        return -ENOSPC;
    }
    op->src = (uint8_t)cc;
    if (is_reg(d)) {
        op->dst = emit_reg_any(d);
    }
    return 0;
}

/* CMOVcc of 32 bits widens the destination even when it does not move. */
#define CMOV(name, kind, size, cc)                                                                 \
    static void cmov4_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)             \
    {                                                                                              \
        uint64_t a = cpu->regs[op->src], b = cpu->regs[op->dst];                                   \
                                                                                                   \
        cpu->regs[op->dst] = (uint32_t)(cond_eval(cpu, COND_##kind, size, cc) ? a : b);            \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    static void cmov8_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)             \
    {                                                                                              \
        uint64_t a = cpu->regs[op->src], b = cpu->regs[op->dst];                                   \
                                                                                                   \
        cpu->regs[op->dst] = cond_eval(cpu, COND_##kind, size, cc) ? a : b;                        \
        cpu_next(cpu, op);                                                                         \
    }
COND_ALL(CMOV, cmov)
static cpu_op_fn *const cmov4_table[COND_CLASSES][16] = COND_TABLE(cmov4);
static cpu_op_fn *const cmov8_table[COND_CLASSES][16] = COND_TABLE(cmov8);

static void cmov_2(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_condition(cpu, op->aux)) {
        reg_set(cpu, op->dst, 2, cpu->regs[op->src]);
    }
    cpu_next(cpu, op);
}

static always_inline void cmov_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
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
    reg_set(cpu, op->dst, size, cpu_condition(cpu, op->aux) ? w.v : reg_get(cpu, op->dst, size));
    cpu_next(cpu, op);
}

MEM_OP(cmov_m_2, cmov_mem, 2)
MEM_OP(cmov_m_4, cmov_mem, 4)
MEM_OP(cmov_m_8, cmov_mem, 8)

int cpu_emit_cmovcc(struct cpu_emit *e)
{
    static const struct mem_fns mem[3] = {MEM_FNS(cmov_m_2), MEM_FNS(cmov_m_4), MEM_FNS(cmov_m_8)};
    const ZydisDecodedOperand *s = &e->opnd[1];
    unsigned cc = cond_of(&e->in), class = cond_class(e->cc_hint, cc);
    int size = emit_size(e) - 1;
    struct cpu_op *op;

    if (size < 0) {
        return -ENOSYS;
    }
    if (is_mem(s)) {
        op = cpu_emit_mem_op(e, &mem[size], s);
    } else {
        op = cpu_emit_op(e, size == 0 ? cmov_2 : size == 1 ? cmov4_table[class][cc] : cmov8_table[class][cc]);
    }
    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)cc;
    op->dst = emit_reg_any(&e->opnd[0]);
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    }
    return 0;
}
