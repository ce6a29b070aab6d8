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

struct accel_vcpu {
    struct accel *accel;
    unsigned index; /* also the APIC id */
    int fd;
    struct kvm_run *run; /* the shared page, run_size bytes; owner: this struct */
    pthread_t thread;
    bool thread_started;
    atomic_bool inside; /* in KVM_RUN */
    _Atomic uint64_t exits[ACCEL_EXIT_KINDS];
    _Atomic uint64_t interrupted; /* KVM_RUN left by a kick */
};

struct accel {
    struct accel_endpoint *ep;
    struct base_trace trace;
    int system_fd, vm_fd;
    size_t run_size;
    unsigned coalesced_page; /* offset of the ring in pages; 0: none */
    bool has_readonly_mem;
    unsigned max_slots;
    char reason[160];
    char *cpu_text;

    struct kvm_cpuid2 *cpuid; /* what the engine supports */
    unsigned vcpu_wanted; /* of the topology */
    unsigned vcpu_count;  /* created so far */
    struct accel_vcpu *vcpus;

    struct strata_space *memory, *io; /* borrowed */
    struct accel_slots *slots;

    pthread_mutex_t device_lock;
    unsigned current_vcpu; /* whose exit is being answered; device lock */

    pthread_mutex_t gate_lock;
    pthread_cond_t gate_cond;
    atomic_uint gate_closed;
    atomic_bool stopping;
    atomic_bool told; /* the stop callback has been called */
    accel_stop_fn *stop;
    void *opaque;
};

/* select.c */
int accel_endpoint_select(struct accel *a, const struct accel_options *opts, struct base_error *err);

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

/* cpuid.c */
int accel_cpuid_fetch(struct accel *a, struct base_error *err);
int accel_cpuid_apply(struct accel_vcpu *v, struct base_error *err);

/* slots.c */
int accel_slots_new(struct accel *a, struct base_error *err);
void accel_slots_free(struct accel_slots *s);

#endif
