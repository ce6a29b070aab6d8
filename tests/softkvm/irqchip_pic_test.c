/*
 * The 8259 pair against a model written from the data sheet's words: inputs as arrays of flags, priority
 * as a search from the lowest-priority input upwards. Plus sequences whose outcome is known by heart.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "softkvm/irqchip/pic.h"

/* ---- the model ---- */

struct model_chip {
    bool req[8], serv[8], mask[8], level[8], pin[8];
    int lowest; /* input with the lowest priority */
    int base;
    int expect; /* 0: OCW1; 1..3: ICW2..4 */
    bool with_icw4, auto_eoi, rotate_aeoi, special_mask, special_nested, read_serv, poll;
};

struct model {
    struct model_chip c[2];
    int held[16];
};

static bool model_int(const struct model *m, int which, int *input)
{
    const struct model_chip *c = &m->c[which];

    for (int k = 1; k <= 8; k++) {
        int i = (c->lowest + k) % 8;
        bool blocks = c->serv[i];

        if (c->special_mask && c->mask[i]) {
            blocks = false;
        }
        if (which == 0 && c->special_nested && i == 2) {
            blocks = false;
        }
        if (c->req[i] && !c->mask[i] && !blocks) {
            *input = i;
            return true;
        }
        /* What is in service shuts out itself and everything below. */
        if (blocks) {
            return false;
        }
    }
    return false;
}

static void model_pin(struct model_chip *c, int i, bool high)
{
    if (c->level[i]) {
        c->req[i] = high;
    } else if (high && !c->pin[i]) {
        c->req[i] = true;
    }
    c->pin[i] = high;
}

static void model_cascade(struct model *m)
{
    int i;

    if (model_int(m, 1, &i)) {
        model_pin(&m->c[0], 2, true);
        model_pin(&m->c[0], 2, false);
    }
}

static void model_serve(struct model_chip *c, int i)
{
    if (!c->level[i]) {
        c->req[i] = false;
    }
    c->serv[i] = !c->auto_eoi;
    if (c->auto_eoi && c->rotate_aeoi) {
        c->lowest = i;
    }
}

static int model_inta(struct model *m)
{
    int i, k, vector;

    if (!model_int(m, 0, &i)) {
        vector = m->c[0].base + 7;
    } else {
        model_serve(&m->c[0], i);
        if (i != 2) {
            vector = m->c[0].base + i;
        } else if (model_int(m, 1, &k)) {
            model_serve(&m->c[1], k);
            vector = m->c[1].base + k;
        } else {
            vector = m->c[1].base + 7;
        }
    }
    model_cascade(m);
    return vector & 0xff;
}

static void model_command(struct model_chip *c, int v)
{
    int best = -1;

    for (int k = 1; k <= 8 && best < 0; k++) {
        if (c->serv[(c->lowest + k) % 8]) {
            best = (c->lowest + k) % 8;
        }
    }
    switch (v >> 5) {
    case 0: c->rotate_aeoi = false; break;
    case 4: c->rotate_aeoi = true; break;
    case 1:
        if (best >= 0) {
            c->serv[best] = false;
        }
        break;
    case 5:
        if (best >= 0) {
            c->serv[best] = false;
            c->lowest = best;
        }
        break;
    case 3: c->serv[v & 7] = false; break;
    case 7:
        c->serv[v & 7] = false;
        c->lowest = v & 7;
        break;
    case 6: c->lowest = v & 7; break;
    }
}

static void model_icw1(struct model_chip *c, int v)
{
    for (int i = 0; i < 8; i++) {
        c->req[i] = c->req[i] && c->level[i];
        c->pin[i] = false;
        c->mask[i] = false;
    }
    c->lowest = 7;
    c->special_mask = c->read_serv = false;
    c->with_icw4 = v & 1;
    if (!c->with_icw4) {
        c->auto_eoi = c->special_nested = false;
    }
    c->expect = 1;
}

static void model_data(struct model_chip *c, int v)
{
    if (c->expect == 0) {
        for (int i = 0; i < 8; i++) {
            c->mask[i] = v >> i & 1;
        }
    } else if (c->expect == 1) {
        c->base = v & ~7;
        c->expect = 2;
    } else if (c->expect == 2) {
        c->expect = c->with_icw4 ? 3 : 0;
    } else {
        c->auto_eoi = v >> 1 & 1;
        c->special_nested = v >> 4 & 1;
        c->expect = 0;
    }
}

static void model_out(struct model *m, int port, int v)
{
    int which = port >= 0x4d0 ? port & 1 : port >= 0xa0;
    struct model_chip *c = &m->c[which];

    if (port >= 0x4d0) {
        for (int i = 0; i < 8; i++) {
            int line = which * 8 + i;
            bool fixed = line <= 2 || line == 8 || line == 13;

            c->level[i] = !fixed && (v >> i & 1);
        }
        return;
    }
    if (port & 1) {
        model_data(c, v);
    } else if (v & 0x10) {
        model_icw1(c, v);
    } else if (v & 8) {
        c->poll = c->poll || (v & 4);
        c->read_serv = v & 2 ? v & 1 : c->read_serv;
        c->special_mask = v & 0x40 ? v >> 5 & 1 : c->special_mask;
    } else {
        model_command(c, v);
    }
    model_cascade(m);
}

static int bits_of(const bool b[8])
{
    int v = 0;

    for (int i = 0; i < 8; i++) {
        v |= b[i] << i;
    }
    return v;
}

static int model_in(struct model *m, int port)
{
    int which = port >= 0x4d0 ? port & 1 : port >= 0xa0, i;
    struct model_chip *c = &m->c[which];

    if (port >= 0x4d0) {
        return bits_of(c->level);
    }
    if (c->poll) {
        c->poll = false;
        if (!model_int(m, which, &i)) {
            model_cascade(m);
            return 7;
        }
        if (which == 1) {
            m->c[0].serv[2] = m->c[0].req[2] = false;
        }
        c->req[i] = c->serv[i] = false;
        model_cascade(m);
        return 0x80 | i;
    }
    return port & 1 ? bits_of(c->mask) : c->read_serv ? bits_of(c->serv) : bits_of(c->req);
}

/* ---- tests ---- */

static uint32_t seed;

static uint32_t rnd(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % n;
}

static void init_pair(struct kvm_pic *p, struct model *m)
{
    static const struct {
        int port, value;
    } setup[] = {{0x20, 0x11}, {0x21, 0x20}, {0x21, 4}, {0x21, 1},
                 {0xa0, 0x11}, {0xa1, 0x28}, {0xa1, 2}, {0xa1, 1}};

    kvm_pic_init(p);
    memset(m, 0, sizeof(*m));
    m->c[0].lowest = m->c[1].lowest = 7;
    for (size_t i = 0; i < sizeof(setup) / sizeof(setup[0]); i++) {
        kvm_pic_write(p, (uint16_t)setup[i].port, (uint8_t)setup[i].value);
        model_out(m, setup[i].port, setup[i].value);
    }
}

static void compare(struct kvm_pic *p, struct model *m, int step)
{
    int i;

    for (int which = 0; which < 2; which++) {
        const struct kvm_pic_state *s = &p->chip[which];
        const struct model_chip *c = &m->c[which];

        if (s->irr != bits_of(c->req) || s->isr != bits_of(c->serv) || s->imr != bits_of(c->mask) ||
            s->elcr != bits_of(c->level)) {
            fail_msg("step %d chip %d: irr %02x/%02x isr %02x/%02x imr %02x/%02x elcr %02x/%02x", step,
                     which, s->irr, bits_of(c->req), s->isr, bits_of(c->serv), s->imr,
                     bits_of(c->mask), s->elcr, bits_of(c->level));
        }
    }
    assert_int_equal(p->output, model_int(m, 0, &i));
}

static void one_step(struct kvm_pic *p, struct model *m, int step)
{
    static const int ports[] = {0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1};
    static const int commands[] = {0x20, 0x60, 0xa0, 0xc0, 0xe0, 0x80, 0x00, 0x0a, 0x0b, 0x0c, 0x68, 0x48};
    uint32_t what = rnd(100), input = rnd(16), source = rnd(3);
    int port, value;

    if (what < 45) {
        bool high = rnd(2);

        m->held[input] = high ? m->held[input] | 1 << source : m->held[input] & ~(1 << source);
        kvm_pic_set_line(p, source, input, high);
        model_pin(&m->c[input / 8], (int)input % 8, m->held[input] != 0);
        model_cascade(m);
    } else if (what < 65) {
        int peek = kvm_pic_peek(p);
        bool high = p->output;
        int vector = kvm_pic_ack(p);

        assert_int_equal(vector, model_inta(m));
        assert_int_equal(peek, high ? vector : -1);
    } else if (what < 75) {
        port = ports[rnd(6)];
        value = kvm_pic_read(p, (uint16_t)port);
        assert_int_equal(value, model_in(m, port));
    } else {
        port = ports[rnd(4)];
        value = commands[rnd(12)];
        if (value < 0x08 || value >= 0x20) {
            value |= (value & 0x08) ? 0 : (int)rnd(8);
        }
        if (port & 1) {
            value = rnd(3) ? 0 : (int)rnd(256);
        } else if (rnd(40) == 0) {
            value = 0x10 | (int)rnd(2);
        } else if (rnd(20) == 0) {
            port = ports[4 + rnd(2)];
            value = (int)rnd(256);
        }
        kvm_pic_write(p, (uint16_t)port, (uint8_t)value);
        model_out(m, port, value);
    }
    compare(p, m, step);
}

static void test_random(void **state)
{
    (void)state;
    for (uint32_t round = 0; round < 400; round++) {
        struct kvm_pic p;
        struct model m;

        seed = round * 7919 + 1;
        init_pair(&p, &m);
        for (int step = 0; step < 500; step++) {
            one_step(&p, &m, (int)round * 1000 + step);
        }
    }
}

static void test_timer_then_keyboard(void **state)
{
    struct kvm_pic p;
    struct model m;

    (void)state;
    init_pair(&p, &m);
    assert_int_equal(kvm_pic_set_line(&p, 0, 1, true), 1);
    assert_int_equal(kvm_pic_set_line(&p, 0, 0, true), 1);
    kvm_pic_set_line(&p, 0, 0, false);
    assert_int_equal(kvm_pic_set_line(&p, 0, 0, true), 0); /* a second edge, merged */
    assert_int_equal(kvm_pic_ack(&p), 0x20);
    assert_false(p.output); /* the keyboard is below */
    kvm_pic_write(&p, 0x20, 0x20);
    assert_int_equal(p.acked, 1);
    assert_true(p.output);
    assert_int_equal(kvm_pic_ack(&p), 0x21);
}

static void test_spurious(void **state)
{
    struct kvm_pic p;
    struct model m;

    (void)state;
    init_pair(&p, &m);
    kvm_pic_write(&p, 0x4d0, 0x20);
    kvm_pic_set_line(&p, 0, 5, true);
    assert_true(p.output);
    kvm_pic_set_line(&p, 0, 5, false); /* a level line that goes before INTA */
    assert_false(p.output);
    assert_int_equal(kvm_pic_ack(&p), 0x27);
    assert_int_equal(p.chip[0].isr, 0);
}

static void test_state_sanitised(void **state)
{
    struct kvm_pic_state junk, out;
    struct kvm_pic p;

    (void)state;
    for (unsigned fill = 0; fill < 256; fill += 5) {
        kvm_pic_init(&p);
        memset(&junk, (int)fill, sizeof(junk));
        kvm_pic_set_state(&p, 0, &junk);
        kvm_pic_set_state(&p, 1, &junk);
        for (unsigned i = 0; i < 64; i++) {
            kvm_pic_set_line(&p, 0, i & 15, i & 16);
            (void)kvm_pic_ack(&p);
            (void)kvm_pic_peek(&p);
            (void)kvm_pic_read(&p, i & 1 ? 0x20 : 0xa1);
        }
        kvm_pic_get_state(&p, 0, &out);
        assert_int_equal(out.elcr_mask, 0xf8);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_timer_then_keyboard),
        cmocka_unit_test(test_spurious),
        cmocka_unit_test(test_state_sanitised),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
