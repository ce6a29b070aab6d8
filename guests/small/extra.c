/* What the software engine has beyond the common set: software interrupts in long mode, cmpxchg16b, SSE
 * moves and integer arithmetic, popcnt. Not for an engine that interprets without them. */
#include "lib.h"

static volatile unsigned interrupts;

void on_soft(uint64_t code, struct frame *f)
{
    interrupts++;
}

static uint64_t exchange16(void)
{
    static uint64_t pair[2] __attribute__((aligned(16)));
    uint64_t lo = 0, hi = 0, sum = 0;
    int i;

    for (i = 0; i < 20; i++) {
        uint8_t done;

        __asm__ volatile("lock cmpxchg16b %0; sete %1"
                         : "+m"(pair), "=q"(done), "+a"(lo), "+d"(hi)
                         : "b"(pair[0] + 3), "c"(pair[1] * 5 + 1)
                         : "memory", "cc");
        sum = sum * 3 + done + pair[1];
    }
    return sum + pair[0];
}

static uint64_t vectors(void)
{
    static uint8_t a[16] __attribute__((aligned(16))), b[16] __attribute__((aligned(16)));
    uint64_t low;
    int i;

    for (i = 0; i < 16; i++) {
        a[i] = i * 17;
        b[i] = 255 - i * 9;
    }
    __asm__ volatile("movdqa %1, %%xmm0\n"
                     "movdqa %2, %%xmm1\n"
                     "paddusb %%xmm1, %%xmm0\n"
                     "pmullw %%xmm1, %%xmm1\n"
                     "pxor %%xmm1, %%xmm0\n"
                     "pshufd $0x1b, %%xmm0, %%xmm0\n"
                     "movq %%xmm0, %0\n"
                     : "=r"(low)
                     : "m"(a), "m"(b)
                     : "memory");
    return low;
}

int guest_main(uint32_t information)
{
    uint64_t cr0, cr4, bits;

    print("extra guest\n");
    idt_set(0x80, soft_entry);
    idt_load();
    __asm__ volatile("int $0x80; int $0x80");
    show("software interrupts", interrupts);
    show("exchange16", exchange16());
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"((cr0 & ~UINT64_C(4)) | 2));
    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 0x600));
    show("vectors", vectors());
    __asm__("popcntq %1, %0" : "=r"(bits) : "r"(UINT64_C(0x123456789abcdef0)) : "cc");
    show("popcnt", bits);
    print("extra: done\n");
    return 0;
}
