/*
 * FPU and SSE state as images, for FXSAVE/XSAVE and for KVM_GET/SET_FPU and _XSAVE; and the exchange of
 * the host's floating-point controls for the guest's while a processor runs.
 */
#ifndef STRATA_CPU_FPU_H
#define STRATA_CPU_FPU_H

#include "cpu/state.h"

#define CPU_MXCSR_FLAGS   0x3fu
#define CPU_MXCSR_MASKS   0x1f80u
#define CPU_MXCSR_FTZ     0x8000u
#define CPU_MXCSR_DEFAULT 0x1f80u
#define CPU_MXCSR_VALID   0xffffu /* MXCSR_MASK as FXSAVE shows it */

#define CPU_FCW_DEFAULT 0x37fu
#define CPU_FSW_IE      0x1u
#define CPU_FSW_FLAGS   0x3fu /* the six exceptions, as in the control word's masks */
#define CPU_FSW_SF      0x40u
#define CPU_FSW_ES      0x80u
#define CPU_FSW_B       0x8000u
#define CPU_FSW_TOP     0x3800u

/* The host's controls, kept by cpu_run() between the two calls. */
struct cpu_fpu_host {
    uint32_t mxcsr;
    uint16_t fcw;
};

/* Put the guest's MXCSR (all exceptions masked) and the default x87 control word in place of the
 * host's; and back, collecting the flags. cpu_run() calls these at its start and end. */
void cpu_fpu_enter(const struct cpu *cpu, struct cpu_fpu_host *host);
void cpu_fpu_leave(struct cpu *cpu, const struct cpu_fpu_host *host);

/* Between enter and leave: bring cpu->mxcsr's flags up to date; make a change of cpu->mxcsr felt. */
void cpu_mxcsr_sync(struct cpu *cpu);
void cpu_mxcsr_changed(const struct cpu *cpu);

/* Write the 512-byte FXSAVE image (64-bit form, all 16 XMM). image: 512 bytes, fully written. */
void cpu_fxsave_image(const struct cpu *cpu, void *image);

/* Load one. Returns 0, or -EINVAL when MXCSR has reserved bits set (nothing changed). */
int cpu_fxrstor_image(struct cpu *cpu, const void *image) must_check;

/* FNINIT, and MXCSR to its reset value. */
void cpu_fpu_reset(struct cpu *cpu);

/* FNINIT alone: controls, status and tags; the registers keep their contents. */
void cpu_x87_init(struct cpu_x87 *x87);

/* A control word as the unit keeps it: bit 6 reads as one, other reserved bits as zero. */
static inline uint16_t cpu_x87_fcw(unsigned v)
{
    return (uint16_t)((v & 0x1f3f) | 0x40);
}

/* The status word with TOP in its place; and the reverse. Both keep ES and B consistent with FCW. */
uint16_t cpu_x87_fsw(const struct cpu_x87 *x87);
void cpu_x87_set_fsw(struct cpu_x87 *x87, uint16_t fsw);

/* Is an unmasked exception waiting to be reported? */
static inline bool cpu_x87_pending(const struct cpu_x87 *x87)
{
    return (x87->fsw & ~x87->fcw & CPU_FSW_FLAGS) != 0;
}

/* The two-bit tags that FNSAVE stores, from the abridged ones and the contents; and the reverse. */
uint16_t cpu_x87_full_tags(const struct cpu_x87 *x87);
uint8_t cpu_x87_abridge_tags(uint16_t full);

#endif
