/*
 * Near control transfers: JMP, Jcc, CALL, RET, LOOP*, JCXZ. In 64-bit mode they go from block to block by
 * chain.h; legacy modes compute the target, check CS's limit and take the jump cache.
 *
 * A Jcc does not end a block: not taken, the block goes on. CMP and TEST with registers or an immediate and a
 * Jcc behind become one operation.
 *
 * Far forms are the system family's.
 */
#include <errno.h>

#include "cpu/chain.h"
#include "cpu/cond.h"
#include "cpu/seg.h"
#include "cpu/system.h"

/* Target of a relative branch, as an offset from the code page's first byte. */
static bool target_offset(const struct cpu_emit *e, const ZydisDecodedInstruction *in, unsigned pgoff,
                          const ZydisDecodedOperand *rel, int32_t *out)
{
    int64_t off = (int64_t)pgoff + in->length + rel->imm.value.s;

    (void)e;
    *out = (int32_t)off;
    return off == *out;
}

static bool in_page(int32_t off)
{
    return off >= 0 && off < (int32_t)PAGE_SIZE;
}

static uint64_t legacy_trunc(const struct cpu_op *op, uint64_t rip)
{
    return op->aux == 2 ? (uint16_t)rip : (uint32_t)rip;
}

static uint64_t target_rip(const struct cpu *cpu, const struct cpu_op *op)
{
    return cpu->regs[CPU_IP_PAGE] + (uint64_t)(int64_t)op->disp;
}

static void jmp_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = legacy_trunc(op, target_rip(cpu, op));

    if (cpu_jump_allowed(cpu, op, rip)) {
        cpu_jump_legacy(cpu, op, rip);
    }
}

static void jmp_indirect(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_jump_to(cpu, op, cpu->regs[op->src]);
}

static void jmp_indirect_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = legacy_trunc(op, cpu->regs[op->src]);

    if (cpu_jump_allowed(cpu, op, rip)) {
        cpu_jump_legacy(cpu, op, rip);
    }
}

static always_inline void jmp_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
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
    if (path != MEM_SLOW) {
        cpu_jump_to(cpu, op, w.v);
    } else if (cpu_jump_allowed(cpu, op, w.v)) {
        if (size == 8) {
            cpu_jump_to(cpu, op, w.v);
        } else {
            cpu_jump_legacy(cpu, op, w.v);
        }
    }
}

MEM_OP(jmp_mem_2, jmp_mem, 2)
MEM_OP(jmp_mem_4, jmp_mem, 4)
MEM_OP(jmp_mem_8, jmp_mem, 8)

/* CALL: the return address is stored first, RSP moves only when that has worked. */
static always_inline bool push_return(struct cpu *cpu, const struct cpu_op *op, enum mem_path path)
{
    uint64_t sp = cpu->regs[CPU_RSP] - 8;

    if (path == MEM_SLOW && !cpu_stack_allowed(cpu, op, sp, 8)) {
        return false;
    }
    if (unlikely(!mem_store(cpu, op, path, sp, 8, cpu->regs[CPU_IP_PAGE] + op->pgoff + op->len))) {
        return false;
    }
    cpu->regs[CPU_RSP] = sp;
    return true;
}

#define CALL_OP(name, jump)                                                                        \
    CPU_COLD static void name##_s(struct cpu *cpu, const struct cpu_op *op)                        \
    {                                                                                              \
        if (push_return(cpu, op, MEM_SLOW)) {                                                      \
            jump;                                                                                  \
        }                                                                                          \
    }                                                                                              \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        if (unlikely(!push_return(cpu, op, MEM_BASE))) {                                           \
            name##_s(cpu, op);                                                                     \
            return;                                                                                \
        }                                                                                          \
        jump;                                                                                      \
    }

CALL_OP(call_page, cpu_jump_page(cpu, op))
CALL_OP(call_far_page, cpu_jump_far(cpu, op))

/* The target is read before RSP moves: CALL RSP goes where RSP pointed. */
static void call_indirect_s(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[op->src];

    if (cpu_jump_allowed(cpu, op, rip) && push_return(cpu, op, MEM_SLOW)) {
        cpu_jump_to(cpu, op, rip);
    }
}

static void call_indirect(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[op->src];

    if (unlikely(!push_return(cpu, op, MEM_BASE))) {
        call_indirect_s(cpu, op);
        return;
    }
    cpu_jump_to(cpu, op, rip);
}

static always_inline void call_mem(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, cpu_op_fn *slow,
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
    if (path == MEM_SLOW && !cpu_jump_allowed(cpu, op, w.v)) {
        return;
    }
    if (unlikely(!push_return(cpu, op, path))) {
        MEM_BAIL();
    }
    cpu_jump_to(cpu, op, w.v);
}

MEM_OP(call_mem_8, call_mem, 8)

/* CALL of legacy modes, any target: op->src holds it in a register (TMP0 after a load), or disp does. */
static bool stack_push_legacy(struct cpu *cpu, const struct cpu_op *op, unsigned size, uint64_t v)
{
    bool wide = (cpu->mode & CPU_MODE_SS32) != 0;
    uint64_t sp = cpu->regs[CPU_RSP] - size, la;

    sp = wide ? (uint32_t)sp : (uint16_t)sp;
    if (!cpu_seg_linear(cpu, op, CPU_SS, sp, size, true, &la)) {
        return false;
    }
    if (size == 2 ? !cpu_store16(cpu, op, la, (uint16_t)v) : !cpu_store32(cpu, op, la, (uint32_t)v)) {
        return false;
    }
    reg_set(cpu, CPU_RSP, wide ? 4 : 2, sp);
    return true;
}

static void call_legacy_to(struct cpu *cpu, const struct cpu_op *op, uint64_t rip)
{
    uint64_t ret = legacy_trunc(op, cpu->regs[CPU_IP_PAGE] + op->pgoff + op->len);

    if (cpu_jump_allowed(cpu, op, rip) && stack_push_legacy(cpu, op, op->aux, ret)) {
        cpu_jump_legacy(cpu, op, rip);
    }
}

static void call_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    call_legacy_to(cpu, op, legacy_trunc(op, target_rip(cpu, op)));
}

static void call_indirect_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    call_legacy_to(cpu, op, legacy_trunc(op, cpu->regs[op->src]));
}

static void call_mem_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la = cpu_ea_word(cpu, op, op->aux, false), w;

    if (!la.ok) {
        return;
    }
    w = cpu_load_slow(cpu, op, la.v, op->aux);
    if (w.ok) {
        call_legacy_to(cpu, op, w.v);
    }
}

/* RET, 64-bit mode. What the jump cache does not know takes the slow way, which checks the target first. */
CPU_COLD static void ret_s(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t sp = cpu->regs[CPU_RSP];
    struct cpu_word w = mem_load(cpu, op, MEM_SLOW, sp, 8);

    if (w.ok && cpu_jump_allowed(cpu, op, w.v)) {
        cpu->regs[CPU_RSP] = sp + 8 + op->imm;
        cpu_jump_to(cpu, op, w.v);
    }
}

static void ret(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t sp = cpu->regs[CPU_RSP];
    struct cpu_word w = mem_load(cpu, op, MEM_BASE, sp, 8);
    struct cpu_block *b = cpu->jump_cache[cpu_jump_hash(w.v)];

    if (unlikely(!w.ok || !cpu_block_matches(cpu, b, w.v))) {
        ret_s(cpu, op);
        return;
    }
    cpu->regs[CPU_RSP] = sp + 8 + op->imm;
    cpu->icount += op->nth;
    cpu->regs[CPU_IP_PAGE] = w.v & PAGE_MASK;
    cpu_goto(cpu, b->ops);
}

static void ret_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    bool wide = (cpu->mode & CPU_MODE_SS32) != 0;
    uint64_t sp = reg_get(cpu, CPU_RSP, wide ? 4 : 2), la, rip;
    struct cpu_word w;

    if (!cpu_seg_linear(cpu, op, CPU_SS, sp, op->aux, false, &la)) {
        return;
    }
    w = cpu_load_slow(cpu, op, la, op->aux);
    rip = legacy_trunc(op, w.v);
    if (!w.ok || !cpu_jump_allowed(cpu, op, rip)) {
        return;
    }
    reg_set(cpu, CPU_RSP, wide ? 4 : 2, sp + op->aux + op->imm);
    cpu_jump_legacy(cpu, op, rip);
}

/* Jcc by what is known of the flags; in the page, and elsewhere. */
#define JCC(name, kind, size, cc)                                                                  \
    static void jcc_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)               \
    {                                                                                              \
        if (cond_eval(cpu, COND_##kind, size, cc)) {                                               \
            cpu_jump_page(cpu, op);                                                                \
            return;                                                                                \
        }                                                                                          \
        cpu_next(cpu, op);                                                                         \
    }                                                                                              \
    static void jccf_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)              \
    {                                                                                              \
        if (cond_eval(cpu, COND_##kind, size, cc)) {                                               \
            cpu_jump_far(cpu, op);                                                                 \
            return;                                                                                \
        }                                                                                          \
        cpu_next(cpu, op);                                                                         \
    }

COND_ALL(JCC, jcc)

static cpu_op_fn *const jcc_table[COND_CLASSES][16] = COND_TABLE(jcc);
static cpu_op_fn *const jccf_table[COND_CLASSES][16] = COND_TABLE(jccf);

static void jcc_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_condition(cpu, op->src)) {
        jmp_legacy(cpu, op);
        return;
    }
    cpu_next(cpu, op);
}

/* Compare and branch in one, within the page. */
#define FUSED(name, kind, size, cc)                                                                \
    static void name##_rr_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)         \
    {                                                                                              \
        fused(cpu, op, COND_##kind, size, cc, reg_get(cpu, op->src, size));                        \
    }                                                                                              \
    static void name##_ri_##kind##_##size##_##cc(struct cpu *cpu, const struct cpu_op *op)         \
    {                                                                                              \
        fused(cpu, op, COND_##kind, size, cc, trunc_to((uint64_t)(int64_t)(int32_t)fused_imm(op), size)); \
    }

/* The immediate's 32 bits live in base, index, shift and seg, which a register form has no use for. */
static always_inline uint32_t fused_imm(const struct cpu_op *op)
{
    uint32_t v;

    memcpy(&v, &op->base, sizeof(v));
    return v;
}

static always_inline void fused(struct cpu *cpu, const struct cpu_op *op, enum cond_kind kind, unsigned size,
                                unsigned cc, uint64_t b)
{
    uint64_t a = reg_get(cpu, op->dst, size), r = trunc_to(kind == COND_SUB ? a - b : a & b, size);

    cpu->cc_dst = r;
    if (kind == COND_SUB) {
        cpu->cc_src = b;
        cpu->cc_op = CPU_CC_SUB | log2_size(size);
    } else {
        cpu->cc_op = CPU_CC_LOGIC | log2_size(size);
    }
    if (kind == COND_SUB ? cond_sub(cc, size, a, b) : cond_logic(cc, size, r)) {
        cpu_jump_page(cpu, op);
        return;
    }
    cpu_next(cpu, op);
}

COND_EACH(FUSED, fuse, SUB, 1)
COND_EACH(FUSED, fuse, SUB, 2)
COND_EACH(FUSED, fuse, SUB, 4)
COND_EACH(FUSED, fuse, SUB, 8)
COND_EACH(FUSED, fuse, LOGIC, 1)
COND_EACH(FUSED, fuse, LOGIC, 2)
COND_EACH(FUSED, fuse, LOGIC, 4)
COND_EACH(FUSED, fuse, LOGIC, 8)

#define FUSED_TABLE(form)                                                                          \
    {                                                                                              \
        COND_ROW(fuse_##form, SUB, 1), COND_ROW(fuse_##form, SUB, 2), COND_ROW(fuse_##form, SUB, 4), \
            COND_ROW(fuse_##form, SUB, 8), COND_ROW(fuse_##form, LOGIC, 1),                        \
            COND_ROW(fuse_##form, LOGIC, 2), COND_ROW(fuse_##form, LOGIC, 4),                      \
            COND_ROW(fuse_##form, LOGIC, 8)                                                        \
    }
static cpu_op_fn *const fused_rr_table[8][16] = FUSED_TABLE(rr);
static cpu_op_fn *const fused_ri_table[8][16] = FUSED_TABLE(ri);

static const uint64_t *unlinked(void)
{
    return (const uint64_t *)(const void *)&cpu_block_dead;
}

/* See emit.h. Only 64-bit mode, target in the page. */
bool cpu_emit_fused(struct cpu_emit *e, bool is_test)
{
    const ZydisDecodedOperand *d = &e->opnd[0], *s = &e->opnd[1];
    int size = emit_size(e);
    struct cpu_op *op;
    uint32_t imm;
    int32_t off;

    if (!(e->mode & CPU_MODE_64) || !e->next_opnd || !is_reg(d) || is_mem(s) || size < 0 ||
        e->next->raw.imm[0].is_relative == 0 || (e->next->opcode & 0xf0) == 0xe0) {
        return false;
    }
    if (!target_offset(e, e->next, e->pgoff + e->in.length, &e->next_opnd[0], &off) || !in_page(off) ||
        (is_imm(s) && s->imm.value.s != (int32_t)s->imm.value.s && size == 3)) {
        return false;
    }
    op = cpu_emit_op(e, (is_reg(s) ? fused_rr_table : fused_ri_table)[(is_test ? 4 : 0) + size][cond_of(e->next)]);
    if (!op) {
        return false;
    }
    op->dst = emit_reg_any(d);
    if (is_reg(s)) {
        op->src = emit_reg_any(s);
    } else {
        imm = (uint32_t)s->imm.value.u;
        memcpy(&op->base, &imm, sizeof(imm));
    }
    op->disp = off;
    op->nth = (uint8_t)(e->nth + 1);
    op->imm = (uint64_t)(uintptr_t)unlinked();
    e->fused = true;
    e->cc_new = (uint8_t)((is_test ? CPU_CC_LOGIC : CPU_CC_SUB) | (unsigned)size);
    return true;
}

static unsigned legacy_size(const struct cpu_emit *e)
{
    return e->in.operand_width == 16 ? 2 : 4;
}

/* A direct transfer: `page` and `far` for 64-bit mode, `legacy` elsewhere. */
static int emit_direct(struct cpu_emit *e, cpu_op_fn *page, cpu_op_fn *far, cpu_op_fn *legacy)
{
    bool is_long = (e->mode & CPU_MODE_64) != 0;
    struct cpu_op *op;
    int32_t off;

    if (!target_offset(e, &e->in, e->pgoff, &e->opnd[0], &off)) {
        return -ENOSYS;
    }
    op = cpu_emit_op(e, !is_long ? legacy : in_page(off) ? page : far);
    if (!op) {
        return -ENOSPC;
    }
    op->disp = off;
    op->imm = (uint64_t)(uintptr_t)unlinked();
    op->aux = (uint8_t)legacy_size(e);
    return 0;
}

static void ends(struct cpu_emit *e)
{
    e->ends_block = true;
    e->terminated = true;
}

int cpu_emit_jcc(struct cpu_emit *e)
{
    unsigned cc = cond_of(&e->in), class = cond_class(e->cc_hint, cc);
    int err = emit_direct(e, jcc_table[class][cc], jccf_table[class][cc], jcc_legacy);

    if (!err) {
        e->ops[e->nops - 1].src = (uint8_t)cc;
    }
    return err;
}

static int emit_indirect(struct cpu_emit *e, cpu_op_fn *reg, cpu_op_fn *reg_legacy, const struct mem_fns *mem)
{
    const ZydisDecodedOperand *t = &e->opnd[0];
    struct cpu_op *op;

    op = is_mem(t) ? cpu_emit_mem_op(e, mem, t) : cpu_emit_op(e, e->mode & CPU_MODE_64 ? reg : reg_legacy);
    if (!op) {
        return -ENOSPC;
    }
    if (is_reg(t)) {
        op->src = cpu_emit_reg(t->reg.value);
    }
    op->aux = (uint8_t)legacy_size(e);
    ends(e);
    return 0;
}

int cpu_emit_jmp(struct cpu_emit *e)
{
    static const struct mem_fns mem[3] = {MEM_FNS(jmp_mem_2), MEM_FNS(jmp_mem_4), MEM_FNS(jmp_mem_8)};
    unsigned i = e->mode & CPU_MODE_64 ? 2 : legacy_size(e) == 4;

    if (e->in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        return cpu_emit_jmp_far(e);
    }
    if (!is_imm(&e->opnd[0])) {
        return emit_indirect(e, jmp_indirect, jmp_indirect_legacy, &mem[i]);
    }
    ends(e);
    return emit_direct(e, cpu_op_chain_page, cpu_op_chain_far, jmp_legacy);
}

int cpu_emit_call(struct cpu_emit *e)
{
    static const struct mem_fns mem = MEM_FNS(call_mem_8);
    static const struct mem_fns mem_legacy = {call_mem_legacy, call_mem_legacy, call_mem_legacy};

    if (e->in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        return cpu_emit_call_far(e);
    }
    if (!is_imm(&e->opnd[0])) {
        return emit_indirect(e, call_indirect, call_indirect_legacy, e->mode & CPU_MODE_64 ? &mem : &mem_legacy);
    }
    ends(e);
    return emit_direct(e, call_page, call_far_page, call_legacy);
}

int cpu_emit_ret(struct cpu_emit *e)
{
    struct cpu_op *op;

    if (e->in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) {
        return cpu_emit_ret_far(e);
    }
    op = cpu_emit_op(e, e->mode & CPU_MODE_64 ? ret : ret_legacy);
    if (!op) {
        return -ENOSPC;
    }
    if (is_imm(&e->opnd[0])) {
        op->imm = e->opnd[0].imm.value.u & 0xffff;
    }
    op->aux = (uint8_t)legacy_size(e);
    op->flags |= CPU_OPF_STACK_SS;
    ends(e);
    return 0;
}

/* LOOP, LOOPE, LOOPNE, JCXZ: src: kind; base: bytes of the counter. */
enum loop_kind { LOOP, LOOPE, LOOPNE, JCXZ };

static void loop_op(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t count = reg_get(cpu, CPU_RCX, op->base);
    bool taken = count == 0;

    if (op->src != JCXZ) {
        count = trunc_to(count - 1, op->base);
        taken = count != 0;
        if (op->src != LOOP) {
            taken = taken && cpu_condition(cpu, op->src == LOOPE ? 4 : 5);
        }
        if (taken && !(cpu->mode & CPU_MODE_64) &&
            !cpu_jump_allowed(cpu, op, legacy_trunc(op, target_rip(cpu, op)))) {
            return;
        }
        reg_set(cpu, CPU_RCX, op->base, count);
    }
    if (!taken) {
        cpu_next(cpu, op);
    } else if (cpu->mode & CPU_MODE_64) {
        cpu_jump_far(cpu, op);
    } else {
        jmp_legacy(cpu, op);
    }
}

static int emit_loop(struct cpu_emit *e, enum loop_kind kind)
{
    int err = emit_direct(e, loop_op, loop_op, loop_op);
    struct cpu_op *op = &e->ops[e->nops - 1];

    if (!err) {
        op->src = (uint8_t)kind;
        op->base = (uint8_t)(e->in.address_width / 8);
    }
    return err;
}

int cpu_emit_loop(struct cpu_emit *e)
{
    return emit_loop(e, LOOP);
}

int cpu_emit_loope(struct cpu_emit *e)
{
    return emit_loop(e, LOOPE);
}

int cpu_emit_loopne(struct cpu_emit *e)
{
    return emit_loop(e, LOOPNE);
}

int cpu_emit_jcxz(struct cpu_emit *e)
{
    return emit_loop(e, JCXZ);
}
