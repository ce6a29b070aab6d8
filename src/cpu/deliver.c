/*
 * Delivery through an 8-byte gate: protected mode, 16- and 32-bit, and virtual-8086 mode; and the choice of
 * the way for every mode.
 *
 * Flow: cpu_deliver_event() -> cpu_deliver_once() -> here, deliver_real.c, deliver_long.c or task.c.
 * Invariant: all table accesses first, then the pushes, then the commit, which cannot fail.
 * Locks: none.
 */
#include "cpu/deliver.h"

#include "cpu/flags.h"
#include "cpu/seg.h"
#include "cpu/system.h"

/* What a gate says, and the code segment it leads to. */
struct gate {
    uint32_t offset;
    uint16_t sel;
    uint8_t type;
    uint8_t size; /* of a push: 2 or 4 */
    struct cpu_desc cs;
};

/* RFLAGS for the frame of cpu->event. Source: Intel, "RF in the saved image". */
uint64_t cpu_deliver_flags(const struct cpu *cpu)
{
    const struct cpu_event *ev = &cpu->event;
    uint64_t flags = cpu_get_rflags(cpu);

    /* Faults set RF in the image, so that an instruction breakpoint does not strike again on return.
     * Vectors 1, 3 and 4 are traps, or have rules of their own. */
    if (ev->type == CPU_EVENT_EXCEPTION && ev->vector != X86_DB && ev->vector != X86_BP &&
        ev->vector != X86_VEC_OF) {
        return flags | X86_RF;
    }
    return ev->type == CPU_EVENT_INTR ? flags : flags & ~(uint64_t)X86_RF;
}

/* RIP for the frame: software events return behind their instruction, cut to the code size. */
uint64_t cpu_deliver_rip(const struct cpu *cpu)
{
    uint64_t rip = cpu->rip + cpu->event.insn_len;

    if (cpu->event.type < CPU_EVENT_SOFT_INTR) {
        return cpu->rip;
    }
    if (cpu->mode & CPU_MODE_64) {
        return rip;
    }
    return cpu->mode & CPU_MODE_CS32 ? (uint32_t)rip : (uint16_t)rip;
}

/* INT n, INT3 and INTO need the gate's consent; INT1 and hardware do not. */
static bool is_software(const struct cpu *cpu)
{
    return cpu->event.type == CPU_EVENT_SOFT_INTR || cpu->event.type == CPU_EVENT_SOFT_EXC;
}

/* Read and judge the gate. */
static bool read_gate(struct cpu *cpu, const struct cpu_op *op, struct gate *g)
{
    uint32_t code = cpu->event.vector * 8u + 2;
    uint32_t raw[2];

    if (cpu->event.vector * 8u + 7 > cpu->idtr.limit) {
        return cpu_raise_code(cpu, op, X86_GP, code);
    }
    if (!cpu_sys_get(cpu, op, (uint32_t)(cpu->idtr.base + cpu->event.vector * 8u), raw, 8)) {
        return false;
    }
    g->type = raw[1] >> 8 & 0x1f;
    if (g->type != CPU_SYS_TASK_GATE && (g->type & ~9u) != CPU_SYS_INT16) {
        return cpu_raise_code(cpu, op, X86_GP, code);
    }
    if (is_software(cpu) && (raw[1] >> 13 & 3) < cpu->cpl) {
        return cpu_raise_code(cpu, op, X86_GP, code);
    }
    if (!(raw[1] & 0x8000)) {
        return cpu_raise_code(cpu, op, X86_NP, code);
    }
    g->sel = (uint16_t)(raw[0] >> 16);
    g->offset = (raw[0] & 0xffff) | (raw[1] & 0xffff0000);
    g->size = g->type & 8 ? 4 : 2;
    if (g->size == 2) {
        g->offset &= 0xffff;
    }
    return true;
}

/* Read and judge the handler's code segment. */
static bool read_handler_cs(struct cpu *cpu, const struct cpu_op *op, struct gate *g)
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
    return true;
}

/* Pushes from virtual-8086 mode: the data segments go first. */
static bool push_v86_segments(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size)
{
    return cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_GS].sel) &&
           cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_FS].sel) &&
           cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_DS].sel) &&
           cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_ES].sel);
}

static bool push_frame(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size)
{
    return cpu_stack_push(cpu, op, st, size, cpu_deliver_flags(cpu)) &&
           cpu_stack_push(cpu, op, st, size, cpu->seg[CPU_CS].sel) &&
           cpu_stack_push(cpu, op, st, size, cpu_deliver_rip(cpu)) &&
           (!cpu->event.has_error || cpu_stack_push(cpu, op, st, size, cpu->event.error));
}

/* To an inner level: a stack from the TSS. */
static bool push_inner(struct cpu *cpu, const struct cpu_op *op, const struct gate *g, struct cpu_stack *st)
{
    bool v86 = cpu->mode & CPU_MODE_V86;

    if (v86 && cpu_desc_dpl(&g->cs) != 0) {
        return cpu_raise_code(cpu, op, X86_GP, g->sel & 0xfffcu);
    }
    return cpu_stack_inner(cpu, op, cpu_desc_dpl(&g->cs), st) &&
           (!v86 || push_v86_segments(cpu, op, st, g->size)) &&
           cpu_stack_push(cpu, op, st, g->size, cpu->seg[CPU_SS].sel) &&
           cpu_stack_push(cpu, op, st, g->size, cpu->regs[CPU_RSP]) && push_frame(cpu, op, st, g->size);
}

static bool push_same(struct cpu *cpu, const struct cpu_op *op, const struct gate *g, struct cpu_stack *st)
{
    if (cpu->mode & CPU_MODE_V86) {
        return cpu_raise_code(cpu, op, X86_GP, g->sel & 0xfffcu);
    }
    cpu_stack_current(cpu, st);
    return push_frame(cpu, op, st, g->size);
}

/* The handler's first instruction is next. */
static void enter_handler(struct cpu *cpu, const struct gate *g, const struct cpu_stack *st)
{
    static const uint8_t data[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    unsigned i;

    if (cpu->mode & CPU_MODE_V86) {
        for (i = 0; i < ARRAY_LEN(data); i++) {
            cpu_seg_set_null(&cpu->seg[data[i]], 0);
        }
    }
    cpu_desc_to_seg(&g->cs, &cpu->seg[CPU_CS]);
    cpu_stack_commit(cpu, st);
    cpu->seg[CPU_CS].sel = (uint16_t)((g->sel & ~3u) | cpu->seg[CPU_SS].dpl);
    cpu->rip = g->offset;
    cpu->rflags_rest &= ~(X86_TF | X86_NT | X86_RF | X86_VM);
    if (!(g->type & 1)) {
        cpu->rflags_rest &= ~X86_IF;
    }
    cpu_update_mode(cpu);
}

static bool deliver_gate(struct cpu *cpu, const struct cpu_op *op, struct gate *g)
{
    struct cpu_stack st;
    bool inner;

    if (!read_handler_cs(cpu, op, g)) {
        return false;
    }
    inner = !cpu_desc_is_conforming(&g->cs) && cpu_desc_dpl(&g->cs) < cpu->cpl;
    if (!cpu_desc_set_accessed(cpu, op, &g->cs)) {
        return false;
    }
    if (!(inner ? push_inner(cpu, op, g, &st) : push_same(cpu, op, g, &st))) {
        return false;
    }
    if (g->offset > cpu_desc_limit(&g->cs)) {
        cpu_priv_set(cpu, st.old_cpl);
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    enter_handler(cpu, g, &st);
    return true;
}

/* The new task is entered; the error code goes onto its stack. */
static bool push_task_error(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_stack st;

    cpu->task_rest.left = CPU_TASK_WHOLE;
    if (!cpu->event.has_error) {
        return true;
    }
    cpu_stack_current(cpu, &st);
    if (!cpu_stack_push(cpu, op, &st, cpu->tr.type & 8 ? 4 : 2, cpu->event.error)) {
        cpu->task_rest.left = cpu->exit.reason != CPU_EXIT_NONE ? CPU_TASK_ERROR_CODE : CPU_TASK_WHOLE;
        return false;
    }
    cpu_stack_commit(cpu, &st);
    cpu_update_mode(cpu);
    return true;
}

/* Through a task gate. */
static bool deliver_task(struct cpu *cpu, const struct cpu_op *op, const struct gate *g)
{
    return cpu_task_switch(cpu, op, g->sel, CPU_TASK_EVENT, cpu_deliver_rip(cpu)) && push_task_error(cpu, op);
}

/* An exit was in the middle of that. */
static bool deliver_task_rest(struct cpu *cpu, const struct cpu_op *op)
{
    return (cpu->task_rest.left == CPU_TASK_ERROR_CODE || cpu_task_finish(cpu, op)) && push_task_error(cpu, op);
}

static bool deliver_protected(struct cpu *cpu, const struct cpu_op *op)
{
    struct gate g;
    bool done = false;

    if ((cpu->mode & CPU_MODE_V86) && cpu->event.type == CPU_EVENT_SOFT_INTR) {
        if (!cpu_deliver_vme(cpu, op, &done)) {
            return false;
        }
        if (done) {
            return true;
        }
    }
    if (!read_gate(cpu, op, &g)) {
        return false;
    }
    return g.type == CPU_SYS_TASK_GATE ? deliver_task(cpu, op, &g) : deliver_gate(cpu, op, &g);
}

/* One attempt, by the mode's own way. */
bool cpu_deliver_once(struct cpu *cpu, const struct cpu_op *op)
{
    if (unlikely(cpu->task_rest.left != CPU_TASK_WHOLE)) {
        return deliver_task_rest(cpu, op);
    }
    if (cpu->mode & CPU_MODE_REAL) {
        return cpu_deliver_real(cpu, op);
    }
    return cpu_is_long(cpu) ? cpu_deliver_long(cpu, op) : deliver_protected(cpu, op);
}
