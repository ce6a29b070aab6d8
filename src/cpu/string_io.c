/*
 * String instructions on ports: INS and OUTS, plain and repeated. One element is one exit; between elements
 * the registers are those of an interrupted instruction.
 *
 * Invariant: for INS the destination is known to be writable before the port is read, as a port cannot be
 * read twice. Locks: none.
 */
#include "cpu/opnd.h"
#include "cpu/replay.h"
#include "cpu/string_op.h"
#include "cpu/system.h"

static bool ins_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side d = {CPU_RDI, CPU_ES, true};
    uint64_t la;
    uint32_t v;

    if (!cpu_str_linear(cpu, op, &d, cpu_str_size(op), &la) ||
        !cpu_probe_write(cpu, op, la, cpu_str_size(op)) ||
        !cpu_io_in(cpu, op, (uint16_t)cpu->regs[CPU_RDX], cpu_str_size(op), &v) ||
        !cpu_str_store(cpu, op, &d, v)) {
        return false;
    }
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op));
    return true;
}

static bool outs_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side s = {CPU_RSI, op->seg, false};
    uint64_t v;

    if (!cpu_str_load(cpu, op, &s, &v) ||
        !cpu_io_out(cpu, op, (uint16_t)cpu->regs[CPU_RDX], cpu_str_size(op), (uint32_t)v)) {
        return false;
    }
    cpu_str_add(cpu, op, CPU_RSI, cpu_str_step(cpu, op));
    return true;
}

typedef bool one_fn(struct cpu *cpu, const struct cpu_op *op);

/* Elements until the counter is zero, or somebody asks for attention. Ends the block either way. */
static void repeat(struct cpu *cpu, const struct cpu_op *op, one_fn *one)
{
    while (cpu->regs[CPU_RCX] & cpu_str_mask(op)) {
        if (!one(cpu, op)) {
            if (cpu->fault.type != CPU_EVENT_NONE) {
                cpu->ahead.pos = cpu->ahead.end = 0;
            }
            return;
        }
        cpu_replay_reset(cpu);
        cpu_str_add(cpu, op, CPU_RCX, -1);
        if ((cpu->regs[CPU_RCX] & cpu_str_mask(op)) && ((cpu->mode & CPU_MODE_TF) || (cpu->ahead.pos == cpu->ahead.end && cpu_must_leave(cpu)))) {
            cpu_sync_rip(cpu, op);
            cpu->icount += (cpu->mode & CPU_MODE_TF) != 0; /* each element is traced as an instruction */
            return;
        }
    }
    cpu->ahead.pos = cpu->ahead.end = 0; /* more may be there: the counter was changed from outside */
    cpu_end_block(cpu, op);
}

static void op_rep_ins(struct cpu *cpu, const struct cpu_op *op)
{
    repeat(cpu, op, ins_one);
}

static void op_rep_outs(struct cpu *cpu, const struct cpu_op *op)
{
    repeat(cpu, op, outs_one);
}

static void op_ins(struct cpu *cpu, const struct cpu_op *op)
{
    if (ins_one(cpu, op)) {
        cpu_end_block(cpu, op);
    }
}

static void op_outs(struct cpu *cpu, const struct cpu_op *op)
{
    if (outs_one(cpu, op)) {
        cpu_end_block(cpu, op);
    }
}

static int emit(struct cpu_emit *e, cpu_op_fn *plain, cpu_op_fn *rep)
{
    if (!cpu_str_emit(e, plain, rep)) {
        return -ENOSPC;
    }
    e->ends_block = true;
    e->terminated = true;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_ins(struct cpu_emit *e)
{
    return emit(e, op_ins, op_rep_ins);
}

int cpu_emit_outs(struct cpu_emit *e)
{
    return emit(e, op_outs, op_rep_outs);
}
