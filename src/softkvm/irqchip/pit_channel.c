/*
 * A counter of the 8254 (pit_channel.h). The count is never stepped: what it shows follows from when it
 * was loaded. Invariants: count is 1 to 65536; mode is 0 to 5; latch and access states are those below.
 *
 * Left out: BCD counting (the bit is kept and shown, the count is binary) and the stopping of modes 0 and
 * 4 by GATE, as with KVM.
 */
#include "softkvm/irqchip/pit_channel.h"

#include <string.h>

#define NS_PER_S UINT64_C(1000000000)

enum access_state {
    ACCESS_LOW = 1,
    ACCESS_HIGH = 2,
    ACCESS_WORD_LOW = 3,
    ACCESS_WORD_HIGH = 4,
};

uint64_t kvm_pit_ticks_to_ns(uint64_t ticks)
{
    return (uint64_t)((unsigned __int128)ticks * NS_PER_S / KVM_PIT_HZ);
}

uint64_t kvm_pit_ns_to_ticks(uint64_t ns)
{
    return (uint64_t)((unsigned __int128)ns * KVM_PIT_HZ / NS_PER_S);
}

void kvm_pit_channel_init(struct kvm_pit_channel_state *c, bool gate, uint64_t now)
{
    memset(c, 0, sizeof(*c));
    c->mode = 0xff; /* no control word has been written */
    c->gate = gate;
    kvm_pit_channel_load(c, 0, now);
}

static uint64_t elapsed_ticks(const struct kvm_pit_channel_state *c, uint64_t now)
{
    uint64_t loaded = (uint64_t)c->count_load_time;

    return kvm_pit_ns_to_ticks(now > loaded ? now - loaded : 0);
}

static uint16_t current_count(const struct kvm_pit_channel_state *c, uint64_t now)
{
    uint64_t d = elapsed_ticks(c, now);

    switch (c->mode) {
    case 0:
    case 1:
    case 4:
    case 5:
        return (uint16_t)(c->count - d); /* goes on below zero */
    case 3:
        return (uint16_t)(c->count - (2 * d) % c->count); /* two at a time */
    default:
        return (uint16_t)(c->count - d % c->count);
    }
}

bool kvm_pit_channel_out(const struct kvm_pit_channel_state *c, uint64_t now)
{
    uint64_t d = elapsed_ticks(c, now);

    switch (c->mode) {
    case 1:
        return d < c->count;
    case 2:
        return d != 0 && d % c->count == 0;
    case 3:
        return d % c->count < (c->count + 1) / 2;
    case 4:
    case 5:
        return d == c->count;
    default:
        return d >= c->count;
    }
}

void kvm_pit_channel_load(struct kvm_pit_channel_state *c, uint32_t count, uint64_t now)
{
    c->count = count == 0 || count > 0x10000 ? 0x10000 : count;
    c->count_load_time = (int64_t)now;
}

void kvm_pit_channel_set_gate(struct kvm_pit_channel_state *c, bool gate, uint64_t now)
{
    bool rising = gate && !c->gate;

    /* A rising gate triggers modes 1, 2, 3 and 5. */
    if (rising && c->mode != 0 && c->mode != 4) {
        c->count_load_time = (int64_t)now;
    }
    c->gate = gate;
}

void kvm_pit_channel_latch_count(struct kvm_pit_channel_state *c, uint64_t now)
{
    if (!c->count_latched) {
        c->latched_count = current_count(c, now);
        c->count_latched = c->rw_mode;
    }
}

void kvm_pit_channel_latch_status(struct kvm_pit_channel_state *c, uint64_t now)
{
    if (!c->status_latched) {
        c->status = (uint8_t)((kvm_pit_channel_out(c, now) << 7) | (c->rw_mode << 4) |
                              (c->mode << 1) | c->bcd);
        c->status_latched = 1;
    }
}

void kvm_pit_channel_control(struct kvm_pit_channel_state *c, uint8_t value, uint64_t now)
{
    uint8_t access = (value >> 4) & 3;

    if (access == 0) {
        kvm_pit_channel_latch_count(c, now);
        return;
    }
    c->rw_mode = access;
    c->read_state = access;
    c->write_state = access;
    c->mode = (value >> 1) & 7;
    if (c->mode > 5) {
        c->mode -= 4; /* the top bit does not matter for modes 2 and 3 */
    }
    c->bcd = value & 1;
    if (c->mode == 0) {
        c->count_load_time = (int64_t)now; /* OUT goes low at once */
    }
}

bool kvm_pit_channel_write(struct kvm_pit_channel_state *c, uint8_t value, uint64_t now)
{
    switch (c->write_state) {
    case ACCESS_HIGH:
        kvm_pit_channel_load(c, (uint32_t)value << 8, now);
        return true;
    case ACCESS_WORD_LOW:
        c->write_latch = value;
        c->write_state = ACCESS_WORD_HIGH;
        return false;
    case ACCESS_WORD_HIGH:
        kvm_pit_channel_load(c, c->write_latch | (uint32_t)value << 8, now);
        c->write_state = ACCESS_WORD_LOW;
        return true;
    default:
        kvm_pit_channel_load(c, value, now);
        return true;
    }
}

static uint8_t read_latched(struct kvm_pit_channel_state *c)
{
    switch (c->count_latched) {
    case ACCESS_HIGH:
        c->count_latched = 0;
        return (uint8_t)(c->latched_count >> 8);
    case ACCESS_WORD_LOW:
        c->count_latched = ACCESS_HIGH;
        return (uint8_t)c->latched_count;
    default:
        c->count_latched = 0;
        return (uint8_t)c->latched_count;
    }
}

uint8_t kvm_pit_channel_read(struct kvm_pit_channel_state *c, uint64_t now)
{
    if (c->status_latched) {
        c->status_latched = 0;
        return c->status;
    }
    if (c->count_latched) {
        return read_latched(c);
    }
    switch (c->read_state) {
    case ACCESS_HIGH:
        return (uint8_t)(current_count(c, now) >> 8);
    case ACCESS_WORD_LOW:
        c->read_state = ACCESS_WORD_HIGH;
        return (uint8_t)current_count(c, now);
    case ACCESS_WORD_HIGH:
        c->read_state = ACCESS_WORD_LOW;
        return (uint8_t)(current_count(c, now) >> 8);
    default:
        return (uint8_t)current_count(c, now);
    }
}

void kvm_pit_channel_sanitise(struct kvm_pit_channel_state *c)
{
    if (c->count == 0 || c->count > 0x10000) {
        c->count = 0x10000;
    }
    c->mode = c->mode > 5 ? 0xff : c->mode;
    c->rw_mode &= 3;
    c->bcd &= 1;
    c->gate = c->gate != 0;
    c->count_latched = c->count_latched > ACCESS_WORD_HIGH ? 0 : c->count_latched;
}
