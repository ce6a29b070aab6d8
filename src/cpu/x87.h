/* The x87 family's shared parts: the gate of its instructions and its pointers to code and data. */
#ifndef STRATA_CPU_X87_H
#define STRATA_CPU_X87_H

#include "cpu/access.h"
#include "cpu/emit.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"

/* A body that is a function of its own, so that the operation around it has no frame and ends in a jump. */
#define X87_BODY __attribute__((noinline))

/* May an x87 instruction run? waiting: it reports a pending unmasked exception first (#MF). With
 * CR0.NE clear the exception goes to the FERR# pin, which nobody here watches, and the instruction runs. */
bool cpu_x87_ready(struct cpu *cpu, const struct cpu_op *op, bool waiting) must_check;

/* The family's emitters. */
#define CPU_INSN(mnemonic, fn) cpu_emit_fn fn;
#include "cpu/x87.def"
#undef CPU_INSN

#endif
