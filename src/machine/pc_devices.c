/* The PC's board: which device sits where, and what they may ask of the machine. */
#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "machine/pc.h"

static void board_irq(void *opaque, unsigned gsi, int level)
{
    struct machine *m = opaque;

    accel_irq_set(m->accel, gsi, level);
}

static uint64_t board_clock(void *opaque)
{
    struct machine *m = opaque;

    return accel_clock_ns(m->accel);
}

static void board_request(void *opaque, enum devices_request what, uint32_t value)
{
    static const enum machine_outcome outcomes[] = {
        [DEVICE_RESET] = MACHINE_RESET,
        [DEVICE_POWEROFF] = MACHINE_POWEROFF,
        [DEVICE_DEBUG_EXIT] = MACHINE_DEBUG_EXIT,
    };

    machine_end(opaque, outcomes[what], value, NULL);
}

/* The main loop waits for it; machine_run() is told by its eventfd. Lock: the device lock. */
static void board_rtc_timer(void *opaque, uint64_t when)
{
    struct machine *m = opaque;
    uint64_t one = 1;

    if (when == m->rtc_when) {
        return;
    }
    m->rtc_when = when;
    if (when != UINT64_MAX && write(m->wake_fd, &one, sizeof(one)) < 0) {
        return; /* full: the loop is awake already */
    }
}

static void on_command(void *opaque, enum devices_chardev_command what)
{
    struct machine *m = opaque;

    if (what == DEVICE_CHARDEV_QUIT) {
        machine_end(m, MACHINE_QUIT, 0, NULL);
    } else if (m->serials[0]) {
        accel_lock(m->accel);
        devices_serial_break(m->serials[0]);
        accel_unlock(m->accel);
    }
}

/* Follow the mark through the console's bytes. The fall-back after a mismatch looks for the longest
 * beginning of the mark that still fits, so that no occurrence is missed. */
static void on_console_byte(void *opaque, uint8_t byte)
{
    struct machine *m = opaque;
    size_t n = m->mark_at;

    if (m->result.mark_seconds >= 0) {
        return;
    }
    while (n > 0 && (uint8_t)m->mark[n] != byte) {
        size_t k = n - 1;

        while (k > 0 && memcmp(m->mark, m->mark + n - k, k) != 0) {
            k--;
        }
        n = k;
    }
    m->mark_at = (uint8_t)m->mark[n] == byte ? n + 1 : 0;
    if (m->mark_at == m->mark_length) {
        m->result.mark_seconds = machine_now() - m->start_seconds;
    }
}

static int open_serial(struct machine *m, unsigned i, struct base_error *err)
{
    static const struct {
        uint16_t base;
        uint8_t gsi;
    } places[MACHINE_MAX_SERIAL] = {{0x3f8, 4}, {0x2f8, 3}, {0x3e8, 4}, {0x2e8, 3}};
    int ret;

    if (!m->config.serial[i] || strcmp(m->config.serial[i], "none") == 0) {
        return 0;
    }
    ret = devices_chardev_new(&m->chardevs[i], m->config.serial[i], err);
    if (ret < 0) {
        return ret;
    }
    devices_chardev_set_tap(m->chardevs[i], on_console_byte, m);
    devices_chardev_set_act(m->chardevs[i], on_command, m);
    return devices_serial_new(&m->serials[i], &m->board, places[i].base, places[i].gsi, m->chardevs[i], err);
}

static int open_legacy(struct machine *m, struct base_error *err)
{
    const struct machine_config *c = &m->config;
    struct devices_legacy_options opts = {
        .has_debug_exit = c->has_debug_exit,
        .debug_exit_base = c->debug_exit_base,
        .debug_exit_size = c->debug_exit_size,
        .has_debugcon = c->has_debugcon || c->explains,
        .debugcon_base = c->has_debugcon ? c->debugcon_base : 0xe9,
    };
    int ret = 0;

    if (opts.has_debugcon) {
        const char *spec = c->has_debugcon && c->debugcon ? c->debugcon : "null";

        ret = devices_chardev_new(&m->debugcon, spec, err);
        opts.debugcon = m->debugcon;
    }
    if (ret == 0 && c->explains) {
        devices_chardev_set_tap(m->debugcon, machine_explain_byte, m);
    }
    return ret < 0 ? ret : devices_legacy_new(&m->legacy, &m->board, &opts, err);
}

/*
 * Put all devices on the board.
 * Returns: 0; -errno with err; on error machine_devices_free() cleans up. Lock: none. Source: own.
 */
int machine_devices_new(struct machine *m, struct base_error *err)
{
    unsigned i;
    int ret;

    m->board = (struct devices_board){.memory = m->memory,
                                      .ports = m->ports,
                                      .irq = board_irq,
                                      .clock_ns = board_clock,
                                      .request = board_request,
                                      .opaque = m,
                                      .rtc_timer = board_rtc_timer};
    m->rtc_when = UINT64_MAX;
    ret = devices_pci_host_new(&m->pci, &m->board, err);
    if (ret == 0) {
        ret = devices_acpi_pm_new(&m->pm, &m->board, err);
    }
    if (ret == 0) {
        ret = devices_rtc_new(&m->rtc, &m->board, m->layout.below_4g, m->layout.above_4g, time(NULL), err);
    }
    if (ret == 0) {
        ret = open_legacy(m, err);
    }
    for (i = 0; ret == 0 && i < MACHINE_MAX_SERIAL; i++) {
        ret = open_serial(m, i, err);
    }
    return ret;
}

/* Take all devices out. vCPUs are stopped. Lock: none. Source: own. */
void machine_devices_free(struct machine *m)
{
    unsigned i;

    for (i = 0; i < MACHINE_MAX_SERIAL; i++) {
        devices_serial_free(m->serials[i]);
        devices_chardev_free(m->chardevs[i]);
    }
    devices_legacy_free(m->legacy);
    devices_chardev_free(m->debugcon);
    devices_rtc_free(m->rtc);
    devices_acpi_pm_free(m->pm);
    devices_pci_host_free(m->pci);
}
