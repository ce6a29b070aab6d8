/*
 * The second stage: tables in frames of src/host, walked entry by entry. Intel's format (EPT), with accessed and
 * dirty bits when the EPT pointer asks for them and page-modification logging, and AMD's (nested paging: the
 * long-mode format, walked as a user's access, accessed and dirty bits always). 4 or 5 levels, leaves of 4 KiB,
 * 2 MiB and 1 GiB. The walker is written once; `npt` is a constant wherever it is called, so each format has its own
 * copy of the fast way.
 *
 * A cache keeps, for a 2 MiB region of guest-physical memory, where the last entry or table is and what the levels above
 * allow; the last entry itself is read every time.
 *
 * Invariants
 *  1. Rights given out for writing imply that the leaf's dirty bit is set, if there are dirty bits.
 *  2. Entries are read once, judged, then used; changed only by compare-and-exchange.
 *  3. A dirty bit that goes from 0 to 1 while a log page is given is in the log before the write is made.
 *
 * Locks: none. The hypervisor changes entries at any time, and frees a table only after every processor
 * has served a flush request (request.h), which it does between blocks, never inside a walk.
 *
 * Left out: execute-only support is granted always; mode-based execute control, sub-page permissions and
 * virtualization exceptions do not exist; the host's EFER.NXE is on.
 */
#include "arch/paging.h"
#include "cpu/walk.h"
#include "cpu/tlb.h"
#include "host/frame.h"

/* A walk over the second stage in flight. */
struct nested_walk {
    uint64_t gpa;
    unsigned access; /* EPT_R, W, X wanted */
    bool quiet;
    bool has_ad;
    bool npt;
    uint32_t rights; /* EPT_RWX, whatever the format */
    unsigned level;  /* of `slot` */
    uint64_t *slot;  /* the leaf */
    uint64_t entry;  /* as read */
};

static uint64_t entry_read(const uint64_t *slot)
{
    return __atomic_load_n(slot, __ATOMIC_RELAXED);
}

/* Set bits in an entry that still reads `old`. */
static bool entry_mark(uint64_t *slot, uint64_t old, uint64_t bits)
{
    return __atomic_compare_exchange_n(slot, &old, old | bits, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static uint64_t *table_of(const struct cpu *cpu, uint64_t entry)
{
    uint64_t addr = entry & EPT_ADDR_MASK;

    if (unlikely(addr >> PAGE_SHIFT >= cpu->mem->nr_frames)) {
        return NULL;
    }
    return host_table_at(cpu->mem, hpa(addr));
}

/* ---- what differs between the formats ---- */

static always_inline bool entry_present(bool npt, uint64_t entry)
{
    return (entry & (npt ? X86_PTE_P : EPT_RWX)) != 0;
}

/* An entry's rights as EPT's bits. A nested walk is a user's: what is the supervisor's gives nothing. */
static always_inline uint32_t entry_rights(bool npt, uint64_t entry)
{
    if (!npt) {
        return (uint32_t)entry & EPT_RWX;
    }
    return entry & X86_PTE_U
               ? (uint32_t)(EPT_R | (entry & X86_PTE_W ? EPT_W : 0) | (entry & X86_PTE_NX ? 0 : EPT_X))
               : 0;
}

static always_inline uint64_t accessed_bit(bool npt)
{
    return npt ? X86_PTE_A : EPT_A;
}

static always_inline uint64_t dirty_bit(bool npt)
{
    return npt ? X86_PTE_D : EPT_D;
}

static bool is_leaf(uint64_t entry, unsigned level)
{
    return level == 1 || (level <= 3 && (entry & EPT_PS) != 0);
}

/* Present entries of a reserved form: what a hypervisor uses to mark device pages. */
static always_inline bool is_misconfigured(uint64_t entry, unsigned level)
{
    unsigned mt = (unsigned)(entry >> EPT_MT_SHIFT) & 7;

    if ((entry & (EPT_R | EPT_W)) == EPT_W) {
        return true;
    }
    if (!is_leaf(entry, level)) {
        return (entry & (EPT_MT_MASK | EPT_IPAT)) != 0 || (level > 3 && (entry & EPT_PS) != 0);
    }
    if (0x8cu >> mt & 1) { /* 2, 3 and 7 */
        return true;
    }
    return level > 1 && (entry & (pt_leaf_size(level) - 1) & EPT_ADDR_MASK) != 0;
}

static bool is_reserved(uint64_t entry, unsigned level)
{
    uint64_t bad = NPT_RSVD_HIGH;

    if (level > 3) {
        bad |= X86_PTE_PS | X86_PTE_G;
    } else if (level > 1 && (entry & X86_PTE_PS)) {
        bad |= (pt_leaf_size(level) - 1) & ~UINT64_C(0x1fff);
    }
    return (entry & bad) != 0;
}

static always_inline bool entry_is_odd(bool npt, uint64_t entry, unsigned level)
{
    return npt ? is_reserved(entry, level) : is_misconfigured(entry, level);
}

/* ---- the walk ---- */

/* Refused: *out tells how. `present`: a mapping is there, with too few rights. */
static enum cpu_xlate_result refuse(const struct nested_walk *w, bool present, struct cpu_nested *out)
{
    out->qualification = w->access | (present ? w->rights << 3 : 0);
    out->present = present;
    return CPU_XLATE_VIOLATION;
}

static enum cpu_xlate_result misconfigured(const struct nested_walk *w, struct cpu_nested *out)
{
    out->qualification = w->access;
    out->present = true;
    return CPU_XLATE_MISCONFIG;
}

/* Set accessed and dirty; log the page if that makes it dirty. OK; PML_FULL; FAULT: the entry changed meanwhile. */
static enum cpu_xlate_result leaf_mark(struct cpu *cpu, struct nested_walk *w, uint64_t want)
{
    bool log = cpu->pml && (want & EPT_D) && !w->npt && !(w->entry & EPT_D);

    if (unlikely(log && cpu->pml_index >= CPU_PML_ENTRIES)) {
        return CPU_XLATE_PML_FULL;
    }
    if (!entry_mark(w->slot, w->entry, want)) {
        return CPU_XLATE_FAULT;
    }
    if (log) {
        cpu->pml[cpu->pml_index--] = w->gpa & PAGE_MASK;
    }
    return CPU_XLATE_OK;
}

/* Judge the leaf at w->slot; marks accessed and dirty. OK: *out is filled. FAULT: start again. */
static always_inline enum cpu_xlate_result leaf_use(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    uint64_t entry = w->entry, want = 0;
    enum cpu_xlate_result res;
    struct host_frame *frame;
    pfn_t f;
    uint8_t *data;

    w->rights &= entry_rights(w->npt, entry);
    if (unlikely((w->access & ~w->rights) != 0)) {
        return refuse(w, true, out);
    }
    if (w->has_ad) {
        want = accessed_bit(w->npt) | (w->access & EPT_W ? dirty_bit(w->npt) : 0);
        if (unlikely((entry & want) != want) && !w->quiet) {
            res = leaf_mark(cpu, w, want);
            if (res != CPU_XLATE_OK) {
                return res;
            }
        }
        if (!((entry | want) & dirty_bit(w->npt))) {
            w->rights &= ~(uint32_t)EPT_W;
        }
    }
    f = hpa_to_pfn(hpa((entry & EPT_ADDR_MASK & ~(pt_leaf_size(w->level) - 1)) +
                       (w->gpa & (pt_leaf_size(w->level) - 1))));
    frame = host_frame_at(cpu->mem, f);
    data = frame ? host_frame_data(frame) : NULL;
    if (unlikely(!data)) {
        return refuse(w, false, out);
    }
    out->host = data;
    out->pfn = f.v;
    out->rights = w->rights;
    return CPU_XLATE_OK;
}

static void cache_fill(struct cpu *cpu, const struct nested_walk *w, uint32_t rights_above)
{
    struct cpu_epsc_entry *c = &cpu->mmu->epsc[(w->gpa >> 21) % CPU_EPSC_SIZE];

    c->tag = (w->gpa >> 21) + 1;
    c->table = w->level == 1 ? w->slot - pt_index(w->gpa, 1) : w->slot;
    c->level = w->level;
    c->rights = rights_above;
    c->key = cpu->mmu->stage2_key;
}

/* From the root down to the leaf. FAULT: an entry changed under the walk, start again. */
static always_inline enum cpu_xlate_result walk_down(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    uint64_t *table = table_of(cpu, cpu->eptp), a = accessed_bit(w->npt);
    unsigned level = w->npt ? cpu->npt_levels : (unsigned)(cpu->eptp >> 3 & 7) + 1;

    w->rights = EPT_RWX;
    for (; table; level--) {
        w->slot = &table[pt_index(w->gpa, level)];
        w->entry = entry_read(w->slot);
        w->level = level;
        if (!entry_present(w->npt, w->entry)) {
            return refuse(w, false, out);
        }
        if (unlikely(entry_is_odd(w->npt, w->entry, level))) {
            if (level == 1 && !w->quiet) {
                cache_fill(cpu, w, w->rights); /* its table: devices have few, and are met again */
            }
            return misconfigured(w, out);
        }
        if (is_leaf(w->entry, level)) {
            if (!w->quiet) {
                cache_fill(cpu, w, w->rights);
            }
            return leaf_use(cpu, w, out);
        }
        w->rights &= entry_rights(w->npt, w->entry);
        if (w->has_ad && !(w->entry & a) && !w->quiet && !entry_mark(w->slot, w->entry, a)) {
            return CPU_XLATE_FAULT;
        }
        table = level > 1 ? table_of(cpu, w->entry) : NULL;
    }
    return refuse(w, false, out);
}

/* The leaf as the cache knows it. FAULT: not there. */
static always_inline enum cpu_xlate_result walk_cached(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    struct cpu_epsc_entry *c = &cpu->mmu->epsc[(w->gpa >> 21) % CPU_EPSC_SIZE];

    if (c->tag != (w->gpa >> 21) + 1 || c->key != cpu->mmu->stage2_key) {
        return CPU_XLATE_FAULT;
    }
    w->level = c->level;
    w->slot = c->level == 1 ? &c->table[pt_index(w->gpa, 1)] : c->table;
    w->entry = entry_read(w->slot);
    if (unlikely(!entry_present(w->npt, w->entry) || !is_leaf(w->entry, w->level))) {
        return CPU_XLATE_FAULT;
    }
    if (unlikely(entry_is_odd(w->npt, w->entry, w->level))) {
        return w->level == 1 ? misconfigured(w, out) : CPU_XLATE_FAULT;
    }
    w->rights = c->rights;
    return leaf_use(cpu, w, out);
}

/* Cache, then as often as entries change under the walk. */
static always_inline enum cpu_xlate_result walk_both(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    enum cpu_xlate_result res = walk_cached(cpu, w, out);

    while (unlikely(res == CPU_XLATE_FAULT)) {
        cpu->counters.ept_walks++;
        res = walk_down(cpu, w, out);
    }
    return res;
}

static __attribute__((noinline)) enum cpu_xlate_result translate_npt(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    w->npt = true;
    w->has_ad = true;
    return walk_both(cpu, w, out);
}

/* No second stage: what the first one gives are frames' addresses already. */
static enum cpu_xlate_result translate_identity(struct cpu *cpu, uint64_t addr, struct cpu_nested *out)
{
    uint8_t *p = host_hpa_to_ptr(cpu->mem, hpa(addr & PAGE_MASK));

    if (!p) {
        out->qualification = 0;
        out->present = false;
        return CPU_XLATE_VIOLATION;
    }
    *out = (struct cpu_nested){.host = p, .pfn = addr >> PAGE_SHIFT, .rights = EPT_RWX};
    return CPU_XLATE_OK;
}

/*
 * Second stage; see walk.h. access is in enum cpu_access bits, which are EPT's R, W and X; an access
 * for writing implies reading.
 * Lock: the processor's thread. Source: Intel, "EPT translation mechanism", "EPT violations", "Page-modification
 * logging"; AMD, "Nested paging".
 */
enum cpu_xlate_result cpu_nested_translate(struct cpu *cpu, uint64_t gpa, unsigned access, bool quiet,
                                           struct cpu_nested *out)
{
    struct nested_walk w = {.gpa = gpa, .access = access, .quiet = quiet};

    if (unlikely(cpu->eptp == 0)) {
        return translate_identity(cpu, gpa, out);
    }
    if (cpu->npt_levels) {
        return translate_npt(cpu, &w, out);
    }
    w.npt = false;
    w.has_ad = (cpu->eptp & EPTP_AD) != 0;
    return walk_both(cpu, &w, out);
}
