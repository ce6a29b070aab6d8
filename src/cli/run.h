/* The commands: each returns the exit status of the program. */
#ifndef STRATA_CLI_RUN_H
#define STRATA_CLI_RUN_H

#include <stdio.h>

/* argv: the words after the command's name. */
int cli_run(int argc, char *const *argv);
int cli_kvm_run(int argc, char *const *argv);
int cli_doctor(int argc, char *const *argv);
int cli_main(int argc, char *const *argv);
/* One line; returns 0. */
int cli_version(FILE *to);

#endif
