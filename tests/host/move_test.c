/* Pages that change frames, and frames that have several pages: compaction, migration, collapse,
 * fork, shared files, hugetlb, userfault. */
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "host/buddy.h"
#include "host/mm.h"
#include "oracle/host_frames.h"

#define MIB  (UINT64_C(1) << 20)
#define BASE UINT64_C(0x7d0000000000)
#define RW   (HOST_VMA_READ | HOST_VMA_WRITE)

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
    struct host_notifier notifier;
    unsigned events[HOST_MMU_COLLAPSE + 1];
};

static void on_start(struct host_notifier *n, const struct host_mmu_range *r)
{
    struct world *w = container_of(n, struct world, notifier);

    __atomic_fetch_add(&w->events[r->event], 1, __ATOMIC_RELAXED);
}

static void on_end(struct host_notifier *n, const struct host_mmu_range *r)
{
}

static const struct host_notifier_ops ops = {.invalidate_start = on_start,
                                             .invalidate_end = on_end};

static hva_t at(uint64_t page)
{
    return hva(BASE + (page << PAGE_SHIFT));
}

static void map(struct world *w, uint64_t first, uint64_t n, struct host_vma like)
{
    like.start = at(first);
    like.end = at(first + n);
    assert_int_equal(host_mm_map(w->mm, &like), 0);
}

static void world_init(struct world *w, uint64_t bytes, enum host_thp_policy thp)
{
    struct host_memory_options o = {.bytes = bytes, .nr_cpus = 2};
    struct host_mm_options mo = {.source = &host_map_source_none, .thp = thp};

    memset(w, 0, sizeof(*w));
    assert_int_equal(host_memory_new(&o, &w->hm), 0);
    assert_int_equal(host_mm_new(w->hm, &mo, &w->mm), 0);
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

static void world_fini(struct world *w)
{
    struct host_memory_stats s;

    check_world(w);
    host_notifier_unregister(w->mm, &w->notifier);
    host_mm_free(w->mm);
    host_memory_get_stats(w->hm, &s);
    for (unsigned t = 0; t < HOST_FRAME_NR_TYPES; t++) {
        assert_int_equal(s.in_use[t], 0);
    }
    host_memory_free(w->hm);
}

static void touch(struct world *w, uint64_t first, uint64_t n)
{
    for (uint64_t i = first; i < first + n; i++) {
        assert_int_equal(host_handle_mm_fault(w->mm, at(i), HOST_FAULT_WRITE), 0);
    }
}

static struct host_page page_at(struct world *w, uint64_t i)
{
    struct host_page p;

    assert_int_equal(host_gup(w->mm, at(i), 0, &p), 0);
    return p;
}

/* Fill memory, free every other page: no huge frame anywhere until memory is compacted. */
static void fragment(struct world *w, uint64_t pages)
{
    map(w, 0, pages, (struct host_vma){.flags = RW | HOST_VMA_NOHUGEPAGE});
    touch(w, 0, pages);
    for (uint64_t i = 0; i < pages; i += 2) {
        assert_int_equal(host_mm_discard(w->mm, at(i), at(i + 1)), 0);
    }
    host_memory_trim(w->hm);
}

static bool huge_frame_free(struct world *w)
{
    struct host_memory_stats s;
    uint64_t n = 0;

    host_memory_get_stats(w->hm, &s);
    for (unsigned z = 0; z < HOST_NR_ZONES; z++) {
        n += s.zone[z].blocks[9] + s.zone[z].blocks[10];
    }
    return n > 0;
}

static void compaction(void **state)
{
    static struct world w;
    struct host_memory_stats s;
    uint64_t pages = 7400;
    struct host_page p;

    world_init(&w, 32 * MIB, HOST_THP_ALWAYS);
    fragment(&w, pages);
    assert_false(huge_frame_free(&w));
    assert_true(host_zone_fragmentation(w.hm, HOST_ZONE_DMA32, 9) > 800);
    assert_true(host_memory_compact(w.hm, 3) == 3);
    assert_true(huge_frame_free(&w));
    check_world(&w);
    host_memory_get_stats(w.hm, &s);
    assert_int_equal(s.compact_blocks, 3);
    assert_true(s.compact_moved >= 3 * 200);
    assert_int_equal(w.events[HOST_MMU_CLEAR], s.compact_moved);
    for (uint64_t i = 1; i < pages; i += 2) {
        struct host_page q = page_at(&w, i);

        assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(q.pfn)), hva_to_ptr(at(i)));
    }
    map(&w, 16384, 512, (struct host_vma){.flags = RW});
    p = page_at(&w, 16384);
    assert_int_equal(p.level, 2);
    world_fini(&w);
}

/* Who asks for huge pages by madvise gets memory compacted; others do without for a while. */
static void huge_pages_on_demand(void **state)
{
    static struct world w;
    struct host_memory_stats m;
    struct host_mm_stats s;

    world_init(&w, 32 * MIB, HOST_THP_ALWAYS);
    fragment(&w, 7400);
    map(&w, 16384, 1024, (struct host_vma){.flags = RW});
    for (unsigned i = 0; i < 10; i++) {
        assert_int_equal(page_at(&w, 16384 + 100 * i).level, 1);
    }
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.thp_fallback, 1);
    assert_true(s.thp_deferred >= 9);
    host_memory_get_stats(w.hm, &m);
    assert_int_equal(m.compact_runs, 0);
    map(&w, 32768, 2048, (struct host_vma){.flags = RW | HOST_VMA_HUGEPAGE});
    for (unsigned i = 0; i < 200; i++) {
        (void)page_at(&w, 32768 + i);
    }
    assert_int_equal(page_at(&w, 32768 + 512).level, 1); /* tried again: memory is compacted next */
    assert_int_equal(page_at(&w, 32768 + 1024).level, 2);
    host_memory_get_stats(w.hm, &m);
    assert_true(m.compact_runs >= 1 && m.compact_blocks >= 1);
    world_fini(&w);
}

static void pinned_pages_stay(void **state)
{
    static struct world w;
    static struct host_page pins[4096];
    uint64_t pages = 7400, n = 0;
    struct host_memory_stats s;

    world_init(&w, 32 * MIB, HOST_THP_ALWAYS);
    fragment(&w, pages);
    for (uint64_t i = 1; i < pages; i += 64) {
        assert_int_equal(host_gup(w.mm, at(i), HOST_FAULT_PIN, &pins[n++]), 0);
        assert_int_equal(host_mm_migrate(w.mm, at(i)), -EBUSY);
    }
    (void)host_memory_compact(w.hm, 100);
    for (uint64_t i = 1, k = 0; i < pages; i += 64, k++) {
        assert_int_equal(page_at(&w, i).pfn.v, pins[k].pfn.v);
        host_page_put(w.mm, &pins[k]);
    }
    host_memory_get_stats(w.hm, &s);
    check_world(&w);
    assert_true(host_memory_compact(w.hm, 5) == 5);
    world_fini(&w);
}

static void migration(void **state)
{
    static struct world w;
    struct host_page p, q;

    world_init(&w, 32 * MIB, HOST_THP_ALWAYS);
    map(&w, 0, 1024, (struct host_vma){.flags = RW});
    assert_int_equal(host_gup(w.mm, at(3), HOST_FAULT_NOTHP | HOST_FAULT_WRITE, &p), 0);
    assert_int_equal(p.level, 1);
    assert_int_equal(host_mm_migrate(w.mm, at(3)), 0);
    q = page_at(&w, 3);
    assert_int_not_equal(p.pfn.v, q.pfn.v);
    assert_true(q.writable);
    assert_int_equal(w.events[HOST_MMU_CLEAR], 1);
    assert_int_equal(host_mm_migrate(w.mm, at(4)), -EFAULT);
    assert_int_equal(page_at(&w, 512).level, 2);
    assert_int_equal(host_mm_migrate(w.mm, at(512)), -EBUSY);
    assert_int_equal(host_mm_migrate(w.mm, hva(UINT64_MAX)), -EFAULT);
    world_fini(&w);
}

static void collapse_and_split(void **state)
{
    static struct world w;
    struct host_page p;
    struct host_mm_stats s;

    world_init(&w, 64 * MIB, HOST_THP_ALWAYS);
    map(&w, 0, 4096, (struct host_vma){.flags = RW});
    for (uint64_t i = 0; i < 512; i++) {
        assert_int_equal(host_gup(w.mm, at(i), HOST_FAULT_NOTHP | HOST_FAULT_WRITE, &p), 0);
    }
    for (uint64_t i = 512; i < 1000; i++) {
        assert_int_equal(host_gup(w.mm, at(i), HOST_FAULT_NOTHP, &p), 0);
    }
    assert_int_equal(host_mm_collapse(w.mm, at(600), 23), -EBUSY);
    assert_int_equal(host_mm_collapse(w.mm, at(2048), 512), -EBUSY); /* nothing there */
    assert_int_equal(host_mm_collapse_scan(w.mm, at(0), at(4096), 24), 2);
    assert_int_equal(w.events[HOST_MMU_COLLAPSE], 2);
    assert_int_equal(host_mapping_level(w.mm, at(1023)), 2);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.rss_anon, 1024);
    check_world(&w);
    assert_int_equal(host_mm_split(w.mm, at(700)), 0);
    assert_int_equal(w.events[HOST_MMU_SPLIT], 1);
    assert_int_equal(host_mapping_level(w.mm, at(1023)), 1);
    assert_int_equal(host_gup(w.mm, at(700), HOST_FAULT_PIN, &p), 0);
    assert_int_equal(host_mm_collapse(w.mm, at(700), 0), -EBUSY);
    host_page_put(w.mm, &p);
    assert_int_equal(host_mm_collapse(w.mm, at(700), 0), 0);
    map(&w, 4096, 512, (struct host_vma){.flags = RW | HOST_VMA_SHARED | HOST_VMA_FILE, .ino = 5});
    assert_int_equal(host_gup(w.mm, at(4096), HOST_FAULT_NOTHP, &p), 0);
    assert_int_equal(host_mm_collapse(w.mm, at(4096), 511), -EINVAL);
    world_fini(&w);
}

static void fork_protects(void **state)
{
    static struct world w;
    struct host_page before[4], p;

    world_init(&w, 64 * MIB, HOST_THP_ALWAYS);
    map(&w, 0, 1024, (struct host_vma){.flags = RW});
    map(&w, 1024, 16, (struct host_vma){.flags = RW | HOST_VMA_SHARED | HOST_VMA_FILE, .ino = 9});
    touch(&w, 0, 1040);
    for (unsigned i = 0; i < 4; i++) {
        before[i] = page_at(&w, i * 346); /* 0, 346, 692 private, 1038 shared */
        assert_true(before[i].writable);
    }
    assert_int_equal(host_mm_forked(w.mm), 0);
    assert_int_equal(w.events[HOST_MMU_PROTECT], 1);
    for (unsigned i = 0; i < 4; i++) {
        p = page_at(&w, i * 346);
        assert_int_equal(p.pfn.v, before[i].pfn.v);
        assert_int_equal(p.writable, i == 3);
    }
    assert_int_equal(host_gup(w.mm, at(346), HOST_FAULT_WRITE, &p), 0);
    assert_int_not_equal(p.pfn.v, before[1].pfn.v);
    assert_int_equal(w.events[HOST_MMU_CLEAR], 1);
    assert_true(p.writable);
    world_fini(&w);
}

/* Two mappings of one file: one frame a page; contents follow the mapping that stays. */
static void shared_files(void **state)
{
    static struct world w;
    struct host_vma file = {.flags = RW | HOST_VMA_SHARED | HOST_VMA_FILE, .dev = 1, .ino = 77};
    struct host_page a, b, pin;

    world_init(&w, 64 * MIB, HOST_THP_NEVER);
    map(&w, 0, 64, file);
    file.offset = 16 << PAGE_SHIFT;
    map(&w, 1000, 64, file); /* page 16 of the file at 1000 */
    a = page_at(&w, 20);
    b = page_at(&w, 1004);
    assert_int_equal(a.pfn.v, b.pfn.v);
    assert_int_not_equal(page_at(&w, 1005).pfn.v, a.pfn.v);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(a.pfn)), hva_to_ptr(at(20)));
    check_world(&w);
    assert_int_equal(host_mm_unmap(w.mm, at(0), at(64)), 0);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(a.pfn)), hva_to_ptr(at(1004)));
    check_world(&w);
    /* A pin outlives all mappings; the page mapped anew is the same frame, at its new place. */
    assert_int_equal(host_gup(w.mm, at(1004), HOST_FAULT_PIN, &pin), 0);
    assert_int_equal(host_mm_unmap(w.mm, at(1000), at(1064)), 0);
    file.offset = 0;
    map(&w, 2000, 64, file);
    assert_int_equal(page_at(&w, 2020).pfn.v, pin.pfn.v);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(pin.pfn)), hva_to_ptr(at(2020)));
    host_page_put(w.mm, &pin);
    /* Another file, or a private mapping, is something else. */
    file.ino = 78;
    map(&w, 3000, 64, file);
    assert_int_not_equal(page_at(&w, 3020).pfn.v, page_at(&w, 2020).pfn.v);
    file.ino = 77;
    file.flags &= ~HOST_VMA_SHARED;
    map(&w, 4000, 64, file);
    assert_int_not_equal(page_at(&w, 4020).pfn.v, page_at(&w, 2020).pfn.v);
    world_fini(&w);
}

static void shared_huge_files(void **state)
{
    static struct world w;
    struct host_vma file = {.flags = RW | HOST_VMA_SHARED | HOST_VMA_FILE, .dev = 1, .ino = 77};
    struct host_page a;

    world_init(&w, 64 * MIB, HOST_THP_ALWAYS);
    map(&w, 512, 1024, file);
    a = page_at(&w, 512 + 5);
    assert_int_equal(a.level, 2);
    map(&w, 10000, 1024,
        file); /* not aligned to the file's huge pages: small entries, same frames */
    assert_int_equal(page_at(&w, 10005).pfn.v, a.pfn.v);
    assert_int_equal(page_at(&w, 10005).level, 1);
    assert_int_equal(page_at(&w, 10000 + 600).level, 1);
    assert_int_equal(page_at(&w, 512 + 601).level, 1); /* small ones came first there */
    assert_int_equal(page_at(&w, 512 + 600).pfn.v, page_at(&w, 10600).pfn.v);
    check_world(&w);
    assert_int_equal(host_mm_unmap(w.mm, at(512), at(600)), 0);
    assert_int_equal(page_at(&w, 10005).pfn.v, a.pfn.v);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(a.pfn)), hva_to_ptr(at(10005)));
    assert_int_equal(page_at(&w, 605).pfn.v, a.pfn.v + 88);
    world_fini(&w);
}

static void hugetlb(void **state)
{
    static struct world w;
    struct host_vma vma = {.flags = RW | HOST_VMA_HUGETLB, .page_shift = 21};
    struct host_page p;

    world_init(&w, UINT64_C(8) << 30, HOST_THP_NEVER);
    map(&w, 512, 1024, vma);
    p = page_at(&w, 700);
    assert_int_equal(p.level, 2);
    assert_int_equal(host_frame_at(w.hm, p.pfn)->type, HOST_FRAME_HUGETLB);
    assert_int_equal(host_mm_unmap(w.mm, at(600), at(700)), -EINVAL);
    assert_int_equal(host_mm_discard(w.mm, at(512), at(700)), -EINVAL);
    assert_int_equal(host_mm_unmap(w.mm, at(512), at(1024)), 0);
    vma.page_shift = 30;
    map(&w, 1 << 18, 2 << 18, vma);
    p = page_at(&w, (1 << 18) + 12345);
    assert_int_equal(p.level, 3);
    assert_int_equal(p.pfn.v % (1 << 18), 12345);
    assert_int_equal(host_mapping_level(w.mm, at((2 << 18) - 1)), 3);
    assert_ptr_equal(host_hpa_to_ptr(w.hm, pfn_to_hpa(p.pfn)), hva_to_ptr(at((1 << 18) + 12345)));
    check_world(&w);
    assert_int_equal(host_mm_unmap(w.mm, at(1 << 18), at(2 << 18)), 0);
    assert_int_equal(host_mapping_level(w.mm, at((2 << 18) - 1)), 0);
    world_fini(&w);
}

static void userfault(void **state)
{
    static struct world w;
    struct host_page p;
    struct host_mm_stats s;

    world_init(&w, 64 * MIB, HOST_THP_ALWAYS);
    map(&w, 0, 1024, (struct host_vma){.flags = RW | HOST_VMA_UFFD_MISSING});
    assert_int_equal(host_gup(w.mm, at(7), 0, &p), -EBUSY);
    assert_int_equal(host_handle_mm_fault(w.mm, at(7), HOST_FAULT_RESOLVE), 0);
    assert_int_equal(host_gup(w.mm, at(7), HOST_FAULT_WRITE, &p), 0);
    assert_int_equal(p.level, 1);
    assert_int_equal(host_gup(w.mm, at(8), 0, &p), -EBUSY);
    assert_int_equal(host_mm_advise(w.mm, at(0), at(1024), HOST_VMA_UFFD_WP, HOST_VMA_UFFD_MISSING),
                     0);
    assert_int_equal(host_gup(w.mm, at(8), 0, &p), 0);
    assert_false(p.writable);
    assert_int_equal(host_gup(w.mm, at(8), HOST_FAULT_WRITE, &p), -EBUSY);
    assert_int_equal(host_handle_mm_fault(w.mm, at(8), HOST_FAULT_WRITE | HOST_FAULT_RESOLVE), 0);
    assert_int_equal(host_gup(w.mm, at(8), HOST_FAULT_WRITE, &p), 0);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.userfaults, 3);
    world_fini(&w);
}

static void poison(void **state)
{
    static struct world w;
    struct host_page p, q;
    struct host_memory_stats s;

    world_init(&w, 64 * MIB, HOST_THP_ALWAYS);
    map(&w, 0, 1024, (struct host_vma){.flags = RW});
    p = page_at(&w, 515);
    assert_int_equal(p.level, 2);
    assert_int_equal(host_mm_poison(w.mm, at(3)), -EFAULT);
    assert_int_equal(host_mm_poison(w.mm, at(515)), 0);
    assert_int_equal(w.events[HOST_MMU_UNMAP], 2); /* the map was the first */
    assert_int_equal(host_gup(w.mm, at(515), 0, &q), -EHWPOISON);
    assert_int_equal(host_gup_fast(w.mm, at(515), 0, &q), -EAGAIN);
    assert_int_equal(page_at(&w, 516).pfn.v, p.pfn.v + 1);
    assert_int_equal(host_mm_collapse(w.mm, at(515), 10), -EBUSY);
    check_world(&w);
    /* Unmapped and mapped again, the address is good, and the frame never comes back. */
    assert_int_equal(host_mm_discard(w.mm, at(512), at(1024)), 0);
    assert_int_equal(host_gup(w.mm, at(515), 0, &q), 0);
    assert_true(host_frame_test(host_frame_at(w.hm, p.pfn), HOST_FRAME_POISONED));
    assert_int_not_equal(q.pfn.v, p.pfn.v);
    host_memory_get_stats(w.hm, &s);
    assert_int_equal(s.in_use[HOST_FRAME_RESERVED], 1);
    host_notifier_unregister(w.mm, &w.notifier);
    host_mm_free(w.mm);
    host_memory_free(w.hm);
}

/* Pages move under threads that pin them. */
static void *pin_all(void *arg)
{
    struct world *w = arg;
    uint64_t rng = (uintptr_t)&rng;

    for (unsigned n = 0; n < 60000; n++) {
        uint64_t i = oracle_random(&rng) % 3700 * 2 + 1;
        struct host_page p;

        if (host_gup(w->mm, at(i), HOST_FAULT_PIN, &p) != 0 ||
            host_hpa_to_ptr(w->hm, pfn_to_hpa(p.pfn)) != hva_to_ptr(at(i))) {
            return "a pinned page lost its frame";
        }
        host_page_put(w->mm, &p);
    }
    return NULL;
}

static void compaction_under_pins(void **state)
{
    static struct world w;
    pthread_t t[2];
    void *failed;

    world_init(&w, 32 * MIB, HOST_THP_ALWAYS);
    fragment(&w, 7402);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&t[i], NULL, pin_all, &w), 0);
    }
    for (unsigned n = 0; n < 40; n++) {
        (void)host_memory_compact(w.hm, 2);
        (void)!host_mm_migrate(w.mm, at(n * 2 + 1));
    }
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(t[i], &failed);
        assert_null(failed);
    }
    world_fini(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compaction),
        cmocka_unit_test(huge_pages_on_demand),
        cmocka_unit_test(pinned_pages_stay),
        cmocka_unit_test(migration),
        cmocka_unit_test(collapse_and_split),
        cmocka_unit_test(fork_protects),
        cmocka_unit_test(shared_files),
        cmocka_unit_test(shared_huge_files),
        cmocka_unit_test(hugetlb),
        cmocka_unit_test(userfault),
        cmocka_unit_test(poison),
        cmocka_unit_test(compaction_under_pins),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
