/*
 * Decoded code: blocks of operations, found by where they are in physical memory and by mode.
 *
 * A block starts at an instruction and runs on through branches not taken until it has
 * CPU_BLOCK_MAX_INSNS, meets an unconditional transfer, or reaches the end of its page. A single instruction that
 * straddles two pages is a block of its own that depends on both.
 *
 *   linear pc -- jump_cache --> block?  va_pc, va_key and epoch say whether it is right
 *      | no
 *      +-- itlb -- pfn -- hash (pfn, offset, mode) --> block, verified against its bytes, or decoded now
 *
 * Invariants
 *  1. A block may be entered only if its epoch equals the inbox's. A block that is dead has epoch 0, which
 *     the inbox never has. Dead blocks stay in memory until the whole arena is emptied, outside of any block.
 *  2. A direct jump within a page keeps a pointer to its target block; the epoch is all there is to check,
 *     as both depend on the same physical page. Any other jump also compares va_pc and va_key: the fact
 *     "this linear address under this key is this block", whoever established it.
 *  3. Before bytes of a page are read for decoding or verifying, the page's lines are marked in
 *     peers->code_lines with a full barrier; whoever stores to memory has a TLB entry without write tag
 *     for such a page and looks at the mark after the store. So one of both sees the other.
 *
 * Locks: a block cache belongs to its processor's thread. code_lines is atomic; the list of peers has a
 * lock of its own (peers.c).
 */
#ifndef STRATA_CPU_BLOCK_H
#define STRATA_CPU_BLOCK_H

#include "cpu/op.h"

#define CPU_BLOCK_MAX_INSNS 32
#define CPU_BLOCK_MAX_OPS   96
#define CPU_JUMP_CACHE_BITS 14

struct cpu_code_page;

struct cpu_block {
    uint64_t va_pc;  /* linear address and code key under which it was last looked up */
    uint64_t va_key;
    uint32_t epoch;
    uint16_t pgoff;
    uint16_t len;    /* bytes of code */
    uint32_t mode;
    uint16_t nops;
    uint16_t straddles; /* bytes that are in the second page */
    uint64_t pfn[2];
    const uint8_t *host; /* of the first page's first byte; true as long as va_key is the current key */
    struct cpu_block *hash_next;
    struct cpu_block *page_next[2]; /* in the lists of the code pages */
    uint8_t *bytes;                 /* len of them, as decoded */
    struct cpu_op ops[] __attribute__((aligned(32)));
};

/* Where jump caches and unlinked jumps point to: never valid, and its operation never runs. */
extern const struct cpu_block cpu_block_dead;

struct cpu_block_cache *cpu_block_cache_new(void);
void cpu_block_cache_free(struct cpu_block_cache *bc);

/* Forget all blocks. Only from the run loop: no operation may be running. */
void cpu_block_flush(struct cpu *cpu);

/* The arena is so full that the run loop should flush. */
bool cpu_block_is_full(const struct cpu *cpu);

/*
 * The block at linear address `la` in the current mode, valid now and entered into the jump cache.
 * NULL: the fetch met a fault or an exit, which is recorded with cpu->rip, set by the caller before; or
 * the arena is full (nothing recorded).
 */
struct cpu_block *cpu_block_find(struct cpu *cpu, uint64_t la, uint32_t mode);

/* Bytes [pfn page + off, + len) were written by this processor: kill its blocks there, tell the peers. */
void cpu_code_written(struct cpu *cpu, uint64_t pfn, unsigned off, unsigned len);

/* Does the frame hold decoded code of any processor? */
bool cpu_frame_has_code(const struct cpu *cpu, uint64_t pfn);

/* Decode at la (host: first byte's page; n: bytes readable in a row at `code`) into a new block, or NULL
 * when the arena is full. Called by block.c alone. */
struct cpu_block *cpu_block_decode(struct cpu *cpu, const uint8_t *code, unsigned n, unsigned pgoff, uint32_t mode);

/* Room in the arena for decode.c: `nops` operations and `nbytes` bytes. */
struct cpu_block *cpu_block_alloc(struct cpu *cpu, unsigned nops, unsigned nbytes);

static always_inline unsigned cpu_jump_hash(uint64_t la)
{
    return (unsigned)(la ^ (la >> CPU_JUMP_CACHE_BITS)) & ((1u << CPU_JUMP_CACHE_BITS) - 1);
}

static always_inline uint32_t cpu_epoch(const struct cpu *cpu)
{
    return atomic_load_explicit(&cpu->inbox.epoch, memory_order_relaxed);
}

/* Is it an operation of a block of this processor's? For pointers that may be anything. */
bool cpu_block_owns(const struct cpu *cpu, const struct cpu_op *op);

#endif
