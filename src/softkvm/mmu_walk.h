/*
 * Walk sections: a vCPU's thread reads and changes second-stage entries without mmu.lock.
 *
 *   vCPU (fast page fault)             who unlinks tables
 *   walk++ (odd), seq_cst              unlink, under mmu.lock
 *   quiet? leave                       flush processors
 *   walk down; compare-exchange        walk odd? wait until it changes   (kvm_walkers_wait)
 *   walk++ (even), release             free the tables
 *
 * A section is a few loads long: nothing in it takes a lock, sleeps, or calls out. kvm_walkers_stop()
 * keeps new ones out, for who must see all entries at rest.
 */
#ifndef STRATA_SOFTKVM_MMU_WALK_H
#define STRATA_SOFTKVM_MMU_WALK_H

#include "softkvm/vcpu.h"

static inline void kvm_walk_end(struct kvm_vcpu *v)
{
    uint32_t now = atomic_load_explicit(&v->walk, memory_order_relaxed);

    atomic_store_explicit(&v->walk, now + 1, memory_order_release);
}

/* False: somebody wants quiet; take mmu.lock instead. */
static inline bool kvm_walk_begin(struct kvm_vcpu *v)
{
    atomic_fetch_add_explicit(&v->walk, 1, memory_order_seq_cst);
    if (unlikely(atomic_load_explicit(&v->vm->mmu.quiet, memory_order_seq_cst))) {
        kvm_walk_end(v);
        return false;
    }
    return true;
}

/* Wait for the sections that run now. Not from inside one. */
void kvm_walkers_wait(struct kvm_vm *vm);

/* None runs, and none begins, until started again. Lock: mmu.lock exclusive, by the caller. */
void kvm_walkers_stop(struct kvm_vm *vm);
void kvm_walkers_start(struct kvm_vm *vm);

#endif
