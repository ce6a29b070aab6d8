/*
 * The one iterator over a radix table of any format: guest tables, EPT and NPT, shadow, host
 * tables. It visits, in address order and parents before children, every entry (present or not) of
 * levels top..min_level that covers part of [first, last].
 *
 *   arch_radix_for_each(&it, fmt, ...) {           start: the first entry of the root
 *       if (!arch_is_present(fmt, it.entry))       next:  down when the entry points to a table
 *           continue;                                     else side, and at the table's end up
 *       ...
 *   }
 *
 * The walker may change entries while it walks: next() goes by it.entry, the value last read or
 * stored into the iterator, so after replacing a table by a leaf (or zapping it) set it.entry to
 * the new value and the walk does not enter the old table. `break` leaves the iterator at the
 * entry reached. After the caller let go of the lock that protects the tables:
 * arch_radix_restart().
 *
 * Tables are found through a function of the caller; when that returns null (a guest table outside
 * of memory) the subtree is skipped and `it.missing` counts it. No state, no locks: the caller's.
 */
#ifndef STRATA_ARCH_RADIX_H
#define STRATA_ARCH_RADIX_H

#include <stdint.h>

#include "arch/format.h"
#include "base/compiler.h"

/* Pointer to the table at physical address `addr` (level `level`), or null. */
typedef const void *arch_table_fn(void *ctx, uint64_t addr, unsigned level);

struct arch_radix {
    /* constant inputs */
    const struct arch_format *fmt;
    arch_table_fn *table;
    void *ctx;
    uint64_t root;
    uint64_t last;      /* last byte of the range */
    unsigned top;       /* level of the root table */
    unsigned min_level; /* never goes below */
    /* where it is */
    uint64_t addr;  /* first address under the entry */
    uint64_t entry; /* its value when read; the caller updates it after a change */
    unsigned level;
    unsigned index; /* in its table */
    bool valid;     /* false at the end */
    unsigned missing;
    uint64_t resume;                         /* address to go on from: max(first, addr) */
    uint64_t table_addr[ARCH_MAX_LEVEL + 1]; /* physical address of the table per level */
    const void *path[ARCH_MAX_LEVEL + 1];    /* pointer to it */
};

/* Where to walk; first <= last, both inclusive, canonical form not needed (upper bits are
 * ignored). */
struct arch_radix_range {
    uint64_t first, last;
    unsigned top, min_level;
};

/* Address bits below the top table's reach. */
static inline uint64_t arch_radix_limit(const struct arch_format *fmt, unsigned top)
{
    unsigned bits = fmt->shift[top] + fmt->bits[top];

    return bits >= 64 ? UINT64_MAX : (UINT64_C(1) << bits) - 1;
}

/* Read the entry under `resume` at the current level. */
static inline void arch_radix_read(struct arch_radix *it)
{
    it->index = arch_index(it->fmt, it->resume, it->level);
    it->addr = it->resume & ~(arch_span(it->fmt, it->level) - 1);
    it->entry = arch_entry_load(it->fmt, it->path[it->level], it->index);
}

/* Set out (again) from the root at address `from`. */
static inline void arch_radix_restart_at(struct arch_radix *it, uint64_t from)
{
    it->resume = from;
    it->level = it->top;
    it->table_addr[it->top] = it->root;
    it->path[it->top] = it->table(it->ctx, it->root, it->top);
    it->valid = it->path[it->top] != NULL && from <= it->last;
    if (it->valid) {
        arch_radix_read(it);
    } else if (!it->path[it->top]) {
        it->missing++;
    }
}

/* Begin a walk of the table at `root`. The range is cut to what the root can reach. */
static inline void arch_radix_start(struct arch_radix *it, const struct arch_format *fmt,
                                    uint64_t root, struct arch_radix_range range)
{
    uint64_t limit = arch_radix_limit(fmt, range.top);

    it->fmt = fmt;
    it->root = root;
    it->top = range.top;
    it->min_level = range.min_level ? range.min_level : 1;
    it->last = range.last < limit ? range.last : limit;
    it->missing = 0;
    arch_radix_restart_at(it, range.first);
}

/* After the tables may have been freed under us: from the root again, at the same address. Entries
 * of upper levels that cover it are visited again. */
static inline void arch_radix_restart(struct arch_radix *it)
{
    arch_radix_restart_at(it, it->resume);
}

/* Down into the table that the current entry points to. False when there is none to visit. */
static inline bool arch_radix_down(struct arch_radix *it)
{
    uint64_t addr;

    if (it->level <= it->min_level || !arch_is_present(it->fmt, it->entry) ||
        arch_is_leaf(it->fmt, it->entry, it->level)) {
        return false;
    }
    addr = arch_table_addr(it->fmt, it->entry);
    it->path[it->level - 1] = it->table(it->ctx, addr, it->level - 1);
    if (unlikely(!it->path[it->level - 1])) {
        it->missing++;
        return false;
    }
    it->level--;
    it->table_addr[it->level] = addr;
    arch_radix_read(it);
    return true;
}

/* To the next entry of the same table. False at the table's end or the range's. */
static inline bool arch_radix_side(struct arch_radix *it)
{
    uint64_t step = arch_span(it->fmt, it->level);

    if (it->index + 1 == arch_entries(it->fmt, it->level) || it->last - it->addr < step) {
        return false;
    }
    it->resume = it->addr + step;
    arch_radix_read(it);
    return true;
}

/* Up to the entry that points to the current table, without visiting it again. False at the
 * root. */
static inline bool arch_radix_up(struct arch_radix *it)
{
    if (it->level == it->top) {
        return false;
    }
    it->level++;
    it->index = arch_index(it->fmt, it->resume, it->level);
    it->addr = it->resume & ~(arch_span(it->fmt, it->level) - 1);
    return true;
}

/* On to the next entry, never below the current one. */
static inline void arch_radix_skip(struct arch_radix *it)
{
    do {
        if (arch_radix_side(it)) {
            return;
        }
    } while (arch_radix_up(it));
    it->valid = false;
}

/* On to the next entry. */
static inline void arch_radix_next(struct arch_radix *it)
{
    if (!arch_radix_down(it)) {
        arch_radix_skip(it);
    }
}

/* Pointer to the entry itself, for the one who owns the tables. */
static inline uint64_t *arch_radix_slot(const struct arch_radix *it)
{
    return (uint64_t *)(uintptr_t)it->path[it->level] + it->index;
}

/* Visit every entry; set it->table and it->ctx before. `break` leaves `it` at the entry reached. */
#define arch_radix_for_each(it, format, root, range)                                               \
    for (arch_radix_start(it, format, root, range); (it)->valid; arch_radix_next(it))

#endif
