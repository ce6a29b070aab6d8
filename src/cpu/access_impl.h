/*
 * An access in flight, shared by the files of the slow memory path: access.c finds where each piece goes,
 * access_pieces.c moves the bytes.
 */
#ifndef STRATA_CPU_ACCESS_IMPL_H
#define STRATA_CPU_ACCESS_IMPL_H

#include "cpu/access.h"
#include "cpu/walk.h"

/* Accesses up to 4096 bytes touch at most two pages. */
#define MAX_PIECES 2

/* One piece of an access, within a page. */
struct piece {
    uint64_t la;
    unsigned off, len; /* in the access's buffer */
    uint8_t *host;     /* NULL: a device at gpa */
    const uint8_t *rom; /* host is NULL: where it can still be read, a refused write's page */
    uint64_t gpa, pfn;
    bool has_code;
    bool granted;      /* shadow tables: written by leave of the hypervisor, who must hear of it */
};

/* An access in flight. */
struct access {
    struct cpu *cpu;
    const struct cpu_op *op;
    enum cpu_access kind;
    enum cpu_tlb_set set;
    uint8_t *buf;
    unsigned pieces;
    struct piece piece[MAX_PIECES];
};

/* Reads and writes of the natural sizes are one access each, as other processors must see them. */
static inline bool is_natural(unsigned n)
{
    return n == 1 || n == 2 || n == 4 || n == 8;
}

static inline void ram_read(void *dst, const uint8_t *src, unsigned n)
{
    uint64_t v;

    if (!is_natural(n)) {
        cpu_guest_read(dst, src, n);
        return;
    }
    v = cpu_guest_get_sized(src, n);
    memcpy(dst, &v, n);
}

static inline void ram_write(uint8_t *dst, const void *src, unsigned n)
{
    uint64_t v = 0;

    if (!is_natural(n)) {
        cpu_guest_write(dst, src, n);
        return;
    }
    memcpy(&v, src, n);
    cpu_guest_put_sized(dst, n, v);
}

/* Move the bytes of an access whose targets are found. False: recorded, or to be restarted. */
bool cpu_pieces_read(struct access *a) must_check;
bool cpu_pieces_write(struct access *a) must_check;

/* The shadow tables refuse a piece: by grant, or an exit (false); access_pieces.c. */
bool cpu_piece_shadow(struct access *a, struct piece *p, const struct cpu_xlate *x, enum cpu_xlate_result res) must_check;

/* The second stage refused a piece: say so in cpu->exit, with the access for the hypervisor to emulate. */
void cpu_access_refused(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res, const struct access *a,
                        const struct piece *p);

#endif
