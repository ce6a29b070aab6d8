/*
 * Capabilities. The list says what is there and tested; the chips answer for their own.
 */
#include "softkvm/cap.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <unistd.h>

#include "softkvm/attributes.h"
#include "softkvm/gmem.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/mmu_nx.h"
#include "softkvm/quirks.h"
#include "softkvm/ring.h"
#include "softkvm/slot.h"
#include "softkvm/slot_transaction.h"
#include "softkvm/slots.h"
#include "softkvm/vm.h"

#define MANUAL_DIRTY (KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)
#define GUEST_DEBUG                                                                                \
    (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP |                      \
     KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_INJECT_DB |  \
     KVM_GUESTDBG_BLOCKIRQ)
#define USER_MSR                                                                                   \
    (KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)

static const struct {
    long extension;
    int value;
} fixed[] = {
    {KVM_CAP_USER_MEMORY, 1},
    {KVM_CAP_DESTROY_MEMORY_REGION_WORKS, 1},
    {KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, 1},
    {KVM_CAP_SYNC_MMU, 1},
    {KVM_CAP_READONLY_MEM, 1},
    {KVM_CAP_NR_MEMSLOTS, KVM_SLOT_IDS - KVM_SLOT_INTERNAL},
    {KVM_CAP_MAX_VCPUS, KVM_VM_MAX_VCPUS},
    {KVM_CAP_MAX_VCPU_ID, KVM_VM_MAX_VCPUS},
    {KVM_CAP_MULTI_ADDRESS_SPACE, KVM_AS_COUNT},
    {KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, MANUAL_DIRTY},
    {KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, 1},
    {KVM_CAP_SET_TSS_ADDR, 1},
    {KVM_CAP_SET_IDENTITY_MAP_ADDR, 1},
    {KVM_CAP_EXT_CPUID, 1},
    {KVM_CAP_MP_STATE, 1},
    {KVM_CAP_NOP_IO_DELAY, 1},
    {KVM_CAP_HLT, 1},
    {KVM_CAP_MMU_SHADOW_CACHE_CONTROL, 1},
    {KVM_CAP_USER_NMI, 1},
    {KVM_CAP_SET_GUEST_DEBUG, 1},
    {KVM_CAP_SET_GUEST_DEBUG2, GUEST_DEBUG},
    {KVM_CAP_VCPU_EVENTS, 1},
    {KVM_CAP_X86_ROBUST_SINGLESTEP, 1},
    {KVM_CAP_DEBUGREGS, 1},
    {KVM_CAP_XSAVE, 1},
    {KVM_CAP_XSAVE2, sizeof(struct kvm_xsave)},
    {KVM_CAP_XCRS, 1},
    {KVM_CAP_SREGS2, 1},
    {KVM_CAP_TSC_CONTROL, 1},
    {KVM_CAP_VM_TSC_CONTROL, 1},
    {KVM_CAP_VCPU_ATTRIBUTES, 1},
    {KVM_CAP_DISABLE_QUIRKS2, KVM_QUIRKS},
    {KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1},
    {KVM_CAP_MSR_PLATFORM_INFO, 1},
    {KVM_CAP_GET_TSC_KHZ, 1},
    {KVM_CAP_TSC_DEADLINE_TIMER, 1},
    {KVM_CAP_MCE, 32},
    {KVM_CAP_GET_MSR_FEATURES, 1},
    {KVM_CAP_X86_USER_SPACE_MSR, USER_MSR},
    {KVM_CAP_X86_MSR_FILTER, 1},
    {KVM_CAP_IMMEDIATE_EXIT, 1},
    {KVM_CAP_SYNC_REGS, KVM_SYNC_X86_VALID_FIELDS},
    {KVM_CAP_CHECK_EXTENSION_VM, 1},
    {KVM_CAP_ENABLE_CAP_VM, 1},
    {KVM_CAP_ENABLE_CAP, 1},
    {KVM_CAP_INTERNAL_ERROR_DATA, 1},
    {KVM_CAP_BINARY_STATS_FD, 1},
    {KVM_CAP_DIRTY_LOG_RING, KVM_RING_MAX_BYTES},
    {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_RING_MAX_BYTES},
    {KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, 1},
    {KVM_CAP_EXCEPTION_PAYLOAD, 1},
    {KVM_CAP_USER_MEMORY2, 1},
    {KVM_CAP_MEMORY_FAULT_INFO, 1},
    {KVM_CAP_GUEST_MEMFD, 1},
    {KVM_CAP_EXIT_HYPERCALL, 1u << KVM_HC_MAP_GPA_RANGE},
    {KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1},
    {KVM_CAP_SET_BOOT_CPU_ID, 1},
    {KVM_CAP_EXT_EMUL_CPUID, 1},
    {KVM_CAP_DISABLE_QUIRKS, 1},
};

int kvm_cap_check(struct softkvm *s, struct kvm_vm *vm, long extension)
{
    int chips = kvm_irq_chips.check_extension(s, vm, extension);
    long cpus;

    if (chips != -ENOTTY) {
        return chips;
    }
    if (extension == KVM_CAP_NR_VCPUS) {
        cpus = sysconf(_SC_NPROCESSORS_ONLN);
        return cpus < 1 ? 1 : cpus > KVM_VM_MAX_VCPUS ? KVM_VM_MAX_VCPUS : (int)cpus;
    }
    switch (extension) {
    case KVM_CAP_VM_TYPES:
        return (int)kvm_vm_types(s);
    case KVM_CAP_MEMORY_ATTRIBUTES:
        return (int)kvm_attributes_supported(vm);
    case KVM_CAP_GUEST_MEMFD_FLAGS:
        return (int)kvm_gmem_flags(vm);
    case SOFTKVM_CAP_SLOT_TRANSACTION:
        return KVM_SLOT_TRANSACTION_MAX;
    case KVM_CAP_PRE_FAULT_MEMORY:
        return s->options.mmu != SOFTKVM_MMU_SHADOW;
    default:
        break;
    }
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++) {
        if (fixed[i].extension == extension) {
            return fixed[i].value;
        }
    }
    return 0;
}

static int enable_manual_dirty(struct kvm_vm *vm, uint64_t bits)
{
    if ((bits & ~(uint64_t)MANUAL_DIRTY) || bits == KVM_DIRTY_LOG_INITIALLY_SET) {
        return -EINVAL;
    }
    vm->manual_dirty = bits;
    return 0;
}

static int enable_locked(struct kvm_vm *vm, const struct kvm_enable_cap *cap)
{
    switch (cap->cap) {
    case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
        return enable_manual_dirty(vm, cap->args[0]);
    case KVM_CAP_DIRTY_LOG_RING:
    case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
        return kvm_ring_enable(vm, cap->args[0]);
    case KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP:
        return kvm_ring_enable_bitmap(vm);
    case KVM_CAP_VM_DISABLE_NX_HUGE_PAGES:
        return cap->args[0] ? -EINVAL : kvm_nx_disable(vm);
    case KVM_CAP_EXIT_HYPERCALL:
        if (cap->args[0] & ~(UINT64_C(1) << KVM_HC_MAP_GPA_RANGE)) {
            return -EINVAL;
        }
        vm->exit_hypercalls = cap->args[0];
        return 0;
    case KVM_CAP_X86_USER_SPACE_MSR:
        if (cap->args[0] & ~(uint64_t)USER_MSR) {
            return -EINVAL;
        }
        vm->user_msr_mask = (uint32_t)cap->args[0];
        return 0;
    case KVM_CAP_EXCEPTION_PAYLOAD:
        vm->exception_payload = cap->args[0] != 0;
        return 0;
    case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
        vm->triple_fault_event = cap->args[0] != 0;
        return 0;
    case KVM_CAP_DISABLE_QUIRKS2:
        if (cap->args[0] & ~(uint64_t)KVM_QUIRKS) {
            return -EINVAL;
        }
        atomic_store(&vm->disabled_quirks, cap->args[0]);
        return 0;
    case KVM_CAP_DISABLE_QUIRKS:
        atomic_store(&vm->disabled_quirks, cap->args[0]);
        return 0;
    case KVM_CAP_MSR_PLATFORM_INFO:
        vm->no_platform_info = cap->args[0] == 0;
        return 0;
    case KVM_CAP_MAX_VCPU_ID:
        if (cap->args[0] > KVM_VM_MAX_VCPUS) {
            return -EINVAL;
        }
        if (vm->max_vcpu_id == cap->args[0]) {
            return 0;
        }
        if (vm->max_vcpu_id || kvm_vm_nr_vcpus(vm)) {
            return -EINVAL; /* set once, before the first vCPU */
        }
        vm->max_vcpu_id = (uint32_t)cap->args[0];
        return 0;
    default:
        return -EINVAL;
    }
}

int kvm_cap_enable(struct kvm_vm *vm, const struct kvm_enable_cap *cap)
{
    uint64_t args[ARRAY_LEN(cap->args)];
    int r;

    if (cap->flags) {
        return -EINVAL;
    }
    for (size_t i = 0; i < ARRAY_LEN(args); i++) {
        args[i] = cap->args[i];
    }
    r = vm->irq->enable_cap(vm, cap->cap, args);
    if (r != -EINVAL) {
        return r;
    }
    pthread_mutex_lock(&vm->lock);
    r = enable_locked(vm, cap);
    pthread_mutex_unlock(&vm->lock);
    return r;
}
