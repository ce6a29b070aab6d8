/*
 * The slow halves of chain.h. Each sets RIP to the target first, so that whatever happens in the lookup (a
 * fetch fault, an exit, a request) the run loop goes on from there.
 *
 * Invariant: a link is only made from a block that is alive, to a block found just now, and never while the
 * processor runs an instruction alone.
 *
 * Locks: the processor's own thread.
 */
#include "cpu/chain.h"

#include "arch/regs.h"
#include "cpu/exception.h"
#include "cpu/guard.h"
#include "cpu/request.h"

/* Somebody wants the run loop. */
static bool must_return(const struct cpu *cpu)
{
    return cpu->alone || cpu_is_asked(cpu) || cpu->exit.reason != CPU_EXIT_NONE;
}

/*
 * The block at linear address la; RIP is whole meanwhile (guard.h). NULL: recorded, or somebody has asked
 * meanwhile: the block bears the epoch of that already, and would be entered past the request for ever.
 */
static inline struct cpu_block *find(struct cpu *cpu, uint64_t la)
{
    const struct cpu_op *was = cpu_at_begin(cpu, CPU_AT_RIP);
    struct cpu_block *b = cpu_block_find(cpu, la, cpu->mode);

    cpu_at_end(cpu, was);
    return b && cpu_is_asked(cpu) ? NULL : b;
}

/* Find and enter the block at RIP, linear address la. link: where to keep it, or NULL. */
static inline void enter(struct cpu *cpu, const struct cpu_op *link, uint64_t la)
{
    struct cpu_block *b;

    if (must_return(cpu)) {
        return;
    }
    b = find(cpu, la);
    if (!b) {
        return;
    }
    if (link) {
        ((struct cpu_op *)link)->imm = (uint64_t)(uintptr_t)b;
    }
    cpu->regs[CPU_IP_PAGE] = cpu->rip - b->pgoff;
    cpu_goto(cpu, b->ops);
}

void cpu_jump_slow(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + (uint64_t)(int64_t)op->disp;
    struct cpu_block *b;

    cpu->rip = rip;
    cpu->icount += op->nth;
    if (must_return(cpu)) {
        return;
    }
    b = find(cpu, rip);
    if (!b) {
        return;
    }
    if (!b->straddles) {
        ((struct cpu_op *)op)->imm = (uint64_t)(uintptr_t)b;
    }
    cpu_goto(cpu, b->ops);
}

void cpu_jump_far_slow(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + (uint64_t)(int64_t)op->disp;

    cpu->rip = rip;
    cpu->icount += op->nth;
    enter(cpu, op, rip);
}

static bool is_canonical(const struct cpu *cpu, uint64_t rip)
{
    unsigned shift = cpu->cr4 & X86_CR4_LA57 ? 7 : 16;

    return (uint64_t)((int64_t)(rip << shift) >> shift) == rip;
}

void cpu_jump_to_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t rip)
{
    cpu->icount += op->nth;
    cpu->rip = rip;
    enter(cpu, NULL, rip);
}

/* A near transfer's target in 64-bit mode must be canonical: #GP at the transfer, before its effects. */
bool cpu_jump_allowed(struct cpu *cpu, const struct cpu_op *op, uint64_t rip)
{
    if (cpu->mode & CPU_MODE_64) {
        return likely(is_canonical(cpu, rip)) || cpu_raise_code(cpu, op, X86_GP, 0);
    }
    return likely(rip <= cpu->seg[CPU_CS].limit) || cpu_raise_code(cpu, op, X86_GP, 0);
}

void cpu_jump_legacy(struct cpu *cpu, const struct cpu_op *op, uint64_t rip)
{
    uint64_t la = (uint32_t)(cpu->seg_base[CPU_CS] + rip);
    struct cpu_block *b = cpu->jump_cache[cpu_jump_hash(la)];

    cpu->icount += op->nth;
    if (unlikely(!cpu_block_matches(cpu, b, la))) {
        cpu->rip = rip;
        enter(cpu, NULL, la);
        return;
    }
    cpu->regs[CPU_IP_PAGE] = rip - b->pgoff;
    cpu_goto(cpu, b->ops);
}

void cpu_op_stale(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_sync_rip(cpu, op);
}

void cpu_op_undefined(struct cpu *cpu, const struct cpu_op *op)
{
    (void)cpu_raise(cpu, op, X86_UD);
}

void cpu_op_chain_page(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_jump_page(cpu, op);
}

void cpu_op_chain_far(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_jump_far(cpu, op);
}

void cpu_op_chain_legacy(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + (uint64_t)(int64_t)op->disp;

    cpu_jump_legacy(cpu, op, cpu->mode & CPU_MODE_CS32 ? (uint32_t)rip : (uint16_t)rip);
}
