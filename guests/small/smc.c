/* Self-modifying code: instructions patched before, between and while they run; code copied and run
 * elsewhere; one frame written through another mapping than the one it runs from. */
#include "lib.h"

static uint8_t code[2][4096] __attribute__((aligned(4096)));
static uint64_t pdpt[512] __attribute__((aligned(4096)));
static uint64_t pd[512] __attribute__((aligned(4096)));
static uint64_t pt[512] __attribute__((aligned(4096)));

#define WINDOW UINT64_C(0x8000000000)

typedef uint64_t code_fn(void);

/* mov $imm32, %eax; ret */
static void write_constant(uint8_t *p, uint32_t v)
{
    p[0] = 0xb8;
    memcpy(p + 1, &v, 4);
    p[5] = 0xc3;
    __asm__ volatile("" : : : "memory");
}

static uint64_t call(uint64_t addr)
{
    return ((code_fn *)addr)();
}

static uint64_t patch_loop(uint8_t *writer, uint64_t runner)
{
    uint64_t sum = 0;
    unsigned i;

    write_constant(writer, 0);
    for (i = 0; i < 300; i++) {
        uint32_t v = i * 0x10001;

        memcpy(writer + 1, &v, 4);
        __asm__ volatile("" : : : "memory");
        sum = sum * 5 + call(runner);
    }
    return sum;
}

/* An instruction that patches the next one: movb $X, (next + 1); mov $0, %al ... */
static uint64_t patch_next(void)
{
    uint64_t result;

    __asm__ volatile("lea 1f(%%rip), %%rcx\n"
                     "movb $0x77, 1(%%rcx)\n"
                     "jmp 1f\n"
                     "1: mov $0x11, %%eax\n"
                     : "=a"(result)
                     :
                     : "rcx", "memory");
    return result;
}

int guest_main(uint32_t information)
{
    print("self-modifying guest\n");
    boot_pml4[1] = (uint64_t)pdpt | 3;
    pdpt[0] = (uint64_t)pd | 3;
    pd[0] = (uint64_t)pt | 3;
    pt[0] = (uint64_t)code[0] | 3;
    pt[1] = (uint64_t)code[1] | 3;
    show("same mapping", patch_loop(code[0], (uint64_t)code[0]));
    show("other mapping", patch_loop(code[0], WINDOW));
    /* Across two pages: the constant lies in both. */
    show("across pages", patch_loop(code[0] + 4093, WINDOW + 4093));
    show("next instruction", patch_next());
    memcpy(code[1], code[0], 16);
    write_constant(code[0], 0x1234);
    show("copy keeps", call((uint64_t)code[1]) == call((uint64_t)code[0]));
    print("smc: done\n");
    return 0;
}
