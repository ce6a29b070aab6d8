/* What listeners are told, in which order and direction: U22 to U31, change sets, refusals. */
#include "memory/help.h"

#include "strata/discard.h"

/* Everything two listeners hear, as one text. */
struct log {
    char text[4096];
    size_t len;
};

struct ear {
    struct log *log;
    char name;
    int fail_start, fail_prepare;
};

static void note(struct ear *ear, const char *fmt, ...)
{
    struct log *log = ear->log;
    va_list args;
    char text[128];

    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    log->len += (size_t)snprintf(log->text + log->len, sizeof(log->text) - log->len, "%c:%s ",
                                 ear->name, text);
    assert_true(log->len < sizeof(log->text));
}

static void expect(struct log *log, const char *want)
{
    assert_string_equal(log->text, want);
    log->len = 0;
    log->text[0] = '\0';
}

static void on_begin(void *o) { note(o, "begin"); }
static void on_commit(void *o) { note(o, "commit"); }
static void on_gstop(void *o) { note(o, "gstop"); }
static void on_flush(void *o) { note(o, "flush"); }
static void on_abort(void *o) { note(o, "abort"); }

static int on_gstart(void *o)
{
    struct ear *ear = o;

    note(ear, "gstart");
    return ear->fail_start;
}

static void on_add(void *o, const struct strata_section *s)
{
    note(o, "add(%s,%llx)", strata_region_name(s->region), (unsigned long long)s->start);
}

static void on_del(void *o, const struct strata_section *s)
{
    note(o, "del(%s,%llx)", strata_region_name(s->region), (unsigned long long)s->start);
}

static void on_nop(void *o, const struct strata_section *s)
{
    note(o, "nop(%s,%llx)", strata_region_name(s->region), (unsigned long long)s->start);
}

static void on_start(void *o, const struct strata_section *s, unsigned was, unsigned now)
{
    note(o, "start(%s,%u,%u)", strata_region_name(s->region), was, now);
}

static void on_stop(void *o, const struct strata_section *s, unsigned was, unsigned now)
{
    note(o, "stop(%s,%u,%u)", strata_region_name(s->region), was, now);
}

static void on_eadd(void *o, struct strata_space *space, const struct strata_eventfd *ev)
{
    note(o, "eadd(%llx,%d)", (unsigned long long)ev->addr, ev->fd);
}

static void on_edel(void *o, struct strata_space *space, const struct strata_eventfd *ev)
{
    note(o, "edel(%llx,%d)", (unsigned long long)ev->addr, ev->fd);
}

static void on_cadd(void *o, const struct strata_section *s, strata_addr start, uint64_t size)
{
    note(o, "cadd(%llx,%llx)", (unsigned long long)start, (unsigned long long)size);
}

static void on_cdel(void *o, const struct strata_section *s, strata_addr start, uint64_t size)
{
    note(o, "cdel(%llx,%llx)", (unsigned long long)start, (unsigned long long)size);
}

static const struct strata_listener_ops all_ops = {
    .begin = on_begin, .commit = on_commit, .region_add = on_add, .region_del = on_del,
    .log_start = on_start, .log_stop = on_stop, .log_global_start = on_gstart,
    .log_global_stop = on_gstop, .eventfd_add = on_eadd, .eventfd_del = on_edel,
    .coalesced_add = on_cadd, .coalesced_del = on_cdel, .coalesced_flush = on_flush,
};

struct stage {
    struct board b;
    struct log log;
    struct ear ear[2];
    struct strata_listener *l[2];
};

/* Two listeners, registered against their priorities: x is called first going forward. */
static void stage_up(struct stage *s, const struct strata_listener_ops *ops)
{
    memset(s, 0, sizeof(*s));
    s->b = help_board(NULL);
    for (int i = 1; i >= 0; i--) {
        struct strata_listener_desc d = {.name = "ear", .priority = i, .ops = ops, .opaque = &s->ear[i]};

        s->ear[i] = (struct ear){&s->log, (char)('x' + i), 0, 0};
        assert_int_equal(strata_listener_register(s->b.mem, &d, &s->l[i]), 0);
    }
    s->log.len = 0;
    s->log.text[0] = '\0';
}

static void commit_order(void **state)
{
    struct stage s;
    struct strata_region *a, *c;
    struct strata_listener_ops ops = all_ops;

    ops.coalesced_flush = NULL;
    stage_up(&s, &ops);
    a = help_region(s.b.mem, STRATA_IO, "a", 0x10);
    c = help_region(s.b.mem, STRATA_IO, "c", 0x10);
    help_add(s.b.root, 0x40, a, 0);
    expect(&s.log, "x:begin y:begin x:add(a,40) y:add(a,40) x:commit y:commit ");
    strata_begin(s.b.mem);
    help_add(s.b.root, 0x20, c, 0);
    assert_int_equal(strata_region_set_address(a, 0x10), 0);
    expect(&s.log, "");
    assert_int_equal(strata_commit(s.b.mem), 0); /* all deletions first, in reverse order of ears */
    expect(&s.log, "x:begin y:begin y:del(a,40) x:del(a,40) x:add(a,10) y:add(a,10) x:add(c,20) "
                   "y:add(c,20) x:commit y:commit ");
    assert_int_equal(strata_region_set_log(a, true, STRATA_DIRTY_DISPLAY), 0);
    expect(&s.log, "x:begin y:begin x:start(a,0,1) y:start(a,0,1) x:commit y:commit ");
    assert_int_equal(strata_region_set_log(a, true, STRATA_DIRTY_DISPLAY), 0); /* counted */
    assert_int_equal(strata_region_set_log(a, false, STRATA_DIRTY_DISPLAY), 0);
    expect(&s.log, "");
    assert_int_equal(strata_region_set_log(a, false, STRATA_DIRTY_DISPLAY), 0);
    expect(&s.log, "x:begin y:begin y:stop(a,1,0) x:stop(a,1,0) x:commit y:commit ");
    assert_int_equal(strata_region_set_log(a, false, STRATA_DIRTY_DISPLAY), -EINVAL);
    assert_int_equal(strata_region_set_log(a, true, STRATA_DIRTY_MIGRATION), -EINVAL);
    help_done(&s.b);
}

static void eventfd_differences(void **state)
{
    struct stage s;
    struct strata_region *a;
    struct strata_listener_ops ops = all_ops;
    struct strata_eventfd e4 = {.addr = 4, .size = 2, .match_data = true, .data = 7, .fd = 100};
    struct strata_eventfd e0 = {.addr = 0, .size = 0, .fd = 101};

    ops.coalesced_flush = NULL;
    stage_up(&s, &ops);
    a = help_region(s.b.mem, STRATA_IO, "a", 0x10);
    help_add(s.b.root, 0x100, a, 0);
    s.log.len = 0;
    assert_int_equal(strata_region_add_eventfd(a, &e4), 0); /* no begin, no commit; reverse */
    expect(&s.log, "y:eadd(104,100) x:eadd(104,100) ");
    assert_int_equal(strata_region_add_eventfd(a, &e4), -EEXIST);
    strata_begin(s.b.mem);
    assert_int_equal(strata_region_add_eventfd(a, &e0), 0);
    assert_int_equal(strata_region_del_eventfd(a, &e4), 0);
    assert_int_equal(strata_commit(s.b.mem), 0);
    expect(&s.log, "y:eadd(100,101) x:eadd(100,101) x:edel(104,100) y:edel(104,100) ");
    assert_int_equal(strata_region_del_eventfd(a, &e4), -ENOENT);
    assert_int_equal(strata_region_set_address(a, 0x200), 0); /* follows its region */
    expect(&s.log, "x:begin y:begin y:del(a,100) x:del(a,100) x:add(a,200) y:add(a,200) "
                   "x:edel(100,101) y:edel(100,101) y:eadd(200,101) x:eadd(200,101) x:commit "
                   "y:commit ");
    assert_int_equal(strata_region_set_size(a, 0), 0);
    expect(&s.log, "x:begin y:begin y:del(a,200) x:del(a,200) x:edel(200,101) y:edel(200,101) "
                   "x:commit y:commit ");
    e0.size = 3;
    assert_int_equal(strata_region_add_eventfd(a, &e0), -EINVAL);
    help_done(&s.b);
}

static void coalesced_ranges(void **state)
{
    struct stage s;
    struct strata_region *a, *hole;
    struct strata_listener_ops ops = all_ops;

    ops.coalesced_flush = NULL;
    stage_up(&s, &ops);
    a = help_region(s.b.mem, STRATA_IO, "a", 0x100);
    hole = help_region(s.b.mem, STRATA_IO, "hole", 0x10);
    help_add(s.b.root, 0x1000, a, 0);
    s.log.len = 0;
    assert_int_equal(strata_region_add_coalesced(a, 0x20, 0x40), 0);
    expect(&s.log, "x:cadd(1020,40) y:cadd(1020,40) ");
    help_add(s.b.root, 0x1040, hole, 1); /* cut in two: each piece is told its part */
    expect(&s.log, "x:begin y:begin y:cdel(1020,40) x:cdel(1020,40) y:del(a,1000) x:del(a,1000) "
                   "x:add(a,1000) y:add(a,1000) x:cadd(1020,20) y:cadd(1020,20) x:add(hole,1040) "
                   "y:add(hole,1040) x:add(a,1050) y:add(a,1050) x:cadd(1050,10) y:cadd(1050,10) "
                   "x:commit y:commit ");
    assert_int_equal(strata_region_clear_coalesced(a), 0);
    expect(&s.log, "y:cdel(1020,20) x:cdel(1020,20) y:cdel(1050,10) x:cdel(1050,10) ");
    assert_int_equal(strata_region_add_coalesced(a, 0xf0, 0x20), -EINVAL);
    help_done(&s.b);
}

static void begin_drains(void **state)
{
    struct stage s;

    stage_up(&s, &all_ops);
    strata_begin(s.b.mem);
    expect(&s.log, "x:flush y:flush ");
    assert_int_equal(strata_commit(s.b.mem), 0);
    expect(&s.log, ""); /* nothing pending: nobody is told */
    help_done(&s.b);
}

/* A region that asks for it has buffered writes delivered before each access. */
static void access_drains(void **state)
{
    struct stage s;
    struct strata_region *dev;
    uint64_t v;

    stage_up(&s, &all_ops);
    strata_listener_unregister(s.l[1]);
    dev = help_region(s.b.mem, STRATA_IO, "dev", 0x100);
    help_add(s.b.root, 0, dev, 0);
    s.log.len = 0;
    s.log.text[0] = '\0';
    strata_load(s.b.space, 0, 4, STRATA_LITTLE_ENDIAN, &v);
    expect(&s.log, "");
    strata_region_set_flush_coalesced(dev, true);
    strata_load(s.b.space, 0, 4, STRATA_LITTLE_ENDIAN, &v);
    strata_store(s.b.space, 0, 4, STRATA_LITTLE_ENDIAN, v);
    expect(&s.log, "x:flush x:flush ");
    strata_region_set_flush_coalesced(dev, false);
    strata_load(s.b.space, 0, 4, STRATA_LITTLE_ENDIAN, &v);
    expect(&s.log, "");
    help_done(&s.b);
}

static void on_sync_global(void *o, bool last_stage)
{
    note(o, "sync%d", last_stage);
}

static void late_registration(void **state)
{
    struct stage s;
    struct strata_region *a, *c;
    struct strata_listener *late;
    struct ear ear = {.name = 'z'};
    struct strata_listener_desc d = {.name = "late", .priority = 9, .ops = &all_ops, .opaque = &ear};
    struct strata_eventfd ev = {.addr = 8, .size = 4, .fd = 55};
    static const struct strata_listener_ops both = {.log_sync = on_add,
                                                    .log_sync_global = on_sync_global};

    stage_up(&s, &all_ops);
    ear.log = &s.log;
    a = help_region(s.b.mem, STRATA_RAM, "a", 0x1000);
    c = help_region(s.b.mem, STRATA_IO, "c", 0x100);
    help_add(s.b.root, 0, a, 0);
    help_add(s.b.root, 0x4000, c, 0);
    assert_int_equal(strata_region_add_coalesced(c, 0, 4), 0);
    assert_int_equal(strata_region_add_eventfd(c, &ev), 0);
    assert_int_equal(strata_tracking_start(s.b.mem, STRATA_TRACK_MIGRATION), 0);
    s.log.len = 0;
    assert_int_equal(strata_listener_register(s.b.mem, &d, &late), 0);
    expect(&s.log, "z:begin z:gstart z:add(a,0) z:start(a,0,4) z:add(c,4000) z:cadd(4000,4) "
                   "z:eadd(4008,55) z:commit ");
    strata_listener_unregister(late);
    expect(&s.log, "z:begin z:stop(a,4,0) z:del(a,0) z:cdel(4000,4) z:del(c,4000) "
                   "z:edel(4008,55) z:commit ");
    d.ops = &both;
    assert_int_equal(strata_listener_register(s.b.mem, &d, &late), -EINVAL);
    help_done(&s.b);
}

static void tracking_rolls_back(void **state)
{
    struct stage s;
    struct strata_region *a;
    struct strata_listener_ops ops = all_ops;

    ops.coalesced_flush = NULL;
    stage_up(&s, &ops);
    a = help_region(s.b.mem, STRATA_RAM, "a", 0x1000);
    help_add(s.b.root, 0, a, 0);
    s.log.len = 0;
    s.ear[1].fail_start = -EIO;
    assert_int_equal(strata_tracking_start(s.b.mem, STRATA_TRACK_RATE), -EIO);
    expect(&s.log, "x:gstart y:gstart x:gstop ");
    assert_int_equal(strata_tracking_reasons(s.b.mem), 0);
    s.ear[1].fail_start = 0;
    assert_int_equal(strata_tracking_start(s.b.mem, STRATA_TRACK_RATE), 0);
    expect(&s.log, "x:gstart y:gstart x:begin y:begin x:start(a,0,4) y:start(a,0,4) x:commit "
                   "y:commit ");
    assert_int_equal(strata_tracking_start(s.b.mem, STRATA_TRACK_MIGRATION), 0);
    assert_int_equal(strata_tracking_stop(s.b.mem, STRATA_TRACK_RATE), 0);
    assert_int_equal(strata_tracking_stop(s.b.mem, STRATA_TRACK_RATE), -EINVAL);
    expect(&s.log, "");
    assert_int_equal(strata_tracking_set_paused(s.b.mem, true), 0);
    assert_int_equal(strata_tracking_stop(s.b.mem, STRATA_TRACK_MIGRATION), 0);
    assert_int_equal(strata_tracking_reasons(s.b.mem), 0);
    expect(&s.log, ""); /* postponed */
    assert_int_equal(strata_tracking_set_paused(s.b.mem, false), 0);
    expect(&s.log, "x:begin y:begin y:stop(a,4,0) x:stop(a,4,0) x:commit y:commit y:gstop x:gstop ");
    help_done(&s.b);
}

/* A block joins and leaves migration while memory is tracked. */
static void migratable_is_told(void **state)
{
    struct stage s;
    struct strata_region *a;
    struct strata_ram *ram;
    uint64_t bitmap;
    struct strata_listener_ops ops = all_ops;

    ops.coalesced_flush = NULL;
    stage_up(&s, &ops);
    strata_listener_unregister(s.l[1]);
    a = help_region(s.b.mem, STRATA_RAM, "a", 0x3000);
    ram = strata_region_ram(a);
    help_add(s.b.root, 0, a, 0);
    assert_int_equal(strata_ram_set_migratable(ram, false), 0);
    assert_int_equal(strata_tracking_start(s.b.mem, STRATA_TRACK_MIGRATION), 0);
    s.log.len = 0;
    s.log.text[0] = '\0';
    strata_ram_harvest_dirty(ram, 0, 0x3000, STRATA_DIRTY_MIGRATION, &bitmap);
    assert_int_equal(strata_store(s.b.space, 0x1000, 4, STRATA_LITTLE_ENDIAN, 1), 0);
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 0);
    assert_int_equal(strata_ram_set_migratable(ram, true), 0);
    expect(&s.log, "x:begin x:start(a,0,4) x:commit ");
    assert_true(strata_ram_harvest_dirty(ram, 0, 0x3000, STRATA_DIRTY_MIGRATION, &bitmap) == 3);
    assert_int_equal(strata_store(s.b.space, 0x1000, 4, STRATA_LITTLE_ENDIAN, 1), 0);
    assert_true(strata_ram_count_dirty(ram, STRATA_DIRTY_MIGRATION) == 1);
    assert_int_equal(strata_ram_set_migratable(ram, true), 0);
    expect(&s.log, "");
    assert_int_equal(strata_ram_set_migratable(ram, false), 0);
    expect(&s.log, "x:begin x:stop(a,4,0) x:commit ");
    help_done(&s.b);
}

static void nop_and_filter(void **state)
{
    struct stage s;
    struct strata_listener_ops ops = {.region_add = on_add, .region_del = on_del, .region_nop = on_nop};
    struct strata_region *a, *other = NULL;
    struct strata_space *io;
    struct strata_listener *filtered;
    struct ear ear = {.name = 'f'};
    struct strata_listener_desc d = {.name = "f", .ops = &ops, .opaque = &ear};

    stage_up(&s, &ops);
    ear.log = &s.log;
    a = help_region(s.b.mem, STRATA_IO, "a", 0x10);
    help_add(s.b.root, 0, a, 0);
    s.log.len = 0;
    help_add(s.b.root, 0x100, help_region(s.b.mem, STRATA_IO, "b", 0x10), 0);
    expect(&s.log, "x:nop(a,0) y:nop(a,0) x:add(b,100) y:add(b,100) ");
    other = help_region(s.b.mem, STRATA_CONTAINER, "ports", 0x10000);
    assert_int_equal(strata_space_new(s.b.mem, "io", other, &io), 0);
    d.space = io;
    assert_int_equal(strata_listener_register(s.b.mem, &d, &filtered), 0);
    strata_listener_unregister(s.l[0]);
    strata_listener_unregister(s.l[1]);
    s.log.len = 0;
    s.log.text[0] = '\0';
    assert_int_equal(strata_region_set_enabled(a, false), 0);
    expect(&s.log, "");
    help_add(other, 0x70, help_region(s.b.mem, STRATA_IO, "rtc", 2), 0);
    expect(&s.log, "f:add(rtc,70) ");
    assert_int_equal(strata_space_free(io), 0);
    expect(&s.log, "f:del(rtc,70) ");
    help_done(&s.b);
}

static const char *const kind_names[] = {"DEL", "ADD", "LOG", "MOVE", "SPLIT", "MERGE", "FLAGS"};

static int on_prepare(void *o, const struct strata_change_set *sets, size_t count)
{
    struct ear *ear = o;

    for (size_t i = 0; i < count; i++) {
        for (size_t k = 0; k < sets[i].count; k++) {
            const struct strata_change *c = &sets[i].changes[k];

            note(ear, "%s(%llx,%llx)", kind_names[c->kind], (unsigned long long)c->old.start,
                 (unsigned long long)c->now.start);
        }
    }
    return ear->fail_prepare;
}

static void on_apply(void *o, const struct strata_change_set *sets, size_t count)
{
    note(o, "apply%zu", count);
}

static void on_apply_all(void *o, const struct strata_change_set *sets, size_t count)
{
    assert_int_equal(on_prepare(o, sets, count), 0);
}

static void change_sets(void **state)
{
    static const struct strata_listener_ops ops = {
        .prepare = on_prepare, .abort = on_abort, .apply = on_apply, .commit = on_commit};
    struct stage s;
    struct strata_region *a, *cut;

    stage_up(&s, &ops);
    strata_listener_unregister(s.l[1]);
    s.log.len = 0;
    s.log.text[0] = '\0';
    a = help_region(s.b.mem, STRATA_RAM, "a", 0x10000);
    cut = help_region(s.b.mem, STRATA_IO, "cut", 0x1000);
    help_add(s.b.root, 0x10000, a, 0);
    expect(&s.log, "x:ADD(0,10000) x:apply1 x:commit ");
    help_add(s.b.root, 0x14000, cut, 1);
    expect(&s.log, "x:SPLIT(10000,10000) x:ADD(0,14000) x:SPLIT(10000,15000) x:apply1 x:commit ");
    assert_int_equal(strata_region_set_enabled(cut, false), 0);
    expect(&s.log, "x:MERGE(10000,10000) x:MERGE(15000,10000) x:DEL(14000,0) x:apply1 x:commit ");
    assert_int_equal(strata_region_set_address(a, 0x40000), 0);
    expect(&s.log, "x:MOVE(10000,40000) x:apply1 x:commit ");
    assert_int_equal(strata_region_set_readonly(a, true), 0);
    expect(&s.log, "x:FLAGS(40000,40000) x:apply1 x:commit ");
    assert_int_equal(strata_region_set_log(a, true, STRATA_DIRTY_DISPLAY), 0);
    expect(&s.log, "x:LOG(40000,40000) x:apply1 x:commit ");
    help_done(&s.b);
}

/* What only takes change sets is told so of what is there when it comes and when it goes. */
static void late_change_sets(void **state)
{
    static const struct strata_listener_ops ops = {.apply = on_apply_all, .commit = on_commit};
    struct stage s;

    stage_up(&s, &ops);
    strata_listener_unregister(s.l[1]);
    help_add(s.b.root, 0x1000, help_region(s.b.mem, STRATA_IO, "a", 0x10), 0);
    help_add(s.b.root, 0x3000, help_region(s.b.mem, STRATA_IO, "b", 0x10), 0);
    strata_listener_unregister(s.l[0]);
    s.log.len = 0;
    assert_int_equal(strata_listener_register(s.b.mem, &(struct strata_listener_desc){
        .name = "late", .ops = &ops, .opaque = &s.ear[0]}, &s.l[0]), 0);
    expect(&s.log, "x:ADD(0,1000) x:ADD(0,3000) x:commit ");
    assert_int_equal(strata_check(s.b.mem), 0);
    strata_listener_unregister(s.l[0]);
    expect(&s.log, "x:DEL(1000,0) x:DEL(3000,0) x:commit ");
    help_done(&s.b);
}

static void a_refusal_changes_nothing(void **state)
{
    static const struct strata_listener_ops ops = {
        .prepare = on_prepare, .abort = on_abort, .region_add = on_add, .begin = on_begin};
    struct stage s;
    struct strata_region *a;

    stage_up(&s, &ops);
    a = help_region(s.b.mem, STRATA_IO, "a", 0x10);
    s.ear[1].fail_prepare = -ENOSPC;
    assert_int_equal(strata_region_add(s.b.root, 0x10, a), -ENOSPC);
    expect(&s.log, "x:ADD(0,10) y:ADD(0,10) x:abort ");
    assert_null(strata_region_parent(a));
    help_shows(&s.b, 0x10, "-");
    strata_begin(s.b.mem);
    help_add(s.b.root, 0x10, a, 0);
    assert_int_equal(strata_commit(s.b.mem), -ENOSPC); /* stays open, everything pending */
    help_shows(&s.b, 0x10, "-");
    s.ear[1].fail_prepare = 0;
    assert_int_equal(strata_commit(s.b.mem), 0);
    help_shows(&s.b, 0x10, "a");
    help_done(&s.b);
}

static void try_to_change(void *opaque)
{
    struct board *b = opaque;

    assert_int_equal(strata_region_set_size(b->root, 0x1000), -EBUSY);
}

static void callbacks_cannot_change(void **state)
{
    static const struct strata_listener_ops ops = {.begin = try_to_change, .commit = try_to_change};
    struct board b = help_board(NULL);
    struct strata_listener_desc d = {.name = "naughty", .ops = &ops, .opaque = &b};
    struct strata_listener *l;

    assert_int_equal(strata_listener_register(b.mem, &d, &l), 0);
    help_add(b.root, 0, help_region(b.mem, STRATA_IO, "a", 1), 0);
    assert_true(strata_region_size(b.root) == STRATA_SIZE_ALL);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(commit_order),
        cmocka_unit_test(eventfd_differences),
        cmocka_unit_test(coalesced_ranges),
        cmocka_unit_test(begin_drains),
        cmocka_unit_test(access_drains),
        cmocka_unit_test(late_registration),
        cmocka_unit_test(tracking_rolls_back),
        cmocka_unit_test(migratable_is_told),
        cmocka_unit_test(nop_and_filter),
        cmocka_unit_test(change_sets),
        cmocka_unit_test(late_change_sets),
        cmocka_unit_test(a_refusal_changes_nothing),
        cmocka_unit_test(callbacks_cannot_change),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
