/*
 * A host address space: creation, changes of its VMAs (map, advise, recheck; change.c has the
 * rest), figures and the check of its invariants.
 *
 * Every change of mappings: check, reserve memory, mmap lock for writing, split huge entries
 * across the ends, notifiers' start, entries and frames, VMAs, notifiers' end. After the first
 * notifier nothing fails.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/mm_impl.h"

static const struct base_trace no_trace;

static void init_locks(struct host_mm *mm)
{
    pthread_rwlockattr_t attr;

    pthread_rwlockattr_init(&attr);
    /* A stream of faults must not keep an unmap waiting for ever. */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&mm->mmap_lock, &attr);
    pthread_rwlock_init(&mm->notifier_lock, NULL);
    pthread_mutex_init(&mm->cache.lock, NULL);
    base_lock_set_rank(&mm->mmap_lock, BASE_RANK_MMAP);
    base_lock_set_rank(&mm->notifier_lock, BASE_RANK_NOTIFIERS);
    base_lock_set_rank(&mm->cache.lock, BASE_RANK_CACHE);
    pthread_rwlockattr_destroy(&attr);
    list_init(&mm->notifiers);
}

/* Enter the finished address space into its memory's table. 0 or -ENOSPC. */
static int enter(struct host_mm *mm)
{
    struct host_memory_impl *m = host_impl(mm->hm);

    pthread_rwlock_wrlock(&m->mms_lock);
    for (unsigned i = 1; i < ARRAY_LEN(m->mms) && !mm->id; i++) {
        if (!m->mms[i]) {
            m->mms[i] = mm;
            mm->id = (uint8_t)i;
        }
    }
    pthread_rwlock_unlock(&m->mms_lock);
    return mm->id ? 0 : -ENOSPC;
}

/* After this nobody finds the address space by its frames. */
static void leave(struct host_mm *mm)
{
    struct host_memory_impl *m = host_impl(mm->hm);

    pthread_rwlock_wrlock(&m->mms_lock);
    m->mms[mm->id] = NULL;
    pthread_rwlock_unlock(&m->mms_lock);
}

static void free_frames(struct host_mm *mm)
{
    host_pt_free_all(mm);
    if (mm->zero_pfn.v) {
        host_table_free(mm->hm, pfn_to_hpa(mm->zero_pfn));
    }
}

static int make_parts(struct host_mm *mm, const struct host_mm_options *o)
{
    int err = host_daemon_new(mm);

    if (err) {
        return err;
    }
    err = o->swap_pages ? host_swap_new(mm, o->swap_pages, o->announced) : 0;

    return !err && o->announced ? host_ksm_new(mm) : err;
}

static int make_frames(struct host_mm *mm)
{
    hpa_t zero;
    int err = host_table_alloc(mm->hm, HOST_FRAME_HOST_PT, &mm->root);

    if (err || !mm->zero_page) {
        return err;
    }
    err = host_table_alloc(mm->hm, HOST_FRAME_ZERO, &zero);
    if (err) {
        host_table_free(mm->hm, mm->root);
        return err;
    }
    mm->zero_pfn = hpa_to_pfn(zero);
    return 0;
}

/* See mm.h. Source: own. */
int host_mm_new(struct host_memory *hm, const struct host_mm_options *options, struct host_mm **out)
{
    struct host_mm_options none = {0};
    const struct host_mm_options *o = options ? options : &none;
    unsigned levels = o->levels ? o->levels : 4;
    struct host_mm *mm;
    int err;

    if ((levels != 4 && levels != 5) || o->thp > HOST_THP_NEVER) {
        return -EINVAL;
    }
    mm = host_calloc_aligned(hm, 64, sizeof(*mm));
    if (!mm) {
        return -ENOMEM;
    }
    mm->hm = hm;
    mm->levels = levels;
    mm->thp = o->thp;
    mm->zero_page = o->zero_page;
    mm->source = o->source ? *o->source : host_map_source_process;
    mm->trace = o->trace ? o->trace : &no_trace;
    list_init(&mm->accesses);
    init_locks(mm);
    err = make_parts(mm, o);
    if (!err) {
        err = make_frames(mm);
    }
    if (err) {
        goto fail_frames;
    }
    err = enter(mm);
    if (err) {
        goto fail_enter;
    }
    *out = mm;
    return 0;

fail_enter:
    free_frames(mm);
    host_cache_fini(mm);
fail_frames:
    host_daemon_free(mm);
    host_ksm_free(mm);
    host_swap_free(mm);
    free(mm);
    return err;
}

/* See mm.h. No other thread uses the address space any more. */
void host_mm_free(struct host_mm *mm)
{
    if (!mm) {
        return;
    }
    host_daemon_free(mm);
    leave(mm);
    host_notify_release(mm);
    host_ksm_restore_range(mm, 0, host_mm_limit(mm));
    host_swap_restore_range(mm, 0, host_mm_limit(mm)); /* the process goes on with its memory */
    free_frames(mm);
    host_cache_fini(mm);
    host_ksm_free(mm);
    host_swap_free(mm);
    pthread_rwlock_destroy(&mm->mmap_lock);
    pthread_rwlock_destroy(&mm->notifier_lock);
    free(mm->vmas.v);
    free(mm);
}

struct host_memory *host_mm_memory(struct host_mm *mm)
{
    return mm->hm;
}

/* See mm_impl.h. */
bool host_mm_range_ok(const struct host_mm *mm, hva_t start, hva_t end)
{
    return start.v < end.v && end.v <= host_mm_limit(mm) && !page_offset(start.v) &&
           !page_offset(end.v);
}

/* Does addr cut a page of a hugetlb VMA in two? */
static bool cuts_hugetlb(const struct host_mm *mm, uint64_t addr)
{
    const struct host_vma *vma = host_vma_find(&mm->vmas, addr);

    return vma && (vma->flags & HOST_VMA_HUGETLB) &&
           (addr & ((UINT64_C(1) << vma->page_shift) - 1));
}

/* See mm_impl.h. Lock: mmap lock held for writing. */
int host_mm_prepare(struct host_mm *mm, uint64_t start, uint64_t end)
{
    int err = host_vma_reserve(mm->hm, &mm->vmas, 3);

    if (cuts_hugetlb(mm, start) || cuts_hugetlb(mm, end)) {
        return -EINVAL;
    }
    return err ? err : host_pt_split_ends(mm, start, end);
}

/* See mm.h. Lock: takes the mmap lock. Source: own, after mmap() with a fixed address. */
int host_mm_map(struct host_mm *mm, const struct host_vma *vma)
{
    struct host_vma new = *vma;
    int err;

    new.page_shift = new.page_shift ? new.page_shift : PAGE_SHIFT;
    if (!host_mm_range_ok(mm, new.start, new.end) ||
        (new.flags &HOST_VMA_HUGETLB &&
         ((new.page_shift != 21 && new.page_shift != 30) ||
          ((new.start.v | new.end.v) & ((UINT64_C(1) << new.page_shift) - 1))))) {
        return -EINVAL;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = host_mm_prepare(mm, new.start.v, new.end.v);
    if (!err) {
        struct host_mmu_range range = {new.start, new.end, HOST_MMU_UNMAP};

        host_notify_start(mm, &range);
        host_pt_zap(mm, new.start.v, new.end.v);
        host_swap_unwatch(mm, new.start.v, new.end.v);
        host_vma_clear_range(&mm->vmas, new.start.v, new.end.v);
        host_vma_insert(&mm->vmas, &new);
        host_vma_merge_around(&mm->vmas, new.start.v, new.end.v);
        host_notify_end(mm, &range);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* See mm_impl.h. Lock: mmap lock held for writing, room reserved. */
void host_mm_change_flags(struct host_mm *mm, uint64_t start, uint64_t end, unsigned set,
                         unsigned clear)
{
    host_vma_split_at(&mm->vmas, start);
    host_vma_split_at(&mm->vmas, end);
    for (size_t i = host_vma_lower(&mm->vmas, start); i < mm->vmas.n && mm->vmas.v[i].start.v < end;
         i++) {
        mm->vmas.v[i].flags = (mm->vmas.v[i].flags & ~clear) | set;
    }
    host_vma_merge_around(&mm->vmas, start, end);
}

/* See mm.h. Lock: takes the mmap lock. Source: after madvise() and mlock(). */
int host_mm_advise(struct host_mm *mm, hva_t start, hva_t end, unsigned set, unsigned clear)
{
    const unsigned all = HOST_VMA_HUGEPAGE | HOST_VMA_NOHUGEPAGE | HOST_VMA_LOCKED |
                         HOST_VMA_MERGEABLE | HOST_VMA_UFFD_MISSING | HOST_VMA_UFFD_WP |
                         HOST_VMA_DONTFORK;
    int err;

    if (!host_mm_range_ok(mm, start, end) || ((set | clear) & ~all)) {
        return -EINVAL;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    err = host_vma_covers(&mm->vmas, start.v, end.v) ? host_vma_reserve(mm->hm, &mm->vmas, 3)
                                                     : -ENOMEM;
    if (!err) {
        host_mm_change_flags(mm, start.v, end.v, set, clear);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* See mm.h. */
int host_mm_find_vma(struct host_mm *mm, hva_t addr, struct host_vma *out)
{
    const struct host_vma *vma;
    int err = addr.v >= host_mm_limit(mm) ? -EFAULT : 0;

    while (!err) {
        pthread_rwlock_rdlock(&mm->mmap_lock);
        vma = host_vma_find(&mm->vmas, addr.v);
        if (vma) {
            *out = *vma;
        }
        pthread_rwlock_unlock(&mm->mmap_lock);
        if (vma) {
            return 0;
        }
        err = host_mm_import(mm, addr.v & PAGE_MASK);
    }
    return err;
}

enum change {
    SAME,
    OTHER_RIGHTS, /* the same memory, its bytes still wanted */
    GONE,
};

/* What does the source say now of the part of the VMA that starts at addr? Sets *until. */
static enum change compare_vma(struct host_mm *mm, const struct host_vma *vma, uint64_t addr,
                               uint64_t *until)
{
    const unsigned rights = HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_EXEC;
    const unsigned told = HOST_VMA_SHARED | HOST_VMA_FILE | HOST_VMA_HUGETLB | HOST_VMA_PFNMAP;
    struct host_vma now;

    if (mm->source.query(mm->source.opaque, hva(addr), &now) != 0 || now.start.v > addr ||
        now.end.v <= addr) {
        *until = addr + PAGE_SIZE;
        return GONE;
    }
    *until = now.end.v < vma->end.v ? now.end.v : vma->end.v;
    if (((now.flags ^ vma->flags) & told) || now.dev != vma->dev || now.ino != vma->ino ||
        (vma->flags & HOST_VMA_FILE && (now.offset - now.start.v != vma->offset - vma->start.v ||
                                        now.file_end < vma->file_end))) {
        return GONE; /* or truncated */
    }
    return (now.flags ^ vma->flags) & rights ? OTHER_RIGHTS : SAME;
}

/* First range in [start, end) of an imported VMA that changed, and how. */
static enum change find_changed(struct host_mm *mm, uint64_t start, uint64_t end, uint64_t *from,
                                uint64_t *to)
{
    enum change changed = SAME;

    pthread_rwlock_rdlock(&mm->mmap_lock);
    for (size_t i = host_vma_lower(&mm->vmas, start);
         changed == SAME && i < mm->vmas.n && mm->vmas.v[i].start.v < end; i++) {
        const struct host_vma *vma = &mm->vmas.v[i];
        uint64_t at = vma->start.v > start ? vma->start.v : start;

        while ((vma->flags & HOST_VMA_IMPORTED) && at < vma->end.v && at < end) {
            *from = at;
            changed = compare_vma(mm, vma, at, to);
            if (changed != SAME) {
                break;
            }
            at = *to;
        }
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return changed;
}

/* See mm.h. A changed part is forgotten: the next fault learns what is there. VMAs given by hand
 * are not judged. Lock: takes the mmap lock. Source: own. */
int host_mm_recheck(struct host_mm *mm, hva_t start, hva_t end)
{
    uint64_t from, to, at = start.v;
    int changed = 0;

    if (!host_mm_range_ok(mm, start, end)) {
        return -EINVAL;
    }
    while (at < end.v) {
        enum change change = find_changed(mm, at, end.v, &from, &to);
        int err;

        if (change == SAME) {
            break;
        }
        to = to < end.v ? to : end.v;
        err = change == OTHER_RIGHTS ? host_mm_withdraw(mm, hva(from), hva(to))
                                     : host_mm_unmap(mm, hva(from), hva(to));
        if (err) {
            return err;
        }
        changed++;
        at = to;
    }
    return changed;
}

/* See mm.h. */
int host_mm_note_write(struct host_mm *mm, hva_t start, hva_t end)
{
    for (uint64_t at = start.v & PAGE_MASK; at < end.v; at += PAGE_SIZE) {
        if (host_mapping_level(mm, hva(at))) {
            int err = host_handle_mm_fault(mm, hva(at), HOST_FAULT_WRITE);

            if (err) {
                return err;
            }
        }
    }
    return 0;
}

/* See mm.h. */
void host_mm_get_stats(struct host_mm *mm, struct host_mm_stats *out)
{
    memset(out, 0, sizeof(*out));
    for (unsigned i = 0; i < HOST_WALK_SLOTS; i++) {
#define ADD_COUNTER(name)                                                                          \
    out->name += __atomic_load_n(&mm->slot[i].counter[HOST_MM_##name], __ATOMIC_RELAXED);
        HOST_MM_COUNTERS(ADD_COUNTER)
#undef ADD_COUNTER
    }
}
