/*
 * The guest's own tables, by one walker: no paging, 32-bit, PAE, four and five levels. Each table entry's
 * guest-physical address goes through the second stage (nested.c).
 *
 *   la --> entry at level n --> ... --> leaf --> permission check --> accessed, dirty --> gpa --> frame
 *            '-- paging-structure cache enters at level 1 --'
 *
 * Invariants
 *  1. Accessed and dirty bits are set only for an access that is allowed, and by compare-and-exchange on an
 *     entry that still is what was judged; else the walk starts again.
 *  2. A quiet walk changes nothing.
 *
 * Left out: CR0.CD and memory types have no effect on what is read.
 */
#include "cpu/walk.h"

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/exception.h"
#include "cpu/guest_mem.h"
#include "cpu/shadow.h"
#include "cpu/tlb.h"

#define RIGHT_TABLE_W 0x100u /* psc: the table's page may be written (second stage) */
#define MAX_LEVELS    5

/* Shape of the tables in the current mode. */
struct walk_shape {
    unsigned levels;     /* 0: no paging */
    unsigned entry_size; /* bytes: 4 or 8 */
    unsigned bits;       /* index bits per level: 10 or 9 */
    uint64_t reserved;   /* in every entry */
};

/* A walk in flight. */
struct walk {
    struct cpu_xlate *x;
    struct walk_shape shape;
    unsigned level;
    uint64_t entry;            /* the last read */
    uint64_t table;            /* gpa of the table that `entry` names */
    uint8_t *slot[MAX_LEVELS]; /* by level - 1: host pointers of entries used */
    uint64_t seen[MAX_LEVELS]; /* what they held */
    bool table_writable;       /* of the leaf's table, second stage */
};

/* The control registers that the walk obeys: the guest's, or under shadow tables the hypervisor's. */
static inline uint64_t walk_cr0(const struct cpu *cpu)
{
    return unlikely(cpu->shadow.on) ? cpu->shadow.cr0 : cpu->cr0;
}

static inline uint64_t walk_cr4(const struct cpu *cpu)
{
    return unlikely(cpu->shadow.on) ? cpu->shadow.cr4 : cpu->cr4;
}

static inline uint64_t walk_efer(const struct cpu *cpu)
{
    return unlikely(cpu->shadow.on) ? cpu->shadow.efer : cpu->efer;
}

/* Shadow tables: PAE, four or five levels; with a root loaded. */
static void shape_shadow(const struct cpu *cpu, struct walk_shape *s)
{
    s->levels = cpu->shadow.levels;
    s->entry_size = 8;
    s->bits = 9;
    s->reserved = ~((UINT64_C(1) << CPU_SHADOW_PHYS_BITS) - 1) & X86_PTE_ADDR_MASK;
    if (cpu->shadow.levels == 3) {
        s->levels = 2;
        s->reserved |= UINT64_C(0x7ff0000000000000);
    }
}

/* Field by field: what is stored in halves and read whole waits for the store buffer. */
static always_inline void shape_set(const struct cpu *cpu, struct walk_shape *s)
{
    uint64_t high = ~((UINT64_C(1) << cpu->maxphyaddr) - 1) & X86_PTE_ADDR_MASK;

    if (unlikely(cpu->shadow.on)) {
        shape_shadow(cpu, s);
        return;
    }
    s->entry_size = 8;
    s->bits = 9;
    s->reserved = high | (cpu->efer & X86_EFER_NX ? 0 : X86_PTE_NX);
    if (unlikely(!(cpu->cr0 & X86_CR0_PG))) {
        s->levels = 0;
    } else if (likely(cpu->efer & X86_EFER_LMA)) {
        s->levels = cpu->cr4 & X86_CR4_LA57 ? 5 : 4;
    } else if (cpu->cr4 & X86_CR4_PAE) {
        s->levels = 2;
        s->reserved |= UINT64_C(0x7ff0000000000000);
    } else {
        s->levels = 2;
        s->entry_size = 4;
        s->bits = 10;
        s->reserved = 0;
    }
}

/*
 * Host pointer of a guest table entry; second stage checked for reading, and for writing if asked.
 * See walk.h. On failure x->gpa and x->nested.qualification tell about it.
 */
enum cpu_xlate_result cpu_gtab_host(struct cpu *cpu, struct cpu_xlate *x, uint64_t gpa, bool write, uint8_t **host)
{
    struct cpu_gtab_entry *c = &cpu->mmu->gtab[(gpa >> PAGE_SHIFT) % CPU_GTAB_SIZE];
    enum cpu_xlate_result res;
    struct cpu_nested n;

    /* AMD: a guest's table is walked as if written, and must be writable. */
    if (unlikely(cpu->npt_levels) && !cpu_is_device_write(cpu, gpa)) {
        write = !x->quiet;
    }
    if (likely(c->tag == (gpa >> PAGE_SHIFT) + 1 && c->key == cpu->mmu->stage2_key && (!write || c->writable))) {
        *host = c->host + page_offset(gpa);
        return CPU_XLATE_OK;
    }
    res = cpu_nested_translate(cpu, gpa, CPU_ACCESS_READ | (write ? CPU_ACCESS_WRITE : 0), x->quiet, &n);
    if (unlikely(res != CPU_XLATE_OK)) {
        x->gpa = gpa;
        x->final = false;
        x->nested.qualification = n.qualification;
        x->nested.present = n.present;
        return res;
    }
    if (!x->quiet) {
        *c = (struct cpu_gtab_entry){(gpa >> PAGE_SHIFT) + 1, n.host, (n.rights & EPT_W) != 0, cpu->mmu->stage2_key};
    }
    *host = n.host + page_offset(gpa);
    return CPU_XLATE_OK;
}

static uint64_t entry_get(const struct walk *w, const uint8_t *p)
{
    return w->shape.entry_size == 8 ? cpu_guest_get64(p) : cpu_guest_get32(p);
}

static bool entry_exchange(const struct walk *w, uint8_t *p, uint64_t old, uint64_t new)
{
    uint32_t old32 = (uint32_t)old;

    if (w->shape.entry_size == 8) {
        return __atomic_compare_exchange_n((uint64_t *)(void *)p, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    return __atomic_compare_exchange_n((uint32_t *)(void *)p, &old32, (uint32_t)new, false, __ATOMIC_SEQ_CST,
                                       __ATOMIC_SEQ_CST);
}

static unsigned level_shift(const struct walk *w, unsigned level)
{
    return PAGE_SHIFT + w->shape.bits * (level - 1);
}

/* A guest fault: forms the error code. */
static enum cpu_xlate_result fault(const struct cpu *cpu, struct cpu_xlate *x, uint32_t code)
{
    if (x->access & CPU_ACCESS_WRITE) {
        code |= X86_PFEC_W;
    }
    if (x->priv == CPU_PRIV_USER) {
        code |= X86_PFEC_U;
    }
    if ((x->access & CPU_ACCESS_FETCH) &&
        ((walk_cr4(cpu) & X86_CR4_SMEP) || ((walk_efer(cpu) & X86_EFER_NX) && (walk_cr4(cpu) & X86_CR4_PAE)))) {
        code |= X86_PFEC_F;
    }
    x->error_code = code;
    return CPU_XLATE_FAULT;
}

static bool entry_is_leaf(const struct cpu *cpu, const struct walk *w)
{
    if (w->level == 1) {
        return true;
    }
    if (!(w->entry & X86_PTE_PS) || w->level > 3) {
        return false;
    }
    return w->shape.entry_size == 8 || (walk_cr4(cpu) & X86_CR4_PSE) != 0;
}

/* Bits that must be zero in w->entry. */
static bool entry_is_reserved(const struct cpu *cpu, const struct walk *w)
{
    uint64_t bad = w->shape.reserved;

    if (w->shape.entry_size == 4) {
        /* PSE-36 keeps address bits 32 to 39 in 13 to 20; bit 21 must be zero. */
        return w->level == 2 && entry_is_leaf(cpu, w) && (w->entry & (UINT64_C(1) << 21)) != 0;
    }
    if (w->level > 3 || (w->level == 3 && !(cpu->features & CPU_FEAT_1G))) {
        bad |= X86_PTE_PS;
    } else if (w->level > 1 && (w->entry & X86_PTE_PS)) {
        bad |= (pt_leaf_size(w->level) - 1) & ~UINT64_C(0x1fff);
    }
    return (w->entry & bad) != 0;
}

/* Add an entry's rights to those of the levels above. */
static inline void rights_add(struct walk *w)
{
    uint32_t *rights = &w->x->rights;

    if (!(w->entry & X86_PTE_W)) {
        *rights &= ~CPU_RIGHT_W;
    }
    if (!(w->entry & X86_PTE_U)) {
        *rights &= ~CPU_RIGHT_U;
    }
    if (w->shape.entry_size == 8 && (w->entry & X86_PTE_NX)) {
        *rights |= CPU_RIGHT_NX;
    }
}

/* Protection keys: true if the key of a user page's leaf forbids a data access. */
static inline bool key_forbids(const struct cpu *cpu, const struct walk *w)
{
    uint32_t pair = cpu->pkru >> (w->entry >> 59 & 0xf) * 2;
    bool wp = w->x->priv == CPU_PRIV_USER || (walk_cr0(cpu) & X86_CR0_WP);

    if (!(walk_cr4(cpu) & X86_CR4_PKE) || !(walk_efer(cpu) & X86_EFER_LMA) || !(w->x->rights & CPU_RIGHT_U)) {
        return false;
    }
    if (!(w->x->access & CPU_ACCESS_WRITE) && (pair & 2) && wp) {
        w->x->rights &= ~CPU_RIGHT_W; /* readable only */
    }
    return (pair & 1) || ((w->x->access & CPU_ACCESS_WRITE) && (pair & 2) && wp);
}

/* May the access go through the leaf? Afterwards CPU_RIGHT_W in x->rights is the right at this privilege. */
static inline enum cpu_xlate_result leaf_check(const struct cpu *cpu, struct walk *w)
{
    struct cpu_xlate *x = w->x;
    bool is_user_page = (x->rights & CPU_RIGHT_U) != 0;

    if (x->priv == CPU_PRIV_USER ? !is_user_page : is_user_page && x->access != CPU_ACCESS_FETCH &&
        x->priv == CPU_PRIV_SUPER && (walk_cr4(cpu) & X86_CR4_SMAP)) {
        /* The key is looked at whatever else forbids the access. */
        bool key = x->access != CPU_ACCESS_FETCH && key_forbids(cpu, w);

        return fault(cpu, x, X86_PFEC_P | (key ? X86_PFEC_PK : 0));
    }
    if (x->access == CPU_ACCESS_FETCH) {
        if ((x->rights & CPU_RIGHT_NX) ||
            (is_user_page && x->priv != CPU_PRIV_USER && (walk_cr4(cpu) & X86_CR4_SMEP))) {
            return fault(cpu, x, X86_PFEC_P);
        }
    } else if (key_forbids(cpu, w)) {
        return fault(cpu, x, X86_PFEC_P | X86_PFEC_PK);
    }
    if (x->priv != CPU_PRIV_USER && !(walk_cr0(cpu) & X86_CR0_WP)) {
        x->rights |= CPU_RIGHT_W;
    }
    if ((x->access & CPU_ACCESS_WRITE) && !(x->rights & CPU_RIGHT_W)) {
        return fault(cpu, x, X86_PFEC_P);
    }
    return CPU_XLATE_OK;
}

/* gpa of the access from the leaf; page attributes. */
static inline void leaf_take(struct walk *w)
{
    uint64_t size = UINT64_C(1) << level_shift(w, w->level);
    uint64_t base = w->entry & X86_PTE_ADDR_MASK & ~(size - 1);

    if (w->shape.entry_size == 4) {
        base = w->entry & UINT64_C(0xffffffff) & ~(size - 1);
        if (w->level == 2) {
            base |= (w->entry >> 13 & 0xff) << 32;
        }
    }
    w->x->gpa = base | (w->x->la & (size - 1));
    w->x->page_level = w->level;
    w->x->rights &= ~(CPU_RIGHT_G | CPU_RIGHT_D);
    w->x->rights |= w->entry & X86_PTE_G ? CPU_RIGHT_G : 0;
    w->x->rights |= w->entry & X86_PTE_D ? CPU_RIGHT_D : 0;
}

/* Set A in the entries used and D in the leaf. FAULT means: an entry changed, walk again; other
 * failures are the second stage's, which must allow writing to the table. */
static enum cpu_xlate_result entries_mark(struct cpu *cpu, struct walk *w, const uint64_t *gpas)
{
    for (unsigned level = MAX_LEVELS; level > 0; level--) {
        uint64_t want = X86_PTE_A;
        enum cpu_xlate_result res;
        uint8_t *p = w->slot[level - 1];

        if (!p) {
            continue;
        }
        if (level == w->level && (w->x->access & CPU_ACCESS_WRITE)) {
            want |= X86_PTE_D;
        }
        if (likely((w->seen[level - 1] & want) == want)) {
            continue;
        }
        res = cpu_gtab_host(cpu, w->x, gpas[level - 1], true, &p);
        if (res == CPU_XLATE_VIOLATION && cpu_is_device_write(cpu, gpas[level - 1])) {
            continue; /* a table in read-only memory keeps its bits */
        }
        if (res != CPU_XLATE_OK) {
            w->x->nested.qualification |= EPT_VIOL_WRITE;
            return res;
        }
        if (!entry_exchange(w, p, w->seen[level - 1], w->seen[level - 1] | want)) {
            return CPU_XLATE_FAULT;
        }
        w->x->rights |= want & X86_PTE_D ? CPU_RIGHT_D : 0;
    }
    return CPU_XLATE_OK;
}

/* A cached large leaf that is no leaf any more, or not a legal one. */
static bool entry_is_odd_large(const struct cpu *cpu, const struct walk *w)
{
    return !(w->entry & X86_PTE_PS) || entry_is_reserved(cpu, w);
}

static struct cpu_psc_entry *psc_slot(struct cpu *cpu, uint64_t la)
{
    return &cpu->mmu->psc[(la >> 21) % CPU_PSC_SIZE];
}

static uint64_t psc_fresh(const struct cpu *cpu, uint64_t la)
{
    return (uint64_t)cpu->mmu->psc_key << 12 | cpu->tlb_gen[la >> 63];
}

/* Does the cache know this region under this CR3, and is it true: fresh, or the entries above read as they did? */
static always_inline bool psc_use(struct cpu *cpu, struct cpu_psc_entry *c, uint64_t la)
{
    uint64_t fresh = psc_fresh(cpu, la);

    if (c->tag != (la >> 21) + 1 || c->key != cpu->mmu->guest_key || c->cr3 != cpu->cr3) {
        return false;
    }
    if (likely(c->fresh == fresh)) {
        return true;
    }
    if (c->above == 0) {
        c->tag = 0;
        return false;
    }
    for (unsigned i = 0; i < c->above; i++) {
        if (cpu_guest_get64(c->up[i].slot) != c->up[i].seen) {
            return false;
        }
    }
    c->fresh = fresh;
    return true;
}

/* The leaf through the paging-structure cache. True: *res is the outcome. Only for walks that need not
 * write anything; all else takes the whole way. */
static always_inline bool walk_cached(struct cpu *cpu, struct walk *w, enum cpu_xlate_result *res)
{
    struct cpu_xlate *x = w->x;
    uint64_t want = X86_PTE_A | X86_PTE_P;
    struct cpu_psc_entry *c = psc_slot(cpu, x->la);
    uint64_t *slot;

    if (!psc_use(cpu, c, x->la)) {
        return false;
    }
    w->level = c->level;
    slot = c->level == 1 ? &c->pt[pt_index(x->la, 1)] : c->pt;
    w->entry = cpu_guest_get64(slot);
    if (!(w->entry & X86_PTE_P) || (w->entry & w->shape.reserved) || (w->level > 1 && entry_is_odd_large(cpu, w))) {
        return false;
    }
    x->rights = c->rights & ~RIGHT_TABLE_W;
    rights_add(w);
    if (leaf_check(cpu, w) != CPU_XLATE_OK) {
        return false;
    }
    want |= x->access & CPU_ACCESS_WRITE ? X86_PTE_D : 0;
    leaf_take(w);
    if ((w->entry & want) != want) {
        if (!(c->rights & RIGHT_TABLE_W) || x->quiet ||
            !entry_exchange(w, (uint8_t *)slot, w->entry, w->entry | want)) {
            return false;
        }
        x->rights |= want & X86_PTE_D ? CPU_RIGHT_D : 0;
    }
    *res = CPU_XLATE_OK;
    return true;
}

static void psc_fill(struct cpu *cpu, const struct walk *w, uint32_t rights_above, uint64_t table)
{
    const struct cpu_gtab_entry *g = &cpu->mmu->gtab[(table >> PAGE_SHIFT) % CPU_GTAB_SIZE];
    struct cpu_psc_entry *c = psc_slot(cpu, w->x->la);

    if (w->shape.entry_size != 8 || w->x->quiet) {
        return;
    }
    *c = (struct cpu_psc_entry){
        .tag = (w->x->la >> 21) + 1,
        .fresh = psc_fresh(cpu, w->x->la),
        .pt = (uint64_t *)(void *)(w->slot[w->level - 1] - (w->level == 1 ? pt_index(w->x->la, 1) * 8 : 0)),
        .level = w->level,
        .rights = rights_above | (g->tag == (table >> PAGE_SHIFT) + 1 && g->writable ? RIGHT_TABLE_W : 0),
        .key = cpu->mmu->guest_key,
        .cr3 = cpu->cr3,
    };
    for (unsigned level = w->shape.levels; !cpu->shadow.on && w->shape.levels > 2 && level > w->level; level--, c->above++) {
        c->up[c->above].slot = (const uint64_t *)(const void *)w->slot[level - 1];
        c->up[c->above].seen = w->seen[level - 1] | X86_PTE_A;
    }
}

/* One step: reads the entry for w->level in w->table. */
static enum cpu_xlate_result step(struct cpu *cpu, struct walk *w, uint64_t *gpa)
{
    uint64_t index = w->x->la >> level_shift(w, w->level) & ((1u << w->shape.bits) - 1);
    enum cpu_xlate_result res;
    uint8_t *p;

    *gpa = w->table + index * w->shape.entry_size;
    res = cpu_gtab_host(cpu, w->x, *gpa, false, &p);
    if (unlikely(res != CPU_XLATE_OK)) {
        return res;
    }
    w->entry = entry_get(w, p);
    w->slot[w->level - 1] = p;
    w->seen[w->level - 1] = w->entry;
    if (!(w->entry & X86_PTE_P)) {
        return fault(cpu, w->x, 0);
    }
    if (unlikely(entry_is_reserved(cpu, w))) {
        return fault(cpu, w->x, X86_PFEC_P | X86_PFEC_RSVD);
    }
    w->table = w->shape.entry_size == 8 ? w->entry & X86_PTE_ADDR_MASK : w->entry & UINT64_C(0xfffff000);
    return CPU_XLATE_OK;
}

/* Where a walk over shadow tables begins. */
static enum cpu_xlate_result walk_root_shadow(struct cpu *cpu, struct walk *w)
{
    uint64_t pdpte = cpu->shadow.pdptr[w->x->la >> 30 & 3];

    w->x->rights = CPU_RIGHT_W | CPU_RIGHT_U;
    if (cpu->shadow.root == 0) {
        return fault(cpu, w->x, 0);
    }
    w->table = cpu->shadow.root;
    if (cpu->shadow.levels == 3) {
        if (!(pdpte & X86_PTE_P)) {
            return fault(cpu, w->x, 0);
        }
        w->table = pdpte & X86_PTE_ADDR_MASK;
    }
    return CPU_XLATE_OK;
}

/* Where the walk begins: CR3, or the PDPTE that PAE loaded with it. */
static enum cpu_xlate_result walk_root(struct cpu *cpu, struct walk *w)
{
    w->level = w->shape.levels;
    w->table = cpu->cr3 & X86_PTE_ADDR_MASK;
    if (unlikely(cpu->shadow.on)) {
        return walk_root_shadow(cpu, w);
    }
    if (w->shape.entry_size == 4) {
        w->table = cpu->cr3 & UINT64_C(0xfffff000);
    } else if (w->shape.levels == 2) {
        enum cpu_xlate_result res = unlikely(cpu->pdptes_stale) ? cpu_reload_pdptes(cpu, w->x) : CPU_XLATE_OK;
        uint64_t pdpte = cpu->pdptr[w->x->la >> 30 & 3];

        if (unlikely(res != CPU_XLATE_OK)) {
            return res;
        }
        if (!(pdpte & X86_PTE_P)) {
            return fault(cpu, w->x, 0);
        }
        w->table = pdpte & X86_PTE_ADDR_MASK;
    }
    w->x->rights = CPU_RIGHT_W | CPU_RIGHT_U;
    return CPU_XLATE_OK;
}

/* The whole walk. *again is set when an entry changed meanwhile. */
static enum cpu_xlate_result walk_whole(struct cpu *cpu, struct walk *w, bool *again)
{
    uint64_t gpas[MAX_LEVELS] = {0};
    enum cpu_xlate_result res = walk_root(cpu, w);

    for (unsigned i = 0; i < MAX_LEVELS; i++) {
        w->slot[i] = NULL;
    }
    for (; res == CPU_XLATE_OK; w->level--) {
        uint32_t above = w->x->rights;
        uint64_t table = w->table;

        res = step(cpu, w, &gpas[w->level - 1]);
        if (res != CPU_XLATE_OK) {
            return res;
        }
        rights_add(w);
        if (!entry_is_leaf(cpu, w)) {
            continue;
        }
        res = leaf_check(cpu, w);
        if (res != CPU_XLATE_OK) {
            return res;
        }
        leaf_take(w);
        if (!w->x->quiet) {
            uint64_t gpa = w->x->gpa;

            res = entries_mark(cpu, w, gpas);
            *again = res == CPU_XLATE_FAULT;
            if (res == CPU_XLATE_OK) {
                w->x->gpa = gpa;
                psc_fill(cpu, w, above, table);
            }
        }
        return res;
    }
    return res;
}

static bool is_canonical(const struct cpu *cpu, uint64_t la)
{
    unsigned shift = cpu->cr4 & X86_CR4_LA57 ? 7 : 16;

    return (uint64_t)((int64_t)(la << shift) >> shift) == la;
}

/*
 * The guest's stage; see walk.h. x->la is truncated to 32 bits outside long mode.
 * Lock: the processor's thread. Source: Intel, "Paging"; AMD, "Page translation and protection".
 */
enum cpu_xlate_result cpu_guest_walk(struct cpu *cpu, struct cpu_xlate *x)
{
    enum cpu_xlate_result res;
    struct walk w; /* the arrays are walk_whole()'s to fill */
    bool again;

    w.x = x;
    shape_set(cpu, &w.shape);
    if (cpu->efer & X86_EFER_LMA) {
        if (unlikely(!is_canonical(cpu, x->la))) {
            return CPU_XLATE_CANONICAL;
        }
    } else {
        x->la = (uint32_t)x->la;
    }
    if (w.shape.levels == 0) {
        x->gpa = x->la;
        x->rights = CPU_RIGHT_W | CPU_RIGHT_U | CPU_RIGHT_D;
        x->page_level = 0;
        return CPU_XLATE_OK;
    }
    if (w.shape.entry_size == 8 && likely(!cpu->shadow.on || cpu->shadow.root) && walk_cached(cpu, &w, &res)) {
        return res;
    }
    cpu->counters.guest_walks++;
    do {
        again = false;
        res = walk_whole(cpu, &w, &again);
    } while (unlikely(again));
    return res;
}

/* Both stages; see walk.h. */
enum cpu_xlate_result cpu_xlate(struct cpu *cpu, struct cpu_xlate *x)
{
    unsigned access = x->access & CPU_ACCESS_WRITE ? CPU_ACCESS_READ | CPU_ACCESS_WRITE : x->access;
    enum cpu_xlate_result res = cpu_guest_walk(cpu, x);

    if (unlikely(res != CPU_XLATE_OK)) {
        return res;
    }
    x->final = true;
    return cpu_nested_translate(cpu, x->gpa, access, x->quiet, &x->nested);
}
