/*
 * The descriptor table and the identity page tables that the boot protocols want to find:
 *   GDT: 0 null, 8 null, 0x10 code (64- or 32-bit), 0x18 data, 0x20 task state
 *   page tables: 4 GiB with 2 MiB pages, one PML4, one PDPT, four directories
 */
#include "machine/loader.h"

#define PTE_PRESENT 0x1u
#define PTE_WRITE   0x2u
#define PTE_LARGE   0x80u
#define PAGE_2M     (UINT64_C(2) << 20)

#define GDT_CODE64 UINT64_C(0x00af9b000000ffff)
#define GDT_CODE32 UINT64_C(0x00cf9b000000ffff)
#define GDT_DATA   UINT64_C(0x00cf93000000ffff)
#define GDT_TSS    UINT64_C(0x00008b0000000067)

static int write_gdt(const struct machine_ram *ram, struct accel_boot_state *cpu, uint64_t code,
                     struct base_error *err)
{
    uint64_t gdt[5] = {0, 0, code, GDT_DATA, GDT_TSS};

    cpu->gdt_base = MACHINE_GDT_ADDR;
    cpu->gdt_limit = sizeof(gdt) - 1;
    cpu->code = 0x10;
    cpu->data = 0x18;
    return machine_ram_write(ram, gpa(MACHINE_GDT_ADDR), gdt, sizeof(gdt), err);
}

/*
 * Long mode with the first 4 GiB mapped as they are.
 * cpu: mode, cr3 and descriptors are set. Returns: 0 or -ENOSPC. Lock: none. Source: Linux boot protocol, 64-bit.
 */
int machine_boot_long64(const struct machine_ram *ram, struct accel_boot_state *cpu, struct base_error *err)
{
    uint64_t table[512] = {0};
    unsigned d, i;
    int ret = write_gdt(ram, cpu, GDT_CODE64, err);

    cpu->mode = ACCEL_MODE_LONG64;
    cpu->cr3 = MACHINE_PAGE_TABLES;
    table[0] = (MACHINE_PAGE_TABLES + PAGE_SIZE) | PTE_PRESENT | PTE_WRITE;
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(MACHINE_PAGE_TABLES), table, sizeof(table), err);
    }
    for (d = 0; d < 4; d++) {
        table[d] = (MACHINE_PAGE_TABLES + (2 + d) * PAGE_SIZE) | PTE_PRESENT | PTE_WRITE;
    }
    if (ret == 0) {
        ret = machine_ram_write(ram, gpa(MACHINE_PAGE_TABLES + PAGE_SIZE), table, sizeof(table), err);
    }
    for (d = 0; ret == 0 && d < 4; d++) {
        for (i = 0; i < 512; i++) {
            table[i] = (d * 512 + i) * PAGE_2M | PTE_PRESENT | PTE_WRITE | PTE_LARGE;
        }
        ret = machine_ram_write(ram, gpa(MACHINE_PAGE_TABLES + (2 + d) * PAGE_SIZE), table,
                                sizeof(table), err);
    }
    return ret;
}

/* Flat protected mode without paging. As above. Source: PVH and Multiboot 1 machine states. */
int machine_boot_prot32(const struct machine_ram *ram, struct accel_boot_state *cpu, struct base_error *err)
{
    cpu->mode = ACCEL_MODE_PROT32;
    return write_gdt(ram, cpu, GDT_CODE32, err);
}
