/*
 * An in-kernel bus: which device of the engine answers an address, of memory or of ports. A vCPU asks
 * here before it leaves to user space.
 *
 * The table is immutable once published: a change makes a new one, swaps the pointer, waits for the
 * read sections of all vCPUs (kvm_readers_wait) and frees the old one. A lookup costs one load and a
 * binary search.
 *
 * Several devices may share an address; they are asked in order of start address, then of
 * registration, until one takes the access.
 *
 * Locks: changes are made under vm->slots_lock; reads in the read section of a vCPU.
 */
#ifndef STRATA_SOFTKVM_BUS_H
#define STRATA_SOFTKVM_BUS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/list.h"
#include "softkvm/irq.h"

struct kvm_bus_table;
struct kvm_coalesced_mmio_ring;
struct kvm_coalesced_mmio_zone;
struct kvm_ioeventfd;

/* 0: the access is done. -EOPNOTSUPP: not mine, ask the next. A read fills len bytes. */
struct kvm_bus_ops {
    int (*read)(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, void *data);
    int (*write)(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, const void *data);
};

struct kvm_bus_range {
    uint64_t addr;
    uint64_t len; /* 0: a write of any length that starts at addr (eventfds) */
    const struct kvm_bus_ops *ops;
    void *opaque;
    bool is_eventfd; /* not counted against KVM_BUS_MAX_DEVICES */
};

#define KVM_BUS_MAX_DEVICES 1000

struct kvm_bus {
    _Atomic(struct kvm_bus_table *) table; /* null: empty */
};

/* All buses of a VM, and what user space has put on them. vm->buses. */
struct kvm_buses {
    struct kvm_bus bus[2]; /* by enum kvm_bus_id */
    /* under slots_lock */
    struct list ioeventfds; /* ioeventfd.c */
    struct list zones;      /* coalesced.c */
    /* Under slots_lock for a new vCPU's mapping; written by vCPUs under ring_busy. */
    _Atomic(struct kvm_coalesced_mmio_ring *) ring;
    atomic_flag ring_busy;
    uint64_t coalesced; /* counter, written under ring_busy */
    uint64_t signalled; /* counter, relaxed atomic */
};

/* 0 with vm->buses set, or -ENOMEM. fini: no vCPU runs any more. */
int kvm_buses_init(struct kvm_vm *vm) must_check;
void kvm_buses_fini(struct kvm_vm *vm);

/* Put a device on a bus. 0, -ENOSPC (KVM_BUS_MAX_DEVICES are there), -EINVAL (the range wraps), or
 * -ENOMEM. Lock: slots_lock held. */
int kvm_bus_register(struct kvm_vm *vm, enum kvm_bus_id id, const struct kvm_bus_range *range) must_check;

/* Remove the range of `opaque`. On return no vCPU is inside it. 0, -ENOENT, or -ENOMEM: then it is
 * still there. Lock: slots_lock held; not from a read section. */
int kvm_bus_unregister(struct kvm_vm *vm, enum kvm_bus_id id, const void *opaque) must_check;

/* Offer an access to the devices at its address. 0 when taken, else -EOPNOTSUPP. Lock: none; v's read
 * section, or slots_lock. */
int kvm_bus_access(struct kvm_buses *buses, struct kvm_vcpu *v, const struct kvm_bus_access *a);

/* KVM_IOEVENTFD. 0 or -errno. Lock: takes slots_lock. */
int kvm_ioeventfd_change(struct kvm_vm *vm, const struct kvm_ioeventfd *args);
void kvm_ioeventfd_release_all(struct kvm_buses *buses);

/* KVM_REGISTER_ and UNREGISTER_COALESCED_MMIO. Lock: take slots_lock. */
int kvm_coalesced_register(struct kvm_vm *vm, const struct kvm_coalesced_mmio_zone *zone);
int kvm_coalesced_unregister(struct kvm_vm *vm, const struct kvm_coalesced_mmio_zone *zone);
void kvm_coalesced_release_all(struct kvm_buses *buses);

#endif
