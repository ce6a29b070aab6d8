/*
 * ACPI tables: RSDP, XSDT, FADT, FACS, MADT, DSDT, one after another in the firmware area.
 *
 *   0xe0000 RSDP   0xe0040 XSDT   0xe0100 FADT   0xe0200 FACS   0xe0240 MADT ...   0xe1000 DSDT
 *
 * They say what devices/ and the interrupt chips do and nothing more: fixed hardware at 0x600, reset through
 * 0xcf9, SCI on line 9, timer interrupt on IOAPIC pin 2, one LAPIC per processor.
 */
#include "machine/acpi.h"

#include <errno.h>
#include <string.h>

#include "devices/acpi_pm.h"
#include "machine/aml.h"

#define RSDP_ADDR (MACHINE_FIRMWARE_START + 0x000)
#define XSDT_ADDR (MACHINE_FIRMWARE_START + 0x040)
#define FADT_ADDR (MACHINE_FIRMWARE_START + 0x100)
#define FACS_ADDR (MACHINE_FIRMWARE_START + 0x200)
#define MADT_ADDR (MACHINE_FIRMWARE_START + 0x240)
#define DSDT_ADDR (MACHINE_FIRMWARE_START + 0x1000)

#define FADT_SIZE 244u
#define FACS_SIZE 64u

#define FADT_WBINVD    (1u << 0)
#define FADT_PROC_C1   (1u << 2)
#define FADT_NO_SLEEP  (1u << 5)
#define FADT_FIX_RTC   (1u << 6)
#define FADT_RESET_REG (1u << 10)

#define BOOT_LEGACY_DEVICES (1u << 0)
#define BOOT_NO_VGA         (1u << 2)

#define IOAPIC_ADDR UINT32_C(0xfec00000)
#define LAPIC_ADDR  UINT32_C(0xfee00000)

struct acpi_header {
    char signature[4];
    uint32_t length;
    uint8_t revision, checksum;
    char oem_id[6], oem_table_id[8];
    uint32_t oem_revision;
    char creator_id[4];
    uint32_t creator_revision;
} __attribute__((packed));

static_assert(sizeof(struct acpi_header) == 36, "header of every table");

static void put16(uint8_t *p, uint16_t v)
{
    memcpy(p, &v, sizeof(v));
}

static void put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

static void put64(uint8_t *p, uint64_t v)
{
    memcpy(p, &v, sizeof(v));
}

static uint8_t checksum(const uint8_t *p, size_t n)
{
    uint8_t sum = 0;

    while (n-- > 0) {
        sum += *p++;
    }
    return -sum;
}

/* Fill the header of a table whose body is in place, and its checksum. */
static void seal(uint8_t *table, const char *signature, uint8_t revision, uint32_t length)
{
    struct acpi_header h = {.length = length, .revision = revision, .oem_revision = 1,
                            .creator_revision = 1};

    memcpy(h.signature, signature, 4);
    memcpy(h.oem_id, "STRATA", 6);
    memcpy(h.oem_table_id, "STRATAPC", 8);
    memcpy(h.creator_id, "STRA", 4);
    memcpy(table, &h, sizeof(h));
    table[offsetof(struct acpi_header, checksum)] = checksum(table, length);
}

/* Generic address of an I/O port. */
static void put_port(uint8_t *p, uint8_t bits, uint8_t access, uint16_t port)
{
    p[0] = 1;
    p[1] = bits;
    p[2] = 0;
    p[3] = access;
    put64(p + 4, port);
}

static void fill_fadt(uint8_t *t)
{
    put32(t + 36, FACS_ADDR);
    put32(t + 40, DSDT_ADDR);
    put16(t + 46, DEVICE_ACPI_SCI);
    put32(t + 56, DEVICE_ACPI_PM1_EVENT);
    put32(t + 64, DEVICE_ACPI_PM1_CNT);
    put32(t + 76, DEVICE_ACPI_PM_TIMER);
    t[88] = 4; /* lengths: event, control, timer */
    t[89] = 2;
    t[91] = 4;
    put16(t + 96, 0xfff);  /* C2 and C3 latencies: not there */
    put16(t + 98, 0xfff);
    t[108] = 0x32; /* century in the clock */
    put16(t + 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA);
    put32(t + 112, FADT_WBINVD | FADT_PROC_C1 | FADT_NO_SLEEP | FADT_FIX_RTC | FADT_RESET_REG);
    put_port(t + 116, 8, 1, 0xcf9);
    t[128] = 0x06;
    put64(t + 140, DSDT_ADDR);
    put_port(t + 148, 32, 2, DEVICE_ACPI_PM1_EVENT);
    put_port(t + 172, 16, 2, DEVICE_ACPI_PM1_CNT);
    put_port(t + 208, 32, 3, DEVICE_ACPI_PM_TIMER);
    seal(t, "FACP", 3, FADT_SIZE);
}

static uint8_t *add_override(uint8_t *p, uint8_t irq, uint32_t gsi, uint16_t flags)
{
    p[0] = 2;
    p[1] = 10;
    p[3] = irq;
    put32(p + 4, gsi);
    put16(p + 8, flags);
    return p + 10;
}

static uint32_t fill_madt(uint8_t *t, unsigned processors)
{
    uint8_t *p = t + 44;
    unsigned i;

    put32(t + 36, LAPIC_ADDR);
    put32(t + 40, 1); /* an 8259 pair is there too */
    for (i = 0; i < processors; i++, p += 8) {
        p[1] = 8;
        p[2] = i;
        p[3] = i;
        put32(p + 4, 1);
    }
    p[0] = 1;
    p[1] = 12;
    p[2] = 0;
    put32(p + 4, IOAPIC_ADDR);
    p += 12;
    p = add_override(p, 0, 2, 0);
    p = add_override(p, DEVICE_ACPI_SCI, DEVICE_ACPI_SCI, 0xd); /* level, active high */
    p[0] = 4;                                                     /* NMI on LINT1 of all */
    p[1] = 6;
    p[2] = 0xff;
    p[5] = 1;
    p += 6;
    seal(t, "APIC", 3, p - t);
    return p - t;
}

static void resource_io(uint8_t *r, uint16_t base, uint8_t length)
{
    r[0] = 0x47;
    r[1] = 1;
    put16(r + 2, base);
    put16(r + 4, base);
    r[6] = 1;
    r[7] = length;
}

/* A word-sized window of ports (type 1) or buses (type 2). */
static void resource_word(uint8_t *r, uint8_t type, uint16_t first, uint16_t last)
{
    r[0] = 0x88;
    put16(r + 1, 13);
    r[3] = type;
    r[4] = 0x0c; /* fixed at both ends, positive decode */
    r[5] = type == 1 ? 3 : 0;
    put16(r + 6, 0);
    put16(r + 8, first);
    put16(r + 10, last);
    put16(r + 12, 0);
    put16(r + 14, (uint16_t)(last - first + 1));
}

static void resource_memory(uint8_t *r, uint32_t first, uint32_t last)
{
    r[0] = 0x87;
    put16(r + 1, 23);
    r[3] = 0;
    r[4] = 0x0c;
    r[5] = 1; /* read and write, not cached */
    put32(r + 10, first);
    put32(r + 14, last);
    put32(r + 22, last - first + 1);
}

static void add_pci(struct machine_aml *a, uint64_t below_4g)
{
    static const uint8_t pnp0a03[4] = {0x41, 0xd0, 0x0a, 0x03};
    uint8_t r[8 + 3 * 16 + 2 * 26];

    memset(r, 0, sizeof(r));
    resource_word(r, 2, 0, 0xff);
    resource_io(r + 16, 0xcf8, 8);
    resource_word(r + 24, 1, 0, 0xcf7);
    resource_word(r + 40, 1, 0xd00, 0xffff);
    resource_memory(r + 56, 0xa0000, 0xbffff);
    resource_memory(r + 82, below_4g > 0x1000000 ? (uint32_t)below_4g : 0x1000000, 0xfebfffff);
    machine_aml_device_begin(a, "PCI0");
    machine_aml_eisa_id(a, "_HID", pnp0a03);
    machine_aml_named_integer(a, "_UID", 0);
    machine_aml_named_integer(a, "_BBN", 0);
    machine_aml_resources(a, r, sizeof(r));
    machine_aml_end(a);
}

static void add_serial(struct machine_aml *a)
{
    static const uint8_t pnp0501[4] = {0x41, 0xd0, 0x05, 0x01};
    uint8_t r[8 + 3];

    resource_io(r, 0x3f8, 8);
    r[8] = 0x22; /* interrupt line 4 */
    put16(r + 9, 1u << 4);
    machine_aml_device_begin(a, "COM1");
    machine_aml_eisa_id(a, "_HID", pnp0501);
    machine_aml_named_integer(a, "_UID", 1);
    machine_aml_resources(a, r, sizeof(r));
    machine_aml_end(a);
}

static void add_clock(struct machine_aml *a)
{
    static const uint8_t pnp0b00[4] = {0x41, 0xd0, 0x0b, 0x00};
    uint8_t r[8 + 3];

    resource_io(r, 0x70, 2);
    r[8] = 0x22; /* interrupt line 8 */
    put16(r + 9, 1u << 8);
    machine_aml_device_begin(a, "RTC0");
    machine_aml_eisa_id(a, "_HID", pnp0b00);
    machine_aml_resources(a, r, sizeof(r));
    machine_aml_end(a);
}

static int fill_dsdt(uint8_t *t, size_t size, uint64_t below_4g, uint32_t *length)
{
    struct machine_aml a = {.data = t, .size = size, .used = sizeof(struct acpi_header)};

    machine_aml_scope_begin(&a, "\\_SB_");
    add_pci(&a, below_4g);
    add_serial(&a);
    add_clock(&a);
    machine_aml_end(&a);
    machine_aml_byte(&a, 0x08);
    machine_aml_name(&a, "\\_S5_");
    machine_aml_package_begin(&a, 4);
    machine_aml_integer(&a, DEVICE_ACPI_S5_TYPE);
    machine_aml_integer(&a, DEVICE_ACPI_S5_TYPE);
    machine_aml_integer(&a, 0);
    machine_aml_integer(&a, 0);
    machine_aml_end(&a);
    if (a.overflow) {
        return -ENOSPC;
    }
    *length = a.used;
    seal(t, "DSDT", 2, a.used);
    return 0;
}

static void fill_rsdp(uint8_t *t)
{
    memcpy(t, "RSD PTR ", 8);
    memcpy(t + 9, "STRATA", 6);
    t[15] = 2;
    put32(t + 20, 36);
    put64(t + 24, XSDT_ADDR);
    t[8] = checksum(t, 20);
    t[32] = checksum(t, 36);
}

static int write_dsdt(const struct machine_ram *ram, struct base_error *err)
{
    uint8_t t[2048];
    uint32_t length;

    memset(t, 0, sizeof(t));
    if (fill_dsdt(t, sizeof(t), ram->below_4g, &length) < 0) {
        return base_error_set(err, ENOSPC, "ACPI: the DSDT is too long");
    }
    return machine_ram_write(ram, gpa(DSDT_ADDR), t, length, err);
}

/*
 * Write the tables.
 * processors: 1..255. *rsdp: the root pointer's address.
 * Returns: 0; -ENOSPC when the guest has no memory there. Lock: none; before the guest runs. Source: ACPI 6.
 */
int machine_acpi_write(const struct machine_ram *ram, unsigned processors, gpa_t *rsdp,
                       struct base_error *err)
{
    uint8_t page[0x1000];
    uint8_t *xsdt = page + (XSDT_ADDR - RSDP_ADDR), *facs = page + (FACS_ADDR - RSDP_ADDR);
    int ret;

    memset(page, 0, sizeof(page));
    fill_rsdp(page);
    fill_fadt(page + (FADT_ADDR - RSDP_ADDR));
    fill_madt(page + (MADT_ADDR - RSDP_ADDR), processors);
    memcpy(facs, "FACS", 4);
    put32(facs + 4, FACS_SIZE);
    put64(xsdt + 36, FADT_ADDR);
    put64(xsdt + 44, MADT_ADDR);
    seal(xsdt, "XSDT", 1, 52);
    /* The FADT names the FACS by 32 bits only, so its 64-bit field stays zero. */
    ret = write_dsdt(ram, err);
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(RSDP_ADDR), page, sizeof(page), err);
    }
    if (ret == 0) {
        *rsdp = gpa(RSDP_ADDR);
    }
    return ret;
}
