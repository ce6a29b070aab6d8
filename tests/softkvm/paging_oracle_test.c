/*
 * Random page tables against an oracle, in every paging mode and on every kind of MMU: the guest writes entries (leaf and
 * upper ones, by several instructions, its own tables mapped or not), invalidates as the architecture demands, switches
 * CR3 with and without PCIDs, turns CR0.WP, SMEP, SMAP, PSE, NX on and off; then each load, store and fetch of either
 * privilege must come to what the oracle says: fault and error code, device, or memory; the right bytes; accessed
 * and dirty bits. The MMU's own invariants are checked all along, and memory as a whole at the end.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "paging_guest.h"

#define POOL       PG_FREE /* tables that the test plays with */
#define POOL_PAGES 24u

struct play {
    struct pg *g;
    uint64_t seed, random;
    bool pending; /* entries have changed that translations may still be cached of */
    unsigned counts[4];
};

static uint32_t rnd(struct play *p)
{
    p->random = p->random * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(p->random >> 33);
}

static bool chance(struct play *p, unsigned percent)
{
    return rnd(p) % 100 < percent;
}

static unsigned entry_bytes(const struct play *p)
{
    return p->g->mode == PG_32 ? 4 : 8;
}

static unsigned top_level(const struct play *p)
{
    static const unsigned level[] = {[PG_NONE] = 0, [PG_32] = 2, [PG_PAE] = 2, [PG_4LEVEL] = 4, [PG_5LEVEL] = 5};

    return level[p->g->mode];
}

static uint64_t pool_page(struct play *p)
{
    return POOL + rnd(p) % POOL_PAGES * 0x1000;
}

/* Indices that entries are made at and addresses are made of, so that both meet. */
static unsigned some_index(struct play *p, unsigned level)
{
    static const unsigned any[] = {0, 1, 2, 3, 256, 511}, few[] = {0, 1, 511};
    static const unsigned upper[] = {1, 255, 510};
    static const unsigned top32[] = {256, 300, 513, 1023};

    if (p->g->mode == PG_32) {
        return level == 2 ? top32[rnd(p) % 4] : any[rnd(p) % 6] * (chance(p, 50) ? 1 : 2);
    }
    if (level == top_level(p) && level >= 4) {
        return upper[rnd(p) % 3];
    }
    return level > 1 && top_level(p) >= 4 ? few[rnd(p) % 3] : any[rnd(p) % 6];
}

static uint64_t some_flags(struct play *p, unsigned level)
{
    uint64_t e = chance(p, level > 1 ? 97 : 92) ? 1 : 0;

    e |= chance(p, level > 1 ? 88 : 70) ? 2 : 0;
    e |= chance(p, level > 1 ? 88 : 70) ? 4 : 0;
    e |= chance(p, 50) ? 0x20 : 0;
    e |= chance(p, 50) ? 0x40 : 0;
    e |= chance(p, 15) ? 0x100 : 0;
    if (entry_bytes(p) == 8) {
        e |= chance(p, level > 1 ? 6 : 20) ? UINT64_C(1) << 63 : 0;
        e |= chance(p, 1) ? UINT64_C(1) << 50 : 0;
        e |= chance(p, 1) ? UINT64_C(1) << 56 : 0;
    }
    return e;
}

/* A random entry for a table of `level`. */
static uint64_t some_entry(struct play *p, unsigned level)
{
    uint64_t e = some_flags(p, level), large = p->g->mode == PG_32 ? 0x400000 : level == 3 ? 0x40000000 : 0x200000;

    if (level == 1) {
        if (chance(p, 5)) {
            return e | PG_MMIO | (rnd(p) & 0xff) << 12;
        }
        return e | (chance(p, 25) ? pool_page(p) : PG_FREE + rnd(p) % 64 * 0x1000 + rnd(p) % 7 * 0x200000);
    }
    if (level <= 3 && chance(p, 25)) {
        return e | 0x80 | (level == 3 ? 0 : rnd(p) % (PG_RAM / large) * large) | (chance(p, 3) ? 1u << 21 >> level : 0);
    }
    return e | pool_page(p) | (chance(p, 2) ? 0x80 : 0);
}

/* Where an entry of some level lies. */
static uint64_t some_slot(struct play *p, unsigned *level)
{
    unsigned top = top_level(p);

    if (p->g->mode != PG_PAE && chance(p, 15)) {
        *level = top;
        return pg_root(p->g, rnd(p) % PG_ROOTS) + some_index(p, top) * entry_bytes(p);
    }
    *level = 1 + rnd(p) % (top == 2 && p->g->mode == PG_32 ? 1 : p->g->mode == PG_PAE ? 2 : top - 1);
    return pool_page(p) + some_index(p, *level) * entry_bytes(p);
}

static void change_entries(struct play *p)
{
    for (unsigned n = 1 + rnd(p) % 4; n; n--) {
        unsigned level;
        uint64_t at = some_slot(p, &level);

        pg_poke(p->g, at, some_entry(p, level), entry_bytes(p), chance(p, 80) ? 0 : 1 + rnd(p) % 2);
    }
    if (chance(p, 4)) {
        pg_poke(p->g, pool_page(p) + rnd(p) % 255 * 16 + 8, UINT64_C(0x6060606060606060), chance(p, 50) ? 16 : 1, 0);
    }
    p->pending = true;
}

/* PAE's four top entries: made by the guest, loaded with CR3. */
static void change_pdptes(struct play *p)
{
    struct pg_result r;

    for (unsigned root = 0; root < PG_ROOTS; root++) {
        pg_poke(p->g, pg_root(p->g, root) + 8 * (1 + rnd(p) % 3), pool_page(p) | (chance(p, 85) ? 1 : 0), 8, 0);
    }
    pg_set_cr3(p->g, pg_root(p->g, rnd(p) % PG_ROOTS), &r);
    assert_int_equal(r.outcome, PG_DONE);
    p->pending = false;
}

static void switch_cr3(struct play *p)
{
    bool pcid = p->g->cr4 >> 17 & 1;
    uint64_t v = pg_root(p->g, rnd(p) % PG_ROOTS);
    struct pg_result r;

    if (pcid) {
        v |= rnd(p) % 4 | (chance(p, 60) ? UINT64_C(1) << 63 : 0);
    }
    pg_set_cr3(p->g, v, &r);
    assert_int_equal(r.outcome, PG_DONE);
    p->pending = pcid || chance(p, 0) || (p->g->cr4 >> 7 & 1);
}

/* Forget all translations, global ones included. */
static void flush_all(struct play *p)
{
    if ((p->g->cr4 >> 17 & 1) && chance(p, 50)) {
        pg_invpcid(p->g, 2, 0, 0);
    } else {
        pg_set_cr(p->g, 4, p->g->cr4 ^ 0x80);
    }
    p->pending = false;
}

static void change_mode_bits(struct play *p)
{
    struct pg *g = p->g;

    switch (rnd(p) % 5) {
    case 0:
        pg_set_cr(g, 0, g->cr0 ^ 0x10000);
        break;
    case 1:
        pg_set_cr(g, 4, g->cr4 ^ 0x100000);
        break;
    case 2:
        pg_set_cr(g, 4, g->cr4 ^ 0x200000);
        break;
    case 3:
        if (g->mode == PG_32) {
            pg_set_cr(g, 4, g->cr4 ^ 0x10);
        } else {
            pg_set_nxe(g, !(g->efer & 0x800));
        }
        break;
    default:
        if (g->mode >= PG_4LEVEL && !(g->cr3 & 0xfff)) {
            pg_set_cr(g, 4, g->cr4 ^ 0x20000);
        }
    }
    p->pending = true;
}

static uint64_t some_address(struct play *p)
{
    struct pg *g = p->g;
    uint64_t la = rnd(p) & 0xff0 & ~UINT64_C(0xf);

    la = la < 0x10 ? 0x10 : la;
    if (g->mode == PG_32) {
        return (uint64_t)some_index(p, 2) << 22 | (uint64_t)some_index(p, 1) << 12 | la;
    }
    for (unsigned level = 1; level <= top_level(p); level++) {
        la |= (uint64_t)some_index(p, level) << (12 + 9 * (level - 1));
    }
    if (g->mode == PG_PAE) {
        return la | (uint64_t)(1 + rnd(p) % 3) << 30;
    }
    la &= (UINT64_C(1) << (g->mode == PG_5LEVEL ? 57 : 48)) - 1;
    return (uint64_t)((int64_t)(la << (g->mode == PG_5LEVEL ? 7 : 16)) >> (g->mode == PG_5LEVEL ? 7 : 16));
}

static void print_access(const struct play *p, const struct ow_access *a, const struct ow_outcome *o,
                         const struct pg_result *r)
{
    print_message("seed %llu mode %d: la 0x%llx write %d fetch %d user %d ac %d cr0 0x%llx cr3 0x%llx cr4 0x%llx efer 0x%llx\n"
                  "  oracle: %d gpa 0x%llx error 0x%x; guest: %d cr2 0x%llx error 0x%x gpa 0x%llx\n",
                  (unsigned long long)p->seed, (int)p->g->mode, (unsigned long long)a->la, a->write, a->fetch, a->user,
                  p->g->oracle.ac, (unsigned long long)p->g->cr0, (unsigned long long)p->g->cr3,
                  (unsigned long long)p->g->cr4, (unsigned long long)p->g->efer, o->result, (unsigned long long)o->gpa,
                  o->error, (int)r->outcome, (unsigned long long)r->cr2, r->error, (unsigned long long)r->gpa);
}

/* Does what the guest met agree? */
static bool agrees(const struct play *p, const struct ow_access *a, const struct ow_outcome *o, const struct pg_result *r)
{
    switch (o->result) {
    case OW_OK:
        return r->outcome == PG_DONE && (a->write || a->fetch || r->value == p->g->copy[o->gpa]);
    case OW_FAULT:
        return r->outcome == PG_FAULT && r->cr2 == a->la && r->error == o->error;
    case OW_VIOLATION:
        return r->outcome == PG_DEVICE && r->gpa >> 12 == o->gpa >> 12;
    default:
        return false;
    }
}

/* May the access be made: it stays in free memory or at the device, and what is fetched is HLT. */
static bool is_playable(const struct play *p, const struct ow_access *a, const struct ow_outcome *o)
{
    if (o->result == OW_FAULT) {
        return true;
    }
    if (o->result == OW_VIOLATION) {
        return o->final && !a->fetch && o->gpa >= PG_MMIO;
    }
    return o->result == OW_OK && o->gpa >= PG_FREE && o->gpa + 8 < PG_RAM &&
           (!a->fetch || p->g->copy[o->gpa] == PG_HLT);
}

static void one_access(struct play *p)
{
    struct ow_access a = {.la = some_address(p), .user = chance(p, 40)};
    unsigned kind = rnd(p) % 5;
    uint64_t value = (uint64_t)rnd(p) << 32 | (rnd(p) & ~1u);
    struct ow_outcome o;
    struct pg_result r;

    a.write = kind == 1 || kind == 2;
    a.fetch = kind == 3;
    a.la = a.fetch ? a.la & ~UINT64_C(0xfff) : a.la;
    p->g->oracle.ac = chance(p, 30);
    if (p->pending) {
        pg_invlpg(p->g, a.la);
    }
    pg_expect(p->g, &a, true, &o);
    if (!is_playable(p, &a, &o)) {
        return;
    }
    pg_expect(p->g, &a, false, &o);
    if (o.result == OW_OK && a.write) {
        memcpy(p->g->copy + o.gpa, &value, entry_bytes(p) == 8 && p->g->mode >= PG_4LEVEL ? 8 : 4);
        p->pending = true; /* it may have been a table */
    }
    pg_access(p->g, &a, value, &r);
    if (!agrees(p, &a, &o, &r) || memcmp(p->g->ram + POOL, p->g->copy + POOL, POOL_PAGES * 0x1000)) {
        print_access(p, &a, &o, &r);
        fail_msg("disagreement, or a table entry differs");
    }
    p->counts[r.outcome]++;
}

static void round_of(enum softkvm_mmu mmu, enum pg_mode mode, uint64_t seed, unsigned steps)
{
    struct play p = {.g = pg_new(mmu, mode), .seed = seed, .random = seed * 7919 + 17};

    p.g->check_every = 37;
    if (mode == PG_PAE) {
        change_pdptes(&p);
    }
    for (unsigned i = 0; i < 150; i++) {
        change_entries(&p);
    }
    for (unsigned i = 0; i < steps; i++) {
        unsigned what = rnd(&p) % 100;

        if (what < 25) {
            change_entries(&p);
        } else if (what < 30) {
            switch_cr3(&p);
        } else if (what < 34) {
            change_mode_bits(&p);
        } else if (what < 36) {
            flush_all(&p);
        } else if (what < 38 && mode == PG_PAE) {
            change_pdptes(&p);
        } else {
            one_access(&p);
        }
    }
    pg_check(p.g);
    assert_memory_equal(p.g->ram + PG_FREE, p.g->copy + PG_FREE, PG_RAM - PG_FREE);
    print_message("mmu %d mode %d seed %llu: %u done, %u faults, %u device\n", (int)mmu, (int)mode,
                  (unsigned long long)seed, p.counts[PG_DONE], p.counts[PG_FAULT], p.counts[PG_DEVICE]);
    assert_true(p.counts[PG_DONE] > steps / 50 && p.counts[PG_FAULT] > steps / 50);
    pg_free(p.g);
}

static unsigned rounds(void)
{
    const char *n = getenv("PAGING_ORACLE_ROUNDS");

    return n ? (unsigned)atoi(n) : 2;
}

static uint64_t first_seed(void)
{
    const char *n = getenv("PAGING_ORACLE_SEED");

    return n ? strtoull(n, NULL, 0) : 1;
}

static void all_modes(enum softkvm_mmu mmu)
{
    for (enum pg_mode mode = PG_32; mode <= PG_5LEVEL; mode++) {
        for (unsigned i = 0; i < rounds(); i++) {
            round_of(mmu, mode, first_seed() + i, 3000);
        }
    }
}

static void test_shadow(void **state)
{
    all_modes(SOFTKVM_MMU_SHADOW);
}

static void test_ept(void **state)
{
    all_modes(SOFTKVM_MMU_EPT);
}

static void test_npt(void **state)
{
    all_modes(SOFTKVM_MMU_NPT);
}

/* Without paging every address is itself, and devices are where no memory is. */
static void test_no_paging(void **state)
{
    struct pg *g = pg_new(SOFTKVM_MMU_SHADOW, PG_NONE);
    uint64_t value = 0x1234567;
    struct pg_result r;

    g->check_every = 1;
    for (uint64_t la = PG_FREE + 0x10; la < PG_RAM; la += 0x1ff000) {
        struct ow_access a = {.la = la, .write = true};

        pg_access(g, &a, value, &r);
        assert_int_equal(r.outcome, PG_DONE);
        assert_memory_equal(g->ram + la, &value, 4);
        a.write = false;
        pg_access(g, &a, 0, &r);
        assert_int_equal(r.value, 0x67);
    }
    pg_access(g, &(struct ow_access){.la = PG_MMIO + 0x123}, 0, &r);
    assert_int_equal(r.outcome, PG_DEVICE);
    assert_int_equal(r.gpa, PG_MMIO + 0x123);
    assert_int_equal(r.value, 0x5a);
    pg_free(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_paging),
        cmocka_unit_test(test_shadow),
        cmocka_unit_test(test_ept),
        cmocka_unit_test(test_npt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
