/* Which loader an image wants, by what is in it: Multiboot header, then ELF, then bzImage. */
#include "machine/loader.h"

/*
 * Load k->kernel whatever it is.
 * Returns: 0 with *cpu and k->how; -errno with one line in err that begins with the kernel's name.
 * Lock: none; before the guest runs. Source: own; the order is QEMU's.
 */
int machine_kernel_load(struct machine_kernel *k, const struct machine_ram *ram,
                        struct accel_boot_state *cpu, struct base_error *err)
{
    int ret;

    if (machine_multiboot_is(k->kernel)) {
        ret = machine_multiboot_load(k, ram, cpu, err);
    } else if (machine_elf_is(k->kernel)) {
        ret = machine_pvh_load(k, ram, cpu, err);
    } else {
        ret = machine_linux_load(k, ram, cpu, err);
    }
    if (ret < 0) {
        base_error_prefix(err, "-kernel '%s'", k->kernel_name);
    }
    return ret;
}
