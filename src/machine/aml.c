/* A writer of ACPI Machine Language; see aml.h. Lengths always take the two-byte form. */
#include "machine/aml.h"

#include <string.h>

#define OP_NAME    0x08
#define OP_BYTE    0x0a
#define OP_WORD    0x0b
#define OP_DWORD   0x0c
#define OP_SCOPE   0x10
#define OP_BUFFER  0x11
#define OP_PACKAGE 0x12
#define OP_EXT     0x5b
#define OP_DEVICE  0x82

/* Append raw bytes. Lock: none for anything here. Source: ACPI 6, chapter "AML specification". */
void machine_aml_bytes(struct machine_aml *a, const void *bytes, size_t n)
{
    if (n > a->size - a->used) {
        a->overflow = true;
        return;
    }
    memcpy(a->data + a->used, bytes, n);
    a->used += n;
}

/* Append one byte. Source: own. */
void machine_aml_byte(struct machine_aml *a, uint8_t value)
{
    machine_aml_bytes(a, &value, 1);
}

/* Append a name string. Source: AML, NameString. */
void machine_aml_name(struct machine_aml *a, const char *name)
{
    machine_aml_bytes(a, name, strlen(name));
}

/* Append the shortest constant. Source: AML, ComputationalData. */
void machine_aml_integer(struct machine_aml *a, uint32_t value)
{
    uint8_t bytes[5] = {OP_DWORD, value, value >> 8, value >> 16, value >> 24};

    if (value < 2) {
        machine_aml_byte(a, value);
    } else if (value < 0x100) {
        bytes[0] = OP_BYTE;
        machine_aml_bytes(a, bytes, 2);
    } else if (value < 0x10000) {
        bytes[0] = OP_WORD;
        machine_aml_bytes(a, bytes, 3);
    } else {
        machine_aml_bytes(a, bytes, 5);
    }
}

static void open_package(struct machine_aml *a)
{
    static const uint8_t room[2];

    if (a->depth == MACHINE_AML_DEPTH) {
        a->overflow = true;
        return;
    }
    a->open[a->depth++] = a->used;
    machine_aml_bytes(a, room, sizeof(room));
}

/* Scope(path) {. Source: AML, DefScope. */
void machine_aml_scope_begin(struct machine_aml *a, const char *path)
{
    machine_aml_byte(a, OP_SCOPE);
    open_package(a);
    machine_aml_name(a, path);
}

/* Device(name) {. Source: AML, DefDevice. */
void machine_aml_device_begin(struct machine_aml *a, const char *name)
{
    machine_aml_byte(a, OP_EXT);
    machine_aml_byte(a, OP_DEVICE);
    open_package(a);
    machine_aml_name(a, name);
}

/* Package(elements) {. Source: AML, DefPackage. */
void machine_aml_package_begin(struct machine_aml *a, uint8_t elements)
{
    machine_aml_byte(a, OP_PACKAGE);
    open_package(a);
    machine_aml_byte(a, elements);
}

/* }: close what was opened last. A body beyond 4095 bytes counts as overflow. Source: AML, PkgLength. */
void machine_aml_end(struct machine_aml *a)
{
    size_t at, length;

    if (a->depth == 0 || a->overflow) {
        a->overflow = true;
        return;
    }
    at = a->open[--a->depth];
    length = a->used - at;
    if (length > 0xfff) {
        a->overflow = true;
        return;
    }
    a->data[at] = 0x40 | (length & 0xf);
    a->data[at + 1] = length >> 4;
}

/* Name(name, EisaId()). Source: ACPI, EISAID macro. */
void machine_aml_eisa_id(struct machine_aml *a, const char *name, const uint8_t id[4])
{
    machine_aml_byte(a, OP_NAME);
    machine_aml_name(a, name);
    machine_aml_byte(a, OP_DWORD);
    machine_aml_bytes(a, id, 4);
}

/* Name(name, value). Source: AML, DefName. */
void machine_aml_named_integer(struct machine_aml *a, const char *name, uint32_t value)
{
    machine_aml_byte(a, OP_NAME);
    machine_aml_name(a, name);
    machine_aml_integer(a, value);
}

/* Name(_CRS, ResourceTemplate). n: bytes without the end tag. Source: ACPI, resource data types. */
void machine_aml_resources(struct machine_aml *a, const uint8_t *bytes, size_t n)
{
    static const uint8_t end[2] = {0x79, 0x00};

    machine_aml_byte(a, OP_NAME);
    machine_aml_name(a, "_CRS");
    machine_aml_byte(a, OP_BUFFER);
    open_package(a);
    machine_aml_integer(a, n + sizeof(end));
    machine_aml_bytes(a, bytes, n);
    machine_aml_bytes(a, end, sizeof(end));
    machine_aml_end(a);
}
