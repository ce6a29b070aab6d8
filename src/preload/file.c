/*
 * Files whose contents go: a hole punched, or the end cut off, loses what is mapped of them. Which
 * addresses that is, the kernel tells (/proc/self/maps). Costs a look-up only while /dev/kvm is open.
 *
 * Locks: none of ours; the engine's for the length of one call.
 */
#include "preload/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "preload/real.h"

PRELOAD_REAL(int, fallocate64, int fd, int mode, off64_t offset, off64_t len)
PRELOAD_REAL(int, ftruncate64, int fd, off64_t length)

/* One line of the list: does it map part of the file's range? */
static void discard_mapping(struct softkvm *s, const char *line, const struct stat *st, int64_t offset,
                            int64_t end)
{
    unsigned long start, stop, major_nr, minor_nr, ino;
    unsigned long long at;
    int64_t from, to;

    if (sscanf(line, "%lx-%lx %*s %llx %lx:%lx %lu", &start, &stop, &at, &major_nr, &minor_nr, &ino) != 6 ||
        ino != st->st_ino || makedev(major_nr, minor_nr) != st->st_dev) {
        return;
    }
    from = offset > (int64_t)at ? offset - (int64_t)at : 0;
    to = end - (int64_t)at < (int64_t)(stop - start) ? end - (int64_t)at : (int64_t)(stop - start);
    if (from < to) {
        (void)preload_lib.memory_discarded(s, (char *)start + from, (size_t)(to - from));
    }
}

void preload_file_discarded(struct softkvm *s, int fd, int64_t offset, int64_t length)
{
    int64_t end = length > INT64_MAX - offset ? INT64_MAX : offset + length;
    char line[512];
    struct stat st;
    FILE *maps;

    if (fstatat(fd, "", &st, AT_EMPTY_PATH) != 0) {
        return;
    }
    maps = fopen("/proc/self/maps", "re");
    while (maps && fgets(line, sizeof(line), maps)) {
        discard_mapping(s, line, &st, offset, end);
    }
    if (maps) {
        fclose(maps);
    }
}

static int file_allocate(int fd, int mode, off64_t offset, off64_t len)
{
    const int loses = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE | FALLOC_FL_COLLAPSE_RANGE;
    struct preload_fd *e = preload_find(fd);
    struct softkvm *s = preload_active();
    int ret;

    if (e) {
        return (int)preload_result(preload_is_foreign(e) ? -EIO
                                                         : preload_lib.fallocate(s, e->soft, mode, offset, len));
    }
    ret = real_fallocate64()(fd, mode, offset, len);

    if (ret == 0 && s && (mode & loses)) {
        preload_file_discarded(s, fd, offset, len);
    }
    return ret;
}

PRELOAD_EXPORT int fallocate(int fd, int mode, off_t offset, off_t len)
{
    return file_allocate(fd, mode, offset, len);
}

PRELOAD_EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
    return file_allocate(fd, mode, offset, len);
}

static int file_truncate(int fd, off64_t length)
{
    struct softkvm *s = preload_active();
    int ret = real_ftruncate64()(fd, length);

    if (ret == 0 && s) {
        preload_file_discarded(s, fd, length, INT64_MAX);
    }
    return ret;
}

PRELOAD_EXPORT int ftruncate(int fd, off_t length)
{
    return file_truncate(fd, length);
}

PRELOAD_EXPORT int ftruncate64(int fd, off64_t length)
{
    return file_truncate(fd, length);
}
