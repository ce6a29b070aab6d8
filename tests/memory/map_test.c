/* DMA mappings, bounce budget, caches: U44, U45; and IOMMU regions: U47 to U49. */
#include "memory/help.h"

#include "strata/cache.h"
#include "strata/discard.h"
#include "strata/iommu.h"

static uint64_t ones_read(void *opaque, strata_addr addr, unsigned size)
{
    return 0x0101010101010101u;
}

static void count_write(void *opaque, strata_addr addr, uint64_t value, unsigned size)
{
    *(unsigned *)opaque += size;
}

static const struct strata_io_ops dev_ops = {
    .read = ones_read, .write = count_write, .valid = {1, 8, true, NULL}, .impl = {1, 8, true}};

static void direct_mapping(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x4000);
    struct strata_region *lo = help_alias(b.mem, "lo", ram, 0, 0x1000);
    struct strata_region *hi = help_alias(b.mem, "hi", ram, 0x1000, 0x1000);
    struct strata_mapping m;

    help_add(b.root, 0, lo, 0);
    help_add(b.root, 0x1000, hi, 0);
    assert_int_equal(strata_region_set_nonvolatile(hi, true), 0); /* two ranges, one region */
    assert_int_equal(strata_region_set_log(ram, true, STRATA_DIRTY_DISPLAY), 0);
    strata_ram_test_clear_dirty(strata_region_ram(ram), 0, 0x4000, STRATA_DIRTY_DISPLAY);
    assert_int_equal(strata_map(b.space, 0x800, 0x2000, true, &m), 0);
    assert_true(m.len == 0x1800 && m.ptr == (char *)strata_region_host(ram) + 0x800);
    memset(m.ptr, 7, 0x900);
    assert_int_equal(strata_unmap(&m, 0x900), 0);
    assert_int_equal(strata_unmap(&m, 0x900), -EINVAL); /* no second time */
    assert_true(strata_ram_get_dirty(strata_region_ram(ram), 0x1000, 1, STRATA_DIRTY_DISPLAY));
    assert_false(strata_ram_get_dirty(strata_region_ram(ram), 0x2000, 1, STRATA_DIRTY_DISPLAY));
    assert_int_equal(strata_map(b.space, 0, 0, true, &m), -EINVAL);
    help_done(&b);
}

struct turn {
    int *order;
    int seen;
};

static void on_budget(void *opaque)
{
    struct turn *t = opaque;

    t->seen = ++*t->order;
}

static void bounce_budget(void **state)
{
    struct board b = help_board(NULL);
    unsigned written = 0;
    struct strata_mapping m[3];
    int order = 0;
    struct turn one = {&order, 0}, two = {&order, 0}, three = {&order, 0};

    help_add(b.root, 0, help_device(b.mem, "dev", 0x10000, &dev_ops, &written), 0);
    assert_int_equal(strata_map(b.space, 0, 3000, false, &m[0]), 0);
    assert_true(m[0].len == 3000 && ((uint8_t *)m[0].ptr)[2999] == 1); /* read when mapped */
    assert_int_equal(strata_map(b.space, 0x100, 3000, true, &m[1]), 0);
    assert_true(m[1].len == 1096); /* what is left */
    assert_true(((uint8_t *)m[1].ptr)[0] == 0); /* never old contents */
    assert_int_equal(strata_map(b.space, 0, 16, true, &m[2]), -EAGAIN);
    assert_true(m[2].len == 0 && m[2].ptr == NULL);
    assert_int_equal(strata_map_wait(b.space, on_budget, &one), 0);
    assert_int_equal(strata_map_wait(b.space, on_budget, &two), 0);
    assert_int_equal(strata_map_wait(b.space, on_budget, &three), 0);
    strata_map_cancel(b.space, on_budget, &two);
    assert_int_equal(order, 0);
    assert_int_equal(strata_unmap(&m[1], UINT64_MAX), 0); /* no further than it reaches */
    assert_int_equal(written, 1096);
    assert_true(one.seen == 1 && three.seen == 2 && two.seen == 0);
    assert_int_equal(strata_unmap(&m[0], 3000), 0);
    assert_int_equal(order, 2); /* once */
    strata_space_set_bounce_budget(b.space, 8);
    assert_int_equal(strata_map(b.space, 0, 3000, false, &m[0]), 0);
    assert_true(m[0].len == 8);
    strata_unmap(&m[0], 0);
    m[0].attrs = (struct strata_attrs){.memory = 1};
    assert_int_equal(strata_map_attrs(b.space, 0, 8, false, &m[0]), -EACCES);
    help_done(&b);
}

static void caches(void **state)
{
    struct board b = help_board(NULL);
    struct strata_region *ram = help_region(b.mem, STRATA_RAM, "ram", 0x1000);
    unsigned written = 0;
    struct strata_region *dev = help_device(b.mem, "dev", 0x10, &dev_ops, &written);
    struct strata_cache c;
    uint32_t v = 0xfeed;

    help_add(b.root, 0, ram, 0);
    help_add(b.root, 0x2000, dev, 0);
    assert_int_equal(strata_cache_init(&c, b.space, 0xf00, 0x1000, true), 0);
    assert_true(c.len == 0x100 && c.ptr);
    assert_int_equal(strata_cache_write(&c, 0xfc, &v, 4), STRATA_OK);
    assert_int_equal(strata_cache_write(&c, 0xfd, &v, 4), STRATA_DECODE_ERROR); /* last + 1 */
    assert_int_equal(strata_region_remove(ram), 0);
    assert_int_equal(strata_region_destroy(ram), 0); /* pinned all the same */
    v = 0;
    assert_int_equal(strata_cache_read(&c, 0xfc, &v, 4), STRATA_OK);
    assert_int_equal(v, 0xfeed);
    strata_cache_fini(&c);
    assert_int_equal(strata_cache_init(&c, b.space, 0x2008, 0x100, false), 0);
    assert_true(c.len == 8 && !c.ptr); /* cut to the section, also for devices */
    assert_int_equal(strata_cache_read(&c, 4, &v, 4), STRATA_OK);
    assert_int_equal(v, 0x01010101);
    assert_int_equal(strata_cache_read(&c, 5, &v, 4), STRATA_DECODE_ERROR);
    assert_int_equal(strata_cache_write(&c, 0, &v, 4), STRATA_ACCESS_ERROR);
    strata_cache_fini(&c);
    assert_int_equal(strata_cache_init(&c, b.space, 0x9000, 4, false), -ENOENT);
    help_done(&b);
}

/* An IOMMU that maps page n to page table[n]; 0: nothing. */
struct unit {
    struct strata_space *target;
    uint64_t page[16];
    enum strata_iommu_perm perm;
    int veto;
    unsigned flags;
};

static struct strata_iotlb unit_translate(void *opaque, strata_addr addr, enum strata_iommu_perm need,
                                          int index)
{
    struct unit *u = opaque;
    uint64_t page = addr / 0x1000 < 16 ? u->page[addr / 0x1000] : 0;

    return (struct strata_iotlb){
        .target = u->target, .iova = addr & ~(uint64_t)0xfff, .translated = page, .mask = 0xfff,
        .perm = page ? u->perm : STRATA_IOMMU_NONE};
}

static int unit_flags(void *opaque, unsigned old_flags, unsigned new_flags)
{
    struct unit *u = opaque;

    if (u->veto) {
        return u->veto;
    }
    u->flags = new_flags;
    return 0;
}

static const struct strata_iommu_ops unit_ops = {.translate = unit_translate,
                                                 .notify_flag_changed = unit_flags};

struct heard {
    struct strata_iommu_notifier n;
    struct strata_iotlb last;
    int calls;
};

static void on_event(struct strata_iommu_notifier *n, const struct strata_iotlb *entry)
{
    struct heard *h = (struct heard *)n;

    h->last = *entry;
    h->calls++;
}

struct iommu_board {
    struct board b;
    struct unit unit;
    struct strata_region *ram, *iommu;
    struct strata_space *dma;
};

static void iommu_up(struct iommu_board *x)
{
    struct strata_region_desc d = {.kind = STRATA_IOMMU, .name = "iommu", .size = 0x10000,
                                   .iommu = &unit_ops, .opaque = &x->unit};

    *x = (struct iommu_board){.b = help_board(NULL)};
    x->ram = help_region(x->b.mem, STRATA_RAM, "ram", 0x8000);
    help_add(x->b.root, 0x100000, x->ram, 0);
    assert_int_equal(strata_region_new(x->b.mem, &d, &x->iommu), 0);
    assert_int_equal(strata_space_new(x->b.mem, "dma", x->iommu, &x->dma), 0);
    x->unit.target = x->b.space;
    x->unit.perm = STRATA_IOMMU_RW;
}

static void iommu_translates(void **state)
{
    struct iommu_board x;
    uint8_t buf[0x2000];
    struct strata_iotlb e;
    struct strata_discard_manager *m;
    struct strata_ram *ram;
    uint64_t offset;
    bool readonly;

    iommu_up(&x);
    x.unit.page[1] = 0x103000;
    x.unit.page[2] = 0x101000;
    memset(buf, 0x5a, sizeof(buf));
    assert_int_equal(strata_write(x.dma, 0x1800, STRATA_ATTRS_NONE, buf, 0x1000), STRATA_OK);
    assert_int_equal(((uint8_t *)strata_region_host(x.ram))[0x3fff], 0x5a);
    assert_int_equal(((uint8_t *)strata_region_host(x.ram))[0x1000], 0x5a);
    assert_int_equal(((uint8_t *)strata_region_host(x.ram))[0x4000], 0); /* cut to the page */
    assert_int_equal(strata_read(x.dma, 0x5000, STRATA_ATTRS_NONE, buf, 1), STRATA_DECODE_ERROR);
    x.unit.perm = STRATA_IOMMU_RO;
    assert_int_equal(strata_write(x.dma, 0x1000, STRATA_ATTRS_NONE, buf, 1), STRATA_DECODE_ERROR);
    assert_int_equal(strata_read(x.dma, 0x1000, STRATA_ATTRS_NONE, buf, 1), STRATA_OK);
    strata_read_begin(x.b.mem);
    assert_int_equal(strata_iommu_walk(x.dma, 0x1234, false, STRATA_ATTRS_NONE, &e), 0);
    assert_true(e.iova == 0x1000 && e.translated == 0x103000 && e.mask == 0xfff);
    assert_int_equal(strata_iommu_walk(x.dma, 0x1234, true, STRATA_ATTRS_NONE, &e), -EACCES);
    assert_int_equal(strata_iotlb_resolve(&e, &ram, &offset, &readonly), 0);
    assert_true(ram == strata_region_ram(x.ram) && offset == 0x3000);
    e.translated = 0x107000;
    e.mask = 0x1fff;
    assert_int_equal(strata_iotlb_resolve(&e, &ram, &offset, &readonly), -ERANGE);
    e.translated = 0x500000;
    assert_int_equal(strata_iotlb_resolve(&e, &ram, &offset, &readonly), -EFAULT);
    assert_int_equal(strata_discard_manager_new(x.ram, 0x1000, &m), 0);
    assert_int_equal(strata_discard_populate(m, 0x2000, 0x1000), 0);
    e.mask = 0xfff;
    e.translated = 0x102000;
    assert_int_equal(strata_iotlb_resolve(&e, &ram, &offset, &readonly), 0);
    e.translated = 0x103000; /* not there */
    assert_int_equal(strata_iotlb_resolve(&e, &ram, &offset, &readonly), -ENODATA);
    strata_read_end(x.b.mem);
    x.unit.target = x.dma; /* an IOMMU that leads to itself ends, too */
    x.unit.page[1] = 0x1000;
    assert_int_equal(strata_read(x.dma, 0x1000, STRATA_ATTRS_NONE, buf, 4), STRATA_DECODE_ERROR);
    help_done(&x.b);
}

static void iommu_notifiers(void **state)
{
    struct iommu_board x;
    struct heard h = {.n = {.notify = on_event, .kinds = STRATA_IOMMU_UNMAP, .start = 0x1800,
                            .last = 0x2fff}};
    struct strata_iommu_event ev = {STRATA_IOMMU_UNMAP, {.iova = 0, .mask = 0x3fff}};

    iommu_up(&x);
    x.unit.veto = -EPERM;
    assert_int_equal(strata_iommu_notifier_add(x.iommu, &h.n), -EPERM);
    assert_int_equal(strata_iommu_notify(x.iommu, 0, &ev), 0);
    assert_int_equal(h.calls, 0);
    x.unit.veto = 0;
    assert_int_equal(strata_iommu_notifier_add(x.iommu, &h.n), 0);
    assert_int_equal(x.unit.flags, STRATA_IOMMU_UNMAP);
    assert_int_equal(strata_iommu_notify(x.iommu, 0, &ev), 0);
    assert_true(h.calls == 1 && h.last.iova == 0x1800 && h.last.mask == 0x17ff); /* cropped */
    ev.entry.iova = 0x4000;
    assert_int_equal(strata_iommu_notify(x.iommu, 0, &ev), 0);
    ev.entry.iova = 0;
    assert_int_equal(strata_iommu_notify(x.iommu, 1, &ev), 0); /* other index */
    assert_int_equal(h.calls, 1);
    ev.entry.perm = STRATA_IOMMU_RO;
    assert_int_equal(strata_iommu_notify(x.iommu, 0, &ev), -EINVAL);
    x.unit.veto = -EBUSY;
    assert_int_equal(strata_iommu_notifier_del(&h.n), -EBUSY);
    x.unit.veto = 0;
    assert_int_equal(strata_iommu_notifier_del(&h.n), 0);
    h.n.kinds = STRATA_IOMMU_MAP;
    h.n.start = 0;
    h.n.last = UINT64_MAX;
    assert_int_equal(strata_iommu_notifier_add(x.iommu, &h.n), 0);
    x.unit.page[3] = 0x100000;
    x.unit.page[15] = 0x101000;
    h.calls = 0;
    assert_int_equal(strata_iommu_replay(x.iommu, &h.n), 0); /* ends at the region's end */
    assert_true(h.calls == 2 && h.last.iova == 0xf000);
    h.n.kinds = STRATA_IOMMU_UNMAP;
    h.calls = 0;
    assert_int_equal(strata_iommu_unmap_all(x.iommu, &h.n), 0);
    assert_true(h.calls == 1 && h.last.mask == UINT64_MAX);
    h.n.index = 3;
    assert_int_equal(strata_iommu_notifier_del(&h.n), 0);
    assert_int_equal(strata_iommu_notifier_add(x.iommu, &h.n), -EINVAL);
    assert_int_equal(strata_iommu_notifier_add(x.ram, &h.n), -EINVAL);
    help_done(&x.b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(direct_mapping),   cmocka_unit_test(bounce_budget),
        cmocka_unit_test(caches),           cmocka_unit_test(iommu_translates),
        cmocka_unit_test(iommu_notifiers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
