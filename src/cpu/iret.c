/*
 * IRET in all modes: real, virtual-8086 (with VME), protected to the same or an outer level or into
 * virtual-8086 mode, from a nested task, compatibility and 64-bit mode.
 *
 * Flow: pops, checks and commit as in far_ret.c; flags last. Unblocks NMIs.
 * Source: Intel, "IRET". Locks: none.
 */
#include <errno.h>

#include "cpu/far.h"
#include "cpu/flags.h"
#include "cpu/system.h"

static void done(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->nmi_blocked = 0;
    cpu_update_mode(cpu);
    cpu_retire(cpu, op);
}

/* May virtual-8086 code with IOPL below 3 load these flags? VME gives it a virtual IF. */
static bool check_vme(struct cpu *cpu, const struct cpu_op *op, uint64_t flags)
{
    if ((cpu->rflags_rest & X86_IOPL) == X86_IOPL) {
        return true;
    }
    if (!(cpu->cr4 & X86_CR4_VME) || op->aux != 2 || (flags & X86_TF) ||
        ((flags & X86_IF) && (cpu->rflags_rest & X86_VIP))) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    return true;
}

/* Real and virtual-8086 mode: three pops. */
static void iret_real(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;
    struct cpu_far to = {.size = op->aux};
    uint64_t sel, flags;
    bool v86 = cpu->mode & CPU_MODE_V86;

    if (v86 && op->aux != 2 && (cpu->rflags_rest & X86_IOPL) != X86_IOPL) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, op->aux, &to.rip) || !cpu_stack_pop(cpu, op, &st, op->aux, &sel) ||
        !cpu_stack_pop(cpu, op, &st, op->aux, &flags) || (v86 && !check_vme(cpu, op, flags))) {
        return;
    }
    to.sel = (uint16_t)sel;
    if (!cpu_far_check_real(cpu, op, &to)) {
        return;
    }
    if (v86 && (cpu->rflags_rest & X86_IOPL) != X86_IOPL) {
        cpu->rflags_rest &= ~X86_VIF;
        cpu->rflags_rest |= flags & X86_IF ? X86_VIF : 0;
    }
    cpu_load_flags(cpu, flags, op->aux, true);
    cpu_stack_commit(cpu, &st);
    cpu_far_enter_real(cpu, &to);
    done(cpu, op);
}

/* From level 0 into virtual-8086 mode: the rest of the frame, and all segments by their selectors. */
static bool iret_to_v86(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st,
                        const struct cpu_far_return *r, uint64_t flags)
{
    static const uint8_t order[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    uint64_t rsp, ss, sel[4];
    unsigned i;

    if (!cpu_stack_pop(cpu, op, st, 4, &rsp) || !cpu_stack_pop(cpu, op, st, 4, &ss)) {
        return false;
    }
    for (i = 0; i < 4; i++) {
        if (!cpu_stack_pop(cpu, op, st, 4, &sel[i])) {
            return false;
        }
    }
    if (r->rip > 0xffff) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    cpu_load_flags(cpu, flags, 4, true);
    cpu->rflags_rest |= X86_VM;
    for (i = 0; i < 4; i++) {
        cpu_seg_set_v86(&cpu->seg[order[i]], (uint16_t)sel[i]);
    }
    cpu_seg_set_v86(&cpu->seg[CPU_CS], (uint16_t)r->cs);
    cpu_seg_set_v86(&cpu->seg[CPU_SS], (uint16_t)ss);
    cpu->regs[CPU_RSP] = (uint32_t)rsp;
    cpu->rip = r->rip;
    return true;
}

/* NT: back to the task in the TSS's link. */
static bool iret_task(struct cpu *cpu, const struct cpu_op *op)
{
    uint16_t link;

    if (!cpu_sys_load(cpu, op, (uint32_t)cpu->tr.base, &link, 2)) {
        return false;
    }
    return cpu_task_switch(cpu, op, link, CPU_TASK_IRET, cpu_op_next_rip(cpu, op));
}

static bool iret_protected(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_far_return r = {0};
    struct cpu_stack st;
    unsigned size = op->aux;
    uint64_t flags;

    if (cpu->rflags_rest & X86_NT) {
        return cpu_is_long(cpu) ? cpu_raise_code(cpu, op, X86_GP, 0) : iret_task(cpu, op);
    }
    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, size, &r.rip) || !cpu_stack_pop(cpu, op, &st, size, &r.cs) ||
        !cpu_stack_pop(cpu, op, &st, size, &flags)) {
        return false;
    }
    if ((flags & X86_VM) && size == 4 && cpu->cpl == 0 && !cpu_is_long(cpu)) {
        return iret_to_v86(cpu, op, &st, &r, flags);
    }
    if (!cpu_far_check_return_cs(cpu, op, &r)) {
        return false;
    }
    r.has_ss = r.outer || (cpu->mode & CPU_MODE_64);
    if (r.has_ss && (!cpu_stack_pop(cpu, op, &st, size, &r.rsp) || !cpu_stack_pop(cpu, op, &st, size, &r.ss) ||
                     !cpu_far_check_return_ss(cpu, op, &r))) {
        return false;
    }
    if (!cpu_far_check_rip(cpu, op, &r.cs_desc, r.rip) || !cpu_desc_set_accessed(cpu, op, &r.cs_desc)) {
        return false;
    }
    cpu_load_flags(cpu, flags, size, true);
    cpu_far_commit_return(cpu, &r, &st, 0);
    return true;
}

static void op_iret(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        iret_real(cpu, op);
    } else if (iret_protected(cpu, op)) {
        done(cpu, op);
    }
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_iret(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, op_iret);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)(e->in.operand_width / 8);
    e->ends_block = true;
    return 0;
}
