/*
 * The second stage: EPT tables in frames of src/host, walked entry by entry. 4 or 5 levels, leaves of
 * 4 KiB, 2 MiB and 1 GiB, accessed and dirty bits when the EPT pointer asks for them.
 *
 * A cache keeps, for a 2 MiB region of guest-physical memory, where the last entry or table is and what the levels above
 * allow; the last entry itself is read every time.
 *
 * Invariants
 *  1. Rights given out for writing imply that the leaf's dirty bit is set, if there are dirty bits.
 *  2. Entries are read once, judged, then used; changed only by compare-and-exchange.
 *
 * Locks: none. The hypervisor changes entries at any time, and frees a table only after every processor
 * has served a flush request (request.h), which it does between blocks, never inside a walk.
 *
 * Left out: execute-only support is granted always; mode-based execute control, sub-page permissions,
 * virtualization exceptions and page-modification logging do not exist.
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
    uint32_t rights;
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

/* Present entries of a reserved form: what a hypervisor uses to mark device pages. */
static bool is_misconfigured(uint64_t entry, bool is_leaf, unsigned level)
{
    unsigned mt = (unsigned)(entry >> EPT_MT_SHIFT) & 7;

    if ((entry & (EPT_R | EPT_W)) == EPT_W) {
        return true;
    }
    if (!is_leaf) {
        return (entry & (EPT_MT_MASK | EPT_IPAT)) != 0 || (level > 3 && (entry & EPT_PS) != 0);
    }
    if (mt == 2 || mt == 3 || mt == 7) {
        return true;
    }
    return level > 1 && (entry & (pt_leaf_size(level) - 1) & EPT_ADDR_MASK) != 0;
}

static bool is_leaf(uint64_t entry, unsigned level)
{
    return level == 1 || (level <= 3 && (entry & EPT_PS) != 0);
}

/* Judge the leaf at w->slot; marks accessed and dirty. True: *out is filled. */
static always_inline enum cpu_xlate_result leaf_use(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    uint64_t entry = w->entry, want = 0;
    struct host_frame *frame;
    pfn_t f;
    uint8_t *data;

    w->rights &= (uint32_t)entry & EPT_RWX;
    out->qualification = w->access | w->rights << 3;
    if (unlikely((w->access & ~w->rights) != 0)) {
        return CPU_XLATE_VIOLATION;
    }
    if (w->has_ad) {
        want = EPT_A | (w->access & EPT_W ? EPT_D : 0);
        if (unlikely((entry & want) != want) && !w->quiet && !entry_mark(w->slot, entry, want)) {
            return CPU_XLATE_FAULT; /* changed meanwhile: nested_walk() starts again */
        }
        if (!((entry | want) & EPT_D)) {
            w->rights &= ~(uint32_t)EPT_W;
        }
    }
    f = hpa_to_pfn(hpa((entry & EPT_ADDR_MASK) + (w->gpa & (pt_leaf_size(w->level) - 1))));
    frame = host_frame_at(cpu->mem, f);
    data = frame ? host_frame_data(frame) : NULL;
    if (unlikely(!data)) {
        out->qualification = w->access;
        return CPU_XLATE_VIOLATION;
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
static enum cpu_xlate_result walk_down(struct cpu *cpu, struct nested_walk *w, struct cpu_nested *out)
{
    uint64_t *table = table_of(cpu, cpu->eptp);
    unsigned level = (unsigned)(cpu->eptp >> 3 & 7) + 1;

    w->rights = EPT_RWX;
    for (; table; level--) {
        w->slot = &table[pt_index(w->gpa, level)];
        w->entry = entry_read(w->slot);
        w->level = level;
        if ((w->entry & EPT_RWX) == 0) {
            out->qualification = w->access;
            return CPU_XLATE_VIOLATION;
        }
        if (unlikely(is_misconfigured(w->entry, is_leaf(w->entry, level), level))) {
            return CPU_XLATE_MISCONFIG;
        }
        if (is_leaf(w->entry, level)) {
            if (!w->quiet) {
                cache_fill(cpu, w, w->rights);
            }
            return leaf_use(cpu, w, out);
        }
        w->rights &= (uint32_t)w->entry & EPT_RWX;
        if (w->has_ad && !(w->entry & EPT_A) && !w->quiet && !entry_mark(w->slot, w->entry, EPT_A)) {
            return CPU_XLATE_FAULT;
        }
        table = level > 1 ? table_of(cpu, w->entry) : NULL;
    }
    out->qualification = w->access;
    return CPU_XLATE_VIOLATION;
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
    if (unlikely((w->entry & EPT_RWX) == 0 || !is_leaf(w->entry, w->level) ||
                 is_misconfigured(w->entry, true, w->level))) {
        return CPU_XLATE_FAULT;
    }
    w->rights = c->rights;
    return leaf_use(cpu, w, out);
}

/* No second stage: what the first one gives are frames' addresses already. */
static enum cpu_xlate_result translate_identity(struct cpu *cpu, uint64_t addr, struct cpu_nested *out)
{
    uint8_t *p = host_hpa_to_ptr(cpu->mem, hpa(addr & PAGE_MASK));

    if (!p) {
        out->qualification = 0;
        return CPU_XLATE_VIOLATION;
    }
    *out = (struct cpu_nested){.host = p, .pfn = addr >> PAGE_SHIFT, .rights = EPT_RWX};
    return CPU_XLATE_OK;
}

/*
 * Second stage; see walk.h. access is in enum cpu_access bits, which are EPT's R, W and X; an access
 * for writing implies reading.
 * Lock: the processor's thread. Source: Intel, "EPT translation mechanism", "EPT violations".
 */
enum cpu_xlate_result cpu_nested_translate(struct cpu *cpu, uint64_t gpa, unsigned access, bool quiet,
                                           struct cpu_nested *out)
{
    struct nested_walk w = {.gpa = gpa, .access = access, .quiet = quiet};
    enum cpu_xlate_result res;

    if (unlikely(cpu->eptp == 0)) {
        return translate_identity(cpu, gpa, out);
    }
    w.has_ad = (cpu->eptp & EPTP_AD) != 0;
    res = walk_cached(cpu, &w, out);
    while (unlikely(res == CPU_XLATE_FAULT)) {
        cpu->counters.ept_walks++;
        res = walk_down(cpu, &w, out);
    }
    return res;
}
