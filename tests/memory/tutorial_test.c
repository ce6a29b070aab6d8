/* The tutorial's pieces of code, one after the other, are the example that is compiled and run; what
 * it says is printed, is. */
#include "memory/help.h"

#include <sys/wait.h>

#define ROOT STRATA_TEST_DATA "/../.."

static char *slurp(const char *path)
{
    char *text = calloc(1, 65536);
    FILE *f = fopen(path, "r");

    assert_non_null(f);
    assert_true(fread(text, 1, 65535, f) > 0);
    fclose(f);
    return text;
}

static void code_is_the_example(void **state)
{
    char *page = slurp(ROOT "/docs/tutorial-memory.md"), *want = slurp(ROOT "/examples/board.c");
    char *code = calloc(1, 65536), *at = page;

    while ((at = strstr(at, "```c\n"))) {
        char *end = strstr(at + 5, "```");

        assert_non_null(end);
        strncat(code, at + 5, (size_t)(end - at - 5));
        at = end + 3;
    }
    assert_string_equal(code, want);
    free(code);
    free(want);
    free(page);
}

static void output_is_as_said(void **state)
{
    char *page = slurp(ROOT "/docs/tutorial-memory.md"), *want = strstr(page, "It prints:\n\n```\n");
    FILE *pipe = popen(getenv("STRATA_EXAMPLE_BOARD"), "r");
    char got[4096] = "";

    assert_non_null(want);
    assert_non_null(pipe);
    assert_true(fread(got, 1, sizeof(got) - 1, pipe) > 0);
    assert_int_equal(pclose(pipe), 0);
    want = strchr(want, '`') + 4;
    *strstr(want, "```") = '\0';
    assert_string_equal(got, want);
    free(page);
}

/* Run the VMM of the examples with `prefix` before its name: its exit status; what it printed. */
static int run_vmm(const char *prefix, char got[64])
{
    char command[4096];
    FILE *pipe;

    snprintf(command, sizeof(command), "%s%s 2>/dev/null", prefix, getenv("STRATA_EXAMPLE_VMM"));
    pipe = popen(command, "r");
    assert_non_null(pipe);
    got[fread(got, 1, 63, pipe)] = '\0';
    return WEXITSTATUS(pclose(pipe));
}

static void vmm_on_the_kernels_kvm(void **state)
{
    char got[64];
    int status = run_vmm("", got);

    if (status == 77) {
        print_message("# vmm_on_the_kernels_kvm: no /dev/kvm here\n");
        skip();
    }
    assert_int_equal(status, 0);
    assert_string_equal(got, "R\n");
}

static void vmm_on_our_engine(void **state)
{
    char got[64], prefix[2048];

    if (!getenv("STRATA_PRELOAD")) {
        print_message("# vmm_on_our_engine: a program under a sanitizer takes no preloaded library\n");
        skip();
    }
    snprintf(prefix, sizeof(prefix), "LD_PRELOAD=%s ", getenv("STRATA_PRELOAD"));
    assert_int_equal(run_vmm(prefix, got), 0);
    assert_string_equal(got, "R\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(code_is_the_example),
        cmocka_unit_test(output_is_as_said),
        cmocka_unit_test(vmm_on_the_kernels_kvm),
        cmocka_unit_test(vmm_on_our_engine),
    };

    if (!getenv("STRATA_EXAMPLE_BOARD")) {
        puts("1..0 # SKIP run by meson, which says where the example is");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
