/* Random operand values for the instruction oracle: integers, vectors, x87 registers, control words. */
#include <string.h>

#include "native_gen.h"

uint64_t native_gen_random(struct native_gen *g)
{
    uint64_t a = g->rng[0], b = g->rng[1]; /* xorshift128+ */

    g->rng[0] = b;
    a ^= a << 23;
    g->rng[1] = a ^ b ^ (a >> 17) ^ (b >> 26);
    return g->rng[1] + b;
}

static unsigned below(struct native_gen *g, unsigned n)
{
    return (unsigned)(native_gen_random(g) >> 33) % n;
}

uint64_t native_gen_integer(struct native_gen *g)
{
    static const uint64_t edge[] = {
        0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000,
        0xffffffff, 0x100000000, 0x7fffffffffffffff, 0x8000000000000000, 0xffffffffffffffff,
        0xffffffff80000000, 0xffffffffffff8000, 0xffffffffffffff80, 0xfffffffffffffffe, 0x0f, 0x10, 0x1f, 0x20,
        0x3f, 0x40,
    };
    uint64_t r = native_gen_random(g);

    switch (r & 7) {
    case 0:
    case 1:
        return edge[below(g, sizeof(edge) / sizeof(edge[0]))];
    case 2:
        return (r >> 8) & 0xff;
    case 3:
        return NATIVE_DATA + 0x800 + (r >> 8) % 0x1000;
    case 4:
        return (uint64_t)1 << (r >> 8 & 63);
    default:
        return native_gen_random(g) >> (r >> 8 & 31);
    }
}

static uint32_t single(struct native_gen *g)
{
    static const uint32_t edge[] = {
        0, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00001, 0x7f800001,
        0xffbfffff, 1, 0x80000001, 0x007fffff, 0x00800000, 0x7f7fffff, 0xff7fffff, 0x4f000000, 0xcf000000,
        0x5f000000, 0xdf000000, 0x3f000000, 0x3effffff, 0x4b000001, 0x40490fdb,
    };
    uint64_t r = native_gen_random(g);

    switch (r & 3) {
    case 0:
        return edge[below(g, sizeof(edge) / sizeof(edge[0]))];
    case 1: /* near one: results that are exact, or just not */
        return (uint32_t)((r >> 32 & 0x807fffff) | (0x70 + (r >> 8 & 31)) << 23);
    default:
        return (uint32_t)(r >> 32);
    }
}

static uint64_t dbl(struct native_gen *g)
{
    static const uint64_t edge[] = {
        0, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
        0xfff0000000000000, 0x7ff8000000000000, 0xfff8000000000001, 0x7ff0000000000001, 0xfff7ffffffffffff, 1,
        0x8000000000000001, 0x000fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
        0x41dfffffffc00000, 0x41e0000000000000, 0xc1e0000000000000, 0x43e0000000000000, 0xc3e0000000000000,
        0x3fe0000000000000, 0x4330000000000001, 0x380fffffe0000000, 0x36a0000000000000, 0x47efffffe0000000,
        0x400921fb54442d18,
    };
    uint64_t r = native_gen_random(g);

    switch (r & 3) {
    case 0:
        return edge[below(g, sizeof(edge) / sizeof(edge[0]))];
    case 1:
        return (native_gen_random(g) & 0x800fffffffffffff) | (0x3e0 + (r >> 8 & 63)) << 52;
    case 2:
        return (r & 0x800fffff00000000) | (0x360 + (r >> 8 & 255)) << 52;
    default:
        return native_gen_random(g);
    }
}

void native_gen_vector(struct native_gen *g, uint8_t v[16])
{
    unsigned kind = below(g, 4);

    for (unsigned i = 0; i < 4; i++) {
        uint32_t s = single(g);
        uint64_t d = kind == 1 ? dbl(g) : kind == 2 ? native_gen_integer(g) : native_gen_random(g);

        if (kind == 0) {
            memcpy(v + i * 4, &s, 4);
        } else if (i < 2) {
            memcpy(v + i * 8, &d, 8);
        }
    }
}

/* An 80-bit number: finite ones mostly, and all the odd classes. */
static void extended(struct native_gen *g, uint8_t v[10])
{
    static const uint16_t exps[] = {0, 1, 0x7fff, 0x7ffe, 0x3fff, 0x3ffe, 0x4000, 0x401e, 0x403e, 0x403f, 0x3c01,
                                    0x3bcd, 0x43fe, 0x3f81, 0x407e, 0x3f6a};
    uint64_t mant = native_gen_random(g) | UINT64_C(1) << 63, r = native_gen_random(g);
    uint16_t se = (uint16_t)((r & 0x8000) | (0x3fe0 + (r >> 16 & 63)));

    if ((r >> 32 & 3) == 0) {
        se = (uint16_t)((se & 0x8000) | exps[below(g, 16)]);
    }
    switch (r >> 40 & 15) {
    case 0:
        mant = UINT64_C(1) << 63;
        break;
    case 1:
        mant = 0;
        se &= 0x8000;
        break;
    case 2:
        mant &= ~(UINT64_C(1) << 63); /* denormal, or a class no processor makes any more */
        break;
    case 3:
        mant = UINT64_C(3) << 62 | (r >> 50);
        break;
    case 4:
        mant = ~UINT64_C(0) << (r >> 50 & 63);
        break;
    case 5:
        mant &= ~UINT64_C(0) << (r >> 50 & 31);
        break;
    default:
        break;
    }
    memcpy(v, &mant, 8);
    memcpy(v + 8, &se, 2);
}

static void x87_state(struct native_gen *g, uint8_t *fx)
{
    uint64_t r = native_gen_random(g);
    uint16_t fcw = 0x7f, fsw = (uint16_t)(r & 0x7f00);
    uint8_t tags = 0xff;

    fcw |= (r >> 16 & 0xf) << 8;
    if ((r >> 20 & 3) == 0) {
        fcw &= (uint16_t)~(r >> 24 & 0x3f);
    }
    if ((r >> 22 & 3) == 0) {
        tags = (uint8_t)(r >> 32);
    }
    fsw |= (r >> 40 & 0x3f) & (r >> 60 == 0 ? 0x3f : fcw);
    memset(fx, 0, 160);
    memcpy(fx, &fcw, 2);
    memcpy(fx + 2, &fsw, 2);
    fx[4] = tags;
    for (unsigned i = 0; i < 8; i++) {
        extended(g, fx + 32 + i * 16);
    }
}

void native_gen_registers(struct native_gen *g, struct native_regs *r)
{
    uint64_t bits = native_gen_random(g);
    uint32_t mxcsr = 0x1f80, mask = 0xffff;

    for (unsigned i = 0; i < 16; i++) {
        r->gpr[i] = native_gen_integer(g);
    }
    r->gpr[4] = NATIVE_DATA + 0x1000 + (bits & 0x3f8);
    r->rflags = 0x202 | (native_gen_random(g) & 0x8d5);
    if ((bits >> 10 & 7) == 0) {
        r->rflags |= 0x400;
    }
    x87_state(g, r->fx);
    mxcsr |= (bits >> 16 & 0xe07f);
    if ((bits >> 32 & 3) == 0) {
        mxcsr &= ~((uint32_t)(bits >> 34) & 0x1f80);
    }
    memcpy(r->fx + 24, &mxcsr, 4);
    memcpy(r->fx + 28, &mask, 4);
    for (unsigned i = 0; i < 16; i++) {
        native_gen_vector(g, r->fx + 160 + i * 16);
    }
    memset(r->fx + 416, 0, 96);
}

void native_gen_data(struct native_gen *g)
{
    for (unsigned i = 0; i < NATIVE_DATA_SIZE; i += 16) {
        native_gen_vector(g, g->data + i);
    }
}

/* An XSAVE area of x87 and SSE state: standard or compacted, now and then with a header that is refused. */
static void xsave_area(struct native_gen *g, uint8_t *at, unsigned room)
{
    uint64_t r = native_gen_random(g), header[8] = {r & 3};
    struct native_regs regs;

    if (room < 576) {
        return;
    }
    native_gen_registers(g, &regs);
    header[1] = r >> 8 & 1 ? UINT64_C(1) << 63 | (r >> 16 & 3) | ((r >> 20 & 3) ? header[0] : 0) : 0;
    if ((r >> 24 & 15) == 0) {
        header[1 + (r >> 28) % 7] ^= UINT64_C(1) << (r >> 40 & 1);
    }
    memcpy(at, regs.fx, 512);
    memcpy(at + 512, header, 64);
}

static bool is_xsave(ZydisMnemonic m)
{
    return m == ZYDIS_MNEMONIC_XSAVE || m == ZYDIS_MNEMONIC_XSAVE64 || m == ZYDIS_MNEMONIC_XSAVEC ||
           m == ZYDIS_MNEMONIC_XSAVEC64 || m == ZYDIS_MNEMONIC_XRSTOR || m == ZYDIS_MNEMONIC_XRSTOR64;
}

/* Contents that make a memory operand interesting for the instruction at hand. */
void native_gen_operand(struct native_gen *g, const struct native_insn *insn, uint8_t *at, unsigned room)
{
    struct native_regs r;
    uint64_t v = native_gen_integer(g);
    uint8_t vec[16];

    if (is_xsave(insn->in.mnemonic)) {
        xsave_area(g, at, room);
        return;
    }
    switch (insn->in.mnemonic) {
    case ZYDIS_MNEMONIC_FXRSTOR:
    case ZYDIS_MNEMONIC_FXRSTOR64:
        native_gen_registers(g, &r);
        memcpy(at, r.fx, room < 512 ? room : 512);
        return;
    case ZYDIS_MNEMONIC_LDMXCSR:
        v &= below(g, 4) ? 0xffff : ~UINT64_C(0);
        break;
    case ZYDIS_MNEMONIC_FBLD:
        for (unsigned i = 0; i < 10 && i < room; i++) {
            at[i] = (uint8_t)(below(g, 10) << 4 | below(g, 10));
        }
        return;
    default:
        if (insn->in.meta.isa_set == ZYDIS_ISA_SET_X87 && insn->opnd[0].size == 80) {
            extended(g, vec);
            memcpy(at, vec, room < 10 ? room : 10);
            return;
        }
        if (insn->in.meta.isa_set != ZYDIS_ISA_SET_I86 && insn->in.meta.isa_set != ZYDIS_ISA_SET_I386) {
            native_gen_vector(g, vec);
            memcpy(at, vec, room < 16 ? room : 16);
            return;
        }
    }
    memcpy(at, &v, room < 8 ? room : 8);
}
