/*
 * Code that changes: self-modifying, written behind the processor's back, written by a peer; code across
 * page borders and at two linear addresses; blocks through cpu_run() of whole small programs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "arch/paging.h"
#include "bare.h"

#define CODE(name, text)                                                                           \
    extern const char name[], name##_end[];                                                        \
    __asm__(".section .rodata\n" #name ":\n" text "\n.byte 0x0f,0x01,0xc1\n" #name "_end:\n.text\n")

/* Loop that patches the immediate of a MOV in a function and adds what the function returns. */
CODE(patch_and_call, "xor %ebx,%ebx\nmov $1000,%ecx\nmov $0x20000,%esi\nmovb $0xb8,(%rsi)\nmovb $0xc3,5(%rsi)\n"
                     "1: mov %ecx,1(%rsi)\ncall *%rsi\nadd %rax,%rbx\ndec %ecx\njnz 1b");
/* Overwrites the instruction right behind the store, in the same block. */
CODE(patch_next, "xor %eax,%eax\nlea 1f+1(%rip),%rdi\nmovl $77,(%rdi)\n1: mov $5,%eax\nnop");
CODE(count_loop, "mov $100000,%ecx\nxor %eax,%eax\n1: add %rcx,%rax\ndec %ecx\njnz 1b");
CODE(data_beside, "mov $0x30000,%edi\nmov $20000,%ecx\nxor %eax,%eax\n1: add $3,%eax\nmov %eax,(%rdi)\ndec %ecx\njnz 1b");

static void run(struct bare *b, const char *code, const char *end)
{
    bare_reset(b, 0);
    bare_code(b, code, (uint64_t)(end - code));
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
}

static int setup(void **state)
{
    static struct bare b;

    bare_open(&b, UINT64_C(8) << 20, 2, false);
    *state = &b;
    return 0;
}

static int teardown(void **state)
{
    bare_close(*state);
    return 0;
}

static void test_loop(void **state)
{
    struct bare *b = *state;

    run(b, count_loop, count_loop_end);
    assert_int_equal(b->cpu[0]->regs[CPU_RAX], UINT64_C(100000) * 100001 / 2);
}

static void test_patch_and_call(void **state)
{
    struct bare *b = *state;

    run(b, patch_and_call, patch_and_call_end);
    assert_int_equal(b->cpu[0]->regs[CPU_RBX], 1000 * 1001 / 2);
    assert_true(b->cpu[0]->counters.blocks_stale >= 999);
}

static void test_patch_next_in_block(void **state)
{
    struct bare *b = *state;

    run(b, patch_next, patch_next_end);
    assert_int_equal(b->cpu[0]->regs[CPU_RAX], 77);
}

static void test_write_from_outside(void **state)
{
    struct bare *b = *state;

    for (uint32_t i = 1; i < 50; i++) {
        uint8_t code[] = {0xb8, (uint8_t)i, 0, 0, 0, 0x0f, 0x01, 0xc1};

        bare_code(b, code, sizeof(code));
        assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
        assert_int_equal(b->cpu[0]->regs[CPU_RAX], i);
    }
}

/* A function whose instruction lies across two pages, the second of which is changed. */
static void test_straddling_instruction(void **state)
{
    struct bare *b = *state;
    static const uint8_t call[] = {0xe8, 0xfb - 2 - 0, 0x0f, 0, 0, 0x0f, 0x01, 0xc1};
    uint8_t body[] = {0xb8, 1, 2, 3, 4, 0xc3};
    uint64_t at = BARE_CODE + 0xffe;

    memcpy(b->ram + at, body, sizeof(body));
    for (unsigned i = 0; i < 20; i++) {
        b->ram[at + 4] = (uint8_t)i;
        bare_reset(b, 0);
        bare_code(b, call, sizeof(call));
        assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
        assert_int_equal(b->cpu[0]->regs[CPU_RAX], (uint64_t)i << 24 | 0x030201);
    }
}

/* The same, the second page exchanged for another frame by the guest's tables and INVLPG. */
static void test_straddling_remapped(void **state)
{
    struct bare *b = *state;
    /* call 0x400ffe; mov %rbx,(%rdi); invlpg (%rsi); call 0x400ffe; vmcall */
    static const uint8_t program[] = {0xe8, 0xf9, 0x0f, 0x3f, 0, 0x48, 0x89, 0x1f, 0x0f, 0x01, 0x3e, 0x89, 0xc2,
                                      0xe8, 0xec, 0x0f, 0x3f, 0, 0x0f, 0x01, 0xc1};
    uint8_t body[] = {0xb8, 1, 2, 3, 4, 0xc3};
    uint64_t *pt = (uint64_t *)(void *)(b->ram + 0x9000);
    uint64_t *pd = (uint64_t *)(void *)(b->ram + 0x3000);
    uint64_t saved = pd[2];

    for (unsigned i = 0; i < 512; i++) {
        pt[i] = (0x400000 + i * 0x1000) | 3;
    }
    pd[2] = 0x9003;
    memcpy(b->ram + 0x400ffe, body, 6);
    memcpy(b->ram + 0x500000, body + 2, 4);
    b->ram[0x500002] = 9;
    bare_reset(b, 0);
    bare_code(b, program, sizeof(program));
    b->cpu[0]->regs[CPU_RBX] = 0x500003;
    b->cpu[0]->regs[CPU_RDI] = 0x9008;
    b->cpu[0]->regs[CPU_RSI] = 0x401000;
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
    assert_int_equal(b->cpu[0]->regs[CPU_RDX], 0x04030201);
    assert_int_equal(b->cpu[0]->regs[CPU_RAX], 0x09030201);
    pd[2] = saved;
}

/* Data stores beside code do not kill it, and do not stay slow for ever. */
static void test_data_beside_code(void **state)
{
    struct bare *b = *state;
    static const uint8_t function[] = {0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xc1};
    uint64_t stale, writes;

    memcpy(b->ram + 0x30800, function, sizeof(function));
    b->cpu[0]->rip = 0x30800;
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
    stale = b->cpu[0]->counters.blocks_stale;
    writes = b->cpu[0]->counters.smc_writes;
    run(b, data_beside, data_beside_end);
    assert_int_equal(b->ram[0x30000] | b->ram[0x30001] << 8, 60000);
    assert_int_equal(b->cpu[0]->counters.blocks_stale - stale, 1); /* bare_code() changed the program */
    assert_true(b->cpu[0]->counters.smc_writes - writes < 10000);
    b->cpu[0]->rip = 0x30800;
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
    assert_int_equal(b->cpu[0]->regs[CPU_RAX], 1);
}

/* Another processor writes code that this one has decoded: the next entry sees it without cpu_run()'s own
 * verification. */
static void test_peer_writes(void **state)
{
    struct bare *b = *state;
    /* processor 1: movb $imm, 0x30801 */
    static const uint8_t writer[] = {0xc6, 0x04, 0x25, 0x01, 0x08, 0x03, 0x00, 42, 0x0f, 0x01, 0xc1};
    static const uint8_t function[] = {0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xc1};

    memcpy(b->ram + 0x30800, function, sizeof(function));
    memcpy(b->ram + 0x31000, writer, sizeof(writer));
    b->cpu[0]->rip = 0x30800;
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_HYPERCALL);
    b->cpu[1]->rip = 0x31000;
    assert_int_equal(cpu_run(b->cpu[1]), CPU_EXIT_HYPERCALL);
    b->cpu[0]->rip = 0x30800;
    assert_int_equal(cpu_resume(b->cpu[0]), CPU_EXIT_HYPERCALL);
    assert_int_equal(b->cpu[0]->regs[CPU_RAX], 42);
}

static void test_undecodable_is_undefined(void **state)
{
    struct bare *b = *state;
    static const uint8_t bad[] = {0x90, 0x0f, 0xff, 0xff};

    bare_reset(b, 0);
    bare_code(b, bad, sizeof(bad));
    /* no IDT: #UD, then #DF, then the triple fault */
    assert_int_equal(cpu_run(b->cpu[0]), CPU_EXIT_TRIPLE_FAULT);
    assert_int_equal(b->cpu[0]->rip, BARE_CODE + 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_loop),
        cmocka_unit_test(test_patch_and_call),
        cmocka_unit_test(test_patch_next_in_block),
        cmocka_unit_test(test_write_from_outside),
        cmocka_unit_test(test_straddling_instruction),
        cmocka_unit_test(test_straddling_remapped),
        cmocka_unit_test(test_data_beside_code),
        cmocka_unit_test(test_peer_writes),
        cmocka_unit_test(test_undecodable_is_undefined),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
