/* Error texts; see error.h. Truncates, never allocates. */
#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int base_error_set(struct base_error *err, int code, const char *fmt, ...)
{
    if (err) {
        va_list args;

        va_start(args, fmt);
        vsnprintf(err->text, sizeof(err->text), fmt, args);
        va_end(args);
    }
    return -code;
}

void base_error_prefix(struct base_error *err, const char *fmt, ...)
{
    char old[sizeof(err->text)];
    va_list args;
    size_t len;

    if (!err) {
        return;
    }
    memcpy(old, err->text, sizeof(old));
    va_start(args, fmt);
    vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    len = strlen(err->text);
    snprintf(err->text + len, sizeof(err->text) - len, ": %s", old);
}
