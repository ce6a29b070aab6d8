/*
 * Events (exception.c, deliver*.c, dbgreg.c): faults during delivery, frames, shadows, traps, virtual-8086 mode.
 * Expectations are the manuals' tables written out here.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/request.h"
#include "sys_guest.h"

static void place(uint32_t at, const void *code, unsigned len)
{
    sg_put(&guest, at, code, len);
    sg_put(&guest, at + len, "\x0f\x01\xc1", 3);
}

static void set_regs(uint64_t rip, uint64_t rflags, uint64_t rsp)
{
    struct cpu_regs r = {.rip = rip, .rflags = rflags | 2};

    r.gpr[CPU_RSP] = rsp;
    cpu_set_regs(guest.cpu, &r);
}

static uint64_t on_stack(const struct sg_outcome *out, unsigned n, unsigned size)
{
    return sg_get(&guest, (uint32_t)out->regs.gpr[CPU_RSP] + n * size, size);
}

/* ---- the double-fault rules ---- */

enum first { FIRST_DE, FIRST_UD, FIRST_GP, FIRST_PF, FIRST_INT, FIRST_INTR, FIRST_NMI, NR_FIRST };
enum second { SECOND_NP, SECOND_GP, SECOND_PF, NR_SECOND };

static const struct {
    uint8_t code[8];
    unsigned len, vector;
    bool external;
} firsts[NR_FIRST] = {
    [FIRST_DE] = {{0xf7, 0xf1}, 2, 0, true},                  /* div ecx, by zero */
    [FIRST_UD] = {{0x0f, 0x0b}, 2, 6, true},
    [FIRST_GP] = {{0x8e, 0xd8}, 2, 13, true},                 /* mov ds, beyond the table */
    [FIRST_PF] = {{0x8b, 0x02}, 2, 14, true},                 /* mov eax, [rdx] */
    [FIRST_INT] = {{0xcd, 0x40}, 2, 0x40, false},
    [FIRST_INTR] = {{0x90}, 1, 0x50, true},
    [FIRST_NMI] = {{0x90}, 1, 2, true},
};

/* Intel's table: row first, column second; 0: the second is delivered, 8: a double fault. */
static const uint8_t becomes[NR_FIRST][NR_SECOND] = {
    [FIRST_DE] = {8, 8, 0}, [FIRST_UD] = {0, 0, 0},   [FIRST_GP] = {8, 8, 0},  [FIRST_PF] = {8, 8, 8},
    [FIRST_INT] = {0, 0, 0}, [FIRST_INTR] = {0, 0, 0}, [FIRST_NMI] = {0, 0, 0},
};

#define HOLE 0x38000u /* a page that is not mapped */

static void map_with_hole(void)
{
    uint64_t rights = X86_PTE_P | X86_PTE_W | X86_PTE_U, pde = 0x20000 | rights;
    unsigned i;

    for (i = 0; i < SG_RAM / 4096; i++) {
        uint64_t pte = i * 4096u == HOLE ? 0 : i * 4096u | rights;

        sg_put(&guest, 0x20000 + i * 8, &pte, 8);
    }
    sg_put(&guest, 0x3000, &pde, 8);
    cpu_request_flush(guest.cpu);
}

static void use_ist(unsigned vector, unsigned ist)
{
    guest.ram[SG_IDT + vector * 16 + 4] = (uint8_t)ist;
}

static void inject(enum first f)
{
    struct cpu_event ev = {.type = f == FIRST_NMI ? CPU_EVENT_NMI : CPU_EVENT_INTR, .vector = (uint8_t)firsts[f].vector};

    if (f == FIRST_INTR || f == FIRST_NMI) {
        cpu_inject(guest.cpu, &ev);
    }
}

/* The first event's gate is broken so that the second happens; `triple` breaks the double fault's too. */
static void deliver_two(enum first f, enum second s, bool triple, struct sg_outcome *out)
{
    uint64_t good = SG_STACK(1), hole = HOLE + 0x800;
    unsigned v = firsts[f].vector;
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};

    sg_reset(&guest, SG_LONG, 0);
    map_with_hole();
    sg_put(&guest, SG_TSS + 36, &good, 8);
    sg_put(&guest, SG_TSS + 44, &hole, 8);
    place(SG_CODE, firsts[f].code, firsts[f].len);
    use_ist(8, 1);
    use_ist(11, 1);
    use_ist(13, 1);
    use_ist(14, 1);
    if (triple) {
        sg_gate(&guest, 8, SG_CS64(0), SG_HANDLER, 0x6e, true);
    }
    if (s == SECOND_NP) {
        sg_gate(&guest, v, SG_CS64(0), SG_HANDLER, 0x6e, true);
    } else if (s == SECOND_GP) {
        sg_gate(&guest, v, SG_CS64(0), SG_HANDLER, 0xe1, true);
    } else {
        use_ist(v, 2);
    }
    r.gpr[CPU_RAX] = 0xfff8;
    r.gpr[CPU_RDX] = HOLE;
    r.gpr[CPU_RSP] = SG_STACK(0);
    cpu_set_regs(guest.cpu, &r);
    inject(f);
    sg_run(&guest, out);
}

static void double_fault_rules(void **state)
{
    static const uint8_t second_vector[] = {11, 13, 14};
    unsigned f, s;

    for (f = 0; f < NR_FIRST; f++) {
        for (s = 0; s < NR_SECOND; s++) {
            uint32_t idt_code = firsts[f].vector * 8 + 2 + firsts[f].external;
            struct sg_outcome out;

            deliver_two(f, s, false, &out);
            assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
            assert_int_equal(out.vector, becomes[f][s] ? becomes[f][s] : second_vector[s]);
            assert_int_equal(out.error, becomes[f][s] ? 0 : s == SECOND_PF ? 2 : idt_code);
            assert_int_equal(on_stack(&out, 1, 8), SG_CODE);
            if (s == SECOND_PF) {
                assert_int_equal(out.sregs.cr2 & ~0xfffull, HOLE);
            }
            if (becomes[f][s]) {
                deliver_two(f, s, true, &out);
                assert_int_equal(out.reason, CPU_EXIT_TRIPLE_FAULT);
            }
        }
    }
}

/* ---- frames ---- */

/* Long mode aligns the stack and pushes SS:RSP even without a change of level. */
static void long_frame(void **state)
{
    struct sg_outcome out;
    unsigned low;

    for (low = 0; low < 16; low++) {
        sg_reset(&guest, SG_LONG, 0);
        place(SG_CODE, "\xcd\x40", 2);
        set_regs(SG_CODE, 0x40c5, SG_STACK(0) - 0x100 + low);
        sg_run(&guest, &out);
        assert_int_equal(out.vector, 0x40);
        assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(0) - 0x100 - 40);
        assert_int_equal(on_stack(&out, 0, 8), SG_CODE + 2);
        assert_int_equal(on_stack(&out, 1, 8), SG_CS64(0));
        assert_int_equal(on_stack(&out, 2, 8), 0x40c7);
        assert_int_equal(on_stack(&out, 3, 8), SG_STACK(0) - 0x100 + low);
        assert_int_equal(on_stack(&out, 4, 8), SG_DS(0));
        assert_int_equal(out.regs.rflags, 0xc7);
    }
}

/* From level 3: stack of the TSS, null SS; a fault shows RF in the image, an interrupt does not. */
static void long_frame_inner(void **state)
{
    struct sg_outcome out;
    struct cpu_event ev = {.type = CPU_EVENT_INTR, .vector = 0x55};

    sg_reset(&guest, SG_LONG, 3);
    place(SG_CODE, "\x0f\x0b", 2);
    set_regs(SG_CODE, 0x200, SG_STACK(3) - 8);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 6);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(0) - 40);
    assert_int_equal(on_stack(&out, 2, 8), 0x10202);
    assert_int_equal(on_stack(&out, 4, 8), SG_DS(3));
    assert_int_equal(out.sregs.seg[CPU_SS].sel, 0);
    assert_true(out.sregs.seg[CPU_SS].unusable);
    set_regs(SG_CODE, 0x200, SG_STACK(3) - 8);
    sg_reset(&guest, SG_LONG, 3);
    set_regs(SG_CODE, 0x200, SG_STACK(3) - 8);
    cpu_inject(guest.cpu, &ev);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 0x55);
    assert_int_equal(on_stack(&out, 2, 8), 0x202);
    assert_int_equal(out.regs.rflags & X86_IF, 0);
}

/* Real mode: three words; IF, TF, AC cleared. Beyond the table: shutdown in the end. */
static void real_frame(void **state)
{
    struct sg_outcome out;
    struct cpu_sregs s;

    sg_reset(&guest, SG_REAL, 0);
    place(SG_CODE, "\xcd\x21", 2);
    set_regs(SG_CODE, 0x40ed5, SG_STACK(0));
    sg_run(&guest, &out);
    assert_int_equal(out.regs.rip, SG_HANDLER + 0x210);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(0) - 6);
    assert_int_equal(on_stack(&out, 0, 2), SG_CODE + 2);
    assert_int_equal(on_stack(&out, 2, 2), 0xed7);
    assert_int_equal(out.regs.rflags, 0xcd7);
    sg_reset(&guest, SG_REAL, 0);
    place(SG_CODE, "\xcd\x21", 2);
    cpu_get_sregs(guest.cpu, &s);
    s.idtr.limit = 0x1f;
    assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_TRIPLE_FAULT);
}

/* ---- shadows and windows ---- */

/* After STI that sets IF, and after MOV SS, the next instruction retires before an interrupt can be taken. */
static void shadows(void **state)
{
    static const struct {
        uint8_t code[4];
        unsigned len, rip;
        uint64_t rflags;
    } cases[] = {
        {{0xfb, 0x90, 0x90}, 3, SG_CODE + 2, 0},              /* sti; nop | nop */
        {{0xfb, 0x90, 0x90}, 3, SG_CODE, 0x200},              /* already on: at once */
        {{0x8e, 0xd0, 0x90, 0x90}, 4, SG_CODE + 3, 0x200},    /* mov ss, ax; nop | nop */
    };
    unsigned i;

    for (i = 0; i < 3; i++) {
        struct cpu_regs r = {.rip = SG_CODE, .rflags = cases[i].rflags | 2};
        struct sg_outcome out;

        sg_reset(&guest, SG_LONG, 0);
        place(SG_CODE, cases[i].code, cases[i].len);
        r.gpr[CPU_RAX] = SG_DS(0);
        r.gpr[CPU_RSP] = SG_STACK(0);
        cpu_set_regs(guest.cpu, &r);
        guest.cpu->want_intr_window = 1;
        if (i == 2) {
            /* Let it begin: the window is looked for before the first instruction too. */
            guest.cpu->interrupt_shadow = 1;
        }
        sg_run(&guest, &out);
        guest.cpu->want_intr_window = 0;
        assert_int_equal(out.reason, CPU_EXIT_INTR_WINDOW);
        assert_int_equal(out.regs.rip, cases[i].rip);
    }
}

/* An NMI blocks the next one until IRET. */
static void nmi_blocking(void **state)
{
    struct cpu_event ev = {.type = CPU_EVENT_NMI, .vector = 2};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\x90", 1);
    place(SG_HANDLER + 32, "\x48\xcf", 2);
    set_regs(SG_CODE, 0, SG_STACK(0));
    assert_true(cpu_nmi_allowed(guest.cpu));
    cpu_inject(guest.cpu, &ev);
    sg_put(&guest, SG_HANDLER + 32, "\xf4\x48\xcf", 3); /* hlt; iretq */
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HLT);
    assert_false(cpu_nmi_allowed(guest.cpu));
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_true(cpu_nmi_allowed(guest.cpu));
    assert_int_equal(out.regs.rip, SG_CODE + 1);
}

/* ---- traps ---- */

/* TF set by POPF: the trap comes after the instruction behind it, with DR6.BS. */
static void single_step(void **state)
{
    struct sg_outcome out;
    uint64_t flags = 0x102;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\x9d\x40\x90\x90", 4); /* popf; rex nop; nop */
    sg_put(&guest, SG_STACK(0) - 8, &flags, 8);
    set_regs(SG_CODE, 0, SG_STACK(0) - 8);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 1);
    assert_int_equal(on_stack(&out, 0, 8), SG_CODE + 3);
    assert_int_equal(on_stack(&out, 2, 8), 0x102);
    assert_int_equal(guest.cpu->dr6 & 0xe00f, 0x4000);
}

/* A repeated instruction is stepped element by element. */
static void single_step_string(void **state)
{
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 0x102};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\xf3\xaa", 2);
    r.gpr[CPU_RCX] = 3;
    r.gpr[CPU_RDI] = SG_DATA;
    r.gpr[CPU_RSP] = SG_STACK(0);
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 1);
    assert_int_equal(out.regs.gpr[CPU_RCX], 2);
    assert_int_equal(on_stack(&out, 0, 8), SG_CODE);
}

/* Breakpoints: kind and length in DR7; what the code at SG_CODE does; where the trap shows RIP. */
static void breakpoints(void **state)
{
    static const struct {
        uint32_t dr7;
        uint64_t addr;
        uint32_t dr6, rip; /* 0: no trap */
    } cases[] = {
        {0x1, SG_CODE + 3, 1, SG_CODE + 3},                /* execution: a fault */
        {0x1, SG_CODE + 4, 0, 0},                          /* not an instruction's first byte */
        {0x10001, SG_DATA, 1, SG_CODE + 3},                /* write, one byte */
        {0xd0001, SG_DATA - 2, 1, SG_CODE + 3},            /* write, four bytes: aligned down to SG_DATA - 4: no */
        {0xd0001, SG_DATA + 3, 1, SG_CODE + 3},            /* aligned down to SG_DATA */
        {0x30001, SG_DATA + 4, 1, SG_CODE + 6},            /* any access: the load */
        {0x10001, SG_DATA + 4, 0, 0},                      /* a load is no write */
        {0x2200008, SG_DATA, 0, 0},                        /* another register, I/O */
    };
    unsigned i;

    for (i = 0; i < ARRAY_LEN(cases); i++) {
        struct cpu_dregs d = {.db = {cases[i].addr}, .dr7 = cases[i].dr7};
        struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
        struct sg_outcome out;
        bool hit = cases[i].rip != 0 && i != 3;

        sg_reset(&guest, SG_LONG, 0);
        place(SG_CODE, "\x48\x89\x02\x8b\x5a\x04\x90", 7); /* mov [rdx], rax -- 8 bytes; mov ebx, [rdx+4]; nop */
        sg_put(&guest, SG_CODE, "\x40\x89\x02", 3);        /* mov [rdx], eax: 4 bytes */
        assert_int_equal(cpu_set_dregs(guest.cpu, &d), 0);
        r.gpr[CPU_RDX] = SG_DATA;
        r.gpr[CPU_RSP] = SG_STACK(0);
        cpu_set_regs(guest.cpu, &r);
        sg_run(&guest, &out);
        assert_int_equal(out.vector, hit ? 1 : -1);
        if (hit) {
            assert_int_equal(on_stack(&out, 0, 8), cases[i].rip);
            assert_int_equal(guest.cpu->dr6 & 0xf, cases[i].dr6);
        }
    }
}

/* RF lets one instruction pass an execution breakpoint. */
static void resume_flag(void **state)
{
    struct cpu_dregs d = {.db = {SG_CODE}, .dr7 = 1};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\x90\x90", 2);
    assert_int_equal(cpu_set_dregs(guest.cpu, &d), 0);
    set_regs(SG_CODE, X86_RF, SG_STACK(0));
    sg_run(&guest, &out);
    assert_int_equal(out.vector, -1);
    assert_int_equal(out.regs.rflags & X86_RF, 0);
}

/* DR7.GD: touching a debug register faults, once. */
static void general_detect(void **state)
{
    struct cpu_dregs d = {.dr7 = 0x2000};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\x0f\x21\xc0", 3);
    assert_int_equal(cpu_set_dregs(guest.cpu, &d), 0);
    set_regs(SG_CODE, 0, SG_STACK(0));
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 1);
    assert_int_equal(on_stack(&out, 0, 8), SG_CODE);
    assert_int_equal(guest.cpu->dr6 & 0xe00f, 0x2000);
    assert_int_equal(guest.cpu->dr7 & 0x2000, 0);
}

/* What a debugger outside asks for ends in exits; the guest's own debug registers are left alone. */
static void guest_debug(void **state)
{
    struct cpu_guest_debug d = {.int3 = true, .breakpoints = true, .db = {SG_CODE + 1, SG_DATA}, .dr7 = 0x300005};
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\x90\x90\x8b\x1a\xcc\x90", 6); /* nop; nop; mov ebx, [rdx]; int3; nop */
    r.gpr[CPU_RDX] = SG_DATA;
    r.gpr[CPU_RSP] = SG_STACK(0);
    cpu_set_regs(guest.cpu, &r);
    cpu_set_guest_debug(guest.cpu, &d);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_DEBUG);
    assert_int_equal(guest.cpu->exit.debug.vector, 1);
    assert_int_equal(guest.cpu->exit.debug.dr6, 1);
    assert_int_equal(out.regs.rip, SG_CODE + 1);
    d.db[0] = 0;
    d.dr7 = 0xf0000c; /* any access to four bytes at db[1] */
    cpu_set_guest_debug(guest.cpu, &d);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_DEBUG);
    assert_int_equal(guest.cpu->exit.debug.dr6, 2);
    assert_int_equal(out.regs.rip, SG_CODE + 4);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_DEBUG);
    assert_int_equal(guest.cpu->exit.debug.vector, 3);
    assert_int_equal(guest.cpu->exit.debug.pc, SG_CODE + 4);
    r.rip = SG_CODE;
    cpu_set_regs(guest.cpu, &r);
    cpu_set_guest_debug(guest.cpu, &(struct cpu_guest_debug){.single_step = true});
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_DEBUG);
    assert_int_equal(out.regs.rip, SG_CODE + 1);
    cpu_set_guest_debug(guest.cpu, &(struct cpu_guest_debug){0});
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 3);
    assert_int_equal(guest.cpu->dr6 & 0xf, 0);
}

/* ---- virtual-8086 mode ---- */

/* INT from virtual-8086 mode at IOPL 3: nine words on the level 0 stack, data segments null; IRET restores all. */
static void v86_interrupt(void **state)
{
    struct sg_outcome out;
    struct cpu_sregs s;
    unsigned i;

    sg_reset(&guest, SG_V86, 3);
    place(SG_CODE, "\xcd\x40\x90", 3);
    sg_put(&guest, SG_HANDLER + 0x400, "\xf4\xcf", 2); /* hlt; iretd */
    cpu_get_sregs(guest.cpu, &s);
    for (i = 0; i < CPU_NSEGS; i++) {
        if (i != CPU_CS && i != CPU_SS) {
            s.seg[i].sel = (uint16_t)(0x100 + i);
            s.seg[i].base = s.seg[i].sel << 4;
        }
    }
    assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
    set_regs(SG_CODE, X86_VM | X86_IOPL | X86_IF, 0x8f00);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HLT);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(0) - 36);
    assert_int_equal(on_stack(&out, 0, 4), SG_CODE + 2);
    assert_int_equal(on_stack(&out, 2, 4), X86_VM | X86_IOPL | X86_IF | 2);
    assert_int_equal(on_stack(&out, 3, 4), 0x8f00);
    assert_int_equal(on_stack(&out, 5, 4), 0x100 + CPU_ES);
    assert_int_equal(on_stack(&out, 8, 4), 0x100 + CPU_GS);
    assert_true(out.sregs.seg[CPU_DS].unusable);
    assert_int_equal(out.regs.rflags & (X86_VM | X86_IF), 0);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_CODE + 3);
    assert_int_equal(out.regs.rflags & X86_VM, X86_VM);
    assert_int_equal(out.sregs.seg[CPU_FS].sel, 0x100 + CPU_FS);
    assert_int_equal(out.regs.gpr[CPU_RSP], 0x8f00);
}

/* IOPL below 3: INT n is #GP(0) without VME, and goes to the 8086 table with it where the bit map says so. */
static void v86_sensitive(void **state)
{
    struct sg_outcome out;
    struct cpu_sregs s;
    uint16_t map = 104 + 32;

    sg_reset(&guest, SG_V86, 3);
    place(SG_CODE, "\xcd\x40", 2);
    set_regs(SG_CODE, X86_VM, 0x8f00);
    sg_run(&guest, &out);
    assert_int_equal(out.vector, 13);
    assert_int_equal(out.error, 0);
    sg_reset(&guest, SG_V86, 3);
    place(SG_CODE, "\xfb\x9c\xcd\x40", 4); /* sti; pushf; int 0x40 */
    sg_put(&guest, SG_TSS + 102, &map, 2);
    cpu_get_sregs(guest.cpu, &s);
    s.cr4 |= X86_CR4_VME;
    assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
    set_regs(SG_CODE, X86_VM, 0x8f00);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_HANDLER + 0x400);
    assert_int_equal(out.regs.rflags & (X86_VM | X86_IF | X86_VIF), X86_VM);
    assert_int_equal(out.regs.gpr[CPU_RSP], 0x8f00 - 8);
    assert_int_equal(on_stack(&out, 0, 2), SG_CODE + 4);
    assert_int_equal(on_stack(&out, 2, 2), 0x3202);
    assert_int_equal(on_stack(&out, 3, 2), 0x3202);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(double_fault_rules), cmocka_unit_test(long_frame),
        cmocka_unit_test(long_frame_inner),   cmocka_unit_test(real_frame),
        cmocka_unit_test(shadows),            cmocka_unit_test(nmi_blocking),
        cmocka_unit_test(single_step),        cmocka_unit_test(single_step_string),
        cmocka_unit_test(breakpoints),        cmocka_unit_test(resume_flag),
        cmocka_unit_test(general_detect),     cmocka_unit_test(v86_interrupt),
        cmocka_unit_test(v86_sensitive),      cmocka_unit_test(guest_debug),
    };

    return cmocka_run_group_tests_name("cpu/deliver", tests, sg_setup, sg_teardown);
}
