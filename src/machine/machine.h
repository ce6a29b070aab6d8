/*
 * The door of machine/: a PC of RAM, processors, board devices and a kernel to boot.
 *
 *     machine_new(&m, &config, &err)   engine, memory map, devices, kernel in place
 *     machine_run(m, &result, &err)    until it ends; the calling thread serves input and signals
 *     machine_free(m)
 *
 * A restart of the guest is a new machine: nothing of the old one is left behind.
 * Threads: all three from one thread. Everything hangs from the handle.
 */
#ifndef STRATA_MACHINE_MACHINE_H
#define STRATA_MACHINE_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

struct machine;
struct accel;
struct accel_soft_options;
struct strata_memory;
struct strata_ram;

#define MACHINE_MAX_SERIAL 4
#define MACHINE_RAM_MIN    (UINT64_C(1) << 20)
#define MACHINE_RAM_MAX    (UINT64_C(1) << 45)

enum machine_ram_kind { MACHINE_RAM_ANON, MACHINE_RAM_MEMFD, MACHINE_RAM_FILE };

struct machine_config {
    uint64_t ram_bytes;
    unsigned processors;
    const char *engine, *cpu; /* as accel_options */
    enum machine_ram_kind ram_kind;
    const char *ram_path; /* FILE */
    bool ram_prealloc, ram_share;
    const char *kernel, *initrd, *append; /* kernel: needed; the others may be NULL */
    bool unpack;                          /* unpack a bzImage's payload on the host side */
    const char *serial[MACHINE_MAX_SERIAL]; /* NULL: no such port; at most one on stdio */
    bool has_debug_exit, has_debugcon;
    bool explains; /* listen on port 0xe9 for "explain ADDRESS" */
    uint16_t debug_exit_base, debug_exit_size, debugcon_base;
    const char *debugcon; /* character back end */
    const char *mark;     /* console text that means "user space"; NULL: the kernel's own line */
    int signal_fd;        /* signalfd that ends the run; -1: none */
    void (*warn)(void *opaque, const char *line);
    /* Every step of every flow, from all layers; any thread; NULL: not wanted. */
    void (*trace)(void *opaque, const char *name, const char *file, const char *function, const char *text);
    void *opaque; /* of both */
};

enum machine_outcome {
    MACHINE_POWEROFF,
    MACHINE_RESET,      /* the guest asked for a restart */
    MACHINE_CRASH,      /* triple fault, or a crash that the guest reported */
    MACHINE_DEBUG_EXIT, /* value: what was written */
    MACHINE_QUIT,       /* Ctrl-A x */
    MACHINE_SIGNAL,     /* value: the signal */
    MACHINE_FAILED,     /* the engine could not go on; detail says why */
};

struct machine_result {
    enum machine_outcome outcome;
    uint32_t value;
    char detail[256];
    double total_seconds;
    double mark_seconds; /* < 0: never seen */
};

/* How far machine_new() came. */
enum machine_stage { MACHINE_STAGE_CHECK, MACHINE_STAGE_ENGINE, MACHINE_STAGE_MEMORY, MACHINE_STAGE_BOOT };

/* stage: the one that failed; may be NULL. */
int machine_new(struct machine **out, const struct machine_config *config, enum machine_stage *stage,
                struct base_error *err) must_check;
int machine_run(struct machine *m, struct machine_result *result, struct base_error *err) must_check;
void machine_free(struct machine *m);

/* For reports; borrowed, valid until machine_free(). */
struct accel *machine_accel(struct machine *m);
struct strata_memory *machine_memory(struct machine *m);
struct strata_ram *machine_ram(struct machine *m);
/* What the guest asked to have explained through port 0xe9, oldest first; NULL beyond the last. */
const char *machine_explanation(const struct machine *m, unsigned index);
const char *machine_boot_text(const struct machine *m); /* how the kernel was loaded */

#endif
