/*
 * The two-stage kind of MMU: one tree of tables by guest-physical address for all vCPUs, in EPT's or NPT's format (struct kvm_pte_format).
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
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        uint64_t span_last = it.addr + arch_span(it.fmt, it.level) - 1;

        if (!it.entry) {
            continue;
        }
        if (kvm_pte_is_table(it.entry, it.level) &&
            (it.addr < range.first || span_last > range.last)) {
            continue;
        }
        kvm_pte_set(vm, arch_radix_slot(&it), it.level, 0, dead);
        it.entry = 0;
    }
}

static void zap_mmio_locked(struct kvm_vm *vm, struct kvm_dead_tables *dead)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        if (it.level == 1 && kvm_pte_is_mmio(vm->mmu.fmt, it.entry)) {
            kvm_pte_set(vm, arch_radix_slot(&it), 1, 0, dead);
        }
    }
}

/* ---- aging ---- */

static bool age_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, bool clear)
{
    const struct kvm_pte_format *fmt = vm->mmu.fmt;
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);
    bool young = false;

    arch_radix_for_each (&it, &arch_formats[fmt->id], vm->mmu.root.v, range) {
        uint64_t *e = arch_radix_slot(&it);

        if (!kvm_pte_is_page(it.entry, it.level) || !kvm_pte_is_young(fmt, it.entry)) {
            continue;
        }
        young = true;
        if (clear && !kvm_pte_exchange(vm, e, it.level, it.entry, kvm_pte_make_old(fmt, it.entry))) {
            continue; /* a processor or the fast path was there meanwhile: it stays young */
        }
    }
    return young;
}

/* ---- write-protection ---- */

/* Take W away; MMU-W stays, so the next write is the fast path's. True: a processor may hold W. */
static bool protect_entry(const struct kvm_pte_format *fmt, uint64_t *e, uint64_t old)
{
    if (!(old & KVM_PTE_W)) {
        return kvm_pte_is_tracked(fmt, old) && (old & fmt->mmu_w);
    }
    __atomic_fetch_and(e, ~(KVM_PTE_W | fmt->dirty), __ATOMIC_ACQ_REL);
    return true;
}

/* The table of level 1 that holds gfn, or null; *huge: the huge leaf in the way, or null. */
static uint64_t *find_table(struct kvm_vm *vm, gfn_t f, uint64_t **huge)
{
    hpa_t table = vm->mmu.root;

    *huge = NULL;
    for (unsigned level = vm->mmu.levels; level > 1; level--) {
        uint64_t *e = kvm_pte_slot(vm, table, f, level);
        uint64_t v = kvm_pte_load(e);

        if (!kvm_pte_is_table(v, level)) {
            *huge = kvm_pte_is_page(v, level) ? e : NULL;
            return NULL;
        }
        table = hpa(v & EPT_ADDR_MASK);
    }
    return host_table_at(vm->s->hm, table);
}

/* One page of a table of level 1. */
static bool protect_in_table(const struct kvm_vm *vm, uint64_t *table, uint64_t frame)
{
    uint64_t *e = &table[frame & (PT_ENTRIES - 1)];
    uint64_t old = __atomic_load_n(e, __ATOMIC_RELAXED);

    return kvm_pte_is_page(old, 1) && protect_entry(vm->mmu.fmt, e, old);
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
                flush |= protect_entry(vm->mmu.fmt, huge, kvm_pte_load(huge));
            }
        }
        if (table) {
            flush |= protect_in_table(vm, table, f);
        }
    }
    return flush;
}

/* Huge leaves stay, protected: the first write splits them. */
static bool protect_slot_locked(struct kvm_vm *vm, const struct kvm_memslot *slot)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, gfn(slot->base_gfn),
                                                 gfn(slot->base_gfn + slot->npages - 1));
    bool flush = false;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        if (kvm_pte_is_page(it.entry, it.level)) {
            flush |= protect_entry(vm->mmu.fmt, arch_radix_slot(&it), it.entry);
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
        uint64_t *e = kvm_pte_find(vm, gfn(f), 2);

        if (e && kvm_pte_is_table(kvm_pte_load(e), 2) && host_mapping_level(vm->s->mm, at) > 1) {
            kvm_pte_set(vm, e, 2, 0, dead);
        }
    }
}

/* ---- inspection ---- */

static void for_each_leaf_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, kvm_mmu_leaf_fn *fn,
                                 void *opaque)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        struct kvm_mmu_leaf leaf = {it.addr, it.entry, it.level,
                                    it.level == 1 && kvm_pte_is_mmio(vm->mmu.fmt, it.entry)};

        if ((leaf.is_mmio || kvm_pte_is_page(it.entry, it.level)) && !fn(opaque, &leaf)) {
            return;
        }
    }
}

/* Lock: at least shared. */
static uint64_t explain_locked(struct kvm_vm *vm, gpa_t addr, struct softkvm_explain *x)
{
    hpa_t table = vm->mmu.root;

    for (unsigned level = vm->mmu.levels;; level--) {
        uint64_t e = kvm_pte_load(kvm_pte_slot(vm, table, gpa_to_gfn(addr), level));
        uint64_t size = pt_leaf_size(level);

        if (x) {
            struct softkvm_entry *o = &x->ept[x->nr_ept++];

            kvm_explain_entry(o, vm->mmu.fmt->id, level, e);
            o->table = table.v;
            o->index = pt_index(addr.v, level);
            if (kvm_pte_is_mmio(vm->mmu.fmt, e)) {
                o->leaf = 1;
                x->stages |= SOFTKVM_STAGE_MMIO;
                snprintf(o->text, sizeof(o->text), "mmio gen %llu",
                         (unsigned long long)kvm_pte_mmio_generation(e));
            }
        }
        if (kvm_pte_is_page(e, level)) {
            if (x) {
                x->ept_page_size = size;
            }
            return (e & EPT_ADDR_MASK & ~(size - 1)) + (addr.v & (size - 1));
        }
        if (!kvm_pte_is_table(e, level)) {
            return 0;
        }
        table = hpa(e & EPT_ADDR_MASK);
    }
}

/* The counts against the tables; entries that are nothing. */
static void check_locked(struct kvm_vm *vm, struct kvm_checker *c)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};
    int64_t pages[4] = {0}, tables = 0;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        if (kvm_pte_is_page(it.entry, it.level)) {
            pages[it.level]++;
        } else if (it.level == 1 && kvm_pte_is_mmio(vm->mmu.fmt, it.entry)) {
            pages[0]++;
        } else if (kvm_pte_is_table(it.entry, it.level)) {
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

    mmu->fmt = vm->s->options.mmu == SOFTKVM_MMU_NPT ? &kvm_pte_npt : &kvm_pte_ept;
    mmu->levels = vm->s->options.ept_levels ? vm->s->options.ept_levels : 4;
    r = host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &mmu->root);
    if (r < 0) {
        mmu->root = hpa(0);
        return r;
    }
    mmu->eptp = mmu->root.v;
    if (mmu->fmt->id == ARCH_FMT_EPT) {
        mmu->eptp |= EPTP_MT_WB | EPTP_LEVEL(mmu->levels) | (mmu->fmt->dirty ? EPTP_AD : 0);
    }
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
    const struct kvm_mmu *mmu = &v->vm->mmu;

    v->cpu->eptp = mmu->eptp;
    v->cpu->npt_levels = mmu->fmt->id == ARCH_FMT_NPT ? (uint8_t)mmu->levels : 0;
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
