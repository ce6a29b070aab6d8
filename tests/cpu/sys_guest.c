/* The bare machine of the system tests; see sys_guest.h. */
#include "sys_guest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/request.h"
#include "host/frame.h"

#define GUEST_BASE 0x10000u
#define ARENA_SIZE (GUEST_BASE + SG_RAM)
#define FEATURES                                                                                   \
    (CPU_FEAT_PCID | CPU_FEAT_1G | CPU_FEAT_SMEP | CPU_FEAT_SMAP | CPU_FEAT_NX | CPU_FEAT_FSGSBASE | CPU_FEAT_LM |  \
     CPU_FEAT_UMIP | CPU_FEAT_RDTSCP | CPU_FEAT_RDPID | CPU_FEAT_INVPCID | CPU_FEAT_XSAVE)

void sg_put(struct sys_guest *g, uint32_t gpa, const void *data, unsigned len)
{
    memcpy(g->ram + gpa, data, len);
}

uint64_t sg_get(struct sys_guest *g, uint32_t gpa, unsigned len)
{
    uint64_t v = 0;

    memcpy(&v, g->ram + gpa, len);
    return v;
}

static void put64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, 8);
}

/* access: P, DPL, S, type; flags: G, D/B, L, AVL as the descriptor's upper nibble. */
uint64_t sg_desc(uint32_t base, uint32_t limit, unsigned access, unsigned flags)
{
    return (limit & 0xffff) | (uint64_t)(base & 0xffffff) << 16 | (uint64_t)access << 40 |
           (uint64_t)(limit >> 16 & 0xf) << 48 | (uint64_t)flags << 52 | (uint64_t)(base >> 24) << 56;
}

void sg_gdt(struct sys_guest *g, unsigned index, uint64_t lo, uint64_t hi)
{
    put64(g->ram + SG_GDT + index * 8, lo);
    put64(g->ram + SG_GDT + index * 8 + 8, hi);
}

static void gdt_one(struct sys_guest *g, unsigned index, uint64_t v)
{
    put64(g->ram + SG_GDT + index * 8, v);
}

void sg_gate(struct sys_guest *g, unsigned vector, uint16_t sel, uint32_t offset, unsigned access, bool wide)
{
    uint64_t lo = (offset & 0xffff) | (uint64_t)sel << 16 | (uint64_t)access << 40 | (uint64_t)(offset >> 16) << 48;

    put64(g->ram + SG_IDT + vector * (wide ? 16 : 8), lo);
    if (wide) {
        put64(g->ram + SG_IDT + vector * 16 + 8, 0);
    }
}

static void build_gdt(struct sys_guest *g)
{
    unsigned level;

    memset(g->ram + SG_GDT, 0, 0x1000);
    for (level = 0; level < 4; level++) {
        gdt_one(g, 1 + 2 * level, sg_desc(0, 0xfffff, 0x9b | level << 5, 0xc));
        gdt_one(g, 2 + 2 * level, sg_desc(0, 0xfffff, 0x93 | level << 5, 0xc));
    }
    gdt_one(g, 9, sg_desc(0, 0xfffff, 0x9b, 0xa));
    gdt_one(g, 10, sg_desc(0, 0xfffff, 0xfb, 0xa));
    gdt_one(g, 11, sg_desc(SG_TSS, 0x7ff, 0x8b, 0));
    gdt_one(g, 13, sg_desc(SG_TSS2, 0x67, 0x89, 0));
    gdt_one(g, 17, sg_desc(0, 0xffff, 0x9b, 0));
    gdt_one(g, 18, sg_desc(0, 0xffff, 0x93, 0));
}

static void build_tss(struct sys_guest *g, bool wide)
{
    uint8_t *t = g->ram + SG_TSS;
    unsigned level;

    memset(t, 0, 0x1000);
    put64(t + 96, (uint64_t)104 << 48); /* permission map right behind; all bits clear */
    for (level = 0; level < 3; level++) {
        if (wide) {
            put64(t + 4 + level * 8, SG_STACK(level));
        } else {
            uint32_t sp = SG_STACK(level), ss = SG_DS(level);

            memcpy(t + 4 + level * 8, &sp, 4);
            memcpy(t + 8 + level * 8, &ss, 4);
        }
    }
}

static void build_idt(struct sys_guest *g, bool wide)
{
    unsigned v;

    for (v = 0; v < 256; v++) {
        uint32_t ivt = SG_HANDLER + v * 16;

        if (v * (wide ? 16u : 8u) + (wide ? 16 : 8) <= 0x1000) {
            sg_gate(g, v, wide ? SG_CS64(0) : SG_CS(0), SG_HANDLER + v * 16, 0xee, wide);
        }
        memcpy(g->ram + v * 4, &ivt, 4);
        memcpy(g->ram + SG_HANDLER + v * 16, "\x0f\x01\xc1", 3);
    }
}

static void build_tables(struct sys_guest *g)
{
    uint64_t rights = X86_PTE_P | X86_PTE_W | X86_PTE_U;

    put64(g->ram + SG_PML4, (SG_PML4 + 0x1000) | rights);
    put64(g->ram + SG_PML4 + 0x1000, (SG_PML4 + 0x2000) | rights);
    put64(g->ram + SG_PML4 + 0x2000, rights | X86_PTE_PS);
}

static struct cpu_seg segment(uint16_t sel, unsigned access, unsigned flags, uint32_t base, uint32_t limit)
{
    return (struct cpu_seg){.base = base, .limit = limit, .sel = sel, .type = access & 15, .s = access >> 4 & 1,
                            .dpl = access >> 5 & 3, .p = access >> 7, .avl = flags & 1, .l = flags >> 1 & 1,
                            .db = flags >> 2 & 1, .g = flags >> 3 & 1};
}

static void set_segments(struct cpu_sregs *s, enum sg_mode mode, unsigned level)
{
    unsigned dpl = level << 5, i;
    struct cpu_seg data = segment(SG_DS(level), 0x93 | dpl, 0xc, 0, UINT32_MAX);

    s->seg[CPU_CS] = segment(SG_CS(level), 0x9b | dpl, 0xc, 0, UINT32_MAX);
    if (mode == SG_LONG) {
        s->seg[CPU_CS] = segment(SG_CS64(level), 0x9b | dpl, 0xa, 0, UINT32_MAX);
    } else if (mode == SG_PM16) {
        s->seg[CPU_CS] = segment(SG_CS16, 0x9b, 0, 0, 0xffff);
        data = segment(SG_DS16, 0x93, 0, 0, 0xffff);
    } else if (mode == SG_REAL || mode == SG_V86) {
        s->seg[CPU_CS] = segment(0, mode == SG_V86 ? 0xf3 : 0x9b, 0, 0, 0xffff);
        data = segment(0, mode == SG_V86 ? 0xf3 : 0x93, 0, 0, 0xffff);
    }
    for (i = 0; i < CPU_NSEGS; i++) {
        if (i != CPU_CS) {
            s->seg[i] = data;
        }
    }
}

void sg_reset(struct sys_guest *g, enum sg_mode mode, unsigned level)
{
    bool wide = mode == SG_LONG || mode == SG_COMPAT;
    struct cpu_sregs s;
    struct cpu_regs r = {.rip = SG_CODE, .rflags = 2};

    memset(g->ram, 0, SG_RAM);
    build_gdt(g);
    build_tss(g, wide);
    build_idt(g, wide);
    build_tables(g);
    cpu_reset(g->cpu, false);
    g->cpu->eptp = 0x1000 | EPTP_MT_WB | EPTP_LEVEL(4);
    g->cpu->maxphyaddr = 36;
    g->cpu->features = FEATURES;
    cpu_get_sregs(g->cpu, &s);
    set_segments(&s, mode, level);
    s.cr0 = X86_CR0_ET | X86_CR0_NE | (mode == SG_REAL ? 0 : X86_CR0_PE) | (wide ? X86_CR0_PG : 0);
    s.cr4 = wide ? X86_CR4_PAE : 0;
    s.cr3 = SG_PML4;
    s.efer = wide ? X86_EFER_LME | X86_EFER_LMA : 0;
    s.gdtr = (struct cpu_dtable){.base = SG_GDT, .limit = 0xff};
    s.idtr = mode == SG_REAL ? (struct cpu_dtable){.limit = 0x3ff} : (struct cpu_dtable){.base = SG_IDT, .limit = 0xfff};
    s.tr = segment(SG_TSS_SEL, 0x8b, 0, SG_TSS, 0x7ff);
    s.ldtr = (struct cpu_seg){.unusable = 1};
    if (cpu_set_sregs(g->cpu, &s) != 0) {
        abort();
    }
    r.gpr[CPU_RSP] = SG_STACK(level) - 0x100;
    r.rflags |= mode == SG_V86 ? X86_VM : 0;
    cpu_set_regs(g->cpu, &r);
    cpu_request(g->cpu, CPU_REQ_CODE);
}

void sg_code(struct sys_guest *g, const void *code, unsigned len)
{
    memcpy(g->ram + SG_CODE, code, len);
    memcpy(g->ram + SG_CODE + len, "\x0f\x01\xc1", 3);
    cpu_request(g->cpu, CPU_REQ_CODE);
}

void sg_open(struct sys_guest *g)
{
    unsigned i;

    memset(g, 0, sizeof(*g));
    g->arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    g->mem = calloc(1, sizeof(*g->mem));
    g->mem->nr_frames = ARENA_SIZE / 4096;
    g->mem->frames = calloc(g->mem->nr_frames, sizeof(*g->mem->frames));
    g->mem->arena = g->arena;
    for (i = 1; i < g->mem->nr_frames; i++) {
        g->mem->frames[i].data = g->arena + i * 4096u;
        g->mem->frames[i].refcount = 1;
        g->mem->frames[i].type = i * 4096u < GUEST_BASE ? HOST_FRAME_TABLE : HOST_FRAME_ANON;
    }
    g->ram = g->arena + GUEST_BASE;
    put64(g->arena + 0x1000, 0x2000 | EPT_RWX);
    put64(g->arena + 0x2000, 0x3000 | EPT_RWX);
    put64(g->arena + 0x3000, 0x4000 | EPT_RWX);
    for (i = 0; i < SG_RAM / 4096; i++) {
        put64(g->arena + 0x4000 + i * 8, (GUEST_BASE + i * 4096u) | EPT_RWX | EPT_MT_WB);
    }
    g->peers = cpu_peers_new();
    g->cpu = cpu_new(g->mem, g->peers, 0);
    if (!g->cpu) {
        abort();
    }
}

void sg_close(struct sys_guest *g)
{
    cpu_free(g->cpu);
    cpu_peers_free(g->peers);
    free(g->mem->frames);
    free(g->mem);
    munmap(g->arena, ARENA_SIZE);
}

/* Vectors 8, 10 to 14 and 17 push an error code. */
#define WITH_ERROR 0x27d00u

static void fill(struct sys_guest *g, struct sg_outcome *out)
{
    uint64_t sp;

    cpu_get_regs(g->cpu, &out->regs);
    cpu_get_sregs(g->cpu, &out->sregs);
    out->vector = -1;
    out->error = 0;
    if (out->reason == CPU_EXIT_HYPERCALL && out->regs.rip >= SG_HANDLER && out->regs.rip < SG_HANDLER + 0x1000) {
        out->vector = (int)((out->regs.rip - SG_HANDLER) / 16);
        sp = out->regs.gpr[CPU_RSP];
        if (out->vector < 32 && (WITH_ERROR >> out->vector & 1) && sp < SG_RAM - 4) {
            out->error = (uint32_t)sg_get(g, (uint32_t)sp, 4);
        }
    }
}

void sg_step(struct sys_guest *g, struct sg_outcome *out)
{
    out->reason = cpu_run(g->cpu);
    fill(g, out);
}

void sg_run(struct sys_guest *g, struct sg_outcome *out)
{
    unsigned n;

    for (n = 0; n < 100; n++) {
        sg_step(g, out);
        if (out->reason != CPU_EXIT_KICK) {
            return;
        }
    }
}

struct sys_guest guest;

int sg_setup(void **state)
{
    sg_open(&guest);
    return 0;
}

int sg_teardown(void **state)
{
    sg_close(&guest);
    return 0;
}
