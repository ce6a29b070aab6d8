/*
 * The second stage: building, changing and tearing down the tables that the processor walks.
 *
 *   EPT violation -> kvm_mmu_fault: slot -> hva -> host page -> level -> tables -> leaf
 *
 * Every change of an entry goes through one funnel (mmu_entry.c), which keeps the counts, propagates
 * dirty bits and frees child tables.
 *
 * Locks: `lock` shared for faults (entries change by compare-exchange only), exclusive for zap,
 * write-protection, split. Tables are unlinked under the exclusive lock and freed after all
 * processors have dropped their translations; processors walk without any lock.
 */
#ifndef STRATA_SOFTKVM_MMU_H
#define STRATA_SOFTKVM_MMU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "arch/format.h"
#include "base/addr.h"
#include "base/compiler.h"
#include "host/mm.h"

struct kvm_vm;
struct kvm_vcpu;
struct kvm_memslot;
struct cpu_exit;

/* Table frames taken before the lock, so that nothing can fail under it. */
#define KVM_TABLE_CACHE 8
struct kvm_table_cache {
    hpa_t table[KVM_TABLE_CACHE];
    unsigned count;
};

/* What serving a fault came to. */
enum kvm_fault_result {
    KVM_FAULT_FIXED,    /* an entry was made: let the guest retry */
    KVM_FAULT_SPURIOUS, /* the entry already allowed it */
    KVM_FAULT_RETRY,    /* something moved meanwhile: let the guest retry */
    KVM_FAULT_EMULATE,  /* no memory there: an MMIO entry was made or found */
    KVM_FAULT_WRITE_RO, /* a write to a read-only slot: the access goes to user space */
    KVM_FAULT_ERROR,    /* `error` in struct kvm_fault: KVM_RUN fails with it */
};

struct kvm_mmu {
    /* constant after creation */
    enum arch_format_id format;
    unsigned levels;    /* 4 or 5 */
    unsigned max_level; /* largest leaf */
    hpa_t root;
    uint64_t eptp;
    struct host_notifier notifier;
    bool notifier_registered;

    pthread_rwlock_t lock;

    /* invalidate protocol; written under lock exclusive, inv_seq and inv_count read without */
    _Atomic uint64_t inv_seq;
    _Atomic uint32_t inv_count;
    uint64_t inv_start, inv_end; /* covers every invalidation that runs */

    /* atomics, for inspection and accounting */
    _Atomic int64_t pages[4];  /* leaves by level; [0] = MMIO entries */
    _Atomic int64_t tables;
};

/* Root table, notifier. -ENOMEM. */
int kvm_mmu_init(struct kvm_vm *vm) must_check;
void kvm_mmu_fini(struct kvm_vm *vm);

/* Give cached tables back. */
void kvm_mmu_cache_drain(struct kvm_vm *vm, struct kvm_table_cache *c);

/* Serve an EPT violation. In the vCPU's read section. *error: -errno for KVM_FAULT_ERROR. */
enum kvm_fault_result kvm_mmu_fault(struct kvm_vcpu *v, gpa_t addr, uint32_t qualification, int *error);

/* After an EPT misconfiguration at addr: is the MMIO entry there current? False: serve it as a fault. */
bool kvm_mmu_mmio_is_fresh(struct kvm_vcpu *v, gpa_t addr);

/* Remove every leaf that maps [first, first + npages) and flush; used on slot delete and move. */
void kvm_mmu_zap_range(struct kvm_vm *vm, gfn_t first, uint64_t npages);
/* Remove all MMIO entries: the generation wrapped. */
void kvm_mmu_zap_mmio(struct kvm_vm *vm);

/* Dirty logging went on for the slot: write-protect all of it, and flush. */
void kvm_mmu_protect_slot(struct kvm_vm *vm, struct kvm_memslot *slot);
/* Write-protect the pages whose bits are set in mask (bit 0 = base_gfn + offset). Lock: exclusive held
 * by the caller. Returns true if a flush is needed. */
bool kvm_mmu_protect_mask_locked(struct kvm_vm *vm, struct kvm_memslot *slot, uint64_t offset,
                                 uint64_t mask);
/* Logging went off: let huge pages come back (zaps the small ones under them). */
void kvm_mmu_recover_huge(struct kvm_vm *vm, struct kvm_memslot *slot);

/* All processors drop their translations; returns when none uses an old one. */
void kvm_mmu_flush(struct kvm_vm *vm);

#endif
