/* Writing MMX registers: what every instruction of the family does to the x87 state. */
#ifndef STRATA_CPU_MMX_H
#define STRATA_CPU_MMX_H

#include "cpu/simd.h"

/* TOP to 0 and all tags to valid. */
static inline void cpu_mmx_touch(struct cpu *cpu)
{
    cpu->x87.top = 0;
    cpu->x87.ftw = 0xff;
}

static inline void cpu_mmx_set(struct cpu *cpu, unsigned n, uint64_t v)
{
    cpu_mmx_touch(cpu);
    cpu->x87.st[n].mant = v;
    cpu->x87.st[n].se = 0xffff;
}

/* PINSRW and PEXTRW with an MMX register. */
int cpu_mmx_emit_word(struct cpu_emit *e);

#endif
