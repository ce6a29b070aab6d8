/*
 * Huge leaves taken apart and put together again, outside of faults.
 *
 *   logging goes on   kvm_tdp_split_range     1G -> 2M -> 4K, tables at hand, lock let go when they run out
 *   logging goes off  kvm_tdp_recover_huge    a table whose pages the host maps as one becomes a leaf, in place
 *   NX mitigation     kvm_mmu_nx_recover      tables made for execution are dropped, a part each period
 *
 * Locks: mmu.lock, exclusive.
 */
#include <errno.h>

#include "arch/radix.h"
#include "host/buddy.h"
#include "softkvm/lpage.h"
#include "softkvm/mmu_fault.h"

/* ---- splitting ---- */

/* The first of the small leaves under a huge one. Code may run from 4 KiB again. */
static uint64_t first_child(const struct kvm_mmu *mmu, uint64_t huge, unsigned level)
{
    const struct kvm_pte_format *fmt = mmu->fmt;
    uint64_t child = level == 2 ? huge & ~EPT_PS : huge;

    if (level == 2 && mmu->nx_huge) {
        child |= kvm_pte_is_tracked(fmt, huge) ? fmt->exec << fmt->track_shift : fmt->exec;
        child &= ~fmt->no_exec;
    }
    return child;
}

bool kvm_pte_split(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, hpa_t table, bool nx)
{
    uint64_t *t = host_table_at(vm->s->hm, table), child = first_child(&vm->mmu, old, level);

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        __atomic_store_n(&t[i], child + i * pt_leaf_size(level - 1), __ATOMIC_RELAXED);
    }
    if (!kvm_pte_exchange(vm, e, level, old, vm->mmu.fmt->table | table.v | (nx ? KVM_PTE_NX_SPLIT : 0))) {
        for (unsigned i = 0; i < PT_ENTRIES; i++) {
            __atomic_store_n(&t[i], 0, __ATOMIC_RELAXED);
        }
        return false;
    }
    atomic_fetch_add_explicit(&vm->mmu.pages[level - 1], PT_ENTRIES, memory_order_relaxed);
    return true;
}

/* A pass over a range that splits as long as there are tables. True: the range is done. Lock: exclusive. */
static bool split_pass(struct kvm_vm *vm, uint64_t *from, uint64_t last, struct kvm_table_cache *c)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {*from, last, vm->mmu.levels, 2};

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        while (it.level > 1 && kvm_pte_is_page(it.entry, it.level)) {
            if (!c->count) {
                *from = it.resume;
                return false;
            }
            if (kvm_pte_split(vm, arch_radix_slot(&it), it.level, it.entry, c->table[c->count - 1], false)) {
                c->count--;
                atomic_fetch_add_explicit(&vm->counters.eager_splits, 1, memory_order_relaxed);
            }
            it.entry = kvm_pte_load(arch_radix_slot(&it)); /* a table now, which the walk goes into */
        }
    }
    return true;
}

/* Best effort: what is not split here is at the first write. Lock: takes mmu.lock, not all the time. */
void kvm_tdp_split_range(struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t first, gfn_t last)
{
    struct kvm_table_cache c = {.count = 0};
    uint64_t from = first.v << PAGE_SHIFT, end = (last.v << PAGE_SHIFT) + PAGE_SIZE - 1;
    bool done = false;

    while (!done && (atomic_load_explicit(&vm->mmu.pages[2], memory_order_relaxed) ||
                     atomic_load_explicit(&vm->mmu.pages[3], memory_order_relaxed))) {
        while (c.count < KVM_TABLE_CACHE &&
               host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &c.table[c.count]) == 0) {
            c.count++;
        }
        if (!c.count) {
            return;
        }
        pthread_rwlock_wrlock(&vm->mmu.lock);
        done = split_pass(vm, &from, end, &c);
        pthread_rwlock_unlock(&vm->mmu.lock);
    }
    kvm_mmu_cache_drain(vm, &c);
}

/* ---- putting together ---- */

/* The leaf that may stand for all that is under the table, from one of its entries; 0: none is a page. */
static uint64_t huge_of(struct kvm_vm *vm, uint64_t table, unsigned level)
{
    const struct kvm_mmu *mmu = &vm->mmu;
    const struct kvm_pte_format *fmt = mmu->fmt;
    const uint64_t *t = host_table_at(vm->s->hm, hpa(table & EPT_ADDR_MASK));

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t e = kvm_pte_load(&t[i]);

        if (!kvm_pte_is_page(e, level - 1)) {
            continue;
        }
        e = kvm_pte_untrack(fmt, e);
        e &= ~(EPT_ADDR_MASK & (pt_leaf_size(level) - 1));
        e |= EPT_PS | fmt->accessed | (e & fmt->mmu_w ? KVM_PTE_W | fmt->dirty : 0);
        return mmu->nx_huge ? (e & ~fmt->exec) | fmt->no_exec : e;
    }
    return 0;
}

/* Is an invalidation under way for a byte of [start, start + size)? Then the host's level means nothing. */
static bool is_changing(const struct kvm_mmu *mmu, hva_t start, uint64_t size)
{
    return atomic_load_explicit(&mmu->inv_count, memory_order_relaxed) && start.v < mmu->inv_end &&
           start.v + size > mmu->inv_start;
}

/* The table at e, of `level`, covers the region at f: may one leaf do the same? */
static bool can_be_huge(struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t f, unsigned level)
{
    hva_t at = kvm_slot_hva(slot, f);

    return level <= vm->mmu.max_level && kvm_lpage_allowed(slot, f, level) &&
           !is_changing(&vm->mmu, at, pt_leaf_size(level)) && host_mapping_level(vm->s->mm, at) >= level;
}

static bool recover_one(struct kvm_vm *vm, uint64_t *e, unsigned level, struct kvm_dead_tables *dead)
{
    uint64_t old = kvm_pte_load(e), huge = old & KVM_PTE_NX_SPLIT ? 0 : huge_of(vm, old, level);

    if (!huge) {
        return false;
    }
    kvm_pte_set(vm, e, level, huge, dead);
    atomic_fetch_add_explicit(&vm->counters.huge_recovered, 1, memory_order_relaxed);
    return true;
}

/*
 * The slot's tables of small pages become huge leaves where every rule allows; upper levels last, so that 1 GiB
 * can come of what became 2 MiB. Lock: exclusive; the caller flushes and frees. Source: KVM's recovery in place.
 */
void kvm_tdp_recover_huge(struct kvm_vm *vm, const struct kvm_memslot *slot, struct kvm_dead_tables *dead)
{
    uint64_t end = slot->base_gfn + slot->npages;

    for (unsigned level = 2; level <= vm->mmu.max_level; level++) {
        uint64_t pages = pt_leaf_size(level) >> PAGE_SHIFT;

        for (uint64_t f = (slot->base_gfn + pages - 1) & ~(pages - 1); f + pages <= end; f += pages) {
            uint64_t *e = kvm_pte_find(vm, gfn(f), level);

            if (e && kvm_pte_is_table(kvm_pte_load(e), level) && can_be_huge(vm, slot, gfn(f), level)) {
                recover_one(vm, e, level, dead);
            }
        }
    }
}

/* ---- the NX mitigation ---- */

/*
 * Lock: takes mmu.lock; flushes after. Source: KVM's nx_huge_page recovery worker; the order is that of
 * addresses, going on where the last call left off.
 */
unsigned kvm_mmu_nx_recover(struct kvm_vm *vm, unsigned max)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 2};
    struct kvm_dead_tables dead = {0};
    unsigned n = 0;

    pthread_rwlock_wrlock(&vm->mmu.lock);
    for (unsigned round = 0; round < 2 && n < max; round++) {
        range.first = round == 0 ? vm->mmu.nx_hand : 0;
        arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
            if (n == max) {
                vm->mmu.nx_hand = it.addr;
                break;
            }
            if (kvm_pte_is_table(it.entry, it.level) && (it.entry & KVM_PTE_NX_SPLIT)) {
                kvm_pte_set(vm, arch_radix_slot(&it), it.level, 0, &dead);
                it.entry = 0;
                n++;
            }
        }
    }
    pthread_rwlock_unlock(&vm->mmu.lock);
    kvm_mmu_finish(vm, &dead);
    atomic_fetch_add_explicit(&vm->counters.nx_recovered, n, memory_order_relaxed);
    return n;
}
