/* Background work: each kind of step does its work, and the thread does all of them until it is stopped. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "host/mm.h"

#define HUGE_BYTES (UINT64_C(2) << 20)
#define BYTES      (24 * HUGE_BYTES)

static struct {
    struct host_memory *hm;
    struct host_mm *mm;
    char *map, *ram; /* ram: the first 2 MiB boundary */
} w;

static int set_up(void **state)
{
    struct host_memory_options o = {.bytes = UINT64_C(16) << 20, .nr_cpus = 1};
    struct host_mm_options mo = {.swap_pages = 65536, .announced = true};

    w.map = mmap(NULL, BYTES + HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(w.map, MAP_FAILED);
    w.ram = (char *)(((uintptr_t)w.map + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1));
    assert_int_equal(host_memory_new(&o, &w.hm), 0);
    assert_int_equal(host_mm_new(w.hm, &mo, &w.mm), 0);
    return 0;
}

static int tear_down(void **state)
{
    char text[200] = "";

    if (host_mm_check(w.mm, text, sizeof(text)) || host_memory_check(w.hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
    host_mm_free(w.mm);
    host_memory_free(w.hm);
    munmap(w.map, BYTES + HUGE_BYTES);
    return 0;
}

static void touch(uint64_t from, uint64_t pages)
{
    for (uint64_t i = from; i < from + pages; i++) {
        assert_int_equal(host_handle_mm_fault(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE),
                                              HOST_FAULT_WRITE | HOST_FAULT_NOTHP), 0);
    }
}

static void marks(uint64_t *free_frames, uint64_t *low, uint64_t *high)
{
    struct host_memory_stats s;

    host_memory_get_stats(w.hm, &s);
    *free_frames = *low = *high = 0;
    for (unsigned z = 0; z < HOST_NR_ZONES; z++) {
        *free_frames += s.zone[z].free;
        *low += s.zone[z].low;
        *high += s.zone[z].high;
    }
}

/* Below the low marks the step frees up to the high ones; above it does nothing. */
static void reclaim_keeps_the_marks(void **state)
{
    uint64_t free_frames, low, high, page = 0;

    assert_int_equal(host_mm_work(w.mm, HOST_WORK_RECLAIM), 0);
    for (marks(&free_frames, &low, &high); free_frames >= low; marks(&free_frames, &low, &high)) {
        touch(page++, 1);
    }
    for (unsigned i = 0; i < 4 && free_frames < high; i++) {
        host_mm_work(w.mm, HOST_WORK_RECLAIM);
        marks(&free_frames, &low, &high);
    }
    assert_true(free_frames >= low);
    assert_int_equal(host_mm_work(w.mm, HOST_WORK_RECLAIM), 0);
}

static void collapse_finds_small_pages(void **state)
{
    struct host_mm_stats s;

    touch(0, 512);
    touch(1024, 500);  /* 12 are absent: still made */
    touch(2048, 100);  /* too few */
    for (unsigned i = 0; i < 8; i++) {
        host_mm_work(w.mm, HOST_WORK_COLLAPSE);
    }
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.collapses, 2);
    assert_int_equal(host_mapping_level(w.mm, ptr_to_hva(w.ram)), 2);
    assert_int_equal(host_mapping_level(w.mm, ptr_to_hva(w.ram + 2048 * PAGE_SIZE)), 1);
}

static void merge_finds_equal_pages(void **state)
{
    struct host_mm_stats s;

    for (unsigned i = 0; i < 4; i++) {
        memset(w.ram + i * PAGE_SIZE, 0x11, PAGE_SIZE);
    }
    touch(0, 4);
    assert_int_equal(host_mm_advise(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + 4 * PAGE_SIZE),
                                    HOST_VMA_MERGEABLE, 0), 0);
    for (unsigned i = 0; i < 4; i++) {
        host_mm_work(w.mm, HOST_WORK_MERGE);
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.ksm_merged >= 4);
}

static void thread_works_until_stopped(void **state)
{
    const struct timespec moment = {0, 2000000};
    struct host_mm_stats s = {0};

    assert_int_equal(host_mm_work_start(w.mm, 0, 1), -EINVAL);
    assert_int_equal(host_mm_work_start(w.mm, 8, 1), -EINVAL);
    assert_int_equal(host_mm_work_start(w.mm, HOST_WORK_ALL, 0), -EINVAL);
    assert_int_equal(host_mm_work_start(w.mm, HOST_WORK_ALL, 1), 0);
    assert_int_equal(host_mm_work_start(w.mm, HOST_WORK_ALL, 1), -EBUSY);
    touch(0, 512);
    for (unsigned i = 0; i < 5000 && s.collapses == 0; i++) {
        nanosleep(&moment, NULL);
        host_mm_get_stats(w.mm, &s);
    }
    assert_true(s.collapses > 0);
    host_mm_work_stop(w.mm);
    host_mm_work_stop(w.mm);
    assert_int_equal(host_mm_work_start(w.mm, HOST_WORK_COLLAPSE, 1000), 0); /* and freed while it runs */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(reclaim_keeps_the_marks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(collapse_finds_small_pages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(merge_finds_equal_pages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(thread_works_until_stopped, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
