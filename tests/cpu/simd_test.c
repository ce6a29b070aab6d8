/*
 * What decides whether SIMD instructions run at all, and the rules of the state-saving family that the comparison
 * with the host (native_test.c) cannot reach: control registers, initial states, images given from outside.
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
#define UD   6
#define NM   7
#define GP   13
#define MF   16
#define XM   19

/* Run code in 64-bit mode at level 0 with the given controls; returns the vector it met. */
static int run_with(struct sys_guest *g, uint32_t cr0_set, uint32_t cr4_set, const void *code, unsigned len)
{
    struct sg_outcome out;

    g->cpu->cr0 |= cr0_set;
    g->cpu->cr4 |= cr4_set;
    sg_code(g, code, len);
    sg_run(g, &out);
    return out.vector;
}

#define RUN(g, cr0, cr4, ...)                                                                      \
    run_with(g, cr0, cr4, (const uint8_t[]){__VA_ARGS__}, sizeof((const uint8_t[]){__VA_ARGS__}))

#define MOVAPS   0x0f, 0x28, 0xc1       /* movaps xmm0, xmm1 */
#define MOVQ_MM  0x0f, 0x6f, 0xc1       /* movq mm0, mm1 */
#define POPCNT   0xf3, 0x0f, 0xb8, 0xc1 /* popcnt eax, ecx */
#define FXSAVE   0x0f, 0xae, 0x00       /* fxsave [rax] */
#define XSAVE    0x0f, 0xae, 0x20
#define XRSTOR   0x0f, 0xae, 0x28
#define XSAVEOPT 0x0f, 0xae, 0x30
#define XSAVEC   0x0f, 0xc7, 0x20
#define XGETBV   0x0f, 0x01, 0xd0
#define DIVPS    0x0f, 0x5e, 0xc1       /* divps xmm0, xmm1 */

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

static void reset(struct sys_guest *g)
{
    sg_reset(g, SG_LONG, 0);
    g->cpu->features |= CPU_FEAT_XSAVE;
    g->cpu->xcr0 = 3;
    cpu_fpu_reset(g->cpu);
}

static void test_gates(void **state)
{
    struct sys_guest *g = *state;
    static const struct {
        uint32_t cr0, cr4;
        int sse, mmx, count;
    } rows[] = {
        {0, X86_CR4_OSFXSR, DONE, DONE, DONE},
        {0, 0, UD, DONE, DONE},
        {X86_CR0_EM, X86_CR4_OSFXSR, UD, UD, DONE},
        {X86_CR0_TS, X86_CR4_OSFXSR, NM, NM, DONE},
        {X86_CR0_TS | X86_CR0_EM, X86_CR4_OSFXSR, UD, UD, DONE},
    };

    for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        reset(g);
        assert_int_equal(RUN(g, rows[i].cr0, rows[i].cr4, MOVAPS), rows[i].sse);
        reset(g);
        assert_int_equal(RUN(g, rows[i].cr0, rows[i].cr4, MOVQ_MM), rows[i].mmx);
        reset(g);
        assert_int_equal(RUN(g, rows[i].cr0, rows[i].cr4, POPCNT), rows[i].count);
    }
}

static void test_mmx_reports_x87(void **state)
{
    struct sys_guest *g = *state;

    reset(g);
    g->cpu->x87.fcw = 0x37e; /* invalid operation unmasked, and flagged */
    g->cpu->x87.fsw = 1;
    assert_int_equal(RUN(g, 0, X86_CR4_OSFXSR, MOVQ_MM), MF);
}

static void test_unmasked(void **state)
{
    struct sys_guest *g = *state;

    for (unsigned os = 0; os < 2; os++) {
        reset(g);
        g->cpu->xmm[0].f32[0] = 1.0f; /* 1 / 0 in the first element, 0 / 0 in the others */
        g->cpu->mxcsr = 0x1f80 & ~0x200u;
        assert_int_equal(RUN(g, 0, X86_CR4_OSFXSR | (os ? X86_CR4_OSXMMEXCPT : 0), DIVPS), os ? XM : UD);
        assert_true(g->cpu->xmm[0].f32[0] == 1.0f);
        assert_int_equal(g->cpu->mxcsr & 0x3f, 5); /* ZE and IE */
    }
    reset(g);
    g->cpu->xmm[0].f32[0] = 1.0f;
    assert_int_equal(RUN(g, 0, X86_CR4_OSFXSR, DIVPS), DONE);
    assert_int_equal(g->cpu->xmm[0].u32[0], 0x7f800000);
    assert_int_equal(g->cpu->mxcsr, 0x1f85);
}

static void test_save_gates(void **state)
{
    struct sys_guest *g = *state;
    static const uint32_t on = X86_CR4_OSFXSR | X86_CR4_OSXSAVE;

    reset(g);
    g->cpu->regs[CPU_RAX] = SG_DATA;
    assert_int_equal(RUN(g, X86_CR0_EM, on, FXSAVE), NM);
    reset(g);
    g->cpu->regs[CPU_RAX] = SG_DATA + 8;
    assert_int_equal(RUN(g, 0, on, FXSAVE), GP);
    reset(g);
    g->cpu->regs[CPU_RAX] = SG_DATA;
    assert_int_equal(RUN(g, 0, X86_CR4_OSFXSR, XSAVE), UD);
    reset(g);
    g->cpu->regs[CPU_RAX] = SG_DATA + 32;
    assert_int_equal(RUN(g, 0, on, XSAVE), GP);
    reset(g);
    g->cpu->regs[CPU_RAX] = SG_DATA;
    assert_int_equal(RUN(g, X86_CR0_TS, on, XSAVE), NM);
    reset(g);
    g->cpu->regs[CPU_RCX] = 2;
    assert_int_equal(RUN(g, 0, on, XGETBV), GP);
    reset(g);
    assert_int_equal(RUN(g, 0, 0, XGETBV), UD);
}

/* Run insn (its ModRM without the register) on the area at SG_DATA for both components. */
static int save(struct sys_guest *g, const uint8_t insn[3])
{
    /* mov rbx, SG_DATA; mov eax, 3; xor edx, edx; insn [rbx] */
    uint8_t code[] = {0x48, 0xc7, 0xc3, 0, 0, 1, 0, 0xb8, 3, 0, 0, 0, 0x31, 0xd2, insn[0], insn[1],
                      (uint8_t)(insn[2] | 3)};

    return run_with(g, 0, X86_CR4_OSFXSR | X86_CR4_OSXSAVE, code, sizeof(code));
}

/* Components in their initial state: XSAVE writes them, XSAVEOPT and XSAVEC do not. */
static void test_init_optimisation(void **state)
{
    struct sys_guest *g = *state;
    static const uint8_t plain[] = {XSAVE}, opt[] = {XSAVEOPT}, compact[] = {XSAVEC};

    for (unsigned i = 0; i < 3; i++) {
        reset(g);
        memset(g->ram + SG_DATA, 0xaa, 512);
        memset(g->ram + SG_DATA + 512, 0, 64);
        g->cpu->xmm[3].u64[1] = 77; /* SSE in use, x87 not */
        assert_int_equal(save(g, i == 0 ? plain : i == 1 ? opt : compact), DONE);
        assert_int_equal(sg_get(g, SG_DATA, 2), i == 0 ? 0x37f : 0xaaaa);
        assert_int_equal(sg_get(g, SG_DATA + 160 + 56, 8), 77);
        assert_int_equal(sg_get(g, SG_DATA + 24, 4), 0x1f80);
        assert_int_equal(sg_get(g, SG_DATA + 512, 8), 2);
        assert_int_equal(sg_get(g, SG_DATA + 520, 8) >> 60, i == 2 ? 8 : 0);
        assert_int_equal(sg_get(g, SG_DATA + 416, 8), 0xaaaaaaaaaaaaaaaa);
    }
}

/* A component that the area does not have gets its initial value back. */
static void test_restore_initial(void **state)
{
    struct sys_guest *g = *state;
    static const uint8_t restore[] = {XRSTOR};

    reset(g);
    memset(g->ram + SG_DATA, 0, 576);
    sg_put(g, SG_DATA + 24, &(uint32_t){0x9f80}, 4);
    g->cpu->xmm[5].u64[0] = 1;
    g->cpu->x87.fcw = 0x27f;
    g->cpu->x87.st[2].mant = 9;
    assert_int_equal(save(g, restore), DONE);
    assert_int_equal(g->cpu->xmm[5].u64[0], 0);
    assert_int_equal(g->cpu->x87.fcw, 0x37f);
    assert_int_equal(g->cpu->x87.st[2].mant, 0);
    assert_int_equal(g->cpu->mxcsr, 0x9f80); /* from the area all the same */
    reset(g);
    sg_put(g, SG_DATA + 24, &(uint32_t){0x10000}, 4);
    assert_int_equal(save(g, restore), GP);
    reset(g);
    sg_put(g, SG_DATA + 24, &(uint32_t){0x1f80}, 4);
    sg_put(g, SG_DATA + 512, &(uint64_t){4}, 8); /* a component that XCR0 lacks */
    assert_int_equal(save(g, restore), GP);
}

static void test_images(void **state)
{
    struct sys_guest *g = *state;
    uint8_t image[512], again[512];

    reset(g);
    for (unsigned i = 0; i < 416; i++) {
        image[i] = (uint8_t)(i * 7 + 1);
    }
    memset(image + 416, 0, 96);
    memcpy(image + 24, &(uint32_t){0x5f8a}, 4);
    memcpy(image + 28, &(uint32_t){0xffff}, 4);
    memcpy(image, &(uint32_t){0x3a00037f}, 4);
    image[5] = 0;
    image[7] &= 7;
    for (unsigned i = 0; i < 8; i++) {
        memset(image + 32 + i * 16 + 10, 0, 6);
    }
    assert_int_equal(cpu_fxrstor_image(g->cpu, image), 0);
    cpu_fxsave_image(g->cpu, again);
    assert_memory_equal(image, again, 512);
    image[27] = 0x80;
    g->cpu->mxcsr = 0x1f80;
    assert_true(cpu_fxrstor_image(g->cpu, image) < 0);
    assert_int_equal(g->cpu->mxcsr, 0x1f80);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gates),
        cmocka_unit_test(test_mmx_reports_x87),
        cmocka_unit_test(test_unmasked),
        cmocka_unit_test(test_save_gates),
        cmocka_unit_test(test_init_optimisation),
        cmocka_unit_test(test_restore_initial),
        cmocka_unit_test(test_images),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
