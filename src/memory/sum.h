/*
 * Running sums of what listeners were told: per listener and space the number of pieces that are
 * there by its account, and sums over their first addresses and over a hash of all that a section
 * says. Told and taken back, a piece cancels out whatever came between; so two accounts that agree
 * have the same sums, and when just one piece is missing the difference names it.
 *
 * A space has an array of accounts, indexed by the listeners' slots. Lock: the handle's.
 */
#ifndef STRATA_MEMORY_SUM_H
#define STRATA_MEMORY_SUM_H

#include "memory/notify.h"

struct memory_sum {
    uint64_t count, starts, hashes;
};

struct memory_account {
    struct memory_sum told;    /* by region_add, region_del, log_start, log_stop */
    struct memory_sum applied; /* by apply */
    struct memory_sum events;  /* by eventfd_add, eventfd_del */
};

struct memory_sum memory_sum_piece(const struct strata_section *section);
struct memory_sum memory_sum_event(const struct strata_eventfd *ev);
void memory_sum_count(struct memory_sum *sum, const struct memory_sum *term, bool add);
void memory_sum_applied(struct strata_listener *l, const struct strata_change_set *sets, size_t count);
must_check int memory_sums_for_listener(struct strata_listener *l);
must_check int memory_sums_for_space(struct strata_space *space);
void memory_sums_free(struct strata_space *space);
must_check int memory_sums_check(struct strata_space *space);

static inline struct memory_account *memory_account(const struct strata_listener *l,
                                                    const struct strata_space *space)
{
    return &space->accounts[l->slot];
}

#endif
