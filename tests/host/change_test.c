/*
 * Changes in two halves: between begin and end nobody gets a page of the range; a change that the process
 * did not make after all leaves what was there.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/mm.h"
#include "host/buddy.h"

#define PAGES 1024u

static struct {
    struct host_memory *hm;
    struct host_mm *mm;
    char *ram;
    int result; /* of the other thread's fault */
    _Atomic int answered;
} w;

static hva_t at(unsigned page)
{
    return ptr_to_hva(w.ram + (size_t)page * PAGE_SIZE);
}

static int set_up(void **state)
{
    struct host_memory_options o = {.bytes = UINT64_C(64) << 20, .nr_cpus = 2};

    memset(&w, 0, sizeof(w));
    w.ram = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(w.ram, MAP_FAILED);
    assert_int_equal(host_memory_new(&o, &w.hm), 0);
    assert_int_equal(host_mm_new(w.hm, NULL, &w.mm), 0);
    return 0;
}

static int tear_down(void **state)
{
    char text[200] = "";

    assert_int_equal(host_mm_check(w.mm, text, sizeof(text)), 0);
    host_mm_free(w.mm);
    host_memory_free(w.hm);
    munmap(w.ram, PAGES * PAGE_SIZE);
    return 0;
}

static int get(unsigned page, unsigned flags)
{
    struct host_page p;

    return host_gup(w.mm, at(page), flags, &p);
}

static void *other_thread(void *arg)
{
    w.result = get(3, HOST_FAULT_WRITE);
    w.answered = 1;
    return NULL;
}

static struct host_change change_of(enum host_change_kind kind, unsigned first, unsigned end)
{
    return (struct host_change){
        .mm = w.mm, .kind = kind, .range = {.start = at(first), .end = at(end)}};
}

/* Start a fault in the middle of the change; it must not be answered before the end. */
static int fault_during(struct host_change *c, bool done, int (*act)(void))
{
    const struct timespec moment = {0, 20000000};
    pthread_t t;

    assert_int_equal(host_mm_change_begin(c), 0);
    assert_int_equal(host_mapping_level(w.mm, at(3)), 0);
    assert_int_equal(pthread_create(&t, NULL, other_thread, NULL), 0);
    nanosleep(&moment, NULL);
    assert_int_equal(w.answered, 0);
    if (act) {
        assert_int_equal(act(), 0);
    }
    host_mm_change_end(c, done);
    pthread_join(t, NULL);
    return w.result;
}

static int really_unmap(void)
{
    return munmap(w.ram, 16 * PAGE_SIZE);
}

static void unmapped_page_is_not_found_again(void **state)
{
    struct host_change c = change_of(HOST_CHANGE_UNMAP, 0, 16);

    assert_int_equal(get(3, 0), 0);
    assert_int_equal(fault_during(&c, true, really_unmap), -EFAULT);
    assert_int_equal(get(20, 0), 0);
}

static void undone_change_gives_the_page_back(void **state)
{
    struct host_change c = change_of(HOST_CHANGE_UNMAP, 0, 16);

    assert_int_equal(get(3, 0), 0);
    assert_int_equal(fault_during(&c, false, NULL), 0);
}

static int really_protect(void)
{
    return mprotect(w.ram, 16 * PAGE_SIZE, PROT_READ);
}

static void protection_holds_from_begin_on(void **state)
{
    struct host_change c = change_of(HOST_CHANGE_PROTECT, 0, 16);

    c.prot = HOST_VMA_READ;
    assert_int_equal(get(3, HOST_FAULT_WRITE), 0);
    assert_int_equal(fault_during(&c, true, really_protect), -EFAULT);
    assert_int_equal(get(3, 0), 0);
}

static void holes_are_an_error_unless_allowed(void **state)
{
    struct host_change c = {.mm = w.mm,
                            .kind = HOST_CHANGE_PROTECT,
                            .range = {hva(0x10000), hva(0x20000)},
                            .prot = HOST_VMA_READ};

    assert_int_equal(host_mm_change_begin(&c), -ENOMEM);
    c.may_have_holes = true;
    assert_int_equal(host_mm_change_begin(&c), 0);
    host_mm_change_end(&c, true);
    c.range.start.v++;
    assert_int_equal(host_mm_change_begin(&c), -EINVAL);
    c.range = (struct host_mmu_range){hva(0x20000), hva(0x10000)};
    assert_int_equal(host_mm_change_begin(&c), -EINVAL);
    c.range = (struct host_mmu_range){hva(0x10000), hva(0x20000)};
    c.prot = ~0u;
    assert_int_equal(host_mm_change_begin(&c), -EINVAL);
}

static void fork_waits_and_copies(void **state)
{
    struct host_change c = {.mm = w.mm, .kind = HOST_CHANGE_FORK};
    struct host_page before, after;

    assert_int_equal(host_gup(w.mm, at(3), HOST_FAULT_WRITE, &before), 0);
    assert_int_equal(host_mm_change_begin(&c), 0);
    host_mm_change_end(&c, true);
    assert_int_equal(host_gup(w.mm, at(3), HOST_FAULT_WRITE, &after), 0);
    assert_int_not_equal(before.pfn.v, after.pfn.v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(unmapped_page_is_not_found_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(undone_change_gives_the_page_back, set_up, tear_down),
        cmocka_unit_test_setup_teardown(protection_holds_from_begin_on, set_up, tear_down),
        cmocka_unit_test_setup_teardown(holes_are_an_error_unless_allowed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fork_waits_and_copies, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
