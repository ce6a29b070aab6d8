/*
 * Memory that the process takes from under a running guest: KVM_RUN fails with EFAULT, the guest's state is
 * that before the instruction, and with the memory back the instruction does what it should.
 *
 * Each instruction is run once on memory that is there, which fills the TLB. Then the page goes without a
 * word, by every way there is, and the instruction is run again; then the page is put back.
 */
#include "mini.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGE_GPA   0x400000u
#define PAGE_BYTES 4096u
#define SPOT       0x800u /* operands, and the stack's top */
#define TABLES     0x8000u /* of long mode, in slot 0: PML4, PDPT, PD */

/* EBX, EDI and ESP at the spot; ESI at data in slot 0. Every instruction is followed by HLT. */
static const struct insn {
    const char *name;
    uint8_t len, code[10];
    bool reads_only, only_32, only_64;
} insns[] = {
    {"mov load", 2, {0x8b, 0x03}, .reads_only = true},
    {"mov load 8", 2, {0x8a, 0x03}, .reads_only = true},
    {"movzx 16", 3, {0x0f, 0xb7, 0x03}, .reads_only = true},
    {"mov load 64", 3, {0x48, 0x8b, 0x03}, .reads_only = true, .only_64 = true},
    {"mov load, scaled", 3, {0x8b, 0x04, 0x2b}, .reads_only = true},
    {"mov store", 2, {0x89, 0x03}},
    {"mov store 8", 2, {0x88, 0x0b}},
    {"mov store 64, scaled", 4, {0x48, 0x89, 0x04, 0x2b}, .only_64 = true},
    {"mov immediate", 6, {0xc7, 0x03, 1, 2, 3, 4}},
    {"add to memory", 2, {0x01, 0x03}},
    {"adc to memory 8", 2, {0x10, 0x0b}},
    {"add from memory", 2, {0x03, 0x03}, .reads_only = true},
    {"cmp with memory", 2, {0x3b, 0x03}, .reads_only = true},
    {"test", 2, {0x85, 0x03}, .reads_only = true},
    {"inc", 2, {0xff, 0x03}},
    {"neg", 2, {0xf7, 0x1b}},
    {"not 8", 2, {0xf6, 0x13}},
    {"shl", 3, {0xc1, 0x23, 3}},
    {"shld", 4, {0x0f, 0xa4, 0x03, 5}},
    {"bts", 3, {0x0f, 0xab, 0x0b}},
    {"bt", 3, {0x0f, 0xa3, 0x0b}, .reads_only = true},
    {"setc", 3, {0x0f, 0x92, 0x03}},
    {"imul", 3, {0x0f, 0xaf, 0x03}, .reads_only = true},
    {"xchg", 2, {0x87, 0x03}},
    {"lock add", 3, {0xf0, 0x01, 0x03}},
    {"lock inc 8", 3, {0xf0, 0xfe, 0x03}},
    {"lock xadd", 4, {0xf0, 0x0f, 0xc1, 0x03}},
    {"lock cmpxchg", 4, {0xf0, 0x0f, 0xb1, 0x0b}},
    {"lock cmpxchg8b", 4, {0xf0, 0x0f, 0xc7, 0x0b}},
    {"lock cmpxchg16b", 5, {0xf0, 0x48, 0x0f, 0xc7, 0x0b}, .only_64 = true},
    {"push", 1, {0x50}},
    {"push immediate", 2, {0x6a, 0x7f}},
    {"push from memory", 2, {0xff, 0x33}},
    {"pop", 1, {0x59}, .reads_only = true},
    {"pop to memory", 2, {0x8f, 0x03}},
    {"pusha", 1, {0x60}, .only_32 = true},
    {"popa", 1, {0x61}, .reads_only = true, .only_32 = true},
    {"pushf", 1, {0x9c}},
    {"enter", 4, {0xc8, 0x10, 0x00, 0x01}},
    {"call", 5, {0xe8, 0, 0, 0, 0}},
    {"movs", 1, {0xa5}},
    {"rep movs to", 2, {0xf3, 0xa4}},
    {"rep stos", 2, {0xf3, 0xaa}},
    {"repe cmps", 2, {0xf3, 0xa6}, .reads_only = true},
    {"repne scas", 2, {0xf2, 0xae}, .reads_only = true},
    {"movups load", 3, {0x0f, 0x10, 0x03}, .reads_only = true},
    {"movups store", 3, {0x0f, 0x11, 0x03}},
    {"movaps store", 3, {0x0f, 0x29, 0x03}},
    {"addps", 3, {0x0f, 0x58, 0x03}, .reads_only = true},
    {"pxor", 4, {0x66, 0x0f, 0xef, 0x03}, .reads_only = true},
    {"movq store", 4, {0x66, 0x0f, 0xd6, 0x03}},
    {"fld", 2, {0xdd, 0x03}, .reads_only = true},
    {"fst", 2, {0xdd, 0x13}},
    {"fnsave", 2, {0xdd, 0x33}},
    {"fxsave", 3, {0x0f, 0xae, 0x03}},
    {"stmxcsr", 3, {0x0f, 0xae, 0x1b}},
    {"sgdt", 3, {0x0f, 0x01, 0x03}},
    {"movbe", 4, {0x0f, 0x38, 0xf0, 0x03}, .reads_only = true},
};

/* Ways to take the page away, and what accesses they stop. */
enum way { UNMAP, NO_ACCESS, READ_ONLY, TRUNCATE, NR_WAYS };

static struct {
    struct mini *m;
    char *page;
    int fd;
    bool is_long;
    char before[PAGE_BYTES], after[PAGE_BYTES];
} w;

static void put_back(enum way way)
{
    void *at = w.page;

    if (way == TRUNCATE) {
        assert_int_equal(ftruncate(w.fd, 2 * PAGE_BYTES), 0);
    } else if (way == UNMAP) {
        at = mmap(w.page, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, w.fd, PAGE_BYTES);
    } else {
        assert_int_equal(mprotect(w.page, PAGE_BYTES, PROT_READ | PROT_WRITE), 0);
    }
    assert_ptr_equal(at, w.page);
    memcpy(w.page, w.before, PAGE_BYTES);
}

static void take_away(enum way way)
{
    switch (way) {
    case UNMAP:
        assert_int_equal(munmap(w.page, PAGE_BYTES), 0);
        break;
    case NO_ACCESS:
        assert_int_equal(mprotect(w.page, PAGE_BYTES, PROT_NONE), 0);
        break;
    case READ_ONLY:
        assert_int_equal(mprotect(w.page, PAGE_BYTES, PROT_READ), 0);
        break;
    case TRUNCATE:
        assert_int_equal(ftruncate(w.fd, PAGE_BYTES), 0);
        break;
    case NR_WAYS:
        break;
    }
}

static struct kvm_regs start_regs(void)
{
    return (struct kvm_regs){.rax = 0x11223344, .rcx = 24, .rdx = 0x55667788, .rbx = PAGE_GPA + SPOT,
                             .rsi = 0x4000, .rdi = PAGE_GPA + SPOT, .rsp = PAGE_GPA + SPOT,
                             .rip = MINI_CODE, .rflags = 0x47};
}

/* One run from the start; the result of KVM_RUN. */
static int run_from_start(void)
{
    struct kvm_regs r = start_regs();
    struct kvm_fpu fpu = {.fcw = 0x37f, .mxcsr = 0x1f80};

    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_FPU, &fpu), 0);
    return mini_run(w.m, 0);
}

static void assert_regs_are(const struct kvm_regs *want, const char *name)
{
    struct kvm_regs got;

    mini_regs(w.m, 0, &got);
    if (memcmp(&got, want, sizeof(got)) != 0) {
        fail_msg("%s: registers differ: rip %llx want %llx, rsp %llx want %llx", name,
                 (unsigned long long)got.rip, (unsigned long long)want->rip,
                 (unsigned long long)got.rsp, (unsigned long long)want->rsp);
    }
}

static void one_insn(const struct insn *in, enum way way)
{
    struct kvm_regs start = start_regs(), done;
    int r;

    memset(w.m->low + MINI_CODE, 0xf4, 16);
    memcpy(w.m->low + MINI_CODE, in->code, in->len);
    memcpy(w.page, w.before, PAGE_BYTES);
    r = run_from_start();
    if (r != KVM_EXIT_HLT) {
        fail_msg("%s: with the page there: %d", in->name, r);
    }
    mini_regs(w.m, 0, &done);
    memcpy(w.after, w.page, PAGE_BYTES);
    memcpy(w.page, w.before, PAGE_BYTES);

    take_away(way);
    r = run_from_start();
    if (r != -EFAULT) {
        fail_msg("%s, way %d: without the page: %d", in->name, way, r);
    }
    assert_regs_are(&start, in->name);
    assert_int_equal(mini_run(w.m, 0), -EFAULT); /* no better the second time */
    put_back(way);
    assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
    assert_regs_are(&done, in->name);
    assert_memory_equal(w.page, w.after, PAGE_BYTES);
}

static void long_mode(void)
{
    uint64_t *pml4 = (uint64_t *)(void *)(w.m->low + TABLES), *pdpt = pml4 + 512, *pd = pdpt + 512;
    struct kvm_sregs s;

    pml4[0] = (TABLES + 4096) | 7;
    pdpt[0] = (TABLES + 8192) | 7;
    for (unsigned i = 0; i < 4; i++) {
        pd[i] = (uint64_t)i << 21 | 0xe7;
    }
    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_GET_SREGS, &s), 0);
    s.cr3 = TABLES;
    s.cr4 |= 0x20;
    s.efer |= 0x500;
    s.cr0 |= 0x80000001;
    s.cs.l = 1;
    s.cs.db = 0;
    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_SREGS, &s), 0);
}

static void make(bool is_long)
{
    struct kvm_sregs s;

    memset(&w, 0, sizeof(w));
    w.is_long = is_long;
    w.m = mini_vm(0);
    mini_vcpus(w.m, 1);
    w.fd = memfd_create("vanish", 0);
    assert_int_equal(ftruncate(w.fd, 2 * PAGE_BYTES), 0);
    w.page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, w.fd, PAGE_BYTES);
    assert_ptr_not_equal(w.page, MAP_FAILED);
    for (unsigned i = 0; i < PAGE_BYTES; i++) {
        w.before[i] = (char)(i * 7 + i / 256);
    }
    memcpy(w.m->low + 0x4000, w.before, PAGE_BYTES);
    assert_int_equal(mini_slot(w.m, 1, 0, PAGE_GPA, PAGE_BYTES, w.page), 0);
    mini_start(w.m, 0, "\xf4", 1, NULL);
    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_GET_SREGS, &s), 0);
    s.cr4 |= 0x600; /* OSFXSR, OSXMMEXCPT */
    assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_SREGS, &s), 0);
    if (is_long) {
        long_mode();
    }
}

static void unmake(void)
{
    mini_free(w.m);
    munmap(w.page, PAGE_BYTES);
    close(w.fd);
}

static void all_insns(bool is_long)
{
    make(is_long);
    for (unsigned i = 0; i < sizeof(insns) / sizeof(insns[0]); i++) {
        for (unsigned way = 0; way < NR_WAYS; way++) {
            if ((insns[i].reads_only && way == READ_ONLY) || (is_long ? insns[i].only_32 : insns[i].only_64)) {
                continue;
            }
            one_insn(&insns[i], way);
        }
    }
    unmake();
}

static void every_instruction_32(void **state)
{
    all_insns(false);
}

static void every_instruction_64(void **state)
{
    all_insns(true);
}

/* Code, and tables of the guest's, in the page that goes. */
static void code_goes(void **state)
{
    struct kvm_regs r = start_regs();

    for (unsigned way = 0; way < NR_WAYS; way++) {
        if (way == READ_ONLY) {
            continue;
        }
        make(false);
        memset(w.before, 0x40, 64); /* inc eax */
        w.before[64] = (char)0xf4;
        memcpy(w.page, w.before, PAGE_BYTES);
        r.rip = PAGE_GPA;
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
        assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
        take_away(way);
        r.rip = PAGE_GPA + 8;
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
        assert_int_equal(mini_run(w.m, 0), -EFAULT);
        assert_regs_are(&r, "fetch");
        put_back(way);
        assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
        unmake();
    }
}

static void guest_table_goes(void **state)
{
    struct kvm_translation t = {.linear_address = PAGE_GPA};
    struct kvm_regs r = start_regs();

    for (unsigned way = 0; way < NR_WAYS; way++) {
        make(true);
        for (uint64_t i = 0; i < 512; i++) {
            uint64_t entry = i << 21 | 0x87; /* A and D are to be set: a write */

            memcpy(w.before + i * sizeof(entry), &entry, sizeof(entry));
        }
        memcpy(w.page, w.before, PAGE_BYTES);
        ((uint64_t *)(void *)(w.m->low + TABLES + 4096))[0] = PAGE_GPA | 7;
        take_away(way);
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
        assert_int_equal(mini_run(w.m, 0), -EFAULT);
        assert_regs_are(&r, "walk");
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_TRANSLATE, &t), 0);
        assert_int_equal(t.valid, way == READ_ONLY);
        put_back(way);
        memset(w.m->low + MINI_CODE, 0xf4, 16);
        assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
        unmake();
    }
}

/* The stack of an interrupt's delivery goes. */
static void delivery_stack_goes(void **state)
{
    struct kvm_interrupt irq = {.irq = 0x30};
    struct kvm_regs r = start_regs(), got;
    struct kvm_sregs s;
    uint32_t *idt, *gdt;

    for (unsigned way = 0; way < NR_WAYS; way++) {
        make(false);
        memcpy(w.page, w.before, PAGE_BYTES);
        idt = (uint32_t *)(void *)(w.m->low + 0x6000 + 0x30 * 8);
        gdt = (uint32_t *)(void *)(w.m->low + 0x7000);
        idt[0] = 0x8u << 16 | 0x2000;
        idt[1] = 0x8e00;
        gdt[2] = 0xffff;
        gdt[3] = 0xcf9b00;
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_GET_SREGS, &s), 0);
        s.idt = (struct kvm_dtable){.base = 0x6000, .limit = 0x7ff};
        s.gdt = (struct kvm_dtable){.base = 0x7000, .limit = 0xff};
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_SREGS, &s), 0);
        memset(w.m->low + 0x2000, 0xf4, 16);
        memset(w.m->low + MINI_CODE, 0xf4, 16);
        w.m->low[MINI_CODE] = 0x50; /* push eax: the stack is in the TLB */
        r.rflags |= 0x200;
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
        assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
        take_away(way);
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_REGS, &r), 0);
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_INTERRUPT, &irq), 0);
        assert_int_equal(mini_run(w.m, 0), -EFAULT);
        assert_regs_are(&r, "delivery");
        put_back(way);
        assert_int_equal(mini_run(w.m, 0), KVM_EXIT_HLT);
        mini_regs(w.m, 0, &got);
        assert_int_equal(got.rip, 0x2001);
        assert_int_equal(got.rsp, r.rsp - 12);
        unmake();
    }
}

/* The hypervisor's own accesses: a clock page that goes is no reason to die. */
static void own_accesses(void **state)
{
    struct kvm_msr_entry e = {.index = 0x4b564d01, .data = PAGE_GPA | 1};
    struct {
        struct kvm_msrs h;
        struct kvm_msr_entry e;
    } msrs = {.h.nmsrs = 1, .e = e};

    for (unsigned way = 0; way < NR_WAYS; way++) {
        make(false);
        assert_int_equal(mini_cpu_ioctl(w.m, 0, KVM_SET_MSRS, &msrs), 1);
        memset(w.m->low + MINI_CODE, 0xf4, 16);
        assert_int_equal(run_from_start(), KVM_EXIT_HLT);
        take_away(way);
        (void)mini_cpu_ioctl(w.m, 0, KVM_SET_MSRS, &msrs);
        assert_int_equal(run_from_start(), KVM_EXIT_HLT);
        put_back(way);
        unmake();
    }
}

/* ---- while the guest runs ---- */

#define PAGES 64u

/* inc dword in every page, over and over; EBP counts the rounds. */
static const uint8_t counting[] = {
    0x89, 0xdf,                         /* again: mov edi, ebx */
    0xb9, PAGES, 0, 0, 0,               /*        mov ecx, PAGES */
    0xff, 0x07,                         /* next:  inc dword [edi] */
    0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, /*        add edi, 0x1000 */
    0x49,                               /*        dec ecx */
    0x75, 0xf5,                         /*        jnz next */
    0x45,                               /*        inc ebp */
    0x81, 0xfd, 0x00, 0x40, 0x00, 0x00, /*        cmp ebp, 0x4000 */
    0x75, 0xe5,                         /*        jne again */
    0xf4,                               /*        hlt */
};

struct breaker {
    char *ram;
    _Atomic int stop;
    pthread_mutex_t lock;
};

static void *take_pages(void *opaque)
{
    struct breaker *b = opaque;
    unsigned seed = 1;

    while (!b->stop) {
        char *p = b->ram + (rand_r(&seed) % PAGES) * (size_t)PAGE_BYTES;

        pthread_mutex_lock(&b->lock);
        mprotect(p, PAGE_BYTES, rand_r(&seed) % 2 ? PROT_NONE : PROT_READ);
        usleep(200);
        mprotect(p, PAGE_BYTES, PROT_READ | PROT_WRITE);
        pthread_mutex_unlock(&b->lock);
        usleep(50);
    }
    return NULL;
}

/* Pages come and go while the guest counts in them: each count is exact in the end. */
static void no_count_is_lost(void **state)
{
    struct mini *m = mini_vm(0);
    struct breaker b = {.lock = PTHREAD_MUTEX_INITIALIZER};
    struct kvm_regs regs = {.rbx = PAGE_GPA};
    unsigned faults = 0;
    pthread_t t;
    int r;

    mini_vcpus(m, 1);
    b.ram = mini_pages(PAGES * PAGE_BYTES);
    assert_int_equal(mini_slot(m, 1, 0, PAGE_GPA, PAGES * PAGE_BYTES, b.ram), 0);
    mini_start(m, 0, counting, sizeof(counting), &regs);
    assert_int_equal(pthread_create(&t, NULL, take_pages, &b), 0);
    while ((r = mini_run(m, 0)) == -EFAULT) {
        pthread_mutex_lock(&b.lock); /* all is there */
        pthread_mutex_unlock(&b.lock);
        faults++;
    }
    b.stop = 1;
    pthread_join(t, NULL);
    assert_int_equal(r, KVM_EXIT_HLT);
    for (unsigned p = 0; p < PAGES; p++) {
        assert_int_equal(*(uint32_t *)(void *)(b.ram + p * (size_t)PAGE_BYTES), 0x4000);
    }
    print_message("%u faults\n", faults);
    assert_true(faults > 0);
    munmap(b.ram, PAGES * PAGE_BYTES);
    mini_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_instruction_32), cmocka_unit_test(every_instruction_64),
        cmocka_unit_test(code_goes),            cmocka_unit_test(guest_table_goes),
        cmocka_unit_test(delivery_stack_goes),  cmocka_unit_test(own_accesses),
        cmocka_unit_test(no_count_is_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
