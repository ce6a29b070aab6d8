/* From files to a machine ready for its first instruction: tables, kernel, registers of processor 0. */
#include <errno.h>
#include <string.h>

#include "machine/acpi.h"
#include "machine/pc.h"

static int load(struct machine *m, const struct machine_image *kernel, const struct machine_image *initrd,
                struct base_error *err)
{
    struct accel_boot_state cpu = {.mode = ACCEL_MODE_RESET};
    struct machine_kernel k = {
        .kernel = kernel,
        .initrd = initrd->data ? initrd : NULL,
        .kernel_name = m->config.kernel,
        .initrd_arg = m->config.initrd,
        .append = m->config.append ? m->config.append : "",
        .unpack = m->config.unpack,
    };
    int ret = machine_acpi_write(&m->layout, m->config.processors, &k.rsdp, err);

    if (ret == 0) {
        ret = machine_kernel_load(&k, &m->layout, &cpu, err);
    }
    if (ret == 0) {
        ret = accel_boot_cpu_set(m->accel, &cpu, err);
    }
    memcpy(m->boot_text, k.how, sizeof(m->boot_text));
    return ret;
}

/*
 * Boot: read the kernel and the initrd, write them and the tables into guest memory, set registers.
 * Returns: 0; -errno with one line in err. Lock: none; before the run. Source: own.
 */
int machine_boot(struct machine *m, struct base_error *err)
{
    struct machine_image kernel = {NULL, 0}, initrd = {NULL, 0};
    int ret = machine_image_read(&kernel, m->config.kernel, m->config.ram_bytes, err);

    if (ret < 0) {
        base_error_prefix(err, "-kernel");
        return ret;
    }
    /* The text of -initrd is a file, but for Multiboot: a list of modules, read by their loader. */
    if (m->config.initrd && !machine_multiboot_is(&kernel)) {
        ret = machine_image_read(&initrd, m->config.initrd, m->config.ram_bytes, err);
        if (ret < 0) {
            base_error_prefix(err, "-initrd");
        }
    }
    if (ret == 0) {
        ret = load(m, &kernel, &initrd, err);
    }
    machine_image_free(&kernel);
    machine_image_free(&initrd);
    return ret;
}
