/*
 * A random guest on a restless host, stepped by one thread from one seed. The guest's operations, its page
 * tables, the slots, the dirty log and the host's memory management all change in an order that the seed
 * alone decides; a model that shares no code with src knows what each access must give.
 *
 *   storm_test.c   the schedule: which step comes next
 *   world.c        the VM: engine, slots, guest code, one guest operation
 *   model.c        what memory holds and what the guest's tables say
 *   host.c         what the host and the process do to the memory meanwhile
 */
#ifndef STRATA_TESTS_STORM_H
#define STRATA_TESTS_STORM_H

#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "softkvm/softkvm.h"

#define PAGE_BYTES 4096u
#define CPUS       2u
#define SPACES     2u /* address spaces of each vCPU */
#define SLOTS      4u
#define LOW        0u /* slots: code; guest page tables; data */
#define TABLES     1u
#define DATA       2u
#define DATA_SLOTS 2u
#define HUGE_BYTES 0x200000u

#define LOW_BYTES   0x10000u
#define TABLES_GPA  0x100000u
#define TABLE_PAGES 5u /* of an address space: PML4, PDPT, PD, two PTs */
#define DATA_BYTES  (2 * HUGE_BYTES)
#define WINDOW_VA   0x400000u /* two PTs: 4 MiB; below is mapped one to one by a large page */
#define HOLE_GPA    0x3000000u

#define PORT_DONE  0x10
#define PORT_FAULT 0x11

struct storm_slot {
    uint64_t gpa, bytes;
    bool present, logging;
    char *hva;
    uint8_t *model;  /* what the guest sees there; in TABLES without A and D bits */
    uint8_t *mirror; /* as a migration would have it: copied when the log says so */
};

struct storm_cpu {
    int fd;
    struct kvm_run *run;
    unsigned space;
};

/* What the seed chose. */
struct storm_config {
    enum softkvm_mmu mmu;
    unsigned levels, max_page_level;
    uint64_t frames;
    bool swap, announced, manual, inject;
};

#define LOG_LINES 48
#define LOG_BYTES 120

struct storm {
    uint64_t seed, random;
    struct storm_config config;
    struct softkvm *s;
    int kvm, vm;
    struct storm_cpu cpu[CPUS];
    struct storm_slot slot[SLOTS];
    uint64_t pages[4]; /* pins held: HVA + 1 */
    bool failing;      /* injected failures are on */
    unsigned step;
    bool verbose;
    char *taken; /* page that was silently taken away, or NULL */
    int taken_prot;
    char log[LOG_LINES][LOG_BYTES];
    unsigned logged;
    uint64_t efaults, enomems, guest_faults, mmios; /* met */
};

/* A guest operation. */
enum storm_op { OP_LOAD, OP_STORE, OP_XADD, OP_MOVS, OP_INVLPG, OP_CR3, NR_OPS };

/* What became of it. */
struct storm_result {
    bool faulted;
    uint64_t value; /* RAX: loaded, or the error code */
    uint64_t cr2;
};

/* Where a guest address leads, by the model. */
struct storm_place {
    bool present, writable, reserved;
    uint64_t gpa;
    struct storm_slot *slot; /* NULL: a device's, or nothing there */
    uint8_t *byte;           /* in the model */
};

uint64_t storm_random(struct storm *w, uint64_t below);
/* One line of the schedule; the last ones are shown when the seed fails. */
void storm_say(struct storm *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* End the test: shows seed, configuration and schedule. */
_Noreturn void storm_fail(struct storm *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

struct storm *storm_new(uint64_t seed, bool verbose);
void storm_free(struct storm *w);
int storm_vm_ioctl(struct storm *w, unsigned long request, void *arg);
/* (Re-)register slot i as its fields say; -errno as the ioctl's. */
int storm_slot_set(struct storm *w, unsigned i);
void storm_check(struct storm *w);

/* Run one operation on a vCPU, through whatever exits it takes. va2, n: MOVS. */
struct storm_result storm_run(struct storm *w, unsigned c, enum storm_op op, uint64_t va, uint64_t value,
                              uint64_t va2, unsigned n);

/* model.c */
void storm_model_init(struct storm *w);
struct storm_place storm_walk(struct storm *w, unsigned c, uint64_t va);
struct storm_slot *storm_find(struct storm *w, uint64_t gpa);
/* One guest operation chosen at random, and its result judged. */
void storm_guest_step(struct storm *w);
/* Memory is what the model says, byte for byte; mirrors of logging slots too, after a harvest. */
void storm_compare(struct storm *w);

/* host.c */
void storm_host_step(struct storm *w);
void storm_slot_step(struct storm *w);
void storm_harvest(struct storm *w, unsigned i);
/* Make an access of the guest to a page fail once: KVM_RUN returns EFAULT, and then it is back. */
void storm_take(struct storm *w, char *page);
void storm_give_back(struct storm *w);
void storm_unpin_all(struct storm *w);

#endif
