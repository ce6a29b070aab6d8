/*
 * An emulator without KVM: a toy processor of four instructions runs from guest RAM through a lens,
 * with a device to print by. What it shows: one read section per slice of instructions, the lens
 * taken again each time so that topology changes are seen, device accesses through the same calls.
 */
#include <stdio.h>
#include <string.h>

#include "strata/access.h"
#include "strata/address_space.h"
#include "strata/fast.h"
#include "strata/memory.h"
#include "strata/region.h"

enum { LOAD, ADD, STORE, HALT }; /* 8 bytes each: opcode, then a 32-bit operand at 4 */

static void print_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    printf("guest says %u\n", (unsigned)value);
}

static const struct strata_io_ops print_ops = {.write = print_write, .valid = {.min = 1, .max = 8},
                                               .impl = {.min = 1, .max = 8}};

/* Runs up to `n` instructions; false: halted or lost. */
static bool run_slice(struct strata_memory *mem, struct strata_space *space, uint64_t *pc,
                      uint64_t *acc, int n)
{
    struct strata_lens lens;
    bool running = true;

    strata_read_begin(mem);
    lens = strata_lens_get(space);
    while (running && n-- > 0) {
        uint64_t insn, value;

        running = strata_lens_read64(&lens, *pc, &insn) == STRATA_OK;
        *pc += 8;
        switch (running ? insn & 0xff : HALT) {
        case LOAD:
            running = strata_lens_read64(&lens, insn >> 32, acc) == STRATA_OK;
            break;
        case ADD:
            running = strata_lens_read64(&lens, insn >> 32, &value) == STRATA_OK;
            *acc += value;
            break;
        case STORE:
            running = strata_lens_write64(&lens, insn >> 32, *acc) == STRATA_OK;
            break;
        default:
            running = false;
        }
    }
    strata_read_end(mem);
    return running;
}

int main(void)
{
    static const uint64_t program[] = {LOAD | 0x100ull << 32, ADD | 0x108ull << 32,
                                       STORE | 0x110ull << 32, STORE | 0x20000ull << 32, HALT};
    static const uint64_t data[] = {40, 2};
    struct strata_region_desc desc[] = {
        {.kind = STRATA_CONTAINER, .name = "system", .size = STRATA_SIZE_ALL},
        {.kind = STRATA_RAM, .name = "ram", .size = 0x10000},
        {.kind = STRATA_IO, .name = "printer", .size = 8, .ops = &print_ops}};
    struct strata_region *region[3];
    struct strata_memory *mem;
    struct strata_space *space;
    uint64_t pc = 0, acc = 0, sum = 0;
    int err = strata_memory_new(NULL, &mem);

    for (int i = 0; i < 3 && !err; i++) {
        err = strata_region_new(mem, &desc[i], &region[i]);
    }
    err = err ? err : strata_region_add(region[0], 0, region[1]);
    err = err ? err : strata_region_add(region[0], 0x20000, region[2]);
    err = err ? err : strata_space_new(mem, "memory", region[0], &space);
    if (err) {
        return 1;
    }
    strata_write(space, 0, STRATA_ATTRS_NONE, program, sizeof(program));
    strata_write(space, 0x100, STRATA_ATTRS_NONE, data, sizeof(data));
    while (run_slice(mem, space, &pc, &acc, 2)) {
    }
    strata_load(space, 0x110, 8, STRATA_LITTLE_ENDIAN, &sum);
    strata_memory_free(mem);
    return sum == 42 ? 0 : 1;
}
