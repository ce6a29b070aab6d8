/*
 * Serving an EPT violation, as a list of stages over one struct:
 *
 *   slot -> fast path -> tables in hand -> host page -> lock -> stale? -> level -> map
 *
 * Invariants
 *  1. Nothing is mapped from a host page resolved before an invalidation that has ended or still runs
 *     over its address (the sequence count decides, under mmu.lock).
 *  2. A writable leaf in a logging slot has its dirty bit set before mmu.lock is let go.
 *  3. A huge leaf lies wholly in its slot, with guest and host frame numbers congruent.
 *
 * Locks: mmu.lock shared around changes; the host page is resolved with no lock. Runs in the vCPU's
 * read section, so the slot stays. The fast path and the prefetch of neighbours are in mmu_fast.c.
 * Differs from KVM: a table is never replaced by a huge leaf here; what makes huge pages possible again
 * (collapse, the end of logging, the NX worker) removes or replaces the table itself.
 */
#include "softkvm/mmu_fault.h"

#include <errno.h>
#include <sched.h>

#include "host/buddy.h"
#include "softkvm/attributes.h"
#include "softkvm/gmem.h"
#include "softkvm/lpage.h"

/* Tables enough for the longest way down plus a split. */
static int top_up(struct kvm_fault *f)
{
    struct kvm_table_cache *c = &f->v->tables;

    while (c->count < f->vm->mmu.levels + 1) {
        int r = host_table_alloc(f->vm->s->hm, HOST_FRAME_TABLE, &c->table[c->count]);

        if (r < 0) {
            return r;
        }
        c->count++;
    }
    return 0;
}

/* ---- walking down under the shared lock ---- */

/* Is a table at `level` here only because code must not run from huge leaves? */
static bool is_given_up(const struct kvm_fault *f, unsigned level)
{
    return f->level < f->goal && level <= f->goal;
}

/* Link a new table at e, or split the huge leaf there into one. False: somebody was faster (look again). */
static bool link_table(struct kvm_fault *f, uint64_t *e, unsigned level, uint64_t old)
{
    struct kvm_table_cache *c = &f->v->tables;
    hpa_t table = c->table[c->count - 1];
    bool nx = is_given_up(f, level);

    check(c->count > 0);
    if (kvm_pte_is_page(old, level)
            ? !kvm_pte_split(f->vm, e, level, old, table, nx)
            : !kvm_pte_exchange(f->vm, e, level, old,
                                f->vm->mmu.fmt->table | table.v | (nx ? KVM_PTE_NX_SPLIT : 0))) {
        return false;
    }
    c->count--;
    f->relinked = true;
    if (nx) {
        KVM_COUNT(&f->v->counters.nx_splits);
    }
    return true;
}

/*
 * Go down to the entry at f->level, making tables on the way. Where a table stands at f->level, the
 * level is lowered: a table is never replaced by a huge leaf here.
 */
static uint64_t *walk_to_level(struct kvm_fault *f)
{
    hpa_t table = f->vm->mmu.root;
    unsigned level = f->vm->mmu.levels;

    for (;;) {
        uint64_t *e = kvm_pte_slot(f->vm, table, f->gfn, level);
        uint64_t old = kvm_pte_load(e);

        if (level == f->level) {
            if (!kvm_pte_is_table(old, level)) {
                return e;
            }
            f->level--;
        } else if (!kvm_pte_is_table(old, level)) {
            if (!link_table(f, e, level, old)) {
                continue;
            }
            old = kvm_pte_load(e);
        }
        table = hpa(old & EPT_ADDR_MASK);
        level--;
    }
}

/* ---- stages ---- */

/* An MMIO entry for an address that no slot has. */
static enum kvm_fault_result map_mmio(struct kvm_fault *f, uint64_t gen)
{
    uint64_t *e, old;

    if (gen & KVM_GEN_IN_PROGRESS) {
        return KVM_FAULT_RETRY;
    }
    f->error = top_up(f);
    if (f->error < 0) {
        return KVM_FAULT_ERROR;
    }
    f->level = f->goal = 1;
    pthread_rwlock_rdlock(&f->vm->mmu.lock);
    e = walk_to_level(f);
    old = kvm_pte_load(e);
    /* A page here belongs to a slot that has come since: the lookup is stale, not the entry. */
    if ((!kvm_pte_in_use(old) || kvm_pte_is_mmio(f->vm->mmu.fmt, old)) &&
        kvm_pte_exchange(f->vm, e, 1, old, kvm_pte_mmio(f->vm->mmu.fmt, f->gfn, gen))) {
        KVM_COUNT(&f->v->counters.mapped[0]);
        TRACE(&f->vm->s->trace, access_mmio_entry, "gfn %llx generation %llx", f->gfn.v, gen);
    }
    pthread_rwlock_unlock(&f->vm->mmu.lock);
    return KVM_FAULT_EMULATE;
}

/* The exit tells user space which half was meant. */
static enum kvm_fault_result private_error(struct kvm_fault *f, int error)
{
    f->v->fault_private = f->is_private;
    f->error = error;
    return KVM_FAULT_ERROR;
}

/*
 * Private memory wants a slot that can be private. Where a bit of the address says which half the guest
 * means, the page's attribute must say the same, but for devices, which are always shared.
 */
static bool is_half_right(struct kvm_fault *f)
{
    bool is_private = kvm_page_is_private(f->vm, f->frame);

    f->is_private = kvm_vm_has_shared_bit(f->vm) ? !(f->gfn.v & KVM_SHARED_GFN_BIT) : is_private;
    if (f->is_private) {
        return is_private && f->slot && (f->slot->gmem || (f->slot->flags & KVM_SLOT_INVALID));
    }
    return !f->slot || !is_private;
}

static enum kvm_fault_result find_slot(struct kvm_fault *f)
{
    uint64_t gen = atomic_load(&f->vm->slots.generation);

    f->inv_seq = atomic_load(&f->vm->mmu.inv_seq);
    f->slot = kvm_slots_find_vcpu(f->v, f->frame);
    if (unlikely(f->vm->attrs) && !is_half_right(f)) {
        return private_error(f, -EFAULT);
    }
    if (!f->slot) {
        return map_mmio(f, gen);
    }
    if (f->slot->flags & KVM_SLOT_INVALID) {
        return KVM_FAULT_RETRY;
    }
    if (kvm_fault_is_write(f) && (f->slot->flags & KVM_MEM_READONLY)) {
        return KVM_FAULT_WRITE_RO;
    }
    f->half = kvm_slot_half(f->vm, f->slot, f->gfn);
    if (unlikely(f->half != f->slot) && !kvm_gmem_is_open(f->slot->gmem)) {
        return private_error(f, -EFAULT);
    }
    f->hva = kvm_slot_hva(f->half, f->frame);
    TRACE(&f->vm->s->trace, access_slot, "gfn %llx slot %llu hva %llx", f->gfn.v, f->slot->id,
          f->hva.v);
    return KVM_FAULT_FIXED;
}

/* Resolve the host page. inv_seq was read first: what has moved since is seen by is_stale(). */
static enum kvm_fault_result find_page(struct kvm_fault *f)
{
    int r = host_gup(f->vm->s->mm, f->hva, kvm_fault_is_write(f) ? HOST_FAULT_WRITE : 0, &f->page);

    if (r == -EFAULT && host_follow_pfn(f->vm->s->mm, f->hva, kvm_fault_is_write(f) ? HOST_FAULT_WRITE : 0,
                                        &f->page) == 0) {
        r = 0; /* device memory: a frame that is named but not counted */
    }
    if (r == -EBUSY) {
        sched_yield(); /* a userfault: until its handler has answered, or this vCPU is wanted elsewhere */
    }
    if (r == -EAGAIN || r == -EBUSY) {
        return KVM_FAULT_RETRY;
    }
    f->error = r;
    return r < 0 ? KVM_FAULT_ERROR : KVM_FAULT_FIXED;
}

/* Lock: mmu.lock, which the invalidation's start and end take. */
static bool is_stale(const struct kvm_fault *f)
{
    const struct kvm_mmu *mmu = &f->vm->mmu;

    if (atomic_load_explicit(&mmu->inv_count, memory_order_relaxed) &&
        f->hva.v >= mmu->inv_start && f->hva.v < mmu->inv_end) {
        return true;
    }
    return atomic_load_explicit(&mmu->inv_seq, memory_order_relaxed) != f->inv_seq;
}

/* Lock: mmu.lock. */
static bool level_fits(const struct kvm_fault *f, unsigned level)
{
    uint64_t pages = pt_leaf_size(level) >> PAGE_SHIFT;

    return kvm_lpage_allowed(f->half, f->frame, level) &&
           !((f->frame.v ^ f->page.pfn.v) & (pages - 1)) &&
           kvm_pages_are_alike(f->vm, gfn(f->frame.v & ~(pages - 1)), pages);
}

/*
 * The largest page that all rules allow: the host's own, the slot's (edges, congruence, watched guest tables,
 * attributes), no dirty logging, frames congruent. Code under the NX mitigation gets small ones.
 */
static void choose_level(struct kvm_fault *f)
{
    unsigned level = kvm_slot_is_logged(f->slot) ? 1 : f->page.level;

    if (level > f->vm->mmu.max_level) {
        level = f->vm->mmu.max_level;
    }
    while (level > 1 && !level_fits(f, level)) {
        level--;
    }
    f->goal = level;
    f->level = f->vm->mmu.nx_huge && (f->access & EPT_VIOL_FETCH) ? 1 : level;
}

/* See mmu_fault.h. In a logging slot a leaf is write-protected until the first write: a read must not count as
 * one; or writable but clean, when the processor logs what it makes dirty. */
uint64_t kvm_fault_leaf(const struct kvm_fault *f, const struct host_page *page, unsigned level, bool write)
{
    const struct kvm_mmu *mmu = &f->vm->mmu;
    const struct kvm_pte_format *fmt = mmu->fmt;
    uint64_t pages = pt_leaf_size(level) >> PAGE_SHIFT;
    uint64_t e = (page->pfn.v & ~(pages - 1)) << PAGE_SHIFT | fmt->read | fmt->accessed;

    e |= page->counted ? fmt->memory : fmt->uncached;
    e |= level > 1 && mmu->nx_huge ? fmt->no_exec : fmt->exec;
    e |= level > 1 ? EPT_PS : 0;
    if (page->writable) {
        e |= fmt->host_w;
        if (!(f->slot->flags & KVM_MEM_READONLY)) {
            e |= fmt->mmu_w;
            if (!kvm_slot_is_logged(f->slot) || write) {
                e |= KVM_PTE_W | fmt->dirty;
            } else if (mmu->pml) {
                e |= KVM_PTE_W;
            }
        }
    }
    return e;
}

/* Put the leaf in place. Lock: shared. */
static enum kvm_fault_result map_leaf(struct kvm_fault *f)
{
    uint64_t *e, old, new;

    choose_level(f);
    e = walk_to_level(f);
    old = kvm_pte_load(e);
    new = kvm_fault_leaf(f, &f->page, f->level, kvm_fault_is_write(f));
    if (kvm_pte_is_page(old, f->level)) {
        if ((old ^ new) & EPT_ADDR_MASK) {
            return KVM_FAULT_ERROR; /* the caller removes it; error is 0 */
        }
        if (kvm_pte_allows(f->vm->mmu.fmt, old, f->access)) {
            return f->relinked ? KVM_FAULT_FIXED : KVM_FAULT_SPURIOUS;
        }
        new |= old & (KVM_PTE_W | f->vm->mmu.fmt->dirty);
    }
    if (!kvm_pte_exchange(f->vm, e, f->level, old, new)) {
        return KVM_FAULT_RETRY;
    }
    if ((new & KVM_PTE_W) && (new & f->vm->mmu.fmt->dirty) == f->vm->mmu.fmt->dirty) {
        kvm_slot_mark_dirty(f->v, f->slot, f->frame);
    }
    kvm_fault_prefetch(f, e);
    KVM_COUNT(&f->v->counters.mapped[f->level]);
    TRACE(&f->vm->s->trace, access_map, "gfn %llx pfn %llx level %llu writable %llu", f->gfn.v,
          f->page.pfn.v, f->level, (new & KVM_PTE_W) != 0);
    return KVM_FAULT_FIXED;
}

static enum kvm_fault_result map_page(struct kvm_fault *f)
{
    enum kvm_fault_result r = KVM_FAULT_RETRY;

    f->error = top_up(f);
    if (f->error < 0) {
        return KVM_FAULT_ERROR;
    }
    pthread_rwlock_rdlock(&f->vm->mmu.lock);
    if (!is_stale(f)) {
        r = map_leaf(f);
    }
    pthread_rwlock_unlock(&f->vm->mmu.lock);
    if (r == KVM_FAULT_ERROR && f->error == 0) {
        /* An entry names another frame than the host does: it goes first, by the exclusive way. */
        kvm_mmu_zap_range(f->vm, f->gfn, 1);
        r = KVM_FAULT_RETRY;
    }
    return r;
}

static enum kvm_fault_result serve(struct kvm_fault *f)
{
    enum kvm_fault_result r = find_slot(f);

    if (r != KVM_FAULT_FIXED) {
        return r;
    }
    r = kvm_fault_fast(f);
    if (r != KVM_FAULT_RETRY) {
        return r;
    }
    r = find_page(f);
    return r == KVM_FAULT_FIXED ? map_page(f) : r;
}

static void count_result(struct kvm_vcpu *v, enum kvm_fault_result r)
{
    uint64_t *const counter[] = {
        [KVM_FAULT_FIXED] = &v->counters.faults_fixed,
        [KVM_FAULT_SPURIOUS] = &v->counters.faults_spurious,
        [KVM_FAULT_RETRY] = &v->counters.faults_retry,
        [KVM_FAULT_EMULATE] = &v->counters.faults_mmio,
        [KVM_FAULT_WRITE_RO] = &v->counters.faults_ro,
        [KVM_FAULT_ERROR] = &v->counters.faults_error,
    };

    KVM_COUNT(&v->counters.faults);
    KVM_COUNT(counter[r]);
}

/*
 * Serve one EPT violation. addr: what was accessed; qualification: EPT_VIOL_* as the processor gave
 * it. *error: -EFAULT, -ENOMEM or -EHWPOISON with KVM_FAULT_ERROR. Lock: takes mmu.lock; in the vCPU's
 * read section. Source: KVM's kvm_tdp_page_fault().
 */
enum kvm_fault_result kvm_mmu_fault(struct kvm_vcpu *v, gpa_t addr, uint32_t qualification, int *error)
{
    struct kvm_fault f = {
        .v = v,
        .vm = v->vm,
        .gfn = gpa_to_gfn(addr),
        .frame = kvm_slot_frame(v->vm, gpa_to_gfn(addr)),
        .access = qualification & (EPT_VIOL_READ | EPT_VIOL_WRITE | EPT_VIOL_FETCH),
    };
    enum kvm_fault_result r;

    v->fault_private = false;
    r = serve(&f);

    *error = f.error;
    count_result(v, r);
    TRACE(&v->vm->s->trace, access_fault_served, "gpa %llx access %llx slot %llx result %llx", addr.v,
          f.access, f.slot ? f.slot->id : ~0ull, r);
    return r;
}

/*
 * Is the MMIO entry that the processor met current? It is not after any change of slots: the address
 * may be memory now. Lock: takes mmu.lock shared unless the last answer is still good.
 */
bool kvm_mmu_mmio_is_fresh(struct kvm_vcpu *v, gpa_t addr)
{
    uint64_t gen = atomic_load(&v->vm->slots.generation);
    gfn_t f = gpa_to_gfn(addr);
    unsigned level;
    uint64_t e;

    if (v->mmio_gfn == f.v && v->mmio_gen == gen) {
        return true;
    }
    pthread_rwlock_rdlock(&v->vm->mmu.lock);
    e = kvm_pte_load(kvm_pte_find_leaf(v->vm, f, &level));
    pthread_rwlock_unlock(&v->vm->mmu.lock);
    if ((gen & KVM_GEN_IN_PROGRESS) || level != 1 || !kvm_pte_is_mmio(v->vm->mmu.fmt, e) ||
        kvm_pte_mmio_generation(e) != (gen & KVM_MMIO_GEN_MASK)) {
        KVM_COUNT(&v->counters.mmio_stale);
        return false;
    }
    v->mmio_gfn = f.v;
    v->mmio_gen = gen;
    return true;
}
