/*
 * `strata run`: options to machine, machine to its end, end to an exit status. A restart makes a new
 * machine from the same options.
 *
 *   0 power-off   1 run-time error   2 usage   3 accelerator not to be had   4 guest crash with -no-reboot
 *   2V+1 isa-debug-exit   128+N signal N
 */
#include "cli/run.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "accel/accel.h"
#include "cli/options.h"
#include "cli/report.h"
#include "devices/terminal.h"
#include "strata/print.h"

#define STATUS_ERROR   1
#define STATUS_USAGE   2
#define STATUS_NO_ACCEL 3
#define STATUS_CRASH   4

/* A fault of this program: give the terminal back, then die of it as the system would have it. */
static void fatal_handler(int sig)
{
    static const char bus[] =
        "strata: a page of guest memory could not be had (is the disk or file behind it full?)\n";

    devices_terminal_restore();
    if (sig == SIGBUS && write(STDERR_FILENO, bus, sizeof(bus) - 1) < 0) {
        _exit(STATUS_ERROR);
    }
    if (sig == SIGBUS) {
        _exit(STATUS_ERROR);
    }
    signal(sig, SIG_DFL);
    raise(sig);
}

/* Signals that end a run arrive by descriptor; faults get the handler above. */
static int setup_signals(struct base_error *err)
{
    static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    struct sigaction sa;
    sigset_t ending;
    unsigned i;
    int fd;

    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = fatal_handler;
    for (i = 0; i < ARRAY_LEN(fatal); i++) {
        sigaction(fatal[i], &sa, NULL);
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&ending);
    sigaddset(&ending, SIGINT);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGHUP);
    sigaddset(&ending, SIGQUIT);
    sigprocmask(SIG_BLOCK, &ending, NULL);
    fd = signalfd(-1, &ending, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? base_error_set(err, errno, "signalfd: %s", strerror(errno)) : fd;
}

/* -d trace: one line for each step of a flow. */
static void trace(void *opaque, const char *name, const char *file, const char *function, const char *text)
{
    fprintf(opaque, "%s (%s:%s)\n", text, file, function);
}

static void warn(void *opaque, const char *line)
{
    fprintf(stderr, "strata: warning: %s\n", line);
}

static void sink(void *opaque, const char *text, size_t length)
{
    fwrite(text, 1, length, opaque);
}

static void log_start(const struct cli_options *o, struct machine *m, FILE *log)
{
    struct accel_slot_info slots[64];
    unsigned i, n;

    if (o->log_mask & CLI_LOG_BOOT) {
        fprintf(log, "boot: %s\n", machine_boot_text(m));
    }
    if (o->log_mask & CLI_LOG_MTREE) {
        strata_print(machine_memory(m), NULL, 0, sink, log);
    }
    n = o->log_mask & CLI_LOG_SLOTS ? accel_slots(machine_accel(m), slots, 64) : 0;
    for (i = 0; i < n; i++) {
        fprintf(log, "slots: %u gpa 0x%llx size 0x%llx hva 0x%llx flags %u\n", slots[i].id,
                (unsigned long long)slots[i].gpa, (unsigned long long)slots[i].size,
                (unsigned long long)slots[i].hva, slots[i].flags);
    }
    fflush(log);
}

static int exit_status(const struct cli_options *o, const struct machine_result *r)
{
    switch (r->outcome) {
    case MACHINE_POWEROFF:
    case MACHINE_QUIT:
    case MACHINE_RESET:
        return 0;
    case MACHINE_CRASH:
        return STATUS_CRASH;
    case MACHINE_DEBUG_EXIT:
        return (int)((r->value << 1 | 1) & 0xff);
    case MACHINE_SIGNAL:
        return 128 + (int)r->value;
    default:
        return STATUS_ERROR;
    }
}

static int write_file(const char *path, const struct cli_run *run, bool json)
{
    bool is_stdout = strcmp(path, "-") == 0;
    FILE *to = is_stdout ? stdout : fopen(path, "we");
    int ret = 0;

    if (!to) {
        fprintf(stderr, "strata: --report '%s': %s\n", path, strerror(errno));
        return -1;
    }
    if (json) {
        ret = cli_report_json(run, to);
    } else {
        cli_report_text(run, to);
    }
    if ((is_stdout ? fflush(to) : fclose(to)) != 0 || ret < 0) {
        fprintf(stderr, "strata: --report '%s': cannot be written\n", path);
        return -1;
    }
    return 0;
}

static int report(const struct cli_options *o, struct machine *m, const struct machine_result *r)
{
    struct cli_run run = {m, &o->machine, r};
    int ret = 0;

    if (o->report) {
        ret |= write_file(o->report, &run, false);
    }
    if (o->report_json) {
        ret |= write_file(o->report_json, &run, true);
    }
    return ret;
}

static bool is_restart(const struct cli_options *o, const struct machine_result *r)
{
    return !o->no_reboot && (r->outcome == MACHINE_RESET || r->outcome == MACHINE_CRASH);
}

static void tell_end(const struct cli_options *o, struct machine *m, const struct machine_result *r, FILE *log)
{
    bool is_bad = r->outcome == MACHINE_FAILED || r->outcome == MACHINE_CRASH;

    if (is_bad) {
        fprintf(stderr, "strata: %s\n", r->detail[0] ? r->detail : "the guest crashed");
    }
    if (r->outcome == MACHINE_SIGNAL) {
        fprintf(stderr, "strata: ended by signal: %s\n", r->detail);
    }
    if (is_bad && (o->log_mask & CLI_LOG_CPU)) {
        accel_registers_show(machine_accel(m), log);
        fflush(log);
    }
}

/* One life of the machine. *again: the guest restarts. */
static int run_once(const struct cli_options *o, FILE *log, bool is_first, bool *again)
{
    struct machine_result result;
    enum machine_stage stage;
    struct base_error err = {""};
    struct machine *m;
    int status, ret = machine_new(&m, &o->machine, &stage, &err);

    if (ret < 0) {
        devices_terminal_restore();
        fprintf(stderr, "strata: %s\n", err.text);
        if (stage == MACHINE_STAGE_ENGINE) {
            return ret == -EINVAL ? STATUS_USAGE : STATUS_NO_ACCEL;
        }
        return STATUS_ERROR;
    }
    if (is_first) {
        fprintf(stderr, "strata: engine %s (%s)\r\n", accel_engine(machine_accel(m)),
                accel_engine_reason(machine_accel(m)));
        log_start(o, m, log);
    }
    if (machine_run(m, &result, &err) < 0) {
        machine_free(m);
        fprintf(stderr, "strata: %s\n", err.text);
        return STATUS_ERROR;
    }
    *again = is_restart(o, &result);
    status = exit_status(o, &result);
    if (!*again) {
        devices_terminal_restore();
        tell_end(o, m, &result, log);
        if (report(o, m, &result) < 0 && status == 0) {
            status = STATUS_ERROR;
        }
    }
    machine_free(m);
    return status;
}

static int write_pidfile(const char *path)
{
    FILE *f = fopen(path, "we");
    bool ok = f && fprintf(f, "%d\n", (int)getpid()) > 0;

    if (!f || fclose(f) != 0 || !ok) {
        fprintf(stderr, "strata: -pidfile '%s': %s\n", path, strerror(errno));
        return -1;
    }
    return 0;
}

static int run_all(struct cli_options *o)
{
    FILE *log = o->log_file ? fopen(o->log_file, "we") : stderr;
    struct base_error err = {""};
    bool again = true, is_first = true;
    int status = 0;

    if (!log) {
        fprintf(stderr, "strata: -D '%s': %s\n", o->log_file, strerror(errno));
        return STATUS_ERROR;
    }
    o->machine.warn = warn;
    o->machine.trace = o->log_mask & CLI_LOG_TRACE ? trace : NULL;
    o->machine.opaque = log;
    o->machine.explains = o->report || o->report_json;
    o->machine.signal_fd = setup_signals(&err);
    if (o->machine.signal_fd < 0 || (o->pidfile && write_pidfile(o->pidfile) < 0)) {
        if (err.text[0]) {
            fprintf(stderr, "strata: %s\n", err.text);
        }
        status = STATUS_ERROR;
        again = false;
    }
    for (; again; is_first = false) {
        again = false;
        status = run_once(o, log, is_first, &again);
    }
    if (o->machine.signal_fd >= 0) {
        close(o->machine.signal_fd);
    }
    if (log != stderr) {
        fclose(log);
    }
    return status;
}

/* `strata run`. Returns: the exit status. Source: own. */
int cli_run(int argc, char *const *argv)
{
    struct cli_options o;
    struct base_error err = {""};
    int status = STATUS_USAGE;

    if (cli_options_parse(&o, argc, argv, &err) < 0) {
        fprintf(stderr, "strata: %s\n", err.text);
    } else if (o.help) {
        cli_options_help(stdout);
        status = 0;
    } else if (o.version) {
        status = cli_version(stdout);
    } else if (!o.machine.kernel) {
        fprintf(stderr, "strata: nothing to boot: give a kernel with -kernel FILE (see strata run --help)\n");
    } else {
        status = run_all(&o);
    }
    cli_options_fini(&o);
    return status;
}
