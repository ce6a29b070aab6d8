/*
 * The run: vCPU threads do the work; the calling thread waits for input, signals and the end. Input is
 * taken from a back end only as far as its serial port has room, so a flood of it waits outside.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "machine/pc.h"

/* How long a full receiver waits before it is looked at again, ms. */
#define FULL_WAIT 5

/* Seconds of the monotonic clock. Lock: none. Source: own. */
double machine_now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/*
 * End the run. The first call decides; vCPUs are asked to stop.
 * detail: one line or NULL. Lock: none needed; the device lock may be held. Source: own.
 */
void machine_end(struct machine *m, enum machine_outcome outcome, uint32_t value, const char *detail)
{
    uint64_t one = 1;

    if (atomic_exchange(&m->ended, true)) {
        return;
    }
    m->result.outcome = outcome;
    m->result.value = value;
    snprintf(m->result.detail, sizeof(m->result.detail), "%s", detail ? detail : "");
    accel_request_stop(m->accel);
    if (write(m->wake_fd, &one, sizeof(one)) < 0) {
        return; /* full: the loop is awake already */
    }
}

struct wait_set {
    struct pollfd fds[2 + MACHINE_MAX_SERIAL];
    int serial_of[2 + MACHINE_MAX_SERIAL];
    unsigned count;
    int64_t timeout_ns; /* -1: none */
};

static void watch(struct wait_set *w, int fd, int serial)
{
    w->fds[w->count] = (struct pollfd){.fd = fd, .events = POLLIN};
    w->serial_of[w->count++] = serial;
}

static int64_t shorter(int64_t a, int64_t b)
{
    return a < 0 || b < a ? b : a;
}

/* Serve the clock's timer if it is due, and wait no longer than for it. Lock: the device lock. */
static void timers_look(struct machine *m, struct wait_set *w)
{
    uint64_t now;

    if (m->rtc_when == UINT64_MAX) {
        return;
    }
    now = m->board.clock_ns(m->board.opaque);
    if (m->rtc_when <= now) {
        m->rtc_when = UINT64_MAX;
        devices_rtc_expire(m->rtc);
    }
    if (m->rtc_when != UINT64_MAX) {
        w->timeout_ns = m->rtc_when > now ? (int64_t)(m->rtc_when - now) : 0;
    }
}

static void fill_wait_set(struct machine *m, struct wait_set *w)
{
    int i;

    memset(w, 0, sizeof(*w));
    w->timeout_ns = -1;
    watch(w, m->wake_fd, -1);
    if (m->config.signal_fd >= 0) {
        watch(w, m->config.signal_fd, -2);
    }
    accel_lock(m->accel);
    timers_look(m, w);
    for (i = 0; i < MACHINE_MAX_SERIAL; i++) {
        int fd = m->serials[i] ? devices_chardev_input_fd(m->chardevs[i]) : -1;

        if (fd < 0 || m->input_closed[i]) {
            continue;
        }
        if (devices_serial_room(m->serials[i]) > 0) {
            watch(w, fd, i);
        } else {
            w->timeout_ns = shorter(w->timeout_ns, FULL_WAIT * INT64_C(1000000));
        }
    }
    accel_unlock(m->accel);
}

static void take_input(struct machine *m, int i)
{
    uint8_t bytes[16];
    size_t room;
    int n;

    accel_lock(m->accel);
    room = devices_serial_room(m->serials[i]);
    accel_unlock(m->accel);
    if (room == 0) {
        return;
    }
    /* Only this thread fills the receiver, so the room can only have grown when the bytes go in. */
    n = devices_chardev_read(m->chardevs[i], bytes, room < sizeof(bytes) ? room : sizeof(bytes));
    if (n < 0) {
        m->input_closed[i] = true;
    } else if (n > 0) {
        accel_lock(m->accel);
        devices_serial_receive(m->serials[i], bytes, n);
        accel_unlock(m->accel);
    }
}

static void take_signal(struct machine *m)
{
    struct signalfd_siginfo info;

    if (read(m->config.signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        machine_end(m, MACHINE_SIGNAL, info.ssi_signo, strsignal((int)info.ssi_signo));
    }
}

static void serve(struct machine *m)
{
    struct timespec t;
    struct wait_set w;
    uint64_t calls;
    unsigned i;

    fill_wait_set(m, &w);
    t = (struct timespec){w.timeout_ns / 1000000000, w.timeout_ns % 1000000000};
    if (ppoll(w.fds, w.count, w.timeout_ns < 0 ? NULL : &t, NULL) <= 0) {
        return;
    }
    for (i = 0; i < w.count; i++) {
        if (!w.fds[i].revents) {
            continue;
        }
        if (w.serial_of[i] == -1) {
            if (read(m->wake_fd, &calls, sizeof(calls)) < 0) {
                continue; /* taken already: what it announces is looked at all the same */
            }
        } else if (w.serial_of[i] == -2) {
            take_signal(m);
        } else {
            take_input(m, w.serial_of[i]);
        }
    }
}

/*
 * Run until the guest, the user or the engine ends it.
 * result: filled on success. Once per machine.
 * Returns: 0; -errno when the vCPUs could not be started. Lock: none. Source: own.
 */
int machine_run(struct machine *m, struct machine_result *result, struct base_error *err)
{
    int ret;

    ret = accel_start(m->accel, err);
    if (ret < 0) {
        return ret;
    }
    while (!atomic_load(&m->ended)) {
        serve(m);
    }
    accel_stop(m->accel);
    m->result.total_seconds = machine_now() - m->start_seconds;
    *result = m->result;
    return 0;
}
