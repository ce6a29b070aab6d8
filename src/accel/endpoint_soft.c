/*
 * The endpoint of libsoftkvm: every call is the library's of the same name, on an instance of its own.
 * Descriptors are that instance's. Thread-safe as the library is.
 */
#include "accel/endpoint.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "softkvm/softkvm.h"

struct soft_endpoint {
    struct accel_endpoint base;
    struct softkvm *engine;
};

static struct softkvm *engine_of(struct accel_endpoint *ep)
{
    return container_of(ep, struct soft_endpoint, base)->engine;
}

static int soft_open_system(struct accel_endpoint *ep)
{
    return softkvm_open_system(engine_of(ep));
}

static int soft_ioctl(struct accel_endpoint *ep, int fd, unsigned long request, unsigned long arg)
{
    return softkvm_ioctl(engine_of(ep), fd, request, (void *)arg);
}

static void *soft_mmap(struct accel_endpoint *ep, int fd, size_t length, off_t offset, int *error)
{
    int code = ENOMEM;
    void *p =
        softkvm_mmap(engine_of(ep), fd, length, PROT_READ | PROT_WRITE, MAP_SHARED, offset, &code);

    if (!p) {
        *error = -code;
    }
    return p;
}

static void soft_munmap(struct accel_endpoint *ep, void *addr, size_t length)
{
    softkvm_munmap(engine_of(ep), addr, length);
}

static ssize_t soft_pread(struct accel_endpoint *ep, int fd, void *buf, size_t length, off_t offset)
{
    return softkvm_read(engine_of(ep), fd, buf, length, offset);
}

static void soft_close(struct accel_endpoint *ep, int fd)
{
    softkvm_close(engine_of(ep), fd);
}

static void soft_kick(struct accel_endpoint *ep, int vcpu_fd, pthread_t thread)
{
    softkvm_kick(engine_of(ep), vcpu_fd);
}

static void soft_memory_discarded(struct accel_endpoint *ep, void *start, size_t length)
{
    softkvm_memory_discarded(engine_of(ep), start, length);
}

static int soft_fallocate(struct accel_endpoint *ep, int fd, int mode, off_t offset, off_t length)
{
    return softkvm_fallocate(engine_of(ep), fd, mode, offset, length);
}

static void soft_free(struct accel_endpoint *ep)
{
    softkvm_free(engine_of(ep));
    free(container_of(ep, struct soft_endpoint, base));
}

static const struct accel_endpoint_ops soft_ops = {
    .name = "soft",
    .open_system = soft_open_system,
    .ioctl = soft_ioctl,
    .mmap = soft_mmap,
    .munmap = soft_munmap,
    .pread = soft_pread,
    .close = soft_close,
    .kick = soft_kick,
    .memory_discarded = soft_memory_discarded,
    .fallocate = soft_fallocate,
    .free = soft_free,
};

/*
 * Make an instance of libsoftkvm and its endpoint.
 * opts: NULL for the engine's defaults.
 * Returns: the endpoint, freed by its ops->free; NULL with the reason in err. Lock: none. Source: own.
 */
struct accel_endpoint *accel_endpoint_soft_new(const struct accel_soft_options *opts,
                                               struct base_error *err)
{
    struct softkvm_options options;
    struct soft_endpoint *ep = calloc(1, sizeof(*ep));
    char text[200] = "out of memory";

    if (!ep) {
        base_error_set(err, ENOMEM, "%s", text);
        return NULL;
    }
    memset(&options, 0, sizeof(options));
    options.size = sizeof(options);
    options.host_memory = opts ? opts->host_memory : 0;
    options.swap = opts ? opts->swap : 0;
    options.max_page_level = opts ? opts->max_page_level : 0;
    options.mmu = opts ? (enum softkvm_mmu)opts->mmu : SOFTKVM_MMU_EPT;
    options.stage2 = opts ? opts->stage2 : 0;
    options.ept_levels = opts ? opts->levels : 0;
    options.trace = opts ? opts->trace : NULL;
    options.trace_opaque = opts ? opts->trace_opaque : NULL;
    ep->base.ops = &soft_ops;
    ep->engine = softkvm_new(&options, text, sizeof(text));
    if (!ep->engine) {
        base_error_set(err, ENOMEM, "soft: %s", text);
        free(ep);
        return NULL;
    }
    return &ep->base;
}
