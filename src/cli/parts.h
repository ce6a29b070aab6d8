/* Options with parts of their own (key=value lists), for cli/options.c. Each: 0 or -EINVAL with err. */
#ifndef STRATA_CLI_PARTS_H
#define STRATA_CLI_PARTS_H

#include "cli/options.h"

int cli_memory_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
/* -m, -object and -machine memory-backend= together. */
int cli_memory_settle(struct cli_options *o, struct base_error *err) must_check;
int cli_smp_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
int cli_device_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
int cli_log_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
int cli_object_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
int cli_machine_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;
int cli_action_parse(struct cli_options *o, const char *value, struct base_error *err) must_check;

#endif
