/*
 * The benchmark guest: loops of plain code, memory and memory management on a bare processor in long
 * mode. For each it prints, on the serial port,
 *
 *     start NAME N
 *     bench NAME N TICKS
 *
 * where TICKS are of the time-stamp counter; who runs it may time the distance of the two lines
 * instead. N grows until a loop takes long enough. "bench end" is last, then the guest leaves through
 * isa-debug-exit or, where there is none, Bochs's shutdown port.
 *
 * Command line: only=NAME runs one loop; ticks=N is how many a loop must take (default 500,000,000).
 * Needs 2 GiB of RAM.
 */
#include <stddef.h>
#include <stdint.h>

#define PAGE        4096ull
#define TABLES      0x02000000ull /* page tables of the 4 KiB window */
#define CHASE       0x10000000ull /* 256 MiB for pointer chasing and streams */
#define FRESH       0x20000000ull /* 1 GiB mapped by 4 KiB pages at WINDOW, absent at first */
#define FRESH_BYTES 0x40000000ull
#define WINDOW      0x8000000000ull /* second entry of the top table */
#define MIN_TICKS   500000000ull

extern uint64_t pml4[512];
extern char page_fault_entry[], int80_entry[];
void fault_once(volatile void *p);
void bench_main(uint32_t info);

struct loop {
    const char *name;
    /* Run n operations; for once-only loops n is given by `once`. */
    void (*run)(uint64_t n);
    uint64_t once;
};

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;

    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint64_t rdtsc(void)
{
    uint32_t lo, hi;

    __asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi) : : "memory");
    return (uint64_t)hi << 32 | lo;
}

static inline uint64_t read_cr3(void)
{
    uint64_t v;

    __asm__ volatile("mov %%cr3, %0" : "=r"(v));
    return v;
}

static inline void write_cr3(uint64_t v)
{
    __asm__ volatile("mov %0, %%cr3" : : "r"(v) : "memory");
}

static inline void invlpg(uint64_t va)
{
    __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}

/* 115,200 baud, 8 bits: a real UART, and Bochs's, begins with 5. */
static void serial_set_up(void)
{
    outb(0x3fb, 0x83);
    outb(0x3f8, 1);
    outb(0x3f9, 0);
    outb(0x3fb, 3);
}

static void put(char c)
{
    while (!(inb(0x3fd) & 0x20)) {
    }
    outb(0x3f8, (uint8_t)c);
}

static void print(const char *s)
{
    for (; *s; s++) {
        put(*s);
    }
}

static void print_number(uint64_t v)
{
    char digits[21];
    int i = 20;

    digits[20] = 0;
    do {
        digits[--i] = (char)('0' + v % 10);
        v /= 10;
    } while (v);
    put(' ');
    print(digits + i);
}

static uint64_t *window_entry(uint64_t page)
{
    return (uint64_t *)(TABLES + 2 * PAGE) + page;
}

/* WINDOW maps FRESH by 4 KiB pages: one directory, 512 tables. */
static void map_window(void)
{
    uint64_t *pdpt = (uint64_t *)TABLES, *pd = (uint64_t *)(TABLES + PAGE);

    for (int i = 0; i < 512; i++) {
        pdpt[i] = 0;
        pd[i] = (TABLES + 2 * PAGE + (uint64_t)i * PAGE) | 3;
    }
    for (uint64_t i = 0; i < FRESH_BYTES / PAGE; i++) {
        *window_entry(i) = (FRESH + i * PAGE) | 3;
    }
    pdpt[0] = (TABLES + PAGE) | 3;
    pml4[1] = TABLES | 3;
    write_cr3(read_cr3());
}

static void set_gate(int vector, void *entry)
{
    static uint64_t idt[512] __attribute__((aligned(16)));
    static struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer;
    uint64_t addr = (uint64_t)entry;

    idt[vector * 2] = (addr & 0xffff) | 8ull << 16 | 0x8e00ull << 32 | (addr >> 16 & 0xffff) << 48;
    idt[vector * 2 + 1] = addr >> 32;
    pointer.limit = sizeof(idt) - 1;
    pointer.base = (uint64_t)idt;
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

static void run_alu(uint64_t n)
{
    uint64_t a = 1, b = 2, c = 3, d = 4;

    /* Ten instructions a turn, the branch included. */
    for (uint64_t i = n / 10; i; i--) {
        __asm__ volatile("add %1, %0\n\txor %2, %1\n\tadd %3, %2\n\tsub %0, %3\n\t"
                         "and %1, %0\n\tor %2, %1\n\tadd $7, %2\n\txor %0, %3\n\t"
                         : "+r"(a), "+r"(b), "+r"(c), "+r"(d));
    }
}

static void run_call(uint64_t n)
{
    for (; n; n--) {
        __asm__ volatile("call 1f\n\tjmp 2f\n1:\tret\n2:" : : : "memory");
    }
}

static void run_load(uint64_t n)
{
    volatile uint64_t *p = (volatile uint64_t *)CHASE;
    uint64_t sum = 0;

    for (uint64_t i = 0; i < n; i += 4) {
        volatile uint64_t *q = p + (i & 0x1fff);

        sum += q[0] + q[1] + q[2] + q[3];
    }
    __asm__ volatile("" : : "r"(sum));
}

static void run_store(uint64_t n)
{
    volatile uint64_t *p = (volatile uint64_t *)CHASE;

    for (uint64_t i = 0; i < n; i += 4) {
        volatile uint64_t *q = p + (i & 0x1fff);

        q[0] = i;
        q[1] = i;
        q[2] = i;
        q[3] = i;
    }
}

static void run_stosq(uint64_t n)
{
    for (uint64_t done = 0; done < n; done += 8192) {
        uint64_t count = 8192, to = CHASE;

        __asm__ volatile("rep stosq" : "+c"(count), "+D"(to) : "a"(done) : "memory");
    }
}

static void run_movsq(uint64_t n)
{
    for (uint64_t done = 0; done < n; done += 8192) {
        uint64_t count = 8192, to = CHASE + 0x100000, from = CHASE;

        __asm__ volatile("rep movsq" : "+c"(count), "+D"(to), "+S"(from) : : "memory");
    }
}

/* A ring of pointers a cache line apart over `bytes`, in an order that no prefetcher guesses. */
static void chase(uint64_t bytes, uint64_t n)
{
    uint64_t lines = bytes / 64, at = 0;
    volatile uint64_t *p = (volatile uint64_t *)CHASE;
    static uint64_t built;

    if (built != bytes) {
        for (uint64_t i = 0; i < lines; i++) {
            uint64_t next = (at * 1664525 + 1013904223) & (lines - 1);

            p[at * 8] = CHASE + next * 64;
            at = next;
        }
        built = bytes;
    }
    for (; n; n--) {
        p = (volatile uint64_t *)*p;
    }
}

static void run_chase_16k(uint64_t n)
{
    chase(16 << 10, n);
}

static void run_chase_1m(uint64_t n)
{
    chase(1 << 20, n);
}

static void run_chase_256m(uint64_t n)
{
    chase(256 << 20, n);
}

static void run_touch(uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        *(volatile uint64_t *)(WINDOW + (i & (FRESH_BYTES / PAGE - 1)) * PAGE + 64) = i;
    }
}

static void run_map_unmap(uint64_t n)
{
    uint64_t *entry = window_entry(FRESH_BYTES / PAGE - 1), old = *entry;
    uint64_t va = WINDOW + FRESH_BYTES - PAGE;

    for (; n; n--) {
        *(volatile uint64_t *)entry = old;
        *(volatile uint64_t *)va = n;
        *(volatile uint64_t *)entry = 0;
        invlpg(va);
    }
    *entry = old;
}

static void run_cr3(uint64_t n)
{
    uint64_t cr3 = read_cr3();

    for (; n; n--) {
        write_cr3(cr3);
    }
}

static void run_cr3_touch(uint64_t n)
{
    uint64_t cr3 = read_cr3();

    for (; n; n--) {
        write_cr3(cr3);
        for (uint64_t i = 0; i < 64; i++) {
            *(volatile uint64_t *)(WINDOW + i * PAGE) = n;
        }
    }
}

static int has_pcid(void)
{
    uint32_t a = 1, b, c = 0, d;

    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return c >> 17 & 1;
}

static void run_pcid_touch(uint64_t n)
{
    uint64_t cr3 = read_cr3(), cr4;

    __asm__ volatile("mov %%cr4, %0" : "=r"(cr4));
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr4 | 1u << 17));
    for (; n; n--) {
        write_cr3(cr3 | (n & 1) | 1ull << 63);
        for (uint64_t i = 0; i < 64; i++) {
            *(volatile uint64_t *)(WINDOW + i * PAGE) = n;
        }
    }
    write_cr3(cr3);
    __asm__ volatile("mov %0, %%cr4" : : "r"(cr4));
}

static void run_page_fault(uint64_t n)
{
    set_gate(14, page_fault_entry);
    for (; n; n--) {
        fault_once((void *)(WINDOW + FRESH_BYTES));
    }
}

static void run_int80(uint64_t n)
{
    set_gate(0x80, int80_entry);
    for (; n; n--) {
        __asm__ volatile("int $0x80");
    }
}

static void run_patch(uint64_t n)
{
    /* mov $imm32, %eax; ret */
    volatile uint8_t *code = (volatile uint8_t *)(CHASE + 0x200000);
    uint32_t (*call)(void) = (uint32_t (*)(void))(uintptr_t)code;

    code[0] = 0xb8;
    code[5] = 0xc3;
    for (; n; n--) {
        *(volatile uint32_t *)(code + 1) = (uint32_t)n;
        if (call() != (uint32_t)n) {
            print("bench FAILED: stale code ran\n");
            return;
        }
    }
}

static void run_pio(uint64_t n)
{
    for (; n; n--) {
        outb(0x80, 0);
    }
}

static void run_mmio(uint64_t n)
{
    for (; n; n--) {
        (void)*(volatile uint32_t *)0xfec00000ull;
    }
}

static const struct loop loops[] = {
    {"alu", run_alu, 0},
    {"call_ret", run_call, 0},
    {"load", run_load, 0},
    {"store", run_store, 0},
    {"rep_stosq", run_stosq, 0},
    {"rep_movsq", run_movsq, 0},
    {"chase_16k", run_chase_16k, 0},
    {"chase_1m", run_chase_1m, 0},
    {"chase_256m", run_chase_256m, 0},
    {"first_touch", run_touch, FRESH_BYTES / PAGE},
    {"second_touch", run_touch, 0},
    {"map_unmap", run_map_unmap, 0},
    {"cr3", run_cr3, 0},
    {"cr3_touch64", run_cr3_touch, 0},
    {"pcid_touch64", run_pcid_touch, 0},
    {"page_fault", run_page_fault, 0},
    {"int80", run_int80, 0},
    {"patch_code", run_patch, 0},
    {"pio_out", run_pio, 0},
    {"ioapic_read", run_mmio, 0},
};

static uint64_t min_ticks = MIN_TICKS;

static uint64_t measure(const struct loop *loop, uint64_t n)
{
    uint64_t start;

    print("start ");
    print(loop->name);
    print_number(n);
    put('\n');
    start = rdtsc();
    loop->run(n);
    return rdtsc() - start;
}

static void run_loop(const struct loop *loop)
{
    uint64_t n = loop->once ? loop->once : 8192, ticks;

    if (!loop->once) {
        loop->run(0); /* what it needs built, outside the measurement */
    }
    for (;;) {
        ticks = measure(loop, n);
        if (loop->once || ticks >= min_ticks) {
            break;
        }
        n *= ticks < min_ticks / 16 ? 8 : 2;
    }
    print("bench ");
    print(loop->name);
    print_number(n);
    print_number(ticks);
    put('\n');
}

/* What follows `key` on the command line, or NULL. */
static const char *option(const char *cmdline, const char *key)
{
    for (const char *p = cmdline; *p; p++) {
        size_t n = 0;

        while (key[n] && p[n] == key[n]) {
            n++;
        }
        if (!key[n]) {
            return p + n;
        }
    }
    return NULL;
}

static int wanted(const char *cmdline, const char *name)
{
    const char *p = option(cmdline, "only=");

    if (!p) {
        return 1;
    }
    for (; *name && *p == *name; p++, name++) {
    }
    return !*name && (!*p || *p == ' ');
}

static void ticks_option(const char *cmdline)
{
    const char *p = option(cmdline, "ticks=");
    uint64_t v = 0;

    for (; p && *p >= '0' && *p <= '9'; p++) {
        v = v * 10 + (uint64_t)(*p - '0');
    }
    min_ticks = v ? v : MIN_TICKS;
}

void bench_main(uint32_t info)
{
    const uint32_t *mb = (const uint32_t *)(uintptr_t)info;
    const char *cmdline = mb[0] & 4 ? (const char *)(uintptr_t)mb[4] : "";

    serial_set_up();
    ticks_option(cmdline);
    map_window();
    for (size_t i = 0; i < sizeof(loops) / sizeof(loops[0]); i++) {
        if (!wanted(cmdline, loops[i].name) || (loops[i].run == run_pcid_touch && !has_pcid())) {
            continue;
        }
        run_loop(&loops[i]);
    }
    print("bench end\n");
    outb(0xf4, 0);
    for (const char *s = "Shutdown"; *s; s++) {
        outb(0x8900, (uint8_t)*s);
    }
}
