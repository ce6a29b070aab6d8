/*
 * The registers as one sees them from outside: what KVM_GET/SET_REGS, SREGS, DEBUGREGS, MSRS, XCRS and
 * VCPU_EVENTS need. The second door of src/cpu beside run.h; valid only while the processor is outside
 * cpu_run(), called by the thread that owns it.
 */
#ifndef STRATA_CPU_REGS_H
#define STRATA_CPU_REGS_H

#include "cpu/state.h"

struct cpu_regs {
    uint64_t gpr[16]; /* in encoding order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8.. */
    uint64_t rip, rflags;
};

struct cpu_sregs {
    struct cpu_seg seg[CPU_NSEGS], ldtr, tr;
    struct cpu_dtable gdtr, idtr;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer;
};

struct cpu_dregs {
    uint64_t db[4], dr6, dr7;
};

/* What is on its way into the guest besides registers. */
struct cpu_events {
    struct cpu_event event; /* injected and not delivered; type CPU_EVENT_NONE if none */
    bool interrupt_shadow, nmi_blocked;
};

void cpu_get_regs(const struct cpu *cpu, struct cpu_regs *out);
void cpu_set_regs(struct cpu *cpu, const struct cpu_regs *in);

void cpu_get_sregs(const struct cpu *cpu, struct cpu_sregs *out);

/* Load all of them. 0, or -EINVAL when the combination is not one that a processor can be in (long mode
 * without PAE, reserved bits, ...): nothing changed then. Flushes translations and derives the mode. */
int cpu_set_sregs(struct cpu *cpu, const struct cpu_sregs *in) must_check;

void cpu_get_dregs(const struct cpu *cpu, struct cpu_dregs *out);

/* 0, or -EINVAL when DR6 or DR7 has bits set above 31. */
int cpu_set_dregs(struct cpu *cpu, const struct cpu_dregs *in) must_check;

/* What a debugger outside asks for: each ends in CPU_EXIT_DEBUG. */
struct cpu_guest_debug {
    bool single_step;   /* after every instruction */
    bool int3;          /* INT3: vector 3, RIP at it */
    bool breakpoints;   /* db and dr7 instead of the guest's own: vector 1 */
    uint64_t db[4], dr7;
};

void cpu_set_guest_debug(struct cpu *cpu, const struct cpu_guest_debug *in);

void cpu_get_events(const struct cpu *cpu, struct cpu_events *out);
void cpu_set_events(struct cpu *cpu, const struct cpu_events *in);

/*
 * The processor's own MSRs: TSC, SYSENTER_*, STAR, LSTAR, CSTAR, SFMASK, EFER, FS/GS/KERNEL_GS_BASE,
 * TSC_AUX, PAT, DEBUGCTL, MISC_ENABLE, SPEC_CTRL, PRED_CMD (write only), XSS.
 * get: 0, or -ENOENT when index is not one of them (the hypervisor's, or nobody's).
 * set: also -EINVAL for a value that raises #GP. Both do what WRMSR does, minus privilege; the
 * hypervisor may set bits that a guest's write would find read-only (EFER.LMA).
 */
int cpu_get_msr(const struct cpu *cpu, uint32_t index, uint64_t *value) must_check;
int cpu_set_msr(struct cpu *cpu, uint32_t index, uint64_t value) must_check;
int cpu_set_msr_guest(struct cpu *cpu, uint32_t index, uint64_t value) must_check;

/* XCR0 (index 0), with XSETBV's rules: -EINVAL is #GP. For CPU_EXIT_XSETBV: set, then cpu_skip_insn(). */
int cpu_set_xcr(struct cpu *cpu, uint32_t index, uint64_t value) must_check;

/* The guest's time stamp counter now. */
uint64_t cpu_read_tsc(const struct cpu *cpu);

#endif
