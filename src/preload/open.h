/* The device by path; see path.c and open.c. */
#ifndef STRATA_PRELOAD_OPEN_H
#define STRATA_PRELOAD_OPEN_H

#include <stdbool.h>

/* True if the path, taken from the folder dir (AT_FDCWD: the working folder), is the device's. */
bool preload_is_device(int dir, const char *path);

#endif
