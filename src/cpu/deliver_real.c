/*
 * Delivery by the 8086 vector table: four bytes a vector, three words on the stack. Real mode, and INT n in
 * virtual-8086 mode where CR4.VME and the TSS's redirection bit map say so.
 *
 * Source: Intel, "Interrupt and exception handling in real-address mode" and "Method 5/6" of software
 * interrupts in virtual-8086 mode. Locks: none.
 */
#include "cpu/deliver.h"
#include "cpu/flags.h"
#include "cpu/seg.h"
#include "cpu/system.h"

#define TSS_IO_MAP_BASE 102u

/* Push flags, CS and IP as words, and go to the vector. */
static bool enter(struct cpu *cpu, const struct cpu_op *op, uint32_t vector, uint64_t flags)
{
    struct cpu_stack st;

    cpu_stack_current(cpu, &st);
    if (!cpu_stack_push(cpu, op, &st, 2, flags) ||
        !cpu_stack_push(cpu, op, &st, 2, cpu->seg[CPU_CS].sel) ||
        !cpu_stack_push(cpu, op, &st, 2, cpu_deliver_rip(cpu))) {
        return false;
    }
    cpu_stack_commit(cpu, &st);
    cpu->seg[CPU_CS].sel = (uint16_t)(vector >> 16);
    cpu->seg[CPU_CS].base = (vector >> 16) << 4;
    cpu->rip = vector & 0xffff;
    return true;
}

/* Real mode. Beyond the table's limit: #GP, which for the double fault's own vector ends in shutdown. */
bool cpu_deliver_real(struct cpu *cpu, const struct cpu_op *op)
{
    unsigned off = cpu->event.vector * 4u;
    uint32_t vector;

    if (off + 3 > cpu->idtr.limit) {
        return cpu_raise_code(cpu, op, X86_GP, cpu->event.vector * 8u + 2);
    }
    if (!cpu_sys_load(cpu, op, (uint32_t)(cpu->idtr.base + off), &vector, 4) ||
        !enter(cpu, op, vector, cpu_deliver_flags(cpu))) {
        return false;
    }
    cpu->rflags_rest &= ~(X86_IF | X86_TF | X86_AC | X86_RF);
    cpu_update_mode(cpu);
    return true;
}

/* The bit for the event's vector in the 32 bytes below the I/O permission map; 1: to the IDT. A map that is
 * not inside the TSS counts as 1. */
static bool redirection(struct cpu *cpu, const struct cpu_op *op, bool *to_idt)
{
    uint16_t map;
    uint32_t off;
    uint8_t bits;

    *to_idt = true;
    if (cpu->tr.limit < TSS_IO_MAP_BASE + 1) {
        return true;
    }
    if (!cpu_sys_load(cpu, op, (uint32_t)(cpu->tr.base + TSS_IO_MAP_BASE), &map, 2)) {
        return false;
    }
    off = map - 32u + cpu->event.vector / 8u;
    if (map < 32 || off > cpu->tr.limit) {
        return true;
    }
    if (!cpu_sys_load(cpu, op, (uint32_t)(cpu->tr.base + off), &bits, 1)) {
        return false;
    }
    *to_idt = bits >> (cpu->event.vector & 7) & 1;
    return true;
}

/*
 * INT n in virtual-8086 mode. *done: it went to the 8086 handler. Else the caller goes on to the IDT; with
 * IOPL below 3 that is #GP(0), raised here.
 */
bool cpu_deliver_vme(struct cpu *cpu, const struct cpu_op *op, bool *done)
{
    bool iopl3 = (cpu->rflags_rest & X86_IOPL) == X86_IOPL;
    bool to_idt = true;
    uint64_t flags = cpu_deliver_flags(cpu);
    uint32_t vector;

    *done = false;
    if ((cpu->cr4 & X86_CR4_VME) && !redirection(cpu, op, &to_idt)) {
        return false;
    }
    if (to_idt) {
        return iopl3 ? true : cpu_raise_code(cpu, op, X86_GP, 0);
    }
    if (!iopl3) {
        flags = (flags & ~(uint64_t)X86_IF) | X86_IOPL | (flags & X86_VIF ? X86_IF : 0);
    }
    if (!cpu_sys_load(cpu, op, cpu->event.vector * 4u, &vector, 4) || !enter(cpu, op, vector, flags)) {
        return false;
    }
    cpu->rflags_rest &= ~(X86_TF | X86_NT | X86_RF | (iopl3 ? X86_IF : X86_VIF));
    cpu_update_mode(cpu);
    *done = true;
    return true;
}
