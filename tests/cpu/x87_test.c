/*
 * The x87 unit where the comparison with the host (native_test.c) cannot go: control registers, exceptions that
 * wait for the next instruction, and the environment's formats in 16-bit, 32-bit, real and virtual modes.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arch/regs.h"
#include "cpu/fpu.h"
#include "sys_guest.h"

#define DONE (-1)
#define NM   7
#define MF   16

#define FLD1    0xd9, 0xe8
#define FWAIT   0x9b
#define FNCLEX  0xdb, 0xe2
#define FNINIT  0xdb, 0xe3
#define FNSTSW  0xdf, 0xe0
#define FADDP   0xde, 0xc1

static int setup(void **state)
{
    static struct sys_guest g;

    sg_open(&g);
    *state = &g;
    return 0;
}

static int teardown(void **state)
{
    sg_close(*state);
    return 0;
}

static int run_code(struct sys_guest *g, uint32_t cr0, const void *code, unsigned len)
{
    struct sg_outcome out;

    struct cpu_regs regs;

    cpu_get_regs(g->cpu, &regs);
    regs.rip = SG_CODE;
    cpu_set_regs(g->cpu, &regs);
    g->cpu->cr0 = (g->cpu->cr0 & ~(uint64_t)(X86_CR0_NE)) | cr0;
    sg_code(g, code, len);
    sg_run(g, &out);
    return out.vector;
}

#define RUN(g, cr0, ...)                                                                           \
    run_code(g, cr0, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

static void reset(struct sys_guest *g, enum sg_mode mode)
{
    sg_reset(g, mode, 0);
    cpu_fpu_reset(g->cpu);
}

static void test_gates(void **state)
{
    struct sys_guest *g = *state;
    static const struct {
        uint32_t cr0;
        int fld, fwait;
    } rows[] = {
        {0, DONE, DONE},
        {X86_CR0_EM, NM, DONE},
        {X86_CR0_TS, NM, DONE},
        {X86_CR0_MP, DONE, DONE},
        {X86_CR0_TS | X86_CR0_MP, NM, NM},
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        reset(g, SG_LONG);
        assert_int_equal(RUN(g, rows[i].cr0 | X86_CR0_NE, FLD1), rows[i].fld);
        reset(g, SG_LONG);
        assert_int_equal(RUN(g, rows[i].cr0 | X86_CR0_NE, FWAIT), rows[i].fwait);
    }
}

/* An unmasked exception is reported by the next instruction that waits; those without waiting pass. */
static void test_pending(void **state)
{
    struct sys_guest *g = *state;

    reset(g, SG_LONG);
    g->cpu->x87.fcw = 0x37e;
    assert_int_equal(RUN(g, X86_CR0_NE, FADDP), DONE); /* stack underflow: noted only */
    assert_int_equal(cpu_x87_fsw(&g->cpu->x87), 0x80c1);
    assert_int_equal(RUN(g, X86_CR0_NE, FNSTSW), DONE);
    assert_int_equal(g->cpu->regs[CPU_RAX] & 0xffff, 0x80c1);
    assert_int_equal(g->cpu->x87.fop, 0x6c1);
    assert_int_equal(RUN(g, X86_CR0_NE, FLD1), MF);
    assert_int_equal(RUN(g, X86_CR0_NE, FWAIT), MF);
    assert_int_equal(RUN(g, 0, FLD1), DONE); /* FERR# has no listener */
    assert_int_equal(g->cpu->x87.ftw, 0x80);
    assert_int_equal(RUN(g, X86_CR0_NE, FNCLEX, FLD1), DONE);
    assert_int_equal(g->cpu->x87.ftw, 0xc0);
    assert_int_equal(RUN(g, X86_CR0_NE, FNINIT), DONE);
    assert_int_equal(g->cpu->x87.fcw, 0x37f);
    assert_int_equal(g->cpu->x87.ftw, 0);
}

static void known_state(struct sys_guest *g)
{
    struct cpu_x87 *x = &g->cpu->x87;

    cpu_fpu_reset(g->cpu);
    x->fcw = 0x27f;
    x->fsw = 0x4100;
    x->top = 6;
    x->ftw = 0xc0;
    x->st[6].mant = UINT64_C(1) << 63; /* 1.0 */
    x->st[6].se = 0x3fff;
    x->st[7].mant = 0; /* 0.0 */
    x->fop = 0x5e8;
    x->fip = 0x12345;
    x->fdp = 0x6789a;
}

/* fnstenv / fnsave at [SG_DATA] by an address that fits the mode; ModRM.reg selects. */
static void store(struct sys_guest *g, enum sg_mode mode, bool save, bool other_size)
{
    static const uint8_t op16[] = {0xbb, 0x00, 0x90};                   /* mov bx, 9000 */
    static const uint8_t op32[] = {0xbb, 0x00, 0x90, 0x00, 0x00};       /* mov ebx, 9000 */
    bool is16 = mode == SG_REAL || mode == SG_PM16 || mode == SG_V86;
    uint8_t code[16];
    unsigned n = is16 ? sizeof(op16) : sizeof(op32);
    struct sg_outcome out;

    reset(g, mode);
    known_state(g);
    memcpy(code, is16 ? op16 : op32, n);
    if (other_size) {
        code[n++] = 0x66;
    }
    code[n++] = save ? 0xdd : 0xd9;
    code[n++] = is16 ? 0x37 : 0x33; /* [bx], [ebx] */
    memset(g->ram + 0x9000, 0, 128);
    sg_code(g, code, n);
    sg_run(g, &out);
    assert_int_equal(out.vector, DONE);
}

static void check_words(struct sys_guest *g, unsigned width, const uint32_t want[7])
{
    for (unsigned i = 0; i < 7; i++) {
        assert_int_equal(sg_get(g, 0x9000 + i * width, width), want[i] & (width == 2 ? 0xffff : 0xffffffff));
    }
}

static void test_formats(void **state)
{
    struct sys_guest *g = *state;
    static const uint32_t prot32[7] = {0xffff027f, 0xffff7100, 0xffff4fff, 0x12345, 0x05e80000, 0x6789a,
                                       0xffff0000};
    static const uint32_t prot16[7] = {0x27f, 0x7100, 0x4fff, 0x2345, 0, 0x789a, 0};
    static const uint32_t real16[7] = {0x27f, 0x7100, 0x4fff, 0x2345, 0x15e8, 0x789a, 0x6000};
    static const uint32_t real32[7] = {0xffff027f, 0xffff7100, 0xffff4fff, 0x2345, 0x15e8, 0x789a, 0x6000};

    store(g, SG_PM32, false, false);
    check_words(g, 4, prot32);
    store(g, SG_LONG, false, false);
    check_words(g, 4, prot32);
    store(g, SG_PM32, false, true);
    check_words(g, 2, prot16);
    store(g, SG_REAL, false, false);
    check_words(g, 2, real16);
    store(g, SG_REAL, false, true);
    check_words(g, 4, real32);
    assert_int_equal(g->cpu->x87.fcw, 0x27f); /* FNSTENV masks: it already was */
    store(g, SG_PM32, true, false);
    check_words(g, 4, prot32);
    assert_int_equal(sg_get(g, 0x9000 + 28 + 8, 2), 0x3fff); /* ST(0) is physical register 6 */
    assert_int_equal(g->cpu->x87.fcw, 0x37f);
    assert_int_equal(g->cpu->x87.ftw, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_pending),
        cmocka_unit_test(test_formats),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
