/*
 * Allocation, the topology lock, error texts and random bits of a handle; see handle.h.
 */
#include "memory/handle.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *call_realloc(struct strata_memory *mem, void *p, size_t size, size_t old_size)
{
    if (mem->config.realloc) {
        return mem->config.realloc(mem->config.alloc_ctx, p, size, old_size);
    }
    if (size == 0) {
        free(p);
        return NULL;
    }
    return realloc(p, size);
}

/* Memory from the handle's allocator, uninitialised; null when there is none. Any thread. */
void *memory_alloc(struct strata_memory *mem, size_t size)
{
    return call_realloc(mem, NULL, size, 0);
}

/* The same, zeroed. */
void *memory_zalloc(struct strata_memory *mem, size_t size)
{
    void *p = memory_alloc(mem, size);

    if (p) {
        memset(p, 0, size);
    }
    return p;
}

/* Give back what was allocated with this size; null is fine. */
void memory_free(struct strata_memory *mem, void *p, size_t size)
{
    if (p) {
        call_realloc(mem, p, 0, size);
    }
}

/*
 * Make an array of items at least `need` long. array: address of the pointer; cap: items it has
 * room for. Grows by half. 0 or -ENOMEM, with the old array whole.
 */
int memory_grow(struct strata_memory *mem, void *array, size_t *cap, size_t need, size_t item_size)
{
    void **slot = array;
    size_t new_cap = *cap + *cap / 2 + 8;
    void *p;

    if (need <= *cap) {
        return 0;
    }
    new_cap = new_cap < need ? need : new_cap;
    p = call_realloc(mem, *slot, new_cap * item_size, *cap * item_size);
    if (!p) {
        return memory_fail_alloc(mem);
    }
    *slot = p;
    *cap = new_cap;
    return 0;
}

/* A copy of text, to be freed with size strlen + 1. */
char *memory_strdup(struct strata_memory *mem, const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = memory_alloc(mem, size);

    return copy ? memcpy(copy, text, size) : NULL;
}

/* Take the topology lock; it is recursive. */
void memory_lock(struct strata_memory *mem)
{
    pthread_mutex_lock(&mem->lock);
    mem->holds++;
}

/*
 * Let go of the topology lock. The last release also frees what has become free meanwhile: the
 * grace-period callback only tries the lock, so whoever held it looks again after letting go.
 */
void memory_unlock(struct strata_memory *mem)
{
    bool last = --mem->holds == 0;

    pthread_mutex_unlock(&mem->lock);
    while (last && __atomic_load_n(&mem->retire.done, __ATOMIC_SEQ_CST)) {
        if (pthread_mutex_trylock(&mem->lock) != 0) {
            break;
        }
        mem->holds++;
        memory_retire_collect(mem);
        mem->holds--;
        pthread_mutex_unlock(&mem->lock);
    }
}

/* 32 random bits (splitmix64), for treap balance only. Lock: held. */
uint32_t memory_random(struct strata_memory *mem)
{
    uint64_t z = (mem->random += 0x9e3779b97f4a7c15u);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

/*
 * Note words for a failure and return -code. Lock: held, or the handle not yet shared.
 */
int memory_fail(struct strata_memory *mem, int code, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    vsnprintf(mem->error.text, sizeof(mem->error.text), fmt, args);
    va_end(args);
    return -code;
}

/* The one text for an allocation that failed. */
int memory_fail_alloc(struct strata_memory *mem)
{
    return memory_fail(mem, ENOMEM, "out of memory");
}
