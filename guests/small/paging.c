/* Paging: tables of 4 KiB pages made and changed while in use; accessed and dirty bits; faults with their
 * error codes and addresses; write protection; a page moved under a fixed address. */
#include "lib.h"

#define WINDOW  UINT64_C(0x8000000000)
#define PRESENT 1u
#define WRITE   2u
#define ACC     0x20u
#define DIRTY   0x40u

static volatile uint64_t pdpt[512] __attribute__((aligned(4096)));
static volatile uint64_t pd[512] __attribute__((aligned(4096)));
static volatile uint64_t pt[512] __attribute__((aligned(4096)));
static uint8_t pages[8][4096] __attribute__((aligned(4096)));

static volatile unsigned fault_count;

static void invlpg(uint64_t va)
{
    __asm__ volatile("invlpg (%0)" : : "r"(va) : "memory");
}

void on_page_fault(uint64_t code, struct frame *f)
{
    uint64_t addr;

    __asm__ volatile("mov %%cr2, %0" : "=r"(addr));
    fault_count++;
    print("  fault code=0x");
    print_hex(code);
    print(" cr2=0x");
    print_hex(addr);
    print("\n");
    /* Make good what was missing: map the page, or allow the write. */
    pt[(addr - WINDOW) >> 12 & 511] |= PRESENT | WRITE;
    invlpg(addr);
}

static volatile uint64_t *at(unsigned page)
{
    return (volatile uint64_t *)(WINDOW + page * 4096ull);
}

static void map(unsigned page, unsigned frame, unsigned bits)
{
    pt[page] = (uint64_t)pages[frame] | bits;
}

static void check_bits(void)
{
    map(0, 0, PRESENT | WRITE);
    invlpg((uint64_t)at(0));
    show("fresh", pt[0] & (ACC | DIRTY));
    (void)*at(0);
    show("read", pt[0] & (ACC | DIRTY));
    *at(0) = 1;
    show("written", pt[0] & (ACC | DIRTY));
    show("directory", pd[0] & ACC);
}

static void check_faults(void)
{
    map(1, 1, 0);
    *at(1) = 0x1111;
    show("absent then written", *(volatile uint64_t *)pages[1]);
    map(2, 2, PRESENT);
    invlpg((uint64_t)at(2));
    show("read-only read", *at(2));
    *at(2) = 0x2222;
    show("read-only written", *(volatile uint64_t *)pages[2]);
    show("faults", fault_count);
}

static void check_move(void)
{
    unsigned i;
    uint64_t sum = 0;

    for (i = 0; i < 8; i++) {
        *(volatile uint64_t *)pages[i] = i * 0x101;
    }
    for (i = 0; i < 64; i++) {
        map(3, i % 8, PRESENT | WRITE);
        invlpg((uint64_t)at(3));
        sum = sum * 3 + *at(3);
    }
    show("moved", sum);
}

static void check_cr3(void)
{
    static uint64_t other[512] __attribute__((aligned(4096)));
    uint64_t cr3, sum = 0;
    int i;

    for (i = 0; i < 512; i++) {
        other[i] = boot_pml4[i];
    }
    other[1] = 0;
    __asm__ volatile("mov %%cr3, %0" : "=r"(cr3));
    for (i = 0; i < 10; i++) {
        __asm__ volatile("mov %0, %%cr3" : : "r"(other) : "memory");
        sum += *(volatile uint64_t *)pages[i % 8];
        __asm__ volatile("mov %0, %%cr3" : : "r"(cr3) : "memory");
        sum += *at(3);
    }
    show("two address spaces", sum);
}

/* Entries of the tables are read and written by their physical addresses, which are their own. */
int guest_main(uint32_t information)
{
    uint64_t cr0;

    print("paging guest\n");
    idt_set(14, page_fault_entry);
    idt_load();
    __asm__ volatile("mov %%cr0, %0" : "=r"(cr0));
    __asm__ volatile("mov %0, %%cr0" : : "r"(cr0 | 0x10000));
    boot_pml4[1] = (uint64_t)pdpt | PRESENT | WRITE;
    pdpt[0] = (uint64_t)pd | PRESENT | WRITE;
    pd[0] = (uint64_t)pt | PRESENT | WRITE;
    check_bits();
    check_faults();
    check_move();
    check_cr3();
    print("paging: done\n");
    return fault_count == 2 ? 0 : 1;
}
