/*
 * The format tables and their printers; see format.h. Tables only, no state, no locks. The proofs
 * that no two fields of a shape overlap are here: the sum of the fields' masks is their union
 * exactly when they are disjoint.
 */
#include "arch/format.h"

#include <stdarg.h>
#include <stdio.h>

#include "arch/format_fields.h"
#include "arch/regs.h"

#define MASK_SUM(shape, name, shift, width, kind, text)                                            \
    +(unsigned __int128)ARCH_FIELD_MASK(shift, width)
#define MASK_OR(shape, name, shift, width, kind, text) | ARCH_FIELD_MASK(shift, width)
#define PROVE_DISJOINT(shape, FIELDS)                                                              \
    _Static_assert((0 FIELDS(MASK_SUM, shape)) == (0 FIELDS(MASK_OR, shape)),                      \
                   #shape ": two fields overlap");
ARCH_FOR_EACH_SHAPE(PROVE_DISJOINT)

#define FIELD_ROW(shape, name, shift, width, kind, text)                                           \
    {text, ARCH_FIELD_MASK(shift, width), shift, ARCH_FIELD_##kind},
#define FIELD_TABLE(shape, FIELDS)                                                                 \
    static const struct arch_field shape##_fields[] = {FIELDS(FIELD_ROW, shape){NULL, 0, 0, 0}};
ARCH_FOR_EACH_SHAPE(FIELD_TABLE)

/* The masks of paging.h say the same as the field lists. */
_Static_assert(X86_PTE_ADDR_MASK == ARCH_FIELD_MASK(12, 40), "frame field");
_Static_assert(EPT_ADDR_MASK == X86_PTE_ADDR_MASK, "one frame mask serves both");
_Static_assert(EPT_PS == X86_PTE_PS, "one page-size bit serves every format");

#define LONG_SHAPES                                                                                \
    {                                                                                              \
        [ARCH_SHAPE_TABLE] = long_table_fields, [ARCH_SHAPE_LARGE] = long_large_fields,            \
        [ARCH_SHAPE_PAGE] = long_page_fields                                                       \
    }

const struct arch_format arch_formats[ARCH_NR_FORMATS] = {
    [ARCH_FMT_32] = {.name = "32-bit",
                     .present_mask = X86_PTE_P,
                     .table_mask = UINT64_C(0xfffff000),
                     .entry_bytes = 4,
                     .top_level = 2,
                     .max_leaf_level = 2,
                     .shift = {0, 12, 22},
                     .bits = {0, 10, 10},
                     .fields = {[ARCH_SHAPE_TABLE] = p32_table_fields,
                                [ARCH_SHAPE_LARGE] = p32_large_fields,
                                [ARCH_SHAPE_PAGE] = p32_page_fields}},
    [ARCH_FMT_PAE] = {.name = "PAE",
                      .present_mask = X86_PTE_P,
                      .table_mask = X86_PTE_ADDR_MASK,
                      .entry_bytes = 8,
                      .top_level = 3,
                      .max_leaf_level = 2,
                      .shift = {0, 12, 21, 30},
                      .bits = {0, 9, 9, 2},
                      .fields = {[ARCH_SHAPE_TABLE] = long_table_fields,
                                 [ARCH_SHAPE_LARGE] = long_large_fields,
                                 [ARCH_SHAPE_PAGE] = long_page_fields,
                                 [ARCH_SHAPE_PDPTE] = pae_pdpte_fields}},
    [ARCH_FMT_LONG] = {.name = "long",
                       .present_mask = X86_PTE_P,
                       .table_mask = X86_PTE_ADDR_MASK,
                       .entry_bytes = 8,
                       .top_level = 5,
                       .max_leaf_level = 3,
                       .shift = {0, 12, 21, 30, 39, 48},
                       .bits = {0, 9, 9, 9, 9, 9},
                       .fields = LONG_SHAPES},
    [ARCH_FMT_EPT] = {.name = "EPT",
                      .present_mask = EPT_RWX,
                      .table_mask = EPT_ADDR_MASK,
                      .entry_bytes = 8,
                      .top_level = 5,
                      .max_leaf_level = 3,
                      .shift = {0, 12, 21, 30, 39, 48},
                      .bits = {0, 9, 9, 9, 9, 9},
                      .fields = {[ARCH_SHAPE_TABLE] = ept_table_fields,
                                 [ARCH_SHAPE_LARGE] = ept_large_fields,
                                 [ARCH_SHAPE_PAGE] = ept_page_fields}},
    [ARCH_FMT_NPT] = {.name = "NPT",
                      .present_mask = X86_PTE_P,
                      .table_mask = X86_PTE_ADDR_MASK,
                      .entry_bytes = 8,
                      .top_level = 5,
                      .max_leaf_level = 3,
                      .shift = {0, 12, 21, 30, 39, 48},
                      .bits = {0, 9, 9, 9, 9, 9},
                      .fields = LONG_SHAPES},
};

/* See format.h. Source: Intel volume 3, "Paging"; PSE-36 as AMD and Intel define it for 40 bits. */
uint64_t arch_leaf_addr(const struct arch_format *fmt, uint64_t entry, unsigned level)
{
    if (fmt->entry_bytes == 4 && level == 2) {
        return (entry & UINT64_C(0xffc00000)) | arch_p32_large_high(entry) << 32;
    }
    return entry & fmt->table_mask & ~(arch_span(fmt, level) - 1);
}

/* See format.h. Source: own. */
enum arch_shape arch_entry_shape(const struct arch_format *fmt, uint64_t entry, unsigned level)
{
    if (fmt->fields[ARCH_SHAPE_PDPTE] && level == fmt->top_level) {
        return ARCH_SHAPE_PDPTE;
    }
    if (level == 1) {
        return ARCH_SHAPE_PAGE;
    }
    return arch_is_leaf(fmt, entry, level) ? ARCH_SHAPE_LARGE : ARCH_SHAPE_TABLE;
}

/* A buffer being filled: `len` is the length that the text would have. */
struct out {
    char *buf;
    size_t size;
    int len;
};

static void printf_like(2, 3) put(struct out *o, const char *fmt, ...)
{
    size_t used = (size_t)o->len < o->size ? (size_t)o->len : o->size;
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(o->buf + used, o->size - used, fmt, args);
    va_end(args);
    o->len += n > 0 ? n : 0;
}

static void put_word(struct out *o, const char *word)
{
    put(o, "%s%s", o->len ? " " : "", word);
}

static const char *memtype_name(uint64_t mt)
{
    static const char *const names[8] = {"UC", "WC", "mt2", "mt3", "WT", "WP", "WB", "mt7"};

    return names[mt & 7];
}

static void put_field(struct out *o, const struct arch_field *f, uint64_t entry)
{
    unsigned long long value = (entry & f->mask) >> f->shift;

    switch ((enum arch_field_kind)f->kind) {
    case ARCH_FIELD_FLAG:
        if (value) {
            put_word(o, f->name);
        }
        break;
    case ARCH_FIELD_NUMBER:
    case ARCH_FIELD_SOFTWARE:
        if (value) {
            put(o, "%s%s=%llx", o->len ? " " : "", f->name, value);
        }
        break;
    case ARCH_FIELD_MEMTYPE:
        put_word(o, memtype_name(value));
        break;
    case ARCH_FIELD_FRAME:
        break; /* comes last, after the arrow */
    }
}

/* See format.h. Bits that no field names are shown as "rsvd=". */
int arch_entry_format(enum arch_format_id id, unsigned level, uint64_t entry, char *buf,
                      size_t size)
{
    struct out o = {buf, size, 0};
    const struct arch_format *fmt = &arch_formats[id < ARCH_NR_FORMATS ? id : ARCH_FMT_LONG];
    const struct arch_field *f;
    enum arch_shape shape;
    uint64_t known = 0;

    if (level < 1 || level > fmt->top_level || !arch_is_present(fmt, entry)) {
        put(&o, "not present");
        if (entry) {
            put(&o, " (0x%llx)", (unsigned long long)entry);
        }
        return o.len;
    }
    shape = arch_entry_shape(fmt, entry, level);
    for (f = fmt->fields[shape]; f->name; f++) {
        known |= f->mask;
        put_field(&o, f, entry);
    }
    if (entry & ~known & ~(shape == ARCH_SHAPE_TABLE ? X86_PTE_D : 0)) {
        put(&o, " rsvd=0x%llx", (unsigned long long)(entry & ~known));
    }
    put(&o, " -> 0x%llx",
        (unsigned long long)(shape == ARCH_SHAPE_TABLE || shape == ARCH_SHAPE_PDPTE
                                 ? arch_table_addr(fmt, entry)
                                 : arch_leaf_addr(fmt, entry, level)));
    return o.len;
}

/* See format.h. */
const char *arch_level_name(enum arch_format_id id, unsigned level)
{
    static const char *const guest[ARCH_MAX_LEVEL + 1] = {"?",     "PTE",   "PDE",
                                                          "PDPTE", "PML4E", "PML5E"};
    static const char *const ept[ARCH_MAX_LEVEL + 1] = {"?",         "EPT PTE",   "EPT PDE",
                                                        "EPT PDPTE", "EPT PML4E", "EPT PML5E"};

    if (level > ARCH_MAX_LEVEL) {
        level = 0;
    }
    return id == ARCH_FMT_EPT ? ept[level] : guest[level];
}

struct bit_name {
    uint64_t bit;
    const char *name;
};

static int format_bits(const struct bit_name *names, uint64_t value, char *buf, size_t size)
{
    struct out o = {buf, size, 0};

    if (size) {
        buf[0] = 0;
    }
    for (; names->name; names++) {
        if (value & names->bit) {
            put_word(&o, names->name);
        }
    }
    return o.len;
}

/* See format.h. */
int arch_pfec_format(uint32_t code, char *buf, size_t size)
{
    static const struct bit_name names[] = {
        {X86_PFEC_P, "P"}, {X86_PFEC_W, "W"},   {X86_PFEC_U, "U"}, {X86_PFEC_RSVD, "RSVD"},
        {X86_PFEC_F, "I"}, {X86_PFEC_PK, "PK"}, {0, NULL}};

    return format_bits(names, code, buf, size);
}

/* See format.h. */
int arch_ept_qual_format(uint64_t qual, char *buf, size_t size)
{
    static const struct bit_name names[] = {
        {EPT_VIOL_READ, "read"},   {EPT_VIOL_WRITE, "write"}, {EPT_VIOL_FETCH, "fetch"},
        {EPT_VIOL_CAN_R, "can-r"}, {EPT_VIOL_CAN_W, "can-w"}, {EPT_VIOL_CAN_X, "can-x"},
        {EPT_VIOL_GVA, "gva"},     {EPT_VIOL_FINAL, "final"}, {0, NULL}};

    return format_bits(names, qual, buf, size);
}
