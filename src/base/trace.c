/* Trace points; see trace.h. The table is a linker section; everything else is the caller's. */
#include "base/trace.h"

#include <stdio.h>

void base_trace_emit(const struct base_trace *t, const struct base_trace_point *p, uint64_t a,
                     uint64_t b, uint64_t c, uint64_t d)
{
    uint64_t args[TRACE_ARGS] = {a, b, c, d};
    base_trace_fn *sink = t->sink;

    if (sink) {
        sink(t->opaque, p, args);
    }
}

int base_trace_format(const struct base_trace_point *p, const uint64_t *args, char *buf, size_t size)
{
    char text[192];

/* The format is a constant of this program, written beside its arguments at the trace point. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
#pragma GCC diagnostic ignored "-Wformat-security"
    snprintf(text, sizeof(text), p->format, (unsigned long long)args[0], (unsigned long long)args[1],
             (unsigned long long)args[2], (unsigned long long)args[3]);
#pragma GCC diagnostic pop
    return snprintf(buf, size, "%s: %s", p->name, text);
}

extern const struct base_trace_point *const __start_strata_trace[] __attribute__((weak, visibility("hidden")));
extern const struct base_trace_point *const __stop_strata_trace[] __attribute__((weak, visibility("hidden")));

const struct base_trace_point *const *base_trace_points(size_t *count)
{
    *count = (size_t)(__stop_strata_trace - __start_strata_trace);
    return __start_strata_trace;
}
