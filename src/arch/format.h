/*
 * The entry formats of x86 tables as data: for each format where the frame address, the present
 * and the page-size bits are, how many address bits each level indexes, and a table of every field
 * with its name. From it come the typed getters (format_fields.h), the printers and the proofs
 * that no two fields overlap. No state, no locks. Source: the manuals' paging chapters (Intel
 * volume 3, AMD volume 2).
 *
 * Levels count from the leaf: 1 = page table (PTE), 2 = page directory (PDE), 3 = PDPTE, 4 = PML4E,
 * 5 = PML5E. A root register (CR3, EPTP) is not an entry.
 */
#ifndef STRATA_ARCH_FORMAT_H
#define STRATA_ARCH_FORMAT_H

#include <stddef.h>
#include <stdint.h>

#include "arch/paging.h"
#include "base/compiler.h"

#define ARCH_MAX_LEVEL 5

enum arch_format_id {
    ARCH_FMT_32,   /* two levels of 1024 four-byte entries, 4 MiB pages with PSE and PSE-36 */
    ARCH_FMT_PAE,  /* three levels, the top with four entries */
    ARCH_FMT_LONG, /* four or five levels of 512 */
    ARCH_FMT_EPT,  /* Intel second stage */
    ARCH_FMT_NPT,  /* AMD second stage: long format walked as a user access */
    ARCH_NR_FORMATS,
};

/* What a field says, which decides how it prints. */
enum arch_field_kind {
    ARCH_FIELD_FLAG,     /* name when set */
    ARCH_FIELD_NUMBER,   /* name=value when not zero */
    ARCH_FIELD_MEMTYPE,  /* EPT memory type: printed by name */
    ARCH_FIELD_FRAME,    /* frame address: printed after the arrow */
    ARCH_FIELD_SOFTWARE, /* sw=value when not zero */
};

struct arch_field {
    const char *name;
    uint64_t mask;
    uint8_t shift;
    uint8_t kind; /* enum arch_field_kind */
};

/* The shapes an entry can have in a format; each has its own field table. */
enum arch_shape {
    ARCH_SHAPE_TABLE, /* points to a table */
    ARCH_SHAPE_LARGE, /* leaf above level 1 */
    ARCH_SHAPE_PAGE,  /* leaf at level 1 */
    ARCH_SHAPE_PDPTE, /* PAE top level: few bits exist */
    ARCH_NR_SHAPES,
};

struct arch_format {
    const char *name;
    uint64_t present_mask;             /* any of these bits: present */
    uint64_t table_mask;               /* frame address in an entry that points to a table */
    uint8_t entry_bytes;               /* 4 or 8 */
    uint8_t top_level;                 /* highest level that exists */
    uint8_t max_leaf_level;            /* highest level at which the page-size bit makes a leaf */
    uint8_t shift[ARCH_MAX_LEVEL + 1]; /* of the address bits that index a table of the level */
    uint8_t bits[ARCH_MAX_LEVEL + 1];  /* how many they are */
    const struct arch_field
        *fields[ARCH_NR_SHAPES]; /* ends with a null name; null: no such shape */
};

extern const struct arch_format arch_formats[ARCH_NR_FORMATS];

/* Entries in a table of `level`. */
static inline unsigned arch_entries(const struct arch_format *fmt, unsigned level)
{
    return 1u << fmt->bits[level];
}

static inline unsigned arch_index(const struct arch_format *fmt, uint64_t addr, unsigned level)
{
    return (unsigned)(addr >> fmt->shift[level]) & (arch_entries(fmt, level) - 1);
}

/* Bytes of address space under one entry of `level`. */
static inline uint64_t arch_span(const struct arch_format *fmt, unsigned level)
{
    return UINT64_C(1) << fmt->shift[level];
}

static inline bool arch_is_present(const struct arch_format *fmt, uint64_t entry)
{
    return (entry & fmt->present_mask) != 0;
}

/* For a present entry: does it map a page (rather than point to a table)? */
static inline bool arch_is_leaf(const struct arch_format *fmt, uint64_t entry, unsigned level)
{
    return level == 1 || ((entry & X86_PTE_PS) && level <= fmt->max_leaf_level);
}

/* Physical address that a table entry points to. */
static inline uint64_t arch_table_addr(const struct arch_format *fmt, uint64_t entry)
{
    return entry & fmt->table_mask;
}

/* Physical address of the page that a leaf of `level` maps; PSE-36 included. */
uint64_t arch_leaf_addr(const struct arch_format *fmt, uint64_t entry, unsigned level);

/* Which shape a present entry has. */
enum arch_shape arch_entry_shape(const struct arch_format *fmt, uint64_t entry, unsigned level);

/* Read an entry of a table as one access (4 or 8 bytes); acquire, so that what it points to is
 * seen. */
static inline uint64_t arch_entry_load(const struct arch_format *fmt, const void *table,
                                       unsigned index)
{
    if (fmt->entry_bytes == 4) {
        return __atomic_load_n((const uint32_t *)table + index, __ATOMIC_ACQUIRE);
    }
    return __atomic_load_n((const uint64_t *)table + index, __ATOMIC_ACQUIRE);
}

/*
 * Print an entry: "P W U A D nx -> 0x12345000", or "not present" with the raw value when not zero.
 * Always ends buf (size > 0) with a zero byte. Returns the length it would have, as snprintf().
 */
int arch_entry_format(enum arch_format_id id, unsigned level, uint64_t entry, char *buf,
                      size_t size);

/* Name of a level in a format: "PTE", "PDE", "PDPTE", "PML4E", "PML5E". */
const char *arch_level_name(enum arch_format_id id, unsigned level);

/* Print a page-fault error code, "P W U RSVD I PK SS", and an EPT-violation qualification. */
int arch_pfec_format(uint32_t code, char *buf, size_t size);
int arch_ept_qual_format(uint64_t qual, char *buf, size_t size);

#endif
