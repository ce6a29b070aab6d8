/* Architectural state of a vCPU towards user space: reset, and the GET/SET ioctls. */
#ifndef STRATA_SOFTKVM_STATE_H
#define STRATA_SOFTKVM_STATE_H

#include <linux/kvm.h>
#include <stdint.h>

#include "base/compiler.h"

struct kvm_vcpu;
struct kvm_sregs_head;

/* RESET# (init false) or INIT, chips included once there are any. Under vcpu->lock. */
void kvm_vcpu_reset(struct kvm_vcpu *v, bool init);

void kvm_state_get_regs(struct kvm_vcpu *v, struct kvm_regs *r);
void kvm_state_set_regs(struct kvm_vcpu *v, const struct kvm_regs *r);
void kvm_state_get_sregs(struct kvm_vcpu *v, struct kvm_sregs *s);
int kvm_state_set_sregs(struct kvm_vcpu *v, const struct kvm_sregs *s);
void kvm_state_get_sregs2(struct kvm_vcpu *v, struct kvm_sregs2 *s);
int kvm_state_set_sregs2(struct kvm_vcpu *v, const struct kvm_sregs2 *s);
void kvm_state_get_fpu(struct kvm_vcpu *v, struct kvm_fpu *f);
int kvm_state_set_fpu(struct kvm_vcpu *v, const struct kvm_fpu *f);
void kvm_state_get_xsave(struct kvm_vcpu *v, struct kvm_xsave *x);
int kvm_state_set_xsave(struct kvm_vcpu *v, const struct kvm_xsave *x);
void kvm_state_get_xcrs(struct kvm_vcpu *v, struct kvm_xcrs *x);
int kvm_state_set_xcrs(struct kvm_vcpu *v, const struct kvm_xcrs *x);
void kvm_state_get_debugregs(struct kvm_vcpu *v, struct kvm_debugregs *d);
int kvm_state_set_debugregs(struct kvm_vcpu *v, const struct kvm_debugregs *d);
void kvm_state_get_events(struct kvm_vcpu *v, struct kvm_vcpu_events *e);
int kvm_state_set_events(struct kvm_vcpu *v, const struct kvm_vcpu_events *e);
int kvm_state_set_guest_debug(struct kvm_vcpu *v, const struct kvm_guest_debug *d);
void kvm_state_translate(struct kvm_vcpu *v, struct kvm_translation *t);

/* APIC base and CR8 as the chips or, without them, the vCPU have them. */
uint64_t kvm_state_apic_base(struct kvm_vcpu *v);
uint64_t kvm_state_cr8(struct kvm_vcpu *v);

#endif
