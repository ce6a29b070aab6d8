/* Accesses: U21, U32 to U43, U46, and the differences of strict mode. */
#include "memory/help.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "strata/fast.h"

/* A device of 64 bytes that keeps what is written and notes each callback. */
struct probe {
    uint8_t byte[64];
    char log[512];
    size_t len;
    bool big;
    struct strata_space *reenter;
    enum strata_result inner;
};

static void probe_note(struct probe *p, char what, strata_addr addr, unsigned size)
{
    p->len += (size_t)snprintf(p->log + p->len, sizeof(p->log) - p->len, "%c%llx/%u ", what,
                               (unsigned long long)addr, size);
    assert_true(p->len < sizeof(p->log));
}

static uint64_t probe_read(void *opaque, strata_addr addr, unsigned size)
{
    struct probe *p = opaque;
    uint64_t value = 0;

    probe_note(p, 'r', addr, size);
    if (p->reenter) {
        struct strata_space *space = p->reenter;
        uint8_t b;

        p->reenter = NULL; /* once */
        p->inner = strata_read(space, 0x1000, STRATA_ATTRS_NONE, &b, 1);
        p->reenter = space;
    }
    for (unsigned i = 0; i < size; i++) {
        unsigned at = p->big ? size - 1 - i : i;

        value |= (uint64_t)p->byte[(addr + i) % 64] << (8 * at);
    }
    return value;
}

static void probe_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    struct probe *p = opaque;

    probe_note(p, 'w', addr, size);
    for (unsigned i = 0; i < size; i++) {
        unsigned at = p->big ? size - 1 - i : i;

        p->byte[(addr + i) % 64] = (uint8_t)(value >> (8 * at));
    }
}

static void probe_expect(struct probe *p, const char *want)
{
    assert_string_equal(p->log, want);
    p->len = 0;
    p->log[0] = '\0';
}

static struct strata_io_ops probe_ops(unsigned vmin, unsigned vmax, unsigned imin, unsigned imax)
{
    return (struct strata_io_ops){.read = probe_read, .write = probe_write,
                                  .valid = {.min = vmin, .max = vmax},
                                  .impl = {.min = imin, .max = imax}};
}

static void holes_and_ports(void **state)
{
    struct board b = help_board(NULL);
    uint64_t value = 1;
    uint8_t buf[6] = {1, 2, 3, 4, 5, 6};

    assert_int_equal(strata_load(b.space, 0x100, 4, STRATA_LITTLE_ENDIAN, &value), STRATA_DECODE_ERROR);
    assert_true(value == 0);
    assert_int_equal(strata_read(b.space, 3, STRATA_ATTRS_NONE, buf, 6), STRATA_DECODE_ERROR);
    assert_memory_equal(buf, "\0\0\0\0\0\0", 6);
    strata_space_set_open_bus(b.space, true);
    assert_int_equal(strata_load(b.space, 0x100, 2, STRATA_LITTLE_ENDIAN, &value), STRATA_DECODE_ERROR);
    assert_true(value == 0xffff);
    assert_int_equal(strata_store(b.space, 0, 1, STRATA_LITTLE_ENDIAN, 5), STRATA_DECODE_ERROR);
    help_add(b.root, 0, help_region(b.mem, STRATA_RESERVATION, "rsv", 0x1000), 0);
    assert_int_equal(strata_load(b.space, 0, 4, STRATA_LITTLE_ENDIAN, &value), STRATA_DECODE_ERROR);
    assert_true(value == 0);
    help_done(&b);
}

static void pieces_and_validity(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops any = probe_ops(0, 0, 0, 0), four = probe_ops(4, 4, 4, 4);
    struct strata_io_ops eight = probe_ops(1, 8, 1, 8);
    struct probe p = {.big = false};
    uint8_t buf[16];
    uint64_t v;

    help_add(b.root, 0x1000, help_device(b.mem, "any", 64, &any, &p), 0);
    help_add(b.root, 0x2000, help_device(b.mem, "four", 64, &four, &p), 0);
    help_add(b.root, 0x3000, help_device(b.mem, "eight", 64, &eight, &p), 0);
    strata_read(b.space, 0x1001, STRATA_ATTRS_NONE, buf, 9); /* 4 at most, as aligned as the address */
    probe_expect(&p, "r1/1 r2/2 r4/4 r8/2 ");
    strata_write(b.space, 0x3000, STRATA_ATTRS_NONE, buf, 15);
    probe_expect(&p, "w0/8 w8/4 wc/2 we/1 ");
    assert_int_equal(strata_load(b.space, 0x2000, 2, STRATA_LITTLE_ENDIAN, &v), STRATA_DECODE_ERROR);
    assert_int_equal(strata_load(b.space, 0x2002, 4, STRATA_LITTLE_ENDIAN, &v), STRATA_DECODE_ERROR);
    assert_int_equal(strata_load(b.space, 0x2004, 8, STRATA_LITTLE_ENDIAN, &v), STRATA_DECODE_ERROR);
    probe_expect(&p, ""); /* refused before the callback */
    assert_int_equal(strata_load(b.space, 0x2004, 4, STRATA_LITTLE_ENDIAN, &v), STRATA_OK);
    probe_expect(&p, "r4/4 ");
    assert_true(strata_access_valid(b.space, 0x2000, 8, true, STRATA_ATTRS_NONE));
    assert_false(strata_access_valid(b.space, 0x2000, 6, true, STRATA_ATTRS_NONE));
    assert_false(strata_access_valid(b.space, 0x9000, 1, true, STRATA_ATTRS_NONE));
    assert_true(strata_is_io(b.space, 0x2000));
    help_done(&b);
}

static bool accepts_even(void *opaque, strata_addr addr, unsigned size, bool write,
                         struct strata_attrs attrs)
{
    return addr % 2 == 0 && !(write && attrs.user);
}

static void accepts_comes_first(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops ops = probe_ops(1, 4, 1, 4);
    struct probe p = {.big = false};
    struct strata_attrs user = {.user = 1};
    uint8_t byte = 0;

    ops.valid.accepts = accepts_even;
    help_add(b.root, 0, help_device(b.mem, "picky", 64, &ops, &p), 0);
    assert_int_equal(strata_read(b.space, 1, STRATA_ATTRS_NONE, &byte, 1), STRATA_DECODE_ERROR);
    assert_int_equal(strata_write(b.space, 2, user, &byte, 1), STRATA_DECODE_ERROR);
    assert_int_equal(strata_read(b.space, 2, user, &byte, 1), STRATA_OK);
    probe_expect(&p, "r2/1 ");
    help_done(&b);
}

static void sizes_are_adapted(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops narrow = probe_ops(1, 8, 1, 2), wide = probe_ops(1, 8, 4, 8);
    struct probe p = {.byte = {0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17}};
    uint64_t v;

    help_add(b.root, 0, help_device(b.mem, "narrow", 64, &narrow, &p), 0);
    help_add(b.root, 0x1000, help_device(b.mem, "wide", 64, &wide, &p), 0);
    assert_int_equal(strata_load(b.space, 0, 8, STRATA_LITTLE_ENDIAN, &v), STRATA_OK);
    probe_expect(&p, "r0/2 r2/2 r4/2 r6/2 ");
    assert_true(v == 0x1716151413121110);
    assert_int_equal(strata_load(b.space, 0x1004, 1, STRATA_LITTLE_ENDIAN, &v), STRATA_OK);
    probe_expect(&p, "r4/4 "); /* one wide access, the rest cut off */
    assert_true(v == 0x14);
    strata_store(b.space, 0, 4, STRATA_LITTLE_ENDIAN, 0xaabbccdd);
    probe_expect(&p, "w0/2 w2/2 ");
    assert_true(p.byte[0] == 0xdd && p.byte[3] == 0xaa);
    help_done(&b);
}

static void byte_orders(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops big = probe_ops(1, 8, 1, 2), bwide = probe_ops(1, 8, 4, 4);
    struct probe p = {.byte = {1, 2, 3, 4, 5, 6, 7, 8}, .big = true};
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x1000);
    uint64_t v;

    big.endian = bwide.endian = STRATA_BIG_ENDIAN;
    help_add(b.root, 0, help_device(b.mem, "big", 64, &big, &p), 0);
    help_add(b.root, 0x1000, help_device(b.mem, "bwide", 64, &bwide, &p), 0);
    help_add(b.root, 0x2000, ram, 0);
    strata_load(b.space, 0, 4, STRATA_LITTLE_ENDIAN, &v); /* bytes lie as the device has them */
    assert_true(v == 0x04030201);
    strata_load(b.space, 0, 4, STRATA_BIG_ENDIAN, &v);
    assert_true(v == 0x01020304);
    p.len = 0;
    strata_load(b.space, 0x1000, 2, STRATA_BIG_ENDIAN, &v); /* wider than asked: the upper half */
    probe_expect(&p, "r0/4 ");
    assert_true(v == 0x0102);
    strata_store(b.space, 0, 8, STRATA_BIG_ENDIAN, 0x1122334455667788);
    assert_true(p.byte[0] == 0x11 && p.byte[7] == 0x88);
    strata_store(b.space, 0x2000, 4, STRATA_BIG_ENDIAN, 0xa1b2c3d4);
    strata_load(b.space, 0x2000, 2, STRATA_LITTLE_ENDIAN, &v);
    assert_true(v == 0xb2a1);
    assert_int_equal(strata_load(b.space, 0x2000, 3, STRATA_LITTLE_ENDIAN, &v), STRATA_ERROR);
    help_done(&b);
}

static enum strata_result with_attrs(void *opaque, strata_addr addr, uint64_t *value, unsigned size,
                                     struct strata_attrs attrs)
{
    *value = attrs.requester;
    return attrs.secure ? STRATA_OK : STRATA_ERROR;
}

static void results_and_attributes(void **state)
{
    static const struct strata_io_ops ops = {.read_attrs = with_attrs, .valid = {1, 4, true, NULL}};
    struct board b = help_board(NULL);
    struct strata_region *rom = help_region(b.mem, STRATA_ROM, "rom", 0x1000);
    struct strata_attrs a = {.requester = 0x77, .secure = 1}, mem = {.memory = 1}, dbg = {.debug = 1};
    uint8_t v = 0;

    help_add(b.root, 0, help_device(b.mem, "d", 16, &ops, NULL), 0);
    help_add(b.root, 0x1000, rom, 0);
    assert_int_equal(strata_read(b.space, 0, a, &v, 1), STRATA_OK);
    assert_int_equal(v, 0x77);
    a.secure = 0;
    assert_int_equal(strata_read(b.space, 0, a, &v, 1), STRATA_ERROR);
    assert_int_equal(strata_read(b.space, 0, mem, &v, 1), STRATA_ACCESS_ERROR);
    assert_int_equal(strata_read(b.space, 0x9000, mem, &v, 1), STRATA_ACCESS_ERROR);
    assert_int_equal(strata_read(b.space, 0x1000, mem, &v, 1), STRATA_OK);
    assert_int_equal(strata_write(b.space, 0, a, &v, 1), STRATA_DECODE_ERROR); /* no write callback */
    v = 9;
    assert_int_equal(strata_write(b.space, 0x1000, STRATA_ATTRS_NONE, &v, 1), STRATA_DECODE_ERROR);
    assert_int_equal(strata_write(b.space, 0x1000, dbg, &v, 1), STRATA_OK);
    assert_int_equal(*(uint8_t *)strata_region_host(rom), 9);
    help_done(&b);
}

static void on_warn(void *ctx, const char *text)
{
    assert_non_null(strstr(text, "dev"));
    ++*(int *)ctx;
}

static void reentry_is_refused(void **state)
{
    int warnings = 0;
    struct strata_memory_config config = {.warn = on_warn, .warn_ctx = &warnings};
    struct board b = help_board(&config);
    struct strata_io_ops ops = probe_ops(1, 4, 1, 4);
    struct probe p = {.big = false};
    struct strata_owner *owner;
    struct strata_region_desc d = {.kind = STRATA_IO, .name = "regs", .size = 64, .ops = &ops,
                                   .opaque = &p};
    struct strata_region *one, *two;
    uint8_t v;

    assert_int_equal(strata_owner_new(b.mem, "dev", NULL, NULL, &owner), 0);
    d.owner = owner;
    assert_int_equal(strata_region_new(b.mem, &d, &one), 0);
    d.name = "more";
    assert_int_equal(strata_region_new(b.mem, &d, &two), 0);
    help_add(b.root, 0, one, 0);
    help_add(b.root, 0x1000, two, 0); /* the guard is the device's, not the region's */
    p.reenter = b.space;
    assert_int_equal(strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1), STRATA_OK);
    assert_int_equal(p.inner, STRATA_ACCESS_ERROR);
    probe_expect(&p, "r0/1 ");
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(warnings, 1);
    assert_true(strata_owner_reentries(owner) == 2);
    strata_region_set_reentrant(two, true);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_OK); /* the region opted out */
    strata_region_set_reentrant(two, false);
    strata_region_set_lockless(two, true);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_OK); /* lockless: no guard */
    strata_region_set_lockless(two, false);
    assert_int_equal(strata_region_set_readonly(two, true), 0);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_OK); /* read-only */
    assert_int_equal(strata_region_set_readonly(two, false), 0);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_ACCESS_ERROR);
    strata_owner_allow_reentry(owner, true);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_OK); /* the device as a whole */
    strata_owner_allow_reentry(owner, false);
    assert_int_equal(strata_region_remove(two), 0);
    help_add(b.root, 0x1000, help_region(b.mem, STRATA_RAM, "ram", 0x1000), 0);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_int_equal(p.inner, STRATA_OK); /* RAM */
    assert_int_equal(warnings, 1);
    help_done(&b);
}

static bool take_lock(void *ctx)
{
    int *lock = ctx;

    lock[0]++;
    return lock[1] == 0;
}

static void give_lock(void *ctx)
{
    ((int *)ctx)[2]++;
}

static void lock_policy(void **state)
{
    int lock[3] = {0, 0, 0};
    struct strata_memory_config config = {.io_lock = take_lock, .io_unlock = give_lock,
                                          .io_lock_ctx = lock};
    struct board b = help_board(&config);
    struct strata_io_ops ops = probe_ops(1, 4, 1, 4);
    struct probe p = {.big = false};
    struct strata_region *dev = help_device(b.mem, "d", 64, &ops, &p);
    uint8_t v;

    help_add(b.root, 0, dev, 0);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_true(lock[0] == 1 && lock[2] == 1);
    lock[1] = 1; /* held already by this thread */
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_true(lock[0] == 2 && lock[2] == 1);
    strata_region_set_lockless(dev, true);
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    assert_true(lock[0] == 2);
    help_done(&b);
}

static void rom_and_rom_devices(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops ops = probe_ops(1, 4, 1, 4);
    struct probe p = {.byte = {0x55}};
    struct strata_region_desc d = {.kind = STRATA_ROM_DEVICE, .name = "flash", .size = 0x1000,
                                   .ops = &ops, .opaque = &p};
    struct strata_region *flash;
    uint8_t buf[4] = {1, 2, 3, 4}, v = 0;

    assert_int_equal(strata_region_new(b.mem, &d, &flash), 0);
    help_add(b.root, 0, flash, 0);
    help_add(b.root, 0x1000, help_device(b.mem, "d", 0x10, &ops, &p), 0);
    help_add(b.root, 0x2000, help_region(b.mem, STRATA_ROM, "rom", 0x1000), 0);
    assert_int_equal(strata_write_rom(b.space, 0, buf, 4), STRATA_OK);
    assert_int_equal(strata_write_rom(b.space, 0x1000, buf, 4), STRATA_OK); /* skipped in silence */
    assert_int_equal(strata_write_rom(b.space, 0x1ffe, buf, 4), STRATA_OK);
    probe_expect(&p, "");
    assert_int_equal(strata_read(b.space, 1, STRATA_ATTRS_NONE, &v, 1), STRATA_OK);
    assert_int_equal(v, 2);
    assert_int_equal(strata_read(b.space, 0x2000, STRATA_ATTRS_NONE, &v, 1), STRATA_OK);
    assert_int_equal(v, 3);
    assert_false(strata_is_io(b.space, 0));
    strata_write(b.space, 0, STRATA_ATTRS_NONE, buf, 1); /* to the callback */
    probe_expect(&p, "w0/1 ");
    assert_int_equal(strata_region_set_romd(flash, false), 0);
    assert_true(strata_is_io(b.space, 0));
    strata_read(b.space, 0, STRATA_ATTRS_NONE, &v, 1);
    probe_expect(&p, "r0/1 ");
    assert_int_equal(v, 1); /* what was just written there */
    help_done(&b);
}

static void ram_devices(void **state)
{
    static uint32_t registers[1024] __attribute__((aligned(4096)));
    struct board b = help_board(NULL);
    struct strata_ram_desc rd = {.name = "bar", .size = sizeof(registers), .backing = STRATA_HOST,
                                 .host = registers};
    struct strata_ram *ram;
    struct strata_region *bar;
    struct strata_region_desc d = {.kind = STRATA_RAM_DEVICE, .name = "bar", .size = 4096};
    struct strata_section s;
    uint64_t v;

    assert_int_equal(strata_ram_new(b.mem, &rd, &ram), 0);
    d.ram = ram;
    assert_int_equal(strata_region_new(b.mem, &d, &bar), 0);
    assert_int_equal(strata_region_new(b.mem, &d, &bar), -EBUSY);
    help_add(b.root, 0x1000, bar, 0);
    assert_int_equal(strata_store(b.space, 0x1004, 4, STRATA_LITTLE_ENDIAN, 0x12345678), STRATA_OK);
    assert_int_equal(registers[1], 0x12345678);
    assert_int_equal(strata_load(b.space, 0x1004, 2, STRATA_LITTLE_ENDIAN, &v), STRATA_OK);
    assert_true(v == 0x5678);
    strata_read_begin(b.mem);
    assert_int_equal(strata_space_lookup(b.space, 0x1000, &s), 0);
    assert_true(s.host == registers); /* RAM for slots */
    strata_read_end(b.mem);
    strata_ram_unref(ram);
    help_done(&b);
}

static void software_eventfds(void **state)
{
    struct board b = help_board(NULL);
    struct strata_io_ops ops = probe_ops(1, 4, 1, 4);
    struct probe p = {.big = false};
    struct strata_io_ops big_ops = ops;
    struct strata_region *dev = help_device(b.mem, "d", 64, &ops, &p), *big;
    int fd = eventfd(0, EFD_NONBLOCK);
    struct strata_eventfd ev = {.addr = 8, .size = 2, .match_data = true, .data = 0x1234, .fd = fd};
    uint64_t count = 0;

    help_add(b.root, 0, dev, 0);
    assert_int_equal(strata_region_add_eventfd(dev, &ev), 0);
    strata_store(b.space, 8, 2, STRATA_LITTLE_ENDIAN, 0x1234);
    probe_expect(&p, "");
    assert_int_equal(read(fd, &count, 8), 8);
    assert_true(count == 1);
    strata_store(b.space, 8, 2, STRATA_LITTLE_ENDIAN, 0x1235); /* other data, other length */
    strata_store(b.space, 8, 4, STRATA_LITTLE_ENDIAN, 0x1234);
    probe_expect(&p, "w8/2 w8/4 ");
    assert_int_equal(read(fd, &count, 8), -1);
    big_ops.endian = STRATA_BIG_ENDIAN; /* data is meant as the device has it */
    big = help_device(b.mem, "big", 64, &big_ops, &p);
    help_add(b.root, 0x1000, big, 0);
    assert_int_equal(strata_region_add_eventfd(big, &ev), 0);
    strata_store(b.space, 0x1008, 2, STRATA_LITTLE_ENDIAN, 0x1234);
    probe_expect(&p, "w8/2 ");
    strata_store(b.space, 0x1008, 2, STRATA_BIG_ENDIAN, 0x1234);
    probe_expect(&p, "");
    assert_int_equal(read(fd, &count, 8), 8);
    close(fd);
    help_done(&b);
}

static void small_helpers(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x2000);
    uint64_t v = 5, old = 0;
    uint8_t buf[0x1800];

    help_add(b.root, 0x1000, ram, 0);
    assert_int_equal(strata_fill(b.space, 0x1400, STRATA_ATTRS_NONE, 0xab, 0x1000), STRATA_OK);
    assert_int_equal(strata_read(b.space, 0x1300, STRATA_ATTRS_NONE, buf, sizeof(buf)), STRATA_OK);
    assert_true(buf[0xff] == 0 && buf[0x100] == 0xab && buf[0x10ff] == 0xab && buf[0x1100] == 0);
    strata_store(b.space, 0x1000, 8, STRATA_NATIVE_ENDIAN, 5);
    assert_int_equal(strata_cmpxchg(b.space, 0x1000, 8, &v, 77), STRATA_OK);
    assert_true(v == 5);
    assert_int_equal(strata_cmpxchg(b.space, 0x1000, 8, &v, 99), STRATA_OK);
    assert_true(v == 77); /* not replaced */
    assert_int_equal(strata_fetch_add(b.space, 0x1000, 4, 0xffffffff, &old), STRATA_OK);
    assert_true(old == 77);
    strata_load(b.space, 0x1000, 8, STRATA_NATIVE_ENDIAN, &v);
    assert_true(v == 76);
    assert_int_equal(strata_cmpxchg(b.space, 0x1001, 4, &v, 0), STRATA_ACCESS_ERROR);
    assert_int_equal(strata_fetch_add(b.space, 0x9000, 4, 1, &old), STRATA_ACCESS_ERROR);
    assert_int_equal(strata_region_write(ram, 0x10, 4, STRATA_ATTRS_NONE, 0xbeef), STRATA_OK);
    assert_int_equal(strata_region_read(ram, 0x10, 2, STRATA_ATTRS_NONE, &v), STRATA_OK);
    assert_true(v == 0xbeef);
    assert_int_equal(strata_region_read(ram, 0x1fff, 2, STRATA_ATTRS_NONE, &v), STRATA_DECODE_ERROR);
    help_done(&b);
}

static void across_ranges(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *one = help_region(b.mem, STRATA_RAM, "one", 0x1000);
    struct strata_region *two = help_region(b.mem, STRATA_RAM, "two", 0x1000);
    struct strata_lens lens;
    uint64_t v;

    help_add(b.root, 0, one, 0);
    help_add(b.root, 0x1000, two, 0);
    assert_int_equal(strata_store(b.space, 0xffc, 8, STRATA_LITTLE_ENDIAN, 0x1122334455667788), STRATA_OK);
    assert_int_equal(*(uint32_t *)((char *)strata_region_host(one) + 0xffc), 0x55667788);
    assert_int_equal(*(uint32_t *)strata_region_host(two), 0x11223344);
    strata_read_begin(b.mem);
    lens = strata_lens_get(b.space);
    assert_int_equal(strata_lens_read64(&lens, 0xffc, &v), STRATA_OK);
    assert_true(v == 0x1122334455667788);
    assert_int_equal(strata_lens_read64(&lens, 0x1ffc, &v), STRATA_DECODE_ERROR);
    assert_int_equal(strata_lens_write64(&lens, 0x10, 42), STRATA_OK);
    assert_int_equal(strata_lens_read64(&lens, 0x10, &v), STRATA_OK);
    assert_true(v == 42);
    strata_read_end(b.mem);
    help_done(&b);
}

/* A write through a read-only alias; an access that runs off a device; an unaligned one. */
static void strict_differs(void **state)
{
    for (int strict = 0; strict < 2; strict++) {
        struct board b = strict ? help_strict_board() : help_board(NULL);
        struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x1000);
        struct strata_region *ro = help_alias(b.mem, "ro", ram, 0, 0x1000);
        struct strata_io_ops ops = probe_ops(1, 4, 4, 4), open_ops = probe_ops(0, 0, 1, 4);
        struct probe p = {.byte = {0, 1, 2, 3, 4, 5, 6, 7}};
        uint8_t one = 1;
        uint64_t v;

        ops.valid.unaligned = open_ops.valid.unaligned = true;
        help_add(b.root, 0, ro, 0);
        assert_int_equal(strata_region_set_readonly(ro, true), 0);
        help_add(b.root, 0x1000, help_device(b.mem, "four", 64, &ops, &p), 0);
        help_add(b.root, 0x2000, help_device(b.mem, "tiny", 2, &open_ops, &p), 0);
        help_add(b.root, 0x2002, help_region(b.mem, STRATA_RAM, "next", 0x1000), 0);
        assert_int_equal(strata_write(b.space, 8, STRATA_ATTRS_NONE, &one, 1),
                         strict ? STRATA_DECODE_ERROR : STRATA_OK);
        strata_load(b.space, 0x1002, 4, STRATA_LITTLE_ENDIAN, &v);
        probe_expect(&p, strict ? "r0/4 r4/4 " : "r2/4 ");
        assert_true(v == 0x05040302);
        strata_store(b.space, 0x1001, 2, STRATA_LITTLE_ENDIAN, 0xbbaa);
        probe_expect(&p, strict ? "r0/4 w0/4 " : "w1/4 ");
        assert_true(p.byte[1] == 0xaa && p.byte[2] == 0xbb && p.byte[3] == (strict ? 3 : 0));
        strata_read(b.space, 0x2000, STRATA_ATTRS_NONE, &v, 4);
        probe_expect(&p, strict ? "r0/2 " : "r0/4 "); /* not clamped / clamped to the region */
        help_done(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(holes_and_ports),      cmocka_unit_test(pieces_and_validity),
        cmocka_unit_test(accepts_comes_first),  cmocka_unit_test(sizes_are_adapted),
        cmocka_unit_test(byte_orders),          cmocka_unit_test(results_and_attributes),
        cmocka_unit_test(reentry_is_refused),   cmocka_unit_test(lock_policy),
        cmocka_unit_test(rom_and_rom_devices),  cmocka_unit_test(ram_devices),
        cmocka_unit_test(software_eventfds),    cmocka_unit_test(small_helpers),
        cmocka_unit_test(across_ranges),        cmocka_unit_test(strict_differs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
