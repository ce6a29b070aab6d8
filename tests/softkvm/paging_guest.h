/*
 * A guest whose page tables are played with: one vCPU in a paging mode, 16 MiB of memory of which the lower 2 MiB are
 * mapped one to one and hold code for single accesses, handlers for faults, and tables; what lies above is free. Each
 * call runs a few instructions and says what they came to. A copy of the memory is kept for an oracle, which is
 * told of every store.
 */
#ifndef STRATA_TESTS_SOFTKVM_PAGING_GUEST_H
#define STRATA_TESTS_SOFTKVM_PAGING_GUEST_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "oracle/cpu_walk.h"
#include "softkvm/softkvm.h"

#define PG_RAM     0x1000000u /* bytes */
#define PG_FREE    0x200000u  /* from here on memory is the test's */
#define PG_MMIO    0x40000000u /* no memory there */
#define PG_ROOTS   3u
#define PG_HLT     0xf4u      /* every byte of free memory, so that a fetch from it stops */

enum pg_mode { PG_NONE, PG_32, PG_PAE, PG_4LEVEL, PG_5LEVEL };

enum pg_outcome { PG_DONE, PG_FAULT, PG_DEVICE, PG_GP };

struct pg_result {
    enum pg_outcome outcome;
    uint64_t cr2;
    uint32_t error;
    uint64_t gpa; /* PG_DEVICE */
    uint64_t value; /* of a load, 8 bits */
};

struct pg {
    struct softkvm *s;
    int kvm, vm, vcpu;
    struct kvm_run *run;
    uint8_t *ram, *copy; /* the guest's; the oracle's */
    enum pg_mode mode;
    struct ow_machine oracle;
    uint64_t cr0, cr3, cr4, efer;
    uint32_t slot_flags;
    unsigned check_every, steps;
    unsigned fail_in, failures; /* the fail_in-th allocation from now on fails (0: none); how many have failed */
};

struct pg *pg_new(enum softkvm_mmu mmu, enum pg_mode mode);
void pg_free(struct pg *g);

/* Guest-physical address of the table that CR3 value i names; where its entry 0 maps the lower memory. */
uint64_t pg_root(const struct pg *g, unsigned i);

/* One access by the guest at la. A store writes `value`: 8 bytes, or 4 outside long mode. */
void pg_access(struct pg *g, const struct ow_access *a, uint64_t value, struct pg_result *r);

/* The guest stores to its own memory, by physical address (mapped for it nowhere else than the test sees to it, so
 * through a window that covers free memory too); kind chooses the instruction. The copy follows. */
void pg_poke(struct pg *g, uint64_t gpa, uint64_t value, unsigned bytes, unsigned kind);

void pg_invlpg(struct pg *g, uint64_t la);
void pg_set_cr3(struct pg *g, uint64_t value, struct pg_result *r);
void pg_set_cr(struct pg *g, unsigned n, uint64_t value);
void pg_set_nxe(struct pg *g, bool on);
void pg_invpcid(struct pg *g, unsigned type, uint64_t pcid, uint64_t la);

/* What the oracle says; with `try`, nothing is marked. */
void pg_expect(struct pg *g, const struct ow_access *a, bool try, struct ow_outcome *out);

/* Every internal invariant holds. */
void pg_check(struct pg *g);

#endif
