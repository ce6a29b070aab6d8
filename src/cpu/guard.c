/*
 * Faults of the host at guest RAM; see guard.h.
 *
 * Locks: none taken; gives back peers->split_lock if the interrupted access held it.
 */
#include "cpu/guard.h"

#include <immintrin.h>

#include "cpu/block.h"
#include "cpu/peers.h"

static bool is_guest_ram(const struct cpu *cpu, uintptr_t addr)
{
    return addr >= atomic_load_explicit(&cpu->host_ram->start, memory_order_relaxed) &&
           addr < atomic_load_explicit(&cpu->host_ram->end, memory_order_relaxed);
}

/* In the signal handler. */
static bool claims(struct base_guard *base, const struct base_guard_fault *f)
{
    struct cpu_guard *g = container_of(base, struct cpu_guard, base);
    struct cpu *cpu = g->cpu;

    if (!is_guest_ram(cpu, f->addr)) {
        return false;
    }
    g->op = cpu->at_op;
    if (!g->op) {
#ifdef STRATA_TAIL_CALLS
        g->op = (const struct cpu_op *)f->second_argument;
#else
        g->op = cpu->running_op;
#endif
        return cpu_block_owns(cpu, g->op);
    }
    return true;
}

void cpu_guard_init(struct cpu_guard *g, struct cpu *cpu)
{
    g->base.claims = claims;
    g->cpu = cpu;
}

/* See guard.h. An exit that is already recorded, a device write of the same instruction, is told first; the
 * instruction is run again then. */
void cpu_guard_recover(struct cpu_guard *g)
{
    struct cpu *cpu = g->cpu;

    _mm_setcsr(g->base.fault.mxcsr); /* the handler's was the kernel's default */
    if (g->op != CPU_AT_RIP) {
        cpu_sync_rip(cpu, g->op);
    }
    cpu->at_op = CPU_AT_RIP;
    if (cpu->cc_before.valid) {
        cpu_flags_restore(cpu);
    }
    if (cpu->holds_split_lock) {
        cpu->holds_split_lock = 0;
        pthread_mutex_unlock(&cpu->peers->split_lock);
    }
    if (cpu->replay.count) {
        cpu->restart_alone = 1;
    }
    if (cpu->exit.reason == CPU_EXIT_NONE) {
        cpu->exit.reason = CPU_EXIT_HOST_FAULT;
        cpu->exit.host.addr = hva(g->base.fault.addr);
        cpu->exit.host.is_poison = g->base.fault.is_poison;
    }
}
