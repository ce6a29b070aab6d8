/*
 * What the KVM ABI has gained since the headers that this builds against: numbers and layouts from the
 * kernel's API document. For the files of accel/ that use them; nothing here depends on an endpoint.
 */
#ifndef STRATA_ACCEL_ABI_H
#define STRATA_ACCEL_ABI_H

#include <linux/kvm.h>
#include <linux/types.h>

#define ACCEL_CAP_DIRTY_RING_WITH_BITMAP 225
#define ACCEL_CAP_USER_MEMORY2           231
#define ACCEL_CAP_MEMORY_FAULT_INFO      232
#define ACCEL_CAP_MEMORY_ATTRIBUTES      233
#define ACCEL_CAP_GUEST_MEMFD            234
#define ACCEL_CAP_VM_TYPES               235
#define ACCEL_CAP_PRE_FAULT_MEMORY       236

#define ACCEL_VM_SW_PROTECTED 1

#define ACCEL_MEM_GUEST_MEMFD (1u << 2)

/* KVM_SET_USER_MEMORY_REGION2 */
struct accel_memory_region2 {
    __u32 slot, flags;
    __u64 guest_phys_addr;
    __u64 memory_size;
    __u64 userspace_addr;
    __u64 guest_memfd_offset;
    __u32 guest_memfd, pad1;
    __u64 pad2[14];
};
#define ACCEL_SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct accel_memory_region2)

/* KVM_SET_MEMORY_ATTRIBUTES */
struct accel_memory_attributes {
    __u64 address, size, attributes, flags;
};
#define ACCEL_SET_MEMORY_ATTRIBUTES   _IOW(KVMIO, 0xd2, struct accel_memory_attributes)
#define ACCEL_MEMORY_ATTRIBUTE_PRIVATE (UINT64_C(1) << 3)

/* KVM_CREATE_GUEST_MEMFD */
struct accel_create_guest_memfd {
    __u64 size, flags, reserved[6];
};
#define ACCEL_CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct accel_create_guest_memfd)

/* KVM_PRE_FAULT_MEMORY */
struct accel_pre_fault {
    __u64 gpa, size, flags, padding[5];
};
#define ACCEL_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct accel_pre_fault)

/* KVM_EXIT_MEMORY_FAULT: what lies at the union of kvm_run. */
#define ACCEL_EXIT_MEMORY_FAULT         39
#define ACCEL_MEMORY_FAULT_FLAG_PRIVATE (UINT64_C(1) << 3)
struct accel_exit_memory_fault {
    __u64 flags, gpa, size;
};

/* The hypercall by which a guest asks for its pages to be shared or private. */
#define ACCEL_HC_MAP_GPA_RANGE         12
#define ACCEL_MAP_GPA_RANGE_ENCRYPTED (UINT64_C(1) << 4)

#endif
