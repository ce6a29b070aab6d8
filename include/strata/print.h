/* libstrata: printers of trees and views, in the form of QEMU's `info mtree`, as text or JSON. */
#ifndef STRATA_PRINT_H
#define STRATA_PRINT_H

#include "strata/common.h"

STRATA_DECLS_BEGIN

enum strata_print_flags {
    STRATA_PRINT_FLAT = 1,     /* -f: flat views instead of trees */
    STRATA_PRINT_DISPATCH = 2, /* -d: with the dispatch radix (needs FLAT) */
    STRATA_PRINT_OWNER = 4,    /* -o: owners */
    STRATA_PRINT_DISABLED = 8, /* -D: also what is disabled */
    STRATA_PRINT_JSON = 16,
};

/* Receives the text piece by piece. */
typedef void (*strata_sink)(void *opaque, const char *text, size_t len);

/* All spaces of the handle, or only `space` when not null. */
STRATA_PUBLIC int strata_print(struct strata_memory *mem, struct strata_space *space, unsigned flags,
                               strata_sink sink, void *opaque);
/* A name as paths and migration ids have it: '/', '[', ']' and '\\' as \\xNN. Returns its length. */
STRATA_PUBLIC size_t strata_escape_name(const char *name, char *buf, size_t size);

/* `info ramblock`. */
STRATA_PUBLIC int strata_print_ram(struct strata_memory *mem, unsigned flags, strata_sink sink,
                                   void *opaque);

STRATA_DECLS_END

#endif
