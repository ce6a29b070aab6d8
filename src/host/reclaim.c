/*
 * Reclaim: a clock hand over the mapped pages of an address space takes frames from pages that
 * nobody used since its last visit. "Used" is what the host entry's accessed bit and the second
 * stage say (notifiers' clear_young), so a page that a guest touches stays.
 *
 *   hand -> 2 MiB chunk:  huge entry: young? keep : split, then as below
 *                         small entries: young? clear and keep : candidate
 *           candidates of a chunk: notifiers start; entry out; pinned? back : free; notifiers end
 *              file or shared page   its bytes stay at its HVA: just unmapped
 *              anonymous page        swap.c
 *
 * Locks: mmap lock for writing. Left out: reclaim of other address spaces of the same memory.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/mm_impl.h"

#define BATCH 64

/* One pass of the hand. */
struct pass {
    struct host_mm *mm;
    uint64_t want, freed;
    uint64_t addr[BATCH]; /* candidates, ascending, of one chunk */
    uint64_t *entry[BATCH];
    unsigned n;
};

/* A range that device code is accessing. */
struct access {
    struct list node;
    uint64_t start, end;
};

/* See mm_impl.h. */
bool host_mm_in_access(const struct host_mm *mm, uint64_t start, uint64_t end)
{
    struct list *pos;

    list_for_each (pos, (struct list *)&mm->accesses) {
        const struct access *a = list_entry(pos, struct access, node);

        if (a->start < end && start < a->end) {
            return true;
        }
    }
    return false;
}

/* Was the range used since the last visit? Forgets it. */
static bool test_and_clear_young(struct host_mm *mm, uint64_t *entry, uint64_t start, uint64_t size)
{
    struct host_mmu_range range = {hva(start), hva(start + size), HOST_MMU_CLEAR};
    bool young = (__atomic_fetch_and(entry, ~X86_PTE_A, __ATOMIC_RELAXED) & X86_PTE_A) != 0;

    host_mm_count(mm, HOST_MM_reclaim_scanned, 1);
    if (host_notify_clear_young(mm, &range)) {
        young = true;
    }
    host_mm_count(mm, HOST_MM_reclaim_young, young);
    return young;
}

/* Let go of one candidate whose entry is out already. Returns what the entry becomes. */
static uint64_t evict_page(struct pass *p, uint64_t addr, uint64_t old)
{
    struct host_mm *mm = p->mm;
    pfn_t f = hpa_to_pfn(hpa(old & X86_PTE_ADDR_MASK));
    const struct host_frame *frame = &mm->hm->frames[f.v];
    uint64_t now = 0;

    if (f.v == mm->zero_pfn.v || (old & HOST_PTE_SPECIAL) || frame->type == HOST_FRAME_KSM) {
        return old;
    }
    if (__atomic_load_n(&frame->refcount, __ATOMIC_SEQ_CST) != 1u + host_frame_is_cached(mm, f)) {
        host_mm_count(mm, HOST_MM_reclaim_pinned, 1);
        return old;
    }
    if (frame->type == HOST_FRAME_ANON) {
        if (!mm->swap || host_swap_out(mm, addr, &now) != 0) {
            return old;
        }
    } else {
        host_mm_count(mm, HOST_MM_reclaim_file, 1);
    }
    if (host_frame_is_cached(mm, f)) {
        host_cache_unmapped(mm, f, addr, 1);
    }
    host_mm_count(mm, host_rss_of(mm, old), -1);
    host_frame_put(mm->hm, f);
    p->freed++;
    return now;
}

/* Evict the candidates collected so far. */
static void evict_batch(struct pass *p)
{
    struct host_mmu_range range;

    if (!p->n) {
        return;
    }
    range = (struct host_mmu_range){hva(p->addr[0]), hva(p->addr[p->n - 1] + PAGE_SIZE),
                                    HOST_MMU_CLEAR};
    host_notify_start(p->mm, &range);
    for (unsigned i = 0; i < p->n; i++) {
        uint64_t old = __atomic_exchange_n(p->entry[i], 0, __ATOMIC_SEQ_CST);

        __atomic_store_n(p->entry[i], evict_page(p, p->addr[i], old), __ATOMIC_SEQ_CST);
    }
    host_notify_end(p->mm, &range);
    p->n = 0;
}

static bool may_reclaim(const struct host_mm *mm, const struct host_vma *vma)
{
    const unsigned never_flags = HOST_VMA_PFNMAP | HOST_VMA_HUGETLB | HOST_VMA_LOCKED |
                                 HOST_VMA_UFFD_MISSING | HOST_VMA_UFFD_WP;

    if (vma->flags & never_flags) {
        return false;
    }
    return mm->swap || (vma->flags & (HOST_VMA_FILE | HOST_VMA_SHARED));
}

/* Entries of one chunk, cut to [start, end). */
static void scan_chunk(struct pass *p, const struct host_vma *vma, uint64_t start, uint64_t end)
{
    struct host_mm *mm = p->mm;
    unsigned level;
    uint64_t *entry = host_pt_find(mm, start, &level), value = host_pte_load(entry);
    bool anon = !(vma->flags & HOST_VMA_SHARED);

    if (level == 2 && (value & X86_PTE_P)) {
        uint64_t base = start & ~(HOST_HUGE_SIZE - 1);

        if (test_and_clear_young(mm, entry, base, HOST_HUGE_SIZE) ||
            host_pt_split(mm, start) != 0) {
            return;
        }
    } else if (level != 1) {
        return; /* nothing there */
    }
    if (host_mm_in_access(mm, start, end) ||
        (anon && mm->swap && host_swap_watch(mm, start, end) != 0)) {
        return;
    }
    for (uint64_t at = start; at < end && p->freed + p->n < p->want; at += PAGE_SIZE) {
        entry = host_pt_find(mm, at, &level);
        value = host_pte_load(entry);
        if (!(value & X86_PTE_P) || level != 1 || test_and_clear_young(mm, entry, at, PAGE_SIZE)) {
            continue;
        }
        p->addr[p->n] = at;
        p->entry[p->n++] = entry;
        if (p->n == BATCH) {
            evict_batch(p);
        }
    }
    evict_batch(p);
}

/* The hand over one VMA, from `from` on. Returns where it stopped. */
static uint64_t scan_vma(struct pass *p, const struct host_vma *vma, uint64_t from)
{
    uint64_t at = from > vma->start.v ? from : vma->start.v;

    while (at < vma->end.v && p->freed < p->want) {
        uint64_t chunk_end = (at & ~(HOST_HUGE_SIZE - 1)) + HOST_HUGE_SIZE;

        chunk_end = chunk_end < vma->end.v ? chunk_end : vma->end.v;
        scan_chunk(p, vma, at, chunk_end);
        at = chunk_end;
    }
    return at;
}

/* See mm.h. At most three rounds: the first clears accessed bits, the second finds what stayed
 * unused, the third makes up for a hand that began in the middle. Source: own, after the kernel's
 * clock. */
uint64_t host_mm_reclaim(struct host_mm *mm, uint64_t want)
{
    struct pass p = {.mm = mm, .want = want};
    unsigned rounds = 0;

    host_mm_count(mm, HOST_MM_reclaim_runs, 1);
    pthread_rwlock_wrlock(&mm->mmap_lock);
    while (p.freed < want && rounds < 3) {
        size_t i = host_vma_lower(&mm->vmas, mm->hand);

        if (i == mm->vmas.n) {
            mm->hand = 0;
            rounds++;
            continue;
        }
        if (may_reclaim(mm, &mm->vmas.v[i])) {
            mm->hand = scan_vma(&p, &mm->vmas.v[i], mm->hand);
        } else {
            mm->hand = mm->vmas.v[i].end.v;
        }
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return p.freed;
}

/* Bring back every swapped page of [start, end) to its HVA; entries become absent. A page whose
 * mapping is gone is forgotten. Lock: mmap write. */
void host_swap_restore_range(struct host_mm *mm, uint64_t start, uint64_t end)
{
    uint64_t at = start;

    while (mm->swap && at < end) {
        unsigned level;
        uint64_t *entry = host_pt_find(mm, at, &level), value = host_pte_load(entry);

        if (host_pte_is_swap(value)) {
            host_swap_lock(mm);
            if (host_swap_in(mm, at, value) == 0) {
                value = 0;
            }
            host_swap_unlock(mm);
            if (value) {
                host_swap_drop(mm, value);
            }
            __atomic_store_n(entry, 0, __ATOMIC_SEQ_CST);
        }
        at = (at & ~(pt_leaf_size(level) - 1)) + pt_leaf_size(level);
    }
}

/* See mm.h. Lock: takes the mmap lock. */
int host_mm_swap_off(struct host_mm *mm)
{
    pthread_rwlock_wrlock(&mm->mmap_lock);
    host_swap_restore_range(mm, 0, host_mm_limit(mm));
    pthread_rwlock_unlock(&mm->mmap_lock);
    return 0;
}

/* Are the page's bytes away in a merged frame? They stay home once here: merging sees the
 * access. */
static bool is_merged(struct host_mm *mm, uint64_t addr)
{
    unsigned level;
    uint64_t value;
    bool merged;

    if (addr >= host_mm_limit(mm)) {
        return false;
    }
    pthread_rwlock_rdlock(&mm->mmap_lock);
    value = host_pte_load(host_pt_find(mm, addr, &level));
    merged = level == 1 && (value & X86_PTE_P) &&
             mm->hm->frames[(value & X86_PTE_ADDR_MASK) >> PAGE_SHIFT].type == HOST_FRAME_KSM;
    pthread_rwlock_unlock(&mm->mmap_lock);
    return merged;
}

/* See mm.h. Adding the range under the mmap lock orders it against reclaim: either reclaim sees
 * it, or what reclaim took before is brought in here. */
int host_mm_access_begin(struct host_mm *mm, hva_t start, hva_t end)
{
    struct access *a = host_calloc(mm->hm, 1, sizeof(*a));

    if (!a) {
        return -ENOMEM;
    }
    a->start = start.v & PAGE_MASK;
    a->end = (end.v + PAGE_SIZE - 1) & PAGE_MASK;
    pthread_rwlock_wrlock(&mm->mmap_lock);
    list_add_tail(&mm->accesses, &a->node);
    pthread_rwlock_unlock(&mm->mmap_lock);
    for (uint64_t at = a->start; at < a->end; at += PAGE_SIZE) {
        int err = host_handle_mm_fault(mm, hva(at), is_merged(mm, at) ? HOST_FAULT_WRITE : 0);

        if (err) {
            host_mm_access_end(mm, start, end);
            return err;
        }
    }
    return 0;
}

/* See mm.h. */
void host_mm_access_end(struct host_mm *mm, hva_t start, hva_t end)
{
    struct list *pos;

    pthread_rwlock_wrlock(&mm->mmap_lock);
    list_for_each (pos, &mm->accesses) {
        struct access *a = list_entry(pos, struct access, node);

        if (a->start == (start.v & PAGE_MASK) && a->end == ((end.v + PAGE_SIZE - 1) & PAGE_MASK)) {
            list_del(&a->node);
            free(a);
            break;
        }
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
}
