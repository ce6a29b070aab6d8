/*
 * Everything that moves pages at once: guests' threads read and write real bytes through pinned frames,
 * device code through announced accesses, while another thread reclaims, swaps, merges, collapses,
 * splits, migrates, compacts and forks. What is read must be what was written last; at the end the
 * process has all its bytes. STRATA_STORM_SEEDS=N runs N seeds instead of two, STRATA_LONG=1 200.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "oracle/host_frames.h"

#define PAGES   4096u /* 16 MiB of guest RAM in 12 MiB of memory */
#define THREADS 3u
#define STEPS   4000u

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    char *ram;
    uint64_t kind[PAGES];
    unsigned failures; /* atomic */
    bool stop;         /* atomic */
    bool watched;      /* the process does not announce its accesses */
    uint64_t seed;
};

struct guest {
    struct world *w;
    unsigned id;
};

static hva_t at(struct world *w, uint64_t i)
{
    return ptr_to_hva(w->ram + i * PAGE_SIZE);
}

/* Few words of each page are looked at: the rest of a page follows them or is zero. */
static bool holds(const volatile uint64_t *p, uint64_t kind)
{
    for (unsigned k = 0; k < 512; k += 73) {
        if (p[k] != (kind ? kind * 0x9e37 + k * (kind % 2) : 0)) {
            return false;
        }
    }
    return true;
}

static void fill(volatile uint64_t *p, uint64_t kind)
{
    for (unsigned k = 0; k < 512; k++) {
        p[k] = kind ? kind * 0x9e37 + k * (kind % 2) : 0;
    }
}

static void use(struct world *w, uint64_t i, uint64_t *data, bool write, uint64_t kind)
{
    if (!holds(data, w->kind[i])) {
        __atomic_fetch_add(&w->failures, 1, __ATOMIC_RELAXED);
    }
    if (write) {
        fill(data, kind);
        w->kind[i] = kind;
    }
}

/* Through a pinned frame, as a processor with a valid translation does. */
static void by_frame(struct world *w, uint64_t i, bool write, uint64_t kind)
{
    struct host_page p;

    if (host_gup(w->mm, at(w, i), HOST_FAULT_PIN | (write ? HOST_FAULT_WRITE : 0), &p) != 0) {
        __atomic_fetch_add(&w->failures, 1, __ATOMIC_RELAXED);
        return;
    }
    use(w, i, host_hpa_to_ptr(w->hm, pfn_to_hpa(p.pfn)), write, kind);
    host_page_put(w->mm, &p);
}

/* At the HVA itself, as device code does. */
static void by_access(struct world *w, uint64_t i, bool write, uint64_t kind)
{
    if (w->watched) {
        use(w, i, (uint64_t *)(w->ram + i * PAGE_SIZE), write, kind);
        return;
    }
    if (host_mm_access_begin(w->mm, at(w, i), at(w, i + 1)) != 0) {
        __atomic_fetch_add(&w->failures, 1, __ATOMIC_RELAXED);
        return;
    }
    use(w, i, (uint64_t *)(w->ram + i * PAGE_SIZE), write, kind);
    host_mm_access_end(w->mm, at(w, i), at(w, i + 1));
}

static void *run_guest(void *arg)
{
    struct guest *g = arg;
    struct world *w = g->w;
    uint64_t rng = w->seed * 10 + g->id;

    for (unsigned n = 0; n < STEPS; n++) {
        uint64_t r = oracle_random(&rng), i = (r >> 8) % (PAGES / THREADS) * THREADS + g->id;

        if (r % 8) {
            by_frame(w, i, r & 16, (r >> 40) % 6);
        } else {
            by_access(w, i, r & 16, (r >> 40) % 6);
        }
    }
    return NULL;
}

static void disturb(struct world *w, uint64_t r)
{
    hva_t some = at(w, (r >> 8) % PAGES);

    switch (r % 8) {
    case 0:
        (void)host_mm_reclaim(w->mm, 60);
        break;
    case 1:
        (void)host_mm_merge_scan(w->mm, 300);
        break;
    case 2:
        (void)!host_mm_collapse(w->mm, some, 400);
        break;
    case 3:
        (void)!host_mm_split(w->mm, some);
        break;
    case 4:
        (void)!host_mm_migrate(w->mm, some);
        break;
    case 5:
        (void)host_memory_compact(w->hm, 1);
        break;
    case 6:
        (void)!host_mm_forked(w->mm);
        break;
    case 7:
        (void)!host_mm_protect(w->mm, some, hva(some.v + PAGE_SIZE),
                               HOST_VMA_READ | HOST_VMA_WRITE);
        break;
    }
}

static void *run_disturber(void *arg)
{
    struct world *w = arg;
    uint64_t rng = w->seed;

    while (!__atomic_load_n(&w->stop, __ATOMIC_RELAXED)) {
        disturb(w, oracle_random(&rng));
    }
    return NULL;
}

static void start(struct world *w, uint64_t seed, bool watched)
{
    struct host_memory_options o = {.bytes = UINT64_C(12) << 20, .nr_cpus = 2};
    struct host_mm_options mo = {.swap_pages = PAGES, .announced = !watched};
    struct host_vma vma;

    memset(w, 0, sizeof(*w));
    w->seed = seed;
    w->watched = watched;
    assert_int_equal(host_memory_new(&o, &w->hm), 0);
    assert_int_equal(host_mm_new(w->hm, &mo, &w->mm), 0);
    w->ram =
        mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(w->ram, MAP_FAILED);
    assert_int_equal(host_mm_find_vma(w->mm, at(w, 0), &vma), 0);
    assert_int_equal(host_mm_advise(w->mm, at(w, 0), at(w, PAGES), HOST_VMA_MERGEABLE, 0), 0);
}

static void finish(struct world *w)
{
    char text[200] = "";

    if (host_mm_check(w->mm, text, sizeof(text)) || host_memory_check(w->hm, text, sizeof(text))) {
        fail_msg("seed %llu: %s", (unsigned long long)w->seed, text);
    }
    host_mm_free(w->mm);
    for (uint64_t i = 0; i < PAGES; i++) {
        assert_true(holds((uint64_t *)(w->ram + i * PAGE_SIZE), w->kind[i]));
    }
    host_memory_free(w->hm);
    munmap(w->ram, PAGES * PAGE_SIZE);
}

static void storm(uint64_t seed, bool watched)
{
    static struct world w;
    struct guest guests[THREADS];
    pthread_t t[THREADS], d;
    struct host_mm_stats s;

    start(&w, seed, watched);
    assert_int_equal(pthread_create(&d, NULL, run_disturber, &w), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        guests[i] = (struct guest){&w, i};
        assert_int_equal(pthread_create(&t[i], NULL, run_guest, &guests[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(t[i], NULL);
    }
    __atomic_store_n(&w.stop, true, __ATOMIC_RELAXED);
    pthread_join(d, NULL);
    host_mm_get_stats(w.mm, &s);
    if (w.failures) {
        fail_msg("seed %llu: %u accesses failed or read other bytes", (unsigned long long)seed,
                 w.failures);
    }
    assert_true(s.swap_out && s.swap_in && s.cow);
    finish(&w);
}

/* One thread: the same steps, in an order that a seed repeats. */
static void repeatable(uint64_t seed, bool watched)
{
    static struct world w;
    uint64_t rng = seed;

    start(&w, seed, watched);
    for (unsigned n = 0; n < STEPS; n++) {
        uint64_t r = oracle_random(&rng), i = (r >> 8) % PAGES;

        if (r % 16 == 0) {
            disturb(&w, oracle_random(&rng));
        } else if (r % 16 == 1) {
            by_access(&w, i, r & 16, (r >> 40) % 6);
        } else {
            by_frame(&w, i, r & 16, (r >> 40) % 6);
        }
        if (w.failures) {
            fail_msg("seed %llu step %u: wrong bytes", (unsigned long long)seed, n);
        }
    }
    finish(&w);
}

static uint64_t seeds(void)
{
    const char *wanted = getenv("STRATA_STORM_SEEDS");

    return wanted ? strtoull(wanted, NULL, 10) : getenv("STRATA_LONG") ? 200 : 2;
}

static void threads(void **state)
{
    for (uint64_t seed = 1; seed <= seeds(); seed++) {
        storm(seed, false);
    }
}

static void one_thread(void **state)
{
    for (uint64_t seed = 1; seed <= seeds() * 3; seed++) {
        repeatable(seed, false);
    }
}

/* The process touches its memory as it likes; without a userfaultfd nothing is swapped then. */
static void unannounced(void **state)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1); /* user mode only: the least there is */

    if (fd < 0) {
        print_message("no userfaultfd here\n");
        skip();
    }
    close(fd);
    for (uint64_t seed = 1; seed <= seeds(); seed++) {
        repeatable(seed, true);
        storm(seed, true);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_thread),
        cmocka_unit_test(threads),
        cmocka_unit_test(unannounced),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
