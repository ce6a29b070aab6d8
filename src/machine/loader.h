/*
 * Shared by the kernel loaders: what they are given (files read whole, a command line), where they may
 * write (guest RAM through one checked function), and what they leave behind (first registers).
 *
 * Flow: machine_kernel_load() looks at the image and calls the loader of its kind; the loader writes
 * RAM and fills struct accel_boot_state. Guest RAM is all zero when loading begins, unless is_used says
 * otherwise, so parts of a segment beyond its file bytes mostly need no write.
 * Everything in an image is untrusted: each offset and size is checked against the file and the RAM.
 */
#ifndef STRATA_MACHINE_LOADER_H
#define STRATA_MACHINE_LOADER_H

#include <stddef.h>
#include <stdint.h>

#include "accel/cpu.h"
#include "base/addr.h"
#include "base/error.h"

/* Low memory that the boot protocols use, below what any of them loads:
 *   0x0500 GDT    0x1000 start info, memory map    0x7000 zero page
 *   0x9000 PML4   0xa000 PDPT   0xb000..0xefff four page directories   0x20000 command line */
#define MACHINE_GDT_ADDR       UINT64_C(0x500)
#define MACHINE_START_INFO     UINT64_C(0x1000)
#define MACHINE_ZERO_PAGE      UINT64_C(0x7000)
#define MACHINE_PAGE_TABLES    UINT64_C(0x9000)
#define MACHINE_CMDLINE        UINT64_C(0x20000)
#define MACHINE_CMDLINE_MAX    2048u
#define MACHINE_LOW_END        UINT64_C(0x9fc00) /* of conventional memory */
#define MACHINE_HIGH_START     UINT64_C(0x100000)
#define MACHINE_FIRMWARE_START UINT64_C(0xe0000) /* reserved up to 1 MiB; ACPI tables live here */

struct machine_image {
    uint8_t *data;
    size_t size;
};

struct machine_ram {
    uint64_t below_4g, above_4g; /* bytes from 0, bytes from 4 GiB */
    /* Write [addr, addr+length), which machine_ram_write() has found to be RAM. 0 or -errno. */
    int (*write)(void *opaque, gpa_t addr, const void *data, size_t length);
    void *opaque;
    int is_used; /* may hold old contents (a file), so that what must be zero is to be written */
};

struct machine_kernel {
    const struct machine_image *kernel, *initrd; /* initrd: NULL when none */
    const char *kernel_name, *initrd_arg;        /* as given; modules of Multiboot come from initrd_arg */
    const char *append;                          /* never NULL */
    gpa_t rsdp;
    int unpack; /* unpack a bzImage's payload on the host side */
    /* Outcome, for the report. */
    char how[128];
    uint64_t kernel_end; /* gpa after the last byte of the kernel, bss included */
};

struct machine_e820_entry {
    uint64_t addr, size;
    uint32_t type;
} __attribute__((packed));

#define MACHINE_E820_RAM      1u
#define MACHINE_E820_RESERVED 2u
#define MACHINE_E820_MAX      8u

/* e820.c */
unsigned machine_e820_fill(const struct machine_ram *ram, struct machine_e820_entry *out);

/* ram.c */
int machine_ram_check(const struct machine_ram *ram, gpa_t addr, uint64_t length, const char *what,
                      struct base_error *err) must_check;
int machine_ram_write(const struct machine_ram *ram, gpa_t addr, const void *data, size_t length,
                      struct base_error *err) must_check;

/* Make [addr, addr+length) zero; costs nothing where RAM is fresh. */
int machine_ram_zero(const struct machine_ram *ram, gpa_t addr, uint64_t length,
                     struct base_error *err) must_check;

/* image.c: read a file whole; name: for messages; max: refuse what is larger. */
int machine_image_read(struct machine_image *out, const char *path, uint64_t max,
                       struct base_error *err) must_check;
void machine_image_free(struct machine_image *image);

/* unpack.c: the packed bytes of src, at most max when unpacked; -ENOTSUP: no known format. */
int machine_unpack(struct machine_image *out, const uint8_t *src, size_t size, size_t max,
                   struct base_error *err) must_check;

/* elf.c */
struct machine_elf {
    uint64_t entry;      /* as the header says */
    uint64_t entry_phys; /* the same after the segment's vaddr -> paddr; entry where no segment holds it */
    uint64_t low, high;  /* physical extent of the segments, [low, high) */
    uint32_t pvh_entry;  /* 0: no PVH note */
    int is_64;
};
int machine_elf_is(const struct machine_image *image);
int machine_elf_load(const struct machine_image *image, const struct machine_ram *ram,
                     struct machine_elf *out, struct base_error *err) must_check;

/* tables.c: descriptor table and identity page tables in low memory, and the registers that use them. */
int machine_boot_long64(const struct machine_ram *ram, struct accel_boot_state *cpu,
                        struct base_error *err) must_check;
int machine_boot_prot32(const struct machine_ram *ram, struct accel_boot_state *cpu,
                        struct base_error *err) must_check;

/* initrd.c: as high below `limit` as it fits above `floor`; *addr = 0 when there is none. */
int machine_initrd_place(const struct machine_ram *ram, const struct machine_image *initrd, uint64_t floor,
                         uint64_t limit, struct base_error *err, gpa_t *addr) must_check;

/* The loaders. Each: 0 with cpu filled; -errno with one line in err. */
int machine_linux_load(struct machine_kernel *k, const struct machine_ram *ram,
                       struct accel_boot_state *cpu, struct base_error *err) must_check;
int machine_pvh_load(struct machine_kernel *k, const struct machine_ram *ram,
                     struct accel_boot_state *cpu, struct base_error *err) must_check;
int machine_multiboot_is(const struct machine_image *image);
int machine_multiboot_load(struct machine_kernel *k, const struct machine_ram *ram,
                           struct accel_boot_state *cpu, struct base_error *err) must_check;
/* kernel.c: whichever of them the image wants. */
int machine_kernel_load(struct machine_kernel *k, const struct machine_ram *ram,
                        struct accel_boot_state *cpu, struct base_error *err) must_check;

#endif
