/*
 * The invariants of a VM, verified: slots against each other, second-stage entries against slots and
 * host pages, counts against the tables.
 *
 * Locks: slots_lock, mmu.lock exclusive, so that nothing moves meanwhile; vCPUs may run on.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "arch/paging.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/vm.h"

struct kvm_checker {
    struct kvm_vm *vm;
    char *text;
    size_t size;
    int verdict;
    uint64_t end; /* slots: first frame that the next may start at */
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
static void check_page(struct kvm_checker *c, uint64_t addr, uint64_t e, unsigned level)
{
    struct kvm_vm *vm = c->vm;
    uint64_t size = pt_leaf_size(level), levels_entry = 0;
    struct kvm_memslot *s = kvm_slots_find(kvm_slots_active(&vm->slots), gfn(addr >> PAGE_SHIFT));
    unsigned levels[HOST_MAX_LEVELS], n;
    uint64_t entries[HOST_MAX_LEVELS], want;

    if (!s || ((addr + size) >> PAGE_SHIFT) > s->base_gfn + s->npages) {
        kvm_breach(c, "entry at gpa 0x%llx is not in a slot", (unsigned long long)addr);
        return;
    }
    n = host_mm_walk(vm->s->mm, kvm_slot_hva(s, gfn(addr >> PAGE_SHIFT)), levels, entries);
    levels_entry = n ? entries[n - 1] : 0;
    if (!n || !(levels_entry & X86_PTE_P)) {
        kvm_breach(c, "entry at gpa 0x%llx names a page that the host has not", (unsigned long long)addr);
        return;
    }
    if (levels[n - 1] < level) {
        kvm_breach(c, "entry at gpa 0x%llx is larger than the host's", (unsigned long long)addr);
    }
    want = (levels_entry & X86_PTE_ADDR_MASK & ~(pt_leaf_size(levels[n - 1]) - 1)) +
           (kvm_slot_hva(s, gfn(addr >> PAGE_SHIFT)).v & (pt_leaf_size(levels[n - 1]) - 1));
    if ((e & EPT_ADDR_MASK & ~(size - 1)) != want) {
        kvm_breach(c, "entry at gpa 0x%llx names 0x%llx, the host 0x%llx", (unsigned long long)addr,
               (unsigned long long)(e & EPT_ADDR_MASK & ~(size - 1)), (unsigned long long)want);
    }
    if ((e & EPT_W) && (!(levels_entry & X86_PTE_W) || (s->flags & KVM_MEM_READONLY))) {
        kvm_breach(c, "entry at gpa 0x%llx is writable, its page is not", (unsigned long long)addr);
    }
    if ((e & EPT_W) && s->dirty && !c->vm->ring_bytes) {
        uint64_t i = (addr >> PAGE_SHIFT) - s->base_gfn;

        if (level > 1 || !(atomic_load(&s->dirty[i / 64]) >> (i & 63) & 1)) {
            kvm_breach(c, "entry at gpa 0x%llx is writable but not logged", (unsigned long long)addr);
        }
    }
}

static bool check_leaf(void *opaque, const struct kvm_mmu_leaf *leaf)
{
    if (!leaf->is_mmio) {
        check_page(opaque, leaf->gpa, leaf->entry, leaf->level);
    }
    return true;
}

/*
 * Verify a VM. 0, or -EUCLEAN with the first breach in text (size bytes).
 * Lock: takes slots_lock and mmu.lock.
 */
int kvm_check_vm(struct kvm_vm *vm, char *text, size_t size)
{
    struct kvm_checker c = {.vm = vm, .text = text, .size = size};

    text[0] = '\0';
    pthread_mutex_lock(&vm->slots_lock);
    kvm_slots_for_each(kvm_slots_active(&vm->slots), check_slot, &c);
    pthread_rwlock_wrlock(&vm->mmu.lock);
    vm->mmu.ops->for_each_leaf_locked(
        vm, gfn(0), gfn((UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT)) - 1), check_leaf, &c);
    vm->mmu.ops->check_locked(vm, &c);
    pthread_rwlock_unlock(&vm->mmu.lock);
    pthread_mutex_unlock(&vm->slots_lock);
    return c.verdict;
}
