/*
 * A writer of ACPI Machine Language, as much as a static DSDT needs: scopes, devices, names, packages,
 * resource templates. Writes into a caller's buffer; running over its end sets `overflow` and is told once,
 * at the end. Packages are closed by aml_end(), which fills in the length left open by the beginning.
 */
#ifndef STRATA_MACHINE_AML_H
#define STRATA_MACHINE_AML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MACHINE_AML_DEPTH 8

struct machine_aml {
    uint8_t *data;
    size_t size, used;
    bool overflow;
    size_t open[MACHINE_AML_DEPTH]; /* where each open package's length lies */
    unsigned depth;
};

void machine_aml_bytes(struct machine_aml *a, const void *bytes, size_t n);
void machine_aml_byte(struct machine_aml *a, uint8_t value);
/* name: four characters, "\\" before it for the root. */
void machine_aml_name(struct machine_aml *a, const char *name);
void machine_aml_integer(struct machine_aml *a, uint32_t value);
void machine_aml_scope_begin(struct machine_aml *a, const char *path);
void machine_aml_device_begin(struct machine_aml *a, const char *name);
void machine_aml_package_begin(struct machine_aml *a, uint8_t elements);
void machine_aml_end(struct machine_aml *a);
/* Name(name, EisaId("PNPxxxx")), id: the four bytes as they lie in memory. */
void machine_aml_eisa_id(struct machine_aml *a, const char *name, const uint8_t id[4]);
void machine_aml_named_integer(struct machine_aml *a, const char *name, uint32_t value);
/* Name(_CRS, Buffer() { template }): n resource bytes, the end tag is added. */
void machine_aml_resources(struct machine_aml *a, const uint8_t *bytes, size_t n);

#endif
