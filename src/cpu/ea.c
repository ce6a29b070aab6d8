/*
 * Addresses in full: 16-, 32- and 64-bit forms, segment bases, and in legacy modes the checks of limit
 * and type. The fast operations have the 64-bit form inline (insn.h).
 *
 * Invariant: a false or not-ok return has recorded #GP or #SS.
 */
#include "arch/regs.h"
#include "cpu/access.h"
#include "cpu/exception.h"
#include "cpu/insn.h"

#define SEG_NONE 6

static uint64_t offset_of(const struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t off = cpu->regs[op->base] + (cpu->regs[op->index] << op->shift) + (uint64_t)(int64_t)op->disp;

    if (op->flags & CPU_OPF_EA16) {
        /* 16-bit registers may have anything above; carries out of bit 15 are cut together with it. */
        return (uint16_t)off;
    }
    return op->flags & CPU_OPF_EA32 ? (uint32_t)off : off;
}

static bool seg_fault(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg seg)
{
    return cpu_raise_code(cpu, op, seg == CPU_SS ? X86_SS : X86_GP, 0);
}

/* An expand-down data segment ends below; its offsets reach from limit + 1 to 64 KiB or 4 GiB. */
static bool within_limit(const struct cpu_seg *s, uint64_t off, unsigned size)
{
    uint64_t last = off + size - 1;

    if (s->s && (s->type & 0xc) == 0x4) {
        return off > s->limit && last <= (s->db ? UINT32_MAX : 0xffff);
    }
    return last <= s->limit;
}

static bool type_allows(const struct cpu *cpu, const struct cpu_seg *s, bool write)
{
    if (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        return true;
    }
    if (s->unusable || !s->p) {
        return false;
    }
    if (s->type & 0x8) { /* code: readable, never writable */
        return !write && (s->type & 0x2);
    }
    return !write || (s->type & 0x2);
}

/* See access.h. Source: Intel, "Limit checking", "Type checking". */
bool cpu_seg_linear(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg seg, uint64_t off, unsigned size,
                    bool write, uint64_t *la)
{
    const struct cpu_seg *s = &cpu->seg[seg];

    if (cpu->mode & CPU_MODE_64) {
        *la = off + cpu->seg_base[seg];
        return true;
    }
    if (((cpu->mode & CPU_MODE_LEGACY) || seg == CPU_CS) && unlikely(!type_allows(cpu, s, write) || !within_limit(s, off, size))) {
        return seg_fault(cpu, op, seg);
    }
    *la = (uint32_t)(off + cpu->seg_base[seg]);
    return true;
}

bool cpu_ea(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool write, uint64_t *la)
{
    uint64_t off = offset_of(cpu, op);

    if (op->seg == SEG_NONE) {
        *la = off;
        return true;
    }
    return cpu_seg_linear(cpu, op, (enum cpu_segreg)op->seg, off, size, write, la);
}

struct cpu_word cpu_ea_word(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool write)
{
    struct cpu_word w = {0, 0};

    w.ok = cpu_ea(cpu, op, size, write, &w.v);
    return w;
}

/* See insn.h. */
struct cpu_op *cpu_emit_mem_op(struct cpu_emit *e, const struct mem_fns *fns, const ZydisDecodedOperand *m)
{
    struct cpu_op *op = cpu_emit_op(e, fns->s);

    if (!op) {
        return NULL;
    }
    cpu_emit_mem(e, op, m);
    if ((e->mode & (CPU_MODE_64 | CPU_MODE_TF)) == CPU_MODE_64 && !(op->flags & CPU_OPF_EA_MASK)) {
        op->fn = op->index == CPU_ZERO && op->seg == SEG_NONE ? fns->b : fns->x;
    }
    return op;
}
