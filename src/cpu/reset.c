/*
 * Reset, INIT and SIPI; events from the hypervisor, and what it needs to know before it injects one; stepping over
 * an instruction that it has emulated. Part of the door, run.h.
 *
 * Source: Intel, "Processor state after reset": the table of register values; KVM gives the same.
 * Locks: none, the processor's own thread.
 */
#include <string.h>

#include "cpu/flags.h"
#include "cpu/fpu.h"
#include "cpu/run.h"
#include "cpu/system.h"
#include "cpu/tlb.h"

#define RESET_CR0   (X86_CR0_CD | X86_CR0_NW | X86_CR0_ET)
#define RESET_DR6   0xffff0ff0u
#define RESET_DR7   0x400u
#define RESET_PAT   UINT64_C(0x0007040600070406)
#define RESET_EDX   0x600u
#define MISC_ENABLE 1u /* fast strings */

static void reset_segments(struct cpu *cpu)
{
    unsigned i;

    for (i = 0; i < CPU_NSEGS; i++) {
        cpu->seg[i] = (struct cpu_seg){.limit = 0xffff, .type = 3, .s = 1, .p = 1};
    }
    cpu->seg[CPU_CS].type = 11;
    cpu->seg[CPU_CS].sel = 0xf000;
    cpu->seg[CPU_CS].base = 0xffff0000;
    cpu->ldtr = (struct cpu_seg){.limit = 0xffff, .type = 2, .p = 1};
    cpu->tr = (struct cpu_seg){.limit = 0xffff, .type = 11, .p = 1};
    cpu->gdtr = cpu->idtr = (struct cpu_dtable){.limit = 0xffff};
}

/* What INIT leaves alone. */
static void reset_kept_by_init(struct cpu *cpu)
{
    memset(&cpu->msr, 0, sizeof(cpu->msr));
    cpu->msr.pat = RESET_PAT;
    cpu->msr.misc_enable = MISC_ENABLE;
    memset(cpu->xmm, 0, sizeof(cpu->xmm));
    cpu_fpu_reset(cpu);
    cpu->xcr0 = 1;
    cpu->xss = 0;
}

/*
 * Architectural reset, or INIT.
 * init: keep what INIT keeps: x87, SSE, MSRs, XCR0, and CR0.CD and NW.
 */
void cpu_reset(struct cpu *cpu, bool init)
{
    uint64_t cache = cpu->cr0 & (X86_CR0_CD | X86_CR0_NW);

    memset(cpu->regs, 0, sizeof(cpu->regs));
    cpu->regs[CPU_RDX] = RESET_EDX;
    cpu->rip = 0xfff0;
    cpu_set_rflags(cpu, 0);
    reset_segments(cpu);
    cpu->cr0 = init ? cache | X86_CR0_ET : RESET_CR0;
    cpu->cr2 = cpu->cr3 = cpu->cr4 = cpu->cr8 = cpu->efer = 0;
    memset(cpu->dr, 0, sizeof(cpu->dr));
    memset(cpu->pdptr, 0, sizeof(cpu->pdptr));
    cpu->pdptes_stale = 0;
    cpu->dr6 = RESET_DR6;
    cpu->dr7 = RESET_DR7;
    cpu->event.type = cpu->fault.type = cpu->deferred.type = CPU_EVENT_NONE;
    cpu->task_rest.left = CPU_TASK_WHOLE;
    cpu->restart_alone = 0;
    cpu->ahead.pos = cpu->ahead.end = 0;
    cpu->interrupt_shadow = cpu->nmi_blocked = 0;
    cpu->db_pending = 0;
    memset(&cpu->replay, 0, sizeof(cpu->replay));
    if (!init) {
        reset_kept_by_init(cpu);
    }
    cpu_state_changed(cpu);
}

/* Start-up interprocessor interrupt: real mode at vector << 12. vector: 0 to 255. */
void cpu_sipi(struct cpu *cpu, uint8_t vector)
{
    cpu->seg[CPU_CS].sel = (uint16_t)(vector << 8);
    cpu->seg[CPU_CS].base = (uint32_t)vector << 12;
    cpu->rip = 0;
    cpu_update_mode(cpu);
}

/* Hand over an event for the next cpu_run(). A page fault's payload is CR2, a debug exception's DR6 bits. */
void cpu_inject(struct cpu *cpu, const struct cpu_event *ev)
{
    cpu->event = *ev;
}

/* No event on its way, no fault waiting for delivery (a kick may come before it), no instruction half done. */
static bool is_between_instructions(const struct cpu *cpu)
{
    return cpu->event.type == CPU_EVENT_NONE && cpu->deferred.type == CPU_EVENT_NONE &&
           cpu->fault.type == CPU_EVENT_NONE && cpu->replay.count == 0 && !cpu->restart_alone;
}

/* May an external interrupt be taken now? IF set, no shadow, nothing on its way. */
bool cpu_interrupt_allowed(const struct cpu *cpu)
{
    return (cpu->rflags_rest & X86_IF) && !cpu->interrupt_shadow && is_between_instructions(cpu);
}

/* May an NMI? Not inside another's handler, nor behind MOV SS. */
bool cpu_nmi_allowed(const struct cpu *cpu)
{
    return !cpu->nmi_blocked && !cpu->interrupt_shadow && is_between_instructions(cpu);
}

/* Step over the instruction at which the last exit left RIP, as if it had retired: the shadow and RF end, and a
 * single step is taken. */
void cpu_skip_insn(struct cpu *cpu)
{
    uint64_t rip = cpu->rip + cpu->exit.insn_len;
    bool tf = cpu->rflags_rest & X86_TF;

    if (!(cpu->mode & CPU_MODE_64)) {
        rip = cpu->mode & CPU_MODE_CS32 ? (uint32_t)rip : (uint16_t)rip;
    }
    cpu->rip = rip;
    cpu->exit.insn_len = 0;
    cpu->interrupt_shadow = 0;
    cpu->icount++;
    memset(&cpu->replay, 0, sizeof(cpu->replay));
    if (cpu->mode & CPU_MODE_TF) {
        cpu_debug_after(cpu, tf);
        if (cpu->fault.type != CPU_EVENT_NONE) {
            cpu->event = cpu->fault;
            cpu->fault.type = CPU_EVENT_NONE;
        }
    }
}
