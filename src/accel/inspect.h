/*
 * Looking into an engine that lets itself be looked into (libsoftkvm; the kernel's answers ENOTTY): an
 * address followed through every layer, and counters. vCPUs are stopped while these are called.
 */
#ifndef STRATA_ACCEL_INSPECT_H
#define STRATA_ACCEL_INSPECT_H

#include <stdint.h>
#include <stdio.h>

#include "accel/accel.h"
#include "base/addr.h"

/* Where processor `vcpu` stands. 0 or -errno. */
int accel_rip_get(struct accel *a, unsigned vcpu, gva_t *rip) must_check;

/* The lowest address that a user program of this processor's current address space has mapped.
 * -ENOENT: none, or paging is not 4- or 5-level. Reads guest memory only, on any engine. */
int accel_user_address_find(struct accel *a, unsigned vcpu, gva_t *out) must_check;

/* Write every table entry on the way of addr, from the guest's top table to the host's frame.
 * -ENOTTY: this engine cannot be looked into. */
int accel_explain_show(struct accel *a, unsigned vcpu, gva_t addr, FILE *to) must_check;

/* Named counters of the engine: the VM's and, from the system descriptor, the host model's. */
typedef void accel_counter_fn(void *opaque, const char *name, uint64_t value);
int accel_counters_read(struct accel *a, accel_counter_fn *fn, void *opaque) must_check;

/* Second-stage leaves by size (4 KiB, 2 MiB, 1 GiB) and table frames. -ENOTTY as above. */
struct accel_mapping_counts {
    uint64_t leaves[3], mmio, tables;
};
int accel_mappings_count(struct accel *a, struct accel_mapping_counts *out) must_check;

#endif
