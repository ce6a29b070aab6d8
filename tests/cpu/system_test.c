/*
 * System instructions: control registers, MSRs, descriptor-table registers, fast system calls, ports, flags, task
 * switches, reset values. Rules are written out here from the manuals.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arch/regs.h"
#include "cpu/request.h"
#include "sys_guest.h"

#define GP 13

static void place(uint32_t at, const void *code, unsigned len)
{
    sg_put(&guest, at, code, len);
    sg_put(&guest, at + len, "\x0f\x01\xc1", 3);
}

/* Run `code` in a mode at a level, RAX, RCX and RDX given. */
static void run(enum sg_mode mode, unsigned level, const void *code, unsigned len, const uint64_t abcd[4],
                struct sg_outcome *out)
{
    struct cpu_regs r = {.rip = SG_CODE, .rflags = mode == SG_V86 ? 0x20002 : 2};

    place(SG_CODE, code, len);
    cpu_request(guest.cpu, CPU_REQ_CODE);
    memcpy(r.gpr, abcd, 4 * sizeof(abcd[0]));
    r.gpr[CPU_RSP] = SG_STACK(level) - 0x100;
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, out);
}

/* ---- control registers ---- */

/* Which CR0 values #GP in 32-bit mode without PAE: PG without PE, NW without CD. */
static void cr0_values(void **state)
{
    static const uint32_t bits[] = {X86_CR0_PE, X86_CR0_PG, X86_CR0_NW, X86_CR0_CD, X86_CR0_WP, X86_CR0_TS};
    unsigned set, i;

    for (set = 0; set < 64; set++) {
        uint64_t abcd[4] = {0};
        struct sg_outcome out;
        bool bad;

        for (i = 0; i < 6; i++) {
            abcd[0] |= set >> i & 1 ? bits[i] : 0;
        }
        bad = ((abcd[0] & X86_CR0_PG) && !(abcd[0] & X86_CR0_PE)) || ((abcd[0] & X86_CR0_NW) && !(abcd[0] & X86_CR0_CD));
        sg_reset(&guest, SG_PM32, 0);
        /* A 32-bit page directory of one 4 MiB page keeps code where it is. */
        sg_put(&guest, 0x20000, "\x87\0\0", 4);
        guest.cpu->cr3 = 0x20000;
        guest.cpu->cr4 = X86_CR4_PSE;
        cpu_state_changed(guest.cpu);
        run(SG_PM32, 0, "\x0f\x22\xc0", 3, abcd, &out);
        assert_int_equal(out.vector, bad ? GP : -1);
        assert_int_equal(out.sregs.cr0, bad ? X86_CR0_PE | X86_CR0_ET | X86_CR0_NE : abcd[0] | X86_CR0_ET);
    }
}

/* CR4 in long mode: PAE must stay, unknown bits are #GP, PCIDE wants a zero PCID. */
static void cr4_values(void **state)
{
    static const struct {
        uint64_t value, cr3;
        bool bad;
    } cases[] = {
        {X86_CR4_PAE, 0x1000, false},
        {0, 0x1000, true},
        {X86_CR4_PAE | X86_CR4_PCIDE, 0x1000, false},
        {X86_CR4_PAE | X86_CR4_PCIDE, 0x1001, true},
        {X86_CR4_PAE | X86_CR4_LA57, 0x1000, true},
        {X86_CR4_PAE | X86_CR4_VMXE, 0x1000, true},
        {X86_CR4_PAE | UINT64_C(1) << 32, 0x1000, true},
        {X86_CR4_PAE | X86_CR4_SMEP | X86_CR4_FSGSBASE | X86_CR4_UMIP | X86_CR4_OSXSAVE, 0x1000, false},
    };
    unsigned i;

    for (i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t abcd[4] = {cases[i].value};
        struct cpu_sregs s;
        struct sg_outcome out;
        uint64_t user = 0x83;

        sg_reset(&guest, SG_LONG, 0);
        sg_put(&guest, 0x3000, &user, 8); /* not a user page, for SMEP */
        cpu_get_sregs(guest.cpu, &s);
        s.cr3 = cases[i].cr3;
        assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
        run(SG_LONG, 0, "\x0f\x22\xe0", 3, abcd, &out);
        assert_int_equal(out.vector, cases[i].bad ? GP : -1);
        assert_int_equal(out.sregs.cr4, cases[i].bad ? X86_CR4_PAE : cases[i].value);
    }
}

/* From 32-bit protected mode into long mode by hand, and what EFER says on the way. */
static void enter_long_mode(void **state)
{
    /* mov cr4, edx (PAE); mov ecx, EFER; xor edx, edx; mov eax, LME; wrmsr; mov eax, ebx; mov cr0, eax; jmp far */
    static const uint8_t code[] = {0x0f, 0x22, 0xe2, 0xb9, 0x80, 0, 0, 0xc0, 0x31, 0xd2, 0xb8, 0, 1, 0, 0, 0x0f, 0x30, 0x89,
                                   0xd8, 0x0f, 0x22, 0xc0, 0xea, 0, 0x90, 0, 0, 9 * 8, 0};
    uint64_t abcd[4] = {0, 0, X86_CR4_PAE, X86_CR0_PE | X86_CR0_PG | X86_CR0_NE};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 0);
    place(0x9000, "\x48\x31\xc0", 3);
    run(SG_PM32, 0, code, sizeof(code), abcd, &out);
    assert_int_equal(out.vector, -1);
    assert_int_equal(out.regs.rip, 0x9003);
    assert_int_equal(out.sregs.efer, X86_EFER_LME | X86_EFER_LMA);
    assert_int_equal(out.sregs.seg[CPU_CS].l, 1);
}

/* PAE outside long mode: set from outside, then by MOV to CR3; a PDPTE with reserved bits is #GP(0) there. */
static void pae_pdptes(void **state)
{
    uint64_t good = 0x22001, bad = 0x22003, pde = 0x83, abcd[4] = {0x21020};
    struct cpu_sregs s;
    struct sg_outcome out;
    unsigned i;

    for (i = 0; i < 2; i++) {
        sg_reset(&guest, SG_PM32, 0);
        sg_put(&guest, 0x21000, &good, 8);
        sg_put(&guest, 0x21020, i ? &bad : &good, 8);
        sg_put(&guest, 0x22000, &pde, 8);
        cpu_get_sregs(guest.cpu, &s);
        s.cr0 |= X86_CR0_PG;
        s.cr4 |= X86_CR4_PAE;
        s.cr3 = 0x21000;
        assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
        run(SG_PM32, 0, "\x0f\x22\xd8", 3, abcd, &out);
        assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
        assert_int_equal(out.vector, i ? GP : -1);
        assert_int_equal(out.sregs.cr3, i ? 0x21000 : 0x21020);
    }
}

/* Privileged instructions are #GP(0) at levels 1 to 3; CR8 and SWAPGS exist in 64-bit mode only. */
static void privileged(void **state)
{
    static const struct {
        uint8_t code[4];
        unsigned len;
    } insns[] = {
        {{0x0f, 0x20, 0xc0}, 3}, {{0x0f, 0x22, 0xd8}, 3}, {{0x0f, 0x21, 0xc0}, 3}, {{0x0f, 0x32}, 2}, {{0x0f, 0x30}, 2},
        {{0xf4}, 1},             {{0x0f, 0x06}, 2},       {{0x0f, 0x08}, 2},       {{0x0f, 0x09}, 2}, {{0x0f, 0x01, 0x10}, 3},
        {{0x0f, 0x01, 0x18}, 3}, {{0x0f, 0x00, 0xd0}, 3}, {{0x0f, 0x00, 0xd8}, 3}, {{0x0f, 0x01, 0xf0}, 3}, {{0x0f, 0x01, 0x38}, 3},
    };
    unsigned level, i;

    for (level = 1; level < 4; level++) {
        for (i = 0; i < ARRAY_LEN(insns); i++) {
            uint64_t abcd[4] = {SG_DATA, 0x10, 0, 0};
            struct sg_outcome out;

            sg_reset(&guest, SG_PM32, level);
            run(SG_PM32, level, insns[i].code, insns[i].len, abcd, &out);
            assert_int_equal(out.vector, GP);
            assert_int_equal(out.error, 0);
        }
    }
}

/* UMIP: SGDT, SIDT, SLDT, STR, SMSW are #GP(0) above level 0 when it is on, and work when it is off. */
static void umip(void **state)
{
    static const uint8_t insns[5][3] = {{0x0f, 0x01, 0x00}, {0x0f, 0x01, 0x08}, {0x0f, 0x00, 0xc0}, {0x0f, 0x00, 0xc8}, {0x0f, 0x01, 0xe0}};
    unsigned on, i;

    for (on = 0; on < 2; on++) {
        for (i = 0; i < 5; i++) {
            uint64_t abcd[4] = {SG_DATA};
            struct cpu_sregs s;
            struct sg_outcome out;

            sg_reset(&guest, SG_PM32, 3);
            cpu_get_sregs(guest.cpu, &s);
            s.cr4 |= on ? X86_CR4_UMIP : 0;
            assert_int_equal(cpu_set_sregs(guest.cpu, &s), 0);
            run(SG_PM32, 3, insns[i], 3, abcd, &out);
            assert_int_equal(out.vector, on ? GP : -1);
            if (!on && i == 0) {
                assert_int_equal(sg_get(&guest, SG_DATA, 6), 0xff | (uint64_t)SG_GDT << 16);
            }
        }
    }
}

/* ---- MSRs ---- */

static void msrs(void **state)
{
    static const struct {
        uint32_t index;
        uint64_t value;
        bool bad;
    } cases[] = {
        {X86_MSR_LSTAR, 0xffffffff81000000, false}, {X86_MSR_LSTAR, 0x0000800000000000, true},
        {X86_MSR_FS_BASE, 0x00007fffffffffff, false}, {X86_MSR_KERNEL_GS_BASE, 0x1000000000000000, true},
        {X86_MSR_SYSENTER_EIP, 0xffff800000000000, false}, {X86_MSR_EFER, X86_EFER_LME | X86_EFER_LMA | X86_EFER_NX, false},
        {X86_MSR_EFER, X86_EFER_LME | 2, true},     {X86_MSR_EFER, 0, true},
        {X86_MSR_PAT, 0x0007040600070406, false},   {X86_MSR_PAT, 0x0007040600070402, true},
        {X86_MSR_TSC_AUX, 0x100000000, true},       {X86_MSR_STAR, 0x0023001000000000, false},
    };
    unsigned i;

    for (i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t abcd[4] = {(uint32_t)cases[i].value, cases[i].index, cases[i].value >> 32}, v;
        struct sg_outcome out;

        sg_reset(&guest, SG_LONG, 0);
        run(SG_LONG, 0, "\x0f\x30\x31\xc0\x31\xd2\x0f\x32", 8, abcd, &out);
        assert_int_equal(out.vector, cases[i].bad ? GP : -1);
        if (!cases[i].bad) {
            assert_int_equal(out.regs.gpr[CPU_RAX] | out.regs.gpr[CPU_RDX] << 32, cases[i].value);
            assert_int_equal(cpu_get_msr(guest.cpu, cases[i].index, &v), 0);
            assert_int_equal(v, cases[i].value);
        }
    }
}

/* The hypervisor's MSRs are exits at the instruction. */
static void foreign_msrs(void **state)
{
    uint64_t abcd[4] = {0x1234, 0x4b564d01, 1};
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 0);
    run(SG_LONG, 0, "\x0f\x30", 2, abcd, &out);
    assert_int_equal(out.reason, CPU_EXIT_WRMSR);
    assert_int_equal(guest.cpu->exit.msr.index, 0x4b564d01);
    assert_int_equal(guest.cpu->exit.msr.value, 0x100001234);
    assert_int_equal(out.regs.rip, SG_CODE);
    cpu_skip_insn(guest.cpu);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_CODE + 2);
}

/* ---- fast system calls ---- */

static void syscall_and_back(void **state)
{
    uint64_t abcd[4] = {0};
    struct cpu_regs r;
    struct sg_outcome out;

    sg_reset(&guest, SG_LONG, 3);
    guest.cpu->efer |= X86_EFER_SCE;
    guest.cpu->msr.star = UINT64_C(0x0023001000000000);
    guest.cpu->msr.lstar = 0x9000;
    guest.cpu->msr.sfmask = 0x4700;
    place(0x9000, "\xf4\x48\x0f\x07", 4); /* hlt; sysretq */
    run(SG_LONG, 3, "\x0f\x05", 2, abcd, &out);
    assert_int_equal(out.reason, CPU_EXIT_HLT);
    assert_int_equal(out.regs.gpr[CPU_RCX], SG_CODE + 2);
    assert_int_equal(out.regs.gpr[CPU_R11], 2);
    assert_int_equal(out.sregs.seg[CPU_CS].sel, 0x10);
    assert_int_equal(out.sregs.seg[CPU_SS].sel, 0x18);
    assert_int_equal(out.sregs.seg[CPU_SS].dpl, 0);
    cpu_get_regs(guest.cpu, &r);
    r.gpr[CPU_R11] = 0xffffffff;
    r.gpr[CPU_R11] &= ~UINT64_C(0x100);
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_CODE + 2);
    assert_int_equal(out.sregs.seg[CPU_CS].sel, 0x33);
    assert_int_equal(out.sregs.seg[CPU_SS].sel, 0x2b);
    assert_int_equal(out.regs.rflags, (0x3c7fd7 & ~0x100) | 2);
}

static void sysenter_and_back(void **state)
{
    uint64_t abcd[4] = {0, SG_STACK(3), SG_CODE + 2, 0};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 3);
    guest.cpu->msr.sysenter_cs = 0x8;
    guest.cpu->msr.sysenter_eip = 0x9000;
    guest.cpu->msr.sysenter_esp = SG_STACK(0);
    place(0x9000, "\xf4\x0f\x35", 3); /* hlt; sysexit */
    run(SG_PM32, 3, "\x0f\x34", 2, abcd, &out);
    assert_int_equal(out.reason, CPU_EXIT_HLT);
    assert_int_equal(out.sregs.seg[CPU_CS].sel, 8);
    assert_int_equal(out.sregs.seg[CPU_SS].sel, 16);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(0));
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_CODE + 2);
    assert_int_equal(out.sregs.seg[CPU_CS].sel, 0x1b);
    assert_int_equal(out.sregs.seg[CPU_SS].sel, 0x23);
    guest.cpu->msr.sysenter_cs = 0;
    run(SG_PM32, 3, "\x0f\x34", 2, abcd, &out);
    assert_int_equal(out.vector, GP);
}

/* ---- ports ---- */

/* The permission bit map decides above IOPL: every bit pattern under an access of every size. */
static void port_permission(void **state)
{
    static const uint8_t code[3][2] = {{0xec}, {0x66, 0xed}, {0xed}};
    unsigned size, port, bit;

    for (size = 0; size < 3; size++) {
        for (port = 0x3f5; port < 0x3fd; port++) {
            for (bit = 0x3f4; bit < 0x402; bit++) {
                uint64_t abcd[4] = {0, 0, port};
                uint8_t byte = (uint8_t)(1u << bit % 8);
                bool denied = bit >= port && bit < port + (1u << size);
                struct sg_outcome out;

                sg_reset(&guest, SG_PM32, 3);
                sg_put(&guest, SG_TSS + 104 + bit / 8, &byte, 1);
                run(SG_PM32, 3, code[size], size == 1 ? 2 : 1, abcd, &out);
                assert_int_equal(out.reason, denied ? CPU_EXIT_HYPERCALL : CPU_EXIT_IO);
                if (!denied) {
                    assert_int_equal(guest.cpu->exit.io.port, port);
                    assert_int_equal(guest.cpu->exit.io.size, 1 << size);
                }
            }
        }
    }
}

/* Beyond the TSS's limit nothing is allowed; at IOPL 3 everything is. */
static void port_limits(void **state)
{
    uint64_t abcd[4] = {0, 0, 0x8000};
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 0x3002};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 3);
    run(SG_PM32, 3, "\xec", 1, abcd, &out);
    assert_int_equal(out.vector, GP);
    r.gpr[CPU_RDX] = 0x8000;
    sg_reset(&guest, SG_PM32, 3);
    place(SG_CODE, "\xec", 1);
    cpu_set_regs(guest.cpu, &r);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_IO);
}

/* REP INSW and REP OUTSB: one exit an element, data where they belong, registers at every exit. */
static void repeated_ports(void **state)
{
    uint64_t abcd[4] = {0, 3, 0x1f0};
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
    struct sg_outcome out;
    uint16_t n;

    sg_reset(&guest, SG_LONG, 0);
    place(SG_CODE, "\xf3\x66\x6d\xf3\x6e", 5);
    cpu_request(guest.cpu, CPU_REQ_CODE);
    memcpy(r.gpr, abcd, sizeof(abcd));
    r.gpr[CPU_RDI] = SG_DATA + 0xfff; /* the first crosses a page */
    r.gpr[CPU_RSI] = SG_DATA + 0xfff;
    cpu_set_regs(guest.cpu, &r);
    for (n = 0; n < 3; n++) {
        uint16_t data = (uint16_t)(0x4241 + n * 0x101);

        sg_run(&guest, &out);
        assert_int_equal(out.reason, CPU_EXIT_IO);
        assert_true(guest.cpu->exit.io.is_in);
        assert_int_equal(guest.cpu->exit.io.size, 2);
        assert_int_equal(out.regs.gpr[CPU_RCX], 3 - n);
        assert_int_equal(out.regs.rip, SG_CODE);
        cpu_complete_read(guest.cpu, &data, 2);
    }
    guest.cpu->regs[CPU_RCX] = 0; /* the last element is done by the next run, which then finds nothing to repeat */
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_memory_equal(guest.ram + SG_DATA + 0xfff, "ABBC", 4);
}

static void repeated_out(void **state)
{
    uint64_t abcd[4] = {0, 3, 0xe9};
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};
    struct sg_outcome out;
    unsigned n;

    sg_reset(&guest, SG_PM32, 0);
    place(SG_CODE, "\xf3\x6e", 2);
    cpu_request(guest.cpu, CPU_REQ_CODE);
    sg_put(&guest, SG_DATA, "xyz", 3);
    memcpy(r.gpr, abcd, sizeof(abcd));
    r.gpr[CPU_RSI] = SG_DATA;
    cpu_set_regs(guest.cpu, &r);
    for (n = 0; n < 3; n++) {
        sg_run(&guest, &out);
        assert_int_equal(out.reason, CPU_EXIT_IO);
        assert_int_equal(guest.cpu->exit.io.data, "xyz"[n]);
        assert_int_equal(out.regs.gpr[CPU_RCX], 2 - n);
        assert_int_equal(out.regs.rip, n == 2 ? SG_CODE + 2 : SG_CODE);
    }
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
}

/* ---- POPF ---- */

/* Which bits POPF changes, by CPL and IOPL. */
static void popf_bits(void **state)
{
    unsigned level, iopl, ones;

    for (level = 0; level < 4; level++) {
        for (iopl = 0; iopl < 4; iopl++) {
            for (ones = 0; ones < 2; ones++) {
                uint32_t value = ones ? 0x003fffff & ~0x100u : 0, before = iopl << 12 | 2, want;
                uint32_t mask = 0xcd5 | X86_NT | X86_AC | X86_ID;
                struct cpu_regs r = {.rip = SG_CODE, .rflags = before};
                struct sg_outcome out;

                mask |= level <= iopl ? X86_IF : 0;
                mask |= level == 0 ? X86_IOPL : 0;
                want = (before & ~mask) | (value & mask) | 2;
                sg_reset(&guest, SG_PM32, level);
                place(SG_CODE, "\x9d", 1);
                sg_put(&guest, SG_STACK(level) - 0x100, &value, 4);
                r.gpr[CPU_RSP] = SG_STACK(level) - 0x100;
                cpu_set_regs(guest.cpu, &r);
                sg_run(&guest, &out);
                assert_int_equal(out.vector, -1);
                assert_int_equal(out.regs.rflags, want);
            }
        }
    }
}

/* ---- task switches ---- */

static void tss32(uint32_t at, uint32_t eip, uint32_t eflags)
{
    uint32_t t[26] = {0};
    unsigned i;

    t[8] = eip;
    t[9] = eflags;
    for (i = 0; i < 8; i++) {
        t[10 + i] = 0x1000 * (i + 1);
    }
    t[14] = SG_STACK(2);
    for (i = 0; i < 6; i++) {
        t[18 + i] = i == 1 ? SG_CS(0) : SG_DS(0);
    }
    sg_put(&guest, at, t, 104);
}

/* CALL to a TSS and IRET back: state is saved and restored, busy bits and the link are right. */
static void nested_task(void **state)
{
    uint64_t abcd[4] = {0xaaaa, 0xcccc, 0xdddd, 0xbbbb};
    static const uint8_t call[] = {0x9a, 0, 0, 0, 0, SG_TSS2_SEL, 0, 0x90};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 0);
    tss32(SG_TSS2, 0x9000, 0x2);
    place(0x9000, "\xf4\xcf", 2); /* hlt; iretd */
    run(SG_PM32, 0, call, sizeof(call), abcd, &out);
    assert_int_equal(out.reason, CPU_EXIT_HLT);
    assert_int_equal(out.regs.gpr[CPU_RCX], 0x2000);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(2));
    assert_int_equal(out.regs.rflags & X86_NT, X86_NT);
    assert_int_equal(out.sregs.cr0 & X86_CR0_TS, X86_CR0_TS);
    assert_int_equal(out.sregs.tr.sel, SG_TSS2_SEL);
    assert_int_equal(sg_get(&guest, SG_TSS2, 2), SG_TSS_SEL);
    assert_int_equal(sg_get(&guest, SG_TSS + 32, 4), SG_CODE + 7);
    assert_int_equal(sg_get(&guest, SG_TSS + 40, 4), 0xaaaa);
    assert_int_equal(sg_get(&guest, SG_GDT + SG_TSS_SEL + 5, 1), 0x8b);
    assert_int_equal(sg_get(&guest, SG_GDT + SG_TSS2_SEL + 5, 1), 0x8b);
    sg_run(&guest, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, SG_CODE + 8);
    assert_int_equal(out.regs.gpr[CPU_RAX], 0xaaaa);
    assert_int_equal(out.regs.gpr[CPU_RBX], 0xbbbb);
    assert_int_equal(out.sregs.tr.sel, SG_TSS_SEL);
    assert_int_equal(sg_get(&guest, SG_GDT + SG_TSS2_SEL + 5, 1), 0x89);
    assert_int_equal(sg_get(&guest, SG_TSS2 + 36, 4) & X86_NT, 0);
}

/* A task gate for #GP: the error code is on the new task's stack. */
static void task_gate(void **state)
{
    uint64_t abcd[4] = {0xfff8};
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 3);
    tss32(SG_TSS2, 0x9000, 0x2);
    place(0x9000, "\x90", 1);
    sg_gate(&guest, 13, SG_TSS2_SEL, 0, 0x85, false);
    run(SG_PM32, 3, "\x8e\xd8", 2, abcd, &out);
    assert_int_equal(out.reason, CPU_EXIT_HYPERCALL);
    assert_int_equal(out.regs.rip, 0x9001);
    assert_int_equal(out.regs.gpr[CPU_RSP], SG_STACK(2) - 4);
    assert_int_equal(sg_get(&guest, SG_STACK(2) - 4, 4), 0xfff8);
    assert_int_equal(sg_get(&guest, SG_TSS + 32, 4), SG_CODE);
}

/* A bad segment in the new TSS: #TS in the new task. */
static void bad_new_task(void **state)
{
    static const uint8_t jmp[] = {0xea, 0, 0, 0, 0, SG_TSS2_SEL, 0};
    uint64_t abcd[4] = {0};
    uint32_t bad = 0xf0;
    struct sg_outcome out;

    sg_reset(&guest, SG_PM32, 0);
    tss32(SG_TSS2, 0x9000, 0x2);
    sg_put(&guest, SG_TSS2 + 84, &bad, 4); /* DS: beyond what the table has */
    run(SG_PM32, 0, jmp, sizeof(jmp), abcd, &out);
    assert_int_equal(out.vector, 10);
    assert_int_equal(out.error, 0xf0);
    assert_int_equal(out.sregs.tr.sel, SG_TSS2_SEL);
    assert_int_equal(sg_get(&guest, (uint32_t)out.regs.gpr[CPU_RSP] + 4, 4), 0x9000);
    assert_int_equal(sg_get(&guest, SG_GDT + SG_TSS_SEL + 5, 1), 0x89);
}

/* ---- LTR, LLDT ---- */

static void task_register(void **state)
{
    unsigned type, present, long_mode;

    for (long_mode = 0; long_mode < 2; long_mode++) {
        for (type = 0; type < 64; type++) {
            uint64_t abcd[4] = {SG_SUBJECT * 8};
            unsigned insn;

            present = type / 32;
            for (insn = 0; insn < 2; insn++) { /* lldt, ltr */
                unsigned t = type % 32;
                bool good = insn == 0 ? t == 2 : t == 9 || (t == 1 && !long_mode);
                struct sg_outcome out;

                sg_reset(&guest, long_mode ? SG_LONG : SG_PM32, 0);
                sg_gdt(&guest, SG_SUBJECT, sg_desc(0x15000, 0xfff, t | present << 7, 0), 0xffff8000);
                run(long_mode ? SG_LONG : SG_PM32, 0, insn ? "\x0f\x00\xd8" : "\x0f\x00\xd0", 3, abcd, &out);
                assert_int_equal(out.vector, !good ? GP : present ? -1 : 11);
                if (good && present) {
                    const struct cpu_seg *s = insn ? &out.sregs.tr : &out.sregs.ldtr;

                    assert_int_equal(s->base, long_mode ? UINT64_C(0xffff800000015000) : 0x15000);
                    assert_int_equal(s->limit, 0xfff);
                    assert_int_equal(sg_get(&guest, SG_GDT + SG_SUBJECT * 8 + 5, 1), 0x80 | t | (insn ? 2 : 0));
                }
            }
        }
    }
}

/* ---- reset ---- */

static void reset_values(void **state)
{
    struct cpu_regs r;
    struct cpu_sregs s;
    uint64_t v;

    cpu_reset(guest.cpu, false);
    cpu_get_regs(guest.cpu, &r);
    cpu_get_sregs(guest.cpu, &s);
    assert_int_equal(r.rip, 0xfff0);
    assert_int_equal(r.rflags, 2);
    assert_int_equal(r.gpr[CPU_RDX], 0x600);
    assert_int_equal(s.cr0, 0x60000010);
    assert_int_equal(s.seg[CPU_CS].sel, 0xf000);
    assert_int_equal(s.seg[CPU_CS].base, 0xffff0000);
    assert_int_equal(s.seg[CPU_CS].type, 11);
    assert_int_equal(s.seg[CPU_DS].type, 3);
    assert_int_equal(s.ldtr.type, 2);
    assert_int_equal(s.tr.type, 11);
    assert_int_equal(s.idtr.limit, 0xffff);
    assert_int_equal(cpu_get_msr(guest.cpu, X86_MSR_PAT, &v), 0);
    assert_int_equal(v, 0x0007040600070406);
    cpu_sipi(guest.cpu, 0x9a);
    cpu_get_regs(guest.cpu, &r);
    cpu_get_sregs(guest.cpu, &s);
    assert_int_equal(r.rip, 0);
    assert_int_equal(s.seg[CPU_CS].base, 0x9a000);
    assert_int_equal(s.seg[CPU_CS].sel, 0x9a00);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cr0_values),       cmocka_unit_test(cr4_values),
        cmocka_unit_test(enter_long_mode),  cmocka_unit_test(privileged),       cmocka_unit_test(pae_pdptes),
        cmocka_unit_test(umip),             cmocka_unit_test(msrs),
        cmocka_unit_test(foreign_msrs),     cmocka_unit_test(syscall_and_back),
        cmocka_unit_test(sysenter_and_back), cmocka_unit_test(port_permission),
        cmocka_unit_test(port_limits),      cmocka_unit_test(repeated_ports),
        cmocka_unit_test(repeated_out),     cmocka_unit_test(popf_bits),
        cmocka_unit_test(nested_task),      cmocka_unit_test(task_gate),
        cmocka_unit_test(bad_new_task),     cmocka_unit_test(task_register),
        cmocka_unit_test(reset_values),
    };

    return cmocka_run_group_tests_name("cpu/system", tests, sg_setup, sg_teardown);
}
