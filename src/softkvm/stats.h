/* Statistics descriptors: KVM_GET_STATS_FD in the kernel's binary format. */
#ifndef STRATA_SOFTKVM_STATS_H
#define STRATA_SOFTKVM_STATS_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_vm;
struct kvm_vcpu;
struct kvm_stats_file;
struct softkvm;

/* A named figure of a VM or vCPU. */
struct kvm_stat {
    const char *name;
    uint64_t value;
    uint32_t flags; /* KVM_STATS_TYPE_* | UNIT | BASE */
    int16_t exponent;
};

#define KVM_STATS_MAX 160

/* Fill in the figures of a VM (v null: its own and sums of its vCPUs') or of one vCPU. Returns how
 * many; at most KVM_STATS_MAX. */
unsigned kvm_stats_collect(struct kvm_vm *vm, struct kvm_vcpu *v, struct kvm_stat *out);

/* KVM_GET_STATS_FD: descriptor or -errno. */
int kvm_stats_open(struct kvm_vm *vm, struct kvm_vcpu *v);
void kvm_stats_get(struct kvm_stats_file *f);
void kvm_stats_put(struct kvm_stats_file *f);
int64_t kvm_stats_read(struct kvm_stats_file *f, void *buf, size_t len, uint64_t offset);

#endif
