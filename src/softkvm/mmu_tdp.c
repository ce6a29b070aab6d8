/*
 * The two-stage kind of MMU: one tree of tables by guest-physical address for all vCPUs, EPT's format.
 * Every operation here is one pass of the radix iterator over a range of guest frames; entries change
 * through the funnel of mmu_entry.c only. Faults are served in mmu_fault.c.
 *
 * Invariants: mmu_entry.c's. Locks: mmu.lock is the caller's (mmu.c), exclusive unless said otherwise.
 */
#include <errno.h>
#include <stdio.h>

#include "arch/radix.h"
#include "host/buddy.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/vcpu.h"

/* What the iterator wants for the frames [first, last]. */
static struct arch_radix_range frames_range(const struct kvm_vm *vm, gfn_t first, gfn_t last)
{
    return (struct arch_radix_range){first.v << PAGE_SHIFT, (last.v << PAGE_SHIFT) + PAGE_SIZE - 1,
                                     vm->mmu.levels, 1};
}

/* ---- removing ---- */

/* Zap every leaf that touches [first, last] (frame numbers). Lock: exclusive. */
static void zap_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);

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

static void zap_mmio_locked(struct kvm_vm *vm, struct kvm_dead_tables *dead)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (it.level == 1 && kvm_ept_is_mmio(it.entry)) {
            kvm_ept_set(vm, arch_radix_slot(&it), 1, 0, dead);
        }
    }
}

/* ---- aging ---- */

static bool age_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, bool clear)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);
    bool young = false;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (!kvm_ept_is_page(it.entry, it.level) || !(it.entry & EPT_A)) {
            continue;
        }
        young = true;
        if (clear) {
            __atomic_fetch_and(arch_radix_slot(&it), ~EPT_A, __ATOMIC_RELAXED);
        }
    }
    return young;
}

/* ---- write-protection ---- */

/* Take W away; MMU-W stays, so the next write is the fast path's. Returns true if it was there. A plain
 * store is enough: only accessed and dirty bits may change under us, and losing one loses nothing. */
static bool protect_entry(uint64_t *e, uint64_t old)
{
    if (!(old & EPT_W)) {
        return false;
    }
    __atomic_store_n(e, old & ~(EPT_W | EPT_D), __ATOMIC_RELEASE);
    return true;
}

/* The table of level 1 that holds gfn, or null; *huge: the huge leaf in the way, or null. */
static uint64_t *find_table(struct kvm_vm *vm, gfn_t f, uint64_t **huge)
{
    hpa_t table = vm->mmu.root;

    *huge = NULL;
    for (unsigned level = vm->mmu.levels; level > 1; level--) {
        uint64_t *e = kvm_ept_slot(vm, table, f, level);
        uint64_t v = kvm_ept_load(e);

        if (!kvm_ept_is_table(v, level)) {
            *huge = kvm_ept_is_page(v, level) ? e : NULL;
            return NULL;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
    return host_table_at(vm->s->hm, table);
}

/* One page of a table of level 1. */
static bool protect_in_table(uint64_t *table, uint64_t frame)
{
    uint64_t *e = &table[frame & (PT_ENTRIES - 1)];
    uint64_t old = __atomic_load_n(e, __ATOMIC_RELAXED);

    return kvm_ept_is_page(old, 1) && protect_entry(e, old);
}

static bool protect_mask_locked(struct kvm_vm *vm, const struct kvm_memslot *slot, uint64_t offset,
                                uint64_t mask)
{
    uint64_t first = slot->base_gfn + offset, region = UINT64_MAX;
    uint64_t *table = NULL, *huge = NULL;
    bool flush = false;

    while (mask) {
        uint64_t f = first + (unsigned)__builtin_ctzll(mask);

        mask &= mask - 1;
        if (f >> PT_LEVEL_BITS != region) {
            region = f >> PT_LEVEL_BITS;
            table = find_table(vm, gfn(f), &huge);
            if (huge) {
                flush |= protect_entry(huge, kvm_ept_load(huge));
            }
        }
        if (table) {
            flush |= protect_in_table(table, f);
        }
    }
    return flush;
}

/* Huge leaves stay, protected: the first write splits them. */
static bool protect_slot_locked(struct kvm_vm *vm, const struct kvm_memslot *slot)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, gfn(slot->base_gfn),
                                                 gfn(slot->base_gfn + slot->npages - 1));
    bool flush = false;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (kvm_ept_is_page(it.entry, it.level)) {
            flush |= protect_entry(arch_radix_slot(&it), it.entry);
        }
    }
    return flush;
}

/* Tables of small pages that a huge page could cover are dropped, so that the next access maps it. */
static void recover_huge_locked(struct kvm_vm *vm, const struct kvm_memslot *slot,
                                struct kvm_dead_tables *dead)
{
    uint64_t end = slot->base_gfn + slot->npages;
    uint64_t f = (slot->base_gfn + PT_ENTRIES - 1) & ~(uint64_t)(PT_ENTRIES - 1);

    if (vm->mmu.max_level < 2 ||
        ((slot->base_gfn ^ (slot->hva >> PAGE_SHIFT)) & (PT_ENTRIES - 1))) {
        return;
    }
    for (; f + PT_ENTRIES <= end; f += PT_ENTRIES) {
        hva_t at = kvm_slot_hva(slot, gfn(f));
        uint64_t *e = kvm_ept_find(vm, gfn(f), 2);

        if (e && kvm_ept_is_table(kvm_ept_load(e), 2) && host_mapping_level(vm->s->mm, at) > 1) {
            kvm_ept_set(vm, e, 2, 0, dead);
        }
    }
}

/* ---- inspection ---- */

static void for_each_leaf_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, kvm_mmu_leaf_fn *fn,
                                 void *opaque)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        struct kvm_mmu_leaf leaf = {it.addr, it.entry, it.level,
                                    it.level == 1 && kvm_ept_is_mmio(it.entry)};

        if ((leaf.is_mmio || kvm_ept_is_page(it.entry, it.level)) && !fn(opaque, &leaf)) {
            return;
        }
    }
}

/* Lock: at least shared. */
static uint64_t explain_locked(struct kvm_vm *vm, gpa_t addr, struct softkvm_explain *x)
{
    hpa_t table = vm->mmu.root;

    for (unsigned level = vm->mmu.levels;; level--) {
        uint64_t e = kvm_ept_load(kvm_ept_slot(vm, table, gpa_to_gfn(addr), level));
        uint64_t size = pt_leaf_size(level);

        if (x) {
            struct softkvm_entry *o = &x->ept[x->nr_ept++];

            kvm_explain_entry(o, vm->mmu.format, level, e);
            o->table = table.v;
            o->index = pt_index(addr.v, level);
            if (kvm_ept_is_mmio(e)) {
                o->leaf = 1;
                x->stages |= SOFTKVM_STAGE_MMIO;
                snprintf(o->text, sizeof(o->text), "mmio gen %llu",
                         (unsigned long long)kvm_ept_mmio_generation(e));
            }
        }
        if (kvm_ept_is_page(e, level)) {
            if (x) {
                x->ept_page_size = size;
            }
            return (e & EPT_ADDR_MASK & ~(size - 1)) + (addr.v & (size - 1));
        }
        if (!kvm_ept_is_table(e, level)) {
            return 0;
        }
        table = hpa(e & EPT_ADDR_MASK);
    }
}

/* The counts against the tables; entries that are nothing. */
static void check_locked(struct kvm_vm *vm, struct kvm_checker *c)
{
    struct arch_radix it = {.table = kvm_ept_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};
    int64_t pages[4] = {0}, tables = 0;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.format], vm->mmu.root.v, range) {
        if (kvm_ept_is_page(it.entry, it.level)) {
            pages[it.level]++;
        } else if (it.level == 1 && kvm_ept_is_mmio(it.entry)) {
            pages[0]++;
        } else if (kvm_ept_is_table(it.entry, it.level)) {
            tables++;
        } else if (it.entry) {
            kvm_breach(c, "entry at gpa 0x%llx level %u is nothing: 0x%llx",
                       (unsigned long long)it.addr, it.level, (unsigned long long)it.entry);
        }
    }
    for (int i = 0; i < 4; i++) {
        if (pages[i] != atomic_load(&vm->mmu.pages[i])) {
            kvm_breach(c, "%lld leaves of class %d, counted %lld", (long long)pages[i], i,
                       (long long)atomic_load(&vm->mmu.pages[i]));
        }
    }
    if (tables != atomic_load(&vm->mmu.tables)) {
        kvm_breach(c, "%lld tables, counted %lld", (long long)tables,
                   (long long)atomic_load(&vm->mmu.tables));
    }
}

/* ---- life ---- */

static int init(struct kvm_vm *vm)
{
    struct kvm_mmu *mmu = &vm->mmu;
    int r;

    mmu->format = ARCH_FMT_EPT;
    mmu->levels = vm->s->options.ept_levels ? vm->s->options.ept_levels : 4;
    r = host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &mmu->root);
    if (r < 0) {
        mmu->root = hpa(0);
        return r;
    }
    mmu->eptp = mmu->root.v | EPTP_MT_WB | EPTP_LEVEL(mmu->levels) | EPTP_AD;
    return 0;
}

static void fini(struct kvm_vm *vm)
{
    if (vm->mmu.root.v) {
        host_table_free(vm->s->hm, vm->mmu.root);
    }
}

static void load(struct kvm_vcpu *v)
{
    v->cpu->eptp = v->vm->mmu.eptp;
}

const struct kvm_mmu_ops kvm_mmu_tdp = {
    .name = "tdp",
    .init = init,
    .fini = fini,
    .load = load,
    .zap_locked = zap_locked,
    .zap_mmio_locked = zap_mmio_locked,
    .age_locked = age_locked,
    .protect_slot_locked = protect_slot_locked,
    .protect_mask_locked = protect_mask_locked,
    .recover_huge_locked = recover_huge_locked,
    .for_each_leaf_locked = for_each_leaf_locked,
    .explain_locked = explain_locked,
    .check_locked = check_locked,
};
