/* The PC's parts, for the files of machine/ that make and run it. */
#ifndef STRATA_MACHINE_PC_H
#define STRATA_MACHINE_PC_H

#include <stdatomic.h>

#include "accel/accel.h"
#include "devices/acpi_pm.h"
#include "devices/board.h"
#include "devices/chardev.h"
#include "devices/legacy.h"
#include "devices/pci_host.h"
#include "devices/rtc.h"
#include "devices/serial.h"
#include "machine/loader.h"
#include "machine/machine.h"
#include "strata/memory.h"
#include "strata/ram.h"

#define PC_MAX_REGIONS 12

struct machine {
    struct machine_config config; /* strings borrowed */
    struct accel *accel;
    struct strata_memory *memory;
    struct strata_space *memory_space, *io_space;
    struct strata_region *system, *ports;
    struct strata_region *regions[PC_MAX_REGIONS]; /* in order of making; freed in reverse */
    unsigned region_count;
    struct strata_ram *ram;
    struct machine_ram layout;

    struct devices_board board;
    struct devices_chardev *chardevs[MACHINE_MAX_SERIAL], *debugcon;
    struct devices_serial *serials[MACHINE_MAX_SERIAL];
    struct devices_rtc *rtc;
    uint64_t rtc_when; /* guest clock at which devices_rtc_expire() is due; device lock */
    struct devices_pci_host *pci;
    struct devices_acpi_pm *pm;
    struct devices_legacy *legacy;
    char boot_text[128];

    /* The run. wake_fd is written by whoever ends it or sets a timer; outcome is set once. */
    int wake_fd;
    atomic_bool ended;
    struct machine_result result;
    char mark[128];
    char explain_line[64];
    size_t explain_at;
    char *explained[8]; /* explain.c; owned */
    unsigned explained_count;
    size_t mark_length, mark_at; /* mark_at: bytes of the mark matched so far */
    double start_seconds; /* before anything was made: times include loading */
    bool input_closed[MACHINE_MAX_SERIAL]; /* main loop only */
};

/* pc_memory.c: RAM, the memory map and the port space. */
int machine_memory_new(struct machine *m, struct base_error *err) must_check;
void machine_memory_free(struct machine *m);
/* pc_devices.c */
int machine_devices_new(struct machine *m, struct base_error *err) must_check;
void machine_devices_free(struct machine *m);
/* pc_boot.c: tables, kernel, first registers. */
int machine_boot(struct machine *m, struct base_error *err) must_check;
/* explain.c */
void machine_explain_byte(void *opaque, uint8_t byte);
void machine_explain_free(struct machine *m);
/* loop.c: end the run; the first call wins. Any thread. detail: may be NULL. */
void machine_end(struct machine *m, enum machine_outcome outcome, uint32_t value, const char *detail);
double machine_now(void);

#endif
