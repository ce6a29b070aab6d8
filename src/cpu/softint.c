/*
 * Instructions that raise events on purpose: INT n, INT3, INT1, INTO, BOUND, UD0 to UD2. They only record the
 * event; delivery (deliver.c) knows about gates' privilege and virtual-8086 mode. Locks: none.
 */
#include "cpu/flags.h"
#include "cpu/opnd.h"
#include "cpu/system.h"

/* aux: enum cpu_event_type; imm: vector. */
static void op_soft(struct cpu *cpu, const struct cpu_op *op)
{
    cpu_sync_rip(cpu, op);
    if (unlikely(cpu->trap_int3) && op->aux == CPU_EVENT_SOFT_EXC && op->imm == X86_BP) {
        cpu->exit.reason = CPU_EXIT_DEBUG;
        cpu->exit.insn_len = op->len;
        cpu->exit.debug.vector = X86_BP;
        cpu->exit.debug.dr6 = 0;
        cpu->exit.debug.pc = cpu->seg_base[CPU_CS] + cpu->rip;
        return;
    }
    cpu->fault = (struct cpu_event){.type = op->aux, .vector = (uint8_t)op->imm, .insn_len = op->len};
}

static void op_into(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_arith_flags(cpu) & X86_OF) {
        op_soft(cpu, op);
    } else {
        cpu_end_block(cpu, op);
    }
}

static int emit(struct cpu_emit *e, cpu_op_fn *fn, enum cpu_event_type type, uint64_t vector)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, fn, true);

    if (!op) {
        return -ENOSPC;
    }
    op->aux = (uint8_t)type;
    op->imm = vector;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_int(struct cpu_emit *e)
{
    return emit(e, op_soft, CPU_EVENT_SOFT_INTR, e->opnd[0].imm.value.u & 0xff);
}

int cpu_emit_int3(struct cpu_emit *e)
{
    return emit(e, op_soft, CPU_EVENT_SOFT_EXC, X86_BP);
}

int cpu_emit_int1(struct cpu_emit *e)
{
    return emit(e, op_soft, CPU_EVENT_PRIV_EXC, X86_DB);
}

int cpu_emit_into(struct cpu_emit *e)
{
    return e->mode & CPU_MODE_64 ? -EINVAL : emit(e, op_into, CPU_EVENT_SOFT_EXC, X86_VEC_OF);
}

/* Undefined on purpose: #UD by way of the decoder's own operation for undefined encodings. */
int cpu_emit_undefined(struct cpu_emit *e)
{
    return -EINVAL;
}
