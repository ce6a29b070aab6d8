/* What string instructions share, with and without ports: where their elements are. */
#ifndef STRATA_CPU_STRING_OP_H
#define STRATA_CPU_STRING_OP_H

#include "arch/regs.h"
#include "cpu/access.h"
#include "cpu/emit.h"

/* One of the two sides of a string instruction. */
struct cpu_str_side {
    uint8_t reg; /* CPU_RSI or CPU_RDI */
    uint8_t seg; /* index into seg[] and seg_base[] */
    bool write;
};

static inline uint64_t cpu_str_mask(const struct cpu_op *op)
{
    return op->flags & CPU_OPF_EA16 ? 0xffff : op->flags & CPU_OPF_EA32 ? UINT32_MAX : UINT64_MAX;
}

/* Element size: aux is its logarithm. */
static inline unsigned cpu_str_size(const struct cpu_op *op)
{
    return 1u << op->aux;
}

static inline int64_t cpu_str_step(const struct cpu *cpu, const struct cpu_op *op)
{
    return cpu->rflags_rest & X86_DF ? -(int64_t)cpu_str_size(op) : (int64_t)cpu_str_size(op);
}

/* False: a fault or an exit is recorded. */
bool cpu_str_linear(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, unsigned size,
                    uint64_t *la) must_check;
bool cpu_str_load(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, uint64_t *v) must_check;
bool cpu_str_store(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, uint64_t v) must_check;
void cpu_str_add(struct cpu *cpu, const struct cpu_op *op, unsigned reg, int64_t n);
struct cpu_op *cpu_str_emit(struct cpu_emit *e, cpu_op_fn *plain, cpu_op_fn *rep);

#endif
