/*
 * Every legal setting of a guest's table entries against every kind of access and every setting of the control bits
 * that matter, through the whole engine: a guest writes the entries, loads CR3 and accesses; what it meets (page
 * fault with its error code and CR2, or not), and the accessed and dirty bits afterwards, must be what the definition
 * says (tests/oracle/cpu_walk.c). For each paging mode, on each kind of MMU. Protection keys, which the engine's guests
 * do not have, are in tests/cpu/walk_test.c.
 *
 *   each case: in 64-bit mode at CPL 0 the guest stores the entries, loads CR3, halts
 *              in the case's mode and privilege it reads, writes or jumps to the page, halts or faults
 *
 * The fast set takes a sample of the cases; STRATA_LONG=1 takes all, STRATA_ACCESS_CASES=N so many per mode.
 */
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "../oracle/cpu_walk.h"
#include "softkvm/inspect.h"
#include "softkvm/softkvm.h"

#define RAM_BYTES   0x400000u
#define PROLOGUE    0x1000u
#define STUBS_SUPER 0x2000u
#define STUBS_USER  0x3000u
#define HANDLERS    0x4000u /* 16 bytes each: page fault, general protection, any other */
#define IDT64       0x5000u
#define IDT32       0x6000u
#define GDT         0x7000u
#define TSS         0x7800u
#define STACK_TOP   0x9000u
#define NOWHERE     0x9800u /* for stores of entries that a mode does not have */
#define PML4        0x10000u
#define PDPT        0x11000u
#define PD          0x12000u
#define PT          0x13000u
#define PML5        0x14000u
#define PDPT_PAE    0x15000u
#define PD32        0x18000u
#define PT32        0x19000u
#define T_PT32      0x1a000u
#define T_PDPT      0x20000u
#define T_PD        0x21000u
#define T_PT        0x22000u
#define TARGET      0x202000u
#define RESERVED    (UINT64_C(1) << 51)

enum access { READ, WRITE, FETCH, NR_ACCESS };

/* A paging mode: where its test entries are, and the address that they translate. */
struct mode {
    const char *name;
    unsigned levels; /* 2: 32-bit, 3: PAE */
    uint64_t cr3, la;
    uint64_t entry[4]; /* by level; 0: none */
    unsigned leaf_levels; /* pages of how many sizes */
};

static const struct mode modes[] = {
    {"4 levels", 4, PML4, UINT64_C(8) << 39 | TARGET, {0, T_PT + 16, T_PD + 8, T_PDPT}, 3},
    {"5 levels", 5, PML5, UINT64_C(8) << 39 | TARGET, {0, T_PT + 16, T_PD + 8, T_PDPT}, 3},
    {"PAE", 3, PDPT_PAE, 0x40000000 | TARGET, {0, T_PT + 16, T_PD + 8, NOWHERE}, 2},
    {"32-bit", 2, PD32, 0x40000000 | TARGET, {0, T_PT32 + 0x808, PD32 + 0x400, NOWHERE}, 2},
};

/* One case, taken from a number. */
struct test_case {
    unsigned leaf_level;
    uint64_t entry[4];
    enum access access;
    bool user, wp, smep, smap, nxe, ac, pse;
};

struct guest {
    struct softkvm *s;
    int kvm, vm, vcpu;
    struct kvm_run *run;
    uint8_t *ram;
    bool has_1g;
    const struct mode *mode;
    struct kvm_sregs prologue, base; /* registers of the two parts of a case */
};

/* ---- the guest's memory ---- */

static uint64_t *qword(struct guest *g, uint64_t at)
{
    return (uint64_t *)(void *)(g->ram + at);
}

static void gate64(struct guest *g, unsigned vector, uint64_t handler)
{
    qword(g, IDT64)[2 * vector] = (handler & 0xffff) | 8 << 16 | UINT64_C(0x8e01) << 32 | (handler >> 16) << 48;
    qword(g, IDT64)[2 * vector + 1] = 0;
    qword(g, IDT32)[vector] = (handler & 0xffff) | 0x18 << 16 | UINT64_C(0x8e00) << 32;
}

static void put_code(struct guest *g)
{
    /* mov [rax],rbx; mov [rcx],rdx; mov [rsi],rdi; mov cr3,rbp; hlt */
    static const uint8_t prologue[] = {0x48, 0x89, 0x18, 0x48, 0x89, 0x11, 0x48, 0x89, 0x3e, 0x0f, 0x22, 0xdd, 0xf4};
    /* mov eax,[rbx]; hlt    mov [rbx],eax; hlt    jmp rbx */
    static const uint8_t stub[NR_ACCESS][3] = {{0x8b, 0x03, 0xf4}, {0x89, 0x03, 0xf4}, {0xff, 0xe3, 0xf4}};

    memcpy(g->ram + PROLOGUE, prologue, sizeof(prologue));
    for (unsigned i = 0; i < NR_ACCESS; i++) {
        memcpy(g->ram + STUBS_SUPER + 16 * i, stub[i], 3);
        memcpy(g->ram + STUBS_USER + 16 * i, stub[i], 3);
    }
    for (unsigned i = 0; i < 3; i++) {
        g->ram[HANDLERS + 16 * i] = 0xf4;
    }
    for (unsigned v = 0; v < 32; v++) {
        gate64(g, v, HANDLERS + (v == 14 ? 0 : v == 13 ? 16 : 32));
    }
    g->ram[TARGET] = 0xf4;
}

/* Identity tables of each mode, with accessed and dirty bits set, so that only the tested entries change. */
static void put_tables(struct guest *g)
{
    qword(g, PML5)[0] = PML4 | 0x27;
    qword(g, PML4)[0] = PDPT | 0x27;
    qword(g, PML4)[8] = T_PDPT | 0x27;
    qword(g, PDPT)[0] = PD | 0x27;
    qword(g, PD)[0] = PT | 0x27;
    qword(g, PD)[1] = 0x200000 | 0xe3;
    for (unsigned i = 0; i < 512; i++) {
        qword(g, PT)[i] = i * UINT64_C(0x1000) | (i == STUBS_USER >> 12 ? 0x67 : 0x63);
    }
    qword(g, PDPT_PAE)[0] = PD | 1;
    qword(g, PDPT_PAE)[1] = T_PD | 1;
    *(uint32_t *)(void *)(g->ram + PD32) = PT32 | 0x27;
    for (unsigned i = 0; i < 1024; i++) {
        ((uint32_t *)(void *)(g->ram + PT32))[i] = i * 0x1000u | (i == STUBS_USER >> 12 ? 0x67u : 0x63u);
    }
    qword(g, GDT)[1] = UINT64_C(0x00af9b000000ffff); /* 8: 64-bit code */
    qword(g, GDT)[2] = UINT64_C(0x00cf93000000ffff); /* 10: data */
    qword(g, GDT)[3] = UINT64_C(0x00cf9b000000ffff); /* 18: 32-bit code */
}

/* In 32-bit mode the stack of CPL 0 is elsewhere in the task state. */
static void put_tss(struct guest *g, bool is_long)
{
    memset(g->ram + TSS, 0, 104);
    if (is_long) {
        memcpy(g->ram + TSS + 36, &(uint64_t){STACK_TOP}, 8);
    } else {
        memcpy(g->ram + TSS + 4, &(uint32_t){STACK_TOP}, 4);
        memcpy(g->ram + TSS + 8, &(uint32_t){0x10}, 4);
    }
}

/* ---- registers ---- */

static struct kvm_segment segment(bool is_code, bool is_long, unsigned dpl)
{
    return (struct kvm_segment){.limit = 0xffffffff, .selector = (uint16_t)((is_code ? is_long ? 8 : 0x18 : 0x10) | dpl),
                                .type = is_code ? 11 : 3, .present = 1, .dpl = (uint8_t)dpl, .s = 1, .g = 1,
                                .l = is_code && is_long, .db = !(is_code && is_long)};
}

static void set_privilege(struct kvm_sregs *s, bool is_long, bool user)
{
    unsigned dpl = user ? 3 : 0;

    s->cs = segment(true, is_long, dpl);
    s->ss = s->ds = s->es = s->fs = s->gs = segment(false, is_long, dpl);
}

static void registers_init(struct guest *g)
{
    bool is_long = g->mode->levels >= 4;
    struct kvm_sregs s;

    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_SREGS, &s), 0);
    s.tr = (struct kvm_segment){.base = TSS, .limit = 0x67, .type = 11, .present = 1, .selector = 0x28};
    s.gdt = (struct kvm_dtable){.base = GDT, .limit = 0x1f};
    s.idt = (struct kvm_dtable){.base = IDT64, .limit = 32 * 16 - 1};
    g->prologue = s;
    set_privilege(&g->prologue, true, false);
    g->prologue.cr0 = 0x80010031;
    g->prologue.cr3 = PML4;
    g->prologue.cr4 = 0x20;
    g->prologue.efer = 0x500;
    g->base = s;
    if (!is_long) {
        g->base.idt = (struct kvm_dtable){.base = IDT32, .limit = 32 * 8 - 1};
    }
    put_tss(g, is_long);
}

static void set_regs(struct guest *g, const struct kvm_sregs *s, const struct kvm_regs *r)
{
    if (softkvm_ioctl(g->s, g->vcpu, KVM_SET_SREGS, (void *)(uintptr_t)s) < 0) {
        fail_msg("%s: cr0 %llx cr3 %llx cr4 %llx efer %llx refused", g->mode->name, s->cr0, s->cr3, s->cr4, s->efer);
    }
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_REGS, (void *)(uintptr_t)r), 0);
}

static void run_to_halt(struct guest *g)
{
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_RUN, NULL), 0);
    if (g->run->exit_reason != KVM_EXIT_HLT) {
        fail_msg("exit %u, %u: %llx %llx", g->run->exit_reason, g->run->internal.suberror,
                 (unsigned long long)g->run->internal.data[0], (unsigned long long)g->run->internal.data[1]);
    }
}

/* ---- cases ---- */

/* Take a digit of base n off the number. */
static unsigned digit(uint64_t *number, unsigned n)
{
    unsigned d = (unsigned)(*number % n);

    *number /= n;
    return d;
}

/* One entry with bits from the number: present, writable, user, accessed, no-execute, reserved; dirty for a leaf. */
static uint64_t entry_of(const struct mode *m, uint64_t *number, uint64_t address, unsigned level, bool leaf)
{
    bool is_32 = m->levels == 2;
    uint64_t e = address;

    e |= digit(number, 2);
    e |= digit(number, 2) ? 2 : 0;
    e |= digit(number, 2) ? 4 : 0;
    e |= digit(number, 2) ? 0x20 : 0;
    if (digit(number, 2)) {
        e |= is_32 ? 0 : UINT64_C(1) << 63;
    }
    if (digit(number, 2)) {
        e |= !is_32 ? RESERVED : leaf && level == 2 ? UINT64_C(1) << 21 : 0;
    }
    if (leaf) {
        e |= digit(number, 2) ? 0x40 : 0;
        e |= level > 1 ? 0x80 : 0;
    }
    return e;
}

/* How many cases a mode has: see case_of(). */
static uint64_t cases_in(const struct guest *g)
{
    uint64_t n = 128 * 64 * (g->mode->levels >= 4 ? 8 : 1); /* leaf, its table, what is above */

    n *= g->mode->leaf_levels * NR_ACCESS * 2;
    n *= 2 * 2 * 2 * 2 * 2; /* wp, smep, smap, ac, nxe or pse */
    return n;
}

static struct test_case case_of(const struct guest *g, uint64_t number)
{
    static const uint64_t where[4] = {0, TARGET, 0x200000, 0};
    const struct mode *m = g->mode;
    struct test_case c = {.leaf_level = 1 + digit(&number, m->leaf_levels)};
    uint64_t below[4] = {0, 0, m->levels == 2 ? T_PT32 : T_PT, T_PD};
    bool is_32 = m->levels == 2;

    c.access = (enum access)digit(&number, NR_ACCESS);
    c.user = digit(&number, 2);
    c.wp = digit(&number, 2);
    c.smep = digit(&number, 2);
    c.smap = digit(&number, 2);
    c.ac = digit(&number, 2);
    c.pse = !is_32 || digit(&number, 2);
    c.nxe = !is_32 && digit(&number, 2);
    c.entry[c.leaf_level] = entry_of(m, &number, is_32 && c.leaf_level == 2 ? 0 : where[c.leaf_level], c.leaf_level,
                                     true);
    if (c.leaf_level < 3) {
        c.entry[c.leaf_level + 1] = entry_of(m, &number, below[c.leaf_level + 1], c.leaf_level + 1, false);
    }
    if (c.leaf_level == 1 && m->levels >= 4) {
        uint64_t e = T_PD | 0x21;

        e |= digit(&number, 2) ? 2 : 0;
        e |= digit(&number, 2) ? 4 : 0;
        c.entry[3] = e | (digit(&number, 2) ? UINT64_C(1) << 63 : 0);
    }
    return c;
}

/* ---- one case ---- */

static void store_entries(struct guest *g, const struct test_case *c)
{
    struct kvm_regs r = {.rip = PROLOGUE, .rflags = 2, .rsp = STACK_TOP};

    r.rax = g->mode->entry[1];
    r.rbx = c->entry[1];
    r.rcx = g->mode->entry[2];
    r.rdx = c->entry[2];
    r.rsi = g->mode->entry[3];
    r.rdi = c->entry[3];
    r.rbp = PML4;
    set_regs(g, &g->prologue, &r);
    run_to_halt(g);
}

static void make_access(struct guest *g, const struct test_case *c)
{
    struct kvm_regs r = {.rip = (c->user ? STUBS_USER : STUBS_SUPER) + 16u * c->access,
                         .rflags = 2 | (c->ac ? 1u << 18 : 0), .rsp = STACK_TOP - 0x100, .rbx = g->mode->la,
                         .rax = 0xf4f4f4f4}; /* a write leaves code that halts */
    struct kvm_sregs s = g->base;

    set_privilege(&s, g->mode->levels >= 4, c->user);
    s.cr0 = 0x80000031u | (c->wp ? 1u << 16 : 0);
    s.cr3 = g->mode->cr3;
    s.cr4 = (c->smep ? 1u << 20 : 0) | (c->smap ? 1u << 21 : 0) |
            (g->mode->levels == 5 ? 1u << 12 : 0) | (g->mode->levels > 2 ? 1u << 5 : 0) | (c->pse ? 1u << 4 : 0);
    s.efer = (g->mode->levels >= 4 ? 0x500u : 0) | (c->nxe ? 1u << 11 : 0);
    set_regs(g, &s, &r);
    run_to_halt(g);
}

static uint64_t memory_get(void *opaque, uint64_t at)
{
    return at < RAM_BYTES ? *qword(opaque, at) : 0;
}

static void memory_put(void *opaque, uint64_t at, uint64_t v)
{
    if (at < RAM_BYTES) {
        *qword(opaque, at) = v;
    }
}

static void define(struct guest *g, const struct test_case *c, struct ow_outcome *out)
{
    struct ow_machine m = {.mem = {memory_get, memory_put, g}, .levels = g->mode->levels, .root = g->mode->cr3,
                           .wp = c->wp, .smep = c->smep, .smap = c->smap, .ac = c->ac, .nxe = c->nxe, .pse = c->pse,
                           .has_1g = g->has_1g, .width = 46, .no_stage2 = true};
    struct ow_access a = {g->mode->la, c->access == WRITE, c->access == FETCH, c->user};

    for (unsigned i = 0; i < 4; i++) {
        m.pdpte[i] = qword(g, PDPT_PAE)[i];
    }
    ow_translate(&m, &a, out);
}

static void explain(const struct guest *g, const struct test_case *c, uint64_t number, const char *what, uint64_t is,
                    uint64_t should)
{
    fail_msg("%s, case %llu: %s is 0x%llx, should be 0x%llx (level %u, entries %llx %llx %llx, access %d user %d wp %d "
             "smep %d smap %d ac %d nxe %d pse %d)", g->mode->name, (unsigned long long)number, what,
             (unsigned long long)is, (unsigned long long)should, c->leaf_level, (unsigned long long)c->entry[1],
             (unsigned long long)c->entry[2], (unsigned long long)c->entry[3], c->access, c->user, c->wp, c->smep,
             c->smap, c->ac, c->nxe, c->pse);
}

/* Where the guest stopped, what it was told, against the definition. */
static void compare(struct guest *g, const struct test_case *c, uint64_t number, const struct ow_outcome *o)
{
    uint64_t stub = (c->user ? STUBS_USER : STUBS_SUPER) + 16u * c->access, rip = HANDLERS + 1;
    struct kvm_sregs s;
    struct kvm_regs r;

    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_REGS, &r), 0);
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_SREGS, &s), 0);
    if (o->result == OW_OK) {
        /* It halted behind the access; a user's HLT is refused. */
        rip = c->user ? HANDLERS + 17 : c->access == FETCH ? g->mode->la + 1 : stub + 3;
    }
    if (r.rip != rip) {
        explain(g, c, number, "RIP", r.rip, rip);
    }
    if (o->result == OW_FAULT) {
        uint32_t code = (uint32_t)*qword(g, r.rsp);

        if (code != o->error) {
            explain(g, c, number, "the error code", code, o->error);
        }
        if (s.cr2 != g->mode->la) {
            explain(g, c, number, "CR2", s.cr2, g->mode->la);
        }
    }
}

static void try_case(struct guest *g, uint64_t number)
{
    struct test_case c = case_of(g, number);
    uint64_t before[4], after[4];
    struct ow_outcome o;

    store_entries(g, &c);
    for (unsigned i = 1; i < 4; i++) {
        before[i] = *qword(g, g->mode->entry[i]);
    }
    define(g, &c, &o);
    for (unsigned i = 1; i < 4; i++) {
        after[i] = *qword(g, g->mode->entry[i]);
        *qword(g, g->mode->entry[i]) = before[i];
    }
    make_access(g, &c);
    compare(g, &c, number, &o);
    for (unsigned i = 1; i < 4; i++) {
        if (*qword(g, g->mode->entry[i]) != after[i]) {
            explain(g, &c, number, "an entry", *qword(g, g->mode->entry[i]), after[i]);
        }
    }
}

/* ---- worlds ---- */

static void set_cpuid(struct guest *g)
{
    struct kvm_cpuid2 *all = calloc(1, sizeof(*all) + 256 * sizeof(all->entries[0]));

    all->nent = 256;
    assert_int_equal(softkvm_ioctl(g->s, g->kvm, KVM_GET_SUPPORTED_CPUID, all), 0);
    for (uint32_t i = 0; i < all->nent; i++) {
        struct kvm_cpuid_entry2 *e = &all->entries[i];

        if (e->function == 7 && e->index == 0) {
            e->ecx |= 1u << 16; /* five levels, which a guest gets when it is told of them */
        }
        g->has_1g |= e->function == 0x80000001 && (e->edx >> 26 & 1);
    }
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_CPUID2, all), 0);
    free(all);
}

static void guest_open(struct guest *g, const struct softkvm_options *kind)
{
    struct kvm_userspace_memory_region m = {0, 0, 0, RAM_BYTES, 0};
    int e;

    memset(g, 0, sizeof(*g));
    g->s = softkvm_new(kind, NULL, 0);
    assert_non_null(g->s);
    g->kvm = softkvm_open_system(g->s);
    g->vm = softkvm_ioctl(g->s, g->kvm, KVM_CREATE_VM, NULL);
    g->ram = mmap(NULL, RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    m.userspace_addr = (uintptr_t)g->ram;
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    g->vcpu = softkvm_ioctl(g->s, g->vm, KVM_CREATE_VCPU, NULL);
    g->run = softkvm_mmap(g->s, g->vcpu, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    set_cpuid(g);
    put_code(g);
    put_tables(g);
}

static void guest_close(struct guest *g)
{
    softkvm_free(g->s);
    munmap(g->ram, RAM_BYTES);
}

static uint64_t wanted(uint64_t all)
{
    const char *n = getenv("STRATA_ACCESS_CASES"), *is_long = getenv("STRATA_LONG");
    uint64_t some = n ? strtoull(n, NULL, 0) : is_long && *is_long != '0' ? all : 12000;

    return some < all ? some : all;
}

static const struct softkvm_options kinds[] = {
    {.size = sizeof(kinds[0])},
    {.size = sizeof(kinds[0]), .mmu = SOFTKVM_MMU_NPT},
    {.size = sizeof(kinds[0]), .mmu = SOFTKVM_MMU_SHADOW},
};

static void all_modes(void **state)
{
    struct softkvm_check check = {.size = sizeof(check)};
    struct guest g;

    guest_open(&g, *state);
    for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        uint64_t all, n;

        g.mode = &modes[i];
        registers_init(&g);
        all = cases_in(&g);
        n = wanted(all);
        for (uint64_t k = 0; k < n; k++) {
            /* A step without a common factor with the count visits each once. */
            try_case(&g, n == all ? k : (k * UINT64_C(2654435761) + 12345) % all);
        }
        if (softkvm_ioctl(g.s, g.vm, SOFTKVM_CHECK, &check) < 0) {
            fail_msg("%s: %s", g.mode->name, check.text);
        }
    }
    guest_close(&g);
}

/*
 * Tables in a read-only slot: they are walked all the same (as if written, in AMD's format), no bit in them changes, and
 * nothing comes to user space for it.
 */
static void tables_in_read_only_memory(void **state)
{
    enum { ROM = 0x800000 };
    struct kvm_userspace_memory_region m = {1, KVM_MEM_READONLY, ROM, 0x10000, 0};
    struct test_case c = {.access = WRITE, .wp = true, .pse = true, .leaf_level = 2};
    static const struct mode rom_mode = {"tables in ROM", 4, ROM, UINT64_C(8) << 39 | TARGET, {0, NOWHERE, NOWHERE, NOWHERE}, 1};
    uint64_t *rom = mmap(NULL, 0x10000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), copy[5 * 512];
    struct guest g;

    guest_open(&g, *state);
    m.userspace_addr = (uintptr_t)rom;
    assert_int_equal(softkvm_ioctl(g.s, g.vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    rom[0] = (ROM + 0x1000) | 7; /* no accessed bits anywhere, no dirty bit in the leaf */
    rom[512] = (ROM + 0x2000) | 7;
    rom[1024] = PT | 7;
    rom[1025] = 0x200000 | 0x83;
    rom[8] = (ROM + 0x3000) | 7;
    rom[3 * 512] = (ROM + 0x4000) | 7;
    rom[4 * 512 + 1] = 0x200000 | 0x83;
    memcpy(copy, rom, sizeof(copy));
    g.mode = &rom_mode;
    registers_init(&g);
    for (unsigned i = 0; i < 3; i++) {
        struct kvm_regs r;

        c.access = (enum access)i;
        make_access(&g, &c);
        assert_int_equal(softkvm_ioctl(g.s, g.vcpu, KVM_GET_REGS, &r), 0);
        assert_int_equal(r.rip, i == FETCH ? g.mode->la + 1 : STUBS_SUPER + 16 * i + 3);
    }
    assert_memory_equal(copy, rom, sizeof(copy));
    assert_int_equal(*(uint32_t *)(void *)(g.ram + TARGET), 0xf4f4f4f4);
    guest_close(&g);
    munmap(rom, 0x10000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(all_modes, (void *)&kinds[0]),
        cmocka_unit_test_prestate(all_modes, (void *)&kinds[1]),
        cmocka_unit_test_prestate(all_modes, (void *)&kinds[2]),
        cmocka_unit_test_prestate(tables_in_read_only_memory, (void *)&kinds[0]),
        cmocka_unit_test_prestate(tables_in_read_only_memory, (void *)&kinds[1]),
        cmocka_unit_test_prestate(tables_in_read_only_memory, (void *)&kinds[2]),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
