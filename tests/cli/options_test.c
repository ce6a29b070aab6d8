/* The command line: what is accepted, what is refused, and that a refusal names option, value and range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cli/options.h"
#include "cli/value.h"

static int parse(struct cli_options *o, struct base_error *err, const char *const *words)
{
    char *argv[32];
    int argc = 0;

    for (; words[argc]; argc++) {
        argv[argc] = (char *)words[argc];
    }
    memset(err, 0, sizeof(*err));
    return cli_options_parse(o, argc, argv, err);
}

#define WORDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void sizes(void **state)
{
    static const struct {
        const char *text;
        int ret;
        uint64_t value;
    } cases[] = {
        {"10240", 0, UINT64_C(10240) << 20},
        {"1k", 0, 1024},
        {"1K", 0, 1024},
        {"3M", 0, 3145728},
        {"4G", 0, UINT64_C(4) << 30},
        {"1.5G", 0, UINT64_C(3) << 29},
        {"0.5T", 0, UINT64_C(1) << 39},
        {"2P", 0, UINT64_C(2) << 50},
        {"15E", 0, UINT64_C(15) << 60},
        {"16E", -ERANGE, 0},
        {"0x100000", 0, 0x100000},
        {"512b", 0, 512},
        {"99999999999999999999", -ERANGE, 0},
        {"17592186044416", -ERANGE, 0},
        {"", -EINVAL, 0},
        {"-1", -EINVAL, 0},
        {"1.G", -EINVAL, 0},
        {"1GG", -EINVAL, 0},
        {"G", -EINVAL, 0},
        {"12 M", -EINVAL, 0},
        {"1.5.5", -EINVAL, 0},
        {"0x10G", -EINVAL, 0},
    };
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        uint64_t v = 77;
        int ret = cli_size_parse(cases[i].text, UINT64_C(1) << 20, &v);

        if (ret != cases[i].ret || (ret == 0 && v != cases[i].value)) {
            fail_msg("'%s': %d, %llu", cases[i].text, ret, (unsigned long long)v);
        }
    }
}

static void accepted(void **state)
{
    struct cli_options o;
    struct base_error err;

    assert_int_equal(parse(&o, &err,
                           WORDS("-m", "10240,slots=4,maxmem=20G", "-smp", "cpus=2", "-kernel", "k", "--initrd",
                                 "i", "-append", "a=b, c", "-nographic", "-no-reboot", "-cpu", "max,-x2apic",
                                 "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04", "-accel", "kvm:soft",
                                 "--report=out", "-d", "boot,slots")),
                     0);
    assert_int_equal(o.machine.ram_bytes, UINT64_C(10240) << 20);
    assert_int_equal(o.machine.processors, 2);
    assert_string_equal(o.machine.kernel, "k");
    assert_string_equal(o.machine.initrd, "i");
    assert_string_equal(o.machine.append, "a=b, c");
    assert_string_equal(o.machine.serial[0], "mon:stdio");
    assert_true(o.no_reboot);
    assert_true(o.machine.has_debug_exit);
    assert_int_equal(o.machine.debug_exit_base, 0xf4);
    assert_int_equal(o.machine.debug_exit_size, 4);
    assert_string_equal(o.machine.engine, "kvm:soft");
    assert_string_equal(o.report, "out");
    assert_int_equal(o.log_mask, CLI_LOG_BOOT | CLI_LOG_SLOTS);
    cli_options_fini(&o);
}

static void backends(void **state)
{
    struct cli_options o;
    struct base_error err;

    assert_int_equal(parse(&o, &err,
                           WORDS("-m", "64", "-object", "memory-backend-file,id=r,size=64M,mem-path=/a,,b,share=on",
                                 "-machine", "pc,memory-backend=r", "-kernel", "k")),
                     0);
    assert_int_equal(o.machine.ram_kind, MACHINE_RAM_FILE);
    assert_string_equal(o.machine.ram_path, "/a,b");
    assert_true(o.machine.ram_share);
    cli_options_fini(&o);
}

/* Each refusal is one line and holds both words. */
static void refused(void **state)
{
    static const struct {
        const char *words[5];
        const char *says, *also;
    } cases[] = {
        {{"-m", "0"}, "-m '0'", "1M"},
        {{"-m", "1E"}, "-m '1E'", "32T"},
        {{"-m", "lots"}, "-m 'lots'", "size"},
        {{"-m"}, "-m needs", "SIZE"},
        {{"-smp", "0"}, "-smp '0'", "1 to 64"},
        {{"-smp", "65"}, "-smp '65'", "1 to 64"},
        {{"-smp", "2,sockets=2"}, "sockets", "one socket"},
        {{"-device", "e1000"}, "e1000", "unknown device"},
        {{"-device", "isa-debug-exit,iosize=3"}, "iosize", "1, 2 or 4"},
        {{"-device", "isa-debug-exit,bus=x"}, "bus=x", "unknown part"},
        {{"-kernal", "x"}, "-kernal", "-kernel"},
        {{"-intrid", "x"}, "-intrid", "-initrd"},
        {{"-zzzzzz"}, "-zzzzzz", "--help"},
        {{"kernel"}, "'kernel'", "-kernel"},
        {{"-nographic=1"}, "-nographic", "no value"},
        {{"-d", "everything"}, "everything", "boot"},
        {{"-machine", "q35"}, "q35", "pc"},
        {{"-object", "rng-random,id=x"}, "rng-random", "memory-backend"},
        {{"-object", "memory-backend-ram,id=x"}, "size=", "needed"},
        {{"-serial", "stdio", "-serial", "mon:stdio"}, "-serial", "only one"},
        {{"-M", "memory-backend=nobody"}, "nobody", "no such"},
        {{"--mark", ""}, "--mark", "1 to 100"},
        {{"-action", "reboot=never"}, "never", "shutdown"},
        {{"-vga", "std"}, "-vga", "none"},
    };
    size_t i;

    for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct cli_options o;
        struct base_error err;
        int ret = parse(&o, &err, cases[i].words);

        if (ret != -EINVAL || !strstr(err.text, cases[i].says) || !strstr(err.text, cases[i].also) ||
            strchr(err.text, '\n')) {
            fail_msg("%s %s: %d '%s'", cases[i].words[0], cases[i].words[1], ret, err.text);
        }
        cli_options_fini(&o);
    }
}

static void help_fits_a_screen(void **state)
{
    char *text = NULL;
    size_t length = 0, lines = 0, i, column = 0;
    FILE *f = open_memstream(&text, &length);

    cli_options_help(f);
    fclose(f);
    for (i = 0; i < length; i++) {
        column = text[i] == '\n' ? 0 : column + 1;
        lines += text[i] == '\n';
        assert_true(column <= 110);
    }
    assert_in_range(lines, 20, 60);
    free(text);
}

static void distances(void **state)
{
    assert_int_equal(cli_word_distance("kernel", "kernel"), 0);
    assert_int_equal(cli_word_distance("kernal", "kernel"), 1);
    assert_int_equal(cli_word_distance("intird", "initrd"), 1);
    assert_int_equal(cli_word_distance("ab", "ba"), 1);
    assert_int_equal(cli_word_distance("", "abc"), 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes),      cmocka_unit_test(accepted),
        cmocka_unit_test(backends),   cmocka_unit_test(refused),
        cmocka_unit_test(help_fits_a_screen), cmocka_unit_test(distances),
    };

    return cmocka_run_group_tests_name("cli/options", tests, NULL, NULL);
}
