/*
 * Swap: guests larger than the simulated memory, with real bytes in real mappings. Every page
 * carries a pattern that says which page it is and how often it was written; what is read must
 * always be right, through frames (as a guest does) and directly (as device code of the process
 * does).
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

#define MIB   (UINT64_C(1) << 20)
#define PAGES 8192u /* 32 MiB of guest RAM ... */
#define HOST  (16 * MIB)

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    struct host_notifier notifier;
    pthread_mutex_t lock;
    unsigned active;
    uint64_t sequence;
    char *ram;
    uint32_t version[PAGES];
    bool hot[PAGES]; /* what the second stage would say */
    unsigned failures;
};

static void on_start(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    pthread_mutex_lock(&w->lock);
    w->active++;
    pthread_mutex_unlock(&w->lock);
}

static void on_end(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    pthread_mutex_lock(&w->lock);
    w->active--;
    w->sequence++;
    pthread_mutex_unlock(&w->lock);
}

static bool on_clear_young(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);
    bool young = false;

    for (uint64_t a = r->start.v; a < r->end.v; a += PAGE_SIZE) {
        young |= w->hot[(a - (uintptr_t)w->ram) >> PAGE_SHIFT];
    }
    return young;
}

static const struct host_notifier_ops ops = {
    .invalidate_start = on_start, .invalidate_end = on_end, .clear_young = on_clear_young};

static void world_init(struct world *w, struct host_mm_options mo)
{
    struct host_memory_options o = {.bytes = HOST, .nr_cpus = 2};

    memset(w, 0, sizeof(*w));
    pthread_mutex_init(&w->lock, NULL);
    assert_int_equal(host_memory_new(&o, &w->hm), 0);
    assert_int_equal(host_mm_new(w->hm, &mo, &w->mm), 0);
    w->notifier.ops = &ops;
    host_notifier_register(w->mm, &w->notifier);
    w->ram = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(w->ram, MAP_FAILED);
}

static void world_check(struct world *w)
{
    char text[200] = "";

    if (host_mm_check(w->mm, text, sizeof(text)) || host_memory_check(w->hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
}

static void world_fini(struct world *w)
{
    world_check(w);
    host_notifier_unregister(w->mm, &w->notifier);
    host_mm_free(w->mm);
    host_memory_free(w->hm);
    munmap(w->ram, PAGES * PAGE_SIZE);
}

/* The word that page i of version v has at its k-th 64 bytes: some pages compress, some do not. */
static uint64_t word(uint32_t i, uint32_t v, unsigned k)
{
    uint64_t state = ((uint64_t)i << 32 | v) * 3 + (i % 3 == 0 ? 0 : k);

    return v == 0 ? 0 : i % 3 == 1 ? k : oracle_random(&state);
}

static void fill(volatile uint64_t *p, uint32_t i, uint32_t v)
{
    for (unsigned k = 0; k < 512; k++) {
        p[k] = word(i, v, k);
    }
}

static bool matches(const volatile uint64_t *p, uint32_t i, uint32_t v)
{
    for (unsigned k = 0; k < 512; k++) {
        if (p[k] != word(i, v, k)) {
            return false;
        }
    }
    return true;
}

/* A guest's access: resolve and use with a pin, so that the page stays meanwhile. */
static void guest_access(struct world *w, uint32_t i, bool write)
{
    struct host_page p;
    hva_t at = ptr_to_hva(w->ram + i * PAGE_SIZE);
    uint64_t *data;

    assert_int_equal(host_gup(w->mm, at, HOST_FAULT_PIN | (write ? HOST_FAULT_WRITE : 0), &p), 0);
    data = host_hpa_to_ptr(w->hm, pfn_to_hpa(p.pfn));
    assert_ptr_equal(data, w->ram + i * PAGE_SIZE);
    if (!matches(data, i, w->version[i])) {
        fail_msg("page %u version %u: wrong contents", i, w->version[i]);
    }
    if (write) {
        fill(data, i, ++w->version[i]);
    }
    host_page_put(w->mm, &p);
}

static uint64_t resident_pages(struct world *w)
{
    unsigned char *vec = malloc(PAGES);
    uint64_t n = 0;

    assert_int_equal(mincore(w->ram, PAGES * PAGE_SIZE, vec), 0);
    for (unsigned i = 0; i < PAGES; i++) {
        n += vec[i] & 1;
    }
    free(vec);
    return n;
}

static void guest_larger_than_memory(struct host_mm_options mo, bool direct)
{
    static struct world w;
    struct host_mm_stats s;
    uint64_t rng = 5;

    world_init(&w, mo);
    for (uint32_t i = 0; i < PAGES; i++) {
        guest_access(&w, i, true);
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.swap_out >= PAGES - HOST / PAGE_SIZE);
    assert_true(s.rss_anon <= HOST / PAGE_SIZE);
    /* The memory is really given back, and what is kept is smaller. */
    assert_true(resident_pages(&w) < HOST / PAGE_SIZE + 2048);
    assert_true(s.swap_bytes < s.swap_pages * PAGE_SIZE / 2);
    for (unsigned n = 0; n < 10000; n++) {
        uint32_t i = (uint32_t)(oracle_random(&rng) % PAGES);

        if (direct && n % 8 == 0) {
            assert_true(matches((uint64_t *)(w.ram + i * PAGE_SIZE), i, w.version[i]));
            if (n % 16 == 0) {
                fill((uint64_t *)(w.ram + i * PAGE_SIZE), i, ++w.version[i]);
            }
        } else {
            guest_access(&w, i, n & 1);
        }
        if (n % 4000 == 0) {
            world_check(&w);
        }
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.swap_in > 1000 && s.swap_same > 500);
    assert_true(!direct || s.swap_watched > 100);
    assert_int_equal(s.swap_out, s.swap_in + s.swap_pages);
    /* The address space goes: the process has its memory back, whole. */
    host_notifier_unregister(w.mm, &w.notifier);
    host_mm_free(w.mm);
    for (uint32_t i = 0; i < PAGES; i++) {
        assert_true(matches((uint64_t *)(w.ram + i * PAGE_SIZE), i, w.version[i]));
    }
    host_memory_free(w.hm);
    munmap(w.ram, PAGES * PAGE_SIZE);
}

static void watched(void **state)
{
    struct host_mm_options mo = {.swap_pages = PAGES};
    static struct world w;
    struct host_mm_stats s;

    /* Where there is no userfaultfd nothing may be swapped: running out is an error. */
    world_init(&w, mo);
    for (uint32_t i = 0; i < HOST / PAGE_SIZE; i++) {
        if (host_handle_mm_fault(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), HOST_FAULT_WRITE)) {
            break;
        }
    }
    host_mm_get_stats(w.mm, &s);
    world_fini(&w);
    if (!s.swap_out) {
        print_message("no userfaultfd here\n");
        skip();
    }
    guest_larger_than_memory(mo, true);
}

static void announced(void **state)
{
    guest_larger_than_memory((struct host_mm_options){.swap_pages = PAGES, .announced = true},
                             false);
}

static void small_pages(void **state)
{
    guest_larger_than_memory(
        (struct host_mm_options){
            .swap_pages = PAGES, .announced = true, .thp = HOST_THP_NEVER, .levels = 5},
        false);
}

static void swap_can_be_full(void **state)
{
    static struct world w;
    uint32_t i = 0;
    struct host_mm_stats s;

    world_init(&w, (struct host_mm_options){.swap_pages = 1000, .announced = true});
    while (i < PAGES && host_handle_mm_fault(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), 0) == 0) {
        i++;
    }
    assert_in_range(i, HOST / PAGE_SIZE, HOST / PAGE_SIZE + 1000);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.swap_pages, 1000);
    assert_int_equal(host_mm_discard(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + 1024 * PAGE_SIZE)),
                     0);
    host_mm_get_stats(w.mm, &s);
    assert_true(s.swap_pages < 1000);
    assert_int_equal(host_handle_mm_fault(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), 0), 0);
    world_fini(&w);
}

/* What the second stage uses stays; so do pinned pages, locked ones and those under access. */
static void who_stays(void **state)
{
    static struct world w;
    struct host_page pinned, p;
    struct host_mm_stats s;

    world_init(&w, (struct host_mm_options){
                       .swap_pages = PAGES, .announced = true, .thp = HOST_THP_NEVER});
    for (uint32_t i = 0; i < 2048; i++) {
        guest_access(&w, i, true);
        w.hot[i] = i % 4 == 0;
    }
    assert_int_equal(host_gup(w.mm, ptr_to_hva(w.ram + PAGE_SIZE), HOST_FAULT_PIN, &pinned), 0);
    assert_int_equal(host_mm_access_begin(w.mm, ptr_to_hva(w.ram + 600 * PAGE_SIZE + 5),
                                          ptr_to_hva(w.ram + 601 * PAGE_SIZE)),
                     0);
    assert_int_equal(host_mm_advise(w.mm, ptr_to_hva(w.ram + 1536 * PAGE_SIZE),
                                    ptr_to_hva(w.ram + 2048 * PAGE_SIZE), HOST_VMA_LOCKED, 0),
                     0);
    assert_int_equal(host_mm_reclaim(w.mm, 100000), (512 * 2) - 256 - 1);
    for (uint32_t i = 0; i < 2048; i++) {
        bool stays = w.hot[i] || i == 1 || (i >= 512 && i < 1024) || i >= 1536;

        assert_int_equal(host_gup_fast(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), 0, &p) == 0, stays);
    }
    assert_int_equal(host_gup(w.mm, ptr_to_hva(w.ram + 2 * PAGE_SIZE), HOST_FAULT_NOWAIT, &p),
                     -EAGAIN);
    host_page_put(w.mm, &pinned);
    host_mm_access_end(w.mm, ptr_to_hva(w.ram + 600 * PAGE_SIZE + 5),
                       ptr_to_hva(w.ram + 601 * PAGE_SIZE));
    host_mm_get_stats(w.mm, &s);
    assert_true(s.reclaim_pinned > 0 && s.reclaim_young > 0);
    assert_true(host_mm_reclaim(w.mm, 100000) >= 1);
    for (uint32_t i = 0; i < 2048; i++) {
        guest_access(&w, i, false);
    }
    /* Rights change while pages are away: the bytes are still there afterwards. */
    memset(w.hot, 0, sizeof(w.hot));
    (void)host_mm_reclaim(w.mm, 100000);
    assert_int_equal(host_mm_protect(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + 2048 * PAGE_SIZE),
                                     HOST_VMA_READ),
                     0);
    for (uint32_t i = 0; i < 2048; i++) {
        guest_access(&w, i, false);
    }
    assert_int_equal(host_mm_swap_off(w.mm), 0);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.swap_pages, 0);
    assert_int_equal(s.swap_bytes, 0);
    world_fini(&w);
}

/* Pages whose bytes stay at their HVA anyway need no swap to be reclaimed. */
static void file_pages(void **state)
{
    static struct world w;
    struct host_mm_stats s;
    int fd = memfd_create("strata-test", 0);
    char *ram;

    world_init(&w, (struct host_mm_options){0});
    assert_int_equal(ftruncate(fd, PAGES * PAGE_SIZE), 0);
    ram = mmap(w.ram, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    assert_ptr_equal(ram, w.ram);
    for (uint32_t i = 0; i < PAGES; i++) {
        guest_access(&w, i, true);
    }
    for (uint32_t i = 0; i < PAGES; i++) {
        guest_access(&w, i, false);
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.reclaim_file > PAGES && s.swap_out == 0);
    world_fini(&w);
    close(fd);
}

/* The mapping vanishes while pages are away: errors, no crash, nothing lost elsewhere. */
static void vanished(void **state)
{
    static struct world w;
    struct host_page p;

    world_init(&w, (struct host_mm_options){.swap_pages = PAGES, .announced = true});
    for (uint32_t i = 0; i < 1024; i++) {
        guest_access(&w, i, true);
    }
    (void)host_mm_reclaim(w.mm, 100000);
    munmap(w.ram, 512 * PAGE_SIZE);
    for (uint32_t i = 0; i < 512; i += 100) {
        assert_int_equal(host_gup(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), 0, &p), -EFAULT);
    }
    assert_true(host_mm_recheck(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + PAGES * PAGE_SIZE)) >
                0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(w.ram), 0, &p), -EFAULT);
    for (uint32_t i = 512; i < 1024; i++) {
        guest_access(&w, i, true);
    }
    world_fini(&w);
}

/* Memory that the process moves elsewhere takes its swapped bytes along. */
static void moved_memory(void **state)
{
    static struct world w;
    char *to = mmap(NULL, PAGES * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (unsigned announced = 0; announced < 2; announced++) {
        world_init(&w, (struct host_mm_options){.swap_pages = PAGES, .announced = announced});
        for (uint32_t i = 0; i < 1024; i++) {
            guest_access(&w, i, true);
        }
        (void)host_mm_reclaim(w.mm, 100000);
        assert_int_equal(
            host_mm_withdraw(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + PAGES * PAGE_SIZE)), 0);
        to = mremap(w.ram, PAGES * PAGE_SIZE, PAGES * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
        assert_ptr_not_equal(to, MAP_FAILED);
        w.ram = to;
        for (uint32_t i = 0; i < 1024; i++) {
            guest_access(&w, i, true);
        }
        to = mmap(NULL, PAGES * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        world_fini(&w);
    }
    munmap(to, PAGES * PAGE_SIZE);
}

/* New memory at an address that was watched before is watched anew. */
static void mapped_again(void **state)
{
    static struct world w;
    struct host_mm_stats s;

    world_init(&w, (struct host_mm_options){.swap_pages = PAGES});
    for (unsigned round = 0; round < 3; round++) {
        for (uint32_t i = 0; i < 1024; i++) {
            guest_access(&w, i, true);
        }
        (void)host_mm_reclaim(w.mm, 100000);
        for (uint32_t i = 0; i < 1024; i += 3) { /* device code touches what is away */
            assert_true(matches((uint64_t *)(w.ram + i * PAGE_SIZE), i, w.version[i]));
        }
        assert_ptr_equal(mmap(w.ram, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0),
                         w.ram);
        assert_int_equal(
            host_mm_unmap(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + PAGES * PAGE_SIZE)), 0);
        memset(w.version, 0, sizeof(w.version));
    }
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.swap_pages, 0);
    assert_true(s.swap_out == 0 || s.swap_watched > 900);
    world_fini(&w);
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

/* No allocation on the way out, in, or into a merged frame may lose bytes by failing. */
static void every_allocation_may_fail(void **state)
{
    for (unsigned nth = 1;; nth++) {
        struct countdown c = {0};
        struct host_memory_options o = {.bytes = HOST, .fail_alloc = fail_nth, .opaque = &c};
        struct host_mm_options mo = {.swap_pages = 100, .announced = true, .thp = HOST_THP_NEVER};
        static struct world w;
        struct host_page p;

        memset(&w, 0, sizeof(w));
        assert_int_equal(host_memory_new(&o, &w.hm), 0);
        c.left = nth;
        if (host_mm_new(w.hm, &mo, &w.mm) != 0) {
            host_memory_free(w.hm);
            continue;
        }
        w.ram = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
        for (uint32_t i = 0; i < 8; i++) {
            fill((uint64_t *)(w.ram + i * PAGE_SIZE), i / 2 * 3 + 2, 1);
            (void)!host_gup(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), HOST_FAULT_WRITE, &p);
        }
        (void)!host_mm_advise(w.mm, ptr_to_hva(w.ram), ptr_to_hva(w.ram + 4 * PAGE_SIZE),
                              HOST_VMA_MERGEABLE, 0);
        (void)host_mm_merge_scan(w.mm, 10);
        (void)host_mm_reclaim(w.mm, 100);
        for (uint32_t i = 0; i < 8; i += 3) {
            (void)!host_gup(w.mm, ptr_to_hva(w.ram + i * PAGE_SIZE), HOST_FAULT_WRITE, &p);
        }
        world_check(&w);
        host_mm_free(w.mm);
        host_memory_free(w.hm);
        for (uint32_t i = 0; i < 8; i++) {
            assert_true(matches((uint64_t *)(w.ram + i * PAGE_SIZE), i / 2 * 3 + 2, 1));
        }
        munmap(w.ram, PAGES * PAGE_SIZE);
        if (!c.fired) {
            assert_true(nth > 20);
            break;
        }
    }
}

/* Guests' threads and device code on disjoint pages, one small memory. */
struct thread_arg {
    struct world *w;
    uint32_t first;
};

static void *run_guest(void *arg)
{
    struct thread_arg *t = arg;
    uint64_t rng = t->first + 1;

    for (unsigned n = 0; n < 12000; n++) {
        uint32_t i = (uint32_t)(oracle_random(&rng) % (PAGES / 4)) * 4 + t->first;

        guest_access(t->w, i, n & 1);
    }
    return NULL;
}

static void threads(void **state)
{
    static struct world w;
    struct thread_arg args[4];
    struct host_mm_stats s;
    pthread_t t[4];

    world_init(&w, (struct host_mm_options){.swap_pages = PAGES, .announced = true});
    for (unsigned i = 0; i < 4; i++) {
        args[i] = (struct thread_arg){&w, i};
        assert_int_equal(pthread_create(&t[i], NULL, run_guest, &args[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(t[i], NULL);
    }
    for (uint32_t i = 0; i < PAGES; i++) {
        guest_access(&w, i, false);
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.swap_in > 1000);
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(watched),      cmocka_unit_test(announced),
        cmocka_unit_test(small_pages),  cmocka_unit_test(swap_can_be_full),
        cmocka_unit_test(who_stays),    cmocka_unit_test(file_pages),
        cmocka_unit_test(moved_memory), cmocka_unit_test(mapped_again),
        cmocka_unit_test(vanished),     cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
