/* Memory-mapped devices: the local APIC's and the I/O APIC's registers, and places where nothing is. */
#include "lib.h"

#define LAPIC  UINT64_C(0xfee00000)
#define IOAPIC UINT64_C(0xfec00000)
#define HOLE   UINT64_C(0xe0000000)

static uint32_t ioapic_read(unsigned reg)
{
    mmio_write(IOAPIC, reg);
    return mmio_read(IOAPIC + 0x10);
}

static void ioapic_write(unsigned reg, uint32_t value)
{
    mmio_write(IOAPIC, reg);
    mmio_write(IOAPIC + 0x10, value);
}

int guest_main(uint32_t information)
{
    uint64_t sum = 0;
    int i;

    print("mmio guest\n");
    show("apic base enabled", rdmsr(0x1b) >> 11 & 1);
    show("lapic id", mmio_read(LAPIC + 0x20) >> 24);
    show("lapic version", mmio_read(LAPIC + 0x30) & 0xff);
    mmio_write(LAPIC + 0xf0, 0x1ff);
    show("spurious", mmio_read(LAPIC + 0xf0) & 0x1ff);
    mmio_write(LAPIC + 0x80, 0x50);
    show("priority", mmio_read(LAPIC + 0x80));
    mmio_write(LAPIC + 0x80, 0);
    show("ioapic pins", (ioapic_read(1) >> 16 & 0xff) + 1);
    ioapic_write(0x12, 0x10031);
    show("redirection", ioapic_read(0x12));
    ioapic_write(0x12, 0x10000);
    show("hole 4", mmio_read(HOLE));
    mmio_write(HOLE + 8, 0x12345678);
    show("hole written", mmio_read(HOLE + 8));
    show("hole 1", *(volatile uint8_t *)(HOLE + 3));
    show("hole 2", *(volatile uint16_t *)(HOLE + 6));
    show("hole 8", *(volatile uint64_t *)(HOLE + 16));
    for (i = 0; i < 1000; i++) {
        sum = sum * 3 + mmio_read(LAPIC + 0x30) % 0x100 + mmio_read(HOLE + i % 64 * 4);
    }
    show("thousand reads", sum);
    print("mmio: done\n");
    return 0;
}
