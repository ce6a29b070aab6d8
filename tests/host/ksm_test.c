/*
 * Same-page merging with real bytes: pages of few different contents are written, merged, read and
 * written again through frames and by announced accesses; what is read must always be what was
 * written last.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "oracle/host_frames.h"

#define PAGES 2048u

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    char *ram;
    uint32_t kind[PAGES]; /* which contents a page has */
};

static void world_init(struct world *w, struct host_mm_options mo)
{
    struct host_memory_options o = {.bytes = UINT64_C(64) << 20, .nr_cpus = 2};

    memset(w, 0, sizeof(*w));
    assert_int_equal(host_memory_new(&o, &w->hm), 0);
    assert_int_equal(host_mm_new(w->hm, &mo, &w->mm), 0);
    w->ram =
        mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(w->ram, MAP_FAILED);
}

static hva_t at(struct world *w, uint32_t i)
{
    return ptr_to_hva(w->ram + i * PAGE_SIZE);
}

static void check_world(struct world *w)
{
    char text[200] = "";

    if (host_mm_check(w->mm, text, sizeof(text)) || host_memory_check(w->hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
}

static uint64_t word(uint32_t kind, unsigned k)
{
    uint64_t state = (uint64_t)kind << 32 | k;

    return kind ? oracle_random(&state) : 0;
}

static bool holds(const volatile uint64_t *p, uint32_t kind)
{
    for (unsigned k = 0; k < 512; k++) {
        if (p[k] != word(kind, k)) {
            return false;
        }
    }
    return true;
}

static void fill(volatile uint64_t *p, uint32_t kind)
{
    for (unsigned k = 0; k < 512; k++) {
        p[k] = word(kind, k);
    }
}

static void guest(struct world *w, uint32_t i, bool write, uint32_t kind)
{
    struct host_page p;
    uint64_t *data;

    assert_int_equal(host_gup(w->mm, at(w, i), HOST_FAULT_PIN | (write ? HOST_FAULT_WRITE : 0), &p),
                     0);
    data = host_hpa_to_ptr(w->hm, pfn_to_hpa(p.pfn));
    if (!holds(data, w->kind[i])) {
        fail_msg("page %u: not contents %u", i, w->kind[i]);
    }
    if (write) {
        assert_ptr_equal(data, w->ram + i * PAGE_SIZE);
        fill(data, kind);
        w->kind[i] = kind;
    }
    host_page_put(w->mm, &p);
}

static uint64_t frames_of(struct world *w, enum host_frame_type type)
{
    struct host_memory_stats s;

    host_memory_get_stats(w->hm, &s);
    return s.in_use[type];
}

static uint64_t resident(struct world *w)
{
    static unsigned char vec[PAGES];
    uint64_t n = 0;

    assert_int_equal(mincore(w->ram, PAGES * PAGE_SIZE, vec), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        n += vec[i] & 1;
    }
    return n;
}

static void everything_home(struct world *w)
{
    host_mm_free(w->mm);
    for (uint32_t i = 0; i < PAGES; i++) {
        assert_true(holds((uint64_t *)(w->ram + i * PAGE_SIZE), w->kind[i]));
    }
    for (unsigned t = 0; t < HOST_FRAME_NR_TYPES; t++) {
        assert_int_equal(frames_of(w, t), 0);
    }
    host_memory_free(w->hm);
    munmap(w->ram, PAGES * PAGE_SIZE);
}

static struct host_mm_options small_pages(void)
{
    return (struct host_mm_options){.thp = HOST_THP_NEVER, .announced = true, .swap_pages = PAGES};
}

static void merge_and_part(void **state)
{
    static struct world w;
    struct host_mm_stats s;
    struct host_page a, b;

    world_init(&w, small_pages());
    for (uint32_t i = 0; i < PAGES; i++) {
        guest(&w, i, true, i % 7);
    }
    assert_int_equal(host_mm_merge_scan(w.mm, PAGES), 0); /* nobody asked */
    assert_int_equal(host_mm_advise(w.mm, at(&w, 0), at(&w, 1024), HOST_VMA_MERGEABLE, 0), 0);
    assert_int_equal(host_mm_merge_scan(w.mm, 1024), 1024 - 7);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.ksm_merged, 1024);
    assert_int_equal(frames_of(&w, HOST_FRAME_KSM), 7);
    assert_int_equal(frames_of(&w, HOST_FRAME_ANON), 1024);
    assert_int_equal(resident(&w), 1024); /* really given back */
    check_world(&w);
    assert_int_equal(host_gup(w.mm, at(&w, 7), 0, &a), 0);
    assert_int_equal(host_gup(w.mm, at(&w, 14), 0, &b), 0);
    assert_int_equal(a.pfn.v, b.pfn.v);
    assert_false(a.writable);
    guest(&w, 7, true, 500);
    guest(&w, 14, false, 0);
    /* Device code reads and writes between begin and end; merging and reclaim keep off
     * meanwhile. */
    assert_int_equal(host_mm_access_begin(w.mm, at(&w, 20), at(&w, 22)), 0);
    assert_true(holds((uint64_t *)(w.ram + 20 * PAGE_SIZE), 6));
    fill((uint64_t *)(w.ram + 21 * PAGE_SIZE), 2);
    w.kind[21] = 2;
    assert_int_equal(host_mm_merge_scan(w.mm, 1024), 0);
    (void)host_mm_reclaim(w.mm, 5000);
    assert_true(holds((uint64_t *)(w.ram + 21 * PAGE_SIZE), 2));
    host_mm_access_end(w.mm, at(&w, 20), at(&w, 22));
    for (uint32_t i = 0; i < PAGES; i++) {
        guest(&w, i, false, 0);
    }
    assert_int_equal(host_mm_protect(w.mm, at(&w, 0), at(&w, 512), HOST_VMA_READ), 0);
    for (uint32_t i = 0; i < PAGES; i++) {
        guest(&w, i, false, 0);
    }
    check_world(&w);
    everything_home(&w);
}

static void not_without_announcing(void **state)
{
    static struct world w;

    world_init(&w, (struct host_mm_options){.thp = HOST_THP_NEVER});
    guest(&w, 0, true, 1);
    assert_int_equal(host_mm_merge_scan(w.mm, 10), -EOPNOTSUPP);
    everything_home(&w);
}

/* Merging, swapping, writing, discarding at random. */
static void random_contents(void **state)
{
    static struct world w;
    struct host_mm_stats s;
    uint64_t rng = 11;

    world_init(&w, small_pages());
    guest(&w, 0, true, 1);
    assert_int_equal(host_mm_advise(w.mm, at(&w, 0), at(&w, PAGES), HOST_VMA_MERGEABLE, 0), 0);
    for (unsigned n = 0; n < 40000; n++) {
        uint64_t r = oracle_random(&rng);
        uint32_t i = (uint32_t)((r >> 8) % PAGES);

        if (r % 64 == 0) {
            assert_true(host_mm_merge_scan(w.mm, 300) >= 0);
        } else if (r % 64 == 1) {
            (void)host_mm_reclaim(w.mm, 100);
        } else if (r % 64 == 2) {
            assert_int_equal(host_mm_discard(w.mm, at(&w, i), at(&w, i + 1)), 0);
            assert_int_equal(madvise(w.ram + i * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED), 0);
            w.kind[i] = 0;
        } else {
            guest(&w, i, r % 3 == 0, (uint32_t)(r >> 40) % 5);
        }
        if (n % 5000 == 0) {
            check_world(&w);
        }
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.ksm_merged > 1000 && s.ksm_unmerged > 500 && s.swap_out > 500);
    everything_home(&w);
}

struct arg {
    struct world *w;
    uint32_t first;
};

static void *write_pages(void *opaque)
{
    struct arg *a = opaque;
    uint64_t rng = a->first;

    for (unsigned n = 0; n < 15000; n++) {
        uint64_t r = oracle_random(&rng);

        guest(a->w, (uint32_t)((r >> 8) % (PAGES / 2)) * 2 + a->first, r & 1,
              (uint32_t)(r >> 40) % 3);
    }
    return NULL;
}

static void threads(void **state)
{
    static struct world w;
    struct arg args[2] = {{&w, 0}, {&w, 1}};
    pthread_t t[2];

    world_init(&w, small_pages());
    guest(&w, 0, true, 1);
    assert_int_equal(host_mm_advise(w.mm, at(&w, 0), at(&w, PAGES), HOST_VMA_MERGEABLE, 0), 0);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, write_pages, &args[i]), 0);
    }
    for (unsigned n = 0; n < 100; n++) {
        assert_true(host_mm_merge_scan(w.mm, 200) >= 0);
        (void)host_mm_reclaim(w.mm, 20);
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(t[i], NULL);
    }
    check_world(&w);
    everything_home(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(merge_and_part),
        cmocka_unit_test(not_without_announcing),
        cmocka_unit_test(random_contents),
        cmocka_unit_test(threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
