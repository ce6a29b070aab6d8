/*
 * The door of accel/: one virtual machine driven through the KVM ioctl ABI, whoever answers it.
 *
 * Flow: accel_open() chooses the engine and makes the VM; accel_attach() hangs the address spaces on it
 * (accel/slots.c turns flat ranges into memory slots); accel_vcpu_*() give each processor its CPUID
 * and first registers; accel_start() gives each a thread that runs it and answers its exits;
 * accel_stop() brings them home.
 *
 * Locks: the device lock (accel_lock) is held while an exit is answered, and by whoever changes the
 * topology or a device from another thread. It is outermost: no lock of accel/ is held while it is taken.
 */
#ifndef STRATA_ACCEL_ACCEL_H
#define STRATA_ACCEL_ACCEL_H

#include <stdint.h>
#include <stdio.h>

#include "accel/cpu.h"
#include "base/error.h"
#include "base/trace.h"

struct accel;
struct strata_space;

/* Why the vCPUs stopped; told to the machine once per run, by the vCPU that met it. */
enum accel_stop {
    ACCEL_STOP_SHUTDOWN,       /* triple fault */
    ACCEL_STOP_RESET,          /* KVM_SYSTEM_EVENT_RESET */
    ACCEL_STOP_POWEROFF,       /* KVM_SYSTEM_EVENT_SHUTDOWN */
    ACCEL_STOP_CRASH,          /* KVM_SYSTEM_EVENT_CRASH */
    ACCEL_STOP_INTERNAL_ERROR, /* KVM_EXIT_INTERNAL_ERROR, FAIL_ENTRY, an exit never asked for */
};

typedef void accel_stop_fn(void *opaque, enum accel_stop why, const char *detail);

struct accel_soft_options;

struct accel_options {
    /* "auto", "kvm", "soft", "kvm:soft", then any of ",dirty-ring-size=N" and the like
     * (properties.c); NULL: auto */
    const char *engine;
    unsigned vcpus;     /* 1..ACCEL_MAX_VCPUS */
    const char *cpu;    /* -cpu text; NULL: all that the engine supports */
    const struct accel_soft_options *soft;
    accel_stop_fn *stop;
    void *opaque;
    /* Asked before each allocation; true makes it fail. For tests; may be NULL. */
    bool (*fail_alloc)(void *opaque);
    void *fail_opaque;
};

#define ACCEL_MAX_VCPUS 64

/* 0 when text may stand in accel_options.engine; -EINVAL with the word at fault in err. */
int accel_engine_check(const char *text, struct base_error *err);

int accel_open(struct accel **out, const struct accel_options *opts, struct base_error *err) must_check;
void accel_free(struct accel *a);

/* "kvm" or "soft", and one line of why it was taken. */
const char *accel_engine(const struct accel *a);
const char *accel_engine_reason(const struct accel *a);

void accel_lock(struct accel *a);
void accel_unlock(struct accel *a);

/* Where guest accesses go: the space of memory and that of ports. */
int accel_attach(struct accel *a, struct strata_space *memory,
                 struct strata_space *io, struct base_error *err) must_check;

/* Registers of processor 0 before its first instruction; the others wait for INIT and SIPI. */
int accel_boot_cpu_set(struct accel *a, const struct accel_boot_state *state,
                       struct base_error *err) must_check;

int accel_start(struct accel *a, struct base_error *err) must_check;
/* Stop all vCPU threads and join them. Not from a vCPU thread. */
void accel_stop(struct accel *a);
/* Ask every vCPU thread to end soon; from any thread, vCPU threads included. Does not wait. */
void accel_request_stop(struct accel *a);

/* The vCPU whose exit is being answered. Device lock held; 0 outside of an exit. */
unsigned accel_current_vcpu(const struct accel *a);

/* Level of an interrupt line of the in-kernel chips (GSI 0..23). From any thread. */
int accel_irq_set(struct accel *a, unsigned gsi, int level);

/* A message-signalled interrupt. */
int accel_msi_send(struct accel *a, uint64_t address, uint32_t data);

/* The guest's clock: nanoseconds since the VM began, as kvmclock counts. Stands while the engine's does. */
uint64_t accel_clock_ns(struct accel *a);

/* Where accel's trace points go; while nothing runs. */
void accel_trace_set(struct accel *a, base_trace_fn *sink, void *opaque);

/* Exits so far, by kind. */
struct accel_exit_count {
    const char *name;
    uint64_t count;
};
/* Fill at most max entries, largest first; returns how many. */
unsigned accel_exit_counts(struct accel *a, struct accel_exit_count *out, unsigned max);

/* Memory slots as the engine has them now. */
struct accel_slot_info {
    unsigned id;
    uint32_t flags;
    uint64_t gpa, size, hva;
};
unsigned accel_slots(struct accel *a, struct accel_slot_info *out, unsigned max);
/* How many more the engine would take. */
unsigned accel_slots_free_count(struct accel *a);

/* Dirty rings only: hold a vCPU to so many bytes a second (0: no limit), and what it does. -EINVAL no such
 * vCPU, -EOPNOTSUPP no rings. */
int accel_dirty_limit_set(struct accel *a, unsigned vcpu, uint64_t bytes_per_second);
struct accel_dirty_rate {
    uint64_t bytes_per_second; /* in the last whole second */
    uint64_t limit;            /* 0: none */
    uint64_t throttled_ns;     /* held back so far */
};
int accel_dirty_rate(struct accel *a, unsigned vcpu, struct accel_dirty_rate *out);

/* Fill the second stage of [gpa, gpa + size) before the guest runs there. -EOPNOTSUPP: not this engine. */
int accel_prefault(struct accel *a, uint64_t gpa, uint64_t size);

/* Call fn for every value of the KVM statistics descriptors: vcpu is -1 for the VM's own.
 * Returns 0; -ENOTTY and the like where the engine has none. */
typedef void accel_stat_fn(void *opaque, int vcpu, const char *name, const uint64_t *values,
                           unsigned count);
int accel_stats_read(struct accel *a, accel_stat_fn *fn, void *opaque);

/* Write registers of every vCPU as text (for -d and after an internal error). vCPUs are stopped. */
void accel_registers_show(struct accel *a, FILE *to);

#endif
