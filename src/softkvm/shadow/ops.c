/*
 * The shadow kind of MMU as mmu.c sees it: life, and the operations that come from slots, dirty logging and the host,
 * which are all passes over reverse maps.
 *
 * Differs: these flush by themselves, under the lock, instead of leaving it to the caller: between an entry's loss of
 * W and the flush nobody may take the page for one that cannot be written (shadow.h, invariant 4).
 *
 * Locks: mmu.lock is the caller's, exclusive.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "host/buddy.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/shadow/shadow.h"

#define FEW_FRAMES 1024u

/* ---- life ---- */

/* Source: KVM's kvm_mmu_init_vm(). */
static int init(struct kvm_vm *vm)
{
    struct kvm_shadow *sh = kvm_alloc(vm->s, sizeof(*sh));

    vm->mmu.kind_data = sh;
    if (!sh) {
        return -ENOMEM;
    }
    sh->vm = vm;
    sh->limit_slots = UINT64_MAX;
    list_init(&sh->active);
    list_init(&sh->dead);
    vm->mmu.levels = 4;
    if (vm->mmu.max_level > 2) {
        vm->mmu.max_level = 2;
    }
    sh->by_pfn = kvm_alloc_array(vm->s, vm->s->hm->nr_frames, sizeof(*sh->by_pfn));
    if (!sh->by_pfn || host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &sh->dummy) < 0) {
        sh->dummy = hpa(0);
        return -ENOMEM;
    }
    return 0;
}

/* Pages that are left, invalid or not, of vCPUs that are gone. */
static void free_list(struct kvm_shadow *sh, struct list *head)
{
    struct list *at, *next;

    list_for_each_safe (at, next, head) {
        list_del(at);
        kvm_shadow_page_free(sh->vm, list_entry(at, struct kvm_shadow_page, node));
    }
}

static void fini(struct kvm_vm *vm)
{
    struct kvm_shadow *sh = kvm_shadow(vm);

    if (!sh) {
        return;
    }
    free_list(sh, &sh->active);
    free_list(sh, &sh->dead);
    kvm_rmap_free_all(sh);
    if (sh->dummy.v) {
        host_table_free(vm->s->hm, sh->dummy);
    }
    free(sh->by_pfn);
    free(sh);
    vm->mmu.kind_data = NULL;
}

static int vcpu_init(struct kvm_vcpu *v)
{
    v->shadow = kvm_alloc(v->vm->s, sizeof(*v->shadow));
    return v->shadow ? 0 : -ENOMEM;
}

/* The VM ends, or the vCPU never came to be: no processor can hold a translation of what goes. */
static void vcpu_fini(struct kvm_vcpu *v)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);

    if (!v->shadow) {
        return;
    }
    pthread_rwlock_wrlock(&v->vm->mmu.lock);
    kvm_shadow_drop_roots(v);
    if (sh) {
        sh->flush = false;
        kvm_shadow_commit(sh);
    }
    pthread_rwlock_unlock(&v->vm->mmu.lock);
    kvm_shadow_cache_drain(v->vm, &v->shadow->cache);
    free(v->shadow);
    v->shadow = NULL;
}

/* A root is gone or the vCPU is new. The root itself is loaded before the next entry. */
static void load(struct kvm_vcpu *v)
{
    if (!v->cpu->shadow.on) {
        cpu_shadow_enable(v->cpu, true);
    }
    v->shadow->sync_wanted = true;
    cpu_shadow_unload(v->cpu);
}

static void set_limit(struct kvm_vm *vm, uint64_t pages)
{
    pthread_rwlock_wrlock(&vm->mmu.lock);
    kvm_shadow(vm)->user_limit = pages;
    pthread_rwlock_unlock(&vm->mmu.lock);
}

/* ---- removing ---- */

static void zap_chain(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque)
{
    uint64_t *spte;

    while ((spte = kvm_rmap_first(r)) != NULL) {
        kvm_spte_clear(sh, spte);
    }
}

/* Pages that shadow a guest table in [first, last]: what the guest's table says may be another thing hereafter, and
 * nobody writes it that way. */
static void zap_tables(struct kvm_shadow *sh, gfn_t first, gfn_t last)
{
    struct list *at, *next;

    list_for_each_safe (at, next, &sh->active) {
        struct kvm_shadow_page *sp = list_entry(at, struct kvm_shadow_page, node);

        if (!sp->role.direct && sp->gfn.v >= first.v && sp->gfn.v <= last.v) {
            kvm_shadow_page_zap(sh, sp);
        }
    }
}

/* Short ranges are looked up frame by frame, for the host drops pages one by one. */
static void zap_few_tables(struct kvm_shadow *sh, gfn_t first, gfn_t last)
{
    for (uint64_t f = first.v; f <= last.v; f++) {
        const struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, f >> PT_LEVEL_BITS);

        if (c && c->nr_shadowed) {
            kvm_shadow_unprotect(sh, gfn(f));
        }
    }
}

/* All of guest memory goes: a new generation. Else what maps a frame of the range, and pages whose guest tables lie in
 * it: their contents may change. MMIO entries are found out by their generation. Source: KVM's kvm_unmap_gfn_range(),
 * kvm_mmu_invalidate_zap_pages_in_memslot(). */
static void zap_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead)
{
    struct kvm_shadow *sh = kvm_shadow(vm);

    if (first.v == 0 && last.v + 1 >= UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT)) {
        kvm_shadow_zap_all(sh);
    } else {
        kvm_rmap_for_range(sh, first, last, zap_chain, NULL);
        (last.v - first.v < FEW_FRAMES ? zap_few_tables : zap_tables)(sh, first, last);
    }
    kvm_shadow_commit_all(sh);
}

static void zap_mmio_locked(struct kvm_vm *vm, struct kvm_dead_tables *dead)
{
    struct kvm_shadow *sh = kvm_shadow(vm);
    struct list *at;

    list_for_each (at, &sh->active) {
        struct kvm_shadow_page *sp = list_entry(at, struct kvm_shadow_page, node);

        for (unsigned i = 0; sp->role.level == 1 && i < PT_ENTRIES; i++) {
            if (kvm_spte_is_mmio(kvm_spte_load(&sp->spt[i]))) {
                kvm_spte_clear(sh, &sp->spt[i]);
            }
        }
    }
    kvm_shadow_commit(sh);
}

/* ---- aging ---- */

struct age_work {
    bool clear, young;
};

static void age_chain(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque)
{
    struct age_work *w = opaque;
    struct kvm_rmap_pos pos = {0};
    uint64_t *spte;

    while ((spte = kvm_rmap_next(r, &pos)) != NULL) {
        uint64_t old = w->clear ? __atomic_fetch_and(spte, ~X86_PTE_A, __ATOMIC_RELAXED) : kvm_spte_load(spte);

        w->young |= (old & X86_PTE_A) != 0;
    }
}

static bool age_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, bool clear)
{
    struct age_work w = {clear, false};

    kvm_rmap_for_range(kvm_shadow(vm), first, last, age_chain, &w);
    return w.young;
}

/* ---- dirty logging ---- */

static void protect_chain(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque)
{
    if (kvm_spte_protect_gfn(sh, f, true)) {
        *(bool *)opaque = true;
    }
}

static bool protect_slot_locked(struct kvm_vm *vm, const struct kvm_memslot *slot)
{
    struct kvm_shadow *sh = kvm_shadow(vm);
    bool was = false;

    kvm_rmap_for_range(sh, gfn(slot->base_gfn), gfn(slot->base_gfn + slot->npages - 1), protect_chain, &was);
    sh->stale |= was;
    return sh->stale;
}

/* The caller flushes before the bits are handed out; `stale` stays, for those who look at the entries before that. */
static bool protect_mask_locked(struct kvm_vm *vm, const struct kvm_memslot *slot, uint64_t offset, uint64_t mask)
{
    struct kvm_shadow *sh = kvm_shadow(vm);

    for (; mask; mask &= mask - 1) {
        gfn_t f = gfn(slot->base_gfn + offset + (unsigned)__builtin_ctzll(mask));

        sh->stale |= kvm_spte_protect_gfn(sh, f, true);
    }
    return sh->stale;
}

/* Small leaves of direct pages in 2 MiB that a large one could map go. Source: KVM's kvm_mmu_zap_collapsible_spte(). */
static void recover_chain(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque)
{
    const struct kvm_memslot *slot = opaque;
    struct kvm_rmap_pos pos = {0};
    uint64_t *spte;
    unsigned i;

    if (level != 1 || host_mapping_level(sh->vm->s->mm, kvm_slot_hva(slot, f)) < 2) {
        return;
    }
    while ((spte = kvm_rmap_next(r, &pos)) != NULL) {
        if (kvm_spte_owner(sh, spte, &i)->role.direct) {
            kvm_spte_clear(sh, spte);
            pos = (struct kvm_rmap_pos){0};
        }
    }
}

static void recover_huge_locked(struct kvm_vm *vm, const struct kvm_memslot *slot, struct kvm_dead_tables *dead)
{
    kvm_rmap_for_range(kvm_shadow(vm), gfn(slot->base_gfn), gfn(slot->base_gfn + slot->npages - 1), recover_chain,
                       (void *)(uintptr_t)slot);
    kvm_shadow_commit_all(kvm_shadow(vm));
}

/* ---- looking ---- */

/* Of the entries that map a frame, the one with the most rights. */
static uint64_t best_entry(const struct kvm_rmap *r)
{
    struct kvm_rmap_pos pos = {0};
    uint64_t best = 0, *spte;

    while ((spte = kvm_rmap_next(r, &pos)) != NULL) {
        uint64_t e = kvm_spte_load(spte);

        best = !best || (e & ~best & X86_PTE_W) ? e : best;
    }
    return best;
}

struct leaf_work {
    gfn_t first, last;
    kvm_mmu_leaf_fn *fn;
    void *opaque;
    const struct kvm_shadow *sh;
    bool stop;
};

static void show_frame(struct leaf_work *w, const struct kvm_rmap *r, uint64_t f, unsigned level)
{
    struct kvm_mmu_leaf leaf = {.gpa = f << PAGE_SHIFT, .entry = best_entry(r), .level = level};

    leaf.is_writable = leaf.is_unnoticed = (leaf.entry & X86_PTE_W) != 0;
    if (leaf.entry && !w->stop) {
        w->stop = !w->fn(w->opaque, &leaf);
    }
}

/* One slot's part of the range, in order. */
static void show_slot(void *opaque, struct kvm_memslot *slot)
{
    struct leaf_work *w = opaque;
    uint64_t f = slot->base_gfn > w->first.v ? slot->base_gfn : w->first.v;
    uint64_t end = slot->base_gfn + slot->npages;

    end = end < w->last.v + 1 ? end : w->last.v + 1;
    while (f < end && !w->stop) {
        const struct kvm_rmap_chunk *c = kvm_rmap_chunk(w->sh, f >> PT_LEVEL_BITS);
        uint64_t next = ((f >> PT_LEVEL_BITS) + 1) << PT_LEVEL_BITS;

        if (c && !(f & (PT_ENTRIES - 1))) {
            show_frame(w, &c->large, f, 2);
        }
        for (; c && f < next && f < end; f++) {
            show_frame(w, &c->small[f & (PT_ENTRIES - 1)], f, 1);
        }
        f = next;
    }
}

/* A frame that several entries map is shown once, as the one that may do most. */
static void for_each_leaf_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, kvm_mmu_leaf_fn *fn, void *opaque)
{
    struct leaf_work w = {first, last, fn, opaque, kvm_shadow(vm), false};

    kvm_slots_for_each(kvm_slots_active(&vm->slots), show_slot, &w);
}

/* There is no tree by guest-physical address: the entry is found by the reverse map. */
static uint64_t explain_locked(struct kvm_vm *vm, gpa_t addr, struct softkvm_explain *x)
{
    struct kvm_shadow *sh = kvm_shadow(vm);

    for (unsigned level = 1; level <= 2; level++) {
        struct kvm_rmap *r = kvm_rmap_of(sh, gpa_to_gfn(addr), level);
        uint64_t *spte = r ? kvm_rmap_first(r) : NULL, size = pt_leaf_size(level), e;
        unsigned index;

        if (!spte) {
            continue;
        }
        e = kvm_spte_load(spte);
        if (x) {
            struct softkvm_entry *o = &x->ept[x->nr_ept++];

            kvm_explain_entry(o, ARCH_FMT_LONG, level, e);
            o->table = kvm_spte_owner(sh, spte, &index)->table.v;
            o->index = index;
            x->ept_page_size = size;
        }
        return (e & X86_PTE_ADDR_MASK & ~(size - 1)) + (addr.v & (size - 1));
    }
    return 0;
}

static bool is_stale_locked(const struct kvm_vm *vm)
{
    return kvm_shadow(vm)->stale;
}

const struct kvm_mmu_ops kvm_mmu_shadow = {
    .name = "shadow",
    .init = init,
    .fini = fini,
    .vcpu_init = vcpu_init,
    .vcpu_fini = vcpu_fini,
    .load = load,
    .set_limit = set_limit,
    .zap_locked = zap_locked,
    .zap_mmio_locked = zap_mmio_locked,
    .age_locked = age_locked,
    .protect_slot_locked = protect_slot_locked,
    .protect_mask_locked = protect_mask_locked,
    .recover_huge_locked = recover_huge_locked,
    .for_each_leaf_locked = for_each_leaf_locked,
    .explain_locked = explain_locked,
    .is_stale_locked = is_stale_locked,
    .check_locked = kvm_shadow_check,
};
