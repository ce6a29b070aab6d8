/*
 * Raising and delivering events. Raising only records: the run loop delivers, through the IDT or the
 * real-mode vector table, after the operation has returned.
 */
#ifndef STRATA_CPU_EXCEPTION_H
#define STRATA_CPU_EXCEPTION_H

#include "arch/regs.h"
#include "cpu/op.h"

/* Record a fault of op's instruction (RIP synchronised to it). Returns false, so that a checking function
 * can end with `return cpu_raise(...)`. raise_code: with error code. raise_pf: CR2 is la. */
bool cpu_raise(struct cpu *cpu, const struct cpu_op *op, enum x86_vector vector);
bool cpu_raise_code(struct cpu *cpu, const struct cpu_op *op, enum x86_vector vector, uint32_t code);
bool cpu_raise_pf(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint32_t code);

/*
 * Deliver cpu->event (which the run loop has moved from `fault`, or the hypervisor has injected).
 * Returns true when the handler's first instruction is next. False: an exit is recorded (an EPT
 * violation while pushing the frame: cpu->event stays, and is tried again at the next entry; a triple
 * fault). A fault during delivery becomes a double fault where the rules say so.
 */
bool cpu_deliver_event(struct cpu *cpu);

/* Make cpu->event what it becomes with cpu->fault, met while it was delivered. False: shutdown, recorded as exit. */
bool cpu_join_fault(struct cpu *cpu) must_check;

#endif
