/*
 * Copies from and to the caller's memory that fail instead of faulting: the kernel answers EFAULT for
 * a bad pointer, and so does a library that is handed one. Through the kernel's own checked copy
 * (process_vm_readv on this very process), or plainly where a sandbox forbids that call.
 */
#ifndef STRATA_SOFTKVM_USER_H
#define STRATA_SOFTKVM_USER_H

#include <stddef.h>

#include "base/compiler.h"

/* 0, or -EFAULT with nothing promised about the destination. */
int kvm_user_read(void *dst, const void *user_src, size_t len) must_check;
int kvm_user_write(void *user_dst, const void *src, size_t len) must_check;

#endif
