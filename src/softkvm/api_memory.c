/*
 * The calls by which the embedding process tells what it does to its own memory. The work is the host's
 * (host/change.c); notifiers carry it to the second stage of every VM.
 *
 * Locks: the mmap lock of the instance's address space, between begin and end; else none.
 */
#include <errno.h>
#include <sys/mman.h>

#include "host/mm.h"
#include "softkvm/engine.h"
#include "softkvm/softkvm.h"

_Static_assert(sizeof(struct host_change) <= sizeof(struct softkvm_memory_change), "the ABI's room");

static hva_t range_start(const void *start)
{
    return hva((uintptr_t)start & PAGE_MASK);
}

static hva_t range_end(const void *start, size_t length)
{
    return hva(((uintptr_t)start + length + PAGE_SIZE - 1) & PAGE_MASK);
}

static unsigned rights_of(int prot)
{
    return (prot & PROT_READ ? HOST_VMA_READ : 0) | (prot & PROT_WRITE ? HOST_VMA_WRITE : 0) |
           (prot & PROT_EXEC ? HOST_VMA_EXEC : 0);
}

/* See softkvm.h. Source: own. */
int softkvm_memory_begin(struct softkvm *s, struct softkvm_memory_change *change,
                         enum softkvm_change kind, void *start, size_t length, int prot)
{
    static const enum host_change_kind kinds[] = {
        [SOFTKVM_CHANGE_UNMAP] = HOST_CHANGE_UNMAP,     [SOFTKVM_CHANGE_DISCARD] = HOST_CHANGE_DISCARD,
        [SOFTKVM_CHANGE_PROTECT] = HOST_CHANGE_PROTECT, [SOFTKVM_CHANGE_MOVE] = HOST_CHANGE_MOVE,
        [SOFTKVM_CHANGE_FORK] = HOST_CHANGE_FORK,
    };
    struct host_change *c = (struct host_change *)(void *)change;

    if ((unsigned)kind >= ARRAY_LEN(kinds)) {
        return -EINVAL;
    }
    *c = (struct host_change){.mm = s->mm,
                              .kind = kinds[kind],
                              .range = {.start = range_start(start), .end = range_end(start, length)},
                              .prot = rights_of(prot),
                              .may_have_holes = true};
    return host_mm_change_begin(c);
}

/* See softkvm.h. */
void softkvm_memory_end(struct softkvm_memory_change *change, bool done)
{
    host_mm_change_end((struct host_change *)(void *)change, done);
}

static int change_now(struct softkvm *s, enum softkvm_change kind, void *start, size_t length, int prot)
{
    struct softkvm_memory_change c;
    int r = softkvm_memory_begin(s, &c, kind, start, length, prot);

    if (!r) {
        softkvm_memory_end(&c, true);
    }
    return r;
}

/* See softkvm.h. */
int softkvm_memory_unmapped(struct softkvm *s, void *start, size_t length)
{
    return change_now(s, SOFTKVM_CHANGE_UNMAP, start, length, 0);
}

/* See softkvm.h. */
int softkvm_memory_discarded(struct softkvm *s, void *start, size_t length)
{
    return change_now(s, SOFTKVM_CHANGE_DISCARD, start, length, 0);
}

/* See softkvm.h. */
int softkvm_memory_protected(struct softkvm *s, void *start, size_t length, int prot)
{
    return change_now(s, SOFTKVM_CHANGE_PROTECT, start, length, prot);
}

/* See softkvm.h. */
int softkvm_memory_access_begin(struct softkvm *s, void *start, size_t length)
{
    return host_mm_access_begin(s->mm, hva((uintptr_t)start), hva((uintptr_t)start + length));
}

/* See softkvm.h. */
void softkvm_memory_access_end(struct softkvm *s, void *start, size_t length)
{
    host_mm_access_end(s->mm, hva((uintptr_t)start), hva((uintptr_t)start + length));
}
