/*
 * Atomic read-modify-write: the LOCKed forms of arithmetic and bit instructions, XCHG with memory, XADD,
 * CMPXCHG, CMPXCHG8B, CMPXCHG16B. On plain RAM within a page they are host atomics on the guest's own bytes, so other
 * virtual processors and device threads see them whole. The unlocked forms of XADD and CMPXCHG are done the same
 * way.
 *
 * A page crossing or a device is done on a private copy under the peers' lock (cpu_locked_begin()).
 */
#include "cpu/atomic.h"

#include <errno.h>

#include "cpu/exception.h"
#include "cpu/insn.h"

enum locked {
    L_ADD, L_OR, L_ADC, L_SBB, L_AND, L_SUB, L_XOR, L_INC, L_DEC, L_NEG, L_NOT,
    L_BTS, L_BTR, L_BTC, L_XADD, L_XCHG, L_CMPXCHG, L_KINDS
};

/* Old and new value of the memory operand. */
struct change {
    uint64_t old, new;
};

static always_inline bool exchange(void *p, unsigned size, uint64_t *old, uint64_t new)
{
    uint8_t o1 = (uint8_t)*old;
    uint16_t o2 = (uint16_t)*old;
    uint32_t o4 = (uint32_t)*old;
    bool ok;

    switch (size) {
    case 1:
        ok = __atomic_compare_exchange_n((uint8_t *)p, &o1, (uint8_t)new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *old = o1;
        return ok;
    case 2:
        ok = __atomic_compare_exchange_n((uint16_t *)p, &o2, (uint16_t)new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *old = o2;
        return ok;
    case 4:
        ok = __atomic_compare_exchange_n((uint32_t *)p, &o4, (uint32_t)new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
        *old = o4;
        return ok;
    default:
        return __atomic_compare_exchange_n((uint64_t *)p, old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
}

static always_inline uint64_t new_value(enum locked k, uint64_t a, uint64_t b, unsigned c)
{
    switch (k) {
    case L_ADD:
    case L_ADC:
    case L_XADD:
        return a + b + c;
    case L_SUB:
    case L_SBB:
        return a - b - c;
    case L_OR:
    case L_BTS:
        return a | b;
    case L_AND:
        return a & b;
    case L_BTR:
        return a & ~b;
    case L_XOR:
    case L_BTC:
        return a ^ b;
    case L_INC:
        return a + 1;
    case L_DEC:
        return a - 1;
    case L_NEG:
        return 0 - a;
    case L_NOT:
        return ~a;
    default:
        return b;
    }
}

static always_inline struct change change_do(const struct cpu_op *op, void *p, enum locked k, unsigned size, uint64_t b, unsigned c)
{
    struct change ch;

    CPU_PIN(op);
    ch.old = cpu_guest_get_sized(p, size);
    do {
        ch.new = trunc_to(new_value(k, ch.old, b, c), size);
    } while (unlikely(!exchange(p, size, &ch.old, ch.new)));
    CPU_PIN(op);
    return ch;
}

static always_inline void change_flags(struct cpu *cpu, enum locked k, unsigned size, struct change ch, uint64_t b,
                                       unsigned c)
{
    switch (k) {
    case L_ADD:
    case L_ADC:
    case L_XADD:
        cc_set(cpu, c ? CPU_CC_ADC : CPU_CC_ADD, size, ch.new, b);
        break;
    case L_SUB:
    case L_SBB:
        cc_set(cpu, c ? CPU_CC_SBB : CPU_CC_SUB, size, ch.new, b);
        break;
    case L_NEG:
        cc_set(cpu, CPU_CC_SUB, size, ch.new, ch.old);
        break;
    case L_INC:
    case L_DEC:
        cc_set(cpu, k == L_INC ? CPU_CC_INC : CPU_CC_DEC, size, ch.new, cpu_carry(cpu));
        break;
    case L_BTS:
    case L_BTR:
    case L_BTC:
        cpu_set_arith_flags(cpu, (cpu_arith_flags(cpu) & ~X86_CF) | (ch.old & b ? X86_CF : 0));
        break;
    case L_NOT:
    case L_XCHG:
        break;
    default:
        cc_set(cpu, CPU_CC_LOGIC, size, ch.new, 0);
    }
}

/* CMPXCHG: the accumulator against memory; equal: source goes in, else memory comes out. */
static always_inline void compare_exchange(struct cpu *cpu, const struct cpu_op *op, unsigned size, void *p)
{
    uint64_t acc = reg_get(cpu, CPU_RAX, size), old = acc;
    bool same;

    CPU_PIN(op);
    same = exchange(p, size, &old, reg_get(cpu, op->src, size));
    CPU_PIN(op);
    cc_set(cpu, CPU_CC_SUB, size, trunc_to(acc - old, size), old);
    if (!same) {
        reg_set(cpu, CPU_RAX, size, old);
    }
}

/* Second operand: a register, an immediate, or the bit that an index selects. */
static always_inline uint64_t second_operand(const struct cpu *cpu, const struct cpu_op *op, enum locked k, unsigned size)
{
    uint64_t b = op->aux ? trunc_to(op->imm, size) : reg_get(cpu, op->src, size);

    if (k == L_BTS || k == L_BTR || k == L_BTC) {
        return UINT64_C(1) << (b & (size * 8 - 1));
    }
    return b;
}

/* All of the instruction but its address, on size bytes at p. */
static always_inline void apply(struct cpu *cpu, const struct cpu_op *op, enum locked k, unsigned size, void *p)
{
    uint64_t b = second_operand(cpu, op, k, size);
    unsigned c = k == L_ADC || k == L_SBB ? cpu_carry(cpu) : 0;
    struct change ch;

    if (k == L_CMPXCHG) {
        compare_exchange(cpu, op, size, p);
        return;
    }
    ch = change_do(op, p, k, size, b, c);
    change_flags(cpu, k, size, ch, b, c);
    if (k == L_XADD || k == L_XCHG) {
        reg_set(cpu, op->src, size, ch.old);
    }
}

/* Bit instructions with a register index reach beyond the operand. */
static always_inline uint64_t bit_offset(const struct cpu *cpu, const struct cpu_op *op, enum locked k, unsigned size)
{
    if (op->aux || (k != L_BTS && k != L_BTR && k != L_BTC)) {
        return 0;
    }
    return (uint64_t)((sign_of(reg_get(cpu, op->src, size), size) >> (log2_size(size) + 3)) * (int64_t)size);
}

typedef void apply_fn(struct cpu *cpu, const struct cpu_op *op, void *p);

/* The slow way, for any address: on the host's bytes, or on a copy that is then stored. */
static bool apply_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, apply_fn *fn)
{
    uint64_t regs[CPU_NREGS], dst = cpu->cc_dst, src = cpu->cc_src;
    uint32_t cc = cpu->cc_op;
    const struct cpu_op *was = cpu_at_begin(cpu, op);
    struct cpu_locked l;
    bool ok = true;

    if (!cpu_locked_begin(cpu, op, la, size, &l)) {
        cpu_at_end(cpu, was);
        return false;
    }
    if (l.host) {
        fn(cpu, op, l.host);
    } else {
        memcpy(regs, cpu->regs, sizeof(regs));
        fn(cpu, op, l.old.u8);
        ok = cpu_locked_put(cpu, op, &l, l.old.u8);
    }
    cpu_locked_end(cpu, &l);
    if (!ok) {
        memcpy(cpu->regs, regs, sizeof(regs));
        cpu->cc_dst = dst;
        cpu->cc_src = src;
        cpu->cc_op = cc;
    }
    cpu_at_end(cpu, was);
    return ok;
}

static always_inline void locked_op(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
                                    enum locked k, unsigned size, apply_fn *fn)
{
    struct cpu_word la = mem_ea(cpu, op, path, size, true);
    void *p;

    if (unlikely(!la.ok)) {
        return;
    }
    la.v += bit_offset(cpu, op, k, size);
    if (path == MEM_SLOW) {
        if (apply_slow(cpu, op, la.v, size, fn)) {
            cpu_next(cpu, op);
        }
        return;
    }
    p = cpu_fast_write(cpu, la.v, size);
    if (unlikely(!p)) {
        MEM_BAIL();
    }
    apply(cpu, op, k, size, p);
    cpu_next(cpu, op);
}

#define LOCKED_SIZE(k, size)                                                                       \
    CPU_COLD static void k##_apply_##size(struct cpu *cpu, const struct cpu_op *op, void *p)       \
    {                                                                                              \
        apply(cpu, op, k, size, p);                                                                \
    }                                                                                              \
    MEM_OP(k##_##size, locked_op, k, size, k##_apply_##size)
#define LOCKED_KIND(k)                                                                             \
    LOCKED_SIZE(k, 1)                                                                              \
    LOCKED_SIZE(k, 2)                                                                              \
    LOCKED_SIZE(k, 4)                                                                              \
    LOCKED_SIZE(k, 8)

LOCKED_KIND(L_ADD)
LOCKED_KIND(L_OR)
LOCKED_KIND(L_ADC)
LOCKED_KIND(L_SBB)
LOCKED_KIND(L_AND)
LOCKED_KIND(L_SUB)
LOCKED_KIND(L_XOR)
LOCKED_KIND(L_INC)
LOCKED_KIND(L_DEC)
LOCKED_KIND(L_NEG)
LOCKED_KIND(L_NOT)
LOCKED_KIND(L_BTS)
LOCKED_KIND(L_BTR)
LOCKED_KIND(L_BTC)
LOCKED_KIND(L_XADD)
LOCKED_KIND(L_XCHG)
LOCKED_KIND(L_CMPXCHG)

#define LOCKED_ROW(k) [k] = {MEM_FNS(k##_1), MEM_FNS(k##_2), MEM_FNS(k##_4), MEM_FNS(k##_8)}
static const struct mem_fns locked_table[L_KINDS][4] = {
    LOCKED_ROW(L_ADD), LOCKED_ROW(L_OR),  LOCKED_ROW(L_ADC),  LOCKED_ROW(L_SBB),  LOCKED_ROW(L_AND),
    LOCKED_ROW(L_SUB), LOCKED_ROW(L_XOR), LOCKED_ROW(L_INC),  LOCKED_ROW(L_DEC),  LOCKED_ROW(L_NEG),
    LOCKED_ROW(L_NOT), LOCKED_ROW(L_BTS), LOCKED_ROW(L_BTR),  LOCKED_ROW(L_BTC),  LOCKED_ROW(L_XADD),
    LOCKED_ROW(L_XCHG), LOCKED_ROW(L_CMPXCHG),
};

static int kind_of(ZydisMnemonic m)
{
    static const struct {
        ZydisMnemonic mnemonic;
        enum locked kind;
    } map[] = {
        {ZYDIS_MNEMONIC_ADD, L_ADD}, {ZYDIS_MNEMONIC_OR, L_OR},     {ZYDIS_MNEMONIC_ADC, L_ADC},
        {ZYDIS_MNEMONIC_SBB, L_SBB}, {ZYDIS_MNEMONIC_AND, L_AND},   {ZYDIS_MNEMONIC_SUB, L_SUB},
        {ZYDIS_MNEMONIC_XOR, L_XOR}, {ZYDIS_MNEMONIC_INC, L_INC},   {ZYDIS_MNEMONIC_DEC, L_DEC},
        {ZYDIS_MNEMONIC_NEG, L_NEG}, {ZYDIS_MNEMONIC_NOT, L_NOT},   {ZYDIS_MNEMONIC_BTS, L_BTS},
        {ZYDIS_MNEMONIC_BTR, L_BTR}, {ZYDIS_MNEMONIC_BTC, L_BTC},   {ZYDIS_MNEMONIC_XADD, L_XADD},
        {ZYDIS_MNEMONIC_XCHG, L_XCHG}, {ZYDIS_MNEMONIC_CMPXCHG, L_CMPXCHG},
    };

    for (unsigned i = 0; i < ARRAY_LEN(map); i++) {
        if (map[i].mnemonic == m) {
            return (int)map[i].kind;
        }
    }
    return -1;
}

int cpu_emit_locked(struct cpu_emit *e)
{
    unsigned mem = is_mem(&e->opnd[0]) ? 0 : 1;
    const ZydisDecodedOperand *s = &e->opnd[1 - mem];
    int k = kind_of(e->in.mnemonic), size = emit_size(e);
    struct cpu_op *op;

    if (k < 0 || size < 0) {
        return -ENOSYS;
    }
    e->cc_new = CPU_CC_UNKNOWN;
    op = cpu_emit_mem_op(e, &locked_table[k][size], &e->opnd[mem]);
    if (!op) {
        return -ENOSPC;
    }
    op->flags |= CPU_OPF_LOCK;
    if (e->in.operand_count_visible < 2) {
        return 0;
    }
    if (is_imm(s)) {
        op->imm = s->imm.value.u;
        op->aux = 1;
    } else {
        op->src = emit_reg_any(s);
    }
    return 0;
}

/* Register forms of XADD and CMPXCHG. */
#define REG_FORMS(size)                                                                            \
    static void xadd_r_##size(struct cpu *cpu, const struct cpu_op *op)                            \
    {                                                                                              \
        uint64_t a = reg_get(cpu, op->dst, size), b = reg_get(cpu, op->src, size);                 \
                                                                                                   \
        reg_set(cpu, op->src, size, a);                                                            \
        reg_set(cpu, op->dst, size, a + b);                                                        \
        cc_set(cpu, CPU_CC_ADD, size, trunc_to(a + b, size), b);                                   \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    static void cmpxchg_r_##size(struct cpu *cpu, const struct cpu_op *op)                         \
    {                                                                                              \
        uint64_t acc = reg_get(cpu, CPU_RAX, size), old = reg_get(cpu, op->dst, size);             \
                                                                                                   \
        cc_set(cpu, CPU_CC_SUB, size, trunc_to(acc - old, size), old);                             \
        if (acc == old) {                                                                          \
            reg_set(cpu, op->dst, size, reg_get(cpu, op->src, size));                              \
        } else {                                                                                   \
            reg_set(cpu, CPU_RAX, size, old);                                                      \
        }                                                                                          \
        cpu_next(cpu, op);                                                                         \
    }
REG_FORMS(1)
REG_FORMS(2)
REG_FORMS(4)
REG_FORMS(8)

static int emit_reg_form(struct cpu_emit *e, cpu_op_fn *const *fns)
{
    int size = emit_size(e);
    struct cpu_op *op;

    if (is_mem(&e->opnd[0])) {
        return cpu_emit_locked(e);
    }
    if (size < 0) {
        return -ENOSYS;
    }
    op = cpu_emit_op(e, fns[size]);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = emit_reg_any(&e->opnd[0]);
    op->src = emit_reg_any(&e->opnd[1]);
    return 0;
}

int cpu_emit_xadd(struct cpu_emit *e)
{
    static cpu_op_fn *const fns[4] = {xadd_r_1, xadd_r_2, xadd_r_4, xadd_r_8};

    return emit_reg_form(e, fns);
}

int cpu_emit_cmpxchg(struct cpu_emit *e)
{
    static cpu_op_fn *const fns[4] = {cmpxchg_r_1, cmpxchg_r_2, cmpxchg_r_4, cmpxchg_r_8};

    return emit_reg_form(e, fns);
}

static void set_zf(struct cpu *cpu, bool zf)
{
    cpu_set_arith_flags(cpu, (cpu_arith_flags(cpu) & ~X86_ZF) | (zf ? X86_ZF : 0));
}

static void cmpxchg8b_apply(struct cpu *cpu, const struct cpu_op *op, void *p)
{
    uint64_t old = (uint64_t)(uint32_t)cpu->regs[CPU_RDX] << 32 | (uint32_t)cpu->regs[CPU_RAX];
    uint64_t new = (uint64_t)(uint32_t)cpu->regs[CPU_RCX] << 32 | (uint32_t)cpu->regs[CPU_RBX];
    bool same = exchange(p, 8, &old, new);

    (void)op;
    if (!same) {
        cpu->regs[CPU_RAX] = (uint32_t)old;
        cpu->regs[CPU_RDX] = old >> 32;
    }
    set_zf(cpu, same);
}

/* The host's own instruction: the guest's bytes may be shared with a device's thread that uses it too. */
static void cmpxchg16b_apply(struct cpu *cpu, const struct cpu_op *op, void *p)
{
    bool same;

    (void)op;
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(same), "+m"(*(unsigned __int128 *)p), "+a"(cpu->regs[CPU_RAX]), "+d"(cpu->regs[CPU_RDX])
                     : "b"(cpu->regs[CPU_RBX]), "c"(cpu->regs[CPU_RCX])
                     : "memory");
    set_zf(cpu, same);
}

static void cmpxchg8b(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la = cpu_ea_word(cpu, op, 8, true);

    if (la.ok && apply_slow(cpu, op, la.v, 8, cmpxchg8b_apply)) {
        cpu_next(cpu, op);
    }
}

static void cmpxchg16b(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la = cpu_ea_word(cpu, op, 16, true);

    if (la.ok && (la.v & 15)) {
        (void)cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    if (la.ok && apply_slow(cpu, op, la.v, 16, cmpxchg16b_apply)) {
        cpu_next(cpu, op);
    }
}

static int emit_wide(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[0]);
    return 0;
}

int cpu_emit_cmpxchg8b(struct cpu_emit *e)
{
    return emit_wide(e, cmpxchg8b);
}

int cpu_emit_cmpxchg16b(struct cpu_emit *e)
{
    return emit_wide(e, cmpxchg16b);
}
