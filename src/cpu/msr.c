/*
 * The processor's own model-specific registers. All others belong to the hypervisor: RDMSR and WRMSR of
 * these are exits. A write of the TSC is one too, as TSC_ADJUST, which is the hypervisor's, moves with it.
 *
 * Source: Intel's list of architectural MSRs; reserved bits and non-canonical addresses are #GP(0).
 * Locks: none.
 */
#include "cpu/regs.h"

#include <errno.h>
#include <x86intrin.h>

#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/system.h"
#include "cpu/shadow.h"
#include "cpu/tlb.h"

/* The guest's time stamp counter now. */
uint64_t cpu_read_tsc(const struct cpu *cpu)
{
    unsigned __int128 scaled = (unsigned __int128)__rdtsc() * cpu->tsc_ratio;

    return (uint64_t)(scaled >> 32) + (uint64_t)cpu->tsc_offset;
}

/* Where an MSR that is a plain value lives. NULL: it is not one. */
static uint64_t *plain(struct cpu *cpu, uint32_t index)
{
    switch (index) {
    case X86_MSR_SYSENTER_CS:
        return &cpu->msr.sysenter_cs;
    case X86_MSR_SYSENTER_ESP:
        return &cpu->msr.sysenter_esp;
    case X86_MSR_SYSENTER_EIP:
        return &cpu->msr.sysenter_eip;
    case X86_MSR_STAR:
        return &cpu->msr.star;
    case X86_MSR_LSTAR:
        return &cpu->msr.lstar;
    case X86_MSR_CSTAR:
        return &cpu->msr.cstar;
    case X86_MSR_SFMASK:
        return &cpu->msr.sfmask;
    case X86_MSR_KERNEL_GS_BASE:
        return &cpu->msr.kernel_gs_base;
    case X86_MSR_TSC_AUX:
        return &cpu->msr.tsc_aux;
    case X86_MSR_PAT:
        return &cpu->msr.pat;
    case X86_MSR_DEBUGCTL:
        return &cpu->msr.debugctl;
    case X86_MSR_MISC_ENABLE:
        return &cpu->msr.misc_enable;
    case X86_MSR_SPEC_CTRL:
        return &cpu->msr.spec_ctrl;
    case X86_MSR_XSS:
        return &cpu->xss;
    case X86_MSR_FS_BASE:
        return &cpu->seg[CPU_FS].base;
    case X86_MSR_GS_BASE:
        return &cpu->seg[CPU_GS].base;
    default:
        return NULL;
    }
}

static bool pat_is_legal(uint64_t v)
{
    unsigned i;

    for (i = 0; i < 8; i++, v >>= 8) {
        unsigned type = v & 0xff;

        if (type > 7 || type == 2 || type == 3) {
            return false;
        }
    }
    return true;
}

/* May a plain MSR hold v? */
static bool is_legal(const struct cpu *cpu, uint32_t index, uint64_t v)
{
    switch (index) {
    case X86_MSR_SYSENTER_ESP:
    case X86_MSR_SYSENTER_EIP:
    case X86_MSR_LSTAR:
    case X86_MSR_CSTAR:
    case X86_MSR_KERNEL_GS_BASE:
    case X86_MSR_FS_BASE:
    case X86_MSR_GS_BASE:
        return cpu_is_canonical(cpu, v);
    case X86_MSR_TSC_AUX:
    case X86_MSR_SFMASK:
        return !(v >> 32);
    case X86_MSR_PAT:
        return pat_is_legal(v);
    case X86_MSR_SPEC_CTRL:
        return !(v & ~UINT64_C(0x4c7)); /* IBRS, STIBP, SSBD, RRSBA_DIS_U and _S, BHI_DIS_S: nothing to do */
    case X86_MSR_DEBUGCTL:
        return !(v & ~UINT64_C(0xffc3));
    case X86_MSR_XSS:
        return v == 0;
    default:
        return true;
    }
}

/* EFER: LME only outside paging; LMA follows. `lma`: may be given (the hypervisor). */
static int set_efer(struct cpu *cpu, uint64_t v, bool host)
{
    uint64_t known = X86_EFER_SCE | (cpu->features & CPU_FEAT_LM ? X86_EFER_LME | X86_EFER_LMA : 0) |
                     (cpu->features & CPU_FEAT_NX ? X86_EFER_NX : 0) | X86_EFER_FFXSR;
    uint64_t changed = v ^ cpu->efer;

    if (v & ~known) {
        return -EINVAL;
    }
    if (!host) {
        if ((changed & X86_EFER_LME) && (cpu->cr0 & X86_CR0_PG)) {
            return -EINVAL;
        }
        v = (v & ~(uint64_t)X86_EFER_LMA) | (cpu->efer & X86_EFER_LMA);
    }
    changed = v ^ cpu->efer;
    cpu->efer = v;
    if (changed & (X86_EFER_NX | X86_EFER_LMA)) {
        cpu_tlb_flush_guest(cpu);
        cpu_shadow_unload(cpu);
        if (cpu->shadow.on && !host) {
            cpu_shadow_cr_written(cpu, CPU_CR_EFER, v);
        }
    }
    cpu_update_mode(cpu);
    return 0;
}

/* Read one of the processor's own; see regs.h. Source: own. */
int cpu_get_msr(const struct cpu *cpu, uint32_t index, uint64_t *value)
{
    const uint64_t *p = plain((struct cpu *)cpu, index);

    if (p) {
        *value = *p;
    } else if (index == X86_MSR_TSC) {
        *value = cpu_read_tsc(cpu);
    } else if (index == X86_MSR_EFER) {
        *value = cpu->efer;
    } else {
        return -ENOENT;
    }
    return 0;
}

static int set_msr(struct cpu *cpu, uint32_t index, uint64_t v, bool host)
{
    uint64_t *p = plain(cpu, index);

    if (index == X86_MSR_EFER) {
        return set_efer(cpu, v, host);
    }
    if (index == X86_MSR_TSC && host) {
        cpu->tsc_offset += (int64_t)(v - cpu_read_tsc(cpu));
        return 0;
    }
    if (index == X86_MSR_PRED_CMD) {
        return v & ~UINT64_C(1) ? -EINVAL : 0;
    }
    if (!p) {
        return -ENOENT;
    }
    if (!is_legal(cpu, index, v)) {
        return -EINVAL;
    }
    *p = v;
    if (index == X86_MSR_FS_BASE || index == X86_MSR_GS_BASE) {
        cpu_update_mode(cpu);
    }
    return 0;
}

/* Write one of the processor's own; see regs.h. Source: KVM_SET_MSRS' rules. */
int cpu_set_msr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    return set_msr(cpu, index, value, true);
}

/* The same by a guest's rules: what WRMSR would do. -ENOENT also for the counter, whose writes are the
 * hypervisor's. Source: the processor's WRMSR. */
int cpu_set_msr_guest(struct cpu *cpu, uint32_t index, uint64_t value)
{
    return set_msr(cpu, index, value, false);
}

static void op_rdmsr(struct cpu *cpu, const struct cpu_op *op)
{
    uint32_t index = (uint32_t)cpu->regs[CPU_RCX];
    uint64_t v;

    if (!cpu_need_cpl0(cpu, op)) {
        return;
    }
    if (cpu->exit_msrs || cpu_get_msr(cpu, index, &v) != 0) {
        cpu_leave(cpu, op, CPU_EXIT_RDMSR);
        cpu->exit.msr.index = index;
        return;
    }
    cpu->regs[CPU_RAX] = (uint32_t)v;
    cpu->regs[CPU_RDX] = v >> 32;
    cpu_end_block(cpu, op);
}

static void op_wrmsr(struct cpu *cpu, const struct cpu_op *op)
{
    uint32_t index = (uint32_t)cpu->regs[CPU_RCX];
    uint64_t v = (uint32_t)cpu->regs[CPU_RAX] | cpu->regs[CPU_RDX] << 32;

    if (!cpu_need_cpl0(cpu, op)) {
        return;
    }
    switch (cpu->exit_msrs ? -ENOENT : set_msr(cpu, index, v, false)) {
    case 0:
        cpu_end_block(cpu, op);
        break;
    case -ENOENT:
        cpu_leave(cpu, op, CPU_EXIT_WRMSR);
        cpu->exit.msr.index = index;
        cpu->exit.msr.value = v;
        break;
    default:
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
    }
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_rdmsr(struct cpu_emit *e)
{
    return cpu_opnd_emit_plain(e, op_rdmsr, true) ? 0 : -ENOSPC;
}

int cpu_emit_wrmsr(struct cpu_emit *e)
{
    return cpu_opnd_emit_plain(e, op_wrmsr, true) ? 0 : -ENOSPC;
}
