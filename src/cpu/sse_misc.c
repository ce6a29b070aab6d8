/*
 * SSE instructions of irregular form: insertion and extraction of single elements, byte-masked stores,
 * the SSE4.2 string comparisons, CRC32 and POPCNT, MOVNTI, and the control register MXCSR.
 * No state, no locks.
 */
#include "cpu/simd.h"

#include <errno.h>

#include "cpu/flags.h"
#include "cpu/mmx.h"

/* Elements: aux = size in bytes, imm = which. */

static void insert_element(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    unsigned n = (unsigned)op->imm & (16 / op->aux - 1);
    union cpu_xmm *d = &cpu->xmm[op->dst];

    switch (op->aux) {
    case 1:
        d->u8[n] = (uint8_t)v;
        break;
    case 2:
        d->u16[n] = (uint16_t)v;
        break;
    case 4:
        d->u32[n] = (uint32_t)v;
        break;
    default:
        d->u64[n] = v;
    }
}

CPU_SIMD_OP(insert_reg)
{
    if (!cpu_simd_ready(cpu, op)) {
        return false;
    }
    insert_element(cpu, op, cpu->regs[op->src]);
    return true;
}

CPU_SIMD_OP(insert_mem)
{
    union cpu_xmm v;

    if (!cpu_simd_ready(cpu, op) || !cpu_simd_load_part(cpu, op, op->aux, &v)) {
        return false;
    }
    insert_element(cpu, op, v.u64[0]);
    return true;
}

static uint64_t element(const struct cpu *cpu, const struct cpu_op *op)
{
    unsigned n = (unsigned)op->imm & (16 / op->aux - 1);
    const union cpu_xmm *s = &cpu->xmm[op->src];

    return op->aux == 1 ? s->u8[n] : op->aux == 2 ? s->u16[n] : op->aux == 4 ? s->u32[n] : s->u64[n];
}

static void extract_reg(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    cpu->regs[op->dst] = element(cpu, op);
    cpu_next(cpu, op);
}

static bool store_element(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint64_t v)
{
    switch (op->aux) {
    case 1:
        return cpu_store8(cpu, op, la, (uint8_t)v);
    case 2:
        return cpu_store16(cpu, op, la, (uint16_t)v);
    case 4:
        return cpu_store32(cpu, op, la, (uint32_t)v);
    default:
        return cpu_store64(cpu, op, la, v);
    }
}

CPU_SIMD_OP(extract_mem)
{
    uint64_t la;

    if (!cpu_simd_ready(cpu, op) || !cpu_ea(cpu, op, op->aux, true, &la) ||
        !store_element(cpu, op, la, element(cpu, op))) {
        return false;
    }
    return true;
}

/*
 * MASKMOVDQU, MASKMOVQ: store the bytes of n (8 or 16) whose mask byte has its top bit. The whole range
 * is probed first, whatever is selected, as Intel's processors do, so that a fault leaves nothing behind.
 */
static bool masked_store(struct cpu *cpu, const struct cpu_op *op, const union cpu_xmm *v,
                         const union cpu_xmm *mask)
{
    unsigned n = op->aux;
    uint64_t la;

    if (!cpu_ea(cpu, op, n, true, &la) || !cpu_probe_write(cpu, op, la, n)) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        if ((mask->u8[i] & 0x80) && !cpu_store8(cpu, op, la + i, v->u8[i])) {
            return false;
        }
    }
    return true;
}

CPU_SIMD_OP(maskmovdqu)
{
    if (!cpu_simd_ready(cpu, op) || !masked_store(cpu, op, &cpu->xmm[op->dst], &cpu->xmm[op->src])) {
        return false;
    }
    return true;
}

CPU_SIMD_OP(maskmovq)
{
    union cpu_xmm v = {.u64 = {cpu->x87.st[op->dst].mant, 0}};
    union cpu_xmm mask = {.u64 = {cpu->x87.st[op->src].mant, 0}};

    if (!cpu_mmx_begin(cpu, op)) {
        return false;
    }
    cpu_mmx_touch(cpu); /* even if the store faults */
    if (!masked_store(cpu, op, &v, &mask)) {
        return false;
    }
    return true;
}

/* General registers: no SSE state, so no gate. aux = operand size, bytes. */

static bool gpr_source(struct cpu *cpu, const struct cpu_op *op, uint64_t *v)
{
    union cpu_xmm m;

    if (!(op->imm & 1)) {
        *v = op->aux == 1 ? *((const uint8_t *)cpu->regs + op->src) : cpu->regs[op->src];
        return true;
    }
    if (!cpu_simd_load_part(cpu, op, op->aux, &m)) {
        return false;
    }
    *v = m.u64[0];
    return true;
}

CPU_SIMD_OP(crc32)
{
    uint64_t crc = (uint32_t)cpu->regs[op->dst], v;

    if (!gpr_source(cpu, op, &v)) {
        return false;
    }
    switch (op->aux) {
    case 1:
        __asm__("crc32b %b1, %k0" : "+r"(crc) : "q"(v));
        break;
    case 2:
        __asm__("crc32w %w1, %k0" : "+r"(crc) : "r"(v));
        break;
    case 4:
        __asm__("crc32l %k1, %k0" : "+r"(crc) : "r"(v));
        break;
    default:
        __asm__("crc32q %1, %0" : "+r"(crc) : "r"(v));
    }
    cpu->regs[op->dst] = (uint32_t)crc;
    return true;
}

CPU_SIMD_OP(popcnt)
{
    uint64_t v, mask = op->aux == 8 ? ~UINT64_C(0) : (UINT64_C(1) << op->aux * 8) - 1;
    uint64_t count;

    if (!gpr_source(cpu, op, &v)) {
        return false;
    }
    count = (uint64_t)__builtin_popcountll(v & mask);
    if (op->aux == 2) {
        count |= cpu->regs[op->dst] & ~UINT64_C(0xffff);
    }
    cpu->regs[op->dst] = count;
    cpu_set_arith_flags(cpu, v & mask ? 0 : X86_ZF);
    return true;
}

CPU_SIMD_OP(movnti)
{
    uint64_t la;

    if (!cpu_ea(cpu, op, op->aux, true, &la) ||
        !store_element(cpu, op, la, cpu->regs[op->src])) {
        return false;
    }
    return true;
}

/* Guest loads and stores are the host's, in its order; so the guest's fences are the host's. */
#define FENCE(name)                                                                                \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        __asm__ volatile(#name : : : "memory");                                                    \
        cpu_next(cpu, op);                                                                         \
    }

FENCE(lfence)
FENCE(sfence)
FENCE(mfence)

CPU_SIMD_OP(ldmxcsr)
{
    uint64_t la;
    uint32_t v;

    if (!cpu_simd_ready(cpu, op) || !cpu_ea(cpu, op, 4, false, &la) || !cpu_load32(cpu, op, la, &v)) {
        return false;
    }
    if (v & ~CPU_MXCSR_VALID) {
        cpu_raise_code(cpu, op, X86_GP, 0);
        return false;
    }
    cpu->mxcsr = v;
    cpu_mxcsr_changed(cpu);
    return true;
}

CPU_SIMD_OP(stmxcsr)
{
    uint64_t la;

    if (!cpu_simd_ready(cpu, op) || !cpu_ea(cpu, op, 4, true, &la)) {
        return false;
    }
    cpu_mxcsr_sync(cpu);
    if (!cpu_store32(cpu, op, la, cpu->mxcsr)) {
        return false;
    }
    return true;
}

/* Emitters. */

static ZydisRegisterClass class_of(const struct cpu_emit *e, unsigned o)
{
    return e->opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER ? ZydisRegisterGetClass(e->opnd[o].reg.value)
                                                          : ZYDIS_REGCLASS_INVALID;
}

static unsigned element_size(ZydisMnemonic m)
{
    switch (m) {
    case ZYDIS_MNEMONIC_PINSRB:
    case ZYDIS_MNEMONIC_PEXTRB:
        return 1;
    case ZYDIS_MNEMONIC_PINSRW:
    case ZYDIS_MNEMONIC_PEXTRW:
        return 2;
    case ZYDIS_MNEMONIC_PINSRQ:
    case ZYDIS_MNEMONIC_PEXTRQ:
        return 8;
    default:
        return 4;
    }
}

/* PINSRx with an XMM destination, and PINSRW with MMX. */
int cpu_emit_simd_pinsr(struct cpu_emit *e)
{
    bool mem = e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op;

    if (class_of(e, 0) == ZYDIS_REGCLASS_MMX) {
        return cpu_mmx_emit_word(e);
    }
    op = cpu_emit_op(e, mem ? insert_mem : insert_reg);
    if (!op) {
        return -ENOSPC;
    }
    op->dst = (uint8_t)ZydisRegisterGetId(e->opnd[0].reg.value);
    op->aux = (uint8_t)element_size(e->in.mnemonic);
    op->imm = e->opnd[2].imm.value.u;
    if (mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
    } else {
        op->src = cpu_emit_reg(e->opnd[1].reg.value);
    }
    return 0;
}

/* PEXTRx and EXTRACTPS, and PEXTRW from MMX. */
int cpu_emit_simd_pextr(struct cpu_emit *e)
{
    bool mem = e->opnd[0].type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op;

    if (class_of(e, 1) == ZYDIS_REGCLASS_MMX) {
        return cpu_mmx_emit_word(e);
    }
    op = cpu_emit_op(e, mem ? extract_mem : extract_reg);
    if (!op) {
        return -ENOSPC;
    }
    op->src = (uint8_t)ZydisRegisterGetId(e->opnd[1].reg.value);
    op->aux = (uint8_t)element_size(e->in.mnemonic);
    op->imm = e->opnd[2].imm.value.u;
    if (mem) {
        cpu_emit_mem(e, op, &e->opnd[0]);
    } else {
        op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    }
    return 0;
}

/* MASKMOVDQU, MASKMOVQ: the memory operand is DS:rDI, hidden. */
int cpu_emit_simd_maskmov(struct cpu_emit *e)
{
    bool mm = e->in.mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
    unsigned first = 0, regs[2] = {0, 0}, n = 0;
    struct cpu_op *op = cpu_emit_op(e, mm ? maskmovq : maskmovdqu);

    if (!op) {
        return -ENOSPC;
    }
    for (unsigned o = 0; o < e->in.operand_count; o++) {
        ZydisRegisterClass c = class_of(e, o);

        if (e->opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            first = o;
        } else if ((c == ZYDIS_REGCLASS_MMX || c == ZYDIS_REGCLASS_XMM) && n < 2) {
            regs[n++] = (unsigned)ZydisRegisterGetId(e->opnd[o].reg.value);
        }
    }
    cpu_emit_mem(e, op, &e->opnd[first]);
    op->dst = (uint8_t)regs[0];
    op->src = (uint8_t)regs[1];
    op->aux = mm ? 8 : 16;
    return 0;
}

/* CRC32 and POPCNT: imm is 1 for a memory source. */
int cpu_emit_simd_count(struct cpu_emit *e)
{
    bool mem = e->opnd[1].type == ZYDIS_OPERAND_TYPE_MEMORY;
    struct cpu_op *op = cpu_emit_op(e, e->in.mnemonic == ZYDIS_MNEMONIC_CRC32 ? crc32 : popcnt);

    if (!op) {
        return -ENOSPC;
    }
    op->dst = cpu_emit_reg(e->opnd[0].reg.value);
    op->aux = (uint8_t)(e->opnd[1].size / 8);
    op->imm = mem;
    if (mem) {
        cpu_emit_mem(e, op, &e->opnd[1]);
    } else {
        op->src = op->aux == 1 ? cpu_emit_reg8(e->opnd[1].reg.value) : cpu_emit_reg(e->opnd[1].reg.value);
    }
    return 0;
}

int cpu_emit_simd_movnti(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, movnti);

    if (!op) {
        return -ENOSPC;
    }
    op->src = cpu_emit_reg(e->opnd[1].reg.value);
    op->aux = (uint8_t)(e->opnd[0].size / 8);
    cpu_emit_mem(e, op, &e->opnd[0]);
    return 0;
}

/* LDMXCSR, STMXCSR. */
int cpu_emit_simd_mxcsr(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, e->in.mnemonic == ZYDIS_MNEMONIC_LDMXCSR ? ldmxcsr : stmxcsr);

    if (!op) {
        return -ENOSPC;
    }
    cpu_emit_mem(e, op, &e->opnd[0]);
    return 0;
}

/* LFENCE, SFENCE, MFENCE. */
int cpu_emit_simd_fence(struct cpu_emit *e)
{
    cpu_op_fn *fn = e->in.mnemonic == ZYDIS_MNEMONIC_LFENCE   ? lfence
                    : e->in.mnemonic == ZYDIS_MNEMONIC_SFENCE ? sfence
                                                              : mfence;

    return cpu_emit_op(e, fn) ? 0 : -ENOSPC;
}
