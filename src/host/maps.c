/*
 * What the embedding process really has mapped at an address, asked of the kernel: by the
 * PROCMAP_QUERY ioctl where there is one (Linux 6.11), else from the text of /proc/self/maps.
 * Flow: access, step "find VMA", when an address is used for the first time.
 *
 * No state, no locks: each query opens the file, so that it is right after fork and in any thread.
 * Left out: attributes that only smaps has (huge-page and merge advice): host_mm_advise() brings
 * them.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "host/mm_impl.h"

/* The kernel's ABI, spelled here because the system's headers may be older than the kernel. */
struct procmap_query_abi {
    uint64_t size, query_flags, query_addr;
    uint64_t vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode;
    uint32_t dev_major, dev_minor;
    uint32_t name_size, build_id_size;
    uint64_t name_addr, build_id_addr;
};
#define PROCMAP_QUERY_ABI _IOWR('f', 17, struct procmap_query_abi)
#define PROCMAP_READ      0x01u
#define PROCMAP_WRITE     0x02u
#define PROCMAP_EXEC      0x04u
#define PROCMAP_SHARED    0x08u

/* Is a mapping of this name device memory, whose pages have no frame of the kernel's allocator? */
static bool is_device(const char *name)
{
    if (strncmp(name, "/dev/", 5) == 0) {
        return strncmp(name, "/dev/shm/", 9) != 0 && strncmp(name, "/dev/zero", 9) != 0 &&
               strncmp(name, "/dev/hugepages", 14) != 0;
    }
    return strstr(name, "[vfio-device]") != NULL || strncmp(name, "[vvar", 5) == 0 ||
           strcmp(name, "[vsyscall]") == 0;
}

static bool is_file_of(const struct stat *st, const struct host_vma *vma)
{
    return st->st_dev == vma->dev && st->st_ino == vma->ino;
}

/* Learn the length of the file, when its name leads to it; else, as for a memfd, when the process
 * has it open; else it is not known. */
static void learn_length(struct host_vma *vma, const char *name)
{
    struct stat st;
    struct dirent *d;
    bool known = name[0] == '/' && stat(name, &st) == 0 && is_file_of(&st, vma);
    DIR *fds = known ? NULL : opendir("/proc/self/fd");

    while (fds && !known && (d = readdir(fds))) {
        known = fstatat(dirfd(fds), d->d_name, &st, 0) == 0 && is_file_of(&st, vma);
    }
    if (fds) {
        closedir(fds);
    }
    if (known) {
        vma->flags |= HOST_VMA_SIZED;
        vma->file_end = (uint64_t)st.st_size;
    }
}

/* A shared anonymous mapping shows as a deleted /dev/zero; it has an inode, so it is a file to
 * us. */
static void classify(struct host_vma *vma, const char *name)
{
    vma->flags |= HOST_VMA_IMPORTED;
    if (vma->ino) {
        vma->flags |= HOST_VMA_FILE;
        learn_length(vma, name);
    }
    if (is_device(name)) {
        vma->flags |= HOST_VMA_PFNMAP;
        vma->flags &= ~(HOST_VMA_FILE | HOST_VMA_SIZED);
    }
    if (vma->page_shift > PAGE_SHIFT || strncmp(name, "/anon_hugepage", 14) == 0) {
        vma->flags |= HOST_VMA_HUGETLB;
        vma->page_shift = vma->page_shift > PAGE_SHIFT ? vma->page_shift : HOST_HUGE_SHIFT;
    }
}

/* 0, -ENOENT (nothing there), or -ENOTTY (the kernel has no such query). */
static int query_ioctl(int fd, uint64_t addr, struct host_vma *out)
{
    char name[256] = "";
    struct procmap_query_abi q = {.size = sizeof(q),
                                  .query_addr = addr,
                                  .name_size = sizeof(name),
                                  .name_addr = (uintptr_t)name};

    int err = ioctl(fd, PROCMAP_QUERY_ABI, &q) != 0 ? errno : 0;

    if (err == ENAMETOOLONG) {
        q.name_size = 0;
        q.name_addr = 0;
        err = ioctl(fd, PROCMAP_QUERY_ABI, &q) != 0 ? errno : 0;
    }
    if (err) {
        return err == ENOENT ? -ENOENT : -ENOTTY;
    }
    name[sizeof(name) - 1] = 0;
    *out = (struct host_vma){.start = hva(q.vma_start),
                             .end = hva(q.vma_end),
                             .offset = q.vma_offset,
                             .dev = makedev(q.dev_major, q.dev_minor),
                             .ino = q.inode,
                             .page_shift = PAGE_SHIFT};
    if (q.vma_page_size > PAGE_SIZE) {
        out->page_shift = (unsigned)__builtin_ctzll(q.vma_page_size);
    }
    out->flags = (q.vma_flags & PROCMAP_READ ? HOST_VMA_READ : 0) |
                 (q.vma_flags & PROCMAP_WRITE ? HOST_VMA_WRITE : 0) |
                 (q.vma_flags & PROCMAP_EXEC ? HOST_VMA_EXEC : 0) |
                 (q.vma_flags & PROCMAP_SHARED ? HOST_VMA_SHARED : 0);
    classify(out, name);
    return 0;
}

/* One line of maps into a VMA. False when it is not one. */
static bool parse_line(const char *line, struct host_vma *out)
{
    uint64_t start, end, offset, ino;
    unsigned major_no, minor_no;
    char perms[5] = "", name[256] = "";

    if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %255[^\n]", &start,
               &end, perms, &offset, &major_no, &minor_no, &ino, name) < 7) {
        return false;
    }
    *out = (struct host_vma){.start = hva(start),
                             .end = hva(end),
                             .offset = offset,
                             .dev = makedev(major_no, minor_no),
                             .ino = ino,
                             .page_shift = PAGE_SHIFT};
    out->flags = (perms[0] == 'r' ? HOST_VMA_READ : 0) | (perms[1] == 'w' ? HOST_VMA_WRITE : 0) |
                 (perms[2] == 'x' ? HOST_VMA_EXEC : 0) | (perms[3] == 's' ? HOST_VMA_SHARED : 0);
    classify(out, name);
    return true;
}

static int query_text(FILE *maps, uint64_t addr, struct host_vma *out)
{
    char line[4096 + 128];
    struct host_vma vma;

    while (fgets(line, sizeof(line), maps)) {
        if (!parse_line(line, &vma)) {
            continue;
        }
        if (addr < vma.start.v) {
            break;
        }
        if (addr < vma.end.v) {
            *out = vma;
            return 0;
        }
    }
    return -ENOENT;
}

/* Source: proc(5). Returns 0, -ENOENT, or the error of opening the file. */
static int query_process(void *opaque, hva_t addr, struct host_vma *out)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    FILE *maps;
    int err;

    if (fd < 0) {
        return -errno;
    }
    err = query_ioctl(fd, addr.v, out);
    if (err != 0 && err != -ENOENT) {
        maps = fdopen(fd, "r");
        if (!maps) {
            close(fd);
            return -ENOMEM;
        }
        err = query_text(maps, addr.v, out);
        fclose(maps);
        return err;
    }
    close(fd);
    return err;
}

static int query_none(void *opaque, hva_t addr, struct host_vma *out)
{
    return -ENOENT;
}

const struct host_map_source host_map_source_process = {.query = query_process};
const struct host_map_source host_map_source_none = {.query = query_none};
