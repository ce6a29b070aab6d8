/*
 * Random and exhaustive topologies: after every commit the view, the listener's running sum and the
 * dispatch radix must be what the painter sees, at unit sizes from one byte to 2^58.
 * STRATA_LONG=1: more than a million random topologies, and every tree of three regions.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "memory/world.h"

static bool is_long(void)
{
    return getenv("STRATA_LONG") != NULL;
}

static unsigned long compared; /* topologies, by this run */

static void world_or_die(struct world *w, uint64_t seed, unsigned step)
{
    compared++;
    if (!world_agrees(w)) {
        fail_msg("seed %llu step %u: %s", (unsigned long long)seed, step, w->why);
    }
}

/* Two bus masters: spaces that show node 0 through a container and an alias of their own. */
static void add_masters(struct world *w)
{
    for (int i = 1; i < 3; i++) {
        int box = world_add_node(w, STRATA_CONTAINER, false, WORLD_UNITS, -1, 0);
        int alias = world_add_node(w, STRATA_ALIAS, false, WORLD_UNITS, 0, 0);

        assert_true(alias > 0);
        assert_int_equal(world_step(w, 0, (unsigned)alias, (unsigned)box, 64 * 2), 0);
        assert_true(world_add_space(w, i, box));
    }
}

static void run_world(uint64_t seed, unsigned shift, unsigned steps)
{
    struct world w;
    unsigned transaction = 0;

    assert_true(world_init(&w, shift, seed, NULL));
    world_populate(&w, 4 + (int)(seed % 20));
    if (seed % 4 == 1) {
        world_slice(&w);
    }
    assert_true(world_add_space(&w, 0, 0));
    if (seed % 3 == 0) {
        assert_true(world_add_space(&w, 1, w.nodes - 1));
        assert_true(world_add_space(&w, 2, 1 + (int)(seed % (unsigned)(w.nodes - 1))));
    }
    if (seed % 3 == 1) {
        add_masters(&w);
    }
    for (unsigned i = 0; i < steps; i++) {
        int err;

        if (!transaction && world_random(&w, 4) == 0) {
            transaction = 1 + (unsigned)world_random(&w, 6);
            strata_begin(w.mem);
        }
        err = world_random_step(&w);
        if (err) {
            fail_msg("seed %llu step %u: %d %s %s", (unsigned long long)seed, i, err, w.why,
                     strata_memory_error(w.mem));
        }
        if (transaction && --transaction == 0) {
            assert_int_equal(strata_commit(w.mem), 0);
        }
        if (!transaction) {
            world_or_die(&w, seed, i);
        }
    }
    if (transaction) {
        assert_int_equal(strata_commit(w.mem), 0);
    }
    world_or_die(&w, seed, steps);
    world_fini(&w);
}

static const unsigned shifts[] = {58, 0, 12, 1, 3, 51, 30, 11};

static void random_topologies(void **state)
{
    unsigned long want = is_long() ? 1000000 : 2000;

    (void)state;
    compared = 0;
    for (unsigned i = 0; compared < want; i++) {
        run_world(i + 1, shifts[i % 8], 40);
    }
    print_message("# %lu topologies agree\n", compared);
}

/* Every choice of place, priority and kind of three regions over a window of few units. */
static void small_worlds(void **state)
{
    unsigned step = is_long() ? 1 : 37;

    (void)state;
    for (unsigned code = 0; code < 6 * 6 * 6 * 3 * 3 * 3 * 8; code += step) {
        struct world w;
        unsigned c = code;

        assert_true(world_init(&w, shifts[code % 3], 1, NULL));
        world_add_node(&w, STRATA_CONTAINER, false, WORLD_UNITS, -1, 0);
        for (int i = 0; i < 3; i++) {
            static const int64_t place[6][2] = {{0, 1}, {0, 3}, {1, 2}, {2, 2}, {63, 4}, {1, 63}};
            bool alias = i > 0 && (c & 1);

            c >>= 1;
            world_add_node(&w, alias ? STRATA_ALIAS : STRATA_IO, true, place[c % 6][1], 1, i);
            c /= 6;
        }
        assert_true(world_add_space(&w, 0, 0));
        for (int i = 1; i <= 3; i++) {
            static const int64_t at[6] = {0, 0, 1, 2, 63, 1};

            assert_int_equal(world_step(&w, 0, (unsigned)i, 0,
                                        (unsigned)(at[(code >> i) % 6] + 64 * (int64_t)(c % 3))), 0);
            c /= 3;
            world_or_die(&w, code, (unsigned)i);
        }
        world_fini(&w);
    }
}

/* What one region of all_trees() is: a digit of the tree's number, to the base TREE_CHOICES. */
#define TREE_CHOICES (5 * 2 * 2 * 2 * 3)

static void tree_node(struct world *w, int i, unsigned digit)
{
    static const enum strata_kind kind[5] = {STRATA_IO, STRATA_CONTAINER, STRATA_CONTAINER,
                                             STRATA_ALIAS, STRATA_ALIAS};
    unsigned k = digit % 5;

    assert_int_equal(world_add_node(w, kind[k], k == 2, 1 + digit / 5 % 2, i - 1, k == 4), i);
}

/* Under the root or one of the other two, at 0 or 1, at one of two priorities; what would be a cycle
 * or go under an alias must be refused, which world_step() sees to. */
static void tree_place(struct world *w, int i, unsigned digit)
{
    unsigned at = digit / 10 % 2, priority = digit / 20 % 2, where = digit / 40;
    unsigned parent = where == 0 ? 0 : (unsigned)(i + (int)where - 1) % 3 + 1;

    assert_int_equal(world_step(w, 0, (unsigned)i, parent, at + 64 * priority), 0);
}

/* All trees of three regions (devices, containers that answer or not, aliases of the one before) of
 * one or two units, in all places and priorities. */
static void all_trees(void **state)
{
    unsigned count = TREE_CHOICES * TREE_CHOICES * TREE_CHOICES, step = is_long() ? 1 : 1009;

    (void)state;
    for (unsigned code = 0; code < count; code += step) {
        unsigned digit[3] = {code % TREE_CHOICES, code / TREE_CHOICES % TREE_CHOICES,
                             code / TREE_CHOICES / TREE_CHOICES};
        struct world w;

        assert_true(world_init(&w, shifts[code % 8], 1, NULL));
        world_add_node(&w, STRATA_CONTAINER, false, 3, -1, 0);
        for (int i = 1; i <= 3; i++) {
            tree_node(&w, i, digit[i - 1]);
        }
        assert_true(world_add_space(&w, 0, 0));
        for (int i = 1; i <= 3; i++) {
            tree_place(&w, i, digit[i - 1]);
        }
        world_or_die(&w, code, 0);
        world_fini(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_topologies),
        cmocka_unit_test(small_worlds),
        cmocka_unit_test(all_trees),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
