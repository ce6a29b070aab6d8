/*
 * Debug registers: MOV to and from DRn, breakpoints on execution, data and ports, single step.
 *
 * While any of them is on, CPU_MODE_TF makes blocks of one instruction and the hooks of system.h are called
 * around each. Traps gather in cpu->db_pending (as DR6 bits) during an instruction; cpu_debug_after() raises
 * them. Source: Intel, "Debug registers". Locks: none.
 */
#include "cpu/ctrlreg.h"
#include "cpu/opnd.h"
#include "cpu/system.h"

#define DR6_FIXED 0xffff0ff0u
#define DR6_BD    0x2000u
#define DR6_BS    0x4000u
#define DR6_TRAPS 0xe00fu
#define DR7_FIXED 0x400u
#define DR7_KNOWN 0xffff23ffu
#define DR7_GD    0x2000u
#define HAD_RF    X86_RF /* in db_pending: RF was set when the instruction began */

enum { BP_EXECUTE, BP_WRITE, BP_IO, BP_ACCESS };

/* The breakpoints in force: the hypervisor's take the guest's place. */
static uint64_t dr7_now(const struct cpu *cpu)
{
    return cpu->has_host_dr ? cpu->host_dr7 : cpu->dr7;
}

static unsigned bp_kind(const struct cpu *cpu, unsigned i)
{
    return dr7_now(cpu) >> (16 + i * 4) & 3;
}

static unsigned bp_len(const struct cpu *cpu, unsigned i)
{
    static const uint8_t len[] = {1, 2, 8, 4};

    return len[dr7_now(cpu) >> (18 + i * 4) & 3];
}

static bool bp_is_on(const struct cpu *cpu, unsigned i)
{
    return dr7_now(cpu) >> (i * 2) & 3;
}

/* Breakpoints of the kinds in `kinds` (bits) that touch [addr, addr + len): DR6 bits. */
static uint32_t matches(const struct cpu *cpu, uint32_t kinds, uint64_t addr, unsigned len)
{
    const uint64_t *dr = cpu->has_host_dr ? cpu->host_dr : cpu->dr;
    uint32_t hit = 0;
    unsigned i;

    for (i = 0; i < 4; i++) {
        uint64_t start = dr[i] & ~(uint64_t)(bp_len(cpu, i) - 1);

        if (bp_is_on(cpu, i) && (kinds >> bp_kind(cpu, i) & 1) && addr < start + bp_len(cpu, i) &&
            start < addr + len) {
            hit |= 1u << i;
        }
    }
    return hit;
}

/* What a hypervisor that debugs the guest is told; RIP is synchronised. */
static void debug_exit(struct cpu *cpu, uint32_t dr6)
{
    cpu->exit.reason = CPU_EXIT_DEBUG;
    cpu->exit.insn_len = 0;
    cpu->exit.debug.vector = X86_DB;
    cpu->exit.debug.dr6 = dr6;
    cpu->exit.debug.pc = cpu->mode & CPU_MODE_64 ? cpu->rip : (uint32_t)(cpu->rip + cpu->seg_base[CPU_CS]);
}

/* Breakpoints in `hit` were met: the guest's #DB, or an exit when they are the hypervisor's. */
static void report(struct cpu *cpu, uint32_t hit)
{
    /* A device access that waits for its exit comes first. */
    if (cpu->has_host_dr && (hit & 0xf) && cpu->exit.reason == CPU_EXIT_NONE) {
        debug_exit(cpu, hit);
    }
    if (cpu->has_host_dr) {
        hit &= ~0xfu;
    }
    if (hit) {
        cpu->fault = (struct cpu_event){.type = CPU_EVENT_EXCEPTION, .vector = X86_DB, .payload = hit};
    }
}

/* See system.h. An instruction breakpoint is a fault, and RF silences it for one instruction. */
bool cpu_debug_before(struct cpu *cpu)
{
    bool rf = cpu->rflags_rest & X86_RF;
    uint64_t la = cpu->mode & CPU_MODE_64 ? cpu->rip : (uint32_t)(cpu->rip + cpu->seg_base[CPU_CS]);
    uint32_t hit = rf || !(dr7_now(cpu) & 0xff) ? 0 : matches(cpu, 1u << BP_EXECUTE, la, 1);

    cpu->db_pending = rf ? HAD_RF : 0;
    report(cpu, hit);
    return hit == 0;
}

/* See system.h. A miss costs four compares; hits wait for the instruction to retire. */
void cpu_debug_data(struct cpu *cpu, uint64_t la, unsigned len, bool write)
{
    if (dr7_now(cpu) & 0xff) {
        cpu->db_pending |= matches(cpu, 1u << BP_ACCESS | (write ? 1u << BP_WRITE : 0), la, len);
    }
}

/* See system.h. I/O breakpoints exist with CR4.DE only. */
void cpu_debug_io(struct cpu *cpu, uint16_t port, unsigned len)
{
    if ((dr7_now(cpu) & 0xff) && (cpu->cr4 & X86_CR4_DE)) {
        cpu->db_pending |= matches(cpu, 1u << BP_IO, port, len);
    }
}

/* See system.h. */
void cpu_debug_after(struct cpu *cpu, bool tf)
{
    uint32_t traps = (cpu->db_pending & DR6_TRAPS) | (tf ? DR6_BS : 0);

    if (cpu->db_pending & HAD_RF) {
        cpu->rflags_rest &= ~X86_RF;
    }
    cpu->db_pending = 0;
    report(cpu, traps);
}

/* DR4 and DR5 are DR6 and DR7, unless CR4.DE makes them undefined. General detection comes first. */
static bool check_dr(struct cpu *cpu, const struct cpu_op *op, unsigned *n)
{
    if (*n == 4 || *n == 5) {
        if (cpu->cr4 & X86_CR4_DE) {
            return cpu_raise(cpu, op, X86_UD);
        }
        *n += 2;
    }
    if (!cpu_need_cpl0(cpu, op)) {
        return false;
    }
    if (unlikely(dr7_now(cpu) & DR7_GD)) {
        if (cpu->has_host_dr) {
            cpu_sync_rip(cpu, op);
            debug_exit(cpu, DR6_BD);
            return false;
        }
        (void)!cpu_raise(cpu, op, X86_DB);
        cpu->fault.payload = DR6_BD;
        return false;
    }
    return true;
}

static void dr_write(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned n = op->src;
    uint64_t v = cpu->regs[op->dst];

    if (!check_dr(cpu, op, &n)) {
        return;
    }
    if (!(cpu->mode & CPU_MODE_64)) {
        v = (uint32_t)v;
    }
    if (n >= 6 && v >> 32) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    if (n < 4) {
        cpu->dr[n] = v;
    } else if (n == 6) {
        cpu->dr6 = (v & DR6_TRAPS) | DR6_FIXED;
    } else {
        cpu->dr7 = (v & DR7_KNOWN) | DR7_FIXED;
    }
    cpu_update_mode(cpu);
    cpu_end_block(cpu, op);
}

static void dr_read(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned n = op->src;
    uint64_t v;

    if (!check_dr(cpu, op, &n)) {
        return;
    }
    v = n < 4 ? cpu->dr[n] : n == 6 ? cpu->dr6 : cpu->dr7;
    cpu->regs[op->dst] = cpu->mode & CPU_MODE_64 ? v : (uint32_t)v;
    cpu_end_block(cpu, op);
}

static int emit_mov_dr(struct cpu_emit *e, cpu_op_fn *fn, unsigned dr_operand)
{
    unsigned n = (unsigned)(e->opnd[dr_operand].reg.value - ZYDIS_REGISTER_DR0);
    struct cpu_op *op;

    if (n > 7) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, true);
    if (!op) {
        return -ENOSPC;
    }
    op->src = (uint8_t)n;
    op->dst = cpu_emit_reg(e->opnd[1 - dr_operand].reg.value);
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_mov_to_dr(struct cpu_emit *e)
{
    return emit_mov_dr(e, dr_write, 0);
}

int cpu_emit_mov_from_dr(struct cpu_emit *e)
{
    return emit_mov_dr(e, dr_read, 1);
}
