/*
 * Copies from and to the caller's memory that fail instead of faulting: the kernel answers EFAULT for
 * a bad pointer, and so does a library that is handed one. By guarded accesses (base/guard.h); without the
 * handlers through the kernel's own checked copy (process_vm_readv on this very process), or plainly where a sandbox
 * forbids that call.
 */
#ifndef STRATA_SOFTKVM_USER_H
#define STRATA_SOFTKVM_USER_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"

/* 0, or -EFAULT with nothing promised about the destination. */
int kvm_user_read(void *dst, const void *user_src, size_t len) must_check;
int kvm_user_write(void *user_dst, const void *src, size_t len) must_check;
/* The same with zeros. */
int kvm_user_clear(void *user_dst, size_t len) must_check;

/* An entry of a guest's table, size 4 or 8, naturally aligned: read whole, or exchanged as the processor does. -EFAULT: the
 * host does not give the page; exchange: 1 done, 0 it is not `old`. Without the handlers a page that is gone ends the
 * process. */
int kvm_user_get_entry(const void *p, unsigned size, uint64_t *v) must_check;
int kvm_user_exchange_entry(void *p, unsigned size, uint64_t old, uint64_t new_value) must_check;

#endif
