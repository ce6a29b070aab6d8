/*
 * The Linux boot protocol for a bzImage: setup header checked, zero page filled, kernel placed, 64-bit
 * entry. The payload is unpacked here when its packing is known and unpacking was not switched off: the
 * guest then starts at its vmlinux's own entry and never runs its unpacking code.
 *
 *   file: | setup sectors (header at 0x1f1) | protected-mode code, payload inside |
 *
 * Leaves out: protocols before 2.12 (no 64-bit entry) and 32-bit kernels.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "machine/loader.h"

/* Offsets in the setup header, which is also the zero page's. */
#define HDR_SETUP_SECTS    0x1f1u
#define HDR_JUMP           0x201u
#define HDR_MAGIC          0x202u
#define HDR_VERSION        0x206u
#define HDR_LOADER         0x210u
#define HDR_LOADFLAGS      0x211u
#define HDR_RAMDISK_IMAGE  0x218u
#define HDR_RAMDISK_SIZE   0x21cu
#define HDR_HEAP_END       0x224u
#define HDR_CMDLINE        0x228u
#define HDR_INITRD_MAX     0x22cu
#define HDR_XLOADFLAGS     0x236u
#define HDR_CMDLINE_SIZE   0x238u
#define HDR_PAYLOAD_OFFSET 0x248u
#define HDR_PAYLOAD_LENGTH 0x24cu
#define HDR_PREF_ADDRESS   0x258u
#define HDR_INIT_SIZE      0x260u
#define HDR_END            0x268u
#define ZP_RSDP            0x070u
#define ZP_E820_COUNT      0x1e8u
#define ZP_E820            0x2d0u

#define LOADFLAGS_HIGH 0x01u
#define LOADFLAGS_HEAP 0x80u
#define XLF_KERNEL_64  0x01u
#define VERSION_64     0x20cu
#define VMLINUX_MAX    (UINT32_C(1) << 30)

struct linux_head {
    const uint8_t *h;    /* the file from its beginning */
    uint64_t code;       /* offset of the protected-mode part */
    uint64_t code_size;
    uint64_t pref_address;
    uint32_t init_size, payload_offset, payload_length, cmdline_size, initrd_max;
};

static uint16_t get16(const uint8_t *p)
{
    return p[0] | p[1] << 8;
}

static uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}

static void put32(uint8_t *p, uint32_t v)
{
    memcpy(p, &v, sizeof(v));
}

static int read_head(const struct machine_image *image, struct linux_head *l, struct base_error *err)
{
    const uint8_t *h = image->data;
    unsigned sectors;

    if (image->size < HDR_END || get32(h + HDR_MAGIC) != UINT32_C(0x53726448)) {
        return base_error_set(err, ENOEXEC, "not a kernel: neither bzImage, nor ELF, nor Multiboot");
    }
    if (get16(h + HDR_VERSION) < VERSION_64 || !(get16(h + HDR_XLOADFLAGS) & XLF_KERNEL_64) ||
        !(h[HDR_LOADFLAGS] & LOADFLAGS_HIGH)) {
        return base_error_set(err, ENOEXEC, "a bzImage without a 64-bit entry (boot protocol %u.%02u)",
                              h[HDR_VERSION + 1], h[HDR_VERSION]);
    }
    sectors = h[HDR_SETUP_SECTS] ? h[HDR_SETUP_SECTS] : 4;
    l->h = h;
    l->code = (sectors + 1) * UINT64_C(512);
    if (l->code + 0x400 > image->size) {
        return base_error_set(err, ENOEXEC, "truncated bzImage: its code lies beyond the file's end");
    }
    l->code_size = image->size - l->code;
    l->pref_address = get32(h + HDR_PREF_ADDRESS) | (uint64_t)get32(h + HDR_PREF_ADDRESS + 4) << 32;
    l->init_size = get32(h + HDR_INIT_SIZE);
    l->payload_offset = get32(h + HDR_PAYLOAD_OFFSET);
    l->payload_length = get32(h + HDR_PAYLOAD_LENGTH);
    l->cmdline_size = get32(h + HDR_CMDLINE_SIZE);
    l->initrd_max = get32(h + HDR_INITRD_MAX);
    if (l->payload_offset > l->code_size || l->payload_length > l->code_size - l->payload_offset) {
        return base_error_set(err, ENOEXEC, "truncated bzImage: its payload lies beyond the file's end");
    }
    return 0;
}

/* The unpacked kernel, placed. 0; -ENOTSUP: cannot be unpacked here; else an error. */
static int place_unpacked(struct machine_kernel *k, const struct linux_head *l,
                          const struct machine_ram *ram, struct accel_boot_state *cpu,
                          struct base_error *err)
{
    const uint8_t *payload = l->h + l->code + l->payload_offset;
    struct machine_image vmlinux = {NULL, 0};
    struct machine_elf elf;
    uint32_t length;
    int ret;

    if (l->payload_length < 8) {
        return -ENOTSUP;
    }
    /* Kernel builds append the unpacked length (gzip's own trailer ends in it too). */
    length = get32(payload + l->payload_length - 4);
    if (length > VMLINUX_MAX) {
        return base_error_set(err, ENOEXEC, "bzImage: an unpacked kernel of %u bytes is too large", length);
    }
    ret = machine_unpack(&vmlinux, payload, l->payload_length, length, err);
    if (ret < 0) {
        return ret;
    }
    if (!machine_elf_is(&vmlinux)) {
        machine_image_free(&vmlinux);
        return -ENOTSUP;
    }
    ret = machine_elf_load(&vmlinux, ram, &elf, err);
    if (ret == 0) {
        cpu->rip = elf.entry_phys;
        k->kernel_end = elf.high;
        snprintf(k->how, sizeof(k->how), "bzImage, %zu bytes unpacked on the host, 64-bit entry 0x%llx",
                 vmlinux.size, (unsigned long long)cpu->rip);
    }
    machine_image_free(&vmlinux);
    return ret;
}

static int place_packed(struct machine_kernel *k, const struct linux_head *l, const struct machine_ram *ram,
                        struct accel_boot_state *cpu, struct base_error *err)
{
    uint64_t at = l->pref_address ? l->pref_address : MACHINE_HIGH_START;
    int ret = machine_ram_write(ram, gpa(at), l->h + l->code, l->code_size, err);

    if (ret == 0) {
        cpu->rip = at + 0x200;
        k->kernel_end = at + l->code_size;
        snprintf(k->how, sizeof(k->how), "bzImage, unpacks itself, 64-bit entry 0x%llx",
                 (unsigned long long)cpu->rip);
    }
    return ret;
}

static int place_kernel(struct machine_kernel *k, const struct linux_head *l, const struct machine_ram *ram,
                        struct accel_boot_state *cpu, struct base_error *err)
{
    int ret = machine_ram_check(ram, gpa(l->pref_address), l->init_size, "the kernel", err);

    if (ret < 0) {
        return ret;
    }
    ret = k->unpack ? place_unpacked(k, l, ram, cpu, err) : -ENOTSUP;
    if (ret == -ENOTSUP) {
        ret = place_packed(k, l, ram, cpu, err);
    }
    if (ret == 0 && l->pref_address + l->init_size > k->kernel_end) {
        k->kernel_end = l->pref_address + l->init_size;
    }
    return ret;
}

static int write_cmdline(struct machine_kernel *k, const struct linux_head *l,
                         const struct machine_ram *ram, struct base_error *err)
{
    size_t length = strlen(k->append);
    size_t max = l->cmdline_size && l->cmdline_size < MACHINE_CMDLINE_MAX ? l->cmdline_size
                                                                          : MACHINE_CMDLINE_MAX - 1;

    if (length > max) {
        return base_error_set(err, EINVAL, "-append: %zu characters, the kernel takes at most %zu", length,
                              max);
    }
    return machine_ram_write(ram, gpa(MACHINE_CMDLINE), k->append, length + 1, err);
}

static void fill_zero_page(uint8_t *zp, const struct machine_kernel *k, const struct linux_head *l,
                           const struct machine_ram *ram)
{
    struct machine_e820_entry map[MACHINE_E820_MAX];
    unsigned n = machine_e820_fill(ram, map);
    size_t head = HDR_MAGIC + l->h[HDR_JUMP];

    memset(zp, 0, PAGE_SIZE);
    head = head > HDR_END ? head : HDR_END;
    head = head < ZP_E820 ? head : ZP_E820;
    memcpy(zp + HDR_SETUP_SECTS, l->h + HDR_SETUP_SECTS, head - HDR_SETUP_SECTS);
    zp[HDR_LOADER] = 0xff;
    zp[HDR_LOADFLAGS] |= LOADFLAGS_HIGH | LOADFLAGS_HEAP;
    put32(zp + HDR_HEAP_END, 0xfe00);
    put32(zp + HDR_CMDLINE, MACHINE_CMDLINE);
    memcpy(zp + ZP_RSDP, &k->rsdp.v, sizeof(k->rsdp.v));
    memcpy(zp + ZP_E820, map, n * sizeof(map[0]));
    zp[ZP_E820_COUNT] = n;
}

/*
 * Load a bzImage with its initrd and command line.
 * k: how and kernel_end are set. cpu: filled for the first instruction.
 * Returns: 0; -ENOEXEC not such a kernel, or damaged; -ENOSPC does not fit; -EINVAL command line too long.
 * Lock: none; before the guest runs. Source: Documentation/arch/x86/boot.rst of Linux.
 */
int machine_linux_load(struct machine_kernel *k, const struct machine_ram *ram,
                       struct accel_boot_state *cpu, struct base_error *err)
{
    struct linux_head l = {0};
    uint8_t zp[4096];
    gpa_t initrd;
    int ret = read_head(k->kernel, &l, err);

    if (ret == 0) {
        ret = place_kernel(k, &l, ram, cpu, err);
    }
    if (ret == 0) {
        ret = write_cmdline(k, &l, ram, err);
    }
    if (ret == 0) {
        ret = machine_initrd_place(ram, k->initrd, k->kernel_end,
                                   (uint64_t)(l.initrd_max ? l.initrd_max : 0x37ffffff) + 1, err, &initrd);
    }
    if (ret < 0) {
        return ret;
    }
    fill_zero_page(zp, k, &l, ram);
    put32(zp + HDR_RAMDISK_IMAGE, (uint32_t)initrd.v);
    put32(zp + HDR_RAMDISK_SIZE, initrd.v ? (uint32_t)k->initrd->size : 0);
    ret = machine_ram_write(ram, gpa(MACHINE_ZERO_PAGE), zp, sizeof(zp), err);
    cpu->rsi = MACHINE_ZERO_PAGE;
    cpu->rsp = MACHINE_ZERO_PAGE;
    return ret < 0 ? ret : machine_boot_long64(ram, cpu, err);
}
