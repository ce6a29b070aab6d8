/*
 * Mappings. mmap() of a vCPU's descriptor gives a mapping of the program's own of the engine's pages
 * (mremap() of a shared mapping with an old length of 0 makes a second one), so that address, protection,
 * munmap and fork are the kernel's business. What the program does to its other memory is told to the
 * engine in two halves around the real call, so that no processor gets a page back that is about to go.
 *
 * Locks: the engine's mmap lock between the halves; the real call alone is made in between.
 */
#include "preload/preload.h"

#include <errno.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#include "preload/real.h"

PRELOAD_REAL(void *, mmap64, void *addr, size_t len, int prot, int flags, int fd, off64_t off)
PRELOAD_REAL(int, munmap, void *addr, size_t len)
PRELOAD_REAL(int, madvise, void *addr, size_t len, int advice)
PRELOAD_REAL(int, mprotect, void *addr, size_t len, int prot)
PRELOAD_REAL(void *, mremap, void *addr, size_t old_len, size_t new_len, int flags, ...)

/* An announced change; s is null where there is nobody to tell. */
struct announced {
    struct softkvm *s;
    struct softkvm_memory_change change;
    bool begun;
    void *addr;
    size_t len;
};

static void announce(struct announced *a, struct softkvm *s, enum softkvm_change kind, void *addr,
                     size_t len, int prot)
{
    a->s = s && len ? s : NULL;
    a->addr = addr;
    a->len = len;
    a->begun = a->s && preload_lib.memory_begin(s, &a->change, kind, addr, len, prot) == 0;
}

static void finish(struct announced *a, bool done)
{
    int saved = errno;

    if (a->begun) {
        preload_lib.memory_end(&a->change, done);
    } else if (a->s && done) {
        preload_lib.memory_unmapped(a->s, a->addr, a->len);
    }
    errno = saved;
}

/* The pages of a vCPU at a place of the program's choice. MAP_FAILED with errno. */
static void *map_again(void *pages, void *addr, size_t length, int prot, int flags)
{
    const int place = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_32BIT;
    void *at = real_mmap64()(addr, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | (flags & place), -1, 0);
    void *got;

    if (at == MAP_FAILED) {
        return MAP_FAILED;
    }
    got = real_mremap()(pages, 0, length, MREMAP_MAYMOVE | MREMAP_FIXED, at);
    if (got == MAP_FAILED || real_mprotect()(at, length, prot) != 0) {
        int saved = errno;

        real_munmap()(at, length);
        errno = saved;
        return MAP_FAILED;
    }
    return got;
}

void *preload_map(struct preload_fd *e, void *addr, size_t length, int prot, int flags, int64_t offset)
{
    struct softkvm *s = preload_active();
    int err = ENODEV;
    void *pages = preload_is_foreign(e)
                      ? NULL
                      : preload_lib.mmap(s, e->soft, length, prot, flags, offset, &err);
    struct announced a;
    void *got;

    if (!pages) {
        errno = err;
        return MAP_FAILED;
    }
    announce(&a, flags & MAP_FIXED ? s : NULL, SOFTKVM_CHANGE_UNMAP, addr, length, 0);
    got = map_again(pages, addr, length, prot, flags);
    finish(&a, got != MAP_FAILED);
    (void)preload_lib.munmap(s, pages, length);
    return got;
}

static void *map_any(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
    struct softkvm *s = preload_active();
    struct preload_fd *e = flags & MAP_ANONYMOUS ? NULL : preload_find(fd);
    struct announced a;
    void *got;

    if (e) {
        return preload_map(e, addr, len, prot, flags, off);
    }
    if (!s || !(flags & MAP_FIXED)) {
        return real_mmap64()(addr, len, prot, flags, fd, off);
    }
    announce(&a, s, SOFTKVM_CHANGE_UNMAP, addr, len, 0);
    got = real_mmap64()(addr, len, prot, flags, fd, off);
    finish(&a, got != MAP_FAILED);
    return got;
}

PRELOAD_EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return PRELOAD_INSIDE ? real_mmap64()(addr, len, prot, flags, fd, off)
                          : map_any(addr, len, prot, flags, fd, off);
}

PRELOAD_EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
    return PRELOAD_INSIDE ? real_mmap64()(addr, len, prot, flags, fd, off)
                          : map_any(addr, len, prot, flags, fd, off);
}

PRELOAD_EXPORT int munmap(void *addr, size_t len)
{
    struct softkvm *s = PRELOAD_INSIDE ? NULL : preload_active();
    struct announced a;
    int ret;

    announce(&a, s, SOFTKVM_CHANGE_UNMAP, addr, len, 0);
    ret = real_munmap()(addr, len);
    finish(&a, ret == 0);
    return ret;
}

PRELOAD_EXPORT int madvise(void *addr, size_t len, int advice)
{
    bool loses = advice == MADV_DONTNEED || advice == MADV_REMOVE || advice == MADV_FREE;
    struct softkvm *s = loses && !PRELOAD_INSIDE ? preload_active() : NULL;
    struct announced a;
    int ret;

    announce(&a, s, SOFTKVM_CHANGE_DISCARD, addr, len, 0);
    ret = real_madvise()(addr, len, advice);
    finish(&a, ret == 0);
    return ret;
}

PRELOAD_EXPORT int mprotect(void *addr, size_t len, int prot)
{
    struct softkvm *s = PRELOAD_INSIDE ? NULL : preload_active();
    struct announced a;
    int ret;

    announce(&a, s, SOFTKVM_CHANGE_PROTECT, addr, len, prot);
    ret = real_mprotect()(addr, len, prot);
    finish(&a, ret == 0);
    return ret;
}

PRELOAD_EXPORT void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
    struct softkvm *s = PRELOAD_INSIDE ? NULL : preload_active();
    struct announced a;
    void *to = NULL, *got;
    va_list args;

    if (flags & MREMAP_FIXED) {
        va_start(args, flags);
        to = va_arg(args, void *);
        va_end(args);
    }
    if (s && to) {
        (void)preload_lib.memory_unmapped(s, to, new_len); /* the kernel unmaps it first, too */
    }
    announce(&a, s, SOFTKVM_CHANGE_MOVE, addr, old_len, 0);
    got = real_mremap()(addr, old_len, new_len, flags, to);
    finish(&a, got != MAP_FAILED);
    return got;
}
