/*
 * The controlling terminal in raw mode, and out of it again however the program ends. The saved settings are
 * the process's one piece of state that cannot hang from a handle: there is one terminal, and a signal
 * handler has no handle to look at.
 */
#ifndef STRATA_DEVICES_TERMINAL_H
#define STRATA_DEVICES_TERMINAL_H

#include <stdbool.h>

/* Raw mode on standard input when it is a terminal; keep_signals leaves Ctrl-C and the like to the process. */
void devices_terminal_raw(bool keep_signals);
/* Back to what it was; async-signal-safe, harmless when it never was raw. */
void devices_terminal_restore(void);

#endif
