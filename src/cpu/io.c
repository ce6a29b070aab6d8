/*
 * Ports: who may touch them (IOPL, the TSS's permission bit map), and the access itself as an exit with
 * replay (replay.h); IN and OUT. String forms are in string_io.c.
 *
 * Source: Intel, "Input/output", "I/O permission bit map". Locks: none.
 */
#include <string.h>

#include "cpu/opnd.h"
#include "cpu/replay.h"
#include "cpu/seg.h"
#include "cpu/string_op.h"
#include "cpu/system.h"

#define TSS_IO_MAP_BASE 102u

/* Look the ports up in the bit map of the current TSS: all bits clear allows. Two bytes are always read, and both
 * must lie within the limit. */
static bool map_allows(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size)
{
    uint64_t base = cpu->tr.base;
    uint16_t map, bits;
    uint32_t off;

    if (!(cpu->tr.type & 8) || cpu->tr.limit < TSS_IO_MAP_BASE + 1) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!cpu_sys_load(cpu, op, base + TSS_IO_MAP_BASE, &map, 2)) {
        return false;
    }
    off = map + port / 8u;
    if (off + 1 > cpu->tr.limit) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!cpu_sys_get(cpu, op, base + off, &bits, 2)) {
        return false;
    }
    return bits >> (port & 7) & ((1u << size) - 1) ? cpu_raise_code(cpu, op, X86_GP, 0) : true;
}

/* May size ports from `port` on be touched now? */
static bool may_access(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size)
{
    if (cpu->mode & CPU_MODE_REAL) {
        return true;
    }
    if (!(cpu->mode & CPU_MODE_V86) && cpu->cpl <= (cpu->rflags_rest >> 12 & 3)) {
        return true;
    }
    return map_allows(cpu, op, port, size);
}

static void leave(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size)
{
    cpu->exit.reason = CPU_EXIT_IO;
    cpu->exit.insn_len = op->len;
    cpu->exit.io.port = port;
    cpu->exit.io.size = (uint8_t)size;
    cpu->exit.io.is_in = true;
    cpu->exit.io.is_string = op->flags & (CPU_OPF_REP | CPU_OPF_REPNE);
    cpu->exit.io.has_rep = cpu->exit.io.is_string;
    cpu->exit.io.count = 1;
    cpu->exit.io.data = 0;
}

/* How many elements of a REP INS may be read at once: what the page, the buffer and the counter allow. Source: KVM's
 * pio_in_emulated(). */
static uint16_t ins_count(const struct cpu *cpu, const struct cpu_op *op, unsigned size)
{
    bool down = cpu->rflags_rest & X86_DF;
    uint64_t left = cpu->regs[CPU_RCX] & cpu_str_mask(op);
    uint64_t in_page = cpu->regs[CPU_RDI] & (PAGE_SIZE - 1);
    uint64_t n = (down ? in_page : PAGE_SIZE - in_page) / size;

    n = n < CPU_AHEAD_BYTES / size ? n : CPU_AHEAD_BYTES / size;
    n = n < left ? n : left;
    return n ? (uint16_t)n : 1;
}

/* The next element was read ahead: as if its exit had just been answered. False: restart the instruction alone first. */
static bool ahead_take(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size)
{
    struct cpu_ahead *a = &cpu->ahead;

    if (likely(a->pos == a->end) || cpu->replay.next < cpu->replay.count) {
        return true;
    }
    if (!(op->flags & CPU_OPF_REP) || a->port != port || a->size != size) {
        a->pos = a->end = 0;
        return true;
    }
    if (!cpu->alone) {
        cpu_sync_rip(cpu, op);
        cpu->restart_alone = 1;
        return false;
    }
    cpu_replay_answer(cpu, port, a->data + a->pos, size);
    a->pos = (uint16_t)(a->pos + size);
    return true;
}

/* Read a port of 1, 2 or 4 bytes; see access.h. */
bool cpu_io_in(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size, uint32_t *v)
{
    uint32_t data = 0;

    if (!may_access(cpu, op, port, size) || !ahead_take(cpu, op, port, size)) {
        return false;
    }
    switch (cpu_replay_read(cpu, op, true, port, &data, size)) {
    case CPU_REPLAY_DONE:
        break;
    case CPU_REPLAY_NEW:
        leave(cpu, op, port, size);
        if (op->flags & CPU_OPF_REP) {
            cpu->exit.io.count = ins_count(cpu, op, size);
        }
        return false;
    default:
        return false;
    }
    if (cpu->mode & CPU_MODE_TF) {
        cpu_debug_io(cpu, port, size);
    }
    *v = data;
    return true;
}

/* Write a port; the instruction is run to its end before the hypervisor sees it. */
bool cpu_io_out(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size, uint32_t v)
{
    if (!may_access(cpu, op, port, size)) {
        return false;
    }
    switch (cpu_replay_write(cpu, op, true, port, &v, size)) {
    case CPU_REPLAY_DONE:
        break;
    case CPU_REPLAY_NEW:
        leave(cpu, op, port, size);
        cpu->exit.insn_len = 0;
        cpu->exit.io.is_in = false;
        cpu->exit.io.data = v;
        cpu->restart_alone = 0;
        break;
    default:
        return false;
    }
    if (cpu->mode & CPU_MODE_TF) {
        cpu_debug_io(cpu, port, size);
    }
    return true;
}

/* src: 1 = port in DX, else in imm. aux: size. */
static uint16_t port_of(const struct cpu *cpu, const struct cpu_op *op)
{
    return op->src ? (uint16_t)cpu->regs[CPU_RDX] : (uint16_t)op->imm;
}

static void op_in(struct cpu *cpu, const struct cpu_op *op)
{
    uint32_t v;

    if (!cpu_io_in(cpu, op, port_of(cpu, op), op->aux, &v)) {
        return;
    }
    if (op->aux == 1) {
        cpu->regs[CPU_RAX] = (cpu->regs[CPU_RAX] & ~UINT64_C(0xff)) | (v & 0xff);
    } else {
        cpu_opnd_put_reg(cpu, CPU_RAX, op->aux, v);
    }
    cpu_end_block(cpu, op);
}

static void op_out(struct cpu *cpu, const struct cpu_op *op)
{
    uint32_t mask = op->aux == 4 ? UINT32_MAX : (1u << op->aux * 8) - 1;

    if (cpu_io_out(cpu, op, port_of(cpu, op), op->aux, (uint32_t)cpu->regs[CPU_RAX] & mask)) {
        cpu_end_block(cpu, op);
    }
}

/* The port operand: an immediate, or DX. */
static int emit(struct cpu_emit *e, cpu_op_fn *fn, unsigned port, unsigned data)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, fn, true);

    if (!op) {
        return -ENOSPC;
    }
    op->src = e->opnd[port].type == ZYDIS_OPERAND_TYPE_REGISTER;
    op->imm = op->src ? 0 : e->opnd[port].imm.value.u & 0xff;
    op->aux = (uint8_t)(e->opnd[data].size / 8);
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_in(struct cpu_emit *e)
{
    return emit(e, op_in, 1, 0);
}

int cpu_emit_out(struct cpu_emit *e)
{
    return emit(e, op_out, 0, 1);
}
