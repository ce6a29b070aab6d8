/* Several processors: INIT and SIPI, each in long mode with a stack of its own; a locked counter, a lock,
 * a message through memory, an interrupt from one to another. "cpus=N" on the command line. */
#include "lib.h"

#define LAPIC      UINT64_C(0xfee00000)
#define TRAMPOLINE UINT64_C(0x8000)
#define MAX_CPUS   16
#define ROUNDS     2000

extern char ap_begin[], ap_end[];

static uint8_t stacks[MAX_CPUS][8192] __attribute__((aligned(16)));
uint64_t ap_stack;
static volatile uint32_t online, finished, counter, lock, plain, turn, pinged;

static void icr(uint32_t destination, uint32_t value)
{
    mmio_write(LAPIC + 0x310, destination << 24);
    mmio_write(LAPIC + 0x300, value);
    while (mmio_read(LAPIC + 0x300) & 0x1000) {
    }
}

static void acquire(void)
{
    while (__atomic_exchange_n(&lock, 1, __ATOMIC_ACQUIRE)) {
        __asm__ volatile("pause");
    }
}

static void work(uint32_t id, uint32_t cpus)
{
    unsigned i;

    for (i = 0; i < ROUNDS; i++) {
        __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
        acquire();
        plain = plain + 1;
        __atomic_store_n(&lock, 0, __ATOMIC_RELEASE);
    }
    /* One after the other says that it is there. */
    while (__atomic_load_n(&turn, __ATOMIC_ACQUIRE) != id) {
        __asm__ volatile("pause");
    }
    show("processor", id);
    __atomic_store_n(&turn, id + 1, __ATOMIC_RELEASE);
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
}

void on_timer(uint64_t code, struct frame *f)
{
    __atomic_fetch_add(&pinged, 1, __ATOMIC_SEQ_CST);
    mmio_write(LAPIC + 0xb0, 0);
}

void ap_main(void)
{
    uint32_t id = mmio_read(LAPIC + 0x20) >> 24;

    idt_load();
    mmio_write(LAPIC + 0xf0, 0x1ff);
    __atomic_fetch_add(&online, 1, __ATOMIC_SEQ_CST);
    work(id, 0);
    for (;;) {
        __asm__ volatile("sti; hlt");
    }
}

static void start_one(uint32_t id)
{
    uint32_t before = __atomic_load_n(&online, __ATOMIC_ACQUIRE);

    ap_stack = (uint64_t)stacks[id] + sizeof(stacks[id]);
    icr(id, 0x4500);
    icr(id, 0x4600 | TRAMPOLINE >> 12);
    while (__atomic_load_n(&online, __ATOMIC_ACQUIRE) == before) {
        __asm__ volatile("pause");
    }
}

int guest_main(uint32_t information)
{
    unsigned i, cpus = cmdline_number(information, "cpus", 2);

    print("smp guest\n");
    idt_set(0x40, timer_entry);
    idt_load();
    mmio_write(LAPIC + 0xf0, 0x1ff);
    memcpy((void *)TRAMPOLINE, ap_begin, ap_end - ap_begin);
    for (i = 1; i < cpus && i < MAX_CPUS; i++) {
        start_one(i);
    }
    show("online", online + 1);
    work(0, cpus);
    while (__atomic_load_n(&finished, __ATOMIC_ACQUIRE) != cpus) {
        __asm__ volatile("pause");
    }
    show("locked counter", counter);
    show("counter under lock", plain);
    for (i = 1; i < cpus; i++) {
        icr(i, 0x4040);
        while (__atomic_load_n(&pinged, __ATOMIC_ACQUIRE) != i) {
            __asm__ volatile("pause");
        }
    }
    show("interrupts between processors", pinged);
    print("smp: done\n");
    return counter == cpus * ROUNDS && plain == counter ? 0 : 1;
}
