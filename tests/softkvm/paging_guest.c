#include "paging_guest.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "softkvm/inspect.h"

/* Lower memory. */
#define STUBS    0x1000u
#define GDT      0x2000u
#define IDT      0x3000u
#define TSS      0x4000u
#define STACK    0x6000u /* grows down */
#define HANDLERS 0x7000u
#define USER     0x8000u
#define TABLES   0x10000u
#define ROOTS    0x20000u
#define WINDOW   UINT64_C(0x800000000) /* long mode: where all memory is mapped once more */

#define CS0 0x08u
#define DS0 0x10u
#define CS3 0x1bu
#define DS3 0x23u
#define TR  0x28u

enum stub { LOAD, STORE, STORE4, STORE1, STORE16, FETCH, XCHG, LOCK_OR, INVLPG, CR3, CR0, CR4, WRMSR, INVPCID, IRET, NSTUBS };

struct code {
    uint8_t len, bytes[7];
};

/* RBX: address, RAX: value. The second row of each pair is for 32-bit code. */
static const struct code stubs[NSTUBS][2] = {
    [LOAD] = {{3, {0x8a, 0x03, 0xf4}}, {3, {0x8a, 0x03, 0xf4}}},
    [STORE] = {{4, {0x48, 0x89, 0x03, 0xf4}}, {3, {0x89, 0x03, 0xf4}}},
    [STORE4] = {{3, {0x89, 0x03, 0xf4}}, {3, {0x89, 0x03, 0xf4}}},
    [STORE1] = {{3, {0x88, 0x03, 0xf4}}, {3, {0x88, 0x03, 0xf4}}},
    [STORE16] = {{4, {0x0f, 0x11, 0x03, 0xf4}}, {4, {0x0f, 0x11, 0x03, 0xf4}}},
    [FETCH] = {{2, {0xff, 0xe3}}, {2, {0xff, 0xe3}}},
    [XCHG] = {{4, {0x48, 0x87, 0x03, 0xf4}}, {3, {0x87, 0x03, 0xf4}}},
    [LOCK_OR] = {{5, {0xf0, 0x48, 0x09, 0x03, 0xf4}}, {4, {0xf0, 0x09, 0x03, 0xf4}}},
    [INVLPG] = {{4, {0x0f, 0x01, 0x3b, 0xf4}}, {4, {0x0f, 0x01, 0x3b, 0xf4}}},
    [CR3] = {{4, {0x0f, 0x22, 0xd8, 0xf4}}, {4, {0x0f, 0x22, 0xd8, 0xf4}}},
    [CR0] = {{4, {0x0f, 0x22, 0xc0, 0xf4}}, {4, {0x0f, 0x22, 0xc0, 0xf4}}},
    [CR4] = {{4, {0x0f, 0x22, 0xe0, 0xf4}}, {4, {0x0f, 0x22, 0xe0, 0xf4}}},
    [WRMSR] = {{3, {0x0f, 0x30, 0xf4}}, {3, {0x0f, 0x30, 0xf4}}},
    [INVPCID] = {{6, {0x66, 0x0f, 0x38, 0x82, 0x0b, 0xf4}}, {6, {0x66, 0x0f, 0x38, 0x82, 0x0b, 0xf4}}},
    [IRET] = {{2, {0x48, 0xcf}}, {1, {0xcf}}},
};

/* The same accesses at level 3 end in INT 0x80. */
static const struct code user_stubs[][2] = {
    [LOAD] = {{4, {0x8a, 0x03, 0xcd, 0x80}}, {4, {0x8a, 0x03, 0xcd, 0x80}}},
    [STORE] = {{5, {0x48, 0x89, 0x03, 0xcd, 0x80}}, {4, {0x89, 0x03, 0xcd, 0x80}}},
    [FETCH] = {{2, {0xff, 0xe3}}, {2, {0xff, 0xe3}}},
};

static bool is_long(const struct pg *g)
{
    return g->mode >= PG_4LEVEL;
}

static uint64_t window(const struct pg *g)
{
    return is_long(g) ? WINDOW : 0;
}

/* ---- memory, both the guest's and the copy ---- */

static void put(struct pg *g, uint64_t at, const void *p, size_t n)
{
    assert_true(at + n <= PG_RAM);
    memcpy(g->ram + at, p, n);
    memcpy(g->copy + at, p, n);
}

static void put32(struct pg *g, uint64_t at, uint32_t v)
{
    put(g, at, &v, 4);
}

static void put64(struct pg *g, uint64_t at, uint64_t v)
{
    put(g, at, &v, 8);
}

/* The oracle's memory: the copy, and above it a second stage that maps the first 16 MiB one to one. */
#define STAGE2 (UINT64_C(1) << 45)

static uint64_t oracle_get(void *opaque, uint64_t hpa)
{
    const struct pg *g = opaque;
    uint64_t v = 0, unit;

    if (hpa < PG_RAM) {
        memcpy(&v, g->copy + hpa, 8);
    } else if (hpa >= STAGE2 && hpa < STAGE2 + 0x3000) {
        unit = (hpa - STAGE2) / 0x1000;
        if (unit < 2 && !(hpa & 0xfff)) {
            v = (STAGE2 + (unit + 1) * 0x1000) | 7;
        } else if (unit == 2 && (hpa & 0xfff) < PG_RAM >> 21 << 3) {
            v = (hpa & 0xfff) >> 3 << 21 | 0xb7;
        }
    }
    return v;
}

static void oracle_put(void *opaque, uint64_t hpa, uint64_t v)
{
    struct pg *g = opaque;

    if (hpa < PG_RAM) {
        memcpy(g->copy + hpa, &v, 8);
    }
}

static void oracle_keep(void *opaque, uint64_t hpa, uint64_t v)
{
}

static void oracle_update(struct pg *g)
{
    struct ow_machine *o = &g->oracle;

    o->mem = (struct ow_memory){oracle_get, oracle_put, g};
    o->levels = g->mode == PG_32 ? 2 : g->mode == PG_PAE ? 3 : g->mode == PG_4LEVEL ? 4 : 5;
    o->root = g->cr3 & UINT64_C(0xffffffffff000);
    o->wp = g->cr0 >> 16 & 1;
    o->smep = g->cr4 >> 20 & 1;
    o->smap = g->cr4 >> 21 & 1;
    o->pse = g->cr4 >> 4 & 1;
    o->nxe = g->efer >> 11 & 1;
    o->has_1g = true;
    o->width = 46;
    o->ept_root = STAGE2;
    o->stage2_levels = 4;
}

static void oracle_load_pdptes(struct pg *g)
{
    if (g->mode == PG_PAE) {
        memcpy(g->oracle.pdpte, g->copy + (g->cr3 & 0xffffffe0), 32);
    }
}

void pg_expect(struct pg *g, const struct ow_access *a, bool try, struct ow_outcome *out)
{
    struct ow_access ax = *a;

    oracle_update(g);
    g->oracle.mem.put = try ? oracle_keep : oracle_put;
    if (g->mode == PG_NONE) {
        *out = (struct ow_outcome){.result = a->la < PG_RAM ? OW_OK : OW_VIOLATION, .gpa = a->la, .final = true};
        return;
    }
    ow_translate(&g->oracle, &ax, out);
}

/* ---- making the guest ---- */

static void put_gate(struct pg *g, unsigned vector, unsigned dpl)
{
    uint32_t to = HANDLERS + vector * 16;
    uint32_t w[4] = {CS0 << 16 | (to & 0xffff), (to & 0xffff0000) | 0x8e00 | dpl << 13, 0, 0};

    put(g, IDT + vector * (is_long(g) ? 16u : 8u), w, is_long(g) ? 16 : 8);
}

static void put_descriptors(struct pg *g)
{
    uint64_t l = is_long(g) ? UINT64_C(0x00af000000000000) : UINT64_C(0x00cf000000000000);

    put64(g, GDT + CS0, l | UINT64_C(0x9b000000ffff));
    put64(g, GDT + DS0, UINT64_C(0x00cf93000000ffff));
    put64(g, GDT + (CS3 & ~7u), l | UINT64_C(0xfb000000ffff));
    put64(g, GDT + (DS3 & ~7u), UINT64_C(0x00cff3000000ffff));
    put64(g, GDT + TR, (uint64_t)TSS << 16 | 0x67 | UINT64_C(0x8b) << 40);
    put64(g, GDT + TR + 8, 0);
    put32(g, TSS + 4, STACK);
    put32(g, TSS + 8, is_long(g) ? 0 : DS0);
    put_gate(g, 13, 0);
    put_gate(g, 14, 0);
    put_gate(g, 0x80, 3);
}

static void put_code(struct pg *g)
{
    static const uint8_t pf[] = {0x0f, 0x20, 0xd0, 0x59, 0x5a, 0xf4}; /* mov rax, cr2; pop rcx; pop rdx; hlt */
    static const uint8_t gp[] = {0x31, 0xc0, 0x59, 0x5a, 0xf4};
    static const uint8_t soft[] = {0xf4};

    for (unsigned i = 0; i < NSTUBS; i++) {
        put(g, STUBS + i * 16, stubs[i][!is_long(g)].bytes, stubs[i][!is_long(g)].len);
        if (i == LOAD || i == STORE || i == FETCH) {
            put(g, USER + i * 16, user_stubs[i][!is_long(g)].bytes, user_stubs[i][!is_long(g)].len);
        }
    }
    put(g, HANDLERS + 14 * 16, pf, sizeof(pf));
    put(g, HANDLERS + 13 * 16, gp, sizeof(gp));
    put(g, HANDLERS + 0x80 * 16, soft, sizeof(soft));
}

/* Lower tables: [0, 4 MiB) in small pages, of which USER is the user's. 32-bit and PAE map all memory so. */
static void put_small_pages(struct pg *g)
{
    unsigned size = g->mode == PG_32 ? 4 : 8, n = PG_RAM >> 12;

    for (unsigned i = 0; i < n; i++) {
        uint64_t e = (uint64_t)i << 12 | 0x63 | (i << 12 == USER ? 4 : 0);

        put(g, 0x100000 + i * size, &e, size);
    }
}

/* Tables of the window: long mode maps it by 2 MiB pages. */
static void put_long_tables(struct pg *g, uint64_t pdpt)
{
    uint64_t pd = TABLES + 0x1000, wide = TABLES + 0x2000;

    put64(g, pdpt, pd | 0x67);
    put64(g, pd, 0x100000 | 0x67);
    put64(g, pdpt + 8 * (WINDOW >> 30 & 511), wide | 0x67);
    for (unsigned i = 0; i < PG_RAM >> 21; i++) {
        put64(g, wide + i * 8, (uint64_t)i << 21 | 0xe3);
    }
}

static void put_root(struct pg *g, uint64_t root)
{
    unsigned i;

    switch (g->mode) {
    case PG_NONE:
        break;
    case PG_32:
        for (i = 0; i < PG_RAM >> 22; i++) {
            put32(g, root + i * 4, (uint32_t)(0x100000 + i * 0x1000) | 0x67);
        }
        break;
    case PG_PAE:
        put64(g, root, TABLES | 1);
        for (i = 0; i < PG_RAM >> 21; i++) {
            put64(g, TABLES + i * 8, (uint64_t)(0x100000 + i * 0x1000) | 0x67);
        }
        break;
    case PG_4LEVEL:
        put64(g, root, TABLES | 0x67);
        put_long_tables(g, TABLES);
        break;
    case PG_5LEVEL:
        put64(g, root, (TABLES + 0x3000) | 0x67);
        put64(g, TABLES + 0x3000, TABLES | 0x67);
        put_long_tables(g, TABLES);
        break;
    }
}

uint64_t pg_root(const struct pg *g, unsigned i)
{
    return ROOTS + i * 0x1000;
}

static void set_cpuid(struct pg *g)
{
    struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + 128 * sizeof(c->entries[0]));

    c->nent = 128;
    assert_int_equal(softkvm_ioctl(g->s, g->kvm, KVM_GET_SUPPORTED_CPUID, c), 0);
    for (unsigned i = 0; i < c->nent; i++) {
        if (c->entries[i].function == 7 && c->entries[i].index == 0) {
            c->entries[i].ecx |= g->mode == PG_5LEVEL ? 1u << 16 : 0;
            c->entries[i].ebx |= 1u << 7 | 1u << 20 | 1u << 10;
        } else if (c->entries[i].function == 1) {
            c->entries[i].ecx |= 1u << 17;
        } else if (c->entries[i].function == 0x80000001) {
            c->entries[i].edx |= 1u << 26;
        }
    }
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_CPUID2, c), 0);
    free(c);
}

static void set_sregs(struct pg *g)
{
    struct kvm_segment code = {.limit = 0xffffffff, .selector = CS0, .type = 11, .present = 1, .s = 1, .g = 1,
                               .db = !is_long(g), .l = is_long(g)};
    struct kvm_segment data = {.limit = 0xffffffff, .selector = DS0, .type = 3, .present = 1, .s = 1, .g = 1, .db = 1};
    struct kvm_sregs r;

    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_SREGS, &r), 0);
    r.cs = code;
    r.ss = data;
    data.selector = DS3;
    data.dpl = 3;
    r.ds = r.es = r.fs = r.gs = data; /* good at both privileges */
    r.tr = (struct kvm_segment){.base = TSS, .limit = 0x67, .selector = TR, .type = 11, .present = 1};
    r.gdt.base = GDT;
    r.gdt.limit = 0x3f;
    r.idt.base = IDT;
    r.idt.limit = 0xfff;
    r.cr0 = g->cr0;
    r.cr3 = g->cr3;
    r.cr4 = g->cr4;
    r.efer = g->efer;
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_SREGS, &r), 0);
}

static bool is_to_fail(void *opaque)
{
    struct pg *g = opaque;

    if (g->fail_in == 0 || --g->fail_in) {
        return false;
    }
    g->failures++;
    return true;
}

struct pg *pg_new(enum softkvm_mmu mmu, enum pg_mode mode)
{
    struct pg *g = calloc(1, sizeof(*g));
    struct softkvm_options o = {.size = sizeof(o), .mmu = mmu, .fail_alloc = is_to_fail, .fail_opaque = g};
    struct kvm_userspace_memory_region slot = {0, 0, 0, PG_RAM, 0};
    int e;

    g->mode = mode;
    g->s = softkvm_new(&o, NULL, 0);
    assert_non_null(g->s);
    g->kvm = softkvm_open_system(g->s);
    g->vm = softkvm_ioctl(g->s, g->kvm, KVM_CREATE_VM, NULL);
    g->ram = mmap(NULL, PG_RAM + 0x200000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g->ram += -(uintptr_t)g->ram & 0x1fffff;
    g->copy = calloc(1, PG_RAM);
    memset(g->ram + PG_FREE, PG_HLT, PG_RAM - PG_FREE);
    memset(g->copy + PG_FREE, PG_HLT, PG_RAM - PG_FREE);
    slot.userspace_addr = (uintptr_t)g->ram;
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    g->vcpu = softkvm_ioctl(g->s, g->vm, KVM_CREATE_VCPU, NULL);
    assert_true(g->vcpu >= 0);
    g->run = softkvm_mmap(g->s, g->vcpu, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    set_cpuid(g);
    put_descriptors(g);
    put_code(g);
    put_small_pages(g);
    for (unsigned i = 0; i < PG_ROOTS; i++) {
        put_root(g, pg_root(g, i));
    }
    g->cr0 = 0x31 | (mode == PG_NONE ? 0 : 0x80010000u);
    g->cr3 = ROOTS;
    g->cr4 = mode == PG_NONE ? 0x200 : mode == PG_32 ? 0x210 : mode == PG_5LEVEL ? 0x1220 : 0x220;
    g->efer = mode >= PG_4LEVEL ? 0xd00 : mode == PG_PAE ? 0x800 : 0;
    set_sregs(g);
    oracle_load_pdptes(g);
    return g;
}

void pg_free(struct pg *g)
{
    softkvm_free(g->s);
    munmap(g->ram, PG_RAM);
    free(g->copy);
    free(g);
}

void pg_check(struct pg *g)
{
    struct softkvm_check c = {.size = sizeof(c)};
    unsigned fail_in = g->fail_in;

    g->fail_in = 0;
    if (softkvm_ioctl(g->s, g->vm, SOFTKVM_CHECK, &c) != 0) {
        fail_msg("%s", c.text);
    }
    g->fail_in = fail_in;
}

/* ---- running ---- */

static void run_from(struct pg *g, struct kvm_regs *r, struct pg_result *out)
{
    struct kvm_regs after;
    uint64_t pf = HANDLERS + 14 * 16 + 6, gp = HANDLERS + 13 * 16 + 5;

    r->rflags |= 2;
    *out = (struct pg_result){PG_DONE, 0, 0, 0, 0};
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_REGS, r), 0);
    for (;;) {
        unsigned failures = g->failures;
        int e = softkvm_ioctl(g->s, g->vcpu, KVM_RUN, NULL);

        if (e == -ENOMEM && g->failures > failures) {
            continue; /* memory is there again */
        }
        assert_int_equal(e, 0);
        if (g->run->exit_reason != KVM_EXIT_MMIO) {
            break;
        }
        out->outcome = PG_DEVICE;
        out->gpa = g->run->mmio.phys_addr;
        memset(g->run->mmio.data, 0x5a, g->run->mmio.is_write ? 0 : 8);
    }
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_REGS, &after), 0);
    if (g->run->exit_reason != KVM_EXIT_HLT) {
        fail_msg("exit %u at rip 0x%llx", g->run->exit_reason, (unsigned long long)after.rip);
    }
    out->value = after.rax & 0xff;
    if (after.rip == pf) {
        out->outcome = PG_FAULT;
        out->cr2 = after.rax;
        out->error = (uint32_t)after.rcx;
    } else if (after.rip == gp) {
        out->outcome = PG_GP;
        out->gpa = after.rdx; /* where */
    }
    if (g->check_every && ++g->steps % g->check_every == 0) {
        pg_check(g);
    }
}

/* The frame that IRET pops, and registers to run it with. */
static void user_frame(struct pg *g, struct kvm_regs *r, uint64_t rip)
{
    uint64_t frame[5] = {rip, CS3, 2 | (r->rflags & 0x40000), USER + 0x800, DS3};
    unsigned n = is_long(g) ? 8 : 4;
    uint64_t at = STACK - 0x800;

    for (unsigned i = 0; i < 5; i++) {
        put(g, at + i * n, &frame[i], n);
    }
    r->rsp = at;
    r->rip = STUBS + IRET * 16;
    r->rflags = 2;
}

void pg_access(struct pg *g, const struct ow_access *a, uint64_t value, struct pg_result *out)
{
    unsigned what = a->fetch ? FETCH : a->write ? STORE : LOAD;
    struct kvm_regs r = {.rbx = a->la, .rax = value, .rsp = STACK, .rip = STUBS + what * 16};

    r.rflags = g->oracle.ac ? 0x40000 : 0;
    if (a->user) {
        user_frame(g, &r, USER + what * 16);
    }
    run_from(g, &r, out);
    if (a->user && a->fetch && out->outcome == PG_GP && out->gpa == a->la) {
        out->outcome = PG_DONE; /* HLT at level 3, at the address itself */
    }
}

static void run_stub(struct pg *g, unsigned stub, struct kvm_regs *r, struct pg_result *out)
{
    r->rip = STUBS + stub * 16;
    r->rsp = STACK;
    run_from(g, r, out);
}

static void poke_once(struct pg *g, uint64_t gpa, uint64_t value, unsigned bytes, unsigned kind)
{
    static const unsigned by_kind[] = {STORE, XCHG, LOCK_OR};
    struct kvm_regs r = {.rbx = window(g) + gpa, .rax = value};
    struct pg_result out;
    uint64_t old = 0;

    memcpy(&old, g->copy + gpa, bytes);
    if (kind % 3 == 2) {
        value |= old;
    }
    memcpy(g->copy + gpa, &value, bytes);
    run_stub(g, bytes == 1 ? STORE1 : bytes == 4 && kind % 3 == 0 ? STORE4 : by_kind[kind % 3], &r, &out);
    assert_int_equal(out.outcome, PG_DONE);
}

void pg_poke(struct pg *g, uint64_t gpa, uint64_t value, unsigned bytes, unsigned kind)
{
    struct pg_result out;

    if (g->cr4 >> 21 & 1) {
        assert_true(gpa >> 12 != USER >> 12);
    }
    if (bytes == 16) {
        struct kvm_regs r = {.rbx = window(g) + gpa};
        struct kvm_fpu f = {.fcw = 0x37f, .mxcsr = 0x1f80};

        memcpy(f.xmm[0], &value, 8);
        memcpy(f.xmm[0] + 8, &value, 8);
        assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_FPU, &f), 0);
        memcpy(g->copy + gpa, f.xmm[0], 16);
        run_stub(g, STORE16, &r, &out);
        assert_int_equal(out.outcome, PG_DONE);
    } else if (bytes == 8 && !is_long(g)) {
        poke_once(g, gpa, (uint32_t)value, 4, kind);
        poke_once(g, gpa + 4, value >> 32, 4, kind);
    } else {
        poke_once(g, gpa, value, bytes, bytes == 4 && is_long(g) ? 0 : kind);
    }
}

void pg_invlpg(struct pg *g, uint64_t la)
{
    struct kvm_regs r = {.rbx = la};
    struct pg_result out;

    run_stub(g, INVLPG, &r, &out);
    assert_int_equal(out.outcome, PG_DONE);
}

void pg_set_cr3(struct pg *g, uint64_t value, struct pg_result *out)
{
    struct kvm_regs r = {.rax = value};

    run_stub(g, CR3, &r, out);
    if (out->outcome == PG_DONE) {
        g->cr3 = value & ~(UINT64_C(1) << 63);
        oracle_load_pdptes(g);
    }
}

void pg_set_cr(struct pg *g, unsigned n, uint64_t value)
{
    struct kvm_regs r = {.rax = value};
    struct pg_result out;

    run_stub(g, n == 0 ? CR0 : CR4, &r, &out);
    assert_int_equal(out.outcome, PG_DONE);
    *(n == 0 ? &g->cr0 : &g->cr4) = value;
    if (n == 4) {
        oracle_load_pdptes(g);
    }
}

void pg_set_nxe(struct pg *g, bool on)
{
    uint64_t v = (g->efer & ~UINT64_C(0x800)) | (on ? 0x800 : 0);
    struct kvm_regs r = {.rcx = 0xc0000080u, .rax = v};
    struct pg_result out;

    run_stub(g, WRMSR, &r, &out);
    assert_int_equal(out.outcome, PG_DONE);
    g->efer = v;
}

void pg_invpcid(struct pg *g, unsigned type, uint64_t pcid, uint64_t la)
{
    uint64_t d[2] = {pcid, la};
    struct kvm_regs r = {.rbx = STACK - 0x100, .rcx = type};
    struct pg_result out;

    put(g, STACK - 0x100, d, sizeof(d));
    run_stub(g, INVPCID, &r, &out);
    assert_int_equal(out.outcome, PG_DONE);
}
