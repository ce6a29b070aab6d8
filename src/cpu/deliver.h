/* Carrying one event to its handler: the part of exception delivery that knows tables and stacks. */
#ifndef STRATA_CPU_DELIVER_H
#define STRATA_CPU_DELIVER_H

#include "cpu/op.h"

/* In `dst` of the operation that stands for a delivery: error codes of faults get the EXT bit. */
#define CPU_DELIVER_EXT 1

/* Try to deliver cpu->event in the current mode. False: a fault or an exit is recorded. */
bool cpu_deliver_once(struct cpu *cpu, const struct cpu_op *op) must_check;

/* Flags as the event's frame shows them: RFLAGS, with RF as the event's kind asks for it. */
uint64_t cpu_deliver_flags(const struct cpu *cpu);

/* RIP that the frame shows: behind the instruction for software events. */
uint64_t cpu_deliver_rip(const struct cpu *cpu);

/* deliver_real.c: real mode; and virtual-8086 interrupts that VME sends to the 8086 vector table. */
bool cpu_deliver_real(struct cpu *cpu, const struct cpu_op *op) must_check;
bool cpu_deliver_vme(struct cpu *cpu, const struct cpu_op *op, bool *done) must_check;

/* deliver_long.c: through a 16-byte gate. */
bool cpu_deliver_long(struct cpu *cpu, const struct cpu_op *op) must_check;

#endif
