/*
 * What can be done to a block while it is in use: resizing, giving memory back, replacing poisoned
 * pages, writing back; and who is told of blocks.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "memory/discard.h"
#include "memory/ram.h"

static uint64_t round_up(uint64_t v, uint64_t align)
{
    return (v + align - 1) & ~(align - 1);
}

/*
 * Change the used size of a resizeable block, and the size of its region to exactly `size`.
 * Listeners of the block are told first; afterwards all of it is dirty for every client. An equal
 * rounded size only changes the region. Returns 0; -EINVAL: not resizeable, 0 or above the largest;
 * -EBUSY, -ENOMEM, a refusal: nothing changed.
 * Lock: taken. Source: QEMU qemu_ram_resize().
 */
int strata_ram_resize(struct strata_ram *ram, uint64_t size)
{
    struct strata_memory *mem = ram->mem;
    uint64_t old = ram->size, rounded;
    uint64_t old_region = ram->region ? strata_region_size(ram->region) : size;
    int err = 0;

    memory_lock(mem);
    rounded = round_up(size, ram->page_size);
    if (size == old_region && rounded == old) {
        goto out;
    }
    if (rounded != old &&
        (!(ram->flags & STRATA_RAM_RESIZEABLE) || !size || rounded > ram->max_size)) {
        err = memory_fail(mem, EINVAL, "RAM '%s' cannot have %llu bytes", ram->name,
                          (unsigned long long)size);
        goto out;
    }
    if (ram->region) {
        err = strata_region_set_size(ram->region, size);
    }
    if (err) {
        goto out;
    }
    if (rounded != old) {
        memory_ram_notify_resized(ram, rounded);
        memory_dirty_clear(ram, 0, old);
        __atomic_store_n(&ram->size, rounded, __ATOMIC_RELAXED);
        strata_ram_set_dirty(ram, 0, rounded, MEMORY_DIRTY_ALL);
    }
    if (ram->resized) {
        ram->resized(ram->opaque, ram->name, size, ram->host);
    }
out:
    memory_unlock(mem);
    return err;
}

/* Whether [start, start + len) is made of whole pages of the block. */
static bool range_fits(const struct strata_ram *ram, uint64_t start, uint64_t len)
{
    return start % ram->page_size == 0 && len % ram->page_size == 0 && start <= ram->max_size &&
           len <= ram->max_size - start;
}

static int give_back(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    bool shared = ram->flags & STRATA_RAM_SHARED || ram->backing == STRATA_MEMFD;

    if (ram->fd >= 0 &&
        fallocate(ram->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(ram->fd_offset + start), (off_t)len) != 0) {
        return -errno;
    }
    if (ram->guest_fd >= 0 &&
        fallocate(ram->guest_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)start,
                  (off_t)len) != 0) {
        return -errno;
    }
    if (ram->fd >= 0 && shared) {
        return 0; /* the hole is in what is mapped */
    }
    return madvise(ram->host + start, len, shared ? MADV_REMOVE : MADV_DONTNEED) == 0 ? 0 : -errno;
}

/*
 * Give pages back to the host; they read as zero, or as the file's, afterwards.
 * start, len: bytes, multiples of the block's page size. Returns 0; -EINVAL; -EROFS for a block over
 * a read-only file; -EBUSY when discarding is forbidden; -errno of the kernel.
 * Source: QEMU ram_block_discard_range(). Differs: a private mapping of a file is discarded, too,
 * after a warning, since the punched file is what the caller asked for.
 */
int strata_ram_discard(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    struct strata_memory *mem = ram->mem;
    int err;

    if (!range_fits(ram, start, len)) {
        return -EINVAL;
    }
    if (ram->flags & (STRATA_RAM_READONLY_FD | STRATA_RAM_READONLY)) {
        return -EROFS;
    }
    memory_lock(mem);
    err = memory_discard_is_forbidden(mem) ? -EBUSY : 0;
    if (!err && ram->fd >= 0 && ram->flags & STRATA_RAM_PRIVATE && mem->config.warn) {
        mem->config.warn(mem->config.warn_ctx,
                         "discarding RAM of a private file mapping changes the file for everybody");
    }
    err = err ? err : give_back(ram, start, len);
    if (!err) {
        memory_ram_notify_discarded(ram, start, len);
    }
    if (err) {
        memory_fail(mem, -err, "RAM '%s': discarding: %s", ram->name, strerror(-err));
    }
    memory_unlock(mem);
    return err;
}

/*
 * Map fresh pages over a range whose own are poisoned. Returns 0; -EINVAL: not whole pages, or the
 * caller's memory; -errno. Source: QEMU qemu_ram_remap().
 */
int strata_ram_remap(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    int prot = PROT_READ | (ram->flags & STRATA_RAM_READONLY ? 0 : PROT_WRITE);
    bool shared = ram->flags & STRATA_RAM_SHARED || ram->backing == STRATA_MEMFD;
    int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED |
                (ram->fd < 0 ? MAP_ANONYMOUS : 0) |
                (ram->flags & STRATA_RAM_NORESERVE ? MAP_NORESERVE : 0);

    if (!range_fits(ram, start, len) || !ram->map_size || !len) {
        return -EINVAL;
    }
    if (mmap(ram->host + start, len, prot, flags, ram->fd, (off_t)(ram->fd_offset + start)) ==
        MAP_FAILED) {
        return -errno;
    }
    memory_lock(ram->mem);
    memory_ram_notify_discarded(ram, start, len);
    memory_unlock(ram->mem);
    return 0;
}

/* Write a range of a file-backed block to its file. 0; -EINVAL for a range beyond the block; -errno.
 * Blocks without a file: nothing to do. Source: QEMU qemu_ram_msync(). */
int strata_ram_writeback(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    uint64_t from = start & ~(ram->page_size - 1);

    if (start > ram->size || len > ram->size - start) {
        return -EINVAL;
    }
    if (ram->fd < 0 || !ram->map_size) {
        return 0;
    }
    return msync(ram->host + from, len + (start - from), MS_SYNC) == 0 ? 0 : -errno;
}

/* Give the block a descriptor of private guest memory; closed with the block. -EBUSY: it has one. */
int strata_ram_set_guest_fd(struct strata_ram *ram, int fd)
{
    if (ram->guest_fd >= 0 || fd < 0) {
        return fd < 0 ? -EBADF : -EBUSY;
    }
    ram->guest_fd = fd;
    return 0;
}

/* Be told of blocks: of those that are there at once. n is the caller's until taken out again.
 * Lock: taken, also around the calls. Source: QEMU ram_block_notifier_add(). */
void strata_ram_notifier_add(struct strata_memory *mem, struct strata_ram_notifier *n)
{
    memory_lock(mem);
    n->mem = mem;
    n->next = mem->ram_notifiers;
    mem->ram_notifiers = n;
    for (struct strata_ram *ram = mem->rams; ram && n->added; ram = ram->next) {
        n->added(n, ram, ram->size, ram->max_size);
    }
    memory_unlock(mem);
}

/* No more; told that every block goes. Lock: taken. */
void strata_ram_notifier_del(struct strata_ram_notifier *n)
{
    struct strata_memory *mem = n->mem;
    struct strata_ram_notifier **at;

    memory_lock(mem);
    for (at = &mem->ram_notifiers; *at && *at != n; at = &(*at)->next) {
    }
    if (*at) {
        *at = n->next;
        for (struct strata_ram *ram = mem->rams; ram && n->removed; ram = ram->next) {
            n->removed(n, ram);
        }
    }
    memory_unlock(mem);
}

/* A block came. Lock: held. */
void memory_ram_notify_added(struct strata_ram *ram)
{
    for (struct strata_ram_notifier *n = ram->mem->ram_notifiers; n; n = n->next) {
        if (n->added) {
            n->added(n, ram, ram->size, ram->max_size);
        }
    }
}

/* A block goes. Lock: held. */
void memory_ram_notify_removed(struct strata_ram *ram)
{
    for (struct strata_ram_notifier *n = ram->mem->ram_notifiers; n; n = n->next) {
        if (n->removed) {
            n->removed(n, ram);
        }
    }
}

/* A block is about to have another size. Lock: held. */
void memory_ram_notify_resized(struct strata_ram *ram, uint64_t size)
{
    for (struct strata_ram_notifier *n = ram->mem->ram_notifiers; n; n = n->next) {
        if (n->resized) {
            n->resized(n, ram, ram->size, size);
        }
    }
}

/* Part of a block has lost its contents. Lock: held. */
void memory_ram_notify_discarded(struct strata_ram *ram, uint64_t start, uint64_t len)
{
    for (struct strata_ram_notifier *n = ram->mem->ram_notifiers; n; n = n->next) {
        if (n->discarded) {
            n->discarded(n, ram, start, len);
        }
    }
}
