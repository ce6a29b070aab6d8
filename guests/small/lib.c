/* The part of lib.h that has state: the interrupt table and the end. */
#include "lib.h"

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_mid;
    uint32_t offset_high, zero;
};

static struct gate idt[256];

void guest_exit(int status)
{
    outl(EXIT_PORT, status);
    for (;;) {
        __asm__ volatile("cli; hlt");
    }
}

void idt_set(unsigned vector, void (*entry)(void))
{
    uint64_t addr = (uint64_t)entry;

    idt[vector] = (struct gate){.offset_low = addr,
                                .selector = 8,
                                .type = 0x8e,
                                .offset_mid = addr >> 16,
                                .offset_high = addr >> 32};
}

void idt_load(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof(idt) - 1, (uint64_t)idt};

    __asm__ volatile("lidt %0" : : "m"(pointer));
}

unsigned cmdline_number(uint32_t information, const char *key, unsigned fallback)
{
    const uint32_t *info = (const uint32_t *)(uint64_t)information;
    const char *p = (const char *)(uint64_t)info[4];

    if (!(info[0] & 4)) {
        return fallback;
    }
    for (; *p; p++) {
        const char *k = key, *q = p;
        unsigned n = 0;

        while (*k && *k == *q) {
            k++;
            q++;
        }
        if (*k || *q != '=') {
            continue;
        }
        for (q++; *q >= '0' && *q <= '9'; q++) {
            n = n * 10 + (*q - '0');
        }
        return n;
    }
    return fallback;
}

void *memset(void *to, int c, size_t n)
{
    uint8_t *p = to;

    while (n-- > 0) {
        *p++ = c;
    }
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    uint8_t *p = to;
    const uint8_t *q = from;

    while (n-- > 0) {
        *p++ = *q++;
    }
    return to;
}
