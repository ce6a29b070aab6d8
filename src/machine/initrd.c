/* Where the initial RAM disk goes: as high as the protocol allows, so that it is out of the kernel's way. */
#include <errno.h>

#include "machine/loader.h"

/*
 * Write the initrd below `limit` and above `floor`, page aligned.
 * initrd: NULL for none. limit: first address it may not touch. *addr: where it went, 0 when there is none.
 * Returns: 0; -ENOSPC does not fit. Lock: none. Source: Linux boot protocol, initrd_addr_max.
 */
int machine_initrd_place(const struct machine_ram *ram, const struct machine_image *initrd, uint64_t floor,
                         uint64_t limit, struct base_error *err, gpa_t *addr)
{
    uint64_t top = ram->below_4g < limit ? ram->below_4g : limit;
    uint64_t at;
    int ret;

    *addr = gpa(0);
    if (!initrd || initrd->size == 0) {
        return 0;
    }
    if (initrd->size > top || ((top - initrd->size) & PAGE_MASK) < floor) {
        return base_error_set(err, ENOSPC,
                              "-initrd: %zu bytes do not fit between the kernel's end at 0x%llx and 0x%llx; "
                              "give the guest more memory with -m",
                              initrd->size, (unsigned long long)floor, (unsigned long long)top);
    }
    at = (top - initrd->size) & PAGE_MASK;
    ret = machine_ram_write(ram, gpa(at), initrd->data, initrd->size, err);
    if (ret == 0) {
        *addr = gpa(at);
    }
    return ret;
}
