/*
 * What all emitters share: appending operations, memory operands, register numbers; see emit.h.
 * No state, no locks.
 */
#include "cpu/emit.h"

#include <string.h>

/* See emit.h. */
struct cpu_op *cpu_emit_op(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op;

    if (e->nops >= e->max_ops) {
        return NULL;
    }
    op = &e->ops[e->nops];
    memset(op, 0, sizeof(*op));
    op->fn = fn;
    op->base = CPU_ZERO;
    op->index = CPU_ZERO;
    op->seg = 6;
    op->len = e->in.length;
    op->pgoff = e->pgoff;
    op->nth = e->nth;
    if (e->nops == 0 || e->ops[e->nops - 1].pgoff != e->pgoff) {
        op->flags |= CPU_OPF_FIRST;
    }
    if (!(e->mode & CPU_MODE_64) && (e->mode & CPU_MODE_LEGACY)) {
        op->flags |= CPU_OPF_LEGACY;
    }
    e->nops++;
    return op;
}

static uint8_t segment_index(ZydisRegister r)
{
    switch (r) {
    case ZYDIS_REGISTER_ES:
        return CPU_ES;
    case ZYDIS_REGISTER_CS:
        return CPU_CS;
    case ZYDIS_REGISTER_SS:
        return CPU_SS;
    case ZYDIS_REGISTER_FS:
        return CPU_FS;
    case ZYDIS_REGISTER_GS:
        return CPU_GS;
    default:
        return CPU_DS;
    }
}

/* Number of an address register; the instruction pointer is relative to the page. */
static uint8_t address_register(ZydisRegister r)
{
    if (r == ZYDIS_REGISTER_NONE) {
        return CPU_ZERO;
    }
    if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP) {
        return CPU_IP_PAGE;
    }
    return cpu_emit_reg(r);
}

static uint8_t scale_shift(unsigned scale)
{
    return scale > 1 ? (uint8_t)__builtin_ctz(scale) : 0;
}

/* ModRM.mod 0 with SIB.base 5 has a 32-bit displacement and no base. Zydis 4.0.0 names R13D as the base of this
 * form when there are both a 67 prefix and REX.B. */
static bool has_sib_without_base(const ZydisDecodedInstruction *in)
{
    return (in->attributes & ZYDIS_ATTRIB_HAS_SIB) && in->raw.modrm.mod == 0 && in->raw.sib.base == 5;
}

/* See emit.h. In 64-bit mode only FS and GS have a base; elsewhere a flat mode's are all zero but theirs. */
void cpu_emit_mem(struct cpu_emit *e, struct cpu_op *op, const ZydisDecodedOperand *m)
{
    uint8_t seg = segment_index(m->mem.segment);

    op->base = address_register(m->mem.base);
    op->index = address_register(m->mem.index);
    op->shift = scale_shift(m->mem.scale);
    op->disp = (int32_t)m->mem.disp.value;
    if (has_sib_without_base(&e->in)) {
        op->base = CPU_ZERO;
        op->disp = (int32_t)e->in.raw.disp.value;
    }
    if (op->base == CPU_IP_PAGE) {
        op->disp += e->pgoff + e->in.length;
    }
    op->flags &= (uint8_t)~CPU_OPF_EA_MASK;
    if (e->in.address_width == 32) {
        op->flags |= CPU_OPF_EA32;
    } else if (e->in.address_width == 16) {
        op->flags |= CPU_OPF_EA16;
    }
    if (seg == CPU_SS) {
        op->flags |= CPU_OPF_STACK_SS;
    }
    op->seg = seg;
    if ((e->mode & CPU_MODE_64) && seg != CPU_FS && seg != CPU_GS) {
        op->seg = 6;
    }
}

/* See emit.h. */
uint8_t cpu_emit_reg(ZydisRegister r)
{
    return (uint8_t)ZydisRegisterGetId(r);
}

uint8_t cpu_emit_reg8(ZydisRegister r)
{
    ZyanI8 id = ZydisRegisterGetId(r);

    if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH) {
        return (uint8_t)((r - ZYDIS_REGISTER_AH) * 8 + 1);
    }
    if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B) {
        return (uint8_t)((r - ZYDIS_REGISTER_SPL + 4) * 8);
    }
    return (uint8_t)((id & 15) * 8);
}
