/*
 * Private memory, for a VM in which pages start private and bit 45 of a guest-physical address means shared: pages
 * are converted back and forth by hypercall, talked over with the host while shared, and keep their secret while
 * private. The host answers on port 0x500: the number of the page to look at goes in, and what it saw comes back in
 * the page itself. Not for other VMs: without that bit the addresses are nobody's.
 */
#include "lib.h"

#define PAGES      64
#define FIRST      0x800000u
#define SHARED     ((uint64_t)1 << 45)
#define ALIAS      ((uint64_t)512 << 30) /* where the shared half is mapped: the second top-level entry */
#define LOOK       0x500
#define HC_MAP     12
#define AS_PRIVATE 0x10

static uint64_t alias_pdpt[512] __attribute__((aligned(4096)));
static uint64_t alias_pd[512] __attribute__((aligned(4096)));

static void map_alias(void)
{
    for (unsigned i = 0; i < 512; i++) {
        alias_pd[i] = SHARED | (uint64_t)i << 21 | 0x83;
    }
    alias_pdpt[0] = (uint64_t)alias_pd | 3;
    boot_pml4[1] = (uint64_t)alias_pdpt | 3;
}

static int64_t convert(uint32_t page, uint64_t attributes)
{
    int64_t ret;

    __asm__ volatile("vmcall"
                     : "=a"(ret)
                     : "a"((uint64_t)HC_MAP), "b"((uint64_t)(FIRST + page * 4096)), "c"((uint64_t)1), "d"(attributes)
                     : "memory");
    return ret;
}

static volatile uint32_t *secret(uint32_t page)
{
    return (volatile uint32_t *)(uint64_t)(FIRST + page * 4096);
}

static volatile uint32_t *shared(uint32_t page)
{
    return (volatile uint32_t *)(ALIAS + FIRST + page * 4096);
}

/* One page: shared, a question, an answer, private again; the secret is as it was. */
static int exchange(uint32_t page, uint32_t round)
{
    uint32_t word = 0x5ec40000u | page;
    int wrong = 0;

    secret(page)[0] = word;
    secret(page)[1023] = ~word;
    wrong += convert(page, 0) != 0;
    wrong += shared(page)[0] == word;
    shared(page)[1] = round * 1000 + page;
    outl(LOOK, page);
    wrong += shared(page)[2] != round * 1000 + page + 1;
    wrong += convert(page, AS_PRIVATE) != 0;
    wrong += secret(page)[0] != word || secret(page)[1023] != ~word;
    wrong += secret(page)[1] != 0 || secret(page)[2] != 0;
    return wrong;
}

int guest_main(uint32_t information)
{
    int wrong = 0;

    (void)information;
    map_alias();
    print("private: every page starts private\n");
    for (uint32_t round = 1; round <= 3; round++) {
        for (uint32_t page = 0; page < PAGES; page++) {
            wrong += exchange(page, round);
        }
        show("wrong", (uint64_t)wrong);
    }
    /* Bad requests are answered, not served. */
    wrong += convert(0, 0) != 0 || convert(0, AS_PRIVATE) != 0;
    print(wrong ? "private: FAILED\n" : "private: content\n");
    return wrong != 0;
}
