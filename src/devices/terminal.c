/* Raw mode of the controlling terminal; see terminal.h. Thread-safe through one atomic flag. */
#include "devices/terminal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved;
static atomic_bool is_raw;
static atomic_bool has_exit_hook;

/* Async-signal-safe: tcsetattr() is. Lock: none. Source: own. */
void devices_terminal_restore(void)
{
    if (atomic_exchange(&is_raw, false)) {
        tcsetattr(STDIN_FILENO, TCSANOW, &saved);
    }
}

/*
 * Switch standard input to raw mode.
 * keep_signals: leave the signal keys alive. Does nothing when it is no terminal. Source: own.
 */
void devices_terminal_raw(bool keep_signals)
{
    struct termios t;

    if (atomic_load(&is_raw) || tcgetattr(STDIN_FILENO, &t) < 0) {
        return;
    }
    saved = t;
    t.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    t.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | (keep_signals ? 0 : ISIG));
    t.c_cflag &= ~(tcflag_t)(CSIZE | PARENB);
    t.c_cflag |= CS8;
    t.c_cc[VMIN] = 1;
    t.c_cc[VTIME] = 0;
    atomic_store(&is_raw, true);
    tcsetattr(STDIN_FILENO, TCSANOW, &t);
    if (!atomic_exchange(&has_exit_hook, true)) {
        atexit(devices_terminal_restore);
    }
}
