/*
 * The memory map of the PC, with the names that QEMU's i440FX machine gives it:
 *
 *   system  0 .. 2^64
 *     ram-below-4g   alias of pc.ram from 0
 *     pci (prio -1)  everything that no RAM covers
 *     smram-region   the hole for display memory, 0xa0000..0xbffff, opened onto pci
 *     kvm-ioapic     0xfec00000, answered inside the engine
 *     kvm-apic-msi   0xfee00000, message-signalled interrupts
 *     ram-above-4g   alias of pc.ram from 4 GiB
 *
 * RAM of 3.5 GiB and more is cut at 3 GiB, so that the window below 4 GiB is whole gigabytes.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "machine/pc.h"
#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/region.h"

#define FOUR_GIB    (UINT64_C(1) << 32)
#define LOW_LIMIT   UINT64_C(0xe0000000)
#define LOW_CUT     UINT64_C(0xc0000000)
#define HOLE_START  UINT64_C(0xa0000)
#define HOLE_SIZE   UINT64_C(0x20000)
#define IOAPIC_ADDR UINT64_C(0xfec00000)
#define LAPIC_ADDR  UINT64_C(0xfee00000)

static int write_guest(void *opaque, gpa_t addr, const void *data, size_t length)
{
    struct machine *m = opaque;

    return strata_write(m->memory_space, addr.v, STRATA_ATTRS_NONE, data, length) == STRATA_OK ? 0 : -EIO;
}

static int ram_error(struct machine *m, int ret, struct base_error *err)
{
    const char *words = strata_memory_error(m->memory);

    return base_error_set(err, -ret, "guest memory of %llu bytes%s%s: %s%s%s",
                          (unsigned long long)m->config.ram_bytes, m->config.ram_path ? " in " : "",
                          m->config.ram_path ? m->config.ram_path : "", strerror(-ret),
                          *words ? ": " : "", words);
}

/* A file that cannot hold the guest is found out now, not by a fault while it runs. */
static int reserve_file(struct machine *m, struct base_error *err)
{
    int ret = 0, fd = strata_ram_fd(m->ram);

    if (m->config.ram_kind == MACHINE_RAM_FILE && fd >= 0) {
        ret = -posix_fallocate(fd, strata_ram_fd_offset(m->ram), m->config.ram_bytes);
    }
    return ret < 0 && ret != -EOPNOTSUPP && ret != -EINVAL ? ram_error(m, ret, err) : 0;
}

static int make_ram(struct machine *m, struct base_error *err)
{
    static const enum strata_backing backings[] = {STRATA_ANON, STRATA_MEMFD, STRATA_FILE};
    struct strata_ram_desc desc = {
        .name = "pc.ram",
        .size = m->config.ram_bytes,
        .backing = backings[m->config.ram_kind],
        .path = m->config.ram_path,
        .fd = -1,
        .flags = STRATA_RAM_NORESERVE | (m->config.ram_prealloc ? STRATA_RAM_PREALLOC : 0) |
                 (m->config.ram_kind != MACHINE_RAM_ANON
                      ? (m->config.ram_share || m->config.ram_kind == MACHINE_RAM_MEMFD
                             ? STRATA_RAM_SHARED
                             : STRATA_RAM_PRIVATE)
                      : 0),
    };
    int ret = strata_ram_new(m->memory, &desc, &m->ram);

    return ret < 0 ? ram_error(m, ret, err) : reserve_file(m, err);
}

/* Make a region and keep it for machine_memory_free(). */
static int keep(struct machine *m, const struct strata_region_desc *desc, struct strata_region **out,
                struct base_error *err)
{
    int ret = m->region_count < PC_MAX_REGIONS ? strata_region_new(m->memory, desc, out) : -ENOSPC;

    if (ret < 0) {
        return base_error_set(err, -ret, "region %s: %s", desc->name, strerror(-ret));
    }
    m->regions[m->region_count++] = *out;
    return 0;
}

static int place(struct machine *m, uint64_t addr, const struct strata_region_desc *desc, int priority,
                 struct base_error *err)
{
    struct strata_region *region;
    int ret = keep(m, desc, &region, err);

    if (ret == 0) {
        ret = strata_region_add_overlap(m->system, addr, region, priority);
    }
    return ret;
}

static uint64_t msi_read(void *opaque, strata_addr addr, unsigned size)
{
    return UINT64_MAX;
}

/* A device's write to the LAPICs' page is a message-signalled interrupt. */
static void msi_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct machine *m = opaque;

    accel_msi_send(m->accel, LAPIC_ADDR + addr, (uint32_t)value);
}

static const struct strata_io_ops msi_ops = {
    .read = msi_read,
    .write = msi_write,
    .endian = STRATA_LITTLE_ENDIAN,
    .valid = {4, 4, false, NULL},
    .impl = {4, 4, false},
};

static int add_ram(struct machine *m, struct strata_region *ram, struct base_error *err)
{
    struct strata_region_desc alias = {.kind = STRATA_ALIAS, .name = "ram-below-4g", .target = ram};
    int ret;

    m->layout.below_4g = m->config.ram_bytes >= LOW_LIMIT ? LOW_CUT : m->config.ram_bytes;
    m->layout.above_4g = m->config.ram_bytes - m->layout.below_4g;
    alias.size = m->layout.below_4g;
    ret = place(m, 0, &alias, 0, err);
    if (ret == 0 && m->layout.above_4g) {
        alias.name = "ram-above-4g";
        alias.offset = m->layout.below_4g;
        alias.size = m->layout.above_4g;
        ret = place(m, FOUR_GIB, &alias, 0, err);
    }
    return ret;
}

static int add_windows(struct machine *m, struct base_error *err)
{
    struct strata_region_desc pci = {.kind = STRATA_CONTAINER, .name = "pci", .size = STRATA_SIZE_ALL};
    struct strata_region_desc hole = {.kind = STRATA_RESERVATION, .name = "vga-lowmem", .size = HOLE_SIZE};
    struct strata_region_desc smram = {.kind = STRATA_ALIAS, .name = "smram-region", .size = HOLE_SIZE,
                                       .offset = HOLE_START};
    struct strata_region_desc ioapic = {.kind = STRATA_RESERVATION, .name = "kvm-ioapic", .size = 0x1000};
    struct strata_region_desc msi = {.kind = STRATA_IO, .name = "kvm-apic-msi", .size = 0x100000,
                                     .ops = &msi_ops, .opaque = m};
    struct strata_region *bus, *display;
    int ret = keep(m, &pci, &bus, err);

    if (ret == 0) {
        ret = strata_region_add_overlap(m->system, 0, bus, -1);
    }
    if (ret == 0) {
        ret = keep(m, &hole, &display, err);
    }
    if (ret == 0) {
        ret = strata_region_add_overlap(bus, HOLE_START, display, 1);
    }
    if (ret == 0) {
        smram.target = bus;
        ret = place(m, HOLE_START, &smram, 1, err);
    }
    if (ret == 0) {
        ret = place(m, IOAPIC_ADDR, &ioapic, 0, err);
    }
    return ret < 0 ? ret : place(m, LAPIC_ADDR, &msi, 4096, err);
}

static int make_spaces(struct machine *m, struct base_error *err)
{
    struct strata_region_desc system = {.kind = STRATA_CONTAINER, .name = "system", .size = STRATA_SIZE_ALL};
    struct strata_region_desc io = {.kind = STRATA_CONTAINER, .name = "io", .size = 65536};
    int ret = keep(m, &system, &m->system, err);

    if (ret == 0) {
        ret = keep(m, &io, &m->ports, err);
    }
    if (ret == 0) {
        ret = strata_space_new(m->memory, "memory", m->system, &m->memory_space);
    }
    if (ret == 0) {
        ret = strata_space_new(m->memory, "I/O", m->ports, &m->io_space);
    }
    if (ret == 0) {
        strata_space_set_open_bus(m->io_space, true);
    }
    return ret;
}

static int build(struct machine *m, struct base_error *err)
{
    struct strata_region_desc ram = {.kind = STRATA_RAM, .name = "pc.ram"};
    struct strata_region *region;
    int ret = make_ram(m, err);

    if (ret == 0) {
        ret = make_spaces(m, err);
    }
    if (ret < 0) {
        return ret;
    }
    ram.ram = m->ram;
    ram.size = m->config.ram_bytes;
    strata_begin(m->memory);
    ret = keep(m, &ram, &region, err);
    if (ret == 0) {
        ret = add_ram(m, region, err);
    }
    if (ret == 0) {
        ret = add_windows(m, err);
    }
    if (ret == 0) {
        ret = strata_commit(m->memory);
    }
    m->layout.is_used = m->config.ram_kind == MACHINE_RAM_FILE;
    m->layout.write = write_guest;
    m->layout.opaque = m;
    return ret;
}

static void warn(void *opaque, const char *text)
{
    struct machine *m = opaque;

    if (m->config.warn) {
        m->config.warn(m->config.opaque, text);
    }
}

/*
 * Make RAM, the memory map and the port space.
 * Returns: 0; -errno with err. On error machine_memory_free() cleans up. Lock: none. Source: QEMU's i440FX map.
 */
int machine_memory_new(struct machine *m, struct base_error *err)
{
    struct strata_memory_config config = {.mode = STRATA_COMPATIBLE,
                                          .warn = warn,
                                          .warn_ctx = m,
                                          .trace = m->config.trace,
                                          .trace_ctx = m->config.opaque};
    int ret = strata_memory_new(&config, &m->memory);

    if (ret < 0) {
        return base_error_set(err, -ret, "memory: %s", strerror(-ret));
    }
    ret = build(m, err);
    if (ret < 0 && err && !err->text[0]) {
        base_error_set(err, -ret, "memory map: %s", strerror(-ret));
    }
    return ret;
}

/* Free all of it; nothing of it may be in use. Lock: none. Source: own. */
void machine_memory_free(struct machine *m)
{
    if (!m->memory) {
        return;
    }
    strata_begin(m->memory);
    if (m->memory_space) {
        strata_space_free(m->memory_space);
    }
    if (m->io_space) {
        strata_space_free(m->io_space);
    }
    while (m->region_count > 0) {
        strata_region_destroy(m->regions[--m->region_count]);
    }
    strata_commit(m->memory);
    if (m->ram) {
        strata_ram_unref(m->ram);
    }
    strata_memory_free(m->memory);
    m->memory = NULL;
}
