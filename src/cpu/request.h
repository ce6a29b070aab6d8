/*
 * What other threads ask of a processor. They set a bit of inbox.requests, then change inbox.epoch;
 * the processor compares the epoch at every block entry, so it sees the request within one block, and the
 * comparison is the one that it makes anyway to know that its blocks are still what memory says.
 *
 *      other thread                          processor
 *      ticket = ++flush_asked                epoch differs from the block's
 *      requests |= X      (seq_cst)          requests exchanged for 0 (seq_cst)
 *      epoch += 1         (release)          s = flush_asked, then flush
 *      wait: flush_done >= ticket,           flush_done = s (release)
 *            or not in_guest
 *
 * A ticket that the processor reads was drawn before the flush that follows, whether or not its bit has been
 * set yet: so flush_done may cover it.
 */
#ifndef STRATA_CPU_REQUEST_H
#define STRATA_CPU_REQUEST_H

#include "cpu/state.h"

#define CPU_REQ_KICK  0x1u
#define CPU_REQ_FLUSH 0x2u /* everything that came from translations */
#define CPU_REQ_CODE  0x4u /* code may have changed: the new epoch itself is the message */

/* From any thread: set bits and change the epoch. */
void cpu_request(struct cpu *cpu, uint32_t bits);

/* The processor's own: serve all but CPU_REQ_KICK; returns true when a kick was asked for. */
bool cpu_requests_serve(struct cpu *cpu);

/*
 * Has anybody asked for anything? To be looked at after the epoch has been read that a block is entered with
 * (cpu_block_find() does that, with acquire): a bit is set before its epoch, so it is seen here or its epoch is yet to
 * come. Looked at before that only, a request between the two is noticed by nobody.
 */
static inline bool cpu_is_asked(const struct cpu *cpu)
{
    return atomic_load_explicit(&cpu->inbox.requests, memory_order_relaxed) != 0;
}

/* A new epoch, never 0. */
void cpu_epoch_change(struct cpu *cpu);

#endif
