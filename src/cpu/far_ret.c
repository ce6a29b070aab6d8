/*
 * Far returns: RETF, and the part of IRET that is the same: judging the CS and SS that were popped, and
 * going there. All modes.
 *
 * Invariant: checks in the manuals' order, CS before SS; nothing changes before the last of them.
 * Source: Intel, "RET" (far form), "IRET". Locks: none.
 */
#include <errno.h>

#include "cpu/far.h"
#include "cpu/flags.h"
#include "cpu/system.h"

/* Judge r->cs:r->rip for a return from the current level; finds r->cs_desc, r->outer, r->to_long. */
bool cpu_far_check_return_cs(struct cpu *cpu, const struct cpu_op *op, struct cpu_far_return *r)
{
    uint16_t sel = (uint16_t)r->cs;
    unsigned rpl = sel & 3;
    unsigned dpl;
    struct cpu_desc *cs = &r->cs_desc;

    if (cpu_sel_is_null(sel)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!cpu_desc_read(cpu, op, sel, X86_GP, cs)) {
        return false;
    }
    dpl = cpu_desc_dpl(cs);
    if (!cpu_desc_is_code(cs) || rpl < cpu->cpl || (cpu_desc_is_conforming(cs) ? dpl > rpl : dpl != rpl)) {
        return cpu_raise_code(cpu, op, X86_GP, sel & 0xfffcu);
    }
    r->outer = rpl > cpu->cpl;
    r->to_long = cpu_is_long(cpu) && cpu_desc_is_long(cs);
    return cpu_far_check_code(cpu, op, cs);
}

/* Judge r->ss for the level of r->cs. A null one is good for 64-bit code below level 3. */
bool cpu_far_check_return_ss(struct cpu *cpu, const struct cpu_op *op, struct cpu_far_return *r)
{
    uint16_t sel = (uint16_t)r->ss;
    unsigned rpl = r->cs & 3;

    if (cpu_sel_is_null(sel)) {
        if (!r->to_long || rpl == 3 || (sel & 3u) != rpl) {
            return cpu_raise_code(cpu, op, X86_GP, 0);
        }
        return true;
    }
    return cpu_desc_read(cpu, op, sel, X86_GP, &r->ss_desc) &&
           cpu_seg_check_ss(cpu, op, &r->ss_desc, rpl, X86_GP) &&
           cpu_desc_set_accessed(cpu, op, &r->ss_desc);
}

/*
 * Return: CS:RIP, and SS:RSP if they were popped, else the stack popped from. release: bytes that RETF n
 * lets go on the new stack too. Flags are the caller's, who derives the mode afterwards.
 */
void cpu_far_commit_return(struct cpu *cpu, const struct cpu_far_return *r, const struct cpu_stack *from,
                           unsigned release)
{
    unsigned cpl = r->cs & 3;
    struct cpu_stack st = *from;

    if (r->has_ss) {
        if (cpu_sel_is_null((uint16_t)r->ss)) {
            cpu_seg_set_null(&st.ss, (uint16_t)r->ss);
            st.ss.dpl = (uint8_t)cpl;
        } else {
            cpu_desc_to_seg(&r->ss_desc, &st.ss);
        }
        st.is64 = r->to_long;
        st.sp = r->rsp;
        cpu_stack_add(&st, release);
    } else {
        st.is64 = r->to_long;
    }
    if (!st.is64 && !st.ss.db) {
        /* A 16-bit stack keeps the upper part of ESP. */
        st.sp = (cpu->regs[CPU_RSP] & 0xffff0000) | (st.sp & 0xffff);
    }
    cpu_stack_commit(cpu, &st);
    cpu_far_enter(cpu, &r->cs_desc, cpl, r->rip);
    if (r->outer) {
        cpu_seg_drop_outer(cpu, cpl);
    }
}

static void ret_real(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;
    struct cpu_far to = {.size = op->aux};
    uint64_t sel;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, op->aux, &to.rip) || !cpu_stack_pop(cpu, op, &st, op->aux, &sel)) {
        return;
    }
    to.sel = (uint16_t)sel;
    if (!cpu_far_check_real(cpu, op, &to)) {
        return;
    }
    cpu_stack_add(&st, (int64_t)op->imm);
    cpu_stack_commit(cpu, &st);
    cpu_far_enter_real(cpu, &to);
    cpu_update_mode(cpu);
    cpu_retire(cpu, op);
}

static bool ret_protected(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far_return r = {0};
    struct cpu_stack st;
    unsigned size = op->aux;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, size, &r.rip) || !cpu_stack_pop(cpu, op, &st, size, &r.cs) ||
        !cpu_far_check_return_cs(cpu, op, &r)) {
        return false;
    }
    cpu_stack_add(&st, (int64_t)op->imm);
    r.has_ss = r.outer;
    if (r.outer && (!cpu_stack_pop(cpu, op, &st, size, &r.rsp) || !cpu_stack_pop(cpu, op, &st, size, &r.ss) ||
                    !cpu_far_check_return_ss(cpu, op, &r))) {
        return false;
    }
    if (!cpu_far_check_rip(cpu, op, &r.cs_desc, r.rip) || !cpu_desc_set_accessed(cpu, op, &r.cs_desc)) {
        return false;
    }
    cpu_far_commit_return(cpu, &r, &st, (unsigned)op->imm);
    return true;
}

static void op_ret_far(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        ret_real(cpu, op);
    } else if (ret_protected(cpu, op)) {
        cpu_update_mode(cpu);
        cpu_retire(cpu, op);
    }
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_ret_far(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, op_ret_far);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)(e->in.operand_width / 8);
    op->imm = e->opnd[0].type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? e->opnd[0].imm.value.u & 0xffff : 0;
    e->ends_block = true;
    return 0;
}
