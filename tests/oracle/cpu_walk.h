/*
 * What a two-dimensional translation must give, from the definitions and nothing else: one small function per rule,
 * table entries as numbers, no caches, no masks shared with the implementation. 32-bit, PAE, four and five
 * levels, protection keys; a second stage of four or five levels: EPT with optional accessed and dirty bits, or AMD's nested paging.
 */
#ifndef STRATA_TESTS_ORACLE_CPU_WALK_H
#define STRATA_TESTS_ORACLE_CPU_WALK_H

#include <stdbool.h>
#include <stdint.h>

enum ow_result { OW_OK, OW_FAULT, OW_CANONICAL, OW_VIOLATION, OW_MISCONFIG };

/* Memory as the oracle sees it: 8 bytes at a host-physical address, read and written. */
struct ow_memory {
    uint64_t (*get)(void *opaque, uint64_t hpa);
    void (*put)(void *opaque, uint64_t hpa, uint64_t v);
    void *opaque;
};

struct ow_machine {
    struct ow_memory mem;
    unsigned levels;        /* 2: 32-bit; 3: PAE; 4; 5 */
    uint64_t root;          /* CR3's address part */
    uint64_t pdpte[4];      /* PAE */
    bool wp, smep, smap, ac, nxe, pse, has_1g;
    unsigned width;         /* of a guest-physical address */
    uint64_t ept_root;
    bool ept_ad;
    bool pke;
    uint32_t pkru;
    bool no_stage2;         /* guest-physical addresses are the memory's own */
    bool npt;               /* the second stage is AMD's: a user's walk of long-mode entries */
    unsigned stage2_levels; /* 4, 5 */
    unsigned host_width;    /* NPT: of a host-physical address */
};

struct ow_access {
    uint64_t la;
    bool write, fetch, user;
};

struct ow_outcome {
    enum ow_result result;
    uint64_t gpa;      /* of the access, or of what the second stage refused */
    uint64_t hpa;
    uint32_t error;
    bool final;
    uint64_t npf;      /* NPT, when the second stage refused: the error code of the nested page fault */
};

void ow_translate(struct ow_machine *m, const struct ow_access *a, struct ow_outcome *out);

#endif
