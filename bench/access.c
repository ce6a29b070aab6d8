/*
 * Cost of accesses: 8 bytes at random over 1 to 1,000 RAM regions of 1 MiB in all (the random number
 * included, as in the figures of the peers), through a lens and through the general calls, with and
 * without dirty tracking; copies; device callbacks; harvesting a dirty bitmap. Peer: Unicorn's
 * uc_mem_read() on as many mappings, where it is installed.
 */
#include "measure.h"

#include "strata/address_space.h"
#include "strata/access.h"
#include "strata/dirty.h"
#include "strata/fast.h"
#include "strata/memory.h"
#include "strata/ram.h"
#include "strata/region.h"

#ifdef HAVE_UNICORN
#include <unicorn/unicorn.h>
#endif

#define MAX_REGIONS 1000
#define TOTAL       (1u << 20)
#define DEVICE      (UINT64_C(1) << 40)

struct board {
    struct strata_memory *mem;
    struct strata_region *root;
    struct strata_space *space;
    struct strata_ram *ram; /* of the GiB to harvest */
    unsigned n;
    uint64_t size, sum, seed;
    uint64_t base[MAX_REGIONS];
    uint64_t *bitmap;
    void *peer;
};

static void must(int err)
{
    if (err) {
        fprintf(stderr, "bench: error %d\n", err);
        exit(1);
    }
}

static inline uint64_t next(struct board *b)
{
    b->seed ^= b->seed << 13;
    b->seed ^= b->seed >> 7;
    b->seed ^= b->seed << 17;
    return b->seed;
}

static inline uint64_t somewhere(const struct board *b, uint64_t r)
{
    return b->base[((r & 0xffffffff) * b->n) >> 32] + (((r >> 32) * (b->size - 8)) >> 32);
}

static uint64_t device_read(void *opaque, strata_addr addr, unsigned size)
{
    return addr;
}

static const struct strata_io_ops device_ops = {
    .read = device_read, .valid = {1, 8, false, NULL}, .impl = {1, 8, false}};

static void build(struct board *b, unsigned n)
{
    struct strata_region_desc root = {.kind = STRATA_CONTAINER, .name = "root", .size = STRATA_SIZE_ALL};
    struct strata_region_desc dev = {.kind = STRATA_IO, .name = "dev", .size = 0x1000, .ops = &device_ops};
    struct strata_region *r;

    *b = (struct board){.n = n, .seed = 88172645463325252u};
    b->size = TOTAL / n & ~UINT64_C(4095);
    b->size = b->size ? b->size : 4096;
    must(strata_memory_new(NULL, &b->mem));
    must(strata_region_new(b->mem, &root, &b->root));
    must(strata_space_new(b->mem, "memory", b->root, &b->space));
    for (unsigned i = 0; i < n; i++) {
        char name[16];
        struct strata_region_desc ram = {.kind = STRATA_RAM, .name = name, .size = b->size};

        snprintf(name, sizeof(name), "ram%u", i);
        must(strata_region_new(b->mem, &ram, &r));
        b->base[i] = i * b->size * 2;
        must(strata_region_add(b->root, b->base[i], r));
    }
    must(strata_region_new(b->mem, &dev, &r));
    must(strata_region_add(b->root, DEVICE, r));
}

static void lens_read(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    for (; n >= 1000; n -= 1000) {
        struct strata_lens lens;

        strata_read_begin(b->mem);
        lens = strata_lens_get(b->space);
        for (int i = 0; i < 1000; i++) {
            uint64_t value;

            strata_lens_read64(&lens, somewhere(b, next(b)), &value);
            b->sum += value;
        }
        strata_read_end(b->mem);
    }
}

static void lens_write(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    for (; n >= 1000; n -= 1000) {
        struct strata_lens lens;

        strata_read_begin(b->mem);
        lens = strata_lens_get(b->space);
        for (int i = 0; i < 1000; i++) {
            uint64_t r = next(b);

            strata_lens_write64(&lens, somewhere(b, r), r);
        }
        strata_read_end(b->mem);
    }
}

static void random_alone(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        b->sum += somewhere(b, next(b));
    }
}

static void load(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        uint64_t value;

        strata_load(b->space, somewhere(b, next(b)), 8, STRATA_LITTLE_ENDIAN, &value);
        b->sum += value;
    }
}

static void device(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    for (; n >= 1000; n -= 1000) {
        strata_read_begin(b->mem);
        for (unsigned i = 0; i < 1000; i++) {
            uint64_t value;

            strata_load(b->space, DEVICE + (i & 255) * 8, 8, STRATA_LITTLE_ENDIAN, &value);
            b->sum += value;
        }
        strata_read_end(b->mem);
    }
}

static void copy_4k(void *ctx, uint64_t n)
{
    static char page[4096];
    struct board *b = ctx;

    while (n-- > 0) {
        strata_read(b->space, 0, STRATA_ATTRS_NONE, page, sizeof(page));
        b->sum += (unsigned char)page[n & 4095];
    }
}

static void memcpy_4k(void *ctx, uint64_t n)
{
    static char page[4096], from[4096];
    struct board *b = ctx;

    while (n-- > 0) {
        memcpy(page, from, sizeof(page));
        __asm__ volatile("" ::: "memory");
        b->sum += (unsigned char)page[n & 4095];
    }
}

static void harvest_clean(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        b->sum += strata_ram_harvest_dirty(b->ram, 0, UINT64_C(1) << 30, STRATA_DIRTY_MIGRATION, b->bitmap);
    }
}

static void fill_alone(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        strata_ram_set_dirty(b->ram, 0, UINT64_C(1) << 30, 1 << STRATA_DIRTY_MIGRATION);
    }
}

/* Filling is timed apart and taken off. */
static void harvest_full(void *ctx, uint64_t n)
{
    while (n-- > 0) {
        fill_alone(ctx, 1);
        harvest_clean(ctx, 1);
    }
}

#ifdef HAVE_UNICORN
static void peer_read(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        uint64_t value;

        uc_mem_read(b->peer, somewhere(b, next(b)), &value, 8);
        b->sum += value;
    }
}

static double peer_cost(struct board *b)
{
    uc_engine *uc;
    double cost = -1;

    if (uc_open(UC_ARCH_X86, UC_MODE_64, &uc) != UC_ERR_OK) {
        return -1;
    }
    b->peer = uc;
    for (unsigned i = 0; i < b->n; i++) {
        if (uc_mem_map(uc, b->base[i], b->size, UC_PROT_ALL) != UC_ERR_OK) {
            goto out;
        }
    }
    cost = measure_run(peer_read, b, 300000);
out:
    uc_close(uc);
    return cost;
}
#else
static double peer_cost(struct board *b)
{
    return -1;
}
#endif

static void over_regions(struct measure *m, unsigned n, double bar)
{
    struct board b;
    double peer;
    char what[64];

    build(&b, n);
    peer = peer_cost(&b);
    snprintf(what, sizeof(what), "read 8 at random, %u regions, lens", n);
    measure_row(m, what, "ns", (double[3]){measure_run(lens_read, &b, 4000000), peer, bar});
    snprintf(what, sizeof(what), "write 8 at random, %u regions, lens", n);
    measure_row(m, what, "ns", (double[3]){measure_run(lens_write, &b, 4000000), -1, bar});
    snprintf(what, sizeof(what), "read 8 at random, %u regions, strata_load", n);
    measure_row(m, what, "ns", (double[3]){measure_run(load, &b, 2000000), peer, -1});
    must(strata_tracking_start(b.mem, STRATA_TRACK_MIGRATION));
    snprintf(what, sizeof(what), "write 8, %u regions, dirty tracking on", n);
    measure_row(m, what, "ns", (double[3]){measure_run(lens_write, &b, 2000000), -1, bar + 2});
    if (n == MAX_REGIONS) {
        measure_row(m, "device callback, 1000 regions", "ns",
                    (double[3]){measure_run(device, &b, 2000000), -1, 15});
    }
    if (n == 1) {
        double plain = measure_run(memcpy_4k, &b, 100000);

        measure_row(m, "the random number alone", "ns",
                    (double[3]){measure_run(random_alone, &b, 4000000), -1, -1});
        measure_row(m, "copy 4 KiB out (peer: memcpy)", "ns",
                    (double[3]){measure_run(copy_4k, &b, 100000), plain, plain + 10});
    }
    strata_memory_free(b.mem);
}

int main(int argc, char **argv)
{
    struct measure m = measure_open(argc, argv);
    struct strata_ram_desc gib = {.name = "gib", .size = UINT64_C(1) << 30, .flags = STRATA_RAM_NORESERVE};
    struct board b;
    double full;

    over_regions(&m, 1, 3.5);
    over_regions(&m, 4, 4.5);
    over_regions(&m, 100, 7);
    over_regions(&m, MAX_REGIONS, 9);
    build(&b, 1);
    must(strata_ram_new(b.mem, &gib, &b.ram));
    b.bitmap = calloc((1 << 18) / 64, 8);
    full = measure_run(harvest_full, &b, 200) - measure_run(fill_alone, &b, 200);
    harvest_clean(&b, 1);
    measure_row(&m, "harvest a dirty bitmap per GiB, clean", "us",
                (double[3]){measure_run(harvest_clean, &b, 2000) / 1e3, -1, 2});
    measure_row(&m, "harvest a dirty bitmap per GiB, full", "us", (double[3]){full / 1e3, -1, 40});
    free(b.bitmap);
    strata_memory_free(b.mem);
    measure_close(&m);
    return b.sum == 42;
}
