/*
 * Swap: pages of the process's private memory, compressed in this process's own memory. The bytes
 * are really gone from their HVA meanwhile, and really come back.
 *
 *   out  entry -> swap entry, notifiers done (the caller)
 *        mremap(DONTUNMAP) moves the page to a scratch address: one atomic step, so that a write of the
 *        process lands either before it (and is kept) or after it (and waits, see below)
 *        compress from scratch, store, drop scratch
 *   in   decompress to the HVA: by UFFDIO_COPY when watched, by storing when the process announces
 *
 * The process itself may touch a page that is away. Either it announces accesses, or the 2 MiB
 * chunks that ever lost a page are watched by userfaultfd: a touch of a missing page is answered
 * by a thread of ours, which brings the bytes back and leaves the simulated entry as it is (the
 * slot is then `in place` and the next simulated fault only needs a frame).
 *
 * Invariants: a slot is named by one entry; slot.kind FREE slots are chained by `next`.
 * Locks: `lock`, taken inside the mmap lock. The watcher takes it alone, never the mmap lock:
 * whoever waits for the watcher may hold anything but `lock`; so under `lock` no page of the
 * process is touched. Left out: shared memory (its pages are only unmapped), swap of what the
 * watcher brought back.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include <zstd.h>

#include "host/mm_impl.h"

enum slot_kind {
    SLOT_FREE,
    SLOT_SAME,     /* every word is `word` */
    SLOT_STORED,   /* `size` bytes at `data`; PAGE_SIZE means not compressed */
    SLOT_IN_PLACE, /* the bytes are at the HVA again */
};

struct slot {
    uint64_t addr; /* HVA of the page */
    union {
        uint64_t word;
        void *data;
    };
    uint32_t next;
    uint16_t size;
    uint8_t kind;
};

struct host_swap {
    pthread_mutex_t lock;
    struct slot *slots; /* [0] unused: 0 ends the free list */
    uint32_t nr, fresh, free;
    uint32_t *index; /* hash of addr -> slot, for the watcher; open addressing, nr_index entries */
    uint64_t nr_index; /* power of two, at least twice nr */
    ZSTD_CCtx *cctx;
    ZSTD_DCtx *dctx;
    unsigned char *scratch; /* one page of address space, then one page of buffer */
    unsigned char *buffer;
    bool announced;
    int uffd, stop; /* -1 when there is none */
    pthread_t watcher;
    uint64_t *chunks; /* watched 2 MiB chunks: hash set of chunk number + 1 */
    uint64_t nr_chunks, used_chunks;
};

static uint64_t hash(uint64_t x)
{
    x *= UINT64_C(0x9e3779b97f4a7c15);
    return x ^ x >> 29;
}

/* Place of addr in the index, or the free place where it would go. */
static uint64_t index_find(const struct host_swap *s, uint64_t addr)
{
    uint64_t i = hash(addr >> PAGE_SHIFT) & (s->nr_index - 1);

    while (s->index[i] && s->slots[s->index[i]].addr != addr) {
        i = (i + 1) & (s->nr_index - 1);
    }
    return i;
}

/* Take a place out, closing the gap so that probes need no tombstones. */
static void index_remove(struct host_swap *s, uint64_t addr)
{
    uint64_t mask = s->nr_index - 1, gap = index_find(s, addr);

    for (uint64_t i = (gap + 1) & mask; s->index[i]; i = (i + 1) & mask) {
        uint64_t home = hash(s->slots[s->index[i]].addr >> PAGE_SHIFT) & mask;

        if (((i - home) & mask) >= ((i - gap) & mask)) {
            s->index[gap] = s->index[i];
            gap = i;
        }
    }
    s->index[gap] = 0;
}

static uint32_t slot_take(struct host_swap *s, uint64_t addr)
{
    uint32_t n = s->free;

    if (n) {
        s->free = s->slots[n].next;
    } else if (s->fresh < s->nr) {
        n = s->fresh++;
    } else {
        return 0;
    }
    s->slots[n].addr = addr;
    s->index[index_find(s, addr)] = n;
    return n;
}

static void slot_forget_data(struct host_mm *mm, struct slot *slot)
{
    if (slot->kind == SLOT_STORED) {
        free(slot->data);
        host_mm_count(mm, HOST_MM_swap_bytes, -(int64_t)slot->size);
    }
}

static void slot_release(struct host_mm *mm, uint32_t n)
{
    struct host_swap *s = mm->swap;
    struct slot *slot = &s->slots[n];

    slot_forget_data(mm, slot);
    index_remove(s, slot->addr);
    slot->kind = SLOT_FREE;
    slot->next = s->free;
    s->free = n;
    host_mm_count(mm, HOST_MM_swap_pages, -1);
}

static uint32_t slot_of(uint64_t entry)
{
    return (uint32_t)(entry >> PAGE_SHIFT);
}

/* ---- what a page becomes ---- */

static bool is_same(const uint64_t *words)
{
    for (unsigned i = 1; i < PAGE_SIZE / sizeof(*words); i++) {
        if (words[i] != words[0]) {
            return false;
        }
    }
    return true;
}

/* Store the page at scratch in the slot. 0 or -ENOMEM. */
static int slot_store(struct host_mm *mm, struct slot *slot, const void *page)
{
    struct host_swap *s = mm->swap;
    size_t size;

    if (is_same(page)) {
        slot->kind = SLOT_SAME;
        slot->word = *(const uint64_t *)page;
        host_mm_count(mm, HOST_MM_swap_same, 1);
        return 0;
    }
    size = ZSTD_compressCCtx(s->cctx, s->buffer, PAGE_SIZE, page, PAGE_SIZE, 1);
    if (ZSTD_isError(size) || size >= PAGE_SIZE) {
        size = PAGE_SIZE;
    }
    slot->data = host_calloc(mm->hm, 1, size);
    if (!slot->data) {
        return -ENOMEM;
    }
    memcpy(slot->data, size == PAGE_SIZE ? page : s->buffer, size);
    slot->kind = SLOT_STORED;
    slot->size = (uint16_t)size;
    host_mm_count(mm, HOST_MM_swap_bytes, (int64_t)size);
    return 0;
}

/* The page of a slot, into the buffer. 0, or -EFAULT when the store is damaged. */
static int slot_load(struct host_swap *s, const struct slot *slot)
{
    if (slot->kind == SLOT_SAME) {
        for (unsigned i = 0; i < PAGE_SIZE / sizeof(uint64_t); i++) {
            ((uint64_t *)s->buffer)[i] = slot->word;
        }
        return 0;
    }
    if (slot->size == PAGE_SIZE) {
        memcpy(s->buffer, slot->data, PAGE_SIZE);
        return 0;
    }
    return ZSTD_decompressDCtx(s->dctx, s->buffer, PAGE_SIZE, slot->data, slot->size) == PAGE_SIZE
               ? 0
               : -EFAULT;
}

/*
 * See mm_impl.h. Where the process has forbidden to write since, but keeps the mapping, the bytes are there when it allows it
 * again. Source: proc(5), a write through /proc/self/mem does not ask for rights.
 */
int host_bytes_place(uint64_t addr, const void *page)
{
    struct iovec from = {(void *)(uintptr_t)page, PAGE_SIZE}, to = {hva_to_ptr(hva(addr)), PAGE_SIZE};
    ssize_t n = process_vm_writev(getpid(), &from, 1, &to, 1, 0);
    int fd = n == (ssize_t)PAGE_SIZE ? -1 : open("/proc/self/mem", O_WRONLY | O_CLOEXEC);

    if (fd >= 0) {
        n = pwrite(fd, page, PAGE_SIZE, (off_t)addr);
        close(fd);
    }
    return n == (ssize_t)PAGE_SIZE ? 0 : -EFAULT;
}

/* Put the buffer at an HVA that has no page. Lock: swap lock held. */
static int place(struct host_swap *s, uint64_t addr)
{
    struct uffdio_copy copy = {.dst = addr, .src = (uintptr_t)s->buffer, .len = PAGE_SIZE};

    if (s->announced) {
        return host_bytes_place(addr, s->buffer);
    }
    /* EEXIST: the page came by other ways (the process mapped something new there): leave it. */
    return ioctl(s->uffd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST ? 0 : -EFAULT;
}

/* Bring the bytes of a slot back to their HVA. Lock: swap lock held. */
static int slot_restore(struct host_swap *s, const struct slot *slot)
{
    int err = slot->kind == SLOT_IN_PLACE ? 0 : slot_load(s, slot);

    return err || slot->kind == SLOT_IN_PLACE ? err : place(s, slot->addr);
}

/* ---- the watcher ---- */

static void fill_missing(struct host_mm *mm, uint64_t addr)
{
    struct host_swap *s = mm->swap;
    struct uffdio_zeropage zero = {.range = {addr, PAGE_SIZE}};
    uint32_t n;

    pthread_mutex_lock(&s->lock);
    n = s->index[index_find(s, addr)];
    if (n && s->slots[n].kind != SLOT_IN_PLACE) {
        if (slot_restore(s, &s->slots[n]) == 0) {
            slot_forget_data(mm, &s->slots[n]);
            s->slots[n].kind = SLOT_IN_PLACE;
            host_mm_count(mm, HOST_MM_swap_watched, 1);
        }
        n = 1;
    } else {
        n = 0;
    }
    pthread_mutex_unlock(&s->lock);
    if (!n && ioctl(s->uffd, UFFDIO_ZEROPAGE, &zero) != 0) {
        struct uffdio_range range = {addr, PAGE_SIZE};

        (void)ioctl(s->uffd, UFFDIO_WAKE, &range); /* somebody was faster: let it look again */
    }
}

static void *watch(void *arg)
{
    struct host_mm *mm = arg;
    struct pollfd fds[2] = {{.fd = mm->swap->uffd, .events = POLLIN},
                            {.fd = mm->swap->stop, .events = POLLIN}};
    struct uffd_msg msg;

    while (poll(fds, 2, -1) >= 0 || errno == EINTR) {
        if (fds[1].revents) {
            break;
        }
        while (read(mm->swap->uffd, &msg, sizeof(msg)) == (ssize_t)sizeof(msg)) {
            if (msg.event == UFFD_EVENT_PAGEFAULT) {
                fill_missing(mm, msg.arg.pagefault.address & PAGE_MASK);
            }
        }
    }
    return NULL;
}

/* Open the userfaultfd and start its thread. 0 or -EOPNOTSUPP. Without privilege only the process's
 * own accesses can be answered, not those that the kernel makes for it. */
static int start_watcher(struct host_mm *mm)
{
    struct host_swap *s = mm->swap;
    struct uffdio_api api = {.api = UFFD_API};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    }
    if (fd < 0) {
        return -EOPNOTSUPP;
    }
    s->stop = eventfd(0, EFD_CLOEXEC);
    s->uffd = fd;
    if (s->stop >= 0 && ioctl(fd, UFFDIO_API, &api) == 0 &&
        pthread_create(&s->watcher, NULL, watch, mm) == 0) {
        return 0;
    }
    close(fd);
    if (s->stop >= 0) {
        close(s->stop);
    }
    s->uffd = s->stop = -1;
    return -EOPNOTSUPP;
}

static bool chunk_is_watched(const struct host_swap *s, uint64_t chunk, uint64_t *at)
{
    uint64_t i = hash(chunk) & (s->nr_chunks - 1);

    while (s->chunks[i] && s->chunks[i] != chunk + 1) {
        i = (i + 1) & (s->nr_chunks - 1);
    }
    *at = i;
    return s->chunks[i] != 0;
}

/* See mm_impl.h. Lock: mmap write. */
int host_swap_watch(struct host_mm *mm, uint64_t start, uint64_t end)
{
    struct host_swap *s = mm->swap;
    struct uffdio_register reg = {.range = {start, end - start},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
    uint64_t at;

    if (s->announced || chunk_is_watched(s, start >> HOST_HUGE_SHIFT, &at)) {
        return 0;
    }
    if (s->used_chunks * 2 >= s->nr_chunks || (s->uffd < 0 && start_watcher(mm) != 0) ||
        ioctl(s->uffd, UFFDIO_REGISTER, &reg) != 0) {
        return -EOPNOTSUPP;
    }
    if (end - start == HOST_HUGE_SIZE) { /* a part is watched anew each time: it may grow */
        s->chunks[at] = (start >> HOST_HUGE_SHIFT) + 1;
        s->used_chunks++;
    }
    return 0;
}

static void forget_chunk(struct host_swap *s, uint64_t gap)
{
    uint64_t mask = s->nr_chunks - 1;

    for (uint64_t i = (gap + 1) & mask; s->chunks[i]; i = (i + 1) & mask) {
        uint64_t home = hash(s->chunks[i] - 1) & mask;

        if (((i - home) & mask) >= ((i - gap) & mask)) {
            s->chunks[gap] = s->chunks[i];
            gap = i;
        }
    }
    s->chunks[gap] = 0;
    s->used_chunks--;
}

/* See mm_impl.h. What the process has unmapped already refuses to be unregistered: just as well.
 * Lock: mmap write. */
void host_swap_unwatch(struct host_mm *mm, uint64_t start, uint64_t end)
{
    struct host_swap *s = mm->swap;
    uint64_t at;

    if (!s || s->uffd < 0) {
        return;
    }
    while (start < end) {
        uint64_t next = (start & ~(HOST_HUGE_SIZE - 1)) + HOST_HUGE_SIZE;
        struct uffdio_range range;

        next = next < end ? next : end;
        range = (struct uffdio_range){start, next - start};
        if (chunk_is_watched(s, start >> HOST_HUGE_SHIFT, &at)) {
            forget_chunk(s, at);
            (void)ioctl(s->uffd, UFFDIO_UNREGISTER, &range);
        } else if (next - start < HOST_HUGE_SIZE) {
            (void)ioctl(s->uffd, UFFDIO_UNREGISTER, &range);
        }
        start = next;
    }
}

/* See mm_impl.h. Lock: mmap lock held, either way. */
void host_swap_prepare(struct host_mm *mm, uint64_t addr)
{
    struct uffdio_zeropage zero = {.range = {addr, PAGE_SIZE}};
    uint64_t at;

    if (mm->swap->uffd >= 0 && chunk_is_watched(mm->swap, addr >> HOST_HUGE_SHIFT, &at)) {
        (void)ioctl(mm->swap->uffd, UFFDIO_ZEROPAGE, &zero);
    }
}

/* ---- out, in, drop ---- */

/* Undo half of a swap-out: the page moves back from scratch. */
static void move_back(struct host_swap *s, uint64_t addr)
{
    memcpy(s->buffer, s->scratch, PAGE_SIZE);
    (void)place(s, addr);
}

/* See mm_impl.h. Source: own. */
int host_swap_out(struct host_mm *mm, uint64_t addr, uint64_t *entry)
{
    struct host_swap *s = mm->swap;
    uint32_t n;
    int err = -ENOSPC;

    pthread_mutex_lock(&s->lock);
    n = slot_take(s, addr);
    if (!n) {
        goto out;
    }
    host_mm_count(mm, HOST_MM_swap_pages, 1);
    if (mremap(hva_to_ptr(hva(addr)), PAGE_SIZE, PAGE_SIZE,
               MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP, s->scratch) == MAP_FAILED) {
        err = -EOPNOTSUPP;
        slot_release(mm, n);
        goto out;
    }
    /* The rights came along, and the process may just have taken them. */
    err = mprotect(s->scratch, PAGE_SIZE, PROT_READ | PROT_WRITE) == 0
              ? slot_store(mm, &s->slots[n], s->scratch)
              : -ENOMEM;
    if (err) {
        move_back(s, addr);
        slot_release(mm, n);
    } else {
        *entry = (uint64_t)n << PAGE_SHIFT | HOST_PTE_SWAP;
        host_mm_count(mm, HOST_MM_swap_out, 1);
    }
    (void)madvise(s->scratch, PAGE_SIZE, MADV_DONTNEED);
out:
    pthread_mutex_unlock(&s->lock);
    return err;
}

/* See mm_impl.h. Lock: swap lock held (host_swap_lock()). */
int host_swap_in(struct host_mm *mm, uint64_t addr, uint64_t entry)
{
    struct host_swap *s = mm->swap;
    int err = slot_restore(s, &s->slots[slot_of(entry)]);

    if (!err) {
        slot_release(mm, slot_of(entry));
        host_mm_count(mm, HOST_MM_swap_in, 1);
    }
    return err;
}

/* See mm_impl.h. Lock: takes the swap lock. */
void host_swap_drop(struct host_mm *mm, uint64_t entry)
{
    pthread_mutex_lock(&mm->swap->lock);
    slot_release(mm, slot_of(entry));
    pthread_mutex_unlock(&mm->swap->lock);
}

void host_swap_lock(struct host_mm *mm)
{
    pthread_mutex_lock(&mm->swap->lock);
}

void host_swap_unlock(struct host_mm *mm)
{
    pthread_mutex_unlock(&mm->swap->lock);
}

/* Lazily touched arrays sized for all slots. */
static void *reserve(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);

    return p == MAP_FAILED ? NULL : p;
}

/* See mm_impl.h. pages: < 2^31. 0, -EINVAL, -ENOMEM. */
int host_swap_new(struct host_mm *mm, uint64_t pages, bool announced)
{
    struct host_swap *s;

    if (pages >= UINT64_C(1) << 31) {
        return -EINVAL;
    }
    s = host_calloc(mm->hm, 1, sizeof(*s));
    if (!s) {
        return -ENOMEM;
    }
    mm->swap = s;
    pthread_mutex_init(&s->lock, NULL);
    base_lock_set_rank(&s->lock, BASE_RANK_SWAP);
    s->announced = announced;
    s->uffd = s->stop = -1;
    s->fresh = 1;
    s->nr = (uint32_t)pages + 1;
    s->nr_index = UINT64_C(2) << (64 - __builtin_clzll(s->nr));
    s->nr_chunks = UINT64_C(1) << 16;
    s->slots = reserve(s->nr * sizeof(*s->slots));
    s->index = reserve(s->nr_index * sizeof(*s->index));
    s->chunks = reserve(s->nr_chunks * sizeof(*s->chunks));
    s->scratch = reserve(2 * PAGE_SIZE);
    s->cctx = ZSTD_createCCtx();
    s->dctx = ZSTD_createDCtx();
    if (!s->slots || !s->index || !s->chunks || !s->scratch || !s->cctx || !s->dctx) {
        host_swap_free(mm);
        return -ENOMEM;
    }
    s->buffer = s->scratch + PAGE_SIZE;
    return 0;
}

static void unreserve(void *p, uint64_t bytes)
{
    if (p) {
        munmap(p, bytes);
    }
}

/* See mm_impl.h. Also undoes a half-made one. */
void host_swap_free(struct host_mm *mm)
{
    struct host_swap *s = mm->swap;

    if (!s) {
        return;
    }
    if (s->uffd >= 0) {
        (void)!write(s->stop, &(uint64_t){1}, sizeof(uint64_t));
        pthread_join(s->watcher, NULL);
        close(s->uffd);
        close(s->stop);
    }
    unreserve(s->slots, s->nr * sizeof(*s->slots));
    unreserve(s->index, s->nr_index * sizeof(*s->index));
    unreserve(s->chunks, s->nr_chunks * sizeof(*s->chunks));
    unreserve(s->scratch, 2 * PAGE_SIZE);
    pthread_mutex_destroy(&s->lock);
    ZSTD_freeCCtx(s->cctx);
    ZSTD_freeDCtx(s->dctx);
    free(s);
    mm->swap = NULL;
}
