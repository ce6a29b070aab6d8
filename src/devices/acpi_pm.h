/* ACPI fixed hardware: PM1a event and control blocks and the PM timer. */
#ifndef STRATA_DEVICES_ACPI_PM_H
#define STRATA_DEVICES_ACPI_PM_H

#include "devices/board.h"

#define DEVICE_ACPI_PM_BASE   0x600u
#define DEVICE_ACPI_PM1_EVENT 0x600u
#define DEVICE_ACPI_PM1_CNT   0x604u
#define DEVICE_ACPI_PM_TIMER  0x608u
#define DEVICE_ACPI_SCI       9u
#define DEVICE_ACPI_S5_TYPE   5u /* SLP_TYP that powers off; the DSDT's \_S5 says the same */

struct devices_acpi_pm;

int devices_acpi_pm_new(struct devices_acpi_pm **out, const struct devices_board *board,
                       struct base_error *err) must_check;
void devices_acpi_pm_free(struct devices_acpi_pm *p);
/* The power button: an event that the guest's operating system answers by shutting down. Device lock held. */
void devices_acpi_pm_press(struct devices_acpi_pm *p);

#endif
