/*
 * The part of the KVM ABI that is younger than the system's <linux/kvm.h>: numbers and layouts as the
 * kernel's documentation gives them (Documentation/virt/kvm/api.rst). Each piece steps back where the
 * system's header has it, judged by the macro that came with it.
 *
 * What is ours alone (VM type, slot transactions) has its own headers: <softkvm/vm_types.h>,
 * <softkvm/slots.h>.
 */
#ifndef SOFTKVM_KVM_ABI_H
#define SOFTKVM_KVM_ABI_H

#include <linux/ioctl.h>
#include <linux/kvm.h>
#include <linux/types.h>

/* ---- capabilities ---- */

#ifndef KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP
#define KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP 225
#endif
#ifndef KVM_CAP_USER_MEMORY2
#define KVM_CAP_USER_MEMORY2 231
#endif
#ifndef KVM_CAP_MEMORY_FAULT_INFO
#define KVM_CAP_MEMORY_FAULT_INFO 232
#endif
#ifndef KVM_CAP_MEMORY_ATTRIBUTES
#define KVM_CAP_MEMORY_ATTRIBUTES 233
#endif
#ifndef KVM_CAP_GUEST_MEMFD
#define KVM_CAP_GUEST_MEMFD 234
#endif
#ifndef KVM_CAP_VM_TYPES
#define KVM_CAP_VM_TYPES 235
#endif
#ifndef KVM_CAP_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif
#ifndef KVM_CAP_GUEST_MEMFD_FLAGS
#define KVM_CAP_GUEST_MEMFD_FLAGS 244
#endif

/* ---- VM types ---- */

#ifndef KVM_X86_DEFAULT_VM
#define KVM_X86_DEFAULT_VM 0
#endif
#ifndef KVM_X86_SW_PROTECTED_VM
#define KVM_X86_SW_PROTECTED_VM 1
#endif

/* ---- slots with a private half ---- */

#ifndef KVM_MEM_GUEST_MEMFD
#define KVM_MEM_GUEST_MEMFD (1UL << 2)
#endif

#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
    __u32 slot;            /* id; address space in the upper 16 bits */
    __u32 flags;           /* KVM_MEM_* */
    __u64 guest_phys_addr; /* bytes, page-aligned, as all that follow */
    __u64 memory_size;
    __u64 userspace_addr;
    __u64 guest_memfd_offset; /* with KVM_MEM_GUEST_MEMFD, as the next */
    __u32 guest_memfd;
    __u32 pad1;
    __u64 pad2[14];
};
#define KVM_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct kvm_userspace_memory_region2)
#endif

/* ---- attributes of guest-physical pages ---- */

#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes {
    __u64 address; /* guest-physical bytes, page-aligned, as size */
    __u64 size;
    __u64 attributes; /* KVM_MEMORY_ATTRIBUTE_* */
    __u64 flags;      /* 0 */
};
#define KVM_SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct kvm_memory_attributes)
#endif
#ifndef KVM_MEMORY_ATTRIBUTE_PRIVATE
#define KVM_MEMORY_ATTRIBUTE_PRIVATE (1ULL << 3)
#endif

/* ---- guest_memfd ---- */

#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd {
    __u64 size;  /* bytes, page-aligned */
    __u64 flags; /* GUEST_MEMFD_FLAG_* */
    __u64 reserved[6];
};
#define KVM_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct kvm_create_guest_memfd)
#endif
#ifndef GUEST_MEMFD_FLAG_MMAP
#define GUEST_MEMFD_FLAG_MMAP (1ULL << 0)
#endif
#ifndef GUEST_MEMFD_FLAG_INIT_SHARED
#define GUEST_MEMFD_FLAG_INIT_SHARED (1ULL << 1)
#endif

/* ---- pre-fault ---- */

#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory {
    __u64 gpa; /* in and out: how far it got */
    __u64 size;
    __u64 flags; /* 0 */
    __u64 padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif

/* ---- memory-fault exits ---- */

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#ifndef KVM_MEMORY_EXIT_FLAG_PRIVATE
#define KVM_MEMORY_EXIT_FLAG_PRIVATE (1ULL << 3)
#endif

/* run->memory_fault, for headers that have no such member. */
struct softkvm_memory_fault {
    __u64 flags; /* KVM_MEMORY_EXIT_FLAG_* */
    __u64 gpa;
    __u64 size;
};

static inline struct softkvm_memory_fault *softkvm_run_memory_fault(struct kvm_run *run)
{
    return (struct softkvm_memory_fault *)(void *)&run->hw; /* the exits' union begins there */
}

#endif
