/* Touching every page of a block before the guest does, in parallel. */
#ifndef STRATA_MEMORY_PREALLOC_H
#define STRATA_MEMORY_PREALLOC_H

#include "memory/ram.h"

must_check int memory_prealloc(struct strata_ram *ram, const struct strata_ram_desc *desc);

#endif
