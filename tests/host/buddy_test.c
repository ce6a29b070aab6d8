/* Frames: zones, buddies, per-CPU lists, references, storage of tables; against a map of who has
 * what. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "oracle/host_frames.h"

#define MIB (UINT64_C(1) << 20)

static struct host_memory *make(uint64_t bytes)
{
    struct host_memory_options o = {.bytes = bytes, .nr_cpus = 2};
    struct host_memory *hm = NULL;

    assert_int_equal(host_memory_new(&o, &hm), 0);
    return hm;
}

static void check_all(struct host_memory *hm)
{
    char text[200] = "";

    if (host_memory_check(hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
}

static uint64_t free_frames(struct host_memory *hm)
{
    struct host_memory_stats s;

    host_memory_get_stats(hm, &s);
    return s.zone[0].free + s.zone[1].free + s.zone[2].free + s.pcp_frames;
}

static void sizes_are_judged(void **state)
{
    struct host_memory_options o = {.bytes = 4 * MIB};
    struct host_memory *hm;
    pfn_t p;

    assert_int_equal(host_memory_new(&o, &hm), -EINVAL);
    o.bytes = UINT64_C(1) << 42;
    assert_int_equal(host_memory_new(&o, &hm), -EINVAL);
    host_memory_free(NULL);
    hm = make(16 * MIB);
    assert_int_equal(host_frames_alloc(hm, HOST_MAX_ORDER + 1, 0, &p), -EINVAL);
    assert_int_equal(host_frames_alloc(hm, 0, HOST_GFP_MT_MASK, &p), -EINVAL);
    host_memory_free(hm);
}

static long resident_kib(void)
{
    long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &size, &resident), 2);
    fclose(f);
    return resident * 4;
}

static void large_memory_costs_nothing(void **state)
{
    struct host_memory_stats s;
    long before = resident_kib();
    struct host_memory *hm = make(UINT64_C(1024) << 30);
    pfn_t p;

    assert_int_equal(host_frames_alloc(hm, 0, HOST_GFP_MOVABLE, &p), 0);
    assert_true(p.v >= UINT64_C(1) << 20); /* the highest zone first */
    host_memory_get_stats(hm, &s);
    assert_int_equal(s.zone[HOST_ZONE_NORMAL].end_pfn, UINT64_C(1) << 28);
    assert_true(resident_kib() - before < 512);
    host_memory_free(hm);
}

struct block {
    uint64_t pfn;
    unsigned order;
};

/* Random allocations and frees; the oracle sees every overlap, the check every broken list. */
static void random_blocks(void **state)
{
    enum { MAX = 4000 };
    static struct block held[MAX];
    struct host_memory *hm = make(96 * MIB);
    struct oracle_frames o = oracle_frames_make(hm->nr_frames);
    uint64_t rng = 1, total = free_frames(hm);
    unsigned n = 0, failures = 0;

    for (unsigned step = 0; step < 60000; step++) {
        bool grow = (step / 5000) % 2 == 0;

        if (n < MAX && oracle_random(&rng) % 100 < (grow ? 70 : 30)) {
            unsigned order =
                (unsigned)(oracle_random(&rng) % 100 < 70 ? 0 : oracle_random(&rng) % 11);
            unsigned flags = (unsigned)(oracle_random(&rng) % HOST_NR_MIGRATE);
            pfn_t p;

            if (host_frames_alloc(hm, order, flags, &p) != 0) {
                failures++;
                continue;
            }
            assert_true(oracle_frames_take(&o, p.v, UINT64_C(1) << order));
            assert_int_equal(host_frame_at(hm, p)->order, order);
            held[n++] = (struct block){p.v, order};
        } else if (n) {
            unsigned i = (unsigned)(oracle_random(&rng) % n);

            oracle_frames_give(&o, held[i].pfn, UINT64_C(1) << held[i].order);
            host_frames_free(hm, pfn(held[i].pfn), held[i].order);
            held[i] = held[--n];
        }
        if (step % 2000 == 0) {
            check_all(hm);
            assert_int_equal(free_frames(hm) + o.used, total);
        }
    }
    assert_true(failures > 0); /* memory ran out on the way */
    while (n--) {
        host_frames_free(hm, pfn(held[n].pfn), held[n].order);
    }
    host_memory_trim(hm);
    check_all(hm);
    assert_int_equal(free_frames(hm), total);
    /* All came together again: 96 MiB less the block with the reserved frame. */
    struct host_memory_stats s;

    host_memory_get_stats(hm, &s);
    assert_int_equal(s.zone[0].blocks[HOST_MAX_ORDER] + s.zone[1].blocks[HOST_MAX_ORDER], 23);
    free(o.taken);
    host_memory_free(hm);
}

static void exhaustion_is_an_error(void **state)
{
    struct host_memory *hm = make(16 * MIB);
    struct host_memory_stats s;
    unsigned normal = 0, reserve = 0;
    pfn_t p;

    while (host_frames_alloc(hm, 0, HOST_GFP_MOVABLE, &p) == 0) {
        normal++;
        assert_true(normal < 4096);
    }
    assert_true(host_memory_pressure(hm));
    assert_false(host_memory_pressure(hm));
    host_memory_get_stats(hm, &s);
    assert_true(s.zone[0].min > 0 && s.zone[0].low > s.zone[0].min);
    assert_true(s.zone[0].free >= s.zone[0].min);
    while (host_frames_alloc(hm, 0, HOST_GFP_ATOMIC, &p) == 0) {
        reserve++;
        assert_true(reserve < 4096);
    }
    assert_true(reserve > 0); /* those who may, get more */
    host_memory_get_stats(hm, &s);
    assert_true(s.failures >= 2);
    check_all(hm);
    host_memory_free(hm);
}

static void low_zones(void **state)
{
    struct host_memory *hm = make(UINT64_C(8) << 30);
    pfn_t p;

    assert_int_equal(host_frames_alloc(hm, 0, HOST_GFP_DMA, &p), 0);
    assert_true(p.v < 4096);
    assert_int_equal(host_frames_alloc(hm, 9, HOST_GFP_DMA32, &p), 0);
    assert_true(p.v < UINT64_C(1) << 20);
    assert_int_equal(host_frames_alloc(hm, 9, 0, &p), 0);
    assert_true(p.v >= UINT64_C(1) << 20);
    host_memory_free(hm);
}

/* Unmovable and movable frames stay in 2 MiB blocks of their own while there is room. */
static void types_are_grouped(void **state)
{
    struct host_memory *hm = make(64 * MIB);
    struct host_memory_stats s;
    unsigned char type_of[64 / 2] = {0};

    for (unsigned i = 0; i < 4000; i++) {
        unsigned mt = i % 2 ? HOST_GFP_MOVABLE : HOST_GFP_UNMOVABLE;
        pfn_t p;

        assert_int_equal(host_frames_alloc(hm, 0, mt, &p), 0);
        type_of[p.v >> 9] |= (unsigned char)(1 << mt);
    }
    for (unsigned i = 0; i < sizeof(type_of); i++) {
        assert_int_not_equal(type_of[i], 3);
    }
    host_memory_get_stats(hm, &s);
    assert_int_equal(s.zone[0].steals + s.zone[1].steals, 0);
    host_memory_free(hm);
}

static void types_are_stolen_when_needed(void **state)
{
    struct host_memory *hm = make(16 * MIB);
    struct host_memory_stats s;
    pfn_t p;

    static pfn_t held[4096];
    unsigned n = 0, unmovable = 0;

    while (host_frames_alloc(hm, 0, HOST_GFP_MOVABLE, &held[n]) == 0) {
        n++;
    }
    for (unsigned i = 0; i < n; i += 2) {
        host_frames_free(hm, held[i], 0);
    }
    host_memory_trim(hm);
    while (host_frames_alloc(hm, 0, HOST_GFP_UNMOVABLE, &p) == 0) {
        unmovable++;
    }
    assert_int_equal(unmovable, (n + 1) / 2); /* every freed frame, whatever its block's type */
    host_memory_get_stats(hm, &s);
    assert_true(s.zone[0].steals > 0);
    check_all(hm);
    host_memory_free(hm);
}

static bool is_zero(const void *p)
{
    const uint64_t *w = p;

    for (unsigned i = 0; i < 512; i++) {
        if (w[i]) {
            return false;
        }
    }
    return true;
}

static void tables_are_zeroed_and_returned(void **state)
{
    enum { N = 2000 };
    static hpa_t t[N];
    struct host_memory *hm = make(64 * MIB);
    struct host_memory_stats s;
    long high;

    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < N; i++) {
            assert_int_equal(host_table_alloc(hm, HOST_FRAME_TABLE, &t[i]), 0);
            assert_ptr_equal(host_table_at(hm, t[i]), host_hpa_to_ptr(hm, t[i]));
            assert_int_equal(host_table_hpa(hm, host_table_at(hm, t[i])).v, t[i].v);
            assert_true(is_zero(host_table_at(hm, t[i])));
            memset(host_table_at(hm, t[i]), 0xa5, PAGE_SIZE);
        }
        host_memory_get_stats(hm, &s);
        assert_int_equal(s.in_use[HOST_FRAME_TABLE], N);
        high = resident_kib();
        for (unsigned i = 0; i < N; i++) {
            host_table_free(hm, t[i]);
        }
        assert_null(host_hpa_to_ptr(hm, t[0]));
    }
    host_memory_trim(hm);
    assert_true(resident_kib() < high - 7000); /* of 8000 KiB */
    check_all(hm);
    host_memory_free(hm);
}

static void references(void **state)
{
    struct host_memory *hm = make(64 * MIB);
    uint64_t total = free_frames(hm);
    pfn_t p;
    uint32_t gen;

    assert_int_equal(host_frames_alloc(hm, 9, HOST_GFP_MOVABLE, &p), 0);
    gen = host_frame_gen(host_frame_at(hm, p));
    assert_true(host_frame_try_get(hm, pfn(p.v + 100)));
    assert_int_equal(host_frame_at(hm, p)->refcount, 2);
    host_frame_put(hm, p);
    assert_int_equal(free_frames(hm), total - 512);
    host_frame_put(hm, pfn(p.v + 511));
    assert_int_equal(free_frames(hm), total);
    assert_false(host_frame_try_get(hm, p));
    assert_false(host_frame_try_get(hm, pfn(p.v + 7)));
    assert_false(host_frame_try_get(hm, pfn(hm->nr_frames)));

    assert_int_equal(host_frames_alloc(hm, 9, HOST_GFP_MOVABLE, &p), 0);
    assert_int_not_equal(host_frame_gen(host_frame_at(hm, p)), gen);
    host_frames_split(hm, p, 9);
    for (unsigned i = 0; i < 512; i++) {
        assert_true(host_frame_try_get(hm, pfn(p.v + i)));
        host_frame_put(hm, pfn(p.v + i));
        host_frame_put(hm, pfn(p.v + i));
    }
    assert_int_equal(free_frames(hm), total);
    host_memory_trim(hm);
    check_all(hm);
    host_memory_free(hm);
}

static void fragmentation_figure(void **state)
{
    enum { N = 3000 };
    static pfn_t p[N];
    struct host_memory *hm = make(16 * MIB);
    unsigned n = 0;

    assert_int_equal(host_zone_fragmentation(hm, HOST_ZONE_DMA, 9), -1000);
    while (n < N && host_frames_alloc(hm, 0, HOST_GFP_ATOMIC, &p[n]) == 0) {
        n++;
    }
    /* Nothing larger than a few frames: the lack is of memory. */
    while (n < N + 1 && host_frames_alloc(hm, 9, HOST_GFP_ATOMIC, &p[0]) == 0) {
    }
    for (unsigned i = 1; i < n; i++) {
        if (p[i].v % 2) {
            host_frames_free(hm, p[i], 0);
        }
    }
    host_memory_trim(hm);
    assert_true(host_zone_fragmentation(hm, HOST_ZONE_DMA, 9) > 900);
    assert_int_equal(host_zone_fragmentation(hm, HOST_ZONE_DMA, 0), -1000);
    host_memory_free(hm);
}

struct countdown {
    unsigned left;
    bool fired;
};

static bool fail_nth(void *opaque)
{
    struct countdown *c = opaque;

    if (c->left && --c->left == 0) {
        c->fired = true;
        return true;
    }
    return false;
}

static void every_allocation_may_fail(void **state)
{
    for (unsigned nth = 1;; nth++) {
        struct countdown c = {.left = nth};
        struct host_memory_options o = {.bytes = 16 * MIB, .fail_alloc = fail_nth, .opaque = &c};
        struct host_memory *hm;
        hpa_t t[3];
        pfn_t p;
        unsigned n = 0;
        int err = host_memory_new(&o, &hm);

        if (err) {
            assert_int_equal(err, -ENOMEM);
            continue;
        }
        while (n < 3 && host_table_alloc(hm, HOST_FRAME_TABLE, &t[n]) == 0) {
            n++;
        }
        if (host_frames_alloc(hm, 4, 0, &p) == 0) {
            host_frames_free(hm, p, 4);
        }
        while (n--) {
            host_table_free(hm, t[n]);
        }
        host_memory_trim(hm);
        check_all(hm);
        assert_int_equal(free_frames(hm), 4095);
        host_memory_free(hm);
        if (!c.fired) {
            assert_true(nth > 4);
            break;
        }
    }
}

static void *hammer(void *arg)
{
    struct host_memory *hm = arg;
    uint64_t rng = (uintptr_t)&rng;
    struct block held[200];
    unsigned n = 0;

    for (unsigned step = 0; step < 30000; step++) {
        if (n < 200 && oracle_random(&rng) % 2) {
            unsigned order = (unsigned)(oracle_random(&rng) % 8 ? 0 : oracle_random(&rng) % 10);
            pfn_t p;

            if (host_frames_alloc(hm, order, step % HOST_NR_MIGRATE, &p) == 0) {
                /* Writing `link` shows any frame handed out twice to the race detector. */
                for (unsigned i = 0; i < 1u << order; i++) {
                    host_frame_at(hm, pfn(p.v + i))->owner = 7;
                }
                held[n++] = (struct block){p.v, order};
            }
        } else if (n) {
            unsigned i = (unsigned)(oracle_random(&rng) % n);

            assert_true(host_frame_try_get(hm, pfn(held[i].pfn)));
            host_frame_put(hm, pfn(held[i].pfn));
            host_frames_free(hm, pfn(held[i].pfn), held[i].order);
            held[i] = held[--n];
        }
        if (step % 5000 == 0) {
            host_memory_trim(hm);
        }
    }
    while (n--) {
        host_frames_free(hm, pfn(held[n].pfn), held[n].order);
    }
    return NULL;
}

static void threads(void **state)
{
    struct host_memory *hm = make(64 * MIB);
    uint64_t total = free_frames(hm);
    pthread_t t[4];

    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, hammer, hm), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    host_memory_trim(hm);
    check_all(hm);
    assert_int_equal(free_frames(hm), total);
    host_memory_free(hm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_judged),
        cmocka_unit_test(large_memory_costs_nothing),
        cmocka_unit_test(random_blocks),
        cmocka_unit_test(exhaustion_is_an_error),
        cmocka_unit_test(low_zones),
        cmocka_unit_test(types_are_grouped),
        cmocka_unit_test(types_are_stolen_when_needed),
        cmocka_unit_test(tables_are_zeroed_and_returned),
        cmocka_unit_test(references),
        cmocka_unit_test(fragmentation_figure),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
