/* Address spaces, seen from inside the folder; the structure is in view.h. */
#ifndef STRATA_MEMORY_SPACE_H
#define STRATA_MEMORY_SPACE_H

#include "memory/view.h"

#define MEMORY_BOUNCE_DEFAULT 4096

uintptr_t memory_space_dispatch(const struct strata_space *space);
void memory_space_abandon(struct strata_space *space);
void memory_space_fini_waiters(struct strata_space *space);

#endif
