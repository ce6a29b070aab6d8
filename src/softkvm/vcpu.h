/*
 * A virtual processor as the kernel half sees it: the silicon (struct cpu), the run page, and what is
 * between them: pending requests and events, MSRs and CPUID that software keeps, the user exit that
 * is half done.
 *
 * vcpu->lock is held by every vCPU ioctl, KVM_RUN included: what is under it belongs to that thread.
 * Fields of the other groups may be touched by any thread as the group says.
 */
#ifndef STRATA_SOFTKVM_VCPU_H
#define STRATA_SOFTKVM_VCPU_H

#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#include "cpu/state.h"
#include "softkvm/ring.h"
#include "softkvm/timer.h"
#include "softkvm/vm.h"

/* Requests: set by anyone with kvm_vcpu_request(), served by the vCPU before its next guest entry. */
#define KVM_REQUEST_EVENT        0x0001u /* look whether an interrupt can be injected */
#define KVM_REQUEST_NMI          0x0002u /* nmi_queued went up */
#define KVM_REQUEST_INIT         0x0004u
#define KVM_REQUEST_SIPI         0x0008u /* sipi_vector */
#define KVM_REQUEST_CLOCK        0x0010u /* irq->clock_update() */
#define KVM_REQUEST_TIMER        0x0020u /* irq->timer_expired() */
#define KVM_REQUEST_TRIPLE_FAULT 0x0040u
#define KVM_REQUEST_MMU          0x0080u /* the root changed: load it */
#define KVM_REQUEST_DEAD         0x0100u /* the VM is dead */
#define KVM_REQUEST_USER         0x0200u /* softkvm_kick(): look at immediate_exit */
#define KVM_REQUEST_UNHALT       0x0400u /* leave HLT (PV kick) */
#define KVM_REQUEST_APIC_EXIT    0x0800u /* KVM_EXIT_IOAPIC_EOI or TPR work: irq->user_exit() */
#define KVM_REQUEST_STEAL        0x1000u /* steal-time record: irq->clock_update() */

#define KVM_REQUEST_MSR_FILTER   0x4000u /* the filter changed */
#define KVM_REQUEST_SIGNAL       0x2000u /* softkvm_interrupt(): leave with -EINTR */

/* The pages of the descriptor, in mmap order. */
#define KVM_VCPU_RUN_PAGES 3 /* kvm_run, port data, coalesced ring */
#define KVM_VCPU_PIO_PAGE  1
#define KVM_VCPU_RING_PAGE 2

/* Written by the vCPU's thread alone, read by anyone: relaxed accesses through KVM_COUNT. */
struct kvm_vcpu_counters {
    uint64_t exits, user_exits, kicks, entries;
    uint64_t exit_reason[32]; /* by enum cpu_exit_reason */
    uint64_t mmio_exits, io_exits, irq_window_exits, nmi_window_exits, signal_exits;
    uint64_t mmio_kernel, io_kernel; /* served by in-kernel devices */
    uint64_t halts, halt_wakeups, halt_ns;
    uint64_t irq_injections, nmi_injections, hypercalls;
    uint64_t request_irq_exits, insn_errors;
    /* second stage */
    uint64_t faults, faults_fixed, faults_spurious, faults_fast, faults_retry, faults_mmio, faults_ro, faults_error;
    uint64_t mapped[4]; /* leaves by level; [0] = MMIO entries */
    uint64_t mmio_stale;
    uint64_t host_faults; /* guest RAM gone under the guest */
    uint64_t prefetched, nx_splits; /* leaves made for neighbours; huge leaves given up for execution */
    uint64_t untracked;             /* faults that only said: this page is in use again */
    uint64_t pml_logged, pml_full;
};

#define KVM_COUNT_ADD(p, n) __atomic_store_n(p, __atomic_load_n(p, __ATOMIC_RELAXED) + (n), __ATOMIC_RELAXED)
#define KVM_COUNT(p)        KVM_COUNT_ADD(p, 1)

#define KVM_MAX_CPUID_ENTRIES 256

/* A device access that user space has to finish before the guest goes on. */
enum kvm_pending_kind {
    KVM_PENDING_NONE,
    KVM_PENDING_MMIO_READ,
    KVM_PENDING_MMIO_WRITE,
    KVM_PENDING_PIO_IN,
    KVM_PENDING_PIO_OUT,
    KVM_PENDING_RDMSR,
    KVM_PENDING_WRMSR,
    KVM_PENDING_HYPERCALL,
    KVM_PENDING_LATE_WRITE, /* exit.c: a posted write that the host did not take yet; in cpu->exit */
};

struct kvm_pending {
    enum kvm_pending_kind kind;
    gpa_t gpa;
    uint16_t port;
    uint8_t size, done;  /* bytes of the access; bytes already answered */
    bool write_violation; /* a write that met a read-only slot, not the processor's replay list */
    uint8_t data[16];
};

struct kvm_shadow_vcpu;

struct kvm_vcpu {
    /* constant after creation */
    struct kvm_vm *vm;
    struct cpu *cpu;
    uint32_t id;    /* APIC id */
    uint32_t index; /* in vm->vcpus[] */
    struct kvm_run *run; /* KVM_VCPU_RUN_PAGES pages */
    struct kvm_ring ring;  /* entries constant; see ring.h */
    _Atomic uint32_t refs; /* descriptors and mappings; at 0 the reference on the VM goes */

    /* any thread */
    _Atomic uint32_t requests;      /* KVM_REQUEST_* */
    _Atomic uint32_t nmi_queued;    /* at most 2 */
    _Atomic uint32_t sipi_vector;
    _Atomic uint32_t wake;          /* futex word: changes to end a wait */
    _Atomic uint32_t blocked;       /* 1 while waiting on `wake` */
    _Atomic uint32_t in_guest;      /* 1 from the last look at `requests` until after cpu_run() */
    _Atomic uint32_t mp_state;      /* KVM_MP_STATE_*; others only read */
    _Atomic uint64_t reader;        /* odd inside a read section */
    _Atomic uint32_t walk;          /* odd inside a walk section: mmu_walk.h */
    _Atomic uint32_t pml_round;     /* odd while the log of modified pages may fill: mmu_pml.c */

    pthread_mutex_t lock;
    /* under lock */
    struct kvm_lapic *lapic;        /* src/softkvm/irqchip; null without an in-kernel APIC */
    struct kvm_pvclock *pvclock;
    uint64_t apic_base;             /* IA32_APIC_BASE; the chips' when lapic is not null */
    struct kvm_pending pending;
    uint64_t host_fault_page;       /* the last one that was found gone, and how often in a row */
    unsigned host_fault_tries;
    struct kvm_cpuid_entry2 *cpuid;
    uint32_t nr_cpuid;
    bool has_run;
    bool unhalted;                  /* a PV kick has come: the next HLT ends at once */
    bool fault_private;             /* the last memory fault meant private memory */
    bool memory_touched;            /* since the last guest entry user space may have written code */
    bool spun;           /* the last exit was a PAUSE too many: give way before the next entry */
    bool pv_enforced;               /* KVM_CAP_ENFORCE_PV_FEATURE_CPUID */
    uint64_t quirks_seen;           /* vm->disabled_quirks when the processor's features were derived */
    bool steal_on;                  /* the guest wants its steal time: every KVM_RUN renews it */
    uint64_t steal_renewed;         /* host TSC then */
    bool sigmask_set;
    sigset_t sigmask;
    _Atomic bool sigmask_run;       /* inside KVM_RUN with a mask: signal_timer goes on */
    struct kvm_timer signal_timer;
    uint32_t tsc_khz;
    struct kvm_guest_debug debug;
    int extint_vector;              /* KVM_INTERRUPT without an in-kernel PIC; -1 */
    uint8_t smi_pending;
    /* MSRs that the hypervisor keeps */
    struct {
        uint64_t tsc_adjust, arch_caps, feature_ctrl, bios_sign, perf_caps, platform_info, power_ctl;
        uint64_t mcg_cap, mcg_status, mcg_ctl, mce[4 * 32];
        uint64_t mtrr_def, mtrr_var[16], mtrr_fixed[11];
        uint64_t misc_features, smi_count;
    } msr;
    /* MMU, the thread's own: tables filled up before mmu.lock is taken, and last-hit caches */
    struct kvm_shadow_vcpu *shadow; /* the shadow kind's; else null */
    struct kvm_table_cache tables;
    uint64_t *pml;               /* the processor's log of modified pages, or null */
    hpa_t pml_page;
    struct kvm_memslot *last_slot;
    uint64_t last_slot_gen;
    uint64_t mmio_gfn, mmio_gen; /* last MMIO page found current; gfn UINT64_MAX: none */

    struct kvm_vcpu_counters counters;
};

/* KVM_CREATE_VCPU. vm->lock must not be held. Returns the descriptor, or -EINVAL (id), -EEXIST, -ENOMEM. */
int kvm_vcpu_create(struct kvm_vm *vm, unsigned long id);
void kvm_vcpu_get(struct kvm_vcpu *v);
void kvm_vcpu_put(struct kvm_vcpu *v);
/* Free for good; by the VM's end only. */
void kvm_vcpu_free(struct kvm_vcpu *v);

/* An ioctl on a vCPU descriptor. */
int kvm_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg);

/* KVM_RUN with vcpu->lock held. */
int kvm_vcpu_run(struct kvm_vcpu *v);

/* Set request bits and make the vCPU see them: out of the guest, out of a wait. Any thread. */
void kvm_vcpu_request(struct kvm_vcpu *v, uint32_t bits);

/* Only make it look around. Async-signal-safe. */
void kvm_vcpu_kick(struct kvm_vcpu *v);

/* Events from the APIC's messages. Any thread. */
void kvm_vcpu_post_nmi(struct kvm_vcpu *v);
void kvm_vcpu_post_init(struct kvm_vcpu *v);
void kvm_vcpu_post_sipi(struct kvm_vcpu *v, uint8_t vector);

/* Atomically take one request. */
static inline bool kvm_vcpu_take_request(struct kvm_vcpu *v, uint32_t bit)
{
    return (atomic_load_explicit(&v->requests, memory_order_relaxed) & bit) &&
           (atomic_fetch_and(&v->requests, ~bit) & bit);
}

/* Read sections: vm.h. They do not nest. The exchange pairs with kvm_readers_wait()'s fence. */
static inline void kvm_read_begin(struct kvm_vcpu *v)
{
    atomic_fetch_add_explicit(&v->reader, 1, memory_order_seq_cst);
}

static inline void kvm_read_end(struct kvm_vcpu *v)
{
    uint64_t now = atomic_load_explicit(&v->reader, memory_order_relaxed);

    atomic_store_explicit(&v->reader, now + 1, memory_order_release);
}

/* Guest TSC now, as RDTSC would give it. Own thread, or with vcpu->lock. */
uint64_t kvm_vcpu_tsc(const struct kvm_vcpu *v);
/* Nanoseconds from now until the guest's TSC is `deadline` (0 when past). */
uint64_t kvm_vcpu_tsc_to_ns(const struct kvm_vcpu *v, uint64_t deadline);

/* The CPUID entry that answers function/index, or null. Under vcpu->lock. */
const struct kvm_cpuid_entry2 *kvm_vcpu_find_cpuid(const struct kvm_vcpu *v, uint32_t function,
                                                   uint32_t index);

#endif
