/*
 * Instructions on RFLAGS as a whole and on its system bits: PUSHF, POPF, CLI, STI, CLAC, STAC; with the rules
 * of IOPL, virtual-8086 mode, VME and PVI.
 *
 * STI that sets IF, and MOV or POP to SS, forbid interrupts for one more instruction
 * (cpu->interrupt_shadow; the run loop clears it). Source: Intel, the instructions' pages. Locks: none.
 */
#include <errno.h>

#include "cpu/far.h"
#include "cpu/flags.h"
#include "cpu/system.h"
#include "cpu/tlb.h"

static unsigned iopl(const struct cpu *cpu)
{
    return cpu->rflags_rest >> 12 & 3;
}

/*
 * Load RFLAGS from size bytes (2, 4, 8) of value, under the CPL and IOPL that are in force.
 * is_iret: RF is loaded (POPF clears it), and VIF and VIP at CPL 0. VM is never touched.
 * RF is kept only while breakpoints are enabled: nothing else looks at it, and it dies with the next instruction.
 */
void cpu_load_flags(struct cpu *cpu, uint64_t value, unsigned size, bool is_iret)
{
    uint32_t mask = X86_TF | X86_DF | X86_NT;
    uint32_t rest;

    if (size > 2) {
        mask |= X86_AC | X86_ID;
        if (is_iret && cpu->cpl == 0) {
            mask |= X86_VIF | X86_VIP;
        }
    }
    if (cpu->cpl <= iopl(cpu)) {
        mask |= X86_IF;
    }
    if (cpu->cpl == 0) {
        mask |= X86_IOPL;
    }
    rest = (cpu->rflags_rest & ~(mask | X86_RF)) | ((uint32_t)value & mask);
    if (is_iret && size > 2 && (cpu->dr7 & 0xff)) {
        rest |= (uint32_t)value & X86_RF;
    }
    cpu->rflags_rest = rest;
    cpu_set_arith_flags(cpu, (uint32_t)value);
}

static void op_pushf(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t flags = cpu_get_rflags(cpu) & ~(uint64_t)(X86_RF | X86_VM);
    struct cpu_stack st;

    if (cpu->mode & CPU_MODE_64) {
        uint64_t sp = cpu->regs[CPU_RSP] - op->aux;

        if (op->aux == 8 ? !cpu_store64(cpu, op, sp, flags) : !cpu_store16(cpu, op, sp, (uint16_t)flags)) {
            return;
        }
        cpu->regs[CPU_RSP] = sp;
        cpu_next(cpu, op);
        return;
    }
    if ((cpu->mode & CPU_MODE_V86) && iopl(cpu) < 3) {
        if (!(cpu->cr4 & X86_CR4_VME) || op->aux != 2) {
            (void)!cpu_raise_code(cpu, op, X86_GP, 0);
            return;
        }
        flags = (flags & ~(uint64_t)X86_IF) | X86_IOPL | (flags & X86_VIF ? X86_IF : 0);
    }
    cpu_stack_current(cpu, &st);
    if (!cpu_stack_push(cpu, op, &st, op->aux, flags)) {
        return;
    }
    cpu_stack_commit(cpu, &st);
    cpu_end_block(cpu, op);
}

/* POPF at IOPL below 3 in virtual-8086 mode: IF is the virtual one. */
static bool popf_vme(struct cpu *cpu, const struct cpu_op *op, uint64_t flags)
{
    if (!(cpu->cr4 & X86_CR4_VME) || op->aux != 2 || (flags & X86_TF) ||
        ((flags & X86_IF) && (cpu->rflags_rest & X86_VIP))) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    cpu->rflags_rest = (cpu->rflags_rest & ~X86_VIF) | (flags & X86_IF ? X86_VIF : 0);
    return true;
}

static void op_popf(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;
    uint64_t flags;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, op->aux, &flags) ||
        ((cpu->mode & CPU_MODE_V86) && iopl(cpu) < 3 && !popf_vme(cpu, op, flags))) {
        return;
    }
    cpu_stack_commit(cpu, &st);
    cpu_load_flags(cpu, flags, op->aux, false);
    cpu_update_mode(cpu);
    cpu_end_block(cpu, op);
}

/* Virtual interrupt flag instead of IF: virtual-8086 mode with VME, level 3 with PVI. */
static bool has_virtual_if(const struct cpu *cpu)
{
    return cpu->mode & CPU_MODE_V86 ? cpu->cr4 & X86_CR4_VME : cpu->cpl == 3 && (cpu->cr4 & X86_CR4_PVI);
}

static void op_cli(struct cpu *cpu, const struct cpu_op *op)
{
    if (likely(cpu->cpl <= iopl(cpu))) {
        cpu->rflags_rest &= ~X86_IF;
    } else if (has_virtual_if(cpu)) {
        cpu->rflags_rest &= ~X86_VIF;
    } else {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu_next(cpu, op);
}

static void op_sti(struct cpu *cpu, const struct cpu_op *op)
{
    if (likely(cpu->cpl <= iopl(cpu))) {
        if (!(cpu->rflags_rest & X86_IF)) {
            cpu->interrupt_shadow = 1;
        }
        cpu->rflags_rest |= X86_IF;
    } else if (has_virtual_if(cpu) && !(cpu->rflags_rest & X86_VIP)) {
        cpu->rflags_rest |= X86_VIF;
    } else {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu_end_block(cpu, op);
}

/* CLAC and STAC: the new state of AC in imm. */
static void op_set_ac(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->cpl != 0 || !(cpu->features & CPU_FEAT_SMAP)) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    cpu->rflags_rest = (cpu->rflags_rest & ~X86_AC) | (uint32_t)op->imm;
    cpu_mode_changed(cpu);
    cpu_next(cpu, op);
}

static int emit(struct cpu_emit *e, cpu_op_fn *fn, uint64_t imm, bool ends)
{
    struct cpu_op *op = cpu_emit_op(e, fn);

    if (!op) {
        return -ENOSPC;
    }
    op->imm = imm;
    op->aux = (uint8_t)(e->in.operand_width / 8);
    e->ends_block = ends;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_pushf(struct cpu_emit *e)
{
    int ret = emit(e, op_pushf, 0, !(e->mode & CPU_MODE_64));

    if (ret == 0) {
        e->ops[e->nops - 1].flags |= CPU_OPF_STACK_SS;
    }
    return ret;
}

int cpu_emit_popf(struct cpu_emit *e)
{
    return emit(e, op_popf, 0, true);
}

int cpu_emit_cli(struct cpu_emit *e)
{
    return emit(e, op_cli, 0, false);
}

int cpu_emit_sti(struct cpu_emit *e)
{
    return emit(e, op_sti, 0, true);
}

int cpu_emit_clac(struct cpu_emit *e)
{
    return e->mode & (CPU_MODE_V86) ? -EINVAL : emit(e, op_set_ac, 0, false);
}

int cpu_emit_stac(struct cpu_emit *e)
{
    return e->mode & (CPU_MODE_V86) ? -EINVAL : emit(e, op_set_ac, X86_AC, false);
}
