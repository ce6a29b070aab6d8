/* Managers of RAM that is there in parts, and their sources: U58, U61. */
#include "memory/help.h"

#include "strata/discard.h"

struct part {
    struct strata_discard_listener l;
    int fail;
    char log[256];
};

static int on_populate(struct strata_discard_listener *l, uint64_t offset, uint64_t len)
{
    struct part *p = (struct part *)l;
    size_t at = strlen(p->log);

    snprintf(p->log + at, sizeof(p->log) - at, "+%llx,%llx ", (unsigned long long)offset,
             (unsigned long long)len);
    return p->fail;
}

static void on_discard(struct strata_discard_listener *l, uint64_t offset, uint64_t len)
{
    struct part *p = (struct part *)l;
    size_t at = strlen(p->log);

    snprintf(p->log + at, sizeof(p->log) - at, "-%llx,%llx ", (unsigned long long)offset,
             (unsigned long long)len);
}

static void managers(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *dimm = help_region(b.mem, STRATA_RAM, "dimm", 0x10000);
    struct strata_discard_manager *m, *again;
    struct part one = {.l = {on_populate, on_discard, 0, 0x10000, NULL, NULL}};
    struct part two = {.l = {on_populate, on_discard, 0x3000, 0x2000, NULL, NULL}};

    assert_int_equal(strata_discard_manager_new(dimm, 0x800, &m), -EINVAL);
    assert_int_equal(strata_discard_manager_new(dimm, 0x1000, &m), 0);
    assert_int_equal(strata_discard_manager_new(dimm, 0x1000, &again), -EBUSY);
    assert_ptr_equal(strata_region_discard_manager(dimm), m);
    assert_int_equal(strata_discard_listener_add(m, &one.l), 0);
    assert_int_equal(strata_discard_populate(m, 0x2000, 0x2000), 0);
    assert_true(strata_discard_is_populated(m, 0x2001, 0x1fff));
    assert_false(strata_discard_is_populated(m, 0x2000, 0x2001));
    assert_int_equal(strata_discard_populate(m, 0x3000, 0x2000), -EALREADY);
    assert_int_equal(strata_discard_populate(m, 0x123, 0x1000), -EINVAL);
    assert_int_equal(strata_discard_listener_add(m, &two.l), 0);
    assert_string_equal(two.log, "+3000,1000 "); /* replayed, clipped */
    two.fail = -ENOMEM;
    assert_int_equal(strata_discard_populate(m, 0x4000, 0x2000), -ENOMEM);
    assert_string_equal(one.log, "+2000,2000 +4000,2000 -4000,2000 "); /* taken back */
    assert_false(strata_discard_is_populated(m, 0x4000, 1));
    ((uint8_t *)strata_region_host(dimm))[0x2000] = 5;
    assert_int_equal(strata_discard_drop(m, 0x2000, 0x1000), 0);
    assert_int_equal(((uint8_t *)strata_region_host(dimm))[0x2000], 0);
    strata_discard_listener_del(&two.l);
    assert_string_equal(two.log, "+3000,1000 +4000,1000 -3000,1000 ");
    strata_discard_manager_free(m);
    help_done(&b);
}

static void forget(struct part *p)
{
    p->log[0] = '\0';
}

/* What is there is what all sources have; listeners hear of nothing else. */
static void sources_agree(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *dimm = help_region(b.mem, STRATA_RAM, "dimm", 0x10000);
    struct strata_discard_source *shared, *bad;
    struct strata_discard_manager *m;
    struct part p = {.l = {on_populate, on_discard, 0, 0x10000, NULL, NULL}};

    assert_int_equal(strata_discard_manager_new(dimm, 0x4000, &m), 0);
    assert_int_equal(strata_discard_listener_add(m, &p.l), 0);
    assert_int_equal(strata_discard_populate(m, 0, 0x8000), 0);
    forget(&p);
    assert_int_equal(strata_discard_source_new(m, 0x1800, true, &bad), -EINVAL);
    assert_int_equal(strata_discard_source_new(m, 0x1000, true, &shared), 0);
    assert_string_equal(p.log, ""); /* populated throughout: nothing changes */
    assert_true(strata_discard_granularity(m) == 0x1000);
    assert_int_equal(strata_discard_source_drop(shared, 0x2000, 0x1000), 0);
    assert_string_equal(p.log, "-2000,1000 ");
    assert_false(strata_discard_is_populated(m, 0, 0x4000));
    assert_true(strata_discard_is_populated(m, 0, 0x2000));
    assert_true(strata_discard_is_populated(m, 0x3000, 0x5000));
    forget(&p);
    assert_int_equal(strata_discard_source_drop(shared, 0x7000, 0x2000), 0);
    assert_string_equal(p.log, "-7000,1000 "); /* 8000 was not there anyway */
    forget(&p);
    assert_int_equal(strata_discard_populate(m, 0x8000, 0x4000), 0);
    assert_string_equal(p.log, "+9000,3000 "); /* 8000 is still kept back */
    forget(&p);
    assert_int_equal(strata_discard_source_populate(shared, 0x7000, 0x2000), 0);
    assert_string_equal(p.log, "+7000,2000 ");
    assert_int_equal(strata_discard_source_populate(shared, 0x7000, 0x1000), -EALREADY);
    forget(&p);
    assert_int_equal(strata_discard_drop(m, 0, 0x4000), 0);
    assert_string_equal(p.log, "-0,2000 -3000,1000 ");
    forget(&p);
    assert_int_equal(strata_discard_source_free(shared), 0);
    assert_string_equal(p.log, ""); /* what it kept back is away for another reason */
    strata_discard_manager_free(m);
    help_done(&b);
}

static void sources_come_and_go(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *dimm = help_region(b.mem, STRATA_RAM, "dimm", 0x8000);
    struct strata_discard_source *late, *own;
    struct strata_discard_manager *m;
    struct part one = {.l = {on_populate, on_discard, 0, 0x8000, NULL, NULL}};
    struct part two = {.l = {on_populate, on_discard, 0, 0x8000, NULL, NULL}};

    assert_int_equal(strata_discard_manager_new(dimm, 0x1000, &m), 0);
    assert_int_equal(strata_discard_populate(m, 0, 0x2000), 0);
    assert_int_equal(strata_discard_populate(m, 0x4000, 0x1000), 0);
    assert_int_equal(strata_discard_listener_add(m, &one.l), 0);
    assert_int_equal(strata_discard_listener_add(m, &two.l), 0);
    forget(&one);
    forget(&two);
    assert_int_equal(strata_discard_source_new(m, 0x2000, false, &late), 0);
    assert_string_equal(one.log, "-0,2000 -4000,1000 "); /* nothing is there any more */
    assert_false(strata_discard_is_populated(m, 0, 1));
    forget(&one);
    forget(&two);
    two.fail = -EPERM;
    assert_int_equal(strata_discard_source_populate(late, 0, 0x6000), -EPERM);
    assert_string_equal(one.log, "+0,2000 +4000,1000 -0,2000 -4000,1000 ");
    assert_string_equal(two.log, "+0,2000 ");
    assert_false(strata_discard_is_populated(m, 0, 1));
    assert_int_equal(strata_discard_source_free(late), -EPERM); /* it stays */
    assert_false(strata_discard_is_populated(m, 0, 1));
    two.fail = 0;
    forget(&one);
    assert_int_equal(strata_discard_source_free(late), 0);
    assert_string_equal(one.log, "+0,2000 +4000,1000 ");
    assert_true(strata_discard_is_populated(m, 0, 0x2000));
    assert_int_equal(strata_discard_source_new(m, 0x1000, true, &own), 0);
    assert_int_equal(strata_discard_source_free(own), 0);
    assert_int_equal(strata_memory_drain(b.mem), 0);
    strata_discard_manager_free(m);
    assert_null(strata_region_discard_manager(dimm));
    help_done(&b);
}

/* Random changes of three sources against bits kept by hand; a listener's sum must be what is there. */
#define GRANULES 32

struct sum {
    struct strata_discard_listener l;
    bool there[GRANULES];
    bool wrong;
    unsigned refuse_at; /* this many calls from now; 0: never */
};

static int sum_populate(struct strata_discard_listener *l, uint64_t offset, uint64_t len)
{
    struct sum *s = (struct sum *)l;

    if (s->refuse_at && --s->refuse_at == 0) {
        return -EAGAIN;
    }
    for (uint64_t g = offset / 0x1000; g < (offset + len) / 0x1000; g++) {
        s->wrong |= s->there[g];
        s->there[g] = true;
    }
    return 0;
}

static void sum_discard(struct strata_discard_listener *l, uint64_t offset, uint64_t len)
{
    struct sum *s = (struct sum *)l;

    for (uint64_t g = offset / 0x1000; g < (offset + len) / 0x1000; g++) {
        s->wrong |= !s->there[g];
        s->there[g] = false;
    }
}

static uint64_t dice(uint64_t *seed, uint64_t below)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    return (*seed >> 33) % below;
}

static void sources_at_random(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *dimm = help_region(b.mem, STRATA_RAM, "dimm", GRANULES * 0x1000);
    struct sum sum[2] = {{.l = {sum_populate, sum_discard, 0, UINT64_MAX, NULL, NULL}},
                         {.l = {sum_populate, sum_discard, 0x5000, 0x9000, NULL, NULL}}};
    bool has[3][GRANULES] = {{false}};
    struct strata_discard_source *source[3] = {NULL};
    struct strata_discard_manager *m;
    uint64_t seed = 5;
    unsigned refused = 0;

    assert_int_equal(strata_discard_manager_new(dimm, 0x1000, &m), 0);
    assert_int_equal(strata_discard_source_new(m, 0x2000, true, &source[1]), 0);
    assert_int_equal(strata_discard_source_new(m, 0x4000, true, &source[2]), 0);
    memset(has[1], 1, sizeof(has[1]));
    memset(has[2], 1, sizeof(has[2]));
    assert_int_equal(strata_discard_listener_add(m, &sum[0].l), 0);
    assert_int_equal(strata_discard_listener_add(m, &sum[1].l), 0);
    for (int i = 0; i < 20000; i++) {
        unsigned k = (unsigned)dice(&seed, 3), size = 1u << k;
        unsigned from = (unsigned)dice(&seed, GRANULES / size) * size;
        unsigned n = size * (1 + (unsigned)dice(&seed, 3));
        bool on = dice(&seed, 8) ? !has[k][from] : has[k][from], fits = from + n <= GRANULES, same = true;
        int err;

        for (unsigned g = from; fits && g < from + n; g++) {
            same &= has[k][g] != on;
        }
        sum[i % 2].refuse_at = (unsigned)dice(&seed, 5) == 0 ? 1 + (unsigned)dice(&seed, 3) : 0;
        err = k == 0 ? (on ? strata_discard_populate : strata_discard_drop)(m, from * 0x1000, n * 0x1000)
                     : (on ? strata_discard_source_populate : strata_discard_source_drop)(
                           source[k], from * 0x1000, n * 0x1000);
        sum[i % 2].refuse_at = 0;
        assert_true(err == (!fits ? -EINVAL : !same ? -EALREADY : err == -EAGAIN && on ? err : 0));
        refused += err == -EAGAIN;
        for (unsigned g = from; !err && g < from + n; g++) {
            has[k][g] = on;
        }
        for (unsigned g = 0; g < GRANULES; g++) {
            bool there = has[0][g] && has[1][g] && has[2][g];

            assert_int_equal(strata_discard_is_populated(m, g * 0x1000, 0x1000), there);
            assert_int_equal(sum[0].there[g], there);
            assert_int_equal(sum[1].there[g], there && g >= 5 && g < 14);
        }
        assert_false(sum[0].wrong || sum[1].wrong);
    }
    assert_true(refused > 100);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(managers),
        cmocka_unit_test(sources_agree),
        cmocka_unit_test(sources_come_and_go),
        cmocka_unit_test(sources_at_random),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
