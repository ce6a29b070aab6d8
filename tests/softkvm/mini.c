#include "mini.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

void *mini_pages(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(p != MAP_FAILED);
    return p;
}

int mini_sys(struct mini *m, unsigned long request, void *arg)
{
    return softkvm_ioctl(m->s, m->kvm, request, arg);
}

int mini_vm_ioctl(struct mini *m, unsigned long request, void *arg)
{
    return softkvm_ioctl(m->s, m->vm, request, arg);
}

int mini_cpu_ioctl(struct mini *m, unsigned i, unsigned long request, void *arg)
{
    return softkvm_ioctl(m->s, m->vcpu[i], request, arg);
}

int mini_cap(struct mini *m, uint32_t cap, uint64_t arg)
{
    struct kvm_enable_cap c = {.cap = cap, .args = {arg}};

    return mini_vm_ioctl(m, KVM_ENABLE_CAP, &c);
}

int mini_has(struct mini *m, long cap)
{
    return mini_vm_ioctl(m, KVM_CHECK_EXTENSION, (void *)cap);
}

int mini_slot(struct mini *m, uint32_t id, uint32_t flags, uint64_t gpa, uint64_t size, void *at)
{
    struct kvm_userspace_memory_region r = {id, flags, gpa, size, (uintptr_t)at};

    return mini_vm_ioctl(m, KVM_SET_USER_MEMORY_REGION, &r);
}

int mini_slot2(struct mini *m, uint32_t id, uint64_t gpa, uint64_t size, void *at, int fd, uint64_t offset)
{
    struct kvm_userspace_memory_region2 r = {.slot = id, .flags = KVM_MEM_GUEST_MEMFD, .guest_phys_addr = gpa,
                                             .memory_size = size, .userspace_addr = (uintptr_t)at,
                                             .guest_memfd = (uint32_t)fd, .guest_memfd_offset = offset};

    return mini_vm_ioctl(m, KVM_SET_USER_MEMORY_REGION2, &r);
}

int mini_private(struct mini *m, uint64_t gpa, uint64_t size, int on)
{
    struct kvm_memory_attributes a = {gpa, size, on ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0, 0};

    return mini_vm_ioctl(m, KVM_SET_MEMORY_ATTRIBUTES, &a);
}

int mini_gmem(struct mini *m, uint64_t size, uint64_t flags)
{
    struct kvm_create_guest_memfd g = {.size = size, .flags = flags};

    return mini_vm_ioctl(m, KVM_CREATE_GUEST_MEMFD, &g);
}

struct mini *mini_vm_with(const struct softkvm_options *options, unsigned long type)
{
    struct mini *m = calloc(1, sizeof(*m));

    assert_non_null(m);
    m->s = softkvm_new(options, NULL, 0);
    assert_non_null(m->s);
    m->kvm = softkvm_open_system(m->s);
    m->vm = mini_sys(m, KVM_CREATE_VM, (void *)type);
    assert_true(m->vm >= 0);
    return m;
}

struct mini *mini_vm(unsigned long type)
{
    return mini_vm_with(NULL, type);
}

static void flat(struct mini *m, unsigned i)
{
    struct kvm_segment seg = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1,
                              .db = 1, .g = 1};
    struct kvm_sregs sregs;

    assert_int_equal(mini_cpu_ioctl(m, i, KVM_GET_SREGS, &sregs), 0);
    sregs.cr0 |= 1;
    sregs.cs = seg;
    seg.type = 3;
    seg.selector = 16;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = seg;
    assert_int_equal(mini_cpu_ioctl(m, i, KVM_SET_SREGS, &sregs), 0);
}

void mini_vcpus(struct mini *m, unsigned n)
{
    int e = 0;

    m->low = mini_pages(MINI_LOW_BYTES);
    assert_int_equal(mini_slot(m, 0, 0, 0, MINI_LOW_BYTES, m->low), 0);
    for (unsigned i = 0; i < n; i++) {
        m->vcpu[i] = mini_vm_ioctl(m, KVM_CREATE_VCPU, (void *)(uintptr_t)i);
        assert_true(m->vcpu[i] >= 0);
        m->run[i] = softkvm_mmap(m->s, m->vcpu[i], MINI_RUN_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, 0,
                                 &e);
        assert_non_null(m->run[i]);
        flat(m, i);
    }
    m->cpus = n;
}

void mini_long(struct mini *m, unsigned i, uint64_t high)
{
    uint64_t *t = (uint64_t *)(void *)(m->low + MINI_TABLES);
    struct kvm_sregs s;

    memset(t, 0, 4 * 4096);
    t[0] = (MINI_TABLES + 4096) | 7;
    for (uint64_t g = 0; g < 2; g++) {
        t[512 + g] = (MINI_TABLES + 8192 + g * 4096) | 7;
        for (uint64_t k = 0; k < 512; k++) {
            t[1024 + g * 512 + k] = k << 21 | 0x87 | (g ? high : 0);
        }
    }
    assert_int_equal(mini_cpu_ioctl(m, i, KVM_GET_SREGS, &s), 0);
    s.cs.db = 0;
    s.cs.l = 1;
    s.cr3 = MINI_TABLES;
    s.cr4 |= 1u << 5;
    s.cr0 |= 1u << 31 | 1;
    s.efer |= 0x500;
    assert_int_equal(mini_cpu_ioctl(m, i, KVM_SET_SREGS, &s), 0);
}

void mini_start(struct mini *m, unsigned i, const void *code, size_t bytes, const struct kvm_regs *r)
{
    struct kvm_regs regs = {0};

    if (r) {
        regs = *r;
    }
    memcpy(m->low + MINI_CODE, code, bytes);
    regs.rip = MINI_CODE;
    regs.rflags = 2;
    assert_int_equal(mini_cpu_ioctl(m, i, KVM_SET_REGS, &regs), 0);
}

int mini_run(struct mini *m, unsigned i)
{
    int r = mini_cpu_ioctl(m, i, KVM_RUN, NULL);

    return r < 0 ? r : (int)m->run[i]->exit_reason;
}

void mini_regs(struct mini *m, unsigned i, struct kvm_regs *r)
{
    assert_int_equal(mini_cpu_ioctl(m, i, KVM_GET_REGS, r), 0);
}

void mini_free(struct mini *m)
{
    softkvm_free(m->s);
    if (m->low) {
        munmap(m->low, MINI_LOW_BYTES);
    }
    free(m);
}
