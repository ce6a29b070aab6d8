/* Dirty tracking, seen from inside the folder. */
#ifndef STRATA_MEMORY_DIRTY_H
#define STRATA_MEMORY_DIRTY_H

#include "memory/ram.h"
#include "memory/view.h"

bool memory_dirty_register(void);
void memory_dirty_mark(const struct memory_range *range, strata_addr addr, uint64_t len);
unsigned memory_dirty_import_mask(const struct strata_memory *mem);

#endif
