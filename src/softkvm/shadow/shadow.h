/*
 * The shadow MMU: tables for the processor that are derived from the guest's own, as KVM makes them when there is no
 * second stage. This header holds the structures; what each file does:
 *
 *   mode.c        the guest's paging as its registers say; roles of pages
 *   guest_walk.c  the guest's tables, walked for a fault: whose fault is it?
 *   page.c        shadow pages: hash, getting, zapping, recycling
 *   spte.c        the one funnel that changes an entry; reverse maps' upkeep
 *   rmap.c        reverse maps and write-tracking counts, by guest frame
 *   fault.c       serving a page fault
 *   track.c       write protection of guest tables, unsync, writes to tables
 *   sync.c        bringing unsync tables up to date; INVLPG
 *   root.c        roots, their cache, CR3
 *   exits.c       exits of the processor that belong to shadow paging
 *   ops.c         the kind's face to mmu.c
 *   check.c       every invariant, for tests
 *
 *      guest's tables          shadow pages (gfn, role)           entries by guest frame
 *      CR3 -> [PML4] --------> root ---+                            rmap[level]: sptes that map it
 *               [PDPT] ------> sp <----+ parents                    tracked: shadowed as an upper table
 *                 [PD] ------> sp  ... unsync_children
 *                   [PT] ----> sp (may be unsync) ----> frames of memory
 *
 * Invariants (check.c asserts them all)
 *  1. A page is in the hash under its (gfn, role) unless it is invalid; no two valid pages have both equal.
 *  2. Every present non-leaf entry names a page that exists, and is in that page's parents, once.
 *  3. Every leaf entry is in the reverse map of the frame that sp->gfns[] or the direct rule gives, once.
 *  4. A guest table with a page of level > 1, or with a page of level 1 that is not unsync, is mapped writable by no
 *     entry. For the former its frame's `tracked` count is not 0.
 *  5. unsync pages have level 1, are not direct, and set a bit in every parent, up to the roots.
 *  6. A page whose root_count is not 0 is not freed; zapping makes it invalid.
 *
 * Locks: mmu.lock exclusive for everything here but the guest walk, whose pages are pinned. The processor's writes of
 * accessed and dirty bits are the only other writer of entries.
 * When entries lose rights, processors are made to flush under the lock where the guest's tables depend on it, else
 * by the caller of the kind's operation (mmu.c).
 */
#ifndef STRATA_SOFTKVM_SHADOW_H
#define STRATA_SOFTKVM_SHADOW_H

#include "arch/paging.h"
#include "base/list.h"
#include "cpu/shadow.h"
#include "softkvm/mmu.h"
#include "softkvm/vcpu.h"

/* Rights as roles and walks carry them. */
#define KVM_ACC_X   1u
#define KVM_ACC_W   2u
#define KVM_ACC_U   4u
#define KVM_ACC_ALL 7u

/* What makes two shadow pages of one guest frame different. */
union kvm_role {
    uint32_t word;
    struct {
        uint32_t level : 4;
        uint32_t quadrant : 2;  /* which part of a table with 4-byte entries */
        uint32_t has_4_byte : 1;
        uint32_t direct : 1;    /* no guest table behind it: frames in a row */
        uint32_t access : 3;    /* KVM_ACC_* of the levels above */
        uint32_t invalid : 1;
        uint32_t nx : 1;        /* guest's EFER.NX */
        uint32_t wp : 1;        /* guest's CR0.WP */
        uint32_t smep_no_wp : 1;
        uint32_t smap_no_wp : 1;
        uint32_t paged : 1;     /* guest's CR0.PG */
        uint32_t pse : 1;       /* large pages in 32-bit tables */
        uint32_t long_mode : 1; /* 8-byte entries of 4- or 5-level format, not PAE's */
        uint32_t top : 3;       /* levels of the guest's tables */
        uint32_t has_1g : 1;
    };
};
_Static_assert(sizeof(union kvm_role) == 4, "a role is compared as one word");

/* The guest's paging, from its registers. */
struct kvm_guest_mode {
    uint8_t levels;     /* 0: no paging, 2 (32-bit), 3 (PAE), 4, 5 */
    uint8_t entry_size; /* bytes: 4 or 8 */
    bool wp, nx, smep, smap, pse, pke, lma;
    bool has_1g;
    uint64_t reserved;  /* in every entry: beyond the physical width, NX when off */
    uint32_t pkru;
    uint64_t cr3;       /* without PCID and NOFLUSH */
    uint64_t pdptr[4];
};

/* A chain of entry pointers: none, one inline, or blocks; rmap.c. */
struct kvm_rmap {
    uintptr_t v;
};

#define KVM_RMAP_BLOCK 14
struct kvm_rmap_block {
    struct kvm_rmap_block *more;
    uint32_t count;
    uint64_t *spte[KVM_RMAP_BLOCK];
};

/* Reverse maps and tracking of the 2 MiB at region << 9. Freed with the MMU. */
struct kvm_rmap_chunk {
    struct kvm_rmap_chunk *next; /* in the hash */
    uint64_t region;             /* gfn >> 9 */
    uint32_t nr_shadowed;        /* pages that shadow a guest table here: no large leaf then */
    struct kvm_rmap large;       /* leaves of 2 MiB */
    struct kvm_rmap small[PT_ENTRIES];
    uint16_t tracked[PT_ENTRIES]; /* pages of level > 1 that shadow the frame */
};

struct kvm_shadow_page {
    struct kvm_shadow_page *hash_next;
    struct list node;      /* in active, newest first, or in dead */
    gfn_t gfn;             /* of the guest's table; direct: first frame mapped */
    union kvm_role role;
    hpa_t table;
    uint64_t *spt;         /* PT_ENTRIES entries at `table` */
    uint64_t *gfns;        /* not direct: the frame that each leaf maps << 3 | KVM_ACC_* of the guest's entry */
    struct kvm_rmap parents;
    uint32_t root_count;   /* vCPUs' roots and cached roots */
    uint32_t generation;   /* shadow's when it was made */
    uint8_t writes;        /* to the guest's table since it was last used for a fault */
    bool unsync;
    uint32_t nr_unsync_children;
    uint64_t unsync_children[PT_ENTRIES / 64];
};

#define KVM_SHADOW_HASH_BITS 12
#define KVM_RMAP_HASH_BITS   14

struct kvm_shadow_counters {
    uint64_t walks, guest_faults, fixed, retries, mmio, device_grants;
    uint64_t pages_new, pages_found, pages_zapped, pages_recycled, pages_obsolete;
    uint64_t write_protected, table_writes, table_write_zaps, floods, unprotects;
    uint64_t unsyncs, syncs, sync_dropped, sync_kept;
    uint64_t root_loads, root_hits, cr3_writes, invlpgs;
    uint64_t flushes, split_large;
    uint64_t table_refs; /* guest entries read by walks */
};

/* The VM's part; mmu.kind_data. All under mmu.lock. */
struct kvm_shadow {
    struct kvm_vm *vm;
    struct kvm_shadow_page *hash[1u << KVM_SHADOW_HASH_BITS];
    struct kvm_rmap_chunk *chunks[1u << KVM_RMAP_HASH_BITS];
    struct kvm_shadow_page **by_pfn; /* table frame -> page */
    struct list active;
    struct list dead;      /* zapped; freed when processors have flushed */
    uint64_t nr_pages, max_pages;
    uint64_t user_limit;   /* KVM_SET_NR_MMU_PAGES; 0: from the slots' size */
    uint64_t limit_slots;  /* slots' generation that max_pages was made for */
    hpa_t dummy;           /* an empty table: the root when the guest's is in no memory */
    uint32_t generation;   /* pages of an older one are never used again */
    bool flush;            /* some entry lost a right that a processor may still use: before the lock goes */
    bool stale;            /* the same, but the guest may not count on it until it flushes: before the host's need */
    struct kvm_shadow_counters counters;
};

/* Reserve of a vCPU, so that nothing is allocated under the lock. */
#define KVM_SHADOW_RESERVE 8
struct kvm_shadow_cache {
    unsigned nr_pages, nr_blocks, nr_chunks;
    struct kvm_shadow_page *pages[KVM_SHADOW_RESERVE]; /* with table and gfns */
    struct kvm_rmap_block *blocks[32];
    struct kvm_rmap_chunk *chunks[KVM_SHADOW_RESERVE];
};

#define KVM_PREV_ROOTS 3
struct kvm_shadow_root {
    struct kvm_shadow_page *sp;
    uint64_t cr3;          /* the guest's value, PCID included */
    uint32_t role;         /* word of the root's role */
};

/* A vCPU's part; v->shadow. Own thread; pages' counts under mmu.lock. */
struct kvm_shadow_vcpu {
    struct kvm_shadow_cache cache;
    struct kvm_guest_mode mode;
    struct kvm_shadow_root root;             /* 4 and 5 levels */
    struct kvm_shadow_root prev[KVM_PREV_ROOTS];
    struct kvm_shadow_page *pae[4];          /* PAE format: no paging, 32-bit, PAE */
    bool sync_wanted;                        /* a flush was asked for: roots must be up to date when loaded */
};

static inline struct kvm_shadow *kvm_shadow(const struct kvm_vm *vm)
{
    return vm->mmu.kind_data;
}

#define KVM_SHADOW_COUNT(p) ((void)__atomic_fetch_add(p, 1, __ATOMIC_RELAXED))

/* ---- mode.c ---- */

/* Read the guest's registers. *mode is complete. May read guest memory (PAE's PDPTEs after a state change). */
void kvm_shadow_mode(struct kvm_vcpu *v, struct kvm_guest_mode *mode);
/* Role bits that all pages of a mode share; level and access are those of a root. */
union kvm_role kvm_shadow_base_role(const struct kvm_guest_mode *mode);
/* Control registers that the walk over shadow tables obeys. */
void kvm_shadow_hw_regs(const struct kvm_vcpu *v, const struct kvm_guest_mode *mode, struct cpu_shadow_root *r);

/* ---- guest_walk.c ---- */

enum kvm_walk_result {
    KVM_WALK_OK,
    KVM_WALK_GUEST_FAULT, /* `code` */
    KVM_WALK_ERROR,       /* the host does not give a table's page: `error` */
};

#define KVM_WALK_LEVELS 5

/* A walk over the guest's tables, for one access. */
struct kvm_guest_walk {
    /* in */
    const struct kvm_guest_mode *mode;
    uint64_t la;
    bool write, fetch, user;
    bool smap_exempt;     /* explicit supervisor access with AC set */
    bool quiet;           /* sets no accessed or dirty bits */
    /* out */
    unsigned level;       /* of the leaf: 1, 2, 3; 0 without paging */
    unsigned top;         /* level of the first table walked */
    uint64_t pte[KVM_WALK_LEVELS];       /* by level - 1, as they are now */
    gpa_t pte_gpa[KVM_WALK_LEVELS];
    gfn_t table_gfn[KVM_WALK_LEVELS];
    uint8_t table_access[KVM_WALK_LEVELS]; /* rights of the levels above */
    uint8_t access;       /* the leaf's, W taken away while it is clean */
    gfn_t gfn;            /* of the 4 KiB page at la */
    uint32_t code;        /* X86_PFEC_*, as the guest shall see it */
    int error;
};

enum kvm_walk_result kvm_guest_walk(struct kvm_vcpu *v, struct kvm_guest_walk *w);

/* Facts of a guest entry, shared with sync.c and track.c. */
bool kvm_gpte_is_reserved(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level);
bool kvm_gpte_is_leaf(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level);
uint8_t kvm_gpte_access(const struct kvm_guest_mode *m, uint64_t gpte);
gfn_t kvm_gpte_gfn(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level);
/* The mode that pages of a role were made for, as far as entries tell. */
void kvm_role_mode(const struct kvm_vcpu *v, union kvm_role role, struct kvm_guest_mode *m);

/* A guest table's page, pinned. ptr null: not to be had without waiting. */
struct kvm_table_view {
    const uint8_t *ptr;
    struct host_page page;
    struct kvm_memslot *slot;
};
/* Lock: any; never waits. put: always after. */
void kvm_table_view_get(struct kvm_vcpu *v, gfn_t f, struct kvm_table_view *view);
void kvm_table_view_put(struct kvm_vcpu *v, struct kvm_table_view *view);

/* ---- rmap.c ---- */

bool kvm_rmap_is_empty(const struct kvm_rmap *r);
void kvm_rmap_add(struct kvm_shadow_cache *c, struct kvm_rmap *r, uint64_t *spte);
bool kvm_rmap_remove(struct kvm_rmap *r, const uint64_t *spte);
/* An entry of the chain, or null: for loops that remove what they get. */
uint64_t *kvm_rmap_first(const struct kvm_rmap *r);
/* The i-th entry, or null beyond the last; the chain may not change meanwhile. *pos: {NULL, 0} at first. */
struct kvm_rmap_pos {
    const struct kvm_rmap_block *block;
    unsigned i;
    bool started;
};
uint64_t *kvm_rmap_next(const struct kvm_rmap *r, struct kvm_rmap_pos *pos);
/* The chunk of a region, or null; make takes one from the reserve. */
struct kvm_rmap_chunk *kvm_rmap_chunk(const struct kvm_shadow *sh, uint64_t region);
struct kvm_rmap_chunk *kvm_rmap_chunk_make(struct kvm_shadow *sh, struct kvm_shadow_cache *c, uint64_t region);
/* The reverse map of a frame at a leaf level, or null. */
struct kvm_rmap *kvm_rmap_of(const struct kvm_shadow *sh, gfn_t f, unsigned level);
/* Call fn for each non-empty reverse map with a frame in [first, last]. fn may empty the chain it gets. */
typedef void kvm_rmap_fn(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque);
void kvm_rmap_for_range(struct kvm_shadow *sh, gfn_t first, gfn_t last, kvm_rmap_fn *fn, void *opaque);
void kvm_rmap_free_all(struct kvm_shadow *sh);

/* ---- spte.c ---- */

/* Software's bits of an entry; PAE's format leaves 9 to 11 alone. */
#define KVM_SPTE_HOST_W (UINT64_C(1) << 9)  /* the host's entry was writable */
#define KVM_SPTE_MMU_W  (UINT64_C(1) << 10) /* no guest table: only dirty logging may have taken W */
/* An MMIO entry: present, with bit 51, which is beyond the physical width. Bits 1 and 2: rights; 3 to 10, 52 to 62: generation. */
#define KVM_SPTE_MMIO (X86_PTE_P | UINT64_C(1) << 51)
#define KVM_SPTE_MMIO_GFN_MASK ((UINT64_C(1) << CPU_SHADOW_PHYS_BITS) - PAGE_SIZE)

static inline bool kvm_spte_is_present(uint64_t e)
{
    return (e & X86_PTE_P) != 0;
}

static inline bool kvm_spte_is_mmio(uint64_t e)
{
    return (e & KVM_SPTE_MMIO) == KVM_SPTE_MMIO;
}

static inline bool kvm_spte_is_page(uint64_t e, unsigned level)
{
    return kvm_spte_is_present(e) && !kvm_spte_is_mmio(e) && (level == 1 || (e & X86_PTE_PS));
}

static inline bool kvm_spte_is_table(uint64_t e, unsigned level)
{
    return level > 1 && kvm_spte_is_present(e) && !kvm_spte_is_mmio(e) && !(e & X86_PTE_PS);
}

static inline uint64_t kvm_spte_load(const uint64_t *e)
{
    return __atomic_load_n(e, __ATOMIC_RELAXED);
}

uint64_t kvm_spte_mmio(gfn_t f, uint64_t generation, uint8_t access);
uint64_t kvm_spte_mmio_generation(uint64_t e);
gfn_t kvm_spte_mmio_gfn(uint64_t e);
/* A table entry: what it leads to decides the rights. */
uint64_t kvm_spte_table(const struct kvm_shadow_page *child);

/* The page that an entry lies in, and its index there. */
struct kvm_shadow_page *kvm_spte_owner(const struct kvm_shadow *sh, const uint64_t *spte, unsigned *index);
struct kvm_shadow_page *kvm_spte_child(const struct kvm_shadow *sh, uint64_t e);
/* The frame that entry i of a page maps when it is a leaf. */
gfn_t kvm_spte_gfn(const struct kvm_shadow_page *sp, unsigned i);

/* The funnel. Entry i of sp becomes `new`; for a leaf of a page that is not direct, f and access are remembered. c: for the
 * reverse map, may be null when none grows. Sets sh->flush or sh->stale. Returns the old value. */
uint64_t kvm_spte_set(struct kvm_shadow *sh, struct kvm_shadow_cache *c, struct kvm_shadow_page *sp, unsigned i, uint64_t new,
                      gfn_t f, uint8_t access);
void kvm_spte_clear(struct kvm_shadow *sh, uint64_t *spte);
/* Take W from every entry that maps f. True: there was one. keep: dirty logging, the entry may get it back. */
bool kvm_spte_protect_gfn(struct kvm_shadow *sh, gfn_t f, bool keep);

/* ---- page.c ---- */

/* Fill the reserve. -ENOMEM. Not under mmu.lock. */
int kvm_shadow_top_up(struct kvm_vcpu *v) must_check;
void kvm_shadow_cache_drain(struct kvm_vm *vm, struct kvm_shadow_cache *c);
/* The page for (f, role), found or made; up to date. Under the lock, with a full reserve. */
struct kvm_shadow_page *kvm_shadow_page_get(struct kvm_vcpu *v, gfn_t f, union kvm_role role);
/* Take a page out of use: its entries and those that name it go. Only this page leaves the hash. */
void kvm_shadow_page_zap(struct kvm_shadow *sh, struct kvm_shadow_page *sp);
/* Flush if needed, under the lock, and free dead pages. */
void kvm_shadow_commit(struct kvm_shadow *sh);
/* Flush also for what only the guest was not to count on: before the host's need. */
void kvm_shadow_commit_all(struct kvm_shadow *sh);
/* Room for what a fault may need: the oldest pages go. In the read section. */
void kvm_shadow_make_room(struct kvm_shadow *sh);
/* A root's count goes down; an invalid page that nobody uses any more goes. */
void kvm_shadow_root_put(struct kvm_shadow *sh, struct kvm_shadow_page *sp);
/* No page of now is used again; those that no root holds go at once. */
void kvm_shadow_zap_all(struct kvm_shadow *sh);
struct kvm_shadow_page *kvm_shadow_hash_first(const struct kvm_shadow *sh, gfn_t f);
void kvm_shadow_page_free(struct kvm_vm *vm, struct kvm_shadow_page *sp);

/* ---- track.c ---- */

bool kvm_shadow_is_tracked(const struct kvm_shadow *sh, gfn_t f);
/* May an entry that maps f be writable? Makes its leaf tables unsync. */
bool kvm_shadow_may_map_writable(struct kvm_shadow *sh, gfn_t f, bool may_unsync);
/* The guest has written [addr, addr + len) of a page that may hold tables. */
void kvm_shadow_table_written(struct kvm_vcpu *v, gpa_t addr, unsigned len);
/* Give up shadowing f. True: something was shadowed. */
bool kvm_shadow_unprotect(struct kvm_shadow *sh, gfn_t f);
/* A page begins (by = 1) or stops (-1) to shadow its guest table. c: for 1 only. */
void kvm_shadow_account(struct kvm_shadow *sh, struct kvm_shadow_cache *c, const struct kvm_shadow_page *sp, int by);
/* Is a guest table in the 2 MiB of f shadowed? */
bool kvm_shadow_region_has_tables(const struct kvm_shadow *sh, gfn_t f);
/* Parents' bookkeeping of unsync pages: when a page becomes unsync, or stops, or loses a parent. */
void kvm_shadow_mark_unsync_parents(struct kvm_shadow *sh, struct kvm_shadow_page *sp);
/* Entry i of sp begins to name child, which may have unsync pages below it. */
void kvm_shadow_mark_child(struct kvm_shadow *sh, struct kvm_shadow_page *sp, unsigned i,
                           const struct kvm_shadow_page *child);

/* ---- sync.c ---- */

/* Bring an unsync page up to date; zaps it when that cannot be done. The page's frame must be protected already. */
bool kvm_shadow_sync_page(struct kvm_vcpu *v, struct kvm_shadow_page *sp);
void kvm_shadow_sync_children(struct kvm_vcpu *v, struct kvm_shadow_page *root);
void kvm_shadow_invlpg(struct kvm_vcpu *v, uint64_t la, bool all_roots);

/* ---- fault.c ---- */

/* What the guest's leaf access and the walk's become in an entry. */
struct kvm_leaf_request {
    gfn_t gfn;
    uint8_t access;     /* KVM_ACC_* */
    pfn_t pfn;
    bool host_writable;
    bool write;         /* the access at hand writes */
    unsigned level;
};
uint64_t kvm_spte_make(struct kvm_shadow *sh, const struct kvm_memslot *slot, const struct kvm_leaf_request *r);
int kvm_shadow_page_fault(struct kvm_vcpu *v);

/* ---- exits.c ---- */

/* An exit that only shadow paging has; exit.c calls it. */
int kvm_shadow_exit(struct kvm_vcpu *v);
/* See to it that a root is loaded. */
int kvm_shadow_enter(struct kvm_vcpu *v) must_check;
/* Is what a granted device access met still no memory? */
bool kvm_shadow_is_device(struct kvm_vcpu *v);

/* KVM_TRANSLATE: as the guest's tables say, without a trace. 0 or -EFAULT. Not in a read section. */
int kvm_shadow_translate(struct kvm_vcpu *v, gva_t va, gpa_t *out) must_check;

/* ---- root.c ---- */

/* Load a root for the guest's registers. 0 or -errno. */
int kvm_shadow_load(struct kvm_vcpu *v) must_check;
void kvm_shadow_drop_roots(struct kvm_vcpu *v);
/* CR3 has been written with this value: sync unless it keeps translations. */
void kvm_shadow_cr3_written(struct kvm_vcpu *v, uint64_t value);
void kvm_shadow_forget_pcid(struct kvm_vcpu *v, unsigned pcid);
void kvm_shadow_sync_roots(struct kvm_vcpu *v);

/* ---- check.c ---- */

struct kvm_checker;
void kvm_shadow_check(struct kvm_vm *vm, struct kvm_checker *c);

#endif
