/*
 * Same-page merging: pages of equal contents in MERGEABLE VMAs share one read-only frame with
 * storage of its own, and their memory in the process is given back. The first write brings the
 * bytes home.
 *
 *   scan  hash the page -> a merged frame of that hash?  entry out, compare, entry -> that frame
 *                       -> a page seen in this pass?     it becomes a merged frame, then as above
 *   write (fault.c)     bytes back to the HVA, a frame of its own
 *
 * Contents are compared after notifiers took the page from the second stage and the entry is out,
 * so that no guest can write in between. The process itself must announce its accesses
 * (host_mm_options): only then may its bytes be away.
 *
 * Invariants: a merged frame has type KSM, refcount = 1 (the table's) + entries; `next` is its
 * hash.
 * Locks: `lock`, inside the mmap lock: unmerging happens under the mmap lock held for reading, and
 * one of two threads must do it. Scanning holds the mmap lock for writing. Left out: merging
 * across address spaces, merging of huge pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include "host/mm_impl.h"

#define TABLE_SIZE  (1u << 14)
#define PROBE_LIMIT 8u

struct host_ksm {
    pthread_mutex_t lock;
    uint64_t hand;
    uint32_t stable[TABLE_SIZE]; /* pfns of merged frames, by hash, short open probing */
    uint64_t page[2][PAGE_SIZE / sizeof(uint64_t)]; /* copies to compare; mmap lock for writing */
    uint64_t seen[TABLE_SIZE]; /* addresses of this pass, by hash: the last one of each */
};

/* Copy the page at addr. By a system call, not by loads: its mapping may have gone without our
 * hearing of it, and a guest may be writing to it. */
static bool read_page(uint64_t addr, void *copy)
{
    struct iovec to = {copy, PAGE_SIZE}, from = {hva_to_ptr(hva(addr)), PAGE_SIZE};

    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)PAGE_SIZE;
}

static uint32_t hash_page(const uint64_t *words)
{
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15);

    for (unsigned i = 0; i < PAGE_SIZE / sizeof(*words); i++) {
        h = (h ^ words[i]) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 29;
    }
    return (uint32_t)(h >> 32);
}

static struct host_frame *frame_of(struct host_mm *mm, uint64_t entry)
{
    return &mm->hm->frames[(entry & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];
}

/* Place of a merged frame with the hash, or a free place, or -1 (the neighbourhood is full).
 * Frames that nothing maps any more are let go on the way. */
static int find_place(struct host_mm *mm, uint32_t hash, bool *found)
{
    int empty = -1;

    *found = false;
    for (unsigned i = 0; i < PROBE_LIMIT; i++) {
        unsigned at = (hash + i) & (TABLE_SIZE - 1);
        uint32_t p = mm->ksm->stable[at];

        if (p && __atomic_load_n(&mm->hm->frames[p].refcount, __ATOMIC_ACQUIRE) == 1) {
            host_frame_put(mm->hm, pfn(p));
            mm->ksm->stable[at] = p = 0;
        }
        if (p && mm->hm->frames[p].next == hash) {
            *found = true;
            return (int)at;
        }
        if (!p && empty < 0) {
            empty = (int)at;
        }
    }
    return empty;
}

/* Give the page's memory in the process back: its bytes are in the merged frame now. */
static void drop_page(uint64_t addr)
{
    (void)madvise(hva_to_ptr(hva(addr)), PAGE_SIZE, MADV_DONTNEED);
}

static uint64_t merged_entry(uint64_t old, uint64_t p)
{
    return (old & (X86_PTE_U | X86_PTE_NX | X86_PTE_A)) | X86_PTE_P | p << PAGE_SHIFT;
}

/* Take the entry of a page out, if nobody holds the page otherwise. Between notifiers. */
static bool take_out(struct host_mm *mm, uint64_t *entry, uint64_t *old)
{
    *old = __atomic_exchange_n(entry, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&frame_of(mm, *old)->refcount, __ATOMIC_SEQ_CST) == 1) {
        return true;
    }
    __atomic_store_n(entry, *old, __ATOMIC_SEQ_CST);
    return false;
}

/* The small private page mapped at addr that may be merged, or null. */
static uint64_t *mergeable_entry(struct host_mm *mm, uint64_t addr)
{
    unsigned level;
    uint64_t *entry = host_pt_find(mm, addr, &level), value = host_pte_load(entry);

    return level == 1 && (value & X86_PTE_P) && !(value & HOST_PTE_SPECIAL) &&
                   frame_of(mm, value)->type == HOST_FRAME_ANON &&
                   !host_frame_test(frame_of(mm, value), HOST_FRAME_HEAD | HOST_FRAME_TAIL)
               ? entry
               : NULL;
}

/* Map the page at addr by the merged frame p if its bytes are the same; with `fill`, the frame is
 * new and takes its bytes from the page. True when done. */
static bool merge(struct host_mm *mm, uint64_t addr, uint64_t p, bool fill)
{
    struct host_mmu_range range = {hva(addr), hva(addr + PAGE_SIZE), HOST_MMU_CLEAR};
    uint64_t *entry = mergeable_entry(mm, addr), old;
    void *merged = host_table_at(mm->hm, pfn_to_hpa(pfn(p))), *page = mm->ksm->page[1];
    bool done = false;

    if (!entry) {
        return false;
    }
    host_notify_start(mm, &range);
    if (take_out(mm, entry, &old)) {
        done = read_page(addr, page);
        if (done && fill) {
            memcpy(merged, page, PAGE_SIZE);
        }
        done = done && memcmp(merged, page, PAGE_SIZE) == 0;
        if (done) {
            __atomic_fetch_add(&mm->hm->frames[p].refcount, 1, __ATOMIC_RELAXED);
            __atomic_store_n(entry, merged_entry(old, p), __ATOMIC_SEQ_CST);
            host_frame_put(mm->hm, hpa_to_pfn(hpa(old & X86_PTE_ADDR_MASK)));
            drop_page(addr);
            host_mm_count(mm, HOST_MM_ksm_merged, 1);
        } else {
            __atomic_store_n(entry, old, __ATOMIC_SEQ_CST);
        }
    }
    host_notify_end(mm, &range);
    return done;
}

/* Make the page at addr a merged frame of its own and enter it. Returns its pfn, or 0. */
static uint64_t make_merged(struct host_mm *mm, uint64_t addr, uint32_t hash, int place)
{
    struct host_alloc req = {
        .flags = HOST_GFP_UNMOVABLE, .type = HOST_FRAME_KSM, .owner = mm->id, .own_storage = true};
    pfn_t p;

    if (host_block_alloc(host_impl(mm->hm), &req, &p)) {
        return 0;
    }
    host_frame_mark_storage(mm->hm, p);
    if (!merge(mm, addr, p.v, true)) {
        host_frame_put(mm->hm, p);
        return 0;
    }
    mm->hm->frames[p.v].next = hash;
    mm->ksm->stable[place] = (uint32_t)p.v;
    return p.v;
}

/* One page of the pass. True when it was merged. */
static bool scan_page(struct host_mm *mm, uint64_t addr)
{
    struct host_ksm *k = mm->ksm;
    uint64_t other, p;
    uint32_t hash;
    bool found;
    int place;

    if (!mergeable_entry(mm, addr) || !read_page(addr, k->page[0])) {
        return false;
    }
    hash = hash_page(k->page[0]);
    place = find_place(mm, hash, &found);
    if (found) {
        return merge(mm, addr, k->stable[place], false);
    }
    other = k->seen[hash & (TABLE_SIZE - 1)];
    k->seen[hash & (TABLE_SIZE - 1)] = addr;
    if (place < 0 || !other || other == addr || !mergeable_entry(mm, other) ||
        host_mm_in_access(mm, other, other + PAGE_SIZE) || !read_page(other, k->page[1]) ||
        memcmp(k->page[0], k->page[1], PAGE_SIZE) != 0) {
        return false;
    }
    p = make_merged(mm, other, hash, place);
    return p && merge(mm, addr, p, false);
}

/* See mm.h. Lock: takes the mmap lock for writing. Source: own, after the kernel's two trees. */
int64_t host_mm_merge_scan(struct host_mm *mm, uint64_t pages)
{
    int64_t merged = 0;
    bool wrapped = false;

    if (!mm->ksm) {
        return -EOPNOTSUPP;
    }
    pthread_rwlock_wrlock(&mm->mmap_lock);
    while (pages) {
        size_t i = host_vma_lower(&mm->vmas, mm->ksm->hand);
        const struct host_vma *vma = i < mm->vmas.n ? &mm->vmas.v[i] : NULL;

        if (!vma) {
            memset(mm->ksm->seen, 0, sizeof(mm->ksm->seen)); /* a pass ends */
            mm->ksm->hand = 0;
            if (wrapped) {
                break;
            }
            wrapped = true;
            continue;
        }
        if (!(vma->flags & HOST_VMA_MERGEABLE) || (vma->flags & HOST_VMA_SHARED)) {
            mm->ksm->hand = vma->end.v;
            continue;
        }
        uint64_t at = mm->ksm->hand > vma->start.v ? mm->ksm->hand : vma->start.v;

        merged += !host_mm_in_access(mm, at, at + PAGE_SIZE) && scan_page(mm, at);
        mm->ksm->hand = at + PAGE_SIZE;
        pages--;
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return merged;
}

/* ---- bytes home ---- */

/* Write the merged page's bytes to its HVA. 0 or -EFAULT (the mapping is gone). */
static int bring_home(struct host_mm *mm, uint64_t addr, uint64_t entry)
{
    return host_bytes_place(addr, host_table_at(mm->hm, hpa(entry & X86_PTE_ADDR_MASK)));
}

/*
 * Replace a merged page's entry by `new_entry`, whose frame the caller allocated; bytes come home
 * first. 0; -EALREADY when the entry is not `old` any more; -EFAULT. Lock: mmap lock held, either
 * way.
 */
int host_ksm_unmerge(struct host_mm *mm, uint64_t addr, uint64_t *entry, uint64_t old,
                     uint64_t new_entry)
{
    int err = -EALREADY;

    pthread_mutex_lock(&mm->ksm->lock);
    if (host_pte_load(entry) == old) {
        err = bring_home(mm, addr, old);
    }
    if (!err) {
        __atomic_store_n(entry, new_entry, __ATOMIC_SEQ_CST);
        host_mm_count(mm, HOST_MM_ksm_unmerged, 1);
    }
    pthread_mutex_unlock(&mm->ksm->lock);
    return err;
}

/* Bring home every merged page of a range; their entries go. Lock: mmap write, between notifiers
 * or with nobody left to notify. */
void host_ksm_restore_range(struct host_mm *mm, uint64_t start, uint64_t end)
{
    uint64_t at = start;

    while (mm->ksm && at < end) {
        unsigned level;
        uint64_t *entry = host_pt_find(mm, at, &level), value = host_pte_load(entry);

        if (level == 1 && (value & X86_PTE_P) && frame_of(mm, value)->type == HOST_FRAME_KSM) {
            (void)bring_home(mm, at, value);
            __atomic_store_n(entry, 0, __ATOMIC_SEQ_CST);
            host_mm_count(mm, HOST_MM_rss_anon, -1);
            host_mm_count(mm, HOST_MM_ksm_unmerged, 1);
            host_frame_put(mm->hm, hpa_to_pfn(hpa(value & X86_PTE_ADDR_MASK)));
        }
        at = (at & ~(pt_leaf_size(level) - 1)) + pt_leaf_size(level);
    }
}

/* 0 or -ENOMEM. */
int host_ksm_new(struct host_mm *mm)
{
    mm->ksm = host_calloc(mm->hm, 1, sizeof(*mm->ksm));
    if (!mm->ksm) {
        return -ENOMEM;
    }
    pthread_mutex_init(&mm->ksm->lock, NULL);
    base_lock_set_rank(&mm->ksm->lock, BASE_RANK_KSM);
    return 0;
}

/* No entry names a merged frame any more. Null is allowed. */
void host_ksm_free(struct host_mm *mm)
{
    for (unsigned i = 0; mm->ksm && i < TABLE_SIZE; i++) {
        if (mm->ksm->stable[i]) {
            host_frame_put(mm->hm, pfn(mm->ksm->stable[i]));
        }
    }
    if (mm->ksm) {
        pthread_mutex_destroy(&mm->ksm->lock);
    }
    free(mm->ksm);
    mm->ksm = NULL;
}
