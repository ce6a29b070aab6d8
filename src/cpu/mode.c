/*
 * Mode derivation: from CR0, EFER, RFLAGS and the segment registers to what decoding, address arithmetic
 * and the TLB go by (cpu->mode, cpu->cpl, cpu->seg_base[]). The one place where these three are written,
 * apart from cpu_priv_set(), which lends a privilege for the time of some stack accesses.
 *
 * Invariants
 *  1. In protected mode CPL is SS.DPL; every transfer that changes CPL loads SS accordingly, a null SS of
 *     long mode included.
 *  2. CPU_MODE_LEGACY is clear outside 64-bit mode only if no segment register in use can fault: all
 *     present, reading and writing allowed, 4 GiB.
 *
 * Locks: none, the processor's own thread.
 */
#include "arch/regs.h"
#include "cpu/run.h"
#include "cpu/seg.h"
#include "cpu/system.h"
#include "cpu/tlb.h"

/* A data segment that never faults, whatever the offset. Its base may be anything. */
static bool data_is_open(const struct cpu_seg *s)
{
    return s->limit == UINT32_MAX && s->p && s->s && !s->unusable && (s->type & 0xe) == 2;
}

/* 32-bit protected mode in which no segment check can fail and CS, SS, DS, ES need no base. */
static bool is_flat(const struct cpu *cpu)
{
    const struct cpu_seg *s = cpu->seg;

    return !(s[CPU_CS].base | s[CPU_SS].base | s[CPU_DS].base | s[CPU_ES].base) &&
           s[CPU_CS].limit == UINT32_MAX && (s[CPU_CS].type & 0xa) == 0xa && s[CPU_SS].db &&
           s[CPU_CS].db && data_is_open(&s[CPU_SS]) && data_is_open(&s[CPU_DS]) &&
           data_is_open(&s[CPU_ES]) && data_is_open(&s[CPU_FS]) && data_is_open(&s[CPU_GS]);
}

static uint32_t protected_mode(const struct cpu *cpu)
{
    uint32_t mode = 0;

    if (cpu->rflags_rest & X86_VM) {
        return CPU_MODE_V86 | CPU_MODE_LEGACY;
    }
    if ((cpu->efer & X86_EFER_LMA) && cpu->seg[CPU_CS].l) {
        return CPU_MODE_64;
    }
    if (cpu->seg[CPU_CS].db) {
        mode |= CPU_MODE_CS32;
    }
    if (cpu->seg[CPU_SS].db) {
        mode |= CPU_MODE_SS32;
    }
    return is_flat(cpu) ? mode : mode | CPU_MODE_LEGACY;
}

static uint32_t real_mode(const struct cpu *cpu)
{
    return CPU_MODE_REAL | CPU_MODE_LEGACY | (cpu->seg[CPU_CS].db ? CPU_MODE_CS32 : 0) |
           (cpu->seg[CPU_SS].db ? CPU_MODE_SS32 : 0);
}

static void copy_bases(struct cpu *cpu)
{
    unsigned i;

    for (i = 0; i < CPU_NSEGS; i++) {
        cpu->seg_base[i] = cpu->seg[i].base;
    }
    if (cpu->mode & CPU_MODE_64) {
        cpu->seg_base[CPU_ES] = cpu->seg_base[CPU_CS] = 0;
        cpu->seg_base[CPU_SS] = cpu->seg_base[CPU_DS] = 0;
    }
    cpu->seg_base[6] = cpu->seg_base[7] = 0;
}

/*
 * Derive mode, CPL and segment bases; see system.h. Blocks of one instruction (CPU_MODE_TF) are asked for
 * by TF, by enabled breakpoints and by the hypervisor's single step.
 */
void cpu_update_mode(struct cpu *cpu)
{
    uint32_t mode;

    if (!(cpu->cr0 & X86_CR0_PE)) {
        cpu->cpl = 0;
        mode = real_mode(cpu);
    } else {
        cpu->cpl = cpu->rflags_rest & X86_VM ? 3 : cpu->seg[CPU_SS].dpl;
        mode = protected_mode(cpu);
    }
    if (cpu->cpl == 3) {
        mode |= CPU_MODE_USER;
    }
    if ((cpu->rflags_rest & X86_TF) || ((cpu->has_host_dr ? cpu->host_dr7 : cpu->dr7) & 0xff) ||
        cpu->single_step) {
        mode |= CPU_MODE_TF;
    }
    cpu->mode = mode;
    copy_bases(cpu);
    cpu_mode_changed(cpu);
}

/* Lend the processor privilege `cpl` for accesses to another level's stack; cpu_priv_set() with the old
 * CPL, or cpu_update_mode(), ends it. */
void cpu_priv_set(struct cpu *cpu, unsigned cpl)
{
    if (cpu->cpl != cpl) {
        cpu->cpl = cpl;
        cpu->mode = cpl == 3 ? cpu->mode | CPU_MODE_USER : cpu->mode & ~CPU_MODE_USER;
        cpu_mode_changed(cpu);
    }
}

/*
 * Registers were written from outside: see run.h. All translations are forgotten, as any of CR0, CR3, CR4,
 * EFER and the EPT pointer may be new.
 */
void cpu_state_changed(struct cpu *cpu)
{
    cpu_tlb_load_cr3(cpu, cpu->cr3);
    cpu_tlb_flush_all(cpu);
    cpu_update_mode(cpu);
}
