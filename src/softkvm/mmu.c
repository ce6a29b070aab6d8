/*
 * Life of the second stage, removal of mappings, and the invalidate protocol towards the host.
 *
 *   host changes its tables          a fault on the same address
 *   invalidate_start                 seq = inv_seq
 *     lock; count++, range; zap      resolve the host page (no lock)
 *     unlock; flush                  lock shared
 *   (host entries change)              count > 0 and in range, or inv_seq != seq: retry
 *   invalidate_end                     map
 *     lock; seq++, count--           unlock
 *
 * Invariant: after invalidate_start has returned no entry and no processor names a frame of the
 * range, and none will until invalidate_end.
 */
#include "softkvm/mmu.h"

#include <errno.h>
#include <sched.h>

#include "cpu/run.h"
#include "host/buddy.h"
#include "softkvm/mmu_nx.h"
#include "softkvm/mmu_walk.h"

/*
 * Zap [first, last] wherever the second stage has it: twice, where a bit of the address chooses the half. The caller
 * finishes `dead`. Lock: mmu.lock exclusive.
 */
void kvm_mmu_zap_frames_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead)
{
    vm->mmu.ops->zap_locked(vm, first, last, dead);
    if (unlikely(kvm_vm_has_shared_bit(vm))) {
        vm->mmu.ops->zap_locked(vm, gfn(first.v | KVM_SHARED_GFN_BIT), gfn(last.v | KVM_SHARED_GFN_BIT), dead);
    }
}

/*
 * Remove every leaf that maps a page of [first, first + npages); a huge leaf that reaches out goes
 * whole. When it returns no processor uses one. Lock: takes mmu.lock; flushes outside of it.
 */
void kvm_mmu_zap_range(struct kvm_vm *vm, gfn_t first, uint64_t npages)
{
    struct kvm_dead_tables dead = {0};

    pthread_rwlock_wrlock(&vm->mmu.lock);
    kvm_mmu_zap_frames_locked(vm, first, gfn(first.v + npages - 1), &dead);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_finish(vm, &dead);
    TRACE(&vm->s->trace, slots_zap, "gfn %llx pages %llx", first.v, npages);
    atomic_fetch_add_explicit(&vm->counters.zapped_ranges, 1, memory_order_relaxed);
}

/*
 * Remove all MMIO entries: the generation in them has come round. Lock: takes mmu.lock.
 */
void kvm_mmu_zap_mmio(struct kvm_vm *vm)
{
    struct kvm_dead_tables dead = {0};

    pthread_rwlock_wrlock(&vm->mmu.lock);
    vm->mmu.ops->zap_mmio_locked(vm, &dead);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_finish(vm, &dead);
}

/*
 * Split huge leaves of pages first .. first + npages - 1 of the slot, unless that is left to the first write. Lock:
 * takes mmu.lock now and then.
 */
void kvm_mmu_split_slot(struct kvm_vm *vm, const struct kvm_memslot *slot, uint64_t first, uint64_t npages)
{
    if (vm->mmu.eager_split && vm->mmu.ops->split_range && npages) {
        TRACE(&vm->s->trace, dirty_split, "slot %llu first %llx pages %llx", slot->id, first, npages);
        vm->mmu.ops->split_range(vm, slot, gfn(slot->base_gfn + first),
                                 gfn(slot->base_gfn + first + npages - 1));
    }
}

/*
 * Write-protect all of a slot whose logging has just gone on. Lock: takes mmu.lock; flushes after.
 */
void kvm_mmu_protect_slot(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    bool flush;

    kvm_mmu_split_slot(vm, slot, 0, slot->npages);
    TRACE(&vm->s->trace, dirty_protect_slot, "slot %llu pages %llx", slot->id, slot->npages);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    flush = vm->mmu.ops->protect_slot_locked(vm, slot);
    pthread_rwlock_unlock(&vm->mmu.lock);
    if (flush) {
        kvm_mmu_flush(vm);
    }
}

/*
 * Write-protect the pages slot->base_gfn + offset + i for every bit i of mask. Lock: exclusive, by the
 * caller. Returns true if a processor may still hold a writable translation.
 */
bool kvm_mmu_protect_mask_locked(struct kvm_vm *vm, struct kvm_memslot *slot, uint64_t offset,
                                 uint64_t mask)
{
    return mask && vm->mmu.ops->protect_mask_locked(vm, slot, offset, mask);
}

/*
 * Logging has gone off: huge pages may come back. Lock: takes mmu.lock; flushes after.
 */
void kvm_mmu_recover_huge(struct kvm_vm *vm, struct kvm_memslot *slot)
{
    struct kvm_dead_tables dead = {0};

    TRACE(&vm->s->trace, dirty_recover_huge, "slot %llu", slot->id);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    vm->mmu.ops->recover_huge_locked(vm, slot, &dead);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_finish(vm, &dead);
}

/* ---- notifiers ---- */

struct zap_work {
    struct kvm_vm *vm;
    const struct host_mmu_range *range;
    struct kvm_dead_tables dead;
};

static struct kvm_vm *notifier_vm(struct host_notifier *n)
{
    return container_of(n, struct kvm_vm, mmu.notifier);
}

/* The guest frames of a slot that lie at [start, end) of the process. */
static void slot_span(const struct kvm_memslot *s, const struct host_mmu_range *r, gfn_t *first,
                      gfn_t *last)
{
    uint64_t lo = r->start.v > s->hva ? r->start.v : s->hva;
    uint64_t end = s->hva + (s->npages << PAGE_SHIFT);
    uint64_t hi = r->end.v < end ? r->end.v : end;

    *first = gfn(s->base_gfn + ((lo - s->hva) >> PAGE_SHIFT));
    *last = gfn(s->base_gfn + ((hi - 1 - s->hva) >> PAGE_SHIFT));
}

static void zap_slot_part(void *opaque, struct kvm_memslot *slot)
{
    struct zap_work *w = opaque;
    gfn_t first, last;

    slot_span(slot, w->range, &first, &last);
    kvm_mmu_zap_frames_locked(w->vm, first, last, &w->dead);
}

static void invalidate_start(struct host_notifier *n, const struct host_mmu_range *range)
{
    struct kvm_vm *vm = notifier_vm(n);
    struct kvm_mmu *mmu = &vm->mmu;
    struct zap_work w = {.vm = vm, .range = range};

    pthread_rwlock_wrlock(&mmu->lock);
    if (atomic_fetch_add(&mmu->inv_count, 1) == 0) {
        mmu->inv_start = range->start.v;
        mmu->inv_end = range->end.v;
    } else {
        mmu->inv_start = range->start.v < mmu->inv_start ? range->start.v : mmu->inv_start;
        mmu->inv_end = range->end.v > mmu->inv_end ? range->end.v : mmu->inv_end;
    }
    kvm_slots_for_hva(kvm_slots_active(&vm->slots), range->start, range->end, zap_slot_part, &w);
    pthread_rwlock_unlock(&mmu->lock);
    TRACE(&vm->s->trace, invalidate_start, "hva %llx end %llx event %llu", range->start.v,
          range->end.v, range->event);
    kvm_mmu_finish(vm, &w.dead);
    atomic_fetch_add_explicit(&vm->counters.invalidations, 1, memory_order_relaxed);
}

static void invalidate_end(struct host_notifier *n, const struct host_mmu_range *range)
{
    struct kvm_mmu *mmu = &notifier_vm(n)->mmu;

    pthread_rwlock_wrlock(&mmu->lock);
    atomic_fetch_add(&mmu->inv_seq, 1);
    atomic_fetch_sub(&mmu->inv_count, 1);
    pthread_rwlock_unlock(&mmu->lock);
    TRACE(&notifier_vm(n)->s->trace, invalidate_end, "hva %llx end %llx", range->start.v, range->end.v);
}

struct age_work {
    struct kvm_vm *vm;
    const struct host_mmu_range *range;
    bool clear, young;
};

static void age_slot_part(void *opaque, struct kvm_memslot *slot)
{
    struct age_work *w = opaque;
    gfn_t first, last;

    slot_span(slot, w->range, &first, &last);
    w->young |= w->vm->mmu.ops->age_locked(w->vm, first, last, w->clear);
    if (unlikely(kvm_vm_has_shared_bit(w->vm))) {
        w->young |= w->vm->mmu.ops->age_locked(w->vm, gfn(first.v | KVM_SHARED_GFN_BIT),
                                               gfn(last.v | KVM_SHARED_GFN_BIT), w->clear);
    }
}

/* Aging tolerates a processor that still caches the old state: no flush. */
static bool age(struct host_notifier *n, const struct host_mmu_range *range, bool clear)
{
    struct age_work w = {notifier_vm(n), range, clear, false};

    pthread_rwlock_wrlock(&w.vm->mmu.lock);
    kvm_slots_for_hva(kvm_slots_active(&w.vm->slots), range->start, range->end, age_slot_part, &w);
    pthread_rwlock_unlock(&w.vm->mmu.lock);
    return w.young;
}

static bool clear_young(struct host_notifier *n, const struct host_mmu_range *range)
{
    return age(n, range, true);
}

static bool test_young(struct host_notifier *n, const struct host_mmu_range *range)
{
    return age(n, range, false);
}

static void release(struct host_notifier *n)
{
    kvm_mmu_zap_range(notifier_vm(n), gfn(0), UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT));
}

static const struct host_notifier_ops notifier_ops = {
    .invalidate_start = invalidate_start,
    .invalidate_end = invalidate_end,
    .clear_young = clear_young,
    .test_young = test_young,
    .release = release,
};

/* ---- life ---- */

static int init_lock(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;
    int r;

    pthread_rwlockattr_init(&attr);
    /* Faults come without end; a zap must not wait for all of them. */
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    r = pthread_rwlock_init(lock, &attr);
    base_lock_set_rank(lock, BASE_RANK_MMU);
    pthread_rwlockattr_destroy(&attr);
    return -r;
}

/* The ways that this build has. */
const struct kvm_mmu_ops *kvm_mmu_kind(int mmu)
{
    switch (mmu) {
    case SOFTKVM_MMU_EPT:
    case SOFTKVM_MMU_NPT:
        return &kvm_mmu_tdp;
    case SOFTKVM_MMU_SHADOW:
        return &kvm_mmu_shadow;
    default:
        return NULL;
    }
}

/*
 * The kind's tables, and the ear to the host. Returns 0, -ENOMEM, or -EOPNOTSUPP for a kind that this
 * build does not have; kvm_mmu_fini() is right after any.
 */
int kvm_mmu_init(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;
    int r = init_lock(&mmu->lock);

    if (r < 0) {
        return r;
    }
    mmu->ops = kvm_mmu_kind(vm->s->options.mmu);
    if (!mmu->ops) {
        return -EOPNOTSUPP;
    }
    mmu->max_level = vm->s->max_page_level;
    r = mmu->ops->init(vm);
    if (r < 0) {
        return r;
    }
    mmu->notifier.ops = &notifier_ops;
    host_notifier_register(vm->s->mm, &mmu->notifier);
    mmu->notifier_registered = true;
    return 0;
}

/*
 * Let the host's pages go. No vCPU runs any more.
 */
void kvm_mmu_stop(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;

    kvm_nx_stop(vm);
    if (mmu->notifier_registered) {
        host_notifier_unregister(vm->s->mm, &mmu->notifier);
        mmu->notifier_registered = false;
        release(&mmu->notifier);
    }
}

/*
 * Free what is left. After kvm_mmu_stop(), and after the last vCPU.
 */
void kvm_mmu_fini(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;

    if (mmu->ops) {
        mmu->ops->fini(vm);
    }
    pthread_rwlock_destroy(&mmu->lock);
}

/*
 * A new vCPU. Returns 0 or -ENOMEM; kvm_mmu_vcpu_fini() is right after either.
 */
int kvm_mmu_vcpu_init(struct kvm_vcpu *v)
{
    const struct kvm_mmu_ops *ops = v->vm->mmu.ops;
    int r = ops->vcpu_init ? ops->vcpu_init(v) : 0;

    if (r == 0) {
        ops->load(v);
    }
    return r;
}

void kvm_mmu_vcpu_fini(struct kvm_vcpu *v)
{
    const struct kvm_mmu_ops *ops = v->vm->mmu.ops;

    if (ops && ops->vcpu_fini) {
        ops->vcpu_fini(v);
    }
    kvm_mmu_cache_drain(v->vm, &v->tables);
}

/*
 * Give back the tables that a vCPU holds in reserve.
 */
void kvm_mmu_cache_drain(struct kvm_vm *vm, struct kvm_table_cache *c)
{
    while (c->count) {
        host_table_free(vm->s->hm, c->table[--c->count]);
    }
}

/* ---- flushing ---- */

/*
 * All processors drop their translations; when it returns none uses an old one. Lock: none that a
 * processor in guest mode takes may be held.
 */
void kvm_mmu_flush(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    TRACE(&vm->s->trace, mmu_flush, "processors %llu", kvm_vm_nr_vcpus(vm));
    atomic_fetch_add_explicit(&vm->counters.remote_flushes, 1, memory_order_relaxed);
    kvm_for_each_vcpu (i, v, vm) {
        cpu_request_flush(v->cpu);
    }
    kvm_for_each_vcpu (i, v, vm) {
        cpu_request_flush_wait(v->cpu);
    }
}

void kvm_walkers_wait(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    atomic_thread_fence(memory_order_seq_cst);
    kvm_for_each_vcpu (i, v, vm) {
        uint32_t seen = atomic_load_explicit(&v->walk, memory_order_seq_cst);

        while ((seen & 1) && atomic_load_explicit(&v->walk, memory_order_acquire) == seen) {
            sched_yield();
        }
    }
}

void kvm_walkers_stop(struct kvm_vm *vm)
{
    atomic_store_explicit(&vm->mmu.quiet, true, memory_order_seq_cst);
    kvm_walkers_wait(vm);
}

void kvm_walkers_start(struct kvm_vm *vm)
{
    atomic_store_explicit(&vm->mmu.quiet, false, memory_order_release);
}

/*
 * Flush if something cached may be wrong, then free the tables on `dead`. Lock: as kvm_mmu_flush().
 */
void kvm_mmu_finish(struct kvm_vm *vm, struct kvm_dead_tables *dead)
{
    if (dead->flush) {
        kvm_mmu_flush(vm);
        dead->flush = false;
    }
    if (dead->first) {
        kvm_walkers_wait(vm);
    }
    while (dead->first) {
        struct host_frame *frame = &vm->s->hm->frames[dead->first];
        hpa_t table = pfn_to_hpa(pfn(dead->first));

        dead->first = __atomic_load_n(&frame->link, __ATOMIC_RELAXED);
        __atomic_store_n(&frame->link, 0, __ATOMIC_RELAXED);
        host_table_free(vm->s->hm, table);
    }
}
