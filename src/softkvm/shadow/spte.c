/*
 * Shadow entries: how they are made, and the funnel through which all of them change. The funnel keeps reverse maps,
 * parents, counts, and notes when processors must flush.
 *
 *   63  62..52      51    50..46  45..12   11  10     9       8..3 2 1 0
 *   NX  .           0     0       pfn      .   MMU-W  host-W  G..  U W P   a page (A and D set when made)
 *   .   gen 18..8   1     .       gfn      .  gen 7..0 (10..3)     U W 1   MMIO: reserved bit 51 faults
 *
 * Invariants: shadow.h, 2 and 3. Locks: mmu.lock exclusive; processors set accessed and dirty bits meanwhile, so
 * entries are exchanged, not stored.
 */
#include "softkvm/mmu_entry.h"
#include "softkvm/shadow/shadow.h"

_Static_assert(((KVM_SPTE_HOST_W | KVM_SPTE_MMU_W) & ~UINT64_C(0xe00)) == 0, "bits that PAE's format leaves alone");
_Static_assert(CPU_SHADOW_PHYS_BITS <= 51, "bit 51 is beyond the physical width");

#define GEN_LOW_SHIFT  3
#define GEN_LOW_BITS   8
#define GEN_HIGH_SHIFT 52

/* An MMIO entry for f, with the slots' generation and the rights that the guest's entries give. */
uint64_t kvm_spte_mmio(gfn_t f, uint64_t generation, uint8_t access)
{
    uint64_t gen = generation & KVM_MMIO_GEN_MASK;

    return KVM_SPTE_MMIO | (f.v << PAGE_SHIFT & KVM_SPTE_MMIO_GFN_MASK) | (access & KVM_ACC_W ? X86_PTE_W : 0) |
           (access & KVM_ACC_U ? X86_PTE_U : 0) | (gen & ((1u << GEN_LOW_BITS) - 1)) << GEN_LOW_SHIFT |
           (gen >> GEN_LOW_BITS) << GEN_HIGH_SHIFT;
}

uint64_t kvm_spte_mmio_generation(uint64_t e)
{
    return (e >> GEN_LOW_SHIFT & ((1u << GEN_LOW_BITS) - 1)) | (e >> GEN_HIGH_SHIFT & 0x7ff) << GEN_LOW_BITS;
}

gfn_t kvm_spte_mmio_gfn(uint64_t e)
{
    return gfn((e & KVM_SPTE_MMIO_GFN_MASK) >> PAGE_SHIFT);
}

uint64_t kvm_spte_table(const struct kvm_shadow_page *child)
{
    return child->table.v | X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A;
}

/* The page that an entry lies in; *index: which entry. */
struct kvm_shadow_page *kvm_spte_owner(const struct kvm_shadow *sh, const uint64_t *spte, unsigned *index)
{
    hpa_t at = host_table_hpa(sh->vm->s->hm, spte);

    *index = (unsigned)page_offset(at.v) / 8;
    return sh->by_pfn[at.v >> PAGE_SHIFT];
}

/* The page that a table entry names. */
struct kvm_shadow_page *kvm_spte_child(const struct kvm_shadow *sh, uint64_t e)
{
    return sh->by_pfn[(e & X86_PTE_ADDR_MASK) >> PAGE_SHIFT];
}

gfn_t kvm_spte_gfn(const struct kvm_shadow_page *sp, unsigned i)
{
    if (sp->role.direct) {
        return gfn(sp->gfn.v + ((uint64_t)i << (PT_LEVEL_BITS * (sp->role.level - 1))));
    }
    return gfn(sp->gfns[i] >> 3);
}

/* ---- the funnel ---- */

static void account(struct kvm_mmu *mmu, unsigned level, uint64_t e, int64_t by)
{
    if (kvm_spte_is_page(e, level)) {
        atomic_fetch_add_explicit(&mmu->pages[level], by, memory_order_relaxed);
    } else if (kvm_spte_is_mmio(e)) {
        atomic_fetch_add_explicit(&mmu->pages[0], by, memory_order_relaxed);
    }
}

/* What processors may still use of `old`. A leaf of a guest's own last-level table goes with the guest's flush. */
static void note_flush(struct kvm_shadow *sh, const struct kvm_shadow_page *sp, uint64_t old, uint64_t new)
{
    if (!kvm_spte_is_present(old) || kvm_spte_is_mmio(old)) {
        return;
    }
    if (kvm_spte_is_present(new) && !kvm_spte_is_mmio(new) && !((old ^ new) & X86_PTE_ADDR_MASK) &&
        !(old & ~new & (X86_PTE_W | X86_PTE_U)) && !(new & ~old & X86_PTE_NX)) {
        return;
    }
    if (sp->role.level == 1 && !sp->role.direct) {
        sh->stale = true;
    } else {
        sh->flush = true;
    }
}

static void unlink_child(struct kvm_shadow *sh, struct kvm_shadow_page *sp, unsigned i, uint64_t old)
{
    struct kvm_shadow_page *child = kvm_spte_child(sh, old);
    bool was_there = kvm_rmap_remove(&child->parents, &sp->spt[i]);
    uint64_t bit = UINT64_C(1) << i % 64;

    check(was_there);
    (void)was_there;
    if (sp->unsync_children[i / 64] & bit) {
        sp->unsync_children[i / 64] &= ~bit;
        sp->nr_unsync_children--;
    }
}

/* What the old entry was known by. */
static void forget(struct kvm_shadow *sh, struct kvm_shadow_page *sp, unsigned i, uint64_t old)
{
    unsigned level = sp->role.level;

    if (kvm_spte_is_page(old, level)) {
        struct kvm_rmap *r = kvm_rmap_of(sh, kvm_spte_gfn(sp, i), level);
        bool was_there = r && kvm_rmap_remove(r, &sp->spt[i]);

        check(was_there);
        (void)was_there;
    } else if (kvm_spte_is_table(old, level)) {
        unlink_child(sh, sp, i, old);
    }
}

/* What the new one is to be known by. */
static void remember(struct kvm_shadow *sh, struct kvm_shadow_cache *c, struct kvm_shadow_page *sp, unsigned i,
                     uint64_t new)
{
    unsigned level = sp->role.level;

    if (kvm_spte_is_page(new, level)) {
        gfn_t f = kvm_spte_gfn(sp, i);
        struct kvm_rmap_chunk *chunk = kvm_rmap_chunk_make(sh, c, f.v >> PT_LEVEL_BITS);

        kvm_rmap_add(c, level == 1 ? &chunk->small[f.v & (PT_ENTRIES - 1)] : &chunk->large, &sp->spt[i]);
    } else if (kvm_spte_is_table(new, level)) {
        struct kvm_shadow_page *child = kvm_spte_child(sh, new);

        kvm_rmap_add(c, &child->parents, &sp->spt[i]);
        kvm_shadow_mark_child(sh, sp, i, child);
    }
}

/*
 * Entry i of sp becomes `new`. f, access: what a leaf of a page that is not direct maps, and the guest's rights of it.
 * c: the reserve, for entries that were none before. Returns the old value. Lock: exclusive.
 * Source: KVM's mmu_spte_update(), drop_spte(), rmap_add(), link_shadow_page() in one.
 */
uint64_t kvm_spte_set(struct kvm_shadow *sh, struct kvm_shadow_cache *c, struct kvm_shadow_page *sp, unsigned i,
                      uint64_t new, gfn_t f, uint8_t access)
{
    unsigned level = sp->role.level;
    uint64_t old = __atomic_exchange_n(&sp->spt[i], new, __ATOMIC_ACQ_REL);
    bool same = kvm_spte_is_page(old, level) && kvm_spte_is_page(new, level) && f.v == kvm_spte_gfn(sp, i).v;

    account(&sh->vm->mmu, level, old, -1);
    account(&sh->vm->mmu, level, new, 1);
    if (!same) {
        forget(sh, sp, i, old);
    }
    if (!sp->role.direct) {
        sp->gfns[i] = f.v << 3 | access;
    }
    if (!same) {
        remember(sh, c, sp, i, new);
    }
    note_flush(sh, sp, old, new);
    return old;
}

/* An entry goes. */
void kvm_spte_clear(struct kvm_shadow *sh, uint64_t *spte)
{
    unsigned i;
    struct kvm_shadow_page *sp = kvm_spte_owner(sh, spte, &i);

    if (kvm_spte_load(spte)) {
        kvm_spte_set(sh, NULL, sp, i, 0, gfn(0), 0);
    }
}

/* ---- write protection ---- */

static bool protect_chain(struct kvm_rmap *r, bool keep)
{
    uint64_t gone = X86_PTE_W | X86_PTE_D | (keep ? 0 : KVM_SPTE_MMU_W);
    struct kvm_rmap_pos pos = {0};
    bool was = false;
    uint64_t *spte;

    while (r && (spte = kvm_rmap_next(r, &pos)) != NULL) {
        was |= (__atomic_fetch_and(spte, ~gone, __ATOMIC_ACQ_REL) & X86_PTE_W) != 0;
    }
    return was;
}

/*
 * Take W from every entry that maps f, large ones included. True: one had it, and processors may still use it; the
 * caller notes the flush. keep: for dirty logging; else for a guest's table. Lock: exclusive.
 * Source: KVM's rmap_write_protect().
 */
bool kvm_spte_protect_gfn(struct kvm_shadow *sh, gfn_t f, bool keep)
{
    bool small = protect_chain(kvm_rmap_of(sh, f, 1), keep);

    return protect_chain(kvm_rmap_of(sh, f, 2), keep) || small;
}
