/*
 * Threads on one address space: faults, pinned lock-free walks, unmaps, splits and protection at
 * once. What is judged: a pinned frame stays the page's own as long as it is pinned; a frame used
 * under the notifiers' sequence protocol is never used after the unmap; at the end all counts are
 * right. The race detector judges the rest.
 */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "oracle/host_frames.h"

#define MIB   (UINT64_C(1) << 20)
#define BASE  UINT64_C(0x7e0000000000)
#define PAGES 4096u
#define STEPS 4000u

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    struct host_notifier notifier;
    pthread_mutex_t lock; /* as the engine's MMU lock */
    unsigned active;      /* invalidations under way */
    uint64_t sequence;
    uint64_t derived[PAGES]; /* pfn, 0 = none; under lock */
    unsigned failures;
};

static hva_t at(uint64_t page)
{
    return hva(BASE + (page << PAGE_SHIFT));
}

static void on_start(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    pthread_mutex_lock(&w->lock);
    w->active++;
    for (uint64_t a = r->start.v; a < r->end.v; a += PAGE_SIZE) {
        w->derived[(a - BASE) >> PAGE_SHIFT] = 0;
    }
    pthread_mutex_unlock(&w->lock);
}

static void on_end(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    pthread_mutex_lock(&w->lock);
    w->sequence++;
    w->active--;
    pthread_mutex_unlock(&w->lock);
}

static const struct host_notifier_ops ops = {.invalidate_start = on_start,
                                             .invalidate_end = on_end};

/* Derive an entry as the engine does: sample the sequence, resolve, take the lock, check, keep. */
static void derive(struct world *w, uint64_t page, bool write)
{
    struct host_page p;
    uint64_t sequence;

    pthread_mutex_lock(&w->lock);
    sequence = w->sequence;
    pthread_mutex_unlock(&w->lock);
    if (host_gup(w->mm, at(page), write ? HOST_FAULT_WRITE : 0, &p) != 0) {
        return;
    }
    pthread_mutex_lock(&w->lock);
    if (!w->active && w->sequence == sequence) {
        if (w->derived[page] && w->derived[page] != p.pfn.v) {
            w->failures++;
        }
        w->derived[page] = p.pfn.v;
    }
    pthread_mutex_unlock(&w->lock);
}

/* Use a derived entry: under the lock no invalidation can finish, so the frame must be the
 * page's. */
static void use(struct world *w, uint64_t page)
{
    pthread_mutex_lock(&w->lock);
    if (w->derived[page] &&
        host_hpa_to_ptr(w->hm, pfn_to_hpa(pfn(w->derived[page]))) != hva_to_ptr(at(page))) {
        w->failures++;
    }
    pthread_mutex_unlock(&w->lock);
}

static void pin(struct world *w, uint64_t page)
{
    struct host_page p;

    if (host_gup_fast(w->mm, at(page), HOST_FAULT_PIN, &p) == 0) {
        if (host_hpa_to_ptr(w->hm, pfn_to_hpa(p.pfn)) != hva_to_ptr(at(page))) {
            __atomic_fetch_add(&w->failures, 1, __ATOMIC_RELAXED);
        }
        host_page_put(w->mm, &p);
    }
}

static void *reader(void *arg)
{
    struct world *w = arg;
    uint64_t rng = (uintptr_t)&rng;

    for (unsigned i = 0; i < STEPS * 10; i++) {
        uint64_t r = oracle_random(&rng), page = (r >> 8) % PAGES;

        if (r % 4 == 0) {
            derive(w, page, (r >> 4) & 1);
        } else if (r % 4 == 1) {
            use(w, page);
        } else if (r % 4 == 2) {
            pin(w, page);
        } else {
            (void)host_mapping_level(w->mm, at(page));
        }
    }
    return NULL;
}

static void *writer(void *arg)
{
    struct world *w = arg;
    uint64_t rng = (uintptr_t)&rng;

    for (unsigned i = 0; i < STEPS; i++) {
        uint64_t r = oracle_random(&rng), first = (r >> 8) % PAGES, n = 1 + (r >> 32) % 700;
        struct host_vma vma = {.flags = HOST_VMA_READ | HOST_VMA_WRITE};

        n = first + n > PAGES ? PAGES - first : n;
        vma.start = at(first);
        vma.end = at(first + n);
        if (r % 8 < 5) {
            (void)!host_mm_discard(w->mm, vma.start, vma.end);
        } else if (r % 8 < 6) {
            (void)!host_mm_protect(w->mm, vma.start, vma.end,
                                   r >> 63 ? HOST_VMA_READ : HOST_VMA_READ | HOST_VMA_WRITE);
        } else {
            assert_int_equal(host_mm_map(w->mm, &vma), 0);
        }
    }
    return NULL;
}

static void storm(void **state)
{
    static struct world w;
    struct host_memory_options o = {.bytes = 64 * MIB, .nr_cpus = 4};
    struct host_mm_options mo = {.source = &host_map_source_none};
    struct host_vma vma = {
        .start = at(0), .end = at(PAGES), .flags = HOST_VMA_READ | HOST_VMA_WRITE};
    char text[200] = "";
    pthread_t t[4];

    pthread_mutex_init(&w.lock, NULL);
    assert_int_equal(host_memory_new(&o, &w.hm), 0);
    assert_int_equal(host_mm_new(w.hm, &mo, &w.mm), 0);
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    w.notifier.ops = &ops;
    host_notifier_register(w.mm, &w.notifier);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, i < 3 ? reader : writer, &w), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    assert_int_equal(w.failures, 0);
    assert_int_equal(w.active, 0);
    if (host_mm_check(w.mm, text, sizeof(text)) || host_memory_check(w.hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
    host_notifier_unregister(w.mm, &w.notifier);
    host_mm_free(w.mm);
    host_memory_free(w.hm);
}

/* Many threads fault the same untouched pages: one frame per page comes of it. */
struct same {
    struct host_mm *mm;
    uint64_t pfns[PAGES];
};

static void *fault_all(void *arg)
{
    struct same *s = arg;

    for (unsigned i = 0; i < PAGES; i++) {
        struct host_page p;
        uint64_t none = 0;

        if (host_gup(s->mm, at(i), i % 3 ? HOST_FAULT_NOTHP : 0, &p) != 0 ||
            (!__atomic_compare_exchange_n(&s->pfns[i], &none, p.pfn.v, false, __ATOMIC_RELAXED,
                                          __ATOMIC_RELAXED) &&
             none != p.pfn.v)) {
            return "page got two frames, or none";
        }
    }
    return NULL;
}

static void same_pages(void **state)
{
    static struct same s;
    struct host_memory *hm;
    struct host_memory_options o = {.bytes = 64 * MIB};
    struct host_mm_options mo = {.source = &host_map_source_none};
    struct host_vma vma = {
        .start = at(0), .end = at(PAGES), .flags = HOST_VMA_READ | HOST_VMA_WRITE};
    struct host_mm_stats stats;
    pthread_t t[4];

    assert_int_equal(host_memory_new(&o, &hm), 0);
    assert_int_equal(host_mm_new(hm, &mo, &s.mm), 0);
    assert_int_equal(host_mm_map(s.mm, &vma), 0);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, fault_all, &s), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        void *failed;

        pthread_join(t[i], &failed);
        assert_null(failed);
    }
    host_mm_get_stats(s.mm, &stats);
    assert_int_equal(stats.rss_anon, PAGES);
    host_mm_free(s.mm);
    host_memory_free(hm);
}

/*
 * Frames and tables that go and are used for something else at once, under walks without a lock:
 * the frame of page 0 becomes page 600's, and the table above page 0 becomes a table of ones.
 */
struct reuse {
    struct host_memory *hm;
    struct host_mm *mm;
    bool stop;
};

static void *recycle(void *arg)
{
    struct reuse *r = arg;
    struct host_page p;
    hpa_t t;

    for (unsigned i = 0; i < 60000; i++) {
        (void)!host_gup(r->mm, at(0), HOST_FAULT_NOTHP, &p);
        if (i % 2) {
            (void)!host_mm_discard(r->mm, at(0), at(1));
            (void)!host_gup(r->mm, at(600), HOST_FAULT_NOTHP, &p);
            (void)!host_mm_discard(r->mm, at(600), at(601));
        } else {
            (void)!host_mm_discard(r->mm, at(0), at(512));
            if (host_table_alloc(r->hm, HOST_FRAME_TABLE, &t) == 0) {
                memset(host_table_at(r->hm, t), 0x5f, PAGE_SIZE);
                host_table_free(r->hm, t);
            }
        }
    }
    __atomic_store_n(&r->stop, true, __ATOMIC_RELAXED);
    return NULL;
}

static void reuse_under_walks(void **state)
{
    static struct reuse r;
    struct host_memory_options o = {.bytes = 16 * MIB, .nr_cpus = 1};
    struct host_mm_options mo = {.source = &host_map_source_none};
    struct host_vma vma = {
        .start = at(0), .end = at(1024), .flags = HOST_VMA_READ | HOST_VMA_WRITE};
    struct host_page p;
    pthread_t t;

    assert_int_equal(host_memory_new(&o, &r.hm), 0);
    assert_int_equal(host_mm_new(r.hm, &mo, &r.mm), 0);
    assert_int_equal(host_mm_map(r.mm, &vma), 0);
    assert_int_equal(pthread_create(&t, NULL, recycle, &r), 0);
    while (!__atomic_load_n(&r.stop, __ATOMIC_RELAXED)) {
        if (host_gup_fast(r.mm, at(0), HOST_FAULT_PIN, &p) == 0) {
            assert_true(p.pfn.v < r.hm->nr_frames);
            assert_ptr_equal(host_hpa_to_ptr(r.hm, pfn_to_hpa(p.pfn)), hva_to_ptr(at(0)));
            host_page_put(r.mm, &p);
        }
    }
    pthread_join(t, NULL);
    host_mm_free(r.mm);
    host_memory_free(r.hm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(storm),
        cmocka_unit_test(same_pages),
        cmocka_unit_test(reuse_under_walks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
