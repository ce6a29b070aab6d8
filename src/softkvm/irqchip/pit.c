/*
 * The 8254 as a device (pit.h): ports 0x40 to 0x43 and 0x61, and interrupts from counter 0.
 *
 * A tick is an edge on GSI 0. With reinjection, a tick that comes while the last one has not been
 * acknowledged is counted, and given when it has: a guest that counts ticks then loses no time on a
 * busy host. Without, ticks that come too early merge.
 *
 * Invariants:
 *  1. The n-th tick is due at start + n * interval, computed from `start`: lateness does not add up.
 *  2. `pending` counts the ticks due and not acknowledged, the one in flight included.
 *
 * Periods below 200 us are stretched to that, so that a guest cannot keep the timer thread busy.
 */
#include "softkvm/irqchip/pit.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/bus.h"
#include "softkvm/irqchip/chips.h"
#include "softkvm/irqchip/lapic.h"
#include "softkvm/irqchip/pit_channel.h"

#define PIT_MIN_PERIOD_NS UINT64_C(200000)
#define PIT_MAX_PENDING   1000000u
#define SPEAKER_PORT      0x61

struct kvm_pit {
    struct kvm_chips *chips;
    pthread_mutex_t lock;
    /* under lock */
    struct kvm_pit_channel_state channel[3];
    uint32_t flags; /* KVM_PIT_FLAGS_* */
    bool stopped;
    bool reinject, acked;
    uint32_t pending;
    bool periodic, running;
    uint64_t start, interval; /* ns of CLOCK_MONOTONIC */
    uint64_t next;            /* when the next tick is due */
    struct kvm_timer timer;
};

/* One tick into the chips. No lock held. */
static void raise_tick(struct kvm_pit *pit)
{
    kvm_irq_pulse(pit->chips, KVM_SOURCE_PIT, KVM_PIT_GSI);
    if (atomic_load_explicit(&pit->chips->nmi_watchdogs, memory_order_relaxed) != 0) {
        kvm_lapic_pit_watchdogs(pit->chips->vm);
    }
}

/* Start, or stop, the interrupt timer as counter 0's mode asks. Lock: held. */
static void restart_timer(struct kvm_pit *pit)
{
    const struct kvm_pit_channel_state *c = &pit->channel[0];

    pit->running = c->mode <= 4 && !pit->stopped && !(pit->flags & KVM_PIT_FLAGS_HPET_LEGACY);
    pit->periodic = c->mode == 2 || c->mode == 3;
    pit->pending = 0;
    pit->acked = true;
    if (!pit->running) {
        kvm_timer_cancel(pit->chips->timers, &pit->timer);
        return;
    }
    pit->start = (uint64_t)c->count_load_time;
    pit->interval = kvm_pit_ticks_to_ns(c->count);
    if (pit->periodic && pit->interval < PIT_MIN_PERIOD_NS) {
        pit->interval = PIT_MIN_PERIOD_NS;
    }
    pit->next = pit->start + pit->interval;
    /* Room was reserved at creation. */
    (void)!kvm_timer_arm(pit->chips->timers, &pit->timer, pit->next);
}

/* Ticks that are due now; arms for the next. Lock: held. */
static uint64_t take_due_ticks(struct kvm_pit *pit, uint64_t now)
{
    uint64_t due;

    if (!pit->running || now < pit->next) {
        return 0;
    }
    if (!pit->periodic) {
        pit->running = false;
        return 1;
    }
    due = (now - pit->next) / pit->interval + 1;
    pit->next += due * pit->interval;
    (void)!kvm_timer_arm(pit->chips->timers, &pit->timer, pit->next);
    return due;
}

static void pit_fire(void *opaque)
{
    struct kvm_pit *pit = opaque;
    uint64_t due;
    bool raise;

    pthread_mutex_lock(&pit->lock);
    due = take_due_ticks(pit, kvm_timer_now());
    raise = due != 0;
    if (due != 0 && pit->reinject) {
        due += pit->pending;
        pit->pending = due > PIT_MAX_PENDING ? PIT_MAX_PENDING : (uint32_t)due;
        raise = pit->acked;
        pit->acked = false;
    }
    pthread_mutex_unlock(&pit->lock);
    if (raise) {
        raise_tick(pit);
    }
}

void kvm_pit_acked(struct kvm_pit *pit)
{
    bool raise = false;

    pthread_mutex_lock(&pit->lock);
    pit->acked = true;
    if (pit->pending > 0) {
        pit->pending--;
    }
    if (pit->pending > 0 && pit->reinject && !pit->stopped) {
        pit->acked = false;
        raise = true;
    }
    pthread_mutex_unlock(&pit->lock);
    if (raise) {
        raise_tick(pit);
    }
}

void kvm_pit_unmasked(struct kvm_pit *pit)
{
    /* Ticks during the mask are of no use to anyone. */
    pthread_mutex_lock(&pit->lock);
    pit->pending = 0;
    pit->acked = true;
    pthread_mutex_unlock(&pit->lock);
}

static uint8_t read_speaker(struct kvm_pit *pit, uint64_t now)
{
    bool data = pit->flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    bool refresh = (now >> 14) & 1; /* toggles about every 15 us, as the DRAM refresh did */

    return (uint8_t)(pit->channel[2].gate | data << 1 | refresh << 4 |
                     kvm_pit_channel_out(&pit->channel[2], now) << 5);
}

static void write_speaker(struct kvm_pit *pit, uint8_t value, uint64_t now)
{
    pit->flags &= ~(uint32_t)KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    if (value & 2) {
        pit->flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON;
    }
    kvm_pit_channel_set_gate(&pit->channel[2], value & 1, now);
}

static void write_control(struct kvm_pit *pit, uint8_t value, uint64_t now)
{
    unsigned which = value >> 6;

    if (which != 3) {
        kvm_pit_channel_control(&pit->channel[which], value, now);
        return;
    }
    for (unsigned i = 0; i < 3; i++) {
        if (!(value & (2u << i))) {
            continue;
        }
        if (!(value & 0x20)) {
            kvm_pit_channel_latch_count(&pit->channel[i], now);
        }
        if (!(value & 0x10)) {
            kvm_pit_channel_latch_status(&pit->channel[i], now);
        }
    }
}

static int port_write(void *opaque, struct kvm_vcpu *v, uint64_t port, unsigned len, const void *data)
{
    struct kvm_pit *pit = opaque;
    uint8_t value = *(const uint8_t *)data;
    uint64_t now = kvm_timer_now();

    (void)v;
    (void)len;
    pthread_mutex_lock(&pit->lock);
    if (port == SPEAKER_PORT) {
        write_speaker(pit, value, now);
    } else if (port == 0x43) {
        write_control(pit, value, now);
    } else if (kvm_pit_channel_write(&pit->channel[port & 3], value, now) && port == 0x40) {
        restart_timer(pit);
    }
    pthread_mutex_unlock(&pit->lock);
    return 0;
}

static int port_read(void *opaque, struct kvm_vcpu *v, uint64_t port, unsigned len, void *data)
{
    struct kvm_pit *pit = opaque;
    uint64_t now = kvm_timer_now();
    uint8_t value = 0; /* the control port reads as nothing */

    (void)v;
    pthread_mutex_lock(&pit->lock);
    if (port == SPEAKER_PORT) {
        value = read_speaker(pit, now);
    } else if (port != 0x43) {
        value = kvm_pit_channel_read(&pit->channel[port & 3], now);
    }
    pthread_mutex_unlock(&pit->lock);
    memset(data, 0, len);
    memcpy(data, &value, 1);
    return 0;
}

static const struct kvm_bus_ops pit_ops = {.read = port_read, .write = port_write};

/* The speaker port is a device of its own, so that it can be left to user space. */
static int register_ports(struct kvm_vm *vm, struct kvm_pit *pit, uint32_t flags)
{
    struct kvm_bus_range timer = {.addr = 0x40, .len = 4, .ops = &pit_ops, .opaque = pit};
    struct kvm_bus_range speaker = {.addr = SPEAKER_PORT, .len = 1, .ops = &pit_ops, .opaque = pit};
    int err = kvm_bus_register(vm, KVM_BUS_PORT, &timer);

    if (!err && (flags & KVM_PIT_SPEAKER_DUMMY)) {
        err = kvm_bus_register(vm, KVM_BUS_PORT, &speaker);
    }
    return err;
}

int kvm_pit_create(struct kvm_vm *vm, uint32_t flags)
{
    struct kvm_chips *chips = vm->chips;
    struct kvm_pit *pit;
    uint64_t now = kvm_timer_now();
    int err;

    if (atomic_load(&chips->pit)) {
        return -EEXIST;
    }
    if (kvm_chips_mode(vm) != KVM_CHIPS_KERNEL) {
        return -ENOENT;
    }
    err = kvm_timers_reserve(chips->timers, 1);
    if (err) {
        return err;
    }
    pit = kvm_alloc(vm->s, sizeof(*pit));
    if (!pit) {
        return -ENOMEM;
    }
    pit->chips = chips;
    pit->reinject = true;
    pit->acked = true;
    pthread_mutex_init(&pit->lock, NULL);
    kvm_timer_init(&pit->timer, pit_fire, pit);
    for (unsigned i = 0; i < 3; i++) {
        kvm_pit_channel_init(&pit->channel[i], i != 2, now);
    }
    err = register_ports(vm, pit, flags);
    if (err) {
        (void)!kvm_bus_unregister(vm, KVM_BUS_PORT, pit);
        kvm_pit_free(pit);
        return err;
    }
    atomic_store(&chips->pit, pit);
    kvm_chips_watch_ack(chips, KVM_PIT_GSI, true);
    return 0;
}

void kvm_pit_stop(struct kvm_pit *pit)
{
    if (!pit) {
        return;
    }
    pthread_mutex_lock(&pit->lock);
    pit->stopped = true;
    pit->running = false;
    pthread_mutex_unlock(&pit->lock);
    kvm_timer_cancel_sync(pit->chips->timers, &pit->timer);
}

void kvm_pit_free(struct kvm_pit *pit)
{
    if (pit) {
        pthread_mutex_destroy(&pit->lock);
        free(pit);
    }
}

void kvm_pit_get_state(struct kvm_pit *pit, struct kvm_pit_state2 *out)
{
    memset(out, 0, sizeof(*out));
    pthread_mutex_lock(&pit->lock);
    memcpy(out->channels, pit->channel, sizeof(out->channels));
    out->flags = pit->flags;
    pthread_mutex_unlock(&pit->lock);
}

void kvm_pit_set_state(struct kvm_pit *pit, const struct kvm_pit_state2 *in)
{
    uint64_t now = kvm_timer_now();

    pthread_mutex_lock(&pit->lock);
    memcpy(pit->channel, in->channels, sizeof(pit->channel));
    pit->flags = in->flags & (KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON);
    for (unsigned i = 0; i < 3; i++) {
        kvm_pit_channel_sanitise(&pit->channel[i]);
    }
    kvm_pit_channel_load(&pit->channel[0], pit->channel[0].count, now);
    restart_timer(pit);
    pthread_mutex_unlock(&pit->lock);
}

void kvm_pit_set_reinject(struct kvm_pit *pit, bool on)
{
    pthread_mutex_lock(&pit->lock);
    pit->reinject = on;
    pit->pending = 0;
    pit->acked = true;
    pthread_mutex_unlock(&pit->lock);
}
