/*
 * The 8259A pair.
 *
 *   lines --> irr --(imr, isr, priority)--> slave INT --> master input 2 --> master INT = output
 *
 * Fully nested, rotating, special mask and special fully nested modes, automatic end of interrupt, poll
 * command, ICW1-4, OCW1-3, ELCR. Invariant: after every call `output` says whether the master has a
 * request above what is in service. Left out: buffered mode, MCS-80 vectors and single mode, which a PC
 * does not wire. Locks: the owner's (pic.h).
 */
#include "softkvm/irqchip/pic.h"

#include <string.h>

#define NO_REQUEST 8

enum ocw2_command {
    OCW2_ROTATE_AEOI_CLEAR = 0,
    OCW2_EOI = 1,
    OCW2_SPECIFIC_EOI = 3,
    OCW2_ROTATE_AEOI_SET = 4,
    OCW2_ROTATE_EOI = 5,
    OCW2_SET_PRIORITY = 6,
    OCW2_ROTATE_SPECIFIC_EOI = 7,
};

/* Number of the input with the best priority in `set`, counted from the best; NO_REQUEST if empty. */
static unsigned best_priority(const struct kvm_pic_state *c, uint8_t set)
{
    unsigned rotated;

    if (set == 0) {
        return NO_REQUEST;
    }
    rotated = ((unsigned)set << 8 | set) >> (c->priority_add & 7);
    return (unsigned)__builtin_ctz(rotated);
}

/* The input to be served next, or -1. */
static int next_request(const struct kvm_pic *pic, unsigned which)
{
    const struct kvm_pic_state *c = &pic->chip[which];
    unsigned request = best_priority(c, c->irr & (uint8_t)~c->imr);
    uint8_t in_service = c->isr;

    if (request == NO_REQUEST) {
        return -1;
    }
    if (c->special_mask) {
        in_service &= (uint8_t)~c->imr;
    }
    if (c->special_fully_nested_mode && which == 0) {
        /* The slave may interrupt its own service. */
        in_service &= (uint8_t)~4;
    }
    return request < best_priority(c, in_service) ? (int)((request + c->priority_add) & 7) : -1;
}

/* A level on an input of one chip. Returns as kvm_pic_set_line(). */
static int chip_set_input(struct kvm_pic_state *c, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);
    bool pending = c->irr & bit, was_high = c->last_irr & bit;
    int ret = 1;

    if (level) {
        if ((c->elcr & bit) || !was_high) {
            ret = !pending;
            c->irr |= bit;
        }
        c->last_irr |= bit;
    } else {
        if (c->elcr & bit) {
            c->irr &= (uint8_t)~bit;
        }
        c->last_irr &= (uint8_t)~bit;
    }
    return c->imr & bit ? -1 : ret;
}

static void update_output(struct kvm_pic *pic)
{
    if (next_request(pic, 1) >= 0) {
        /* The cascade input is an edge: let it fall first. */
        chip_set_input(&pic->chip[0], 2, true);
        chip_set_input(&pic->chip[0], 2, false);
    }
    pic->output = next_request(pic, 0) >= 0;
}

static void end_service(struct kvm_pic *pic, unsigned which, unsigned input)
{
    pic->chip[which].isr &= (uint8_t)~(1u << input);
    pic->acked |= 1u << (which * 8 + input);
}

void kvm_pic_init(struct kvm_pic *pic)
{
    memset(pic, 0, sizeof(*pic));
    /* Timer, keyboard and cascade, and RTC and coprocessor inputs, cannot be level-triggered. */
    pic->chip[0].elcr_mask = 0xf8;
    pic->chip[1].elcr_mask = 0xde;
}

int kvm_pic_set_line(struct kvm_pic *pic, unsigned source, unsigned input, bool level)
{
    uint32_t bit = 1u << source;
    int ret;

    pic->lines[input] = level ? pic->lines[input] | bit : pic->lines[input] & ~bit;
    ret = chip_set_input(&pic->chip[input >> 3], input & 7, pic->lines[input] != 0);
    update_output(pic);
    return ret;
}

static void start_service(struct kvm_pic *pic, unsigned which, unsigned input)
{
    struct kvm_pic_state *c = &pic->chip[which];
    uint8_t bit = (uint8_t)(1u << input);

    c->isr |= bit;
    if (!(c->elcr & bit)) {
        c->irr &= (uint8_t)~bit;
    }
    if (c->auto_eoi) {
        if (c->rotate_on_auto_eoi) {
            c->priority_add = (input + 1) & 7;
        }
        end_service(pic, which, input);
    }
}

uint8_t kvm_pic_ack(struct kvm_pic *pic)
{
    int input = next_request(pic, 0), sub;
    unsigned vector;

    if (input < 0) {
        vector = pic->chip[0].irq_base + 7u; /* gone meanwhile: spurious */
    } else if (input == 2) {
        start_service(pic, 0, 2);
        sub = next_request(pic, 1);
        if (sub >= 0) {
            start_service(pic, 1, (unsigned)sub);
        }
        vector = pic->chip[1].irq_base + (sub >= 0 ? (unsigned)sub : 7u);
    } else {
        start_service(pic, 0, (unsigned)input);
        vector = pic->chip[0].irq_base + (unsigned)input;
    }
    update_output(pic);
    return (uint8_t)vector;
}

int kvm_pic_peek(const struct kvm_pic *pic)
{
    int input = next_request(pic, 0), sub;

    if (input < 0) {
        return -1;
    }
    if (input != 2) {
        return (uint8_t)(pic->chip[0].irq_base + (unsigned)input);
    }
    sub = next_request(pic, 1);
    return (uint8_t)(pic->chip[1].irq_base + (sub >= 0 ? (unsigned)sub : 7u));
}

/* ICW1: start of initialisation. Requests of edge inputs are forgotten, and count as served, so that
 * who waits for their acknowledgement goes on. */
static void write_icw1(struct kvm_pic *pic, unsigned which, uint8_t value)
{
    struct kvm_pic_state *c = &pic->chip[which];
    uint8_t edges = c->irr & (uint8_t)~c->elcr;

    c->init4 = value & 1;
    c->last_irr = 0;
    c->irr &= c->elcr;
    c->imr = 0;
    c->priority_add = 0;
    c->special_mask = 0;
    c->read_reg_select = 0;
    if (!c->init4) {
        c->special_fully_nested_mode = 0;
        c->auto_eoi = 0;
    }
    c->init_state = 1;
    pic->acked |= (uint32_t)edges << (which * 8);
}

static void write_ocw2(struct kvm_pic *pic, unsigned which, uint8_t value)
{
    struct kvm_pic_state *c = &pic->chip[which];
    unsigned command = value >> 5, input = value & 7, best;

    switch (command) {
    case OCW2_ROTATE_AEOI_CLEAR:
    case OCW2_ROTATE_AEOI_SET:
        c->rotate_on_auto_eoi = command >> 2;
        break;
    case OCW2_EOI:
    case OCW2_ROTATE_EOI:
        best = best_priority(c, c->isr);
        if (best != NO_REQUEST) {
            input = (best + c->priority_add) & 7;
            end_service(pic, which, input);
            c->priority_add = command == OCW2_ROTATE_EOI ? (input + 1) & 7 : c->priority_add;
        }
        break;
    case OCW2_ROTATE_SPECIFIC_EOI:
    case OCW2_SPECIFIC_EOI:
        end_service(pic, which, input);
        c->priority_add =
            command == OCW2_ROTATE_SPECIFIC_EOI ? (input + 1) & 7 : c->priority_add;
        break;
    case OCW2_SET_PRIORITY:
        c->priority_add = (input + 1) & 7;
        break;
    default:
        break;
    }
}

static void write_ocw3(struct kvm_pic_state *c, uint8_t value)
{
    if (value & 0x04) {
        c->poll = 1;
    }
    if (value & 0x02) {
        c->read_reg_select = value & 1;
    }
    if (value & 0x40) {
        c->special_mask = (value >> 5) & 1;
    }
}

static void write_data(struct kvm_pic_state *c, uint8_t value)
{
    switch (c->init_state) {
    case 0:
        c->imr = value;
        break;
    case 1: /* ICW2 */
        c->irq_base = value & 0xf8;
        c->init_state = 2;
        break;
    case 2: /* ICW3: the cascade is wired */
        c->init_state = c->init4 ? 3 : 0;
        break;
    default: /* ICW4 */
        c->special_fully_nested_mode = (value >> 4) & 1;
        c->auto_eoi = (value >> 1) & 1;
        c->init_state = 0;
        break;
    }
}

bool kvm_pic_has_port(uint16_t port)
{
    return (port & ~0x81u) == 0x20 || (port & ~1u) == 0x4d0;
}

void kvm_pic_write(struct kvm_pic *pic, uint16_t port, uint8_t value)
{
    unsigned which = port >= 0x4d0 ? port & 1 : port >> 7;
    struct kvm_pic_state *c = &pic->chip[which];

    if (port >= 0x4d0) {
        c->elcr = value & c->elcr_mask;
        return;
    }
    if (port & 1) {
        write_data(c, value);
    } else if (value & 0x10) {
        write_icw1(pic, which, value);
    } else if (value & 0x08) {
        write_ocw3(c, value);
    } else {
        write_ocw2(pic, which, value);
    }
    update_output(pic);
}

/* Answer of a poll command: the request is taken and at once over. */
static uint8_t read_poll(struct kvm_pic *pic, unsigned which)
{
    struct kvm_pic_state *c = &pic->chip[which];
    int input = next_request(pic, which);

    c->poll = 0;
    if (input < 0) {
        update_output(pic);
        return 7;
    }
    if (which == 1) {
        pic->chip[0].isr &= (uint8_t)~4;
        pic->chip[0].irr &= (uint8_t)~4;
    }
    c->irr &= (uint8_t)~(1u << input);
    end_service(pic, which, (unsigned)input);
    update_output(pic);
    return (uint8_t)(0x80 | input);
}

uint8_t kvm_pic_read(struct kvm_pic *pic, uint16_t port)
{
    unsigned which = port >= 0x4d0 ? port & 1 : port >> 7;
    struct kvm_pic_state *c = &pic->chip[which];

    if (port >= 0x4d0) {
        return c->elcr;
    }
    if (c->poll) {
        return read_poll(pic, which);
    }
    if (port & 1) {
        return c->imr;
    }
    return c->read_reg_select ? c->isr : c->irr;
}

void kvm_pic_get_state(const struct kvm_pic *pic, unsigned which, struct kvm_pic_state *out)
{
    *out = pic->chip[which];
}

void kvm_pic_set_state(struct kvm_pic *pic, unsigned which, const struct kvm_pic_state *in)
{
    uint8_t mask = pic->chip[which].elcr_mask;

    pic->chip[which] = *in;
    pic->chip[which].elcr_mask = mask;
    pic->chip[which].elcr &= mask;
    pic->chip[which].priority_add &= 7;
    update_output(pic);
}
