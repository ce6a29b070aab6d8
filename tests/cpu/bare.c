/* The bare machine of the core's tests; see bare.h. */
#include "bare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "arch/paging.h"
#include "arch/regs.h"

#define PML4 0x1000u

static void must(bool ok, const char *what)
{
    if (!ok) {
        fprintf(stderr, "bare machine: %s\n", what);
        exit(1);
    }
}

static uint64_t table_new(struct bare *b)
{
    hpa_t t;

    must(host_table_alloc(b->mem, HOST_FRAME_TABLE, &t) == 0, "no frame for a table");
    return t.v;
}

/* The EPT entry for gpa at level 1, tables made on the way. */
static uint64_t *ept_slot(struct bare *b, uint64_t gpa, bool make)
{
    uint64_t table = b->eptp & EPT_ADDR_MASK;

    for (unsigned level = 4; level > 1; level--) {
        uint64_t *e = (uint64_t *)host_table_at(b->mem, hpa(table)) + pt_index(gpa, level);

        if (!*e) {
            if (!make) {
                return NULL;
            }
            *e = table_new(b) | EPT_RWX;
        }
        table = *e & EPT_ADDR_MASK;
    }
    return (uint64_t *)host_table_at(b->mem, hpa(table)) + pt_index(gpa, 1);
}

uint64_t *bare_ept_entry(struct bare *b, uint64_t gpa)
{
    return ept_slot(b, gpa, false);
}

static void ram_new(struct bare *b)
{
    b->ram = mmap(NULL, b->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(b->ram != MAP_FAILED, "no memory");
    b->pages = calloc(b->size / PAGE_SIZE, sizeof(*b->pages));
    for (uint64_t gpa = 0; gpa < b->size; gpa += PAGE_SIZE) {
        pfn_t f;

        must(host_frames_alloc(b->mem, 0, HOST_GFP_MOVABLE, &f) == 0, "no frame");
        host_frame_at(b->mem, f)->data = b->ram + gpa;
        b->pages[gpa / PAGE_SIZE] = pfn_to_hpa(f).v;
        *ept_slot(b, gpa, true) = pfn_to_hpa(f).v | EPT_RWX | EPT_MT_WB;
    }
}

/* linear = physical for the RAM and 1 GiB at least, by 2 MiB pages. */
static void guest_tables(struct bare *b)
{
    uint64_t rights = X86_PTE_P | X86_PTE_W, gib = (b->size + (1u << 30) - 1) >> 30;
    uint64_t *pml4 = (uint64_t *)(void *)(b->ram + PML4), *pdpt = pml4 + 512, *pd = pdpt + 512;

    pml4[0] = (PML4 + 0x1000) | rights;
    for (uint64_t i = 0; i < gib; i++) {
        pdpt[i] = (PML4 + 0x2000 + i * 0x1000) | rights;
        for (uint64_t j = 0; j < 512; j++) {
            pd[i * 512 + j] = (i << 30 | j << 21) | rights | X86_PTE_PS;
        }
    }
}

void bare_reset(struct bare *b, unsigned n)
{
    struct cpu *cpu = b->cpu[n];
    struct cpu_sregs s;

    cpu_reset(cpu, false);
    cpu_get_sregs(cpu, &s);
    s.cr0 = X86_CR0_PE | X86_CR0_PG | X86_CR0_WP | X86_CR0_NE | X86_CR0_ET;
    s.cr4 = X86_CR4_PAE | X86_CR4_PGE | X86_CR4_OSFXSR;
    s.efer = X86_EFER_LME | X86_EFER_LMA | X86_EFER_NX | X86_EFER_SCE;
    s.cr3 = PML4;
    for (unsigned i = 0; i < CPU_NSEGS; i++) {
        s.seg[i] = (struct cpu_seg){.limit = UINT32_MAX, .type = 3, .s = 1, .p = 1, .g = 1, .db = 1, .sel = 16};
    }
    s.seg[CPU_CS] = (struct cpu_seg){.limit = UINT32_MAX, .type = 11, .s = 1, .p = 1, .l = 1, .g = 1, .sel = 8};
    cpu->eptp = b->eptp;
    must(cpu_set_sregs(cpu, &s) == 0, "start state refused");
    cpu->rip = BARE_CODE;
    cpu->regs[CPU_RSP] = BARE_CODE - 0x100 - 0x1000 * n;
}

void bare_open(struct bare *b, uint64_t size, unsigned n, bool ad)
{
    struct host_memory_options o = {.bytes = 2 * size + (UINT64_C(256) << 20)};

    memset(b, 0, sizeof(*b));
    must(host_memory_new(&o, &b->mem) == 0, "no physical memory");
    b->size = size;
    b->eptp = table_new(b) | EPTP_MT_WB | EPTP_LEVEL(4) | (ad ? EPTP_AD : 0);
    ram_new(b);
    guest_tables(b);
    b->peers = cpu_peers_new();
    must(b->peers != NULL, "no peers");
    for (b->ncpus = 0; b->ncpus < n; b->ncpus++) {
        struct cpu *cpu = cpu_new(b->mem, b->peers, b->ncpus);

        must(cpu != NULL, "no processor");
        b->cpu[b->ncpus] = cpu;
        cpu->features = CPU_FEAT_PCID | CPU_FEAT_1G | CPU_FEAT_SMEP | CPU_FEAT_SMAP | CPU_FEAT_NX | CPU_FEAT_LM;
        bare_reset(b, b->ncpus);
    }
}

static void tables_free(struct bare *b, uint64_t table, unsigned level)
{
    uint64_t *e = host_table_at(b->mem, hpa(table));

    for (unsigned i = 0; level > 1 && i < PT_ENTRIES; i++) {
        if (e[i]) {
            tables_free(b, e[i] & EPT_ADDR_MASK, level - 1);
        }
    }
    host_table_free(b->mem, hpa(table));
}

void bare_close(struct bare *b)
{
    for (unsigned i = 0; i < b->ncpus; i++) {
        cpu_free(b->cpu[i]);
    }
    cpu_peers_free(b->peers);
    tables_free(b, b->eptp & EPT_ADDR_MASK, 4);
    for (uint64_t i = 0; i < b->size / PAGE_SIZE; i++) {
        host_frame_at(b->mem, hpa_to_pfn(hpa(b->pages[i])))->data = NULL;
        host_frames_free(b->mem, hpa_to_pfn(hpa(b->pages[i])), 0);
    }
    host_memory_free(b->mem);
    munmap(b->ram, b->size);
    free(b->pages);
}

void bare_code(struct bare *b, const void *code, uint64_t len)
{
    memcpy(b->ram + BARE_CODE, code, len);
    b->cpu[0]->rip = BARE_CODE;
}
