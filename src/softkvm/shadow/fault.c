/*
 * Serving a page fault of the processor under shadow tables, as a list of stages over one struct:
 *
 *   MMIO entry? -> reserve in hand -> guest's tables: guest's fault? -> slot -> host page -> lock -> stale? -> room
 *     -> tables down to the guest's leaf (each guest entry read again) -> direct tables below it -> leaf
 *     -> or a grant: the page is a guest's table, a device's, or read-only
 *
 * Invariants
 *  1. Nothing is mapped from a host page resolved before an invalidation that ended since, or that still runs over it.
 *  2. No entry is made from a guest entry that has changed since the walk, when its table is a synced one.
 *  3. A writable leaf in a logging slot is a small one, and its page's bit is set before the lock goes.
 *
 * Locks: mmu.lock exclusive around changes. In the vCPU's read section.
 * Differs from KVM: a supervisor's write to a read-only user page with CR0.WP clear and SMAP on is done by grant, so
 * that SMAP stays exact; leaves are of 4 KiB and 2 MiB; entries for neighbours are not made in advance.
 */
#include <errno.h>

#include "arch/regs.h"
#include "cpu/walk.h"
#include "softkvm/exit.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/shadow/shadow.h"
#include "softkvm/user.h"

struct page_fault {
    /* inputs */
    struct kvm_vcpu *v;
    struct kvm_shadow *sh;
    uint64_t gva;
    uint32_t code;
    bool write, fetch, user;
    /* derived */
    struct kvm_guest_walk walk;
    uint8_t access;            /* of the leaf to be made */
    struct kvm_memslot *slot;  /* null: a device's */
    uint64_t generation;       /* of the slots, when they were asked */
    uint64_t inv_seq;
    struct host_page page;
    bool by_grant;             /* the access cannot be allowed by an entry */
};

/* What making the entries came to. */
enum fetch_result {
    FETCH_DONE,
    FETCH_RETRY,      /* the guest's tables or the host's have changed: let the guest try again */
    FETCH_PROTECTED,  /* a write to a page that must stay protected */
};

/* ---- entries ---- */

/*
 * A leaf's value from what the guest allows and what the host gives. slot: of r->gfn. Lock: exclusive; may make leaf
 * tables unsync when r->write. Source: KVM's make_spte().
 */
uint64_t kvm_spte_make(struct kvm_shadow *sh, const struct kvm_memslot *slot, const struct kvm_leaf_request *r)
{
    uint64_t pages = UINT64_C(1) << (PT_LEVEL_BITS * (r->level - 1));
    uint64_t e = (r->pfn.v & ~(pages - 1)) << PAGE_SHIFT | X86_PTE_P | X86_PTE_A;
    bool may_write = (r->access & KVM_ACC_W) && r->host_writable && !(slot->flags & KVM_MEM_READONLY);

    e |= r->level > 1 ? X86_PTE_PS : 0;
    e |= r->access & KVM_ACC_U ? X86_PTE_U : 0;
    e |= r->access & KVM_ACC_X ? 0 : X86_PTE_NX;
    e |= r->host_writable ? KVM_SPTE_HOST_W : 0;
    if (may_write && kvm_shadow_may_map_writable(sh, r->gfn, r->write)) {
        e |= KVM_SPTE_MMU_W;
        /* Write-protected at first in a logging slot: a read must not count as a write. */
        e |= !kvm_slot_is_logged(slot) || r->write ? X86_PTE_W | X86_PTE_D : 0;
    }
    return e;
}

static uint64_t leaf_frames(unsigned level)
{
    return UINT64_C(1) << (PT_LEVEL_BITS * (level - 1));
}

/* May the leaf be of 2 MiB? */
static bool may_be_large(const struct page_fault *p)
{
    const struct kvm_memslot *s = p->slot;
    uint64_t n = leaf_frames(2), first = p->walk.gfn.v & ~(n - 1);

    return s && p->sh->vm->mmu.max_level >= 2 && p->walk.level != 1 && p->page.level >= 2 && !kvm_slot_is_logged(s) &&
           first >= s->base_gfn && first + n <= s->base_gfn + s->npages &&
           ((s->base_gfn ^ (s->hva >> PAGE_SHIFT)) & (n - 1)) == 0 &&
           ((p->walk.gfn.v ^ p->page.pfn.v) & (n - 1)) == 0 && !kvm_shadow_region_has_tables(p->sh, p->walk.gfn);
}

/* ---- tables ---- */

/* Does the guest's entry of `level` still read as when it was walked? Now that its table is protected, or marked. */
static bool gpte_is_current(struct page_fault *p, unsigned level)
{
    const struct kvm_guest_walk *w = &p->walk;
    gpa_t at = w->pte_gpa[level - 1];
    struct kvm_table_view view;
    uint64_t now = 0;
    int r;

    kvm_table_view_get(p->v, gpa_to_gfn(at), &view);
    if (!view.ptr) {
        return false;
    }
    r = kvm_user_get_entry(view.ptr + page_offset(at.v), w->mode->entry_size, &now);
    kvm_table_view_put(p->v, &view);
    return r == 0 && now == w->pte[level - 1];
}

/* Role of the page under entry i of sp, one level down. Source: KVM's kvm_mmu_child_role(). */
static union kvm_role child_role(const struct kvm_shadow_page *sp, unsigned i, bool direct, uint8_t access)
{
    union kvm_role role = sp->role;

    role.level--;
    role.direct = direct;
    role.access = access;
    role.quadrant = 0;
    if (direct) {
        role.has_4_byte = 0;
    } else if (role.has_4_byte) {
        role.quadrant = i & 1; /* half a table of 1024 entries to a page */
    }
    return role;
}

/* The page under entry i of sp: what is linked there if it is the right one, else got and linked. */
static struct kvm_shadow_page *step_down(struct page_fault *p, struct kvm_shadow_page *sp, unsigned i, gfn_t f,
                                         union kvm_role role)
{
    uint64_t e = kvm_spte_load(&sp->spt[i]);
    struct kvm_shadow_page *child;

    if (kvm_spte_is_table(e, sp->role.level)) {
        child = kvm_spte_child(p->sh, e);
        if (child->gfn.v == f.v && child->role.word == role.word) {
            child->writes = 0;
            return child;
        }
    } else if (kvm_spte_is_page(e, sp->role.level)) {
        KVM_SHADOW_COUNT(&p->sh->counters.split_large);
    }
    if (e) {
        kvm_spte_clear(p->sh, &sp->spt[i]);
        kvm_shadow_commit(p->sh);
    }
    child = kvm_shadow_page_get(p->v, f, role);
    kvm_spte_set(p->sh, &p->v->shadow->cache, sp, i, kvm_spte_table(child), f, 0);
    return child;
}

/* Where the walk over shadow tables begins. Null: no root that can be used. */
static struct kvm_shadow_page *fault_root(const struct page_fault *p)
{
    const struct kvm_shadow_vcpu *s = p->v->shadow;
    struct kvm_shadow_page *sp = s->mode.levels >= 4 ? s->root.sp : s->pae[p->gva >> 30 & 3];

    return sp && !sp->role.invalid && p->v->cpu->shadow.root ? sp : NULL;
}

/* Shadow pages for the guest's tables down to the one with the leaf. Null: something has changed. */
static struct kvm_shadow_page *descend_guest(struct page_fault *p, struct kvm_shadow_page *sp)
{
    const struct kvm_guest_walk *w = &p->walk;

    sp->writes = 0;
    while (sp->role.level > w->level) {
        unsigned level = sp->role.level, i = pt_index(p->gva, level);
        gfn_t f = w->table_gfn[level - 2];

        if (!gpte_is_current(p, level)) {
            return NULL;
        }
        sp = step_down(p, sp, i, f, child_role(sp, i, false, w->table_access[level - 2]));
    }
    return gpte_is_current(p, w->level) ? sp : NULL;
}

/* Direct pages below the guest's leaf, down to `level`. */
static struct kvm_shadow_page *descend_direct(struct page_fault *p, struct kvm_shadow_page *sp, unsigned level)
{
    while (sp->role.level > level) {
        unsigned i = pt_index(p->gva, sp->role.level);
        gfn_t f = gfn(p->walk.gfn.v & ~(leaf_frames(sp->role.level) - 1));

        sp = step_down(p, sp, i, f, child_role(sp, i, true, sp->role.paged ? p->access : KVM_ACC_ALL));
    }
    return sp;
}

/* Put the leaf in place; false: the write must not be let through. */
static bool set_leaf(struct page_fault *p, struct kvm_shadow_page *sp, unsigned level)
{
    unsigned i = pt_index(p->gva, level);
    struct kvm_leaf_request r = {
        .gfn = gfn(p->walk.gfn.v & ~(leaf_frames(level) - 1)),
        .access = p->access,
        .pfn = p->page.pfn,
        .host_writable = p->page.writable,
        .write = p->write && !p->by_grant,
        .level = level,
    };
    uint64_t e = kvm_spte_load(&sp->spt[i]), new;

    if (!p->slot) {
        new = kvm_spte_mmio(p->walk.gfn, p->generation, p->access);
        kvm_spte_set(p->sh, &p->v->shadow->cache, sp, i, new, p->walk.gfn, p->walk.access);
        KVM_COUNT(&p->v->counters.mapped[0]);
        return true;
    }
    new = kvm_spte_make(p->sh, p->slot, &r);
    if (kvm_spte_is_table(e, level)) {
        kvm_spte_clear(p->sh, &sp->spt[i]);
    }
    kvm_spte_set(p->sh, &p->v->shadow->cache, sp, i, new, r.gfn, p->walk.access);
    KVM_COUNT(&p->v->counters.mapped[level]);
    if (new & X86_PTE_W) {
        kvm_slot_mark_dirty(p->v, p->slot, p->walk.gfn);
    }
    TRACE(&p->sh->vm->s->trace, shadow_map, "gva %llx gfn %llx level %llu writable %llu", p->gva, p->walk.gfn.v, level,
          (new & X86_PTE_W) != 0);
    return !p->write || (new & X86_PTE_W);
}

/* Make the entries. Lock: exclusive. Source: KVM's FNAME(fetch)(). */
static enum fetch_result fetch(struct page_fault *p)
{
    struct kvm_shadow_page *sp = fault_root(p);
    unsigned level;

    if (!sp) {
        cpu_shadow_unload(p->v->cpu); /* zapped meanwhile, or made when its table was in no memory */
        return FETCH_RETRY;
    }
    if (p->walk.level) {
        sp = descend_guest(p, sp);
    }
    if (!sp) {
        return FETCH_RETRY;
    }
    level = sp->role.level >= 2 && may_be_large(p) ? 2 : 1;
    sp = descend_direct(p, sp, level);
    return set_leaf(p, sp, level) ? FETCH_DONE : FETCH_PROTECTED;
}

/* ---- grants ---- */

/* Leave for the instruction: a device's access, or a write that no entry may allow. Lock: exclusive. */
static void grant(struct page_fault *p, bool device)
{
    struct cpu_grant g = {
        .page = p->gva & PAGE_MASK,
        .gpa = p->walk.gfn.v << PAGE_SHIFT,
        .pfn = p->slot ? p->page.pfn.v : 0,
        .user = p->user,
        .device = device,
    };

    cpu_shadow_grant(p->v->cpu, &g);
    if (device) {
        KVM_SHADOW_COUNT(&p->sh->counters.device_grants);
        return;
    }
    kvm_slot_mark_dirty(p->v, p->slot, p->walk.gfn);
    KVM_SHADOW_COUNT(&p->sh->counters.write_protected);
    TRACE(&p->sh->vm->s->trace, shadow_grant, "gva %llx gfn %llx", p->gva, p->walk.gfn.v);
}

/* ---- stages ---- */

/* Has the walk outlived what it was based on? Lock: mmu.lock. */
static bool is_stale(const struct page_fault *p)
{
    const struct kvm_mmu *mmu = &p->sh->vm->mmu;
    uint64_t at = p->slot ? kvm_slot_hva(p->slot, p->walk.gfn).v : 0;

    if (atomic_load(&p->sh->vm->slots.generation) != p->generation) {
        return true;
    }
    if (!p->slot) {
        return false;
    }
    return (atomic_load_explicit(&mmu->inv_count, memory_order_relaxed) && at >= mmu->inv_start &&
            at < mmu->inv_end) ||
           atomic_load_explicit(&mmu->inv_seq, memory_order_relaxed) != p->inv_seq;
}

/* CR0.WP clear: a supervisor may write user's read-only pages. Such a page is made a supervisor's until a user
 * comes back for it; with SMAP, which that would hide from, the write goes by grant. */
static void judge_access(struct page_fault *p)
{
    const struct kvm_guest_mode *m = p->walk.mode;

    p->access = p->walk.access;
    if (!p->write || (p->access & KVM_ACC_W) || m->wp || p->user || m->levels == 0) {
        return;
    }
    if (m->smap || !p->slot) {
        p->by_grant = true;
        return;
    }
    p->access = (uint8_t)((p->access | KVM_ACC_W) & ~KVM_ACC_U);
    if (m->smep) {
        p->access &= (uint8_t)~KVM_ACC_X;
    }
}

/* Slot and host page. KVM_GO_ON: found; *done: nothing more to do, the value is the fault's result. */
static int find_page(struct page_fault *p, bool *done)
{
    struct kvm_vm *vm = p->v->vm;
    bool writes_rom;
    int r;

    *done = true;
    p->generation = atomic_load(&vm->slots.generation);
    p->slot = kvm_slots_find_vcpu(p->v, p->walk.gfn);
    if ((p->generation & KVM_GEN_IN_PROGRESS) || (p->slot && (p->slot->flags & KVM_SLOT_INVALID))) {
        return KVM_GO_ON;
    }
    *done = false;
    if (!p->slot) {
        return KVM_GO_ON;
    }
    writes_rom = p->write && (p->slot->flags & KVM_MEM_READONLY);
    p->inv_seq = atomic_load(&vm->mmu.inv_seq);
    r = host_gup(vm->s->mm, kvm_slot_hva(p->slot, p->walk.gfn), p->write && !writes_rom ? HOST_FAULT_WRITE : 0,
                 &p->page);
    if (r < 0) {
        *done = true;
        return r == -EAGAIN ? KVM_GO_ON : r;
    }
    return KVM_GO_ON;
}

/* Entries and grants, under the lock. */
static int map(struct page_fault *p)
{
    bool rom = p->slot && p->write && (p->slot->flags & KVM_MEM_READONLY);
    enum fetch_result r = FETCH_RETRY;

    pthread_rwlock_wrlock(&p->sh->vm->mmu.lock);
    kvm_shadow_make_room(p->sh);
    if (!is_stale(p)) {
        r = fetch(p);
    }
    if (r == FETCH_RETRY) {
        KVM_SHADOW_COUNT(&p->sh->counters.retries);
        KVM_COUNT(&p->v->counters.faults_retry);
    } else if (!p->slot || rom) {
        KVM_COUNT(p->slot ? &p->v->counters.faults_ro : &p->v->counters.faults_mmio);
        grant(p, true);
    } else if (r == FETCH_PROTECTED) {
        if (cpu_shadow_is_granted(p->v->cpu, p->gva, p->user)) {
            kvm_shadow_unprotect(p->sh, p->walk.gfn); /* the grant does not help: no table, then */
        }
        grant(p, false);
    } else {
        KVM_SHADOW_COUNT(&p->sh->counters.fixed);
        KVM_COUNT(&p->v->counters.faults_fixed);
    }
    kvm_shadow_commit(p->sh);
    pthread_rwlock_unlock(&p->sh->vm->mmu.lock);
    return KVM_GO_ON;
}

/* Code that lies in no memory: nothing can answer that. */
static int fetch_outside_memory(struct page_fault *p)
{
    p->v->cpu->exit.error.len = 0;
    p->v->run->internal.ndata = 2;
    p->v->run->internal.data[0] = p->walk.gfn.v << PAGE_SHIFT;
    p->v->run->internal.data[1] = p->v->cpu->rip;
    p->v->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    p->v->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
    return KVM_LEAVE;
}

static int guests_fault(struct page_fault *p)
{
    KVM_SHADOW_COUNT(&p->sh->counters.guest_faults);
    TRACE(&p->sh->vm->s->trace, shadow_guest_fault, "gva %llx code %llx", p->gva, p->walk.code);
    if (cpu_shadow_reflect(p->v->cpu, p->walk.code)) {
        return KVM_GO_ON;
    }
    p->v->run->exit_reason = KVM_EXIT_SHUTDOWN;
    return KVM_LEAVE;
}

/* A reserved-bit fault: an MMIO entry that is current and allows the access spares the walk. */
static bool mmio_fast(struct page_fault *p, bool smap_exempt)
{
    uint64_t gen = atomic_load(&p->v->vm->slots.generation), e = 0;
    const struct kvm_guest_mode *m = p->walk.mode;
    struct kvm_shadow_page *sp;
    bool ok;

    if (!(p->code & X86_PFEC_RSVD) || p->fetch) {
        return false;
    }
    pthread_rwlock_wrlock(&p->sh->vm->mmu.lock);
    for (sp = fault_root(p); sp; sp = kvm_spte_child(p->sh, e)) {
        e = kvm_spte_load(&sp->spt[pt_index(p->gva, sp->role.level)]);
        if (!kvm_spte_is_table(e, sp->role.level)) {
            break;
        }
    }
    ok = sp && kvm_spte_is_mmio(e) && kvm_spte_mmio_generation(e) == (gen & KVM_MMIO_GEN_MASK) &&
         !(gen & KVM_GEN_IN_PROGRESS) && (!p->write || (e & X86_PTE_W)) && (!p->user || (e & X86_PTE_U)) &&
         !(m->smap && !p->user && (e & X86_PTE_U) && !smap_exempt) && !m->pke;
    if (ok) {
        p->walk.gfn = kvm_spte_mmio_gfn(e);
        KVM_SHADOW_COUNT(&p->sh->counters.mmio);
        grant(p, true);
    }
    pthread_rwlock_unlock(&p->sh->vm->mmu.lock);
    return ok;
}

static int serve(struct page_fault *p)
{
    bool done;
    int r = kvm_shadow_top_up(p->v);

    if (r < 0) {
        return r;
    }
    switch (kvm_guest_walk(p->v, &p->walk)) {
    case KVM_WALK_GUEST_FAULT:
        return guests_fault(p);
    case KVM_WALK_ERROR:
        return p->walk.error == -EAGAIN ? KVM_GO_ON : p->walk.error;
    case KVM_WALK_OK:
        break;
    }
    r = find_page(p, &done);
    if (done) {
        return r;
    }
    if (!p->slot && p->fetch) {
        return fetch_outside_memory(p);
    }
    judge_access(p);
    return map(p);
}

/*
 * Serve CPU_EXIT_PAGE_FAULT. KVM_GO_ON, KVM_LEAVE, or -errno of the host's memory.
 * Lock: vcpu->lock, in the read section; takes mmu.lock. Source: KVM's FNAME(page_fault)().
 */
int kvm_shadow_page_fault(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    bool exempt = e->pf.priv == CPU_PRIV_SUPER_AC;
    struct page_fault p = {
        .v = v, .sh = kvm_shadow(v->vm), .gva = e->pf.gva.v, .code = e->pf.code,
        .write = e->pf.code & X86_PFEC_W, .fetch = e->pf.code & X86_PFEC_F, .user = e->pf.priv == CPU_PRIV_USER,
    };
    int r;

    KVM_COUNT(&v->counters.faults);
    if (!v->cpu->shadow.root) {
        return KVM_GO_ON; /* loaded before the guest goes on */
    }
    p.walk.mode = &v->shadow->mode;
    p.walk.la = p.gva;
    p.walk.write = p.write;
    p.walk.fetch = p.fetch;
    p.walk.user = p.user;
    p.walk.smap_exempt = exempt;
    if (mmio_fast(&p, exempt)) {
        return KVM_GO_ON;
    }
    r = serve(&p);
    if (r < 0) {
        KVM_COUNT(&v->counters.faults_error);
        kvm_log(v->vm->s, 4, "vm %u vcpu %u: memory at gva 0x%llx: error %d", v->vm->number, v->id,
                (unsigned long long)p.gva, -r);
    }
    TRACE(&v->vm->s->trace, shadow_fault, "gva %llx code %llx result %llx", p.gva, p.code, (uint64_t)(int64_t)r);
    return r;
}
