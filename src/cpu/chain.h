/*
 * From one block to the next without going back to the run loop. Three ways: a direct jump within the page (only
 * the epoch to check), any other direct jump, and an indirect one through the jump cache (both check
 * linear address and code key). What does not match goes to the slow functions, which look the block up, link it
 * and enter it, or return to the run loop when that has work to do.
 *
 * Fields of a direct jump's operation: disp: target, relative to the code page's first byte; imm: the target
 * block, or cpu_block_dead; nth: instructions retired with it. In legacy modes the target may wrap, so
 * these compute it and take the general way.
 */
#ifndef STRATA_CPU_CHAIN_H
#define STRATA_CPU_CHAIN_H

#include "cpu/block.h"

/* The slow ways. Tail-called: no return value. */
void cpu_jump_slow(struct cpu *cpu, const struct cpu_op *op);      /* direct, same page */
void cpu_jump_far_slow(struct cpu *cpu, const struct cpu_op *op);  /* direct, another page */
void cpu_jump_to_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t rip);

/* Legacy modes: direct or indirect; rip is truncated already, and cpu_jump_allowed() has been asked. */
void cpu_jump_legacy(struct cpu *cpu, const struct cpu_op *op, uint64_t rip);

/* May a near transfer go there (canonical, within CS's limit)? Records #GP if not. */
bool cpu_jump_allowed(struct cpu *cpu, const struct cpu_op *op, uint64_t rip) must_check;

/* Stamped over the operations of a block that is no longer true: back to the run loop, at this instruction. */
void cpu_op_stale(struct cpu *cpu, const struct cpu_op *op);

/* #UD, for what cannot be decoded. */
void cpu_op_undefined(struct cpu *cpu, const struct cpu_op *op);

/* Ends of blocks that stop for want of room: direct jumps to the next instruction. */
void cpu_op_chain_page(struct cpu *cpu, const struct cpu_op *op);
void cpu_op_chain_far(struct cpu *cpu, const struct cpu_op *op);
void cpu_op_chain_legacy(struct cpu *cpu, const struct cpu_op *op);

/* Does the instruction at the start of n bytes end within them? decode.c. */
bool cpu_decode_fits(const uint8_t *code, unsigned n, uint32_t mode);

static always_inline void cpu_jump_page(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_block *b = (struct cpu_block *)(uintptr_t)op->imm;

    if (unlikely(b->epoch != cpu_epoch(cpu))) {
        cpu_jump_slow(cpu, op);
        return;
    }
    cpu->icount += op->nth;
    cpu_goto(cpu, b->ops);
}

static always_inline bool cpu_block_matches(const struct cpu *cpu, const struct cpu_block *b, uint64_t la)
{
    return b->va_pc == la && b->va_key == cpu->code_key[la >> 63] && b->epoch == cpu_epoch(cpu);
}

static always_inline void cpu_jump_far(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_block *b = (struct cpu_block *)(uintptr_t)op->imm;
    uint64_t rip = cpu->regs[CPU_IP_PAGE] + (uint64_t)(int64_t)op->disp;

    if (unlikely(!cpu_block_matches(cpu, b, rip))) {
        cpu_jump_far_slow(cpu, op);
        return;
    }
    cpu->icount += op->nth;
    cpu->regs[CPU_IP_PAGE] = rip & PAGE_MASK;
    cpu_goto(cpu, b->ops);
}

/* Indirect, 64-bit mode. */
static always_inline void cpu_jump_to(struct cpu *cpu, const struct cpu_op *op, uint64_t rip)
{
    struct cpu_block *b = cpu->jump_cache[cpu_jump_hash(rip)];

    if (unlikely(!cpu_block_matches(cpu, b, rip))) {
        cpu_jump_to_slow(cpu, op, rip);
        return;
    }
    cpu->icount += op->nth;
    cpu->regs[CPU_IP_PAGE] = rip & PAGE_MASK;
    cpu_goto(cpu, b->ops);
}

/*
 * Go on behind an instruction that has changed mappings and nothing else (INVLPG, MOV to CR3): the block that
 * follows is found under the new code key. Does what cpu_end_block() does, without the way round by the run loop.
 */
static always_inline void cpu_continue(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->mode & CPU_MODE_64) {
        cpu_jump_to(cpu, op, cpu_op_next_rip(cpu, op));
        return;
    }
    cpu_end_block(cpu, op);
}

#endif
