/* A writer of text and JSON pieces into a sink; shared by the printers. */
#ifndef STRATA_MEMORY_PRINT_H
#define STRATA_MEMORY_PRINT_H

#include <stdarg.h>

#include "memory/view.h"
#include "strata/print.h"

struct memory_printer {
    strata_sink sink;
    void *opaque;
    unsigned flags;
};

void memory_print(struct memory_printer *p, const char *fmt, ...) printf_like(2, 3);
void memory_print_name(struct memory_printer *p, const char *name);
void memory_print_json(struct memory_printer *p, const char *text);
const char *memory_region_type(const struct strata_region *region);

/* print_flat.c */
int memory_print_flat(struct strata_memory *mem, struct strata_space *space,
                      struct memory_printer *p);

#endif
