/*
 * Hardware task switches, 16- and 32-bit: by far JMP and CALL, by task gates, by IRET from a nested task.
 * Long mode has none.
 *
 *   checks on the new TSS (faults belong to the old task)
 *   read the new TSS; save the old one; busy bits and link
 *   ---- from here on faults belong to the new task, at its first instruction ----
 *   registers, CR3, LDTR, segments
 *
 * Source: Intel, "Task switching". Locks: none.
 */
#include <string.h>

#include "cpu/chain.h"
#include "cpu/far.h"
#include "cpu/flags.h"
#include "cpu/shadow.h"
#include "cpu/system.h"
#include "cpu/tlb.h"
#include "cpu/walk.h"

#define TSS32_SIZE  104u
#define TSS16_SIZE  44u
#define TSS32_STATE 32u /* first byte that a switch saves: EIP; 14 in the 16-bit form */
#define TSS16_STATE 14u
#define BUSY        0x200u
#define DB_BT       0x8000u

/* A task's state, whatever the size of its TSS. */
struct task {
    struct cpu_desc desc;
    bool wide;
    uint32_t cr3, eip, eflags, gpr[8];
    uint16_t sel[CPU_NSEGS]; /* 16-bit TSS: no FS and GS */
    uint16_t ldt;
    bool trap;
};

static uint32_t get32(const uint8_t *p)
{
    uint32_t v;

    memcpy(&v, p, 4);
    return v;
}

static uint16_t get16(const uint8_t *p)
{
    uint16_t v;

    memcpy(&v, p, 2);
    return v;
}

static void parse32(const uint8_t *raw, struct task *t)
{
    unsigned i;

    t->cr3 = get32(raw + 28);
    t->eip = get32(raw + 32);
    t->eflags = get32(raw + 36);
    for (i = 0; i < 8; i++) {
        t->gpr[i] = get32(raw + 40 + i * 4);
    }
    for (i = 0; i < CPU_NSEGS; i++) {
        t->sel[i] = get16(raw + 72 + i * 4);
    }
    t->ldt = get16(raw + 96);
    t->trap = raw[100] & 1;
}

static void parse16(const uint8_t *raw, struct task *t)
{
    unsigned i;

    t->eip = get16(raw + 14);
    t->eflags = get16(raw + 16);
    for (i = 0; i < 8; i++) {
        t->gpr[i] = get16(raw + 18 + i * 2);
    }
    for (i = 0; i < 4; i++) {
        t->sel[i] = get16(raw + 34 + i * 2);
    }
    t->sel[CPU_FS] = t->sel[CPU_GS] = 0;
    t->ldt = get16(raw + 42);
    t->trap = false;
}

/* Find and judge the new TSS. IRET expects a busy one and complains with #TS. */
static bool find_task(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, bool iret, struct task *t)
{
    enum x86_vector vector = iret ? X86_TS : X86_GP;
    unsigned type;

    if ((sel & 4) || cpu_sel_is_null(sel)) {
        return cpu_raise_code(cpu, op, vector, sel & 0xfffcu);
    }
    if (!cpu_desc_read(cpu, op, sel, vector, &t->desc)) {
        return false;
    }
    type = cpu_desc_stype(&t->desc);
    if ((type & ~8u) != (iret ? CPU_SYS_TSS16_BUSY : CPU_SYS_TSS16)) {
        return cpu_raise_code(cpu, op, vector, sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(&t->desc)) {
        return cpu_raise_code(cpu, op, X86_NP, sel & 0xfffcu);
    }
    t->wide = type & 8;
    if (cpu_desc_limit(&t->desc) < (t->wide ? TSS32_SIZE - 1 : TSS16_SIZE - 1)) {
        return cpu_raise_code(cpu, op, X86_TS, sel & 0xfffcu);
    }
    return true;
}

static bool read_task(struct cpu *cpu, const struct cpu_op *op, struct task *t)
{
    uint8_t raw[TSS32_SIZE];

    if (!cpu_sys_load(cpu, op, cpu_desc_base(&t->desc), raw, t->wide ? TSS32_SIZE : TSS16_SIZE)) {
        return false;
    }
    if (t->wide) {
        parse32(raw, t);
    } else {
        parse16(raw, t);
    }
    return true;
}

/* Store the dynamic fields of the current task into its TSS. */
static bool save_task(struct cpu *cpu, const struct cpu_op *op, uint64_t rip, uint32_t flags)
{
    uint8_t raw[64] = {0};
    uint32_t base = (uint32_t)cpu->tr.base;
    unsigned i;

    if (cpu->tr.type & 8) {
        uint32_t *w = (uint32_t *)(void *)raw;

        w[0] = (uint32_t)rip;
        w[1] = flags;
        for (i = 0; i < 8; i++) {
            w[2 + i] = (uint32_t)cpu->regs[i];
        }
        for (i = 0; i < CPU_NSEGS; i++) {
            w[10 + i] = cpu->seg[i].sel;
        }
        return cpu_sys_store(cpu, op, base + TSS32_STATE, raw, 64);
    }
    uint16_t *h = (uint16_t *)(void *)raw;

    h[0] = (uint16_t)rip;
    h[1] = (uint16_t)flags;
    for (i = 0; i < 8; i++) {
        h[2 + i] = (uint16_t)cpu->regs[i];
    }
    for (i = 0; i < 4; i++) {
        h[10 + i] = cpu->seg[i].sel;
    }
    return cpu_sys_store(cpu, op, base + TSS16_STATE, raw, 28);
}

/* The current TSS's busy bit goes when its task is left for good. */
static bool clear_busy(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_desc old;

    return cpu_desc_read(cpu, op, cpu->tr.sel, X86_TS, &old) && cpu_desc_set_bits(cpu, op, &old, 0, BUSY);
}

static bool leave_old(struct cpu *cpu, const struct cpu_op *op, struct task *t, enum cpu_task_reason reason,
                      uint64_t rip)
{
    uint32_t flags = (uint32_t)cpu_get_rflags(cpu);
    uint16_t link = cpu->tr.sel;

    if (reason == CPU_TASK_IRET) {
        flags &= ~X86_NT;
    }
    if (reason == CPU_TASK_EVENT && cpu->event.type == CPU_EVENT_EXCEPTION && cpu->event.vector != X86_DB) {
        flags |= X86_RF;
    }
    if (!save_task(cpu, op, rip, flags)) {
        return false;
    }
    if ((reason == CPU_TASK_JMP || reason == CPU_TASK_IRET) && !clear_busy(cpu, op)) {
        return false;
    }
    if (reason == CPU_TASK_CALL || reason == CPU_TASK_EVENT) {
        t->eflags |= X86_NT;
        if (!cpu_sys_store(cpu, op, cpu_desc_base(&t->desc), &link, 2)) {
            return false;
        }
    }
    return reason == CPU_TASK_IRET || cpu_desc_set_bits(cpu, op, &t->desc, BUSY, 0);
}

/* LDTR of the new task: #TS with its selector when it is no good. */
static bool load_ldt(struct cpu *cpu, const struct cpu_op *op, uint16_t sel)
{
    struct cpu_desc d;

    cpu_seg_set_null(&cpu->ldtr, sel);
    if (cpu_sel_is_null(sel)) {
        return true;
    }
    if (sel & 4) {
        return cpu_raise_code(cpu, op, X86_TS, sel & 0xfffcu);
    }
    if (!cpu_desc_read(cpu, op, sel, X86_TS, &d)) {
        return false;
    }
    if (cpu_desc_stype(&d) != CPU_SYS_LDT || !cpu_desc_is_present(&d)) {
        return cpu_raise_code(cpu, op, X86_TS, sel & 0xfffcu);
    }
    cpu_desc_to_seg(&d, &cpu->ldtr);
    return true;
}

static bool check_task_seg(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg reg,
                           const struct cpu_desc *d, unsigned cpl)
{
    unsigned dpl = cpu_desc_dpl(d), rpl = d->sel & 3;
    bool ok;

    if (reg == CPU_SS) {
        return cpu_seg_check_ss(cpu, op, d, cpl, X86_TS);
    }
    if (reg == CPU_CS) {
        ok = cpu_desc_is_code(d) && (cpu_desc_is_conforming(d) ? dpl <= rpl : dpl == rpl);
    } else {
        ok = cpu_desc_is_segment(d) && (!cpu_desc_is_code(d) || (d->hi & 0x200)) &&
             (cpu_desc_is_conforming(d) || (rpl <= dpl && cpl <= dpl));
    }
    if (!ok) {
        return cpu_raise_code(cpu, op, X86_TS, d->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(d)) {
        return cpu_raise_code(cpu, op, X86_NP, d->sel & 0xfffcu);
    }
    return true;
}

static bool load_task_seg(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg reg, uint16_t sel,
                          unsigned cpl)
{
    struct cpu_desc d;

    if (cpu_sel_is_null(sel)) {
        return reg == CPU_CS || reg == CPU_SS ? cpu_raise_code(cpu, op, X86_TS, 0) : true;
    }
    if (!cpu_desc_read(cpu, op, sel, X86_TS, &d) || !check_task_seg(cpu, op, reg, &d, cpl) ||
        !cpu_desc_set_accessed(cpu, op, &d)) {
        return false;
    }
    cpu_desc_to_seg(&d, &cpu->seg[reg]);
    return true;
}

/* CS and SS first, as they decide the privilege under which the rest is judged. */
static bool load_task_segs(struct cpu *cpu, const struct cpu_op *op, const struct cpu_task_rest *t)
{
    static const uint8_t order[] = {CPU_CS, CPU_SS, CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    unsigned cpl = t->sel[CPU_CS] & 3;
    unsigned i;

    if (t->eflags & X86_VM) {
        for (i = 0; i < CPU_NSEGS; i++) {
            cpu_seg_set_v86(&cpu->seg[i], t->sel[i]);
        }
        return true;
    }
    for (i = 0; i < ARRAY_LEN(order); i++) {
        if (!load_task_seg(cpu, op, order[i], t->sel[order[i]], cpl)) {
            return false;
        }
    }
    return true;
}

/* Everything that cannot fault: from here on the new task is the one that runs. */
static void enter_task(struct cpu *cpu, const struct cpu_op *op, const struct task *t)
{
    unsigned i;

    cpu_desc_to_seg(&t->desc, &cpu->tr);
    cpu->cr0 |= X86_CR0_TS;
    if (t->wide && (cpu->cr0 & X86_CR0_PG) && !(cpu->cr4 & X86_CR4_PAE)) {
        cpu_tlb_load_cr3(cpu, t->cr3);
    }
    for (i = 0; i < 8; i++) {
        cpu->regs[i] = t->wide ? t->gpr[i] : 0xffff0000u | t->gpr[i];
    }
    cpu_set_rflags(cpu, t->eflags & (X86_ARITH_FLAGS | X86_TF | X86_IF | X86_DF | X86_IOPL | X86_NT |
                                     X86_RF | X86_VM | X86_AC | X86_VIF | X86_VIP | X86_ID));
    for (i = 0; i < CPU_NSEGS; i++) {
        cpu_seg_set_null(&cpu->seg[i], t->sel[i]);
    }
    cpu->seg[CPU_SS].dpl = t->sel[CPU_CS] & 3;
    cpu->dr7 &= ~UINT64_C(0x155);
    cpu->rip = t->eip;
    /* Faults of what follows are the new task's, at its first instruction. */
    cpu->regs[CPU_IP_PAGE] = cpu->rip - op->pgoff;
}

/*
 * The second half of a switch: cpu->task_rest has the new task's selectors. On an exit it stays, and
 * cpu_task_resume() or the delivery of the event comes here again. op: RIP is the new task's.
 */
bool cpu_task_finish(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_task_rest *r = &cpu->task_rest;
    bool ok;

    r->left = CPU_TASK_WHOLE;
    ok = load_ldt(cpu, op, r->ldt) && load_task_segs(cpu, op, r);
    cpu_update_mode(cpu);
    if (!ok) {
        r->left = cpu->exit.reason != CPU_EXIT_NONE ? CPU_TASK_SEGMENTS : CPU_TASK_WHOLE;
        return false;
    }
    if (r->eip > cpu->seg[CPU_CS].limit) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (r->trap) {
        cpu->db_pending |= DB_BT;
    }
    return true;
}

/* An exit was in the middle of a switch by JMP, CALL or IRET: go on. The operation's function is never called; that it
 * has one tells it from a delivery's. */
void cpu_task_resume(struct cpu *cpu)
{
    struct cpu_op op = {.fn = cpu_op_stale, .nth = 1, .seg = 6, .pgoff = (uint16_t)page_offset(cpu->rip)};

    cpu->regs[CPU_IP_PAGE] = cpu->rip - op.pgoff;
    if (cpu_task_finish(cpu, &op)) {
        cpu_retire(cpu, &op);
        cpu->nmi_blocked &= cpu->task_rest.reason != CPU_TASK_IRET;
    }
}

/* Under shadow tables the PDPTEs come from the hypervisor, by an exit: before anything of the old task is left. */
static bool pdptes_ready(struct cpu *cpu, const struct cpu_op *op, const struct task *t)
{
    uint64_t pdpte[4];

    if (!cpu->shadow.on || !t->wide || !(cpu->cr0 & X86_CR0_PG) || !(cpu->cr4 & X86_CR4_PAE)) {
        return true;
    }
    if (!cpu_shadow_pdptes(cpu, op, t->cr3, pdpte)) {
        return false;
    }
    cpu_shadow_give_pdptes(cpu, t->cr3, pdpte); /* to the load that follows */
    return true;
}

/*
 * Switch to the task of TSS selector `sel`. next_rip: where the old task goes on. The old task's CPL has
 * been held against gate or descriptor by the caller. On success the caller must retire its operation; RIP is
 * the new task's. False: fault or exit; the fault may already be the new task's.
 */
bool cpu_task_switch(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, enum cpu_task_reason reason,
                     uint64_t next_rip)
{
    struct task t;

    memset(&t, 0, sizeof(t));
    if (!find_task(cpu, op, sel, reason == CPU_TASK_IRET, &t) || !read_task(cpu, op, &t) ||
        !pdptes_ready(cpu, op, &t) || !leave_old(cpu, op, &t, reason, next_rip)) {
        return false;
    }
    if (t.wide && (cpu->cr0 & X86_CR0_PG) && (cpu->cr4 & X86_CR4_PAE)) {
        /* PDPTEs come with CR3, before anything is committed. */
        if (!cpu_load_pdptes(cpu, op, t.cr3)) {
            return cpu->exit.reason != CPU_EXIT_NONE ? false : cpu_raise_code(cpu, op, X86_TS, sel & 0xfffcu);
        }
        cpu_tlb_load_cr3(cpu, t.cr3);
    }
    enter_task(cpu, op, &t);
    cpu->task_rest = (struct cpu_task_rest){.reason = (uint8_t)reason, .trap = t.trap, .ldt = t.ldt, .eip = t.eip,
                                            .eflags = t.eflags};
    memcpy(cpu->task_rest.sel, t.sel, sizeof(t.sel));
    return cpu_task_finish(cpu, op);
}
