/* The checker names what does not hold: each thing it looks at is broken from inside, by hand, and
 * mended again. */
#include "memory/help.h"

#include "memory/dispatch.h"
#include "memory/sum.h"

struct bench {
    struct board b;
    struct strata_region *box, *ram, *io, *alias;
    struct strata_listener *listener;
};

static void quiet_apply(void *opaque, const struct strata_change_set *sets, size_t count)
{
    *(unsigned *)opaque += (unsigned)count;
}

static unsigned applied;

static struct bench bench_up(void)
{
    static const struct strata_listener_ops ops = {.apply = quiet_apply};
    struct strata_listener_desc d = {.name = "ear", .ops = &ops, .opaque = &applied};
    struct bench k = {.b = help_board(NULL)};
    struct strata_eventfd ev = {.addr = 8, .size = 4, .fd = 3};

    assert_int_equal(strata_listener_register(k.b.mem, &d, &k.listener), 0);
    k.box = help_region(k.b.mem, STRATA_CONTAINER, "box", 0x10000);
    k.ram = help_region(k.b.mem, STRATA_RAM, "ram", 0x4000);
    k.io = help_region(k.b.mem, STRATA_IO, "io", 0x100);
    k.alias = help_alias(k.b.mem, "window", k.ram, 0x1000, 0x1000);
    help_add(k.b.root, 0x100000, k.box, 0);
    help_add(k.box, 0, k.ram, 0);
    help_add(k.box, 0x1800, k.io, 1);
    help_add(k.b.root, 0x500000, k.alias, 0);
    assert_int_equal(strata_region_add_eventfd(k.io, &ev), 0);
    assert_int_equal(strata_check(k.b.mem), 0);
    return k;
}

static void finds(const struct bench *k, const char *words)
{
    assert_int_equal(strata_check(k->b.mem), -EUCLEAN);
    if (!strstr(strata_memory_error(k->b.mem), words)) {
        fail_msg("the checker says '%s', not '%s'", strata_memory_error(k->b.mem), words);
    }
}

static struct memory_view *view_of(const struct bench *k)
{
    return memory_space_view(k->b.space);
}

static struct memory_range *range_at(const struct bench *k, uint64_t addr)
{
    return memory_range_after(view_of(k), addr);
}

static void broken_trees(void **state)
{
    struct bench k = bench_up();

    k.box->nchildren++;
    finds(&k, "'box' miscounts its children");
    k.box->nchildren--;
    k.box->nenabled--;
    finds(&k, "'box' miscounts its children");
    k.box->nenabled++;
    k.box->enabled_xor ^= 64;
    finds(&k, "'box' miscounts its children");
    k.box->enabled_xor ^= 64;
    k.ram->mapped_via_alias++;
    finds(&k, "'ram' miscounts the aliases");
    k.ram->mapped_via_alias--;
    k.io->container = k.b.root;
    finds(&k, "'io' is indexed in 'box' but not its child");
    k.io->container = k.box;
    k.io->addr++;
    finds(&k, "'io' is indexed in 'box' but not its child");
    k.io->addr--;
    help_done(&k.b);
}

static void broken_ranges(void **state)
{
    struct bench k = bench_up();
    struct memory_range *low = range_at(&k, 0x100000), *io = range_at(&k, 0x101800);
    struct memory_view *view = view_of(&k);
    struct list keep = low->region_node;

    io->head.start = io->piece.start = 0x101700;
    finds(&k, "ranges overlap at 101700");
    io->head.start = io->piece.start = 0x101800;
    low->piece.last--;
    finds(&k, "range at 100000 of 'ram' is malformed");
    low->piece.last++;
    io->piece.region = k.ram;
    io->piece.offset = 0x1800;
    finds(&k, "ranges of 'ram' meet at 101800 and are not one");
    io->piece.region = k.io;
    io->piece.offset = 0;
    list_del(&low->region_node);
    finds(&k, "range at 100000 is unknown to 'ram'");
    list_add_before(keep.next, &low->region_node);
    view->nranges++;
    finds(&k, "miscounts its ranges");
    view->nranges--;
    low->piece.nonvolatile = true;
    finds(&k, "the view differs from its tree at 100000 ('ram')");
    low->piece.nonvolatile = false;
    low->piece.log_mask = 1;
    finds(&k, "the view differs from its tree at 100000 ('ram')");
    low->piece.log_mask = 0;
    k.io->enabled = false; /* without a commit */
    memory_tree_count_enabled(k.io, false);
    finds(&k, "the view differs from its tree at 100000");
    k.io->enabled = true;
    memory_tree_count_enabled(k.io, true);
    help_done(&k.b);
}

/* The innermost node on the way to addr, and its slot there. */
static struct memory_node *node_at(const struct bench *k, uint64_t addr, unsigned *slot)
{
    uintptr_t entry = view_of(k)->head.root;
    struct memory_node *node = NULL;

    while (entry & 1) {
        node = memory_node_of(entry);
        *slot = (unsigned)((addr - node->head.base) >> node->head.shift);
        entry = node->head.slot[*slot];
    }
    return node;
}

static void broken_radix(void **state)
{
    struct bench k = bench_up();
    unsigned slot = 0;
    struct memory_node *node = node_at(&k, 0x101800, &slot);
    uintptr_t io = node->head.slot[slot];

    assert_non_null(node);
    node->head.slot[slot] = 0;
    finds(&k, "the radix misses the range at 101800");
    node->head.slot[slot] = io;
    node->used++;
    finds(&k, "superfluous or miscounted");
    node->used--;
    assert_int_equal(node_at(&k, 0x101900, &slot) == node, 1);
    io = node->head.slot[slot];
    node->head.slot[slot] = (uintptr_t)range_at(&k, 0x101800);
    assert_int_equal(strata_check(k.b.mem), -EUCLEAN); /* found as missing or as too much */
    node->head.slot[slot] = io;
    help_done(&k.b);
}

static void broken_spaces(void **state)
{
    struct bench k = bench_up();
    struct strata_region *other = help_region(k.b.mem, STRATA_CONTAINER, "other", 0x1000);
    struct strata_space *space;

    help_add(other, 0, help_region(k.b.mem, STRATA_IO, "x", 1), 0);
    help_add(other, 2, help_region(k.b.mem, STRATA_IO, "y", 1), 0);
    assert_int_equal(strata_space_new(k.b.mem, "second", other, &space), 0);
    k.b.space->root = other;
    finds(&k, "space 'memory' does not show the view of its root");
    k.b.space->root = k.b.root;
    help_done(&k.b);
}

static void broken_sums(void **state)
{
    struct bench k = bench_up();
    struct memory_account *a = memory_account(k.listener, k.b.space);
    struct strata_section s;
    struct memory_sum term;

    memory_range_section(range_at(&k, 0x101800), k.b.space, &s);
    term = memory_sum_piece(&s);
    memory_sum_count(&a->told, &term, false); /* as if an addition had been lost */
    finds(&k, "listener 'ear' knows 3 pieces of 'memory', there are 4: none at 101800");
    memory_sum_count(&a->told, &term, true);
    memory_sum_count(&a->told, &term, true); /* a deletion */
    finds(&k, "listener 'ear' knows 5 pieces of 'memory', there are 4: one too many, at 101800");
    memory_sum_count(&a->told, &term, false);
    memory_sum_count(&a->told, &term, false);
    s.log_mask = 4; /* a log_start */
    term = memory_sum_piece(&s);
    memory_sum_count(&a->told, &term, true);
    finds(&k, "listener 'ear' knows 4 pieces of 'memory', there are 4, but not the same");
    memory_sum_count(&a->told, &term, false);
    s.log_mask = 0;
    term = memory_sum_piece(&s);
    memory_sum_count(&a->told, &term, true);
    memory_sum_count(&a->applied, &term, false);
    finds(&k, "knows 3 applied pieces of 'memory', there are 4: none at 101800");
    memory_sum_count(&a->applied, &term, true);
    a->events = (struct memory_sum){0};
    finds(&k, "knows 0 eventfds of 'memory', there are 1: none at 101808");
    term = memory_sum_event(&(struct strata_eventfd){.addr = 0x101808, .size = 4, .fd = 3});
    memory_sum_count(&a->events, &term, true);
    help_done(&k.b);
}

/* The sums follow what can happen to a listener: late registration, logging, eventfds, spaces that
 * move to another view, their end. */
static void sums_follow(void **state)
{
    static const struct strata_listener_ops ops;
    struct strata_listener_desc d = {.name = "late", .ops = &ops};
    struct bench k = bench_up();
    struct strata_listener *late, *only;
    struct strata_eventfd ev = {.addr = 8, .size = 4, .fd = 3};
    struct strata_space *space;

    assert_int_equal(strata_region_set_log(k.ram, true, STRATA_DIRTY_DISPLAY), 0);
    assert_int_equal(strata_space_new(k.b.mem, "second", k.ram, &space), 0);
    assert_int_equal(strata_listener_register(k.b.mem, &d, &late), 0);
    d.space = space;
    assert_int_equal(strata_listener_register(k.b.mem, &d, &only), 0);
    assert_int_equal(strata_check(k.b.mem), 0);
    assert_int_equal(strata_tracking_start(k.b.mem, STRATA_TRACK_RATE), 0);
    assert_int_equal(strata_check(k.b.mem), 0);
    strata_listener_unregister(late);
    assert_int_equal(strata_region_set_enabled(k.io, false), 0);
    assert_int_equal(strata_region_set_readonly(k.ram, true), 0);
    assert_int_equal(strata_check(k.b.mem), 0);
    d.space = NULL;
    assert_int_equal(strata_listener_register(k.b.mem, &d, &late), 0); /* the freed slot */
    assert_int_equal(strata_region_set_enabled(k.io, true), 0);
    assert_int_equal(strata_region_del_eventfd(k.io, &ev), 0);
    assert_int_equal(strata_tracking_stop(k.b.mem, STRATA_TRACK_RATE), 0);
    assert_int_equal(strata_check(k.b.mem), 0);
    assert_int_equal(strata_space_free(space), 0);
    assert_int_equal(strata_region_set_unmergeable(k.ram, true), 0);
    help_done(&k.b);
}

/* Not from inside a commit, when one listener has been told and the next has not. */
static void check_inside(void *opaque, const struct strata_section *s)
{
    int *checked = opaque;

    assert_int_equal(strata_check(strata_space_memory(s->space)), 0);
    ++*checked;
}

static void checks_from_callbacks(void **state)
{
    static const struct strata_listener_ops ops = {.region_add = check_inside,
                                                   .region_del = check_inside};
    struct board b = help_board(NULL);
    struct strata_listener *l;
    int checked = 0;
    struct strata_listener_desc d = {.name = "nosy", .ops = &ops, .opaque = &checked};
    struct strata_region *io = help_region(b.mem, STRATA_IO, "io", 16);

    assert_int_equal(strata_listener_register(b.mem, &d, &l), 0);
    help_add(b.root, 0, io, 0);
    assert_int_equal(strata_region_set_address(io, 0x100), 0);
    assert_int_equal(checked, 3);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_trees),
        cmocka_unit_test(broken_ranges),
        cmocka_unit_test(broken_radix),
        cmocka_unit_test(broken_spaces),
        cmocka_unit_test(broken_sums),
        cmocka_unit_test(sums_follow),
        cmocka_unit_test(checks_from_callbacks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
