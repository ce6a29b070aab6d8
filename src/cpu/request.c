/*
 * Requests from other threads; request.h draws the protocol.
 *
 * Invariant: a request's bit is set before the epoch that announces it changes, so a processor that has seen
 * the epoch sees the bit.
 *
 * Locks: none, atomics only.
 */
#include "cpu/request.h"

#include <sched.h>

#include "cpu/run.h"
#include "cpu/tlb.h"

#define SPINS_BEFORE_SLEEP 2000u

/* Advance the epoch past 0, which dead blocks carry. Pairs with the relaxed load at block entries. */
void cpu_epoch_change(struct cpu *cpu)
{
    uint32_t old = atomic_load_explicit(&cpu->inbox.epoch, memory_order_relaxed);
    uint32_t new;

    do {
        new = old + 1 ? old + 1 : 1;
    } while (!atomic_compare_exchange_weak_explicit(&cpu->inbox.epoch, &old, new, memory_order_release,
                                                    memory_order_relaxed));
}

void cpu_request(struct cpu *cpu, uint32_t bits)
{
    atomic_fetch_or_explicit(&cpu->inbox.requests, bits, memory_order_seq_cst);
    cpu_epoch_change(cpu);
}

/* Serve what can be served inside. Returns true when the hypervisor must be asked: a kick. Own thread. */
bool cpu_requests_serve(struct cpu *cpu)
{
    uint32_t bits = atomic_exchange_explicit(&cpu->inbox.requests, 0, memory_order_seq_cst);

    if (bits & CPU_REQ_FLUSH) {
        uint32_t asked = atomic_load_explicit(&cpu->inbox.flush_asked, memory_order_seq_cst);

        cpu_tlb_flush_all(cpu);
        atomic_store_explicit(&cpu->inbox.flush_done, asked, memory_order_release);
    }
    return (bits & CPU_REQ_KICK) != 0;
}

void cpu_kick(struct cpu *cpu)
{
    cpu_request(cpu, CPU_REQ_KICK);
}

void cpu_request_flush(struct cpu *cpu)
{
    cpu_request(cpu, CPU_REQ_FLUSH);
}

/*
 * Flush and wait until no old translation is used. The processor is either outside cpu_run() (it serves requests
 * before its next instruction), or its last flush covers our ticket.
 */
void cpu_request_flush_wait(struct cpu *cpu)
{
    uint32_t ticket = atomic_fetch_add_explicit(&cpu->inbox.flush_asked, 1, memory_order_seq_cst) + 1;

    cpu_request(cpu, CPU_REQ_FLUSH);
    for (unsigned spins = 0; atomic_load_explicit(&cpu->inbox.in_guest, memory_order_seq_cst); spins++) {
        uint32_t done = atomic_load_explicit(&cpu->inbox.flush_done, memory_order_acquire);

        if ((int32_t)(done - ticket) >= 0) {
            return;
        }
        if (spins < SPINS_BEFORE_SLEEP) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}
