/*
 * Mappings: mmap() of a vCPU descriptor is the engine's; and what the program does to its own memory
 * is told to the engine before it happens, so that no processor keeps a translation of a page that is
 * about to go.
 *
 * Locks: preload_lock for the list of vCPU mappings.
 */
#include "preload/preload.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "preload/real.h"

PRELOAD_REAL(void *, mmap64, void *addr, size_t len, int prot, int flags, int fd, off64_t off)
PRELOAD_REAL(int, munmap, void *addr, size_t len)
PRELOAD_REAL(int, madvise, void *addr, size_t len, int advice)
PRELOAD_REAL(int, mprotect, void *addr, size_t len, int prot)
PRELOAD_REAL(void *, mremap, void *addr, size_t old_len, size_t new_len, int flags, ...)

/* Mapped pages of a vCPU; freed when unmapped. */
struct vcpu_map {
    struct vcpu_map *next;
    void *addr;
    size_t length;
};

static struct vcpu_map *maps;
static _Atomic unsigned nr_maps;

void *preload_map_vcpu(struct preload_fd *e, size_t length, int prot, int flags, int64_t offset)
{
    struct vcpu_map *m = malloc(sizeof(*m));
    int err = ENOMEM;
    void *p = m ? softkvm_mmap(preload_active(), e->soft, length, prot, flags, offset, &err) : NULL;

    if (!p) {
        free(m);
        errno = err;
        return MAP_FAILED;
    }
    m->addr = p;
    m->length = length;
    pthread_mutex_lock(&preload_lock);
    m->next = maps;
    maps = m;
    atomic_fetch_add(&nr_maps, 1);
    pthread_mutex_unlock(&preload_lock);
    return p;
}

bool preload_unmap_vcpu(void *addr, size_t length, int *ret)
{
    struct vcpu_map *found = NULL;

    if (atomic_load(&nr_maps) == 0) {
        return false;
    }
    pthread_mutex_lock(&preload_lock);
    for (struct vcpu_map **at = &maps; *at; at = &(*at)->next) {
        if ((*at)->addr == addr && (*at)->length == length) {
            found = *at;
            *at = found->next;
            atomic_fetch_sub(&nr_maps, 1);
            break;
        }
    }
    pthread_mutex_unlock(&preload_lock);
    if (!found) {
        return false;
    }
    *ret = softkvm_munmap(preload_active(), addr, length);
    free(found);
    return true;
}

static void *map_fd(void *addr, size_t len, int prot, int flags, int fd, int64_t off)
{
    struct softkvm *s = preload_active();
    struct preload_fd *e = s && !(flags & MAP_ANONYMOUS) ? preload_find(fd) : NULL;

    if (e) {
        return preload_map_vcpu(e, len, prot, flags, off);
    }
    if (s && (flags & MAP_FIXED) && addr) {
        softkvm_memory_unmapped(s, addr, len);
    }
    return real_mmap64()(addr, len, prot, flags, fd, off);
}

PRELOAD_EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t off)
{
    return map_fd(addr, len, prot, flags, fd, off);
}

PRELOAD_EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
    return map_fd(addr, len, prot, flags, fd, off);
}

PRELOAD_EXPORT int munmap(void *addr, size_t len)
{
    struct softkvm *s = preload_active();
    int ret;

    if (s) {
        if (preload_unmap_vcpu(addr, len, &ret)) {
            return (int)preload_result(ret);
        }
        softkvm_memory_unmapped(s, addr, len);
    }
    return real_munmap()(addr, len);
}

PRELOAD_EXPORT int madvise(void *addr, size_t len, int advice)
{
    struct softkvm *s = preload_active();

    if (s && (advice == MADV_DONTNEED || advice == MADV_REMOVE || advice == MADV_FREE)) {
        softkvm_memory_discarded(s, addr, len);
    }
    return real_madvise()(addr, len, advice);
}

PRELOAD_EXPORT int mprotect(void *addr, size_t len, int prot)
{
    struct softkvm *s = preload_active();

    if (s) {
        softkvm_memory_protected(s, addr, len, prot);
    }
    return real_mprotect()(addr, len, prot);
}

PRELOAD_EXPORT void *mremap(void *addr, size_t old_len, size_t new_len, int flags, ...)
{
    struct softkvm *s = preload_active();
    void *to = NULL;
    va_list args;

    if (flags & MREMAP_FIXED) {
        va_start(args, flags);
        to = va_arg(args, void *);
        va_end(args);
    }
    if (s) {
        softkvm_memory_unmapped(s, addr, old_len);
        if (to) {
            softkvm_memory_unmapped(s, to, new_len);
        }
    }
    return real_mremap()(addr, old_len, new_len, flags, to);
}
