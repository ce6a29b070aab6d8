/*
 * The engine's library, loaded when /dev/kvm is opened first: a program that never does so carries the hooks
 * alone.
 */
#ifndef STRATA_PRELOAD_LIB_H
#define STRATA_PRELOAD_LIB_H

#include "softkvm/abi_list.h"
#include "softkvm/softkvm.h"

/* The functions of libsoftkvm.so that are called. */
#define PRELOAD_LIB_CALLS(X)                                                                       \
    X(abi_ioctls) X(close) X(dup) X(fallocate) X(instructions) X(interrupt) X(ioctl)               \
    X(memory_begin) X(memory_discarded) X(memory_end) X(memory_unmapped) X(mmap) X(munmap) X(new)  \
    X(open_system) X(read)

struct preload_lib {
#define PRELOAD_LIB_FIELD(name) __typeof__(softkvm_##name) *name;
    PRELOAD_LIB_CALLS(PRELOAD_LIB_FIELD)
#undef PRELOAD_LIB_FIELD
};

/* Filled before there is an engine, constant afterwards. */
extern struct preload_lib preload_lib;

/* Load it: from beside this library, from the build's tree, or as the loader finds it. 0 or -1 with the reason in err.
 * Lock: preload_lock. */
int preload_lib_load(char *err, size_t size);

/* Is the address in the engine's library? */
bool preload_lib_has(const void *address);

#endif
