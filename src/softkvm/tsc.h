/*
 * Agreement of a VM's time stamp counters; see tsc.c.
 */
#ifndef STRATA_SOFTKVM_TSC_H
#define STRATA_SOFTKVM_TSC_H

#include "softkvm/vcpu.h"

void kvm_tsc_synchronize(struct kvm_vcpu *v, uint64_t value);
int kvm_tsc_device_attr(struct kvm_vcpu *v, unsigned long request, const void *arg);

#endif
