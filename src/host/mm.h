/*
 * One host address space as memory management sees it: VMAs, page tables, faults, get-user-pages
 * and MMU notifiers. The address space is the embedding process's own: an HVA here is a pointer
 * there.
 *
 *   hva --> host_gup_fast (no lock: walk the tables) --+--> struct host_page {pfn, writable, level}
 *      \--> host_gup_slow (host_handle_mm_fault, walk) -/
 *
 * VMAs are learnt on demand from the process's real mappings, or given by hand (host_mm_map).
 * A simulated fault never touches the real page: the guest's first access does.
 *
 * Locks, in order: mmap lock (rwlock; read: faults; write: VMAs, unmap, collapse, split), notifier
 * list lock (read while calling), then callbacks' own locks (softkvm's MMU lock), then buddy's.
 * Hence: never call anything of this file with a lock held that a notifier callback takes.
 */
#ifndef STRATA_HOST_MM_H
#define STRATA_HOST_MM_H

#include <stdint.h>
#include <stdio.h>

#include "base/addr.h"
#include "base/compiler.h"
#include "base/list.h"
#include "base/trace.h"
#include "host/frame.h"

/* ---- VMAs ---- */

#define HOST_VMA_READ         0x0001u
#define HOST_VMA_WRITE        0x0002u
#define HOST_VMA_EXEC         0x0004u
#define HOST_VMA_SHARED       0x0008u
#define HOST_VMA_FILE         0x0010u /* backed by a file or memfd: `file` and `offset` are set */
#define HOST_VMA_HUGETLB      0x0020u /* `page_shift` is 21 or 30 */
#define HOST_VMA_PFNMAP       0x0040u /* frames named by pfn, not counted: device memory */
#define HOST_VMA_HUGEPAGE     0x0080u /* madvise(MADV_HUGEPAGE) */
#define HOST_VMA_NOHUGEPAGE   0x0100u /* madvise(MADV_NOHUGEPAGE) */
#define HOST_VMA_LOCKED       0x0200u /* mlock: never reclaimed */
#define HOST_VMA_MERGEABLE    0x0400u /* madvise(MADV_MERGEABLE) */
#define HOST_VMA_UFFD_MISSING 0x0800u
#define HOST_VMA_UFFD_WP      0x1000u
#define HOST_VMA_IMPORTED     0x2000u /* learnt from the process's maps */
#define HOST_VMA_DONTFORK     0x4000u
#define HOST_VMA_SIZED        0x8000u /* the file's length is known: `file_end` */

struct host_vma {
    hva_t start, end; /* page aligned, start < end */
    unsigned flags;   /* HOST_VMA_* */
    unsigned page_shift;
    uint64_t dev, ino; /* which file */
    uint64_t offset;   /* bytes in the file at `start`; for PFNMAP: pfn at `start` << 12 */
    uint64_t file_end; /* with SIZED: bytes in the file; pages wholly past it fault */
};

/* Where VMAs are learnt: fills *out with the mapping that holds `addr`, or returns -ENOENT. */
struct host_map_source {
    int (*query)(void *opaque, hva_t addr, struct host_vma *out);
    void *opaque;
};

enum host_thp_policy {
    HOST_THP_ALWAYS,
    HOST_THP_MADVISE,
    HOST_THP_NEVER,
};

struct host_mm_options {
    unsigned levels;          /* 4 or 5; 0 = 4 */
    enum host_thp_policy thp; /* default (0): always */
    /* Null: the process's own maps. To have only host_mm_map()'s VMAs, give a source whose query
     * returns -ENOENT: host_map_source_none. */
    const struct host_map_source *source;
    /* Map the shared zero page on a read of untouched anonymous memory. Only sound when every write
     * of the embedding process to its own memory is announced by host_mm_note_write(). */
    bool zero_page;
    /* Pages that may be swapped out at a time; 0 = no swap, then memory that runs out is an
     * error. */
    uint64_t swap_pages;
    /* The embedding process announces its own accesses to guest RAM by host_mm_access_begin().
     * When it does not (false), swapped ranges are watched by userfaultfd; without that they are
     * not swapped. */
    bool announced;
    /* Where trace points go; null = nowhere. Borrowed: outlives the address space. */
    const struct base_trace *trace;
};

extern const struct host_map_source host_map_source_none;

struct host_mm;

/* Create an address space. Returns 0 with *out, -EINVAL, -ENOMEM, or -ENOSPC (255 per memory). */
int host_mm_new(struct host_memory *hm, const struct host_mm_options *options,
                struct host_mm **out) must_check;

/* Drop all mappings (calling `release` of notifiers still registered) and free. Null is allowed. */
void host_mm_free(struct host_mm *mm);

struct host_memory *host_mm_memory(struct host_mm *mm);

/* Add a VMA, replacing what was in its range (notifiers run for it). -EINVAL, -ENOMEM. */
int host_mm_map(struct host_mm *mm, const struct host_vma *vma) must_check;

/* munmap: notifiers, then entries, frames and VMAs of [start, end) go. -EINVAL, -ENOMEM (no memory
 * to split a VMA: nothing changed). Both addresses are page aligned. */
int host_mm_unmap(struct host_mm *mm, hva_t start, hva_t end) must_check;

/* Before the process moves memory (mremap) or changes it in ways that are not told here: what is
 * swapped or merged comes home to its HVA, then as host_mm_unmap(). The VMAs are learnt anew at
 * the next use. */
int host_mm_withdraw(struct host_mm *mm, hva_t start, hva_t end) must_check;

/* The process discarded the contents (MADV_DONTNEED, hole punch): entries and frames go, VMAs
 * stay. */
int host_mm_discard(struct host_mm *mm, hva_t start, hva_t end) must_check;

/* mprotect: new HOST_VMA_READ|WRITE|EXEC for [start, end). -EINVAL, -ENOMEM (also: a hole
 * inside). */
int host_mm_protect(struct host_mm *mm, hva_t start, hva_t end, unsigned prot) must_check;

/* madvise-like attributes: set and clear HOST_VMA_HUGEPAGE, NOHUGEPAGE, LOCKED, MERGEABLE,
 * UFFD_*. */
int host_mm_advise(struct host_mm *mm, hva_t start, hva_t end, unsigned set,
                   unsigned clear) must_check;

/*
 * The same, and a fork, in two halves around the process's own system call: in between nothing of the
 * range can be resolved again. change.c.
 */
enum host_change_kind {
    HOST_CHANGE_UNMAP,
    HOST_CHANGE_DISCARD,
    HOST_CHANGE_PROTECT, /* to `prot` */
    HOST_CHANGE_MOVE,    /* as host_mm_withdraw() */
    HOST_CHANGE_FORK,    /* range not looked at */
};

/* Compare the VMAs of [start, end) with what the source says now; what changed or went is unmapped.
 * Returns the number of VMAs that were dropped or changed, or -errno. */
int host_mm_recheck(struct host_mm *mm, hva_t start, hva_t end);

/* Copy the VMA that holds addr. Returns 0 or -EFAULT. Learns it from the source if need be. */
int host_mm_find_vma(struct host_mm *mm, hva_t addr, struct host_vma *out) must_check;

/* ---- faults and get-user-pages ---- */

#define HOST_FAULT_WRITE   0x01u
#define HOST_FAULT_EXEC    0x02u
#define HOST_FAULT_NOWAIT  0x04u /* -EAGAIN rather than waiting for I/O (swap, userfault) */
#define HOST_FAULT_PIN     0x08u /* take a reference: release with host_page_put() */
#define HOST_FAULT_NOTHP   0x10u /* map 4 KiB even where a huge page could be */
#define HOST_FAULT_RESOLVE 0x20u /* the userfault handler itself: fill what others are refused */

struct host_page {
    pfn_t pfn;      /* the 4 KiB frame of the address */
    unsigned level; /* host mapping: 1 = 4 KiB, 2 = 2 MiB, 3 = 1 GiB */
    bool writable;  /* the host entry allows writing */
    bool counted;   /* false for a pfn-mapped frame: pins do not apply */
};

/*
 * Resolve one host page fault: find the VMA, build the tables down to the entry, fill the entry.
 * Returns 0; -EFAULT no VMA or access not allowed; -ENOMEM; -EAGAIN with HOST_FAULT_NOWAIT;
 * -EHWPOISON; -EBUSY for a userfault that somebody else has to answer.
 */
int host_handle_mm_fault(struct host_mm *mm, hva_t addr, unsigned flags) must_check;

/* Lock-free walk. Returns 0 with *out, or -EAGAIN when the slow way must decide. */
int host_gup_fast(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out) must_check;

/* Walk under the mmap lock and fault the page in. Errors of host_handle_mm_fault(). */
int host_gup_slow(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out) must_check;

/* Fast, then slow: what most callers want. */
int host_gup(struct host_mm *mm, hva_t addr, unsigned flags, struct host_page *out) must_check;

/* The frame behind an address of a pfn-mapped VMA. -EFAULT when there is none, -EINVAL when the VMA
 * is an ordinary one. */
int host_follow_pfn(struct host_mm *mm, hva_t addr, unsigned flags,
                    struct host_page *out) must_check;

/* The memory behind the page at addr has failed: its frame is never used again, the mapping goes
 * (notifiers run) and every further fault there gives -EHWPOISON, until the range is unmapped or
 * discarded. 0; -EFAULT nothing mapped there; -EBUSY a shared or merged page; -ENOMEM. */
int host_mm_poison(struct host_mm *mm, hva_t addr) must_check;

/* Drop a pin taken by HOST_FAULT_PIN. */
void host_page_put(struct host_mm *mm, const struct host_page *page);

/* Level at which the host maps addr right now: 1, 2 or 3; 0 when it is not mapped. Lock-free. */
unsigned host_mapping_level(struct host_mm *mm, hva_t addr);

/* The entries on the way to addr, top first. Returns how many were filled in (the last is the leaf
 * or the first absent one); levels[i] and entries[i] describe each. For inspection. */
#define HOST_MAX_LEVELS 5
unsigned host_mm_walk(struct host_mm *mm, hva_t addr, unsigned levels[HOST_MAX_LEVELS],
                      uint64_t entries[HOST_MAX_LEVELS]);

/* Where the top table is: constant. */
hpa_t host_mm_root(const struct host_mm *mm);

/* Somebody who writes to guest RAM outside the simulated tables says so (needed with zero_page and
 * for merged pages): private copies are made before it returns. */
int host_mm_note_write(struct host_mm *mm, hva_t start, hva_t end) must_check;

/* ---- pages that change frames ---- */

/* Give the small page at addr another frame. 0; -EFAULT not mapped; -EBUSY pinned, huge, or shared;
 * -ENOMEM. Lock of this and all below: takes the mmap lock. */
int host_mm_migrate(struct host_mm *mm, hva_t addr) must_check;

/* Make the 2 MiB around addr one huge mapping; up to `missing` of its pages may be absent so far.
 * 0; -EINVAL the VMA or policy does not allow it; -EBUSY pages pinned, shared, absent; -ENOMEM. */
int host_mm_collapse(struct host_mm *mm, hva_t addr, unsigned missing) must_check;

/* Try it on all of [start, end); returns how many were made. */
unsigned host_mm_collapse_scan(struct host_mm *mm, hva_t start, hva_t end, unsigned missing);

/* Make a huge mapping small ones; nothing to do is success. 0, -EINVAL, -ENOMEM. */
int host_mm_split(struct host_mm *mm, hva_t addr) must_check;

/* The process has forked: its private pages are shared with the child until written.
 * Write-protects them, notifiers run; each first write gets a new frame. 0 or -ENOMEM (a huge page
 * could not be split: those before it are protected). */
int host_mm_forked(struct host_mm *mm) must_check;

/* ---- reclaim and swap ---- */

/*
 * Try to free `want` frames: a clock hand goes over the mapped pages; those that neither host
 * entry nor second stage (notifiers' clear_young) saw used since its last visit go: file pages are
 * just unmapped, anonymous ones are compressed, their memory is really given back to the process's
 * host.
 * Returns how many frames were freed. Lock: takes the mmap lock; not from a callback.
 */
uint64_t host_mm_reclaim(struct host_mm *mm, uint64_t want);

/*
 * Same-page merging: look at `pages` more pages of HOST_VMA_MERGEABLE VMAs and let those of equal
 * bytes share a read-only frame. Returns how many were merged, or -EOPNOTSUPP when the process
 * does not announce its accesses (host_mm_options). Lock: takes the mmap lock; not from a
 * callback.
 */
int64_t host_mm_merge_scan(struct host_mm *mm, uint64_t pages);

/*
 * Background work, as steps: reclaim when free frames have come below the low marks, huge pages made of small ones, pages
 * merged. what: HOST_WORK_*. Returns how many frames were freed, huge pages made and pages merged, together. Or as a
 * thread that makes all of `what` a step each period, from start to stop (host_mm_free() stops it, too).
 */
#define HOST_WORK_RECLAIM  0x1u
#define HOST_WORK_COLLAPSE 0x2u
#define HOST_WORK_MERGE    0x4u
#define HOST_WORK_ALL      0x7u
uint64_t host_mm_work(struct host_mm *mm, unsigned what);
int host_mm_work_start(struct host_mm *mm, unsigned what, unsigned period_ms) must_check;
void host_mm_work_stop(struct host_mm *mm);

/* Bring everything back from swap, as before the address space goes. 0 or -ENOMEM. */
int host_mm_swap_off(struct host_mm *mm) must_check;

/* Device code of an `announced` process brackets its accesses: the pages of [start, end) are
 * brought in and stay until the end. -EFAULT, -ENOMEM: nothing is held. */
int host_mm_access_begin(struct host_mm *mm, hva_t start, hva_t end) must_check;
void host_mm_access_end(struct host_mm *mm, hva_t start, hva_t end);

/* ---- MMU notifiers ---- */

enum host_mmu_event {
    HOST_MMU_UNMAP,   /* munmap, discard, mremap */
    HOST_MMU_PROTECT, /* access rights of a VMA changed */
    HOST_MMU_CLEAR,   /* one page gets another frame: copy on write, migration, merge, swap-out */
    HOST_MMU_SPLIT,   /* a huge mapping becomes small ones (frames stay) */
    HOST_MMU_COLLAPSE /* small mappings become a huge one */
};

struct host_mmu_range {
    hva_t start, end;
    enum host_mmu_event event;
};

struct host_notifier;

/*
 * Between invalidate_start and invalidate_end the entries of the range change: the callee removes
 * all it derived from them in start, and derives nothing new from the range until end. Ranges of
 * different threads may overlap in time. Called with the mmap lock held: callees must not come
 * back into mm.h.
 */
struct host_notifier_ops {
    void (*invalidate_start)(struct host_notifier *n, const struct host_mmu_range *range);
    void (*invalidate_end)(struct host_notifier *n, const struct host_mmu_range *range);
    /* Was the range accessed through the second stage; clear_young also forgets it. May be null. */
    bool (*clear_young)(struct host_notifier *n, const struct host_mmu_range *range);
    bool (*test_young)(struct host_notifier *n, const struct host_mmu_range *range);
    /* The address space goes. May be null. */
    void (*release)(struct host_notifier *n);
};

/* A change between its two halves. The caller's; filled in but for range.event. */
struct host_change {
    struct host_mm *mm;
    enum host_change_kind kind;
    struct host_mmu_range range;
    unsigned prot;       /* HOST_VMA_READ | WRITE | EXEC */
    bool may_have_holes; /* PROTECT: parts that are not known are no error */
};

int host_mm_change_begin(struct host_change *c) must_check;
void host_mm_change_end(struct host_change *c, bool done);

/* Embedded by the user, who keeps it alive until unregistered. */
struct host_notifier {
    const struct host_notifier_ops *ops;
    struct list node;
};

void host_notifier_register(struct host_mm *mm, struct host_notifier *n);
/* On return no callback of n runs any more. */
void host_notifier_unregister(struct host_mm *mm, struct host_notifier *n);

/* ---- figures ---- */

struct host_mm_stats {
    uint64_t faults, faults_minor, faults_major, faults_error;
    uint64_t anon_4k, anon_2m, anon_1g, zero_page, cow, file_faults, hugetlb_faults, wp_upgrade;
    uint64_t raced;        /* two threads filled one entry */
    uint64_t thp_deferred; /* not even tried: it failed a moment ago */
    uint64_t thp_fallback; /* a huge frame was wanted and not to be had */
    uint64_t gup_fast, gup_fast_miss, gup_slow, follow_pfn;
    uint64_t imports;  /* VMAs learnt from the process */
    uint64_t unmapped; /* frames unmapped, in 4 KiB */
    uint64_t splits, collapses, migrated;
    uint64_t past_end, poisoned; /* faults past the end of a file, or at a failed page */
    uint64_t userfaults;         /* faults refused because a userfault handler must answer */
    uint64_t notifies;
    uint64_t rss_anon, rss_file, rss_tables; /* simulated, 4 KiB frames */
    uint64_t reclaim_runs, reclaim_scanned, reclaim_young, reclaim_pinned, reclaim_file;
    uint64_t ksm_merged, ksm_unmerged;     /* pages that came to share a frame, and left it */
    uint64_t swap_out, swap_in, swap_same; /* same: a page of one repeated word, no storage */
    uint64_t swap_watched;                 /* brought back for the process itself */
    uint64_t swap_pages, swap_bytes;       /* now in swap; bytes of storage they take */
};
void host_mm_get_stats(struct host_mm *mm, struct host_mm_stats *out);

/* Print the VMAs, the figures and the memory behind, a line each, as the monitor shows them. */
void host_mm_show(struct host_mm *mm, FILE *out);

/* Check tables against VMAs and frames; 0, or -EUCLEAN with one line in text. Quiescent only. */
int host_mm_check(struct host_mm *mm, char *text, size_t size);

#endif
