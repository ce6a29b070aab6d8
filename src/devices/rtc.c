/*
 * MC146818 clock with CMOS memory. Time is the host's at the start plus the guest's own clock, so that a
 * guest whose time is counted sees one time. A guest that sets the clock shifts it.
 *
 * Nothing counts: the flags of register C are worked out, for the time since they were last looked at, when
 * somebody looks or a timer that was set for an enabled interrupt expires. Line 8 is high while an enabled flag is set;
 * until register C has been read no timer runs, as nothing new could be seen.
 *
 * Leaves out: daylight saving, and the square wave. Lock: the machine's device lock.
 */
#include "devices/rtc.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define REG_A 0x0au
#define REG_B 0x0bu
#define REG_C 0x0cu
#define REG_D 0x0du

#define A_UIP    0x80u
#define B_SET    0x80u
#define B_BINARY 0x04u
#define B_24H    0x02u
#define C_UPDATE   0x10u /* the enabling bits of register B have the same places */
#define C_ALARM    0x20u
#define C_PERIODIC 0x40u
#define C_ANY      0x70u
#define C_IRQ      0x80u
#define D_VALID  0x80u
#define LINE     8u
#define ALARM_ANY 0xc0u /* an alarm register of this or more matches every value */
#define DAY_S    INT64_C(86400)

#define NS_PER_S    INT64_C(1000000000)
#define UPDATE_LEAD 244000 /* ns before the second during which UIP shows */

struct devices_rtc {
    struct devices_board board;
    struct strata_region *region;
    uint8_t index, cmos[128];
    int64_t offset_ns;    /* UTC - guest clock */
    int64_t seen_ns;       /* UTC up to which `flags` has been worked out */
    uint8_t flags;         /* of register C */
    struct tm held;        /* what the guest writes while SET is on */
};

static int64_t now_ns(const struct devices_rtc *r)
{
    return r->offset_ns + (int64_t)r->board.clock_ns(r->board.opaque);
}

static uint8_t encode(const struct devices_rtc *r, int value)
{
    return r->cmos[REG_B] & B_BINARY ? value : (value / 10) << 4 | value % 10;
}

static int decode(const struct devices_rtc *r, uint8_t value)
{
    return r->cmos[REG_B] & B_BINARY ? value : (value >> 4) * 10 + (value & 0xf);
}

static uint8_t encode_hour(const struct devices_rtc *r, int hour)
{
    if (r->cmos[REG_B] & B_24H) {
        return encode(r, hour);
    }
    return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static void current_time(const struct devices_rtc *r, struct tm *tm)
{
    time_t seconds = now_ns(r) / NS_PER_S;

    if (r->cmos[REG_B] & B_SET) {
        *tm = r->held;
        return;
    }
    gmtime_r(&seconds, tm);
}

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

/* Period of the periodic flag in ns; 0: none. Rates 1 and 2 are those of 8 and 9. */
static int64_t period_ns(const struct devices_rtc *r)
{
    unsigned rate = r->cmos[REG_A] & 0xf;

    if (rate == 0) {
        return 0;
    }
    return NS_PER_S >> (16 - (rate < 3 ? rate + 7 : rate));
}

static bool alarm_field(const struct devices_rtc *r, unsigned reg, uint8_t value)
{
    return r->cmos[reg] >= ALARM_ANY || r->cmos[reg] == value;
}

/* Does the alarm go off in a second of (from, to]? */
static bool alarm_between(const struct devices_rtc *r, int64_t from, int64_t to)
{
    if (to - from > DAY_S) {
        from = to - DAY_S;
    }
    while (++from <= to) {
        int64_t of_day = from - floor_div(from, DAY_S) * DAY_S;

        if (alarm_field(r, 1, encode(r, (int)(of_day % 60))) && alarm_field(r, 3, encode(r, (int)(of_day / 60 % 60))) &&
            alarm_field(r, 5, encode_hour(r, (int)(of_day / 3600)))) {
            return true;
        }
    }
    return false;
}

/* Work the flags out up to now. */
static void catch_up(struct devices_rtc *r)
{
    int64_t from = r->seen_ns, to = now_ns(r), period = period_ns(r);
    int64_t from_s = floor_div(from, NS_PER_S), to_s = floor_div(to, NS_PER_S);

    r->seen_ns = to;
    if (to <= from) {
        return;
    }
    if (period && floor_div(from, period) != floor_div(to, period)) {
        r->flags |= C_PERIODIC;
    }
    if (!(r->cmos[REG_B] & B_SET) && from_s != to_s) {
        r->flags |= C_UPDATE;
        r->flags |= alarm_between(r, from_s, to_s) ? C_ALARM : 0;
    }
}

/* Bring the line and the timer to what the flags and their enabling bits say. */
static void irq_update(struct devices_rtc *r)
{
    uint8_t enabled = r->cmos[REG_B] & C_ANY;
    bool is_set = (r->cmos[REG_B] & B_SET) != 0;
    int64_t when = INT64_MAX, period = period_ns(r);

    if (r->flags & enabled) {
        r->flags |= C_IRQ;
    } else {
        if ((enabled & C_PERIODIC) && period) {
            when = (floor_div(r->seen_ns, period) + 1) * period;
        }
        if ((enabled & (C_UPDATE | C_ALARM)) && !is_set) {
            int64_t second = (floor_div(r->seen_ns, NS_PER_S) + 1) * NS_PER_S;

            when = second < when ? second : when;
        }
    }
    r->board.irq(r->board.opaque, LINE, (r->flags & C_IRQ) != 0);
    if (r->board.rtc_timer) {
        r->board.rtc_timer(r->board.opaque, when == INT64_MAX ? UINT64_MAX : (uint64_t)(when - r->offset_ns));
    }
}

/* See rtc.h. Source: Motorola's data sheet, "Interrupts". */
void devices_rtc_expire(struct devices_rtc *r)
{
    catch_up(r);
    irq_update(r);
}

/* Reading clears them and lowers the line. */
static uint8_t read_flags(struct devices_rtc *r)
{
    uint8_t flags;

    catch_up(r);
    flags = r->flags | (r->flags & r->cmos[REG_B] & C_ANY ? C_IRQ : 0);
    r->flags = 0;
    irq_update(r);
    return flags;
}

static uint8_t read_register(struct devices_rtc *r)
{
    struct tm tm;

    current_time(r, &tm);
    switch (r->index) {
    case 0:
        return encode(r, tm.tm_sec);
    case 2:
        return encode(r, tm.tm_min);
    case 4:
        return encode_hour(r, tm.tm_hour);
    case 6:
        return encode(r, tm.tm_wday + 1);
    case 7:
        return encode(r, tm.tm_mday);
    case 8:
        return encode(r, tm.tm_mon + 1);
    case 9:
        return encode(r, tm.tm_year % 100);
    case 0x32:
        return encode(r, (tm.tm_year + 1900) / 100);
    case REG_A:
        return r->cmos[REG_A] | (now_ns(r) % NS_PER_S >= NS_PER_S - UPDATE_LEAD ? A_UIP : 0);
    case REG_C:
        return read_flags(r);
    case REG_D:
        return D_VALID;
    default:
        return r->cmos[r->index];
    }
}

static int decode_hour(const struct devices_rtc *r, uint8_t value)
{
    int hour = decode(r, value & 0x7f);

    if (r->cmos[REG_B] & B_24H) {
        return decode(r, value);
    }
    return hour % 12 + (value & 0x80 ? 12 : 0);
}

static void set_field(struct devices_rtc *r, struct tm *tm, uint8_t value)
{
    switch (r->index) {
    case 0:
        tm->tm_sec = decode(r, value);
        break;
    case 2:
        tm->tm_min = decode(r, value);
        break;
    case 4:
        tm->tm_hour = decode_hour(r, value);
        break;
    case 7:
        tm->tm_mday = decode(r, value);
        break;
    case 8:
        tm->tm_mon = decode(r, value) - 1;
        break;
    case 9:
        tm->tm_year = tm->tm_year / 100 * 100 + decode(r, value);
        break;
    case 0x32:
        tm->tm_year = decode(r, value) * 100 - 1900 + tm->tm_year % 100;
        break;
    }
}

static void apply_time(struct devices_rtc *r, struct tm *tm)
{
    catch_up(r);
    r->offset_ns = (int64_t)timegm(tm) * NS_PER_S - (int64_t)r->board.clock_ns(r->board.opaque);
    r->seen_ns = now_ns(r);
    irq_update(r);
}

static void write_control_b(struct devices_rtc *r, uint8_t value)
{
    bool was_set = r->cmos[REG_B] & B_SET;

    catch_up(r);
    if (!was_set && (value & B_SET)) {
        current_time(r, &r->held);
    }
    r->cmos[REG_B] = value;
    if (was_set && !(value & B_SET)) {
        apply_time(r, &r->held);
    }
    irq_update(r);
}

static void write_register(struct devices_rtc *r, uint8_t value)
{
    struct tm tm;

    switch (r->index) {
    case 0:
    case 2:
    case 4:
    case 6:
    case 7:
    case 8:
    case 9:
    case 0x32:
        if (r->cmos[REG_B] & B_SET) {
            set_field(r, &r->held, value);
            return;
        }
        current_time(r, &tm);
        set_field(r, &tm, value);
        apply_time(r, &tm);
        return;
    case REG_A:
        catch_up(r);
        r->cmos[REG_A] = value & 0x7f;
        irq_update(r);
        return;
    case REG_B:
        write_control_b(r, value);
        return;
    case REG_C:
    case REG_D:
        return;
    case 1:
    case 3:
    case 5:
        catch_up(r);
        r->cmos[r->index] = value;
        return;
    default:
        r->cmos[r->index] = value;
    }
}

static uint64_t rtc_read(void *opaque, strata_addr addr, unsigned size)
{
    struct devices_rtc *r = opaque;

    return addr == 1 ? read_register(r) : 0xff;
}

static void rtc_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct devices_rtc *r = opaque;

    if (addr == 0) {
        r->index = value & 0x7f;
    } else {
        write_register(r, value);
    }
}

static const struct strata_io_ops rtc_ops = {
    .read = rtc_read,
    .write = rtc_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {1, 2, true, NULL},
    .impl = {1, 1, true},
};

static void put16(uint8_t *p, uint64_t v)
{
    p[0] = v;
    p[1] = v >> 8;
}

static uint64_t at_most(uint64_t v, uint64_t max)
{
    return v < max ? v : max;
}

/* Memory sizes where PC firmware leaves them. */
static void fill_cmos(struct devices_rtc *r, uint64_t below_4g, uint64_t above_4g)
{
    uint64_t kib = below_4g >> 10;

    put16(&r->cmos[0x15], 640);
    put16(&r->cmos[0x17], kib > 1024 ? at_most(kib - 1024, 65535) : 0);
    put16(&r->cmos[0x30], kib > 1024 ? at_most(kib - 1024, 65535) : 0);
    put16(&r->cmos[0x34], kib > 16384 ? at_most((kib - 16384) / 64, 65535) : 0);
    put16(&r->cmos[0x5b], above_4g >> 16);
    r->cmos[0x5d] = above_4g >> 32;
    r->cmos[0x14] = 0x02; /* a coprocessor, no display, no floppy */
    r->cmos[REG_A] = 0x26;
    r->cmos[REG_B] = B_24H;
}

/*
 * Make the clock.
 * Returns: 0 with *out; -errno with err. Lock: the device lock, or before the guest runs. Source: Motorola's
 * MC146818 data sheet; sizes where QEMU's PC has them.
 */
int devices_rtc_new(struct devices_rtc **out, const struct devices_board *board, uint64_t below_4g,
                   uint64_t above_4g, int64_t start, struct base_error *err)
{
    struct strata_region_desc desc = {.kind = STRATA_IO, .name = "rtc", .size = 2, .ops = &rtc_ops};
    struct devices_rtc *r = calloc(1, sizeof(*r));
    int ret;

    if (!r) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    r->board = *board;
    r->offset_ns = start * NS_PER_S;
    r->seen_ns = now_ns(r);
    fill_cmos(r, below_4g, above_4g);
    desc.opaque = r;
    ret = devices_ports_add(board, &desc, 0x70, &r->region, err);
    if (ret < 0) {
        free(r);
        return ret;
    }
    *out = r;
    return 0;
}

/* Take it out and free it; NULL is allowed. vCPUs are stopped. Source: own. */
void devices_rtc_free(struct devices_rtc *r)
{
    if (r) {
        strata_region_destroy(r->region);
        free(r);
    }
}
