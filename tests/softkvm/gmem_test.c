/*
 * Private memory: guest_memfd, slots with a private half, attributes, memory-fault exits, pre-fault, both VM
 * types that have it. Errors in KVM's order; what a guest stores in one half is not seen in the other.
 */
#include <errno.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "mini.h"
#include "softkvm/inspect.h"
#include "softkvm/vm_types.h"

#define DATA  0x400000u
#define BYTES 0x400000u
#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)

/* [EDI] = EAX; HLT.  EAX = [EDI]; HLT. */
static const uint8_t store_code[] = {0x89, 0x07, 0xf4};
static const uint8_t load_code[] = {0x8b, 0x07, 0xf4};

static void check(struct mini *m)
{
    struct softkvm_check c = {.size = sizeof(c)};

    if (mini_vm_ioctl(m, SOFTKVM_CHECK, &c)) {
        fail_msg("%s", c.text);
    }
}

static struct mini *world(unsigned long type, void **data, int *fd)
{
    struct mini *m = mini_vm(type);

    mini_vcpus(m, 1);
    *data = mini_pages(BYTES);
    *fd = mini_gmem(m, BYTES, 0);
    assert_true(*fd >= 0);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, *data, *fd, 0), 0);
    return m;
}

static int store(struct mini *m, uint64_t at, uint32_t value)
{
    struct kvm_regs r = {.rdi = at, .rax = value};

    mini_start(m, 0, store_code, sizeof(store_code), &r);
    return mini_run(m, 0);
}

static uint32_t load(struct mini *m, uint64_t at)
{
    struct kvm_regs r = {.rdi = at};

    mini_start(m, 0, load_code, sizeof(load_code), &r);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    mini_regs(m, 0, &r);
    return (uint32_t)r.rax;
}

static uint32_t shared_word(const void *data, uint32_t offset)
{
    return *(const volatile uint32_t *)(const void *)((const char *)data + offset);
}

static void assert_fault(struct mini *m, uint64_t gpa, uint64_t flags)
{
    const struct softkvm_memory_fault *f = softkvm_run_memory_fault(m->run[0]);

    assert_int_equal(m->run[0]->exit_reason, KVM_EXIT_MEMORY_FAULT);
    assert_int_equal(f->gpa, gpa);
    assert_int_equal(f->size, 4096);
    assert_int_equal(f->flags, flags);
}

static void capabilities(void **state)
{
    static const unsigned long types[] = {KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM,
                                          SOFTKVM_X86_CONFIDENTIAL_VM};

    for (int i = 0; i < 3; i++) {
        struct mini *m = mini_vm(types[i]);

        assert_int_equal(mini_has(m, KVM_CAP_VM_TYPES), 1 | 2 | 1 << 16);
        assert_int_equal(mini_has(m, KVM_CAP_MEMORY_ATTRIBUTES), i ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0);
        assert_int_equal(mini_has(m, KVM_CAP_GUEST_MEMFD_FLAGS), i ? 0 : 3);
        assert_int_equal(mini_has(m, KVM_CAP_GUEST_MEMFD), 1);
        assert_int_equal(mini_has(m, KVM_CAP_USER_MEMORY2), 1);
        assert_int_equal(mini_has(m, KVM_CAP_MEMORY_FAULT_INFO), 1);
        assert_int_equal(mini_has(m, KVM_CAP_PRE_FAULT_MEMORY), 1);
        assert_int_equal(mini_sys(m, KVM_CREATE_VM, (void *)2), -EINVAL);
        assert_int_equal(mini_sys(m, KVM_CREATE_VM, (void *)(1ul << 40)), -EINVAL);
        mini_free(m);
    }
}

static void creation(void **state)
{
    struct mini *m = mini_vm(KVM_X86_SW_PROTECTED_VM);
    int fd;

    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_GUEST_MEMFD, NULL), -EFAULT);
    assert_int_equal(mini_gmem(m, 4096, 4), -EINVAL);
    assert_int_equal(mini_gmem(m, 4096, GUEST_MEMFD_FLAG_MMAP), -EINVAL); /* not on this type */
    assert_int_equal(mini_gmem(m, 0, 0), -EINVAL);
    assert_int_equal(mini_gmem(m, 4097, 0), -EINVAL);
    assert_int_equal(mini_gmem(m, UINT64_C(1) << 63, 0), -EINVAL);
    fd = mini_gmem(m, 8192, 0);
    assert_true(fd >= 0);
    assert_int_equal(softkvm_ioctl(m->s, fd, KVM_RUN, NULL), -ENOTTY);
    assert_int_equal(softkvm_fallocate(m->s, fd, 0, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(softkvm_fallocate(m->s, fd, FALLOC_FL_PUNCH_HOLE, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(softkvm_fallocate(m->s, fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, 4096),
                     -EOPNOTSUPP);
    assert_int_equal(softkvm_fallocate(m->s, fd, PUNCH, 0, 0), -EINVAL);
    assert_int_equal(softkvm_fallocate(m->s, fd, PUNCH, -4096, 4096), -EINVAL);
    assert_int_equal(softkvm_fallocate(m->s, fd, PUNCH, 1, 4096), -EINVAL);
    assert_int_equal(softkvm_fallocate(m->s, fd, FALLOC_FL_KEEP_SIZE, 4096, 8192), -EINVAL);
    assert_int_equal(softkvm_fallocate(m->s, fd, FALLOC_FL_KEEP_SIZE, 0, 8192), 0);
    assert_int_equal(softkvm_fallocate(m->s, fd, PUNCH, 0, 1 << 20), 0);
    assert_int_equal(softkvm_fallocate(m->s, m->vm, PUNCH, 0, 4096), -ENODEV);
    assert_int_equal(softkvm_fallocate(m->s, 999, PUNCH, 0, 4096), -EBADF);
    assert_int_equal(softkvm_close(m->s, fd), 0);
    mini_free(m);
}

static void binding(void **state)
{
    struct mini *m = mini_vm(KVM_X86_SW_PROTECTED_VM);
    int other_vm = mini_sys(m, KVM_CREATE_VM, NULL), fd = mini_gmem(m, BYTES, 0), other;
    struct kvm_create_guest_memfd g = {.size = BYTES};
    struct kvm_userspace_memory_region2 r = {.slot = 1, .guest_phys_addr = DATA, .memory_size = BYTES};
    void *p = mini_pages(BYTES);

    other = softkvm_ioctl(m->s, other_vm, KVM_CREATE_GUEST_MEMFD, &g);
    assert_int_equal(mini_slot(m, 1, KVM_MEM_GUEST_MEMFD, DATA, BYTES, p), -EINVAL); /* the older call */
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, 999, 0), -EBADF);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, m->vm, 0), -EINVAL);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, other, 0), -EINVAL);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, fd, 8), -EINVAL);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, fd, 4096), -EINVAL);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, p, fd, UINT64_MAX - 4095), -EINVAL);
    r.userspace_addr = (uintptr_t)p;
    r.guest_memfd = (uint32_t)fd;
    r.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_READONLY;
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_USER_MEMORY_REGION2, &r), -EINVAL);
    r.flags = KVM_MEM_GUEST_MEMFD | KVM_MEM_LOG_DIRTY_PAGES;
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_USER_MEMORY_REGION2, &r), -EINVAL);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES / 2, p, fd, 0), 0);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES / 2, p, fd, 0), -EINVAL); /* immutable, even as it is */
    assert_int_equal(mini_slot(m, 1, 0, DATA, BYTES / 2, p), -EINVAL);
    assert_int_equal(mini_slot2(m, 2, DATA + BYTES, BYTES / 2, p, fd, BYTES / 2 - 4096), -EINVAL);
    assert_int_equal(mini_slot2(m, 2, DATA, BYTES / 2, p, fd, BYTES / 2), -EEXIST);
    assert_int_equal(mini_slot2(m, 2, DATA + BYTES, BYTES / 2, p, fd, BYTES / 2), 0);
    check(m);
    assert_int_equal(mini_slot(m, 1, 0, DATA, 0, p), 0);
    assert_int_equal(mini_slot2(m, 3, DATA, 4096, p, fd, 4096), 0);
    check(m);
    mini_free(m);
    munmap(p, BYTES);
}

static void attribute_errors(void **state)
{
    struct mini *m = mini_vm(KVM_X86_DEFAULT_VM);
    struct kvm_memory_attributes a = {DATA, 4096, 0, 1};

    assert_int_equal(mini_vm_ioctl(m, KVM_SET_MEMORY_ATTRIBUTES, NULL), -EFAULT);
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_MEMORY_ATTRIBUTES, &a), -EINVAL);
    assert_int_equal(mini_private(m, DATA, 4096, 1), -EINVAL);
    assert_int_equal(mini_private(m, DATA, 4096, 0), 0);
    mini_free(m);
    m = mini_vm(KVM_X86_SW_PROTECTED_VM);
    a.flags = 0;
    a.attributes = 1;
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_MEMORY_ATTRIBUTES, &a), -EINVAL);
    assert_int_equal(mini_private(m, DATA, 0, 1), -EINVAL);
    assert_int_equal(mini_private(m, UINT64_MAX - 4095, 8192, 1), -EINVAL);
    assert_int_equal(mini_private(m, DATA + 1, 4096, 1), -EINVAL);
    assert_int_equal(mini_private(m, DATA, 4095, 1), -EINVAL);
    assert_int_equal(mini_private(m, 0, UINT64_C(1) << 60, 1), 0);
    assert_int_equal(mini_private(m, 0x1234000, UINT64_C(1) << 41, 0), 0);
    mini_free(m);
}

/* One page in both halves, back and forth. */
static void two_halves(void **state)
{
    void *data;
    int fd;
    struct mini *m = world(KVM_X86_SW_PROTECTED_VM, &data, &fd);

    assert_int_equal(store(m, DATA, 0x11111111), KVM_EXIT_HLT); /* starts shared */
    assert_int_equal(shared_word(data, 0), 0x11111111);
    assert_int_equal(mini_private(m, DATA, 4096, 1), 0);
    check(m);
    assert_int_equal(load(m, DATA), 0);
    assert_int_equal(store(m, DATA, 0x5ec4e7), KVM_EXIT_HLT);
    assert_int_equal(load(m, DATA), 0x5ec4e7);
    assert_int_equal(shared_word(data, 0), 0x11111111);
    assert_int_equal(store(m, DATA + 4096, 0x22222222), KVM_EXIT_HLT); /* the neighbour is shared still */
    assert_int_equal(shared_word(data, 4096), 0x22222222);
    check(m);
    assert_int_equal(mini_private(m, DATA, 4096, 0), 0);
    assert_int_equal(load(m, DATA), 0x11111111);
    assert_int_equal(mini_private(m, DATA, BYTES, 1), 0);
    assert_int_equal(load(m, DATA), 0x5ec4e7); /* it was only away */
    assert_int_equal(load(m, DATA + 4096), 0);
    check(m);
    assert_int_equal(softkvm_fallocate(m->s, fd, PUNCH, 0, 4096), 0);
    assert_int_equal(load(m, DATA), 0);
    assert_int_equal(shared_word(data, 0), 0x11111111);
    check(m);
    mini_free(m);
    munmap(data, BYTES);
}

static void memory_faults(void **state)
{
    void *data;
    int fd;
    struct mini *m = world(KVM_X86_SW_PROTECTED_VM, &data, &fd);
    void *plain = mini_pages(4096);

    assert_int_equal(mini_private(m, DATA, BYTES, 1), 0);
    assert_int_equal(store(m, DATA + 0x5008, 1), KVM_EXIT_HLT);
    /* A private page without a private half, and one without any slot. */
    assert_int_equal(mini_slot(m, 2, 0, 2 * DATA, 4096, plain), 0);
    assert_int_equal(mini_private(m, 2 * DATA, 8192, 1), 0);
    assert_int_equal(store(m, 2 * DATA + 8, 1), -EFAULT);
    assert_fault(m, 2 * DATA, KVM_MEMORY_EXIT_FLAG_PRIVATE);
    assert_int_equal(store(m, 2 * DATA + 4096, 1), -EFAULT);
    assert_fault(m, 2 * DATA + 4096, KVM_MEMORY_EXIT_FLAG_PRIVATE);
    /* Converted by user space, the same instruction goes on. */
    assert_int_equal(mini_private(m, 2 * DATA, 8192, 0), 0);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    assert_int_equal(store(m, 2 * DATA + 8, 1), KVM_EXIT_HLT);
    /* Host memory that is gone. */
    assert_int_equal(mprotect(plain, 4096, PROT_NONE), 0);
    assert_int_equal(softkvm_memory_protected(m->s, plain, 4096, PROT_NONE), 0);
    assert_int_equal(store(m, 2 * DATA, 1), -EFAULT);
    assert_fault(m, 2 * DATA, 0);
    /* A closed guest_memfd. */
    assert_int_equal(softkvm_close(m->s, fd), 0);
    check(m);
    assert_int_equal(store(m, DATA + 0x5008, 1), -EFAULT);
    assert_fault(m, DATA + 0x5000, KVM_MEMORY_EXIT_FLAG_PRIVATE);
    mini_free(m);
    munmap(data, BYTES);
    munmap(plain, 4096);
}

/* A guest_memfd that user space maps serves shared pages as well. */
static void mappable(void **state)
{
    struct mini *m = mini_vm(KVM_X86_DEFAULT_VM);
    void *unused = mini_pages(BYTES);
    int fd = mini_gmem(m, BYTES, GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED), e = 0;
    int plain = mini_gmem(m, BYTES, 0), closed = mini_gmem(m, BYTES, GUEST_MEMFD_FLAG_MMAP);
    uint32_t *map;

    mini_vcpus(m, 1);
    assert_null(softkvm_mmap(m->s, plain, 4096, PROT_READ, MAP_SHARED, 0, &e));
    assert_int_equal(e, ENODEV);
    assert_null(softkvm_mmap(m->s, fd, 4096, PROT_READ, MAP_PRIVATE, 0, &e));
    assert_int_equal(e, EINVAL);
    assert_null(softkvm_mmap(m->s, fd, 2 * BYTES, PROT_READ, MAP_SHARED, 0, &e));
    map = softkvm_mmap(m->s, closed, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    assert_non_null(map);
    assert_int_equal(softkvm_munmap(m->s, map, 4096), 0);
    map = softkvm_mmap(m->s, fd, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, 0, &e);
    assert_non_null(map);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, unused, fd, 0), 0);
    assert_int_equal(store(m, DATA, 0x77), KVM_EXIT_HLT);
    assert_int_equal(map[0], 0x77);
    assert_int_equal(shared_word(unused, 0), 0);
    assert_int_equal(softkvm_close(m->s, fd), 0); /* the mapping keeps it open */
    map[1] = 0x88;
    assert_int_equal(load(m, DATA + 4), 0x88);
    check(m);
    assert_int_equal(softkvm_munmap(m->s, map, BYTES), 0);
    assert_int_equal(store(m, DATA, 1), -EFAULT);
    mini_free(m);
    munmap(unused, BYTES);
}

static int prefault(struct mini *m, uint64_t gpa, uint64_t size, uint64_t flags, uint64_t *left)
{
    struct kvm_pre_fault_memory p = {.gpa = gpa, .size = size, .flags = flags};
    int r = mini_cpu_ioctl(m, 0, KVM_PRE_FAULT_MEMORY, &p);

    *left = p.size;
    assert_int_equal(p.gpa, gpa + size - p.size);
    return r;
}

static void prefaulting(void **state)
{
    void *data;
    int fd;
    struct mini *m = world(KVM_X86_SW_PROTECTED_VM, &data, &fd);
    uint64_t left;

    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_PRE_FAULT_MEMORY, NULL), -EFAULT);
    assert_int_equal(prefault(m, DATA, 4096, 1, &left), -EINVAL);
    assert_int_equal(prefault(m, DATA + 8, 4096, 0, &left), -EINVAL);
    assert_int_equal(prefault(m, DATA, 4095, 0, &left), -EINVAL);
    assert_int_equal(prefault(m, DATA, 0, 0, &left), -EINVAL);
    assert_int_equal(prefault(m, UINT64_MAX - 4095, 8192, 0, &left), -EINVAL);
    assert_int_equal(prefault(m, 4 * DATA, 4096, 0, &left), -ENOENT);
    assert_int_equal(left, 4096);
    assert_int_equal(mini_private(m, DATA, BYTES / 2, 1), 0);
    assert_int_equal(prefault(m, DATA, BYTES, 0, &left), 0);
    assert_int_equal(left, 0);
    assert_int_equal(prefault(m, DATA + BYTES - 8192, 3 * 4096, 0, &left), 0); /* two thirds of it */
    assert_int_equal(left, 4096);
    assert_int_equal(softkvm_interrupt(m->s, m->vcpu[0]), 0);
    assert_int_equal(prefault(m, DATA, 4096, 0, &left), -EINTR);
    check(m);
    mini_free(m);
    munmap(data, BYTES);
}

/* Code and tables in private memory from the start; addresses from 1 GiB on have the bit for shared. */
static struct mini *confidential(void **data)
{
    struct mini *m = mini_vm(SOFTKVM_X86_CONFIDENTIAL_VM);
    int low, fd = mini_gmem(m, BYTES, 0);

    mini_vcpus(m, 1);
    assert_int_equal(mini_slot(m, 0, 0, 0, 0, NULL), 0);
    low = mini_gmem(m, MINI_LOW_BYTES, 0);
    assert_int_equal(mini_slot2(m, 0, 0, MINI_LOW_BYTES, m->low, low, 0), 0);
    *data = mini_pages(BYTES);
    assert_int_equal(mini_slot2(m, 1, DATA, BYTES, *data, fd, 0), 0);
    mini_long(m, 0, UINT64_C(1) << SOFTKVM_SHARED_BIT);
    return m;
}

static int populate(struct mini *m, uint64_t gpa, uint64_t size, const void *source, uint64_t flags)
{
    struct softkvm_populate p = {gpa, size, (uintptr_t)source, flags};

    return mini_vm_ioctl(m, SOFTKVM_POPULATE_PRIVATE, &p);
}

static void populating(void **state)
{
    void *data;
    struct mini *m = confidential(&data);

    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_POPULATE_PRIVATE, NULL), -EFAULT);
    assert_int_equal(populate(m, 0, 4096, m->low, 1), -EINVAL);
    assert_int_equal(populate(m, 8, 4096, m->low, 0), -EINVAL);
    assert_int_equal(populate(m, 0, 0, m->low, 0), -EINVAL);
    assert_int_equal(populate(m, 0, 4096, (void *)8, 0), -EFAULT);
    assert_int_equal(populate(m, 64 * DATA, 4096, m->low, 0), -ENOENT);
    assert_int_equal(mini_private(m, DATA, 4096, 0), 0);
    assert_int_equal(populate(m, DATA, 4096, m->low, 0), -EPERM);
    memcpy(m->low + MINI_CODE, load_code, sizeof(load_code));
    assert_int_equal(populate(m, 0, MINI_LOW_BYTES, m->low, 0), 0);
    mini_start(m, 0, load_code, sizeof(load_code), NULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    assert_int_equal(populate(m, 0, 4096, m->low, 0), -EBUSY);
    mini_free(m);
    munmap(data, BYTES);
}

/*
 * RDI private, RSI shared address of the same page, RDX a device:
 * store both, convert by VMCALL, store again.
 */
static const uint8_t secret_code[] = {
    0xc7, 0x07, 0xe7, 0xc4, 0x5e, 0x00,       /* mov dword [rdi], 0x5ec4e7 */
    0xb8, 0x0c, 0x00, 0x00, 0x00,             /* mov eax, KVM_HC_MAP_GPA_RANGE */
    0x48, 0x89, 0xfb,                         /* mov rbx, rdi */
    0xb9, 0x01, 0x00, 0x00, 0x00,             /* mov ecx, 1 */
    0x31, 0xd2,                               /* xor edx, edx: shared */
    0x0f, 0x01, 0xc1,                         /* vmcall */
    0x8b, 0x2e,                               /* mov ebp, [rsi] */
    0xc7, 0x06, 0x0d, 0xf0, 0xad, 0x0b,       /* mov dword [rsi], 0x0badf00d */
    0x8b, 0x0f,                               /* mov ecx, [rdi]: private no more */
    0xf4,
};

static void shared_bit(void **state)
{
    struct softkvm_explain x = {.size = sizeof(x), .gpa = DATA};
    struct kvm_enable_cap cap = {.cap = KVM_CAP_EXIT_HYPERCALL, .args = {1u << 12}};
    struct kvm_regs r = {.rdi = DATA, .rsi = (1u << 30) + DATA};
    const struct kvm_run *run;
    void *data;
    struct mini *m = confidential(&data);

    run = m->run[0];
    assert_int_equal(mini_slot(m, 5, KVM_MEM_LOG_DIRTY_PAGES, 4 * DATA, 4096, data), -EINVAL);
    assert_int_equal(mini_vm_ioctl(m, KVM_ENABLE_CAP, &cap), 0);
    memcpy(m->low + MINI_CODE, secret_code, sizeof(secret_code));
    assert_int_equal(populate(m, 0, MINI_LOW_BYTES, m->low, 0), 0);
    mini_start(m, 0, secret_code, sizeof(secret_code), &r);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HYPERCALL);
    assert_int_equal(run->hypercall.nr, 12);
    assert_int_equal(run->hypercall.args[0], DATA);
    assert_int_equal(run->hypercall.args[1], 1);
    assert_int_equal(run->hypercall.args[2], 0);
    /* The secret is in neither what user space maps nor what inspection shows. */
    assert_int_equal(shared_word(data, 0), 0);
    assert_int_equal(mini_vm_ioctl(m, SOFTKVM_EXPLAIN_GPA, &x), 0);
    assert_true(x.stages & SOFTKVM_STAGE_PRIVATE);
    assert_true(x.stages & SOFTKVM_STAGE_EPT);
    assert_false(x.stages & SOFTKVM_STAGE_FRAME);
    check(m);
    /* Not converted: the guest's shared access is told, flag clear; then it is, and the guest goes on. */
    m->run[0]->hypercall.ret = 0;
    assert_int_equal(mini_run(m, 0), -EFAULT);
    assert_fault(m, DATA, 0);
    assert_int_equal(mini_private(m, DATA, 4096, 0), 0);
    assert_int_equal(mini_run(m, 0), -EFAULT); /* [rdi] is private no more */
    assert_fault(m, DATA, KVM_MEMORY_EXIT_FLAG_PRIVATE);
    assert_int_equal(shared_word(data, 0), 0x0badf00d);
    mini_regs(m, 0, &r);
    assert_int_equal(r.rbp, 0);
    assert_int_equal(r.rax, 0);
    check(m);
    assert_int_equal(mini_private(m, DATA, 4096, 1), 0);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    mini_regs(m, 0, &r);
    assert_int_equal(r.rcx, 0x5ec4e7);
    mini_free(m);
    munmap(data, BYTES);
}

/* Devices are reached by the shared bit; user space sees the address without it. */
static void shared_device(void **state)
{
    struct kvm_regs r = {.rdi = (1u << 30) + 16 * DATA, .rax = 0x1234};
    void *data;
    struct mini *m = confidential(&data);

    memcpy(m->low + MINI_CODE, store_code, sizeof(store_code));
    assert_int_equal(populate(m, 0, MINI_LOW_BYTES, m->low, 0), 0);
    mini_start(m, 0, store_code, sizeof(store_code), &r);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_MMIO);
    assert_int_equal(m->run[0]->mmio.phys_addr, 16 * DATA);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
    r.rdi = 16 * DATA;
    mini_start(m, 0, store_code, sizeof(store_code), &r);
    assert_int_equal(mini_run(m, 0), -EFAULT);
    assert_fault(m, 16 * DATA, KVM_MEMORY_EXIT_FLAG_PRIVATE);
    mini_free(m);
    munmap(data, BYTES);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(capabilities),  cmocka_unit_test(creation),   cmocka_unit_test(binding),
        cmocka_unit_test(attribute_errors), cmocka_unit_test(two_halves), cmocka_unit_test(memory_faults),
        cmocka_unit_test(mappable),      cmocka_unit_test(prefaulting), cmocka_unit_test(populating),
        cmocka_unit_test(shared_bit),    cmocka_unit_test(shared_device),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
