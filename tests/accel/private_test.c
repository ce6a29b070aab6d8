/*
 * RAM with a private half, by the client: its pages begin private, the guest makes one shared and gives it back,
 * the host sees the one and never the other, and what is refused is told the guest.
 *
 * Usage: private_test ENGINE; 77 where the engine has no private memory.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "accel/accel.h"
#include "accel/rig.h"

#define BIG_ADDR UINT64_C(0x1000000)

/*
 * Flat 32-bit code. Port 0x10 gets 1 at the end, or the number of the step that went wrong.
 *  2  what is stored in a private page is there
 *  3  the second page becomes shared, and a store goes where the host sees it
 *  4  private again: it reads as zero
 *  5  a range without a private half cannot become private
 */
extern const char guest_private[], guest_private_end[];
__asm__(".pushsection .rodata\n.code32\nguest_private:\n"
        " movb $0x11, 0x1000000\n mov $2, %esi\n cmpb $0x11, 0x1000000\n jne 9f\n"
        " mov $3, %esi\n mov $12, %eax\n mov $0x1001000, %ebx\n mov $1, %ecx\n xor %edx, %edx\n push %esi\n xor %esi, %esi\n"
        " vmcall\n pop %esi\n test %eax, %eax\n jnz 9f\n movb $0x5a, 0x1001000\n movb $0x22, 0x1002000\n"
        " mov $12, %eax\n mov $0x1003000, %ebx\n mov $1, %ecx\n xor %edx, %edx\n push %esi\n xor %esi, %esi\n vmcall\n pop %esi\n"
        " test %eax, %eax\n jnz 9f\n movb $0x77, 0x1003000\n mov $4, %esi\n"
        " mov $12, %eax\n mov $0x1003000, %ebx\n mov $1, %ecx\n mov $16, %edx\n push %esi\n xor %esi, %esi\n vmcall\n pop %esi\n"
        " test %eax, %eax\n jnz 9f\n cmpb $0, 0x1003000\n jne 9f\n"
        " mov $5, %esi\n mov $12, %eax\n mov $0x3000, %ebx\n mov $1, %ecx\n mov $16, %edx\n push %esi\n xor %esi, %esi\n vmcall\n pop %esi\n"
        " test %eax, %eax\n jz 9f\n mov $1, %esi\n"
        "9: mov %esi, %eax\n out %al, $0x10\n hlt\n"
        "guest_private_end:\n.code64\n.popsection\n");

static void halves(void **state)
{
    struct strata_region_desc desc = {.kind = STRATA_RAM, .name = "big"};
    struct strata_ram_desc ram = {.name = "big", .size = 1 << 20, .flags = STRATA_RAM_GUEST_MEMFD};
    char engine[80];
    struct rig r;
    char *host;

    snprintf(engine, sizeof(engine), "%s,confidential=on", (const char *)*state);
    rig_init(&r, engine, 0x10000);
    assert_int_equal(strata_ram_new(r.memory, &ram, &desc.ram), 0);
    desc.size = 1 << 20;
    assert_int_equal(strata_region_new(r.memory, &desc, &r.big), 0);
    assert_int_equal(strata_region_add(r.system, BIG_ADDR, r.big), 0);
    assert_int_equal(r.stop_reason, -1);
    rig_load(&r, guest_private, (size_t)(guest_private_end - guest_private));
    rig_boot_flat(&r);
    rig_start(&r);
    rig_wait(&r);
    if (r.stop_reason >= 0) {
        fail_msg("reason %d: %s", r.stop_reason, r.stop_text);
    }
    assert_int_equal(r.done_value, 1);
    host = strata_region_host(r.big);
    assert_int_equal(host[0], 0);      /* 0x11 is private */
    assert_int_equal(host[0x1000], 0x5a);
    assert_int_equal(host[0x2000], 0); /* 0x22 is private */
    assert_int_equal(host[0x3000], 0); /* was shared, is given back */
    assert_int_equal(strata_ram_discard(desc.ram, 0, 1 << 20), 0);
    assert_int_equal(host[0x1000], 0);
    strata_ram_unref(desc.ram);
    rig_fini(&r);
}

static void prefault(void **state)
{
    struct rig r;
    int ret;

    rig_init(&r, *state, 0x10000);
    ret = accel_prefault(r.accel, 0, 0x10000);
    if (ret != -EOPNOTSUPP) {
        assert_int_equal(ret, 0);
        assert_int_equal(accel_prefault(r.accel, UINT64_C(0x100000000), 4096), -ENOENT);
    }
    rig_fini(&r);
}

int main(int argc, char **argv)
{
    const char *engine = argc > 1 ? argv[1] : "soft";
    char words[80];
    struct accel_options opts = {.engine = words, .vcpus = 1};
    struct base_error err = {""};
    struct accel *a;
    struct CMUnitTest tests[] = {cmocka_unit_test(halves), cmocka_unit_test(prefault)};

    snprintf(words, sizeof(words), "%s,confidential=on", engine);
    if (accel_open(&a, &opts, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 77;
    }
    accel_free(a);
    tests[0].initial_state = tests[1].initial_state = (void *)engine;
    return cmocka_run_group_tests_name("private", tests, NULL, NULL);
}
