/*
 * Trace points: one per arrow of a flow (docs/flows). A point costs a load and a predicted branch when
 * nobody listens. What it says at each site: name, file, function, up to four integers and the format
 * that prints them; all points of a program can be listed.
 *
 * A sink belongs to a handle (a machine, an address-space set, an engine): no process-wide state but
 * the constant table of points, which the linker gathers.
 *
 * Locks: a sink is set while nothing runs (or with release/acquire by the setter's own means); it is
 * called from any thread, with the site's locks held, and must not call back.
 */
#ifndef STRATA_BASE_TRACE_H
#define STRATA_BASE_TRACE_H

#include <stdint.h>

#include "base/compiler.h"

#define TRACE_ARGS 4

struct base_trace_point {
    const char *name;     /* flow_step, as docs/flows spells it */
    const char *file;     /* as the compiler was given it */
    const char *function;
    const char *format;   /* printf format of `nargs` unsigned long long values */
};

typedef void base_trace_fn(void *opaque, const struct base_trace_point *point, const uint64_t *args);

/* Embedded in the handle; zero-filled means nobody listens. */
struct base_trace {
    base_trace_fn *sink;
    void *opaque;
};

/* Call the sink. Out of line, so that a site is a test and a jump. */
void base_trace_emit(const struct base_trace *t, const struct base_trace_point *p, uint64_t a,
                     uint64_t b, uint64_t c, uint64_t d);

/* "name: formatted arguments" into buf, never more than size bytes. Returns snprintf's result. */
int base_trace_format(const struct base_trace_point *p, const uint64_t *args, char *buf, size_t size);

/* Every point of the program (or of the shared library asked): *count of them. */
const struct base_trace_point *const *base_trace_points(size_t *count);

/*
 * A trace point: TRACE(&handle->trace, access_slot, "gfn %llx slot %llu", gfn.v, id).
 * Evaluates its arguments only when somebody listens.
 */
#define TRACE(t, point_name, fmt, ...)                                                             \
    do {                                                                                           \
        static const struct base_trace_point trace_point_ = {#point_name, __FILE__, __func__, fmt}; \
        static const struct base_trace_point *const trace_ref_                                     \
            __attribute__((used, section("strata_trace"))) = &trace_point_;                        \
        if (unlikely((t)->sink)) {                                                                 \
            BASE_TRACE_CALL(t, trace_ref_, ##__VA_ARGS__, 0, 0, 0, 0);                              \
        }                                                                                          \
    } while (0)

#define BASE_TRACE_CALL(t, p, a, b, c, d, ...)                                                     \
    base_trace_emit(t, p, (uint64_t)(a), (uint64_t)(b), (uint64_t)(c), (uint64_t)(d))

#endif
