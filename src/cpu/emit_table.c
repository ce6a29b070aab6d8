/* The table of emitters, gathered from the families' .def files; see emit.h. Constant data. */
#include "cpu/emit.h"

#define CPU_INSN(mnemonic, fn) cpu_emit_fn fn;
#include "cpu/core.def"
#include "cpu/system.def"
#include "cpu/simd.def"
#include "cpu/x87.def"
#undef CPU_INSN

static cpu_emit_fn *const table[ZYDIS_MNEMONIC_MAX_VALUE + 1] = {
#define CPU_INSN(mnemonic, fn) [ZYDIS_MNEMONIC_##mnemonic] = fn,
#include "cpu/core.def"
#include "cpu/system.def"
#include "cpu/simd.def"
#include "cpu/x87.def"
#undef CPU_INSN
};

cpu_emit_fn *cpu_emit_find(ZydisMnemonic m)
{
    return m <= ZYDIS_MNEMONIC_MAX_VALUE ? table[m] : NULL;
}
