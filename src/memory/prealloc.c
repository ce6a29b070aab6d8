/*
 * Preallocation: the kernel is asked to populate the block chunk by chunk (it reports a lack of huge
 * pages as an error, where touching would end in SIGBUS); chunks are handed to a few threads from
 * one counter, and after each the caller hears how far it is and may cancel.
 */
#include "memory/prealloc.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK       (UINT64_C(64) << 20)
#define MAX_THREADS 16

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct prealloc {
    struct strata_ram *ram;
    const struct strata_ram_desc *desc;
    uint64_t next;        /* atomic: start of the next chunk */
    uint64_t done;        /* under lock */
    int error;            /* atomic: first errno */
    pthread_mutex_t lock; /* around progress(), and done */
};

/* Read and write back one byte of each page: for kernels that cannot populate. */
static void touch(uint8_t *p, uint64_t len, uint64_t page)
{
    for (uint64_t i = 0; i < len; i += page) {
        __atomic_fetch_add(&p[i], 0, __ATOMIC_RELAXED);
    }
}

static int populate(const struct strata_ram *ram, uint64_t at, uint64_t len)
{
    while (madvise(ram->host + at, len, MADV_POPULATE_WRITE) != 0) {
        if (errno == EINVAL && ram->page_size == 4096) {
            touch(ram->host + at, len, ram->page_size);
            return 0;
        }
        if (errno != EINTR && errno != EAGAIN) {
            return errno;
        }
    }
    return 0;
}

static void fail_once(struct prealloc *p, int code)
{
    int none = 0;

    __atomic_compare_exchange_n(&p->error, &none, code, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static void *worker(void *arg)
{
    struct prealloc *p = arg;
    uint64_t total = p->ram->size;

    while (!__atomic_load_n(&p->error, __ATOMIC_RELAXED)) {
        uint64_t at = __atomic_fetch_add(&p->next, CHUNK, __ATOMIC_RELAXED);
        uint64_t len = at < total ? (total - at < CHUNK ? total - at : CHUNK) : 0;
        int code;

        if (!len) {
            break;
        }
        code = populate(p->ram, at, len);
        if (code) {
            fail_once(p, code);
            break;
        }
        pthread_mutex_lock(&p->lock);
        p->done += len;
        if (p->desc->progress && !p->desc->progress(p->desc->opaque, p->done, total)) {
            fail_once(p, ECANCELED);
        }
        pthread_mutex_unlock(&p->lock);
    }
    return NULL;
}

/*
 * Touch all of a block's used size with desc->prealloc_threads threads (the caller's is one of them;
 * fewer when threads cannot be had). Returns 0; -ECANCELED when progress() said so; -ENOMEM and the
 * like from the kernel. Lock: the handle's, held; progress() must not use the handle.
 */
int memory_prealloc(struct strata_ram *ram, const struct strata_ram_desc *desc)
{
    struct prealloc p = {.ram = ram, .desc = desc};
    pthread_t thread[MAX_THREADS];
    unsigned n = desc->prealloc_threads ? desc->prealloc_threads - 1 : 0, started = 0;

    if (ram->flags & STRATA_RAM_READONLY) {
        return 0; /* nothing could be written, so nothing is ours to allocate */
    }
    pthread_mutex_init(&p.lock, NULL);
    n = n < MAX_THREADS ? n : MAX_THREADS;
    while (started < n && pthread_create(&thread[started], NULL, worker, &p) == 0) {
        started++;
    }
    worker(&p);
    while (started > 0) {
        pthread_join(thread[--started], NULL);
    }
    pthread_mutex_destroy(&p.lock);
    return p.error ? memory_fail(ram->mem, p.error, "RAM '%s': allocating ahead: %s", ram->name,
                                 strerror(p.error))
                   : 0;
}
