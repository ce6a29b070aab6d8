/*
 * What the integer families are made of: registers by size, memory operands with a fast and a slow path, and
 * the macros that make the variants of an operation from one body.
 *
 * A memory operation has three functions from one body:
 *   name_b  address is base + displacement, RIP-relative included; flat
 *   name_x  any address form of 64-bit mode
 *   name_s  any form at all, any byte: calls the slow memory path
 * _b and _x touch nothing until the TLB has said yes; if it says no they go over to _s by a tail
 * call, so they need no stack frame. Legacy modes use _s alone.
 */
#ifndef STRATA_CPU_INSN_H
#define STRATA_CPU_INSN_H

#include "cpu/access.h"
#include "cpu/emit.h"
#include "cpu/flags.h"
#include "cpu/op.h"

#define CPU_INSN(mnemonic, fn) cpu_emit_fn fn;
#include "cpu/core.def"
#undef CPU_INSN

#define CPU_COLD __attribute__((noinline, cold))

/* A register's value at a size (bytes); r is a byte offset for size 1. */
static always_inline uint64_t reg_get(const struct cpu *cpu, unsigned r, unsigned size)
{
    switch (size) {
    case 1:
        return ((const uint8_t *)cpu->regs)[r];
    case 2:
        return (uint16_t)cpu->regs[r];
    case 4:
        return (uint32_t)cpu->regs[r];
    default:
        return cpu->regs[r];
    }
}

static always_inline void reg_set(struct cpu *cpu, unsigned r, unsigned size, uint64_t v)
{
    switch (size) {
    case 1:
        ((uint8_t *)cpu->regs)[r] = (uint8_t)v;
        break;
    case 2:
        cpu->regs[r] = (cpu->regs[r] & ~UINT64_C(0xffff)) | (uint16_t)v;
        break;
    case 4:
        cpu->regs[r] = (uint32_t)v;
        break;
    default:
        cpu->regs[r] = v;
    }
}

static always_inline uint64_t trunc_to(uint64_t v, unsigned size)
{
    return size == 8 ? v : v & ((UINT64_C(1) << (size * 8)) - 1);
}

static always_inline int64_t sign_of(uint64_t v, unsigned size)
{
    unsigned shift = 64 - size * 8;

    return (int64_t)(v << shift) >> shift;
}

static always_inline unsigned log2_size(unsigned size)
{
    return size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3;
}

static always_inline void cc_set(struct cpu *cpu, unsigned kind, unsigned size, uint64_t dst, uint64_t src)
{
    cpu->cc_op = kind | log2_size(size);
    cpu->cc_dst = dst;
    cpu->cc_src = src;
}

/* Which variant a body is compiled for. */
enum mem_path { MEM_BASE, MEM_FULL, MEM_SLOW };

/* The general address, out of line, with all checks. */
struct cpu_word cpu_ea_word(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool write);

/* Linear address of the memory operand. Only MEM_SLOW can fail. */
static always_inline struct cpu_word mem_ea(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                            unsigned size, bool write)
{
    uint64_t la = cpu->regs[op->base] + (uint64_t)(int64_t)op->disp;

    if (path == MEM_SLOW) {
        return cpu_ea_word(cpu, op, size, write);
    }
    if (path == MEM_FULL) {
        la += (cpu->regs[op->index] << op->shift) + cpu->seg_base[op->seg];
    }
    return (struct cpu_word){la, true};
}

/* Guest bytes by op's own code (guard.h). */
static always_inline uint64_t op_get(const struct cpu_op *op, const void *p, unsigned size)
{
    uint64_t v;

    CPU_PIN(op);
    v = cpu_guest_get_sized(p, size);
    CPU_PIN(op);
    return v;
}

static always_inline void op_put(const struct cpu_op *op, void *p, unsigned size, uint64_t v)
{
    CPU_PIN(op);
    cpu_guest_put_sized(p, size, v);
    CPU_PIN(op);
}

/* Load and store at a linear address. Not ok: on a fast path, go over to the slow variant; on the slow one,
 * a fault or exit is recorded. Nothing has been changed. */
static always_inline struct cpu_word mem_load(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                              uint64_t la, unsigned size)
{
    const void *p = cpu_fast_read(cpu, la, size);

    if (unlikely(!p)) {
        return path == MEM_SLOW ? cpu_load_slow(cpu, op, la, size) : (struct cpu_word){0, 0};
    }
    return (struct cpu_word){op_get(op, p, size), 1};
}

static always_inline bool mem_store(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, uint64_t la,
                                    unsigned size, uint64_t v)
{
    void *p = cpu_fast_write(cpu, la, size);

    if (unlikely(!p)) {
        return path == MEM_SLOW && cpu_store_slow(cpu, op, la, v, size);
    }
    op_put(op, p, size, v);
    return true;
}

/* For read-modify-write: the operand's place, judged for writing before it is read. On the fast paths the host
 * pointer; on the slow one the value, with the place to be found again by the store. */
struct mem_rw {
    uint64_t v;
    void *p;
    uint64_t ok;
};

static always_inline struct mem_rw mem_load_rw(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                               uint64_t la, unsigned size)
{
    void *p = cpu_fast_write(cpu, la, size);

    if (unlikely(!p)) {
        struct cpu_word w = path == MEM_SLOW ? cpu_load_rw_slow(cpu, op, la, size) : (struct cpu_word){0, 0};

        return (struct mem_rw){w.v, NULL, w.ok};
    }
    return (struct mem_rw){op_get(op, p, size), p, 1};
}

/* The store that goes with it. p is still good: nothing has run in between. */
static always_inline bool mem_store_rw(struct cpu *cpu, const struct cpu_op *op, enum mem_path path, uint64_t la,
                                       unsigned size, const struct mem_rw *m, uint64_t v)
{
    if (path == MEM_SLOW && unlikely(!m->p)) {
        return cpu_store_slow(cpu, op, la, v, size);
    }
    op_put(op, m->p, size, v);
    return true;
}

/* In a body with parameters cpu, op, path and slow. */
#define MEM_BAIL()                                                                                 \
    do {                                                                                           \
        if (path != MEM_SLOW) {                                                                    \
            slow(cpu, op);                                                                         \
        }                                                                                          \
        return;                                                                                    \
    } while (0)

/* The three functions of a memory operation. body(cpu, op, path, slow, ...) is always_inline. */
#define MEM_OP(name, body, ...)                                                                    \
    CPU_COLD static void name##_s(struct cpu *cpu, const struct cpu_op *op)                        \
    {                                                                                              \
        body(cpu, op, MEM_SLOW, NULL, __VA_ARGS__);                                                \
    }                                                                                              \
    static void name##_x(struct cpu *cpu, const struct cpu_op *op)                                 \
    {                                                                                              \
        body(cpu, op, MEM_FULL, name##_s, __VA_ARGS__);                                            \
    }                                                                                              \
    static void name##_b(struct cpu *cpu, const struct cpu_op *op)                                 \
    {                                                                                              \
        body(cpu, op, MEM_BASE, name##_s, __VA_ARGS__);                                            \
    }

/* The trio in a table. */
struct mem_fns {
    cpu_op_fn *b, *x, *s;
};
#define MEM_FNS(name)                                                                              \
    {                                                                                              \
        name##_b, name##_x, name##_s                                                               \
    }

/* Append the variant that the operand's form allows. NULL: no room. */
struct cpu_op *cpu_emit_mem_op(struct cpu_emit *e, const struct mem_fns *fns, const ZydisDecodedOperand *m);

/* Index of a size in tables by size: 8, 16, 32, 64 bits. -1: none of these. */
static inline int size_index(unsigned bits)
{
    return bits == 8 ? 0 : bits == 16 ? 1 : bits == 32 ? 2 : bits == 64 ? 3 : -1;
}

/* Register number of an operand as the operations of its size want it. */
static inline uint8_t emit_reg_any(const ZydisDecodedOperand *o)
{
    return o->size == 8 ? cpu_emit_reg8(o->reg.value) : cpu_emit_reg(o->reg.value);
}

static inline bool is_reg(const ZydisDecodedOperand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_REGISTER;
}

static inline bool is_mem(const ZydisDecodedOperand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_MEMORY;
}

static inline bool is_imm(const ZydisDecodedOperand *o)
{
    return o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE;
}

/* Width of the first operand, as an index; the operation's size for nearly all instructions. */
static inline int emit_size(const struct cpu_emit *e)
{
    return size_index(e->opnd[0].size);
}

#endif
