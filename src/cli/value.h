/* Values on the command line: sizes, numbers, key=value lists. Nothing here prints. */
#ifndef STRATA_CLI_VALUE_H
#define STRATA_CLI_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* "10240", "512M", "1.5G", "0x1000"; a bare number counts `unit` bytes. -EINVAL syntax, -ERANGE too large. */
int cli_size_parse(const char *text, uint64_t unit, uint64_t *out) must_check;
/* A whole number in decimal or 0x form, within [min, max]; option: for the message. */
int cli_number_parse(const char *option, const char *text, uint64_t max, uint64_t *out,
                     struct base_error *err) must_check;
/* on|off|yes|no|true|false. */
int cli_bool_parse(const char *option, const char *text, bool *out, struct base_error *err) must_check;
/* Edits between two words, for suggestions: insertions, deletions, changes, swaps. */
unsigned cli_word_distance(const char *a, const char *b);

#endif
