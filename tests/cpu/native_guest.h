/*
 * A guest for comparing single instructions with the host processor: one software processor in 64-bit mode
 * at privilege 3, with real guest tables, EPT, GDT, IDT and TSS in an arena, and code and data at the
 * linear addresses that oracle/native.h uses. An instruction sequence is entered by IRETQ from ring 0 and
 * ends in INT3; whatever vector arrives at ring 0 meets a HLT that tells which it was.
 */
#ifndef STRATA_TESTS_CPU_NATIVE_GUEST_H
#define STRATA_TESTS_CPU_NATIVE_GUEST_H

#include "../oracle/native.h"
#include "cpu/state.h"

struct native_guest {
    struct cpu *cpu;
    uint8_t *code, *data; /* host's view of the code page and of the data pages */
    uint8_t *arena;
    bool is_compat; /* may be changed between runs: 32-bit code, else 64-bit */
    struct host_memory *mem;
    struct cpu_peers *peers;
};

/* 0, or -errno. */
int native_guest_open(struct native_guest *g);
void native_guest_close(struct native_guest *g);

/* Does the guest have pages of its kernel near this linear address, which the host does not? */
bool native_guest_is_kernel(uint64_t la);

/*
 * Put code in place; then run it with the registers of *io, any number of times. Returns 0, or -1 when the processor
 * came back for a reason that no instruction here should have (out: vector = exit reason + 0x1000).
 */
void native_guest_code(struct native_guest *g, const uint8_t *code, unsigned len);
int native_guest_run(struct native_guest *g, unsigned len, struct native_regs *io,
                     struct native_outcome *out);

#endif
