/* Emitters of seg_insn.c for the forms of MOV that have a segment register as destination or source. */
#ifndef STRATA_CPU_SEG_EMIT_H
#define STRATA_CPU_SEG_EMIT_H

#include "cpu/emit.h"

/* Number of a segment register. */
enum cpu_segreg cpu_seg_number(ZydisRegister r);

cpu_emit_fn cpu_emit_mov_seg_to, cpu_emit_mov_seg_from;

#endif
