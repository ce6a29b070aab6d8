/*
 * String instructions (string.c, string_bulk.c): random forms against a model that does one byte after the other. All
 * element and address sizes, prefixes, directions, overlaps, page crossings and segment overrides, in 64-bit and 32-bit mode; faults
 * in the middle; and code pages.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "sys_guest.h"

#define AREA     SG_DATA
#define AREA_LEN 0x10000u
#define FS_BASE  0x40u

static uint64_t seed = 88172645463325252u;

static uint32_t rnd(uint32_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 20) % below);
}

enum kind { MOVS, CMPS, STOS, LODS, SCAS, NR_KINDS };
enum rep { PLAIN, REPE, REPNE };

/* One instruction and its inputs. */
struct form {
    enum kind kind;
    enum rep rep;
    unsigned size, asize; /* bytes */
    bool down, fs, long_mode;
    uint64_t rax, rcx, rsi, rdi;
};

/* The model's machine. */
struct model {
    uint8_t mem[SG_RAM];
    uint64_t rax, rcx, rsi, rdi;
    uint64_t a, b; /* last pair compared */
    bool compared;
};

static uint64_t low(uint64_t v, unsigned bytes)
{
    return bytes == 8 ? v : v & ((UINT64_C(1) << bytes * 8) - 1);
}

/* A register written at `bytes` width. */
static uint64_t merged(uint64_t old, uint64_t v, unsigned bytes)
{
    return bytes >= 4 ? low(v, bytes) : (old & ~low(~UINT64_C(0), bytes)) | low(v, bytes);
}

static uint64_t peek(const struct model *m, uint64_t at, unsigned n)
{
    uint64_t v = 0;
    unsigned i;

    for (i = 0; i < n; i++) {
        v |= (uint64_t)m->mem[at + i] << i * 8;
    }
    return v;
}

static void poke(struct model *m, uint64_t at, uint64_t v, unsigned n)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        m->mem[at + i] = (uint8_t)(v >> i * 8);
    }
}

static void model_once(struct model *m, const struct form *f)
{
    uint64_t si = low(m->rsi, f->asize) + (f->fs ? FS_BASE : 0), di = low(m->rdi, f->asize);
    int64_t step = f->down ? -(int64_t)f->size : (int64_t)f->size;
    bool uses_si = f->kind == MOVS || f->kind == CMPS || f->kind == LODS;

    switch (f->kind) {
    case MOVS:
        poke(m, di, peek(m, si, f->size), f->size);
        break;
    case STOS:
        poke(m, di, m->rax, f->size);
        break;
    case LODS:
        m->rax = merged(m->rax, peek(m, si, f->size), f->size);
        break;
    case CMPS:
        m->a = peek(m, si, f->size);
        m->b = peek(m, di, f->size);
        m->compared = true;
        break;
    default:
        m->a = low(m->rax, f->size);
        m->b = peek(m, di, f->size);
        m->compared = true;
    }
    if (uses_si) {
        m->rsi = merged(m->rsi, m->rsi + (uint64_t)step, f->asize);
    }
    if (f->kind != LODS) {
        m->rdi = merged(m->rdi, m->rdi + (uint64_t)step, f->asize);
    }
}

static void model_run(struct model *m, const struct form *f)
{
    if (f->rep == PLAIN) {
        model_once(m, f);
        return;
    }
    if (f->asize == 4 && f->long_mode && low(m->rcx, 4) == 0) {
        /* Intel cuts what MOVS and STOS write, even when there is nothing to do. */
        m->rcx = 0;
        m->rsi = f->kind == MOVS ? low(m->rsi, 4) : m->rsi;
        m->rdi = f->kind == MOVS || f->kind == STOS ? low(m->rdi, 4) : m->rdi;
    }
    while (low(m->rcx, f->asize) != 0) {
        model_once(m, f);
        m->rcx = merged(m->rcx, m->rcx - 1, f->asize);
        if ((f->kind == CMPS || f->kind == SCAS) && (m->a == m->b) == (f->rep == REPNE)) {
            break;
        }
    }
}

/* Flags of a - b, computed the long way. */
static uint32_t sub_flags(uint64_t a, uint64_t b, unsigned bytes)
{
    uint64_t r = low(a - b, bytes), sign = UINT64_C(1) << (bytes * 8 - 1);
    uint32_t f = a < b ? X86_CF : 0;

    f |= __builtin_popcount((unsigned)(r & 0xff)) % 2 ? 0 : X86_PF;
    f |= (a ^ b ^ r) & 0x10 ? X86_AF : 0;
    f |= r == 0 ? X86_ZF : 0;
    f |= r & sign ? X86_SF : 0;
    return f | (((a ^ b) & (a ^ r) & sign) ? X86_OF : 0);
}

static unsigned encode(uint8_t *p, const struct form *f, bool long_mode)
{
    static const uint8_t opcode[] = {0xa4, 0xa6, 0xaa, 0xac, 0xae};
    unsigned n = 0;

    if (f->fs) {
        p[n++] = 0x64;
    }
    if (f->size == 2) {
        p[n++] = 0x66;
    }
    if (f->asize != (long_mode ? 8 : 4)) {
        p[n++] = 0x67;
    }
    if (f->rep != PLAIN) {
        p[n++] = f->rep == REPE ? 0xf3 : 0xf2;
    }
    if (f->size == 8) {
        p[n++] = 0x48;
    }
    p[n++] = opcode[f->kind] + (f->size > 1);
    return n;
}

static void choose(struct form *f, bool long_mode)
{
    static const uint16_t counts[] = {0, 1, 2, 3, 7, 64, 300, 1000};

    f->long_mode = long_mode;
    f->kind = rnd(NR_KINDS);
    f->rep = rnd(4) == 0 ? PLAIN : f->kind == CMPS || f->kind == SCAS ? 1 + rnd(2) : REPE;
    f->size = 1u << rnd(long_mode ? 4 : 3);
    f->asize = long_mode ? (rnd(3) ? 8 : 4) : (rnd(3) ? 4 : 2);
    f->down = rnd(2);
    f->fs = rnd(4) == 0;
    f->rcx = counts[rnd(8)];
    f->rax = (uint64_t)rnd(UINT32_MAX) << 32 | rnd(UINT32_MAX);
    if (rnd(2)) {
        f->rax = rnd(3) * UINT64_C(0x0101010101010101);
    }
    /* Around page ends, and often close to each other. */
    f->rsi = AREA + 0x4000 + rnd(4) * 0x1000 + rnd(64) - 32;
    f->rdi = rnd(2) ? f->rsi + rnd(40) - 20 : AREA + 0x4000 + rnd(4) * 0x1000 + rnd(64) - 32;
    if (f->asize == 2) {
        f->rsi = (f->rsi & 0x1fff) | 0xa000;
        f->rdi = (f->rdi & 0x1fff) | 0xa000;
        f->rcx = rnd(200);
    }
    if (f->asize < 8 && long_mode) {
        f->rcx |= UINT64_C(0x700000000);
        f->rsi |= UINT64_C(0x100000000);
        f->rdi |= rnd(2) ? UINT64_C(0x300000000) : 0;
    }
}

static void random_memory(void)
{
    uint32_t at;

    for (at = 0x9000; at < SG_RAM; at++) {
        guest.ram[at] = rnd(3) ? (uint8_t)rnd(3) : 1;
    }
}

static struct model model;

static void one(bool long_mode, const struct cpu_sregs *sregs)
{
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
    struct sg_outcome out;
    struct form f;
    uint8_t code[16];
    unsigned len;

    choose(&f, long_mode);
    len = encode(code, &f, long_mode);
    sg_code(&guest, code, len);
    memcpy(model.mem, guest.ram, SG_RAM);
    model.rax = f.rax;
    model.rcx = f.rcx;
    model.rsi = f.rsi;
    model.rdi = f.rdi;
    model.compared = false;
    model_run(&model, &f);
    assert_int_equal(cpu_set_sregs(guest.cpu, sregs), 0);
    r.gpr[CPU_RAX] = f.rax;
    r.gpr[CPU_RCX] = f.rcx;
    r.gpr[CPU_RSI] = f.rsi;
    r.gpr[CPU_RDI] = f.rdi;
    r.gpr[CPU_RSP] = SG_STACK(0);
    r.rflags |= f.down ? X86_DF : 0;
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.vector, -1);
    assert_int_equal(out.regs.gpr[CPU_RAX], model.rax);
    assert_int_equal(out.regs.gpr[CPU_RCX], model.rcx);
    assert_int_equal(out.regs.gpr[CPU_RSI], model.rsi);
    assert_int_equal(out.regs.gpr[CPU_RDI], model.rdi);
    /* Below are tables, whose accessed bits the processor sets. */
    assert_memory_equal(guest.ram + 0x9000, model.mem + 0x9000, SG_RAM - 0x9000);
    if (model.compared) {
        assert_int_equal(out.regs.rflags & X86_ARITH_FLAGS, sub_flags(model.a, model.b, f.size));
    }
}

static void many(bool long_mode, bool flat)
{
    struct cpu_sregs sregs;
    unsigned i;

    sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, 0);
    cpu_get_sregs(guest.cpu, &sregs);
    sregs.seg[CPU_FS].base = FS_BASE;
    if (!flat) {
        sregs.seg[CPU_ES].limit = SG_RAM - 1;
    }
    random_memory();
    for (i = 0; i < 4000; i++) {
        if (i % 500 == 0) {
            random_memory();
        }
        one(long_mode, &sregs);
    }
}

static void random_long(void **state)
{
    many(true, true);
}

static void random_protected(void **state)
{
    many(false, true);
}

/* With a segment that is not flat, limits are checked. */
static void random_segmented(void **state)
{
    many(false, false);
}

/* A limit in the middle: everything below is done, registers are at the element that failed. */
static void limit_in_the_middle(void **state)
{
    struct cpu_sregs sregs;
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 0);
    cpu_get_sregs(guest.cpu, &sregs);
    sregs.seg[CPU_ES].limit = SG_DATA + 101;
    assert_int_equal(cpu_set_sregs(guest.cpu, &sregs), 0);
    sg_code(&guest, "\xf3\xab", 2);
    r.gpr[CPU_RAX] = 0x5a5a5a5a;
    r.gpr[CPU_RCX] = 50;
    r.gpr[CPU_RDI] = SG_DATA;
    r.gpr[CPU_RSP] = SG_STACK(0);
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 13);
    assert_int_equal(out.regs.gpr[CPU_RCX], 25);
    assert_int_equal(out.regs.gpr[CPU_RDI], SG_DATA + 100);
    assert_int_equal(sg_get(&guest, (uint32_t)out.regs.gpr[CPU_RSP] + 4, 4), SG_CODE);
    assert_int_equal(sg_get(&guest, SG_DATA + 96, 8), 0x5a5a5a5a);
}

/* A page fault in the middle, in both directions. */
static void page_fault_in_the_middle(void **state)
{
    unsigned down;

    for (down = 0; down < 2; down++) {
        struct cpu_regs r = {.rip = SG_CODE, .rflags = down ? 0x402 : 2};
        struct sg_outcome out;
        uint64_t pt = X86_PTE_P | X86_PTE_W | X86_PTE_U;
        unsigned i;

        sg_reset(&guest, SG_LONG, 0);
        for (i = 0; i < SG_RAM / 4096; i++) {
            uint64_t pte = i * 4096u | (i == 0x12 || i == 0x10 ? 0 : pt);

            sg_put(&guest, 0x20000 + i * 8, &pte, 8);
        }
        pt |= 0x20000;
        sg_put(&guest, 0x3000, &pt, 8);
        cpu_request_flush(guest.cpu);
        sg_code(&guest, "\xf3\x48\xa5", 3);
        r.gpr[CPU_RCX] = 1000;
        r.gpr[CPU_RSI] = 0x15000;
        r.gpr[CPU_RDI] = down ? 0x11008 : 0x11ff0;
        r.gpr[CPU_RSP] = SG_STACK(0);
        cpu_set_regs(guest.cpu, &r);
        sg_run(&guest, &out);
        assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
        assert_int_equal(out.vector, 14);
        assert_int_equal(out.error, 2);
        assert_int_equal(out.regs.gpr[CPU_RCX], 998);
        assert_int_equal(out.regs.gpr[CPU_RDI], down ? 0x10ff8 : 0x12000);
        assert_int_equal(out.sregs.cr2, down ? 0x10ff8 : 0x12000);
    }
}

/* REPE CMPS that faults has the flags from before it, and the registers of the element that failed. */
static void flags_after_a_fault(void **state)
{
    struct cpu_sregs sregs;
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 0xc3};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 0);
    cpu_get_sregs(guest.cpu, &sregs);
    sregs.seg[CPU_ES].limit = SG_DATA + 101;
    assert_int_equal(cpu_set_sregs(guest.cpu, &sregs), 0);
    sg_code(&guest, "\xf3\xa6", 2);
    r.gpr[CPU_RCX] = 500;
    r.gpr[CPU_RDI] = SG_DATA;
    r.gpr[CPU_RSI] = SG_DATA + 0x1000;
    r.gpr[CPU_RSP] = SG_STACK(0);
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 13);
    assert_int_equal(out.regs.gpr[CPU_RCX], 500 - 102);
    assert_int_equal(sg_get(&guest, (uint32_t)out.regs.gpr[CPU_RSP] + 12, 4) & 0xcd5, 0xc1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_long),         cmocka_unit_test(random_protected),
        cmocka_unit_test(random_segmented),    cmocka_unit_test(limit_in_the_middle),
        cmocka_unit_test(page_fault_in_the_middle), cmocka_unit_test(flags_after_a_fault),
    };

    return cmocka_run_group_tests_name("cpu/string", tests, sg_setup, sg_teardown);
}
