/*
 * A bare 64-bit machine for tests and measurements of the processor's core: RAM of the test's choice in frames of
 * src/host, a hand-built EPT over it, guest page tables that map linear = physical.
 *
 *   guest-physical   0000 GDT-less start state   1000 PML4  2000 PDPT  3000.. PDs   code from 10000
 */
#ifndef STRATA_TESTS_CPU_BARE_H
#define STRATA_TESTS_CPU_BARE_H

#include <stdint.h>

#include "cpu/regs.h"
#include "cpu/run.h"
#include "host/buddy.h"
#include "host/frame.h"

#define BARE_CODE 0x10000u

struct bare {
    struct host_memory *mem;
    struct cpu_peers *peers;
    struct cpu *cpu[4];
    unsigned ncpus;
    uint8_t *ram;     /* guest-physical 0 in this process */
    uint64_t size;    /* bytes */
    uint64_t *pages;  /* hpa of each guest page */
    uint64_t eptp;
};

/* A machine with `size` bytes (a multiple of 2 MiB) and n processors in 64-bit mode at CPL 0, RIP at BARE_CODE, a
 * stack below it. ad: EPT with accessed and dirty bits. Exits the test on failure. */
void bare_open(struct bare *b, uint64_t size, unsigned n, bool ad);
void bare_close(struct bare *b);

/* The EPT's last-level entry of a guest page; NULL when there is none. */
uint64_t *bare_ept_entry(struct bare *b, uint64_t gpa);

/* Put code at BARE_CODE and RIP of processor 0 there. */
void bare_code(struct bare *b, const void *code, uint64_t len);

/* Back to the start state of a processor. */
void bare_reset(struct bare *b, unsigned n);

#endif
