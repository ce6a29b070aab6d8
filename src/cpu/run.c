/*
 * The door: a processor's life, and the loop that everything unwinds to.
 *
 *   cpu_run() --> requests --> fault becomes event --> delivery --> windows --> blocks, or one instruction alone
 *      ^                                                                          |
 *      +---- an operation returned: fault, exit, request, end of a block ---------+
 *
 * An instruction is run alone when TF or the hypervisor single-steps, in an interrupt shadow, and when it
 * touches a device (replay.h).
 *
 * Invariants
 *  1. cpu->exit.reason is CPU_EXIT_NONE while the guest runs.
 *  2. An instruction that has begun to touch a device is finished before any event is delivered.
 *
 * Locks: none held while the guest runs. inbox.in_guest tells others that translations may be in use.
 */
#include "cpu/run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/block.h"
#include "cpu/chain.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/guard.h"
#include "cpu/peers.h"
#include "cpu/replay.h"
#include "cpu/request.h"
#include "cpu/seg.h"
#include "cpu/system.h"
#include "cpu/tlb.h"
#include "cpu/walk.h"
#include "host/frame.h"

#define DEFAULT_MAXPHYADDR 46
#define JUMP_CACHE_SIZE    (1u << CPU_JUMP_CACHE_BITS)

static bool parts_new(struct cpu *cpu)
{
    cpu->mmu = cpu_mmu_new();
    cpu->blocks = cpu_block_cache_new();
    cpu->jump_cache_own = calloc(2 * JUMP_CACHE_SIZE, sizeof(*cpu->jump_cache_own));
    if (!cpu->mmu || !cpu->blocks || !cpu->jump_cache_own) {
        return false;
    }
    cpu->jump_cache_none = cpu->jump_cache_own + JUMP_CACHE_SIZE;
    cpu->jump_cache = cpu->jump_cache_own;
    cpu_block_flush(cpu);
    return true;
}

static void parts_free(struct cpu *cpu)
{
    free(cpu->jump_cache_own);
    cpu_block_cache_free(cpu->blocks);
    cpu_mmu_free(cpu->mmu);
    free(cpu);
}

/* See run.h. */
struct cpu *cpu_new(struct host_memory *mem, struct cpu_peers *peers, unsigned index)
{
    struct cpu *cpu = aligned_alloc(64, (sizeof(*cpu) + 63) & ~(size_t)63);

    if (!cpu) {
        return NULL;
    }
    memset(cpu, 0, sizeof(*cpu));
    cpu->mem = mem;
    cpu->peers = peers;
    cpu->index = index;
    cpu->maxphyaddr = DEFAULT_MAXPHYADDR;
    cpu->tsc_ratio = UINT64_C(1) << 32;
    atomic_init(&cpu->inbox.epoch, 1);
    if (!parts_new(cpu) || cpu_peers_add(peers, cpu, mem->nr_frames)) {
        parts_free(cpu);
        return NULL;
    }
    cpu_reset(cpu, false);
    return cpu;
}

void cpu_free(struct cpu *cpu)
{
    if (cpu) {
        cpu_peers_remove(cpu->peers, cpu);
        parts_free(cpu);
    }
}

static uint64_t linear_pc(const struct cpu *cpu)
{
    return cpu->mode & CPU_MODE_64 ? cpu->rip : (uint32_t)(cpu->seg_base[CPU_CS] + cpu->rip);
}

/* Run from a block's first operation until one returns for good. */
static void block_run(struct cpu *cpu, struct cpu_block *b)
{
    cpu->regs[CPU_IP_PAGE] = cpu->rip - b->pgoff;
    cpu->at_op = NULL;
#ifdef STRATA_TAIL_CALLS
    b->ops[0].fn(cpu, b->ops);
#else
    cpu->next_op = b->ops;
    while (cpu->next_op) {
        cpu->running_op = cpu->next_op;
        cpu->next_op = NULL;
        cpu->running_op->fn(cpu, cpu->running_op);
    }
#endif
    cpu->at_op = CPU_AT_RIP;
}

static void blocks_run(struct cpu *cpu)
{
    uint64_t la = linear_pc(cpu);
    struct cpu_block *b = cpu->jump_cache[cpu_jump_hash(la)];

    if (unlikely(!cpu_block_matches(cpu, b, la))) {
        b = cpu_block_find(cpu, la, cpu->mode);
        if (!b || cpu_is_asked(cpu)) {
            return;
        }
    }
    block_run(cpu, b);
}

/* What follows an instruction run alone that has retired. */
static void step_done(struct cpu *cpu, bool traced, bool tf)
{
    if (traced) {
        cpu_debug_after(cpu, tf);
    }
    if (cpu->single_step && cpu->exit.reason == CPU_EXIT_NONE) {
        cpu->exit.reason = CPU_EXIT_DEBUG;
        cpu->exit.debug.vector = X86_DB;
        cpu->exit.debug.dr6 = 0x4000;
        cpu->exit.debug.pc = linear_pc(cpu);
    }
}

/* What follows an instruction run alone, whatever became of it. */
static void alone_end(struct cpu *cpu)
{
    cpu->alone = 0;
    cpu->jump_cache = cpu->jump_cache_own;
    if (!cpu->restart_alone) {
        cpu_replay_reset(cpu);
    }
    if (cpu->icount == cpu->alone_from.icount) {
        cpu->interrupt_shadow = cpu->alone_from.shadow;
    } else if (!cpu->restart_alone) {
        step_done(cpu, cpu->alone_from.traced, cpu->alone_from.tf);
    }
}

/* One instruction, alone. */
static void step(struct cpu *cpu)
{
    bool traced = (cpu->mode & CPU_MODE_TF) != 0;
    struct cpu_block *b;

    cpu->alone_from.tf = (cpu->rflags_rest & X86_TF) != 0;
    cpu->alone_from.traced = traced;
    cpu->alone_from.shadow = cpu->interrupt_shadow;
    cpu->alone_from.icount = cpu->icount;
    if (traced && !cpu->replay.count && !cpu_debug_before(cpu)) {
        return;
    }
    cpu->alone = 1;
    cpu->jump_cache = cpu->jump_cache_none;
    cpu->replay.next = 0;
    cpu->restart_alone = 0;
    cpu->interrupt_shadow = 0;
    b = cpu_block_find(cpu, linear_pc(cpu), cpu->mode | CPU_MODE_TF);
    if (b) {
        block_run(cpu, b);
    } else if (cpu->replay.count) {
        cpu->restart_alone = 1;
    }
    alone_end(cpu);
}

/* A fault becomes the event to deliver; an injected one that has not been begun waits. */
static void fault_take(struct cpu *cpu)
{
    if (cpu->event.type != CPU_EVENT_NONE) {
        cpu->deferred = cpu->event;
    }
    cpu->event = cpu->fault;
    cpu->fault.type = CPU_EVENT_NONE;
}

/* True: the guest can go on. */
static bool events_deliver(struct cpu *cpu)
{
    if (cpu->fault.type != CPU_EVENT_NONE) {
        fault_take(cpu);
    }
    if (cpu->event.type == CPU_EVENT_NONE) {
        if (likely(cpu->deferred.type == CPU_EVENT_NONE)) {
            return true;
        }
        cpu->event = cpu->deferred;
        cpu->deferred.type = CPU_EVENT_NONE;
    }
    return cpu_deliver_event(cpu) && cpu->deferred.type == CPU_EVENT_NONE;
}

/* Leave because the hypervisor waits for the moment when it can inject? */
static bool window_is_open(struct cpu *cpu)
{
    if (cpu->want_nmi_window && cpu_nmi_allowed(cpu)) {
        cpu->exit.reason = CPU_EXIT_NMI_WINDOW;
        return true;
    }
    if (cpu->want_intr_window && cpu_interrupt_allowed(cpu)) {
        cpu->exit.reason = CPU_EXIT_INTR_WINDOW;
        return true;
    }
    return false;
}

static void guest_run(struct cpu *cpu)
{
    while (cpu->exit.reason == CPU_EXIT_NONE) {
        if (unlikely(atomic_load(&cpu->inbox.requests)) && cpu_requests_serve(cpu)) {
            cpu->exit.reason = CPU_EXIT_KICK;
            return;
        }
        if (unlikely(cpu_block_is_full(cpu))) {
            cpu_block_flush(cpu);
        }
        if (unlikely(cpu->task_rest.left != CPU_TASK_WHOLE) && cpu->task_rest.reason != CPU_TASK_EVENT) {
            cpu_task_resume(cpu);
            continue;
        }
        if (unlikely(cpu->restart_alone)) {
            step(cpu);
            continue;
        }
        if (unlikely(cpu->finish_only)) {
            cpu->exit.reason = CPU_EXIT_KICK;
            return;
        }
        if (!events_deliver(cpu) || window_is_open(cpu)) {
            continue;
        }
        if (unlikely((cpu->mode & CPU_MODE_TF) || cpu->interrupt_shadow)) {
            step(cpu);
        } else {
            blocks_run(cpu);
        }
    }
}

/* guest_run() with host faults as exits. */
static __attribute__((noinline)) void guest_run_guarded(struct cpu *cpu)
{
    struct cpu_guard g;

    cpu_guard_init(&g, cpu);
    if (base_guard_set(&g.base)) {
        cpu_guard_recover(&g);
        if (g.cpu->alone) {
            alone_end(g.cpu);
        }
        return;
    }
    base_guard_enter(&g.base);
    guest_run(cpu);
    base_guard_leave(&g.base);
}

/* See run.h. */
void cpu_enter(struct cpu *cpu)
{
    atomic_store_explicit(&cpu->inbox.in_guest, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
}

void cpu_leave(struct cpu *cpu)
{
    atomic_store_explicit(&cpu->inbox.in_guest, 0, memory_order_release);
}

/* See run.h. */
enum cpu_exit_reason cpu_resume(struct cpu *cpu)
{
    struct cpu_fpu_host host;

    if (!atomic_load_explicit(&cpu->inbox.in_guest, memory_order_relaxed)) {
        cpu_enter(cpu);
    }
    cpu->exit.reason = CPU_EXIT_NONE;
    cpu->pause_count = 0;
    cpu->at_op = CPU_AT_RIP;
    cpu_fpu_enter(cpu, &host);
    if (cpu->host_ram) {
        guest_run_guarded(cpu);
    } else {
        guest_run(cpu);
    }
    cpu_fpu_leave(cpu, &host);
    cpu_leave(cpu);
    cpu->counters.exits[cpu->exit.reason]++;
    return cpu->exit.reason;
}

/* See run.h. Memory may have been written behind the processors' back since the last time: a new epoch makes each
 * block compare its bytes before it is entered again. */
enum cpu_exit_reason cpu_run(struct cpu *cpu)
{
    cpu_epoch_change(cpu);
    return cpu_resume(cpu);
}

/* A walk outside of cpu_run(). Tables on memory that the host does not give: a fault. */
static enum cpu_xlate_result walk_guarded(struct cpu *cpu, struct cpu_xlate *x)
{
    enum cpu_xlate_result res = CPU_XLATE_FAULT;
    struct cpu_guard g;

    if (!cpu->host_ram) {
        return cpu_guest_walk(cpu, x);
    }
    cpu->at_op = CPU_AT_RIP;
    cpu_guard_init(&g, cpu);
    if (!base_guard_set(&g.base)) {
        base_guard_enter(&g.base);
        res = cpu_guest_walk(cpu, x);
        base_guard_leave(&g.base);
        return res;
    }
    return CPU_XLATE_FAULT;
}

/* See run.h. Source: own; KVM's complete_userspace_io() leaves the instruction done likewise. */
enum cpu_exit_reason cpu_finish(struct cpu *cpu)
{
    enum cpu_exit_reason reason;

    cpu_epoch_change(cpu);
    cpu->finish_only = 1;
    reason = cpu_resume(cpu);
    cpu->finish_only = 0;
    return reason;
}

bool cpu_must_finish(const struct cpu *cpu)
{
    return cpu->restart_alone != 0;
}

/* See run.h. Walks the tables without touching accessed bits or caches. */
int cpu_translate(struct cpu *cpu, gva_t va, uint32_t access, gpa_t *out)
{
    struct cpu_xlate x = {.la = va.v, .access = CPU_ACCESS_READ, .quiet = true, .priv = CPU_PRIV_SUPER_AC};

    if (access & X86_PFEC_U) {
        x.priv = CPU_PRIV_USER;
    }
    if (access & X86_PFEC_W) {
        x.access = CPU_ACCESS_WRITE;
    } else if (access & X86_PFEC_F) {
        x.access = CPU_ACCESS_FETCH;
    }
    if (walk_guarded(cpu, &x) != CPU_XLATE_OK) {
        return -EFAULT;
    }
    *out = gpa(x.gpa);
    return 0;
}
