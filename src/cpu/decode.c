/*
 * From bytes to a block: Zydis decodes, a backward pass finds which flags anybody can see, emitters turn
 * each instruction into operations.
 *
 *   bytes --> insns_decode() --> flags_liveness() --> emit each --> cpu_block_alloc(), copy
 *
 * A flag that an instruction leaves is dead if a later one overwrites it before anything reads it, and
 * nothing in between can fault or leave the block: so whatever the guest can look at is exact.
 *
 * Locks: none, no state outside the call.
 *
 * Left out: encodings of features that no guest is offered (CET, MPX, LZCNT, TZCNT) decode as on processors without
 * them.
 */
#include <errno.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/chain.h"
#include "cpu/emit.h"

/* What an instruction does to the flags, for the backward pass. */
struct insn_flags {
    uint32_t uses, kills;
    bool barrier; /* may fault, leave, or look at all */
};

/* A block in the making. */
struct making {
    ZydisDecoder decoder;
    uint32_t mode;
    const uint8_t *code;
    unsigned ninsns;
    ZydisDecodedInstruction in[CPU_BLOCK_MAX_INSNS + 1];
    ZydisDecoderContext ctx[CPU_BLOCK_MAX_INSNS + 1];
    uint32_t live[CPU_BLOCK_MAX_INSNS + 1]; /* flags live after the instruction */
    unsigned offset[CPU_BLOCK_MAX_INSNS + 2];
    ZydisDecodedOperand next_opnd[ZYDIS_MAX_OPERAND_COUNT];
    struct cpu_op ops[CPU_BLOCK_MAX_OPS + 1];
};

static void decoder_init(ZydisDecoder *d, uint32_t mode)
{
    static const ZydisDecoderMode off[] = {ZYDIS_DECODER_MODE_MPX,   ZYDIS_DECODER_MODE_CET,
                                           ZYDIS_DECODER_MODE_LZCNT, ZYDIS_DECODER_MODE_TZCNT,
                                           ZYDIS_DECODER_MODE_WBNOINVD, ZYDIS_DECODER_MODE_CLDEMOTE};
    ZydisMachineMode mm = ZYDIS_MACHINE_MODE_LEGACY_16;
    ZydisStackWidth width = mode & CPU_MODE_SS32 ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_16;

    if (mode & CPU_MODE_64) {
        mm = ZYDIS_MACHINE_MODE_LONG_64;
        width = ZYDIS_STACK_WIDTH_64;
    } else if (mode & CPU_MODE_REAL && !(mode & CPU_MODE_CS32)) {
        mm = ZYDIS_MACHINE_MODE_REAL_16;
        width = ZYDIS_STACK_WIDTH_16;
    } else if (mode & CPU_MODE_CS32) {
        mm = ZYDIS_MACHINE_MODE_LEGACY_32;
        width = ZYDIS_STACK_WIDTH_32;
    } else {
        width = ZYDIS_STACK_WIDTH_16;
    }
    ZydisDecoderInit(d, mm, width);
    for (unsigned i = 0; i < ARRAY_LEN(off); i++) {
        ZydisDecoderEnableMode(d, off[i], ZYAN_FALSE);
    }
}

/* Does the instruction at the start of n bytes end within them? False also means "cannot tell". */
bool cpu_decode_fits(const uint8_t *code, unsigned n, uint32_t mode)
{
    ZydisDecodedInstruction in;
    ZydisDecoderContext ctx;
    ZydisDecoder d;

    decoder_init(&d, mode);
    return ZydisDecoderDecodeInstruction(&d, &ctx, code, n, &in) != ZYDIS_STATUS_NO_MORE_DATA;
}

/* Nothing behind it is reached in sequence. */
static bool ends_decoding(const ZydisDecodedInstruction *in)
{
    switch (in->meta.category) {
    case ZYDIS_CATEGORY_UNCOND_BR:
    case ZYDIS_CATEGORY_CALL:
    case ZYDIS_CATEGORY_RET:
    case ZYDIS_CATEGORY_INTERRUPT:
    case ZYDIS_CATEGORY_SYSCALL:
    case ZYDIS_CATEGORY_SYSRET:
    case ZYDIS_CATEGORY_SYSTEM:
    case ZYDIS_CATEGORY_VTX:
        return true;
    default:
        return false;
    }
}

static void insns_decode(struct making *m, unsigned n)
{
    unsigned max = m->mode & CPU_MODE_TF ? 1 : CPU_BLOCK_MAX_INSNS, at = 0;

    for (m->ninsns = 0; m->ninsns < max && at < n; m->ninsns++) {
        ZydisDecodedInstruction *in = &m->in[m->ninsns];

        m->offset[m->ninsns] = at;
        if (!ZYAN_SUCCESS(ZydisDecoderDecodeInstruction(&m->decoder, &m->ctx[m->ninsns], m->code + at, n - at, in))) {
            break;
        }
        at += in->length;
        if (ends_decoding(in)) {
            m->ninsns++;
            break;
        }
    }
    m->offset[m->ninsns] = at;
}

/* Instructions that can be looked through: they only compute, and set what Zydis says. */
static bool is_transparent(const ZydisDecodedInstruction *in)
{
    if (in->attributes & (ZYDIS_ATTRIB_HAS_LOCK | ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE |
                          ZYDIS_ATTRIB_HAS_REPNE)) {
        return false;
    }
    if ((in->attributes & ZYDIS_ATTRIB_HAS_MODRM) && in->raw.modrm.mod != 3 && in->mnemonic != ZYDIS_MNEMONIC_LEA) {
        return false;
    }
    switch (in->mnemonic) {
    case ZYDIS_MNEMONIC_ADD:
    case ZYDIS_MNEMONIC_ADC:
    case ZYDIS_MNEMONIC_SUB:
    case ZYDIS_MNEMONIC_SBB:
    case ZYDIS_MNEMONIC_AND:
    case ZYDIS_MNEMONIC_OR:
    case ZYDIS_MNEMONIC_XOR:
    case ZYDIS_MNEMONIC_CMP:
    case ZYDIS_MNEMONIC_TEST:
    case ZYDIS_MNEMONIC_INC:
    case ZYDIS_MNEMONIC_DEC:
    case ZYDIS_MNEMONIC_NEG:
    case ZYDIS_MNEMONIC_NOT:
    case ZYDIS_MNEMONIC_IMUL:
    case ZYDIS_MNEMONIC_MUL:
    case ZYDIS_MNEMONIC_LEA:
    case ZYDIS_MNEMONIC_MOVZX:
    case ZYDIS_MNEMONIC_MOVSX:
    case ZYDIS_MNEMONIC_MOVSXD:
    case ZYDIS_MNEMONIC_CDQE:
    case ZYDIS_MNEMONIC_CDQ:
    case ZYDIS_MNEMONIC_CQO:
    case ZYDIS_MNEMONIC_CWDE:
    case ZYDIS_MNEMONIC_BSWAP:
    case ZYDIS_MNEMONIC_NOP:
    case ZYDIS_MNEMONIC_SHL:
    case ZYDIS_MNEMONIC_SHR:
    case ZYDIS_MNEMONIC_SAR:
    case ZYDIS_MNEMONIC_ROL:
    case ZYDIS_MNEMONIC_ROR:
        return true;
    case ZYDIS_MNEMONIC_MOV:
        /* Not segment, control and debug registers. */
        return in->opcode_map == ZYDIS_OPCODE_MAP_DEFAULT && in->opcode != 0x8e && in->opcode != 0x8c &&
               !(in->opcode >= 0xa0 && in->opcode <= 0xa3);
    default:
        /* setcc, cmovcc only look */
        return in->meta.category == ZYDIS_CATEGORY_CMOV || in->meta.category == ZYDIS_CATEGORY_SETCC;
    }
}

/* A shift changes no flags when its count turns out to be 0. */
static bool may_leave_flags(const ZydisDecodedInstruction *in)
{
    return in->meta.category == ZYDIS_CATEGORY_SHIFT || in->meta.category == ZYDIS_CATEGORY_ROTATE;
}

static struct insn_flags flags_of(const ZydisDecodedInstruction *in)
{
    struct insn_flags f = {X86_ARITH_FLAGS, 0, true};
    const ZydisAccessedFlags *a = in->cpu_flags;

    if (!is_transparent(in)) {
        return f;
    }
    f = (struct insn_flags){0, 0, false};
    if (a) {
        f.uses = (uint32_t)a->tested & X86_ARITH_FLAGS;
        f.kills = (uint32_t)(a->modified | a->set_0 | a->set_1 | a->undefined) & X86_ARITH_FLAGS;
    }
    if (may_leave_flags(in)) {
        f.kills = 0;
    }
    return f;
}

static void flags_liveness(struct making *m)
{
    uint32_t live = X86_ARITH_FLAGS;

    for (unsigned i = m->ninsns; i-- > 0;) {
        struct insn_flags f = flags_of(&m->in[i]);

        m->live[i] = live;
        live = f.barrier ? X86_ARITH_FLAGS : (live & ~f.kills) | f.uses;
    }
}

static void undefined_emit(struct cpu_emit *e)
{
    struct cpu_op *op = cpu_emit_op(e, cpu_op_undefined);

    if (op) {
        e->ends_block = true;
        e->terminated = true;
    }
}

/* Operands of a conditional jump behind instruction i, for fusing. */
static void next_decode(struct making *m, struct cpu_emit *e, unsigned i)
{
    if (e->next && e->next->meta.category == ZYDIS_CATEGORY_COND_BR) {
        ZydisDecoderDecodeOperands(&m->decoder, &m->ctx[i + 1], e->next, m->next_opnd, e->next->operand_count);
        e->next_opnd = m->next_opnd;
    }
}

/* May the instruction change cc_op? What is not transparent may do anything. */
static bool flags_written(const ZydisDecodedInstruction *in)
{
    const ZydisAccessedFlags *a = in->cpu_flags;

    return in->meta.category == ZYDIS_CATEGORY_CALL || in->meta.category == ZYDIS_CATEGORY_SYSTEM ||
           (a && ((a->modified | a->set_0 | a->set_1 | a->undefined) & X86_ARITH_FLAGS) != 0);
}

/* One instruction. 0, or -ENOSPC. */
static int insn_emit(struct making *m, struct cpu_emit *e, unsigned i)
{
    unsigned nops = e->nops;
    cpu_emit_fn *fn;
    int err;

    e->in = m->in[i];
    e->bytes = m->code + m->offset[i];
    e->flags_live = m->live[i];
    e->next = i + 1 < m->ninsns ? &m->in[i + 1] : NULL;
    e->next_opnd = NULL;
    e->fused = false;
    fn = cpu_emit_find(e->in.mnemonic);
    err = fn ? 0 : -ENOSYS;
    if (fn) {
        ZydisDecoderDecodeOperands(&m->decoder, &m->ctx[i], &e->in, e->opnd, e->in.operand_count);
        next_decode(m, e, i);
        e->cc_new = CPU_CC_UNKNOWN;
        err = fn(e);
        if (flags_written(&e->in)) {
            e->cc_hint = e->cc_new;
        }
    }
    if (err == 0 || err == -ENOSPC) {
        return err;
    }
    e->nops = nops;
    if (err == -ENOSYS) {
        e->cpu->counters.insns_unknown++;
    }
    undefined_emit(e);
    return e->nops == nops ? -ENOSPC : 0;
}

/* The jump to what follows the last instruction; at: its offset from the block's first byte. */
static void terminate(struct making *m, struct cpu_emit *e, unsigned pgoff, unsigned at)
{
    struct cpu_op *op = &m->ops[e->nops++];
    cpu_op_fn *fn = pgoff + at < PAGE_SIZE ? cpu_op_chain_page : cpu_op_chain_far;

    if (!(m->mode & CPU_MODE_64)) {
        fn = cpu_op_chain_legacy;
    }
    *op = (struct cpu_op){.fn = fn, .pgoff = (uint16_t)(pgoff + at), .disp = (int32_t)(pgoff + at),
                          .imm = (uint64_t)(uintptr_t)&cpu_block_dead, .nth = e->nth};
}

/* Emit all; returns the bytes covered. */
static unsigned insns_emit(struct making *m, struct cpu_emit *e, unsigned pgoff)
{
    unsigned i = 0;

    while (i < m->ninsns && !e->ends_block) {
        e->nth = (uint8_t)(i + 1);
        e->pgoff = (uint16_t)(pgoff + m->offset[i]);
        if (insn_emit(m, e, i) == -ENOSPC) {
            e->nth = (uint8_t)i;
            break;
        }
        i += e->fused ? 2 : 1;
        e->nth = (uint8_t)i;
    }
    if (!e->terminated) {
        terminate(m, e, pgoff, m->offset[i]);
    }
    e->cpu->counters.insns_decoded += i;
    return m->offset[i];
}

/* Nothing there decodes: one operation that raises #UD, over one byte. */
static unsigned bad_code_emit(struct cpu_emit *e, unsigned pgoff)
{
    e->pgoff = (uint16_t)pgoff;
    e->nth = 1;
    e->in.length = 1;
    undefined_emit(e);
    return 1;
}

/* See block.h. n bytes at code may include the beginning of the next page. */
struct cpu_block *cpu_block_decode(struct cpu *cpu, const uint8_t *code, unsigned n, unsigned pgoff, uint32_t mode)
{
    struct making m;
    struct cpu_emit e;
    struct cpu_block *b;
    unsigned len;

    /* All but the instruction and its operands, which are large and filled one by one. */
    memset(&e, 0, offsetof(struct cpu_emit, in));
    memset(&e.bytes, 0, sizeof(e) - offsetof(struct cpu_emit, bytes));
    e.cpu = cpu;
    e.mode = mode;
    e.ops = m.ops;
    e.max_ops = CPU_BLOCK_MAX_OPS;
    e.cc_hint = CPU_CC_UNKNOWN;
    m.mode = mode;
    m.code = code;
    decoder_init(&m.decoder, mode);
    insns_decode(&m, n);
    if (pgoff + m.offset[1 < m.ninsns ? 1 : m.ninsns] > PAGE_SIZE) {
        m.ninsns = 1; /* a straddling instruction is alone */
    }
    flags_liveness(&m);
    len = m.ninsns ? insns_emit(&m, &e, pgoff) : bad_code_emit(&e, pgoff);
    b = cpu_block_alloc(cpu, e.nops, len);
    if (!b) {
        return NULL;
    }
    memcpy(b->ops, m.ops, e.nops * sizeof(m.ops[0]));
    memcpy(b->bytes, code, len);
    b->pgoff = (uint16_t)pgoff;
    b->mode = mode;
    cpu->counters.blocks_decoded++;
    return b;
}
