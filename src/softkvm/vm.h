/*
 * A virtual machine: slots, second-stage MMU, processors, interrupt chips.
 *
 * Lock order (outer first):
 *   vcpu->lock -> vm->lock -> vm->slots_lock -> vm->irq_lock -> host mm's locks -> mmu.lock -> buddy
 * MMU notifiers come from src/host with the mm's locks held and take mmu.lock only. Nothing that may
 * call src/host (get-user-pages) is done under mmu.lock.
 *
 * Readers. A vCPU thread, while it handles an exit, is inside a read section (kvm_read_begin); what
 * writers replace and readers follow without a lock (slot sets, bus tables, routing) is freed after
 * kvm_readers_wait(). A section is never held while the guest runs, while blocked, or across a user
 * exit. Threads that are no vCPU of the VM take slots_lock (slots, buses) or irq_lock (routing).
 */
#ifndef STRATA_SOFTKVM_VM_H
#define STRATA_SOFTKVM_VM_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/compiler.h"
#include "cpu/state.h"
#include "softkvm/engine.h"
#include "softkvm/irq.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/mmu.h"
#include "softkvm/slot.h"
#include "softkvm/vm_types.h"

struct cpu_peers;
struct kvm_attributes;
struct kvm_msr_policy;
struct kvm_vcpu;

#define KVM_VM_MAX_VCPUS 1024

/* KVM_CAP_VM_TYPES */
uint32_t kvm_vm_types(const struct softkvm *s);

struct kvm_vm_counters {
    _Atomic uint64_t remote_flushes, remote_flush_requests;
    _Atomic uint64_t slot_updates, zapped_ranges, invalidations;
    _Atomic uint64_t eager_splits, huge_recovered, nx_recovered;
};

struct kvm_vm {
    /* constant after creation */
    struct softkvm *s;
    unsigned number;         /* in the instance, for the log */
    unsigned long type;      /* KVM_X86_*_VM, or one of softkvm/vm_types.h */
    struct kvm_attributes *attrs; /* null: the type has no private memory */
    struct cpu_peers *peers;
    const struct kvm_irq_ops *irq; /* never null; kvm_irq_none when there are no chips at all */
    _Atomic uint32_t refs;   /* descriptors, vCPUs that are still referenced */

    /* A broken invariant: every further ioctl answers -EIO. */
    _Atomic bool dead;

    pthread_mutex_t lock;
    /* under lock */
    _Atomic(struct kvm_vcpu *) vcpus[KVM_VM_MAX_VCPUS]; /* in order of creation; read without lock up to nr_vcpus */
    _Atomic uint32_t nr_vcpus;                     /* release-stored after the pointer */
    uint32_t bsp_id;                 /* KVM_SET_BOOT_CPU_ID; 0 */
    uint32_t max_vcpu_id;
    uint64_t tss_addr, identity_addr;
    _Atomic uint64_t disabled_quirks; /* read without the lock */
    uint64_t disabled_exits;
    bool no_platform_info;           /* KVM_CAP_MSR_PLATFORM_INFO is off: the guest's read faults */
    uint32_t tsc_khz;                /* default of new vCPUs */
    uint64_t exit_hypercalls;        /* KVM_CAP_EXIT_HYPERCALL: bits by KVM_HC_* */
    struct kvm_tsc_sync {
        pthread_mutex_t lock;
        uint64_t last_ns, last_write; /* CLOCK_MONOTONIC of the last write, and what was written */
        uint32_t last_khz;            /* 0: none yet */
        int64_t offset;               /* of the vCPU written last */
    } tsc;
    uint32_t user_msr_mask;          /* KVM_CAP_X86_USER_SPACE_MSR */
    _Atomic(struct kvm_msr_policy *) msr_filter; /* by exchange, read in read sections; null: all allowed */
    bool exception_payload, triple_fault_event;
    uint32_t ring_bytes;             /* KVM_CAP_DIRTY_LOG_RING; 0: bitmaps. Constant once a vCPU exists */
    bool ring_with_bitmap;           /* constant once a slot exists */
    uint64_t manual_dirty;           /* KVM_DIRTY_LOG_* of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 */

    struct cpu_host_ram host_ram;    /* written under slots_lock, read anywhere */

    pthread_mutex_t slots_lock;
    struct kvm_slot_space slots;     /* see slot.h for who may read what */
    struct kvm_mmu mmu;              /* own locks: mmu.h */

    /* The chips' own (src/softkvm/irqchip). Pointers are set under vm->lock and read without once
     * non-null; what they point to has the locks that its header says. */
    pthread_mutex_t irq_lock;
    struct kvm_chips *chips;         /* IOAPIC, 8259, 8254, routing, irqfds */
    struct kvm_timers *signal_timers; /* sigmask.c's; made under vm->lock, constant then */
    struct kvm_clock *clock;         /* kvmclock and its base */
    struct kvm_buses *buses;         /* MMIO, PIO, fast MMIO; ioeventfds, coalesced zones */

    struct kvm_vm_counters counters;
};

/* KVM_CREATE_VM: a VM with one reference. -EINVAL (type), -ENOMEM. */
int kvm_vm_new(struct softkvm *s, unsigned long type, struct kvm_vm **out) must_check;
void kvm_vm_get(struct kvm_vm *vm);
/* The last put frees the VM and its vCPUs. No lock may be held. */
void kvm_vm_put(struct kvm_vm *vm);

/* An ioctl on a VM descriptor. */
int kvm_vm_ioctl(struct kvm_vm *vm, unsigned long request, void *arg);

/* vCPU by id (APIC id as created), or null. Any thread, no lock; lives as long as the VM. */
struct kvm_vcpu *kvm_vm_find_vcpu(struct kvm_vm *vm, uint32_t id);

/* Does a bit of the guest-physical address choose between the private and the shared half? */
static inline bool kvm_vm_has_shared_bit(const struct kvm_vm *vm)
{
    return vm->type == SOFTKVM_X86_CONFIDENTIAL_VM;
}

#define KVM_SHARED_GFN_BIT (UINT64_C(1) << (SOFTKVM_SHARED_BIT - PAGE_SHIFT))

/* The frame, as slots number it, behind one of the second stage. */
static inline gfn_t kvm_slot_frame(const struct kvm_vm *vm, gfn_t f)
{
    return likely(!kvm_vm_has_shared_bit(vm)) ? f : gfn(f.v & ~KVM_SHARED_GFN_BIT);
}

static inline uint32_t kvm_vm_nr_vcpus(struct kvm_vm *vm)
{
    return atomic_load_explicit(&vm->nr_vcpus, memory_order_acquire);
}

static inline struct kvm_vcpu *kvm_vm_vcpu(struct kvm_vm *vm, uint32_t i)
{
    return atomic_load_explicit(&vm->vcpus[i], memory_order_relaxed);
}

#define kvm_for_each_vcpu(i, v, vm)                                                                \
    for (i = 0; i < kvm_vm_nr_vcpus(vm) && ((v) = kvm_vm_vcpu(vm, i), true); i++)

/*
 * Wait until every vCPU that is in a read section now has left it. Not from a read section; not with
 * mmu.lock, nor any lock that a vCPU takes inside a section.
 */
void kvm_readers_wait(struct kvm_vm *vm);

/* Broken invariant of ours: log it, mark the VM dead, make every vCPU leave. */
void kvm_vm_bug(struct kvm_vm *vm, const char *what);

/* Every vCPU looks at its requests before the next guest instruction; bits: KVM_REQUEST_*. */
void kvm_vm_request_all(struct kvm_vm *vm, uint32_t bits);

/* Copy to or from guest memory by guest-physical address, across slots. Writes honour read-only slots
 * and mark the dirty log. Private pages are refused: they are not the hypervisor's to see. Caller: a vCPU in its read section, or a thread with slots_lock.
 * 0, or -EFAULT (some of it may be copied then). v: whose thread it is. */
int kvm_guest_read(struct kvm_vm *vm, gpa_t addr, void *buf, size_t len) must_check;
/* The same for what the guest itself has stored: private pages too. */
int kvm_guest_store(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len) must_check;
int kvm_guest_write(struct kvm_vcpu *v, gpa_t addr, const void *buf, size_t len) must_check;

/* host_fault.c: a slot's memory is guest RAM. Lock: slots_lock. */
void kvm_host_ram_note(struct kvm_vm *vm, uint64_t hva_start, uint64_t bytes);

#endif
