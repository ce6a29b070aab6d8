/*
 * The ABI as data (abi_list.c) against the library: a request that is listed as there is answered, one that is
 * not is refused as a kernel without it refuses. Judged with an argument that cannot be read, so that nothing happens.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "softkvm/abi_list.h"
#include "softkvm/softkvm.h"

struct fds {
    struct softkvm *s;
    int fd[3]; /* system, VM, vCPU */
};

static int setup(void **state)
{
    static struct fds f;
    char err[128];

    f.s = softkvm_new(NULL, err, sizeof(err));
    assert_non_null(f.s);
    f.fd[0] = softkvm_open_system(f.s);
    f.fd[1] = softkvm_ioctl(f.s, f.fd[0], KVM_CREATE_VM, NULL);
    assert_int_equal(softkvm_ioctl(f.s, f.fd[1], KVM_CREATE_IRQCHIP, NULL), 0);
    f.fd[2] = softkvm_ioctl(f.s, f.fd[1], KVM_CREATE_VCPU, NULL);
    assert_true(f.fd[2] >= 0);
    *state = &f;
    return 0;
}

static int teardown(void **state)
{
    softkvm_free(((struct fds *)*state)->s);
    return 0;
}

/* What a kernel answers to a request that it does not know. */
static int unknown(unsigned level)
{
    return level == SOFTKVM_LEVEL_VM ? -ENOTTY : -EINVAL;
}

static void test_requests(void **state)
{
    struct fds *f = *state;
    unsigned n, bad = 0;
    const struct softkvm_abi_ioctl *list = softkvm_abi_ioctls(&n);

    for (unsigned i = 0; i < n; i++) {
        for (unsigned bit = 0; bit < 3; bit++) {
            int r;

            /* What takes a number cannot be asked without doing it; absent ones can. */
            if (!(list[i].levels >> bit & 1) || (!list[i].takes_pointer && list[i].is_there)) {
                continue;
            }
            r = softkvm_ioctl(f->s, f->fd[bit], list[i].number, (void *)8);
            if ((r == unknown(1u << bit)) == list[i].is_there) {
                print_message("%s on level %u: answers %d, listed as %s in src/softkvm/abi_list.c\n", list[i].name, bit, r,
                              list[i].is_there ? "there" : "absent");
                bad++;
            }
        }
    }
    assert_int_equal(bad, 0);
}

static void test_names(void **state)
{
    unsigned n, m;
    const struct softkvm_abi_ioctl *list = softkvm_abi_ioctls(&n);
    const struct softkvm_abi_cap *caps = softkvm_abi_caps(&m);

    assert_true(n > 80 && m > 80);
    for (unsigned i = 0; i < n; i++) {
        assert_true(list[i].levels >= 1 && list[i].levels <= 7);
        for (unsigned k = 0; k < i; k++) {
            assert_string_not_equal(list[i].name, list[k].name);
            /* KVM_GET_PIT2 and KVM_GET_VCPU_EVENTS share a number's low byte, not the number. */
            assert_true(list[i].number != list[k].number);
        }
    }
    for (unsigned i = 0; i < m; i++) {
        for (unsigned k = 0; k < i; k++) {
            assert_string_not_equal(caps[i].name, caps[k].name);
        }
    }
}

/* No capability is offered that the list does not have. */
static void test_capabilities(void **state)
{
    struct fds *f = *state;
    unsigned m, bad = 0;
    const struct softkvm_abi_cap *caps = softkvm_abi_caps(&m);

    for (long ext = 0; ext < 300; ext++) {
        bool listed = false;

        for (unsigned i = 0; i < m; i++) {
            listed |= caps[i].number == ext;
        }
        if (!listed && softkvm_ioctl(f->s, f->fd[1], KVM_CHECK_EXTENSION, (void *)ext) != 0) {
            print_message("capability %ld is offered and not listed in src/softkvm/abi_list.c\n", ext);
            bad++;
        }
    }
    assert_int_equal(bad, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_requests, setup, teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test_setup_teardown(test_capabilities, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
