/* Page-modification logging (mmu_pml.c). */
#ifndef STRATA_SOFTKVM_MMU_PML_H
#define STRATA_SOFTKVM_MMU_PML_H

#include "softkvm/vcpu.h"

/* The vCPU's log, given to its processor. -ENOMEM; fini is right after either. */
int kvm_pml_vcpu_init(struct kvm_vcpu *v) must_check;
void kvm_pml_vcpu_fini(struct kvm_vcpu *v);

/* Around the time in the guest. */
static inline void kvm_pml_enter(struct kvm_vcpu *v)
{
    if (unlikely(v->pml)) {
        atomic_fetch_add_explicit(&v->pml_round, 1, memory_order_seq_cst);
    }
}

/* In the read section. */
static inline void kvm_pml_leave(struct kvm_vcpu *v)
{
    if (unlikely(v->pml)) {
        if (v->cpu->pml_index != CPU_PML_ENTRIES - 1) {
            kvm_mmu_pml_drain(v);
        }
        atomic_fetch_add_explicit(&v->pml_round, 1, memory_order_release);
    }
}

#endif
