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

const struct kvm_pte_format kvm_pte_ept = {
    .id = ARCH_FMT_EPT,
    .read = EPT_R,
    .exec = EPT_X,
    .accessed = EPT_A,
    .dirty = EPT_D,
    .table = EPT_RWX | EPT_A | KVM_PTE_IN_USE,
    .memory = EPT_MT_WB | EPT_IPAT | KVM_PTE_IN_USE,
    .uncached = EPT_MT_UC | KVM_PTE_IN_USE,
    .host_w = UINT64_C(1) << 57,
    .mmu_w = UINT64_C(1) << 58,
    .mmio_mask = EPT_RWX,
    .mmio_value = EPT_W | EPT_X,
};

/* EPT without accessed and dirty bits. */
const struct kvm_pte_format kvm_pte_ept_no_ad = {
    .id = ARCH_FMT_EPT,
    .read = EPT_R,
    .exec = EPT_X,
    .table = EPT_RWX | KVM_PTE_IN_USE,
    .memory = EPT_MT_WB | EPT_IPAT | KVM_PTE_IN_USE,
    .uncached = EPT_MT_UC | KVM_PTE_IN_USE,
    .host_w = UINT64_C(1) << 57,
    .mmu_w = UINT64_C(1) << 58,
    .track = EPT_RWX,
    .track_shift = 54,
    .mmio_mask = EPT_RWX,
    .mmio_value = EPT_W | EPT_X,
};

const struct kvm_pte_format kvm_pte_npt = {
    .id = ARCH_FMT_NPT,
    .read = X86_PTE_P | X86_PTE_U,
    .no_exec = X86_PTE_NX,
    .accessed = X86_PTE_A,
    .dirty = X86_PTE_D,
    .table = X86_PTE_P | X86_PTE_W | X86_PTE_U | X86_PTE_A | KVM_PTE_IN_USE,
    .memory = X86_PTE_U | KVM_PTE_IN_USE,
    .uncached = X86_PTE_U | X86_PTE_PCD | X86_PTE_PWT | KVM_PTE_IN_USE,
    .host_w = UINT64_C(1) << 9,
    .mmu_w = UINT64_C(1) << 10,
    .mmio_mask = X86_PTE_P | UINT64_C(1) << 51,
    .mmio_value = X86_PTE_P | UINT64_C(1) << 51,
    .mmio_bits = X86_PTE_W | X86_PTE_U,
};

/* Which count an entry is in: 0 MMIO, 1..3 pages, -1 none. */
static int entry_class(const struct kvm_pte_format *fmt, uint64_t e, unsigned level)
{
    if (kvm_pte_is_page(e, level)) {
        return (int)level;
    }
    return level == 1 && kvm_pte_is_mmio(fmt, e) ? 0 : -1;
}

static bool is_nx_split(uint64_t e, unsigned level)
{
    return kvm_pte_is_table(e, level) && (e & KVM_PTE_NX_SPLIT);
}

static void account(struct kvm_mmu *mmu, unsigned level, uint64_t old, uint64_t new)
{
    int was = entry_class(mmu->fmt, old, level), is = entry_class(mmu->fmt, new, level);

    if (level > 1 && ((old | new) & KVM_PTE_NX_SPLIT)) {
        int64_t change = (int64_t)is_nx_split(new, level) - (int64_t)is_nx_split(old, level);

        atomic_fetch_add_explicit(&mmu->nx_split, change, memory_order_relaxed);
    }
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

bool kvm_pte_exchange(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, uint64_t new)
{
    if (!__atomic_compare_exchange_n(e, &old, new, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        return false;
    }
    account(&vm->mmu, level, old, new);
    if (kvm_pte_is_table(new, level)) {
        atomic_fetch_add_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    }
    return true;
}

uint64_t *kvm_pte_find_leaf(const struct kvm_vm *vm, gfn_t f, unsigned *level)
{
    hpa_t table = vm->mmu.root;

    for (*level = vm->mmu.levels;; --*level) {
        uint64_t *e = kvm_pte_slot(vm, table, f, *level);
        uint64_t v = kvm_pte_load(e);

        if (!kvm_pte_is_table(v, *level)) {
            return e;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
}

uint64_t *kvm_pte_find(const struct kvm_vm *vm, gfn_t f, unsigned level)
{
    hpa_t table = vm->mmu.root;

    for (unsigned at = vm->mmu.levels; at > level; at--) {
        uint64_t v = kvm_pte_load(kvm_pte_slot(vm, table, f, at));

        if (!kvm_pte_is_table(v, at)) {
            return NULL;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
    return kvm_pte_slot(vm, table, f, level);
}

/*
 * May a processor hold something of `old` that `new` does not say? A watched page counts as what it
 * was: aging does not flush. Losing MMU-W counts even without W: the fast path may just have set it.
 */
static bool needs_flush(const struct kvm_pte_format *fmt, uint64_t old, uint64_t new, unsigned level)
{
    uint64_t given = KVM_PTE_W | fmt->read | fmt->exec | fmt->mmu_w | fmt->accessed | fmt->dirty;

    if (!kvm_pte_in_use(old)) {
        return false; /* nor do processors cache MMIO entries */
    }
    if (kvm_pte_is_table(old, level) || !kvm_pte_in_use(new)) {
        return true;
    }
    return (old & ~new & given) || (~old & new & fmt->no_exec) || ((old ^ new) & EPT_ADDR_MASK) ||
           kvm_pte_is_tracked(fmt, old) != kvm_pte_is_tracked(fmt, new);
}

/* Unlink everything below a table that nobody reaches any more. Depth: at most levels - 1. */
static void bury_table(struct kvm_vm *vm, hpa_t table, unsigned level, struct kvm_dead_tables *dead)
{
    uint64_t *e = host_table_at(vm->s->hm, table);
    struct host_frame *frame = &vm->s->hm->frames[hpa_to_pfn(table).v];

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t old = __atomic_load_n(&e[i], __ATOMIC_RELAXED);

        if (kvm_pte_is_table(old, level)) {
            account(&vm->mmu, level, old, 0);
            bury_table(vm, hpa(old & EPT_ADDR_MASK), level - 1, dead);
        } else if (old) {
            account(&vm->mmu, level, old, 0);
        }
    }
    atomic_fetch_sub_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    __atomic_store_n(&frame->link, (uint32_t)dead->first, __ATOMIC_RELAXED);
    dead->first = table.v >> PAGE_SHIFT;
}

uint64_t kvm_pte_set(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t new,
                     struct kvm_dead_tables *dead)
{
    uint64_t old = __atomic_exchange_n(e, new, __ATOMIC_ACQ_REL);

    account(&vm->mmu, level, old, new);
    if (kvm_pte_is_table(new, level)) {
        atomic_fetch_add_explicit(&vm->mmu.tables, 1, memory_order_relaxed);
    }
    if (needs_flush(vm->mmu.fmt, old, new, level)) {
        dead->flush = true;
    }
    if (kvm_pte_is_table(old, level)) {
        bury_table(vm, hpa(old & EPT_ADDR_MASK), level - 1, dead);
    }
    return old;
}

const void *kvm_pte_table_ptr(void *ctx, uint64_t addr, unsigned level)
{
    return host_table_at(ctx, hpa(addr));
}
