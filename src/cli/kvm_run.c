/*
 * `strata kvm-run -- COMMAND`: run a program with /dev/kvm answered by the library. The program is executed in
 * place of this one, with LD_PRELOAD and the library's options in its environment; its children inherit both.
 *
 * Exit status: the command's own; 2 usage; 3 no KVM to be had as asked; 126 the command cannot be run this
 * way; 127 there is no such command.
 */
#include "cli/kvm_run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/run.h"
#include "cli/value.h"

enum real_kvm { REAL_NEVER, REAL_PREFER, REAL_REQUIRE };

struct wishes {
    const char *mmu;   /* null: ept */
    const char *trace; /* file, "1" for standard error; null: none */
    bool stats, list, help;
    enum real_kvm real;
    char *const *command; /* null-terminated; null: none given */
};

static const char help_text[] =
    "usage: strata kvm-run [options] [--] COMMAND [ARGUMENT...]\n"
    "\n"
    "Runs COMMAND, and what it starts, with /dev/kvm answered by a KVM in software. No hardware\n"
    "virtualization, no kernel module and no rights are needed: one word before the command.\n"
    "\n"
    "  strata kvm-run -- qemu-system-x86_64 -accel kvm -kernel vmlinuz ...\n"
    "  strata kvm-run -- make test\n"
    "\n"
    "options:\n"
    "  --mmu ept|npt|shadow  how guest memory is translated (ept)\n"
    "  --stats               print each VM's and vCPU's counters when it is closed\n"
    "  --trace[=FILE]        write each step of memory virtualization, and requests that are not there, to\n"
    "                        standard error or to FILE\n"
    "  --prefer-real         use the kernel's KVM where it works, and the one in software elsewhere\n"
    "  --require-real        use the kernel's KVM, or end with status 3 where it does not work\n"
    "  --list                print every request and capability of the KVM ABI with its state\n"
    "  --help                this\n"
    "\n"
    "The command must be a dynamically linked 64-bit program of the GNU C library (or a script): a static one\n"
    "does not load libraries, and a set-user-ID one does not take them from its caller.\n"
    "exit status: the command's; 2 usage; 3 no KVM as asked; 126 the command cannot be run this way;\n"
    "127 no such command\n";

static int usage_error(const char *what, const char *word)
{
    fprintf(stderr, "strata kvm-run: %s '%s'; see strata kvm-run --help\n", what, word);
    return 2;
}

/* The value of "--name VALUE" or "--name=VALUE", with *i moved to the last word of it; null: not this option. */
static const char *option_value(const char *name, int argc, char *const *argv, int *i)
{
    size_t n = strlen(name);

    if (strncmp(argv[*i], name, n) != 0 || (argv[*i][n] != '\0' && argv[*i][n] != '=')) {
        return NULL;
    }
    if (argv[*i][n] == '=') {
        return argv[*i] + n + 1;
    }
    if (*i + 1 >= argc) {
        return "";
    }
    return argv[++*i];
}

static bool is_mmu(const char *name)
{
    return strcmp(name, "ept") == 0 || strcmp(name, "npt") == 0 || strcmp(name, "shadow") == 0;
}

/* One option at argv[*i]. 0 or 2. */
static int parse_option(struct wishes *w, int argc, char *const *argv, int *i)
{
    const char *word = argv[*i], *value;

    if (strcmp(word, "--stats") == 0) {
        w->stats = true;
    } else if (strcmp(word, "--trace") == 0) {
        w->trace = "1";
    } else if (strncmp(word, "--trace=", 8) == 0 && word[8]) {
        w->trace = word + 8;
    } else if (strcmp(word, "--list") == 0) {
        w->list = true;
    } else if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        w->help = true;
    } else if (strcmp(word, "--prefer-real") == 0) {
        w->real = REAL_PREFER;
    } else if (strcmp(word, "--require-real") == 0) {
        w->real = REAL_REQUIRE;
    } else if ((value = option_value("--mmu", argc, argv, i)) != NULL) {
        if (!is_mmu(value)) {
            return usage_error("--mmu takes ept, npt or shadow, not", value);
        }
        w->mmu = value;
    } else {
        return usage_error("unknown option", word);
    }
    return 0;
}

static int parse(struct wishes *w, int argc, char *const *argv)
{
    int i, status;

    for (i = 0; i < argc && argv[i][0] == '-'; i++) {
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        status = parse_option(w, argc, argv, &i);
        if (status) {
            return status;
        }
    }
    w->command = i < argc ? argv + i : NULL;
    return 0;
}

static int set_or_clear(const char *name, const char *value)
{
    return value ? setenv(name, value, 1) : unsetenv(name);
}

/* The library in front of what was preloaded already. */
static int set_preload(const char *library)
{
    const char *others = getenv("LD_PRELOAD");
    char *all = NULL;
    int ret;

    if (!others || !*others) {
        return setenv("LD_PRELOAD", library, 1);
    }
    if (asprintf(&all, "%s:%s", library, others) < 0) {
        return -1;
    }
    ret = setenv("LD_PRELOAD", all, 1);
    free(all);
    return ret;
}

static int execute(char *const *command)
{
    execvp(command[0], command);
    fprintf(stderr, "strata kvm-run: '%s': %s\n", command[0], strerror(errno));
    return errno == ENOENT ? 127 : 126;
}

static int run_in_software(const struct wishes *w)
{
    struct base_error err = {""};
    char library[PATH_MAX];

    if (cli_preload_find(library, &err) < 0) {
        fprintf(stderr, "strata kvm-run: %s\n", err.text);
        return 3;
    }
    if (strpbrk(library, ": ")) {
        fprintf(stderr, "strata kvm-run: LD_PRELOAD cannot name '%s': it has a space or colon in it\n", library);
        return 3;
    }
    if (set_preload(library) != 0 || set_or_clear("STRATA_KVM_MMU", w->mmu) != 0 ||
        set_or_clear("STRATA_KVM_STATS", w->stats ? "1" : NULL) != 0 ||
        set_or_clear("STRATA_KVM_TRACE", w->trace) != 0) {
        fprintf(stderr, "strata kvm-run: %s\n", strerror(errno));
        return 1;
    }
    return execute(w->command);
}

static int run(const struct wishes *w)
{
    struct base_error err = {""};
    int ret;

    if (w->real != REAL_NEVER) {
        ret = cli_real_kvm_try(&err);
        if (ret == 0) {
            fprintf(stderr, "strata kvm-run: the kernel's KVM\n");
            return execute(w->command);
        }
        if (w->real == REAL_REQUIRE) {
            fprintf(stderr, "strata kvm-run: --require-real: %s\n", err.text);
            return 3;
        }
        fprintf(stderr, "strata kvm-run: KVM in software (%s)\n", err.text);
    }
    ret = cli_program_check(w->command[0], &err);
    if (ret < 0) {
        fprintf(stderr, "strata kvm-run: %s\n", err.text);
        return ret == -ENOENT ? 127 : 126;
    }
    return run_in_software(w);
}

static enum softkvm_mmu mmu_of(const char *name)
{
    if (name && strcmp(name, "npt") == 0) {
        return SOFTKVM_MMU_NPT;
    }
    return name && strcmp(name, "shadow") == 0 ? SOFTKVM_MMU_SHADOW : SOFTKVM_MMU_EPT;
}

/* `strata kvm-run`. Returns: the exit status, unless the command takes this process over. Source: own. */
int cli_kvm_run(int argc, char *const *argv)
{
    struct wishes w = {NULL};
    int status = parse(&w, argc, argv);

    if (status) {
        return status;
    }
    if (w.help) {
        fputs(help_text, stdout);
        return 0;
    }
    if (w.list) {
        return cli_kvm_list(mmu_of(w.mmu), stdout);
    }
    if (!w.command) {
        fprintf(stderr, "strata kvm-run: which command? strata kvm-run -- COMMAND ..., or --help\n");
        return 2;
    }
    return run(&w);
}
