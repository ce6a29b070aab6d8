/*
 * Arithmetic flags, lazily: the last operation that set them leaves its result and operands in cc_dst,
 * cc_src and its kind in cc_op; whoever needs a flag computes it from these. CPU_CC_EFLAGS means that
 * cc_dst holds the six flags themselves, in their RFLAGS places.
 */
#ifndef STRATA_CPU_FLAGS_H
#define STRATA_CPU_FLAGS_H

#include "arch/regs.h"
#include "cpu/state.h"

/* cc_op is kind | log2(size in bytes) for the kinds below. dst and src are zero-extended. */
enum cpu_cc {
    CPU_CC_EFLAGS = 0,
    CPU_CC_ADD = 4,   /* dst = result, src = second operand */
    CPU_CC_SUB = 8,   /* dst = result, src = second operand (subtrahend) */
    CPU_CC_LOGIC = 12, /* dst = result; CF = OF = 0 */
    CPU_CC_INC = 16,  /* dst = result, src = CF before */
    CPU_CC_DEC = 20,
    CPU_CC_ADC = 24,  /* an addition with a carry in: dst = result, src = second operand */
    CPU_CC_SBB = 28,  /* a subtraction with a borrow in */
    CPU_CC_SHL = 32,  /* dst = result, src = what it was before the last bit went out */
    CPU_CC_SHR = 36,  /* the same; SAR too */
    CPU_CC_MUL = 40,  /* dst = low half, src = non-zero if the high half matters: CF and OF */
};

_Static_assert(CPU_CC_DEC == (CPU_CC_INC | 4), "one mask tests for both");

#define CPU_CC_KIND(op) ((op) & ~3u)
#define CPU_CC_SIZE(op) (1u << ((op) & 3u)) /* bytes */

/* CF alone, 0 or 1; and condition `cc` of Jcc (0 to 15), whatever set the flags. */
unsigned cpu_carry(const struct cpu *cpu);
bool cpu_condition(const struct cpu *cpu, unsigned cc);

/* The six arithmetic flags, whole. */
uint32_t cpu_arith_flags(const struct cpu *cpu);

/* RFLAGS as the guest would see it pushed. */
static inline uint64_t cpu_get_rflags(const struct cpu *cpu)
{
    return cpu_arith_flags(cpu) | cpu->rflags_rest | X86_RF1;
}

/* Set all six arithmetic flags (bits outside X86_ARITH_FLAGS are ignored). */
static inline void cpu_set_arith_flags(struct cpu *cpu, uint32_t flags)
{
    cpu->cc_op = CPU_CC_EFLAGS;
    cpu->cc_dst = flags & X86_ARITH_FLAGS;
}

/* Set RFLAGS whole. Bits are taken as given: privilege rules are the caller's. */
static inline void cpu_set_rflags(struct cpu *cpu, uint64_t rflags)
{
    cpu_set_arith_flags(cpu, (uint32_t)rflags);
    cpu->rflags_rest = (uint32_t)rflags & ~(X86_ARITH_FLAGS | X86_RF1);
}

#endif
