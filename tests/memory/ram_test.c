/* RAM blocks, dirty bitmaps, discarding: U27 to U29, U51 to U61. */
#include "memory/help.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "strata/discard.h"

static struct strata_ram *make_ram(struct strata_memory *mem, struct strata_ram_desc d, int want)
{
    struct strata_ram *ram = NULL;

    assert_int_equal(strata_ram_new(mem, &d, &ram), want);
    return ram;
}

static void numbers_and_lookups(void **state)
{
    struct board b = help_board(NULL);
    uint64_t version = strata_ram_list_version(b.mem), offset = 1;
    struct strata_ram *one = make_ram(b.mem, (struct strata_ram_desc){.name = "one", .size = 0x5000}, 0);
    struct strata_ram *two = make_ram(b.mem, (struct strata_ram_desc){.name = "two", .size = 0x100000}, 0);
    struct strata_ram *three = make_ram(b.mem, (struct strata_ram_desc){.name = "three", .size = 1}, 0);

    assert_true(strata_ram_list_version(b.mem) == version + 3);
    assert_true(strata_ram_addr(one) % 0x40000 == 0 && strata_ram_addr(two) % 0x40000 == 0);
    assert_true(strata_ram_size(three) == 0x1000);
    strata_read_begin(b.mem);
    assert_ptr_equal(strata_ram_by_name(b.mem, "two"), two);
    assert_null(strata_ram_by_name(b.mem, "four"));
    assert_ptr_equal(strata_ram_by_addr(b.mem, strata_ram_addr(two) + 0xfffff, &offset), two);
    assert_true(offset == 0xfffff);
    assert_null(strata_ram_by_addr(b.mem, strata_ram_addr(one) + 0x5000, &offset));
    assert_ptr_equal(strata_ram_by_host(b.mem, (char *)strata_ram_host(one) + 7, &offset), one);
    assert_true(offset == 7);
    strata_read_end(b.mem);
    offset = strata_ram_addr(one);
    strata_ram_unref(one);
    one = make_ram(b.mem, (struct strata_ram_desc){.name = "one", .size = 0x6000}, 0);
    assert_true(strata_ram_addr(one) == offset); /* the tightest gap */
    help_done(&b);
}

static void descriptions_refused(void **state)
{
    struct board b = help_board(NULL);
    static char host[64];

    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 0}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.size = 4096}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096,
             .flags = STRATA_RAM_SHARED | STRATA_RAM_PRIVATE}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096, .max_size = 8192}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096, .host = host}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096, .align = 12288}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = UINT64_MAX}, -EINVAL);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096, .backing = STRATA_FD,
             .fd = 9999}, -EBADF);
    make_ram(b.mem, (struct strata_ram_desc){.name = "a", .size = 4096, .backing = STRATA_FILE,
             .path = "/nonexistent/file"}, -ENOENT);
    help_done(&b);
}

static void backings(void **state)
{
    struct board b = help_board(NULL);
    char path[] = "/tmp/strata-test-XXXXXX";
    int fd = mkstemp(path);
    struct stat st;
    struct strata_ram *ram;

    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "memfd", .size = 0x3000,
                   .backing = STRATA_MEMFD}, 0);
    assert_true(strata_ram_fd(ram) >= 0);
    memset(strata_ram_host(ram), 1, 0x3000);
    assert_int_equal(strata_ram_discard(ram, 0x1000, 0x1000), 0);
    assert_int_equal(((uint8_t *)strata_ram_host(ram))[0x1000], 0);
    assert_int_equal(((uint8_t *)strata_ram_host(ram))[0x2000], 1);
    assert_int_equal(strata_ram_discard(ram, 0x1001, 0x1000), -EINVAL);
    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "file", .size = 0x3000,
                   .backing = STRATA_FILE, .path = path, .flags = STRATA_RAM_SHARED}, 0);
    strcpy(strata_ram_host(ram), "kept");
    assert_int_equal(strata_ram_writeback(ram, 0, 4), 0);
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 0x3000);
    make_ram(b.mem, (struct strata_ram_desc){.name = "long", .size = 0x9000, .backing = STRATA_FILE,
             .path = path}, -EINVAL); /* a file with contents is not lengthened */
    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "fd", .size = 0x1000, .backing = STRATA_FD,
                   .fd = fd, .flags = STRATA_RAM_READONLY}, 0);
    assert_string_equal(strata_ram_host(ram), "kept");
    assert_int_equal(strata_ram_discard(ram, 0, 0x1000), -EROFS);
    make_ram(b.mem, (struct strata_ram_desc){.name = "off", .size = 0x1000, .backing = STRATA_FD,
             .fd = fd, .fd_offset = 17}, -EINVAL);
    unlink(path);
    close(fd);
    make_ram(b.mem, (struct strata_ram_desc){.name = "dir", .size = 0x1000, .backing = STRATA_FILE,
             .path = "/tmp", .flags = STRATA_RAM_SHARED}, 0);
    make_ram(b.mem, (struct strata_ram_desc){.name = "made", .size = 0x1000, .backing = STRATA_FILE,
             .path = path, .align = 3}, -EINVAL);
    assert_int_equal(access(path, F_OK), -1); /* made, and removed again */
    help_done(&b);
}

static bool count_progress(void *opaque, uint64_t done, uint64_t total)
{
    unsigned *calls = opaque;

    assert_true(done <= total);
    return ++*calls < 100;
}

static bool cancel(void *opaque, uint64_t done, uint64_t total)
{
    return false;
}

static void anonymous_and_advice(void **state)
{
    struct board b = help_board(NULL);
    unsigned calls = 0;
    unsigned char resident[4];
    struct strata_ram *ram;

    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "pre", .size = 0x4000,
                   .flags = STRATA_RAM_PREALLOC | STRATA_RAM_NO_DUMP | STRATA_RAM_MERGEABLE |
                            STRATA_RAM_NO_HUGEPAGE, .prealloc_threads = 2,
                   .progress = count_progress, .opaque = &calls}, 0);
    assert_true(calls >= 1);
    assert_int_equal(mincore(strata_ram_host(ram), 0x4000, resident), 0);
    assert_true(resident[0] & resident[1] & resident[2] & resident[3] & 1);
    make_ram(b.mem, (struct strata_ram_desc){.name = "no", .size = 0x4000,
             .flags = STRATA_RAM_PREALLOC, .progress = cancel}, -ECANCELED);
    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "big", .size = 64 << 20,
                   .flags = STRATA_RAM_NORESERVE | STRATA_RAM_HUGEPAGE}, 0);
    assert_true((uintptr_t)strata_ram_host(ram) % (2 << 20) == 0);
    ((uint8_t *)strata_ram_host(ram))[5] = 9;
    assert_int_equal(strata_ram_discard(ram, 0, 0x1000), 0);
    assert_int_equal(((uint8_t *)strata_ram_host(ram))[5], 0);
    ((uint8_t *)strata_ram_host(ram))[5] = 9;
    assert_int_equal(strata_ram_remap(ram, 0, 0x1000), 0);
    assert_int_equal(((uint8_t *)strata_ram_host(ram))[5], 0);
    help_done(&b);
}

struct told {
    struct strata_ram_notifier n;
    int added, removed, resized;
    uint64_t size;
};

static void on_added(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t size, uint64_t max)
{
    ((struct told *)n)->added++;
}

static void on_removed(struct strata_ram_notifier *n, struct strata_ram *ram)
{
    ((struct told *)n)->removed++;
}

static void on_resized(struct strata_ram_notifier *n, struct strata_ram *ram, uint64_t was, uint64_t now)
{
    struct told *t = (struct told *)n;

    t->resized++;
    t->size = now;
    assert_true(strata_ram_size(ram) == was); /* told first */
}

static void resizing(void **state)
{
    struct board b = help_board(NULL);
    struct told t = {.n = {.added = on_added, .removed = on_removed, .resized = on_resized}};
    struct strata_ram *ram, *fixed;
    struct strata_region *region;
    struct strata_region_desc d = {.kind = STRATA_RAM, .name = "rom", .size = 0x1800};

    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "r", .size = 0x1800, .max_size = 0x10000,
                   .flags = STRATA_RAM_RESIZEABLE}, 0);
    fixed = make_ram(b.mem, (struct strata_ram_desc){.name = "f", .size = 0x2000}, 0);
    strata_ram_notifier_add(b.mem, &t.n);
    assert_int_equal(t.added, 2); /* of those that are there */
    d.ram = ram;
    assert_int_equal(strata_region_new(b.mem, &d, &region), 0);
    help_add(b.root, 0, region, 0);
    strata_ram_test_clear_dirty(ram, 0, 0x10000, STRATA_DIRTY_MIGRATION);
    assert_int_equal(strata_ram_resize(ram, 0x1900), 0); /* same pages: only the region */
    assert_true(strata_region_size(region) == 0x1900 && t.resized == 0);
    assert_int_equal(strata_ram_resize(ram, 0x5001), 0);
    assert_true(t.resized == 1 && t.size == 0x6000 && strata_ram_size(ram) == 0x6000);
    assert_true(strata_region_size(region) == 0x5001);
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 6);
    help_shows(&b, 0x5000, "rom");
    help_shows(&b, 0x5001, "-");
    assert_int_equal(strata_ram_resize(ram, 0x11000), -EINVAL);
    assert_int_equal(strata_ram_resize(fixed, 0x3000), -EINVAL);
    strata_ram_unref(fixed);
    assert_int_equal(t.removed, 1);
    strata_ram_notifier_del(&t.n);
    assert_int_equal(t.removed, 2);
    help_done(&b);
}

static int count_block(void *opaque, struct strata_ram *ram)
{
    uint64_t *last = opaque;

    assert_true(strata_ram_max_size(ram) <= *last); /* largest first */
    *last = strata_ram_max_size(ram);
    return 0;
}

static void order_and_flags(void **state)
{
    struct board b = help_board(NULL);
    uint64_t last = UINT64_MAX;
    struct strata_ram *ram;

    make_ram(b.mem, (struct strata_ram_desc){.name = "s", .size = 0x1000}, 0);
    make_ram(b.mem, (struct strata_ram_desc){.name = "l", .size = 0x9000}, 0);
    ram = make_ram(b.mem, (struct strata_ram_desc){.name = "m", .size = 0x4000,
                   .flags = STRATA_RAM_PMEM | STRATA_RAM_POSTCOPY_ZERO}, 0);
    assert_int_equal(strata_ram_for_each(b.mem, count_block, &last), 0);
    assert_true(last == 0x1000);
    assert_true(strata_ram_flags(ram) & STRATA_RAM_PMEM);
    assert_int_equal(strata_ram_set_migratable(ram, false), 0);
    assert_true(strata_ram_flags(ram) & STRATA_RAM_NOT_MIGRATABLE);
    assert_int_equal(strata_ram_guest_fd(ram), -1);
    assert_int_equal(strata_ram_set_guest_fd(ram, -1), -EBADF);
    assert_int_equal(strata_ram_set_guest_fd(ram, dup(0)), 0);
    assert_int_equal(strata_ram_set_guest_fd(ram, 0), -EBUSY);
    help_done(&b);
}

static void masks(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x4000);
    struct strata_region *stays = help_region(b.mem, STRATA_RAM, "stays", 0x1000);

    assert_int_equal(strata_ram_set_migratable(strata_region_ram(stays), false), 0);
    assert_int_equal(strata_region_log_mask(ram), 0);
    assert_int_equal(strata_region_set_log(ram, true, STRATA_DIRTY_DISPLAY), 0);
    assert_int_equal(strata_tracking_start(b.mem, STRATA_TRACK_MIGRATION), 0);
    assert_int_equal(strata_memory_set_code_tracking(b.mem, true), 0);
    assert_int_equal(strata_region_log_mask(ram), 7);
    assert_int_equal(strata_region_log_mask(stays), 1 << STRATA_DIRTY_CODE);
    help_done(&b);
}

static void writes_are_marked(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *region = help_region(b.mem, STRATA_RAM, "ram", 0x10000);
    struct strata_ram *ram = strata_region_ram(region);
    struct strata_dirty_snapshot *snap;
    uint64_t bitmap[2] = {0};
    uint8_t byte = 1;

    help_add(b.root, 0x100000, region, 0);
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 16); /* a fresh block */
    assert_true(strata_ram_harvest_dirty(ram, 0, 0x10000, STRATA_DIRTY_MIGRATION, bitmap) == 16);
    assert_true(bitmap[0] == 0xffff);
    strata_ram_test_clear_dirty(ram, 0, 0x10000, STRATA_DIRTY_DISPLAY);
    strata_write(b.space, 0x101000, STRATA_ATTRS_NONE, &byte, 1); /* nobody wants to know */
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 0);
    assert_int_equal(strata_tracking_start(b.mem, STRATA_TRACK_MIGRATION), 0);
    assert_int_equal(strata_region_set_log(region, true, STRATA_DIRTY_DISPLAY), 0);
    strata_store(b.space, 0x103ffe, 4, STRATA_LITTLE_ENDIAN, 1); /* over a page's end */
    assert_true(strata_ram_harvest_dirty(ram, 0, 0x10000, STRATA_DIRTY_MIGRATION, bitmap) == 2);
    assert_true(bitmap[0] == 0x18);
    assert_int_equal(strata_dirty_snapshot_new(region, 0, 0x10000, STRATA_DIRTY_DISPLAY, &snap), 0);
    assert_true(strata_dirty_snapshot_get(snap, 0x3fff, 1));
    assert_false(strata_dirty_snapshot_get(snap, 0x5000, 0x1000));
    assert_false(strata_ram_get_dirty(ram, 0, 0x10000, STRATA_DIRTY_DISPLAY)); /* cleared */
    strata_dirty_snapshot_free(snap);
    assert_int_equal(strata_dirty_snapshot_new(region, 0x10000, 1, STRATA_DIRTY_DISPLAY, &snap), -EINVAL);
    strata_region_set_dirty(region, 0xf000, 1);
    assert_true(strata_ram_test_clear_dirty(ram, 0xf000, 0x1000, STRATA_DIRTY_MIGRATION));
    assert_false(strata_ram_test_clear_dirty(ram, 0xf000, 0x1000, STRATA_DIRTY_MIGRATION));
    help_done(&b);
}

static void imports(void **state)
{
    struct board b = help_board(NULL);
    struct strata_ram *ram = make_ram(b.mem, (struct strata_ram_desc){.name = "r", .size = 0x50000}, 0);
    uint64_t bitmap[2] = {UINT64_C(1) << 63 | 1, 3};

    for (int c = 0; c < 3; c++) {
        strata_ram_test_clear_dirty(ram, 0, 0x50000, (enum strata_dirty_client)c);
    }
    assert_true(strata_ram_import_dirty(ram, 0, bitmap, 66) == 0); /* not tracking: display alone */
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_DISPLAY) == 4);
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 0);
    assert_int_equal(strata_tracking_start(b.mem, STRATA_TRACK_RATE), 0);
    assert_true(strata_ram_import_dirty(ram, 0x3000, bitmap, 65) == 3); /* shifted by 3 pages */
    assert_true(strata_ram_get_dirty(ram, 0x3000, 1, STRATA_DIRTY_MIGRATION));
    assert_true(strata_ram_get_dirty(ram, 0x42000, 1, STRATA_DIRTY_MIGRATION));
    assert_true(strata_ram_get_dirty(ram, 0x43000, 1, STRATA_DIRTY_MIGRATION));
    assert_true(strata_ram_import_dirty(ram, 0x3000, bitmap, 65) == 0); /* nothing new */
    assert_true(strata_ram_import_dirty(ram, 0x4f000, bitmap, 128) == 1); /* cut at the end */
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_CODE) == 0);
    help_done(&b);
}

struct synced {
    int ranges, clears;
    strata_addr start, last;
};

static void on_sync(void *opaque, const struct strata_section *s)
{
    ((struct synced *)opaque)->ranges++;
}

static void on_clear(void *opaque, const struct strata_section *s)
{
    struct synced *t = opaque;

    t->clears++;
    t->start = s->start;
    t->last = s->last;
}

static void sync_and_clear(void **state)
{
    static const struct strata_listener_ops ops = {.log_sync = on_sync, .log_clear = on_clear};
    struct board b = help_board(NULL);
    struct synced t = {0};
    struct strata_listener_desc d = {.name = "s", .ops = &ops, .opaque = &t};
    struct strata_listener *l;
    struct strata_region *one = help_region(b.mem, STRATA_RAM, "one", 0x10000);
    struct strata_region *two = help_region(b.mem, STRATA_RAM, "two", 0x1000);

    help_add(b.root, 0x100000, one, 0);
    help_add(b.root, 0, two, 0);
    assert_int_equal(strata_listener_register(b.mem, &d, &l), 0);
    assert_int_equal(strata_sync_dirty(b.mem, false), 0);
    assert_int_equal(t.ranges, 0); /* nothing logs */
    assert_int_equal(strata_region_set_log(one, true, STRATA_DIRTY_DISPLAY), 0);
    assert_int_equal(strata_sync_dirty(b.mem, false), 0);
    assert_int_equal(strata_region_sync_dirty(two), 0);
    assert_int_equal(t.ranges, 1);
    t.clears = 0;
    strata_ram_test_clear_dirty(strata_region_ram(one), 0x2000, 0x3000, STRATA_DIRTY_DISPLAY);
    assert_true(t.clears == 1 && t.start == 0x102000 && t.last == 0x104fff); /* clipped */
    strata_ram_test_clear_dirty(strata_region_ram(one), 0x2000, 0x3000, STRATA_DIRTY_DISPLAY);
    assert_int_equal(t.clears, 1); /* nothing was set */
    help_done(&b);
}

static void policy(void **state)
{
    struct board b = help_board(NULL);
    static const bool clash[4][4] = {
        {false, false, true, true}, {false, false, true, false},
        {true, true, false, false}, {true, false, false, false}};
    struct strata_ram *ram = make_ram(b.mem, (struct strata_ram_desc){.name = "r", .size = 0x1000}, 0);

    for (int i = 0; i < 4; i++) {
        assert_int_equal(strata_discard_require(b.mem, (enum strata_discard_policy)i, false), -EINVAL);
        assert_int_equal(strata_discard_require(b.mem, (enum strata_discard_policy)i, true), 0);
        for (int k = 0; k < 4; k++) {
            int err = strata_discard_require(b.mem, (enum strata_discard_policy)k, true);

            assert_int_equal(err, clash[i][k] ? -EBUSY : 0);
            if (!err) {
                strata_discard_require(b.mem, (enum strata_discard_policy)k, false);
            }
        }
        assert_int_equal(strata_discard_is_needed(b.mem), i < 2);
        assert_int_equal(strata_discard_is_forbidden(b.mem), i >= 2);
        assert_int_equal(strata_ram_discard(ram, 0, 0x1000), i == 2 ? -EBUSY : 0);
        assert_int_equal(strata_discard_require(b.mem, (enum strata_discard_policy)i, false), 0);
    }
    help_done(&b);
}

/* virtio-mem's way: many aliases that must not be merged, one per slot. */
static int count_piece(void *opaque, const struct strata_section *s)
{
    ++*(int *)opaque;
    return 0;
}

static void hotplug_slots(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *dimm = help_region(b.mem, STRATA_RAM, "dimm", 0x100000);
    struct strata_region *slot[16];
    int pieces = 0;

    strata_begin(b.mem);
    for (unsigned i = 0; i < 16; i++) {
        char name[16];

        snprintf(name, sizeof(name), "slot%u", i);
        slot[i] = help_alias(b.mem, name, dimm, i * 0x10000, 0x10000);
        assert_int_equal(strata_region_set_unmergeable(slot[i], true), 0);
        help_add(b.root, 0x40000000 + i * 0x10000, slot[i], 0);
    }
    assert_int_equal(strata_commit(b.mem), 0);
    strata_space_for_each(b.space, count_piece, &pieces);
    assert_int_equal(pieces, 16);
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(strata_region_set_unmergeable(slot[i], false), 0);
    }
    pieces = 0;
    strata_space_for_each(b.space, count_piece, &pieces);
    assert_int_equal(pieces, 1);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_and_lookups),  cmocka_unit_test(descriptions_refused),
        cmocka_unit_test(backings),             cmocka_unit_test(anonymous_and_advice),
        cmocka_unit_test(resizing),             cmocka_unit_test(order_and_flags),
        cmocka_unit_test(masks),                cmocka_unit_test(writes_are_marked),
        cmocka_unit_test(imports),              cmocka_unit_test(sync_and_clear),
        cmocka_unit_test(policy),
        cmocka_unit_test(hotplug_slots),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
