/* Tests of src/base: ranges at the ends of the address space, lists, error texts, trace points. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/addr.h"
#include "base/error.h"
#include "base/list.h"
#include "base/range.h"
#include "base/trace.h"

static void test_range_whole_space(void **state)
{
    struct addr_range all = addr_range_make(0, ADDR_SPACE_SIZE);
    struct addr_range last = addr_range_make((i128)UINT64_MAX, 1);

    assert_true(addr_range_has(all, (i128)UINT64_MAX));
    assert_false(addr_range_has(all, ADDR_SPACE_SIZE));
    assert_true(addr_range_intersects(all, last));
    assert_true(addr_range_eq(addr_range_intersect(all, last), last));
    assert_true(addr_range_end(last) == ADDR_SPACE_SIZE);
}

static void test_range_negative_base(void **state)
{
    struct addr_range r = addr_range_shift(addr_range_make(0x1000, 0x2000), -0x2000);

    assert_true(r.start == -0x1000);
    r = addr_range_intersect(r, addr_range_make(0, ADDR_SPACE_SIZE));
    assert_true(r.start == 0 && r.size == 0x1000);
}

/* All pairs of ranges over eight addresses, against membership counted address by address. */
static void test_range_small_world(void **state)
{
    for (int code = 0; code < 8 * 9 * 8 * 9; code++) {
        struct addr_range a = addr_range_make(code % 8, code / 8 % 9);
        struct addr_range b = addr_range_make(code / 72 % 8, code / 576);
        struct addr_range both = addr_range_intersect(a, b);
        int common = 0;

        for (int x = 0; x < 17; x++) {
            bool in_a = x >= a.start && x < a.start + a.size;
            bool in_b = x >= b.start && x < b.start + b.size;

            common += in_a && in_b;
            assert_int_equal(addr_range_has(both, x), in_a && in_b);
        }
        assert_true(both.size == common);
        assert_int_equal(addr_range_intersects(a, b), common > 0);
    }
}

static void test_add_overflow(void **state)
{
    uint64_t sum = 7;

    assert_true(add_u64_fits(UINT64_MAX - 1, 1, &sum));
    assert_true(sum == UINT64_MAX);
    assert_false(add_u64_fits(UINT64_MAX, 1, &sum));
}

static void test_list_order(void **state)
{
    struct list head, node[4], *pos, *tmp;
    int i = 0;

    list_init(&head);
    assert_true(list_is_empty(&head));
    list_add_tail(&head, &node[1]);
    list_add_tail(&head, &node[3]);
    list_add_head(&head, &node[0]);
    list_add_before(&node[3], &node[2]);
    list_for_each(pos, &head) {
        assert_ptr_equal(pos, &node[i++]);
    }
    assert_int_equal(i, 4);
    list_for_each_safe(pos, tmp, &head) {
        list_del(pos);
        list_del(pos);
    }
    assert_true(list_is_empty(&head));
}

static void test_error_text(void **state)
{
    struct base_error err = {{0}};

    assert_int_equal(base_error_set(&err, 22, "-m: %s is not a size", "1Q"), -22);
    base_error_prefix(&err, "machine %d", 3);
    assert_string_equal(err.text, "machine 3: -m: 1Q is not a size");
    assert_int_equal(base_error_set(NULL, 12, "nobody reads this"), -12);
    base_error_set(&err, 1, "%0400d", 1);
    base_error_prefix(&err, "%0400d", 2);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
}

static char traced[128];

static void record(void *opaque, const struct base_trace_point *p, const uint64_t *args)
{
    (*(int *)opaque)++;
    base_trace_format(p, args, traced, sizeof(traced));
    assert_string_equal(p->function, "test_trace");
}

static void test_trace(void **state)
{
    struct base_trace t = {0};
    int calls = 0, evaluated = 0;
    size_t count;
    const struct base_trace_point *const *points;
    bool listed = false;

    for (int i = 0; i < 2; i++) {
        TRACE(&t, base_test_point, "a %llx b %llu", evaluated++ + 0xaaull, 7);
        t.sink = record;
        t.opaque = &calls;
    }
    assert_int_equal(calls, 1);
    assert_int_equal(evaluated, 1);
    assert_string_equal(traced, "base_test_point: a aa b 7");
    points = base_trace_points(&count);
    for (size_t i = 0; i < count; i++) {
        listed |= strcmp(points[i]->name, "base_test_point") == 0;
    }
    assert_true(listed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_range_whole_space), cmocka_unit_test(test_range_negative_base),
        cmocka_unit_test(test_range_small_world), cmocka_unit_test(test_add_overflow),
        cmocka_unit_test(test_list_order),        cmocka_unit_test(test_error_text),
        cmocka_unit_test(test_trace),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
