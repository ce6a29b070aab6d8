/*
 * Character back ends; see chardev.h. The multiplexed form takes Ctrl-A as an escape: x ends the run,
 * b sends a break, h helps, Ctrl-A twice sends one.
 */
#include "devices/chardev.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "devices/terminal.h"

#define ESCAPE_KEY 0x01

struct devices_chardev {
    int in, out; /* -1: none */
    bool close_out, is_mux, escaped;
    devices_chardev_tap *tap;
    void *tap_opaque;
    devices_chardev_act *act;
    void *act_opaque;
};

static int open_file(struct devices_chardev *c, const char *path, struct base_error *err)
{
    c->out = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    c->close_out = true;
    return c->out < 0 ? base_error_set(err, errno, "-serial file:%s: %s", path, strerror(errno)) : 0;
}

static int open_spec(struct devices_chardev *c, const char *spec, struct base_error *err)
{
    if (strcmp(spec, "stdio") == 0 || strcmp(spec, "mon:stdio") == 0) {
        c->in = STDIN_FILENO;
        c->out = STDOUT_FILENO;
        c->is_mux = spec[0] == 'm';
        devices_terminal_raw(!c->is_mux);
        return 0;
    }
    if (strcmp(spec, "null") == 0 || strcmp(spec, "none") == 0) {
        return 0;
    }
    if (strncmp(spec, "file:", 5) == 0 && spec[5]) {
        return open_file(c, spec + 5, err);
    }
    return base_error_set(err, EINVAL, "-serial '%s': one of stdio, mon:stdio, file:PATH, null, none", spec);
}

/*
 * Open a back end.
 * Returns: 0 with *out, freed by devices_chardev_free(); -EINVAL unknown form; -errno of a file. Source: own; the
 * forms are QEMU's.
 */
int devices_chardev_new(struct devices_chardev **out, const char *spec, struct base_error *err)
{
    struct devices_chardev *c = calloc(1, sizeof(*c));
    int ret;

    if (!c) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    c->in = c->out = -1;
    ret = open_spec(c, spec, err);
    if (ret < 0) {
        free(c);
        return ret;
    }
    *out = c;
    return 0;
}

/* Close and free; NULL is allowed. The terminal goes back to what it was. Source: own. */
void devices_chardev_free(struct devices_chardev *c)
{
    if (!c) {
        return;
    }
    if (c->in == STDIN_FILENO) {
        devices_terminal_restore();
    }
    if (c->close_out && c->out >= 0) {
        close(c->out);
    }
    free(c);
}

/* Have tap called for each byte of output. Before the guest runs. Source: own. */
void devices_chardev_set_tap(struct devices_chardev *c, devices_chardev_tap *tap, void *opaque)
{
    c->tap = tap;
    c->tap_opaque = opaque;
}

/* Have act called for each Ctrl-A command, from devices_chardev_read(). Source: own. */
void devices_chardev_set_act(struct devices_chardev *c, devices_chardev_act *act, void *opaque)
{
    c->act = act;
    c->act_opaque = opaque;
}

/* Wait for a blocked output no longer than it takes; a closed one loses the bytes. */
static void put(int fd, const char *text, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, text, length);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n < 0 && errno == EAGAIN) {
            usleep(1000);
            continue;
        }
        if (n <= 0) {
            return;
        }
        text += n;
        length -= n;
    }
}

/* One byte from the guest. Lock: the device lock. Source: own. */
void devices_chardev_write(struct devices_chardev *c, uint8_t byte)
{
    if (c->out >= 0) {
        put(c->out, (const char *)&byte, 1);
    }
    if (c->tap) {
        c->tap(c->tap_opaque, byte);
    }
}

/* Borrowed; valid until the back end is freed. Source: own. */
int devices_chardev_input_fd(const struct devices_chardev *c)
{
    return c->in;
}

static void command(struct devices_chardev *c, uint8_t key)
{
    static const char help[] = "\r\nCtrl-A h   this help\r\nCtrl-A x   end the run\r\n"
                               "Ctrl-A b   send a break\r\nCtrl-A Ctrl-A   send Ctrl-A\r\n";

    if (key == 'x' && c->act) {
        c->act(c->act_opaque, DEVICE_CHARDEV_QUIT);
    } else if (key == 'b' && c->act) {
        c->act(c->act_opaque, DEVICE_CHARDEV_BREAK);
    } else if (key == 'h' || key == '?') {
        put(c->out, help, sizeof(help) - 1);
    }
}

/* Take commands out of n raw bytes; how many are left for the guest. */
static size_t demux(struct devices_chardev *c, uint8_t *bytes, size_t n)
{
    size_t i, kept = 0;

    for (i = 0; i < n; i++) {
        if (!c->escaped && bytes[i] == ESCAPE_KEY) {
            c->escaped = true;
        } else if (c->escaped && bytes[i] != ESCAPE_KEY) {
            c->escaped = false;
            command(c, bytes[i]);
        } else {
            c->escaped = false;
            bytes[kept++] = bytes[i];
        }
    }
    return kept;
}

/*
 * Read what has come in. room: > 0. Called when the descriptor is readable.
 * Returns: bytes for the guest; 0 none; -1 at the end of input. Lock: none; main loop only. Source: own.
 */
int devices_chardev_read(struct devices_chardev *c, uint8_t *to, size_t room)
{
    ssize_t n = read(c->in, to, room);

    if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
        return 0;
    }
    if (n <= 0) {
        return -1;
    }
    return c->is_mux ? (int)demux(c, to, n) : (int)n;
}
