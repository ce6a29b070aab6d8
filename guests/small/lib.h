/*
 * What the small guests share: ports, printing on the serial port, an interrupt table, the end. A guest
 * prints only what is the same on every engine, and returns 0 when it is content; the exit device at 0xf4
 * makes a status of it. No floating point, no cmpxchg16b, no `int n`, so that every engine can run them.
 */
#ifndef GUEST_LIB_H
#define GUEST_LIB_H

#include <stddef.h>
#include <stdint.h>

#define SERIAL    0x3f8
#define EXIT_PORT 0xf4

static inline void outb(uint16_t port, uint8_t v)
{
    __asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}

static inline void outw(uint16_t port, uint16_t v)
{
    __asm__ volatile("outw %0, %1" : : "a"(v), "Nd"(port));
}

static inline void outl(uint16_t port, uint32_t v)
{
    __asm__ volatile("outl %0, %1" : : "a"(v), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
    uint8_t v;

    __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint16_t inw(uint16_t port)
{
    uint16_t v;

    __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint32_t inl(uint16_t port)
{
    uint32_t v;

    __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
    return v;
}

static inline uint64_t rdmsr(uint32_t msr)
{
    uint32_t lo, hi;

    __asm__ volatile("rdmsr" : "=a"(lo), "=d"(hi) : "c"(msr));
    return (uint64_t)hi << 32 | lo;
}

static inline void wrmsr(uint32_t msr, uint64_t v)
{
    __asm__ volatile("wrmsr" : : "c"(msr), "a"((uint32_t)v), "d"((uint32_t)(v >> 32)));
}

static inline uint32_t mmio_read(uint64_t addr)
{
    return *(volatile uint32_t *)addr;
}

static inline void mmio_write(uint64_t addr, uint32_t v)
{
    *(volatile uint32_t *)addr = v;
}

static inline void put_char(char c)
{
    while (!(inb(SERIAL + 5) & 0x20)) {
    }
    outb(SERIAL, c);
}

static inline void print(const char *s)
{
    while (*s) {
        put_char(*s++);
    }
}

static inline void print_hex(uint64_t v)
{
    int shift = 60;

    while (shift > 0 && !(v >> shift)) {
        shift -= 4;
    }
    for (; shift >= 0; shift -= 4) {
        put_char("0123456789abcdef"[v >> shift & 15]);
    }
}

/* "name=hex\n" */
static inline void show(const char *name, uint64_t v)
{
    print(name);
    print("=0x");
    print_hex(v);
    print("\n");
}

void guest_exit(int status) __attribute__((noreturn));
int guest_main(uint32_t information);

struct frame {
    uint64_t rip, cs, rflags, rsp, ss;
};

void idt_set(unsigned vector, void (*entry)(void));
void idt_load(void);
/* The number behind "key=" in the Multiboot command line, or fallback. */
unsigned cmdline_number(uint32_t information, const char *key, unsigned fallback);

void page_fault_entry(void);
void general_fault_entry(void);
void invalid_opcode_entry(void);
void divide_error_entry(void);
void timer_entry(void);
void pit_entry(void);
void soft_entry(void);

void *memset(void *to, int c, size_t n);
void *memcpy(void *to, const void *from, size_t n);

extern uint64_t boot_pml4[512];

#endif
