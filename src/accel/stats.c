/*
 * Reader of KVM's binary statistics: a descriptor whose header says where names, descriptors and values
 * lie. All offsets come from the file and are checked against what was read.
 */
#include "accel/internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define STATS_MAX_BYTES (1u << 20)
#define STATS_MAX_NAME  128u

struct stats_sink {
    accel_stat_fn *fn;
    void *opaque;
    int vcpu;
};

struct stats_image {
    int fd;
    struct kvm_stats_header header;
    char *descriptors; /* num_desc records of sizeof(kvm_stats_desc) + name_size */
    size_t record;
};

static int read_exact(struct accel *a, int fd, void *buf, size_t length, uint64_t offset)
{
    size_t done = 0;

    while (done < length) {
        ssize_t n = a->ep->ops->pread(a->ep, fd, (char *)buf + done, length - done, offset + done);

        if (n < 0) {
            return n;
        }
        if (n == 0) {
            return -EIO;
        }
        done += n;
    }
    return 0;
}

static int read_descriptors(struct accel *a, int fd, struct stats_image *image)
{
    const struct kvm_stats_header *h = &image->header;
    int ret = read_exact(a, fd, &image->header, sizeof(image->header), 0);

    if (ret < 0) {
        return ret;
    }
    if (h->name_size == 0 || h->name_size > STATS_MAX_NAME || h->num_desc > 4096) {
        return -EINVAL;
    }
    image->record = sizeof(struct kvm_stats_desc) + h->name_size;
    image->descriptors = accel_calloc(a, h->num_desc, image->record);
    if (!image->descriptors) {
        return -ENOMEM;
    }
    return read_exact(a, fd, image->descriptors, image->record * h->num_desc, h->desc_offset);
}

static int report_one(struct accel *a, const struct stats_image *image, uint32_t i,
                      const struct stats_sink *sink)
{
    const struct kvm_stats_desc *d = (const void *)(image->descriptors + i * image->record);
    char name[STATS_MAX_NAME + 1];
    uint64_t *values;
    int ret;

    if (d->size == 0 || d->size * sizeof(uint64_t) > STATS_MAX_BYTES) {
        return 0;
    }
    memcpy(name, d->name, image->header.name_size);
    name[image->header.name_size] = '\0';
    values = accel_calloc(a, d->size, sizeof(uint64_t));
    if (!values) {
        return -ENOMEM;
    }
    ret = read_exact(a, image->fd, values, d->size * sizeof(uint64_t),
                     (uint64_t)image->header.data_offset + d->offset);
    if (ret == 0) {
        sink->fn(sink->opaque, sink->vcpu, name, values, d->size);
    }
    free(values);
    return ret;
}

static int read_one(struct accel *a, int owner_fd, const struct stats_sink *sink)
{
    struct stats_image image;
    int ret, fd = accel_ioctl(a->ep, owner_fd, KVM_GET_STATS_FD, 0);
    uint32_t i;

    if (fd < 0) {
        return fd;
    }
    memset(&image, 0, sizeof(image));
    image.fd = fd;
    ret = read_descriptors(a, fd, &image);
    for (i = 0; ret == 0 && i < image.header.num_desc; i++) {
        ret = report_one(a, &image, i, sink);
    }
    free(image.descriptors);
    a->ep->ops->close(a->ep, fd);
    return ret;
}

/*
 * Call fn for each statistic of the VM (vcpu = -1), then of each vCPU.
 * Returns: 0; -ENOTTY or -EINVAL where the engine has no such descriptor; -errno of a read.
 * Lock: none. Source: KVM_GET_STATS_FD.
 */
int accel_stats_read(struct accel *a, accel_stat_fn *fn, void *opaque)
{
    struct stats_sink sink = {fn, opaque, -1};
    unsigned i;
    int ret = read_one(a, a->vm_fd, &sink);

    for (i = 0; ret == 0 && i < a->vcpu_count; i++) {
        sink.vcpu = (int)i;
        ret = read_one(a, a->vcpus[i].fd, &sink);
    }
    return ret;
}
