/* What a run did, told layer by layer, as text or JSON. Called after the run, while the machine is there. */
#ifndef STRATA_CLI_REPORT_H
#define STRATA_CLI_REPORT_H

#include <stdio.h>

#include "machine/machine.h"

struct cli_run {
    struct machine *machine;
    const struct machine_config *config;
    const struct machine_result *result;
};

void cli_report_text(const struct cli_run *run, FILE *to);
/* 0; -ENOMEM; -EIO. */
int cli_report_json(const struct cli_run *run, FILE *to);

/* Bytes of guest RAM that are resident, and this process's resident and peak size. */
struct cli_memory_use {
    uint64_t guest_resident, process_resident, process_peak;
};
void cli_memory_use(struct machine *m, struct cli_memory_use *out);
/* "poweroff", "reset", ...: for both forms. */
const char *cli_outcome_name(enum machine_outcome outcome);

#endif
