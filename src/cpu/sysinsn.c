/*
 * System instructions that are no family: caches and translations (WBINVD, INVLPG, INVPCID), HLT, CPUID, the time
 * stamp counter, hypercalls, XSETBV, MONITOR and MWAIT. Those that only the hypervisor can answer are exits
 * with RIP at the instruction. Source: Intel, the instructions' pages. Locks: none.
 */
#include "cpu/chain.h"
#include "cpu/insn.h"
#include "cpu/opnd.h"
#include "cpu/regs.h"
#include "cpu/seg.h"
#include "cpu/shadow.h"
#include "cpu/system.h"
#include "cpu/tlb.h"

static void gp0(struct cpu *cpu, const struct cpu_op *op)
{
    (void)!cpu_raise_code(cpu, op, X86_GP, 0);
}

/* WBINVD, INVD, WBNOINVD: there is nothing between the processor and memory. */
static void op_wbinvd(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_need_cpl0(cpu, op)) {
        cpu_end_block(cpu, op);
    }
}

/* CLFLUSH and its kin fault as a load of the byte would, and do no more. */
static __attribute__((noinline)) bool clflush(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t la;
    uint8_t byte;

    return cpu_ea(cpu, op, 1, false, &la) && cpu_load8(cpu, op, la, &byte);
}

static void op_clflush(struct cpu *cpu, const struct cpu_op *op)
{
    if (clflush(cpu, op)) {
        cpu_next(cpu, op);
    }
}

static void op_invlpg(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_word la;

    if (!cpu_need_cpl0(cpu, op)) {
        return;
    }
    la = cpu_ea_word(cpu, op, 1, false);
    if (la.ok) {
        cpu_tlb_flush_page(cpu, la.v);
        if (unlikely(cpu->shadow.on)) {
            cpu_shadow_invalidated(cpu, CPU_INVALIDATE_PAGE, 0, la.v);
            cpu_end_block(cpu, op);
            return;
        }
        cpu_continue(cpu, op);
    }
}

/* Type in the register of dst, descriptor (PCID, linear address) in memory. */
static void op_invpcid(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t type = cpu->mode & CPU_MODE_64 ? cpu->regs[op->dst] : (uint32_t)cpu->regs[op->dst];
    uint64_t la, desc[2];

    if (!cpu_need_cpl0(cpu, op) || !cpu_ea(cpu, op, 16, false, &la) ||
        !cpu_load_bytes(cpu, op, la, desc, 16)) {
        return;
    }
    if (type > 3 || (type < 2 && desc[0] >> 12) ||
        (type < 2 && desc[0] && !(cpu->cr4 & X86_CR4_PCIDE)) || (type == 0 && !cpu_is_canonical(cpu, desc[1]))) {
        gp0(cpu, op);
        return;
    }
    switch (type) {
    case 0:
        cpu_tlb_flush_pcid_page(cpu, (unsigned)desc[0], desc[1]);
        break;
    case 1:
        cpu_tlb_flush_pcid(cpu, (unsigned)desc[0]);
        break;
    case 2:
        cpu_tlb_flush_guest(cpu);
        break;
    default:
        cpu_tlb_flush_local(cpu);
    }
    if (cpu->shadow.on) {
        cpu_shadow_invalidated(cpu, (unsigned)type, (unsigned)desc[0] & (CPU_PCIDS - 1), desc[1]);
    }
    cpu_end_block(cpu, op);
}

static void op_hlt(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_need_cpl0(cpu, op)) {
        cpu_end_block(cpu, op);
        cpu->exit.reason = CPU_EXIT_HLT;
        cpu->exit.insn_len = 0;
    }
}

static void op_cpuid(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_leave(cpu, op, CPU_EXIT_CPUID);
}

static void op_hypercall(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_leave(cpu, op, CPU_EXIT_HYPERCALL);
    cpu->exit.hypercall.is_vmmcall = op->aux;
}

/* CR4.TSD reserves the counter for level 0. */
static bool tsc_allowed(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->cpl > 0 && (cpu->cr4 & X86_CR4_TSD)) {
        gp0(cpu, op);
        return false;
    }
    return true;
}

static void op_rdtsc(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t tsc;

    if (tsc_allowed(cpu, op)) {
        tsc = cpu_read_tsc(cpu);
        cpu->regs[CPU_RAX] = (uint32_t)tsc;
        cpu->regs[CPU_RDX] = tsc >> 32;
        cpu_next(cpu, op);
    }
}

static void op_rdtscp(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t tsc;

    if (!(cpu->features & CPU_FEAT_RDTSCP)) {
        (void)!cpu_raise(cpu, op, X86_UD);
    } else if (tsc_allowed(cpu, op)) {
        tsc = cpu_read_tsc(cpu);
        cpu->regs[CPU_RAX] = (uint32_t)tsc;
        cpu->regs[CPU_RDX] = tsc >> 32;
        cpu->regs[CPU_RCX] = (uint32_t)cpu->msr.tsc_aux;
        cpu_next(cpu, op);
    }
}

static void op_rdpid(struct cpu *cpu, const struct cpu_op *op)
{
    if (!(cpu->features & CPU_FEAT_RDPID)) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    cpu->regs[op->dst] = cpu->msr.tsc_aux;
    cpu_next(cpu, op);
}

/* There are no performance counters: every index is out of range. */
static void op_rdpmc(struct cpu *cpu, const struct cpu_op *op)
{
    gp0(cpu, op);
}

/* The hypervisor judges the value (cpu_set_xcr()); privilege and CR4 are judged here. */
static void op_xsetbv(struct cpu *cpu, const struct cpu_op *op)
{
    if (!(cpu->cr4 & X86_CR4_OSXSAVE)) {
        (void)!cpu_raise(cpu, op, X86_UD);
    } else if (cpu_need_cpl0(cpu, op)) {
        cpu_leave(cpu, op, CPU_EXIT_XSETBV);
        cpu->exit.xcr.index = (uint32_t)cpu->regs[CPU_RCX];
        cpu->exit.xcr.value = (uint32_t)cpu->regs[CPU_RAX] | cpu->regs[CPU_RDX] << 32;
    }
}

/* A hypervisor may leave it to MISC_ENABLE. */
static bool has_mwait(const struct cpu *cpu)
{
    return (cpu->features & CPU_FEAT_MWAIT) ||
           ((cpu->features & CPU_FEAT_MWAIT_MISC) && (cpu->msr.misc_enable & X86_MISC_ENABLE_MWAIT));
}

/* MONITOR: the address is only checked. MWAIT: ends at once, as it may for any reason. */
static void op_monitor(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_op load = *op;
    uint64_t la;
    uint8_t byte;

    if (!has_mwait(cpu) || cpu->cpl != 0) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    if ((uint32_t)cpu->regs[CPU_RCX]) {
        gp0(cpu, op);
        return;
    }
    load.base = CPU_RAX;
    load.index = CPU_ZERO;
    load.disp = 0;
    if (cpu_ea(cpu, &load, 1, false, &la) && cpu_load8(cpu, &load, la, &byte)) {
        cpu_end_block(cpu, op);
    }
}

static void op_mwait(struct cpu *cpu, const struct cpu_op *op)
{
    if (!has_mwait(cpu) || cpu->cpl != 0) {
        (void)!cpu_raise(cpu, op, X86_UD);
        return;
    }
    cpu_end_block(cpu, op);
}

static int emit(struct cpu_emit *e, cpu_op_fn *fn, bool ends)
{
    return cpu_opnd_emit_plain(e, fn, ends) ? 0 : -ENOSPC;
}

/* With the memory operand at index i. */
static int emit_mem(struct cpu_emit *e, cpu_op_fn *fn, unsigned i, bool ends)
{
    struct cpu_op *op;

    if (e->opnd[i].type != ZYDIS_OPERAND_TYPE_MEMORY) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, ends);
    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[i]);
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_wbinvd(struct cpu_emit *e)
{
    return emit(e, op_wbinvd, true);
}

int cpu_emit_clflush(struct cpu_emit *e)
{
    return emit_mem(e, op_clflush, 0, false);
}

int cpu_emit_invlpg(struct cpu_emit *e)
{
    return emit_mem(e, op_invlpg, 0, true);
}

int cpu_emit_invpcid(struct cpu_emit *e)
{
    int ret;

    if (!(e->cpu->features & CPU_FEAT_INVPCID)) {
        return -EINVAL;
    }
    ret = emit_mem(e, op_invpcid, 1, true);
    if (ret == 0) {
        e->ops[e->nops - 1].dst = cpu_emit_reg(e->opnd[0].reg.value);
    }
    return ret;
}

int cpu_emit_hlt(struct cpu_emit *e)
{
    return emit(e, op_hlt, true);
}

int cpu_emit_cpuid(struct cpu_emit *e)
{
    return emit(e, op_cpuid, true);
}

int cpu_emit_hypercall(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, op_hypercall, true);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = e->in.mnemonic == ZYDIS_MNEMONIC_VMMCALL;
    return 0;
}

int cpu_emit_rdtsc(struct cpu_emit *e)
{
    return emit(e, op_rdtsc, false);
}

int cpu_emit_rdtscp(struct cpu_emit *e)
{
    return emit(e, op_rdtscp, false);
}

int cpu_emit_rdpid(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, op_rdpid, false);

    if (!op) {
        return -ENOSPC;
    }
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    return 0;
}

int cpu_emit_rdpmc(struct cpu_emit *e)
{
    return emit(e, op_rdpmc, true);
}

int cpu_emit_xsetbv(struct cpu_emit *e)
{
    return emit(e, op_xsetbv, true);
}

int cpu_emit_monitor(struct cpu_emit *e)
{
    return emit(e, op_monitor, true);
}

int cpu_emit_mwait(struct cpu_emit *e)
{
    return emit(e, op_mwait, true);
}
