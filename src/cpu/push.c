/*
 * The stack in the current ring: PUSH, POP of registers, memory and immediates, PUSHA, POPA, ENTER, LEAVE.
 * 64-bit mode has fast forms; everything else goes through cpu_seg_linear() on SS.
 *
 * RSP changes last, so a fault leaves no trace.
 */
#include <errno.h>

#include "cpu/insn.h"
#include "cpu/seg.h"
#include "cpu/system.h"

/* Bytes of the stack pointer that count. */
static unsigned sp_size(const struct cpu *cpu)
{
    return cpu->mode & CPU_MODE_64 ? 8 : cpu->mode & CPU_MODE_SS32 ? 4 : 2;
}

static bool stack_at(struct cpu *cpu, const struct cpu_op *op, uint64_t sp, unsigned size, bool write, uint64_t *la)
{
    if ((cpu->mode & CPU_MODE_64) && !cpu_stack_allowed(cpu, op, sp, size)) {
        return false;
    }
    return cpu_seg_linear(cpu, op, CPU_SS, trunc_to(sp, sp_size(cpu)), size, write, la);
}

/* Store below RSP and move it; any mode. */
__attribute__((noinline)) static bool push_any(struct cpu *cpu, const struct cpu_op *op, unsigned size, uint64_t v)
{
    uint64_t sp = cpu->regs[CPU_RSP] - size, la;

    if (!stack_at(cpu, op, sp, size, true, &la) || !mem_store(cpu, op, MEM_SLOW, la, size, v)) {
        return false;
    }
    reg_set(cpu, CPU_RSP, sp_size(cpu), sp);
    return true;
}

__attribute__((noinline)) static struct cpu_word load_at(struct cpu *cpu, const struct cpu_op *op, uint64_t sp, unsigned size)
{
    struct cpu_word w = {0, 0};
    uint64_t la;

    if (!stack_at(cpu, op, sp, size, false, &la)) {
        return w;
    }
    return mem_load(cpu, op, MEM_SLOW, la, size);
}

CPU_COLD static void push_r_s(struct cpu *cpu, const struct cpu_op *op)
{
    if (push_any(cpu, op, op->aux, reg_get(cpu, op->src, 8))) {
        cpu_next(cpu, op);
    }
}

static void push_r(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t sp = cpu->regs[CPU_RSP] - 8;

    if (unlikely(!mem_store(cpu, op, MEM_BASE, sp, 8, cpu->regs[op->src]))) {
        push_r_s(cpu, op);
        return;
    }
    cpu->regs[CPU_RSP] = sp;
    cpu_next(cpu, op);
}

static void push_i(struct cpu *cpu, const struct cpu_op *op)
{
    if (push_any(cpu, op, op->aux, op->imm)) {
        cpu_next(cpu, op);
    }
}

/* The value is read at the address that holds before RSP moves. */
static void push_m(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la = cpu_ea_word(cpu, op, op->aux, false), w;

    if (!la.ok) {
        return;
    }
    w = cpu_load_slow(cpu, op, la.v, op->aux);
    if (w.ok && push_any(cpu, op, op->aux, w.v)) {
        cpu_next(cpu, op);
    }
}

/* Load at RSP; any mode. Not inlined: an operation that gives out the address of a local cannot end in
 * a tail call. */
__attribute__((noinline)) static struct cpu_word pop_any(struct cpu *cpu, const struct cpu_op *op, unsigned size)
{
    return load_at(cpu, op, cpu->regs[CPU_RSP], size);
}

CPU_COLD static void pop_r_s(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word w = pop_any(cpu, op, op->aux);

    if (w.ok) {
        reg_set(cpu, CPU_RSP, sp_size(cpu), cpu->regs[CPU_RSP] + op->aux);
        reg_set(cpu, op->dst, op->aux, w.v);
        cpu_next(cpu, op);
    }
}

static void pop_r(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word w = mem_load(cpu, op, MEM_BASE, cpu->regs[CPU_RSP], 8);

    if (unlikely(!w.ok)) {
        pop_r_s(cpu, op);
        return;
    }
    cpu->regs[CPU_RSP] += 8;
    cpu->regs[op->dst] = w.v;
    cpu_next(cpu, op);
}

/* An address based on RSP uses the value after the pop, so RSP moves first and back on failure. */
static void pop_m(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word w = pop_any(cpu, op, op->aux), la;
    uint64_t old = cpu->regs[CPU_RSP];

    if (!w.ok) {
        return;
    }
    reg_set(cpu, CPU_RSP, sp_size(cpu), old + op->aux);
    la = cpu_ea_word(cpu, op, op->aux, true);
    cpu->regs[CPU_RSP] = old; /* until the store is done: it may fault, by the host's hand too (guard.h) */
    if (!la.ok || !cpu_store_slow(cpu, op, la.v, w.v, op->aux)) {
        return;
    }
    reg_set(cpu, CPU_RSP, sp_size(cpu), old + op->aux);
    cpu_next(cpu, op);
}

/* Bytes pushed: 64-bit mode has no 32-bit pushes. */
static uint8_t push_size(const struct cpu_emit *e)
{
    if (e->in.operand_width == 16) {
        return 2;
    }
    return e->mode & CPU_MODE_64 ? 8 : 4;
}

static bool is_fast(const struct cpu_emit *e, const struct cpu_op *op)
{
    return (e->mode & CPU_MODE_64) && op->aux == 8;
}

static bool is_segment(const ZydisDecodedOperand *o)
{
    return is_reg(o) && ZydisRegisterGetClass(o->reg.value) == ZYDIS_REGCLASS_SEGMENT;
}

int cpu_emit_push(struct cpu_emit *e)
{
    const ZydisDecodedOperand *s = &e->opnd[0];
    struct cpu_op *op;

    if (is_segment(s)) {
        return cpu_emit_push_seg(e);
    }
    op = cpu_emit_op(e, is_mem(s) ? push_m : is_imm(s) ? push_i : push_r_s);
    if (!op) {
        return -ENOSPC;
    }
    op->aux = push_size(e);
    if (is_mem(s)) {
        cpu_emit_mem(e, op, s);
    } else if (is_imm(s)) {
        op->imm = s->imm.value.u;
    } else {
        op->src = cpu_emit_reg(s->reg.value);
        op->fn = is_fast(e, op) ? push_r : push_r_s;
    }
    op->flags |= is_mem(s) ? 0 : CPU_OPF_STACK_SS;
    return 0;
}

int cpu_emit_pop(struct cpu_emit *e)
{
    const ZydisDecodedOperand *d = &e->opnd[0];
    struct cpu_op *op;

    if (is_segment(d)) {
        return cpu_emit_pop_seg(e);
    }
    op = cpu_emit_op(e, is_mem(d) ? pop_m : pop_r_s);
    if (!op) {
        return -ENOSPC;
    }
    op->aux = push_size(e);
    if (is_mem(d)) {
        cpu_emit_mem(e, op, d);
    } else {
        op->dst = cpu_emit_reg(d->reg.value);
        op->fn = is_fast(e, op) ? pop_r : pop_r_s;
        op->flags |= CPU_OPF_STACK_SS;
    }
    return 0;
}

/* PUSHA and POPA: eight registers as one image, in memory order from the new RSP up: DI SI BP SP BX DX CX AX. */
static void pusha(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned size = op->aux;
    uint64_t sp = cpu->regs[CPU_RSP] - 8 * size, la;
    uint8_t image[32];

    for (unsigned i = 0; i < 8; i++) {
        memcpy(image + i * size, &cpu->regs[7 - i], size);
    }
    if (stack_at(cpu, op, sp, 8 * size, true, &la) && cpu_store_bytes(cpu, op, la, image, 8 * size)) {
        reg_set(cpu, CPU_RSP, sp_size(cpu), sp);
        cpu_end_block(cpu, op);
    }
}

/* Registers are loaded one by one as silicon does: those before a fault stay loaded; RSP moves at the end. */
static void popa(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned size = op->aux;
    uint64_t sp = cpu->regs[CPU_RSP];

    for (unsigned i = 0; i < 8; i++) {
        struct cpu_word w = load_at(cpu, op, sp + i * size, size);

        if (!w.ok) {
            return;
        }
        if (7 - i != CPU_RSP) {
            reg_set(cpu, 7 - i, size, w.v);
        }
    }
    reg_set(cpu, CPU_RSP, sp_size(cpu), sp + 8 * size);
    cpu_end_block(cpu, op);
}

static int emit_all(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = e->in.operand_width == 16 ? 2 : 4;
    op->flags |= CPU_OPF_STACK_SS;
    e->ends_block = e->terminated = true;
    return 0;
}

int cpu_emit_pusha(struct cpu_emit *e)
{
    return emit_all(e, pusha);
}

int cpu_emit_popa(struct cpu_emit *e)
{
    return emit_all(e, popa);
}

/* LEAVE: RSP = RBP, pop RBP. */
static void leave(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t bp = cpu->regs[CPU_RBP];
    struct cpu_word w = load_at(cpu, op, bp, op->aux);

    if (w.ok) {
        reg_set(cpu, CPU_RSP, sp_size(cpu), bp + op->aux);
        reg_set(cpu, CPU_RBP, op->aux, w.v);
        cpu_next(cpu, op);
    }
}

static void leave_8(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t bp = cpu->regs[CPU_RBP];
    struct cpu_word w = mem_load(cpu, op, MEM_BASE, bp, 8);

    if (unlikely(!w.ok)) {
        leave(cpu, op);
        return;
    }
    cpu->regs[CPU_RSP] = bp + 8;
    cpu->regs[CPU_RBP] = w.v;
    cpu_next(cpu, op);
}

int cpu_emit_leave(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, leave);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = push_size(e);
    op->flags |= CPU_OPF_STACK_SS;
    if (is_fast(e, op)) {
        op->fn = leave_8;
    }
    return 0;
}

/* One word of ENTER's frame, below sp. */
static bool enter_push(struct cpu *cpu, const struct cpu_op *op, uint64_t *sp, uint64_t v)
{
    uint64_t la;

    *sp -= op->aux;
    return stack_at(cpu, op, *sp, op->aux, true, &la) && mem_store(cpu, op, MEM_SLOW, la, op->aux, v);
}

/* ENTER: imm: bytes of locals; src: nesting level, 0 to 31. */
static void enter(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t sp = cpu->regs[CPU_RSP], bp = cpu->regs[CPU_RBP], frame, la;

    if (!enter_push(cpu, op, &sp, bp)) {
        return;
    }
    frame = sp;
    for (unsigned i = 1; i < op->src; i++) {
        struct cpu_word w = {0, 0};

        bp -= op->aux;
        if (stack_at(cpu, op, bp, op->aux, false, &la)) {
            w = mem_load(cpu, op, MEM_SLOW, la, op->aux);
        }
        if (!w.ok || !enter_push(cpu, op, &sp, w.v)) {
            return;
        }
    }
    if (op->src && !enter_push(cpu, op, &sp, frame)) {
        return;
    }
    sp -= op->imm;
    /* The final stack pointer must be writable. */
    if (!stack_at(cpu, op, sp, op->aux, true, &la) || !cpu_probe_write(cpu, op, la, op->aux)) {
        return;
    }
    reg_set(cpu, CPU_RSP, sp_size(cpu), sp);
    reg_set(cpu, CPU_RBP, op->aux, frame);
    cpu_end_block(cpu, op);
}

int cpu_emit_enter(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, enter);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = push_size(e);
    op->imm = e->opnd[0].imm.value.u & 0xffff;
    op->src = (uint8_t)(e->opnd[1].imm.value.u & 31);
    op->flags |= CPU_OPF_STACK_SS;
    e->ends_block = e->terminated = true;
    return 0;
}
