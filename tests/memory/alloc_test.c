/*
 * Fail the nth allocation, for every n until the operation succeeds: each failure must return
 * -ENOMEM, leave everything as it was (checker, painter, listener sum), and leak nothing.
 */
#include "memory/help.h"
#include "memory/world.h"

#include "strata/discard.h"
#include "strata/journal.h"

struct budget {
    long left;   /* allocations that still succeed; negative: all */
    long blocks; /* live */
};

static void *limited(void *ctx, void *p, size_t size, size_t old_size)
{
    struct budget *b = ctx;

    if (size == 0) {
        b->blocks--;
        free(p);
        return NULL;
    }
    if (b->left == 0) {
        return NULL;
    }
    b->left -= b->left > 0;
    b->blocks += p == NULL;
    return realloc(p, size);
}

static void random_steps_fail(void **state)
{
    unsigned failures = 0;

    for (unsigned seed = 1; seed <= 60; seed++) {
        struct budget budget = {-1, 0};
        struct strata_memory_config config = {.realloc = limited, .alloc_ctx = &budget};
        struct world w;

        assert_true(world_init(&w, seed % 2 ? 12 : 58, seed, &config));
        world_populate(&w, 14);
        world_slice(&w);
        assert_true(world_add_space(&w, 0, 0) && world_add_space(&w, 1, 1) &&
                    world_add_space(&w, 2, w.nodes - 1));
        for (unsigned i = 0; i < 20; i++) {
            uint64_t before = w.seed;
            long n = 0;
            int err;

            do {
                w.seed = before;
                budget.left = n++;
                err = world_random_step(&w);
                budget.left = -1;
                assert_true(err == 0 || err == -ENOMEM);
                failures += err != 0;
                if (!world_agrees(&w)) {
                    fail_msg("seed %u step %u allocation %ld: %s", seed, i, n, w.why);
                }
            } while (err);
        }
        world_fini(&w);
        assert_int_equal(budget.blocks, 0);
    }
    assert_true(failures > 1000);
}

/* One of each fallible call. */
static int call(unsigned which, struct board *b, struct strata_region *ram, struct strata_region *io)
{
    static const struct strata_listener_ops ops;
    struct strata_region_desc rd = {.kind = STRATA_RAM, .name = "new", .size = 0x3000};
    struct strata_listener_desc ld = {.name = "l", .ops = &ops};
    struct strata_eventfd ev = {.addr = 4, .size = 4, .fd = 3};
    struct strata_dirty_snapshot *snap;
    struct strata_discard_manager *m;
    struct strata_listener *l;
    struct strata_region *r;
    struct strata_space *s;
    struct strata_owner *o;
    int err;

    switch (which) {
    case 0:
        return strata_region_new(b->mem, &rd, &r);
    case 1:
        return strata_space_new(b->mem, "s", ram, &s);
    case 2:
        return strata_listener_register(b->mem, &ld, &l);
    case 3:
        return strata_region_add_eventfd(io, &ev);
    case 4:
        return strata_region_add_coalesced(io, 0, 8);
    case 5:
        return strata_region_set_log(ram, true, STRATA_DIRTY_DISPLAY);
    case 6:
        return strata_tracking_start(b->mem, STRATA_TRACK_MIGRATION);
    case 7:
        err = strata_dirty_snapshot_new(ram, 0, 0x1000, STRATA_DIRTY_DISPLAY, &snap);
        strata_dirty_snapshot_free(err ? NULL : snap);
        return err;
    case 8:
        return strata_discard_manager_new(ram, 0x1000, &m);
    case 9:
        return strata_owner_new(b->mem, "o", NULL, NULL, &o);
    case 10:
        return strata_journal_set(b->mem, 5);
    case 11: /* with the journal on */
        return strata_region_set_address(io, 0x8000);
    case 12:
        return strata_region_destroy(io);
    default:
        return strata_space_free(b->space);
    }
}

static void every_call_fails(void **state)
{
    struct budget budget = {-1, 0};
    struct strata_memory_config config = {.realloc = limited, .alloc_ctx = &budget};
    struct board b = help_board(&config);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x3000);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x100);
    struct strata_region *box = help_region(b.mem, STRATA_CONTAINER, "box", 0x10000);

    help_add(box, 0x100, io, 0);
    help_add(b.root, 0x100000, box, 0);
    help_add(b.root, 0, ram, 0);
    for (unsigned which = 0; which < 14; which++) {
        int err = -ENOMEM;

        for (long n = 0; err; n++) {
            budget.left = n;
            err = call(which, &b, ram, io);
            budget.left = -1;
            if (err && err != -ENOMEM) {
                fail_msg("call %u: %d", which, err);
            }
            assert_int_equal(strata_check(b.mem), 0);
            assert_true(n < 200);
        }
    }
    strata_memory_free(b.mem);
    assert_int_equal(budget.blocks, 0);
}

static void the_handle_itself(void **state)
{
    struct budget budget = {0, 0};
    struct strata_memory_config config = {.realloc = limited, .alloc_ctx = &budget};
    struct strata_memory *mem = NULL;

    for (long n = 0; !mem; n++) {
        budget.left = n;
        if (strata_memory_new(&config, &mem) != 0) {
            assert_int_equal(budget.blocks, 0);
        }
    }
    budget.left = -1;
    strata_memory_free(mem);
    assert_int_equal(budget.blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_steps_fail),
        cmocka_unit_test(every_call_fails),
        cmocka_unit_test(the_handle_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
