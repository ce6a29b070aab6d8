/*
 * The two-dimensional walk against its definition (tests/oracle/cpu_walk.c): random tables of every paging mode,
 * random rights in both stages, both formats of the second, random control bits; result, addresses, error code and every table byte after
 * the walk are compared. Each access is made again at once, so that the caches are judged too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../oracle/cpu_walk.h"
#include "arch/paging.h"
#include "arch/regs.h"
#include "bare.h"
#include "cpu/tlb.h"
#include "cpu/walk.h"

#define RAM     (UINT64_C(4) << 20)
#define TABLES  0x100000u /* 32 pages of guest tables */
#define NTABLES 32u
#define TRIALS  30000u

struct world {
    struct bare b;
    struct cpu *cpu;
    struct ow_machine m;
    uint64_t rng;
    uint8_t before[NTABLES * 4096], after[NTABLES * 4096];
    uint64_t ept_before[1024], ept_after[1024];
    uint64_t root5; /* a fifth level over the EPT's four */
};

static uint64_t draw(struct world *w)
{
    w->rng ^= w->rng << 13;
    w->rng ^= w->rng >> 7;
    w->rng ^= w->rng << 17;
    return w->rng * UINT64_C(0x2545f4914f6cdd1d);
}

static bool chance(struct world *w, unsigned percent)
{
    return draw(w) % 100 < percent;
}

static uint64_t *word_at(struct world *w, uint64_t addr)
{
    return host_hpa_to_ptr(w->b.mem, hpa(addr));
}

static uint64_t get_word(void *opaque, uint64_t hpa)
{
    uint64_t *p = word_at(opaque, hpa);

    return p ? *p : 0;
}

static void put_word(void *opaque, uint64_t hpa, uint64_t v)
{
    uint64_t *p = word_at(opaque, hpa);

    if (p) {
        *p = v;
    }
}

/* A table entry that leads to a table or to the empty upper half of RAM, mostly present, with random rights. */
static uint64_t entry_random(struct world *w, unsigned bytes)
{
    uint64_t to = chance(w, 60) ? TABLES + draw(w) % NTABLES * 4096 : RAM / 2 + (draw(w) % (RAM / 2) & ~UINT64_C(0xfff));
    uint64_t e = to | (draw(w) & 0x66) | (chance(w, 92) ? 1 : 0) | (chance(w, 80) ? 6 : 0);

    if (chance(w, 15)) {
        e = (e & ~UINT64_C(0x1fe000)) | 0x80; /* a large page, perhaps with low address bits set */
        e &= chance(w, 80) ? ~UINT64_C(0x3fffff) | 0xfff : ~UINT64_C(0);
    }
    if (bytes == 8 && chance(w, 6)) {
        e |= UINT64_C(1) << (chance(w, 50) ? 63 : 40 + draw(w) % 23);
    }
    return e;
}

static void tables_random(struct world *w, unsigned bytes)
{
    for (unsigned t = 0; t < NTABLES; t++) {
        uint8_t *page = w->b.ram + TABLES + t * 4096;

        for (unsigned i = 0; i < 4096 / bytes; i++) {
            uint64_t e = i % 64 < 4 ? entry_random(w, bytes) : 0;

            memcpy(page + i * bytes, &e, bytes);
        }
    }
}

/* One of Intel's entries for a page at hpa. */
static uint64_t ept_random(struct world *w, uint64_t hpa)
{
    uint64_t e = hpa | EPT_RWX | EPT_MT_WB | (draw(w) & (EPT_A | EPT_D));

    if (chance(w, 5)) {
        e &= ~(draw(w) & EPT_RWX);
    }
    return chance(w, 1) ? EPT_W | EPT_X : e;
}

/* One of AMD's. */
static uint64_t npt_random(struct world *w, uint64_t hpa)
{
    uint64_t e = hpa | X86_PTE_P | X86_PTE_W | X86_PTE_U | (draw(w) & (X86_PTE_A | X86_PTE_D | X86_PTE_G | 0xe18));

    if (chance(w, 2)) { /* less often: tables are walked for writing too */
        e &= ~(draw(w) & (X86_PTE_P | X86_PTE_W | X86_PTE_U));
    }
    if (chance(w, 3)) {
        e |= X86_PTE_NX;
    }
    return chance(w, 1) ? e | UINT64_C(1) << (HOST_PHYS_BITS + draw(w) % 4) : e;
}

static void second_stage_random(struct world *w)
{
    for (uint64_t i = 0; i < RAM / PAGE_SIZE; i++) {
        *bare_ept_entry(&w->b, i * PAGE_SIZE) = w->m.npt ? npt_random(w, w->b.pages[i]) : ept_random(w, w->b.pages[i]);
    }
}

/* Entries of the upper levels without the bits that walks of the other format have set. */
static void uppers_clean(struct world *w)
{
    for (uint64_t gpa = 0; gpa < RAM; gpa += UINT64_C(1) << 21) {
        uint64_t table = w->root5;

        for (unsigned level = 5; level > 1; level--) {
            uint64_t *e = (uint64_t *)host_table_at(w->b.mem, hpa(table)) + pt_index(gpa, level);

            *e &= EPT_ADDR_MASK | EPT_RWX;
            table = *e & EPT_ADDR_MASK;
        }
    }
}

/* Which second stage: format, levels, accessed and dirty bits. */
static void stage2_choose(struct world *w)
{
    struct ow_machine *m = &w->m;
    struct cpu *cpu = w->cpu;

    uppers_clean(w);
    m->npt = draw(w) & 1;
    m->stage2_levels = 4 + (unsigned)(draw(w) & 1);
    m->host_width = HOST_PHYS_BITS;
    m->ept_ad = draw(w) & 1;
    m->ept_root = m->stage2_levels == 5 ? w->root5 : w->b.eptp & EPT_ADDR_MASK;
    cpu->npt_levels = m->npt ? (uint8_t)m->stage2_levels : 0;
    cpu->eptp = m->ept_root;
    if (!m->npt) {
        cpu->eptp |= EPTP_MT_WB | EPTP_LEVEL(m->stage2_levels) | (m->ept_ad ? EPTP_AD : 0);
    }
}

static void controls_random(struct world *w)
{
    static const unsigned levels[] = {2, 3, 4, 4, 5};
    struct ow_machine *m = &w->m;
    struct cpu *cpu = w->cpu;

    m->levels = levels[draw(w) % 5];
    m->root = TABLES + draw(w) % NTABLES * 4096;
    m->wp = draw(w) & 1, m->smep = draw(w) & 1, m->smap = draw(w) & 1, m->ac = draw(w) & 1;
    m->nxe = draw(w) & 1, m->pse = draw(w) & 1, m->has_1g = draw(w) & 1;
    m->pke = draw(w) & 1, m->pkru = (uint32_t)draw(w) & (uint32_t)draw(w);
    m->width = 40;
    cpu->pdptes_stale = 0; /* they are set here, not loaded with CR3 */
    for (unsigned i = 0; i < 4; i++) {
        cpu->pdptr[i] = m->pdpte[i] = (TABLES + draw(w) % NTABLES * 4096) | chance(w, 90);
    }
    cpu->maxphyaddr = m->width;
    cpu->cr3 = m->root;
    cpu->cr0 = X86_CR0_PE | X86_CR0_PG | (m->wp ? X86_CR0_WP : 0);
    cpu->cr4 = (m->levels > 2 ? X86_CR4_PAE : 0) | (m->levels == 5 ? X86_CR4_LA57 : 0) |
               (m->smep ? X86_CR4_SMEP : 0) | (m->smap ? X86_CR4_SMAP : 0) | (m->pse ? X86_CR4_PSE : 0) | (m->pke ? X86_CR4_PKE : 0);
    cpu->pkru = m->pkru;
    cpu->efer = (m->levels >= 4 ? X86_EFER_LMA | X86_EFER_LME : 0) | (m->nxe ? X86_EFER_NX : 0);
    cpu->features = m->has_1g ? CPU_FEAT_1G : 0;
    stage2_choose(w);
}

/* An address whose indices fall on filled entries, mostly. */
static struct ow_access access_random(struct world *w)
{
    struct ow_access a = {.la = draw(w) & 0xfff};
    unsigned bits = w->m.levels == 2 ? 10 : 9;

    for (unsigned l = 0; l < 5; l++) {
        a.la |= (draw(w) % (1u << bits) & 0x3c3) << (12 + bits * l);
    }
    if (w->m.levels < 4) {
        a.la = (uint32_t)a.la;
    } else if (chance(w, 97)) {
        unsigned shift = w->m.levels == 5 ? 7 : 16;

        a.la = (uint64_t)((int64_t)(a.la << shift) >> shift);
    }
    a.user = draw(w) & 1;
    a.write = draw(w) & 1;
    a.fetch = !a.write && (draw(w) & 1);
    return a;
}

static void snapshot(struct world *w, uint8_t *tables, uint64_t *ept)
{
    memcpy(tables, w->b.ram + TABLES, NTABLES * 4096);
    for (uint64_t i = 0; i < RAM / PAGE_SIZE; i++) {
        ept[i] = *bare_ept_entry(&w->b, i * PAGE_SIZE);
    }
}

static void restore(struct world *w, const uint8_t *tables, const uint64_t *ept)
{
    memcpy(w->b.ram + TABLES, tables, NTABLES * 4096);
    for (uint64_t i = 0; i < RAM / PAGE_SIZE; i++) {
        *bare_ept_entry(&w->b, i * PAGE_SIZE) = ept[i];
    }
}

static void compare(struct world *w, const struct ow_outcome *o, const struct cpu_xlate *x, enum cpu_xlate_result res)
{
    static const enum cpu_xlate_result same[] = {CPU_XLATE_OK, CPU_XLATE_FAULT, CPU_XLATE_CANONICAL,
                                                 CPU_XLATE_VIOLATION, CPU_XLATE_MISCONFIG};

    assert_int_equal(res, same[o->result]);
    if (o->result == OW_FAULT) {
        assert_int_equal(x->error_code, o->error);
    } else if (o->result != OW_CANONICAL) {
        assert_int_equal(x->gpa, o->gpa);
    }
    if (o->result == OW_OK) {
        assert_ptr_equal(x->nested.host + page_offset(o->gpa), word_at(w, o->hpa));
    }
    if (o->result == OW_VIOLATION) {
        assert_int_equal(x->final, o->final);
    }
    if (w->m.npt && (o->result == OW_VIOLATION || o->result == OW_MISCONFIG)) {
        cpu_exit_second_stage(w->cpu, x, res);
        assert_int_equal(w->cpu->exit.reason, CPU_EXIT_NPF);
        assert_int_equal(w->cpu->exit.ept.error_code, o->npf);
    }
}

static struct cpu_xlate xlate_of(const struct world *w, const struct ow_access *a)
{
    return (struct cpu_xlate){
        .la = a->la,
        .access = a->fetch ? CPU_ACCESS_FETCH : a->write ? CPU_ACCESS_WRITE : CPU_ACCESS_READ,
        .priv = a->user ? CPU_PRIV_USER : w->m.smap && !w->m.ac ? CPU_PRIV_SUPER : CPU_PRIV_SUPER_AC,
    };
}

static void trial(struct world *w, unsigned *ok)
{
    struct ow_access a = access_random(w);
    struct cpu_xlate x = xlate_of(w, &a);
    struct ow_outcome o;

    snapshot(w, w->before, w->ept_before);
    ow_translate(&w->m, &a, &o);
    *ok += o.result == OW_OK;
    snapshot(w, w->after, w->ept_after);
    restore(w, w->before, w->ept_before);
    compare(w, &o, &x, cpu_xlate(w->cpu, &x));
    assert_memory_equal(w->b.ram + TABLES, w->after, NTABLES * 4096);
    for (uint64_t i = 0; i < RAM / PAGE_SIZE; i++) {
        assert_int_equal(*bare_ept_entry(&w->b, i * PAGE_SIZE), w->ept_after[i]);
    }
    x = xlate_of(w, &a);
    compare(w, &o, &x, cpu_xlate(w->cpu, &x));
    assert_memory_equal(w->b.ram + TABLES, w->after, NTABLES * 4096);
}

/* A table whose first entry leads to the bare machine's four levels. */
static uint64_t root5_new(struct bare *b)
{
    hpa_t t;

    assert_int_equal(host_table_alloc(b->mem, HOST_FRAME_TABLE, &t), 0);
    *(uint64_t *)host_table_at(b->mem, t) = (b->eptp & EPT_ADDR_MASK) | EPT_RWX;
    return t.v;
}

static void test_random_tables(void **state)
{
    static struct world w;
    unsigned ok = 0;

    (void)state;
    w.rng = 88172645463325252u;
    bare_open(&w.b, RAM, 1, true);
    w.cpu = w.b.cpu[0];
    memset(w.b.ram, 0, TABLES); /* all but our tables leads nowhere */
    w.root5 = root5_new(&w.b);
    w.m.mem = (struct ow_memory){get_word, put_word, &w};
    for (unsigned i = 0; i < TRIALS; i++) {
        if (i % 8 == 0) {
            controls_random(&w);
            tables_random(&w, w.m.levels == 2 ? 4 : 8);
            second_stage_random(&w);
        }
        cpu_tlb_flush_all(w.cpu);
        trial(&w, &ok);
    }
    host_table_free(w.b.mem, hpa(w.root5));
    assert_true(ok > TRIALS / 10); /* the tables lead somewhere often enough to mean something */
    bare_close(&w.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random_tables)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
