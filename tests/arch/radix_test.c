/*
 * The iterator against brute force: random trees in a small memory of tables, and every entry that
 * a plain recursion over all indexes finds, in order.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "arch/radix.h"
#include "oracle/host_frames.h"

#define TABLES 64

static unsigned char *memory; /* TABLES pages; a table's address is its index << 12 */
static unsigned hidden;       /* a table that cannot be reached, 0 = none */

static const void *table_of(void *ctx, uint64_t addr, unsigned level)
{
    uint64_t i = addr >> 12;

    (void)ctx;
    return i < TABLES && (!hidden || i != hidden) ? memory + (i << 12) : NULL;
}

struct visit {
    uint64_t addr, entry;
    unsigned level;
};

static struct visit expected[2000000], got[2000000];
static unsigned n_expected;

/* Brute force: all indexes of a table, by division, no masks shared with the iterator. */
static void recurse(enum arch_format_id id, uint64_t table, unsigned level, uint64_t base,
                    uint64_t first, uint64_t last, unsigned min_level)
{
    bool p32 = id == ARCH_FMT_32;
    uint64_t span = p32 ? (level == 1 ? 4096 : UINT64_C(4096) * 1024) : 4096;
    unsigned n = p32 ? 1024 : id == ARCH_FMT_PAE && level == 3 ? 4 : 512;

    for (unsigned l = 1; !p32 && l < level; l++) {
        span *= 512;
    }
    for (unsigned i = 0; i < n; i++) {
        uint64_t at = base + i * span, e, child;
        bool present, leaf;

        if (at > last || at + (span - 1) < first) {
            continue;
        }
        e = p32 ? ((uint32_t *)(memory + table))[i] : ((uint64_t *)(memory + table))[i];
        assert_true(n_expected < sizeof(expected) / sizeof(expected[0]));
        expected[n_expected++] = (struct visit){at, e, level};
        present = id == ARCH_FMT_EPT ? (e & 7) != 0 : e & 1;
        leaf = level == 1 || (e & 0x80 && level <= (p32 || id == ARCH_FMT_PAE ? 2u : 3u));
        child = (e << 12 >> 24) & (p32 ? 0xfffff : ~UINT64_C(0)); /* bits 51:12 */
        if (present && !leaf && level > min_level && child < TABLES &&
            (!hidden || child != hidden)) {
            recurse(id, child * 4096, level - 1, at, first, last, min_level);
        }
    }
}

/* A random tree: each table is used once, entries are absent, leaves or tables. */
static void grow(enum arch_format_id id, uint64_t *rng, unsigned table, unsigned level,
                 unsigned *next)
{
    unsigned n = id == ARCH_FMT_32 ? 1024 : id == ARCH_FMT_PAE && level == 3 ? 4 : 512;

    for (unsigned k = 0; k < 12; k++) {
        unsigned i = (unsigned)(oracle_random(rng) % n);
        uint64_t r = oracle_random(rng), e = 0;

        if (k < 3) {
            i = k == 0 ? 0 : k == 1 ? n - 1 : i;
        }
        if (r % 4 == 0 && level > 1) {
            e = (r & 0x7f0000) | 0x80 | 1;
        } else if (r % 4 == 1 || level == 1) {
            e = (r & 0x3f000) | (r >> 60 & 1); /* any table, also one in use */
        } else if (*next < TABLES) {
            unsigned child = (*next)++;

            e = (uint64_t)child << 12 | 1;
            grow(id, rng, child, level - 1, next);
        }
        if (id == ARCH_FMT_32) {
            ((uint32_t *)(memory + table * 4096))[i] = (uint32_t)e;
        } else {
            ((uint64_t *)(memory + table * 4096))[i] = e;
        }
    }
}

static void compare(enum arch_format_id id, struct arch_radix_range range)
{
    struct arch_radix it = {.table = table_of};
    unsigned n = 0;

    n_expected = 0;
    recurse(id, 0, range.top, 0, range.first, range.last, range.min_level);
    arch_radix_for_each (&it, &arch_formats[id], 0, range) {
        assert_true(n < n_expected);
        got[n++] = (struct visit){it.addr, it.entry, it.level};
    }
    assert_int_equal(n, n_expected);
    for (unsigned i = 0; i < n; i++) {
        assert_int_equal(got[i].addr, expected[i].addr);
        assert_int_equal(got[i].entry, expected[i].entry);
        assert_int_equal(got[i].level, expected[i].level);
    }
}

static void one_tree(enum arch_format_id id, unsigned top, uint64_t seed)
{
    uint64_t rng = seed, limit = arch_radix_limit(&arch_formats[id], top);
    unsigned next = 1;

    memset(memory, 0, TABLES * 4096);
    grow(id, &rng, 0, top, &next);
    hidden = seed % 3 == 0 ? 1 + (unsigned)(seed % (TABLES - 1)) : 0;
    for (unsigned i = 0; i < 20; i++) {
        uint64_t a = oracle_random(&rng) & limit, b = oracle_random(&rng) & limit;
        struct arch_radix_range r = {a < b ? a : b, a < b ? b : a, top,
                                     1 + (unsigned)(oracle_random(&rng) % top)};

        if (i == 0) {
            r.first = 0;
            r.last = UINT64_MAX; /* cut to the root's reach */
            n_expected = 0;
        }
        if (i == 1) {
            r.last = r.first; /* one byte */
        }
        if (r.last > limit) {
            struct arch_radix_range cut = r;

            cut.last = limit;
            compare(id, cut);
            struct arch_radix it = {.table = table_of};
            unsigned n = 0;

            arch_radix_for_each (&it, &arch_formats[id], 0, r) {
                n++;
            }
            assert_int_equal(n, n_expected);
            continue;
        }
        compare(id, r);
    }
}

static void all_formats(void **state)
{
    memory = aligned_alloc(4096, TABLES * 4096);
    for (uint64_t seed = 1; seed <= 20; seed++) {
        one_tree(ARCH_FMT_32, 2, seed);
        one_tree(ARCH_FMT_PAE, 3, seed);
        one_tree(ARCH_FMT_LONG, 4, seed);
        one_tree(ARCH_FMT_LONG, 5, seed);
        one_tree(ARCH_FMT_EPT, 4, seed);
        one_tree(ARCH_FMT_NPT, 5, seed);
    }
    free(memory);
}

/* Taking a table out while walking: the iterator does not enter it. Restart goes on where it
 * was. */
static void changing(void **state)
{
    struct arch_radix it = {.table = table_of};
    struct arch_radix_range all = {0, UINT64_MAX, 4, 1};
    uint64_t *root, *l3;
    unsigned seen = 0, restarts = 0;

    memory = calloc(TABLES, 4096);
    hidden = 0;
    root = (uint64_t *)memory;
    l3 = (uint64_t *)(memory + 4096);
    root[0] = 0x1003;
    root[1] = 0x2003;
    l3[5] = 0x83;
    ((uint64_t *)(memory + 0x2000))[7] = 0x83;
    arch_radix_for_each (&it, &arch_formats[ARCH_FMT_LONG], 0, all) {
        if (it.level == 4 && it.addr == 0) {
            assert_ptr_equal(arch_radix_slot(&it), root);
            *arch_radix_slot(&it) = it.entry = 0;
        }
        if (arch_is_present(it.fmt, it.entry) && it.level == 3) {
            seen++;
            assert_int_equal(it.addr, (UINT64_C(1) << 39) + (UINT64_C(7) << 30));
            if (restarts++ == 0) {
                arch_radix_restart(&it); /* visits the upper level again, then this entry */
                assert_int_equal(it.level, 4);
                assert_int_equal(it.addr, UINT64_C(1) << 39);
            }
        }
    }
    assert_int_equal(seen, 2);
    arch_radix_start(&it, &arch_formats[ARCH_FMT_LONG], UINT64_C(1) << 40, all);
    assert_false(it.valid);
    assert_int_equal(it.missing, 1);
    free(memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_formats),
        cmocka_unit_test(changing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
