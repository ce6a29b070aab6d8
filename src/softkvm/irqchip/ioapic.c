/*
 * The I/O APIC: 24 redirection entries between lines and APIC messages.
 *
 *   63      56        17 16   15  14   13  12  11  10  8 7    0
 *   | dest  | reserved | mask trig rirr pol stat dm | mode | vector |
 *
 * Invariants:
 *  1. irr bit n is set while line n is high; an edge leaves as one message when the line rises, or not at
 *     all when the entry is masked then.
 *  2. remote IRR is set exactly while a level message is in some LAPIC's hands; no second one is sent.
 *
 * Level lines that are still high at EOI are sent again at once; a guest that never clears its device
 * would spin in its handler, so after 10000 in a row the message waits for the owner's timer. Polarity
 * is ignored: the lines here are logical. Locks: the owner's (ioapic.h).
 */
#include "softkvm/irqchip/ioapic.h"

#include <string.h>

#define VERSION        0x11u
#define REDIR_MASKED   (UINT64_C(1) << 16)
#define REDIR_LEVEL    (UINT64_C(1) << 15)
#define REDIR_REMOTE   (UINT64_C(1) << 14)
#define REDIR_STATUS   (UINT64_C(1) << 12)
#define REDIR_READONLY (REDIR_REMOTE | REDIR_STATUS)
#define STORM_LIMIT    10000

#define REG_ID      0
#define REG_VERSION 1
#define REG_ARB     2
#define REG_REDIR   0x10

void kvm_ioapic_init(struct kvm_ioapic *io, int (*send)(void *opaque, uint64_t entry), void *opaque)
{
    memset(io, 0, sizeof(*io));
    io->base = KVM_IOAPIC_BASE;
    io->send = send;
    io->opaque = opaque;
    io->changed = true;
    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        io->redir[pin] = REDIR_MASKED;
    }
}

/* Send the request of a pin if its entry lets it go. Returns as send(), or -1. */
static int service(struct kvm_ioapic *io, unsigned pin)
{
    uint64_t entry = io->redir[pin];
    int ret;

    if ((entry & REDIR_MASKED) || ((entry & REDIR_LEVEL) && (entry & REDIR_REMOTE))) {
        return -1;
    }
    if (!(entry & REDIR_LEVEL)) {
        io->delivered |= 1u << pin;
    }
    ret = io->send(io->opaque, entry);
    if (ret != 0 && (entry & REDIR_LEVEL)) {
        io->redir[pin] |= REDIR_REMOTE;
    }
    return ret;
}

/* The pin's request, whatever source it has. */
static int set_request(struct kvm_ioapic *io, unsigned pin, bool level)
{
    uint32_t bit = 1u << pin, before = io->irr;

    if (!level) {
        io->irr &= ~bit;
        return 1;
    }
    io->irr |= bit;
    if (!(io->redir[pin] & REDIR_LEVEL)) {
        io->delivered &= ~bit;
        if (before & bit) {
            return 0;
        }
    }
    return service(io, pin);
}

int kvm_ioapic_set_line(struct kvm_ioapic *io, unsigned source, unsigned pin, bool level)
{
    uint32_t bit = 1u << source;

    io->lines[pin] = level ? io->lines[pin] | bit : io->lines[pin] & ~bit;
    return set_request(io, pin, io->lines[pin] != 0);
}

static void eoi_pin(struct kvm_ioapic *io, unsigned pin, bool level)
{
    uint32_t bit = 1u << pin;

    io->acked |= bit;
    if (!level || !(io->redir[pin] & REDIR_LEVEL)) {
        return;
    }
    io->redir[pin] &= ~REDIR_REMOTE;
    if ((io->redir[pin] & REDIR_MASKED) || !(io->irr & bit)) {
        io->storm[pin] = 0;
        return;
    }
    if (++io->storm[pin] >= STORM_LIMIT) {
        io->storm[pin] = 0;
        io->delayed |= bit;
        return;
    }
    service(io, pin);
}

void kvm_ioapic_eoi(struct kvm_ioapic *io, uint8_t vector, bool level)
{
    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        if ((uint8_t)io->redir[pin] == vector) {
            eoi_pin(io, pin, level);
        }
    }
}

void kvm_ioapic_resend(struct kvm_ioapic *io)
{
    uint32_t pins = io->delayed & io->irr;

    io->delayed = 0;
    for (; pins != 0; pins &= pins - 1) {
        unsigned pin = (unsigned)__builtin_ctz(pins);

        if (io->redir[pin] & REDIR_LEVEL) {
            service(io, pin);
        }
    }
}

static uint32_t read_register(const struct kvm_ioapic *io)
{
    unsigned reg = io->regsel, pin = (reg - REG_REDIR) / 2;

    switch (reg) {
    case REG_VERSION:
        return VERSION | (KVM_IOAPIC_NUM_PINS - 1) << 16;
    case REG_ID:
    case REG_ARB:
        return (io->id & 0xf) << 24;
    default:
        if (reg < REG_REDIR || pin >= KVM_IOAPIC_NUM_PINS) {
            return UINT32_MAX;
        }
        return (uint32_t)(reg & 1 ? io->redir[pin] >> 32 : io->redir[pin]);
    }
}

static void write_entry(struct kvm_ioapic *io, unsigned pin, bool high, uint32_t value)
{
    uint64_t old = io->redir[pin], entry;

    if (high) {
        entry = (old & UINT32_MAX) | (uint64_t)value << 32;
    } else {
        entry = (old & ~(uint64_t)UINT32_MAX) | value;
    }
    entry = (entry & ~REDIR_READONLY) | (old & REDIR_READONLY);
    if (!(entry & REDIR_LEVEL)) {
        /* Guests turn an entry to edge and back to fake an EOI. */
        entry &= ~REDIR_REMOTE;
    }
    io->redir[pin] = entry;
    io->changed = true;
    if ((entry & REDIR_LEVEL) && (io->irr & (1u << pin))) {
        service(io, pin);
    }
}

static void write_register(struct kvm_ioapic *io, uint32_t value)
{
    unsigned reg = io->regsel, pin = (reg - REG_REDIR) / 2;

    if (reg == REG_ID) {
        io->id = (value >> 24) & 0xf;
    } else if (reg >= REG_REDIR && pin < KVM_IOAPIC_NUM_PINS) {
        write_entry(io, pin, reg & 1, value);
    }
}

uint32_t kvm_ioapic_read(struct kvm_ioapic *io, unsigned offset)
{
    switch (offset & 0xff) {
    case 0x00:
        return io->regsel;
    case 0x10:
        return read_register(io);
    default:
        return 0;
    }
}

void kvm_ioapic_write(struct kvm_ioapic *io, unsigned offset, uint32_t value)
{
    switch (offset & 0xff) {
    case 0x00:
        io->regsel = value & 0xff;
        break;
    case 0x10:
        write_register(io, value);
        break;
    default:
        break;
    }
}

void kvm_ioapic_get_state(const struct kvm_ioapic *io, struct kvm_ioapic_state *out)
{
    memset(out, 0, sizeof(*out));
    out->base_address = io->base;
    out->ioregsel = io->regsel;
    out->id = io->id;
    out->irr = io->irr & ~io->delivered;
    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        out->redirtbl[pin].bits = io->redir[pin];
    }
}

void kvm_ioapic_set_state(struct kvm_ioapic *io, const struct kvm_ioapic_state *in)
{
    io->base = in->base_address;
    io->regsel = in->ioregsel & 0xff;
    io->id = in->id & 0xf;
    io->irr = 0;
    io->delivered = 0;
    io->delayed = 0;
    io->changed = true;
    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        io->redir[pin] = in->redirtbl[pin].bits;
        io->storm[pin] = 0;
    }
    for (uint32_t pins = in->irr & ((1u << KVM_IOAPIC_NUM_PINS) - 1); pins != 0; pins &= pins - 1) {
        set_request(io, (unsigned)__builtin_ctz(pins), true);
    }
}
