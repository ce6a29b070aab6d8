/*
 * libstrata: the topology journal. While it is on, every commit is kept: what was changed (which call
 * on which region), and which pieces of which space came and went. The last `max_entries` are kept.
 */
#ifndef STRATA_JOURNAL_H
#define STRATA_JOURNAL_H

#include "strata/common.h"
#include "strata/print.h"

STRATA_DECLS_BEGIN

/* Switches the journal on, or off with 0 (what was kept is forgotten). 0, -ENOMEM. */
STRATA_PUBLIC int strata_journal_set(struct strata_memory *mem, size_t max_entries);
/* Whose doing the calls of this thread's transaction are: a device, a command. Copied into the commit
 * it ends with; null: nobody in particular. */
STRATA_PUBLIC void strata_journal_actor(struct strata_memory *mem, const char *actor);
/* All entries, oldest first; STRATA_PRINT_JSON: one JSON object per line. */
STRATA_PUBLIC int strata_journal_print(struct strata_memory *mem, unsigned flags, strata_sink sink,
                                       void *opaque);

/* A piece of the map as it was. */
struct strata_past_piece {
    const char *region; /* its name then */
    strata_addr start, last, offset;
    bool readonly;
};
/* The flat map of a space as it was right after the commit of that generation (see
 * strata_memory_generation()), in address order. -ENOENT: not in the journal any more, or not yet. */
STRATA_PUBLIC int strata_journal_map(struct strata_memory *mem, struct strata_space *space,
                                     uint64_t generation,
                                     int (*fn)(void *opaque, const struct strata_past_piece *piece),
                                     void *opaque);

STRATA_DECLS_END

#endif
