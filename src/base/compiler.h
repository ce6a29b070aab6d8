/* Attributes and the three words for certainty (check, always, never). No state. */
#ifndef STRATA_BASE_COMPILER_H
#define STRATA_BASE_COMPILER_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

#define must_check    __attribute__((warn_unused_result))
#define likely(x)     __builtin_expect(!!(x), 1)
#define unlikely(x)   __builtin_expect(!!(x), 0)
#define always_inline inline __attribute__((always_inline))
#define noinline_cold __attribute__((noinline, cold))
#define printf_like(fmt_arg, first_arg) __attribute__((format(printf, fmt_arg, first_arg)))

/* The public faces are the only symbols that leave a library. */
#define STRATA_PUBLIC __attribute__((visibility("default")))

#define container_of(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))
#define ARRAY_LEN(a)                    (sizeof(a) / sizeof((a)[0]))

/*
 * check(x): proved; a failure is a bug of this code, caught in debug builds only.
 * always(x), never(x): believed; evaluates to the truth value and the caller still handles it.
 * Guest, file and user input is never judged by any of these.
 */
#ifdef STRATA_DEBUG
#define check(x)  assert(x)
#define always(x) (__extension__({ bool a_ = !!(x); assert(a_); a_; }))
#define never(x)  (__extension__({ bool n_ = !!(x); assert(!n_); n_; }))
#else
#define check(x)  ((void)sizeof(!!(x)))
#define always(x) likely(x)
#define never(x)  unlikely(x)
#endif

#endif
