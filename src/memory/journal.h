/* The topology journal, seen from inside the folder; see strata/journal.h. Off until asked for. */
#ifndef STRATA_MEMORY_JOURNAL_H
#define STRATA_MEMORY_JOURNAL_H

#include "memory/plan.h"
#include "strata/journal.h"

/* One call that changed something, and one piece that came or went; names are copies. */
struct memory_journal_op {
    const char *what; /* constant */
    char *subject;    /* or null */
};

struct memory_journal_piece {
    struct strata_space *space; /* compared, never followed */
    char *space_name;
    char *region;
    strata_addr start, last, offset;
    bool readonly;
    bool added;
};

struct memory_journal_entry {
    uint64_t generation;  /* of the views after the commit */
    char *actor;
    struct memory_journal_op *ops;
    size_t nops, cap_ops;
    struct memory_journal_piece *pieces;
    size_t npieces, cap_pieces;
    struct memory_journal_entry *next; /* newer */
};

struct memory_journal {
    struct memory_journal_entry *oldest, *newest;
    size_t count, max;
    struct memory_journal_entry *pending; /* of the commit to come */
    bool ready;                           /* pending has all it needs */
};

void memory_journal_note(struct strata_memory *mem, const char *what,
                         const struct strata_region *subject);
must_check int memory_journal_reserve(struct strata_memory *mem, const struct memory_commit *commit);
void memory_journal_record(struct strata_memory *mem, const struct memory_commit *commit);
void memory_journal_free(struct strata_memory *mem);

#endif
