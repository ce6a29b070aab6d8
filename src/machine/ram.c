/* Guest RAM as the loaders see it: two pieces with the hole below 4 GiB between, and one checked write. */
#include <errno.h>

#include "machine/loader.h"

#define FOUR_GIB (UINT64_C(1) << 32)

/*
 * Check that [addr, addr + length) is RAM.
 * what: names the piece in the message. Returns: 0; -ENOSPC with a line that says what does not fit.
 * Lock: none. Source: own.
 */
int machine_ram_check(const struct machine_ram *ram, gpa_t addr, uint64_t length, const char *what,
                      struct base_error *err)
{
    uint64_t end;

    if (!__builtin_add_overflow(addr.v, length, &end)) {
        if (end <= ram->below_4g) {
            return 0;
        }
        if (addr.v >= FOUR_GIB && end - FOUR_GIB <= ram->above_4g) {
            return 0;
        }
    }
    return base_error_set(err, ENOSPC, "%s: 0x%llx bytes at 0x%llx do not fit into guest memory", what,
                          (unsigned long long)length, (unsigned long long)addr.v);
}

/* Write guest RAM after machine_ram_check(). Returns: 0 or -errno with err. Lock: none. Source: own. */
int machine_ram_write(const struct machine_ram *ram, gpa_t addr, const void *data, size_t length,
                      struct base_error *err)
{
    int ret = machine_ram_check(ram, addr, length, "boot data", err);

    if (ret < 0 || length == 0) {
        return ret;
    }
    ret = ram->write(ram->opaque, addr, data, length);
    return ret < 0 ? base_error_set(err, -ret, "guest memory at 0x%llx cannot be written",
                                    (unsigned long long)addr.v)
                   : 0;
}

/* Make a range zero, if it may not be. Returns: 0 or -errno with err. Lock: none. Source: own. */
int machine_ram_zero(const struct machine_ram *ram, gpa_t addr, uint64_t length, struct base_error *err)
{
    static const uint8_t zeros[4096];
    int ret = machine_ram_check(ram, addr, length, "boot data", err);

    if (!ram->is_used) {
        return ret;
    }
    while (ret == 0 && length > 0) {
        size_t n = length < sizeof(zeros) ? length : sizeof(zeros);

        ret = machine_ram_write(ram, addr, zeros, n, err);
        addr = gpa(addr.v + n);
        length -= n;
    }
    return ret;
}
