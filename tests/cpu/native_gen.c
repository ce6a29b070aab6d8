/*
 * Cases for the instruction oracle; see native_gen.h. Templates are the points of the opcode maps that decode
 * to something wanted; a case adds random prefixes, register numbers, addressing form, displacement and
 * immediate, and sets registers so that memory operands fall into the data pages, or just beside them.
 */
#include "native_gen.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define NO_MODRM 0xff

static unsigned below(struct native_gen *g, unsigned n)
{
    return (unsigned)(native_gen_random(g) >> 33) % n;
}

static bool decode(const struct native_gen *g, const uint8_t *bytes, struct native_insn *insn)
{
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&g->decoder, bytes, 15, &insn->in, insn->opnd))) {
        return false;
    }
    memcpy(insn->bytes, bytes, 16);
    return native_filter(&insn->in, insn->opnd);
}

static unsigned put_opcode(const struct native_template *t, uint8_t *p)
{
    unsigned n = 0;

    if (t->map) {
        p[n++] = 0x0f;
    }
    if (t->map >= 2) {
        p[n++] = t->map == 2 ? 0x38 : 0x3a;
    }
    p[n++] = t->opcode;
    return n;
}

/* Bytes of template t with a given ModRM and REX (0: none); what follows is random. */
static void compose(struct native_gen *g, const struct native_template *t, uint8_t rex, uint8_t modrm,
                    uint8_t bytes[16])
{
    uint64_t tail[2] = {native_gen_random(g), native_gen_random(g)};
    unsigned n = 0;

    memcpy(bytes, tail, 16);
    if (t->prefix) {
        bytes[n++] = t->prefix;
    }
    if (rex && !g->is_compat) {
        bytes[n++] = rex;
    }
    n += put_opcode(t, bytes + n);
    if (t->reg != NO_MODRM) {
        bytes[n] = modrm;
    }
}

static bool is_known(const struct native_gen *g, unsigned from, uint16_t mnemonic)
{
    for (unsigned i = from; i < g->ntemplates; i++) {
        if (g->templates[i].mnemonic == mnemonic) {
            return true;
        }
    }
    return false;
}

/* One opcode may hold several instructions, told apart by REX.W, by register or memory, or by ModRM.rm. */
static void try_template(struct native_gen *g, struct native_template t, const char *only)
{
    unsigned from = g->ntemplates;
    uint8_t reg = t.reg;

    for (unsigned i = 0; i < 18; i++) {
        uint8_t modrm = (uint8_t)(reg << 3 | (i < 16 ? 0xc0 | (i & 7) : 3));
        struct native_insn insn;
        uint8_t bytes[17];

        t.reg = reg;
        compose(g, &t, i & 8 || i == 17 ? 0x48 : 0, modrm, bytes);
        if (!decode(g, bytes, &insn)) {
            continue;
        }
        if (!(insn.in.attributes & ZYDIS_ATTRIB_HAS_MODRM)) {
            if (reg) {
                return; /* found with reg 0 already */
            }
            t.reg = NO_MODRM;
        }
        if ((only && strcasecmp(only, ZydisMnemonicGetString(insn.in.mnemonic))) ||
            is_known(g, from, (uint16_t)insn.in.mnemonic)) {
            continue;
        }
        t.mnemonic = (uint16_t)insn.in.mnemonic;
        t.rex = i & 8 || i == 17 ? 0x48 : 0;
        t.modrm = modrm;
        g->templates[g->ntemplates++] = t;
    }
}

static int by_mnemonic(const void *a, const void *b)
{
    return (int)((const struct native_template *)a)->mnemonic - (int)((const struct native_template *)b)->mnemonic;
}

static void index_templates(struct native_gen *g)
{
    qsort(g->templates, g->ntemplates, sizeof(g->templates[0]), by_mnemonic);
    for (unsigned i = 0; i < g->ntemplates; i++) {
        uint16_t m = g->templates[i].mnemonic;

        if (!i || g->templates[i - 1].mnemonic != m) {
            g->mnemonics[g->nmnemonics++] = m;
            g->first[m] = i;
        }
    }
}

int native_gen_init(struct native_gen *g, uint64_t seed, bool is_compat, const char *only)
{
    static const uint8_t prefixes[] = {0, 0x66, 0xf2, 0xf3};

    memset(g, 0, sizeof(*g));
    g->is_compat = is_compat;
    g->rng[0] = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    g->rng[1] = seed ^ UINT64_C(0xd1b54a32d192ed03);
    g->templates = malloc(4 * 4 * 256 * 8 * 2 * sizeof(g->templates[0]));
    if (!g->templates ||
        !ZYAN_SUCCESS(ZydisDecoderInit(
            &g->decoder, is_compat ? ZYDIS_MACHINE_MODE_LONG_COMPAT_32 : ZYDIS_MACHINE_MODE_LONG_64,
            is_compat ? ZYDIS_STACK_WIDTH_32 : ZYDIS_STACK_WIDTH_64))) {
        return -1;
    }
    for (unsigned n = 0; n < 4 * 4 * 256 * 8; n++) {
        struct native_template t = {.prefix = prefixes[n >> 3 & 3], .map = n >> 5 & 3, .opcode = (uint8_t)(n >> 7),
                                    .reg = n & 7};

        try_template(g, t, only);
    }
    index_templates(g);
    native_gen_data(g);
    return g->nmnemonics ? 0 : -1;
}

void native_gen_fini(struct native_gen *g)
{
    free(g->templates);
}

/* A random encoding of t that is still an instruction of its mnemonic. */
static bool encode(struct native_gen *g, const struct native_template *t, struct native_insn *insn)
{
    for (unsigned attempt = 0; attempt < 256; attempt++) {
        uint64_t r = native_gen_random(g);
        uint8_t bytes[18], rex = r & 3 ? (uint8_t)(0x40 | (r >> 2 & 7) | (r >> 5 & 1) << 3) : 0;
        uint8_t modrm = (uint8_t)((r >> 8 & 0xc7) | (t->reg & 7) << 3);
        unsigned first = 0;

        if (r >> 16 & 1) {
            modrm |= 0xc0;
        }
        if (attempt > 4) { /* not so freely */
            rex = t->rex | (rex & (t->rex ? 7 : 0));
            modrm = t->modrm;
        }
        if ((r >> 20 & 31) == 0) {
            bytes[first++] = 0x67;
        } else if ((r >> 20 & 31) == 1) {
            bytes[first++] = 0xf0;
        }
        compose(g, t, rex, modrm, bytes + first);
        bytes[15] = 0;
        if (decode(g, bytes, insn) && insn->in.mnemonic == t->mnemonic) {
            return true;
        }
    }
    return false;
}

static int gpr_number(ZydisRegister r)
{
    ZydisRegisterClass c = ZydisRegisterGetClass(r);

    return c == ZYDIS_REGCLASS_GPR64 || c == ZYDIS_REGCLASS_GPR32 ? ZydisRegisterGetId(r) : -1;
}

/* Where a memory operand shall be: mostly inside, aligned or not, sometimes across the end of a page. */
static uint64_t pick_target(struct native_gen *g)
{
    uint64_t r = native_gen_random(g);
    uint64_t at = NATIVE_DATA + 0x400 + (r >> 8) % 0x1800;

    switch (r & 15) {
    case 0:
        return NATIVE_DATA + 0x1000 - (r >> 8 & 15);
    case 1:
        return (r >> 12 & 3) ? at : NATIVE_DATA + NATIVE_DATA_SIZE - (r >> 8 & 15);
    case 2:
    case 3:
    case 4:
        return at;
    default:
        return at & ~UINT64_C(63);
    }
}

/* A locked access across cache lines costs milliseconds where the kernel or the hypervisor watches for them. */
static bool is_locked(const struct native_insn *insn)
{
    switch (insn->in.mnemonic) {
    case ZYDIS_MNEMONIC_XCHG:
    case ZYDIS_MNEMONIC_CMPXCHG:
    case ZYDIS_MNEMONIC_CMPXCHG8B:
    case ZYDIS_MNEMONIC_XADD:
        return true;
    default:
        return (insn->in.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
    }
}

static void put_displacement(struct native_insn *insn, uint64_t v)
{
    memcpy(insn->bytes + insn->in.raw.disp.offset, &v, insn->in.raw.disp.size / 8);
}

/* Make the operand's address be `target`, by registers or by the displacement. */
static void aim(struct native_gen *g, struct native_insn *insn, const ZydisDecodedOperand *o, uint64_t rip,
                uint64_t target, struct native_regs *r)
{
    int base = gpr_number(o->mem.base), index = gpr_number(o->mem.index);
    uint64_t disp = o->mem.disp.has_displacement ? (uint64_t)o->mem.disp.value : 0, scale = o->mem.scale;
    /* String instructions may or may not cut their pointers before the first element. */
    bool is_string = insn->in.meta.category == ZYDIS_CATEGORY_STRINGOP;
    uint64_t high = insn->in.address_width == 32 && !is_string ? native_gen_random(g) << 32 : 0;

    if (o->mem.base == ZYDIS_REGISTER_RIP || o->mem.base == ZYDIS_REGISTER_EIP) {
        put_displacement(insn, target - rip - insn->in.length);
    } else if (base >= 0 && index >= 0 && base == index) {
        r->gpr[base] = (target - disp) / (1 + scale) + high;
    } else if (base >= 0) {
        if (index >= 0) {
            r->gpr[index] = native_gen_integer(g);
            target -= r->gpr[index] * scale;
        } else if (o->mem.index == ZYDIS_REGISTER_AL) {
            target -= r->gpr[0] & 0xff;
        }
        r->gpr[base] = target - disp + high;
    } else if (index >= 0) {
        r->gpr[index] = (target - disp) / scale + high;
    } else if (insn->in.raw.disp.size >= 32) {
        put_displacement(insn, target);
    }
}

static bool is_xsave(const struct native_insn *insn)
{
    return insn->in.meta.isa_ext == ZYDIS_ISA_EXT_XSAVE || insn->in.meta.isa_ext == ZYDIS_ISA_EXT_XSAVEC;
}

static void constrain(struct native_gen *g, const struct native_insn *insn, struct native_regs *r)
{
    bool is_bit = insn->in.mnemonic == ZYDIS_MNEMONIC_BT || insn->in.mnemonic == ZYDIS_MNEMONIC_BTS ||
                  insn->in.mnemonic == ZYDIS_MNEMONIC_BTR || insn->in.mnemonic == ZYDIS_MNEMONIC_BTC;

    if (is_bit && insn->opnd[0].type == ZYDIS_OPERAND_TYPE_MEMORY &&
        insn->opnd[1].type == ZYDIS_OPERAND_TYPE_REGISTER) {
        unsigned n = (unsigned)ZydisRegisterGetId(insn->opnd[1].reg.value);

        r->gpr[n] = (uint64_t)((int64_t)below(g, 0x4000) - 0x2000);
    }
    if (is_xsave(insn)) {
        r->gpr[0] = below(g, 4); /* the components that host and guest both have */
        r->gpr[2] = 0;
    }
    if (insn->in.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE)) {
        r->gpr[1] = below(g, 4) ? below(g, 24) : below(g, 600);
    }
}

/* Set registers, displacement and memory for instruction insn at rip. */
static void prepare(struct native_gen *g, struct native_insn *insn, uint64_t rip, struct native_regs *r)
{
    constrain(g, insn, r);
    for (unsigned o = 0; o < insn->in.operand_count; o++) {
        uint64_t target = pick_target(g);

        if (is_locked(insn)) {
            target = (target & ~UINT64_C(63)) + below(g, 56);
        }
        if (insn->opnd[o].type != ZYDIS_OPERAND_TYPE_MEMORY) {
            continue;
        }
        if (insn->opnd[o].mem.base == ZYDIS_REGISTER_RSP &&
            insn->opnd[o].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN) {
            continue;
        }
        aim(g, insn, &insn->opnd[o], rip, target, r);
        if (target < NATIVE_DATA + NATIVE_DATA_SIZE) {
            native_gen_operand(g, insn, g->data + (target - NATIVE_DATA),
                               (unsigned)(NATIVE_DATA + NATIVE_DATA_SIZE - target));
        }
    }
    if (insn->in.mnemonic == ZYDIS_MNEMONIC_LEAVE || insn->in.mnemonic == ZYDIS_MNEMONIC_ENTER) {
        r->gpr[5] = pick_target(g);
    }
}

/* 32-bit code knows eight registers of 32 bits; what it does to the rest nobody promises. */
static void cut_registers(const struct native_gen *g, struct native_regs *r)
{
    for (unsigned i = 0; i < 16 && g->is_compat; i++) {
        r->gpr[i] = i < 8 ? (uint32_t)r->gpr[i] : 0;
    }
    for (unsigned i = 8; i < 16 && g->is_compat; i++) {
        memset(r->fx + 160 + i * 16, 0, 16);
    }
}

static void append(struct native_case *c, const struct native_insn *insn)
{
    c->insn[c->ninsns++] = *insn;
    memcpy(c->code + c->len, insn->bytes, insn->in.length);
    c->len += insn->in.length;
}

/* A branch jumps over an increment of rAX, which so tells whether it was taken. */
static void append_skipped(struct native_gen *g, struct native_case *c)
{
    static const uint8_t inc_rax[16] = {0x48, 0xff, 0xc0}, inc_eax[16] = {0x8d, 0x40, 0x01};
    const ZydisDecodedInstruction *in = &c->insn[0].in;
    uint8_t *disp = c->code + in->raw.imm[0].offset;
    struct native_insn inc;

    memset(disp, 0, in->raw.imm[0].size / 8);
    disp[0] = 3;
    if (decode(g, g->is_compat ? inc_eax : inc_rax, &inc)) {
        append(c, &inc);
    }
}

void native_gen_single(struct native_gen *g, unsigned m, struct native_case *c)
{
    unsigned n = 1;
    struct native_insn insn;

    c->ninsns = c->len = 0;
    native_gen_registers(g, &c->regs);
    cut_registers(g, &c->regs);
    while (g->first[m] + n < g->ntemplates && g->templates[g->first[m] + n].mnemonic == m) {
        n++;
    }
    do {
        while (!encode(g, &g->templates[g->first[m] + below(g, n)], &insn)) {
        }
        prepare(g, &insn, NATIVE_CODE + NATIVE_CODE_AT, &c->regs);
    } while (is_xsave(&insn) && (c->regs.gpr[0] > 3 || c->regs.gpr[2]));
    append(c, &insn);
    if (insn.in.meta.category == ZYDIS_CATEGORY_COND_BR) {
        append_skipped(g, c);
    }
    cut_registers(g, &c->regs);
    c->undefined[0] = 0;
    c->undefined[1] = c->undefined[2] = native_undefined_flags(&insn, &c->regs);
}

/*
 * Flags of a sequence: one that an instruction may leave undefined must not be read by a later one.
 * Returns false when insn may not follow what left `undefined`.
 */
static bool follow_flags(const struct native_insn *insn, uint32_t *undefined)
{
    const ZydisAccessedFlags *f = insn->in.cpu_flags;
    uint32_t set;

    if (!f) {
        return true;
    }
    if (*undefined & (uint32_t)f->tested) {
        return false;
    }
    set = (uint32_t)(f->modified | f->set_0 | f->set_1);
    if (insn->in.meta.category == ZYDIS_CATEGORY_SHIFT || insn->in.meta.category == ZYDIS_CATEGORY_ROTATE ||
        insn->in.mnemonic == ZYDIS_MNEMONIC_SHLD || insn->in.mnemonic == ZYDIS_MNEMONIC_SHRD) {
        set = 0; /* a count of zero leaves all flags as they were */
        *undefined |= 0x8d5;
    }
    *undefined = (*undefined & ~set) | (uint32_t)f->undefined;
    return true;
}

/* Which general registers a sequence has written so far, and which hold addresses set beforehand. */
struct usage {
    uint32_t written, pinned;
};

static uint32_t register_bit(ZydisRegister r)
{
    ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, r);

    return ZydisRegisterGetClass(whole) == ZYDIS_REGCLASS_GPR64 ? 1u << ZydisRegisterGetId(whole) : 0;
}

static bool is_stack(const ZydisDecodedOperand *o)
{
    return o->mem.base == ZYDIS_REGISTER_RSP && o->visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
}

static uint32_t address_registers(const struct native_insn *insn)
{
    uint32_t used = 0;

    for (unsigned o = 0; o < insn->in.operand_count; o++) {
        if (insn->opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY && !is_stack(&insn->opnd[o])) {
            used |= register_bit(insn->opnd[o].mem.base) | register_bit(insn->opnd[o].mem.index);
        }
    }
    return used;
}

static uint32_t written_registers(const struct native_insn *insn)
{
    uint32_t written = 0;

    for (unsigned o = 0; o < insn->in.operand_count; o++) {
        if (insn->opnd[o].type == ZYDIS_OPERAND_TYPE_REGISTER &&
            (insn->opnd[o].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE)) {
            written |= register_bit(insn->opnd[o].reg.value);
        }
    }
    return written;
}

/* May insn be in a sequence? Its addresses must be known beforehand, its results defined whatever comes in. */
static bool fits_sequence(const struct native_insn *insn, const struct usage *u)
{
    bool has_memory = address_registers(insn) != 0;

    switch (insn->in.mnemonic) {
    case ZYDIS_MNEMONIC_SHLD: /* a count above the size: the result is undefined */
    case ZYDIS_MNEMONIC_SHRD:
    case ZYDIS_MNEMONIC_BSWAP:
    case ZYDIS_MNEMONIC_ENTER:
    case ZYDIS_MNEMONIC_LEAVE:
        return false;
    case ZYDIS_MNEMONIC_BT: /* with a register's offset: anywhere */
    case ZYDIS_MNEMONIC_BTS:
    case ZYDIS_MNEMONIC_BTR:
    case ZYDIS_MNEMONIC_BTC:
        return insn->opnd[0].type == ZYDIS_OPERAND_TYPE_REGISTER;
    default:
        break;
    }
    if (insn->in.meta.category == ZYDIS_CATEGORY_COND_BR || is_xsave(insn) || (u->written & 1u << 4)) {
        return false;
    }
    if (insn->in.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE | ZYDIS_ATTRIB_HAS_REPNE) &&
        (u->written & 2)) {
        return false;
    }
    return !has_memory || !(address_registers(insn) & (u->written | u->pinned));
}

/* Several instructions: what one leaves the next one uses, flags and memory included. */
void native_gen_sequence(struct native_gen *g, struct native_case *c)
{
    unsigned want = 2 + below(g, NATIVE_MAX_INSNS - 1);
    struct usage u = {0, 0};

    c->ninsns = c->len = 0;
    c->undefined[0] = 0;
    native_gen_registers(g, &c->regs);
    for (unsigned attempt = 0; attempt < 200 && c->ninsns < want; attempt++) {
        uint16_t m = g->mnemonics[below(g, g->nmnemonics)];
        const struct native_template *t = &g->templates[g->first[m]];
        uint32_t undefined = c->undefined[c->ninsns];
        struct native_insn insn;

        t = attempt & 1 ? &g->templates[below(g, g->ntemplates)] : t;
        if (encode(g, t, &insn) && fits_sequence(&insn, &u) && follow_flags(&insn, &undefined)) {
            prepare(g, &insn, NATIVE_CODE + NATIVE_CODE_AT + c->len, &c->regs);
            u.pinned |= address_registers(&insn);
            u.written |= written_registers(&insn);
            append(c, &insn);
            c->undefined[c->ninsns] = undefined;
        }
    }
}
