/* Dirty rings: see ring.c. */
#ifndef STRATA_SOFTKVM_RING_H
#define STRATA_SOFTKVM_RING_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_vm;
struct kvm_vcpu;
struct kvm_memslot;

#define KVM_RING_MAX_ENTRIES 65536
#define KVM_RING_MAX_BYTES   (KVM_RING_MAX_ENTRIES * sizeof(struct kvm_dirty_gfn))

/* Entries kept free for what one stay in the hypervisor may push, processor buffers included. */
#define KVM_RING_RESERVED     64
#define KVM_RING_RESERVED_PML 512

struct kvm_ring {
    struct kvm_dirty_gfn *entries; /* shared with user space; null: no ring */
    uint32_t size, soft_limit;     /* entries */
    uint32_t dirty;                /* next to push; the vCPU's thread alone */
    _Atomic uint32_t reset;        /* next to be reset; under slots_lock */
};

/* KVM_ENABLE_CAP of the ring, of the backup bitmap; KVM_RESET_DIRTY_RINGS. */
int kvm_ring_enable(struct kvm_vm *vm, uint64_t bytes);
int kvm_ring_enable_bitmap(struct kvm_vm *vm);
int kvm_ring_reset_all(struct kvm_vm *vm);

/* A vCPU's ring, if the VM has rings. -ENOMEM. fini also after a failed init. */
int kvm_ring_init(struct kvm_vcpu *v) must_check;
void kvm_ring_fini(struct kvm_vcpu *v);

/* A page of a logging slot was written by this vCPU. On its thread. False: no room (never, by the soft
 * limit, unless user space broke the ring). */
bool kvm_ring_push(struct kvm_vcpu *v, const struct kvm_memslot *slot, uint64_t offset);

/* The vCPU may not enter the guest: user space has to harvest first. */
bool kvm_ring_is_soft_full(const struct kvm_vcpu *v);

/* Are the bitmap ioctls there? */
bool kvm_ring_allows_bitmap(const struct kvm_vm *vm);

#endif
