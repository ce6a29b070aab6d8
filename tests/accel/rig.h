/*
 * A small machine for tests of the client: RAM at 0, a port that ends the run, an engine by its -accel text.
 * The including test is one of cmocka's.
 */
#ifndef STRATA_TESTS_ACCEL_RIG_H
#define STRATA_TESTS_ACCEL_RIG_H

#include <semaphore.h>
#include <stdint.h>

#include "accel/accel.h"
#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/dirty.h"
#include "strata/memory.h"
#include "strata/ram.h"
#include "strata/region.h"

struct rig {
    struct strata_memory *memory;
    struct strata_region *system, *ports, *ram, *done, *big;
    struct strata_space *space, *io;
    struct accel *accel;
    sem_t ended;
    _Atomic int stop_reason; /* enum accel_stop, or -1 */
    char stop_text[300];
    _Atomic unsigned done_value;
    /* asked by accel before each allocation, when set */
    bool (*fail_alloc)(void *opaque);
    void *fail_opaque;
};

/* Make it. engine: as -accel's. low: bytes of RAM at 0. */
void rig_init(struct rig *r, const char *engine, uint64_t low);
/* The same, but tell whether the client could be made and attached, with everything freed if not. */
int rig_try(struct rig *r, const char *engine, uint64_t low);
void rig_fini(struct rig *r);
struct strata_region *rig_ram(struct rig *r, const char *name, uint64_t bytes);
struct strata_region *rig_alias(struct rig *r, const char *name, struct strata_region *of, uint64_t bytes);
/* Code at 0x1000. */
void rig_load(struct rig *r, const void *code, size_t bytes);
/* Processor 0 begins at 0x1000 in flat 32-bit mode. */
void rig_boot_flat(struct rig *r);
void rig_start(struct rig *r);
/* Until the guest writes to port 0x10 or the run ends otherwise; then it is stopped. */
void rig_wait(struct rig *r);

#endif
