/*
 * Requests that few programs make, each by what it does: task-priority reporting and the virtual APIC word, the old
 * forms of the PIT, SREGS2, XSAVE2, lists of feature MSRs.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "mini.h"

static struct mini *with_chips(void)
{
    struct mini *m = mini_vm(0);

    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_IRQCHIP, NULL), 0);
    mini_vcpus(m, 1);
    return m;
}

/* Where the accesses of `tpr_code` are. */
#define WRITES_AT (MINI_CODE + 5)
#define READS_AT  (MINI_CODE + 10)

/* mov eax,0x20; mov [0xfee00080],eax; mov ebx,[0xfee00080]; out 0x99,al */
static const uint8_t tpr_code[] = {0xb8, 0x20, 0, 0, 0, 0xa3, 0x80, 0, 0xe0, 0xfe, 0x8b, 0x1d, 0x80, 0, 0xe0, 0xfe,
                                   0xe6, 0x99};

static void tpr_reporting(void **state)
{
    struct mini *m = with_chips();
    struct kvm_tpr_access_ctl ctl = {.enabled = 1}, bad = {.enabled = 1, .flags = 1};
    struct kvm_regs regs;

    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_TPR_ACCESS_REPORTING, &bad), -EINVAL);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
    mini_start(m, 0, tpr_code, sizeof(tpr_code), NULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_TPR_ACCESS);
    assert_int_equal(m->run[0]->tpr_access.is_write, 1);
    assert_int_equal(m->run[0]->tpr_access.rip, WRITES_AT);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_TPR_ACCESS);
    assert_int_equal(m->run[0]->tpr_access.is_write, 0);
    assert_int_equal(m->run[0]->tpr_access.rip, READS_AT);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_IO);
    mini_regs(m, 0, &regs);
    assert_int_equal(regs.rbx, 0x20);
    ctl.enabled = 0;
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_TPR_ACCESS_REPORTING, &ctl), 0);
    mini_start(m, 0, tpr_code, sizeof(tpr_code), NULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_IO);
    mini_free(m);
}

#define WORD_AT 0x8000u

/* mov byte [0x8000],0x50; mov eax,1; vmcall; mov ebx,[0xfee00080]; out 0x99,al */
static const uint8_t vapic_code[] = {0xc6, 0x05, 0x00, 0x80, 0, 0, 0x50, 0xb8, 1, 0, 0, 0, 0x0f, 0x01, 0xc1,
                                     0x8b, 0x1d, 0x80, 0, 0xe0, 0xfe, 0xe6, 0x99};

static uint32_t word(struct mini *m)
{
    return *(volatile uint32_t *)(void *)(m->low + WORD_AT);
}

/* Priority goes from the word to the register and back, the highest request to the word. */
static void virtual_apic_word(void **state)
{
    struct mini *m = with_chips();
    struct kvm_vapic_addr at = {.vapic_addr = WORD_AT}, odd = {.vapic_addr = WORD_AT + 2},
                          nowhere = {.vapic_addr = 0x40000000};
    struct kvm_lapic_state page;
    struct kvm_regs regs;

    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_VAPIC_ADDR, &odd), -EINVAL);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_VAPIC_ADDR, &nowhere), -EINVAL);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_LAPIC, &page), 0);
    page.regs[0xf1] = 1; /* software-enabled */
    page.regs[0x200 + 0x20 + 1] = 2; /* request of vector 0x49 */
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_LAPIC, &page), 0);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_VAPIC_ADDR, &at), 0);
    mini_start(m, 0, vapic_code, sizeof(vapic_code), NULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_IO);
    mini_regs(m, 0, &regs);
    assert_int_equal(regs.rbx, 0x50);
    assert_int_equal(word(m) & 0xff, 0x50);
    assert_int_equal(word(m) >> 24, 0x49);
    at.vapic_addr = 0;
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_VAPIC_ADDR, &at), 0);
    mini_start(m, 0, tpr_code, sizeof(tpr_code), NULL);
    assert_int_equal(mini_run(m, 0), KVM_EXIT_IO);
    assert_int_equal(word(m) & 0xff, 0x50);
    mini_free(m);
}

static void needs_a_local_apic(void **state)
{
    struct mini *m = mini_vm(0);
    struct kvm_vapic_addr at = {.vapic_addr = WORD_AT};

    mini_vcpus(m, 1);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_VAPIC_ADDR, &at), -EINVAL);
    mini_free(m);
}

/* The first form of the PIT is the second without flags. */
static void old_pit(void **state)
{
    struct mini *m = mini_vm(0);
    struct kvm_pit_state old;
    struct kvm_pit_state2 now;

    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_PIT, NULL), -ENOENT);
    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_IRQCHIP, NULL), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_PIT, &old), -ENXIO);
    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_PIT, NULL), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_CREATE_PIT, NULL), -EEXIST);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_PIT, &old), 0);
    old.channels[2].count = 0x1234;
    old.channels[2].mode = 3;
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_PIT, &old), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_PIT2, &now), 0);
    assert_int_equal(now.channels[2].count, 0x1234);
    now.channels[2].count = 0x4321;
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_PIT2, &now), 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_GET_PIT, &old), 0);
    assert_int_equal(old.channels[2].count, 0x4321);
    mini_free(m);
}

/* SREGS2 is SREGS without the interrupt bitmap; its page-directory pointers come with PAE paging only. */
static void special_registers(void **state)
{
    struct mini *m = with_chips();
    struct kvm_sregs one;
    struct kvm_sregs2 two;

    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_SREGS2, &two), 0);
    assert_int_equal(two.flags, 0);
    two.ds.base = 0x5000;
    two.cr3 = 0x7000;
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_SREGS2, &two), 0);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_SREGS, &one), 0);
    assert_int_equal(one.ds.base, 0x5000);
    assert_int_equal(one.cr3, 0x7000);
    two.flags = 2;
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_SREGS2, &two), -EINVAL);
    mini_free(m);
}

/* XSAVE2 is as long as KVM_CAP_XSAVE2 says and starts as XSAVE. */
static void extended_state(void **state)
{
    struct mini *m = with_chips();
    int size = mini_has(m, KVM_CAP_XSAVE2);
    uint8_t *two = calloc(1, (size_t)size);
    struct kvm_xsave one;
    struct kvm_fpu fpu;

    assert_true(size >= (int)sizeof(one));
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_FPU, &fpu), 0);
    memset(fpu.xmm[3], 0xa5, 16);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_FPU, &fpu), 0);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_XSAVE2, two), 0);
    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_GET_XSAVE, &one), 0);
    assert_memory_equal(two, one.region, sizeof(one.region));
    assert_int_equal(two[160 + 3 * 16], 0xa5);
    free(two);
    mini_free(m);
}

/* Sizes are learnt by asking with no room. */
static void lists(void **state)
{
    struct mini *m = with_chips();
    struct {
        struct kvm_msr_list head;
        uint32_t room[64];
    } list = {.head = {.nmsrs = 0}};
    struct {
        struct kvm_msrs head;
        struct kvm_msr_entry entry[64];
    } msrs = {.head = {.nmsrs = 0}};
    uint64_t mce = 0;
    uint32_t n;

    assert_int_equal(mini_sys(m, KVM_GET_MSR_FEATURE_INDEX_LIST, &list), -E2BIG);
    n = list.head.nmsrs;
    assert_true(n > 0 && n <= 64);
    assert_int_equal(mini_sys(m, KVM_GET_MSR_FEATURE_INDEX_LIST, &list), 0);
    msrs.head.nmsrs = n;
    for (uint32_t i = 0; i < n; i++) {
        msrs.entry[i].index = list.room[i];
    }
    assert_int_equal(mini_sys(m, KVM_GET_MSRS, &msrs), n);
    assert_int_equal(mini_sys(m, KVM_X86_GET_MCE_CAP_SUPPORTED, &mce), 0);
    assert_true((mce & 1u << 24) != 0); /* errors that software recovers from */
    mini_free(m);
}

/* The budget of shadow pages: below 64 there is nothing to work with. */
static void mmu_pages(void **state)
{
    struct mini *m = with_chips();
    int before = mini_vm_ioctl(m, KVM_GET_NR_MMU_PAGES, NULL);

    assert_true(before >= 0);
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_NR_MMU_PAGES, (void *)63), -EINVAL);
    assert_int_equal(mini_vm_ioctl(m, KVM_SET_NR_MMU_PAGES, (void *)64), 0);
    mini_free(m);
}

static void no_attributes(void **state)
{
    struct mini *m = with_chips();
    struct kvm_device_attr attr = {.group = 99};

    assert_int_equal(mini_cpu_ioctl(m, 0, KVM_SET_DEVICE_ATTR, &attr), -ENXIO);
    mini_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tpr_reporting),     cmocka_unit_test(virtual_apic_word), cmocka_unit_test(needs_a_local_apic),
        cmocka_unit_test(old_pit),           cmocka_unit_test(special_registers), cmocka_unit_test(extended_state),
        cmocka_unit_test(lists),             cmocka_unit_test(mmu_pages),         cmocka_unit_test(no_attributes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
