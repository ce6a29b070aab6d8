/*
 * Far JMP and CALL: to a segment, through a call gate, to a task. All modes.
 *
 * Flow: the operation gets its target from the instruction or memory; real and virtual-8086 mode just go
 * there; protected modes look at the descriptor. Returns are in far_ret.c, task switches in task.c.
 * Invariant: every check and access comes before the first register changes.
 * Source: Intel, "JMP", "CALL" (far forms). Locks: none.
 */
#include "cpu/far.h"

#include <errno.h>

#include "cpu/flags.h"
#include "cpu/system.h"

/* RIP in the segment to come: canonical in 64-bit code, else within the limit. #GP(0). */
bool cpu_far_check_rip(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *cs, uint64_t rip)
{
    bool ok = cpu_is_long(cpu) && cpu_desc_is_long(cs) ? cpu_is_canonical(cpu, rip)
                                                       : rip <= cpu_desc_limit(cs);

    return ok ? true : cpu_raise_code(cpu, op, X86_GP, 0);
}

/* Real and virtual-8086 mode: cut the offset to its size and hold it against the limit. */
bool cpu_far_check_real(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to)
{
    if (to->size == 2) {
        to->rip &= 0xffff;
    }
    if (to->rip > (cpu->mode & CPU_MODE_V86 ? 0xffff : cpu->seg[CPU_CS].limit)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    return true;
}

/* Load CS:RIP in real or virtual-8086 mode; `to` has been through cpu_far_check_real(). */
void cpu_far_enter_real(struct cpu *cpu, const struct cpu_far *to)
{
    if (cpu->mode & CPU_MODE_V86) {
        cpu_seg_set_v86(&cpu->seg[CPU_CS], to->sel);
    } else {
        cpu_seg_set_real(&cpu->seg[CPU_CS], to->sel);
    }
    cpu->rip = to->rip;
}

/* Present, and in long mode not both L and D: what every code segment must be. */
bool cpu_far_check_code(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *cs)
{
    if (cpu_is_long(cpu) && (cs->hi & 0x600000) == 0x600000) {
        return cpu_raise_code(cpu, op, X86_GP, cs->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(cs)) {
        return cpu_raise_code(cpu, op, X86_NP, cs->sel & 0xfffcu);
    }
    return true;
}

/* CS becomes cs at privilege cpl, RIP becomes rip. The caller has SS in place, and derives the mode. */
void cpu_far_enter(struct cpu *cpu, const struct cpu_desc *cs, unsigned cpl, uint64_t rip)
{
    cpu_desc_to_seg(cs, &cpu->seg[CPU_CS]);
    cpu->seg[CPU_CS].sel = (uint16_t)((cs->sel & ~3u) | cpl);
    cpu->rip = rip;
}

/* A direct transfer keeps CPL. */
static bool check_direct(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *cs)
{
    unsigned dpl = cpu_desc_dpl(cs);
    bool ok = cpu_desc_is_conforming(cs) ? dpl <= cpu->cpl : dpl == cpu->cpl && (cs->sel & 3u) <= cpu->cpl;

    if (!cpu_desc_is_code(cs) || !ok) {
        return cpu_raise_code(cpu, op, X86_GP, cs->sel & 0xfffcu);
    }
    return cpu_far_check_code(cpu, op, cs);
}

/* A gate or TSS may be used by whoever is at least as privileged as its DPL, by CPL and by RPL. */
static bool check_system(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d)
{
    if (cpu_desc_dpl(d) < cpu->cpl || cpu_desc_dpl(d) < (d->sel & 3u)) {
        return cpu_raise_code(cpu, op, X86_GP, d->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(d)) {
        return cpu_raise_code(cpu, op, X86_NP, d->sel & 0xfffcu);
    }
    return true;
}

/*
 * Follow a call gate: check it, and find the code it leads to. to: entry point, and size of a push (2, 4, or 8
 * in long mode). Privilege of the code against CPL is the caller's to judge (JMP and CALL differ).
 */
bool cpu_far_read_gate(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *gate, struct cpu_far *to,
                       struct cpu_desc *cs)
{
    bool is_long = cpu_is_long(cpu);

    if ((is_long && !cpu_desc_read_upper(cpu, op, gate)) || !check_system(cpu, op, gate)) {
        return false;
    }
    to->sel = (uint16_t)(gate->lo >> 16);
    to->rip = (gate->lo & 0xffff) | (gate->hi & 0xffff0000);
    to->size = is_long ? 8 : cpu_desc_type(gate) & 8 ? 4 : 2;
    if (is_long) {
        to->rip |= gate->upper << 32;
    } else if (to->size == 2) {
        to->rip &= 0xffff;
    }
    if (cpu_sel_is_null(to->sel)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!cpu_desc_read(cpu, op, to->sel, X86_GP, cs)) {
        return false;
    }
    if (!cpu_desc_is_code(cs) || cpu_desc_dpl(cs) > cpu->cpl ||
        (is_long && (cs->hi & 0x600000) != 0x200000)) {
        return cpu_raise_code(cpu, op, X86_GP, to->sel & 0xfffcu);
    }
    return cpu_far_check_code(cpu, op, cs);
}

/* JMP or CALL to a TSS or a task gate. */
bool cpu_far_task(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d, bool call)
{
    uint16_t sel = d->sel;

    if (!check_system(cpu, op, d)) {
        return false;
    }
    if (cpu_desc_stype(d) == CPU_SYS_TASK_GATE) {
        sel = (uint16_t)(d->lo >> 16);
    }
    if (!cpu_task_switch(cpu, op, sel, call ? CPU_TASK_CALL : CPU_TASK_JMP, cpu_op_next_rip(cpu, op))) {
        return false;
    }
    cpu_retire(cpu, op);
    return true;
}

static bool is_call_gate(const struct cpu *cpu, const struct cpu_desc *d)
{
    unsigned type = cpu_desc_stype(d);

    return type == CPU_SYS_CALL32 || (type == CPU_SYS_CALL16 && !cpu_is_long(cpu));
}

static bool is_task(const struct cpu *cpu, const struct cpu_desc *d)
{
    unsigned type = cpu_desc_stype(d);

    return !cpu_is_long(cpu) &&
           (type == CPU_SYS_TSS16 || type == CPU_SYS_TSS32 || type == CPU_SYS_TASK_GATE);
}

/* ---- JMP ---- */

static bool jump_gate(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *gate)
{
    struct cpu_far to;
    struct cpu_desc cs;

    if (!cpu_far_read_gate(cpu, op, gate, &to, &cs)) {
        return false;
    }
    if (!cpu_desc_is_conforming(&cs) && cpu_desc_dpl(&cs) != cpu->cpl) {
        return cpu_raise_code(cpu, op, X86_GP, to.sel & 0xfffcu);
    }
    if (!cpu_far_check_rip(cpu, op, &cs, to.rip) || !cpu_desc_set_accessed(cpu, op, &cs)) {
        return false;
    }
    cpu_far_enter(cpu, &cs, cpu->cpl, to.rip);
    return true;
}

static bool jump_segment(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *cs, uint64_t rip)
{
    if (!check_direct(cpu, op, cs) || !cpu_far_check_rip(cpu, op, cs, rip) ||
        !cpu_desc_set_accessed(cpu, op, cs)) {
        return false;
    }
    cpu_far_enter(cpu, cs, cpu->cpl, rip);
    return true;
}

static void jump(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to)
{
    struct cpu_desc d;
    bool ok;

    if (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        if (!cpu_far_check_real(cpu, op, to)) {
            return;
        }
        cpu_far_enter_real(cpu, to);
    } else {
        if (!cpu_desc_read(cpu, op, to->sel, X86_GP, &d)) {
            return;
        }
        if (is_task(cpu, &d)) {
            (void)!cpu_far_task(cpu, op, &d, false);
            return;
        }
        ok = is_call_gate(cpu, &d) ? jump_gate(cpu, op, &d) : jump_segment(cpu, op, &d, to->rip);
        if (!ok) {
            return;
        }
    }
    cpu_update_mode(cpu);
    cpu_retire(cpu, op);
}

/* ---- CALL ---- */

/* Return address onto st. */
static bool push_return(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size)
{
    return cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_CS].sel) &&
           cpu_stack_push(cpu, op, st, size, cpu_op_next_rip(cpu, op));
}

/* Read the gate's parameters off the old stack, before the privilege changes. */
static bool read_params(struct cpu *cpu, const struct cpu_op *op, unsigned n, unsigned size, uint64_t *params)
{
    struct cpu_stack old;
    unsigned i;

    cpu_stack_current(cpu, &old);
    for (i = 0; i < n; i++) {
        if (!cpu_stack_pop(cpu, op, &old, size, &params[i])) {
            return false;
        }
    }
    return true;
}

/* To an inner level: SS:RSP, the parameters, CS:RIP. */
static bool push_inner(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *gate, unsigned size,
                       struct cpu_stack *st)
{
    unsigned n = size == 8 ? 0 : gate->hi & 0x1f;
    uint64_t params[31];

    if (!read_params(cpu, op, n, size, params) ||
        !cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_SS].sel) ||
        !cpu_stack_push(cpu, op, st, size, cpu->regs[CPU_RSP])) {
        return false;
    }
    while (n > 0) {
        if (!cpu_stack_push(cpu, op, st, size, params[--n])) {
            return false;
        }
    }
    return push_return(cpu, op, st, size);
}

static bool call_gate(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *gate)
{
    struct cpu_far to;
    struct cpu_desc cs;
    struct cpu_stack st;
    unsigned cpl = cpu->cpl;
    bool ok;

    if (!cpu_far_read_gate(cpu, op, gate, &to, &cs) || !cpu_far_check_rip(cpu, op, &cs, to.rip)) {
        return false;
    }
    if (!cpu_desc_is_conforming(&cs) && cpu_desc_dpl(&cs) < cpl) {
        cpl = st.cpl = (uint8_t)cpu_desc_dpl(&cs);
        ok = (to.size == 8 ? cpu_stack_inner64(cpu, op, 4 + cpl * 8, &st) : cpu_stack_inner(cpu, op, cpl, &st)) &&
             cpu_desc_set_accessed(cpu, op, &cs) && push_inner(cpu, op, gate, to.size, &st);
    } else {
        cpu_stack_current(cpu, &st);
        if (to.size == 8) {
            st.is64 = true;
        }
        ok = cpu_desc_set_accessed(cpu, op, &cs) && push_return(cpu, op, &st, to.size);
    }
    if (!ok) {
        return false;
    }
    cpu_stack_commit(cpu, &st);
    cpu_far_enter(cpu, &cs, cpl, to.rip);
    return true;
}

static bool call_segment(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *cs, const struct cpu_far *to)
{
    struct cpu_stack st;

    cpu_stack_current(cpu, &st);
    if (!check_direct(cpu, op, cs) || !cpu_far_check_rip(cpu, op, cs, to->rip) ||
        !cpu_desc_set_accessed(cpu, op, cs) || !push_return(cpu, op, &st, to->size)) {
        return false;
    }
    cpu_stack_commit(cpu, &st);
    cpu_far_enter(cpu, cs, cpu->cpl, to->rip);
    return true;
}

static bool call_real(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to)
{
    struct cpu_stack st;

    cpu_stack_current(cpu, &st);
    if (!cpu_far_check_real(cpu, op, to) || !push_return(cpu, op, &st, to->size)) {
        return false;
    }
    cpu_stack_commit(cpu, &st);
    cpu_far_enter_real(cpu, to);
    return true;
}

static void call(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to)
{
    struct cpu_desc d;
    bool ok;

    if (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        ok = call_real(cpu, op, to);
    } else {
        if (!cpu_desc_read(cpu, op, to->sel, X86_GP, &d)) {
            return;
        }
        if (is_task(cpu, &d)) {
            (void)!cpu_far_task(cpu, op, &d, true);
            return;
        }
        ok = is_call_gate(cpu, &d) ? call_gate(cpu, op, &d) : call_segment(cpu, op, &d, to);
    }
    if (ok) {
        cpu_update_mode(cpu);
        cpu_retire(cpu, op);
    }
}

/* ---- operations and emitters ---- */

/* Target in the instruction: offset in imm[31:0], selector above, size in aux. */
static void target_imm(const struct cpu_op *op, struct cpu_far *to)
{
    to->rip = (uint32_t)op->imm;
    to->sel = (uint16_t)(op->imm >> 32);
    to->size = op->aux;
}

/* Target in memory: offset of aux bytes, then the selector. */
static bool target_mem(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to)
{
    uint8_t raw[10];
    uint64_t la;

    if (!cpu_ea(cpu, op, op->aux + 2u, false, &la) || !cpu_load_bytes(cpu, op, la, raw, op->aux + 2u)) {
        return false;
    }
    to->rip = 0;
    __builtin_memcpy(&to->rip, raw, op->aux);
    __builtin_memcpy(&to->sel, raw + op->aux, 2);
    to->size = op->aux;
    return true;
}

static void op_jmp_imm(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far to;

    target_imm(op, &to);
    jump(cpu, op, &to);
}

static void op_jmp_mem(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far to;

    if (target_mem(cpu, op, &to)) {
        jump(cpu, op, &to);
    }
}

static void op_call_imm(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far to;

    target_imm(op, &to);
    call(cpu, op, &to);
}

static void op_call_mem(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far to;

    if (target_mem(cpu, op, &to)) {
        call(cpu, op, &to);
    }
}

static int emit_far(struct cpu_emit *e, cpu_op_fn *imm, cpu_op_fn *mem)
{
    const ZydisDecodedOperand *o = &e->opnd[0];
    bool direct = o->type == ZYDIS_OPERAND_TYPE_POINTER;
    struct cpu_op *op = cpu_emit_op(e, direct ? imm : mem);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)(e->in.operand_width / 8);
    if (direct) {
        op->imm = (uint64_t)o->ptr.segment << 32 | o->ptr.offset;
    } else {
        cpu_emit_mem(e, op, o);
    }
    e->ends_block = true;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_jmp_far(struct cpu_emit *e)
{
    return emit_far(e, op_jmp_imm, op_jmp_mem);
}

int cpu_emit_call_far(struct cpu_emit *e)
{
    return emit_far(e, op_call_imm, op_call_mem);
}
