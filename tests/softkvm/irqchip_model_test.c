/*
 * The IOAPIC, a counter of the 8254, the clock's scale and the timer thread, each alone.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "softkvm/irqchip/ioapic.h"
#include "softkvm/irqchip/pit_channel.h"
#include "softkvm/kvmclock.h"
#include "softkvm/timer.h"

static uint32_t seed = 12345;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

/* ---- IOAPIC against rules in words: messages counted, per pin ---- */

struct sink {
    unsigned count;
    uint64_t last;
    int answer;
};

static int sink_send(void *opaque, uint64_t entry)
{
    struct sink *s = opaque;

    s->count++;
    s->last = entry;
    return s->answer;
}

struct pin_model {
    bool high[3], masked, level, waiting; /* waiting: for an EOI */
    unsigned expected;
};

static bool any_high(const struct pin_model *p)
{
    return p->high[0] || p->high[1] || p->high[2];
}

static void model_offer_level(struct pin_model *p)
{
    if (p->level && any_high(p) && !p->masked && !p->waiting) {
        p->expected++;
        p->waiting = true;
    }
}

static void ioapic_step(struct kvm_ioapic *io, struct pin_model *p, unsigned *edges)
{
    unsigned source = rnd(3), what = rnd(10);
    bool up = rnd(2), was = any_high(p);

    if (what < 6) {
        p->high[source] = up;
        kvm_ioapic_set_line(io, source, 3, up);
        if (!p->level && any_high(p) && !was && !p->masked) {
            p->expected++;
            ++*edges;
        }
        model_offer_level(p);
    } else if (what < 8) {
        kvm_ioapic_eoi(io, 0x33, p->level);
        p->waiting = false;
        model_offer_level(p);
    } else {
        p->masked = rnd(2);
        p->level = what == 9 ? rnd(2) : p->level;
        kvm_ioapic_write(io, 0, 0x16);
        kvm_ioapic_write(io, 0x10, 0x33u | (unsigned)p->level << 15 | (unsigned)p->masked << 16);
        p->waiting = p->waiting && p->level;
        model_offer_level(p);
    }
}

static void test_ioapic_random(void **state)
{
    struct sink sink = {.answer = 1};
    struct pin_model p = {.masked = true};
    struct kvm_ioapic io;
    unsigned edges = 0;

    (void)state;
    kvm_ioapic_init(&io, sink_send, &sink);
    for (unsigned i = 0; i < 200000; i++) {
        ioapic_step(&io, &p, &edges);
        if (sink.count != p.expected) {
            fail_msg("step %u: %u messages, %u expected", i, sink.count, p.expected);
        }
        assert_int_equal(io.redir[3] >> 14 & 1, p.waiting);
    }
    assert_true(edges > 1000 && sink.count > edges);
}

/* A handler that never quiets its device does not get the machine: the messages pause. */
static void test_ioapic_storm(void **state)
{
    struct sink sink = {.answer = 1};
    struct kvm_ioapic io;

    (void)state;
    kvm_ioapic_init(&io, sink_send, &sink);
    kvm_ioapic_write(&io, 0, 0x16);
    kvm_ioapic_write(&io, 0x10, 0x8033);
    kvm_ioapic_set_line(&io, 0, 3, true);
    for (unsigned i = 0; i < 20000 && !io.delayed; i++) {
        kvm_ioapic_eoi(&io, 0x33, true);
    }
    assert_int_equal(io.delayed, 8);
    assert_int_equal(sink.count, 10000);
    kvm_ioapic_resend(&io);
    assert_int_equal(sink.count, 10001);
    assert_int_equal(io.delayed, 0);
}

static void test_ioapic_state(void **state)
{
    struct sink sink = {.answer = 1};
    struct kvm_ioapic_state s;
    struct kvm_ioapic io;

    (void)state;
    kvm_ioapic_init(&io, sink_send, &sink);
    for (unsigned fill = 0; fill < 256; fill++) {
        memset(&s, (int)fill, sizeof(s));
        kvm_ioapic_set_state(&io, &s);
        for (unsigned reg = 0; reg < 0x100; reg++) {
            kvm_ioapic_write(&io, 0, reg);
            kvm_ioapic_write(&io, 0x10, kvm_ioapic_read(&io, 0x10));
        }
        kvm_ioapic_eoi(&io, (uint8_t)fill, true);
        kvm_ioapic_get_state(&io, &s);
        assert_true(s.id < 16 && (s.irr >> 24) == 0);
    }
}

/* ---- 8254: a counter stepped tick by tick, in the data sheet's words ---- */

struct slow_counter {
    unsigned mode, n; /* initial count */
    unsigned long t;  /* ticks since the load */
};

static unsigned slow_value(const struct slow_counter *c)
{
    unsigned v = c->n;

    for (unsigned long i = 0; i < c->t; i++) {
        switch (c->mode) {
        case 2: v = v == 1 ? c->n : v - 1; break;
        case 3: v = v <= 2 ? c->n : v - 2; break;
        default: v = (v - 1) & 0xffff; break;
        }
    }
    return v & 0xffff;
}

static void test_pit_counts(void **state)
{
    static const unsigned modes[] = {0, 1, 2, 3, 4, 5};
    struct kvm_pit_channel_state c;

    (void)state;
    for (unsigned round = 0; round < 3000; round++) {
        struct slow_counter m = {.mode = modes[rnd(6)], .n = (2 + rnd(300)) & ~1u, .t = rnd(2000)};
        uint64_t start = (uint64_t)rnd(1000000) * 1000, now;
        unsigned value;

        kvm_pit_channel_init(&c, true, start);
        kvm_pit_channel_control(&c, (uint8_t)(0x30 | m.mode << 1), start);
        assert_false(kvm_pit_channel_write(&c, (uint8_t)m.n, start));
        assert_true(kvm_pit_channel_write(&c, (uint8_t)(m.n >> 8), start));
        now = start + (m.t * 1000000000ull + KVM_PIT_HZ - 1) / KVM_PIT_HZ;
        kvm_pit_channel_latch_count(&c, now);
        value = kvm_pit_channel_read(&c, now + 5000000);
        value |= (unsigned)kvm_pit_channel_read(&c, now + 9000000) << 8;
        if (value != slow_value(&m)) {
            fail_msg("mode %u count %u after %lu: %u, not %u", m.mode, m.n, m.t, value, slow_value(&m));
        }
        if (m.mode == 0) {
            assert_int_equal(kvm_pit_channel_out(&c, now), m.t >= m.n);
        }
        if (m.mode == 3) {
            assert_int_equal(kvm_pit_channel_out(&c, now), m.t % m.n < m.n / 2);
        }
    }
}

static void test_pit_bytes(void **state)
{
    struct kvm_pit_channel_state c;

    (void)state;
    kvm_pit_channel_init(&c, true, 0);
    kvm_pit_channel_control(&c, 0x10, 0); /* low byte only */
    assert_true(kvm_pit_channel_write(&c, 0x34, 0));
    assert_int_equal(c.count, 0x34);
    kvm_pit_channel_control(&c, 0x20, 0); /* high byte only */
    assert_true(kvm_pit_channel_write(&c, 0x12, 0));
    assert_int_equal(c.count, 0x1200);
    assert_int_equal(kvm_pit_channel_read(&c, 0), 0x12);
    kvm_pit_channel_control(&c, 0x30, 0);
    kvm_pit_channel_write(&c, 0, 0);
    kvm_pit_channel_write(&c, 0, 0);
    assert_int_equal(c.count, 0x10000);
    kvm_pit_channel_latch_status(&c, 0);
    assert_int_equal(kvm_pit_channel_read(&c, 0), 0x30); /* OUT low, word access, mode 0 */
    memset(&c, 0xff, sizeof(c));
    kvm_pit_channel_sanitise(&c);
    for (unsigned i = 0; i < 8; i++) {
        (void)kvm_pit_channel_read(&c, i * 1000);
        (void)kvm_pit_channel_out(&c, i);
        kvm_pit_channel_write(&c, (uint8_t)i, i);
    }
    assert_true(c.count >= 1 && c.count <= 0x10000);
}

/* ---- clock ---- */

static void test_scale(void **state)
{
    static const uint64_t hz[] = {1000, 999999, 1000000, 1193182, 999999999, 1000000000, 1000000001,
                                  1999998000, 2000000000, 3700000000, 5000000000, 40000000000};

    (void)state;
    for (size_t i = 0; i < sizeof(hz) / sizeof(hz[0]); i++) {
        uint32_t mul;
        int8_t shift;

        kvm_clock_scale(hz[i], &mul, &shift);
        assert_true(mul >= 0x7fffffff);
        for (uint64_t s = 1; s <= 10000; s *= 10) {
            uint64_t ns = kvm_clock_ticks_to_ns(hz[i] * s, mul, shift), want = s * 1000000000u;
            uint64_t off = ns > want ? ns - want : want - ns;

            assert_true(off <= want / 1000000000u + 1);
        }
    }
}

/* ---- timers ---- */

#define TIMERS 200

struct shot {
    struct kvm_timer timer;
    uint64_t due;
    _Atomic unsigned fired;
    _Atomic uint64_t when;
};

static void fire(void *opaque)
{
    struct shot *s = opaque;

    atomic_store(&s->when, kvm_timer_now());
    atomic_fetch_add(&s->fired, 1);
}

static void test_timers(void **state)
{
    struct shot *s = calloc(TIMERS, sizeof(*s));
    struct kvm_timers *set;
    uint64_t now;

    (void)state;
    assert_int_equal(kvm_timers_new(&set), 0);
    now = kvm_timer_now();
    for (unsigned i = 0; i < TIMERS; i++) {
        kvm_timer_init(&s[i].timer, fire, &s[i]);
        s[i].due = now + 1000000ull * (1 + rnd(100));
        assert_int_equal(kvm_timer_arm(set, &s[i].timer, now + 1000000ull * rnd(200)), 0);
    }
    for (unsigned i = 0; i < TIMERS; i++) {
        kvm_timer_cancel_sync(set, &s[i].timer);
        atomic_store(&s[i].fired, 0);
        if (i % 4) {
            kvm_timer_arm(set, &s[i].timer, s[i].due);
        }
    }
    for (unsigned i = 0; i < 200 && kvm_timer_now() < now + 150000000; i++) {
        usleep(10000);
    }
    kvm_timers_stop(set);
    for (unsigned i = 0; i < TIMERS; i++) {
        assert_int_equal(atomic_load(&s[i].fired), i % 4 ? 1 : 0);
        assert_true(i % 4 == 0 || atomic_load(&s[i].when) >= s[i].due);
        kvm_timer_cancel_sync(set, &s[i].timer);
    }
    kvm_timers_free(set);
    free(s);
}

/* Armed, moved and cancelled by several threads while they fire. */
static void *shuffle(void *opaque)
{
    struct kvm_timers *set = opaque;
    struct shot s[8];

    memset(s, 0, sizeof(s));
    for (unsigned i = 0; i < 8; i++) {
        kvm_timer_init(&s[i].timer, fire, &s[i]);
    }
    for (unsigned i = 0; i < 4000; i++) {
        struct kvm_timer *t = &s[i % 8].timer;

        if (i % 7 == 0) {
            kvm_timer_cancel_sync(set, t);
        } else {
            kvm_timer_arm(set, t, kvm_timer_now() + (i % 5) * 20000);
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        kvm_timer_cancel_sync(set, &s[i].timer);
    }
    return NULL;
}

static void test_timers_threads(void **state)
{
    struct kvm_timers *set;
    pthread_t id[3];

    (void)state;
    assert_int_equal(kvm_timers_new(&set), 0);
    for (unsigned i = 0; i < 3; i++) {
        pthread_create(&id[i], NULL, shuffle, set);
    }
    for (unsigned i = 0; i < 3; i++) {
        pthread_join(id[i], NULL);
    }
    kvm_timers_free(set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ioapic_random), cmocka_unit_test(test_ioapic_storm),
        cmocka_unit_test(test_ioapic_state),  cmocka_unit_test(test_pit_counts),
        cmocka_unit_test(test_pit_bytes),     cmocka_unit_test(test_scale),
        cmocka_unit_test(test_timers),        cmocka_unit_test(test_timers_threads),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
