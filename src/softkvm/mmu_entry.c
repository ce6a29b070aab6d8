/*
 * The one funnel through which second-stage entries change: it keeps the counts of leaves and
 * tables, notes when processors must flush, and takes whole subtrees apart.
 *
 * Invariants
 *  1. mmu.pages[level] is the number of leaves of that level reachable from the root ([0]: MMIO).
 *  2. A table is freed only after every processor has dropped translations made before the unlink.
 *  3. The frame of a present page changes only by way of not present.
 */
#include "softkvm/mmu_entry.h"

#include "host/buddy.h"
#include "softkvm/vcpu.h"

/* Which count an entry is in: 0 MMIO, 1..3 pages, -1 none. */
static int entry_class(uint64_t e, unsigned level)
{
    if (kvm_ept_is_page(e, level)) {
        return (int)level;
    }
    return level == 1 && kvm_ept_is_mmio(e) ? 0 : -1;
}

static void account(struct kvm_mmu *mmu, unsigned level, uint64_t old, uint64_t new)
{
    int was = entry_class(old, level), is = entry_class(new, level);

    check(!(was > 0 && is > 0) || ((old ^ new) & EPT_ADDR_MASK) == 0);
    if (was == is) {
        return;
    }
    if (was >= 0) {
        atomic_fetch_sub_explicit(&mmu->pages[was], 1, memory_order_relaxed);
    }
    if (is >= 0) {
        atomic_fetch_add_explicit(&mmu->pages[is], 1, memory_order_relaxed);
    }
}

bool kvm_ept_exchange(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, uint64_t new)
{
    if (!__atomic_compare_exchange_n(e, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        return false;
    }
    account(&vm->mmu, level, old, new);
    if (kvm_ept_is_table(new, level)) {
        atomic_fetch_add_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    }
    return true;
}

uint64_t *kvm_ept_find_leaf(const struct kvm_vm *vm, gfn_t f, unsigned *level)
{
    hpa_t table = vm->mmu.root;

    for (*level = vm->mmu.levels;; --*level) {
        uint64_t *e = kvm_ept_slot(vm, table, f, *level);
        uint64_t v = kvm_ept_load(e);

        if (!kvm_ept_is_table(v, *level)) {
            return e;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
}

uint64_t *kvm_ept_find(const struct kvm_vm *vm, gfn_t f, unsigned level)
{
    hpa_t table = vm->mmu.root;

    for (unsigned at = vm->mmu.levels; at > level; at--) {
        uint64_t v = kvm_ept_load(kvm_ept_slot(vm, table, f, at));

        if (!kvm_ept_is_table(v, at)) {
            return NULL;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
    return kvm_ept_slot(vm, table, f, level);
}

/* Was something allowed by `old` that `new` does not allow, or could the fast path have allowed it? */
static bool needs_flush(uint64_t old, uint64_t new, unsigned level)
{
    if (!kvm_ept_is_present(old)) {
        return false;
    }
    if (kvm_ept_is_mmio(old)) {
        return false; /* processors do not cache misconfigurations */
    }
    if (kvm_ept_is_table(old, level)) {
        return true;
    }
    return (old & ~new & (EPT_RWX | KVM_EPT_MMU_W | EPT_A | EPT_D)) ||
           ((old ^ new) & EPT_ADDR_MASK);
}

/* Unlink everything below a table that nobody reaches any more. Depth: at most levels - 1. */
static void bury_table(struct kvm_vm *vm, hpa_t table, unsigned level, struct kvm_dead_tables *dead)
{
    uint64_t *e = host_table_at(vm->s->hm, table);
    struct host_frame *frame = &vm->s->hm->frames[hpa_to_pfn(table).v];

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t old = __atomic_load_n(&e[i], __ATOMIC_RELAXED);

        if (kvm_ept_is_table(old, level)) {
            bury_table(vm, hpa(old & EPT_ADDR_MASK), level - 1, dead);
        } else if (old) {
            account(&vm->mmu, level, old, 0);
        }
    }
    atomic_fetch_sub_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    __atomic_store_n(&frame->link, (uint32_t)dead->first, __ATOMIC_RELAXED);
    dead->first = table.v >> PAGE_SHIFT;
}

uint64_t kvm_ept_set(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t new,
                     struct kvm_dead_tables *dead)
{
    uint64_t old = __atomic_exchange_n(e, new, __ATOMIC_ACQ_REL);

    account(&vm->mmu, level, old, new);
    if (kvm_ept_is_table(new, level)) {
        atomic_fetch_add_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    }
    if (needs_flush(old, new, level)) {
        dead->flush = true;
    }
    if (kvm_ept_is_table(old, level)) {
        bury_table(vm, hpa(old & EPT_ADDR_MASK), level - 1, dead);
    }
    return old;
}

const void *kvm_ept_table_ptr(void *ctx, uint64_t addr, unsigned level)
{
    return host_table_at(ctx, hpa(addr));
}
