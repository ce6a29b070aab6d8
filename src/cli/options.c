/* The command line of `strata run`; see options.h. */
#include "cli/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "accel/accel.h"
#include "cli/parts.h"
#include "cli/value.h"

#define MIB (UINT64_C(1) << 20)

typedef int option_fn(struct cli_options *o, const char *value, struct base_error *err);

struct option {
    const char *name;  /* without dashes */
    const char *value; /* what the help shows; NULL: takes none; "[=FILE]": optional, after '=' */
    option_fn *apply;
    const char *help; /* NULL: not in the short help */
};

static int refuse(struct base_error *err, const char *option, const char *value, const char *want)
{
    return base_error_set(err, EINVAL, "%s '%s': %s", option, value, want);
}

static int opt_memory(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_memory_parse(o, value, err);
}

static int opt_smp(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_smp_parse(o, value, err);
}

static int opt_cpu(struct cli_options *o, const char *value, struct base_error *err)
{
    if (strcmp(value, "help") == 0) {
        return refuse(err, "-cpu", value, "models: max, host; then ,+feature or ,-feature");
    }
    o->machine.cpu = value;
    return 0;
}

static int opt_accel(struct cli_options *o, const char *value, struct base_error *err)
{
    if (strcmp(value, "help") == 0) {
        return refuse(err, "-accel", value, "kvm, soft, auto, or a list such as kvm:soft; then ,mmu=ept|npt|shadow ,levels=4|5 ,page=4k|2m|1g ,frames=SIZE ,swap=SIZE");
    }
    o->machine.engine = value;
    return accel_engine_check(value, err);
}

static int opt_enable_kvm(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.engine = "kvm";
    return 0;
}

static int opt_kernel(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.kernel = value;
    return 0;
}

static int opt_initrd(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.initrd = value;
    return 0;
}

static int opt_append(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.append = value;
    return 0;
}

static int opt_nographic(struct cli_options *o, const char *value, struct base_error *err)
{
    o->nographic = true;
    return 0;
}

static int opt_serial(struct cli_options *o, const char *value, struct base_error *err)
{
    if (o->serial_count == MACHINE_MAX_SERIAL) {
        return refuse(err, "-serial", value, "at most four serial ports");
    }
    o->machine.serial[o->serial_count++] = value;
    return 0;
}

static int opt_no_reboot(struct cli_options *o, const char *value, struct base_error *err)
{
    o->no_reboot = true;
    return 0;
}

static int opt_device(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_device_parse(o, value, err);
}

static int opt_log(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_log_parse(o, value, err);
}

static int opt_log_file(struct cli_options *o, const char *value, struct base_error *err)
{
    o->log_file = value;
    return 0;
}

static int opt_mem_path(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.ram_kind = MACHINE_RAM_FILE;
    o->machine.ram_path = value;
    o->machine.ram_share = true;
    return 0;
}

static int opt_mem_prealloc(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.ram_prealloc = true;
    return 0;
}

static int opt_object(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_object_parse(o, value, err);
}

static int opt_machine(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_machine_parse(o, value, err);
}

static int opt_display(struct cli_options *o, const char *value, struct base_error *err)
{
    return strcmp(value, "none") == 0 ? 0 : refuse(err, "-display", value, "only none: there is no display");
}

static int opt_vga(struct cli_options *o, const char *value, struct base_error *err)
{
    return strcmp(value, "none") == 0 ? 0 : refuse(err, "-vga", value, "only none: there is no display");
}

static int opt_monitor(struct cli_options *o, const char *value, struct base_error *err)
{
    return strcmp(value, "none") == 0 ? 0 : refuse(err, "-monitor", value, "only none in this version");
}

static int opt_net(struct cli_options *o, const char *value, struct base_error *err)
{
    return strcmp(value, "none") == 0 ? 0 : refuse(err, "-net", value, "only none in this version");
}

static int opt_ignored(struct cli_options *o, const char *value, struct base_error *err)
{
    return 0;
}

static int opt_debugcon(struct cli_options *o, const char *value, struct base_error *err)
{
    o->machine.has_debugcon = true;
    o->machine.debugcon = value;
    o->machine.debugcon_base = 0xe9;
    return 0;
}

static int opt_action(struct cli_options *o, const char *value, struct base_error *err)
{
    return cli_action_parse(o, value, err);
}

static int opt_pidfile(struct cli_options *o, const char *value, struct base_error *err)
{
    o->pidfile = value;
    return 0;
}

static int opt_mark(struct cli_options *o, const char *value, struct base_error *err)
{
    if (strlen(value) == 0 || strlen(value) > 100) {
        return refuse(err, "--mark", value, "1 to 100 characters of console text");
    }
    o->machine.mark = value;
    return 0;
}

static int opt_report(struct cli_options *o, const char *value, struct base_error *err)
{
    o->report = value ? value : "-";
    return 0;
}

static int opt_report_json(struct cli_options *o, const char *value, struct base_error *err)
{
    o->report_json = value ? value : "-";
    return 0;
}

static int opt_help(struct cli_options *o, const char *value, struct base_error *err)
{
    o->help = true;
    return 0;
}

static int opt_version(struct cli_options *o, const char *value, struct base_error *err)
{
    o->version = true;
    return 0;
}

static const struct option options[] = {
    {"m", "SIZE", opt_memory, "guest memory: 512, 10240 (MiB), 4G; suffixes k M G T P E"},
    {"smp", "N", opt_smp, "processors, 1 to 64"},
    {"cpu", "MODEL[,+F][,-F]", opt_cpu, "max or host, with features added or taken away"},
    {"accel", "NAME", opt_accel, "kvm, soft, auto, or a list to try in order: kvm:soft; properties below"},
    {"enable-kvm", NULL, opt_enable_kvm, "the same as -accel kvm"},
    {"machine", "pc[,KEY=VAL]", opt_machine, "memory-backend=ID, unpack=on|off (kernel unpacked here)"},
    {"M", "pc[,KEY=VAL]", opt_machine, NULL},
    {"kernel", "FILE", opt_kernel, "bzImage, ELF with a PVH note, or Multiboot 1 image"},
    {"initrd", "FILE", opt_initrd, "initial RAM disk; for Multiboot \"file args,file args\""},
    {"append", "TEXT", opt_append, "kernel command line"},
    {"mem-path", "FILE", opt_mem_path, "guest memory in a file or directory"},
    {"mem-prealloc", NULL, opt_mem_prealloc, "touch all guest memory at the start"},
    {"object", "memory-backend-ram|memfd|file,...", opt_object, "id=, size=, mem-path=, share=, prealloc="},
    {"nographic", NULL, opt_nographic, "serial port on this terminal, Ctrl-A h for its keys"},
    {"serial", "stdio|mon:stdio|file:F|null", opt_serial, "where a serial port goes; repeat for more"},
    {"debugcon", "stdio|file:F|null", opt_debugcon, "bytes written to port 0xe9"},
    {"device", "isa-debug-exit[,iobase=,iosize=]", opt_device, "a write of V ends with status 2V+1"},
    {"no-reboot", NULL, opt_no_reboot, "end instead of restarting the guest"},
    {"action", "reboot=reset|shutdown", opt_action, "what a restart does"},
    {"mark", "TEXT", opt_mark, "console text that counts as \"user space reached\""},
    {"report", "[=FILE]", opt_report, "when it ends, print what every layer did"},
    {"report-json", "[=FILE]", opt_report_json, "the same as JSON"},
    {"d", "ITEM[,ITEM]", opt_log, "log boot, slots, mtree, cpu (registers after a crash), trace"},
    {"D", "FILE", opt_log_file, "log to FILE instead of standard error"},
    {"pidfile", "FILE", opt_pidfile, "write the process id there"},
    {"display", "none", opt_display, NULL},
    {"vga", "none", opt_vga, NULL},
    {"monitor", "none", opt_monitor, NULL},
    {"net", "none", opt_net, NULL},
    {"nic", "none", opt_net, NULL},
    {"nodefaults", NULL, opt_ignored, NULL},
    {"no-user-config", NULL, opt_ignored, NULL},
    {"name", "TEXT", opt_ignored, NULL},
    {"h", NULL, opt_help, NULL},
    {"help", NULL, opt_help, "this text"},
    {"version", NULL, opt_version, "version and engines"},
};

static const struct option *find_option(const char *name, size_t length)
{
    size_t i;

    for (i = 0; i < ARRAY_LEN(options); i++) {
        if (strlen(options[i].name) == length && memcmp(options[i].name, name, length) == 0) {
            return &options[i];
        }
    }
    return NULL;
}

static int unknown_option(const char *word, const char *name, struct base_error *err)
{
    const char *best = NULL;
    unsigned best_distance = 3;
    size_t i;

    for (i = 0; i < ARRAY_LEN(options); i++) {
        unsigned d = cli_word_distance(name, options[i].name);

        if (d < best_distance && strlen(options[i].name) > 1) {
            best = options[i].name;
            best_distance = d;
        }
    }
    if (best) {
        return base_error_set(err, EINVAL, "unknown option '%s'; did you mean -%s?", word, best);
    }
    return base_error_set(err, EINVAL, "unknown option '%s'; see strata run --help", word);
}

/* One option at argv[*i]; moves *i past its value. */
static int parse_one(struct cli_options *o, int argc, char *const *argv, int *i, struct base_error *err)
{
    const char *word = argv[*i], *name = word + 1, *value = NULL;
    const struct option *option;
    size_t length;

    if (word[0] != '-' || !word[1]) {
        return base_error_set(err, EINVAL, "'%s' is not an option; a kernel is given by -kernel", word);
    }
    name += *name == '-';
    length = strcspn(name, "=");
    option = find_option(name, length);
    if (!option) {
        return unknown_option(word, name, err);
    }
    if (name[length] == '=') {
        value = name + length + 1;
        if (!option->value) {
            return base_error_set(err, EINVAL, "-%s takes no value", option->name);
        }
    } else if (option->value && option->value[0] != '[') {
        if (*i + 1 >= argc) {
            return base_error_set(err, EINVAL, "-%s needs a value: %s", option->name, option->value);
        }
        value = argv[++*i];
    }
    return option->apply(o, value, err);
}

/* What follows from several options together. */
static int settle(struct cli_options *o, struct base_error *err)
{
    unsigned i, terminals = 0;

    if (o->serial_count == 0) {
        o->machine.serial[0] = o->nographic ? "mon:stdio" : "stdio";
    }
    for (i = 0; i < MACHINE_MAX_SERIAL; i++) {
        const char *s = o->machine.serial[i];

        terminals += s && (strcmp(s, "stdio") == 0 || strcmp(s, "mon:stdio") == 0);
    }
    if (terminals > 1) {
        return base_error_set(err, EINVAL, "-serial: only one port can have the terminal");
    }
    return cli_memory_settle(o, err);
}

/*
 * Parse the words after "run".
 * o: filled with defaults first; strings in it point into argv, or into copies freed by cli_options_fini(),
 * which is to be called after failure too.
 * Returns: 0; -EINVAL with one line in err. Lock: none. Source: QEMU's option names.
 */
int cli_options_parse(struct cli_options *o, int argc, char *const *argv, struct base_error *err)
{
    int i, ret = 0;

    memset(o, 0, sizeof(*o));
    o->machine.ram_bytes = 128 * MIB;
    o->machine.processors = 1;
    o->machine.unpack = true;
    o->machine.signal_fd = -1;
    for (i = 0; ret == 0 && i < argc; i++) {
        ret = parse_one(o, argc, argv, &i, err);
    }
    if (ret < 0 || o->help || o->version) {
        return ret;
    }
    return settle(o, err);
}

/* Free what a parse copied. Source: own. */
void cli_options_fini(struct cli_options *o)
{
    while (o->kept_count > 0) {
        free(o->kept[--o->kept_count]);
    }
}

/* The help: at most one screen. Source: own. */
void cli_options_help(FILE *to)
{
    size_t i;

    fprintf(to, "usage: strata run -kernel FILE [options]\n\n"
                "  strata run -m 10240 -smp 2 -kernel vmlinuz -initrd initrd.img \\\n"
                "      -append \"console=ttyS0\" -nographic\n\noptions:\n");
    for (i = 0; i < ARRAY_LEN(options); i++) {
        const struct option *p = &options[i];
        char left[64];

        if (p->help) {
            snprintf(left, sizeof(left), "%s%s%s%s", strlen(p->name) > 3 && p->value && *p->value == '[' ? "--" : "-",
                     p->name, p->value && *p->value != '[' ? " " : "", p->value ? p->value : "");
            fprintf(to, "  %-34s %s\n", left, p->help);
        }
    }
    fprintf(to, "\n-accel properties, behind a comma each:\n"
                "  mmu=ept|npt|shadow levels=4|5 page=4k|2m|1g pml=on|off ad=on|off nx-huge=on|off\n"
                "  eager-split=on|off frames=SIZE swap=SIZE    the software engine's tables, and its host memory\n"
                "  dirty-ring-size=N manual-dirty-log=on|off initially-dirty=on|off max-slot-size=SIZE\n"
                "  confidential=on|off                         of either engine\n"
                "\nexit status: 0 guest powered off; 1 error; 2 usage; 3 accelerator not to be had;\n"
                "4 guest crashed (with -no-reboot); 2V+1 isa-debug-exit; 128+N signal N\n"
                "other commands: strata kvm-run -- COMMAND (answers its /dev/kvm), strata doctor (which engines\n"
                "work here), strata --version\n");
}
