/* A file read whole into memory of ours: later changes to the file cannot reach a loader half way. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/loader.h"

static int read_all(int fd, uint8_t *to, size_t size)
{
    size_t done = 0;

    while (done < size) {
        ssize_t n = read(fd, to + done, size - done);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? -errno : -EIO;
        }
        done += n;
    }
    return 0;
}

static int read_fd(struct machine_image *out, int fd, const char *path, uint64_t max,
                   struct base_error *err)
{
    struct stat st;
    uint8_t *data;
    int ret;

    if (fstat(fd, &st) < 0) {
        return base_error_set(err, errno, "'%s': %s", path, strerror(errno));
    }
    if (!S_ISREG(st.st_mode)) {
        return base_error_set(err, EINVAL, "'%s': not a regular file", path);
    }
    if (st.st_size == 0) {
        return base_error_set(err, EINVAL, "'%s': the file is empty", path);
    }
    if ((uint64_t)st.st_size > max) {
        return base_error_set(err, EFBIG, "'%s': %lld bytes, at most %llu fit", path,
                              (long long)st.st_size, (unsigned long long)max);
    }
    data = malloc(st.st_size);
    if (!data) {
        return base_error_set(err, ENOMEM, "'%s': out of memory for %lld bytes", path,
                              (long long)st.st_size);
    }
    ret = read_all(fd, data, st.st_size);
    if (ret < 0) {
        free(data);
        return base_error_set(err, -ret, "'%s': %s", path, strerror(-ret));
    }
    out->data = data;
    out->size = st.st_size;
    return 0;
}

/*
 * Read the file at path.
 * max: bytes; what is larger is refused before it is read.
 * Returns: 0 with *out, freed by machine_image_free(); -errno with a line naming the file. Source: own.
 */
int machine_image_read(struct machine_image *out, const char *path, uint64_t max, struct base_error *err)
{
    int ret, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        return base_error_set(err, errno, "'%s': %s", path, strerror(errno));
    }
    ret = read_fd(out, fd, path, max, err);
    close(fd);
    return ret;
}

/* Free what machine_image_read() or machine_unpack() gave; a zeroed image is allowed. Source: own. */
void machine_image_free(struct machine_image *image)
{
    free(image->data);
    image->data = NULL;
    image->size = 0;
}
