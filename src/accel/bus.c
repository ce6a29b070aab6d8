/*
 * Guest accesses that left KVM_RUN, into the attached address spaces. What nothing answers reads as all
 * ones from ports and as zero from memory, as the spaces were told.
 */
#include "accel/internal.h"

#include <string.h>

#include "strata/access.h"
#include "strata/address_space.h"

/*
 * One port access of 1, 2 or 4 bytes at data.
 * Lock: the device lock. Source: PC ports; little-endian. Data of a failed read is what the space gives.
 */
void accel_bus_pio(struct accel *a, uint16_t port, void *data, unsigned size, bool is_write)
{
    uint64_t value = 0;

    if (is_write) {
        memcpy(&value, data, size);
        strata_store(a->io, port, size, STRATA_LITTLE_ENDIAN, value);
        return;
    }
    value = UINT64_MAX;
    strata_load(a->io, port, size, STRATA_LITTLE_ENDIAN, &value);
    memcpy(data, &value, size);
}

/* One memory access of 1..8 bytes. Lock: the device lock. Source: KVM_EXIT_MMIO. */
void accel_bus_mmio(struct accel *a, uint64_t addr, void *data, unsigned len, bool is_write)
{
    if (is_write) {
        strata_write(a->memory, addr, STRATA_ATTRS_NONE, data, len);
    } else {
        strata_read(a->memory, addr, STRATA_ATTRS_NONE, data, len);
    }
}

/*
 * Attach the address spaces: from here on the engine's slots follow `memory`.
 * memory, io: borrowed; must outlive a. Once per VM.
 * Returns: 0, or -errno with err when a slot was refused. Lock: none. Source: own.
 */
int accel_attach(struct accel *a, struct strata_space *memory, struct strata_space *io,
                 struct base_error *err)
{
    a->memory = memory;
    a->io = io;
    return accel_slots_new(a, err);
}
