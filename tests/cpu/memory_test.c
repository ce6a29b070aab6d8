/*
 * The memory path and its caches: the TLB against changes of the guest's tables (INVLPG, CR3, PCIDs), pages
 * crossed, EPT violations and device accesses with restart, dirty bits of both stages, requests from other threads.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <pthread.h>
#include <string.h>

#include <cmocka.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "bare.h"
#include "cpu/request.h"
#include "cpu/tlb.h"

#define CODE(name, text)                                                                           \
    extern const char name[], name##_end[];                                                        \
    __asm__(".section .rodata\n" #name ":\n" text "\n.byte 0x0f,0x01,0xc1\n" #name "_end:\n.text\n")

CODE(load_one, "mov (%rsi),%rax");
CODE(store_one, "mov %rax,(%rsi)");
CODE(add_one, "lock addq $5,(%rsi)");
CODE(move_device, "mov (%rsi),%eax\nmov %eax,4(%rsi)\nmov $7,%ebx");
CODE(add_device, "addl $3,(%rsi)\nmov $7,%ebx");
/* Touch, point the entry elsewhere, touch again (stale is allowed), INVLPG, touch. */
CODE(remap, "mov (%rsi),%rax\nmov %rdx,(%rdi)\ninvlpg (%rsi)\nmov (%rsi),%rbx");
CODE(remap_cr3, "mov (%rsi),%rax\nmov %rdx,(%rdi)\nmov %cr3,%rcx\nmov %rcx,%cr3\nmov (%rsi),%rbx");
/* Touch a page, point the directory's entry to another table, INVLPG of %rbp, touch the page's neighbour. */
CODE(retable, "mov (%rsi),%rax\nmov %rdx,(%rdi)\ninvlpg (%rbp)\nmov 0x1000(%rsi),%rbx");
CODE(spin, "1: inc %rax\njmp 1b");

#define PT   0x9000u
#define LA   0x400000u /* the 2 MiB that PT maps */

struct fixture {
    struct bare b;
    struct cpu *cpu;
};

static uint64_t *guest_pt(struct fixture *f)
{
    return (uint64_t *)(void *)(f->b.ram + PT);
}

static int setup(void **state)
{
    static struct fixture f;

    bare_open(&f.b, UINT64_C(8) << 20, 1, true);
    f.cpu = f.b.cpu[0];
    for (unsigned i = 0; i < 512; i++) {
        guest_pt(&f)[i] = (LA + i * 0x1000) | X86_PTE_P | X86_PTE_W;
    }
    ((uint64_t *)(void *)(f.b.ram + 0x3000))[2] = PT | X86_PTE_P | X86_PTE_W;
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    bare_close(&f->b);
    return 0;
}

static enum cpu_exit_reason begin(struct fixture *f, const char *code, const char *end, uint64_t rsi)
{
    bare_reset(&f->b, 0);
    bare_code(&f->b, code, (uint64_t)(end - code));
    f->cpu->regs[CPU_RSI] = rsi;
    return CPU_EXIT_NONE;
}

static void finish(struct fixture *f)
{
    assert_int_equal(cpu_run(f->cpu), CPU_EXIT_HYPERCALL);
}

static void put64(struct fixture *f, uint64_t gpa, uint64_t v)
{
    memcpy(f->b.ram + gpa, &v, 8);
}

static uint64_t get64(struct fixture *f, uint64_t gpa)
{
    uint64_t v;

    memcpy(&v, f->b.ram + gpa, 8);
    return v;
}

static void test_page_crossing(void **state)
{
    struct fixture *f = *state;

    for (unsigned off = 0xff8; off < 0x1000; off++) {
        put64(f, LA + off, UINT64_C(0x1122334455667788) + off);
        begin(f, load_one, load_one_end, LA + off);
        finish(f);
        assert_int_equal(f->cpu->regs[CPU_RAX], UINT64_C(0x1122334455667788) + off);
        begin(f, store_one, store_one_end, LA + off);
        f->cpu->regs[CPU_RAX] = off * UINT64_C(0x0101010101010101);
        finish(f);
        assert_int_equal(get64(f, LA + off), off * UINT64_C(0x0101010101010101));
        begin(f, add_one, add_one_end, LA + off);
        finish(f);
        assert_int_equal(get64(f, LA + off), off * UINT64_C(0x0101010101010101) + 5);
    }
}

/* A store over two pages, the second not writable: nothing is stored, CR2 is the second page's address. */
static void test_crossing_store_faults_whole(void **state)
{
    struct fixture *f = *state;

    guest_pt(f)[1] &= ~X86_PTE_W;
    put64(f, LA + 0xffc, 0);
    begin(f, store_one, store_one_end, LA + 0xffc);
    f->cpu->regs[CPU_RAX] = ~UINT64_C(0);
    assert_int_equal(cpu_run(f->cpu), CPU_EXIT_TRIPLE_FAULT); /* there is no IDT */
    assert_int_equal(f->cpu->cr2, LA + 0x1000);
    assert_int_equal(get64(f, LA + 0xffc), 0);
    guest_pt(f)[1] |= X86_PTE_W;
}

static void remap_with(struct fixture *f, const char *code, const char *end)
{
    uint64_t old = guest_pt(f)[3];

    put64(f, LA + 0x3000, 111);
    put64(f, LA + 0x5000, 222);
    begin(f, code, end, LA + 0x3000);
    f->cpu->regs[CPU_RDI] = PT + 3 * 8;
    f->cpu->regs[CPU_RDX] = (LA + 0x5000) | X86_PTE_P | X86_PTE_W;
    finish(f);
    assert_int_equal(f->cpu->regs[CPU_RAX], 111);
    assert_int_equal(f->cpu->regs[CPU_RBX], 222);
    guest_pt(f)[3] = old;
}

static void test_remap(void **state)
{
    remap_with(*state, remap, remap_end);
    remap_with(*state, remap_cr3, remap_cr3_end);
}

/*
 * INVLPG of any address makes the processor look at the tables above anew: an operating system that maps its tables
 * into themselves invalidates the window, not the region, when it replaces a table.
 */
static void test_table_replaced(void **state)
{
    struct fixture *f = *state;
    uint64_t *pd = (uint64_t *)(void *)(f->b.ram + 0x3000), old = pd[2];
    uint64_t *other = (uint64_t *)(void *)(f->b.ram + 0x21000);

    memcpy(other, guest_pt(f), 4096);
    other[4] = (LA + 0x6000) | X86_PTE_P | X86_PTE_W;
    put64(f, LA + 0x4000, 111);
    put64(f, LA + 0x6000, 222);
    for (unsigned i = 0; i < 4; i++) {
        bool change = i % 2;

        pd[2] = old;
        begin(f, retable, retable_end, LA + 0x3000);
        cpu_tlb_flush_page(f->cpu, LA + 0x4000);
        f->cpu->regs[CPU_RBP] = 0x5000;
        f->cpu->regs[CPU_RDI] = 0x3000 + 2 * 8;
        f->cpu->regs[CPU_RDX] = change ? 0x21000 | X86_PTE_P | X86_PTE_W : old;
        finish(f);
        assert_int_equal(f->cpu->regs[CPU_RBX], change ? 222 : 111);
    }
    pd[2] = old;
    cpu_tlb_flush_all(f->cpu);
}

/* 5,000 CR3 loads pass the wrap of the 12-bit generations: an entry of long ago must not come back. */
static void test_generations_wrap(void **state)
{
    struct fixture *f = *state;

    put64(f, LA + 0x3000, 1);
    for (uint64_t i = 0; i < 5000; i++) {
        put64(f, LA + (4 + i % 8) * 0x1000, i);
        guest_pt(f)[3] = (LA + (4 + i % 8) * 0x1000) | X86_PTE_P | X86_PTE_W;
        begin(f, load_one, load_one_end, LA + 0x3000);
        cpu_tlb_load_cr3(f->cpu, f->cpu->cr3);
        finish(f);
        assert_int_equal(f->cpu->regs[CPU_RAX], i);
    }
    guest_pt(f)[3] = (LA + 0x3000) | X86_PTE_P | X86_PTE_W;
}

/* Load from a page as PCID n, with CR3 loaded without a flush. Returns the TLB misses. */
static uint64_t load_page_as(struct fixture *f, unsigned n, uint64_t la)
{
    uint64_t misses = f->cpu->counters.tlb_misses;

    cpu_tlb_load_cr3(f->cpu, (n == 1 ? 0x1000 : 0x20000) | n | X86_CR3_NOFLUSH);
    cpu_mode_changed(f->cpu);
    f->cpu->rip = BARE_CODE;
    f->cpu->regs[CPU_RSI] = la;
    finish(f);
    return f->cpu->counters.tlb_misses - misses;
}

/* The page that belongs to PCID n. */
static uint64_t load_as(struct fixture *f, unsigned n)
{
    return load_page_as(f, n, LA + n * 0x1000);
}

/* Entries of a PCID that is switched out stay, and are its own. */
static void test_pcids(void **state)
{
    struct fixture *f = *state;

    memcpy(f->b.ram + 0x20000, f->b.ram + 0x1000, 4096);
    begin(f, load_one, load_one_end, 0);
    f->cpu->cr4 |= X86_CR4_PCIDE;
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(load_as(f, 1 + i % 2), i < 2);
    }
    cpu_tlb_flush_pcid(f->cpu, 1);
    assert_int_equal(load_as(f, 2), 0);
    assert_int_equal(load_as(f, 1), 1);
    cpu_tlb_flush_page(f->cpu, LA + 0x1000);
    assert_int_equal(load_as(f, 1), 1);
    /* The same linear page under two PCIDs: both entries stay, INVLPG takes the current one's. */
    for (unsigned i = 0; i < 6; i++) {
        assert_int_equal(load_page_as(f, 1 + i % 2, LA + 0x5000), i < 2);
    }
    cpu_tlb_flush_page(f->cpu, LA + 0x5000);
    assert_int_equal(load_page_as(f, 1, LA + 0x5000), 0);
    assert_int_equal(load_page_as(f, 2, LA + 0x5000), 1);
    f->cpu->cr4 &= ~X86_CR4_PCIDE;
}

static void test_violation_and_repair(void **state)
{
    struct fixture *f = *state;
    uint64_t *e = bare_ept_entry(&f->b, LA + 0x7000), old = *e;

    *e = 0;
    cpu_request_flush(f->cpu);
    begin(f, store_one, store_one_end, LA + 0x7008);
    f->cpu->regs[CPU_RAX] = 77;
    assert_int_equal(cpu_run(f->cpu), CPU_EXIT_EPT_VIOLATION);
    assert_int_equal(f->cpu->exit.ept.gpa.v, LA + 0x7008);
    assert_int_equal(f->cpu->exit.ept.gva.v, LA + 0x7008);
    assert_int_equal(f->cpu->exit.ept.qualification, EPT_VIOL_READ | EPT_VIOL_WRITE | EPT_VIOL_GVA | EPT_VIOL_FINAL);
    assert_int_equal(f->cpu->exit.ept.size, 8);
    assert_int_equal(f->cpu->rip, BARE_CODE);
    *e = old;
    finish(f);
    assert_int_equal(get64(f, LA + 0x7008), 77);
}

/* A page made read-only and back in the second stage; a read leaves the dirty bit alone. */
static void test_dirty_bits(void **state)
{
    struct fixture *f = *state;
    uint64_t *e = bare_ept_entry(&f->b, LA + 0x8000), *pte = &guest_pt(f)[8];

    *e &= ~(EPT_A | EPT_D);
    *pte &= ~(X86_PTE_A | X86_PTE_D);
    begin(f, load_one, load_one_end, LA + 0x8000);
    cpu_tlb_flush_all(f->cpu);
    finish(f);
    assert_int_equal(*e & (EPT_A | EPT_D), EPT_A);
    assert_int_equal(*pte & (X86_PTE_A | X86_PTE_D), X86_PTE_A);
    begin(f, store_one, store_one_end, LA + 0x8000);
    finish(f);
    assert_int_equal(*e & (EPT_A | EPT_D), EPT_A | EPT_D);
    assert_int_equal(*pte & (X86_PTE_A | X86_PTE_D), X86_PTE_A | X86_PTE_D);
    *e &= ~EPT_D;
    cpu_request_flush(f->cpu);
    begin(f, store_one, store_one_end, LA + 0x8000);
    finish(f);
    assert_true((*e & EPT_D) != 0);
}

static void expect_read(struct fixture *f, uint64_t gpa, unsigned size, uint64_t data)
{
    assert_int_equal(cpu_run(f->cpu), CPU_EXIT_EPT_MISCONFIG);
    assert_false(f->cpu->exit.ept.is_write);
    assert_int_equal(f->cpu->exit.ept.gpa.v, gpa);
    assert_int_equal(f->cpu->exit.ept.size, size);
    cpu_complete_read(f->cpu, &data, size);
}

static void expect_write(struct fixture *f, uint64_t gpa, unsigned size, uint64_t data)
{
    assert_int_equal(cpu_run(f->cpu), CPU_EXIT_EPT_MISCONFIG);
    assert_true(f->cpu->exit.ept.is_write);
    assert_int_equal(f->cpu->exit.ept.gpa.v, gpa);
    assert_int_equal(f->cpu->exit.ept.size, size);
    assert_memory_equal(f->cpu->exit.ept.data, &data, size);
}

static void test_devices(void **state)
{
    struct fixture *f = *state;
    uint64_t *e = bare_ept_entry(&f->b, LA + 0x9000), old = *e;

    *e = EPT_W | EPT_X | 0x123000;
    begin(f, move_device, move_device_end, LA + 0x9000);
    cpu_tlb_flush_all(f->cpu);
    expect_read(f, LA + 0x9000, 4, 0xcafe);
    assert_int_equal(f->cpu->rip, BARE_CODE);
    expect_write(f, LA + 0x9004, 4, 0xcafe);
    assert_int_equal(f->cpu->rip, BARE_CODE + 5);
    finish(f);
    assert_int_equal(f->cpu->regs[CPU_RBX], 7);

    begin(f, add_device, add_device_end, LA + 0x9010);
    expect_read(f, LA + 0x9010, 4, 40);
    expect_write(f, LA + 0x9010, 4, 43);
    finish(f);

    /* half RAM, half device */
    put64(f, LA + 0x8ffc, 0x55555555);
    begin(f, load_one, load_one_end, LA + 0x8ffc);
    expect_read(f, LA + 0x9000, 4, 0x66666666);
    finish(f);
    assert_int_equal(f->cpu->regs[CPU_RAX], UINT64_C(0x6666666655555555));
    begin(f, store_one, store_one_end, LA + 0x8ffc);
    f->cpu->regs[CPU_RAX] = UINT64_C(0x8888888877777777);
    expect_write(f, LA + 0x9000, 4, 0x88888888);
    finish(f);
    assert_int_equal((uint32_t)get64(f, LA + 0x8ffc), 0x77777777);
    *e = old;
    cpu_request_flush(f->cpu);
}

static void *spinner(void *arg)
{
    struct fixture *f = arg;

    return (void *)(uintptr_t)cpu_run(f->cpu);
}

static void test_kick_and_flush_from_outside(void **state)
{
    struct fixture *f = *state;
    pthread_t t;
    void *reason;

    begin(f, spin, spin_end, 0);
    assert_int_equal(pthread_create(&t, NULL, spinner, f), 0);
    while (!atomic_load(&f->cpu->inbox.in_guest)) {
    }
    for (unsigned i = 0; i < 200; i++) {
        cpu_request_flush_wait(f->cpu);
    }
    cpu_kick(f->cpu);
    pthread_join(t, &reason);
    assert_int_equal((uintptr_t)reason, CPU_EXIT_KICK);
    assert_true(f->cpu->counters.tlb_flushes >= 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_page_crossing),
        cmocka_unit_test(test_crossing_store_faults_whole),
        cmocka_unit_test(test_remap),
        cmocka_unit_test(test_table_replaced),
        cmocka_unit_test(test_generations_wrap),
        cmocka_unit_test(test_pcids),
        cmocka_unit_test(test_violation_and_repair),
        cmocka_unit_test(test_dirty_bits),
        cmocka_unit_test(test_devices),
        cmocka_unit_test(test_kick_and_flush_from_outside),
    };

    return cmocka_run_group_tests(tests, setup, teardown);
}
