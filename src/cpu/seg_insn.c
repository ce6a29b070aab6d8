/*
 * Instructions that move segment registers: MOV, PUSH, POP, LDS, LES, LFS, LGS, LSS; and those that put bases
 * directly: RDFSBASE and its family, SWAPGS.
 *
 * MOV SS and POP SS forbid interrupts until the next instruction has retired. Locks: none.
 */
#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/seg_emit.h"
#include "cpu/system.h"

/* Number of a segment register as Zydis names it. */
enum cpu_segreg cpu_seg_number(ZydisRegister r)
{
    static const uint8_t map[] = {CPU_ES, CPU_CS, CPU_SS, CPU_DS, CPU_FS, CPU_GS};

    return map[(unsigned)(r - ZYDIS_REGISTER_ES) % CPU_NSEGS];
}

static void loaded(struct cpu *cpu, const struct cpu_op *op)
{
    if (op->src == CPU_SS) {
        cpu->interrupt_shadow = 1;
    }
    cpu_end_block(cpu, op);
}

static void op_mov_to_seg(struct cpu *cpu, const struct cpu_op *op)
{
    uint16_t sel;

    if (cpu_opnd_get16(cpu, op, &sel) && cpu_seg_load(cpu, op, op->src, sel)) {
        loaded(cpu, op);
    }
}

static void op_mov_from_seg(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_opnd_put_word(cpu, op, cpu->seg[op->src].sel)) {
        cpu_end_block(cpu, op);
    }
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_mov_seg_to(struct cpu_emit *e)
{
    enum cpu_segreg seg = cpu_seg_number(e->opnd[0].reg.value);
    struct cpu_op *op;

    if (seg == CPU_CS) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, op_mov_to_seg, true);
    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, 1);
    op->src = seg;
    return 0;
}

int cpu_emit_mov_seg_from(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, op_mov_from_seg, true);

    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, 0);
    op->src = cpu_seg_number(e->opnd[1].reg.value);
    return 0;
}

static void op_push_seg(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_push(cpu, op, &st, op->aux, cpu->seg[op->src].sel)) {
        return;
    }
    cpu_stack_commit(cpu, &st);
    cpu_end_block(cpu, op);
}

/* The stack pointer moves after the load of the register, by the width that SS had before. */
static void op_pop_seg(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;
    uint64_t sel, rsp;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_pop(cpu, op, &st, op->aux, &sel)) {
        return;
    }
    rsp = st.is64 ? st.sp : (uint32_t)st.sp;
    if (cpu_seg_load(cpu, op, op->src, (uint16_t)sel)) {
        cpu->regs[CPU_RSP] = rsp;
        loaded(cpu, op);
    }
}

static int emit_stack_seg(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, fn, true);

    if (!op) {
        return -ENOSPC;
    }
    op->src = cpu_seg_number(e->opnd[0].reg.value);
    op->aux = (uint8_t)(e->in.operand_width / 8);
    if ((e->mode & CPU_MODE_64) && op->aux == 4) {
        op->aux = 8;
    }
    return 0;
}

int cpu_emit_push_seg(struct cpu_emit *e)
{
    return emit_stack_seg(e, op_push_seg);
}

int cpu_emit_pop_seg(struct cpu_emit *e)
{
    return emit_stack_seg(e, op_pop_seg);
}

/* LDS and its family: offset of aux bytes, then the selector; register in dst, segment in src. */
static void op_load_far_pointer(struct cpu *cpu, const struct cpu_op *op)
{
    uint8_t raw[10];
    uint64_t la, off = 0;
    uint16_t sel;

    if (!cpu_ea(cpu, op, op->aux + 2u, false, &la) || !cpu_load_bytes(cpu, op, la, raw, op->aux + 2u)) {
        return;
    }
    __builtin_memcpy(&off, raw, op->aux);
    __builtin_memcpy(&sel, raw + op->aux, 2);
    if (!cpu_seg_load(cpu, op, op->src, sel)) {
        return;
    }
    cpu_opnd_put_reg(cpu, op->dst, op->aux, off);
    cpu_end_block(cpu, op);
}

static int emit_load_far_pointer(struct cpu_emit *e, enum cpu_segreg seg)
{
    struct cpu_op *op;

    if (e->opnd[1].type != ZYDIS_OPERAND_TYPE_MEMORY) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, op_load_far_pointer, true);
    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[1]);
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    op->src = seg;
    op->aux = (uint8_t)(e->in.operand_width / 8);
    return 0;
}

int cpu_emit_lds(struct cpu_emit *e)
{
    return emit_load_far_pointer(e, CPU_DS);
}

int cpu_emit_les(struct cpu_emit *e)
{
    return emit_load_far_pointer(e, CPU_ES);
}

int cpu_emit_lfs(struct cpu_emit *e)
{
    return emit_load_far_pointer(e, CPU_FS);
}

int cpu_emit_lgs(struct cpu_emit *e)
{
    return emit_load_far_pointer(e, CPU_GS);
}

int cpu_emit_lss(struct cpu_emit *e)
{
    return emit_load_far_pointer(e, CPU_SS);
}

/* RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE: segment in src, general register in dst. */
static bool fsgsbase_allowed(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu->cr4 & X86_CR4_FSGSBASE ? true : cpu_raise(cpu, op, X86_UD);
}

static void op_rdbase(struct cpu *cpu, const struct cpu_op *op)
{
    if (fsgsbase_allowed(cpu, op)) {
        cpu_opnd_put_reg(cpu, op->dst, op->aux, cpu->seg[op->src].base);
        cpu_next(cpu, op);
    }
}

static void op_wrbase(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t base = op->aux == 8 ? cpu->regs[op->dst] : (uint32_t)cpu->regs[op->dst];

    if (!fsgsbase_allowed(cpu, op)) {
        return;
    }
    if (!cpu_is_canonical(cpu, base)) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu->seg[op->src].base = base;
    cpu->seg_base[op->src] = base;
    cpu_next(cpu, op);
}

static int emit_base(struct cpu_emit *e, cpu_op_fn *fn, enum cpu_segreg seg)
{
    struct cpu_op *op;

    if (!(e->mode & CPU_MODE_64)) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, false);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    op->src = seg;
    op->aux = (uint8_t)(e->in.operand_width / 8);
    return 0;
}

int cpu_emit_rdfsbase(struct cpu_emit *e)
{
    return emit_base(e, op_rdbase, CPU_FS);
}

int cpu_emit_rdgsbase(struct cpu_emit *e)
{
    return emit_base(e, op_rdbase, CPU_GS);
}

int cpu_emit_wrfsbase(struct cpu_emit *e)
{
    return emit_base(e, op_wrbase, CPU_FS);
}

int cpu_emit_wrgsbase(struct cpu_emit *e)
{
    return emit_base(e, op_wrbase, CPU_GS);
}

static void op_swapgs(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t base = cpu->seg[CPU_GS].base;

    if (unlikely(cpu->cpl != 0)) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    cpu->seg[CPU_GS].base = cpu->seg_base[CPU_GS] = cpu->msr.kernel_gs_base;
    cpu->msr.kernel_gs_base = base;
    cpu_next(cpu, op);
}

int cpu_emit_swapgs(struct cpu_emit *e)
{
    if (!(e->mode & CPU_MODE_64)) {
        return -EINVAL;
    }
    return cpu_opnd_emit_plain(e, op_swapgs, false) ? 0 : -ENOSPC;
}
