/*
 * The string comparisons of SSE4.2: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM, executed on the host
 * with the guest's lengths and control byte. The memory operand need not be aligned. No state, no locks.
 */
#include "cpu/simd.h"

#include <errno.h>

#include "cpu/flags.h"

/* What one comparison takes and gives. */
struct compare {
    simd_vec a, b;
    uint64_t alen, blen; /* explicit-length forms: RAX and RDX as the instruction sees them */
    simd_vec mask;       /* result of the M forms */
    uint32_t index;      /* result of the I forms */
    uint32_t flags;
    unsigned control;
};

#define FLAG_OUTPUTS "=@ccc"(c), "=@ccz"(z), "=@ccs"(s), "=@cco"(o)

static uint32_t pack_flags(bool c, bool z, bool s, bool o)
{
    return (c ? X86_CF : 0) | (z ? X86_ZF : 0) | (s ? X86_SF : 0) | (o ? X86_OF : 0);
}

/* The flag outputs survive the way out of the asm block: a jump changes none. */
#define COMPARE(name, insn)                                                                        \
    static __attribute__((noinline)) void name(struct compare *p)                                  \
    {                                                                                              \
        register simd_vec a __asm__("xmm1") = p->a;                                                \
        register simd_vec b __asm__("xmm2") = p->b;                                                \
        register simd_vec m __asm__("xmm0") = {0, 0};                                              \
        uint64_t i = p->control, t, index = 0, ax = p->alen, dx = p->blen;                         \
        bool c, z, s, o;                                                                           \
                                                                                                   \
        CPU_SIMD_IMM8(insn " $simd_imm8, %%xmm2, %%xmm1",                                          \
                      : [i] "+&r"(i), [t] "=&r"(t), "+x"(m), "+c"(index), FLAG_OUTPUTS             \
                      : "x"(a), "x"(b), "a"(ax), "d"(dx));                                         \
        p->mask = m;                                                                               \
        p->index = (uint32_t)index;                                                                \
        p->flags = pack_flags(c, z, s, o);                                                         \
    }

COMPARE(estri_32, "pcmpestri")
COMPARE(estrm_32, "pcmpestrm")
COMPARE(estri_64, ".byte 0x66, 0x48, 0x0f, 0x3a, 0x61, 0xca, simd_imm8 #")
COMPARE(estrm_64, ".byte 0x66, 0x48, 0x0f, 0x3a, 0x60, 0xca, simd_imm8 #")
COMPARE(istri, "pcmpistri")
COMPARE(istrm, "pcmpistrm")

typedef void compare_fn(struct compare *p);

struct form {
    uint16_t mnemonic;
    bool is_mask; /* result goes to XMM0, else to ECX */
    compare_fn *narrow, *wide;
};

static const struct form forms[] = {
    {ZYDIS_MNEMONIC_PCMPESTRI, false, estri_32, estri_64},
    {ZYDIS_MNEMONIC_PCMPESTRM, true, estrm_32, estrm_64},
    {ZYDIS_MNEMONIC_PCMPISTRI, false, istri, istri},
    {ZYDIS_MNEMONIC_PCMPISTRM, true, istrm, istrm},
};

/* imm: the control byte; aux: index into forms, bit 7 = REX.W. */
static void compare(struct cpu *cpu, const struct cpu_op *op, const union cpu_xmm *b)
{
    const struct form *f = &forms[op->aux & 3];
    struct compare p = {.a = *(const simd_vec *)&cpu->xmm[op->dst], .b = *(const simd_vec *)b,
                        .alen = cpu->regs[CPU_RAX], .blen = cpu->regs[CPU_RDX],
                        .control = (unsigned)op->imm & 0xff};

    (op->aux & 0x80 ? f->wide : f->narrow)(&p);
    if (f->is_mask) {
        *(simd_vec *)&cpu->xmm[0] = p.mask;
    } else {
        cpu->regs[CPU_RCX] = p.index;
    }
    cpu_set_arith_flags(cpu, p.flags);
}

CPU_SIMD_OP(compare_reg)
{
    if (!cpu_simd_ready(cpu, op)) {
        return false;
    }
    compare(cpu, op, &cpu->xmm[op->src]);
    return true;
}

CPU_SIMD_OP(compare_mem)
{
    union cpu_xmm v;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_load_part(cpu, op, 16, &v)) {
        return false;
    }
    compare(cpu, op, &v);
    return true;
}

/* PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM. */
int cpu_emit_simd_str(struct cpu_emit *e)
{
    bool mem = e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op = cpu_emit_op(e, mem ? compare_mem : compare_reg);

    if (!op) {
        return -ENOSPC;
    }
    while (forms[op->aux].mnemonic != e->in.mnemonic) {
        op->aux++;
    }
    if ((e->in.attributes & ZYDIS_ATTRIB_HAS_REX) && e->in.raw.rex.W) {
        op->aux |= 0x80;
    }
    op->dst = (uint8_t)ZydisRegisterGetId(e->opnd[0].reg.value);
    op->imm = e->opnd[2].imm.value.u;
    if (mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
    } else {
        op->src = (uint8_t)ZydisRegisterGetId(e->opnd[1].reg.value);
    }
    return 0;
}
