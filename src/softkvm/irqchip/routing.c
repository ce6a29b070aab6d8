/*
 * GSI routing: what a line number means.
 *
 *   gsi --> { PIC input | IOAPIC pin | MSI }, at most one of each chip, or one MSI
 *
 * The table is an array sorted by GSI with an index per GSI; it is replaced whole. User space's
 * table replaces the default one, in which GSI n is IOAPIC pin n and, below 16, PIC input n.
 *
 * Locks: irq_lock guards the table and is held while a line is driven.
 */
#include "softkvm/irqchip/chips.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct route {
    uint32_t gsi;
    uint32_t type; /* KVM_IRQ_ROUTING_IRQCHIP or _MSI */
    uint32_t chip; /* KVM_IRQCHIP_PIC_MASTER (both PICs) or _IOAPIC */
    uint32_t pin;  /* PIC: 0 to 15 */
    uint64_t msi_address;
    uint32_t msi_data;
};

struct kvm_route_table {
    uint32_t count, nr_gsis;
    int16_t gsi_of_pic[16], gsi_of_ioapic[KVM_IOAPIC_NUM_PINS];
    uint32_t *first; /* nr_gsis + 1: routes of gsi are [first[gsi], first[gsi + 1]) */
    struct route *route;
};

static void table_free(struct kvm_route_table *t)
{
    if (t) {
        free(t->first);
        free(t->route);
        free(t);
    }
}

void kvm_routes_free(struct kvm_chips *chips)
{
    table_free(chips->routes);
    chips->routes = NULL;
}

/* One entry of user space's; 0 or -EINVAL. */
static int parse_chip(struct kvm_chips *chips, const struct kvm_irq_routing_irqchip *in, struct route *r)
{
    r->chip = in->irqchip;
    r->pin = in->pin;
    if (kvm_chips_mode(chips->vm) == KVM_CHIPS_SPLIT) {
        return -EINVAL; /* the pins are user space's */
    }
    switch (in->irqchip) {
    case KVM_IRQCHIP_PIC_MASTER:
    case KVM_IRQCHIP_PIC_SLAVE:
        r->chip = KVM_IRQCHIP_PIC_MASTER;
        r->pin += in->irqchip == KVM_IRQCHIP_PIC_SLAVE ? 8 : 0;
        return in->pin < 8 ? 0 : -EINVAL;
    case KVM_IRQCHIP_IOAPIC:
        return in->pin < KVM_IOAPIC_NUM_PINS ? 0 : -EINVAL;
    default:
        return -EINVAL;
    }
}

static int parse_route(struct kvm_chips *chips, const struct kvm_irq_routing_entry *in, struct route *r)
{
    *r = (struct route){.gsi = in->gsi, .type = in->type};
    if (in->gsi >= KVM_MAX_IRQ_ROUTES || in->flags != 0) {
        return -EINVAL;
    }
    switch (in->type) {
    case KVM_IRQ_ROUTING_IRQCHIP:
        return parse_chip(chips, &in->u.irqchip, r);
    case KVM_IRQ_ROUTING_MSI:
        r->msi_address = (uint64_t)in->u.msi.address_hi << 32 | in->u.msi.address_lo;
        r->msi_data = in->u.msi.data;
        if (atomic_load(&chips->x2apic_format) && (in->u.msi.address_hi & 0xff)) {
            return -EINVAL;
        }
        return 0;
    default:
        return -EINVAL;
    }
}

static int compare_routes(const void *a, const void *b)
{
    const struct route *x = a, *y = b;

    return x->gsi < y->gsi ? -1 : x->gsi > y->gsi;
}

/* A GSI is either one MSI, or one pin of each chip. */
static bool routes_clash(const struct kvm_route_table *t)
{
    for (uint32_t i = 0; i < t->count; i++) {
        for (uint32_t j = i + 1; j < t->count && t->route[j].gsi == t->route[i].gsi; j++) {
            const struct route *a = &t->route[i], *b = &t->route[j];
            bool same_pic = a->chip == b->chip &&
                            (a->chip != KVM_IRQCHIP_PIC_MASTER || a->pin >> 3 == b->pin >> 3);

            if (a->type != KVM_IRQ_ROUTING_IRQCHIP || b->type != KVM_IRQ_ROUTING_IRQCHIP || same_pic) {
                return true;
            }
        }
    }
    return false;
}

static void table_index(struct kvm_route_table *t)
{
    uint32_t i = 0;

    memset(t->gsi_of_pic, 0xff, sizeof(t->gsi_of_pic));
    memset(t->gsi_of_ioapic, 0xff, sizeof(t->gsi_of_ioapic));
    for (uint32_t g = 0; g <= t->nr_gsis; g++) {
        t->first[g] = i;
        for (; i < t->count && t->route[i].gsi == g; i++) {
            const struct route *r = &t->route[i];

            if (r->type == KVM_IRQ_ROUTING_IRQCHIP) {
                (r->chip == KVM_IRQCHIP_IOAPIC ? t->gsi_of_ioapic : t->gsi_of_pic)[r->pin] = (int16_t)g;
            }
        }
    }
}

static struct kvm_route_table *table_new(struct kvm_chips *chips, uint32_t count, uint32_t nr_gsis)
{
    struct softkvm *s = chips->vm->s;
    struct kvm_route_table *t = kvm_alloc(s, sizeof(*t));

    if (!t) {
        return NULL;
    }
    t->count = count;
    t->nr_gsis = nr_gsis;
    t->first = kvm_alloc(s, (nr_gsis + 1) * sizeof(*t->first));
    t->route = kvm_alloc(s, (count + 1) * sizeof(*t->route));
    if (!t->first || !t->route) {
        table_free(t);
        return NULL;
    }
    return t;
}

int kvm_routes_set(struct kvm_chips *chips, const struct kvm_irq_routing_entry *entries, uint32_t n)
{
    struct kvm_route_table *t, *old;
    uint32_t nr_gsis = 1;

    if (n > KVM_MAX_IRQ_ROUTES) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (entries[i].gsi >= KVM_MAX_IRQ_ROUTES) {
            return -EINVAL;
        }
        nr_gsis = entries[i].gsi >= nr_gsis ? entries[i].gsi + 1 : nr_gsis;
    }
    t = table_new(chips, n, nr_gsis);
    if (!t) {
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < n; i++) {
        if (parse_route(chips, &entries[i], &t->route[i]) < 0) {
            table_free(t);
            return -EINVAL;
        }
    }
    qsort(t->route, n, sizeof(t->route[0]), compare_routes);
    if (routes_clash(t)) {
        table_free(t);
        return -EINVAL;
    }
    table_index(t);
    kvm_chips_lock(chips);
    old = chips->routes;
    chips->routes = t;
    kvm_chips_update_watch(chips);
    kvm_chips_unlock(chips);
    table_free(old);
    return 0;
}

int kvm_routes_set_default(struct kvm_chips *chips)
{
    struct kvm_irq_routing_entry entry[16 + KVM_IOAPIC_NUM_PINS];
    uint32_t n = 0;

    memset(entry, 0, sizeof(entry));
    for (uint32_t gsi = 0; gsi < KVM_IOAPIC_NUM_PINS; gsi++) {
        entry[n].gsi = gsi;
        entry[n].type = KVM_IRQ_ROUTING_IRQCHIP;
        entry[n].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
        entry[n++].u.irqchip.pin = gsi;
        if (gsi < 16) {
            entry[n].gsi = gsi;
            entry[n].type = KVM_IRQ_ROUTING_IRQCHIP;
            entry[n].u.irqchip.irqchip = gsi < 8 ? KVM_IRQCHIP_PIC_MASTER : KVM_IRQCHIP_PIC_SLAVE;
            entry[n++].u.irqchip.pin = gsi & 7;
        }
    }
    return kvm_routes_set(chips, entry, n);
}

static int drive(struct kvm_chips *chips, const struct route *r, unsigned source, bool level)
{
    if (r->type == KVM_IRQ_ROUTING_MSI) {
        return level ? kvm_apic_deliver_msi(chips, r->msi_address, r->msi_data) : -1;
    }
    if (r->chip == KVM_IRQCHIP_IOAPIC) {
        return kvm_ioapic_set_line(&chips->ioapic, source, r->pin, level);
    }
    return kvm_pic_set_line(&chips->pic, source, r->pin, level);
}

/* Lock: irq_lock held. */
static int set_line_locked(struct kvm_chips *chips, unsigned source, uint32_t gsi, bool level)
{
    const struct kvm_route_table *t = chips->routes;
    int ret = -1;

    if (!t || gsi >= t->nr_gsis) {
        return -1;
    }
    for (uint32_t i = t->first[gsi]; i < t->first[gsi + 1]; i++) {
        int r = drive(chips, &t->route[i], source, level);

        if (r >= 0) {
            ret = r + (ret < 0 ? 0 : ret);
        }
    }
    return ret;
}

int kvm_irq_set_line(struct kvm_chips *chips, unsigned source, uint32_t gsi, bool level)
{
    int ret;

    kvm_chips_lock(chips);
    ret = set_line_locked(chips, source, gsi, level);
    kvm_chips_unlock(chips);
    return ret;
}

int kvm_irq_pulse(struct kvm_chips *chips, unsigned source, uint32_t gsi)
{
    int ret;

    kvm_chips_lock(chips);
    ret = set_line_locked(chips, source, gsi, true);
    set_line_locked(chips, source, gsi, false);
    kvm_chips_unlock(chips);
    return ret;
}

int kvm_routes_gsi_of_pic(const struct kvm_chips *chips, unsigned input)
{
    return chips->routes ? chips->routes->gsi_of_pic[input] : -1;
}

int kvm_routes_gsi_of_ioapic(const struct kvm_chips *chips, unsigned pin)
{
    return chips->routes ? chips->routes->gsi_of_ioapic[pin] : -1;
}

void kvm_routes_level_vectors(const struct kvm_chips *chips, uint32_t gsis, uint32_t set[8])
{
    const struct kvm_route_table *t = chips->routes;

    for (uint32_t i = 0; t && i < t->count && t->route[i].gsi < gsis; i++) {
        uint32_t data = t->route[i].msi_data;

        if (t->route[i].type == KVM_IRQ_ROUTING_MSI && (data & 0x8000)) {
            set[(data & 0xff) >> 5] |= 1u << (data & 31);
        }
    }
}
