/* Discard policy and managers, seen from inside the folder. */
#ifndef STRATA_MEMORY_DISCARD_H
#define STRATA_MEMORY_DISCARD_H

#include "memory/region.h"
#include "strata/discard.h"

bool memory_discard_is_forbidden(const struct strata_memory *mem);

#endif
