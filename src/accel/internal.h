/*
 * What the files of accel/ share: the VM and its vCPUs. Not for other folders.
 *
 * Threads: each vCPU has one, which alone issues KVM_RUN and writes its run page, but for immediate_exit.
 * The gate (gate_lock, gate_closed, vcpu->inside) keeps every vCPU out of KVM_RUN while slots that
 * overlap change: who closes it raises gate_closed, then waits until no `inside` is set; who enters sets
 * `inside`, then looks at gate_closed. Both are sequentially consistent, so one of the two sees the other.
 *
 *     vCPU thread                      closing thread
 *     inside = true                    gate_closed++
 *     if (gate_closed) back out        if (inside) kick, wait
 */
#ifndef STRATA_ACCEL_INTERNAL_H
#define STRATA_ACCEL_INTERNAL_H

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "accel/accel.h"
#include "accel/endpoint.h"
#include "base/trace.h"

#define ACCEL_EXIT_KINDS 64

struct accel_slots;

/* The words after the engine in -accel; zero where not given. */
struct accel_properties {
    uint32_t dirty_ring_size; /* entries per vCPU, a power of two */
    bool no_manual_protect, no_initially_set, confidential;
    uint64_t max_slot_size;   /* bytes, whole pages */
    unsigned stage2; /* SOFTKVM_STAGE2_* */
    unsigned mmu, levels, max_page_level; /* of the software engine, as accel_soft_options */
    uint64_t frames, swap; /* the same: host memory to simulate, and swap; bytes */
};

struct accel_vcpu {
    struct accel *accel;
    unsigned index; /* also the APIC id */
    int fd;
    struct kvm_run *run; /* the shared page, run_size bytes; owner: this struct */
    pthread_t thread;
    bool thread_started;
    atomic_bool inside; /* in KVM_RUN */
    struct kvm_dirty_gfn *ring; /* accel->ring_entries of them, or NULL; mapped, owner: this struct */
    uint32_t ring_fetch;        /* next entry to collect; slots' lock */
    _Atomic uint64_t dirty_pages, dirty_rate; /* since the reaper's last round; bytes a second */
    _Atomic uint64_t dirty_limit, throttle_ns, throttled_ns;
    _Atomic uint64_t exits[ACCEL_EXIT_KINDS];
    _Atomic uint64_t interrupted; /* KVM_RUN left by a kick */
};

struct accel {
    struct accel_endpoint *ep;
    struct base_trace trace;
    int system_fd, vm_fd;
    size_t run_size;
    unsigned coalesced_page; /* offset of the ring in pages; 0: none */
    bool has_readonly_mem, has_coalesced_pio, has_prefault, has_memory_faults;
    bool manual_protect; /* KVM_CLEAR_DIRTY_LOG protects, reading the log does not */
    bool confidential;   /* memory attributes and private halves */
    bool ring_bitmap;    /* the engine keeps bitmaps beside the rings */
    uint32_t ring_entries; /* of each vCPU's dirty ring; 0: bitmaps */
    unsigned max_slots;
    unsigned max_transaction; /* changes of slots that the engine takes as one; 0: it cannot */
    uint64_t max_slot_size;
    struct accel_properties properties;
    char reason[160];
    char *cpu_text;

    struct kvm_cpuid2 *cpuid; /* what the engine supports */
    unsigned vcpu_wanted; /* of the topology */
    unsigned vcpu_count;  /* created so far */
    struct accel_vcpu *vcpus;

    struct strata_space *memory, *io; /* borrowed */
    struct accel_slots *slots;

    pthread_mutex_t device_lock;
    _Atomic(pthread_t) device_owner; /* who holds device_lock; 0: nobody */
    bool draining;                   /* the coalesced ring is being drained; device lock */
    unsigned current_vcpu; /* whose exit is being answered; device lock */

    pthread_mutex_t gate_lock;
    pthread_cond_t gate_cond;
    atomic_uint gate_closed;
    atomic_bool stopping;
    atomic_bool told; /* the stop callback has been called */
    accel_stop_fn *stop;
    void *opaque;
    bool (*fail_alloc)(void *opaque);
    void *fail_opaque;

    pthread_t reaper; /* ring.c */
    pthread_mutex_t reaper_lock;
    pthread_cond_t reaper_cond;
    bool reaper_runs, reaper_stop;
};

/* As calloc(), but where accel_options.fail_alloc may refuse. Freed with free(). */
void *accel_calloc(struct accel *a, size_t n, size_t size) must_check;

/* properties.c: what comes after the engine's name in -accel. *length: of the engine's part. */
int accel_properties_parse(const char *text, struct accel_properties *out, size_t *length,
                           struct base_error *err);

/* What was said of the software engine, into its options. */
void accel_properties_apply(const struct accel_properties *p, struct accel_soft_options *soft);

/* select.c: list of engines, `length` bytes of it. */
int accel_endpoint_select(struct accel *a, const struct accel_options *opts, const char *list, size_t length,
                          struct base_error *err);

/* vm.c */
int accel_vm_create(struct accel *a, struct base_error *err);

/* vcpu.c */
int accel_vcpu_create(struct accel *a, unsigned index, struct base_error *err);
void accel_vcpu_destroy(struct accel_vcpu *v);
void accel_vcpu_kick(struct accel_vcpu *v);
/* Close the gate: on return no vCPU but the caller's is in KVM_RUN. Nests. */
void accel_gate_close(struct accel *a);
void accel_gate_open(struct accel *a);

/* exits.c: answer the exit in v->run; false: the vCPU must stop. */
bool accel_exit_handle(struct accel_vcpu *v);
void accel_tell_stop(struct accel *a, enum accel_stop why, const char *detail);

/* bus.c: guest accesses into the address spaces, device lock held. */
void accel_bus_pio(struct accel *a, uint16_t port, void *data, unsigned size, bool is_write);
void accel_bus_mmio(struct accel *a, uint64_t addr, void *data, unsigned len, bool is_write);

/* coalesced.c: hand the ring's writes to the devices, oldest first; device lock held. */
void accel_coalesced_drain(struct accel *a);
/* The same from a thread that may or may not hold it. */
void accel_coalesced_flush(struct accel *a);

/* ring.c */
int accel_ring_enable(struct accel *a, uint32_t entries, struct base_error *err);
int accel_ring_start(struct accel *a);
void accel_ring_stop(struct accel *a);
bool accel_ring_full(struct accel_vcpu *v);
void accel_ring_throttle(struct accel_vcpu *v);

/* private.c */
int accel_private_convert(struct accel *a, uint64_t gpa, uint64_t size, bool to_private);

/* cpuid.c */
int accel_cpuid_fetch(struct accel *a, struct base_error *err);
int accel_cpuid_apply(struct accel_vcpu *v, struct base_error *err);

/* slots.c */
int accel_slots_new(struct accel *a, struct base_error *err);
void accel_slots_free(struct accel_slots *s);

#endif
