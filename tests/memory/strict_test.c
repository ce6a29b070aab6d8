/*
 * Where strict mode differs from compatible mode: the list, each entry tried in both. An entry builds
 * its scene, does its access, and says in words what happened; the words of both modes are expected
 * here, must differ, and are printed. docs/features.md has the same list for readers, and the number
 * of its rows is compared.
 */
#include "memory/help.h"

#include "strata/fast.h"

struct probe {
    char log[256];
    size_t len;
    uint8_t byte[64];
};

static void probe_note(struct probe *p, const char *fmt, ...)
{
    va_list args;

    va_start(args, fmt);
    p->len += (size_t)vsnprintf(p->log + p->len, sizeof(p->log) - p->len, fmt, args);
    va_end(args);
    assert_true(p->len < sizeof(p->log));
}

static enum strata_result probe_read(void *opaque, strata_addr addr, uint64_t *value, unsigned size,
                                     struct strata_attrs attrs)
{
    struct probe *p = opaque;

    probe_note(p, "r%llx/%u ", (unsigned long long)addr, size);
    *value = 0;
    memcpy(value, &p->byte[addr % 56], size);
    return STRATA_OK;
}

static enum strata_result probe_write(void *opaque, strata_addr addr, uint64_t value, unsigned size,
                                      struct strata_attrs attrs)
{
    struct probe *p = opaque;

    probe_note(p, attrs.requester ? "w%llx/%u by %u " : "w%llx/%u ", (unsigned long long)addr, size,
               attrs.requester);
    memcpy(&p->byte[addr % 56], &value, size);
    return STRATA_OK;
}

/* Callbacks that take min to max bytes behind a bus that lets anything through. */
static struct strata_io_ops probe_ops(unsigned min, unsigned max)
{
    return (struct strata_io_ops){.read_attrs = probe_read, .write_attrs = probe_write,
                                  .valid = {.min = 1, .max = 8, .unaligned = true},
                                  .impl = {.min = min, .max = max}};
}

static struct strata_region *readonly_alias(struct board *b)
{
    struct strata_region *ram = help_region(b->mem, STRATA_RAM, "ram", 0x1000);
    struct strata_region *alias = help_alias(b->mem, "alias", ram, 0, 0x1000);

    help_add(b->root, 0, alias, 0);
    assert_int_equal(strata_region_set_readonly(alias, true), 0);
    return ram;
}

static const char *result_word(enum strata_result r)
{
    return r == STRATA_OK ? "goes through" : r == STRATA_DECODE_ERROR ? "decode error" : "other";
}

static void readonly_write(struct board *b, struct probe *p)
{
    uint8_t one = 1;

    readonly_alias(b);
    probe_note(p, "%s", result_word(strata_write(b->space, 8, STRATA_ATTRS_NONE, &one, 1)));
}

static void readonly_slot(struct board *b, struct probe *p)
{
    struct strata_section s;

    readonly_alias(b);
    strata_read_begin(b->mem);
    assert_int_equal(strata_space_lookup(b->space, 0, &s), 0);
    probe_note(p, s.readonly ? "read-only slot" : "writable slot");
    strata_read_end(b->mem);
}

static void readonly_lens(struct board *b, struct probe *p)
{
    struct strata_lens lens;

    readonly_alias(b);
    strata_read_begin(b->mem);
    lens = strata_lens_get(b->space);
    probe_note(p, "%s", result_word(strata_lens_write32(&lens, 16, 5)));
    strata_read_end(b->mem);
}

static void readonly_mapping(struct board *b, struct probe *p)
{
    struct strata_region *ram = readonly_alias(b);
    struct strata_mapping m;

    assert_int_equal(strata_map(b->space, 0, 16, true, &m), 0);
    probe_note(p, m.ptr == strata_region_host(ram) ? "the RAM itself" : "a bounce buffer");
    strata_unmap(&m, 0);
}

static void unaligned_read(struct board *b, struct probe *p)
{
    struct strata_io_ops ops = probe_ops(4, 4);
    uint64_t v;

    help_add(b->root, 0, help_device(b->mem, "dev", 64, &ops, p), 0);
    strata_load(b->space, 2, 4, STRATA_LITTLE_ENDIAN, &v);
}

static void narrow_write(struct board *b, struct probe *p)
{
    struct strata_io_ops ops = probe_ops(4, 4);

    memset(p->byte, 0x77, sizeof(p->byte));
    help_add(b->root, 0, help_device(b->mem, "dev", 64, &ops, p), 0);
    strata_store(b->space, 4, 2, STRATA_LITTLE_ENDIAN, 0x1111);
    probe_note(p, "then %02x", p->byte[6]);
}

static void off_the_edge(struct board *b, struct probe *p)
{
    struct strata_io_ops ops = probe_ops(1, 8);
    uint8_t buf[8];

    help_add(b->root, 0, help_device(b->mem, "dev", 4, &ops, p), 0);
    help_add(b->root, 4, help_region(b->mem, STRATA_RAM, "ram", 0x1000), 0);
    strata_read(b->space, 0, STRATA_ATTRS_NONE, buf, 8);
}

/* At 4 of the space and 0 of itself: the piece that the helper looks at has 4 bytes by the former's
 * alignment and 8 by the latter's, which the device refuses. */
static void misplaced_device(struct board *b, struct probe *p)
{
    struct strata_io_ops ops = probe_ops(1, 8);

    ops.valid.unaligned = false;
    ops.valid.min = 8;
    help_add(b->root, 4, help_device(b->mem, "dev", 64, &ops, p), 0);
    probe_note(p, strata_access_valid(b->space, 4, 8, false, STRATA_ATTRS_NONE) ? "valid" : "not valid");
}

static void bounce_attributes(struct board *b, struct probe *p)
{
    struct strata_io_ops ops = probe_ops(1, 8);
    struct strata_mapping m = {.attrs = {.requester = 7}};

    help_add(b->root, 0, help_device(b->mem, "dev", 64, &ops, p), 0);
    assert_int_equal(strata_map_attrs(b->space, 0, 4, true, &m), 0);
    assert_int_equal(strata_unmap(&m, 4), 0);
}

static void keep_warning(void *ctx, const char *text)
{
    struct probe *p = ctx;

    if (p->len == 0) {
        probe_note(p, "%s", text);
    }
}

static void hidden_region(struct board *b, struct probe *p)
{
    help_add(b->root, 0, help_region(b->mem, STRATA_IO, "big", 0x1000), 1);
    help_add(b->root, 0x100, help_region(b->mem, STRATA_IO, "under", 0x100), 0);
}

static void note_coalesced(void *opaque, const struct strata_section *s, strata_addr start, uint64_t size)
{
    probe_note(opaque, "%llx ", (unsigned long long)start);
}

static void coalesced_at_attach(struct board *b, struct probe *p)
{
    static const struct strata_listener_ops ops = {.coalesced_add = note_coalesced};
    struct strata_listener_desc d = {.name = "late", .ops = &ops, .opaque = p};
    struct strata_region *dev = help_region(b->mem, STRATA_IO, "dev", 0x100);
    struct strata_region *lid = help_region(b->mem, STRATA_IO, "lid", 0x80);
    struct strata_listener *l;

    help_add(b->root, 0, dev, 0);
    help_add(b->root, 0, lid, 1); /* hides the first of the two */
    assert_int_equal(strata_region_add_coalesced(dev, 0x10, 8), 0);
    assert_int_equal(strata_region_add_coalesced(dev, 0x90, 8), 0);
    assert_int_equal(strata_listener_register(b->mem, &d, &l), 0);
    strata_listener_unregister(l);
}

static const struct difference {
    unsigned row; /* of the table in docs/features.md */
    const char *what;
    void (*scene)(struct board *b, struct probe *p);
    const char *compatible, *strict;
} differences[] = {
    {1, "write to RAM through a read-only alias", readonly_write, "goes through", "decode error"},
    {1, "the alias's memory slot", readonly_slot, "writable slot", "read-only slot"},
    {1, "a lens on the alias", readonly_lens, "goes through", "decode error"},
    {1, "a mapping for writing of the alias", readonly_mapping, "the RAM itself", "a bounce buffer"},
    {2, "read of 4 at 2, callbacks take aligned 4", unaligned_read, "r2/4 ", "r0/4 r4/4 "},
    {3, "write of 2, callbacks take no less than 4", narrow_write, "w4/4 then 00",
     "r4/4 w4/4 then 77"},
    {4, "read of 8 at a device of 4 bytes", off_the_edge, "r0/8 ", "r0/4 "},
    {5, "access_valid of 8 at a device placed at 4", misplaced_device, "not valid", "valid"},
    {6, "write-back of a bounce buffer by requester 7", bounce_attributes, "w0/4 ", "w0/4 by 7 "},
    {7, "a region put where it is hidden", hidden_region, "", "'under' in 'root' is hidden altogether"},
    {8, "coalesced ranges at attach, the first hidden", coalesced_at_attach, "", "90 "},
};

#define DIFFERENCES (sizeof(differences) / sizeof(differences[0]))

static void try_one(const struct difference *d, enum strata_mode mode, struct probe *p)
{
    struct strata_memory_config config = {.mode = mode, .warn = keep_warning, .warn_ctx = p};
    struct board b = help_board(&config);

    memset(p, 0, sizeof(*p));
    d->scene(&b, p);
    help_done(&b);
}

static void the_list(void **state)
{
    struct probe p;

    for (size_t i = 0; i < DIFFERENCES; i++) {
        const struct difference *d = &differences[i];

        try_one(d, STRATA_COMPATIBLE, &p);
        print_message("# %s: compatible '%s', strict '%s'\n", d->what, d->compatible, d->strict);
        assert_string_equal(p.log, d->compatible);
        try_one(d, STRATA_STRICT, &p);
        assert_string_equal(p.log, d->strict);
        assert_string_not_equal(d->compatible, d->strict);
    }
}

/* The table for readers has as many rows as this list has entries, each row at least one. */
static void the_documented_list(void **state)
{
    FILE *f = fopen(STRATA_TEST_DATA "/../../docs/features.md", "r");
    unsigned rows = 0, covered = 0;
    bool inside = false;
    char line[1024];

    assert_non_null(f);
    while (fgets(line, sizeof(line), f)) {
        if (strncmp(line, "## ", 3) == 0) {
            inside = strcmp(line, "## Compatible and strict\n") == 0;
        }
        rows += inside && line[0] == '|';
    }
    fclose(f);
    assert_true(rows > 2);
    for (size_t i = 0; i < DIFFERENCES; i++) {
        covered = differences[i].row > covered ? differences[i].row : covered;
        assert_true(i == 0 || differences[i].row - differences[i - 1].row < 2);
    }
    assert_int_equal(rows - 2, covered); /* less the two of the head */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_list),
        cmocka_unit_test(the_documented_list),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
