/*
 * What the client of the KVM ABI does with slots and dirty logs, on every engine that is to be had and with each
 * way of tracking: the table, refusals, largest sizes, cleared windows, logs of slots that go; and a storm: a
 * guest stores to every page of its memory while slots are split, merged, moved, switched and made anew.
 *
 * Usage: slots_test ENGINE[,PROPERTIES]
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "accel/accel.h"
#include "accel/rig.h"

/* Page by page from EDI on, ECX pages: the number of the round, EBX, at [page + 8]; then out of port 0x10, once
 * round more, until byte 0x2000 is set: then out of port 0x18. Flat 32-bit code. */
extern const char guest_rounds[], guest_check[], guest_rounds_end[];
__asm__(".pushsection .rodata\n.code32\nguest_rounds:\n"
        " xor %ebx, %ebx\n"
        "1: inc %ebx\n mov 0x2008, %edi\n mov 0x2004, %ecx\n"
        "2: mov %ebx, 8(%edi)\n cmp %ebx, 8(%edi)\n guest_check: jne 3f\n add $4096, %edi\n dec %ecx\n jnz 2b\n"
        " mov %ebx, 0x200c\n cmpb $0, 0x2000\n je 1b\n"
        " mov $1, %al\n out %al, $0x10\n hlt\n"
        "3: mov $2, %al\n out %al, $0x10\n hlt\n"
        "guest_rounds_end:\n.code64\n.popsection\n");

#define LOW_SIZE 0x10000u
#define BIG_ADDR UINT64_C(0x1000000)

static uint64_t pages_of(const struct rig *r)
{
    return strata_region_size(r->big) / 4096;
}

/* A machine of 64 KiB at 0 and `bytes` at 16 MiB, whose guest goes round in the latter. */
static void start(struct rig *r, void **state, uint64_t bytes)
{
    uint32_t words[3] = {0, (uint32_t)(bytes / 4096), (uint32_t)BIG_ADDR};

    rig_init(r, *state, LOW_SIZE);
    r->big = rig_ram(r, "big", bytes);
    assert_int_equal(strata_region_add(r->system, BIG_ADDR, r->big), 0);
    rig_load(r, guest_rounds, (size_t)(guest_rounds_end - guest_rounds));
    assert_int_equal(strata_write(r->space, 0x2000, STRATA_ATTRS_NONE, words, sizeof(words)), STRATA_OK);
    rig_boot_flat(r);
}

static void end(struct rig *r)
{
    rig_fini(r);
}

static uint32_t word(struct rig *r, uint64_t at)
{
    return __atomic_load_n((uint32_t *)((char *)strata_region_host(r->ram) + at), __ATOMIC_ACQUIRE);
}

/* Until the guest has gone round so often, or the run ended. */
static void wait_round(struct rig *r, uint32_t round)
{
    for (int i = 0; word(r, 0x200c) < round && r->stop_reason < 0 && !r->done_value && i < 60000; i++) {
        usleep(1000);
    }
    if (word(r, 0x200c) < round) {
        fail_msg("the guest stands at round %u: done %u, %s", word(r, 0x200c), r->done_value, r->stop_text);
    }
}

static void finish(struct rig *r)
{
    uint8_t one = 1;

    strata_write(r->space, 0x2000, STRATA_ATTRS_NONE, &one, 1);
    rig_wait(r);
    if (r->stop_reason >= 0) {
        fail_msg("the run ended with reason %d: %s", r->stop_reason, r->stop_text);
    }
    assert_int_equal(r->done_value, 1);
}

/* The table takes what the engine takes, numbers are used again, and what does not fit is refused whole. */
static void table_grows(void **state)
{
    struct accel_slot_info info[64];
    struct strata_region *part[40];
    struct rig r;
    unsigned i, before;

    rig_init(&r, *state, LOW_SIZE);
    before = accel_slots_free_count(r.accel);
    assert_true(before > 40);
    for (i = 0; i < 40; i++) {
        char name[16];

        snprintf(name, sizeof(name), "part%u", i);
        part[i] = rig_ram(&r, name, 4096);
        assert_int_equal(strata_region_add(r.system, BIG_ADDR + i * UINT64_C(8192), part[i]), 0);
    }
    assert_int_equal(accel_slots_free_count(r.accel), before - 40);
    assert_int_equal(accel_slots(r.accel, info, 64), 41);
    for (i = 1; i < 41; i++) {
        assert_int_equal(info[i].gpa, BIG_ADDR + (i - 1) * UINT64_C(8192));
        assert_true(info[i].id < 41);
    }
    for (i = 0; i < 40; i += 2) {
        assert_int_equal(strata_region_remove(part[i]), 0);
    }
    assert_int_equal(accel_slots_free_count(r.accel), before - 20);
    for (i = 0; i < 40; i += 2) {
        assert_int_equal(strata_region_add(r.system, BIG_ADDR + i * UINT64_C(8192), part[i]), 0);
    }
    assert_int_equal(accel_slots(r.accel, info, 64), 41);
    for (i = 0; i < 41; i++) {
        assert_true(info[i].id < 41);
    }
    for (i = 0; i < 40; i++) {
        strata_region_destroy(part[i]);
    }
    rig_fini(&r);
}

/* Two pages of every eight show: with 64 KiB as the largest slot a MiB becomes sixteen, in order. */
static void largest_slot(void **state)
{
    struct accel_slot_info info[64];
    char engine[160];
    struct rig r;
    unsigned i, n;

    snprintf(engine, sizeof(engine), "%s,max-slot-size=64k", (const char *)*state);
    rig_init(&r, engine, LOW_SIZE);
    r.big = rig_ram(&r, "big", 0x108000);
    assert_int_equal(strata_region_add(r.system, BIG_ADDR, r.big), 0);
    n = accel_slots(r.accel, info, 64);
    assert_int_equal(n, 1 + 17);
    for (i = 1; i < n; i++) {
        assert_int_equal(info[i].gpa, BIG_ADDR + (i - 1) * UINT64_C(0x10000));
        assert_int_equal(info[i].size, i == n - 1 ? 0x8000 : 0x10000);
        assert_int_equal(info[i].hva - info[1].hva, (i - 1) * 0x10000);
    }
    assert_int_equal(strata_region_set_log(r.big, true, STRATA_DIRTY_DISPLAY), 0);
    accel_slots(r.accel, info, 64);
    for (i = 1; i < n; i++) {
        assert_int_equal(info[i].flags, 1);
    }
    assert_int_equal(strata_region_set_log(r.big, false, STRATA_DIRTY_DISPLAY), 0);
    assert_int_equal(strata_region_set_address(r.big, BIG_ADDR * 2), 0);
    accel_slots(r.accel, info, 64);
    assert_int_equal(info[1].gpa, BIG_ADDR * 2);
    assert_int_equal(strata_region_remove(r.big), 0);
    assert_int_equal(accel_slots(r.accel, info, 64), 1);
    rig_fini(&r);
}

/* Tell what the client's tracking says of one round: all pages of the big block, and after a clearing none. */
static void rounds_are_seen(void **state)
{
    struct strata_ram *ram;
    struct rig r;
    uint32_t seen;
    uint64_t i;

    start(&r, state, 1 << 20);
    ram = strata_region_ram(r.big);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_MIGRATION), 0);
    rig_start(&r);
    for (int round = 0; round < 3; round++) {
        seen = word(&r, 0x200c);
        wait_round(&r, seen + 2);
        assert_int_equal(strata_sync_dirty(r.memory, false), 0);
        for (i = 0; i < pages_of(&r); i++) {
            assert_true(strata_ram_get_dirty(ram, i * 4096, 4096, STRATA_DIRTY_MIGRATION));
        }
        strata_ram_test_clear_dirty(ram, 0, 1 << 20, STRATA_DIRTY_MIGRATION);
    }
    finish(&r);
    assert_int_equal(strata_sync_dirty(r.memory, true), 0);
    strata_ram_test_clear_dirty(ram, 0, 1 << 20, STRATA_DIRTY_MIGRATION);
    assert_int_equal(strata_sync_dirty(r.memory, true), 0);
    for (i = 0; i < pages_of(&r); i++) {
        assert_false(strata_ram_get_dirty(ram, i * 4096, 4096, STRATA_DIRTY_MIGRATION));
    }
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_MIGRATION), 0);
    end(&r);
}

/* A part of the block is cleared, not at multiples of 64 pages: what lies around it stays reported. */
static void windows(void **state)
{
    struct strata_ram *ram;
    struct rig r;
    uint64_t i;

    start(&r, state, 1 << 20);
    ram = strata_region_ram(r.big);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_MIGRATION), 0);
    rig_start(&r);
    wait_round(&r, 2);
    finish(&r);
    assert_int_equal(strata_sync_dirty(r.memory, false), 0);
    strata_ram_test_clear_dirty(ram, 70 * 4096, 30 * 4096, STRATA_DIRTY_MIGRATION);
    strata_ram_test_clear_dirty(ram, 3 * 4096, 4096, STRATA_DIRTY_MIGRATION);
    strata_ram_test_clear_dirty(ram, 250 * 4096, 6 * 4096, STRATA_DIRTY_MIGRATION);
    assert_int_equal(strata_sync_dirty(r.memory, false), 0);
    for (i = 0; i < pages_of(&r); i++) {
        bool gone = (i >= 70 && i < 100) || i == 3 || i >= 250;

        assert_int_equal(strata_ram_get_dirty(ram, i * 4096, 4096, STRATA_DIRTY_MIGRATION), !gone);
    }
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_MIGRATION), 0);
    end(&r);
}

/* A slot that is taken away while its guest stores gives its log to the block first. */
static void log_of_a_slot_that_goes(void **state)
{
    struct strata_ram *ram;
    struct rig r;
    uint64_t i;

    start(&r, state, 1 << 20);
    ram = strata_region_ram(r.big);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_MIGRATION), 0);
    assert_int_equal(strata_sync_dirty(r.memory, false), 0);
    strata_ram_test_clear_dirty(ram, 0, 1 << 20, STRATA_DIRTY_MIGRATION);
    rig_start(&r);
    wait_round(&r, 2);
    finish(&r);
    assert_int_equal(strata_region_remove(r.big), 0);
    for (i = 0; i < pages_of(&r); i++) {
        assert_true(strata_ram_get_dirty(ram, i * 4096, 4096, STRATA_DIRTY_MIGRATION));
    }
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_MIGRATION), 0);
    end(&r);
}

/* What the host is given back reads as zero in the guest: the engine is told. */
static void discards_reach_the_guest(void **state)
{
    struct strata_ram *ram;
    uint32_t v, round;
    struct rig r;

    start(&r, state, 1 << 20);
    ram = strata_region_ram(r.big);
    /* A discard may come between its store and its look: this guest does not mind. */
    assert_int_equal(strata_write(r.space, 0x1000 + (strata_addr)(guest_check - guest_rounds), STRATA_ATTRS_NONE,
                                  "\x90\x90", 2), STRATA_OK);
    rig_start(&r);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(strata_ram_discard(ram, 0, 1 << 20), 0);
        usleep(500);
    }
    round = word(&r, 0x200c);
    wait_round(&r, round + 2);
    finish(&r);
    memcpy(&v, (char *)strata_ram_host(ram) + 5 * 4096 + 8, 4);
    assert_int_equal(v, word(&r, 0x200c));
    end(&r);
}

/* Old and new slots overlap and nothing logs: where the engine takes it as one change, no vCPU is kicked. */
static void together(void **state)
{
    struct accel_exit_count exits[16];
    struct accel_slot_info info[8];
    struct strata_region *window;
    struct rig r;
    unsigned i, n;

    start(&r, state, 1 << 20);
    window = rig_alias(&r, "window", r.big, 16 * 4096);
    strata_region_set_enabled(window, false);
    strata_region_set_alias_offset(window, 0x40000);
    assert_int_equal(strata_region_add_overlap(r.system, BIG_ADDR + 0x40000, window, 5), 0);
    /* The window may show other bytes between its store and its look: this guest does not mind. */
    assert_int_equal(strata_write(r.space, 0x1000 + (strata_addr)(guest_check - guest_rounds), STRATA_ATTRS_NONE,
                                  "\x90\x90", 2), STRATA_OK);
    rig_start(&r);
    for (i = 0; i < 100; i++) {
        strata_region_set_enabled(window, !(i & 1)); /* same bytes: merged, or three */
        strata_region_set_alias_offset(window, i & 2 ? 0x41000 : 0x40000);
        n = accel_slots(r.accel, info, 8);
        assert_true(n >= 2 && n <= 4);
    }
    strata_region_set_enabled(window, false);
    assert_int_equal(accel_slots(r.accel, info, 8), 2);
    finish(&r);
    n = accel_exit_counts(r.accel, exits, 16);
    for (i = 0; i < n && strncmp(*state, "soft", 4) == 0; i++) {
        assert_true(strcmp(exits[i].name, "kick") != 0 || exits[i].count <= 2);
    }
    strata_region_destroy(window);
    end(&r);
}

/* Rings: a vCPU that dirties more than it may is held back, and what it did is told. Bitmaps: refused. */
static void limits(void **state)
{
    struct accel_dirty_rate rate = {0, 0, 0};
    struct strata_ram *ram;
    struct rig r;
    int ret;

    start(&r, state, 1 << 20);
    ram = strata_region_ram(r.big);
    ret = accel_dirty_limit_set(r.accel, 0, 4 << 20);
    if (!strstr(*state, "dirty-ring-size")) {
        assert_int_equal(ret, -EOPNOTSUPP);
        assert_int_equal(accel_dirty_rate(r.accel, 0, &rate), -EOPNOTSUPP);
        end(&r);
        return;
    }
    assert_int_equal(ret, 0);
    assert_int_equal(accel_dirty_limit_set(r.accel, 7, 1), -EINVAL);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_LIMIT), 0);
    rig_start(&r);
    for (int i = 0; i < 60 && rate.throttled_ns < 200000000; i++) {
        usleep(50000);
        assert_int_equal(strata_sync_dirty(r.memory, false), 0);
        strata_ram_test_clear_dirty(ram, 0, 1 << 20, STRATA_DIRTY_MIGRATION);
        assert_int_equal(accel_dirty_rate(r.accel, 0, &rate), 0);
    }
    assert_true(rate.throttled_ns >= 200000000);
    assert_int_equal(rate.limit, 4 << 20);
    assert_int_equal(accel_dirty_limit_set(r.accel, 0, 0), 0);
    finish(&r);
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_LIMIT), 0);
    end(&r);
}

/* ---- allocations that fail ---- */

struct failing {
    int left; /* before the one that fails; below 0: none does */
    bool failed;
};

static bool fail_one(void *opaque)
{
    struct failing *f = opaque;

    f->failed |= f->left == 0;
    return f->left >= 0 && f->left-- == 0;
}

/* Making the client: each failure is told in words and leaves nothing behind. */
static void opening_fails(void **state)
{
    struct failing f;
    struct rig r;
    int n, ret;

    for (n = 0;; n++) {
        f = (struct failing){n, false};
        r.fail_alloc = fail_one;
        r.fail_opaque = &f;
        ret = rig_try(&r, *state, LOW_SIZE);
        if (!f.failed) {
            break;
        }
        assert_int_equal(ret, -ENOMEM);
    }
    assert_int_equal(ret, 0);
    assert_true(n > 4);
    rig_fini(&r);
}

/* A commit: one that fails changes nothing, here or in the engine, and the same one goes through afterwards; what
 * reads logs does without memory, and loses nothing by it. */
static void commits_fail(void **state)
{
    struct accel_slot_info info[64];
    struct strata_region *part[40];
    struct failing f = {-1, false};
    unsigned i, refused = 0;
    struct rig r;

    r.fail_alloc = fail_one;
    r.fail_opaque = &f;
    assert_int_equal(rig_try(&r, *state, LOW_SIZE), 0);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_MIGRATION), 0);
    for (i = 0; i < 40; i++) {
        char name[16];
        int n = 0, ret;

        snprintf(name, sizeof(name), "part%u", i);
        part[i] = rig_ram(&r, name, 4096);
        do {
            f = (struct failing){n++, false};
            ret = strata_region_add(r.system, BIG_ADDR + i * UINT64_C(8192), part[i]);
            assert_true(ret == 0 || ret == -ENOMEM);
            assert_int_equal(accel_slots(r.accel, info, 64), 1 + i + (ret == 0));
            refused += ret != 0;
        } while (ret != 0);
        strata_ram_test_clear_dirty(strata_region_ram(part[i]), 0, 4096, STRATA_DIRTY_MIGRATION);
    }
    assert_true(refused > 0);
    f = (struct failing){0, false};
    assert_int_equal(strata_sync_dirty(r.memory, false), 0);
    if (f.failed) {
        assert_int_equal(strata_ram_count_dirty(strata_region_ram(r.ram), STRATA_DIRTY_MIGRATION), LOW_SIZE / 4096);
    }
    f.left = -1;
    assert_int_equal(r.stop_reason, -1);
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_MIGRATION), 0);
    for (i = 0; i < 40; i++) {
        strata_region_destroy(part[i]);
    }
    rig_fini(&r);
}

/* ---- the storm ---- */

struct storm {
    struct rig *r;
    struct strata_region *hole, *alias, *whole;
    bool away;
    uint64_t bytes;
    uint32_t *floor; /* per page: the round that was there when the page was last reported clean */
    uint8_t *late;   /* per page: changed at the last harvest and not reported; must be reported by the next */
    bool may_be_late;
    uint64_t seed;
};

static uint32_t rnd(struct storm *s, uint32_t n)
{
    s->seed = s->seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(s->seed >> 33) % n;
}

static uint32_t page_word(struct storm *s, uint64_t page)
{
    return __atomic_load_n((uint32_t *)((char *)strata_region_host(s->r->big) + page * 4096 + 8), __ATOMIC_ACQUIRE);
}

/*
 * A harvest: pages that are not reported dirty hold what they held at the last one. The word of a page that is
 * taken over is read after its bit was cleared, as a migration would. A kernel whose KVM interprets stores marks the page
 * behind the store (as __kvm_write_guest_page() does): while it runs, the mark may come with the next harvest.
 */
static void harvest(struct storm *s)
{
    static uint64_t bits[1 << 12];
    struct strata_ram *ram = strata_region_ram(s->r->big);
    uint64_t pages = s->bytes / 4096, i;
    static uint32_t now[1 << 18];

    for (i = 0; i < pages; i++) {
        now[i] = page_word(s, i);
    }
    assert_int_equal(strata_sync_dirty(s->r->memory, false), 0);
    strata_ram_harvest_dirty(ram, 0, s->bytes, STRATA_DIRTY_MIGRATION, bits);
    for (i = 0; i < pages; i++) {
        if (bits[i / 64] >> (i % 64) & 1) {
            s->floor[i] = page_word(s, i);
            s->late[i] = 0;
        } else if (now[i] != s->floor[i] && s->may_be_late && !s->late[i]) {
            s->late[i] = 1;
        } else if (now[i] != s->floor[i]) {
            fail_msg("page %llu changed from %u to %u and was not reported", (unsigned long long)i, s->floor[i], now[i]);
        }
    }
}

/* One change of the topology, none of which takes memory out of what the guest uses. */
static void upset(struct storm *s)
{
    struct rig *r = s->r;
    uint64_t at = (rnd(s, (uint32_t)(s->bytes / 4096 - 16)) + 1) * UINT64_C(4096);

    switch (rnd(s, 5)) {
    case 0: /* a window of an alias on the same bytes splits the slot in three */
        strata_begin(r->memory);
        strata_region_set_address(s->alias, BIG_ADDR + at);
        strata_region_set_alias_offset(s->alias, at);
        strata_region_set_enabled(s->alias, true);
        assert_int_equal(strata_commit(r->memory), 0);
        break;
    case 1: /* and goes: they are joined */
        strata_region_set_enabled(s->alias, false);
        break;
    case 2: /* the block moves away, and an alias shows it where it was; or it comes back */
        s->away = !s->away;
        strata_begin(r->memory);
        strata_region_set_address(r->big, s->away ? BIG_ADDR * 256 : BIG_ADDR);
        strata_region_set_enabled(s->whole, s->away);
        assert_int_equal(strata_commit(r->memory), 0);
        break;
    case 3: /* made anew: same place, other attributes */
        strata_begin(r->memory);
        strata_region_set_nonvolatile(r->big, rnd(s, 2));
        assert_int_equal(strata_commit(r->memory), 0);
        break;
    default: /* a slot elsewhere, read-only and not */
        strata_region_set_readonly(s->hole, rnd(s, 2));
        strata_region_set_address(s->hole, BIG_ADDR * 128 + at);
        break;
    }
}

static void storm(void **state)
{
    bool is_soft = strncmp(*state, "soft", 4) == 0, is_long = getenv("STRATA_LONG") != NULL;
    uint64_t bytes = is_long ? (is_soft ? UINT64_C(1) << 30 : 64 << 20) : (is_soft ? 16 << 20 : 2 << 20);
    struct storm s = {.bytes = bytes, .seed = 42};
    time_t until = time(NULL) + (is_long ? 30 : 2);
    uint32_t last, i;
    struct rig r;

    start(&r, state, bytes);
    s.r = &r;
    s.floor = calloc(bytes / 4096, sizeof(*s.floor));
    s.late = calloc(bytes / 4096, 1);
    assert_true(s.floor && s.late);
    s.may_be_late = !is_soft;
    s.alias = rig_alias(&r, "window", r.big, 16 * 4096);
    strata_region_set_enabled(s.alias, false);
    assert_int_equal(strata_region_add_overlap(r.system, BIG_ADDR, s.alias, 5), 0);
    s.whole = rig_alias(&r, "whole", r.big, bytes);
    strata_region_set_enabled(s.whole, false);
    assert_int_equal(strata_region_add_overlap(r.system, BIG_ADDR, s.whole, 4), 0);
    s.hole = rig_ram(&r, "elsewhere", 0x20000);
    assert_int_equal(strata_region_add(r.system, BIG_ADDR * 128, s.hole), 0);
    assert_int_equal(strata_tracking_start(r.memory, STRATA_TRACK_MIGRATION), 0);
    rig_start(&r);
    for (i = 0; time(NULL) < until || i < 20; i++) {
        upset(&s);
        if (i % 4 == 0) {
            harvest(&s);
        }
    }
    finish(&r);
    s.may_be_late = false;
    harvest(&s);
    last = word(&r, 0x200c);
    assert_true(last >= 1);
    for (i = 0; i < bytes / 4096; i++) {
        assert_int_equal(page_word(&s, i), last); /* no store was lost */
    }
    assert_int_equal(strata_tracking_stop(r.memory, STRATA_TRACK_MIGRATION), 0);
    strata_region_destroy(s.alias);
    strata_region_destroy(s.whole);
    strata_region_destroy(s.hole);
    free(s.floor);
    free(s.late);
    end(&r);
}

/* argv[1]: the engine and its properties; 77 when it is not to be had. */
int main(int argc, char **argv)
{
    const char *engine = argc > 1 ? argv[1] : "soft";
    struct accel_options opts = {.engine = engine, .vcpus = 1};
    struct base_error err = {""};
    struct accel *a;
    char name[96];
    struct CMUnitTest tests[] = {
        cmocka_unit_test(table_grows),     cmocka_unit_test(largest_slot),
        cmocka_unit_test(rounds_are_seen), cmocka_unit_test(windows),
        cmocka_unit_test(log_of_a_slot_that_goes), cmocka_unit_test(discards_reach_the_guest),
        cmocka_unit_test(opening_fails),   cmocka_unit_test(commits_fail),
        cmocka_unit_test(limits),          cmocka_unit_test(together),
        cmocka_unit_test(storm),
    };
    size_t i;

    if (accel_open(&a, &opts, &err) < 0) {
        fprintf(stderr, "%s\n", err.text);
        return 77;
    }
    accel_free(a);
    for (i = 0; i < sizeof(tests) / sizeof(tests[0]); i++) {
        tests[i].initial_state = (void *)engine;
    }
    snprintf(name, sizeof(name), "slots/%s", engine);
    return _cmocka_run_group_tests(name, tests, sizeof(tests) / sizeof(tests[0]), NULL, NULL);
}
