/*
 * Host memory of a RAM block: anonymous, memory file, file, descriptor, or the caller's.
 *
 * A block is one mapping of its largest size; a resizeable block has its unused tail mapped, too, so
 * that growing never moves it. Errors are the system calls' own, with words in the handle.
 * Source: QEMU qemu_ram_alloc_from_file(), qemu_ram_mmap(), file_ram_open(), by rule.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "memory/prealloc.h"
#include "memory/ram.h"

#define HUGETLBFS_MAGIC_NUMBER 0x958458f6
#define PAGE_SIZE_HOST UINT64_C(4096)
#define THP_SIZE (UINT64_C(2) << 20)

static uint64_t round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

static int fail_errno(struct strata_ram *ram, const char *what)
{
    int code = errno;

    return memory_fail(ram->mem, code, "RAM '%s': %s: %s", ram->name, what, strerror(code));
}

/* The page size of what a descriptor maps. */
static uint64_t fd_page_size(int fd)
{
    struct statfs fs;

    if (fd >= 0 && fstatfs(fd, &fs) == 0 && (unsigned long)fs.f_type == HUGETLBFS_MAGIC_NUMBER) {
        return (uint64_t)fs.f_bsize;
    }
    return (uint64_t)sysconf(_SC_PAGESIZE);
}

/* A nameless file in a directory. */
static int open_in_directory(struct strata_ram *ram, const char *dir)
{
    char *path = NULL;
    int fd = open(dir, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);

    if (fd >= 0 || (errno != EOPNOTSUPP && errno != EISDIR && errno != EINVAL)) {
        return fd; /* hugetlbfs of older kernels has no O_TMPFILE */
    }
    if (asprintf(&path, "%s/strata-ram-XXXXXX", dir) < 0) {
        errno = ENOMEM;
        return -1;
    }
    fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0) {
        unlink(path);
    }
    free(path);
    return fd;
}

/* Open the file, or make it; *made says which. */
static int open_path(struct strata_ram *ram, const struct strata_ram_desc *d, bool *made)
{
    bool readonly = (d->flags & STRATA_RAM_READONLY_FD) != 0;
    struct stat st;

    *made = false;
    if (stat(d->path, &st) == 0 && S_ISDIR(st.st_mode)) {
        return open_in_directory(ram, d->path);
    }
    for (int tries = 0; tries < 100; tries++) { /* somebody else may make or remove it meanwhile */
        int fd = open(d->path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);

        if (fd >= 0 || errno != ENOENT || readonly) {
            return fd;
        }
        fd = open(d->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
        if (fd >= 0) {
            *made = true;
            return fd;
        }
        if (errno != EEXIST) {
            return -1;
        }
    }
    return -1;
}

static int open_memfd(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    unsigned flags = MFD_CLOEXEC;

    if (d->flags & STRATA_RAM_HUGETLB) {
        flags |= MFD_HUGETLB;
    }
    return memfd_create(ram->name, flags);
}

/* Let a file reach to the block's end. Devices and files of others that are long enough are left. */
static int file_grow(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    uint64_t need = ram->fd_offset + ram->max_size;
    struct stat st;

    if (fstat(ram->fd, &st) != 0) {
        return fail_errno(ram, "fstat");
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size >= need) {
        return 0;
    }
    if (st.st_size > 0 && d->backing != STRATA_MEMFD && !(d->flags & STRATA_RAM_RESIZEABLE)) {
        return memory_fail(ram->mem, EINVAL, "RAM '%s': the file has %llu of %llu bytes", ram->name,
                           (unsigned long long)st.st_size, (unsigned long long)need);
    }
    if (d->flags & STRATA_RAM_READONLY_FD) {
        return memory_fail(ram->mem, EINVAL, "RAM '%s': the file is too short", ram->name);
    }
    return ftruncate(ram->fd, (off_t)need) == 0 ? 0 : fail_errno(ram, "ftruncate");
}

static int check_alignment(struct strata_ram *ram, uint64_t align)
{
    if (align & (align - 1) || align % ram->page_size) {
        return memory_fail(ram->mem, EINVAL, "RAM '%s': alignment %llu is not a power of two and a "
                           "multiple of the page size", ram->name, (unsigned long long)align);
    }
    if (ram->fd_offset % ram->page_size) {
        return memory_fail(ram->mem, EINVAL, "RAM '%s': file offset is not at a page", ram->name);
    }
    if (ram->fd >= 0 && ram->page_size > PAGE_SIZE_HOST && ram->size < ram->page_size) {
        return memory_fail(ram->mem, EINVAL, "RAM '%s' is smaller than a page of its file",
                           ram->name);
    }
    return 0;
}

/* Map `size` bytes at an aligned address: reserve more, place the mapping, cut the rest off. */
static void *map_aligned(struct strata_ram *ram, int prot, int flags, uint64_t align)
{
    uint64_t total = ram->max_size + align - ram->page_size;
    uint8_t *area, *at;

    area = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        return MAP_FAILED;
    }
    at = (uint8_t *)round_up((uintptr_t)area, align);
    if (mmap(at, ram->max_size, prot, flags | MAP_FIXED, ram->fd, (off_t)ram->fd_offset) ==
        MAP_FAILED) {
        int code = errno;

        munmap(area, total);
        errno = code;
        return MAP_FAILED;
    }
    if (at > area) {
        munmap(area, (size_t)(at - area));
    }
    if (at + ram->max_size < area + total) {
        munmap(at + ram->max_size, (size_t)(area + total - at - ram->max_size));
    }
    return at;
}

static int map_memory(struct strata_ram *ram, const struct strata_ram_desc *d, uint64_t align)
{
    int prot = PROT_READ | (d->flags & STRATA_RAM_READONLY ? 0 : PROT_WRITE);
    bool shared = d->flags & STRATA_RAM_SHARED ||
                  (d->backing == STRATA_MEMFD && !(d->flags & STRATA_RAM_PRIVATE));
    int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (ram->fd < 0 ? MAP_ANONYMOUS : 0) |
                (d->flags & STRATA_RAM_NORESERVE ? MAP_NORESERVE : 0);
    void *p = map_aligned(ram, prot, flags, align);

    if (p == MAP_FAILED) {
        return fail_errno(ram, "mmap");
    }
    ram->host = p;
    ram->map_size = ram->max_size;
    return 0;
}

/* Advice is best effort: a kernel without the feature serves as well. */
static void advise(const struct strata_ram *ram, unsigned flags)
{
    if (flags & STRATA_RAM_HUGEPAGE) {
        madvise(ram->host, ram->max_size, MADV_HUGEPAGE);
    }
    if (flags & STRATA_RAM_NO_HUGEPAGE) {
        madvise(ram->host, ram->max_size, MADV_NOHUGEPAGE);
    }
    if (flags & STRATA_RAM_MERGEABLE) {
        madvise(ram->host, ram->max_size, MADV_MERGEABLE);
    }
    if (flags & (STRATA_RAM_NO_DUMP | STRATA_RAM_PROTECTED)) {
        madvise(ram->host, ram->max_size, MADV_DONTDUMP);
    }
    if (flags & STRATA_RAM_PROTECTED) {
        madvise(ram->host, ram->max_size, MADV_DONTFORK);
    }
}

static int bind_nodes(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    unsigned long nodes = (unsigned long)d->numa_nodes;

    if (!d->numa_policy && !d->numa_nodes) {
        return 0;
    }
    if (syscall(SYS_mbind, ram->host, ram->max_size, d->numa_policy, nodes ? &nodes : NULL,
                nodes ? 8 * sizeof(nodes) + 1 : 0, MPOL_MF_STRICT | MPOL_MF_MOVE) != 0) {
        return fail_errno(ram, "mbind");
    }
    return 0;
}

static int open_backing(struct strata_ram *ram, const struct strata_ram_desc *d, bool *made)
{
    *made = false;
    switch (d->backing) {
    case STRATA_MEMFD:
        ram->fd = open_memfd(ram, d);
        break;
    case STRATA_FILE:
        if (!d->path) {
            return memory_fail(ram->mem, EINVAL, "RAM '%s' needs a path", ram->name);
        }
        ram->fd = open_path(ram, d, made);
        break;
    case STRATA_FD:
        ram->fd = fcntl(d->fd, F_DUPFD_CLOEXEC, 0);
        break;
    default:
        return 0;
    }
    if (ram->fd < 0) {
        return fail_errno(ram, d->path ? d->path : "opening its memory");
    }
    ram->own_fd = true;
    return 0;
}

static void size_block(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    uint64_t max = d->max_size ? d->max_size : d->size;

    ram->page_size = d->backing == STRATA_HOST ? PAGE_SIZE_HOST : fd_page_size(ram->fd);
    ram->fd_offset = d->fd_offset;
    ram->size = d->backing == STRATA_HOST ? d->size : round_up(d->size, ram->page_size);
    ram->max_size = d->backing == STRATA_HOST ? max : round_up(max, ram->page_size);
}

static int map_new(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    uint64_t align = d->align;
    int err;

    if (!align) {
        align = ram->fd < 0 && ram->max_size >= THP_SIZE ? THP_SIZE : ram->page_size;
    }
    err = check_alignment(ram, align);
    if (!err && ram->fd >= 0) {
        err = file_grow(ram, d);
    }
    err = err ? err : map_memory(ram, d, align);
    err = err ? err : bind_nodes(ram, d);
    if (!err) {
        advise(ram, d->flags);
        if (d->flags & STRATA_RAM_PREALLOC) {
            err = memory_prealloc(ram, d);
        }
    }
    return err;
}

/*
 * Get a block's host memory: fills host, sizes, fd. On failure a file that was made is removed, and
 * memory_ram_unmap() gives back what there is. Returns 0, -EINVAL, -errno. Lock: held.
 */
int memory_ram_map(struct strata_ram *ram, const struct strata_ram_desc *d)
{
    bool made;
    int err = open_backing(ram, d, &made);

    if (err) {
        return err;
    }
    size_block(ram, d);
    if (d->backing == STRATA_HOST) {
        ram->host = d->host;
        return 0;
    }
    err = map_new(ram, d);
    if (err && made) {
        unlink(d->path);
    }
    return err;
}

/* Give back mapping and descriptor. */
void memory_ram_unmap(struct strata_ram *ram)
{
    if (ram->map_size) {
        munmap(ram->host, ram->map_size);
    }
    if (ram->own_fd) {
        close(ram->fd);
    }
    ram->map_size = 0;
    ram->own_fd = false;
}
