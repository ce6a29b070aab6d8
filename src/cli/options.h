/*
 * The command line of `strata run`: QEMU's spelling for what is shared, one table for parsing, help and
 * suggestions. Parsing touches nothing outside its result, so that a fuzzer can drive it.
 */
#ifndef STRATA_CLI_OPTIONS_H
#define STRATA_CLI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "machine/machine.h"

#define CLI_LOG_BOOT  (1u << 0)
#define CLI_LOG_SLOTS (1u << 1)
#define CLI_LOG_MTREE (1u << 2)
#define CLI_LOG_CPU   (1u << 3)
#define CLI_LOG_TRACE (1u << 4)

/* What a parse gives; strings point into argv or into `kept`. */
struct cli_options {
    struct machine_config machine;
    bool nographic, no_reboot, help, version;
    bool serial_given, monitor_given;
    unsigned serial_count;
    unsigned log_mask;
    const char *log_file;
    const char *report, *report_json; /* NULL: none; "-": standard output */
    const char *pidfile;
    const char *memory_backend; /* id that -machine memory-backend= names */
    struct {
        const char *id; /* of -object memory-backend-*; NULL: none */
        enum machine_ram_kind kind;
        uint64_t size;
        const char *path;
        bool share, prealloc;
    } object;
    bool crash_status; /* a triple fault ends with status 4 */
    char *kept[64];    /* copies of parts of arguments; freed by cli_options_fini() */
    unsigned kept_count;
};

/* argv: the words after "run". 0; -EINVAL with one line that names option, value and range. */
int cli_options_parse(struct cli_options *o, int argc, char *const *argv, struct base_error *err) must_check;
void cli_options_fini(struct cli_options *o);
void cli_options_help(FILE *to);

#endif
