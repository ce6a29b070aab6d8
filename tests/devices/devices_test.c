/* The board devices by their ports, as a driver uses them; expected values are the data sheets'. */
#include "board_fixture.h"

#include <errno.h>

#include "devices/acpi_pm.h"
#include "devices/legacy.h"
#include "devices/pci_host.h"
#include "devices/rtc.h"
#include "devices/serial.h"

static char file_path[] = "/tmp/strata-serial-XXXXXX";

/* What has been written to the file behind the port. */
static size_t sent(char *to, size_t room)
{
    FILE *f = fopen(file_path, "r");
    size_t n = fread(to, 1, room - 1, f);

    fclose(f);
    to[n] = '\0';
    return n;
}

static void serial(void **state)
{
    struct fixture f;
    struct devices_serial *s;
    struct devices_chardev *c;
    struct base_error err;
    char spec[64], text[64];
    int i, fd = mkstemp(file_path);

    close(fd);
    fixture_init(&f);
    snprintf(spec, sizeof(spec), "file:%s", file_path);
    assert_int_equal(devices_chardev_new(&c, spec, &err), 0);
    assert_int_equal(devices_serial_new(&s, &f.board, 0x3f8, 4, c, &err), 0);
    /* Divisor latch. */
    out(&f, 0x3fb, 1, 0x83);
    out(&f, 0x3f8, 1, 0x34);
    out(&f, 0x3f9, 1, 0x12);
    assert_int_equal(in(&f, 0x3f8, 1), 0x34);
    assert_int_equal(in(&f, 0x3f9, 1), 0x12);
    out(&f, 0x3fb, 1, 0x03);
    assert_int_equal(in(&f, 0x3f9, 1), 0);
    /* Transmission, with its interrupt: raised on enabling, gone on reading IIR, back after a byte. */
    out(&f, 0x3fc, 1, 0x08);
    assert_int_equal(in(&f, 0x3fd, 1) & 0x60, 0x60);
    out(&f, 0x3f9, 1, 0x02);
    assert_int_equal(f.level[4], 1);
    assert_int_equal(in(&f, 0x3fa, 1) & 0x0f, 0x02);
    assert_int_equal(f.level[4], 0);
    assert_int_equal(in(&f, 0x3fa, 1) & 0x0f, 0x01);
    out(&f, 0x3f8, 1, 'A');
    assert_int_equal(f.level[4], 1);
    out(&f, 0x3f8, 1, 'b');
    assert_int_equal(sent(text, sizeof(text)), 2);
    assert_string_equal(text, "Ab");
    /* FIFO: identified, fourteen bytes as trigger, the time-out below it, overrun beyond sixteen. */
    out(&f, 0x3fa, 1, 0xc7);
    out(&f, 0x3f9, 1, 0x05);
    assert_int_equal(in(&f, 0x3fa, 1), 0xc1);
    assert_int_equal(devices_serial_room(s), 16);
    devices_serial_receive(s, (const uint8_t *)"0123456789abc", 13);
    assert_int_equal(in(&f, 0x3fa, 1) & 0x0f, 0x0c);
    devices_serial_receive(s, (const uint8_t *)"def", 3);
    assert_int_equal(in(&f, 0x3fa, 1) & 0x0f, 0x04);
    assert_int_equal(devices_serial_room(s), 0);
    devices_serial_receive(s, (const uint8_t *)"!", 1);
    assert_int_equal(in(&f, 0x3fa, 1) & 0x0f, 0x06);
    assert_int_equal(in(&f, 0x3fd, 1) & 0x03, 0x03);
    for (i = 0; i < 16; i++) {
        assert_int_equal(in(&f, 0x3f8, 1), "0123456789abcdef"[i]);
    }
    assert_int_equal(in(&f, 0x3fd, 1) & 1, 0);
    assert_int_equal(f.level[4], 0);
    /* Loop-back: nothing goes out, the modem lines come back. */
    out(&f, 0x3fc, 1, 0x1a);
    assert_int_equal(in(&f, 0x3fe, 1) & 0xf0, 0x90);
    out(&f, 0x3f8, 1, 'z');
    assert_int_equal(in(&f, 0x3f8, 1), 'z');
    assert_int_equal(sent(text, sizeof(text)), 2);
    /* OUT2 off: no interrupt reaches the line. */
    out(&f, 0x3fc, 1, 0);
    devices_serial_break(s);
    assert_int_equal(f.level[4], 0);
    assert_int_equal(in(&f, 0x3fd, 1) & 0x10, 0x10);
    devices_serial_free(s);
    devices_chardev_free(c);
    assert_int_equal(in(&f, 0x3fd, 1), 0xff);
    fixture_fini(&f);
    unlink(file_path);
}

static unsigned cmos(struct fixture *f, uint8_t index)
{
    out(f, 0x70, 1, index);
    return in(f, 0x71, 1);
}

static void clock_and_cmos(void **state)
{
    struct fixture f;
    struct devices_rtc *r;
    struct base_error err;
    const uint64_t second = UINT64_C(1000000000);

    fixture_init(&f);
    /* 2026-11-20 23:59:58 UTC, a Friday. */
    assert_int_equal(devices_rtc_new(&r, &f.board, UINT64_C(3) << 30, UINT64_C(7) << 30, 1795219198, &err), 0);
    assert_int_equal(cmos(&f, 0), 0x58);
    assert_int_equal(cmos(&f, 2), 0x59);
    assert_int_equal(cmos(&f, 4), 0x23);
    assert_int_equal(cmos(&f, 6), 6);
    assert_int_equal(cmos(&f, 7), 0x20);
    assert_int_equal(cmos(&f, 8), 0x11);
    assert_int_equal(cmos(&f, 9), 0x26);
    assert_int_equal(cmos(&f, 0x32), 0x20);
    assert_int_equal(cmos(&f, 0x0d), 0x80);
    f.clock = 3 * second;
    assert_int_equal(cmos(&f, 0), 0x01);
    assert_int_equal(cmos(&f, 4), 0x00);
    assert_int_equal(cmos(&f, 7), 0x21);
    assert_int_equal(cmos(&f, 0x0a) & 0x80, 0);
    f.clock = 4 * second - 1000;
    assert_int_equal(cmos(&f, 0x0a) & 0x80, 0x80);
    /* Binary, twelve hours. */
    f.clock = 15 * 3600 * second;
    out(&f, 0x70, 1, 0x0b);
    out(&f, 0x71, 1, 0x04);
    assert_int_equal(cmos(&f, 4), 0x80 | 2);
    out(&f, 0x70, 1, 0x0b);
    out(&f, 0x71, 1, 0x82);
    /* Set it: it stands until SET is cleared, then goes on from there. */
    out(&f, 0x70, 1, 4);
    out(&f, 0x71, 1, 0x07);
    f.clock += 100 * second;
    assert_int_equal(cmos(&f, 4), 0x07);
    out(&f, 0x70, 1, 0x0b);
    out(&f, 0x71, 1, 0x02);
    assert_int_equal(cmos(&f, 4), 0x07);
    f.clock += 3600 * second;
    assert_int_equal(cmos(&f, 4), 0x08);
    /* Memory sizes: 64 KiB units above 16 MiB, and above 4 GiB. */
    assert_int_equal(cmos(&f, 0x34) | cmos(&f, 0x35) << 8, (0xc0000000u - 0x1000000u) >> 16);
    assert_int_equal(cmos(&f, 0x5b) | cmos(&f, 0x5c) << 8 | cmos(&f, 0x5d) << 16, 7 << 14);
    assert_int_equal(cmos(&f, 0x15) | cmos(&f, 0x16) << 8, 640);
    devices_rtc_free(r);
    fixture_fini(&f);
}

static void set_cmos(struct fixture *f, uint8_t index, uint8_t value)
{
    out(f, 0x70, 1, index);
    out(f, 0x71, 1, value);
}

/* The timer that the clock asked for comes. */
static void rtc_time_passes(struct fixture *f, struct devices_rtc *r)
{
    assert_int_not_equal(f->rtc_when, UINT64_MAX);
    assert_true(f->rtc_when > f->clock);
    f->clock = f->rtc_when;
    f->rtc_when = UINT64_MAX;
    devices_rtc_expire(r);
}

/* Line 8: periodic, update-ended and alarm interrupts; each once until register C is read. */
static void clock_interrupts(void **state)
{
    const uint64_t second = UINT64_C(1000000000);
    struct devices_rtc *r;
    struct base_error err;
    struct fixture f;

    fixture_init(&f);
    f.clock = 123;
    assert_int_equal(devices_rtc_new(&r, &f.board, UINT64_C(3) << 30, 0, 1795219198, &err), 0);
    assert_int_equal(f.rtc_when, UINT64_MAX);
    set_cmos(&f, 5, 0x12); /* not at midnight, which is near */
    f.clock = second + 5;
    assert_int_equal(cmos(&f, 0x0c), 0x50); /* flags rise without being enabled; no line, IRQF clear */
    assert_int_equal(cmos(&f, 0x0c), 0);
    assert_int_equal(f.edges[8], 0);
    /* Periodic, 1,024 Hz (rate 6). */
    set_cmos(&f, 0x0b, 0x42);
    for (unsigned i = 1; i <= 3; i++) {
        uint64_t before = f.clock;

        rtc_time_passes(&f, r);
        assert_in_range(f.clock - before, 1, second / 1024 + 1);
        assert_int_equal(f.edges[8], i);
        assert_int_equal(f.rtc_when, UINT64_MAX); /* nothing new can be seen before register C is read */
        assert_int_equal(cmos(&f, 0x0c), 0xc0);
        assert_int_equal(f.level[8], 0);
    }
    /* Rate 15: 2 Hz; 0: none. */
    set_cmos(&f, 0x0a, 0x2f);
    rtc_time_passes(&f, r);
    assert_int_equal(f.clock % (second / 2), 0);
    cmos(&f, 0x0c);
    set_cmos(&f, 0x0a, 0x20);
    assert_int_equal(f.rtc_when, UINT64_MAX);
    /* Update-ended: at the full second. */
    set_cmos(&f, 0x0b, 0x12);
    f.clock++;
    rtc_time_passes(&f, r);
    assert_int_equal(f.clock % second, 0);
    assert_int_equal(f.level[8], 1);
    assert_int_equal(cmos(&f, 0x0c), 0x90);
    /* Alarm: any hour, minute 2, second 5, past midnight of 23:59:58 + clock. */
    set_cmos(&f, 5, 0xc0);
    set_cmos(&f, 3, 0x02);
    set_cmos(&f, 1, 0x05);
    set_cmos(&f, 0x0b, 0x22);
    for (unsigned i = 0; !f.level[8]; i++) {
        assert_in_range(i, 0, 200);
        rtc_time_passes(&f, r);
    }
    assert_int_equal(cmos(&f, 2), 0x02);
    assert_int_equal(cmos(&f, 0), 0x05);
    assert_int_equal(cmos(&f, 0x0c), 0xb0);
    /* A night goes by in one look. */
    f.clock += 100000 * second;
    assert_int_equal(cmos(&f, 0x0c), 0xb0);
    /* No updates while SET; the timer stops. */
    set_cmos(&f, 0x0b, 0xb2);
    assert_int_equal(f.rtc_when, UINT64_MAX);
    f.clock += 10 * second;
    assert_int_equal(cmos(&f, 0x0c), 0);
    devices_rtc_free(r);
    fixture_fini(&f);
}

static void pci(void **state)
{
    static struct devices_pci_function card;
    struct fixture f;
    struct devices_pci_host *h;
    struct base_error err;

    fixture_init(&f);
    assert_int_equal(devices_pci_host_new(&h, &f.board, &err), 0);
    out(&f, 0xcf8, 4, 0x80000000);
    assert_int_equal(in(&f, 0xcf8, 4), 0x80000000);
    assert_int_equal(in(&f, 0xcfc, 4), 0x12378086);
    assert_int_equal(in(&f, 0xcfe, 2), 0x1237);
    assert_int_equal(in(&f, 0xcfd, 1), 0x80);
    /* Identity is read-only. */
    out(&f, 0xcfc, 4, 0);
    assert_int_equal(in(&f, 0xcfc, 4), 0x12378086);
    memset(&card, 0, sizeof(card));
    card.config[0] = 0x34;
    card.writable[0x10] = 0xf0;
    assert_int_equal(devices_pci_function_add(h, 3, 1, &card), 0);
    assert_int_equal(devices_pci_function_add(h, 3, 1, &card), -EBUSY);
    assert_int_equal(devices_pci_function_add(h, 32, 0, &card), -EINVAL);
    out(&f, 0xcf8, 4, 0x80001900);
    assert_int_equal(in(&f, 0xcfc, 2), 0x34);
    out(&f, 0xcf8, 4, 0x80001910);
    out(&f, 0xcfc, 4, 0xffffffff);
    assert_int_equal(in(&f, 0xcfc, 4), 0xf0);
    /* Other functions, other buses, or not enabled: all ones. */
    out(&f, 0xcf8, 4, 0x80001a00);
    assert_int_equal(in(&f, 0xcfc, 4), 0xffffffff);
    out(&f, 0xcf8, 4, 0x80010000);
    assert_int_equal(in(&f, 0xcfc, 4), 0xffffffff);
    out(&f, 0xcf8, 4, 0x00000000);
    assert_int_equal(in(&f, 0xcfc, 4), 0xffffffff);
    /* The reset register lies inside, for bytes only. */
    assert_int_equal(f.requested, -1);
    out(&f, 0xcf9, 1, 0x02);
    assert_int_equal(f.requested, -1);
    out(&f, 0xcf9, 1, 0x06);
    assert_int_equal(f.requested, DEVICE_RESET);
    devices_pci_host_free(h);
    fixture_fini(&f);
}

static void acpi(void **state)
{
    struct fixture f;
    struct devices_acpi_pm *p;
    struct base_error err;

    fixture_init(&f);
    assert_int_equal(devices_acpi_pm_new(&p, &f.board, &err), 0);
    assert_int_equal(in(&f, 0x604, 2) & 1, 1);
    f.clock = 1000000000;
    assert_int_equal(in(&f, 0x608, 4), 3579545);
    f.clock = UINT64_C(10000000000);
    assert_int_equal(in(&f, 0x608, 4), 35795450 & 0xffffff);
    /* The button: no line while not enabled, cleared by writing one. */
    devices_acpi_pm_press(p);
    assert_int_equal(f.level[9], 0);
    assert_int_equal(in(&f, 0x600, 2), 0x100);
    out(&f, 0x602, 2, 0x100);
    assert_int_equal(f.level[9], 1);
    out(&f, 0x601, 1, 0x01);
    assert_int_equal(f.level[9], 0);
    assert_int_equal(in(&f, 0x600, 2), 0);
    /* Sleep types: only S5 powers off. */
    out(&f, 0x604, 2, 0x2000 | 1 << 10);
    assert_int_equal(f.requested, -1);
    out(&f, 0x604, 2, 0x2000 | 5 << 10);
    assert_int_equal(f.requested, DEVICE_POWEROFF);
    devices_acpi_pm_free(p);
    fixture_fini(&f);
}

static void small_ports(void **state)
{
    struct devices_legacy_options opts = {.has_debug_exit = 1, .debug_exit_base = 0xf4, .debug_exit_size = 4};
    struct fixture f;
    struct devices_legacy *l;
    struct base_error err;

    fixture_init(&f);
    assert_int_equal(devices_legacy_new(&l, &f.board, &opts, &err), 0);
    assert_int_equal(in(&f, 0x64, 1) & 3, 0);
    out(&f, 0x64, 1, 0xaa);
    assert_int_equal(in(&f, 0x64, 1) & 1, 1);
    assert_int_equal(in(&f, 0x60, 1), 0x55);
    assert_int_equal(in(&f, 0x64, 1) & 1, 0);
    out(&f, 0x80, 1, 0x42);
    assert_int_equal(in(&f, 0x80, 1), 0x42);
    assert_int_equal(in(&f, 0x92, 1), 2);
    assert_int_equal(f.requested, -1);
    out(&f, 0x64, 1, 0xfe);
    assert_int_equal(f.requested, DEVICE_RESET);
    f.requested = -1;
    out(&f, 0x92, 1, 3);
    assert_int_equal(f.requested, DEVICE_RESET);
    out(&f, 0xf4, 4, 0x12345);
    assert_int_equal(f.requested, DEVICE_DEBUG_EXIT);
    assert_int_equal(f.value, 0x12345);
    out(&f, 0xf4, 1, 7);
    assert_int_equal(f.value, 7);
    assert_int_equal(in(&f, 0xe9, 1), 0xff);
    devices_legacy_free(l);
    fixture_fini(&f);
}

static void on_act(void *opaque, enum devices_chardev_command what)
{
    *(int *)opaque = what == DEVICE_CHARDEV_QUIT ? 1 : 2;
}

/* The multiplexed terminal, on pipes in place of standard input and output. */
static void mux(void **state)
{
    struct devices_chardev *c;
    struct base_error err;
    int in_pipe[2], saved_in = dup(0), acted = 0;
    uint8_t bytes[16];

    assert_int_equal(pipe(in_pipe), 0);
    dup2(in_pipe[0], 0);
    assert_int_equal(devices_chardev_new(&c, "mon:stdio", &err), 0);
    devices_chardev_set_act(c, on_act, &acted);
    assert_int_equal(write(in_pipe[1], "ab\1\1c\1", 6), 6);
    assert_int_equal(devices_chardev_read(c, bytes, sizeof(bytes)), 4);
    assert_memory_equal(bytes, "ab\1c", 4);
    assert_int_equal(write(in_pipe[1], "bx\1x", 4), 4);
    assert_int_equal(devices_chardev_read(c, bytes, sizeof(bytes)), 1);
    assert_int_equal(bytes[0], 'x');
    assert_int_equal(acted, 1);
    close(in_pipe[1]);
    assert_int_equal(devices_chardev_read(c, bytes, sizeof(bytes)), -1);
    devices_chardev_free(c);
    dup2(saved_in, 0);
    close(saved_in);
    close(in_pipe[0]);
    assert_int_equal(devices_chardev_new(&c, "tcp:1", &err), -EINVAL);
    assert_non_null(strstr(err.text, "tcp:1"));
    assert_int_equal(devices_chardev_new(&c, "file:/nowhere/at/all", &err), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(serial), cmocka_unit_test(clock_and_cmos),
        cmocka_unit_test(clock_interrupts), cmocka_unit_test(pci),
        cmocka_unit_test(acpi),   cmocka_unit_test(small_ports),    cmocka_unit_test(mux),
    };

    return cmocka_run_group_tests_name("devices/devices", tests, NULL, NULL);
}
