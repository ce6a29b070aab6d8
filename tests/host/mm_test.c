/* Address spaces: random VMA operations, faults and get-user-pages against a record per page. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "arch/paging.h"
#include "host/buddy.h"
#include "host/mm.h"
#include "oracle/host_frames.h"
#include "oracle/host_pages.h"

#if defined(__has_feature)
#define STRATA_TSAN __has_feature(thread_sanitizer)
#else
#define STRATA_TSAN 0
#endif

#define MIB  (UINT64_C(1) << 20)
#define BASE UINT64_C(0x7f0000000000) /* nothing is ever read there: contents are not touched */

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    struct host_notifier notifier;
    struct oracle_pages o;
    unsigned depth; /* start without end */
    unsigned starts;
    uint64_t rng;
};

static void on_start(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    assert_true(r->start.v >= BASE && r->start.v < r->end.v);
    w->depth++;
    w->starts++;
    oracle_pages_invalidate(&w->o, (unsigned)((r->start.v - BASE) >> PAGE_SHIFT),
                            (unsigned)((r->end.v - r->start.v) >> PAGE_SHIFT));
}

static void on_end(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    assert_int_equal(w->depth, 1);
    w->depth--;
}

static const struct host_notifier_ops ops = {.invalidate_start = on_start,
                                             .invalidate_end = on_end};

static void world_init(struct world *w, const struct host_memory_options *memory,
                       struct host_mm_options o)
{
    memset(w, 0, sizeof(*w));
    w->rng = 42;
    o.source = &host_map_source_none;
    assert_int_equal(host_memory_new(memory, &w->hm), 0);
    assert_int_equal(host_mm_new(w->hm, &o, &w->mm), 0);
    w->notifier.ops = &ops;
    host_notifier_register(w->mm, &w->notifier);
}

static void check_world(struct world *w)
{
    char text[200] = "";

    if (host_mm_check(w->mm, text, sizeof(text)) || host_memory_check(w->hm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
}

static uint64_t frames_in_use(struct host_memory *hm)
{
    struct host_memory_stats s;
    uint64_t n = 0;

    host_memory_get_stats(hm, &s);
    for (unsigned t = 0; t < HOST_FRAME_NR_TYPES; t++) {
        n += s.in_use[t];
    }
    return n;
}

static void world_fini(struct world *w)
{
    check_world(w);
    host_notifier_unregister(w->mm, &w->notifier);
    host_mm_free(w->mm);
    assert_int_equal(frames_in_use(w->hm), 0);
    host_memory_free(w->hm);
}

static hva_t at(uint64_t page)
{
    return hva(BASE + (page << PAGE_SHIFT));
}

static struct host_vma vma_of(uint64_t first, uint64_t n, unsigned flags)
{
    return (struct host_vma){.start = at(first), .end = at(first + n), .flags = flags};
}

/* Whoever holds a frame that no notifier took back must still be right about it. */
static void check_derived(struct world *w)
{
    for (unsigned i = 0; i < ORACLE_PAGES; i++) {
        const struct oracle_page *p = &w->o.p[i];
        struct host_page page;

        if (!p->derived) {
            continue;
        }
        assert_true(oracle_pages_allows(&w->o, i, p->derived_write));
        assert_int_equal(
            host_gup_fast(w->mm, at(i), p->derived_write ? HOST_FAULT_WRITE : 0, &page), 0);
        assert_int_equal(page.pfn.v, p->pfn);
    }
}

static void step_map(struct world *w, unsigned first, unsigned n)
{
    uint64_t r = oracle_random(&w->rng);
    struct oracle_page like = {.readable = r & 1, .writable = (r >> 1) & 1};
    struct host_vma vma = vma_of(
        first, n, (like.readable ? HOST_VMA_READ : 0) | (like.writable ? HOST_VMA_WRITE : 0));

    like.file = (r >> 2) % 3 == 0;
    like.shared = (r >> 5) % 2;
    if (like.file) {
        vma.flags |= HOST_VMA_FILE;
        vma.ino = 1 + first % 2;
        vma.offset = (uint64_t)first << PAGE_SHIFT;
    }
    vma.flags |= like.shared ? HOST_VMA_SHARED : 0;
    assert_int_equal(host_mm_map(w->mm, &vma), 0);
    oracle_pages_map(&w->o, first, n, like);
}

static void step_protect(struct world *w, unsigned first, unsigned n)
{
    uint64_t r = oracle_random(&w->rng);
    unsigned prot = (r & 1 ? HOST_VMA_READ : 0) | (r & 2 ? HOST_VMA_WRITE : 0);
    int err = host_mm_protect(w->mm, at(first), at(first + n), prot);

    if (oracle_pages_covered(&w->o, first, n)) {
        assert_int_equal(err, 0);
        oracle_pages_protect(&w->o, first, n, r & 1, (r & 2) != 0);
    } else {
        assert_int_equal(err, -ENOMEM);
    }
}

static void step_gup(struct world *w, unsigned i)
{
    uint64_t r = oracle_random(&w->rng);
    bool write = r & 1, pin = (r >> 1) & 1;
    unsigned flags = (write ? HOST_FAULT_WRITE : 0) | (pin ? HOST_FAULT_PIN : 0) |
                     ((r >> 2) % 4 == 0 ? HOST_FAULT_NOTHP : 0);
    struct host_page page;
    int err = host_gup(w->mm, hva(at(i).v + r % 4096), flags, &page);

    if (!oracle_pages_allows(&w->o, i, write)) {
        assert_int_equal(err, -EFAULT);
        return;
    }
    assert_int_equal(err, 0);
    assert_true(page.writable || !write);
    assert_true(w->o.p[i].writable || !page.writable);
    assert_ptr_equal(host_hpa_to_ptr(w->hm, pfn_to_hpa(page.pfn)), hva_to_ptr(at(i)));
    assert_int_equal(host_mapping_level(w->mm, at(i)), page.level);
    if (w->o.p[i].derived) {
        assert_int_equal(w->o.p[i].pfn, page.pfn.v);
    }
    w->o.p[i].derived = true;
    w->o.p[i].derived_write = page.writable;
    w->o.p[i].pfn = page.pfn.v;
    if (pin) {
        host_page_put(w->mm, &page);
    }
}

/* Pages change frames; rights and contents do not. */
static void step_move(struct world *w, unsigned i, unsigned kind)
{
    int err = 0;

    switch (kind % 6) {
    case 0:
    case 1:
        err = host_mm_collapse(w->mm, at(i), 512);
        assert_true(err == 0 || err == -EBUSY || err == -EINVAL || err == -ENOMEM);
        assert_true(err || host_mapping_level(w->mm, at(i)) == 2);
        break;
    case 2:
        err = host_mm_split(w->mm, at(i));
        assert_true(err == 0 && host_mapping_level(w->mm, at(i)) < 2);
        break;
    case 3:
        err = host_mm_migrate(w->mm, at(i));
        assert_true(err == 0 || err == -EBUSY || err == -EFAULT);
        break;
    case 4:
        assert_int_equal(host_mm_forked(w->mm), 0);
        break;
    case 5:
        (void)host_mm_reclaim(w->mm, 50);
        (void)host_memory_compact(w->hm, 2);
        break;
    }
}

static void one_step(struct world *w)
{
    uint64_t r = oracle_random(&w->rng);
    unsigned first = (unsigned)((r >> 8) % ORACLE_PAGES), n;
    unsigned kind = (unsigned)(r % 100);

    n = 1 + (unsigned)((r >> 32) % (kind % 2 ? 64 : 1500));
    if (kind < 6 && (r >> 60) % 2) { /* often in whole huge pages */
        first &= ~511u;
        n = (n + 511) & ~511u;
    }
    n = first + n > ORACLE_PAGES ? ORACLE_PAGES - first : n;
    if (kind < 6) {
        step_map(w, first, n);
    } else if (kind < 9) {
        assert_int_equal(host_mm_unmap(w->mm, at(first), at(first + n)), 0);
        oracle_pages_unmap(&w->o, first, n);
    } else if (kind < 13) {
        assert_int_equal(host_mm_discard(w->mm, at(first), at(first + n)), 0);
    } else if (kind < 16) {
        step_protect(w, first, n);
    } else if (kind < 19) {
        step_move(w, first, kind + (unsigned)(r >> 62));
    } else {
        step_gup(w, first);
    }
}

static void random_operations(struct host_mm_options o, uint64_t seed)
{
    struct host_memory_options memory = {.bytes = 64 * MIB, .nr_cpus = 2};
    static struct world w;
    struct host_mm_stats s;

    world_init(&w, &memory, o);
    w.rng = seed;
    for (unsigned i = 0; i < 20000; i++) {
        one_step(&w);
        if (i % 500 == 0) {
            check_derived(&w);
            check_world(&w);
        }
    }
    host_mm_get_stats(w.mm, &s);
    assert_true(s.migrated > 0);
    assert_true(o.thp == HOST_THP_NEVER || s.collapses > 0);
    assert_true(s.cow > 0 && s.file_faults > 0 && s.anon_4k > 0 && s.faults_error > 0);
    assert_true(o.thp == HOST_THP_NEVER || (s.splits > 0 && s.anon_2m > 0));
    assert_true(!o.zero_page || s.zero_page > 0);
    world_fini(&w);
}

static void random_with_huge_pages(void **state)
{
    for (uint64_t seed = 1; seed <= (getenv("STRATA_LONG") ? 1000 : 5); seed++) {
        random_operations((struct host_mm_options){0}, seed);
    }
}

static void random_without_huge_pages(void **state)
{
    random_operations((struct host_mm_options){.thp = HOST_THP_NEVER}, 7);
}

static void random_five_levels(void **state)
{
    random_operations((struct host_mm_options){.levels = 5}, 8);
}

/* The zero page's contents are its own, not at the HVA: only counters and rights are judged. */
static void zero_page(void **state)
{
    struct host_memory_options memory = {.bytes = 64 * MIB};
    static struct world w;
    struct host_page a, b;
    struct host_vma vma = vma_of(0, 100, HOST_VMA_READ | HOST_VMA_WRITE);
    struct host_mm_stats s;

    world_init(&w, &memory, (struct host_mm_options){.thp = HOST_THP_NEVER, .zero_page = true});
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    assert_int_equal(host_gup(w.mm, at(3), 0, &a), 0);
    assert_int_equal(host_gup(w.mm, at(4), HOST_FAULT_PIN, &b), 0);
    assert_int_equal(a.pfn.v, b.pfn.v);
    assert_false(a.writable);
    host_page_put(w.mm, &b);
    assert_int_equal(*(uint64_t *)host_hpa_to_ptr(w.hm, pfn_to_hpa(a.pfn)), 0);
    w.starts = 0;
    assert_int_equal(host_gup(w.mm, at(3), HOST_FAULT_WRITE, &b), 0);
    assert_int_equal(w.starts, 1);
    assert_true(b.writable && a.pfn.v != b.pfn.v);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(b.pfn)), hva_to_ptr(at(3)));
    assert_int_equal(host_mm_note_write(w.mm, at(4), at(6)), 0);
    assert_int_equal(host_gup_fast(w.mm, at(4), HOST_FAULT_WRITE, &b), 0);
    assert_int_equal(host_mapping_level(w.mm, at(5)), 0);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.zero_page, 2);
    assert_int_equal(s.cow, 2);
    assert_int_equal(s.rss_anon, 2);
    world_fini(&w);
}

static void huge_mapping(void **state)
{
    struct host_memory_options memory = {.bytes = 64 * MIB};
    static struct world w;
    struct host_vma vma = vma_of(256, 2048, HOST_VMA_READ | HOST_VMA_WRITE);
    struct host_page p, q;
    struct host_mm_stats s;
    unsigned levels[HOST_MAX_LEVELS], n;
    uint64_t entries[HOST_MAX_LEVELS];

    world_init(&w, &memory, (struct host_mm_options){0});
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    assert_int_equal(host_gup(w.mm, at(300), 0, &p), 0); /* the VMA does not hold its 2 MiB */
    assert_int_equal(p.level, 1);
    assert_int_equal(host_gup(w.mm, at(512 + 77), 0, &p), 0);
    assert_int_equal(p.level, 2);
    assert_int_equal(p.pfn.v % 512, 77);
    for (unsigned i = 0; i < 512; i++) {
        assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(pfn(p.pfn.v - 77 + i))),
                         hva_to_ptr(at(512 + i)));
    }
    n = host_mm_walk(w.mm, at(512), levels, entries);
    assert_int_equal(n, 3);
    assert_int_equal(levels[0], 4);
    assert_int_equal(levels[2], 2);
    assert_true((entries[2] & (X86_PTE_P | X86_PTE_PS)) == (X86_PTE_P | X86_PTE_PS));
    assert_int_equal(host_mm_walk(w.mm, at(1024), levels, entries), 3);
    assert_int_equal(entries[2], 0);
    assert_int_equal(host_mm_walk(w.mm, at(300), levels, entries), 4);

    /* A pin keeps the frames through a partial unmap; the rest stays mapped, as small pages. */
    assert_int_equal(host_gup(w.mm, at(512 + 5), HOST_FAULT_PIN, &q), 0);
    assert_int_equal(host_mm_unmap(w.mm, at(512), at(512 + 10)), 0);
    assert_int_equal(host_mapping_level(w.mm, at(512 + 5)), 0);
    assert_int_equal(host_mapping_level(w.mm, at(512 + 10)), 1);
    assert_int_equal(host_gup_fast(w.mm, at(512 + 77), HOST_FAULT_WRITE, &p), 0);
    assert_int_equal(p.pfn.v % 512, 77);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.splits, 1);
    assert_int_equal(s.rss_anon, 512 - 10 + 1);
    check_world(&w);
    assert_int_equal(host_mm_unmap(w.mm, at(512), at(1024)), 0);
    assert_true(host_frame_data(host_frame_at(w.hm, q.pfn)) != NULL);
    host_page_put(w.mm, &q);
    assert_true(host_frame_data(host_frame_at(w.hm, q.pfn)) == NULL);
    world_fini(&w);
}

static void policies(void **state)
{
    struct host_memory_options memory = {.bytes = 64 * MIB};
    static struct world w;
    struct host_vma vma = vma_of(0, 2048, HOST_VMA_READ | HOST_VMA_WRITE);
    struct host_page p;

    world_init(&w, &memory, (struct host_mm_options){.thp = HOST_THP_MADVISE});
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    assert_int_equal(host_gup(w.mm, at(1), 0, &p), 0);
    assert_int_equal(p.level, 1);
    assert_int_equal(host_mm_advise(w.mm, at(512), at(1536), HOST_VMA_HUGEPAGE, 0), 0);
    assert_int_equal(host_gup(w.mm, at(513), 0, &p), 0);
    assert_int_equal(p.level, 2);
    assert_int_equal(
        host_mm_advise(w.mm, at(1024), at(1536), HOST_VMA_NOHUGEPAGE, HOST_VMA_HUGEPAGE), 0);
    assert_int_equal(host_gup(w.mm, at(1025), 0, &p), 0);
    assert_int_equal(p.level, 1);
    assert_int_equal(host_mm_advise(w.mm, at(1536), at(4096), HOST_VMA_HUGEPAGE, 0), -ENOMEM);
    assert_int_equal(host_mm_advise(w.mm, at(0), at(1), HOST_VMA_WRITE, 0), -EINVAL);
    world_fini(&w);
}

static void pfnmap(void **state)
{
    struct host_memory_options memory = {.bytes = 64 * MIB};
    static struct world w;
    struct host_vma vma = vma_of(0, 16, HOST_VMA_READ | HOST_VMA_PFNMAP);
    struct host_vma ram = vma_of(16, 16, HOST_VMA_READ);
    struct host_page p, q;

    world_init(&w, &memory, (struct host_mm_options){0});
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    assert_int_equal(host_mm_map(w.mm, &ram), 0);
    assert_int_equal(host_gup(w.mm, at(3), 0, &p), -EFAULT);
    assert_int_equal(host_follow_pfn(w.mm, at(3), 0, &p), 0);
    assert_false(p.counted || p.writable);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(p.pfn)), hva_to_ptr(at(3)));
    assert_int_equal(host_follow_pfn(w.mm, at(3), 0, &q), 0);
    assert_int_equal(q.pfn.v, p.pfn.v);
    assert_int_equal(host_follow_pfn(w.mm, at(3), HOST_FAULT_WRITE, &q), -EFAULT);
    assert_int_equal(host_follow_pfn(w.mm, at(17), 0, &q), -EINVAL);
    assert_int_equal(host_follow_pfn(w.mm, at(100), 0, &q), -EFAULT);
    world_fini(&w);
}

static void bad_arguments(void **state)
{
    struct host_memory_options memory = {.bytes = 64 * MIB};
    static struct world w;
    struct host_mm *mm;
    struct host_page p;
    struct host_vma vma = vma_of(0, 16, HOST_VMA_READ);

    world_init(&w, &memory, (struct host_mm_options){0});
    assert_int_equal(host_mm_new(w.hm, &(struct host_mm_options){.levels = 3}, &mm), -EINVAL);
    vma.end.v--;
    assert_int_equal(host_mm_map(w.mm, &vma), -EINVAL);
    vma.end.v = UINT64_C(1) << 63;
    assert_int_equal(host_mm_map(w.mm, &vma), -EINVAL);
    vma = vma_of(0, 16, HOST_VMA_HUGETLB);
    assert_int_equal(host_mm_map(w.mm, &vma), -EINVAL);
    assert_int_equal(host_mm_unmap(w.mm, at(3), at(3)), -EINVAL);
    assert_int_equal(host_mm_unmap(w.mm, at(3), hva(UINT64_MAX & PAGE_MASK)), -EINVAL);
    assert_int_equal(host_mm_protect(w.mm, at(3), at(4), HOST_VMA_SHARED), -EINVAL);
    assert_int_equal(host_gup(w.mm, hva(UINT64_MAX), 0, &p), -EFAULT);
    assert_int_equal(host_gup(w.mm, hva(0), 0, &p), -EFAULT);
    assert_int_equal(host_mapping_level(w.mm, hva(UINT64_MAX)), 0);
    host_mm_free(NULL);
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

/* A scenario that needs every kind of allocation; each may fail once, nothing is lost. */
static void run_failing(struct world *w)
{
    struct host_vma vma = vma_of(0, 2048, HOST_VMA_READ | HOST_VMA_WRITE);
    struct host_vma file = vma_of(2048, 64, HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_FILE);
    struct host_vma shared =
        vma_of(2560, 1024, HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_FILE | HOST_VMA_SHARED);
    struct host_page p;

    (void)!host_mm_map(w->mm, &vma);
    (void)!host_mm_map(w->mm, &file);
    (void)!host_mm_map(w->mm, &shared);
    (void)!host_gup(w->mm, at(2600), 0, &p);
    (void)!host_gup(w->mm, at(3500), HOST_FAULT_NOTHP, &p);
    (void)!host_gup(w->mm, at(513), HOST_FAULT_WRITE, &p);
    (void)!host_gup(w->mm, at(2050), 0, &p);
    (void)!host_gup(w->mm, at(2050), HOST_FAULT_WRITE, &p);
    check_world(w);
    (void)!host_mm_split(w->mm, at(513));
    (void)!host_mm_collapse(w->mm, at(513), 100);
    (void)!host_mm_migrate(w->mm, at(2050));
    (void)!host_mm_forked(w->mm);
    (void)!host_gup(w->mm, at(514), HOST_FAULT_WRITE, &p);
    (void)!host_memory_compact(w->hm, 1);
    check_world(w);
    (void)!host_mm_unmap(w->mm, at(700), at(800));
    for (unsigned i = 0; i < 20; i++) {
        (void)!host_mm_protect(w->mm, at(20 * i), at(20 * i + 10), HOST_VMA_READ);
    }
    check_world(w);
}

static void every_allocation_may_fail(void **state)
{
    for (unsigned nth = 1;; nth++) {
        struct countdown c = {0};
        struct host_memory_options o = {.bytes = 16 * MIB, .fail_alloc = fail_nth, .opaque = &c};
        static struct world w;

        world_init(&w, &o, (struct host_mm_options){0});
        c.left = nth;
        run_failing(&w);
        world_fini(&w);
        if (!c.fired) {
            assert_true(nth > 6);
            break;
        }
    }
    for (unsigned nth = 2; nth < 5; nth++) {
        struct countdown c = {.left = nth};
        struct host_memory_options o = {.bytes = 16 * MIB, .fail_alloc = fail_nth, .opaque = &c};
        struct host_memory *hm;
        struct host_mm *mm;

        assert_int_equal(host_memory_new(&o, &hm), 0);
        if (host_mm_new(hm, &(struct host_mm_options){.zero_page = true}, &mm) == 0) {
            host_mm_free(mm);
        }
        assert_int_equal(frames_in_use(hm), 0);
        host_memory_free(hm);
    }
}

static void out_of_frames(void **state)
{
    struct host_memory_options memory = {.bytes = 16 * MIB};
    static struct world w;
    struct host_vma vma = vma_of(0, ORACLE_PAGES * 2, HOST_VMA_READ | HOST_VMA_WRITE);
    struct host_mm_stats s;
    uint64_t i = 0;

    world_init(&w, &memory, (struct host_mm_options){0});
    assert_int_equal(host_mm_map(w.mm, &vma), 0);
    while (i < ORACLE_PAGES * 2 && host_handle_mm_fault(w.mm, at(i), HOST_FAULT_WRITE) == 0) {
        i++;
    }
    assert_true(i > 3000 && i < 4096);
    assert_int_equal(host_handle_mm_fault(w.mm, at(i), 0), -ENOMEM);
    host_mm_get_stats(w.mm, &s);
    assert_true(s.thp_fallback > 0);
    assert_int_equal(host_mm_discard(w.mm, at(0), at(1024)), 0);
    assert_int_equal(host_handle_mm_fault(w.mm, at(i), 0), 0);
    world_fini(&w);
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

static uint64_t pages_in_core(void *p, uint64_t size)
{
    unsigned char *vec = malloc(size >> PAGE_SHIFT);
    uint64_t n = 0;

    assert_int_equal(mincore(p, size, vec), 0);
    for (uint64_t i = 0; i < size >> PAGE_SHIFT; i++) {
        n += vec[i] & 1;
    }
    free(vec);
    return n;
}

/* Faulting simulated pages leaves the process's real memory alone. */
static void real_pages_stay_untouched(void **state)
{
    const uint64_t size = 1024 * MIB;
    struct host_memory *hm;
    struct host_mm *mm;
    struct host_page p;
    long before = resident_kib();
    char *ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

    assert_ptr_not_equal(ram, MAP_FAILED);
    assert_int_equal(host_memory_new(NULL, &hm), 0);
    assert_int_equal(host_mm_new(hm, NULL, &mm), 0);
    for (uint64_t off = 0; off < size; off += PAGE_SIZE) {
        assert_int_equal(host_gup(mm, ptr_to_hva(ram + off), HOST_FAULT_WRITE, &p), 0);
    }
    assert_int_equal(pages_in_core(ram, size), 0);
#if !defined(__SANITIZE_THREAD__) && !STRATA_TSAN /* whose shadow counts too */
    /* Metadata may cost: 32 bytes a frame, and tables. */
    assert_true(resident_kib() - before < (long)(size / 1024 / 100));
#endif
    strcpy(host_hpa_to_ptr(hm, pfn_to_hpa(p.pfn)), "written through the frame");
    assert_string_equal(ram + size - PAGE_SIZE, "written through the frame");
    (void)before;
    host_mm_free(mm);
    host_memory_free(hm);
    munmap(ram, size);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_with_huge_pages),
        cmocka_unit_test(random_without_huge_pages),
        cmocka_unit_test(random_five_levels),
        cmocka_unit_test(zero_page),
        cmocka_unit_test(huge_mapping),
        cmocka_unit_test(policies),
        cmocka_unit_test(pfnmap),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(every_allocation_may_fail),
        cmocka_unit_test(out_of_frames),
        cmocka_unit_test(real_pages_stay_untouched),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
