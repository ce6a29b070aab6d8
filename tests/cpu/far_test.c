/*
 * Far transfers and events through gates (far.c, far_ret.c, iret.c, deliver*.c): direct jumps, call gates, INT n, RETF and
 * IRET over all combinations of privilege and type, against the manuals' rules written out below.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "sys_guest.h"

#define TS 10
#define NP 11
#define SS 12
#define GP 13
#define OK (-1)

#define TARGET     (SG_CODE + 0x800) /* where transfers go; a hypercall is there */
#define GATE_INDEX 24

/* What a transfer should come to. */
struct expect {
    int vector;
    uint32_t error;
    unsigned cpl; /* when OK */
};

static struct expect fault(int vector, uint32_t error)
{
    return (struct expect){vector, error & ~3u, 0};
}

static struct expect fine(unsigned cpl)
{
    return (struct expect){OK, 0, cpl};
}

/* A descriptor that is a code segment, or is not. */
struct code {
    unsigned type, dpl, l, d;
    bool present;
};

static bool code_is(const struct code *c)
{
    return c->type >= 24;
}

static bool conforming(const struct code *c)
{
    return c->type >= 28;
}

static void put_code(unsigned index, const struct code *c)
{
    sg_gdt(&guest, index, sg_desc(0, 0xfffff, c->type | c->dpl << 5 | (c->present ? 0x80u : 0), 8 | c->d << 2 | c->l << 1), 0);
}

static void place(uint32_t at, const void *code, unsigned len)
{
    sg_put(&guest, at, code, len);
    sg_put(&guest, at + len, "\x0f\x01\xc1", 3);
}

static void start(const struct cpu_sregs *sregs, uint64_t rax, uint64_t rsp, struct sg_outcome *out)
{
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};

    assert_int_equal(cpu_set_sregs(guest.cpu, sregs), 0);
    r.gpr[CPU_RAX] = rax;
    r.gpr[CPU_RSP] = rsp;
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, out);
    assert_int_equal(out->reason, CPU_EXIT_HYPERCALL);
}

static void agrees(const struct sg_outcome *out, const struct expect *want, uint16_t sel)
{
    assert_int_equal(out->vector, want->vector);
    if (want->vector != OK) {
        assert_int_equal(out->error, want->error);
        return;
    }
    assert_int_equal(out->regs.rip, TARGET);
    assert_int_equal(out->sregs.seg[CPU_CS].sel, (sel & ~3u) | want->cpl);
    assert_int_equal(out->sregs.seg[CPU_SS].dpl, want->cpl);
}

/* ---- direct far jump ---- */

static struct expect expect_direct(const struct code *c, bool long_mode, unsigned cpl, unsigned rpl)
{
    uint32_t sel = SG_SUBJECT * 8;

    if (!code_is(c) || (conforming(c) ? c->dpl > cpl : c->dpl != cpl || rpl > cpl)) {
        return fault(GP, sel);
    }
    if (long_mode && c->l && c->d) {
        return fault(GP, sel);
    }
    return c->present ? fine(cpl) : fault(NP, sel);
}

static void direct(bool long_mode)
{
    struct cpu_sregs sregs;
    struct sg_outcome out;
    unsigned cpl, rpl, x;

    for (cpl = 0; cpl < 4; cpl += long_mode ? 3 : 1) {
        sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, cpl);
        cpu_get_sregs(guest.cpu, &sregs);
        place(SG_CODE, "\xff\x28", 2); /* jmp far [rax] */
        place(TARGET, "", 0);
        for (x = 0; x < 16 * 4 * 2 * 2 * 2; x++) {
            struct code c = {16 + x % 16, x / 16 % 4, x / 64 % 2, x / 128 % 2, x / 256};

            put_code(SG_SUBJECT, &c);
            for (rpl = 0; rpl < 4; rpl++) {
                uint16_t far[3] = {TARGET & 0xffff, 0, (uint16_t)(SG_SUBJECT * 8 | rpl)};
                struct expect want = expect_direct(&c, long_mode, cpl, rpl);

                if (long_mode && c.l && want.vector == OK && c.d) {
                    continue;
                }
                sg_put(&guest, SG_DATA, far, 6);
                start(&sregs, SG_DATA, SG_STACK(cpl) - 0x100, &out);
                agrees(&out, &want, far[2]);
            }
        }
    }
}

static void direct_protected(void **state)
{
    direct(false);
}

static void direct_long(void **state)
{
    direct(true);
}

/* ---- call gates ---- */

struct gate {
    unsigned dpl, rpl;
    bool present;
};

static struct expect expect_gate(const struct gate *g, const struct code *c, bool long_mode, unsigned cpl)
{
    uint32_t gate = GATE_INDEX * 8, sel = SG_SUBJECT * 8;

    if (g->dpl < cpl || g->dpl < g->rpl) {
        return fault(GP, gate);
    }
    if (!g->present) {
        return fault(NP, gate);
    }
    if (!code_is(c) || c->dpl > cpl || (long_mode && (!c->l || c->d))) {
        return fault(GP, sel);
    }
    if (!c->present) {
        return fault(NP, sel);
    }
    return fine(!conforming(c) && c->dpl < cpl ? c->dpl : cpl);
}

static void put_gate(const struct gate *g, bool long_mode)
{
    uint64_t lo = TARGET | (uint64_t)(SG_SUBJECT * 8) << 16 | (uint64_t)(12 | g->dpl << 5 | (g->present ? 0x80u : 0)) << 40;

    sg_gdt(&guest, GATE_INDEX, lo | (long_mode ? 0 : UINT64_C(2) << 32), 0);
}

/* What a call through a gate leaves on the stack. */
static void gate_frame(const struct sg_outcome *out, bool long_mode, unsigned cpl, unsigned old_cpl, uint16_t old_cs)
{
    unsigned w = long_mode ? 8 : 4;
    uint32_t sp = (uint32_t)out->regs.gpr[CPU_RSP];
    unsigned params = long_mode ? 0 : 2;

    assert_int_equal(sg_get(&guest, sp, w), SG_CODE + (long_mode ? 2 : 2));
    assert_int_equal(sg_get(&guest, sp + w, w), old_cs);
    if (cpl == old_cpl) {
        assert_int_equal(sp, SG_STACK(old_cpl) - 0x100 - 2 * w);
        return;
    }
    assert_int_equal(sp, SG_STACK(cpl) - (4 + params) * w);
    if (params) {
        assert_int_equal(sg_get(&guest, sp + 2 * w, 4), 0x11111111);
        assert_int_equal(sg_get(&guest, sp + 3 * w, 4), 0x22222222);
    }
    assert_int_equal(sg_get(&guest, sp + (2 + params) * w, w), SG_STACK(old_cpl) - 0x100);
    assert_int_equal(sg_get(&guest, sp + (3 + params) * w, w), SG_DS(old_cpl));
}

static void gates(bool long_mode)
{
    static const uint32_t params[2] = {0x11111111, 0x22222222};
    static const uint8_t types[] = {0x12, 0x1a, 0x1b, 0x1e, 0x1f};
    struct cpu_sregs sregs;
    struct sg_outcome out;
    unsigned cpl, x, y;

    for (cpl = 0; cpl < 4; cpl += long_mode ? 3 : 1) {
        sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, cpl);
        cpu_get_sregs(guest.cpu, &sregs);
        place(SG_CODE, "\xff\x18", 2); /* call far [rax] */
        place(TARGET, "", 0);
        for (x = 0; x < 5 * 4 * 2 * 2; x++) {
            struct code c = {types[x % 5], x / 5 % 4, long_mode, 0, x / 20 % 2};

            c.d = long_mode ? 0 : 1;
            if (x / 40) {
                c.l = !c.l;
            }
            if (!long_mode && c.l) {
                continue;
            }
            for (y = 0; y < 4 * 4 * 2; y++) {
                struct gate gate = {y % 4, y / 4 % 4, y / 16};
                uint16_t far[3] = {0x5555, 0x5555, (uint16_t)(GATE_INDEX * 8 | gate.rpl)};
                struct expect want = expect_gate(&gate, &c, long_mode, cpl);

                put_code(SG_SUBJECT, &c);
                put_gate(&gate, long_mode);
                sg_put(&guest, SG_DATA, far, 6);
                sg_put(&guest, SG_STACK(cpl) - 0x100, params, 8);
                start(&sregs, SG_DATA, SG_STACK(cpl) - 0x100, &out);
                agrees(&out, &want, SG_SUBJECT * 8);
                if (want.vector == OK) {
                    gate_frame(&out, long_mode, want.cpl, cpl, long_mode ? SG_CS64(cpl) : SG_CS(cpl));
                }
            }
        }
    }
}

static void gates_protected(void **state)
{
    gates(false);
}

/* The 64-bit TSS has no SS for inner levels; level 0 only is reached here, as levels 1 and 2 have no 64-bit code. */
static void gates_long(void **state)
{
    gates(true);
}

/* ---- INT n ---- */

static struct expect expect_int(unsigned gtype, unsigned gdpl, bool gp, const struct code *c, bool long_mode, unsigned cpl)
{
    uint32_t idt = 0x40 * 8 + 2, sel = SG_SUBJECT * 8;
    bool is_gate = gtype == 14 || gtype == 15 || (!long_mode && (gtype == 6 || gtype == 7));

    if (!is_gate || gdpl < cpl) {
        return (struct expect){GP, idt, 0};
    }
    if (!gp) {
        return (struct expect){NP, idt, 0};
    }
    if (!code_is(c) || c->dpl > cpl) {
        return fault(GP, sel);
    }
    if (!c->present) {
        return fault(NP, sel);
    }
    if (long_mode && (!c->l || c->d)) {
        return fault(GP, sel);
    }
    return fine(!conforming(c) && c->dpl < cpl ? c->dpl : cpl);
}

static void interrupts(bool long_mode)
{
    static const uint8_t types[] = {0x12, 0x1a, 0x1f};
    struct cpu_sregs sregs;
    struct sg_outcome out;
    unsigned cpl, x, y;

    for (cpl = 0; cpl < 4; cpl += long_mode ? 3 : 1) {
        sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, cpl);
        cpu_get_sregs(guest.cpu, &sregs);
        place(SG_CODE, "\xcd\x40", 2);
        place(TARGET, "", 0);
        for (x = 0; x < 32 * 4 * 2; x++) {
            unsigned gtype = x % 32, gdpl = x / 32 % 4, gp = x / 128;

            if (gtype == 5 && !long_mode) {
                continue; /* task gates have a test of their own */
            }
            for (y = 0; y < 3 * 4 * 2; y++) {
                struct code c = {types[y % 3], y / 3 % 4, long_mode, !long_mode, y / 12};
                struct expect want = expect_int(gtype, gdpl, gp, &c, long_mode, cpl);

                put_code(SG_SUBJECT, &c);
                sg_gate(&guest, 0x40, SG_SUBJECT * 8, TARGET, gtype | gdpl << 5 | gp << 7, long_mode);
                start(&sregs, 0, SG_STACK(cpl) - 0x100, &out);
                agrees(&out, &want, SG_SUBJECT * 8);
                if (want.vector == OK) {
                    unsigned w = long_mode ? 8 : gtype & 8 ? 4 : 2;

                    assert_int_equal(sg_get(&guest, (uint32_t)out.regs.gpr[CPU_RSP], w), SG_CODE + 2);
                }
            }
        }
    }
}

static void interrupts_protected(void **state)
{
    interrupts(false);
}

static void interrupts_long(void **state)
{
    interrupts(true);
}

/* ---- RETF and IRET ---- */

/* A return to code `c` with selector RPL rpl, and stack segment of type, dpl, rpl for the outer case. */
struct ret_case {
    struct code c, ss;
    unsigned rpl, ss_rpl;
};

static struct expect expect_return(const struct ret_case *r, bool long_mode, bool always_ss, unsigned cpl)
{
    uint32_t sel = SG_SUBJECT * 8, ss = GATE_INDEX * 8;

    if (!code_is(&r->c) || r->rpl < cpl || (conforming(&r->c) ? r->c.dpl > r->rpl : r->c.dpl != r->rpl)) {
        return fault(GP, sel);
    }
    if (long_mode && r->c.l && r->c.d) {
        return fault(GP, sel);
    }
    if (!r->c.present) {
        return fault(NP, sel);
    }
    if (r->rpl == cpl && !always_ss) {
        return fine(cpl);
    }
    if (r->ss_rpl != r->rpl || r->ss.dpl != r->rpl || r->ss.type >= 24 || r->ss.type % 4 < 2) {
        return fault(GP, ss);
    }
    return r->ss.present ? fine(r->rpl) : fault(SS, ss);
}

static void return_frame(const struct ret_case *r, bool iret, unsigned w, uint32_t sp)
{
    uint64_t frame[5] = {TARGET, SG_SUBJECT * 8u | r->rpl, 2, SG_STACK(3) - 0x80, GATE_INDEX * 8u | r->ss_rpl};
    unsigned i, at = 0;

    for (i = 0; i < 5; i++) {
        if (i != 2 || iret) {
            sg_put(&guest, sp + at, &frame[i], w);
            at += w;
        }
    }
}

static void returns(bool long_mode, bool iret)
{
    static const uint8_t ctypes[] = {0x12, 0x1b, 0x1f}, stypes[] = {0x11, 0x13, 0x1b};
    struct cpu_sregs sregs;
    struct sg_outcome out;
    unsigned cpl, x, y, w = long_mode ? 8 : 4;

    for (cpl = 0; cpl < 4; cpl += long_mode ? 3 : 1) {
        sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, cpl);
        cpu_get_sregs(guest.cpu, &sregs);
        place(SG_CODE, iret ? "\x48\xcf" + !long_mode : "\x48\xcb" + !long_mode, long_mode ? 2 : 1);
        place(TARGET, "", 0);
        for (x = 0; x < 3 * 4 * 4 * 2; x++) {
            struct ret_case r = {.c = {ctypes[x % 3], x / 3 % 4, long_mode, !long_mode, x / 48}, .rpl = x / 12 % 4};

            for (y = 0; y < 3 * 4 * 4 * 2; y++) {
                struct expect want;

                r.ss = (struct code){stypes[y % 3], y / 3 % 4, 0, 1, y / 48};
                r.ss_rpl = y / 12 % 4;
                want = expect_return(&r, long_mode, long_mode && iret, cpl);
                put_code(SG_SUBJECT, &r.c);
                put_code(GATE_INDEX, &r.ss);
                return_frame(&r, iret, w, SG_STACK(cpl) - 0x100);
                start(&sregs, 0, SG_STACK(cpl) - 0x100, &out);
                agrees(&out, &want, SG_SUBJECT * 8);
                if (want.vector == OK && want.cpl != cpl) {
                    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(3) - 0x80);
                    assert_int_equal(out.sregs.seg[CPU_DS].unusable, want.cpl > cpl);
                }
            }
        }
    }
}

static void retf_protected(void **state)
{
    returns(false, false);
}

static void retf_long(void **state)
{
    returns(true, false);
}

static void iret_protected(void **state)
{
    returns(false, true);
}

static void iret_long(void **state)
{
    returns(true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(direct_protected),     cmocka_unit_test(direct_long),
        cmocka_unit_test(gates_protected),      cmocka_unit_test(gates_long),
        cmocka_unit_test(interrupts_protected), cmocka_unit_test(interrupts_long),
        cmocka_unit_test(retf_protected),       cmocka_unit_test(retf_long),
        cmocka_unit_test(iret_protected),       cmocka_unit_test(iret_long),
    };

    return cmocka_run_group_tests_name("cpu/far", tests, sg_setup, sg_teardown);
}
