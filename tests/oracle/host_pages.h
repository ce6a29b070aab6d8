/*
 * Oracle for an address space: an array with one record per page of a small window. VMAs are a
 * paint over pages; what may be accessed is read off the page's record. Shares nothing with
 * src/host.
 */
#ifndef STRATA_TESTS_ORACLE_HOST_PAGES_H
#define STRATA_TESTS_ORACLE_HOST_PAGES_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define ORACLE_PAGES 4096u /* 16 MiB */

struct oracle_page {
    bool mapped, readable, writable, shared, file;
    bool derived;       /* a reader of the host holds this page's frame */
    bool derived_write; /* and may write through it */
    uint64_t pfn;
};

struct oracle_pages {
    struct oracle_page p[ORACLE_PAGES];
};

static inline void oracle_pages_map(struct oracle_pages *o, unsigned first, unsigned n,
                                    struct oracle_page like)
{
    for (unsigned i = first; i < first + n; i++) {
        o->p[i].mapped = true;
        o->p[i].readable = like.readable;
        o->p[i].writable = like.writable;
        o->p[i].shared = like.shared;
        o->p[i].file = like.file;
    }
}

static inline void oracle_pages_unmap(struct oracle_pages *o, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        o->p[i].mapped = false;
    }
}

static inline bool oracle_pages_covered(const struct oracle_pages *o, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n; i++) {
        if (!o->p[i].mapped) {
            return false;
        }
    }
    return true;
}

static inline void oracle_pages_protect(struct oracle_pages *o, unsigned first, unsigned n, bool r,
                                        bool w)
{
    for (unsigned i = first; i < first + n; i++) {
        o->p[i].readable = r;
        o->p[i].writable = w;
    }
}

static inline bool oracle_pages_allows(const struct oracle_pages *o, unsigned i, bool write)
{
    const struct oracle_page *p = &o->p[i];

    return p->mapped && (write ? p->writable : p->readable || p->writable);
}

/* What a notifier must do: whoever holds frames of the range lets go of them. */
static inline void oracle_pages_invalidate(struct oracle_pages *o, unsigned first, unsigned n)
{
    for (unsigned i = first; i < first + n && i < ORACLE_PAGES; i++) {
        o->p[i].derived = false;
        o->p[i].derived_write = false;
    }
}

#endif
