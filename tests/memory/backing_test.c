/* Backings that a machine may lack: huge pages of hugetlbfs, NUMA nodes. What cannot be had here is
 * skipped by name. U54, U60. */
#include "memory/help.h"

#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#define HUGE_PAGE  (UINT64_C(2) << 20)
#define HUGE_COUNT "/proc/sys/vm/nr_hugepages"
#define HUGE_FREE  "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"

static long read_number(const char *path)
{
    FILE *f = fopen(path, "r");
    long n = -1;

    if (f) {
        if (fscanf(f, "%ld", &n) != 1) {
            n = -1;
        }
        fclose(f);
    }
    return n;
}

static bool write_number(const char *path, long n)
{
    FILE *f = fopen(path, "w");
    bool ok = f && fprintf(f, "%ld", n) > 0;

    return f && fclose(f) == 0 && ok;
}

/* Have `want` huge pages free, reserving some if we may. *before: to be put back, -1: leave it. */
static bool huge_pages_free(long want, long *before)
{
    *before = -1;
    if (read_number(HUGE_FREE) >= want) {
        return true;
    }
    *before = read_number(HUGE_COUNT);
    if (*before < 0 || !write_number(HUGE_COUNT, *before + want)) {
        *before = -1;
        return false;
    }
    return read_number(HUGE_FREE) >= want;
}

static void huge_pages_done(long before)
{
    if (before >= 0) {
        write_number(HUGE_COUNT, before);
    }
}

static struct strata_ram *huge_block(struct board *b, const struct strata_ram_desc *d, int want)
{
    struct strata_ram *ram = NULL;

    assert_int_equal(strata_ram_new(b->mem, d, &ram), want);
    return ram;
}

/* Sizes round up to huge pages, smaller parts cannot be discarded, a lack of pages is an error. */
static void use_huge_pages(struct board *b, struct strata_ram_desc d)
{
    struct strata_ram *ram;

    d.size = HUGE_PAGE + 4096;
    d.flags |= STRATA_RAM_PREALLOC;
    ram = huge_block(b, &d, 0);
    assert_true(strata_ram_page_size(ram) == HUGE_PAGE && strata_ram_size(ram) == 2 * HUGE_PAGE);
    assert_true((uintptr_t)strata_ram_host(ram) % HUGE_PAGE == 0);
    ((uint8_t *)strata_ram_host(ram))[HUGE_PAGE + 5] = 9;
    assert_int_equal(strata_ram_discard(ram, 4096, 4096), -EINVAL);
    assert_int_equal(strata_ram_discard(ram, HUGE_PAGE, HUGE_PAGE), 0);
    assert_int_equal(((uint8_t *)strata_ram_host(ram))[HUGE_PAGE + 5], 0);
    strata_ram_unref(ram);
    assert_int_equal(strata_memory_drain(b->mem), 0);
    d.size = HUGE_PAGE;
    d.align = 4096;
    huge_block(b, &d, -EINVAL);
    d.align = 0;
    d.fd_offset = 4096;
    huge_block(b, &d, -EINVAL);
    d.fd_offset = 0;
    d.size = UINT64_C(1) << 40; /* more than any machine of ours has set aside */
    d.flags &= ~(unsigned)STRATA_RAM_PREALLOC;
    huge_block(b, &d, -ENOMEM);
    assert_true(strata_memory_error(b->mem)[0] != '\0');
}

static void hugetlb_memfd(void **state)
{
    struct board b;
    long before;

    if (!huge_pages_free(2, &before)) {
        huge_pages_done(before);
        print_message("# hugetlb_memfd: no huge pages can be reserved here\n");
        skip();
    }
    b = help_board(NULL);
    use_huge_pages(&b, (struct strata_ram_desc){
        .name = "huge", .backing = STRATA_MEMFD, .flags = STRATA_RAM_HUGETLB});
    help_done(&b);
    huge_pages_done(before);
}

static void hugetlb_directory(void **state)
{
    char dir[] = "/tmp/strata-huge-XXXXXX";
    struct board b;
    long before;

    assert_non_null(mkdtemp(dir));
    if (!huge_pages_free(2, &before) || mount("none", dir, "hugetlbfs", 0, "pagesize=2M") != 0) {
        huge_pages_done(before);
        rmdir(dir);
        print_message("# hugetlb_directory: hugetlbfs cannot be used here\n");
        skip();
    }
    b = help_board(NULL);
    use_huge_pages(&b, (struct strata_ram_desc){
        .name = "huge", .backing = STRATA_FILE, .path = dir, .flags = STRATA_RAM_SHARED});
    help_done(&b);
    umount(dir);
    rmdir(dir);
    huge_pages_done(before);
}

static int policy_at(void *p)
{
    int mode = -1;

    return syscall(SYS_get_mempolicy, &mode, NULL, 0, p, MPOL_F_ADDR) == 0 ? mode : -1;
}

static void numa_nodes(void **state)
{
    struct board b = help_board(NULL);
    struct strata_ram_desc d = {.name = "numa", .size = 0x4000, .numa_policy = MPOL_BIND,
                                .numa_nodes = 1, .flags = STRATA_RAM_PREALLOC};
    struct strata_ram *ram = NULL;
    int err = strata_ram_new(b.mem, &d, &ram), node = -1;

    if (err == -ENOSYS || err == -EPERM) {
        help_done(&b);
        print_message("# numa_nodes: this kernel binds no memory\n");
        skip();
    }
    assert_int_equal(err, 0);
    assert_int_equal(policy_at(strata_ram_host(ram)), MPOL_BIND);
    assert_int_equal(syscall(SYS_get_mempolicy, &node, NULL, 0, strata_ram_host(ram),
                             MPOL_F_NODE | MPOL_F_ADDR), 0);
    assert_int_equal(node, 0);
    d.name = "interleaved";
    d.numa_policy = MPOL_INTERLEAVE;
    assert_int_equal(strata_ram_new(b.mem, &d, &ram), 0);
    assert_int_equal(policy_at(strata_ram_host(ram)), MPOL_INTERLEAVE);
    d.name = "nowhere";
    d.numa_policy = MPOL_BIND;
    d.numa_nodes = UINT64_C(1) << 63; /* a node that is not there */
    assert_int_equal(strata_ram_new(b.mem, &d, &ram), -EINVAL);
    assert_non_null(strstr(strata_memory_error(b.mem), "mbind"));
    d.numa_nodes = 0; /* binding to no node */
    assert_int_equal(strata_ram_new(b.mem, &d, &ram), -EINVAL);
    d.numa_policy = 77;
    d.numa_nodes = 1;
    assert_int_equal(strata_ram_new(b.mem, &d, &ram), -EINVAL);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hugetlb_memfd),
        cmocka_unit_test(hugetlb_directory),
        cmocka_unit_test(numa_nodes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
