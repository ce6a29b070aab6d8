/*
 * The invariants of a VM, verified: slots against each other; each leaf against its slot, the host's page, the
 * frame's owner and the dirty log; what the kind of MMU keeps (counts, tables, reverse maps: its own
 * check_locked()); and what processors that do not run have cached against all leaves.
 *
 *   slots -> leaves (noting which frames they map, and which writable) -> the kind -> TLBs
 *
 * Locks: slots_lock, mmu.lock exclusive, no walk section, so that nothing moves meanwhile; vCPUs may run on, but
 * their caches are then not looked at, and their logs of modified pages not known.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/paging.h"
#include "cpu/run.h"
#include "softkvm/attributes.h"
#include "softkvm/gmem.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/mmu_walk.h"

struct kvm_checker {
    struct kvm_vm *vm;
    char *text;
    size_t size;
    int verdict;
    uint64_t end; /* slots: first frame that the next may start at */
    /* by pfn: a leaf maps it; a leaf lets processors write it without notice */
    uint64_t *mapped, *writable;
    const struct kvm_vcpu *v; /* whose caches are looked at */
};

void kvm_breach(struct kvm_checker *c, const char *fmt, ...)
{
    va_list ap;

    if (c->verdict == 0) {
        c->verdict = -EUCLEAN;
        va_start(ap, fmt);
        vsnprintf(c->text, c->size, fmt, ap);
        va_end(ap);
    }
}

static void check_slot(void *opaque, struct kvm_memslot *s)
{
    struct kvm_checker *c = opaque;
    const struct kvm_slot_set *other = &c->vm->slots.set[kvm_slots_active(&c->vm->slots)->index ^ 1];

    if (s->base_gfn < c->end) {
        kvm_breach(c, "slot %u at gfn 0x%llx overlaps the one before", s->id,
               (unsigned long long)s->base_gfn);
    }
    if (s->flags & KVM_SLOT_INVALID) {
        kvm_breach(c, "slot %u is invalid outside of a change", s->id);
    }
    if (kvm_slots_find(other, gfn(s->base_gfn)) != s ||
        kvm_slots_find_id(other, s->as_id, s->id) != s) {
        kvm_breach(c, "slot %u is not in both sets", s->id);
    }
    c->end = s->base_gfn + s->npages;
}

/* A page entry: in one slot, where the host maps that slot's page; rights no wider than both. */
static void check_page(struct kvm_checker *c, const struct kvm_mmu_leaf *leaf)
{
    struct kvm_vm *vm = c->vm;
    uint64_t addr = leaf->gpa, e = leaf->entry;
    unsigned level = leaf->level;
    uint64_t size = pt_leaf_size(level), levels_entry = 0;
    gfn_t f = kvm_slot_frame(vm, gfn(addr >> PAGE_SHIFT));
    struct kvm_memslot *s = kvm_slots_find(kvm_slots_active(&vm->slots), f);
    hva_t at;
    unsigned levels[HOST_MAX_LEVELS], n;
    uint64_t entries[HOST_MAX_LEVELS], want;

    if (!s || f.v + (size >> PAGE_SHIFT) > s->base_gfn + s->npages) {
        kvm_breach(c, "entry at gpa 0x%llx is not in a slot", (unsigned long long)addr);
        return;
    }
    if (!kvm_pages_are_alike(vm, f, size >> PAGE_SHIFT)) {
        kvm_breach(c, "entry at gpa 0x%llx maps private and shared pages", (unsigned long long)addr);
    }
    at = kvm_slot_hva(kvm_slot_half(vm, s, gfn(addr >> PAGE_SHIFT)), f);
    n = host_mm_walk(vm->s->mm, at, levels, entries);
    levels_entry = n ? entries[n - 1] : 0;
    if (!n || !(levels_entry & X86_PTE_P)) {
        kvm_breach(c, "entry at gpa 0x%llx names a page that the host has not", (unsigned long long)addr);
        return;
    }
    if (levels[n - 1] < level) {
        kvm_breach(c, "entry at gpa 0x%llx is larger than the host's", (unsigned long long)addr);
    }
    want = (levels_entry & X86_PTE_ADDR_MASK & ~(pt_leaf_size(levels[n - 1]) - 1)) +
           (at.v & (pt_leaf_size(levels[n - 1]) - 1));
    if ((e & EPT_ADDR_MASK & ~(size - 1)) != want) {
        kvm_breach(c, "entry at gpa 0x%llx names 0x%llx, the host 0x%llx", (unsigned long long)addr,
               (unsigned long long)(e & EPT_ADDR_MASK & ~(size - 1)), (unsigned long long)want);
    }
    if (leaf->is_writable && (!(levels_entry & X86_PTE_W) || (s->flags & KVM_MEM_READONLY))) {
        kvm_breach(c, "entry at gpa 0x%llx is writable, its page is not", (unsigned long long)addr);
    }
    if (leaf->is_unnoticed && s->dirty && !c->vm->ring_bytes) {
        uint64_t i = f.v - s->base_gfn;

        if (level > 1 || !(atomic_load(&s->dirty[i / 64]) >> (i & 63) & 1)) {
            kvm_breach(c, "entry at gpa 0x%llx is writable but not logged", (unsigned long long)addr);
        }
    }
}

/* The frames under a leaf: memory that somebody owns. They are noted for the look at TLBs. */
static void check_frames(struct kvm_checker *c, const struct kvm_mmu_leaf *leaf)
{
    uint64_t size = pt_leaf_size(leaf->level), n = size >> PAGE_SHIFT;
    uint64_t first = (leaf->entry & EPT_ADDR_MASK & ~(size - 1)) >> PAGE_SHIFT;
    const struct host_frame *frame = host_frame_at(c->vm->s->hm, pfn(first));

    if (!frame || first + n > c->vm->s->hm->nr_frames) {
        kvm_breach(c, "entry at gpa 0x%llx names memory that is not there", (unsigned long long)leaf->gpa);
        return;
    }
    if (frame->type == HOST_FRAME_FREE || frame->type == HOST_FRAME_TABLE ||
        frame->type == HOST_FRAME_HOST_PT) {
        kvm_breach(c, "entry at gpa 0x%llx names frame 0x%llx of type %u", (unsigned long long)leaf->gpa,
                   (unsigned long long)first, frame->type);
    }
    for (uint64_t i = first; i < first + n; i++) {
        c->mapped[i / 64] |= UINT64_C(1) << (i & 63);
        c->writable[i / 64] |= (uint64_t)(leaf->is_unnoticed || leaf->is_watched) << (i & 63);
    }
}

static bool check_leaf(void *opaque, const struct kvm_mmu_leaf *leaf)
{
    if (!leaf->is_mmio) {
        check_page(opaque, leaf);
        check_frames(opaque, leaf);
    }
    return true;
}

/* ---- what processors have cached ---- */

static void check_cached(void *opaque, enum cpu_cached_kind kind, uint64_t f)
{
    struct kvm_checker *c = opaque;
    const struct host_frame *frame = host_frame_at(c->vm->s->hm, pfn(f));

    if (kind == CPU_CACHED_TABLE) {
        if (!frame || frame->type != HOST_FRAME_TABLE) {
            kvm_breach(c, "vcpu %u knows a table at frame 0x%llx, which is none", c->v->id,
                       (unsigned long long)f);
        }
    } else if (!frame || !(c->mapped[f / 64] >> (f & 63) & 1)) {
        kvm_breach(c, "vcpu %u has cached frame 0x%llx, which nothing maps", c->v->id,
                   (unsigned long long)f);
    } else if (kind == CPU_CACHED_WRITE && !(c->writable[f / 64] >> (f & 63) & 1)) {
        kvm_breach(c, "vcpu %u has cached frame 0x%llx as writable, which it is not", c->v->id,
                   (unsigned long long)f);
    }
}

/* Those that run know better than we; those asked to flush have not got to it. */
static void check_caches(struct kvm_checker *c)
{
    struct kvm_vcpu *v;
    uint32_t i;

    kvm_for_each_vcpu (i, v, c->vm) {
        if (pthread_mutex_trylock(&v->lock) == 0) {
            c->v = v;
            cpu_cached_for_each(v->cpu, check_cached, c);
            pthread_mutex_unlock(&v->lock);
        }
    }
}

static void check_mmu(struct kvm_checker *c)
{
    struct kvm_vm *vm = c->vm;
    gfn_t last = gfn((UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT)) - 1);

    pthread_rwlock_wrlock(&vm->mmu.lock);
    kvm_walkers_stop(vm);
    vm->mmu.ops->for_each_leaf_locked(vm, gfn(0), last, check_leaf, c);
    vm->mmu.ops->check_locked(vm, c);
    if (!vm->mmu.ops->is_stale_locked || !vm->mmu.ops->is_stale_locked(vm)) {
        check_caches(c);
    }
    kvm_walkers_start(vm);
    pthread_rwlock_unlock(&vm->mmu.lock);
}

/*
 * Verify a VM. 0, -EUCLEAN with the first breach in text (size bytes), or -ENOMEM.
 * Lock: takes slots_lock and mmu.lock; tries vcpu->lock of each vCPU.
 */
int kvm_check_vm(struct kvm_vm *vm, char *text, size_t size)
{
    struct kvm_checker c = {.vm = vm, .text = text, .size = size};
    size_t words = vm->s->hm->nr_frames / 64 + 1;

    text[0] = '\0';
    c.mapped = kvm_alloc_array(vm->s, words, 2 * sizeof(*c.mapped));
    if (!c.mapped) {
        return -ENOMEM;
    }
    c.writable = c.mapped + words;
    pthread_mutex_lock(&vm->slots_lock);
    kvm_slots_for_each(kvm_slots_active(&vm->slots), check_slot, &c);
    check_mmu(&c);
    pthread_mutex_unlock(&vm->slots_lock);
    free(c.mapped);
    return c.verdict;
}
