/*
 * Printers: the tree of a PC with 10 GiB, built through the public face, must print byte for byte as
 * tests/data/mtree-pc-10g.txt has it (address space "memory"); its flat view must be the painter's
 * kind of right, address by address; JSON must be well formed; the journal; U72's forms.
 */
#include "memory/help.h"

#include "strata/journal.h"
#include "strata/print.h"

#define GIB UINT64_C(0x40000000)

struct text {
    char *data;
    size_t len;
};

static void sink(void *opaque, const char *piece, size_t len)
{
    struct text *t = opaque;

    t->data = realloc(t->data, t->len + len + 1);
    assert_non_null(t->data);
    memcpy(t->data + t->len, piece, len);
    t->len += len;
    t->data[t->len] = '\0';
}

static char *print(struct strata_memory *mem, struct strata_space *space, unsigned flags)
{
    struct text t = {calloc(1, 1), 0};

    assert_int_equal(strata_print(mem, space, flags, sink, &t), 0);
    return t.data;
}

/* The section of the file that begins with this line, up to the end or the next space. */
static char *expected(const char *line)
{
    FILE *f = fopen(STRATA_TEST_DATA "/mtree-pc-10g.txt", "r");
    char *all = calloc(1, 65536), *from, *to;

    assert_non_null(f);
    assert_true(fread(all, 1, 65535, f) > 0);
    fclose(f);
    from = strstr(all, line);
    assert_non_null(from);
    to = strstr(from, "\n\n");
    if (to) {
        to[1] = '\0';
    }
    from = strdup(from);
    free(all);
    return from;
}

static void pam(struct strata_region *system, struct strata_region *ram, const char *name,
                uint64_t at, uint64_t size)
{
    help_add(system, at, help_alias(strata_region_memory(ram), name, ram, at, size), 1);
}

static struct strata_region *pc_pci(struct board *b)
{
    struct strata_region *pci = help_region(b->mem, STRATA_CONTAINER, "pci", STRATA_SIZE_ALL);
    struct strata_region *bios = help_region(b->mem, STRATA_ROM, "pc.bios", 0x40000);
    struct strata_region *vga = help_region(b->mem, STRATA_CONTAINER, "vga.mmio", 0x1000);

    help_add(pci, 0xa0000, help_region(b->mem, STRATA_IO, "vga-lowmem", 0x20000), 1);
    help_add(pci, 0xc0000, help_region(b->mem, STRATA_ROM, "pc.rom", 0x20000), 1);
    help_add(pci, 0xe0000, help_alias(b->mem, "isa-bios", bios, 0x20000, 0x20000), 1);
    help_add(pci, 0xfd000000, help_region(b->mem, STRATA_RAM, "vga.vram", 0x1000000), 1);
    help_add(pci, 0xfebc0000, help_region(b->mem, STRATA_IO, "e1000-mmio", 0x20000), 1);
    help_add(vga, 0, help_region(b->mem, STRATA_IO, "edid", 0x180), 0);
    help_add(vga, 0x400, help_region(b->mem, STRATA_IO, "vga ioports remapped", 0x20), 0);
    help_add(vga, 0x500, help_region(b->mem, STRATA_IO, "bochs dispi interface", 0x16), 0);
    help_add(vga, 0x600, help_region(b->mem, STRATA_IO, "qemu extended regs", 8), 0);
    help_add(pci, 0xfebf0000, vga, 1);
    help_add(pci, 0xfffc0000, bios, 0);
    return pci;
}

static void pc_chips(struct board *b, struct strata_region *system)
{
    help_add(system, 0xfec00000, help_region(b->mem, STRATA_IO, "kvm-ioapic", 0x1000), 0);
    help_add(system, 0xfed00000, help_region(b->mem, STRATA_IO, "hpet", 0x400), 0);
    help_add(system, 0xfee00000, help_region(b->mem, STRATA_IO, "kvm-apic-msi", 0x100000), 4096);
}

static void pc_build(struct board *b)
{
    struct strata_region *ram, *pci;
    struct strata_region_desc d = {.kind = STRATA_RAM, .name = "pc.ram", .size = 10 * GIB};
    struct strata_ram_desc rd = {.name = "pc.ram", .size = 10 * GIB, .flags = STRATA_RAM_NORESERVE};
    struct strata_space *cpu;

    assert_int_equal(strata_memory_new(NULL, &b->mem), 0);
    b->root = help_region(b->mem, STRATA_CONTAINER, "system", STRATA_SIZE_ALL);
    assert_int_equal(strata_space_new(b->mem, "cpu-memory-0", b->root, &cpu), 0);
    assert_int_equal(strata_space_new(b->mem, "memory", b->root, &b->space), 0);
    assert_int_equal(strata_ram_new(b->mem, &rd, &d.ram), 0);
    assert_int_equal(strata_region_new(b->mem, &d, &ram), 0);
    strata_ram_unref(d.ram);
    help_add(b->root, 0, help_alias(b->mem, "ram-below-4g", ram, 0, 3 * GIB), 0);
    help_add(b->root, 4 * GIB, help_alias(b->mem, "ram-above-4g", ram, 3 * GIB, 7 * GIB), 0);
    pci = pc_pci(b);
    help_add(b->root, 0, pci, -1);
    help_add(b->root, 0xa0000, help_alias(b->mem, "smram-region", pci, 0xa0000, 0x20000), 1);
    for (uint64_t at = 0xc0000; at < 0xf0000; at += 0x4000) {
        pam(b->root, ram, at >= 0xe4000 ? "pam-ram" : "pam-rom", at, 0x4000);
    }
    pam(b->root, ram, "pam-rom", 0xf0000, 0x10000);
    help_add(b->root, 0xcb000, help_alias(b->mem, "kvmvapic-rom", ram, 0xcb000, 0x3000), 1000);
    pc_chips(b, b->root);
}

static void pc_tree(void **state)
{
    struct board b;
    char *want = expected("address-space: cpu-memory-0"), *got;

    pc_build(&b);
    got = print(b.mem, NULL, 0);
    assert_non_null(strstr(got, "\n\n"));
    strstr(got, "\n\n")[1] = '\0';
    assert_string_equal(got, want);
    free(got);
    got = print(b.mem, b.space, 0); /* one space alone */
    got[strlen(got) - 1] = '\0';
    assert_string_equal(got, strstr(want, "address-space: memory"));
    free(got);
    free(want);
    help_done(&b);
}

/* What the reference picture says by hand: the first and last byte of each piece. */
static void pc_flat_view(void **state)
{
    static const struct {
        uint64_t addr;
        const char *name;
    } want[] = {
        {0, "pc.ram"}, {0x9ffff, "pc.ram"}, {0xa0000, "vga-lowmem"}, {0xbffff, "vga-lowmem"},
        {0xc0000, "pc.ram"}, {0xfffff, "pc.ram"}, {0xbfffffff, "pc.ram"}, {0xc0000000, "-"},
        {0xfcffffff, "-"}, {0xfd000000, "vga.vram"}, {0xfdffffff, "vga.vram"}, {0xfe000000, "-"},
        {0xfebc0000, "e1000-mmio"}, {0xfebdffff, "e1000-mmio"}, {0xfebe0000, "-"},
        {0xfebf0000, "edid"}, {0xfebf017f, "edid"}, {0xfebf0180, "-"},
        {0xfebf0400, "vga ioports remapped"}, {0xfebf041f, "vga ioports remapped"},
        {0xfebf0420, "-"}, {0xfebf0515, "bochs dispi interface"}, {0xfebf0516, "-"},
        {0xfebf0607, "qemu extended regs"}, {0xfebf0608, "-"}, {0xfec00fff, "kvm-ioapic"},
        {0xfec01000, "-"}, {0xfed003ff, "hpet"}, {0xfed00400, "-"}, {0xfeefffff, "kvm-apic-msi"},
        {0xfef00000, "-"}, {0xfffc0000, "pc.bios"}, {0xffffffff, "pc.bios"},
        {0x100000000, "pc.ram"}, {0x2bfffffff, "pc.ram"}, {0x2c0000000, "-"}, {UINT64_MAX, "-"}};
    struct board b;
    char *flat;

    pc_build(&b);
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++) {
        help_shows(&b, want[i].addr, want[i].name);
    }
    flat = print(b.mem, NULL, STRATA_PRINT_FLAT | STRATA_PRINT_DISPATCH);
    assert_non_null(strstr(flat, "FlatView #0\n AS \"cpu-memory-0\", root: system\n AS \"memory\", "
                                 "root: system\n Root memory region: system\n"
                                 "  0000000000000000-000000000009ffff (prio 0, ram): pc.ram\n"
                                 "  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\n"
                                 "  00000000000c0000-00000000bfffffff (prio 0, ram): pc.ram "
                                 "@00000000000c0000\n"
                                 "  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram\n"));
    assert_non_null(strstr(flat, "  0000000100000000-00000002bfffffff (prio 0, ram): pc.ram "
                                 "@00000000c0000000\n  Dispatch: "));
    free(flat);
    help_done(&b);
}

/* A reader of JSON that only knows what is well formed. Returns what follows the value, or null. */
static const char *json_skip(const char *s, int depth)
{
    char close = *s == '{' ? '}' : ']';

    if (depth > 200) {
        return NULL;
    }
    if (*s == '"') {
        for (s++; *s && *s != '"'; s += *s == '\\' ? 2 : 1) {
        }
        return *s ? s + 1 : NULL;
    }
    if (*s != '{' && *s != '[') {
        size_t n = strspn(s, "0123456789-truefalsn");

        return n ? s + n : NULL;
    }
    if (s[1] == close) {
        return s + 2;
    }
    do {
        s++;
        if (close == '}') {
            s = *s == '"' ? json_skip(s, depth + 1) : NULL;
            s = s && *s == ':' ? s + 1 : NULL;
        }
        s = s ? json_skip(s, depth + 1) : NULL;
    } while (s && *s == ',');
    return s && *s == close ? s + 1 : NULL;
}

static void forms(void **state)
{
    struct board b = help_board(NULL);
    struct strata_owner *owner;
    struct strata_region_desc d = {.kind = STRATA_IO, .name = "odd \"name\"\n", .size = 16,
                                   .ops = &help_quiet_ops};
    struct strata_region *r;
    char *text;

    assert_int_equal(strata_owner_new(b.mem, "dev\\1", NULL, NULL, &owner), 0);
    d.owner = owner;
    assert_int_equal(strata_region_new(b.mem, &d, &r), 0);
    help_add(b.root, 0x10, r, 3);
    assert_int_equal(strata_region_set_nonvolatile(r, true), 0);
    text = print(b.mem, b.space, STRATA_PRINT_OWNER);
    assert_non_null(strstr(text, "(prio 3, nv-i/o): odd \"name\"\\x0a owner:{dev\\1}\n"));
    free(text);
    assert_int_equal(strata_region_set_enabled(r, false), 0);
    text = print(b.mem, b.space, 0);
    assert_null(strstr(text, "odd"));
    free(text);
    text = print(b.mem, b.space, STRATA_PRINT_DISABLED);
    assert_non_null(strstr(text, "odd \"name\"\\x0a [disabled]\n"));
    free(text);
    text = print(b.mem, NULL, STRATA_PRINT_FLAT);
    assert_non_null(strstr(text, "Root memory region: (none)\n  No rendered FlatView\n"));
    free(text);
    for (unsigned flags = 0; flags < 16; flags++) {
        text = print(b.mem, NULL, STRATA_PRINT_JSON | flags);
        assert_string_equal(json_skip(text, 0), "\n");
        free(text);
    }
    help_done(&b);
}

static int past_piece(void *opaque, const struct strata_past_piece *p)
{
    char *out = opaque;

    sprintf(out + strlen(out), "%s:%llx-%llx ", p->region, (unsigned long long)p->start,
            (unsigned long long)p->last);
    return 0;
}

static void past_is(struct board *b, uint64_t generation, const char *want)
{
    char got[512] = "";

    assert_int_equal(strata_journal_map(b->mem, b->space, generation, past_piece, got), 0);
    assert_string_equal(got, want);
}

static void journal(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *x = help_region(b.mem, STRATA_IO, "x", 0x10);
    struct strata_region *y = help_region(b.mem, STRATA_IO, "y", 0x10);
    struct text t = {calloc(1, 1), 0};
    uint64_t g;
    char none[8] = "";

    help_add(b.root, 0, x, 0);
    assert_int_equal(strata_journal_set(b.mem, 3), 0);
    g = strata_memory_generation(b.mem);
    strata_begin(b.mem);
    strata_journal_actor(b.mem, "pci 00:02.0");
    help_add(b.root, 8, y, 1);
    assert_int_equal(strata_commit(b.mem), 0);
    assert_int_equal(strata_region_set_address(x, 0x100), 0);
    assert_int_equal(strata_region_destroy(y), 0);
    past_is(&b, g, "x:0-f ");
    past_is(&b, g + 1, "x:0-7 y:8-17 ");
    past_is(&b, g + 2, "y:8-17 x:100-10f ");
    past_is(&b, g + 3, "x:100-10f ");
    assert_int_equal(strata_journal_print(b.mem, 0, sink, &t), 0);
    assert_non_null(strstr(t.data, " by pci 00:02.0\n  add y\n  - 0000000000000000-"));
    assert_non_null(strstr(t.data, "  move x\n"));
    assert_non_null(strstr(t.data, "  destroy y\n  - 0000000000000008-0000000000000017 y @"));
    t.len = 0;
    assert_int_equal(strata_journal_print(b.mem, STRATA_PRINT_JSON, sink, &t), 0);
    assert_int_equal(json_skip(t.data, 0)[0], '\n');
    assert_int_equal(strata_region_set_enabled(x, false), 0); /* the oldest is forgotten */
    assert_int_equal(strata_journal_map(b.mem, b.space, g, past_piece, none), -ENOENT);
    assert_int_equal(strata_journal_map(b.mem, b.space, g + 5, past_piece, none), -ENOENT);
    past_is(&b, g + 1, "x:0-7 y:8-17 ");
    assert_int_equal(strata_journal_set(b.mem, 0), 0);
    assert_int_equal(strata_journal_map(b.mem, b.space, g + 4, past_piece, none), -ENOENT);
    free(t.data);
    help_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pc_tree), cmocka_unit_test(pc_flat_view), cmocka_unit_test(forms),
        cmocka_unit_test(journal),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
