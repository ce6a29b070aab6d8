/*
 * Guest RAM that goes while the processor uses it. The embedding process may unmap, protect or truncate its memory
 * behind our back; the access then raises a signal, which must become an exit with the guest's state whole:
 * as if the second stage had refused the access.
 *
 *   access faults --> handler (base/guard.h) --> claimed: inside host_ram, and the instruction is known
 *        --> cpu_run() goes on behind base_guard_set(): RIP, flags, locks, replay as after any refused access
 *        --> CPU_EXIT_HOST_FAULT
 *
 * Which instruction it was:
 *
 *   cpu->at_op   CPU_AT_RIP   the run loop or a lookup: cpu->rip is whole
 *                an op        a slow path, which has said for whom it works (cpu_at_begin)
 *                NULL         the operation itself: its op is in RSI, which CPU_PIN() sees to; in builds without tail
 *                             calls the run loop has noted it in next_op's place, running_op
 *
 * Invariant: between the first guest access of an instruction and its last nothing architectural changes that
 * is not given back (cc_before), so that it can be run again. An instruction that must not fail half way
 * probes its places first, and the probe touches them. What goes between the probe and the store, in those
 * nanoseconds, can leave such an instruction half done.
 */
#ifndef STRATA_CPU_GUARD_H
#define STRATA_CPU_GUARD_H

#include "base/guard.h"
#include "cpu/op.h"

/* Not an operation: RIP is whole. */
#define CPU_AT_RIP ((const struct cpu_op *)1)

/*
 * Before and after each access to guest memory by an operation's own code: `op` is in RSI meanwhile. No
 * instructions, but that the compiler may not move the register's next value across.
 */
#ifdef STRATA_TAIL_CALLS
#define CPU_PIN(op) __asm__ volatile("" : : "S"(op))
#else
#define CPU_PIN(op) ((void)(op))
#endif

/* A slow path works for op from here on; gives back what was so before, for cpu_at_end(). */
static always_inline const struct cpu_op *cpu_at_begin(struct cpu *cpu, const struct cpu_op *op)
{
    const struct cpu_op *was = cpu->at_op;

    cpu->at_op = op;
    return was;
}

static always_inline void cpu_at_end(struct cpu *cpu, const struct cpu_op *was)
{
    cpu->at_op = was;
}

/* Flags before a repeated instruction; a fault in the middle of a comparison gives them back. */
static inline void cpu_flags_save(struct cpu *cpu)
{
    cpu->cc_before.dst = cpu->cc_dst;
    cpu->cc_before.src = cpu->cc_src;
    cpu->cc_before.op = cpu->cc_op;
    cpu->cc_before.valid = 1;
}

static inline void cpu_flags_restore(struct cpu *cpu)
{
    cpu->cc_dst = cpu->cc_before.dst;
    cpu->cc_src = cpu->cc_before.src;
    cpu->cc_op = cpu->cc_before.op;
    cpu->cc_before.valid = 0;
}

/* Put a guard in force around cpu_run()'s loop. */
struct cpu_guard {
    struct base_guard base;
    struct cpu *cpu;
    const struct cpu_op *op; /* found by the handler: an operation, or CPU_AT_RIP */
};

void cpu_guard_init(struct cpu_guard *g, struct cpu *cpu);

/* Behind base_guard_set(): make the processor's state whole and record the exit. What was running an
 * instruction alone is ended by the caller. */
void cpu_guard_recover(struct cpu_guard *g);

#endif
