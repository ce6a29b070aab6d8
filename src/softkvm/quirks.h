/*
 * Quirks of KVM's that user space may switch off (KVM_CAP_DISABLE_QUIRKS, _QUIRKS2), and paravirtual features that a guest
 * has only if its CPUID says so (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).
 */
#ifndef STRATA_SOFTKVM_QUIRKS_H
#define STRATA_SOFTKVM_QUIRKS_H

#include "softkvm/vcpu.h"

/* KVM_CHECK_EXTENSION(KVM_CAP_DISABLE_QUIRKS2). */
#define KVM_QUIRKS                                                                                 \
    (KVM_X86_QUIRK_LINT0_REENABLED | KVM_X86_QUIRK_CD_NW_CLEARED | KVM_X86_QUIRK_LAPIC_MMIO_HOLE | \
     KVM_X86_QUIRK_OUT_7E_INC_RIP | KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT |                           \
     KVM_X86_QUIRK_FIX_HYPERCALL_INSN | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)

static inline bool kvm_has_quirk(const struct kvm_vm *vm, uint64_t quirk)
{
    return !(atomic_load_explicit(&vm->disabled_quirks, memory_order_relaxed) & quirk);
}

/* CPU_FEAT_* that CPUID does not decide alone: MONITOR and MWAIT. */
uint32_t kvm_quirk_features(const struct kvm_vcpu *v);

/* The guest's hypercall is the other vendor's instruction. KVM_GO_ON: it was replaced by the right one, or the guest gets
 * its exception; see quirks.c. */
int kvm_quirk_hypercall(struct kvm_vcpu *v);

/* May the guest use a KVM_FEATURE_* (its bit number)? */
bool kvm_guest_pv_has(const struct kvm_vcpu *v, unsigned feature);

#endif
