/*
 * Page-modification logging: the processor writes the address of each page that it makes dirty into a page of the
 * vCPU's, from entry 511 down, and exits when there is no room. What is in it goes to the slots' bitmaps after
 * every exit, and for a harvest of the dirty log also from vCPUs that run:
 *
 *   vCPU                               harvest
 *   pml_round++ (odd)                  round odd? kick, wait until it changes
 *   run the guest
 *   drain: set bits                    take bits
 *   pml_round++ (even), release
 *
 * Invariant: a page that was written before kvm_mmu_pml_sync() is called has its bit when it returns.
 * Locks: none; draining is the vCPU thread's own, in its read section.
 */
#include <sched.h>

#include "cpu/run.h"
#include "host/buddy.h"
#include "softkvm/mmu_pml.h"

int kvm_pml_vcpu_init(struct kvm_vcpu *v)
{
    int r = host_table_alloc(v->vm->s->hm, HOST_FRAME_KERNEL, &v->pml_page);

    if (r < 0) {
        v->pml_page = hpa(0);
        return r;
    }
    v->pml = host_table_at(v->vm->s->hm, v->pml_page);
    v->cpu->pml = v->pml;
    v->cpu->pml_index = CPU_PML_ENTRIES - 1;
    return 0;
}

void kvm_pml_vcpu_fini(struct kvm_vcpu *v)
{
    if (v->pml) {
        host_table_free(v->vm->s->hm, v->pml_page);
        v->pml = NULL;
    }
}

/* Lock: the vCPU's thread, in its read section. Source: KVM's vmx_flush_pml_buffer(). */
void kvm_mmu_pml_drain(struct kvm_vcpu *v)
{
    struct cpu *cpu = v->cpu;

    /* Past entry 0 the index wraps, so the next one to take is entry 0 again. */
    for (uint16_t i = (uint16_t)(cpu->pml_index + 1); i < CPU_PML_ENTRIES; i++) {
        gfn_t f = gpa_to_gfn(gpa(v->pml[i]));
        struct kvm_memslot *slot = kvm_slots_find_vcpu(v, f);

        if (slot) {
            kvm_slot_mark_dirty(v, slot, f);
        }
        KVM_COUNT(&v->counters.pml_logged);
    }
    cpu->pml_index = CPU_PML_ENTRIES - 1;
}

/* Lock: none that a vCPU takes between the guest and its next exit. Source: KVM's sync_dirty_log, which kicks
 * without waiting. Differs: waits, so that nothing written before is missed. */
void kvm_mmu_pml_sync(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    if (!vm->mmu.pml) {
        return;
    }
    kvm_for_each_vcpu (i, v, vm) {
        uint32_t seen = atomic_load_explicit(&v->pml_round, memory_order_seq_cst);

        if (!(seen & 1)) {
            continue;
        }
        kvm_vcpu_kick(v);
        for (unsigned spins = 0; atomic_load_explicit(&v->pml_round, memory_order_acquire) == seen; spins++) {
            if (spins < 1000) {
                __builtin_ia32_pause();
            } else {
                sched_yield();
            }
        }
    }
}
