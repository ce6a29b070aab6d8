/*
 * Choice of the engine: a list of names tried in order, as QEMU's -accel takes ("kvm:soft"), or "auto".
 *
 * auto takes the kernel's KVM only where the processor has VT-x or SVM and the device opens: a /dev/kvm
 * without hardware behind it interprets guests slowly and not wholly. Asked for by name, what is missing
 * is an error that says what to do about it; nothing falls back in silence.
 *
 * After a comma come properties: properties.c.
 */
#include "accel/internal.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

static bool cpu_has_virtualization(void)
{
    char line[4096];
    bool found = false;
    FILE *f = fopen("/proc/cpuinfo", "re");

    if (!f) {
        return false;
    }
    while (!found && fgets(line, sizeof(line), f)) {
        if (strncmp(line, "flags", 5) == 0) {
            found = strstr(line, " vmx ") || strstr(line, " svm ") || strstr(line, " vmx\n") ||
                    strstr(line, " svm\n");
            break;
        }
    }
    fclose(f);
    return found;
}

static int explain_open(int ret, struct base_error *err)
{
    switch (-ret) {
    case ENOENT:
    case ENXIO:
    case ENODEV:
        return base_error_set(err, -ret, "/dev/kvm: no such device; load the kvm module or use -accel soft");
    case EACCES:
    case EPERM:
        return base_error_set(err, -ret,
                              "/dev/kvm: permission denied; join the group that owns it (kvm) or use -accel soft");
    default:
        return base_error_set(err, -ret, "/dev/kvm: %s", strerror(-ret));
    }
}

static int try_endpoint(struct accel *a, struct accel_endpoint *ep, struct base_error *err)
{
    int version, fd = ep->ops->open_system(ep);

    if (fd < 0) {
        int ret = strcmp(ep->ops->name, "kvm") == 0
                      ? explain_open(fd, err)
                      : base_error_set(err, -fd, "%s: %s", ep->ops->name, strerror(-fd));
        ep->ops->free(ep);
        return ret;
    }
    version = accel_ioctl(ep, fd, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION) {
        ep->ops->close(ep, fd);
        ep->ops->free(ep);
        return base_error_set(err, ENOSYS, "%s: KVM API version %d, %d wanted", ep->ops->name, version,
                              KVM_API_VERSION);
    }
    a->ep = ep;
    a->system_fd = fd;
    return 0;
}

static int try_kvm(struct accel *a, struct base_error *err)
{
    struct accel_endpoint *ep = accel_endpoint_kernel_new();

    if (!ep) {
        return base_error_set(err, ENOMEM, "out of memory");
    }
    return try_endpoint(a, ep, err);
}

static int try_soft(struct accel *a, const struct accel_options *opts, struct base_error *err)
{
    struct accel_endpoint *ep = accel_endpoint_soft_new(opts->soft, err);

    if (!ep) {
        return -ENOMEM;
    }
    return try_endpoint(a, ep, err);
}

static int select_auto(struct accel *a, const struct accel_options *opts, struct base_error *err)
{
    struct base_error why = {""};

    if (!cpu_has_virtualization()) {
        snprintf(a->reason, sizeof(a->reason), "auto: this processor shows neither VT-x nor SVM");
        return try_soft(a, opts, err);
    }
    if (try_kvm(a, &why) == 0) {
        snprintf(a->reason, sizeof(a->reason), "auto: the processor has VT-x or SVM and /dev/kvm opens");
        return 0;
    }
    snprintf(a->reason, sizeof(a->reason), "auto: %.140s", why.text);
    return try_soft(a, opts, err);
}

/* One name of the list: 0 taken, 1 unknown, -errno not to be had. */
static int try_named(struct accel *a, const char *name, size_t len, const struct accel_options *opts,
                     struct base_error *err)
{
    if (len == 3 && memcmp(name, "kvm", 3) == 0) {
        return try_kvm(a, err);
    }
    if (len == 4 && memcmp(name, "soft", 4) == 0) {
        return try_soft(a, opts, err);
    }
    if (len == 4 && memcmp(name, "auto", 4) == 0) {
        return select_auto(a, opts, err);
    }
    return 1;
}

/*
 * Open the first endpoint of a list that is to be had and say why in a->reason.
 * list: names between colons, length bytes.
 * Returns: 0 with a->ep and a->system_fd set; -EINVAL for an unknown name; else what the first one tried said.
 * Lock: none. Source: own; the list form is QEMU's.
 */
int accel_endpoint_select(struct accel *a, const struct accel_options *opts, const char *list, size_t length,
                          struct base_error *err)
{
    struct accel_soft_options soft = {0};
    struct accel_options with = *opts;
    const char *p = list, *end = list + length;
    struct base_error first = {""};
    int ret = -EINVAL;

    if (opts->soft) {
        soft = *opts->soft;
    }
    accel_properties_apply(&a->properties, &soft);
    with.soft = &soft;
    while (p < end) {
        size_t len = strcspn(p, ":,");
        struct base_error here = {""};

        ret = try_named(a, p, len, &with, &here);
        if (ret == 1) {
            return base_error_set(err, EINVAL, "-accel '%s': unknown accelerator '%.*s' (kvm, soft, auto)",
                                  list, (int)len, p);
        }
        if (ret == 0) {
            if (!a->reason[0]) {
                snprintf(a->reason, sizeof(a->reason), "%s%.140s",
                         first.text[0] ? "fallback: " : "asked for by -accel", first.text);
            }
            return 0;
        }
        if (!first.text[0]) {
            first = here;
        }
        p += len + (p[len] == ':');
    }
    if (!first.text[0]) {
        return base_error_set(err, EINVAL, "-accel '%s': no accelerator named", list);
    }
    if (err) {
        *err = first;
    }
    return ret;
}
