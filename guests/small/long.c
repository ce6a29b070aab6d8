/* Long mode: integer arithmetic, flags, shifts, bit scans, string instructions, locked updates, 64-bit
 * addressing. Each result depends on all operands of a loop, and is printed. */
#include "lib.h"

static uint64_t mix(uint64_t x)
{
    x ^= x << 13;
    x ^= x >> 7;
    return x ^ x << 17;
}

static uint64_t arithmetic(void)
{
    uint64_t x = 0x9e3779b97f4a7c15, sum = 0;
    int i;

    for (i = 0; i < 200; i++) {
        uint64_t y = mix(x), hi, lo, q, r;

        __asm__("mulq %3" : "=a"(lo), "=d"(hi) : "a"(x), "r"(y) : "cc");
        __asm__("divq %4" : "=a"(q), "=d"(r) : "a"(lo), "d"(hi % (y | 1)), "r"(y | 1) : "cc");
        sum += lo ^ hi ^ q * 3 ^ r;
        x = y;
    }
    return sum;
}

static uint64_t flags_after(void)
{
    uint64_t x = 1, sum = 0, f;
    int i;

    for (i = 0; i < 64; i++) {
        __asm__ volatile("cmpq %1, %2; pushfq; popq %0" : "=r"(f) : "r"(x), "r"(sum) : "cc");
        sum = sum * 31 + (f & 0x8d5);
        __asm__ volatile("adcq %2, %0; rclq $7, %0; sbbq %1, %0; pushfq; popq %1"
                         : "+r"(x), "=&r"(f)
                         : "r"(sum)
                         : "cc");
        sum = sum * 31 + (f & 1);
    }
    return sum;
}

static uint64_t shifts(void)
{
    uint64_t x = 0x123456789abcdef1, sum = 0, at;
    int i;

    for (i = 1; i < 64; i++) {
        uint64_t a = x, b = x, c = x;

        __asm__("shldq %%cl, %1, %0" : "+r"(a) : "r"(~x), "c"(i) : "cc");
        __asm__("sarq %%cl, %0" : "+r"(b) : "c"(i) : "cc");
        __asm__("rorw %%cl, %w0" : "+r"(c) : "c"(i) : "cc");
        __asm__("bsfq %1, %0" : "=r"(at) : "r"(x << i) : "cc");
        sum = sum * 5 + (a ^ b ^ c) + at;
        __asm__("bsrq %1, %0" : "=r"(at) : "r"(x >> i) : "cc");
        __asm__("bswapq %0" : "+r"(sum));
        sum += at;
    }
    return sum;
}

static char from[512], to[512];

static uint64_t strings(void)
{
    uint64_t n, sum = 0;
    char *d, *s;
    int i;

    for (i = 0; i < 512; i++) {
        from[i] = i * 7;
    }
    s = from;
    d = to;
    n = 512;
    __asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
    d = to + 256;
    n = 16;
    __asm__ volatile("rep stosq" : "+D"(d), "+c"(n) : "a"(0x1122334455667788) : "memory");
    s = from;
    d = to;
    n = 512;
    __asm__ volatile("repe cmpsb" : "+S"(s), "+D"(d), "+c"(n) : : "memory", "cc");
    sum = n;
    d = to;
    n = 512;
    __asm__ volatile("repne scasb" : "+D"(d), "+c"(n) : "a"(0x77) : "memory", "cc");
    for (i = 0; i < 512; i++) {
        sum = sum * 33 + (uint8_t)to[i];
    }
    return sum * 1000 + n;
}

static uint64_t locked(void)
{
    static uint64_t v[2];
    uint64_t old = 5, sum = 0;
    int i;

    for (i = 0; i < 100; i++) {
        uint64_t expected = i & 1 ? v[0] : ~v[0];

        __asm__ volatile("lock xaddq %0, %1" : "+r"(old), "+m"(v[0]) : : "memory", "cc");
        __asm__ volatile("lock cmpxchgq %2, %1" : "+a"(expected), "+m"(v[0]) : "r"(old * 3) : "memory", "cc");
        __asm__ volatile("lock btsq %1, %0" : "+m"(v[1]) : "r"((uint64_t)(i & 63)) : "memory", "cc");
        sum = sum * 7 + expected + v[1];
    }
    return sum;
}

int guest_main(uint32_t information)
{
    uint64_t cs;

    __asm__("mov %%cs, %0" : "=r"(cs));
    print("long mode guest\n");
    show("cs", cs);
    show("efer.lma", rdmsr(0xc0000080) >> 10 & 1);
    show("arithmetic", arithmetic());
    show("flags", flags_after());
    show("shifts", shifts());
    show("strings", strings());
    show("locked", locked());
    print("long: done\n");
    return 0;
}
