/* The program's outermost layer: which command, and the commands that need no machine. */
#include <stdio.h>
#include <string.h>

#include "accel/accel.h"
#include "cli/options.h"
#include "cli/run.h"
#include "cli/value.h"
#include "softkvm/softkvm.h"

#define VERSION "0.1.0"

/* Print the version. to: an open stream. Returns: exit status 0. Source: own. */
int cli_version(FILE *to)
{
    fprintf(to, "strata %s (accelerators: kvm, soft %s)\n", VERSION, softkvm_version());
    return 0;
}

static int try_engine(const char *name)
{
    struct accel_options opts = {.engine = name, .vcpus = 1};
    struct base_error err = {""};
    struct accel *a;

    if (accel_open(&a, &opts, &err) < 0) {
        printf("%-5s not to be had: %s\n", name, err.text);
        return -1;
    }
    printf("%-5s works (%s)\n", name, accel_engine_reason(a));
    accel_free(a);
    return 0;
}

/* `strata doctor`: which engines can run a guest here. Returns: 0 when any can, else 3. Source: own. */
int cli_doctor(int argc, char *const *argv)
{
    int kvm = try_engine("kvm"), soft = try_engine("soft");
    struct accel_options opts = {.engine = "auto", .vcpus = 1};
    struct accel *a;

    if (accel_open(&a, &opts, NULL) == 0) {
        printf("auto  takes %s (%s)\n", accel_engine(a), accel_engine_reason(a));
        accel_free(a);
    }
    return kvm == 0 || soft == 0 ? 0 : 3;
}

static int cli_help(int argc, char *const *argv)
{
    cli_options_help(stdout);
    return 0;
}

static int cli_show_version(int argc, char *const *argv)
{
    return cli_version(stdout);
}

static const struct command {
    const char *name;
    int (*run)(int argc, char *const *argv);
} commands[] = {
    {"run", cli_run},          {"kvm-run", cli_kvm_run},       {"doctor", cli_doctor},
    {"help", cli_help},
    {"--help", cli_help},      {"-h", cli_help},               {"-help", cli_help},
    {"--version", cli_show_version}, {"-version", cli_show_version},
};

/*
 * The whole program.
 * argv: as main() has it. Returns: the exit status. Source: own.
 */
int cli_main(int argc, char *const *argv)
{
    const char *best = NULL;
    unsigned d, best_distance = 3;
    size_t i;

    if (argc < 2) {
        fprintf(stderr, "strata: what to do? strata run -kernel FILE ..., or strata --help\n");
        return 2;
    }
    for (i = 0; i < ARRAY_LEN(commands); i++) {
        if (strcmp(argv[1], commands[i].name) == 0) {
            return commands[i].run(argc - 2, argv + 2);
        }
        d = cli_word_distance(argv[1], commands[i].name);
        if (d < best_distance && commands[i].name[0] != '-') {
            best = commands[i].name;
            best_distance = d;
        }
    }
    if (best) {
        fprintf(stderr, "strata: unknown command '%s'; did you mean '%s'?\n", argv[1], best);
    } else {
        fprintf(stderr, "strata: unknown command '%s'; run, kvm-run, doctor, --help, --version\n", argv[1]);
    }
    return 2;
}
