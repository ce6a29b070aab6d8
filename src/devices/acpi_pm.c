/*
 * ACPI fixed hardware at 0x600: status and enable words, the control word whose SLP_EN ends the run, and the
 * 24-bit timer at 3.579545 MHz, which counts the guest's clock. SCI_EN is always on: there is no legacy mode
 * to leave, so the tables name no SMI command port.
 *
 *   +0 PM1_STS  +2 PM1_EN  +4 PM1_CNT  +8 PM_TMR (32 bits wide, 24 counted)
 *
 * Leaves out: general-purpose events, the timer's carry interrupt (its status bit is not set).
 * Lock: the machine's device lock.
 */
#include "devices/acpi_pm.h"

#include <errno.h>
#include <stdlib.h>

#define PWRBTN     0x0100u
#define CNT_SCI_EN 0x0001u
#define CNT_SLP_EN 0x2000u
#define TIMER_HZ   UINT64_C(3579545)
#define TIMER_MASK 0xffffffu

struct devices_acpi_pm {
    struct devices_board board;
    struct strata_region *region;
    struct strata_region *timer; /* inside region */
    uint16_t status, enable, control;
    int line;
};

static void update_line(struct devices_acpi_pm *p)
{
    int level = (p->status & p->enable) != 0;

    if (level != p->line) {
        p->line = level;
        p->board.irq(p->board.opaque, DEVICE_ACPI_SCI, level);
    }
}

static uint32_t timer_value(const struct devices_acpi_pm *p)
{
    unsigned __int128 ticks = (unsigned __int128)p->board.clock_ns(p->board.opaque) * TIMER_HZ;

    return (uint32_t)(ticks / 1000000000u) & TIMER_MASK;
}

static uint64_t pm_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_acpi_pm *p = opaque;
    uint64_t word;

    switch (addr & ~UINT64_C(1)) {
    case 0:
        word = p->status;
        break;
    case 2:
        word = p->enable;
        break;
    case 4:
        word = p->control | CNT_SCI_EN;
        break;
    default:
        return 0;
    }
    return addr & 1 ? word >> 8 : word;
}

static void write_control(struct devices_acpi_pm *p, uint16_t value)
{
    p->control = value & ~CNT_SLP_EN;
    if ((value & CNT_SLP_EN) && (value >> 10 & 7) == DEVICE_ACPI_S5_TYPE) {
        p->board.request(p->board.opaque, DEVICE_POWEROFF, 0);
    }
}

/* A byte write touches its half of the word. */
static uint16_t merge(uint16_t old, strata_addr addr, uint64_t value, unsigned size)
{
    if (size >= 2) {
        return value;
    }
    return addr & 1 ? (old & 0xff) | (value & 0xff) << 8 : (old & 0xff00) | (value & 0xff);
}

static void pm_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_acpi_pm *p = opaque;

    switch (addr & ~UINT64_C(1)) {
    case 0:
        p->status &= ~merge(0, addr, value, size);
        break;
    case 2:
        p->enable = merge(p->enable, addr, value, size);
        break;
    case 4:
        write_control(p, merge(p->control, addr, value, size));
        break;
    }
    update_line(p);
}

static const struct strata_io_ops pm_ops = {
    .read = pm_read,
    .write = pm_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 2, true},
};

/* The timer is read as one dword: two halves taken at two times could tear. */
static uint64_t timer_read(void *opaque, strata_addr addr, unsigned size)
{
    return timer_value(opaque) >> (8 * addr);
}

static void timer_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
}

static const struct strata_io_ops timer_ops = {
    .read = timer_read,
    .write = timer_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 4, true, NULL},
    .impl = {1, 4, true},
};

static int add_timer(struct devices_acpi_pm *p, struct base_error *err)
{
    struct strata_region_desc desc = {
        .kind = STRATA_IO, .name = "acpi-tmr", .size = 4, .ops = &timer_ops, .opaque = p};
    struct strata_region *timer;
    int ret = strata_region_new(p->board.memory, &desc, &timer);

    if (ret == 0) {
        ret = strata_region_add(p->region, 8, timer);
        p->timer = timer;
    }
    return ret < 0 ? base_error_set(err, -ret, "acpi-tmr: cannot be made") : 0;
}

/*
 * Make the fixed hardware.
 * Returns: 0 with *out; -errno with err. Lock: the device lock, or before the guest runs. Source: ACPI 6,
 * chapter "ACPI hardware specification".
 */
int devices_acpi_pm_new(struct devices_acpi_pm **out, const struct devices_board *board,
                       struct base_error *err)
{
    struct strata_region_desc desc = {
        .kind = STRATA_IO, .name = "piix4-pm", .size = 64, .ops = &pm_ops};
    struct devices_acpi_pm *p = calloc(1, sizeof(*p));
    int ret;

    if (!p) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    p->board = *board;
    desc.opaque = p;
    ret = devices_ports_add(board, &desc, DEVICE_ACPI_PM_BASE, &p->region, err);
    if (ret == 0) {
        ret = add_timer(p, err);
    }
    if (ret < 0) {
        devices_acpi_pm_free(p);
        return ret;
    }
    *out = p;
    return 0;
}

/* Take it out and free it; NULL is allowed. vCPUs are stopped. Source: own. */
void devices_acpi_pm_free(struct devices_acpi_pm *p)
{
    if (!p) {
        return;
    }
    if (p->timer) {
        strata_region_destroy(p->timer);
    }
    if (p->region) {
        strata_region_destroy(p->region);
    }
    free(p);
}

/* Press the power button. Lock: the device lock. Source: ACPI's fixed power button. */
void devices_acpi_pm_press(struct devices_acpi_pm *p)
{
    p->status |= PWRBTN;
    update_line(p);
}
