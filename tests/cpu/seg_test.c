/*
 * Segment loads and queries (seg.c, seg_insn.c, seg_query.c): every descriptor type, DPL, present bit, RPL and CPL,
 * in 32-bit protected and 64-bit mode, against the manuals' rules written as prose-like predicates below.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "sys_guest.h"

#define GP 13
#define NP 11
#define SS 12
#define OK (-1)

/* One case: a descriptor, and who asks how. */
struct sg_case {
    bool long_mode;
    unsigned cpl, rpl, dpl, type; /* type: S and the four type bits */
    bool present;
};

static bool is_conforming(const struct sg_case *c)
{
    return c->type >= 28;
}

static bool is_readable(const struct sg_case *c)
{
    return c->type >= 16 && (c->type < 24 || c->type % 4 >= 2);
}

static bool is_writable(const struct sg_case *c)
{
    return c->type >= 16 && c->type < 24 && c->type % 4 >= 2;
}

/* Intel, "MOV": loading DS, ES, FS, GS. */
static int expect_data(const struct sg_case *c)
{
    if (!is_readable(c)) {
        return GP;
    }
    if (!is_conforming(c) && (c->rpl > c->dpl || c->cpl > c->dpl)) {
        return GP;
    }
    return c->present ? OK : NP;
}

/* Intel, "MOV": loading SS. */
static int expect_stack(const struct sg_case *c)
{
    if (c->rpl != c->cpl || !is_writable(c) || c->dpl != c->cpl) {
        return GP;
    }
    return c->present ? OK : SS;
}

/* Who may see a descriptor with LAR, LSL, VERR, VERW. */
static bool visible(const struct sg_case *c)
{
    return is_conforming(c) || (c->dpl >= c->cpl && c->dpl >= c->rpl);
}

/* Intel's tables of types for LAR and LSL; 1 legacy only, 2 both, 0 never. */
static const uint8_t lar_types[16] = {0, 1, 2, 1, 1, 1, 0, 0, 0, 2, 0, 2, 2, 0, 0, 0};
static const uint8_t lsl_types[16] = {0, 1, 2, 1, 0, 0, 0, 0, 0, 2, 0, 2, 0, 0, 0, 0};

static bool expect_lar(const struct sg_case *c)
{
    return visible(c) && (c->type >= 16 || lar_types[c->type] > c->long_mode);
}

static bool expect_lsl(const struct sg_case *c)
{
    return visible(c) && (c->type >= 16 || lsl_types[c->type] > c->long_mode);
}

static bool expect_verr(const struct sg_case *c)
{
    return visible(c) && is_readable(c);
}

static bool expect_verw(const struct sg_case *c)
{
    return visible(c) && is_writable(c);
}

static uint16_t selector(const struct sg_case *c)
{
    return (uint16_t)(SG_SUBJECT * 8 | c->rpl);
}

static unsigned access_byte(const struct sg_case *c)
{
    return c->type | c->dpl << 5 | (c->present ? 0x80u : 0);
}

static void prepare(struct sys_guest *g, const struct sg_case *c)
{
    sg_gdt(g, SG_SUBJECT, sg_desc(0x12345, 0xfedcb, access_byte(c), 0xc), 0);
    sg_gdt(g, SG_SUBJECT + 1, 0, 0);
}

/* Put the processor back at the start, with the selector in RAX. */
static void run_at(uint32_t rip, const struct sg_case *c, const struct cpu_sregs *sregs, struct sg_outcome *out)
{
    struct cpu_regs r = {.rip = rip, .rflags = 2};

    assert_int_equal(cpu_set_sregs(guest.cpu, sregs), 0);
    r.gpr[CPU_RAX] = selector(c);
    r.gpr[CPU_RBX] = 0x1122334455667788;
    r.gpr[CPU_RSP] = SG_STACK(c->cpl) - 0x100;
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, out);
    assert_int_equal(out->reason, CPU_EXIT_HYPERCALL);
}

typedef void case_fn(const struct sg_case *c, const struct cpu_sregs *sregs);

/* All cases; code at SG_CODE + 16 * n is the n-th instruction of `code`. */
static void each_case(bool long_mode, case_fn *fn, const uint8_t code[][4], unsigned n)
{
    struct sg_case c = {.long_mode = long_mode};
    struct cpu_sregs sregs;
    unsigned i, x;

    for (c.cpl = 0; c.cpl < 4; c.cpl += long_mode ? 3 : 1) {
        sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, c.cpl);
        for (i = 0; i < n; i++) {
            sg_put(&guest, SG_CODE + i * 16, code[i], 3);
            sg_put(&guest, SG_CODE + i * 16 + 3, "\x0f\x01\xc1", 3);
        }
        cpu_get_sregs(guest.cpu, &sregs);
        for (x = 0; x < 32 * 4 * 2 * 4; x++) {
            c.type = x % 32;
            c.dpl = x / 32 % 4;
            c.present = x / 128 % 2;
            c.rpl = x / 256;
            prepare(&guest, &c);
            fn(&c, &sregs);
        }
    }
}

static void check_load(const struct sg_case *c, const struct cpu_sregs *sregs)
{
    static const uint8_t regs[] = {CPU_DS, CPU_ES, CPU_FS, CPU_GS, CPU_SS};
    unsigned i;

    for (i = 0; i < 5; i++) {
        int want = i == 4 ? expect_stack(c) : expect_data(c);
        struct sg_outcome out;

        prepare(&guest, c);
        run_at(SG_CODE + i * 16, c, sregs, &out);
        assert_int_equal(out.vector, want);
        if (want != OK) {
            assert_int_equal(out.error, selector(c) & ~3u);
            continue;
        }
        assert_int_equal(out.sregs.seg[regs[i]].sel, selector(c));
        assert_int_equal(out.sregs.seg[regs[i]].base, 0x12345);
        assert_int_equal(out.sregs.seg[regs[i]].limit, 0xfedcbfff);
        assert_int_equal(out.sregs.seg[regs[i]].type, c->type % 16 | 1);
        assert_int_equal(sg_get(&guest, SG_GDT + SG_SUBJECT * 8 + 5, 1), access_byte(c) | 1);
    }
}

static const uint8_t load_code[5][4] = {{0x8e, 0xd8, 0x90}, {0x8e, 0xc0, 0x90}, {0x8e, 0xe0, 0x90},
                                        {0x8e, 0xe8, 0x90}, {0x8e, 0xd0, 0x90}};

static void loads_protected(void **state)
{
    each_case(false, check_load, load_code, 5);
}

static void loads_long(void **state)
{
    each_case(true, check_load, load_code, 5);
}

/* lar ebx, eax; lsl ebx, eax; verr ax; verw ax */
static const uint8_t query_code[4][4] = {
    {0x0f, 0x02, 0xd8}, {0x0f, 0x03, 0xd8}, {0x0f, 0x00, 0xe0}, {0x0f, 0x00, 0xe8}};

static void check_query(const struct sg_case *c, const struct cpu_sregs *sregs)
{
    bool want[4] = {expect_lar(c), expect_lsl(c), expect_verr(c), expect_verw(c)};
    uint64_t value[4] = {access_byte(c) << 8 | 0xc00000, 0xfedcbfff, 0, 0};
    unsigned i;

    for (i = 0; i < 4; i++) {
        struct sg_outcome out;

        run_at(SG_CODE + i * 16, c, sregs, &out);
        assert_int_equal(out.vector, OK);
        assert_int_equal(out.regs.rflags >> 6 & 1, want[i]);
        assert_int_equal(out.regs.gpr[CPU_RBX], want[i] && i < 2 ? value[i] : 0x1122334455667788);
    }
}

static void queries_protected(void **state)
{
    each_case(false, check_query, query_code, 4);
}

static void queries_long(void **state)
{
    each_case(true, check_query, query_code, 4);
}

/* Null selectors: fine for data, never for SS but in 64-bit mode below level 3 with RPL = CPL. */
static void null_selectors(void **state)
{
    struct cpu_sregs sregs;
    unsigned long_mode, cpl, rpl, i;

    for (long_mode = 0; long_mode < 2; long_mode++) {
        for (cpl = 0; cpl < 4; cpl += long_mode ? 3 : 1) {
            sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, cpl);
            for (i = 0; i < 5; i++) {
                sg_put(&guest, SG_CODE + i * 16, load_code[i], 3);
                sg_put(&guest, SG_CODE + i * 16 + 3, "\x0f\x01\xc1", 3);
            }
            cpu_get_sregs(guest.cpu, &sregs);
            for (i = 0; i < 5; i++) {
                for (rpl = 0; rpl < 4; rpl++) {
                    struct cpu_regs r = {.rip = SG_CODE + i * 16, .rflags = 2};
                    struct sg_outcome out;

                    assert_int_equal(cpu_set_sregs(guest.cpu, &sregs), 0);
                    r.gpr[CPU_RAX] = rpl;
                    r.gpr[CPU_RSP] = SG_STACK(cpl) - 0x100;
                    cpu_set_regs(guest.cpu, &r);
                    sg_run(&guest, &out);
                    assert_int_equal(out.vector, i < 4 || (long_mode && cpl < 3 && rpl == cpl) ? OK : GP);
                    assert_int_equal(out.error, 0);
                }
            }
        }
    }
}

/* Selectors beyond the table's limit, and any selector of an LDT that is not there. */
static void beyond_the_table(void **state)
{
    struct cpu_sregs sregs;
    struct sg_outcome out;
    struct sg_case c = {.rpl = 0};

    sg_reset(&guest, SG_PM32, 0);
    sg_code(&guest, "\x8e\xd8", 2);
    cpu_get_sregs(guest.cpu, &sregs);
    sregs.gdtr.limit = SG_SUBJECT * 8 + 6;
    prepare(&guest, &c);
    run_at(SG_CODE, &c, &sregs, &out);
    assert_int_equal(out.vector, GP);
    assert_int_equal(out.error, SG_SUBJECT * 8);
    sregs.gdtr.limit = 0xff;
    c.rpl = 4;
    run_at(SG_CODE, &c, &sregs, &out);
    assert_int_equal(out.vector, GP);
    assert_int_equal(out.error, SG_SUBJECT * 8 | 4);
}

/* ARPL: raises the destination's RPL to the source's, and ZF says so. */
static void arpl(void **state)
{
    unsigned a, b;

    sg_reset(&guest, SG_PM32, 3);
    sg_code(&guest, "\x63\xd8", 2); /* arpl ax, bx */
    for (a = 0; a < 4; a++) {
        for (b = 0; b < 4; b++) {
            struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
            struct sg_outcome out;

            r.gpr[CPU_RAX] = 0xabcd0010 | a;
            r.gpr[CPU_RBX] = 0x20 | b;
            cpu_set_regs(guest.cpu, &r);
            sg_run(&guest, &out);
            assert_int_equal(out.regs.gpr[CPU_RAX], 0xabcd0010 | (a < b ? b : a));
            assert_int_equal(out.regs.rflags >> 6 & 1, a < b);
        }
    }
}

/* Real mode: selector times 16, limit untouched; virtual-8086: everything fixed. */
static void real_and_v86(void **state)
{
    struct sg_outcome out;
    struct cpu_sregs sregs;
    struct sg_case c = {.rpl = 3};

    sg_reset(&guest, SG_REAL, 0);
    sg_code(&guest, "\x8e\xd8", 2);
    cpu_get_sregs(guest.cpu, &sregs);
    sregs.seg[CPU_DS].limit = UINT32_MAX;
    run_at(SG_CODE, &c, &sregs, &out);
    assert_int_equal(out.sregs.seg[CPU_DS].base, selector(&c) * 16);
    assert_int_equal(out.sregs.seg[CPU_DS].limit, UINT32_MAX);
    sg_reset(&guest, SG_V86, 3);
    sg_code(&guest, "\x8e\xd8", 2);
    cpu_get_sregs(guest.cpu, &sregs);
    {
        struct cpu_regs r = {.rip = SG_CODE, .rflags = 0x20002};

        r.gpr[CPU_RAX] = 0xf123;
        cpu_set_regs(guest.cpu, &r);
        sg_run(&guest, &out);
    }
    assert_int_equal(out.vector, OK);
    assert_int_equal(out.sregs.seg[CPU_DS].base, 0xf1230);
    assert_int_equal(out.sregs.seg[CPU_DS].limit, 0xffff);
    assert_int_equal(out.sregs.seg[CPU_DS].dpl, 3);
}

/*
 * 64-bit mode: what is not canonical raises #SS(0) if it is the stack's address, #GP(0) if a memory operand's, also in
 * one instruction that has both; the stack is read first by POP, the operand first by PUSH and CALL.
 */
static void noncanonical_stacks(void **state)
{
    static const struct {
        const char *code;
        unsigned len;
        bool operand; /* RBX, the operand's address, is not canonical */
        bool stack;   /* RSP */
        int vector;
    } cases[] = {
        {"\x50", 1, false, true, SS},             /* push %rax */
        {"\x58", 1, false, true, SS},             /* pop %rax */
        {"\xff\x33", 2, false, true, SS},         /* push (%rbx) */
        {"\xff\x33", 2, true, true, GP},
        {"\xff\x33", 2, true, false, GP},
        {"\x8f\x03", 2, false, true, SS},         /* pop (%rbx) */
        {"\x8f\x03", 2, true, true, SS},
        {"\x8f\x03", 2, true, false, GP},
        {"\xe8\0\0\0\0", 5, false, true, SS},    /* call */
        {"\xff\xd0", 2, false, true, SS},         /* call *%rax */
        {"\xff\x13", 2, false, true, SS},         /* call *(%rbx) */
        {"\xff\x13", 2, true, true, GP},
        {"\xc3", 1, false, true, SS},             /* ret */
    };
    struct sg_outcome out;

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};

        sg_reset(&guest, SG_LONG, 3);
        sg_code(&guest, cases[i].code, cases[i].len);
        sg_put(&guest, SG_DATA, "\0\x80\0\0\0\0\0", 8);
        r.gpr[CPU_RAX] = SG_CODE;
        r.gpr[CPU_RBX] = cases[i].operand ? UINT64_C(0x800000000000) : SG_DATA;
        r.gpr[CPU_RSP] = cases[i].stack ? UINT64_C(0x7fff800000000010) : SG_STACK(3);
        cpu_set_regs(guest.cpu, &r);
        sg_run(&guest, &out);
        assert_int_equal(out.vector, cases[i].vector);
        assert_int_equal(out.error, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(noncanonical_stacks),
        cmocka_unit_test(loads_protected),   cmocka_unit_test(loads_long),
        cmocka_unit_test(queries_protected), cmocka_unit_test(queries_long),
        cmocka_unit_test(null_selectors),    cmocka_unit_test(beyond_the_table),
        cmocka_unit_test(arpl),              cmocka_unit_test(real_and_v86),
    };

    return cmocka_run_group_tests_name("cpu/seg", tests, sg_setup, sg_teardown);
}
