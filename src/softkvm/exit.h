/* From a processor's exit to what is done about it, and the second half of user exits. */
#ifndef STRATA_SOFTKVM_EXIT_H
#define STRATA_SOFTKVM_EXIT_H

#include "base/compiler.h"
#include "cpu/exit.h"

struct kvm_vcpu;

/* What a handler says: */
#define KVM_GO_ON 1 /* into the guest again */
#define KVM_LEAVE 0 /* to user space, run->exit_reason is set */
                    /* < 0: KVM_RUN fails with it */

/* Serve v->cpu->exit. In a read section. */
int kvm_exit_handle(struct kvm_vcpu *v, enum cpu_exit_reason reason);

/* User space has answered the last exit: hand its data to the processor, or go on with the next piece
 * of the same access. KVM_GO_ON or KVM_LEAVE. */
int kvm_exit_complete(struct kvm_vcpu *v);

/* The instruction at hand is done: go on behind it, or leave to whoever steps through the guest. */
int kvm_exit_skip_insn(struct kvm_vcpu *v);

/* hypercall.c */
int kvm_exit_hypercall(struct kvm_vcpu *v);
int kvm_exit_complete_hypercall(struct kvm_vcpu *v);

/* host_fault.c: guest RAM that the host does not give any more. */
int kvm_exit_host_fault(struct kvm_vcpu *v);
int kvm_host_gone(struct kvm_vcpu *v, hva_t addr, bool is_poison) must_check;

/* Fill run for KVM_EXIT_INTERNAL_ERROR about the instruction in cpu->exit.error. */
int kvm_exit_internal_error(struct kvm_vcpu *v);

#endif
