/*
 * Compact operations: what a decoded instruction becomes. A block is an array of them; each is run by
 * its function, which ends by calling the next (cpu_next), a tail call in optimised builds, so the
 * array is threaded code.
 *
 * An operation that faults, or must leave to the hypervisor, just returns: that unwinds to the run
 * loop, with the fault or exit recorded in the cpu. So a function does all its loads and checks first
 * and commits registers after its last access.
 *
 *   struct cpu_op, 32 bytes
 *   +0 fn  +8 dst src base index  +12 shift seg len aux  +16 disp  +20 pgoff flags nth  +24 imm
 */
#ifndef STRATA_CPU_OP_H
#define STRATA_CPU_OP_H

#include "cpu/state.h"

struct cpu_op;
typedef void cpu_op_fn(struct cpu *cpu, const struct cpu_op *op);

struct cpu_op {
    cpu_op_fn *fn;
    uint8_t dst, src;    /* register numbers; for 8-bit operations byte offsets into regs[] */
    uint8_t base, index; /* of the memory operand; CPU_ZERO if absent, CPU_IP_PAGE if RIP-relative */
    uint8_t shift;       /* of the index: 0 to 3 */
    uint8_t seg;         /* index into seg_base[]; 6 = none needed (flat) */
    uint8_t len;         /* of the whole instruction, bytes */
    uint8_t aux;         /* the family's own */
    int32_t disp;        /* RIP-relative: already relative to the code page's first byte */
    uint16_t pgoff;      /* of the instruction's first byte in its code page */
    uint8_t flags;       /* CPU_OPF_* */
    uint8_t nth;         /* of the instruction in its block, from 1: instructions retired when it is done */
    uint64_t imm;        /* immediate (sign-extended), or the family's own pointer or pair */
};
_Static_assert(sizeof(struct cpu_op) == 32, "two operations a cache line");

#define CPU_OPF_EA_MASK  0x3u /* address size: 0 = 64, 1 = 32, 2 = 16 bits */
#define CPU_OPF_EA32     0x1u
#define CPU_OPF_EA16     0x2u
#define CPU_OPF_LEGACY   0x4u /* segment limits and types must be checked (CPU_MODE_LEGACY) */
#define CPU_OPF_LOCK     0x8u
#define CPU_OPF_REP      0x10u
#define CPU_OPF_REPNE    0x20u
#define CPU_OPF_FIRST    0x40u /* first operation of its instruction */
#define CPU_OPF_STACK_SS 0x80u /* the default segment is SS: limit faults are #SS */

/*
 * Go on at `op`. A tail call where the compiler makes them (STRATA_TAIL_CALLS), so an operation must
 * do it last, and must not have given out the address of a local; elsewhere (debug, sanitizers) the run
 * loop does the jump.
 */
static always_inline void cpu_goto(struct cpu *cpu, const struct cpu_op *op)
{
#ifdef STRATA_TAIL_CALLS
    op->fn(cpu, op);
#else
    cpu->next_op = op;
#endif
}

/* Go on with the operation after op. The last one of a block never calls this. */
static always_inline void cpu_next(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_goto(cpu, op + 1);
}

/* RIP of the instruction of op, and of the one behind it. */
static inline uint64_t cpu_op_rip(const struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + op->pgoff;

    return cpu->mode & CPU_MODE_64 ? rip : (uint32_t)rip;
}

static inline uint64_t cpu_op_next_rip(const struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + op->pgoff + op->len;

    return cpu->mode & CPU_MODE_64 ? rip : cpu->mode & CPU_MODE_CS32 ? (uint32_t)rip : (uint16_t)rip;
}

/* RIP at op's instruction, which has not retired: for faults and exits. Once per unwinding. */
static inline void cpu_sync_rip(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->rip = cpu_op_rip(cpu, op);
    cpu->icount += op->nth - 1u;
}

/*
 * End the block after an instruction that may have changed anything (mode, mappings, interrupt flag):
 * RIP becomes the next instruction's and the run loop looks around. Use for all system instructions.
 * An instruction that sets RIP itself calls cpu_retire() instead.
 */
static inline void cpu_retire(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->icount += op->nth;
}

static inline void cpu_end_block(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->rip = cpu_op_next_rip(cpu, op);
    cpu_retire(cpu, op);
}

#endif
