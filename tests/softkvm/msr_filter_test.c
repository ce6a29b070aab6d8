/*
 * KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR: argument errors in KVM's order, and what a guest
 * meets: #GP, or an exit that user space answers, for numbers of the processor and of the hypervisor.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mini.h"

#define CORE_THREAD_COUNT 0x35u
#define STAR              0xc0000081u

/* ECX: number. RDMSR; HLT. */
static const uint8_t read_code[] = {0x0f, 0x32, 0xf4};
static const uint8_t write_code[] = {0x0f, 0x30, 0xf4};

static struct kvm_msr_filter one(uint32_t flags, uint32_t base, uint32_t n, uint8_t *bits)
{
    struct kvm_msr_filter f = {.ranges[3] = {.flags = flags, .nmsrs = n, .base = base, .bitmap = bits}};

    return f;
}

static int set(struct mini *m, struct kvm_msr_filter f)
{
    return mini_vm_ioctl(m, KVM_X86_SET_MSR_FILTER, &f);
}

static void arguments(void **state)
{
    struct mini *m = mini_vm(0);
    uint8_t bits[0x608] = {0};
    struct kvm_msr_filter f = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};

    assert_int_equal(mini_has(m, KVM_CAP_X86_MSR_FILTER), 1);
    assert_int_equal(mini_has(m, KVM_CAP_X86_USER_SPACE_MSR), 7);
    assert_int_equal(mini_cap(m, KVM_CAP_X86_USER_SPACE_MSR, 8), -EINVAL);
    assert_int_equal(mini_cap(m, KVM_CAP_X86_USER_SPACE_MSR, 7), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_X86_SET_MSR_FILTER, NULL), -EFAULT);
    assert_int_equal(set(m, f), -EINVAL); /* denies all, allows nothing */
    f = one(KVM_MSR_FILTER_READ, 0, 1, bits);
    f.flags = 2;
    assert_int_equal(set(m, f), -EINVAL);
    assert_int_equal(set(m, one(0, 0, 1, bits)), -EINVAL);
    assert_int_equal(set(m, one(4, 0, 1, bits)), -EINVAL);
    assert_int_equal(set(m, one(KVM_MSR_FILTER_READ, 0, 0x600 * 8 + 1, bits)), -EINVAL);
    assert_int_equal(set(m, one(KVM_MSR_FILTER_READ, 0, 0x600 * 8, bits)), 0);
    assert_int_equal(set(m, one(KVM_MSR_FILTER_READ, 0, 1, (uint8_t *)8)), -EFAULT);
    assert_int_equal(set(m, one(99, 0, 0, NULL)), 0); /* an empty range is not looked at */
    mini_free(m);
}

static int run(struct mini *m, const uint8_t *code, uint32_t index, uint64_t value)
{
    struct kvm_regs r = {.rcx = index, .rax = (uint32_t)value, .rdx = value >> 32, .rsp = 0x8000};

    mini_start(m, 0, code, 3, &r);
    return mini_run(m, 0);
}

/* A filtered access of each kind of owner, answered by user space or ending in #GP (here: a triple
 * fault, for the guest has no table of handlers). */
static void guests(void **state)
{
    static const uint32_t index[] = {STAR, CORE_THREAD_COUNT};
    struct mini *m = mini_vm(0);
    uint8_t deny[8] = {0};
    struct kvm_regs r;

    mini_vcpus(m, 1);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(mini_cap(m, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0);
        assert_int_equal(set(m, one(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, index[i], 1, deny)), 0);
        assert_int_equal(run(m, read_code, index[i], 0), KVM_EXIT_X86_RDMSR);
        assert_int_equal(m->run[0]->msr.reason, KVM_MSR_EXIT_REASON_FILTER);
        assert_int_equal(m->run[0]->msr.index, index[i]);
        m->run[0]->msr.data = 0x1122334455667788;
        assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
        mini_regs(m, 0, &r);
        assert_int_equal(r.rax, 0x55667788);
        assert_int_equal(r.rdx, 0x11223344);
        assert_int_equal(run(m, write_code, index[i], 77), KVM_EXIT_X86_WRMSR);
        assert_int_equal(m->run[0]->msr.data, 77);
        assert_int_equal(mini_run(m, 0), KVM_EXIT_HLT);
        assert_int_equal(set(m, one(KVM_MSR_FILTER_WRITE, index[i], 1, deny)), 0);
        if (index[i] == STAR) {
            assert_int_equal(run(m, read_code, index[i], 0), KVM_EXIT_HLT); /* reads are allowed now */
            mini_regs(m, 0, &r);
            assert_int_equal(r.rax, 0); /* the write went to user space, not here */
        }
    }
    mini_free(m);
}

/* Allowed bits of a filter that denies the rest; the guest's rules hold for what is allowed. */
static void default_deny(void **state)
{
    struct mini *m = mini_vm(0);
    uint8_t allow[8] = {1};
    struct kvm_msr_filter f = one(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, STAR, 2, allow);
    struct kvm_regs r;

    mini_vcpus(m, 1);
    f.flags = KVM_MSR_FILTER_DEFAULT_DENY;
    assert_int_equal(set(m, f), 0);
    assert_int_equal(mini_cap(m, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER), 0);
    assert_int_equal(run(m, write_code, STAR, 0x1234), KVM_EXIT_HLT);
    assert_int_equal(run(m, read_code, STAR, 0), KVM_EXIT_HLT);
    mini_regs(m, 0, &r);
    assert_int_equal(r.rax, 0x1234);
    assert_int_equal(run(m, read_code, STAR + 1, 0), KVM_EXIT_X86_RDMSR);
    m->run[0]->msr.error = 1;
    assert_int_equal(mini_run(m, 0), KVM_EXIT_SHUTDOWN); /* #GP without handlers */
    mini_free(m);
}

static void lifted(void **state)
{
    struct mini *m = mini_vm(0);
    uint8_t deny[8] = {0};

    mini_vcpus(m, 1);
    assert_int_equal(set(m, one(KVM_MSR_FILTER_READ, STAR, 1, deny)), 0);
    assert_int_equal(run(m, read_code, STAR, 0), KVM_EXIT_SHUTDOWN);
    mini_free(m);
    m = mini_vm(0);
    mini_vcpus(m, 1);
    assert_int_equal(set(m, one(KVM_MSR_FILTER_READ, STAR, 1, deny)), 0);
    assert_int_equal(set(m, one(0, 0, 0, NULL)), 0);
    assert_int_equal(run(m, read_code, STAR, 0), KVM_EXIT_HLT);
    mini_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arguments),
        cmocka_unit_test(guests),
        cmocka_unit_test(default_deny),
        cmocka_unit_test(lifted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
