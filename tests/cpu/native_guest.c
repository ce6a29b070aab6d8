/* The guest side of the instruction oracle; see native_guest.h. */
#include "native_guest.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/fpu.h"
#include "cpu/regs.h"
#include "cpu/request.h"
#include "cpu/run.h"
#include "host/frame.h"

/*
 * Guest-physical memory, 4 KiB pages, and where it lies in the guest's linear space:
 *
 *   1000 PML4  2000 PDPT  3000 PD  4000 PT of data  5000 PT of code  6000 PT of the kernel
 *   8000 GDT, TSS  9000 IDT  a000 handlers  b000 IRETQ  c000, d000 stack   all at KERNEL + gpa
 *   10000 code (user)  11000, 12000 data (user)
 * EPT tables are in the arena below GUEST_BASE; guest page n is at GUEST_BASE + n * 4096.
 */
#define ARENA_SIZE 0x80000u
#define GUEST_BASE 0x10000u
#define GUEST_SIZE 0x20000u
#define KERNEL     UINT64_C(0x30000000)
#define GPA_TSS    0x8800u
#define GPA_IDT    0x9000u
#define GPA_HANDLE 0xa000u
#define GPA_IRETQ  0xb000u
#define STACK_TOP  (KERNEL + 0xe000u)
#define GPA_CODE   0x10000u
#define GPA_DATA   0x11000u
#define SEL_KCODE  0x08
#define SEL_KDATA  0x10
#define SEL_UCODE32 0x23 /* as Linux has them, so that a stored selector compares */
#define SEL_UCODE  0x33
#define SEL_UDATA  0x2b
#define SEL_TSS    0x40

static uint8_t *gpa_ptr(struct native_guest *g, uint64_t gpa)
{
    return g->arena + GUEST_BASE + gpa;
}

static void put64(uint8_t *p, unsigned index, uint64_t v)
{
    memcpy(p + index * 8, &v, 8);
}

static void build_ept(struct native_guest *g)
{
    put64(g->arena + 0x1000, 0, 0x2000 | EPT_RWX);
    put64(g->arena + 0x2000, 0, 0x3000 | EPT_RWX);
    put64(g->arena + 0x3000, 0, 0x4000 | EPT_RWX);
    for (unsigned i = 0; i < GUEST_SIZE / 4096; i++) {
        put64(g->arena + 0x4000, i, (GUEST_BASE + i * 4096u) | EPT_RWX | EPT_MT_WB);
    }
}

static void build_tables(struct native_guest *g)
{
    uint64_t table = X86_PTE_P | X86_PTE_W | X86_PTE_U, user = table, nx = UINT64_C(1) << 63;

    put64(gpa_ptr(g, 0x1000), 0, 0x2000 | table);
    put64(gpa_ptr(g, 0x2000), 0, 0x3000 | table);
    put64(gpa_ptr(g, 0x3000), (unsigned)(NATIVE_DATA >> 21), 0x4000 | table);
    put64(gpa_ptr(g, 0x3000), (unsigned)(NATIVE_CODE >> 21), 0x5000 | table);
    put64(gpa_ptr(g, 0x3000), (unsigned)(KERNEL >> 21), 0x6000 | table);
    for (unsigned i = 0; i < NATIVE_DATA_SIZE / 4096; i++) {
        put64(gpa_ptr(g, 0x4000), i, (GPA_DATA + i * 4096u) | user | nx);
    }
    put64(gpa_ptr(g, 0x5000), 0, GPA_CODE | user);
    for (unsigned i = 0; i < GUEST_SIZE / 4096; i++) {
        put64(gpa_ptr(g, 0x6000), i, i * 4096u | X86_PTE_P | X86_PTE_W);
    }
}

/* GDT for IRETQ and interrupts, IDT whose handler n is at 16 * n, and the handlers' HLT. */
static void build_system(struct native_guest *g)
{
    uint8_t *gdt = gpa_ptr(g, 0x8000), *tss = gpa_ptr(g, GPA_TSS);
    uint64_t tss_base = KERNEL + GPA_TSS, rsp0 = STACK_TOP;

    put64(gdt, SEL_KCODE >> 3, UINT64_C(0x00af9b000000ffff));
    put64(gdt, SEL_KDATA >> 3, UINT64_C(0x00cf93000000ffff));
    put64(gdt, SEL_UCODE32 >> 3, UINT64_C(0x00cffb000000ffff));
    put64(gdt, SEL_UCODE >> 3, UINT64_C(0x00affb000000ffff));
    put64(gdt, SEL_UDATA >> 3, UINT64_C(0x00cff3000000ffff));
    put64(gdt, SEL_TSS >> 3, 0x67 | (tss_base & 0xffffff) << 16 | UINT64_C(0x8b) << 40 | tss_base >> 24 << 56);
    memcpy(tss + 4, &rsp0, 8);
    for (unsigned v = 0; v < 256; v++) {
        uint64_t handler = KERNEL + GPA_HANDLE + v * 16;
        uint64_t dpl = v == 3 || v == 4 ? 3 : 0;

        put64(gpa_ptr(g, GPA_IDT), v * 2, (handler & 0xffff) | SEL_KCODE << 16 | (UINT64_C(0x8e) | dpl << 5) << 40 |
                                              (handler >> 16 & 0xffff) << 48);
        put64(gpa_ptr(g, GPA_IDT), v * 2 + 1, handler >> 32);
        *gpa_ptr(g, GPA_HANDLE + v * 16) = 0xf4;
    }
    memcpy(gpa_ptr(g, GPA_IRETQ), "\x48\xcf", 2);
}

static struct cpu_seg segment(uint16_t sel, uint8_t type, uint8_t dpl, bool code)
{
    return (struct cpu_seg){.sel = sel, .type = type, .s = 1, .dpl = dpl, .p = 1, .g = 1,
                            .limit = 0xffffffff, .l = code, .db = !code};
}

static int start_cpu(struct native_guest *g)
{
    struct cpu_sregs s;
    struct cpu_seg data = segment(SEL_UDATA, 3, 3, false);

    cpu_reset(g->cpu, false);
    g->cpu->eptp = 0x1000 | EPTP_MT_WB | EPTP_LEVEL(4);
    g->cpu->maxphyaddr = 36;
    g->cpu->features = CPU_FEAT_NX | CPU_FEAT_LM | CPU_FEAT_XSAVE;
    cpu_get_sregs(g->cpu, &s);
    s.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_NE | X86_CR0_MP | X86_CR0_ET | X86_CR0_WP;
    s.cr3 = 0x1000;
    s.cr4 = X86_CR4_PAE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT | X86_CR4_OSXSAVE;
    s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NX;
    s.seg[CPU_CS] = segment(SEL_KCODE, 11, 0, true);
    s.seg[CPU_SS] = segment(SEL_KDATA, 3, 0, false);
    s.seg[CPU_DS] = s.seg[CPU_ES] = s.seg[CPU_FS] = s.seg[CPU_GS] = data;
    s.gdtr = (struct cpu_dtable){.base = KERNEL + 0x8000, .limit = 0x4f};
    s.idtr = (struct cpu_dtable){.base = KERNEL + GPA_IDT, .limit = 0xfff};
    s.tr = (struct cpu_seg){.sel = SEL_TSS, .base = KERNEL + GPA_TSS, .limit = 0x67, .type = 11, .p = 1};
    g->cpu->xcr0 = 3;
    return cpu_set_sregs(g->cpu, &s);
}

int native_guest_open(struct native_guest *g)
{
    memset(g, 0, sizeof(*g));
    g->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g->mem = calloc(1, sizeof(*g->mem));
    g->mem->nr_frames = ARENA_SIZE / 4096;
    g->mem->frames = calloc(g->mem->nr_frames, sizeof(*g->mem->frames));
    g->mem->arena = g->arena;
    for (unsigned i = 1; i < g->mem->nr_frames; i++) {
        g->mem->frames[i].data = g->arena + i * 4096u;
        g->mem->frames[i].refcount = 1;
        g->mem->frames[i].type = i * 4096u < GUEST_BASE ? HOST_FRAME_TABLE : HOST_FRAME_ANON;
    }
    g->code = gpa_ptr(g, GPA_CODE);
    g->data = gpa_ptr(g, GPA_DATA);
    build_ept(g);
    build_tables(g);
    build_system(g);
    g->peers = cpu_peers_new();
    g->cpu = g->peers ? cpu_new(g->mem, g->peers, 0) : NULL;
    return g->cpu ? start_cpu(g) : -ENOMEM;
}

void native_guest_close(struct native_guest *g)
{
    cpu_free(g->cpu);
    cpu_peers_free(g->peers);
    free(g->mem->frames);
    free(g->mem);
    munmap(g->arena, ARENA_SIZE);
}

bool native_guest_is_kernel(uint64_t la)
{
    return la >> 21 == KERNEL >> 21;
}

void native_guest_code(struct native_guest *g, const uint8_t *code, unsigned len)
{
    memcpy(g->code + NATIVE_CODE_AT, code, len);
    g->code[NATIVE_CODE_AT + len] = 0xcc;
    cpu_request(g->cpu, CPU_REQ_CODE);
}

static void enter(struct native_guest *g, const struct native_regs *io)
{
    uint64_t frame[5] = {NATIVE_CODE + NATIVE_CODE_AT, g->is_compat ? SEL_UCODE32 : SEL_UCODE,
                         (io->rflags & 0xcd5) | 0x202, io->gpr[CPU_RSP],
                         SEL_UDATA};
    struct cpu_regs regs = {.rip = KERNEL + GPA_IRETQ, .rflags = 2};

    memcpy(regs.gpr, io->gpr, sizeof(regs.gpr));
    regs.gpr[CPU_RSP] = STACK_TOP - 0x800;
    memcpy(gpa_ptr(g, STACK_TOP - KERNEL - 0x800), frame, sizeof(frame));
    cpu_set_regs(g->cpu, &regs);
    if (cpu_fxrstor_image(g->cpu, io->fx) < 0) {
        abort();
    }
}

/* Vectors that push an error code. */
#define WITH_ERROR 0x27d00u

static void leave(struct native_guest *g, struct native_regs *io, struct native_outcome *out)
{
    struct cpu_regs regs;
    uint64_t frame[6];
    bool error;

    cpu_get_regs(g->cpu, &regs);
    out->vector = (unsigned)((regs.rip - 1 - (KERNEL + GPA_HANDLE)) / 16);
    error = out->vector < 32 && (WITH_ERROR >> out->vector & 1);
    memcpy(frame + !error, gpa_ptr(g, regs.gpr[CPU_RSP] - KERNEL), error ? 48 : 40);
    memcpy(io->gpr, regs.gpr, sizeof(regs.gpr));
    io->rip = frame[1];
    io->rflags = frame[3];
    io->gpr[CPU_RSP] = frame[4];
    out->error = error ? frame[0] : 0;
    out->cr2 = out->vector == 14 ? g->cpu->cr2 : 0;
    cpu_fxsave_image(g->cpu, io->fx);
}

int native_guest_run(struct native_guest *g, unsigned len, struct native_regs *io,
                     struct native_outcome *out)
{
    enum cpu_exit_reason why;

    enter(g, io);
    do {
        why = cpu_run(g->cpu);
    } while (why == CPU_EXIT_PAUSE);
    *out = (struct native_outcome){.vector = 0x1000u + why};
    if (why != CPU_EXIT_HLT) {
        return -1;
    }
    leave(g, io, out);
    if (out->vector == 3 && io->rip == NATIVE_CODE + NATIVE_CODE_AT + len + 1) {
        out->vector = NATIVE_NO_VECTOR;
        io->rip--;
    }
    return 0;
}
