/*
 * Which instructions the oracle compares: user-mode ones of x86-64-v2 whose outcome depends on nothing but
 * registers and memory, and that stay where they are. And which flags they leave undefined.
 */
#include "native_gen.h"

static bool isa_is_wanted(ZydisISASet s)
{
    switch (s) {
    case ZYDIS_ISA_SET_I86:
    case ZYDIS_ISA_SET_I186:
    case ZYDIS_ISA_SET_I386:
    case ZYDIS_ISA_SET_I486:
    case ZYDIS_ISA_SET_I486REAL:
    case ZYDIS_ISA_SET_PENTIUMMMX:
    case ZYDIS_ISA_SET_PENTIUMREAL:
    case ZYDIS_ISA_SET_PPRO:
    case ZYDIS_ISA_SET_X87:
    case ZYDIS_ISA_SET_CMOV:
    case ZYDIS_ISA_SET_FCMOV:
    case ZYDIS_ISA_SET_SSE:
    case ZYDIS_ISA_SET_SSE2:
    case ZYDIS_ISA_SET_SSE2MMX:
    case ZYDIS_ISA_SET_SSE3:
    case ZYDIS_ISA_SET_SSE3X87:
    case ZYDIS_ISA_SET_SSE4:
    case ZYDIS_ISA_SET_SSE42:
    case ZYDIS_ISA_SET_SSSE3:
    case ZYDIS_ISA_SET_SSSE3MMX:
    case ZYDIS_ISA_SET_SSEMXCSR:
    case ZYDIS_ISA_SET_SSE_PREFETCH:
    case ZYDIS_ISA_SET_PREFETCH_NOP:
    case ZYDIS_ISA_SET_POPCNT:
    case ZYDIS_ISA_SET_CMPXCHG16B:
    case ZYDIS_ISA_SET_LONGMODE:
    case ZYDIS_ISA_SET_LAHF:
    case ZYDIS_ISA_SET_FAT_NOP:
    case ZYDIS_ISA_SET_AES:
    case ZYDIS_ISA_SET_PCLMULQDQ:
    case ZYDIS_ISA_SET_FXSAVE:
    case ZYDIS_ISA_SET_FXSAVE64:
    case ZYDIS_ISA_SET_XSAVE:
    case ZYDIS_ISA_SET_XSAVEC:
    case ZYDIS_ISA_SET_PAUSE:
    case ZYDIS_ISA_SET_CLFSH:
        return true;
    default:
        return false;
    }
}

static bool category_is_wanted(ZydisInstructionCategory c)
{
    switch (c) {
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_IO:
    case ZYDIS_CATEGORY_IOSTRINGOP:
    case ZYDIS_CATEGORY_SEGOP:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
        return false;
    default:
        return true;
    }
}

static bool mnemonic_is_wanted(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_CPUID:
    case ZYDIS_MNEMONIC_XGETBV: /* tells of components that the guest has not */
    case ZYDIS_MNEMONIC_XSETBV:
    case ZYDIS_MNEMONIC_RDTSC:
    case ZYDIS_MNEMONIC_RDPMC:
    case ZYDIS_MNEMONIC_POPF: /* may set TF and AC, whose effects come later */
    case ZYDIS_MNEMONIC_POPFD:
    case ZYDIS_MNEMONIC_POPFQ:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_HLT:
    case ZYDIS_MNEMONIC_LAR:
    case ZYDIS_MNEMONIC_LSL:
    case ZYDIS_MNEMONIC_VERR:
    case ZYDIS_MNEMONIC_VERW:
    case ZYDIS_MNEMONIC_SLDT:
    case ZYDIS_MNEMONIC_STR:
    case ZYDIS_MNEMONIC_SMSW:
    case ZYDIS_MNEMONIC_SGDT:
    case ZYDIS_MNEMONIC_SIDT:
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
        return false;
    default:
        return true;
    }
}

bool native_filter(const ZydisDecodedInstruction *in, const ZydisDecodedOperand *opnd)
{
    if (in->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || !isa_is_wanted(in->meta.isa_set) ||
        !category_is_wanted(in->meta.category) || !mnemonic_is_wanted(in->mnemonic)) {
        return false;
    }
    for (unsigned o = 0; o < in->operand_count; o++) {
        ZydisRegister seg = ZYDIS_REGISTER_NONE;

        if (opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER) {
            ZydisRegisterClass c = ZydisRegisterGetClass(opnd[o].reg.value);

            if (c == ZYDIS_REGCLASS_SEGMENT || c == ZYDIS_REGCLASS_CONTROL || c == ZYDIS_REGCLASS_DEBUG) {
                return false;
            }
        } else if (opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            seg = opnd[o].mem.segment;
        }
        if (seg == ZYDIS_REGISTER_FS || seg == ZYDIS_REGISTER_GS) {
            return false;
        }
    }
    return true;
}

/* The count that a shift or rotation uses: the operand, masked. */
static unsigned shift_count(const struct native_insn *insn, const struct native_regs *r)
{
    const ZydisDecodedOperand *o = &insn->opnd[insn->in.mnemonic == ZYDIS_MNEMONIC_SHLD ||
                                                       insn->in.mnemonic == ZYDIS_MNEMONIC_SHRD
                                                   ? 2
                                                   : 1];
    uint64_t n = o->type == ZYDIS_OPERAND_TYPE_IMMEDIATE ? o->imm.value.u : r->gpr[1];

    return (unsigned)n & (insn->opnd[0].size == 64 ? 63 : 31);
}

#define CF 0x1u
#define AF 0x10u
#define OF 0x800u

uint32_t native_undefined_flags(const struct native_insn *insn, const struct native_regs *r)
{
    unsigned n, size = insn->opnd[0].size;
    uint32_t u = insn->in.cpu_flags ? (uint32_t)insn->in.cpu_flags->undefined : 0;

    switch (insn->in.mnemonic) {
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_SHLD:
    case ZYDIS_MNEMONIC_SHRD:
        n = shift_count(insn, r);
        if (n == 0) {
            return 0;
        }
        u = AF | (n > 1 ? OF : 0);
        return n >= size && insn->in.mnemonic != ZYDIS_MNEMONIC_SAR ? u | CF : u;
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
    case ZYDIS_MNEMONIC_RCL:
    case ZYDIS_MNEMONIC_RCR:
        n = shift_count(insn, r);
        return n > 1 ? OF : 0;
    default:
        return u;
    }
}
