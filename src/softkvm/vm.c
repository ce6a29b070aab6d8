/*
 * Virtual machines: life, readers, bugs. The ioctls are vm_ioctl.c's.
 */
#include "softkvm/vm.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "cpu/run.h"
#include "softkvm/attributes.h"
#include "softkvm/msr_filter.h"
#include "softkvm/vcpu.h"

static void init_locks(struct kvm_vm *vm)
{
    pthread_mutex_init(&vm->lock, NULL);
    pthread_mutex_init(&vm->slots_lock, NULL);
    base_lock_set_rank(&vm->lock, BASE_RANK_VM);
    base_lock_set_rank(&vm->slots_lock, BASE_RANK_SLOTS);
    base_lock_set_rank(&vm->irq_lock, BASE_RANK_IRQ);
    pthread_mutex_init(&vm->irq_lock, NULL);
    pthread_mutex_init(&vm->tsc.lock, NULL);
}

/* Free all that a VM, whole or half made, has. Nobody else can reach it any more. */
static void vm_free(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    vm->irq->vm_stop(vm);
    kvm_timers_stop(vm->signal_timers);
    kvm_for_each_vcpu (i, v, vm) {
        vm->irq->vcpu_fini(v);
    }
    vm->irq->vm_fini(vm);
    kvm_mmu_stop(vm);
    kvm_for_each_vcpu (i, v, vm) {
        kvm_vcpu_free(v);
    }
    kvm_mmu_fini(vm);
    kvm_slots_fini(vm);
    kvm_timers_free(vm->signal_timers);
    kvm_attributes_fini(vm);
    kvm_msr_filter_free(atomic_load(&vm->msr_filter));
    cpu_peers_free(vm->peers);
    pthread_mutex_destroy(&vm->lock);
    pthread_mutex_destroy(&vm->slots_lock);
    pthread_mutex_destroy(&vm->irq_lock);
    pthread_mutex_destroy(&vm->tsc.lock);
    free(vm);
}

/* Bits by type. Private memory is for two-stage paging: shadow tables would have to follow attributes. */
uint32_t kvm_vm_types(const struct softkvm *s)
{
    uint32_t private_types = 1u << KVM_X86_SW_PROTECTED_VM | 1u << SOFTKVM_X86_CONFIDENTIAL_VM;

    return 1u << KVM_X86_DEFAULT_VM | (s->options.mmu == SOFTKVM_MMU_SHADOW ? 0 : private_types);
}

int kvm_vm_new(struct softkvm *s, unsigned long type, struct kvm_vm **out)
{
    struct kvm_vm *vm;
    int r;

    if (type > 31 || !(kvm_vm_types(s) >> type & 1)) {
        return -EINVAL;
    }
    vm = kvm_alloc(s, sizeof(*vm));
    if (!vm) {
        return -ENOMEM;
    }
    vm->s = s;
    vm->type = type;
    vm->number = atomic_fetch_add(&s->next_vm, 1);
    vm->irq = &kvm_irq_chips;
    vm->tsc_khz = s->tsc_khz;
    vm->max_vcpu_id = 0; /* not set: KVM_VM_MAX_VCPUS */
    atomic_store(&vm->refs, 1);
    init_locks(vm);
    kvm_slots_init(vm);
    vm->peers = cpu_peers_new();
    r = vm->peers ? kvm_attributes_init(vm) : -ENOMEM;
    r = r < 0 ? r : kvm_mmu_init(vm);
    if (r < 0) {
        /* Nothing of the chips' exists yet. */
        vm->irq = &kvm_irq_none;
    } else {
        r = vm->irq->vm_init(vm);
    }
    if (r < 0) {
        vm_free(vm);
        return r;
    }
    *out = vm;
    return 0;
}

void kvm_vm_get(struct kvm_vm *vm)
{
    atomic_fetch_add_explicit(&vm->refs, 1, memory_order_relaxed);
}

void kvm_vm_put(struct kvm_vm *vm)
{
    if (atomic_fetch_sub_explicit(&vm->refs, 1, memory_order_acq_rel) == 1) {
        vm_free(vm);
    }
}

struct kvm_vcpu *kvm_vm_find_vcpu(struct kvm_vm *vm, uint32_t id)
{
    struct kvm_vcpu *v;
    uint32_t i;

    if (id < kvm_vm_nr_vcpus(vm) && kvm_vm_vcpu(vm, id)->id == id) {
        return kvm_vm_vcpu(vm, id);
    }
    kvm_for_each_vcpu (i, v, vm) {
        if (v->id == id) {
            return v;
        }
    }
    return NULL;
}

/*
 *   writer                              vCPU
 *   publish the new                     reader++ (odd), seq_cst
 *   fence                               read what is published
 *   reader odd? wait until it changes   ...
 *   free the old                        reader++ (even), release
 */
void kvm_readers_wait(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    atomic_thread_fence(memory_order_seq_cst);
    kvm_for_each_vcpu (i, v, vm) {
        uint64_t seen = atomic_load_explicit(&v->reader, memory_order_seq_cst);

        for (unsigned spins = 0;
             (seen & 1) && atomic_load_explicit(&v->reader, memory_order_acquire) == seen; spins++) {
            if (spins < 100) {
                _mm_pause();
            } else {
                sched_yield();
            }
        }
    }
}

void kvm_vm_request_all(struct kvm_vm *vm, uint32_t bits)
{
    struct kvm_vcpu *v;
    uint32_t i;

    kvm_for_each_vcpu (i, v, vm) {
        kvm_vcpu_request(v, bits);
    }
}

void kvm_vm_bug(struct kvm_vm *vm, const char *what)
{
    if (!atomic_exchange(&vm->dead, true)) {
        kvm_log(vm->s, 3, "vm %u is dead: %s", vm->number, what);
        kvm_vm_request_all(vm, KVM_REQUEST_DEAD);
    }
}
