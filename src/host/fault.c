/*
 * Faults of the host address space: from an HVA without a usable entry to a frame and an entry.
 * Flow: access, steps "find VMA", "host tables", "host frame".
 *
 *   host_handle_mm_fault
 *     find VMA (learn it from the process when unknown), check the access
 *     huge: 512 frames at once when VMA, policy and tables allow     level 2
 *     else the 4 KiB entry: absent  -> anonymous, file or zero page  level 1
 *                           present -> write to a read-only entry: copy on write, or upgrade
 *
 * Invariants: an entry goes from absent to present by compare-and-exchange, so of two threads one wins and the
 * other gives its frame back; the contents of the page are never looked at: they are at its HVA.
 *
 * Locks: mmap lock for reading; for writing only to learn a VMA.
 */
#include <errno.h>

#include "host/mm_impl.h"

/* Frames that a fault reclaims when memory is short, and how often it tries again. */
#define RECLAIM_BATCH 256
#define RECLAIM_TRIES 4

/* Faults without a try after one for a huge page has failed; 2 MiB blocks made when memory is compacted. */
#define HUGE_DEFER    64
#define COMPACT_BATCH 2

/* A fault in flight: inputs, then what the stages find. */
struct fault {
    struct host_mm *mm;
    uint64_t addr; /* page aligned */
    unsigned flags;
    const struct host_vma *vma;
    uint64_t *entry;
    uint64_t value; /* of the entry when looked at */
};

/* Rights of an entry in the VMA; writable only when asked so. */
static uint64_t entry_bits(const struct fault *f, bool writable)
{
    uint64_t bits = X86_PTE_P | X86_PTE_U | X86_PTE_A;

    bits |= writable ? X86_PTE_W : 0;
    bits |= f->flags & HOST_FAULT_WRITE ? X86_PTE_D : 0;
    return f->vma->flags & HOST_VMA_EXEC ? bits : bits | X86_PTE_NX;
}

static bool is_shared(const struct host_vma *vma)
{
    return (vma->flags & HOST_VMA_SHARED) != 0;
}

/*
 * The page of the entry is in swap: frame, bytes, entry, all under the swap lock, which makes one
 * of several threads do it. 0, -EAGAIN (may not wait), -ENOMEM, -EFAULT (the mapping went).
 */
static int fault_swapped(struct fault *f)
{
    struct host_alloc req = {.flags = HOST_GFP_MOVABLE,
                             .type = HOST_FRAME_ANON,
                             .owner = f->mm->id,
                             .data = hva_to_ptr(hva(f->addr))};
    bool writable = (f->vma->flags & HOST_VMA_WRITE) != 0;
    pfn_t p;
    int err =
        f->flags & HOST_FAULT_NOWAIT ? -EAGAIN : host_block_alloc(host_impl(f->mm->hm), &req, &p);

    if (err) {
        return err;
    }
    host_swap_lock(f->mm);
    if (host_pte_load(f->entry) != f->value) {
        err = -EALREADY; /* another thread brought it in */
    } else {
        err = host_swap_in(f->mm, f->addr, f->value);
    }
    if (!err) {
        __atomic_store_n(f->entry, entry_bits(f, writable) | p.v << PAGE_SHIFT, __ATOMIC_SEQ_CST);
        host_mm_count(f->mm, HOST_MM_rss_anon, 1);
        host_mm_count(f->mm, HOST_MM_faults_major, 1);
    }
    host_swap_unlock(f->mm);
    if (err) {
        host_frame_put(f->mm->hm, p);
    }
    return err == -EALREADY ? 0 : err;
}

/* What kind of frame a first access to the VMA gives. */
static enum host_frame_type frame_type(const struct fault *f)
{
    if (f->vma->flags & HOST_VMA_HUGETLB) {
        return HOST_FRAME_HUGETLB;
    }
    if (f->vma->flags & HOST_VMA_FILE) {
        return is_shared(f->vma) || !(f->flags & HOST_FAULT_WRITE) ? HOST_FRAME_FILE
                                                                   : HOST_FRAME_ANON;
    }
    return HOST_FRAME_ANON;
}

/* May the entry for a frame of this type be writable at once? A private file page not: it is
 * copied at the first write. */
static bool map_writable(const struct fault *f, enum host_frame_type type)
{
    if (!(f->vma->flags & HOST_VMA_WRITE)) {
        return false;
    }
    if ((f->vma->flags & HOST_VMA_UFFD_WP) && !(f->flags & HOST_FAULT_WRITE)) {
        return false;
    }
    return type != HOST_FRAME_FILE || is_shared(f->vma);
}

static void count_rss(struct host_mm *mm, enum host_frame_type type, int64_t frames)
{
    host_mm_count(mm, type == HOST_FRAME_ANON ? HOST_MM_rss_anon : HOST_MM_rss_file, frames);
}

/* Allocate the block for the fault and put it into the absent entry. 0 (also when another thread
 * was faster), -ENOMEM, or -EAGAIN (the file's page is in small frames). */
static int fill_entry(struct fault *f, unsigned order)
{
    uint64_t size = PAGE_SIZE << order;
    enum host_frame_type type = frame_type(f);
    struct host_alloc req = {.order = order,
                             .flags = HOST_GFP_MOVABLE |
                                      (order == HOST_PAGEBLOCK_ORDER ? HOST_GFP_TRY : 0),
                             .type = type,
                             .owner = f->mm->id,
                             .data = hva_to_ptr(hva(f->addr & ~(size - 1)))};
    uint64_t old = 0, value = entry_bits(f, map_writable(f, type)) | (order ? X86_PTE_PS : 0);
    pfn_t p;
    int err = type == HOST_FRAME_FILE && is_shared(f->vma)
                  ? host_cache_get(f->mm, f->vma, f->addr, &req, &p)
                  : host_block_alloc(host_impl(f->mm->hm), &req, &p);

    if (err) {
        return err;
    }
    value |= p.v << PAGE_SHIFT;
    if (!__atomic_compare_exchange_n(f->entry, &old, value, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST)) {
        host_frame_put(f->mm->hm, p);
        host_mm_count(f->mm, HOST_MM_raced, 1);
        return 0;
    }
    count_rss(f->mm, type, INT64_C(1) << order);
    TRACE(f->mm->trace, access_host_frame, "hva %llx pfn %llx order %llx", f->addr, p.v, order);
    return 0;
}

/* Does the page lie wholly past the end of its file? To touch it would be a SIGBUS. */
static bool past_end(const struct host_vma *vma, uint64_t addr)
{
    return (vma->flags & HOST_VMA_SIZED) && vma->offset + (addr - vma->start.v) >= vma->file_end;
}

/* Does the policy want, and the VMA hold, a whole 2 MiB page around the address? */
static bool huge_wanted(const struct fault *f)
{
    uint64_t base = f->addr & ~(HOST_HUGE_SIZE - 1);
    const struct host_vma *vma = f->vma;

    if (vma->flags & HOST_VMA_HUGETLB) {
        return true; /* its VMA is aligned */
    }
    if (base < vma->start.v || vma->end.v - base < HOST_HUGE_SIZE) {
        return false;
    }
    if (vma->flags & (HOST_VMA_UFFD_MISSING | HOST_VMA_UFFD_WP)) {
        return false;
    }
    if ((f->flags & HOST_FAULT_NOTHP) || (vma->flags & HOST_VMA_NOHUGEPAGE) ||
        f->mm->thp == HOST_THP_NEVER ||
        (f->mm->thp == HOST_THP_MADVISE && !(vma->flags & HOST_VMA_HUGEPAGE))) {
        return false;
    }
    /* A file's page must be huge in the file too; a private one is copied in small pieces. */
    return !(vma->flags & HOST_VMA_FILE) ||
           (is_shared(vma) && ((vma->offset - vma->start.v) & (HOST_HUGE_SIZE - 1)) == 0 &&
            !past_end(vma, base + HOST_HUGE_SIZE - PAGE_SIZE));
}

/* There was no huge frame: the next faults do without trying. Who asked for huge pages by madvise
 * gets memory compacted, by the next fault, which holds no lock yet. */
static void defer_huge(const struct fault *f)
{
    __atomic_store_n(&f->mm->huge_defer, HUGE_DEFER, __ATOMIC_RELAXED);
    if (f->vma->flags & HOST_VMA_HUGEPAGE) {
        __atomic_store_n(&f->mm->compact_wanted, true, __ATOMIC_RELAXED);
    }
}

/* Is this one of the faults that do without? */
static bool huge_is_deferred(const struct fault *f)
{
    unsigned left = __atomic_load_n(&f->mm->huge_defer, __ATOMIC_RELAXED);

    if (!left || (f->vma->flags & HOST_VMA_HUGETLB)) {
        return false;
    }
    /* Lost or repeated counts of several threads do not matter. */
    __atomic_store_n(&f->mm->huge_defer, left - 1, __ATOMIC_RELAXED);
    host_mm_count(f->mm, HOST_MM_thp_deferred, 1);
    return true;
}

/*
 * Try to serve the fault by a huge entry.
 * Returns 0 when served; -EAGAIN when small pages must do; -ENOMEM (no table; or hugetlb without
 * pages). A hugetlb page comes from the allocator when it is used: there is no pool to reserve.
 */
static int fault_huge(struct fault *f)
{
    bool hugetlb = (f->vma->flags & HOST_VMA_HUGETLB) != 0;
    unsigned level = hugetlb && f->vma->page_shift == 30 ? 3 : 2;
    int err = host_pt_build(f->mm, f->addr, &level, &f->entry);

    if (err) {
        return err == -EEXIST ? 0 : err;
    }
    f->value = host_pte_load(f->entry);
    if (f->value) {
        return host_pte_is_leaf(f->value, level) && (f->value & X86_PTE_P) ? 0 : -EAGAIN;
    }
    err = fill_entry(f, pt_level_shift(level) - PAGE_SHIFT);
    if ((err == -ENOMEM || err == -EAGAIN) && !hugetlb) {
        host_mm_count(f->mm, HOST_MM_thp_fallback, 1);
        if (err == -ENOMEM) {
            defer_huge(f);
        }
        return -EAGAIN;
    }
    if (!err) {
        host_mm_count(f->mm,
                      !hugetlb     ? HOST_MM_anon_2m
                      : level == 3 ? HOST_MM_anon_1g
                                   : HOST_MM_hugetlb_faults,
                      1);
    }
    return err;
}

/* Read of untouched anonymous memory: the one zero page, read-only. */
static int fault_zero_page(struct fault *f)
{
    uint64_t old = 0, value = entry_bits(f, false) | f->mm->zero_pfn.v << PAGE_SHIFT;

    if (__atomic_compare_exchange_n(f->entry, &old, value, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
        host_mm_count(f->mm, HOST_MM_zero_page, 1);
    }
    return 0;
}

/* Nothing is mapped at the address yet. */
static int fault_absent(struct fault *f)
{
    bool anon = !(f->vma->flags & HOST_VMA_FILE);
    int err;

    if ((f->vma->flags & HOST_VMA_UFFD_MISSING) && !(f->flags & HOST_FAULT_RESOLVE)) {
        host_mm_count(f->mm, HOST_MM_userfaults, 1);
        return -EBUSY;
    }

    if (anon && f->mm->zero_page && !(f->flags & HOST_FAULT_WRITE) && !is_shared(f->vma)) {
        return fault_zero_page(f);
    }
    if (f->mm->swap) {
        host_swap_prepare(f->mm, f->addr);
    }
    err = fill_entry(f, 0);
    if (!err) {
        host_mm_count(f->mm, anon ? HOST_MM_anon_4k : HOST_MM_file_faults, 1);
    }
    return err;
}

/* The type of a frame that an entry named a moment ago: if it is another by now, the entry has changed, too. */
static unsigned type_seen(const struct host_mm *mm, pfn_t p)
{
    return __atomic_load_n(&mm->hm->frames[p.v].type, __ATOMIC_RELAXED);
}

/* Must a write to this mapped frame get a frame of its own first? */
static bool needs_copy(const struct fault *f, pfn_t p)
{
    unsigned type = type_seen(f->mm, p);

    return type == HOST_FRAME_ZERO || type == HOST_FRAME_KSM || (f->value & HOST_PTE_COW) ||
           (type == HOST_FRAME_FILE && !is_shared(f->vma));
}

/* Replace the frame of the entry by one of the page's own. The bytes need no copying: a private page of the process
 * is at its HVA, whatever stood behind it; those of a merged page come home first. */
static int fault_copy(struct fault *f, pfn_t old_pfn)
{
    struct host_mmu_range range = {hva(f->addr), hva(f->addr + PAGE_SIZE), HOST_MMU_CLEAR};
    struct host_alloc req = {.flags = HOST_GFP_MOVABLE,
                             .type = HOST_FRAME_ANON,
                             .owner = f->mm->id,
                             .data = hva_to_ptr(hva(f->addr))};
    struct host_mm *mm = f->mm;
    uint64_t old = f->value;
    bool done;
    pfn_t p;
    int err = host_block_alloc(host_impl(mm->hm), &req, &p);

    if (err) {
        return err;
    }
    host_notify_start(mm, &range);
    if (type_seen(mm, old_pfn) == HOST_FRAME_KSM) {
        err = host_ksm_unmerge(mm, f->addr, f->entry, old, entry_bits(f, true) | p.v << PAGE_SHIFT);
        done = !err;
    } else {
        done = __atomic_compare_exchange_n(f->entry, &old, entry_bits(f, true) | p.v << PAGE_SHIFT,
                                           false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    if (done) {
        if (old_pfn.v != mm->zero_pfn.v) {
            host_mm_count(mm, host_rss_of(mm, f->value), -1);
            host_frame_put(mm->hm, old_pfn);
        }
        host_mm_count(mm, HOST_MM_rss_anon, 1);
        host_mm_count(mm, HOST_MM_cow, 1);
    } else {
        host_frame_put(mm->hm, p);
        host_mm_count(mm, HOST_MM_raced, 1);
    }
    host_notify_end(mm, &range);
    return err == -EALREADY ? 0 : err;
}

/* The entry is present but does not allow the write, which the VMA does. */
static int fault_protected(struct fault *f, unsigned level)
{
    pfn_t p = hpa_to_pfn(hpa(f->value & X86_PTE_ADDR_MASK));
    uint64_t old = f->value;

    if ((f->vma->flags & HOST_VMA_UFFD_WP) && !(f->flags & HOST_FAULT_RESOLVE)) {
        host_mm_count(f->mm, HOST_MM_userfaults, 1);
        return -EBUSY;
    }
    if (level == 1 && needs_copy(f, p)) {
        return fault_copy(f, p);
    }
    if (__atomic_compare_exchange_n(f->entry, &old, old | X86_PTE_W | X86_PTE_D, false, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST)) {
        host_mm_count(f->mm, HOST_MM_wp_upgrade, 1);
    }
    return 0;
}

static bool allowed(const struct host_vma *vma, unsigned flags)
{
    if (vma->flags & HOST_VMA_PFNMAP) {
        return false; /* has no page to get: host_follow_pfn() */
    }
    if (flags & HOST_FAULT_WRITE) {
        return (vma->flags & HOST_VMA_WRITE) != 0;
    }
    return (vma->flags & (HOST_VMA_READ | HOST_VMA_WRITE | HOST_VMA_EXEC)) != 0;
}

/* The stages, with the VMA found. -ESPIPE: past the end of the file, as far as was known.
 * Lock: mmap lock held for reading. */
static int fault_in_vma(struct fault *f)
{
    unsigned level = 1;
    int err;

    if (!allowed(f->vma, f->flags)) {
        return -EFAULT;
    }
    if (past_end(f->vma, f->addr)) {
        return -ESPIPE;
    }
    if (huge_wanted(f) && !huge_is_deferred(f)) {
        err = fault_huge(f);
        if (err && err != -EAGAIN) {
            return err;
        }
    }
    err = host_pt_build(f->mm, f->addr, &level, &f->entry);
    if (err && err != -EEXIST) {
        return err;
    }
    f->value = host_pte_load(f->entry);
    if (!f->value) {
        return fault_absent(f);
    }
    if (host_pte_is_swap(f->value)) {
        return fault_swapped(f);
    }
    if (!(f->value & X86_PTE_P)) {
        host_mm_count(f->mm, HOST_MM_poisoned, 1);
        return -EHWPOISON;
    }
    if ((f->flags & HOST_FAULT_WRITE) && !(f->value & X86_PTE_W)) {
        return fault_protected(f, level);
    }
    return 0;
}

/* Cut a VMA learnt from the process to the gap around addr that no known VMA covers. */
static void clip_to_gap(const struct host_vma_set *set, uint64_t addr, struct host_vma *vma)
{
    size_t i = host_vma_lower(set, addr);

    if (i < set->n && set->v[i].start.v < vma->end.v) {
        vma->end = set->v[i].start;
    }
    if (i > 0 && set->v[i - 1].end.v > vma->start.v) {
        vma->offset += set->v[i - 1].end.v - vma->start.v;
        vma->start = set->v[i - 1].end;
    }
}

static bool vma_is_sane(const struct host_mm *mm, uint64_t addr, const struct host_vma *vma)
{
    return vma->start.v <= addr && addr < vma->end.v && !page_offset(vma->start.v) &&
           !page_offset(vma->end.v) && vma->end.v <= host_mm_limit(mm);
}

/* See mm_impl.h. Lock: takes the mmap lock for writing. */
bool host_mm_file_grew(struct host_mm *mm, uint64_t addr)
{
    struct host_vma now;
    const struct host_vma *vma;
    bool inside = false;

    pthread_rwlock_wrlock(&mm->mmap_lock);
    vma = host_vma_find(&mm->vmas, addr);
    if (vma && (vma->flags & HOST_VMA_IMPORTED) &&
        mm->source.query(mm->source.opaque, hva(addr), &now) == 0 && now.dev == vma->dev &&
        now.ino == vma->ino) {
        host_vma_share_length(&mm->vmas, &now);
        inside = !past_end(vma, addr);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    return inside;
}

/* See mm_impl.h. Lock: takes the mmap lock for writing. */
int host_mm_import(struct host_mm *mm, uint64_t addr)
{
    struct host_vma vma;
    int err = 0;

    pthread_rwlock_wrlock(&mm->mmap_lock);
    if (host_vma_find(&mm->vmas, addr)) {
        goto out; /* another thread was faster */
    }
    err = host_vma_reserve(mm->hm, &mm->vmas, 2);
    if (err) {
        goto out;
    }
    if (mm->source.query(mm->source.opaque, hva(addr), &vma) != 0 || !vma_is_sane(mm, addr, &vma)) {
        err = -EFAULT;
        goto out;
    }
    clip_to_gap(&mm->vmas, addr, &vma);
    if (vma.flags & HOST_VMA_FILE) {
        host_vma_share_length(&mm->vmas, &vma);
    }
    host_vma_insert(&mm->vmas, &vma);
    host_vma_merge_around(&mm->vmas, vma.start.v, vma.end.v);
    host_mm_count(mm, HOST_MM_imports, 1);
out:
    pthread_rwlock_unlock(&mm->mmap_lock);
    return err;
}

/* One try under the mmap lock. -ENOENT: no VMA known. */
static int fault_once(struct fault *f)
{
    int err = -ENOENT;

    pthread_rwlock_rdlock(&f->mm->mmap_lock);
    f->vma = host_vma_find(&f->mm->vmas, f->addr);
    if (f->vma) {
        err = fault_in_vma(f);
    }
    pthread_rwlock_unlock(&f->mm->mmap_lock);
    return err;
}

/*
 * See mm.h. addr: any address; flags: HOST_FAULT_*.
 * Lock: takes the mmap lock; no lock that a notifier callback takes may be held.
 * Source: after handle_mm_fault() and do_anonymous_page(). Differs: the contents are never touched.
 */
int host_handle_mm_fault(struct host_mm *mm, hva_t addr, unsigned flags)
{
    struct fault f = {.mm = mm, .addr = addr.v & PAGE_MASK, .flags = flags};
    unsigned tries = 0;
    bool rechecked = false;
    int err = addr.v >= host_mm_limit(mm) ? -EFAULT : 0;

    host_mm_count(mm, HOST_MM_faults, 1);
    if (mm->swap && host_memory_pressure(mm->hm)) {
        (void)host_mm_reclaim(mm, RECLAIM_BATCH);
    }
    if (unlikely(__atomic_load_n(&mm->compact_wanted, __ATOMIC_RELAXED)) &&
        __atomic_exchange_n(&mm->compact_wanted, false, __ATOMIC_RELAXED) &&
        host_memory_compact(mm->hm, COMPACT_BATCH)) {
        __atomic_store_n(&mm->huge_defer, 0, __ATOMIC_RELAXED);
    }
    while (!err) {
        err = fault_once(&f);
        if (err == -ENOENT) {
            err = host_mm_import(mm, f.addr);
        } else if (err == -ESPIPE) {
            err = host_mm_file_grew(mm, f.addr) ? 0 : -EFAULT;
            host_mm_count(mm, HOST_MM_past_end, err != 0);
        } else if (err == -EFAULT && !rechecked) {
            /* What is known may be old: rights are given back without a word as they are taken. */
            rechecked = true;
            err = host_mm_recheck(mm, hva(f.addr), hva(f.addr + PAGE_SIZE));
            if (err <= 0) {
                err = err ? err : -EFAULT;
                break;
            }
            err = 0;
        } else if (err == -ENOMEM && tries++ < RECLAIM_TRIES &&
                   host_mm_reclaim(mm, RECLAIM_BATCH)) {
            err = 0;
        } else {
            break;
        }
    }
    TRACE(mm->trace, access_host_fault, "hva %llx flags %llx result %llx", addr.v, flags, err);
    host_mm_count(mm, err ? HOST_MM_faults_error : HOST_MM_faults_minor, 1);
    return err;
}

/* Give a page of a pfn-mapped VMA a frame that is named but not counted. */
static int fill_special(struct fault *f)
{
    struct host_alloc req = {.flags = HOST_GFP_MOVABLE,
                             .type = HOST_FRAME_PFNMAP,
                             .owner = f->mm->id,
                             .data = hva_to_ptr(hva(f->addr))};
    uint64_t old = 0, value;
    unsigned level = 1;
    pfn_t p;
    int err = host_pt_build(f->mm, f->addr, &level, &f->entry);

    if (err) {
        return err == -EEXIST ? 0 : err;
    }
    if (host_pte_load(f->entry)) {
        return 0;
    }
    err = host_block_alloc(host_impl(f->mm->hm), &req, &p);
    if (err) {
        return err;
    }
    value = entry_bits(f, (f->vma->flags & HOST_VMA_WRITE) != 0) | HOST_PTE_SPECIAL | p.v << PAGE_SHIFT;
    if (!__atomic_compare_exchange_n(f->entry, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
        host_frame_put(f->mm->hm, p);
    }
    return 0;
}

/*
 * See mm.h. The frame stands for a page of device memory: its contents are at the HVA, no reference
 * is counted. Lock: takes the mmap lock. Source: after the kernel's follow_pfn().
 */
int host_follow_pfn(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out)
{
    struct fault f = {.mm = mm, .addr = addr.v & PAGE_MASK, .flags = flags};
    struct host_vma vma;
    int err = host_mm_find_vma(mm, addr, &vma);

    host_mm_count(mm, HOST_MM_follow_pfn, 1);
    if (err) {
        return err;
    }
    pthread_rwlock_rdlock(&mm->mmap_lock);
    f.vma = host_vma_find(&mm->vmas, f.addr);
    if (!f.vma) {
        err = -EFAULT;
    } else if (!(f.vma->flags & HOST_VMA_PFNMAP)) {
        err = -EINVAL;
    } else if ((flags & HOST_FAULT_WRITE) && !(f.vma->flags & HOST_VMA_WRITE)) {
        err = -EFAULT;
    } else {
        err = fill_special(&f);
    }
    pthread_rwlock_unlock(&mm->mmap_lock);
    if (err) {
        return err;
    }
    err = host_gup_fast(mm, addr, flags, out);
    return err ? -EFAULT : 0; /* unmapped in between */
}
