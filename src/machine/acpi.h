/* The ACPI tables of the PC, written into guest memory where firmware would have left them. */
#ifndef STRATA_MACHINE_ACPI_H
#define STRATA_MACHINE_ACPI_H

#include "machine/loader.h"

/* Write all tables into the firmware area. *rsdp: where the root pointer is. */
int machine_acpi_write(const struct machine_ram *ram, unsigned processors, gpa_t *rsdp,
                       struct base_error *err) must_check;

#endif
