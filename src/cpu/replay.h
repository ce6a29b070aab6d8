/*
 * Device accesses of one instruction, so that it can be restarted until all its data are there; exit.h
 * tells the protocol. Memory and port accesses share it.
 *
 * An instruction that meets a device is run alone (a block of one): a write must be the last thing
 * before cpu_run() returns. Met in a longer block it is given up and restarted: CPU_REPLAY_RESTART.
 */
#ifndef STRATA_CPU_REPLAY_H
#define STRATA_CPU_REPLAY_H

#include "cpu/op.h"

enum cpu_replay_state {
    CPU_REPLAY_DONE,    /* read: data are in the buffer; write: was done by an earlier run */
    CPU_REPLAY_NEW,     /* read: caller records the exit and unwinds; write: caller records the exit, goes on */
    CPU_REPLAY_RESTART, /* unwind; RIP is synchronised, nothing else to do */
};

/* Read of `size` (1 to 16) bytes at gpa or port `addr`. RIP is synchronised on _NEW and _RESTART. */
enum cpu_replay_state cpu_replay_read(struct cpu *cpu, const struct cpu_op *op, bool is_io, uint64_t addr,
                                      void *data, unsigned size);

/* Write. On _NEW the access is on the list as done and the instruction must be run to its end; RIP is
 * not touched then. */
enum cpu_replay_state cpu_replay_write(struct cpu *cpu, const struct cpu_op *op, bool is_io, uint64_t addr,
                                       const void *data, unsigned size);

/* Put an answered port read on the list. */
void cpu_replay_answer(struct cpu *cpu, uint16_t port, const void *data, unsigned size);

/* The instruction, or one iteration of a repeated one, is complete: the list starts anew. */
static inline void cpu_replay_reset(struct cpu *cpu)
{
    cpu->replay.count = 0;
    cpu->replay.next = 0;
}

/* A repeated instruction must stop after this iteration: a device write waits for its exit, or somebody
 * asks for attention. RIP then stays at the instruction unless it is finished. */
static inline bool cpu_must_leave(const struct cpu *cpu)
{
    return cpu->exit.reason != CPU_EXIT_NONE ||
           atomic_load_explicit(&cpu->inbox.requests, memory_order_relaxed) != 0;
}

#endif
