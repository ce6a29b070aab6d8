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
#include "softkvm/lpage.h"
#include "softkvm/mmu_fault.h"
#include "softkvm/mmu_nx.h"
#include "softkvm/mmu_pml.h"

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

/*
 * Take W away; MMU-W stays, so the next write is the fast path's. Where processors log what they modify a small
 * leaf loses its dirty bit instead. True: a processor may hold what was taken.
 */
static bool protect_entry(const struct kvm_mmu *mmu, uint64_t *e, uint64_t old, unsigned level)
{
    const struct kvm_pte_format *fmt = mmu->fmt;
    bool by_log = mmu->pml && level == 1;

    if (!(old & KVM_PTE_W)) {
        return kvm_pte_is_tracked(fmt, old) && (old & fmt->mmu_w);
    }
    if (by_log && !(old & fmt->dirty)) {
        return false;
    }
    __atomic_fetch_and(e, ~(by_log ? fmt->dirty : KVM_PTE_W | fmt->dirty), __ATOMIC_ACQ_REL);
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

    return kvm_pte_is_page(old, 1) && protect_entry(&vm->mmu, e, old, 1);
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
                flush |= protect_entry(&vm->mmu, huge, kvm_pte_load(huge), 2);
            }
        }
        if (table) {
            flush |= protect_in_table(vm, table, f);
        }
    }
    return flush;
}

/* Huge leaves that are still there stay, protected: the first write splits them. */
static bool protect_slot_locked(struct kvm_vm *vm, const struct kvm_memslot *slot)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, gfn(slot->base_gfn),
                                                 gfn(slot->base_gfn + slot->npages - 1));
    bool flush = false;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        if (kvm_pte_is_page(it.entry, it.level)) {
            flush |= protect_entry(&vm->mmu, arch_radix_slot(&it), it.entry, it.level);
        }
    }
    return flush;
}

/* ---- inspection ---- */

static void for_each_leaf_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, kvm_mmu_leaf_fn *fn,
                                 void *opaque)
{
    const struct kvm_pte_format *fmt = vm->mmu.fmt;
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = frames_range(vm, first, last);

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        struct kvm_mmu_leaf leaf = {.gpa = it.addr, .entry = it.entry, .level = it.level};

        leaf.is_mmio = it.level == 1 && kvm_pte_is_mmio(fmt, it.entry);
        leaf.is_writable = !leaf.is_mmio && (it.entry & KVM_PTE_W);
        leaf.is_unnoticed = leaf.is_writable && (it.entry & fmt->dirty) == fmt->dirty;
        leaf.is_watched = !leaf.is_mmio && kvm_pte_is_tracked(fmt, it.entry);
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

/* No reason against huge leaves but the slot's shape and its attributes: nobody watches guest tables here. */
static void check_reasons(void *opaque, struct kvm_memslot *slot)
{
    struct kvm_checker *c = opaque;

    for (unsigned level = 2; level <= 3; level++) {
        uint64_t pages = pt_leaf_size(level) >> PAGE_SHIFT, end = slot->base_gfn + slot->npages;

        for (uint64_t f = slot->base_gfn & ~(pages - 1); f < end; f += pages) {
            if ((kvm_lpage_reasons(slot, gfn(f), level) & ~KVM_LPAGE_MIXED) !=
                kvm_lpage_shape(slot, gfn(f), level)) {
                kvm_breach(c, "slot %u: gfn 0x%llx has %u reasons against level %u", slot->id,
                           (unsigned long long)f, kvm_lpage_reasons(slot, gfn(f), level), level);
            }
        }
    }
}

/* A table's frame is one; a leaf is where the rules allow. */
static void check_entry(struct kvm_vm *vm, struct kvm_checker *c, const struct arch_radix *it)
{
    const struct kvm_pte_format *fmt = vm->mmu.fmt;
    const struct host_frame *frame = host_frame_at(vm->s->hm, hpa_to_pfn(hpa(it->entry & EPT_ADDR_MASK)));

    if (kvm_pte_is_table(it->entry, it->level)) {
        if (!frame || frame->type != HOST_FRAME_TABLE) {
            kvm_breach(c, "table under gpa 0x%llx level %u is no table's frame",
                       (unsigned long long)it->addr, it->level);
        }
    } else if (kvm_pte_is_page(it->entry, it->level)) {
        if (it->level > 1 && vm->mmu.nx_huge && kvm_pte_allows(fmt, it->entry, EPT_VIOL_FETCH)) {
            kvm_breach(c, "huge leaf at gpa 0x%llx is executable", (unsigned long long)it->addr);
        }
        if ((it->entry & KVM_PTE_W) && (!(it->entry & fmt->mmu_w) || !(it->entry & fmt->host_w))) {
            kvm_breach(c, "leaf at gpa 0x%llx is writable but not marked so",
                       (unsigned long long)it->addr);
        }
    } else if (it->level == 1 && kvm_pte_is_mmio(fmt, it->entry)) {
        if (kvm_pte_mmio_gfn(it->entry).v != it->addr >> PAGE_SHIFT) {
            kvm_breach(c, "MMIO entry at gpa 0x%llx is of another", (unsigned long long)it->addr);
        }
    } else if (it->entry) {
        kvm_breach(c, "entry at gpa 0x%llx level %u is nothing: 0x%llx", (unsigned long long)it->addr,
                   it->level, (unsigned long long)it->entry);
    }
}

/* The counts against the tables, and each entry by itself. */
static void check_locked(struct kvm_vm *vm, struct kvm_checker *c)
{
    struct arch_radix it = {.table = kvm_pte_table_ptr, .ctx = vm->s->hm};
    struct arch_radix_range range = {0, UINT64_MAX, vm->mmu.levels, 1};
    int64_t pages[4] = {0}, tables = 0, nx_split = 0;

    arch_radix_for_each (&it, &arch_formats[vm->mmu.fmt->id], vm->mmu.root.v, range) {
        check_entry(vm, c, &it);
        if (kvm_pte_is_page(it.entry, it.level)) {
            pages[it.level]++;
        } else if (it.level == 1 && kvm_pte_is_mmio(vm->mmu.fmt, it.entry)) {
            pages[0]++;
        } else if (kvm_pte_is_table(it.entry, it.level)) {
            tables++;
            nx_split += (it.entry & KVM_PTE_NX_SPLIT) != 0;
        }
    }
    kvm_slots_for_each(kvm_slots_active(&vm->slots), check_reasons, c);
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
    if (nx_split != atomic_load(&vm->mmu.nx_split)) {
        kvm_breach(c, "%lld tables for execution, counted %lld", (long long)nx_split,
                   (long long)atomic_load(&vm->mmu.nx_split));
    }
}

/* ---- life ---- */

static int init(struct kvm_vm *vm)
{
    const struct softkvm_options *o = &vm->s->options;
    struct kvm_mmu *mmu = &vm->mmu;
    int r;

    mmu->fmt = o->mmu == SOFTKVM_MMU_NPT           ? &kvm_pte_npt
               : o->stage2 & SOFTKVM_STAGE2_NO_AD ? &kvm_pte_ept_no_ad
                                                   : &kvm_pte_ept;
    mmu->levels = o->ept_levels ? o->ept_levels : 4;
    mmu->pml = (o->stage2 & SOFTKVM_STAGE2_PML) != 0;
    mmu->eager_split = !(o->stage2 & SOFTKVM_STAGE2_NO_EAGER_SPLIT);
    mmu->nx_huge = (o->stage2 & SOFTKVM_STAGE2_NX_HUGE) != 0;
    mmu->prefetch = !(o->stage2 & SOFTKVM_STAGE2_NO_PREFETCH);
    r = host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &mmu->root);
    if (r < 0) {
        mmu->root = hpa(0);
        return r;
    }
    mmu->eptp = mmu->root.v;
    if (mmu->fmt->id == ARCH_FMT_EPT) {
        mmu->eptp |= EPTP_MT_WB | EPTP_LEVEL(mmu->levels) | (mmu->fmt->dirty ? EPTP_AD : 0);
    }
    return mmu->nx_huge ? kvm_nx_start(vm) : 0;
}

static void fini(struct kvm_vm *vm)
{
    if (vm->mmu.root.v) {
        host_table_free(vm->s->hm, vm->mmu.root);
    }
}

static int vcpu_init(struct kvm_vcpu *v)
{
    return v->vm->mmu.pml ? kvm_pml_vcpu_init(v) : 0;
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
    .vcpu_init = vcpu_init,
    .vcpu_fini = kvm_pml_vcpu_fini,
    .load = load,
    .zap_locked = zap_locked,
    .zap_mmio_locked = zap_mmio_locked,
    .age_locked = age_locked,
    .protect_slot_locked = protect_slot_locked,
    .protect_mask_locked = protect_mask_locked,
    .recover_huge_locked = kvm_tdp_recover_huge,
    .split_range = kvm_tdp_split_range,
    .for_each_leaf_locked = for_each_leaf_locked,
    .explain_locked = explain_locked,
    .check_locked = check_locked,
};
