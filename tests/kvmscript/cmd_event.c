/* Commands on events: eventfds, ioeventfds, irqfds, coalesced zones and their ring. */
#include "player.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

static int event_fd(struct player *p, const char *name)
{
    for (unsigned i = 0; name && i < p->nr_events; i++) {
        if (strcmp(p->event[i].name, name) == 0) {
            return p->event[i].fd;
        }
    }
    return -1;
}

/* event NAME: a new eventfd. */
static int cmd_event(struct player *p)
{
    if (p->nr_words < 2 || p->nr_events == PLAYER_MAX_EVENTS) {
        return 2;
    }
    snprintf(p->event[p->nr_events].name, sizeof(p->event[0].name), "%s", p->word[1]);
    p->event[p->nr_events].fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return p->event[p->nr_events++].fd < 0 ? 2 : 0;
}

/* count NAME: read and reset the eventfd's counter. */
static int cmd_count(struct player *p)
{
    uint64_t v = 0;
    int fd = p->nr_words > 1 ? event_fd(p, p->word[1]) : -1;

    if (fd < 0) {
        return 2;
    }
    if (read(fd, &v, 8) != 8) {
        v = 0;
    }
    player_say(p, "count %llu", (unsigned long long)v);
    return 0;
}

/* ioevent NAME addr= len= flags= data=: KVM_IOEVENTFD. */
static int cmd_ioevent(struct player *p)
{
    struct kvm_ioeventfd e = {
        .datamatch = player_num(p, "data", 0),
        .addr = player_num(p, "addr", 0),
        .len = (uint32_t)player_num(p, "len", 0),
        .fd = p->nr_words > 1 ? event_fd(p, p->word[1]) : -1,
        .flags = (uint32_t)player_num(p, "flags", 0),
    };

    player_result(p, accel_ioctl_ptr(p->ep, p->vm, KVM_IOEVENTFD, &e));
    return 0;
}

/* irqfd NAME gsi= flags= */
static int cmd_irqfd(struct player *p)
{
    struct kvm_irqfd e = {
        .fd = (uint32_t)(p->nr_words > 1 ? event_fd(p, p->word[1]) : -1),
        .gsi = (uint32_t)player_num(p, "gsi", 0),
        .flags = (uint32_t)player_num(p, "flags", 0),
    };

    player_result(p, accel_ioctl_ptr(p->ep, p->vm, KVM_IRQFD, &e));
    return 0;
}

/* signal NAME: add one to the eventfd. */
static int cmd_signal(struct player *p)
{
    uint64_t one = 1;
    int fd = p->nr_words > 1 ? event_fd(p, p->word[1]) : -1;

    return fd >= 0 && write(fd, &one, 8) == 8 ? 0 : 2;
}

/* zone add|del addr= size= pio=: coalesced MMIO. */
static int cmd_zone(struct player *p)
{
    struct kvm_coalesced_mmio_zone z = {
        .addr = player_num(p, "addr", 0),
        .size = (uint32_t)player_num(p, "size", 0),
        .pio = (uint32_t)player_num(p, "pio", 0),
    };
    bool add = p->nr_words > 1 && strcmp(p->word[1], "add") == 0;

    player_result(p, accel_ioctl_ptr(p->ep, p->vm, add ? KVM_REGISTER_COALESCED_MMIO
                                                       : KVM_UNREGISTER_COALESCED_MMIO, &z));
    return 0;
}

/* ring: what the coalesced ring holds, then emptied. */
static int cmd_ring(struct player *p)
{
    struct kvm_coalesced_mmio_ring *ring;
    uint32_t max = (4096 - sizeof(*ring)) / sizeof(struct kvm_coalesced_mmio), n = 0;
    int page = accel_ioctl(p->ep, p->sys, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);

    if (page <= 0 || !p->nr_vcpus) {
        return 2;
    }
    ring = (void *)((char *)p->vcpu[0].run + (size_t)page * 4096);
    for (; ring->first != ring->last; ring->first = (ring->first + 1) % max, n++) {
        struct kvm_coalesced_mmio *m = &ring->coalesced_mmio[ring->first];

        if (n < 8) {
            player_say(p, "%s %llx len %u: %02x %02x %02x %02x", m->pio ? "port" : "mmio",
                       (unsigned long long)m->phys_addr, m->len, m->data[0],
                       m->len > 1 ? m->data[1] : 0, m->len > 2 ? m->data[2] : 0,
                       m->len > 3 ? m->data[3] : 0);
        }
    }
    player_say(p, "ring had %u", n);
    return 0;
}

/* line GSI LEVEL: KVM_IRQ_LINE. */
static int cmd_line(struct player *p)
{
    struct kvm_irq_level l = {.irq = (uint32_t)player_arg(p, 1, 0),
                              .level = (uint32_t)player_arg(p, 2, 0)};

    player_result(p, accel_ioctl_ptr(p->ep, p->vm, KVM_IRQ_LINE, &l));
    return 0;
}

/* chip master|slave|ioapic: KVM_GET_IRQCHIP, the fields that tell its state. */
static int cmd_chip(struct player *p)
{
    struct kvm_irqchip c = {0};
    const char *which = p->nr_words > 1 ? p->word[1] : "";
    int ret;

    c.chip_id = strcmp(which, "ioapic") == 0 ? KVM_IRQCHIP_IOAPIC
                : strcmp(which, "slave") == 0 ? KVM_IRQCHIP_PIC_SLAVE : KVM_IRQCHIP_PIC_MASTER;
    ret = accel_ioctl_ptr(p->ep, p->vm, KVM_GET_IRQCHIP, &c);
    if (ret < 0) {
        player_result(p, ret);
    } else if (c.chip_id == KVM_IRQCHIP_IOAPIC) {
        player_say(p, "id %u irr %x", c.chip.ioapic.id, c.chip.ioapic.irr);
        for (int i = 0; i < 24; i++) {
            if (c.chip.ioapic.redirtbl[i].bits != 0x10000) {
                player_say(p, "pin %d %llx", i, (unsigned long long)c.chip.ioapic.redirtbl[i].bits);
            }
        }
    } else {
        struct kvm_pic_state *s = &c.chip.pic;

        player_say(p, "irr %x imr %x isr %x base %x elcr %x mask %x init %u auto %u", s->irr, s->imr,
                   s->isr, s->irq_base, s->elcr, s->elcr_mask, s->init_state, s->auto_eoi);
    }
    return 0;
}

const struct player_command player_event_commands[] = {
    {"event", cmd_event}, {"count", cmd_count}, {"ioevent", cmd_ioevent}, {"irqfd", cmd_irqfd},
    {"signal", cmd_signal}, {"zone", cmd_zone}, {"ring", cmd_ring},       {"line", cmd_line},
    {"chip", cmd_chip},   {NULL, NULL},
};
