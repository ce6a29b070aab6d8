/* Regions and their rules one by one: U1 to U13, U17, U50. */
#include "memory/help.h"

static void kinds(void **state)
{
    struct board b = help_board(NULL);
    static const enum strata_kind all[] = {STRATA_CONTAINER, STRATA_RAM, STRATA_ROM,
                                           STRATA_ROM_DEVICE, STRATA_IO, STRATA_RESERVATION};

    for (size_t i = 0; i < 6; i++) {
        char name[8];
        struct strata_region *r;

        snprintf(name, sizeof(name), "k%zu", i);
        r = help_region(b.mem, all[i], name, 0x1000);
        assert_true(strata_region_is_enabled(r));
        assert_true(strata_region_is_romd(r));
        assert_int_equal(strata_region_kind(r), all[i]);
        help_add(b.root, 0x10000 * (i + 1), r, 0);
        help_shows(&b, 0x10000 * (i + 1) + 0xfff, all[i] == STRATA_CONTAINER ? "-" : name);
    }
    help_done(&b);
}

static void descriptions_refused(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *r = NULL;
    static const struct strata_region_desc bad[] = {
        {.kind = STRATA_IO, .name = "no ops", .size = 16},
        {.kind = STRATA_ALIAS, .name = "no target", .size = 16},
        {.kind = STRATA_CONTAINER, .size = 16},
        {.kind = STRATA_IOMMU, .name = "no translate", .size = 16},
        {.kind = STRATA_RAM_DEVICE, .name = "no memory", .size = 4096},
        {.kind = (enum strata_kind)99, .name = "unknown", .size = 16},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        assert_int_equal(strata_region_new(b.mem, &bad[i], &r), -EINVAL);
        assert_null(r);
        assert_true(strlen(strata_memory_error(b.mem)) > 0);
    }
    help_done(&b);
}

static void whole_space(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "all", STRATA_SIZE_ALL);
    struct strata_region *top = help_region(b.mem, STRATA_IO, "top", 0x1000);
    struct strata_section s;

    help_add(b.root, 0, io, -1);
    assert_true(strata_region_size(io) == UINT64_MAX);
    help_shows(&b, 0, "all");
    help_shows(&b, UINT64_MAX, "all");
    help_add(b.root, UINT64_MAX - 0x7ff, top, 0); /* sticks out by half: cut at 2^64 */
    strata_read_begin(b.mem);
    assert_int_equal(strata_space_lookup(b.space, UINT64_MAX, &s), 0);
    assert_true(s.region == top && s.start == UINT64_MAX - 0x7ff && s.last == UINT64_MAX);
    assert_int_equal(strata_space_lookup(b.space, 5, &s), 0);
    assert_true(s.start == 0 && s.last == UINT64_MAX - 0x800);
    strata_read_end(b.mem);
    help_done(&b);
}

static void priorities_and_ties(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *low = help_region(b.mem, STRATA_IO, "low", 0x100);
    struct strata_region *first = help_region(b.mem, STRATA_IO, "first", 0x100);
    struct strata_region *second = help_region(b.mem, STRATA_IO, "second", 0x100);

    help_add(b.root, 0, first, 0);
    help_add(b.root, 0, second, 0);
    help_add(b.root, 0, low, -1);
    help_shows(&b, 0x10, "second"); /* the last of equals wins */
    assert_int_equal(strata_region_set_address(first, 0x10), 0);
    help_shows(&b, 0x10, "first"); /* moving makes it the last */
    help_shows(&b, 0xf, "second");
    assert_int_equal(strata_region_add(b.root, 0, second), -EINVAL);
    assert_int_equal(strata_region_remove(second), 0);
    help_shows(&b, 0xf, "low");
    assert_int_equal(strata_region_remove(second), -EINVAL);
    assert_int_equal(strata_region_add(b.root, 0, second), 0); /* plain add: priority 0 */
    assert_int_equal(strata_region_priority(second), 0);
    help_done(&b);
}

static void priority_is_local(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *box = help_region(b.mem, STRATA_CONTAINER, "box", 0x100);
    struct strata_region *in = help_region(b.mem, STRATA_IO, "in", 0x10);
    struct strata_region *out = help_region(b.mem, STRATA_IO, "out", 0x100);
    struct strata_region_desc d = {
        .kind = STRATA_CONTAINER, .name = "full", .size = 0x40, .ops = &help_quiet_ops};
    struct strata_region *full;

    help_add(box, 0x20, in, -100); /* low among its siblings, of which it has none */
    help_add(b.root, 0, box, 1);
    help_add(b.root, 0, out, 0);
    help_shows(&b, 0x20, "in");
    help_shows(&b, 0x30, "out"); /* a pure container has holes */
    assert_int_equal(strata_region_new(b.mem, &d, &full), 0);
    help_add(box, 0x40, full, 0);
    help_shows(&b, 0x40, "full"); /* one that answers has none */
    help_done(&b);
}

static void clipping(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *box = help_region(b.mem, STRATA_CONTAINER, "box", 0x100);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x100);
    struct strata_region *beyond = help_region(b.mem, STRATA_IO, "beyond", 0x10);
    struct strata_region *window = help_alias(b.mem, "window", io, 0x80, 0x200);

    help_add(box, 0x80, io, 0);
    help_add(box, 0x200, beyond, 0);
    help_add(b.root, 0x1000, box, 0);
    help_add(b.root, 0x2000, window, 0);
    help_shows(&b, 0x10ff, "io");
    help_shows(&b, 0x1100, "-");
    help_shows(&b, 0x1200, "-");
    help_shows(&b, 0x207f, "io");
    help_shows(&b, 0x2080, "-"); /* the window reaches past its target: a hole */
    help_done(&b);
}

static void aliases(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x1000);
    struct strata_region *a = help_alias(b.mem, "a", io, 0x100, 0x100);
    struct strata_region *aa = help_alias(b.mem, "aa", a, 0x10, 0x20);
    struct strata_region *child = help_region(b.mem, STRATA_IO, "child", 0x10);
    struct strata_section s;

    assert_false(strata_region_is_mapped(io));
    help_add(b.root, 0x5000, aa, 0);
    assert_true(strata_region_is_mapped(io) && strata_region_is_mapped(a));
    strata_read_begin(b.mem);
    assert_int_equal(strata_space_lookup(b.space, 0x5004, &s), 0);
    assert_true(s.region == io && s.offset == 0x110 && s.last == 0x501f);
    strata_read_end(b.mem);
    assert_int_equal(strata_region_add(a, 0, child), -EINVAL); /* no children under an alias */
    assert_int_equal(strata_region_set_enabled(io, false), 0);
    help_shows(&b, 0x5004, "-");
    assert_int_equal(strata_region_set_enabled(io, true), 0);
    help_add(b.root, 0x9000, io, 0); /* its own address does not matter to aliases */
    help_shows(&b, 0x5004, "io");
    assert_int_equal(strata_region_set_alias_offset(a, 0xff0), 0);
    help_shows(&b, 0x5000, "-");
    assert_int_equal(strata_region_set_alias_offset(io, 1), -EINVAL);
    assert_int_equal(strata_region_remove(aa), 0);
    assert_int_equal(strata_region_remove(io), 0);
    assert_false(strata_region_is_mapped(io));
    help_done(&b);
}

static void cycles_are_refused(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *x = help_region(b.mem, STRATA_CONTAINER, "x", 0x100);
    struct strata_region *y = help_region(b.mem, STRATA_CONTAINER, "y", 0x100);
    struct strata_region *of_root = help_alias(b.mem, "of root", b.root, 0, 0x100);
    struct strata_region *of_x = help_alias(b.mem, "of x", x, 0, 0x100);

    help_add(x, 0, y, 0);
    assert_int_equal(strata_region_add(y, 0, x), -ELOOP);
    assert_int_equal(strata_region_add(x, 0, x), -EINVAL);
    assert_int_equal(strata_region_add(y, 0, of_x), -ELOOP);
    assert_int_equal(strata_region_add(b.root, 0, of_root), -ELOOP);
    help_add(b.root, 0, of_x, 0);
    assert_int_equal(strata_region_add(y, 0, of_root), -ELOOP);
    assert_null(strata_region_parent(of_root));
    help_done(&b);
}

static void inherited_attributes(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x2000);
    struct strata_region *a = help_alias(b.mem, "a", ram, 0, 0x1000);
    struct strata_section s;

    help_add(b.root, 0, ram, 0);
    help_add(b.root, 0x10000, a, 0);
    assert_int_equal(strata_region_set_readonly(a, true), 0);
    assert_int_equal(strata_region_set_nonvolatile(b.root, true), 0);
    assert_int_equal(strata_region_set_unmergeable(a, true), 0);
    strata_read_begin(b.mem);
    assert_int_equal(strata_space_lookup(b.space, 0x10000, &s), 0);
    assert_true(s.path_readonly && s.nonvolatile && s.unmergeable);
    assert_false(s.readonly); /* compatible: only the region's own flag protects */
    assert_int_equal(strata_space_lookup(b.space, 0, &s), 0);
    assert_true(!s.path_readonly && s.nonvolatile && !s.unmergeable);
    strata_read_end(b.mem);
    help_done(&b);
}

static void count_begin(void *opaque)
{
    ++*(int *)opaque;
}

static void mutators_and_commits(void **state)
{
    static const struct strata_listener_ops ops = {.begin = count_begin};
    struct board b = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x1000);
    struct strata_listener *l;
    int commits = 0;
    struct strata_listener_desc d = {.name = "count", .ops = &ops, .opaque = &commits};

    help_add(b.root, 0, io, 0);
    assert_int_equal(strata_listener_register(b.mem, &d, &l), 0);
    commits = 0;
    assert_int_equal(strata_region_set_enabled(io, true), 0); /* no change, no commit */
    assert_int_equal(strata_region_set_readonly(io, false), 0);
    assert_int_equal(commits, 0);
    assert_int_equal(strata_region_set_readonly(io, true), 0);
    assert_int_equal(strata_region_set_size(io, 0x800), 0);
    assert_int_equal(strata_region_set_address(io, 0x800), 0);
    assert_int_equal(commits, 3);
    assert_int_equal(strata_region_set_enabled(io, false), 0);
    assert_int_equal(commits, 4);
    assert_int_equal(strata_region_set_nonvolatile(io, true), 0); /* disabled: nothing to render */
    assert_int_equal(strata_region_set_address(io, 0), 0);
    assert_int_equal(commits, 4);
    strata_begin(b.mem);
    assert_int_equal(strata_region_set_enabled(io, true), 0);
    strata_begin(b.mem);
    assert_int_equal(strata_region_set_address(io, 0x4000), 0);
    assert_int_equal(strata_commit(b.mem), 0);
    assert_int_equal(commits, 4);
    help_shows(&b, 0x4000, "-"); /* nothing before the outermost commit */
    assert_int_equal(strata_commit(b.mem), 0);
    assert_int_equal(commits, 5);
    help_shows(&b, 0x4000, "io");
    assert_int_equal(strata_commit(b.mem), -EINVAL);
    assert_int_equal(strata_region_set_romd(io, false), -EINVAL);
    help_done(&b);
}

static void released(void *opaque)
{
    ++*(int *)opaque;
}

static void lifetime(void **state)
{
    struct board b = help_board(NULL);
    struct strata_owner *owner;
    struct strata_region *dev, *sub;
    struct strata_region_desc d = {.kind = STRATA_CONTAINER, .name = "dev", .size = 0x1000};
    int gone = 0;

    assert_int_equal(strata_owner_new(b.mem, "device", released, &gone, &owner), 0);
    d.owner = owner;
    assert_int_equal(strata_region_new(b.mem, &d, &dev), 0);
    d.kind = STRATA_IO;
    d.name = "sub";
    d.ops = &help_quiet_ops;
    assert_int_equal(strata_region_new(b.mem, &d, &sub), 0);
    assert_int_equal(strata_owner_refs(owner), 3);
    help_add(dev, 0, sub, 0); /* same owner: nothing is taken */
    assert_int_equal(strata_owner_refs(owner), 3);
    help_add(b.root, 0, dev, 0); /* another's container: one */
    assert_true(strata_owner_refs(owner) > 3);
    help_shows(&b, 0, "sub");
    assert_int_equal(strata_region_destroy(dev), 0); /* out of the root, sub out of it */
    help_shows(&b, 0, "-");
    assert_null(strata_region_parent(sub));
    assert_int_equal(strata_region_destroy(sub), 0);
    strata_owner_unref(owner);
    assert_int_equal(strata_memory_drain(b.mem), 0);
    assert_int_equal(gone, 1);
    help_done(&b);
}

static void alias_outlives_and_dies_any_time(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x1000);
    struct strata_region *a = help_alias(b.mem, "a", io, 0, 0x1000);
    struct strata_region *box = help_region(b.mem, STRATA_CONTAINER, "box", 0x1000);

    help_add(box, 0, a, 0);
    help_add(b.root, 0, box, 0);
    assert_int_equal(strata_region_destroy(io), 0); /* the alias keeps it */
    assert_int_equal(strata_region_destroy(io), -EINVAL);
    help_shows(&b, 0, "io");
    assert_int_equal(strata_region_destroy(box), 0);
    help_shows(&b, 0, "-");
    assert_int_equal(strata_region_destroy(a), 0);
    assert_int_equal(strata_memory_drain(b.mem), 0);
    help_done(&b);
}

static void find_and_present(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *box = help_region(b.mem, STRATA_CONTAINER, "box", 0x1000);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x100);
    struct strata_region *loose = help_region(b.mem, STRATA_CONTAINER, "loose", 0x100);
    struct strata_section s;

    help_add(box, 0x200, io, 0);
    help_add(b.root, 0x7000, box, 0);
    assert_int_equal(strata_region_find(box, 0x100, 0x180, &s), 0);
    assert_true(s.region == io && s.start == 0x200 && s.last == 0x27f && s.offset == 0);
    strata_region_unref(s.region);
    assert_int_equal(strata_region_find(box, 0x210, 0x10, &s), 0);
    assert_true(s.start == 0x210 && s.offset == 0x10 && s.last == 0x21f);
    strata_region_unref(s.region);
    assert_int_equal(strata_region_find(box, 0, 0x200, &s), -ENOENT);
    assert_int_equal(strata_region_find(loose, 0, 0x100, &s), -ENOENT);
    assert_true(strata_region_present(box, 0x200));
    assert_false(strata_region_present(box, 0));
    assert_false(strata_region_present(io, 0)); /* itself does not count */
    help_done(&b);
}

static void root_sharing(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x1000);
    struct strata_region *bus = help_region(b.mem, STRATA_CONTAINER, "bus", STRATA_SIZE_ALL);
    struct strata_region *master = help_alias(b.mem, "master", b.root, 0, STRATA_SIZE_ALL);
    struct strata_region *more = help_region(b.mem, STRATA_IO, "more", 0x10);
    struct strata_space *dma;
    struct strata_section s;

    help_add(b.root, 0, io, 0);
    help_add(b.root, 0x5000, more, 0);
    help_add(bus, 0, master, 0);
    assert_int_equal(strata_region_set_enabled(master, false), 0);
    assert_int_equal(strata_space_new(b.mem, "dma", bus, &dma), 0);
    assert_false(strata_space_shares_view(dma, b.space));
    assert_int_equal(strata_region_set_enabled(master, true), 0);
    assert_true(strata_space_shares_view(dma, b.space));
    assert_int_equal(strata_region_set_readonly(bus, true), 0); /* nothing inherited is lost */
    assert_false(strata_space_shares_view(dma, b.space));
    strata_read_begin(b.mem);
    assert_int_equal(strata_space_lookup(dma, 0, &s), 0);
    assert_true(s.path_readonly);
    strata_read_end(b.mem);
    assert_int_equal(strata_region_set_readonly(bus, false), 0);
    assert_int_equal(strata_region_set_size(master, 0x1000), 0);
    assert_false(strata_space_shares_view(dma, b.space));
    assert_int_equal(strata_space_free(dma), 0);
    help_done(&b);
}

static void names(void **state)
{
    struct board b = help_board(NULL);
    struct strata_ram_desc d = {.name = "same", .size = 0x1000};
    struct strata_ram *one, *two = NULL;
    char buf[32];

    assert_int_equal(strata_escape_name("a/b[1]\\", buf, sizeof(buf)), 19);
    assert_string_equal(buf, "a\\x2fb\\x5b1\\x5d\\x5c");
    assert_int_equal(strata_escape_name("abc", buf, 3), 3);
    assert_string_equal(buf, "ab");
    assert_int_equal(strata_ram_new(b.mem, &d, &one), 0);
    assert_int_equal(strata_ram_new(b.mem, &d, &two), -EEXIST);
    assert_null(two);
    help_region(b.mem, STRATA_IO, "twice", 1);
    help_region(b.mem, STRATA_IO, "twice", 1); /* regions may share a name */
    help_done(&b);
}

static void two_handles(void **state)
{
    struct board b = help_board(NULL), c = help_board(NULL);
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 0x1000);

    assert_int_equal(strata_region_add(c.root, 0, io), -EINVAL);
    help_add(b.root, 0, io, 0);
    help_shows(&b, 0, "io");
    help_shows(&c, 0, "-");
    help_done(&c);
    help_shows(&b, 0, "io");
    help_done(&b);
}

static void keep_warning(void *ctx, const char *text)
{
    strcpy(ctx, text);
}

static void strict_warns(void **state)
{
    char said[256] = "";
    struct strata_memory_config config = {.mode = STRATA_STRICT, .warn = keep_warning,
                                          .warn_ctx = said};
    struct board b = help_board(&config);

    help_add(b.root, 0, help_region(b.mem, STRATA_IO, "big", 0x1000), 1);
    assert_string_equal(said, "");
    help_add(b.root, 0x100, help_region(b.mem, STRATA_IO, "under", 0x100), 0);
    assert_string_equal(said, "'under' in 'root' is hidden altogether");
    help_add(b.root, 0xf00, help_region(b.mem, STRATA_IO, "tied", 0x1000), 1);
    assert_string_equal(said, "'tied' overlaps a sibling of the same priority in 'root'");
    said[0] = '\0';
    config.mode = STRATA_COMPATIBLE;
    help_done(&b);
    b = help_board(&config);
    help_add(b.root, 0, help_region(b.mem, STRATA_IO, "big", 0x1000), 1);
    help_add(b.root, 0x100, help_region(b.mem, STRATA_IO, "under", 0x100), 0);
    assert_string_equal(said, "");
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds),
        cmocka_unit_test(descriptions_refused),
        cmocka_unit_test(whole_space),
        cmocka_unit_test(priorities_and_ties),
        cmocka_unit_test(priority_is_local),
        cmocka_unit_test(clipping),
        cmocka_unit_test(aliases),
        cmocka_unit_test(cycles_are_refused),
        cmocka_unit_test(inherited_attributes),
        cmocka_unit_test(mutators_and_commits),
        cmocka_unit_test(lifetime),
        cmocka_unit_test(alias_outlives_and_dies_any_time),
        cmocka_unit_test(find_and_present),
        cmocka_unit_test(root_sharing),
        cmocka_unit_test(names),
        cmocka_unit_test(two_handles),
        cmocka_unit_test(strict_warns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
