/*
 * Error text beside an errno: a fallible call returns 0 or -errno, and says in words what was wrong
 * in a buffer that the caller owns. A null buffer is always allowed. The text is one line, names the
 * thing and the value at fault, and has no newline. No state, no locks.
 */
#ifndef STRATA_BASE_ERROR_H
#define STRATA_BASE_ERROR_H

#include "base/compiler.h"

struct base_error {
    char text[256];
};

/* Format into err (if any) and return -code, so that `return base_error_set(err, EINVAL, ...)` reads
 * as one statement. code: a positive errno. */
int base_error_set(struct base_error *err, int code, const char *fmt, ...) printf_like(3, 4);

/* Put "prefix: " before what err already says; for callers that know the context. */
void base_error_prefix(struct base_error *err, const char *fmt, ...) printf_like(2, 3);

#endif
