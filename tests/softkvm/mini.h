/*
 * The smallest whole VM for tests of ioctls that only a running guest shows: an engine, a VM, vCPUs in
 * 32-bit flat mode, and one slot of low memory for code.
 */
#ifndef STRATA_TESTS_SOFTKVM_MINI_H
#define STRATA_TESTS_SOFTKVM_MINI_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>

#include "softkvm/kvm_abi.h"
#include "softkvm/softkvm.h"

#define MINI_LOW_BYTES 0x20000u
#define MINI_CODE      0x1000u
#define MINI_TABLES    0x10000u
#define MINI_CPUS      2
#define MINI_RUN_BYTES (3 * 4096u)

struct mini {
    struct softkvm *s;
    int kvm, vm, vcpu[MINI_CPUS];
    unsigned cpus;
    struct kvm_run *run[MINI_CPUS];
    char *low; /* slot 0 at gpa 0 */
};

/* An engine and a VM of the type, without slots or vCPUs; the test goes on by mini_vcpus(). */
struct mini *mini_vm(unsigned long type);
/* The same with options of the engine; null: the defaults. */
struct mini *mini_vm_with(const struct softkvm_options *options, unsigned long type);
/* Slot 0, and n vCPUs in flat 32-bit mode. */
void mini_vcpus(struct mini *m, unsigned n);
/* The same in long mode, by tables that lie in low memory: 1 GiB one to one, and from 1 GiB on the same again
 * with `high` or-ed to the physical addresses. */
void mini_long(struct mini *m, unsigned i, uint64_t high);
void mini_free(struct mini *m);

/* ioctls by descriptor; the result as softkvm_ioctl() gives it. */
int mini_sys(struct mini *m, unsigned long request, void *arg);
int mini_vm_ioctl(struct mini *m, unsigned long request, void *arg);
int mini_cpu_ioctl(struct mini *m, unsigned i, unsigned long request, void *arg);
int mini_cap(struct mini *m, uint32_t cap, uint64_t arg);
int mini_has(struct mini *m, long cap);
int mini_slot(struct mini *m, uint32_t id, uint32_t flags, uint64_t gpa, uint64_t size, void *at);

/* KVM_SET_USER_MEMORY_REGION2 with a private half; KVM_SET_MEMORY_ATTRIBUTES; KVM_CREATE_GUEST_MEMFD. */
int mini_slot2(struct mini *m, uint32_t id, uint64_t gpa, uint64_t size, void *at, int fd, uint64_t offset);
int mini_private(struct mini *m, uint64_t gpa, uint64_t size, int on);
int mini_gmem(struct mini *m, uint64_t size, uint64_t flags);

/* Zeroed pages of this process. */
void *mini_pages(size_t bytes);

/* Put code at MINI_CODE and start vCPU i there with these registers (null: all 0); rip and rflags are
 * set. Interrupts are off. */
void mini_start(struct mini *m, unsigned i, const void *code, size_t bytes, const struct kvm_regs *r);
/* KVM_RUN: the exit reason, or -errno. */
int mini_run(struct mini *m, unsigned i);
void mini_regs(struct mini *m, unsigned i, struct kvm_regs *r);

#endif
