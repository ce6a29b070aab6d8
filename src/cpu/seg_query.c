/*
 * Questions about selectors: LAR, LSL, VERR, VERW; and ARPL, which adjusts one. Answers are in ZF; nothing
 * is loaded and a selector that cannot be used is no fault. #UD in real and virtual-8086 mode.
 *
 * Source: Intel, the instructions' pages; which types each accepts is a table there and here. Locks: none.
 */
#include "cpu/flags.h"
#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/system.h"

/* System types, as a set of bits, that LAR and LSL accept. */
#define TYPES_LAR      0x1a3eu /* 1 2 3 4 5 9 11 12 */
#define TYPES_LSL      0x0a0eu /* 1 2 3 9 11 */
#define TYPES_LAR_LONG 0x1a04u /* 2 9 11 12 */
#define TYPES_LSL_LONG 0x0a04u /* 2 9 11 */

static void set_zf(struct cpu *cpu, bool zf)
{
    cpu_set_arith_flags(cpu, (cpu_arith_flags(cpu) & ~X86_ZF) | (zf ? X86_ZF : 0));
}

/* Is d visible to CPL and the selector's RPL? Conforming code is, to everybody. */
static bool is_visible(const struct cpu *cpu, const struct cpu_desc *d)
{
    return cpu_desc_is_conforming(d) || (cpu_desc_dpl(d) >= cpu->cpl && cpu_desc_dpl(d) >= (d->sel & 3u));
}

/* Fetch the selector and its descriptor; *found tells whether there is one that may be seen. */
static bool query(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d, bool *found)
{
    uint16_t sel;

    if (!cpu_opnd_get16(cpu, op, &sel)) {
        return false;
    }
    switch (cpu_desc_find(cpu, op, sel, d)) {
    case CPU_DESC_FAULT:
        return false;
    case CPU_DESC_OUTSIDE:
        *found = false;
        return true;
    default:
        *found = is_visible(cpu, d);
        return true;
    }
}

/* LAR and LSL: destination register in src (the operand's own number is in dst), imm: the types accepted. */
static bool query_type(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d, bool *found)
{
    uint32_t types = cpu_is_long(cpu) ? (uint32_t)(op->imm >> 32) : (uint32_t)op->imm;

    if (!query(cpu, op, d, found)) {
        return false;
    }
    if (*found && !cpu_desc_is_segment(d)) {
        *found = types >> cpu_desc_type(d) & 1;
    }
    return true;
}

static void op_lar(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_desc d;
    bool found;

    if (!query_type(cpu, op, &d, &found)) {
        return;
    }
    if (found) {
        cpu_opnd_put_reg(cpu, op->src, op->aux & CPU_OPND_SIZE, d.hi & 0x00f0ff00);
    }
    set_zf(cpu, found);
    cpu_end_block(cpu, op);
}

static void op_lsl(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_desc d;
    bool found;

    if (!query_type(cpu, op, &d, &found)) {
        return;
    }
    if (found) {
        cpu_opnd_put_reg(cpu, op->src, op->aux & CPU_OPND_SIZE, cpu_desc_limit(&d));
    }
    set_zf(cpu, found);
    cpu_end_block(cpu, op);
}

/* VERR and VERW: imm says which. */
static void op_ver(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_desc d;
    bool found;

    if (!query(cpu, op, &d, &found)) {
        return;
    }
    if (found) {
        found = cpu_desc_is_segment(&d) &&
                (op->imm ? cpu_desc_is_writable_data(&d) : !cpu_desc_is_code(&d) || (d.hi & 0x200));
    }
    set_zf(cpu, found);
    cpu_end_block(cpu, op);
}

static void op_arpl(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned rpl = cpu->regs[op->src] & 3;
    uint16_t sel;
    uint64_t la = 0;
    bool raise;

    if (op->aux & CPU_OPND_MEM) {
        if (!cpu_ea(cpu, op, 2, true, &la) || !cpu_load16(cpu, op, la, &sel)) {
            return;
        }
    } else {
        sel = (uint16_t)cpu->regs[op->dst];
    }
    raise = (sel & 3u) < rpl;
    if (raise) {
        sel = (uint16_t)((sel & ~3u) | rpl);
        if (op->aux & CPU_OPND_MEM) {
            if (!cpu_store16(cpu, op, la, sel)) {
                return;
            }
        } else {
            cpu_opnd_put_reg(cpu, op->dst, 2, sel);
        }
    }
    set_zf(cpu, raise);
    cpu_end_block(cpu, op);
}

static int emit(struct cpu_emit *e, cpu_op_fn *fn, unsigned operand, uint64_t imm)
{
    struct cpu_op *op;

    if (e->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, true);
    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, operand);
    op->imm = imm;
    return 0;
}

/* The register operand that is not the described one. */
static int emit_with_reg(struct cpu_emit *e, cpu_op_fn *fn, unsigned operand, uint64_t imm)
{
    int ret = emit(e, fn, operand, imm);

    if (ret == 0) {
        e->ops[e->nops - 1].src = cpu_emit_reg(e->opnd[1 - operand].reg.value);
    }
    return ret;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_lar(struct cpu_emit *e)
{
    return emit_with_reg(e, op_lar, 1, TYPES_LAR | (uint64_t)TYPES_LAR_LONG << 32);
}

int cpu_emit_lsl(struct cpu_emit *e)
{
    return emit_with_reg(e, op_lsl, 1, TYPES_LSL | (uint64_t)TYPES_LSL_LONG << 32);
}

int cpu_emit_verr(struct cpu_emit *e)
{
    return emit(e, op_ver, 0, 0);
}

int cpu_emit_verw(struct cpu_emit *e)
{
    return emit(e, op_ver, 0, 1);
}

int cpu_emit_arpl(struct cpu_emit *e)
{
    return emit_with_reg(e, op_arpl, 0, 0);
}
