/* Programs made of bytes; see stream.h. */
#include "memory/stream.h"

#include <stdio.h>
#include <string.h>

#include "memory/world.h"
#include "oracle/memory_bus.h"
#include "strata/access.h"
#include "strata/memory.h"
#include "strata/region.h"

struct tape {
    const uint8_t *data;
    size_t len, at;
};

static unsigned take(struct tape *t)
{
    return t->at < t->len ? t->data[t->at++] : 0;
}

static uint64_t device_read(void *opaque, strata_addr addr, unsigned size)
{
    return bus_device_read(opaque, addr, size);
}

static void device_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    bus_device_write(opaque, addr, value, size);
}

struct scene {
    struct strata_memory *mem;
    struct strata_region *root, *region[BUS_PARTS];
    struct strata_space *space;
    struct strata_io_ops ops[BUS_PARTS];
    struct bus model, real; /* real: what the library's devices are made of */
};

/* Sizes are 1, 2, 4, 8, or not given; min above max is not a device. */
static void take_part(struct tape *t, struct bus_part *p)
{
    static const unsigned sizes[8] = {0, 1, 2, 4, 8, 4, 1, 2};
    unsigned flags = take(t), v = take(t), i = take(t);

    p->kind = (enum bus_kind)(flags % 4 < 2 ? BUS_DEVICE : flags % 4 - 2);
    p->vmin = sizes[v & 7];
    p->vmax = sizes[v >> 3 & 7];
    p->imin = sizes[i & 7];
    p->imax = sizes[i >> 3 & 7];
    p->vmin = p->vmin > p->vmax ? p->vmax : p->vmin;
    if ((p->imax ? p->imax : 4) < (p->imin ? p->imin : 1)) {
        p->imin = p->imax;
    }
    p->valid_unaligned = flags & 16;
    p->impl_unaligned = flags & 32;
    p->big = p->kind == BUS_DEVICE && flags & 64;
    p->len = 1 + take(t) % BUS_BYTES;
    for (unsigned k = 0; k < BUS_BYTES; k++) {
        p->byte[k] = (uint8_t)(k * 37 + flags);
    }
}

static bool place_part(struct scene *s, int i)
{
    struct bus_part *p = &s->real.part[i];
    struct strata_region_desc d = {.name = "part", .size = p->len, .opaque = p, .ops = &s->ops[i]};
    char name[16];

    snprintf(name, sizeof(name), "part%d", i);
    d.name = name;
    d.kind = p->kind == BUS_DEVICE ? STRATA_IO : p->kind == BUS_ROM ? STRATA_ROM : STRATA_RAM;
    s->ops[i] = (struct strata_io_ops){
        .read = device_read,
        .write = device_write,
        .endian = p->big ? STRATA_BIG_ENDIAN : STRATA_LITTLE_ENDIAN,
        .valid = {p->vmin, p->vmax, p->valid_unaligned, NULL},
        .impl = {p->imin, p->imax, p->impl_unaligned},
    };
    if (p->kind != BUS_DEVICE) {
        d.ops = NULL;
    }
    if (strata_region_new(s->mem, &d, &s->region[i]) != 0 ||
        strata_region_add(s->root, p->start, s->region[i]) != 0) {
        return false;
    }
    if (p->kind != BUS_DEVICE) {
        memcpy(strata_region_host(s->region[i]), p->byte, p->len);
    }
    return true;
}

static bool scene_up(struct scene *s, struct tape *t)
{
    struct strata_region_desc root = {.kind = STRATA_CONTAINER, .name = "root", .size = STRATA_SIZE_ALL};
    uint64_t at = take(t) * 3;

    memset(s, 0, sizeof(*s));
    if (strata_memory_new(NULL, &s->mem) != 0 || strata_region_new(s->mem, &root, &s->root) != 0 ||
        strata_space_new(s->mem, "s", s->root, &s->space) != 0) {
        return false;
    }
    s->real.parts = 1 + (int)(take(t) % BUS_PARTS);
    for (int i = 0; i < s->real.parts; i++) {
        take_part(t, &s->real.part[i]);
        s->real.part[i].start = at;
        at += s->real.part[i].len + (uint64_t)(take(t) % 4 ? 0 : take(t) % 20);
        if (!place_part(s, i)) {
            return false;
        }
    }
    s->model = s->real;
    return true;
}

static bool parts_agree(const struct scene *s, char why[256])
{
    for (int i = 0; i < s->model.parts; i++) {
        const struct bus_part *m = &s->model.part[i], *r = &s->real.part[i];
        const void *bytes = r->kind == BUS_DEVICE ? r->byte : strata_region_host(s->region[i]);

        if (m->trace != r->trace || memcmp(m->byte, bytes, r->kind == BUS_DEVICE ? BUS_BYTES : m->len)) {
            snprintf(why, 256, "part %d (kind %d, valid %u-%u, impl %u-%u) differs", i, m->kind,
                     m->vmin, m->vmax, m->imin, m->imax);
            return false;
        }
    }
    return true;
}

static bool step_access(struct scene *s, struct tape *t, char why[256])
{
    uint8_t want[80], got[80];
    unsigned op = take(t), len = 1 + take(t) % 70, a, b;
    uint64_t addr = take(t) * 2 + op % 3;

    for (unsigned i = 0; i < sizeof(want); i++) {
        want[i] = got[i] = (uint8_t)(op + i * 11);
    }
    if (op & 8) {
        a = bus_write(&s->model, addr, want, len);
        b = strata_write(s->space, addr, STRATA_ATTRS_NONE, got, len);
    } else {
        a = bus_read(&s->model, addr, want, len);
        b = strata_read(s->space, addr, STRATA_ATTRS_NONE, got, len);
    }
    if (a != b || memcmp(want, got, sizeof(want))) {
        snprintf(why, 256, "%s of %u bytes at %llx: result %u, want %u; data %s",
                 op & 8 ? "write" : "read", len, (unsigned long long)addr, b, a,
                 memcmp(want, got, sizeof(want)) ? "differs" : "agrees");
        return false;
    }
    return parts_agree(s, why);
}

/* A map and up to 64 accesses. */
bool stream_access(const uint8_t *data, size_t len, char why[256])
{
    struct tape t = {data, len, 0};
    struct scene s;
    bool ok = scene_up(&s, &t);

    strcpy(why, ok ? "" : "the scene was refused");
    for (int i = 0; ok && i < 64 && t.at < t.len; i++) {
        ok = step_access(&s, &t, why);
    }
    strata_memory_free(s.mem);
    return ok;
}

/* A world and up to 100 changes, in and out of transactions. */
bool stream_topology(const uint8_t *data, size_t len, char why[256])
{
    static const unsigned shifts[8] = {0, 58, 12, 3, 57, 11, 30, 1};
    struct tape t = {data, len, 0};
    unsigned head = take(&t), open = 0;
    struct world w;
    bool ok = world_init(&w, shifts[head & 7], head + 1, NULL);

    world_populate(&w, 3 + (int)(head >> 3));
    if (take(&t) & 1) {
        world_slice(&w);
    }
    ok = ok && world_add_space(&w, 0, 0) && world_add_space(&w, 1, (int)(head % (unsigned)w.nodes));
    for (int i = 0; ok && i < 100 && t.at < t.len; i++) {
        unsigned op = take(&t);

        if (op >= 240) {
            open += 1;
            strata_begin(w.mem);
            continue;
        }
        if (op >= 220 && open) {
            open--;
            ok = strata_commit(w.mem) == 0;
        } else {
            unsigned a = take(&t), b = take(&t);

            ok = world_step(&w, op, a, b, take(&t) * 256 + take(&t)) == 0;
        }
        ok = ok && (open || world_agrees(&w));
    }
    for (; open > 0; open--) {
        ok = strata_commit(w.mem) == 0 && ok;
    }
    ok = ok && world_agrees(&w);
    snprintf(why, 256, "%s", ok ? "" : w.why);
    world_fini(&w);
    return ok;
}
