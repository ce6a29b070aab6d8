/* Ports: every width, string forms, devices that answer and ports where nothing is. */
#include "lib.h"

static uint32_t pci_read(unsigned device, unsigned reg)
{
    outl(0xcf8, 0x80000000u | device << 11 | reg);
    return inl(0xcfc);
}

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void strings(void)
{
    static const char text[] = "written by rep outsb\n";
    const char *s = text;
    uint64_t n = sizeof(text) - 1;
    uint8_t in[4] = {1, 2, 3, 4};
    uint8_t *d = in;

    __asm__ volatile("rep outsb" : "+S"(s), "+c"(n) : "d"(SERIAL) : "memory");
    n = 4;
    outb(SERIAL + 7, 0x5a);
    __asm__ volatile("rep insb" : "+D"(d), "+c"(n) : "d"(SERIAL + 7) : "memory");
    show("rep insb", in[0] | in[1] << 8 | in[2] << 16 | (uint64_t)in[3] << 24);
}

static void timer(void)
{
    uint32_t first = inl(0x608), now;
    unsigned steps = 0, spins = 0;

    while (steps < 5 && spins < 10000000) {
        now = inl(0x608);
        steps += now != first;
        first = now;
        spins++;
    }
    show("timer steps", steps);
}

int guest_main(uint32_t information)
{
    print("port guest\n");
    show("nothing 1", inb(0x1234));
    show("nothing 2", inw(0x1234));
    show("nothing 4", inl(0x1234));
    outb(SERIAL + 7, 0xa5);
    show("scratch", inb(SERIAL + 7));
    outw(0x1234, 0xffff);
    show("host bridge", pci_read(0, 0));
    show("class", pci_read(0, 8) >> 16);
    show("empty slot", pci_read(30, 0));
    show("cmos base memory", cmos(0x15) | cmos(0x16) << 8);
    show("cmos valid", cmos(0x0d));
    strings();
    timer();
    print("port: done\n");
    return 0;
}
