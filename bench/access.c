/*
 * Cost of accesses: 1 to 8 bytes at random over 1 to 1,000 RAM regions of 1 MiB in all (the random
 * number included, for the peers as well), through a lens and through the general calls, with and
 * without dirty tracking; copies; device callbacks; harvesting a dirty bitmap. Peers, each where it is
 * installed, measured in turns with us: Unicorn (uc_mem_read(), uc_mem_write(), a device read by guest
 * code) and the vm-memory crate (load() and store(), its fastest, and read_slice()).
 */
#include "measure.h"
#include "peers/vm_memory.h"

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
#define CODE        (UINT64_C(1) << 32)

struct board {
    struct strata_memory *mem;
    struct strata_region *root;
    struct strata_space *space;
    struct strata_ram *ram; /* of the GiB to harvest */
    unsigned n;
    uint64_t size, sum, seed;
    uint64_t base[MAX_REGIONS];
    uint64_t *bitmap;
    void *unicorn, *crate; /* null: not there */
    uint64_t unicorn_at, unicorn_end;
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

/* Aligned: the fastest calls of the peers take nothing else. */
static inline uint64_t somewhere(const struct board *b, uint64_t r)
{
    return (b->base[((r & 0xffffffff) * b->n) >> 32] + (((r >> 32) * (b->size - 8)) >> 32)) & ~UINT64_C(7);
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
    if (n == MAX_REGIONS) { /* what the peers have a device among; elsewhere there is RAM alone */
        must(strata_region_new(b->mem, &dev, &r));
        must(strata_region_add(b->root, DEVICE, r));
    }
}

#define DEFINE_LENS_LOOPS(bits)                                                                    \
    static void lens_read##bits(void *ctx, uint64_t n)                                             \
    {                                                                                              \
        struct board *b = ctx;                                                                     \
                                                                                                   \
        for (; n >= 1000; n -= 1000) {                                                             \
            struct strata_lens lens;                                                               \
                                                                                                   \
            strata_read_begin(b->mem);                                                             \
            lens = strata_lens_get(b->space);                                                      \
            for (int i = 0; i < 1000; i++) {                                                       \
                uint##bits##_t value;                                                              \
                                                                                                   \
                strata_lens_read##bits(&lens, somewhere(b, next(b)), &value);                      \
                b->sum += value;                                                                   \
            }                                                                                      \
            strata_read_end(b->mem);                                                               \
        }                                                                                          \
    }                                                                                              \
    static void lens_write##bits(void *ctx, uint64_t n)                                            \
    {                                                                                              \
        struct board *b = ctx;                                                                     \
                                                                                                   \
        for (; n >= 1000; n -= 1000) {                                                             \
            struct strata_lens lens;                                                               \
                                                                                                   \
            strata_read_begin(b->mem);                                                             \
            lens = strata_lens_get(b->space);                                                      \
            for (int i = 0; i < 1000; i++) {                                                       \
                uint64_t r = next(b);                                                              \
                                                                                                   \
                strata_lens_write##bits(&lens, somewhere(b, r), (uint##bits##_t)r);                \
            }                                                                                      \
            strata_read_end(b->mem);                                                               \
        }                                                                                          \
    }

DEFINE_LENS_LOOPS(8)
DEFINE_LENS_LOOPS(16)
DEFINE_LENS_LOOPS(32)
DEFINE_LENS_LOOPS(64)

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
    volatile size_t size = sizeof(page); /* unknown to the compiler, as in a copy of any length */
    struct board *b = ctx;

    while (n-- > 0) {
        memcpy(page, from, size);
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

/* Nanoseconds to take every bit of a full bitmap: only the taking is timed, clock included. */
static double harvest_full(struct board *b)
{
    double took[200];

    for (int i = 0; i < 200; i++) {
        double start;

        strata_ram_set_dirty(b->ram, 0, UINT64_C(1) << 30, 1 << STRATA_DIRTY_MIGRATION);
        start = measure_now();
        harvest_clean(b, 1);
        took[i] = measure_now() - start;
    }
    qsort(took, 200, sizeof(took[0]), measure_by_value);
    return took[100];
}

#ifdef HAVE_UNICORN
static void unicorn_read(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        uint64_t value;

        uc_mem_read(b->unicorn, somewhere(b, next(b)), &value, 8);
        b->sum += value;
    }
}

static void unicorn_write(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        uint64_t r = next(b);

        uc_mem_write(b->unicorn, somewhere(b, r), &r, 8);
    }
}

static uint64_t unicorn_device(uc_engine *uc, uint64_t offset, unsigned size, void *opaque)
{
    return offset;
}

/* A device read costs what guest code pays for it: a loop of 16 loads, without what the same loop
 * costs on RAM. */
static void unicorn_loads(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    for (; n >= 16000; n -= 16000) {
        uint64_t count = 1000;

        uc_reg_write(b->unicorn, UC_X86_REG_RCX, &count);
        uc_reg_write(b->unicorn, UC_X86_REG_RSI, &b->unicorn_at);
        uc_emu_start(b->unicorn, CODE, b->unicorn_end, 0, 0);
    }
}

static void unicorn_code(struct board *b)
{
    uint8_t code[128];
    unsigned n = 0;

    for (int i = 0; i < 16; i++) {
        memcpy(&code[n], "\x48\x8b\x06", 3); /* mov rax, [rsi] */
        n += 3;
    }
    memcpy(&code[n], "\x48\xff\xc9\x75", 4); /* dec rcx; jnz start */
    code[n + 4] = (uint8_t)-(n + 5);
    b->unicorn_end = CODE + n + 5;
    uc_mem_write(b->unicorn, CODE, code, n + 5);
}

static void unicorn_up(struct board *b)
{
    uc_engine *uc;

    if (uc_open(UC_ARCH_X86, UC_MODE_64, &uc) != UC_ERR_OK) {
        return;
    }
    for (unsigned i = 0; i < b->n; i++) {
        if (uc_mem_map(uc, b->base[i], b->size, UC_PROT_ALL) != UC_ERR_OK) {
            uc_close(uc);
            return;
        }
    }
    b->unicorn = uc;
    if (uc_mem_map(uc, CODE, 0x1000, UC_PROT_ALL) == UC_ERR_OK) {
        unicorn_code(b);
        uc_mmio_map(uc, DEVICE, 0x1000, unicorn_device, NULL, NULL, NULL);
    }
}

static void unicorn_down(struct board *b)
{
    if (b->unicorn) {
        uc_close(b->unicorn);
    }
}
#else
#define unicorn_read  NULL
#define unicorn_write NULL
#define unicorn_loads NULL
static void unicorn_up(struct board *b)
{
}

static void unicorn_down(struct board *b)
{
}
#endif

/* Ours, Unicorn's and vm-memory's way of the same, in turns; a null fn is left out. */
static void row(struct measure *m, struct board *b, const char *what, struct measure_job job[3],
                double bar)
{
    char name[80];

    snprintf(name, sizeof(name), "%s, %u region%s", what, b->n, b->n > 1 ? "s" : "");
    job[1].ctx = b;
    job[1].n = b->unicorn && job[1].fn ? job[0].n / 8 : 0;
    job[2].ctx = b->crate;
    job[2].n = b->crate && job[2].fn ? job[0].n / 2 : 0;
    job[0].ctx = b;
    measure_together(job, 3);
    measure_row_peers(m, name, "ns", (double[4]){job[0].cost, job[1].cost, job[2].cost, bar});
}

static void sizes(struct measure *m, struct board *b)
{
    static void (*const reads[3])(void *, uint64_t) = {lens_read8, lens_read16, lens_read32};
    static void (*const writes[3])(void *, uint64_t) = {lens_write8, lens_write16, lens_write32};
    char what[32];

    for (int i = 0; i < 3; i++) {
        snprintf(what, sizeof(what), "read %d, lens", 1 << i);
        row(m, b, what, (struct measure_job[3]){{.fn = reads[i], .n = 2000000}}, -1);
        snprintf(what, sizeof(what), "write %d, lens", 1 << i);
        row(m, b, what, (struct measure_job[3]){{.fn = writes[i], .n = 2000000}}, -1);
    }
}

static void device_rows(struct measure *m, struct board *b)
{
    struct measure_job job[3] = {{.fn = device, .ctx = b, .n = 1000000},
                                 {.fn = unicorn_loads, .ctx = b, .n = b->unicorn ? 400000 : 0},
                                 {.fn = unicorn_loads, .ctx = b, .n = b->unicorn ? 400000 : 0}};

    b->unicorn_at = DEVICE;
    measure_together(job, 2);
    b->unicorn_at = b->base[0];
    measure_together(&job[2], 1);
    measure_row_peers(m, "device callback", "ns", (double[4]){job[0].cost,
                      b->unicorn ? job[1].cost - job[2].cost : -1, -1, 15});
}

static void copy_rows(struct measure *m, struct board *b, const struct vm_memory *crate)
{
    struct measure_job job[3] = {{.fn = copy_4k, .ctx = b, .n = 100000},
                                 {.fn = memcpy_4k, .ctx = b, .n = 100000},
                                 {.fn = crate->copy, .ctx = b->crate, .n = b->crate ? 100000 : 0}};

    measure_row_peers(m, "the random number alone", "ns",
                      (double[4]){measure_run(random_alone, b, 4000000), -1, -1, -1});
    measure_together(job, 3);
    measure_row_peers(m, "copy 4 KiB out", "ns",
                      (double[4]){job[0].cost, -1, job[2].cost, job[1].cost + 10});
    measure_row_peers(m, "memcpy 4 KiB alone", "ns", (double[4]){job[1].cost, -1, -1, -1});
}

static void over_regions(struct measure *m, unsigned n, double bar, const struct vm_memory *crate)
{
    struct board b;

    build(&b, n);
    unicorn_up(&b);
    b.crate = crate->object ? crate->make(b.base, n, b.size) : NULL;
    row(m, &b, "read 8, lens", (struct measure_job[3]){{.fn = lens_read64, .n = 4000000},
        {.fn = unicorn_read}, {.fn = crate->read}}, bar);
    row(m, &b, "write 8, lens", (struct measure_job[3]){{.fn = lens_write64, .n = 4000000},
        {.fn = unicorn_write}, {.fn = crate->write}}, bar);
    row(m, &b, "read 8, strata_load", (struct measure_job[3]){{.fn = load, .n = 2000000},
        {.fn = unicorn_read}, {.fn = crate->read}}, -1);
    if (n == 1 || n == MAX_REGIONS) {
        sizes(m, &b);
    }
    must(strata_tracking_start(b.mem, STRATA_TRACK_MIGRATION));
    row(m, &b, "write 8, lens, tracking on", (struct measure_job[3]){{.fn = lens_write64, .n = 4000000},
        {.fn = unicorn_write}, {.fn = crate->write}}, bar + 2);
    if (n == MAX_REGIONS) {
        device_rows(m, &b);
    }
    if (n == 1) {
        copy_rows(m, &b, crate);
    }
    if (b.crate) {
        crate->free(b.crate);
    }
    unicorn_down(&b);
    strata_memory_free(b.mem);
}

static void harvest_rows(struct measure *m)
{
    struct strata_ram_desc gib = {.name = "gib", .size = UINT64_C(1) << 30, .flags = STRATA_RAM_NORESERVE};
    struct board b;
    double clean;

    build(&b, 1);
    must(strata_ram_new(b.mem, &gib, &b.ram));
    b.bitmap = calloc((1 << 18) / 64, 8);
    harvest_clean(&b, 1);
    clean = measure_run(harvest_clean, &b, 2000);
    measure_row_peers(m, "harvest a dirty bitmap per GiB, clean", "us", (double[4]){clean / 1e3, -1, -1, 2});
    measure_row_peers(m, "harvest a dirty bitmap per GiB, full", "us",
                      (double[4]){harvest_full(&b) / 1e3, -1, -1, 40});
    free(b.bitmap);
    strata_memory_free(b.mem);
}

int main(int argc, char **argv)
{
    static const char *const peers[2] = {"Unicorn", "vm-memory"};
    struct measure m = measure_open_peers(argc, argv, peers);
    struct vm_memory crate = vm_memory_load(argv[0]);

    over_regions(&m, 1, 3.5, &crate);
    over_regions(&m, 4, 4.5, &crate);
    over_regions(&m, 100, 7, &crate);
    over_regions(&m, MAX_REGIONS, 9, &crate);
    harvest_rows(&m);
    measure_close(&m);
    return 0;
}
