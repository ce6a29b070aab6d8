/* Interrupts: the local APIC's timer one by one and periodic, the PIT through the I/O APIC, halting until
 * one comes, and an exception in between. Prints counts, never times. */
#include "lib.h"

#define LAPIC  UINT64_C(0xfee00000)
#define IOAPIC UINT64_C(0xfec00000)

static volatile unsigned timers, pits, undefined, divisions;

void on_timer(uint64_t code, struct frame *f)
{
    timers++;
    mmio_write(LAPIC + 0xb0, 0);
}

void on_pit(uint64_t code, struct frame *f)
{
    pits++;
    mmio_write(LAPIC + 0xb0, 0);
}

void on_invalid_opcode(uint64_t code, struct frame *f)
{
    undefined++;
    f->rip += 2;
}

void on_divide_error(uint64_t code, struct frame *f)
{
    divisions++;
    f->rip += 3;
}

static void wait_for(volatile unsigned *what, unsigned n)
{
    while (*what < n) {
        __asm__ volatile("sti; hlt; cli");
    }
}

static void ioapic_write(unsigned reg, uint32_t value)
{
    mmio_write(IOAPIC, reg);
    mmio_write(IOAPIC + 0x10, value);
}

static void exceptions(void)
{
    __asm__ volatile("ud2");
    __asm__ volatile("xor %%edx, %%edx; mov $7, %%eax; xor %%ecx, %%ecx; div %%rcx"
                     :
                     :
                     : "rax", "rcx", "rdx", "cc");
    show("undefined opcodes", undefined);
    show("division errors", divisions);
}

int guest_main(uint32_t information)
{
    unsigned i;

    print("interrupt guest\n");
    idt_set(0, divide_error_entry);
    idt_set(6, invalid_opcode_entry);
    idt_set(0x40, timer_entry);
    idt_set(0x41, pit_entry);
    idt_load();
    exceptions();
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    mmio_write(LAPIC + 0xf0, 0x1ff);
    mmio_write(LAPIC + 0x3e0, 0xb);
    for (i = 1; i <= 5; i++) {
        mmio_write(LAPIC + 0x320, 0x40);
        mmio_write(LAPIC + 0x380, 100000);
        wait_for(&timers, i);
    }
    show("one-shot timers", timers);
    mmio_write(LAPIC + 0x320, 0x20040);
    mmio_write(LAPIC + 0x380, 200000);
    wait_for(&timers, 15);
    mmio_write(LAPIC + 0x320, 0x10040);
    show("periodic timers", timers >= 15);
    ioapic_write(0x15, 0);
    ioapic_write(0x14, 0x41);
    outb(0x43, 0x34);
    outb(0x40, 1193 & 0xff);
    outb(0x40, 1193 >> 8);
    wait_for(&pits, 5);
    ioapic_write(0x14, 0x10041);
    show("interval timer", pits >= 5);
    print("irq: done\n");
    return 0;
}
