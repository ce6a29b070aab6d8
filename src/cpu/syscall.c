/*
 * Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT, by Intel's rules: SYSCALL and SYSRET only in 64-bit
 * mode. Segments are loaded flat from MSRs without looking at descriptors.
 *
 * Differs: AMD also has SYSCALL in compatibility mode (CSTAR). Locks: none.
 */
#include "cpu/flags.h"
#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/system.h"

static void load_cs(struct cpu *cpu, unsigned sel, unsigned dpl, bool is64)
{
    cpu->seg[CPU_CS] = (struct cpu_seg){.limit = UINT32_MAX, .sel = (uint16_t)sel, .type = 11, .s = 1,
                                        .dpl = (uint8_t)dpl, .p = 1, .l = is64, .db = !is64, .g = 1};
}

static void load_ss(struct cpu *cpu, unsigned sel, unsigned dpl)
{
    cpu->seg[CPU_SS] = (struct cpu_seg){.limit = UINT32_MAX, .sel = (uint16_t)sel, .type = 3, .s = 1,
                                        .dpl = (uint8_t)dpl, .p = 1, .db = 1, .g = 1};
}

static void done(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_update_mode(cpu);
    cpu_retire(cpu, op);
}

static void op_syscall(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned sel = cpu->msr.star >> 32 & 0xfffc;
    uint64_t flags = cpu_get_rflags(cpu);

    if (!(cpu->efer & X86_EFER_SCE)) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    cpu->regs[CPU_RCX] = cpu_op_next_rip(cpu, op);
    cpu->regs[CPU_R11] = flags & ~(uint64_t)X86_RF;
    cpu->rip = cpu->msr.lstar;
    cpu_set_rflags(cpu, flags & ~(cpu->msr.sfmask | X86_RF));
    load_cs(cpu, sel, 0, true);
    load_ss(cpu, sel + 8, 0);
    done(cpu, op);
}

static void op_sysret(struct cpu *cpu, const struct cpu_op *op)
{
    bool is64 = op->aux == 8;
    unsigned sel = cpu->msr.star >> 48;
    uint64_t rip = is64 ? cpu->regs[CPU_RCX] : (uint32_t)cpu->regs[CPU_RCX];

    if (!(cpu->efer & X86_EFER_SCE)) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    if (cpu->cpl != 0 || !cpu_is_canonical(cpu, rip)) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu->rip = rip;
    cpu_set_rflags(cpu, cpu->regs[CPU_R11] & 0x3c7fd7);
    load_cs(cpu, (is64 ? sel + 16 : sel) | 3, 3, is64);
    load_ss(cpu, (sel + 8) | 3, 3);
    done(cpu, op);
}

static void op_sysenter(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned sel = cpu->msr.sysenter_cs & 0xfffc;
    bool is_long = cpu_is_long(cpu);

    if ((cpu->mode & CPU_MODE_REAL) || !sel) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu->rflags_rest &= ~(X86_VM | X86_IF | X86_RF);
    cpu->regs[CPU_RSP] = is_long ? cpu->msr.sysenter_esp : (uint32_t)cpu->msr.sysenter_esp;
    cpu->rip = is_long ? cpu->msr.sysenter_eip : (uint32_t)cpu->msr.sysenter_eip;
    load_cs(cpu, sel, 0, is_long);
    load_ss(cpu, sel + 8, 0);
    done(cpu, op);
}

static void op_sysexit(struct cpu *cpu, const struct cpu_op *op)
{
    bool is64 = op->aux == 8;
    unsigned sel = cpu->msr.sysenter_cs & 0xfffc;
    uint64_t rip = is64 ? cpu->regs[CPU_RDX] : (uint32_t)cpu->regs[CPU_RDX];
    uint64_t rsp = is64 ? cpu->regs[CPU_RCX] : (uint32_t)cpu->regs[CPU_RCX];

    if ((cpu->mode & CPU_MODE_REAL) || cpu->cpl != 0 || !sel ||
        (is64 && (!cpu_is_canonical(cpu, rip) || !cpu_is_canonical(cpu, rsp)))) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu->regs[CPU_RSP] = rsp;
    cpu->rip = rip;
    load_cs(cpu, (sel + (is64 ? 32 : 16)) | 3, 3, is64);
    load_ss(cpu, (sel + (is64 ? 40 : 24)) | 3, 3);
    done(cpu, op);
}

static int emit(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, fn, true);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = e->in.attributes & ZYDIS_ATTRIB_HAS_REX && e->in.raw.rex.W ? 8 : 4;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_syscall(struct cpu_emit *e)
{
    return e->mode & CPU_MODE_64 ? emit(e, op_syscall) : -EINVAL;
}

int cpu_emit_sysret(struct cpu_emit *e)
{
    return e->mode & CPU_MODE_64 ? emit(e, op_sysret) : -EINVAL;
}

int cpu_emit_sysenter(struct cpu_emit *e)
{
    return emit(e, op_sysenter);
}

int cpu_emit_sysexit(struct cpu_emit *e)
{
    return emit(e, op_sysexit);
}
