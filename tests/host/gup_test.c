/*
 * The two races of lock-free walks, made to happen: between finding the entry and taking the
 * reference another thread takes the page away. Includes gup.c with the reference-taking replaced
 * by one that lets the other side run first.
 */
#define host_frame_try_get hooked_try_get
#include "../../src/host/gup.c"
#undef host_frame_try_get

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define BASE UINT64_C(0x7e0000000000)

bool host_frame_try_get(struct host_memory *hm, pfn_t p);

static struct {
    struct host_memory *hm;
    struct host_mm *mm;
    void (*action)(void);
    bool done;
    bool done_too_early;
    pthread_t thread;
} w;

static hva_t at(uint64_t page)
{
    return hva(BASE + (page << PAGE_SHIFT));
}

bool hooked_try_get(struct host_memory *hm, pfn_t p)
{
    void (*action)(void) = w.action;

    w.action = NULL;
    if (action) {
        action();
    }
    return host_frame_try_get(hm, p);
}

static void make(void)
{
    struct host_memory_options o = {.bytes = UINT64_C(16) << 20, .nr_cpus = 1};
    struct host_mm_options mo = {.source = &host_map_source_none};
    struct host_vma vma = {
        .start = at(0), .end = at(1024), .flags = HOST_VMA_READ | HOST_VMA_WRITE};

    memset(&w, 0, sizeof(w));
    assert_int_equal(host_memory_new(&o, &w.hm), 0);
    assert_int_equal(host_mm_new(w.hm, &mo, &w.mm), 0);
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    assert_int_equal(host_handle_mm_fault(w.mm, at(0), HOST_FAULT_NOTHP), 0);
}

static void unmake(void)
{
    char text[200] = "";

    if (host_mm_check(w.mm, text, sizeof(text)) || host_memory_check(w.hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
    host_mm_free(w.mm);
    host_memory_free(w.hm);
}

/* The frame goes to another page: the reference would be on that one. */
static void give_frame_away(void)
{
    assert_int_equal(host_mm_discard(w.mm, at(0), at(1)), 0);
    assert_int_equal(host_handle_mm_fault(w.mm, at(600), HOST_FAULT_NOTHP), 0);
}

static void frame_is_reused(void **state)
{
    struct host_page before, after, p;

    make();
    assert_int_equal(host_gup_fast(w.mm, at(0), 0, &before), 0);
    w.action = give_frame_away;
    assert_int_equal(host_gup_fast(w.mm, at(0), HOST_FAULT_PIN, &p), -EAGAIN);
    assert_int_equal(host_gup_fast(w.mm, at(600), 0, &after), 0);
    assert_int_equal(before.pfn.v, after.pfn.v); /* it was the very frame */
    assert_int_equal(host_frame_at(w.hm, after.pfn)->refcount, 1);
    unmake();
}

/* The frame goes and nobody takes it. */
static void free_frame(void)
{
    assert_int_equal(host_mm_discard(w.mm, at(0), at(1)), 0);
}

static void frame_is_freed(void **state)
{
    struct host_page p;

    make();
    w.action = free_frame;
    assert_int_equal(host_gup_fast(w.mm, at(0), HOST_FAULT_PIN, &p), -EAGAIN);
    w.action = free_frame;
    assert_int_equal(host_gup_slow(w.mm, at(0), HOST_FAULT_NOTHP, &p), 0);
    unmake();
}

/* The slow way finds the page gone after its fault, and faults again. */
static void slow_way_tries_again(void **state)
{
    struct host_page p = {0};

    make();
    assert_int_equal(host_gup_slow(w.mm, at(3), HOST_FAULT_PIN, &p), 0);
    assert_int_equal(host_frame_at(w.hm, p.pfn)->refcount, 2);
    host_page_put(w.mm, &p);
    unmake();
}

static void *discard_all(void *arg)
{
    assert_int_equal(host_mm_discard(w.mm, at(0), at(512)), 0);
    __atomic_store_n(&w.done, true, __ATOMIC_SEQ_CST);
    return NULL;
}

static void start_discard(void)
{
    assert_int_equal(pthread_create(&w.thread, NULL, discard_all, NULL), 0);
    usleep(30000);
    w.done_too_early = __atomic_load_n(&w.done, __ATOMIC_SEQ_CST);
}

/* Whoever frees the table waits for the walk that may be in it. */
static void table_waits_for_walk(void **state)
{
    struct host_page p;

    make();
    w.action = start_discard;
    (void)!host_gup_fast(w.mm, at(0), HOST_FAULT_PIN, &p);
    pthread_join(w.thread, NULL);
    assert_true(w.done);
    assert_false(w.done_too_early);
    unmake();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frame_is_reused),
        cmocka_unit_test(frame_is_freed),
        cmocka_unit_test(slow_way_tries_again),
        cmocka_unit_test(table_waits_for_walk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
