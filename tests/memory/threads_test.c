/*
 * Readers during topology storms. Run under ThreadSanitizer. What readers check: a page that every
 * version of the map shows holds its constant at all times; of two neighbouring windows switched in
 * one transaction, both or neither are seen by one lens; a device that was destroyed is never called.
 */
#include "memory/help.h"

#include <pthread.h>
#include <sched.h>

#include "strata/fast.h"

struct storm {
    struct board b;
    struct strata_region *fixed, *flip[2];
    int stop;       /* atomic */
    unsigned long reads, late; /* atomic */
};

static void *reader(void *arg)
{
    struct storm *s = arg;
    unsigned long n = 0;

    while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
        struct strata_section one, two;
        struct strata_lens lens;
        uint64_t value = 0;
        bool a, b;

        strata_read_begin(s->b.mem);
        lens = strata_lens_get(s->b.space);
        if (strata_lens_read64(&lens, 0x2000, &value) != STRATA_OK || value != 0x600d) {
            fail_msg("the fixed page reads %llx", (unsigned long long)value);
        }
        a = strata_fast_find(lens.root, 0x10000) != NULL;
        b = strata_fast_find(lens.root, 0x11000) != NULL;
        assert_true(a == b);
        if (strata_space_lookup(s->b.space, 0x10000, &one) == 0) {
            assert_int_equal(strata_region_size(one.region), 0x1000);
        }
        strata_space_next(s->b.space, 0x3000, UINT64_MAX, &two);
        strata_read_end(s->b.mem);
        value = n;
        strata_write(s->b.space, 0x2800, STRATA_ATTRS_NONE, &value, 8);
        strata_read(s->b.space, 0x10008, STRATA_ATTRS_NONE, &value, 8);
        strata_load(s->b.space, 0x40000, 4, STRATA_LITTLE_ENDIAN, &value);
        if (++n % 64 == 0) {
            sched_yield();
        }
    }
    __atomic_fetch_add(&s->reads, n, __ATOMIC_RELAXED);
    return NULL;
}

struct device {
    struct storm *storm;
    int alive; /* atomic */
};

static uint64_t device_read(void *opaque, strata_addr addr, unsigned size)
{
    struct device *d = opaque;

    if (!__atomic_load_n(&d->alive, __ATOMIC_ACQUIRE)) {
        __atomic_fetch_add(&d->storm->late, 1, __ATOMIC_RELAXED);
    }
    return 0x11;
}

static void device_release(void *opaque)
{
    struct device *d = opaque;

    __atomic_store_n(&d->alive, 0, __ATOMIC_RELEASE);
    free(d);
}

static const struct strata_io_ops device_ops = {.read = device_read, .valid = {1, 8}, .impl = {1, 8}};

static void plug_and_unplug(struct storm *s)
{
    struct device *d = malloc(sizeof(*d));
    struct strata_owner *owner;
    struct strata_region_desc desc = {.kind = STRATA_IO, .name = "hot", .size = 0x100,
                                      .ops = &device_ops, .opaque = d};
    struct strata_region *r;

    *d = (struct device){s, 1};
    assert_int_equal(strata_owner_new(s->b.mem, "hot", device_release, d, &owner), 0);
    desc.owner = owner;
    assert_int_equal(strata_region_new(s->b.mem, &desc, &r), 0);
    help_add(s->b.root, 0x40000, r, 0);
    assert_int_equal(strata_region_destroy(r), 0);
    strata_owner_unref(owner);
}

static void *writer(void *arg)
{
    struct storm *s = arg;

    for (unsigned i = 0; i < 300; i++) {
        strata_begin(s->b.mem);
        assert_int_equal(strata_region_set_enabled(s->flip[0], i & 1), 0);
        assert_int_equal(strata_region_set_enabled(s->flip[1], i & 1), 0);
        assert_int_equal(strata_commit(s->b.mem), 0);
        assert_int_equal(strata_region_set_log(s->fixed, true, STRATA_DIRTY_DISPLAY), 0);
        assert_int_equal(strata_region_set_nonvolatile(s->fixed, i & 2), 0);
        assert_int_equal(strata_region_set_log(s->fixed, false, STRATA_DIRTY_DISPLAY), 0);
        plug_and_unplug(s);
    }
    return NULL;
}

static void storms(void **state)
{
    struct storm s = {.b = help_board(NULL)};
    pthread_t readers[3], writers[2];

    s.fixed = help_region(s.b.mem, STRATA_RAM, "fixed", 0x1000);
    s.flip[0] = help_region(s.b.mem, STRATA_RAM, "flip0", 0x1000);
    s.flip[1] = help_region(s.b.mem, STRATA_RAM, "flip1", 0x1000);
    help_add(s.b.root, 0x2000, s.fixed, 0);
    help_add(s.b.root, 0x10000, s.flip[0], 0);
    help_add(s.b.root, 0x11000, s.flip[1], 0);
    assert_int_equal(strata_store(s.b.space, 0x2000, 8, STRATA_NATIVE_ENDIAN, 0x600d), STRATA_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(pthread_create(&readers[i], NULL, reader, &s), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&writers[i], NULL, writer, &s), 0);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(writers[i], NULL);
    }
    __atomic_store_n(&s.stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 3; i++) {
        pthread_join(readers[i], NULL);
    }
    assert_true(s.reads > 0);
    assert_int_equal(s.late, 0);
    assert_int_equal(strata_memory_drain(s.b.mem), 0);
    help_done(&s.b);
}

/* Every page that was written while tracking must be harvested, whatever the interleaving. */
struct dirty_race {
    struct board b;
    struct strata_ram *ram;
    int stop;
    uint32_t round;      /* number of the harvest that runs or comes next; atomic */
    uint32_t claim[512]; /* per page: the round in which its last finished store began; 0: none; atomic */
};

static void *dirty_writer(void *arg)
{
    struct dirty_race *r = arg;
    uint64_t x = 88172645463325252u;

    while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED)) {
        uint32_t round = __atomic_load_n(&r->round, __ATOMIC_ACQUIRE);
        uint64_t page;

        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        page = x % 512;
        strata_store(r->b.space, page * 4096 + 8, 8, STRATA_LITTLE_ENDIAN, x);
        __atomic_store_n(&r->claim[page], round, __ATOMIC_RELEASE);
    }
    return NULL;
}

static void no_page_is_missed(void **state)
{
    struct dirty_race r = {.b = help_board(NULL), .round = 1};
    struct strata_region *ram = help_region(r.b.mem, STRATA_RAM, "ram", 512 * 4096);
    uint32_t seen[512] = {0}, want[512];
    uint64_t bitmap[8];
    pthread_t thread;

    r.ram = strata_region_ram(ram);
    help_add(r.b.root, 0, ram, 0);
    assert_int_equal(strata_tracking_start(r.b.mem, STRATA_TRACK_MIGRATION), 0);
    strata_ram_harvest_dirty(r.ram, 0, 512 * 4096, STRATA_DIRTY_MIGRATION, bitmap);
    assert_int_equal(pthread_create(&thread, NULL, dirty_writer, &r), 0);
    for (uint32_t round = 1; round <= 2000; round++) {
        for (unsigned i = 0; i < 512; i++) {
            want[i] = __atomic_load_n(&r.claim[i], __ATOMIC_ACQUIRE);
        }
        strata_ram_harvest_dirty(r.ram, 0, 512 * 4096, STRATA_DIRTY_MIGRATION, bitmap);
        for (unsigned i = 0; i < 512; i++) {
            seen[i] = bitmap[i / 64] >> (i % 64) & 1 ? round : seen[i];
            /* Stored before this harvest: found by it, or by one since the store began. */
            assert_true(seen[i] >= want[i]);
        }
        __atomic_store_n(&r.round, round + 1, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&r.stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    help_done(&r.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(storms),
        cmocka_unit_test(no_page_is_missed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
