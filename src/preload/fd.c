/*
 * The life of descriptors: close, dup, fcntl, and reading of statistics. A descriptor of ours that is
 * closed is forgotten before the real close, so that its number cannot be reused while still known.
 */
#include "preload/preload.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>

#include "preload/real.h"

PRELOAD_REAL(int, close, int fd)
PRELOAD_REAL(int, close_range, unsigned first, unsigned last, int flags)
PRELOAD_REAL(void, closefrom, int first)
PRELOAD_REAL(int, dup, int fd)
PRELOAD_REAL(int, dup3, int fd, int fd2, int flags)
PRELOAD_REAL(int, dup2, int fd, int fd2)
PRELOAD_REAL(int, fcntl64, int fd, int cmd, ...)
PRELOAD_REAL(ssize_t, read, int fd, void *buf, size_t n)
PRELOAD_REAL(ssize_t, write, int fd, const void *buf, size_t n)
PRELOAD_REAL(ssize_t, pread64, int fd, void *buf, size_t n, off64_t at)

PRELOAD_EXPORT int close(int fd)
{
    if (preload_find(fd)) {
        preload_forget(fd);
    }
    return real_close()(fd);
}

#define CLOSE_RANGE_KEEPS 4u /* CLOSE_RANGE_CLOEXEC: nothing is closed */

PRELOAD_EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    if (!((unsigned)flags & ~2u) && first <= last) {
        preload_forget_range(first, last);
    }
    return real_close_range()(first, last, flags);
}

PRELOAD_EXPORT void closefrom(int first)
{
    preload_forget_range(first < 0 ? 0 : (unsigned)first, UINT32_MAX);
    real_closefrom()(first);
}

/* fd2 is a copy of fd; on failure of the engine's half it is closed again. */
static int finish_dup(int fd, int fd2)
{
    int ret;

    if (fd2 < 0 || (!preload_find(fd) && !preload_find(fd2)) || preload_is_vfork()) {
        return fd2;
    }
    ret = preload_copy(fd, fd2);
    if (ret < 0) {
        real_close()(fd2);
        return (int)preload_result(ret);
    }
    return fd2;
}

PRELOAD_EXPORT int dup(int fd)
{
    return finish_dup(fd, real_dup()(fd));
}

PRELOAD_EXPORT int dup2(int fd, int fd2)
{
    return fd == fd2 ? real_dup2()(fd, fd2) : finish_dup(fd, real_dup2()(fd, fd2));
}

PRELOAD_EXPORT int dup3(int fd, int fd2, int flags)
{
    return finish_dup(fd, real_dup3()(fd, fd2, flags));
}

#define FCNTL_HOOK(name)                                                                           \
    PRELOAD_EXPORT int name(int fd, int cmd, ...)                                                  \
    {                                                                                              \
        va_list args;                                                                              \
        void *arg;                                                                                 \
                                                                                                   \
        va_start(args, cmd);                                                                       \
        arg = va_arg(args, void *);                                                                \
        va_end(args);                                                                              \
        if ((cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC) && preload_find(fd)) {                      \
            return finish_dup(fd, real_fcntl64()(fd, cmd, arg));                                   \
        }                                                                                          \
        return real_fcntl64()(fd, cmd, arg);                                                       \
    }

FCNTL_HOOK(fcntl)
FCNTL_HOOK(fcntl64)

PRELOAD_EXPORT ssize_t read(int fd, void *buf, size_t n)
{
    struct preload_fd *e = preload_find(fd);
    int64_t got;

    if (!e) {
        return real_read()(fd, buf, n);
    }
    if (preload_is_foreign(e)) {
        return preload_result(-EIO);
    }
    got = preload_lib.read(preload_active(), e->soft, buf, n, atomic_load(&e->offset));
    if (got > 0) {
        atomic_fetch_add(&e->offset, (uint64_t)got);
    }
    return preload_result(got);
}

/* None of KVM's files can be written. */
PRELOAD_EXPORT ssize_t write(int fd, const void *buf, size_t n)
{
    return preload_find(fd) ? preload_result(-EINVAL) : real_write()(fd, buf, n);
}

static ssize_t read_at(int fd, void *buf, size_t n, off64_t at)
{
    struct preload_fd *e = preload_find(fd);

    if (!e) {
        return real_pread64()(fd, buf, n, at);
    }
    if (at < 0) {
        return preload_result(-EINVAL);
    }
    if (preload_is_foreign(e)) {
        return preload_result(-EIO);
    }
    return preload_result(preload_lib.read(preload_active(), e->soft, buf, n, (uint64_t)at));
}

PRELOAD_EXPORT ssize_t pread(int fd, void *buf, size_t n, off_t at)
{
    return read_at(fd, buf, n, at);
}

PRELOAD_EXPORT ssize_t pread64(int fd, void *buf, size_t n, off64_t at)
{
    return read_at(fd, buf, n, at);
}
