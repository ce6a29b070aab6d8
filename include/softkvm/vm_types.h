/*
 * VM types of libsoftkvm's own, for KVM_CREATE_VM beside KVM_X86_DEFAULT_VM and KVM_X86_SW_PROTECTED_VM;
 * KVM_CAP_VM_TYPES has their bits.
 *
 * SOFTKVM_X86_CONFIDENTIAL_VM: every page starts private, and bit SOFTKVM_SHARED_BIT of a guest-physical
 * address says which half the guest means: clear, the private one (guest_memfd); set, the shared one
 * (userspace_addr). An access to the half that the page's attribute does not name ends KVM_RUN with
 * -EFAULT and KVM_EXIT_MEMORY_FAULT; its gpa comes without the bit, the flag says which half was meant.
 * Conversion: the guest calls KVM_HC_MAP_GPA_RANGE (gpa without the bit), user space answers with
 * KVM_SET_MEMORY_ATTRIBUTES. Device memory is reached through the bit, and MMIO exits come without it.
 * Slots of such a VM cannot log dirty pages.
 */
#ifndef SOFTKVM_VM_TYPES_H
#define SOFTKVM_VM_TYPES_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define SOFTKVM_X86_CONFIDENTIAL_VM 16
#define SOFTKVM_SHARED_BIT          45

/*
 * SOFTKVM_POPULATE_PRIVATE, of a VM descriptor: copy the first contents into private pages, before any vCPU
 * has run; afterwards only the guest can. Returns 0; EFAULT (argument, source); EINVAL (flags, unaligned,
 * empty or wrapping range); ENOENT (a page without a slot that has a private half); EPERM (a page that is
 * shared); EBUSY (a vCPU has run). Pages before the failing one are copied.
 */
struct softkvm_populate {
    __u64 gpa;    /* bytes, page-aligned, without the shared bit; as size */
    __u64 size;
    __u64 source; /* pointer */
    __u64 flags;  /* 0 */
};

#define SOFTKVM_POPULATE_PRIVATE _IOW(0xAF, 0x11, struct softkvm_populate)

#endif
