/* Learning VMAs from the process itself: real mappings of every kind, both ways of asking, changes
 * that nobody announced. Includes maps.c to reach the text parser. */
#include "../../src/host/maps.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

struct world {
    struct host_memory *hm;
    struct host_mm *mm;
};

static struct world make(void)
{
    struct host_memory_options o = {.bytes = UINT64_C(256) << 20};
    struct world w;

    assert_int_equal(host_memory_new(&o, &w.hm), 0);
    assert_int_equal(host_mm_new(w.hm, NULL, &w.mm), 0);
    return w;
}

static void end(struct world w)
{
    char text[200] = "";

    if (host_mm_check(w.mm, text, sizeof(text))) {
        fail_msg("%s", text);
    }
    host_mm_free(w.mm);
    host_memory_free(w.hm);
}

static char *map(size_t size, int prot, int flags, int fd)
{
    char *p = mmap(NULL, size, prot, flags, fd, 0);

    assert_ptr_not_equal(p, MAP_FAILED);
    return p;
}

static unsigned flags_at(struct world w, const void *p)
{
    struct host_vma vma;

    assert_int_equal(host_mm_find_vma(w.mm, ptr_to_hva(p), &vma), 0);
    assert_true(vma.start.v <= (uintptr_t)p && (uintptr_t)p < vma.end.v);
    return vma.flags & ~HOST_VMA_IMPORTED;
}

static void kinds_of_mappings(void **state)
{
    struct world w = make();
    size_t size = 64 << 10;
    int memfd = memfd_create("strata-test", 0);
    char *anon = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *none = map(size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    char *shared = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    char *file, *copy;
    struct host_page p;
    struct host_vma vma;

    assert_int_equal(ftruncate(memfd, (off_t)size), 0);
    file = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
    copy = map(size, PROT_READ, MAP_PRIVATE, memfd);
    assert_int_equal(flags_at(w, anon), HOST_VMA_READ | HOST_VMA_WRITE);
    assert_int_equal(flags_at(w, none), 0);
    assert_int_equal(flags_at(w, shared) & ~(HOST_VMA_FILE | HOST_VMA_SIZED),
                     HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_SHARED);
    assert_int_equal(flags_at(w, file), HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_SHARED |
                                            HOST_VMA_FILE | HOST_VMA_SIZED);
    assert_int_equal(flags_at(w, copy), HOST_VMA_READ | HOST_VMA_FILE | HOST_VMA_SIZED);
    assert_int_equal(host_mm_find_vma(w.mm, ptr_to_hva(file + 4096), &vma), 0);
    assert_true(vma.ino != 0);
    assert_true(flags_at(w, (void *)(uintptr_t)kinds_of_mappings) & HOST_VMA_EXEC);

    assert_int_equal(host_gup(w.mm, ptr_to_hva(anon), HOST_FAULT_WRITE, &p), 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(none), 0, &p), -EFAULT);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(copy), HOST_FAULT_WRITE, &p), -EFAULT);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(copy), 0, &p), 0);
    assert_false(p.writable);
    assert_int_equal(host_gup(w.mm, hva(4096), 0, &p), -EFAULT);
    end(w);
    munmap(anon, size);
    munmap(none, size);
    munmap(shared, size);
    munmap(file, size);
    munmap(copy, size);
    close(memfd);
}

/* A page beyond the end of the process's address space, and just at it. */
static void edges(void **state)
{
    struct world w = make();
    struct host_page p;

    assert_int_equal(host_gup(w.mm, hva((UINT64_C(1) << 47) - 1), 0, &p), -EFAULT);
    assert_int_equal(host_gup(w.mm, hva(UINT64_C(1) << 47), 0, &p), -EFAULT);
    assert_int_equal(host_gup(w.mm, hva(UINT64_C(1) << 63), 0, &p), -EFAULT);
    end(w);
}

static void both_ways_agree(void **state)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    int fd = open("/proc/self/maps", O_RDONLY);
    static char lines[400][512];
    unsigned n = 0, compared = 0;

    assert_non_null(maps);
    while (n < 400 && fgets(lines[n], sizeof(lines[n]), maps)) {
        n++;
    }
    fclose(maps);
    for (unsigned i = 0; i < n; i++) {
        struct host_vma a, b, c;
        FILE *text;
        int err;

        assert_true(parse_line(lines[i], &a));
        err = query_ioctl(fd, a.start.v, &b);
        if (err == -ENOTTY) {
            print_message("no PROCMAP_QUERY here\n");
            break;
        }
        if (err == -ENOENT) {
            continue; /* the heap may have moved its end, vsyscall is not told */
        }
        text = fopen("/proc/self/maps", "r");
        assert_int_equal(query_text(text, a.start.v, &c), 0);
        fclose(text);
        assert_int_equal(b.start.v, c.start.v);
        assert_int_equal(b.end.v, c.end.v);
        assert_int_equal(b.flags, c.flags);
        assert_int_equal(b.ino, c.ino);
        assert_int_equal(b.dev, c.dev);
        assert_int_equal(b.offset, c.offset);
        compared++;
    }
    close(fd);
    print_message("compared %u of %u mappings\n", compared, n);
}

static void odd_lines(void **state)
{
    struct host_vma v;

    assert_false(parse_line("", &v));
    assert_false(parse_line("zzz", &v));
    assert_true(parse_line("7f00-8000 r--s 00001000 08:01 42 /dev/dri/card0\n", &v));
    assert_int_equal(v.flags & (HOST_VMA_PFNMAP | HOST_VMA_FILE), HOST_VMA_PFNMAP);
    assert_true(parse_line("1000-2000 rw-s 0 00:01 42 /dev/zero (deleted)\n", &v));
    assert_int_equal(v.flags & (HOST_VMA_PFNMAP | HOST_VMA_FILE), HOST_VMA_FILE);
    assert_true(parse_line("200000-400000 rw-p 0 00:0f 7 /anon_hugepage (deleted)\n", &v));
    assert_true(v.flags & HOST_VMA_HUGETLB);
    assert_int_equal(v.page_shift, 21);
    assert_true(parse_line("1000-2000 rw-p 00000000 00:00 0 \n", &v));
    assert_int_equal(v.flags & ~HOST_VMA_IMPORTED, HOST_VMA_READ | HOST_VMA_WRITE);
}

/* The process changes its mappings behind our back: a recheck finds it, and only it. */
static void recheck(void **state)
{
    struct world w = make();
    size_t size = 1 << 20;
    char *p = map(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    struct host_page page;
    hva_t from = ptr_to_hva(p), to = ptr_to_hva(p + size);

    for (size_t off = 0; off < size; off += 4096) {
        assert_int_equal(host_gup(w.mm, ptr_to_hva(p + off), HOST_FAULT_WRITE, &page), 0);
    }
    assert_int_equal(host_mm_recheck(w.mm, from, to), 0);
    assert_int_equal(munmap(p + 65536, 65536), 0);
    assert_true(host_mm_recheck(w.mm, from, to) > 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 65536), 0, &page), -EFAULT);
    assert_int_equal(host_gup_fast(w.mm, ptr_to_hva(p), HOST_FAULT_WRITE, &page), 0);
    assert_int_equal(host_gup_fast(w.mm, ptr_to_hva(p + 131072), HOST_FAULT_WRITE, &page), 0);
    assert_int_equal(host_mm_recheck(w.mm, from, to), 0);

    assert_int_equal(mprotect(p + 262144, 4096, PROT_READ), 0);
    assert_true(host_mm_recheck(w.mm, from, to) > 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 262144), HOST_FAULT_WRITE, &page), -EFAULT);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 262144), 0, &page), 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 266240), HOST_FAULT_WRITE, &page), 0);
    assert_int_equal(host_mm_recheck(w.mm, to, from), -EINVAL);
    end(w);
    munmap(p, size);
}

/* Pages past the end of a file are errors, not signals; the file may grow and shrink meanwhile. */
static void past_end_of_file(void **state)
{
    struct world w = make();
    int memfd = memfd_create("strata-test", 0);
    char *p = map(64 << 10, PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
    struct host_page page;
    struct host_mm_stats s;

    assert_int_equal(host_gup(w.mm, ptr_to_hva(p), 0, &page), -EFAULT); /* empty */
    assert_int_equal(ftruncate(memfd, 5000), 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p), HOST_FAULT_WRITE, &page), 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 4096), 0, &page),
                     0); /* its last, partial page */
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 8192), 0, &page), -EFAULT);
    assert_int_equal(ftruncate(memfd, 64 << 10), 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 8192), 0, &page), 0);
    p[8192] = 1;
    assert_int_equal(host_mm_recheck(w.mm, ptr_to_hva(p), ptr_to_hva(p + (64 << 10))), 0);
    assert_int_equal(ftruncate(memfd, 0), 0);
    assert_true(host_mm_recheck(w.mm, ptr_to_hva(p), ptr_to_hva(p + (64 << 10))) > 0);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p + 8192), 0, &page), -EFAULT);
    assert_int_equal(host_gup(w.mm, ptr_to_hva(p), 0, &page), -EFAULT);
    host_mm_get_stats(w.mm, &s);
    assert_int_equal(s.past_end, 4);
    end(w);
    munmap(p, 64 << 10);
    close(memfd);
}

static void show(void **state)
{
    struct world w = make();
    char *p = map(4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1), *text = NULL;
    size_t size;
    FILE *out = open_memstream(&text, &size);
    struct host_page page;

    assert_int_equal(host_gup(w.mm, ptr_to_hva(p), 0, &page), 0);
    host_mm_show(w.mm, out);
    fclose(out);
    assert_non_null(strstr(text, " r--p anon"));
    assert_non_null(strstr(text, "\nfaults 1\n"));
    assert_non_null(strstr(text, "zone dma32: managed"));
    free(text);
    munmap(p, 4096);
    end(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_of_mappings),
        cmocka_unit_test(edges),
        cmocka_unit_test(both_ways_agree),
        cmocka_unit_test(odd_lines),
        cmocka_unit_test(recheck),
        cmocka_unit_test(past_end_of_file),
        cmocka_unit_test(show),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
