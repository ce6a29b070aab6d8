/*
 * Which path is the device's: /dev/kvm, however it is spelt (relative to a folder's descriptor, with doubled
 * slashes, "." and ".."). Symbolic links elsewhere that lead to it are not followed.
 *
 * A path that does not end in "kvm" costs one comparison.
 */
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "preload/preload.h"
#include "preload/open.h"

/* Take "//", "." and ".." out of an absolute path, in place. */
static void normalise(char *path)
{
    char *to = path, *from = path;

    while (*from) {
        size_t n;

        while (*from == '/') {
            from++;
        }
        n = strcspn(from, "/");
        if (n == 2 && from[0] == '.' && from[1] == '.') {
            while (to > path && *--to != '/') {
            }
        } else if (n && !(n == 1 && from[0] == '.')) {
            *to++ = '/';
            memmove(to, from, n);
            to += n;
        }
        from += n;
    }
    *to = '\0';
}

/* The path of a folder's descriptor, or of the working folder. Returns its length, or 0. */
static size_t folder_path(int dir, char *out, size_t size)
{
    char link[40] = "/proc/self/cwd";
    ssize_t n;

    if (dir != AT_FDCWD) {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", dir);
    }
    n = readlink(link, out, size - 1);
    if (n <= 0) {
        return 0;
    }
    out[n] = '\0';
    return (size_t)n;
}

bool preload_is_device(int dir, const char *path)
{
    char whole[PATH_MAX];
    size_t n = path ? strlen(path) : 0, at = 0;

    if (n < 3 || memcmp(path + n - 3, "kvm", 3) != 0) {
        return false;
    }
    if (strcmp(path, PRELOAD_PATH) == 0) {
        return true;
    }
    if (n > 3 && path[n - 4] != '/') {
        return false;
    }
    if (path[0] != '/') {
        at = folder_path(dir, whole, sizeof(whole) - 1);
        if (!at) {
            return false;
        }
        whole[at++] = '/';
    }
    if (n >= sizeof(whole) - at) {
        return false;
    }
    memcpy(whole + at, path, n + 1);
    normalise(whole);
    return strcmp(whole, PRELOAD_PATH) == 0;
}
