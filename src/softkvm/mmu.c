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

#include "arch/radix.h"
#include "host/buddy.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/vcpu.h"

/* Zap every leaf that touches [first, last] (frame numbers). Lock: exclusive. */
static void zap_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {first.v << PAGE_SHIFT,
                                     (last.v << PAGE_SHIFT) + PAGE_SIZE - 1, vm->mmu.levels, 1};

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        uint64_t span_last = it.addr + arch_span(it.fmt, it.level) - 1;

        if (!it.entry) {
            continue;
        }
        if (kvm_ept_is_table(it.entry, it.level) &&
            (it.addr < range.first || span_last > range.last)) {
            continue;
        }
        kvm_ept_set(vm, arch_radix_slot(&it), it.level, 0, dead);
        it.entry = 0;
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
    zap_locked(vm, first, gfn(first.v + npages - 1), &dead);
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_ept_finish(vm, &dead);
    TRACE(&vm->s->trace, slots_zap, "gfn %llx pages %llx", first.v, npages);
    atomic_fetch_add_explicit(&vm->counters.zapped_ranges, 1, memory_order_relaxed);
}

/*
 * Remove all MMIO entries: the generation in them has come round. Lock: takes mmu.lock.
 */
void kvm_mmu_zap_mmio(struct kvm_vm *vm)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};
    struct kvm_dead_tables dead = {0};

    pthread_rwlock_wrlock(&vm->mmu.lock);
    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (it.level == 1 && kvm_ept_is_mmio(it.entry)) {
            kvm_ept_set(vm, arch_radix_slot(&it), 1, 0, &dead);
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_ept_finish(vm, &dead);
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
    zap_locked(w->vm, first, last, &w->dead);
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
    kvm_ept_finish(vm, &w.dead);
    TRACE(&vm->s->trace, invalidate_start, "hva %llx end %llx event %llu", range->start.v,
          range->end.v, range->event);
    atomic_fetch_add_explicit(&vm->counters.invalidations, 1, memory_order_relaxed);
}

static void invalidate_end(struct host_notifier *n, const struct host_mmu_range *range)
{
    struct kvm_mmu *mmu = &notifier_vm(n)->mmu;

    pthread_rwlock_wrlock(&mmu->lock);
    atomic_fetch_add(&mmu->inv_seq, 1);
    atomic_fetch_sub(&mmu->inv_count, 1);
    pthread_rwlock_unlock(&mmu->lock);
}

struct age_work {
    struct kvm_vm *vm;
    const struct host_mmu_range *range;
    bool clear, young;
};

static void age_slot_part(void *opaque, struct kvm_memslot *slot)
{
    struct age_work *w = opaque;
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = w->vm->s->hm};
    struct arch_radix_range r = {0, 0, w->vm->mmu.levels, 1};
    gfn_t first, last;

    slot_span(slot, w->range, &first, &last);
    r.first = first.v << PAGE_SHIFT;
    r.last = (last.v << PAGE_SHIFT) + PAGE_SIZE - 1;
    arch_radix_for_each (&it, &arch_formats[w->vm->mmu.format], w->vm->mmu.root.v, r) {
        if (!kvm_ept_is_page(it.entry, it.level) || !(it.entry & EPT_A)) {
            continue;
        }
        w->young = true;
        if (w->clear) {
            __atomic_fetch_and(arch_radix_slot(&it), ~EPT_A, __ATOMIC_RELAXED);
        }
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
    struct kvm_vm *vm = notifier_vm(n);
    uint64_t pages = UINT64_C(1) << (pt_level_shift(vm->mmu.levels) + PT_LEVEL_BITS - PAGE_SHIFT);

    kvm_mmu_zap_range(vm, gfn(0), pages);
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
    pthread_rwlockattr_destroy(&attr);
    return -r;
}

/*
 * The root table, and the ear to the host. Returns 0 or -ENOMEM; kvm_mmu_fini() is right after either.
 */
int kvm_mmu_init(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;
    int r = init_lock(&mmu->lock);

    if (r < 0) {
        return r;
    }
    mmu->format = ARCH_FMT_EPT;
    mmu->levels = vm->s->options.ept_levels ? vm->s->options.ept_levels : 4;
    mmu->max_level = vm->s->max_page_level;
    r = host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &mmu->root);
    if (r < 0) {
        mmu->root = hpa(0);
        return r;
    }
    mmu->eptp = mmu->root.v | EPTP_MT_WB | EPTP_LEVEL(mmu->levels) | EPTP_AD;
    mmu->notifier.ops = &notifier_ops;
    host_notifier_register(vm->s->mm, &mmu->notifier);
    mmu->notifier_registered = true;
    return 0;
}

/*
 * Free all tables. No vCPU runs any more.
 */
void kvm_mmu_fini(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;

    if (mmu->notifier_registered) {
        host_notifier_unregister(vm->s->mm, &mmu->notifier);
        release(&mmu->notifier);
    }
    if (mmu->root.v) {
        host_table_free(vm->s->hm, mmu->root);
    }
    pthread_rwlock_destroy(&mmu->lock);
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
