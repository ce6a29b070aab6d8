/*
 * The inside of a host address space, shared by the .c files of src/host only.
 *
 *   vmas    sorted array, disjoint            mmap lock
 *   root    top page table, in a frame        entries: cmpxchg under the mmap lock held for reading,
 *                                             anything under it held for writing
 *   walkers counts of lock-free walks         a table is freed only after those that may see it left
 *
 * A present entry has the x86 long format; bit 9 marks a frame that is not counted (pfn-mapped).
 */
#ifndef STRATA_HOST_MM_IMPL_H
#define STRATA_HOST_MM_IMPL_H

#include <pthread.h>
#include <sched.h>

#include "arch/paging.h"
#include "host/memory_impl.h"
#include "host/mm.h"

#define HOST_PTE_SPECIAL UINT64_C(0x200)

/* Write-protected by a fork: the first write gets a frame of its own. */
#define HOST_PTE_COW UINT64_C(0x800)

/* An absent level-1 entry whose frame has failed. */
#define HOST_PTE_POISON UINT64_C(0x200)

/* An absent level-1 entry whose page is in swap: slot number above the page offset. */
#define HOST_PTE_SWAP UINT64_C(0x400)

#define HOST_HUGE_SHIFT 21
#define HOST_HUGE_SIZE  (UINT64_C(1) << HOST_HUGE_SHIFT)

#define HOST_WALK_SLOTS 16

/* Counters of an address space, in host_mm_stats' order: X(name). */
#define HOST_MM_COUNTERS(X)                                                                        \
    X(faults)                                                                                      \
    X(faults_minor)                                                                                \
    X(faults_major)                                                                                \
    X(faults_error)                                                                                \
    X(anon_4k)                                                                                     \
    X(anon_2m)                                                                                     \
    X(anon_1g)                                                                                     \
    X(zero_page)                                                                                   \
    X(cow)                                                                                         \
    X(file_faults)                                                                                 \
    X(hugetlb_faults)                                                                              \
    X(wp_upgrade)                                                                                  \
    X(raced)                                                                                       \
    X(thp_deferred)                                                                                \
    X(thp_fallback)                                                                                \
    X(gup_fast)                                                                                    \
    X(gup_fast_miss)                                                                               \
    X(gup_slow)                                                                                    \
    X(follow_pfn)                                                                                  \
    X(imports)                                                                                     \
    X(unmapped)                                                                                    \
    X(splits)                                                                                      \
    X(collapses)                                                                                   \
    X(migrated)                                                                                    \
    X(past_end)                                                                                    \
    X(poisoned)                                                                                    \
    X(userfaults)                                                                                  \
    X(notifies)                                                                                    \
    X(rss_anon)                                                                                    \
    X(rss_file)                                                                                    \
    X(rss_tables)                                                                                  \
    X(reclaim_runs)                                                                                \
    X(reclaim_scanned)                                                                             \
    X(reclaim_young)                                                                               \
    X(reclaim_pinned)                                                                              \
    X(reclaim_file)                                                                                \
    X(ksm_merged)                                                                                  \
    X(ksm_unmerged)                                                                                \
    X(swap_out)                                                                                    \
    X(swap_in)                                                                                     \
    X(swap_same)                                                                                   \
    X(swap_watched)                                                                                \
    X(swap_pages)                                                                                  \
    X(swap_bytes)

enum host_mm_counter {
#define HOST_MM_COUNTER_ID(name) HOST_MM_##name,
    HOST_MM_COUNTERS(HOST_MM_COUNTER_ID)
#undef HOST_MM_COUNTER_ID
        HOST_MM_NR_COUNTERS,
};

/* What one processor's threads count and where their lock-free walks announce themselves. */
struct host_mm_slot {
    uint64_t walks[2]; /* atomic; by epoch parity */
    uint64_t counter[HOST_MM_NR_COUNTERS];
} __attribute__((aligned(64)));

struct host_vma_set {
    struct host_vma *v; /* sorted by address, disjoint */
    size_t n, cap;
};

/* Frames of shared files, see cache.c. */
struct host_file {
    uint64_t dev, ino;
};

struct host_cache {
    pthread_mutex_t lock;
    uint32_t *places; /* pfns; open addressing */
    uint64_t size, used;
    struct host_file *files;
    uint32_t nr_files;
};

struct host_mm {
    /* constant */
    struct host_memory *hm;
    unsigned levels;
    enum host_thp_policy thp;
    bool zero_page;
    uint8_t id;
    hpa_t root;
    pfn_t zero_pfn; /* 0 without zero_page */
    struct host_map_source source;

    pthread_rwlock_t mmap_lock;
    struct host_vma_set vmas;

    pthread_rwlock_t notifier_lock;
    struct list notifiers;

    struct host_cache cache; /* its own lock */
    struct host_ksm *ksm;    /* null unless the process announces its accesses; constant */
    struct host_daemon *daemon; /* constant */
    struct host_swap *swap;  /* null without swap; constant */
    struct list accesses;    /* ranges that device code uses; mmap lock */
    uint64_t hand;           /* reclaim's clock hand, an address; mmap lock for writing */
    const struct base_trace *trace;

    unsigned huge_defer; /* atomic: faults that do without trying for a huge page */
    bool compact_wanted; /* atomic: a MADV_HUGEPAGE range lacked one */
    uint64_t epoch;      /* atomic; parity chooses walks[] */
    struct host_mm_slot slot[HOST_WALK_SLOTS];
};

static inline struct host_mm_slot *host_mm_slot(struct host_mm *mm)
{
    return &mm->slot[(unsigned)sched_getcpu() % HOST_WALK_SLOTS];
}

static inline void host_mm_count(struct host_mm *mm, enum host_mm_counter c, int64_t n)
{
    __atomic_fetch_add(&host_mm_slot(mm)->counter[c], (uint64_t)n, __ATOMIC_RELAXED);
}

/* First address that the tables do not reach. */
static inline uint64_t host_mm_limit(const struct host_mm *mm)
{
    return UINT64_C(1) << (pt_level_shift(mm->levels) + PT_LEVEL_BITS - 1);
}

static inline bool host_pte_is_swap(uint64_t e)
{
    return (e & (X86_PTE_P | HOST_PTE_SWAP)) == HOST_PTE_SWAP;
}

static inline bool host_pte_is_leaf(uint64_t e, unsigned level)
{
    return level == 1 || (e & X86_PTE_PS);
}

static inline uint64_t *host_pte_table(struct host_mm *mm, uint64_t e)
{
    return host_table_at(mm->hm, hpa(e & X86_PTE_ADDR_MASK));
}

/* Sequentially consistent: pairs with host_walk_sync(), and costs no more than a plain load
 * here. */
static inline uint64_t host_pte_load(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}

/* ---- vma.c: the set. Lock: mmap lock as the name of the operation suggests ---- */

/* Index of the first VMA that ends above addr (may start above it). */
size_t host_vma_lower(const struct host_vma_set *set, uint64_t addr);
const struct host_vma *host_vma_find(const struct host_vma_set *set, uint64_t addr);
/* Make sure that `more` VMAs can be added without allocating. */
int host_vma_reserve(struct host_memory *hm, struct host_vma_set *set, size_t more) must_check;
/* All below need host_vma_reserve(2) before. */
void host_vma_clear_range(struct host_vma_set *set, uint64_t start, uint64_t end);
void host_vma_insert(struct host_vma_set *set, const struct host_vma *vma);
void host_vma_split_at(struct host_vma_set *set, uint64_t addr);
void host_vma_merge_around(struct host_vma_set *set, uint64_t start, uint64_t end);
/* All VMAs of the file of `now` learn what it says of the file's length. */
void host_vma_share_length(struct host_vma_set *set, const struct host_vma *now);
bool host_vma_covers(const struct host_vma_set *set, uint64_t start, uint64_t end);

/* ---- mm.c ---- */
/* Is it a range of whole pages that the tables reach? */
bool host_mm_range_ok(const struct host_mm *mm, hva_t start, hva_t end);
/* Make ready for a change of [start, end): room for two more VMAs, no huge entry across the ends.
 * Lock: mmap write. 0, -ENOMEM, or -EINVAL (an end lies inside a hugetlb page). */
int host_mm_prepare(struct host_mm *mm, uint64_t start, uint64_t end) must_check;
/* Set and clear flags of the VMAs in a range that they cover without a hole. Lock: mmap write, room
 * reserved. */
void host_mm_change_flags(struct host_mm *mm, uint64_t start, uint64_t end, unsigned set,
                          unsigned clear);

/* ---- maps.c ---- */
extern const struct host_map_source host_map_source_process;

/* ---- pt.c ---- */

struct host_zap {
    uint64_t start, end;
    uint64_t frames; /* 4 KiB frames unmapped */
    uint32_t tables; /* chain, by frame.next, of tables taken out */
    bool keep_swap;
    uint64_t leaf_frames; /* of a huge leaf at the level being zapped */
};

/* Pointer to the entry of `level` for addr, building tables on the way. 0; -ENOMEM; -EEXIST when a
 * leaf of a higher level is in the way (then *out is that leaf's entry and *level its level). */
int host_pt_build(struct host_mm *mm, uint64_t addr, unsigned *level, uint64_t **out) must_check;
/* The lowest entry there is for addr; *level says at which level. */
uint64_t *host_pt_find(struct host_mm *mm, uint64_t addr, unsigned *level);
/* Take out all entries of [start, end), put their frames; whole tables go too. Huge entries that
 * only partly lie inside must have been split. Lock: mmap write. */
void host_pt_zap(struct host_mm *mm, uint64_t start, uint64_t end);
/* The same, but swapped pages stay in swap (and tables stay). */
void host_pt_zap_present(struct host_mm *mm, uint64_t start, uint64_t end);
/* Make the huge entry that holds addr, if any, into small ones. Lock: mmap write. 0 or -ENOMEM. */
int host_pt_split(struct host_mm *mm, uint64_t addr) must_check;
/* Split the huge entries across both ends of a range. Lock: mmap write. 0 or -ENOMEM. */
int host_pt_split_ends(struct host_mm *mm, uint64_t start, uint64_t end) must_check;
/* Free all tables, the root too. */
void host_pt_free_all(struct host_mm *mm);
/* What an entry's frame counts as: HOST_MM_rss_anon or HOST_MM_rss_file. */
enum host_mm_counter host_rss_of(struct host_mm *mm, uint64_t entry);

/* ---- walk.c: lock-free walks ---- */
static inline unsigned host_walk_begin(struct host_mm *mm, struct host_mm_slot **slot)
{
    unsigned parity = (unsigned)(__atomic_load_n(&mm->epoch, __ATOMIC_RELAXED) & 1);

    *slot = host_mm_slot(mm);
    __atomic_fetch_add(&(*slot)->walks[parity], 1, __ATOMIC_SEQ_CST);
    return parity;
}

static inline void host_walk_end(struct host_mm_slot *slot, unsigned parity)
{
    __atomic_fetch_sub(&slot->walks[parity], 1, __ATOMIC_RELEASE);
}

/* Wait until every walk that could have seen an entry taken out before has ended. */
void host_walk_sync(struct host_mm *mm);

/* ---- notifier.c. Lock: mmap lock held, either way ---- */
void host_notify_start(struct host_mm *mm, const struct host_mmu_range *range);
void host_notify_end(struct host_mm *mm, const struct host_mmu_range *range);
void host_notify_release(struct host_mm *mm);
bool host_notify_clear_young(struct host_mm *mm, const struct host_mmu_range *range);

/* ---- fault.c ---- */
/* Learn the VMA of addr from the source. 0 or -EFAULT, -ENOMEM. Lock: none held; takes mmap
 * write. */
int host_mm_import(struct host_mm *mm, uint64_t addr) must_check;
/* Ask the source how long the file mapped at addr is now. True when addr lies inside. */
bool host_mm_file_grew(struct host_mm *mm, uint64_t addr);

/* ---- cache.c ---- */
int host_cache_get(struct host_mm *mm, const struct host_vma *vma, uint64_t addr,
                   const struct host_alloc *req, pfn_t *out) must_check;
bool host_frame_is_cached(struct host_mm *mm, pfn_t p);
void host_cache_unmapped(struct host_mm *mm, pfn_t p, uint64_t addr, uint64_t n);
void host_cache_fini(struct host_mm *mm);

/* ---- ksm.c ---- */
int host_ksm_new(struct host_mm *mm) must_check;
void host_ksm_free(struct host_mm *mm);
int host_ksm_unmerge(struct host_mm *mm, uint64_t addr, uint64_t *entry, uint64_t old,
                     uint64_t new_entry) must_check;
void host_ksm_restore_range(struct host_mm *mm, uint64_t start, uint64_t end);

/* ---- daemon.c ---- */
int host_daemon_new(struct host_mm *mm) must_check;
void host_daemon_free(struct host_mm *mm);

/* reclaim.c: is device code at a page of [start, end)? Lock: mmap lock held, either way. */
bool host_mm_in_access(const struct host_mm *mm, uint64_t start, uint64_t end);

/* ---- swap.c: the store. Its lock is taken inside the mmap lock, and is a leaf but for frames'
 * ---- */

int host_swap_new(struct host_mm *mm, uint64_t pages, bool announced) must_check;
/* Everything is out of swap already. Null is allowed. */
void host_swap_free(struct host_mm *mm);
/* Make a range's chunks watched, so that pages of it may go. 0, or -EOPNOTSUPP: leave it alone. */
int host_swap_watch(struct host_mm *mm, uint64_t start, uint64_t end) must_check;
/* The range goes, or is the process's own business again: watch it no more. Nothing of it is away. */
void host_swap_unwatch(struct host_mm *mm, uint64_t start, uint64_t end);
/* Put the page at addr away; its entry becomes *entry. Real memory is given back. 0; -ENOSPC no
 * slot; -ENOMEM. Lock: mmap write; no entry maps the page any more. */
int host_swap_out(struct host_mm *mm, uint64_t addr, uint64_t *entry) must_check;
/* Bring the page of a swap entry back to its HVA and let the slot go. 0, -ENOMEM, -EFAULT. */
int host_swap_in(struct host_mm *mm, uint64_t addr, uint64_t entry) must_check;
/* Write a page's bytes to its HVA, whatever the rights there are; not a store: the mapping may have gone. 0 or -EFAULT. */
int host_bytes_place(uint64_t addr, const void *page) must_check;
/* Forget a swapped page. */
void host_swap_drop(struct host_mm *mm, uint64_t entry);
/* A page is about to be used for the first time: in a watched chunk, spare it the watcher. */
void host_swap_prepare(struct host_mm *mm, uint64_t addr);
/* reclaim.c: bring back all swapped pages of a range. Lock: mmap write. */
void host_swap_restore_range(struct host_mm *mm, uint64_t start, uint64_t end);
void host_swap_lock(struct host_mm *mm);
void host_swap_unlock(struct host_mm *mm);

#endif
