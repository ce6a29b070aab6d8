/*
 * Cost of changing the map: toggling one region with N others (listener included), building N one by
 * one, rendering a whole view. Peers, each where it is installed: Unicorn's map and unmap of one region
 * among as many (it aborts above some 4,000); a new map of the vm-memory crate without one region, and
 * one with it again.
 */
#include "measure.h"
#include "peers/vm_memory.h"

#include "strata/listener.h"
#include "strata/memory.h"
#include "strata/region.h"

#ifdef HAVE_UNICORN
#include <unicorn/unicorn.h>
#endif

struct board {
    struct strata_memory *mem;
    struct strata_region *root, *bar;
    struct strata_space *space;
    unsigned long told;
    unsigned toggles;
};

static void on_section(void *opaque, const struct strata_section *s)
{
    ((struct board *)opaque)->told += s->last - s->start;
}

static const struct strata_listener_ops ears = {.region_add = on_section, .region_del = on_section};
static const struct strata_io_ops quiet;

static void must(int err)
{
    if (err) {
        fprintf(stderr, "bench: error %d\n", err);
        exit(1);
    }
}

static void build(struct board *b, unsigned n)
{
    struct strata_region_desc root = {.kind = STRATA_CONTAINER, .name = "root", .size = STRATA_SIZE_ALL};
    struct strata_region_desc bar = {.kind = STRATA_IO, .name = "bar", .size = 0x1000, .ops = &quiet};
    struct strata_listener_desc ear = {.name = "ear", .ops = &ears, .opaque = b};
    struct strata_listener *l;

    *b = (struct board){0};
    must(strata_memory_new(NULL, &b->mem));
    must(strata_region_new(b->mem, &root, &b->root));
    must(strata_space_new(b->mem, "memory", b->root, &b->space));
    must(strata_listener_register(b->mem, &ear, &l));
    for (unsigned i = 0; i < n; i++) {
        struct strata_region *r;

        must(strata_region_new(b->mem, &bar, &r));
        must(strata_region_add(b->root, 0x100000 + (uint64_t)i * 0x3000, r));
        b->bar = i == n / 2 ? r : b->bar;
    }
}

static void toggle(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        must(strata_region_set_enabled(b->bar, b->toggles++ & 1));
    }
}

static void rebuild(void *ctx, uint64_t n)
{
    struct board *b = ctx;

    while (n-- > 0) {
        struct strata_space *s;
        struct strata_region_desc alias = {.kind = STRATA_ALIAS, .name = "a", .size = STRATA_SIZE_ALL,
                                           .target = b->root, .offset = 0x1000};
        struct strata_region *a;

        must(strata_region_new(b->mem, &alias, &a)); /* shifted, so that it has a view of its own */
        must(strata_space_new(b->mem, "again", a, &s));
        must(strata_space_free(s));
        must(strata_region_destroy(a));
    }
}

#ifdef HAVE_UNICORN
struct peer {
    uc_engine *uc;
    unsigned n;
};

static void peer_toggle(void *ctx, uint64_t n)
{
    struct peer *p = ctx;

    while (n-- > 0) {
        uc_mem_unmap(p->uc, 0x100000 + (uint64_t)(p->n / 2) * 0x3000, 0x1000);
        uc_mem_map(p->uc, 0x100000 + (uint64_t)(p->n / 2) * 0x3000, 0x1000, UC_PROT_ALL);
    }
}

/* Microseconds for one change of a map of n; *build_ms: for making it. -1: not measured. */
static double peer_cost(unsigned n, double *build_ms)
{
    struct peer p = {.n = n};
    double start = measure_now(), cost = -1;

    *build_ms = -1;
    if (n > 2000 || uc_open(UC_ARCH_X86, UC_MODE_64, &p.uc) != UC_ERR_OK) {
        return -1;
    }
    for (unsigned i = 0; i < n; i++) {
        if (uc_mem_map(p.uc, 0x100000 + (uint64_t)i * 0x3000, 0x1000, UC_PROT_ALL) != UC_ERR_OK) {
            goto out;
        }
    }
    *build_ms = (measure_now() - start) / 1e6;
    cost = measure_run(peer_toggle, &p, n > 500 ? 4 : 40) / 2 / 1e3;
out:
    uc_close(p.uc);
    return cost;
}
#else
static double peer_cost(unsigned n, double *build_ms)
{
    *build_ms = -1;
    return -1;
}
#endif

/* Microseconds for one new map of n regions; -1: not measured. */
static double crate_cost(const struct vm_memory *crate, unsigned n)
{
    uint64_t *base = n <= 1000 && crate->object ? calloc(n, sizeof(*base)) : NULL;
    double cost = -1;
    void *peer;

    for (unsigned i = 0; base && i < n; i++) {
        base[i] = 0x100000 + (uint64_t)i * 0x3000;
    }
    peer = base ? crate->make(base, n, 0x1000) : NULL;
    if (peer) {
        cost = measure_run(crate->toggle, peer, n > 500 ? 10 : 100) / 2 / 1e3;
        crate->free(peer);
    }
    free(base);
    return cost;
}

int main(int argc, char **argv)
{
    static const unsigned counts[] = {10, 100, 1000, 10000, 100000};
    static const char *const peers[2] = {"Unicorn", "vm-memory"};
    struct measure m = measure_open_peers(argc, argv, peers);
    struct vm_memory crate = vm_memory_load(argv[0]);

    for (int i = 0; i < 5; i++) {
        unsigned n = counts[i];
        double start = measure_now(), built, peer_build, row[4];
        struct board b;
        char what[64];

        build(&b, n);
        built = (measure_now() - start) / 1e6;
        row[1] = peer_cost(n, &peer_build);
        row[2] = crate_cost(&crate, n);
        row[0] = measure_run(toggle, &b, 10000) / 1e3;
        row[3] = 5;
        snprintf(what, sizeof(what), "toggle one of %u regions", n);
        measure_row_peers(&m, what, "us", row);
        snprintf(what, sizeof(what), "build %u regions one by one", n);
        measure_row_peers(&m, what, "ms", (double[4]){built, peer_build, -1,
                          n == 1000 ? 5 : n == 100000 ? 1000 : -1});
        snprintf(what, sizeof(what), "render and drop a view of %u", n);
        measure_row_peers(&m, what, "ms", (double[4]){measure_run(rebuild, &b, n > 1000 ? 1 : 20) / 1e6,
                          -1, -1, -1});
        strata_memory_free(b.mem);
    }
    measure_close(&m);
    return 0;
}
