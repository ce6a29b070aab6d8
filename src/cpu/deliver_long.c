/*
 * Delivery in long mode: 16-byte gates, 64-bit handlers, stacks out of RSPn and ISTn, always aligned, and
 * always a full frame of five quadwords and perhaps an error code.
 *
 * Source: Intel, "Exception and interrupt handling in 64-bit mode". Locks: none.
 */
#include "cpu/deliver.h"
#include "cpu/flags.h"
#include "cpu/seg.h"
#include "cpu/system.h"

#define TSS64_RSP0 4u
#define TSS64_IST1 36u

struct gate64 {
    uint64_t offset;
    uint16_t sel;
    uint8_t type, ist;
    struct cpu_desc cs;
};

static bool read_gate(struct cpu *cpu, const struct cpu_op *op, struct gate64 *g)
{
    uint32_t code = cpu->event.vector * 8u + 2;
    bool software = cpu->event.type == CPU_EVENT_SOFT_INTR || cpu->event.type == CPU_EVENT_SOFT_EXC;
    uint32_t raw[4];

    if (cpu->event.vector * 16u + 15 > cpu->idtr.limit) {
        return cpu_raise_code(cpu, op, X86_GP, code);
    }
    if (!cpu_sys_get(cpu, op, cpu->idtr.base + cpu->event.vector * 16u, raw, 16)) {
        return false;
    }
    g->type = raw[1] >> 8 & 0x1f;
    if ((g->type & ~1u) != CPU_SYS_INT32 || (software && (raw[1] >> 13 & 3) < cpu->cpl)) {
        return cpu_raise_code(cpu, op, X86_GP, code);
    }
    if (!(raw[1] & 0x8000)) {
        return cpu_raise_code(cpu, op, X86_NP, code);
    }
    g->sel = (uint16_t)(raw[0] >> 16);
    g->ist = raw[1] & 7;
    g->offset = (raw[0] & 0xffff) | (raw[1] & 0xffff0000) | (uint64_t)raw[2] << 32;
    return true;
}

static bool read_handler_cs(struct cpu *cpu, const struct cpu_op *op, struct gate64 *g)
{
    if (cpu_sel_is_null(g->sel)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!cpu_desc_read(cpu, op, g->sel, X86_GP, &g->cs)) {
        return false;
    }
    if (!cpu_desc_is_code(&g->cs) || cpu_desc_dpl(&g->cs) > cpu->cpl) {
        return cpu_raise_code(cpu, op, X86_GP, g->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(&g->cs)) {
        return cpu_raise_code(cpu, op, X86_NP, g->sel & 0xfffcu);
    }
    if ((g->cs.hi & 0x600000) != 0x200000) {
        return cpu_raise_code(cpu, op, X86_GP, g->sel & 0xfffcu);
    }
    return true;
}

/* Choose the stack. SS changes only with the privilege. */
static bool choose_stack(struct cpu *cpu, const struct cpu_op *op, const struct gate64 *g, struct cpu_stack *st)
{
    unsigned dpl = cpu_desc_dpl(&g->cs);
    bool inner = !cpu_desc_is_conforming(&g->cs) && dpl < cpu->cpl;

    cpu_stack_current(cpu, st);
    st->is64 = true;
    if (inner) {
        st->cpl = (uint8_t)dpl;
    }
    if (g->ist || inner) {
        unsigned off = g->ist ? TSS64_IST1 + (g->ist - 1u) * 8 : TSS64_RSP0 + dpl * 8;

        if (!cpu_stack_inner64(cpu, op, off, st)) {
            return false;
        }
        if (!inner) {
            st->ss = cpu->seg[CPU_SS];
        }
    }
    st->sp &= ~UINT64_C(15);
    return true;
}

static bool push_frame(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st)
{
    return cpu_stack_push(cpu, op, st, 8, cpu->seg[CPU_SS].sel) &&
           cpu_stack_push(cpu, op, st, 8, cpu->regs[CPU_RSP]) &&
           cpu_stack_push(cpu, op, st, 8, cpu_deliver_flags(cpu)) &&
           cpu_stack_push(cpu, op, st, 8, cpu->seg[CPU_CS].sel) &&
           cpu_stack_push(cpu, op, st, 8, cpu_deliver_rip(cpu)) &&
           (!cpu->event.has_error || cpu_stack_push(cpu, op, st, 8, cpu->event.error));
}

/* Deliver through the 64-bit IDT, from 64-bit or compatibility mode. */
bool cpu_deliver_long(struct cpu *cpu, const struct cpu_op *op)
{
    struct gate64 g;
    struct cpu_stack st;

    if (!read_gate(cpu, op, &g) || !read_handler_cs(cpu, op, &g)) {
        return false;
    }
    if (!cpu_is_canonical(cpu, g.offset)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!choose_stack(cpu, op, &g, &st) || !cpu_desc_set_accessed(cpu, op, &g.cs) ||
        !push_frame(cpu, op, &st)) {
        return false;
    }
    cpu_desc_to_seg(&g.cs, &cpu->seg[CPU_CS]);
    cpu_stack_commit(cpu, &st);
    cpu->seg[CPU_CS].sel = (uint16_t)((g.sel & ~3u) | cpu->seg[CPU_SS].dpl);
    cpu->rip = g.offset;
    cpu->rflags_rest &= ~(X86_TF | X86_NT | X86_RF | X86_VM);
    if (!(g.type & 1)) {
        cpu->rflags_rest &= ~X86_IF;
    }
    cpu_update_mode(cpu);
    return true;
}
