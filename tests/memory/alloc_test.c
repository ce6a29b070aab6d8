/*
 * Fail the nth allocation, for every n until the operation succeeds: each failure must return
 * -ENOMEM, leave everything as it was (checker, painter, listener sum), and leak nothing.
 */
#include "memory/help.h"
#include "memory/world.h"

#include "strata/cache.h"
#include "strata/discard.h"
#include "strata/iommu.h"
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

static void count_text(void *opaque, const char *text, size_t len)
{
    *(size_t *)opaque += len;
}

static void apply_nothing(void *opaque, const struct strata_change_set *sets, size_t count)
{
}

static int past_piece(void *opaque, const struct strata_past_piece *piece)
{
    return 0;
}

static struct strata_iotlb maps_nothing(void *opaque, strata_addr addr, enum strata_iommu_perm need,
                                        int index)
{
    return (struct strata_iotlb){.iova = addr & ~UINT64_C(4095), .mask = 4095};
}

static void on_iommu(struct strata_iommu_notifier *n, const struct strata_iotlb *entry)
{
}

static void woken(void *opaque)
{
}

/* What the further calls are made on; they undo what they did, so that each can be tried in any order. */
struct yard {
    struct board b;
    struct strata_region *ram, *io, *flash, *box, *iommu, *spare;
    struct strata_ram *block;
    struct strata_discard_manager *m;
    struct strata_iommu_notifier notifier;
};

typedef int yard_fn(struct yard *y);

static int try_alias(struct yard *y)
{
    struct strata_region_desc d = {.kind = STRATA_ALIAS, .name = "a", .size = 0x100, .target = y->ram};
    struct strata_region *r;
    int err = strata_region_new(y->b.mem, &d, &r);

    return err ? err : strata_region_destroy(r);
}

static int try_iommu(struct yard *y)
{
    static const struct strata_iommu_ops ops = {.translate = maps_nothing};
    struct strata_region_desc d = {.kind = STRATA_IOMMU, .name = "i", .size = 0x10000, .iommu = &ops};
    struct strata_region *r;
    int err = strata_region_new(y->b.mem, &d, &r);

    return err ? err : strata_region_destroy(r);
}

static int try_ram(struct yard *y)
{
    struct strata_ram_desc d = {.name = "block", .size = 0x5000, .backing = STRATA_MEMFD,
                                .flags = STRATA_RAM_PREALLOC};
    struct strata_ram *ram;
    int err = strata_ram_new(y->b.mem, &d, &ram);

    strata_ram_unref(err ? NULL : ram);
    return err;
}

static int try_resize(struct yard *y)
{
    return strata_ram_resize(y->block, strata_ram_size(y->block) == 0x4000 ? 0x2000 : 0x4000);
}

static int try_migratable(struct yard *y)
{
    bool is = !(strata_ram_flags(y->block) & STRATA_RAM_NOT_MIGRATABLE);

    return strata_ram_set_migratable(y->block, !is);
}

static int try_romd(struct yard *y)
{
    return strata_region_set_romd(y->flash, !strata_region_is_romd(y->flash));
}

static int try_add(struct yard *y)
{
    return strata_region_add(y->box, 0x4000, y->spare);
}

static int try_remove(struct yard *y)
{
    return strata_region_remove(y->spare);
}

static int try_event(struct yard *y)
{
    return strata_region_add_eventfd(y->io, &(struct strata_eventfd){.addr = 8, .size = 1, .fd = 9});
}

static int try_event_off(struct yard *y)
{
    return strata_region_del_eventfd(y->io, &(struct strata_eventfd){.addr = 8, .size = 1, .fd = 9});
}

static int try_apply(struct yard *y)
{
    static const struct strata_listener_ops ops = {.apply = apply_nothing};
    struct strata_listener_desc d = {.name = "sets", .ops = &ops};
    struct strata_listener *l;

    return strata_listener_register(y->b.mem, &d, &l); /* stays: the later calls build sets */
}

static int try_code(struct yard *y)
{
    return strata_memory_set_code_tracking(y->b.mem, true);
}

static int try_stop(struct yard *y)
{
    return strata_tracking_stop(y->b.mem, STRATA_TRACK_RATE);
}

static int try_start(struct yard *y)
{
    return strata_tracking_start(y->b.mem, STRATA_TRACK_RATE);
}

static int try_resume(struct yard *y)
{
    int err = strata_tracking_set_paused(y->b.mem, true);

    if (!err && strata_tracking_reasons(y->b.mem)) {
        err = strata_tracking_stop(y->b.mem, STRATA_TRACK_RATE);
    }
    return err ? err : strata_tracking_set_paused(y->b.mem, false);
}

static int try_source(struct yard *y)
{
    struct strata_discard_source *s;
    int err = strata_discard_source_new(y->m, 0x2000, false, &s);

    return err ? err : strata_discard_source_free(s);
}

static int try_bounce(struct yard *y)
{
    struct strata_mapping m;
    int err = strata_map(y->b.space, 0x100100, 4, true, &m);

    return err ? err : strata_unmap(&m, 0);
}

static int try_wait(struct yard *y)
{
    return strata_map_wait(y->b.space, woken, NULL);
}

static int try_cache(struct yard *y)
{
    struct strata_cache c;
    int err = strata_cache_init(&c, y->b.space, 0x100100, 4, true);

    if (!err) {
        strata_cache_fini(&c);
    }
    return err;
}

static int try_notifier(struct yard *y)
{
    int err = strata_iommu_notifier_add(y->iommu, &y->notifier);

    err = err ? err : strata_iommu_replay(y->iommu, &y->notifier);
    return err ? err : strata_iommu_notifier_del(&y->notifier);
}

static int try_print(struct yard *y)
{
    size_t n = 0;
    int err = strata_print(y->b.mem, NULL, STRATA_PRINT_FLAT | STRATA_PRINT_DISPATCH, count_text, &n);

    err = err ? err : strata_print(y->b.mem, NULL, STRATA_PRINT_JSON, count_text, &n);
    err = err ? err : strata_print_ram(y->b.mem, 0, count_text, &n);
    assert_true(err || n > 0);
    return err;
}

static int try_journal(struct yard *y)
{
    size_t n = 0;
    int err = strata_journal_set(y->b.mem, 8);

    err = err ? err : strata_region_set_enabled(y->io, !strata_region_is_enabled(y->io));
    err = err ? err : strata_journal_print(y->b.mem, 0, count_text, &n);
    err = err ? err : strata_journal_map(y->b.mem, y->b.space, strata_memory_generation(y->b.mem),
                                         past_piece, NULL);
    return err ? err : strata_journal_set(y->b.mem, 0);
}

static int try_coalesced(struct yard *y)
{
    int err = strata_region_add_coalesced(y->io, 0, 8);

    return err ? err : strata_region_clear_coalesced(y->io);
}

static const struct {
    const char *name;
    yard_fn *fn;
} yard_calls[] = {
    {"alias", try_alias}, {"iommu", try_iommu}, {"ram", try_ram}, {"resize", try_resize},
    {"migratable", try_migratable}, {"romd", try_romd}, {"add", try_add}, {"eventfd", try_event},
    {"coalesced", try_coalesced}, {"tracking", try_start}, {"sets", try_apply},
    {"migratable again", try_migratable}, {"resize again", try_resize}, {"romd again", try_romd},
    {"code tracking", try_code}, {"eventfd off", try_event_off}, {"remove", try_remove},
    {"stop", try_stop}, {"start again", try_start}, {"resume", try_resume}, {"source", try_source},
    {"bounce", try_bounce}, {"wait", try_wait}, {"cache", try_cache}, {"notifier", try_notifier},
    {"print", try_print}, {"journal", try_journal},
};

static void yard_up(struct yard *y, const struct strata_memory_config *config)
{
    static const struct strata_iommu_ops iommu = {.translate = maps_nothing};
    struct strata_region_desc d = {.kind = STRATA_IOMMU, .name = "iommu", .size = 0x10000,
                                   .iommu = &iommu};
    struct strata_ram_desc rd = {.name = "rom", .size = 0x2000, .max_size = 0x8000,
                                 .flags = STRATA_RAM_RESIZEABLE};
    struct strata_region_desc resizeable = {.kind = STRATA_RAM, .name = "rom", .size = 0x2000};
    struct strata_region *rom;

    *y = (struct yard){.b = help_board(config)};
    y->notifier = (struct strata_iommu_notifier){.notify = on_iommu, .kinds = STRATA_IOMMU_MAP,
                                                 .last = 0xffff};
    y->ram = help_region(y->b.mem, STRATA_RAM, "ram", 0x4000);
    y->io = help_region(y->b.mem, STRATA_IO, "io", 0x100);
    y->flash = help_region(y->b.mem, STRATA_ROM_DEVICE, "flash", 0x1000);
    y->box = help_region(y->b.mem, STRATA_CONTAINER, "box", 0x10000);
    y->spare = help_region(y->b.mem, STRATA_IO, "spare", 0x10);
    assert_int_equal(strata_region_new(y->b.mem, &d, &y->iommu), 0);
    assert_int_equal(strata_ram_new(y->b.mem, &rd, &y->block), 0);
    resizeable.ram = y->block;
    assert_int_equal(strata_region_new(y->b.mem, &resizeable, &rom), 0);
    assert_int_equal(strata_discard_manager_new(y->ram, 0x1000, &y->m), 0);
    help_add(y->b.root, 0, y->ram, 0);
    help_add(y->b.root, 0x100000, y->box, 0);
    help_add(y->box, 0x100, y->io, 0);
    help_add(y->b.root, 0x200000, y->flash, 0);
    help_add(y->b.root, 0x300000, rom, 0);
}

static void further_calls_fail(void **state)
{
    struct budget budget = {-1, 0};
    struct strata_memory_config config = {.realloc = limited, .alloc_ctx = &budget};
    struct yard y;

    yard_up(&y, &config);
    for (size_t i = 0; i < sizeof(yard_calls) / sizeof(yard_calls[0]); i++) {
        int err = -ENOMEM;

        for (long n = 0; err; n++) {
            budget.left = n;
            err = yard_calls[i].fn(&y);
            budget.left = -1;
            if (err && err != -ENOMEM) {
                fail_msg("%s: %d", yard_calls[i].name, err);
            }
            if (strata_check(y.b.mem) != 0) {
                fail_msg("%s, allocation %ld: %s", yard_calls[i].name, n, strata_memory_error(y.b.mem));
            }
            assert_true(n < 300);
        }
    }
    strata_ram_unref(y.block);
    strata_memory_free(y.b.mem);
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
        cmocka_unit_test(further_calls_fail),
        cmocka_unit_test(the_handle_itself),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
