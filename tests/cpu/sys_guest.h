/*
 * A bare machine for tests of system instructions: one software processor, 256 KiB of RAM behind identity EPT, a
 * GDT with code and data for every level, an IDT whose handlers end in a hypercall that tells the vector.
 *
 *   0000 IVT   1000 PML4  2000 PDPT  3000 PD (2 MiB pages, user)   4000 GDT   5000 IDT   6000 TSS  6800 TSS 2
 *   7000 handlers, 16 bytes each   8000 code   b000.. stacks of levels 0 to 3 grow down from b000 + level * 1000
 *   10000 data  20000 page tables of tests' own
 */
#ifndef STRATA_TESTS_CPU_SYS_GUEST_H
#define STRATA_TESTS_CPU_SYS_GUEST_H

#include <stdint.h>

#include "cpu/regs.h"
#include "cpu/run.h"
#include "cpu/state.h"

#define SG_RAM     0x40000u
#define SG_PML4    0x1000u
#define SG_GDT     0x4000u
#define SG_IDT     0x5000u
#define SG_TSS     0x6000u
#define SG_TSS2    0x6800u
#define SG_HANDLER 0x7000u
#define SG_CODE    0x8000u
#define SG_STACK(level) (0xb000u + (level) * 0x1000u)
#define SG_DATA    0x10000u

/* Selectors. */
#define SG_CS(level)   (uint16_t)((1 + 2 * (level)) * 8 | (level))
#define SG_DS(level)   (uint16_t)((2 + 2 * (level)) * 8 | (level))
#define SG_CS64(level) (uint16_t)((level) == 0 ? 9 * 8 : 10 * 8 | 3) /* levels 0 and 3 */
#define SG_TSS_SEL     (11 * 8)  /* 16 bytes */
#define SG_TSS2_SEL    (13 * 8)
#define SG_LDT_SEL     (15 * 8)  /* 16 bytes */
#define SG_CS16        (17 * 8)
#define SG_DS16        (18 * 8)
#define SG_SUBJECT     20        /* index of the descriptor that a test plays with */

enum sg_mode { SG_REAL, SG_V86, SG_PM16, SG_PM32, SG_COMPAT, SG_LONG };

struct sys_guest {
    struct cpu *cpu;
    uint8_t *ram;
    uint8_t *arena;
    struct host_memory *mem;
    struct cpu_peers *peers;
};

/* What became of a run. */
struct sg_outcome {
    enum cpu_exit_reason reason;
    int vector;       /* handler reached, or -1: the code's own hypercall */
    uint32_t error;   /* error code on the handler's stack, for vectors that have one */
    struct cpu_regs regs;
    struct cpu_sregs sregs;
};

void sg_open(struct sys_guest *g);
void sg_close(struct sys_guest *g);

/* The one that a test program's group fixtures, sg_setup and sg_teardown, open and close. */
extern struct sys_guest guest;
int sg_setup(void **state);
int sg_teardown(void **state);

/* Everything as after sg_open(): tables, state; then the mode at a level. */
void sg_reset(struct sys_guest *g, enum sg_mode mode, unsigned level);

/* Code at SG_CODE; a hypercall is put behind it. */
void sg_code(struct sys_guest *g, const void *code, unsigned len);

/* Descriptors by index, gates by vector. */
void sg_gdt(struct sys_guest *g, unsigned index, uint64_t lo, uint64_t hi);
uint64_t sg_desc(uint32_t base, uint32_t limit, unsigned access, unsigned flags);
void sg_gate(struct sys_guest *g, unsigned vector, uint16_t sel, uint32_t offset, unsigned access, bool wide);
void sg_put(struct sys_guest *g, uint32_t gpa, const void *data, unsigned len);
uint64_t sg_get(struct sys_guest *g, uint32_t gpa, unsigned len);

/* Run from SG_CODE until a hypercall or another exit. */
void sg_run(struct sys_guest *g, struct sg_outcome *out);

/* Run once, whatever the exit; fills the outcome. For tests with ports. */
void sg_step(struct sys_guest *g, struct sg_outcome *out);

#endif
