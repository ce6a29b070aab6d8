/*
 * The path half: every libc spelling of opening, examining or testing /dev/kvm. All other paths go through
 * untouched.
 */
#include "preload/open.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "preload/preload.h"
#include "preload/real.h"

PRELOAD_REAL(int, openat, int dir, const char *path, int flags, ...)
PRELOAD_REAL(int, fstatat, int dir, const char *path, struct stat *st, int flags)
PRELOAD_REAL(int, faccessat, int dir, const char *path, int mode, int flags)
PRELOAD_REAL(int, statx, int dir, const char *path, int flags, unsigned mask, struct statx *st)
PRELOAD_REAL(int, fstat, int fd, struct stat *st)

static int open_path(int dir, const char *path, int flags, mode_t mode)
{
    if (preload_is_device(dir, path)) {
        if (flags & O_DIRECTORY) {
            errno = ENOTDIR;
            return -1;
        }
        if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) {
            errno = EEXIST;
            return -1;
        }
        return preload_open(flags);
    }
    return real_openat()(dir, path, flags, mode);
}

static mode_t mode_of(int flags, va_list args)
{
    return flags & (O_CREAT | __O_TMPFILE) ? va_arg(args, mode_t) : 0;
}

/* open() and open64() differ in nothing on x86-64: O_LARGEFILE is implied. */
#define OPEN_HOOK(name)                                                                            \
    PRELOAD_EXPORT int name(const char *path, int flags, ...)                                      \
    {                                                                                              \
        va_list args;                                                                              \
        mode_t mode;                                                                               \
                                                                                                   \
        va_start(args, flags);                                                                     \
        mode = mode_of(flags, args);                                                               \
        va_end(args);                                                                              \
        return open_path(AT_FDCWD, path, flags, mode);                                             \
    }

#define OPENAT_HOOK(name)                                                                          \
    PRELOAD_EXPORT int name(int dir, const char *path, int flags, ...)                             \
    {                                                                                              \
        va_list args;                                                                              \
        mode_t mode;                                                                               \
                                                                                                   \
        va_start(args, flags);                                                                     \
        mode = mode_of(flags, args);                                                               \
        va_end(args);                                                                              \
        return open_path(dir, path, flags, mode);                                                  \
    }

OPEN_HOOK(open)
OPEN_HOOK(open64)
OPENAT_HOOK(openat)
OPENAT_HOOK(openat64)

/* The fortified forms, without a mode. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
int __openat_2(int dir, const char *path, int flags);
int __openat64_2(int dir, const char *path, int flags);

PRELOAD_EXPORT int __open_2(const char *path, int flags)
{
    return open_path(AT_FDCWD, path, flags, 0);
}

PRELOAD_EXPORT int __open64_2(const char *path, int flags)
{
    return open_path(AT_FDCWD, path, flags, 0);
}

PRELOAD_EXPORT int __openat_2(int dir, const char *path, int flags)
{
    return open_path(dir, path, flags, 0);
}

PRELOAD_EXPORT int __openat64_2(int dir, const char *path, int flags)
{
    return open_path(dir, path, flags, 0);
}

/* What the device node looks like where there is one: 10:232, for everybody. */
static void describe(struct stat *st)
{
    memset(st, 0, sizeof(*st));
    st->st_mode = S_IFCHR | 0666;
    st->st_rdev = makedev(10, 232);
    st->st_nlink = 1;
    st->st_blksize = 4096;
    st->st_ino = 1;
}

static int stat_path(int dir, const char *path, struct stat *st, int flags)
{
    if (preload_is_device(dir, path)) {
        describe(st);
        return 0;
    }
    return real_fstatat()(dir, path, st, flags);
}

PRELOAD_EXPORT int stat(const char *path, struct stat *st)
{
    return stat_path(AT_FDCWD, path, st, 0);
}

PRELOAD_EXPORT int stat64(const char *path, struct stat64 *st)
{
    return stat_path(AT_FDCWD, path, (struct stat *)st, 0);
}

PRELOAD_EXPORT int lstat(const char *path, struct stat *st)
{
    return stat_path(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

PRELOAD_EXPORT int lstat64(const char *path, struct stat64 *st)
{
    return stat_path(AT_FDCWD, path, (struct stat *)st, AT_SYMLINK_NOFOLLOW);
}

PRELOAD_EXPORT int fstatat(int dir, const char *path, struct stat *st, int flags)
{
    return stat_path(dir, path, st, flags);
}

PRELOAD_EXPORT int fstatat64(int dir, const char *path, struct stat64 *st, int flags)
{
    return stat_path(dir, path, (struct stat *)st, flags);
}

PRELOAD_EXPORT int fstat(int fd, struct stat *st)
{
    struct preload_fd *e = preload_find(fd);

    if (e && e->kind == PRELOAD_SYSTEM) {
        describe(st);
        return 0;
    }
    return real_fstat()(fd, st);
}

/* The names that programs built before glibc 2.33 call. */
int __xstat(int version, const char *path, struct stat *st);
int __lxstat(int version, const char *path, struct stat *st);
int __fxstat(int version, int fd, struct stat *st);
int __fxstatat(int version, int dir, const char *path, struct stat *st, int flags);
int __xstat64(int version, const char *path, struct stat64 *st);
int __lxstat64(int version, const char *path, struct stat64 *st);
int __fxstat64(int version, int fd, struct stat64 *st);
int __fxstatat64(int version, int dir, const char *path, struct stat64 *st, int flags);

PRELOAD_EXPORT int __xstat(int version, const char *path, struct stat *st)
{
    return stat_path(AT_FDCWD, path, st, 0);
}

PRELOAD_EXPORT int __xstat64(int version, const char *path, struct stat64 *st)
{
    return stat_path(AT_FDCWD, path, (struct stat *)st, 0);
}

PRELOAD_EXPORT int __lxstat(int version, const char *path, struct stat *st)
{
    return stat_path(AT_FDCWD, path, st, AT_SYMLINK_NOFOLLOW);
}

PRELOAD_EXPORT int __lxstat64(int version, const char *path, struct stat64 *st)
{
    return stat_path(AT_FDCWD, path, (struct stat *)st, AT_SYMLINK_NOFOLLOW);
}

PRELOAD_EXPORT int __fxstat(int version, int fd, struct stat *st)
{
    return fstat(fd, st);
}

PRELOAD_EXPORT int __fxstat64(int version, int fd, struct stat64 *st)
{
    return fstat(fd, (struct stat *)st);
}

PRELOAD_EXPORT int __fxstatat(int version, int dir, const char *path, struct stat *st, int flags)
{
    return stat_path(dir, path, st, flags);
}

PRELOAD_EXPORT int __fxstatat64(int version, int dir, const char *path, struct stat64 *st, int flags)
{
    return stat_path(dir, path, (struct stat *)st, flags);
}

PRELOAD_EXPORT int fstat64(int fd, struct stat64 *st)
{
    return fstat(fd, (struct stat *)st);
}

PRELOAD_EXPORT int statx(int dir, const char *path, int flags, unsigned mask, struct statx *st)
{
    if (preload_is_device(dir, path)) {
        memset(st, 0, sizeof(*st));
        st->stx_mask = STATX_BASIC_STATS;
        st->stx_mode = S_IFCHR | 0666;
        st->stx_rdev_major = 10;
        st->stx_rdev_minor = 232;
        st->stx_nlink = 1;
        return 0;
    }
    return real_statx()(dir, path, flags, mask, st);
}

/* The node may be read and written by everybody, and not executed. */
static int access_path(int dir, const char *path, int mode, int flags)
{
    if (preload_is_device(dir, path)) {
        if (mode & X_OK) {
            errno = EACCES;
            return -1;
        }
        return 0;
    }
    return real_faccessat()(dir, path, mode, flags);
}

PRELOAD_EXPORT int access(const char *path, int mode)
{
    return access_path(AT_FDCWD, path, mode, 0);
}

PRELOAD_EXPORT int euidaccess(const char *path, int mode)
{
    return access_path(AT_FDCWD, path, mode, AT_EACCESS);
}

PRELOAD_EXPORT int eaccess(const char *path, int mode)
{
    return access_path(AT_FDCWD, path, mode, AT_EACCESS);
}

PRELOAD_EXPORT int faccessat(int dir, const char *path, int mode, int flags)
{
    return access_path(dir, path, mode, flags);
}
