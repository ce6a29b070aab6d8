/* The board of docs/tutorial-memory.md: RAM, ROM, an alias, a device and a listener. */
#include <stdio.h>

#include "strata/access.h"
#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/region.h"

/* A device with one register that counts. */
static uint64_t counter_read(void *opaque, strata_addr addr, unsigned size)
{
    return ++*(unsigned *)opaque;
}

static const struct strata_io_ops counter_ops = {
    .read = counter_read, .endian = STRATA_LITTLE_ENDIAN, .valid = {.min = 4, .max = 4}};

/* A listener hears of every piece of the map that comes. */
static void on_add(void *opaque, const struct strata_section *s)
{
    printf("+ %08llx-%08llx %s\n", (unsigned long long)s->start, (unsigned long long)s->last,
           strata_region_name(s->region));
}

static const struct strata_listener_ops ears = {.region_add = on_add};

static struct strata_region *make(struct strata_memory *mem, struct strata_region_desc desc)
{
    struct strata_region *region = NULL;

    if (strata_region_new(mem, &desc, &region) != 0) {
        fprintf(stderr, "%s\n", strata_memory_error(mem));
    }
    return region;
}

int main(void)
{
    struct strata_listener_desc listen = {.name = "ears", .ops = &ears};
    struct strata_region *root, *ram, *rom, *low, *device;
    struct strata_listener *listener;
    struct strata_memory *mem;
    struct strata_space *space;
    unsigned count = 41;
    uint64_t value = 0;
    int err;

    if (strata_memory_new(NULL, &mem) != 0) {
        return 1;
    }
    root = make(mem, (struct strata_region_desc){STRATA_CONTAINER, "board", STRATA_SIZE_ALL});
    ram = make(mem, (struct strata_region_desc){STRATA_RAM, "ram", 64 << 20});
    rom = make(mem, (struct strata_region_desc){STRATA_ROM, "rom", 64 << 10});
    low = make(mem, (struct strata_region_desc){
        .kind = STRATA_ALIAS, .name = "reset", .size = 4096, .target = rom});
    device = make(mem, (struct strata_region_desc){
        .kind = STRATA_IO, .name = "counter", .size = 4, .ops = &counter_ops, .opaque = &count});

    strata_begin(mem); /* all of this becomes visible at once */
    err = strata_region_add(root, 0x80000000, ram);
    err |= strata_region_add(root, 0xffff0000, rom);
    err |= strata_region_add_overlap(root, 0, low, 1); /* the ROM's first page also at 0 */
    err |= strata_region_add(root, 0x10000000, device);
    err |= strata_commit(mem);
    err |= strata_space_new(mem, "memory", root, &space);
    err |= strata_listener_register(mem, &listen, &listener);

    err |= (int)strata_write_rom(space, 0xffff0000, "boot", 5);
    err |= (int)strata_store(space, 0x80000000, 8, STRATA_LITTLE_ENDIAN, 0x1122334455667788);
    err |= (int)strata_load(space, 0, 4, STRATA_LITTLE_ENDIAN, &value);
    printf("at 0: %c%c%c%c\n", (int)value & 0xff, (int)value >> 8 & 0xff, (int)value >> 16 & 0xff,
           (int)(value >> 24) & 0xff);
    err |= (int)strata_load(space, 0x10000000, 4, STRATA_LITTLE_ENDIAN, &value);
    printf("counter: %u\n", (unsigned)value);
    printf("map: %s\n", err || strata_check(mem) ? strata_memory_error(mem) : "consistent");
    strata_memory_free(mem);
    return err != 0;
}
