/* LOCKed read-modify-write, for the emitters of the mnemonics that allow the prefix. */
#ifndef STRATA_CPU_ATOMIC_H
#define STRATA_CPU_ATOMIC_H

#include "cpu/emit.h"

/* Any instruction with the LOCK prefix, and XCHG with memory: one operation with host atomics. */
int cpu_emit_locked(struct cpu_emit *e);

#endif
