/*
 * Bringing unsync tables up to date: when CR3 is loaded, translations are flushed, a page is got, or one address is
 * invalidated.
 *
 *   root --unsync_children--> ... --> unsync page: protect its frame (processors flush), re-read every guest entry
 *                                                   whose entry is present: drop it, adapt its rights, or keep it
 *
 * Invariant: a page is marked synced only after its frame is protected and processors have flushed, and before its
 * entries are read again.
 * Locks: mmu.lock exclusive, in the vCPU's read section.
 */
#include "softkvm/shadow/shadow.h"
#include "softkvm/user.h"

/* Unsync pages that are brought up to date with one flush. */
#define BATCH 64

/* What the guest's entry behind entry i says now. False: nothing that may stay. */
static bool reread(const struct kvm_shadow_page *sp, const struct kvm_guest_mode *m, uint64_t gpte, gfn_t *f,
                   uint8_t *access)
{
    if (!(gpte & X86_PTE_P) || !(gpte & X86_PTE_A) || kvm_gpte_is_reserved(m, gpte, 1)) {
        return false;
    }
    *f = kvm_gpte_gfn(m, gpte, 1);
    *access = (uint8_t)sp->role.access & kvm_gpte_access(m, gpte);
    if (!(gpte & X86_PTE_D)) {
        *access &= (uint8_t)~KVM_ACC_W;
    }
    return true;
}

/* A table that the host took away reads as absent: the entry goes, and the next walk finds out. */
static uint64_t read_gpte(const struct kvm_table_view *view, const struct kvm_shadow_page *sp, unsigned i)
{
    unsigned size = sp->role.has_4_byte ? 4 : 8;
    unsigned at = sp->role.has_4_byte ? sp->role.quadrant * PT_ENTRIES + i : i;
    uint64_t gpte = 0;

    return kvm_user_get_entry(view->ptr + at * size, size, &gpte) == 0 ? gpte : 0;
}

/* One present entry against the guest's. */
static void sync_entry(struct kvm_vcpu *v, struct kvm_shadow_page *sp, const struct kvm_guest_mode *m, unsigned i,
                       uint64_t gpte)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    uint64_t e = kvm_spte_load(&sp->spt[i]);
    struct kvm_leaf_request r = {.level = 1};
    const struct kvm_memslot *slot;

    if (!reread(sp, m, gpte, &r.gfn, &r.access) || r.gfn.v != kvm_spte_gfn(sp, i).v) {
        KVM_SHADOW_COUNT(&sh->counters.sync_dropped);
        kvm_spte_clear(sh, &sp->spt[i]);
        return;
    }
    if ((sp->gfns[i] & KVM_ACC_ALL) == r.access) {
        KVM_SHADOW_COUNT(&sh->counters.sync_kept);
        return;
    }
    slot = kvm_slots_find(kvm_slots_active(&v->vm->slots), r.gfn);
    if (kvm_spte_is_mmio(e) || !slot) {
        kvm_spte_clear(sh, &sp->spt[i]);
        return;
    }
    r.pfn = pfn((e & X86_PTE_ADDR_MASK) >> PAGE_SHIFT);
    r.host_writable = e & KVM_SPTE_HOST_W;
    kvm_spte_set(sh, NULL, sp, i, kvm_spte_make(sh, slot, &r), r.gfn, r.access);
    KVM_SHADOW_COUNT(&sh->counters.sync_kept);
}

/*
 * Bring an unsync page up to date. False: its guest table cannot be read without waiting, and the page is gone.
 * Source: KVM's FNAME(sync_page)().
 */
bool kvm_shadow_sync_page(struct kvm_vcpu *v, struct kvm_shadow_page *sp)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_table_view view;
    struct kvm_guest_mode m;

    KVM_SHADOW_COUNT(&sh->counters.syncs);
    kvm_table_view_get(v, sp->gfn, &view);
    if (!view.ptr) {
        kvm_shadow_page_zap(sh, sp);
        return false;
    }
    kvm_role_mode(v, sp->role, &m);
    sp->unsync = false;
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        if (kvm_spte_load(&sp->spt[i])) {
            sync_entry(v, sp, &m, i, read_gpte(&view, sp, i));
        }
    }
    kvm_table_view_put(v, &view);
    TRACE(&v->vm->s->trace, shadow_sync, "gfn %llx", sp->gfn.v);
    return true;
}

/* ---- all below a root ---- */

struct batch {
    unsigned n;
    struct kvm_shadow_page *sp[BATCH];
};

/* Gather unsync pages below sp and clear the bits that lead to them. False: the batch is full. Depth: the levels. */
static bool gather(struct kvm_shadow *sh, struct kvm_shadow_page *sp, struct batch *b)
{
    for (unsigned i = 0; sp->nr_unsync_children && i < PT_ENTRIES; i++) {
        uint64_t bit = UINT64_C(1) << i % 64, e;
        struct kvm_shadow_page *child;

        if (!(sp->unsync_children[i / 64] & bit)) {
            continue;
        }
        e = kvm_spte_load(&sp->spt[i]);
        child = kvm_spte_is_table(e, sp->role.level) ? kvm_spte_child(sh, e) : NULL;
        if (child && child->unsync) {
            if (b->n == BATCH) {
                return false;
            }
            b->sp[b->n++] = child;
        } else if (child && !gather(sh, child, b)) {
            return false;
        }
        sp->unsync_children[i / 64] &= ~bit;
        sp->nr_unsync_children--;
    }
    return true;
}

/*
 * Everything below root is as the guest's tables say, when this returns. Lock: exclusive, in the read section; may
 * flush. Source: KVM's mmu_sync_children().
 */
void kvm_shadow_sync_children(struct kvm_vcpu *v, struct kvm_shadow_page *root)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    bool all;

    do {
        struct batch b = {.n = 0};
        bool protected = false;

        all = gather(sh, root, &b);
        for (unsigned i = 0; i < b.n; i++) {
            protected |= kvm_spte_protect_gfn(sh, b.sp[i]->gfn, false);
        }
        if (b.n && (protected || sh->stale)) {
            sh->flush = true;
            kvm_shadow_commit(sh);
        }
        for (unsigned i = 0; i < b.n; i++) {
            if (b.sp[i]->unsync) {
                kvm_shadow_sync_page(v, b.sp[i]);
            }
        }
    } while (!all);
}

/* ---- one address ---- */

static void invlpg_below(struct kvm_vcpu *v, struct kvm_shadow_page *sp, uint64_t la)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_table_view view;
    struct kvm_guest_mode m;
    unsigned i;

    while (sp->role.level > 1) {
        uint64_t e = kvm_spte_load(&sp->spt[pt_index(la, sp->role.level)]);

        if (!kvm_spte_is_table(e, sp->role.level)) {
            return;
        }
        sp = kvm_spte_child(sh, e);
    }
    i = pt_index(la, 1);
    if (!sp->unsync || !kvm_spte_load(&sp->spt[i])) {
        return;
    }
    kvm_table_view_get(v, sp->gfn, &view);
    if (!view.ptr) {
        kvm_spte_clear(sh, &sp->spt[i]);
        return;
    }
    kvm_role_mode(v, sp->role, &m);
    sync_entry(v, sp, &m, i, read_gpte(&view, sp, i));
    kvm_table_view_put(v, &view);
}

/*
 * The guest has invalidated la: what unsync tables say of it is read again, in the current root and, as it may be global,
 * in the cached ones if all_roots. Lock: takes mmu.lock. Source: KVM's kvm_mmu_invalidate_gva(), FNAME(invlpg)().
 */
void kvm_shadow_invlpg(struct kvm_vcpu *v, uint64_t la, bool all_roots)
{
    struct kvm_shadow_vcpu *s = v->shadow;

    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    KVM_SHADOW_COUNT(&kvm_shadow(v->vm)->counters.invlpgs);
    if (s->mode.levels < 4 && s->pae[la >> 30 & 3]) {
        invlpg_below(v, s->pae[la >> 30 & 3], (uint32_t)la);
    } else if (s->mode.levels >= 4 && s->root.sp) {
        invlpg_below(v, s->root.sp, la);
    }
    for (unsigned i = 0; all_roots && i < KVM_PREV_ROOTS; i++) {
        if (s->prev[i].sp) {
            invlpg_below(v, s->prev[i].sp, la);
        }
    }
    TRACE(&v->vm->s->trace, shadow_invlpg, "gva %llx", la);
    kvm_shadow_commit(kvm_shadow(v->vm));
    pthread_rwlock_unlock(&v->vm->mmu.lock);
}
