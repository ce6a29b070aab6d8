/*
 * Roots: the shadow pages that a processor's walk begins at, and the cache of the last ones, so that switching between
 * processes builds nothing anew.
 *
 *   registers written, or a root gone -> no root -> before the next entry: kvm_shadow_load()
 *      4 and 5 levels: current, else one of the 3 before, else got from the hash or made; then brought up to date
 *                      unless the guest's load of CR3 keeps translations and the root was one of these
 *      PAE format:     four pages, got anew each time
 *
 * Invariant: a page named by root, prev[] or pae[] counts that in root_count.
 * Locks: mmu.lock exclusive, the vCPU's thread.
 */
#include "arch/regs.h"
#include "softkvm/shadow/shadow.h"

static void put(struct kvm_shadow *sh, struct kvm_shadow_page **at)
{
    if (*at) {
        kvm_shadow_root_put(sh, *at);
        *at = NULL;
    }
}

/* Let go of all. Lock: exclusive; the caller commits. Source: KVM's kvm_mmu_free_roots(). */
void kvm_shadow_drop_roots(struct kvm_vcpu *v)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_shadow_vcpu *s = v->shadow;

    put(sh, &s->root.sp);
    for (unsigned i = 0; i < KVM_PREV_ROOTS; i++) {
        put(sh, &s->prev[i].sp);
    }
    for (unsigned i = 0; i < 4; i++) {
        put(sh, &s->pae[i]);
    }
}

static bool root_fits(const struct kvm_shadow_root *r, uint64_t cr3, union kvm_role role)
{
    return r->sp && !r->sp->role.invalid && r->cr3 == cr3 && r->role == role.word;
}

/* Make the wanted root current if it is the current or a cached one; else the current one is put in front of the
 * cached, and the last of those goes. Source: KVM's cached_root_find_and_promote(). */
static bool promote(struct kvm_vcpu *v, uint64_t cr3, union kvm_role role)
{
    struct kvm_shadow_vcpu *s = v->shadow;

    if (root_fits(&s->root, cr3, role)) {
        return true;
    }
    for (unsigned i = 0; i < KVM_PREV_ROOTS; i++) {
        struct kvm_shadow_root was = s->prev[i];

        s->prev[i] = s->root;
        s->root = was;
        if (root_fits(&s->root, cr3, role)) {
            return true;
        }
    }
    put(kvm_shadow(v->vm), &s->root.sp);
    return false;
}

static bool has_slot(struct kvm_vcpu *v, gfn_t f)
{
    return kvm_slots_find(kvm_slots_active(&v->vm->slots), f) != NULL;
}

/* 4 and 5 levels. *hit: the root was at hand. Lock: exclusive. */
static hpa_t load_long(struct kvm_vcpu *v, union kvm_role role, bool *hit)
{
    struct kvm_shadow_vcpu *s = v->shadow;
    gfn_t f = gfn(s->mode.cr3 >> PAGE_SHIFT);

    role.level = s->mode.levels;
    *hit = promote(v, v->cpu->cr3, role);
    if (*hit) {
        return s->root.sp->table;
    }
    if (!has_slot(v, f)) {
        return kvm_shadow(v->vm)->dummy;
    }
    s->root = (struct kvm_shadow_root){kvm_shadow_page_get(v, f, role), v->cpu->cr3, role.word};
    s->root.sp->root_count++;
    return s->root.sp->table;
}

/* PAE's format: four pages of level 2. Source: KVM's mmu_alloc_shadow_roots(), mmu_alloc_direct_roots(). */
static void load_pae(struct kvm_vcpu *v, union kvm_role role, uint64_t pdptr[4])
{
    struct kvm_shadow_vcpu *s = v->shadow;
    struct kvm_shadow *sh = kvm_shadow(v->vm);

    role.level = 2;
    for (unsigned i = 0; i < 4; i++) {
        struct kvm_shadow_page *old = s->pae[i];
        gfn_t f = gfn(s->mode.cr3 >> PAGE_SHIFT);

        s->pae[i] = NULL;
        pdptr[i] = 0;
        if (s->mode.levels == 0) {
            f = gfn((uint64_t)i << (30 - PAGE_SHIFT));
        } else if (s->mode.levels == 3) {
            f = gfn((s->mode.pdptr[i] & X86_PTE_ADDR_MASK) >> PAGE_SHIFT);
        }
        role.quadrant = role.has_4_byte ? i : 0;
        if (s->mode.levels == 0 || ((s->mode.levels == 2 || (s->mode.pdptr[i] & X86_PTE_P)) && has_slot(v, f))) {
            s->pae[i] = kvm_shadow_page_get(v, f, role);
            s->pae[i]->root_count++;
            pdptr[i] = s->pae[i]->table.v | X86_PTE_P;
        }
        put(sh, &old);
    }
}

/* A root that is not a long one is not cached: what is left of the other kind goes. */
static void drop_other_kind(struct kvm_vcpu *v)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);

    for (unsigned i = 0; i < 4 && v->shadow->mode.levels >= 4; i++) {
        put(sh, &v->shadow->pae[i]);
    }
    if (v->shadow->mode.levels < 4) {
        put(sh, &v->shadow->root.sp);
    }
}

static void sync_loaded(struct kvm_vcpu *v)
{
    struct kvm_shadow_vcpu *s = v->shadow;

    if (s->root.sp) {
        kvm_shadow_sync_children(v, s->root.sp);
    }
    for (unsigned i = 0; i < 4; i++) {
        if (s->pae[i]) {
            kvm_shadow_sync_children(v, s->pae[i]);
        }
    }
}

/*
 * Load a root for the guest's registers as they are. 0 or -ENOMEM.
 * Lock: vcpu->lock, in the read section; takes mmu.lock. Source: KVM's kvm_mmu_load(), kvm_mmu_new_pgd().
 */
int kvm_shadow_load(struct kvm_vcpu *v)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_shadow_vcpu *s = v->shadow;
    struct cpu_shadow_root root = {0};
    union kvm_role role;
    bool hit = false;
    int r = kvm_shadow_top_up(v);

    if (r < 0) {
        return r;
    }
    kvm_shadow_mode(v, &s->mode);
    kvm_shadow_hw_regs(v, &s->mode, &root);
    role = kvm_shadow_base_role(&s->mode);
    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    kvm_shadow_make_room(sh);
    drop_other_kind(v);
    if (s->mode.levels >= 4) {
        root.root = load_long(v, role, &hit);
    } else {
        load_pae(v, role, root.pdptr);
    }
    if (!hit || s->sync_wanted) {
        sync_loaded(v);
        s->sync_wanted = false;
    }
    KVM_SHADOW_COUNT(hit ? &sh->counters.root_hits : &sh->counters.root_loads);
    TRACE(&v->vm->s->trace, shadow_root, "cr3 %llx levels %llu cached %llu", v->cpu->cr3, s->mode.levels, hit);
    cpu_shadow_load(v->cpu, &root);
    kvm_shadow_commit(sh);
    pthread_rwlock_unlock(&v->vm->mmu.lock);
    return 0;
}

/*
 * The guest has loaded CR3. value: with bit 63, "keep this PCID's translations".
 * Source: KVM's kvm_set_cr3().
 */
void kvm_shadow_cr3_written(struct kvm_vcpu *v, uint64_t value)
{
    bool keep = (v->cpu->cr4 & X86_CR4_PCIDE) && (value & X86_CR3_NOFLUSH);

    KVM_SHADOW_COUNT(&kvm_shadow(v->vm)->counters.cr3_writes);
    v->shadow->sync_wanted |= !keep;
}

/* The cached roots of a PCID (4096: of all) are not to be used as they are. Lock: takes mmu.lock.
 * Source: KVM's kvm_invalidate_pcid(). */
void kvm_shadow_forget_pcid(struct kvm_vcpu *v, unsigned pcid)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);

    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    for (unsigned i = 0; i < KVM_PREV_ROOTS; i++) {
        struct kvm_shadow_root *r = &v->shadow->prev[i];

        if (r->sp && (pcid > X86_CR3_PCID_MASK || (r->cr3 & X86_CR3_PCID_MASK) == pcid)) {
            put(sh, &r->sp);
        }
    }
    kvm_shadow_commit(sh);
    pthread_rwlock_unlock(&v->vm->mmu.lock);
}

/* The current root is brought up to date: the guest has flushed. Lock: takes mmu.lock. Source: KVM's
 * kvm_mmu_sync_roots(). */
void kvm_shadow_sync_roots(struct kvm_vcpu *v)
{
    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    sync_loaded(v);
    kvm_shadow_commit(kvm_shadow(v->vm));
    pthread_rwlock_unlock(&v->vm->mmu.lock);
}
