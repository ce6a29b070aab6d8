/*
 * What the embedding process does to its own mappings: munmap, mremap, mprotect, discard, fork, each in
 * two halves around the process's own system call.
 *
 *   host_mm_change_begin    check, room, mmap lock, notifiers' start, entries and frames go
 *     the process's own call
 *   host_mm_change_end      the VMAs become what was announced, notifiers' end, mmap lock let go
 *
 * Between the two nothing of the range can be resolved again: faults wait for the mmap lock, lock-free
 * walks find no entries. So a processor never gets a page of the old mapping back while it goes.
 *
 * Invariant: after the first notifier nothing fails.
 * Locks: the mmap lock, held for writing from begin to end, by one thread.
 */
#include <errno.h>

#include "host/mm_impl.h"

/* Write-protect the private entries of one VMA. Lock: mmap write, huge entries split. */
static void protect_private(struct host_mm *mm, const struct host_vma *vma)
{
    uint64_t at = vma->start.v;

    while (at < vma->end.v) {
        unsigned level;
        uint64_t *entry = host_pt_find(mm, at, &level), value = host_pte_load(entry);

        if (level == 1 && (value & (X86_PTE_P | X86_PTE_W)) == (X86_PTE_P | X86_PTE_W)) {
            __atomic_store_n(entry, (value & ~X86_PTE_W) | HOST_PTE_COW, __ATOMIC_SEQ_CST);
        }
        at = (at & ~(pt_leaf_size(level) - 1)) + pt_leaf_size(level);
    }
}

static bool is_copied(const struct host_vma *vma)
{
    return !(vma->flags &
             (HOST_VMA_SHARED | HOST_VMA_PFNMAP | HOST_VMA_HUGETLB | HOST_VMA_DONTFORK));
}

/* Small entries wherever a fork write-protects. Lock: mmap write. 0 or -ENOMEM. */
static int split_private(struct host_mm *mm)
{
    int err = 0;

    for (size_t i = 0; i < mm->vmas.n; i++) {
        const struct host_vma *vma = &mm->vmas.v[i];

        for (uint64_t at = vma->start.v; is_copied(vma) && at < vma->end.v && !err;
             at = (at & ~(HOST_HUGE_SIZE - 1)) + HOST_HUGE_SIZE) {
            err = host_pt_split(mm, at);
        }
    }
    return err;
}

/* What must hold, and be at hand, before anything changes. Lock: mmap write. */
static int prepare(struct host_change *c)
{
    if (c->kind == HOST_CHANGE_FORK) {
        const struct host_vma_set *set = &c->mm->vmas;

        c->range.start = set->n ? set->v[0].start : hva(0);
        c->range.end = set->n ? set->v[set->n - 1].end : hva(PAGE_SIZE);
        return split_private(c->mm);
    }
    if (c->kind == HOST_CHANGE_PROTECT &&
        !host_vma_covers(&c->mm->vmas, c->range.start.v, c->range.end.v)) {
        if (!c->may_have_holes) {
            return -ENOMEM;
        }
        c->kind = HOST_CHANGE_MOVE; /* what is known of it is forgotten and learnt anew */
    }
    return host_mm_prepare(c->mm, c->range.start.v, c->range.end.v);
}

/* Entries and frames. Lock: mmap write; between the notifiers. */
static void take_out(struct host_change *c)
{
    uint64_t start = c->range.start.v, end = c->range.end.v;
    struct host_mm *mm = c->mm;

    switch (c->kind) {
    case HOST_CHANGE_MOVE:
        host_ksm_restore_range(mm, start, end);
        host_swap_restore_range(mm, start, end);
        host_pt_zap(mm, start, end);
        break;
    case HOST_CHANGE_UNMAP:
    case HOST_CHANGE_DISCARD:
        host_pt_zap(mm, start, end);
        break;
    case HOST_CHANGE_PROTECT:
        host_ksm_restore_range(mm, start, end);
        host_pt_zap_present(mm, start, end);
        break;
    case HOST_CHANGE_FORK:
        for (size_t i = 0; i < mm->vmas.n; i++) {
            if (is_copied(&mm->vmas.v[i])) {
                protect_private(mm, &mm->vmas.v[i]);
            }
        }
        break;
    }
}

/*
 * First half of a change of [c->range.start, c->range.end), page aligned; for a fork the range is not
 * looked at. c: filled in by the caller (mm, kind, start, end, prot, may_have_holes), kept by it until
 * host_mm_change_end(), which must follow in the same thread exactly when 0 is returned.
 * Returns 0; -EINVAL (range or rights; or an end inside a hugetlb page); -ENOMEM (nothing changed; for
 * PROTECT without may_have_holes also: a part of the range is not mapped).
 * Lock: takes the mmap lock and keeps it. Source: after the kernel's munmap, mprotect, mremap, MADV_DONTNEED and the parent's half of fork.
 */
int host_mm_change_begin(struct host_change *c)
{
    const unsigned rights = HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_EXEC;
    int err;

    if (c->kind != HOST_CHANGE_FORK &&
        (!host_mm_range_ok(c->mm, c->range.start, c->range.end) || (c->prot & ~rights))) {
        return -EINVAL;
    }
    pthread_rwlock_wrlock(&c->mm->mmap_lock);
    err = prepare(c);
    if (err) {
        pthread_rwlock_unlock(&c->mm->mmap_lock);
        return err;
    }
    c->range.event = c->kind == HOST_CHANGE_PROTECT || c->kind == HOST_CHANGE_FORK
                         ? HOST_MMU_PROTECT
                         : HOST_MMU_UNMAP;
    host_notify_start(c->mm, &c->range);
    take_out(c);
    return 0;
}

/*
 * Second half. done: the process's own call has succeeded; else the VMAs stay as they were and pages are
 * resolved anew at their next use. Lock: lets the mmap lock go.
 */
void host_mm_change_end(struct host_change *c, bool done)
{
    uint64_t start = c->range.start.v, end = c->range.end.v;
    struct host_mm *mm = c->mm;

    if (done && (c->kind == HOST_CHANGE_UNMAP || c->kind == HOST_CHANGE_MOVE)) {
        host_swap_unwatch(mm, start, end);
        host_vma_clear_range(&mm->vmas, start, end);
    } else if (done && c->kind == HOST_CHANGE_PROTECT) {
        host_mm_change_flags(mm, start, end, c->prot, HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_EXEC);
    }
    host_notify_end(mm, &c->range);
    pthread_rwlock_unlock(&mm->mmap_lock);
}

/* Both halves at once, for what has been done or is done under no processor's eyes. */
static int change_now(struct host_mm *mm, enum host_change_kind kind, hva_t start, hva_t end,
                      unsigned prot)
{
    struct host_change c = {.mm = mm, .kind = kind, .range = {.start = start, .end = end}, .prot = prot};
    int err = host_mm_change_begin(&c);

    if (!err) {
        host_mm_change_end(&c, true);
    }
    return err;
}

/* See mm.h. */
int host_mm_unmap(struct host_mm *mm, hva_t start, hva_t end)
{
    return change_now(mm, HOST_CHANGE_UNMAP, start, end, 0);
}

/* See mm.h. */
int host_mm_withdraw(struct host_mm *mm, hva_t start, hva_t end)
{
    return change_now(mm, HOST_CHANGE_MOVE, start, end, 0);
}

/* See mm.h. */
int host_mm_discard(struct host_mm *mm, hva_t start, hva_t end)
{
    return change_now(mm, HOST_CHANGE_DISCARD, start, end, 0);
}

/* See mm.h. Entries go, and their frames with them: the page keeps its contents at its HVA, so that the
 * next access, judged anew, may bring it any frame. */
int host_mm_protect(struct host_mm *mm, hva_t start, hva_t end, unsigned prot)
{
    return change_now(mm, HOST_CHANGE_PROTECT, start, end, prot);
}

/* See mm.h. */
int host_mm_forked(struct host_mm *mm)
{
    return change_now(mm, HOST_CHANGE_FORK, hva(0), hva(0), 0);
}
