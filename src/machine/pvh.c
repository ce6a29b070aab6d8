/*
 * ELF kernels that carry Xen's PVH note: 32-bit entry, EBX points at the start info, which names command
 * line, modules, RSDP and memory map. All of it lives in the page at MACHINE_START_INFO.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "machine/loader.h"

#define START_MAGIC UINT32_C(0x336ec578)

struct pvh_start_info {
    uint32_t magic, version, flags, nr_modules;
    uint64_t modules, cmdline, rsdp, memmap;
    uint32_t memmap_entries, reserved;
};

struct pvh_module {
    uint64_t addr, size, cmdline, reserved;
};

struct pvh_memmap {
    uint64_t addr, size;
    uint32_t type, reserved;
};

struct pvh_page {
    struct pvh_start_info info;
    struct pvh_module module;
    struct pvh_memmap map[MACHINE_E820_MAX];
};

static_assert(sizeof(struct pvh_start_info) == 56 && sizeof(struct pvh_module) == 32 &&
                  sizeof(struct pvh_memmap) == 24,
              "layouts of the PVH start info");

static void fill_page(struct pvh_page *p, const struct machine_kernel *k, const struct machine_ram *ram,
                      gpa_t initrd)
{
    struct machine_e820_entry map[MACHINE_E820_MAX];
    unsigned i, n = machine_e820_fill(ram, map);

    memset(p, 0, sizeof(*p));
    p->info.magic = START_MAGIC;
    p->info.version = 1;
    p->info.cmdline = MACHINE_CMDLINE;
    p->info.rsdp = k->rsdp.v;
    p->info.memmap = MACHINE_START_INFO + offsetof(struct pvh_page, map);
    p->info.memmap_entries = n;
    if (initrd.v) {
        p->info.nr_modules = 1;
        p->info.modules = MACHINE_START_INFO + offsetof(struct pvh_page, module);
        p->module.addr = initrd.v;
        p->module.size = k->initrd->size;
    }
    for (i = 0; i < n; i++) {
        p->map[i] = (struct pvh_memmap){map[i].addr, map[i].size, map[i].type, 0};
    }
}

/*
 * Load an ELF kernel by its PVH entry.
 * Returns: 0; -ENOEXEC no such note, or a damaged file; -ENOSPC; -EINVAL command line too long.
 * Lock: none; before the guest runs. Source: Xen's PVH boot ABI (hvm_start_info).
 */
int machine_pvh_load(struct machine_kernel *k, const struct machine_ram *ram, struct accel_boot_state *cpu,
                     struct base_error *err)
{
    struct machine_elf elf;
    struct pvh_page page;
    gpa_t initrd;
    int ret = machine_elf_load(k->kernel, ram, &elf, err);

    if (ret < 0) {
        return ret;
    }
    if (!elf.pvh_entry) {
        return base_error_set(err, ENOEXEC, "an ELF file with neither a PVH note nor a Multiboot header");
    }
    if (strlen(k->append) >= MACHINE_CMDLINE_MAX) {
        return base_error_set(err, EINVAL, "-append: longer than %u characters", MACHINE_CMDLINE_MAX - 1);
    }
    k->kernel_end = elf.high;
    snprintf(k->how, sizeof(k->how), "ELF, PVH entry 0x%x", elf.pvh_entry);
    ret = machine_initrd_place(ram, k->initrd, elf.high, UINT64_C(0x80000000), err, &initrd);
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(MACHINE_CMDLINE), k->append, strlen(k->append) + 1, err);
    }
    if (ret < 0) {
        return ret;
    }
    fill_page(&page, k, ram, initrd);
    ret = machine_ram_write(ram, gpa(MACHINE_START_INFO), &page, sizeof(page), err);
    cpu->rip = elf.pvh_entry;
    cpu->rbx = MACHINE_START_INFO;
    return ret < 0 ? ret : machine_boot_prot32(ram, cpu, err);
}
