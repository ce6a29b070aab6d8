/*
 * The KVM ABI on x86 as data: every request and capability, whether libsoftkvm has it or not. For programs
 * that print it, and for naming a request that is not there.
 */
#ifndef SOFTKVM_ABI_LIST_H
#define SOFTKVM_ABI_LIST_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

#pragma GCC visibility push(default)

#define SOFTKVM_LEVEL_SYSTEM 1u
#define SOFTKVM_LEVEL_VM     2u
#define SOFTKVM_LEVEL_VCPU   4u

struct softkvm_abi_ioctl {
    const char *name;    /* "KVM_RUN" */
    unsigned long number;
    unsigned levels;     /* SOFTKVM_LEVEL_*: of which descriptors */
    bool takes_pointer;  /* the argument points to something; otherwise a number, or nothing */
    bool is_there;
    const char *note;    /* why not, or with what limits; may be empty */
};

struct softkvm_abi_cap {
    const char *name;    /* "KVM_CAP_IRQCHIP" */
    long number;
    const char *note;
};

/* The tables. *count: entries. Constant, never null. */
const struct softkvm_abi_ioctl *softkvm_abi_ioctls(unsigned *count);
const struct softkvm_abi_cap *softkvm_abi_caps(unsigned *count);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif
