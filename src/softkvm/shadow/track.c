/*
 * Guest tables under watch: write protection, letting leaf tables go out of sync, and what a write to a protected table
 * makes of the pages that shadow it.
 *
 *   the guest stores to a page that is mapped for data
 *     not shadowed                        -> writable
 *     shadowed as last-level tables only  -> those become unsync, then it is writable
 *     shadowed as an upper-level table    -> stays protected: the store runs by grant, then table_written()
 *
 * Invariants: shadow.h, 4 and 5. A page is marked unsync, parents and all, before an entry becomes writable.
 * Locks: mmu.lock exclusive.
 */
#include "softkvm/shadow/shadow.h"

/* Writes to an upper-level table without a fault through it in between, after which it is no table any more. */
#define FLOOD 3

/* Is f shadowed as an upper-level table? Its page is then never writable. Source: KVM's kvm_slot_page_track_is_active(). */
bool kvm_shadow_is_tracked(const struct kvm_shadow *sh, gfn_t f)
{
    const struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, f.v >> PT_LEVEL_BITS);

    return c && c->tracked[f.v & (PT_ENTRIES - 1)] > 0;
}

bool kvm_shadow_region_has_tables(const struct kvm_shadow *sh, gfn_t f)
{
    const struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, f.v >> PT_LEVEL_BITS);

    return c && c->nr_shadowed > 0;
}

void kvm_shadow_account(struct kvm_shadow *sh, struct kvm_shadow_cache *cache, const struct kvm_shadow_page *sp, int by)
{
    struct kvm_rmap_chunk *c = kvm_rmap_chunk_make(sh, cache, sp->gfn.v >> PT_LEVEL_BITS);

    c->nr_shadowed += (uint32_t)by;
    if (sp->role.level > 1) {
        c->tracked[sp->gfn.v & (PT_ENTRIES - 1)] += (uint16_t)by;
    }
}

/* ---- unsync ---- */

static bool set_child_bit(struct kvm_shadow_page *sp, unsigned i)
{
    uint64_t bit = UINT64_C(1) << i % 64;

    if (sp->unsync_children[i / 64] & bit) {
        return false;
    }
    sp->unsync_children[i / 64] |= bit;
    return sp->nr_unsync_children++ == 0;
}

/* Depth: the levels above. Source: KVM's kvm_mmu_mark_parents_unsync(). */
void kvm_shadow_mark_unsync_parents(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    struct kvm_rmap_pos pos = {0};
    uint64_t *spte;

    while ((spte = kvm_rmap_next(&sp->parents, &pos)) != NULL) {
        unsigned i;
        struct kvm_shadow_page *parent = kvm_spte_owner(sh, spte, &i);

        if (set_child_bit(parent, i)) {
            kvm_shadow_mark_unsync_parents(sh, parent);
        }
    }
}

void kvm_shadow_mark_child(struct kvm_shadow *sh, struct kvm_shadow_page *sp, unsigned i,
                           const struct kvm_shadow_page *child)
{
    if ((child->unsync || child->nr_unsync_children) && set_child_bit(sp, i)) {
        kvm_shadow_mark_unsync_parents(sh, sp);
    }
}

/*
 * May an entry that maps f be writable? may_unsync: leaf tables at f may become unsync for it. Lock: exclusive.
 * Source: KVM's mmu_try_to_unsync_pages().
 */
bool kvm_shadow_may_map_writable(struct kvm_shadow *sh, gfn_t f, bool may_unsync)
{
    if (kvm_shadow_is_tracked(sh, f)) {
        return false;
    }
    for (struct kvm_shadow_page *sp = kvm_shadow_hash_first(sh, f); sp; sp = sp->hash_next) {
        if (sp->gfn.v != f.v || sp->role.direct || sp->unsync) {
            continue;
        }
        if (!may_unsync) {
            return false;
        }
        sp->unsync = true;
        KVM_SHADOW_COUNT(&sh->counters.unsyncs);
        TRACE(&sh->vm->s->trace, shadow_unsync, "gfn %llx", f.v);
        kvm_shadow_mark_unsync_parents(sh, sp);
    }
    return true;
}

/* ---- writes to tables ---- */

/* Not a write of whole entries: the page is hardly a table any more. One byte at an entry's start is the exception, as
 * kernels clear flags with. Source: KVM's detect_write_misaligned(). */
static bool is_misaligned(const struct kvm_shadow_page *sp, unsigned offset, unsigned len)
{
    unsigned size = sp->role.has_4_byte ? 4 : 8;

    if (!(offset & (size - 1)) && len == 1) {
        return false;
    }
    return ((offset ^ (offset + len - 1)) & ~(size - 1)) || len < 4;
}

/* Source: KVM's detect_write_flooding(). */
static bool is_flooded(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    if (sp->role.level == 1 || ++sp->writes < FLOOD) {
        return false;
    }
    KVM_SHADOW_COUNT(&sh->counters.floods);
    return true;
}

/* The entries that a guest entry at `offset` stands behind. Source: KVM's get_written_sptes(). */
static void drop_written(struct kvm_shadow *sh, struct kvm_shadow_page *sp, unsigned offset)
{
    unsigned index, n = 1;

    if (!sp->role.has_4_byte) {
        index = offset / 8;
    } else if (sp->role.level == 1) {
        index = offset / 4;
        if (index / PT_ENTRIES != sp->role.quadrant) {
            return;
        }
        index %= PT_ENTRIES;
    } else {
        /* A directory entry maps 4 MiB: two entries of 2 MiB; a quarter of the directory to a page. */
        index = offset / 4;
        if (index / (PT_ENTRIES / 2) != sp->role.quadrant) {
            return;
        }
        index = index % (PT_ENTRIES / 2) * 2;
        n = 2;
    }
    for (unsigned i = index; i < index + n; i++) {
        kvm_spte_clear(sh, &sp->spt[i]);
    }
}

/*
 * The guest has written len bytes at addr, in one page, which was protected. Pages that shadow it forget what they
 * made of the entries written, or go altogether. Lock: takes mmu.lock. Source: KVM's kvm_mmu_pte_write().
 */
void kvm_shadow_table_written(struct kvm_vcpu *v, gpa_t addr, unsigned len)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    unsigned offset = (unsigned)page_offset(addr.v);
    struct kvm_shadow_page *sp, *next;
    gfn_t f = gpa_to_gfn(addr);

    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    KVM_SHADOW_COUNT(&sh->counters.table_writes);
    for (sp = kvm_shadow_hash_first(sh, f); sp; sp = next) {
        next = sp->hash_next;
        if (sp->gfn.v != f.v || sp->role.direct) {
            continue;
        }
        if (is_misaligned(sp, offset, len) || is_flooded(sh, sp)) {
            KVM_SHADOW_COUNT(&sh->counters.table_write_zaps);
            kvm_shadow_page_zap(sh, sp);
        } else {
            drop_written(sh, sp, offset);
        }
    }
    TRACE(&v->vm->s->trace, shadow_table_write, "gpa %llx len %llu", addr.v, len);
    kvm_shadow_commit(sh);
    pthread_rwlock_unlock(&v->vm->mmu.lock);
}

/* All pages that shadow f go, so that it can be written as any other. Lock: exclusive; the caller commits.
 * Source: KVM's kvm_mmu_unprotect_page(). */
bool kvm_shadow_unprotect(struct kvm_shadow *sh, gfn_t f)
{
    struct kvm_shadow_page *sp, *next;
    bool any = false;

    for (sp = kvm_shadow_hash_first(sh, f); sp; sp = next) {
        next = sp->hash_next;
        if (sp->gfn.v == f.v && !sp->role.direct) {
            kvm_shadow_page_zap(sh, sp);
            any = true;
        }
    }
    if (any) {
        KVM_SHADOW_COUNT(&sh->counters.unprotects);
    }
    return any;
}
