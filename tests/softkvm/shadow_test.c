/*
 * The shadow MMU rule by rule: one guest of paging_guest.c, one thing done to its tables, and what became of shadow
 * pages, counters and the next access. The random tests say that all agrees; these say why.
 */
#include "shadow_fixture.h"

/* ---- K56, K57 ---- */

static void roles_keep_variants_apart(void **state)
{
    struct pg *g = four_levels();

    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    assert_int_equal(pages_at(g, PT), 1);
    /* The same table under a directory entry that allows less. */
    pg_poke(g, PD + 8, PT | RO, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x200000, false, true), PG_DONE);
    assert_int_equal(pages_at(g, PT), 2);
    assert_int_not_equal(page_at(g, PT, 0)->role.access, page_at(g, PT, 1)->role.access);
    assert_int_equal(touch(g, LA4 + 0x200000, true, true), PG_FAULT);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    /* And with CR0.WP clear. */
    pg_set_cr(g, 0, g->cr0 & ~UINT64_C(0x10000));
    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    assert_int_equal(pages_at(g, PT), 3);
    /* A directory used as a last-level table as well: the page of level 1 may not go out of sync. */
    pg_poke(g, PD + 16, PD | RW, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x400000, true, false), PG_DONE);
    assert_int_equal(counters(g)->floods + counters(g)->table_writes > 0, 1);
    pg_free(g);
}

static void unchanged_roles_keep_the_root(void **state)
{
    struct pg *g = four_levels();
    uint64_t loads;

    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    loads = counters(g)->root_loads;
    pg_set_cr(g, 4, g->cr4 ^ 0x80); /* PGE: not in the role */
    assert_int_equal(counters(g)->root_loads, loads);
    pg_set_cr(g, 0, g->cr0 ^ 0x10000);
    assert_int_equal(counters(g)->root_loads, loads + 1);
    /* The walk obeys WP and NX whatever the guest says. */
    pg_set_nxe(g, false);
    assert_true(vcpu_of(g)->cpu->shadow.efer & X86_EFER_NX);
    assert_true(vcpu_of(g)->cpu->shadow.cr0 & X86_CR0_WP);
    assert_false(vcpu_of(g)->cpu->efer & X86_EFER_NX);
    pg_free(g);
}

/* ---- K58 ---- */

static void tables_of_4_byte_entries(void **state)
{
    struct pg *g = pg_new(SOFTKVM_MMU_SHADOW, PG_32);
    unsigned quadrants = 0, halves = 0;

    g->check_every = 1;
    for (unsigned gib = 0; gib < 4; gib++) {
        pg_poke(g, pg_root(g, 0) + (gib * 256 + 200) * 4, PT | RW, 4, 0);
        pg_poke(g, PT + 3 * 4, DATA | RW, 4, 0);
        pg_poke(g, PT + 700 * 4, (DATA + 0x1000) | RW, 4, 0);
        assert_int_equal(touch(g, (gib * 256ull + 200) << 22 | 3 << 12, true, true), PG_DONE);
        assert_int_equal(touch(g, (gib * 256ull + 200) << 22 | 700 << 12, true, true), PG_DONE);
    }
    for (unsigned i = 0; i < pages_at(g, pg_root(g, 0)); i++) {
        quadrants |= 1u << page_at(g, pg_root(g, 0), i)->role.quadrant;
    }
    for (unsigned i = 0; i < pages_at(g, PT); i++) {
        halves |= 1u << page_at(g, PT, i)->role.quadrant;
    }
    assert_int_equal(quadrants, 15);
    assert_int_equal(halves, 3);
    /* A 4 MiB page is two entries; one store makes both go. */
    pg_poke(g, pg_root(g, 0) + 300 * 4, DATA | 0xe7, 4, 0);
    assert_int_equal(touch(g, 300ull << 22, false, true), PG_DONE);
    assert_int_equal(touch(g, 300ull << 22 | 0x200000, false, true), PG_DONE);
    pg_poke(g, pg_root(g, 0) + 300 * 4, 0, 4, 0);
    pg_invlpg(g, 300ull << 22);
    pg_invlpg(g, 300ull << 22 | 0x200000);
    assert_int_equal(touch(g, 300ull << 22, false, true), PG_FAULT);
    assert_int_equal(touch(g, 300ull << 22 | 0x200000, false, true), PG_FAULT);
    pg_free(g);
}

/* ---- K59, K62, K64 ---- */

static void protection_keys_in_the_guest_walk(void **state)
{
    struct pg *g = four_levels();
    struct kvm_guest_mode m;
    struct kvm_vcpu *v = vcpu_of(g);
    struct kvm_guest_walk w = {.mode = &m, .la = LA4, .quiet = true, .user = true, .smap_exempt = true};

    pg_poke(g, PT, (DATA | RW) | UINT64_C(5) << 59, 8, 0);
    kvm_read_begin(v);
    kvm_shadow_mode(v, &m);
    m.pke = true;
    m.pkru = 0;
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_OK);
    m.pkru = 2u << 10; /* key 5: no writes */
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_OK);
    w.write = true;
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_GUEST_FAULT);
    assert_int_equal(w.code, X86_PFEC_P | X86_PFEC_W | X86_PFEC_U | X86_PFEC_PK);
    w.user = false;
    m.wp = false;
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_OK);
    m.pkru = 1u << 10; /* no access at all */
    w.write = false;
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_GUEST_FAULT);
    w.fetch = true;
    assert_int_equal(kvm_guest_walk(v, &w), KVM_WALK_OK);
    kvm_read_end(v);
    pg_free(g);
}

/* A guest without write permission to its tables' memory: bits cannot be set there, accesses go through. */
static void tables_in_a_read_only_slot(void **state)
{
    struct pg *g = four_levels();
    struct kvm_userspace_memory_region m = {1, KVM_MEM_READONLY, 0x20000000, 0x1000, 0};
    uint64_t *rom = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    rom[0] = DATA | 7;
    m.userspace_addr = (uintptr_t)rom;
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    pg_poke(g, PD, 0x20000000 | RW, 8, 0);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    assert_int_equal(touch(g, LA4, false, true), PG_DONE);
    assert_int_equal(rom[0], DATA | 7);
    assert_int_equal(g->ram[DATA + 1], 0x77);
    pg_free(g);
    munmap(rom, 0x1000);
}

/* ---- K66, K67, K68 ---- */

static void upper_tables_are_protected_leaf_tables_go_unsync(void **state)
{
    struct pg *g = four_levels();
    struct kvm_shadow_counters *c = counters(g), before;

    assert_int_equal(touch(g, LA4, true, false), PG_DONE);
    assert_true(kvm_shadow_is_tracked(shadow_of(g), gfn(PD >> 12)));
    assert_false(kvm_shadow_is_tracked(shadow_of(g), gfn(PT >> 12)));
    before = *c;
    pg_poke(g, PT + 8, (DATA + 0x5000) | RW, 8, 0);
    assert_int_equal(c->unsyncs, before.unsyncs + 1);
    assert_int_equal(c->table_writes, before.table_writes);
    assert_true(page_at(g, PT, 0)->unsync);
    assert_int_equal(page_at(g, PD, 0)->nr_unsync_children, 1);
    pg_poke(g, PT + 16, (DATA + 0x6000) | RW, 8, 0); /* no exit any more */
    assert_int_equal(c->unsyncs, before.unsyncs + 1);
    before = *c;
    pg_poke(g, PD + 8 * 7, PT2 | RW, 8, 1);
    assert_int_equal(c->write_protected, before.write_protected + 1);
    assert_int_equal(c->table_writes, before.table_writes + 1);
    assert_false(kvm_shadow_region_has_tables(shadow_of(g), gfn(DATA >> 12)));
    pg_free(g);
}

static void writes_to_tables(void **state)
{
    struct pg *g = four_levels();
    struct kvm_shadow_counters *c = counters(g);
    uint64_t zaps;

    /* An entry's own page goes with the entry, no other. */
    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    pg_poke(g, PD, PT2 | RW, 8, 2);
    assert_int_equal(kvm_spte_load(&page_at(g, PD, 0)->spt[0]), 0);
    assert_int_equal(pages_at(g, PD), 1);
    /* One byte at an entry's start is no reason to give up the page; one in its middle is. */
    pg_poke(g, PD + 8, 0x20, 1, 0);
    assert_int_equal(pages_at(g, PD), 1);
    zaps = c->table_write_zaps;
    pg_poke(g, PD + 8 + 3, 0, 1, 0);
    assert_int_equal(c->table_write_zaps, zaps + 1);
    assert_int_equal(pages_at(g, PD), 0);
    pg_poke(g, PD, PT | RW, 8, 0);
    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    zaps = c->table_write_zaps;
    pg_poke(g, PD + 16, 0, 16, 0);
    assert_int_equal(c->table_write_zaps, zaps + 1);
    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    pg_poke(g, PD + 4, 0x80000000, 4, 0);
    assert_int_equal(pages_at(g, PD), 1);
    pg_free(g);
}

static void flooded_tables_are_given_up(void **state)
{
    struct pg *g = four_levels();
    uint64_t floods = counters(g)->floods;

    assert_int_equal(touch(g, LA4, false, false), PG_DONE);
    pg_poke(g, PD + 8, 0, 8, 0);
    pg_poke(g, PD + 16, 0, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x1000, false, false), PG_DONE); /* a use in between */
    pg_poke(g, PD + 8, 0, 8, 0);
    pg_poke(g, PD + 16, 0, 8, 0);
    assert_int_equal(counters(g)->floods, floods);
    pg_poke(g, PD + 24, 0, 8, 0);
    assert_int_equal(counters(g)->floods, floods + 1);
    assert_int_equal(pages_at(g, PD), 0);
    assert_false(kvm_shadow_is_tracked(shadow_of(g), gfn(PD >> 12)));
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    pg_free(g);
}

/* ---- K69, K70 ---- */

static void loads_of_cr3_bring_tables_up_to_date(void **state)
{
    struct pg *g = four_levels();
    struct kvm_shadow_counters *c = counters(g), before;
    struct pg_result r;

    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(touch(g, LA4 + i * 0x1000, true, true), PG_DONE);
    }
    pg_poke(g, PT + 0, (DATA + 0x9000) | RW, 8, 0);         /* another frame */
    pg_poke(g, PT + 8, (DATA + 0x1000) | RO, 8, 0);         /* fewer rights */
    pg_poke(g, PT + 16, (DATA + 0x2000) | 0x47, 8, 0);      /* not accessed */
    before = *c;
    pg_set_cr3(g, g->cr3, &r);
    assert_int_equal(c->syncs, before.syncs + 1);
    assert_int_equal(c->sync_dropped, before.sync_dropped + 2);
    assert_true(c->sync_kept >= before.sync_kept + 2);
    assert_false(page_at(g, PT, 0)->unsync);
    assert_int_equal(touch(g, LA4 + 0x1000, true, true), PG_FAULT);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    assert_int_equal(g->ram[DATA + 0x9001], 0x77);
    assert_int_equal(touch(g, LA4 + 0x2000, false, true), PG_DONE);
    assert_true(g->ram[PT + 16] & 0x20);
    pg_free(g);
}

static void invlpg_reads_one_entry_again(void **state)
{
    struct pg *g = four_levels();
    struct kvm_shadow_counters *c = counters(g), before;

    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    assert_int_equal(touch(g, LA4 + 0x1000, true, true), PG_DONE);
    pg_poke(g, PT, 0, 8, 0);
    pg_poke(g, PT + 8, 0, 8, 0);
    before = *c;
    pg_invlpg(g, UINT64_C(0x0000900000000000)); /* not canonical: nothing happens */
    assert_int_equal(c->sync_dropped, before.sync_dropped);
    pg_invlpg(g, LA4);
    assert_int_equal(c->sync_dropped, before.sync_dropped + 1);
    assert_int_equal(c->syncs, before.syncs);
    assert_int_equal(touch(g, LA4, false, true), PG_FAULT);
    assert_true(kvm_spte_load(&page_at(g, PT, 0)->spt[1]) != 0);
    assert_true(page_at(g, PT, 0)->unsync);
    pg_free(g);
}

/* ---- K71, K72 ---- */

static void roots_are_cached(void **state)
{
    struct pg *g = four_levels();
    struct kvm_shadow_counters *c = counters(g), before;
    struct pg_result r;

    for (unsigned i = 0; i < PG_ROOTS; i++) {
        pg_set_cr3(g, pg_root(g, i), &r);
    }
    before = *c;
    for (unsigned i = 0; i < 3 * PG_ROOTS; i++) {
        pg_set_cr3(g, pg_root(g, i % PG_ROOTS), &r);
    }
    assert_int_equal(c->root_loads, before.root_loads);
    assert_int_equal(c->root_hits, before.root_hits + 3 * PG_ROOTS);
    /* With PCIDs and "keep", unsync tables stay so. */
    pg_set_cr3(g, pg_root(g, 0), &r);
    pg_set_cr(g, 4, g->cr4 | 0x20000);
    pg_set_cr3(g, pg_root(g, 0) | 1, &r);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    pg_set_cr3(g, pg_root(g, 1) | 2, &r);
    pg_set_cr3(g, pg_root(g, 0) | 1, &r);
    pg_poke(g, PT + 8, 0, 8, 0);
    before = *c;
    pg_set_cr3(g, pg_root(g, 1) | 2 | UINT64_C(1) << 63, &r);
    pg_set_cr3(g, pg_root(g, 0) | 1 | UINT64_C(1) << 63, &r);
    assert_int_equal(c->syncs, before.syncs);
    assert_int_equal(c->root_hits, before.root_hits + 2);
    /* INVPCID of a PCID that is not current: its cached root is not used as it is. */
    pg_invpcid(g, 1, 2, 0);
    pg_set_cr3(g, pg_root(g, 1) | 2 | UINT64_C(1) << 63, &r);
    assert_int_equal(c->root_loads, before.root_loads + 1);
    pg_free(g);
}

static void pae_roots(void **state)
{
    struct pg *g = pg_new(SOFTKVM_MMU_SHADOW, PG_PAE);
    struct pg_result r;

    g->check_every = 1;
    pg_poke(g, pg_root(g, 0) + 8, PD | 1, 8, 0);
    pg_poke(g, PD, PT | RW, 8, 0);
    pg_poke(g, PT, DATA | RW, 8, 0);
    assert_int_equal(touch(g, 0x40000000, false, true), PG_FAULT); /* not loaded yet */
    pg_set_cr3(g, pg_root(g, 0), &r);
    assert_int_equal(r.outcome, PG_DONE);
    assert_int_equal(touch(g, 0x40000000, false, true), PG_DONE);
    assert_null(vcpu_of(g)->shadow->pae[2]);
    pg_poke(g, pg_root(g, 0) + 8, 0, 8, 0);
    assert_int_equal(touch(g, 0x40000000, true, true), PG_DONE);
    /* Reserved bits fault at the load, and nothing changes. */
    pg_poke(g, pg_root(g, 1) + 8, PD | 1 | 0x20, 8, 0);
    pg_set_cr3(g, pg_root(g, 1), &r);
    assert_int_equal(r.outcome, PG_GP);
    assert_int_equal(touch(g, 0x40000000, true, true), PG_DONE);
    pg_free(g);
}

/* CR3 in no memory: the dummy root; the fetch behind it faults for ever, which ends in a shutdown. */
static void a_root_in_no_memory(void **state)
{
    struct pg *g = four_levels();
    struct kvm_regs regs = {.rip = 0x1000 + 9 * 16, .rax = 0x3000000000, .rflags = 2, .rsp = 0x6000};

    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_REGS, &regs), 0);
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_RUN, NULL), 0);
    assert_int_equal(g->run->exit_reason, KVM_EXIT_SHUTDOWN);
    pg_check(g);
    pg_free(g);
}

/* ---- K73, K74 ---- */

static void large_guest_pages_on_small_ones(void **state)
{
    struct pg *g = four_levels();
    const struct kvm_shadow_page *sp;
    uint64_t first;

    pg_poke(g, PD + 8, 0xa00000 | 0xa7, 8, 0); /* clean, accessed */
    /* A table among its frames: no large entry. */
    pg_poke(g, PD + 16, 0xa01000 | RW, 8, 0);
    pg_poke(g, 0xa01000, DATA | RW, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x400000, false, true), PG_DONE);
    assert_int_equal(touch(g, LA4 + 0x200000, false, true), PG_DONE);
    sp = page_at(g, PD, 0);
    first = kvm_spte_load(&sp->spt[1]);
    assert_true(kvm_spte_is_table(first, 2));
    assert_true(kvm_spte_child(shadow_of(g), first)->role.direct);
    assert_false(kvm_spte_child(shadow_of(g), first)->role.access & KVM_ACC_W);
    /* The first write makes the guest's entry dirty: another direct page, with W. */
    assert_int_equal(touch(g, LA4 + 0x200000, true, true), PG_DONE);
    assert_true(g->ram[PD + 8] & 0x40);
    assert_int_not_equal(kvm_spte_load(&sp->spt[1]), first);
    /* Through it the guest writes its own table: the table goes unsync, the store goes through. */
    assert_int_equal(touch(g, LA4 + 0x201000 + 8, true, true), PG_DONE);
    assert_int_equal(g->ram[0xa01009], 0x77);
    pg_free(g);
}

static void a_table_that_maps_itself(void **state)
{
    struct pg *g = four_levels();

    /* By a large page that has the root in it, and as a small page of itself. */
    pg_poke(g, PD + 8, 0xe7, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x200000 + pg_root(g, 0) + 0x18, true, false), PG_DONE);
    assert_int_equal(g->ram[pg_root(g, 0) + 0x19], 0x77);
    pg_poke(g, PT + 24, PT | RW, 8, 0);
    assert_int_equal(touch(g, LA4 + 0x3000 + 40, true, false), PG_DONE);
    assert_int_equal(g->ram[PT + 41], 0x77);
    pg_invlpg(g, LA4 + 0x5000);
    assert_int_equal(touch(g, LA4 + 0x5000, false, true), PG_FAULT);
    /* The root as every level of itself. */
    pg_poke(g, pg_root(g, 0) + 510 * 8, pg_root(g, 0) | SUPER, 8, 0);
    assert_int_equal(touch(g, UINT64_C(0xffffff7fbfdfe000) + 8 * 100, true, false), PG_DONE);
    assert_int_equal(g->ram[pg_root(g, 0) + 801], 0x77);
    pg_free(g);
}

/* ---- K75, K76, K77 ---- */

static void zapped_and_recycled(void **state)
{
    struct pg *g = four_levels();
    uint64_t generation;

    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_NR_MMU_PAGES, (void *)63), -EINVAL);
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_NR_MMU_PAGES, (void *)64), 0);
    for (unsigned i = 0; i < 200; i++) {
        g->check_every = i % 20 == 0;
        pg_poke(g, PD + i * 8, (0x600000 + i * 0x1000) | RW, 8, 0);
        pg_poke(g, 0x600000 + i * 0x1000, DATA | RW, 8, 0);
        assert_int_equal(touch(g, LA4 + i * 0x200000ull, true, true), PG_DONE);
        assert_true(shadow_of(g)->nr_pages <= 64);
    }
    assert_true(counters(g)->pages_recycled > 100);
    /* Everything goes, a root that is in use too: it is left at the next entry. */
    generation = shadow_of(g)->generation;
    kvm_mmu_zap_range(vm_of(g), gfn(0), UINT64_C(1) << (KVM_GUEST_PHYS_BITS - 12));
    assert_int_equal(shadow_of(g)->generation, generation + 1);
    assert_int_equal(shadow_of(g)->nr_pages, 0);
    pg_check(g);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    pg_free(g);
}

static void long_reverse_maps(void **state)
{
    struct pg *g = four_levels();
    const struct kvm_rmap *r;
    struct kvm_rmap_pos pos = {0};
    unsigned n = 0;

    for (unsigned i = 0; i < 512; i++) {
        g->check_every = i % 64 == 0;
        pg_poke(g, PT + i * 8, DATA | RW, 8, 0);
        pg_invlpg(g, LA4 + i * 0x1000);
        assert_int_equal(touch(g, LA4 + i * 0x1000, true, true), PG_DONE);
    }
    r = kvm_rmap_of(shadow_of(g), gfn(DATA >> 12), 1);
    while (kvm_rmap_next(r, &pos)) {
        n++;
    }
    assert_true(n >= 512);
    assert_true(softkvm_memory_unmapped(g->s, g->ram + DATA, 4096) >= 0);
    assert_true(kvm_rmap_is_empty(kvm_rmap_of(shadow_of(g), gfn(DATA >> 12), 1)));
    pg_check(g);
    assert_int_equal(touch(g, LA4 + 0x7000, false, true), PG_DONE);
    pg_free(g);
}

/* A store that faults again although it was granted: the table is given up. */
static void a_grant_that_does_not_help(void **state)
{
    struct pg *g = four_levels();
    struct kvm_vcpu *v = vcpu_of(g);

    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    pg_poke(g, PT + 8, PD | RW, 8, 0);
    pg_invlpg(g, LA4 + 0x1000);
    v->cpu->exit.reason = CPU_EXIT_PAGE_FAULT;
    v->cpu->exit.pf.gva = gva(LA4 + 0x1000);
    v->cpu->exit.pf.code = X86_PFEC_P | X86_PFEC_W | X86_PFEC_U;
    v->cpu->exit.pf.priv = 0;
    kvm_read_begin(v);
    assert_int_equal(kvm_shadow_page_fault(v), KVM_GO_ON);
    assert_int_equal(v->cpu->shadow.nr_grants, 1);
    assert_int_equal(pages_at(g, PD), 1);
    assert_int_equal(kvm_shadow_page_fault(v), KVM_GO_ON);
    kvm_read_end(v);
    assert_int_equal(pages_at(g, PD), 0);
    pg_check(g);
    assert_int_equal(touch(g, LA4 + 0x1000 + 0x100, true, true), PG_DONE);
    pg_free(g);
}

/* The n-th allocation fails, for each n: KVM_RUN says so, nothing is broken, and the next one goes on. */
static void every_allocation_fails(void **state)
{
    unsigned failures = 0;

    for (unsigned n = 1; n < 60; n++) {
        struct pg *g = four_levels();

        pg_poke(g, PDPT + 8 * 7, PD | RW, 8, 0);
        g->fail_in = n;
        for (unsigned i = 0; i < 4; i++) {
            pg_poke(g, PD + 8 * (20 + i), PT | (i & 1 ? RO : RW), 8, 0);
            assert_int_equal(touch(g, LA4 + (7ull << 30) + (20 + i) * 0x200000ull, !(i & 1), true), PG_DONE);
        }
        failures += g->failures;
        g->fail_in = 0;
        pg_check(g);
        pg_free(g);
    }
    assert_true(failures > 10);
}

/* A switch to a task with tables of its own: exits come in its middle, for the PDPTEs, the TSS and descriptors, which
 * the new tables have not mapped yet. By a jump, and by a task gate with an error code. */
static void task_switches(void **state)
{
    static const uint8_t jump[] = {0xea, 0, 0, 0, 0, 0x30, 0}, load_bad[] = {0x66, 0xb8, 0xf8, 0xff, 0x8e, 0xd8};
    const uint32_t tss = 0xa000, gate[2] = {0x300000, 0x8500}, entry = 0x9000;

    for (unsigned i = 0; i < 4; i++) {
        struct pg *g = pg_new(SOFTKVM_MMU_SHADOW, i & 1 ? PG_PAE : PG_32);
        struct kvm_regs regs = {.rip = 0x9100, .rflags = 2, .rsp = 0x6000};
        uint32_t t[26] = {[7] = (uint32_t)pg_root(g, 1), [8] = entry, [9] = 2, [14] = 0x5000, [11] = 0x1234,
                          [18] = 0x10, [19] = 8, [20] = 0x10, [21] = 0x10, [22] = 0x10, [23] = 0x10, [25] = 104u << 16};
        uint64_t desc = (uint64_t)tss << 16 | 0x67 | UINT64_C(0x89) << 40;
        struct kvm_sregs s;

        memcpy(g->ram + 0x2030, &desc, 8);
        memcpy(g->ram + 0x3000 + 13 * 8, gate, 8);
        memcpy(g->ram + tss, t, sizeof(t));
        g->ram[entry] = 0xf4;
        memcpy(g->ram + 0x9100, i & 2 ? load_bad : jump, sizeof(load_bad) + !(i & 2));
        assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_REGS, &regs), 0);
        assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_RUN, NULL), 0);
        assert_int_equal(g->run->exit_reason, KVM_EXIT_HLT);
        assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_REGS, &regs), 0);
        assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_GET_SREGS, &s), 0);
        assert_int_equal(regs.rip, entry + 1);
        assert_int_equal(regs.rcx, 0x1234);
        assert_int_equal(s.cr3, pg_root(g, 1));
        assert_int_equal(s.cs.selector, 8);
        assert_int_equal(s.ss.selector, 0x10);
        assert_int_equal(s.tr.selector, 0x30);
        assert_int_equal(regs.rsp, i & 2 ? 0x4ffc : 0x5000);
        assert_int_equal(*(uint32_t *)(void *)(g->ram + 0x4ffc), i & 2 ? 0xfff8 : 0);
        pg_check(g);
        pg_free(g);
    }
}

/* The process has taken a table's memory away: the run says so, and goes on when it is back. */
static void tables_in_memory_that_is_gone(void **state)
{
    struct pg *g = four_levels();
    struct kvm_regs r = {.rbx = LA4, .rflags = 2, .rip = 0x1000, .rsp = 0x6000};

    assert_int_equal(touch(g, LA4, false, true), PG_DONE);
    assert_int_equal(munmap(g->ram + PDPT, 0x1000), 0);
    assert_true(softkvm_memory_unmapped(g->s, g->ram + PDPT, 0x1000) >= 0);
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_SET_REGS, &r), 0);
    assert_int_equal(softkvm_ioctl(g->s, g->vcpu, KVM_RUN, NULL), -EFAULT);
    pg_check(g);
    assert_true(mmap(g->ram + PDPT, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
                MAP_FAILED);
    memcpy(g->ram + PDPT, &(uint64_t){PD | RW}, 8);
    assert_int_equal(touch(g, LA4, false, true), PG_DONE);
    pg_free(g);
}

/* A slot with tables in it goes, and one with other contents comes. */
static void tables_in_a_slot_that_is_replaced(void **state)
{
    struct pg *g = four_levels();
    struct kvm_userspace_memory_region m = {1, 0, 0x20000000, 0x2000, 0};
    uint64_t *a = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    a[0] = 0x20001000 | RW;
    a[512] = DATA | RW;
    a[1024] = 0x20001000 | RW;
    a[1024 + 512] = (DATA + 0x1000) | RO;
    m.userspace_addr = (uintptr_t)a;
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    pg_poke(g, PDPT, 0x20000000 | RW, 8, 0);
    pg_invlpg(g, LA4);
    assert_int_equal(touch(g, LA4, true, true), PG_DONE);
    m.memory_size = 0;
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    pg_check(g);
    m.memory_size = 0x2000;
    m.userspace_addr = (uintptr_t)(a + 1024);
    assert_int_equal(softkvm_ioctl(g->s, g->vm, KVM_SET_USER_MEMORY_REGION, &m), 0);
    assert_int_equal(touch(g, LA4, true, true), PG_FAULT);
    assert_int_equal(touch(g, LA4, false, true), PG_DONE);
    pg_free(g);
    munmap(a, 0x4000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(roles_keep_variants_apart),
        cmocka_unit_test(unchanged_roles_keep_the_root),
        cmocka_unit_test(tables_of_4_byte_entries),
        cmocka_unit_test(protection_keys_in_the_guest_walk),
        cmocka_unit_test(tables_in_a_read_only_slot),
        cmocka_unit_test(upper_tables_are_protected_leaf_tables_go_unsync),
        cmocka_unit_test(writes_to_tables),
        cmocka_unit_test(flooded_tables_are_given_up),
        cmocka_unit_test(loads_of_cr3_bring_tables_up_to_date),
        cmocka_unit_test(invlpg_reads_one_entry_again),
        cmocka_unit_test(roots_are_cached),
        cmocka_unit_test(pae_roots),
        cmocka_unit_test(a_root_in_no_memory),
        cmocka_unit_test(large_guest_pages_on_small_ones),
        cmocka_unit_test(a_table_that_maps_itself),
        cmocka_unit_test(zapped_and_recycled),
        cmocka_unit_test(long_reverse_maps),
        cmocka_unit_test(a_grant_that_does_not_help),
        cmocka_unit_test(tables_in_a_slot_that_is_replaced),
        cmocka_unit_test(tables_in_memory_that_is_gone),
        cmocka_unit_test(every_allocation_fails),
        cmocka_unit_test(task_switches),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
