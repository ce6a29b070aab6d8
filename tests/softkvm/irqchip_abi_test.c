/*
 * Chips through the ioctl ABI: the same calls on the software engine and, where there is one, on the
 * kernel's /dev/kvm. Each step writes a line of its outcome; the two transcripts must be the same. What
 * is known by heart is also asserted, so that the test says something without a /dev/kvm.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>
#include <linux/kvm.h>

#include "accel/endpoint.h"

struct run {
    struct accel_endpoint *ep;
    int sys, vm, vcpu[2];
    unsigned nr_vcpus;
    char text[65536];
    size_t len;
};

static void say(struct run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void say(struct run *r, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    r->len += (size_t)vsnprintf(r->text + r->len, sizeof(r->text) - r->len, fmt, ap);
    va_end(ap);
    assert_true(r->len < sizeof(r->text));
}

static int vm_ioctl(struct run *r, unsigned long request, void *arg)
{
    return accel_ioctl_ptr(r->ep, r->vm, request, arg);
}

/* ---- shows ---- */

static void show_pic(struct run *r)
{
    for (unsigned id = 0; id < 2; id++) {
        struct kvm_irqchip c = {.chip_id = id};
        const struct kvm_pic_state *s = &c.chip.pic;

        say(r, "pic%u %d", id, vm_ioctl(r, KVM_GET_IRQCHIP, &c));
        say(r, " irr %02x last %02x imr %02x isr %02x base %02x elcr %02x/%02x\n", s->irr, s->last_irr,
            s->imr, s->isr, s->irq_base, s->elcr, s->elcr_mask);
    }
}

static void show_ioapic(struct run *r)
{
    struct kvm_irqchip c = {.chip_id = KVM_IRQCHIP_IOAPIC};
    int ret = vm_ioctl(r, KVM_GET_IRQCHIP, &c);

    say(r, "ioapic %d irr %06x id %x", ret, c.chip.ioapic.irr, c.chip.ioapic.id);
    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        if (c.chip.ioapic.redirtbl[pin].bits != 0x10000) {
            say(r, " %u:%llx", pin, (unsigned long long)c.chip.ioapic.redirtbl[pin].bits);
        }
    }
    say(r, "\n");
}

static uint32_t lapic_reg(const struct kvm_lapic_state *s, unsigned offset)
{
    uint32_t v;

    memcpy(&v, s->regs + offset, 4);
    return v;
}

static void lapic_put(struct kvm_lapic_state *s, unsigned offset, uint32_t v)
{
    memcpy(s->regs + offset, &v, 4);
}

static void show_lapic(struct run *r, unsigned cpu)
{
    struct kvm_lapic_state s;

    say(r, "lapic%u %d", cpu, accel_ioctl_ptr(r->ep, r->vcpu[cpu], KVM_GET_LAPIC, &s));
    for (unsigned off = 0; off < 0x400; off += 0x10) {
        if (lapic_reg(&s, off)) {
            say(r, " %03x:%08x", off, lapic_reg(&s, off));
        }
    }
    say(r, "\n");
}

/* ---- actions ---- */

static void line(struct run *r, uint32_t gsi, uint32_t level)
{
    struct kvm_irq_level l = {.irq = gsi, .level = level};
    int ret = vm_ioctl(r, KVM_IRQ_LINE_STATUS, &l);

    say(r, "line %u=%u ret %d status %d\n", gsi, level, ret, ret ? 0 : l.status);
}

static void msi(struct run *r, uint32_t lo, uint32_t hi, uint32_t data)
{
    struct kvm_msi m = {.address_lo = lo, .address_hi = hi, .data = data};

    say(r, "msi %x %x %x ret %d\n", lo, hi, data, vm_ioctl(r, KVM_SIGNAL_MSI, &m));
}

static void set_redir(struct run *r, unsigned pin, uint64_t entry)
{
    struct kvm_irqchip c = {.chip_id = KVM_IRQCHIP_IOAPIC};

    vm_ioctl(r, KVM_GET_IRQCHIP, &c);
    c.chip.ioapic.redirtbl[pin].bits = entry;
    say(r, "redir %u %llx ret %d\n", pin, (unsigned long long)entry, vm_ioctl(r, KVM_SET_IRQCHIP, &c));
}

static void lapic_write(struct run *r, unsigned cpu, unsigned offset, uint32_t value)
{
    struct kvm_lapic_state s;

    accel_ioctl_ptr(r->ep, r->vcpu[cpu], KVM_GET_LAPIC, &s);
    lapic_put(&s, offset, value);
    say(r, "lapic%u %x=%x ret %d\n", cpu, offset, value,
        accel_ioctl_ptr(r->ep, r->vcpu[cpu], KVM_SET_LAPIC, &s));
}

static int set_routes(struct run *r, unsigned nr, const struct kvm_irq_routing_entry *e)
{
    struct {
        struct kvm_irq_routing head;
        struct kvm_irq_routing_entry entry[8];
    } t = {.head.nr = nr};

    memcpy(t.entry, e, nr * sizeof(*e));
    return vm_ioctl(r, KVM_SET_GSI_ROUTING, &t);
}

/* ---- scenarios ---- */

static void add_vcpus(struct run *r, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        r->vcpu[i] = accel_ioctl(r->ep, r->vm, KVM_CREATE_VCPU, i);
        assert_true(r->vcpu[i] >= 0);
        r->nr_vcpus = i + 1;
    }
}

static void creation(struct run *r)
{
    struct kvm_irq_level l = {.irq = 1, .level = 1};
    struct kvm_irqchip c = {.chip_id = 0};
    struct kvm_pit_config pit = {.flags = 0};
    struct kvm_pit_state2 ps;
    struct kvm_msi m = {.address_lo = 0xfee00000, .data = 0x41};

    say(r, "line before %d\n", vm_ioctl(r, KVM_IRQ_LINE, &l));
    say(r, "get before %d\n", vm_ioctl(r, KVM_GET_IRQCHIP, &c));
    say(r, "pit before %d\n", vm_ioctl(r, KVM_CREATE_PIT2, &pit));
    say(r, "pit state before %d\n", vm_ioctl(r, KVM_GET_PIT2, &ps));
    say(r, "msi before %d\n", vm_ioctl(r, KVM_SIGNAL_MSI, &m));
    say(r, "create %d\n", accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0));
    say(r, "again %d\n", accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0));
    pit.flags = KVM_PIT_SPEAKER_DUMMY | 2;
    say(r, "pit %d\n", vm_ioctl(r, KVM_CREATE_PIT2, &pit));
    say(r, "pit again %d\n", vm_ioctl(r, KVM_CREATE_PIT2, &pit));
    c.chip_id = 3;
    say(r, "chip 3 %d\n", vm_ioctl(r, KVM_GET_IRQCHIP, &c));
    say(r, "set chip 3 %d\n", vm_ioctl(r, KVM_SET_IRQCHIP, &c));
    say(r, "pit state %d\n", vm_ioctl(r, KVM_GET_PIT2, &ps));
    for (unsigned i = 0; i < 3; i++) {
        say(r, "ch%u count %x mode %x rw %x gate %x bcd %x\n", i, ps.channels[i].count,
            ps.channels[i].mode, ps.channels[i].rw_mode, ps.channels[i].gate, ps.channels[i].bcd);
    }
    add_vcpus(r, 2);
    show_pic(r);
    show_ioapic(r);
    show_lapic(r, 0);
    show_lapic(r, 1);
}

static void late_creation(struct run *r)
{
    add_vcpus(r, 1);
    say(r, "create %d\n", accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0));
}

/* A processor with x2APIC and deadline timer, 40 bits wide. */
static void set_cpuid(struct run *r, int vcpu)
{
    struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 entry[3];
    } c = {.head.nent = 3};

    c.entry[0] = (struct kvm_cpuid_entry2){.function = 0, .eax = 1};
    c.entry[1] = (struct kvm_cpuid_entry2){.function = 1, .ecx = 1u << 21 | 1u << 24, .edx = 1u << 9};
    c.entry[2] = (struct kvm_cpuid_entry2){.function = 0x80000008, .eax = 0x3028};
    say(r, "cpuid %d\n", accel_ioctl_ptr(r->ep, vcpu, KVM_SET_CPUID2, &c));
}

static void start(struct run *r)
{
    assert_int_equal(accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0), 0);
    add_vcpus(r, 2);
    /* Software-enable both, so that they take messages. */
    lapic_write(r, 0, 0xf0, 0x1ff);
    lapic_write(r, 1, 0xf0, 0x1ff);
}

static void lines(struct run *r)
{
    start(r);
    for (uint32_t gsi = 0; gsi < 26; gsi++) {
        line(r, gsi, 1);
        line(r, gsi, 1);
    }
    show_pic(r);
    show_ioapic(r);
    for (uint32_t gsi = 0; gsi < 26; gsi += 2) {
        line(r, gsi, 0);
    }
    line(r, 5000, 1);
    show_pic(r);
    show_ioapic(r);
}

static void pins(struct run *r)
{
    start(r);
    set_redir(r, 4, 0x0000000000000034ull);                     /* fixed, edge, to 0 */
    set_redir(r, 5, 0x0100000000008035ull);                     /* fixed, level, to 1 */
    set_redir(r, 6, 0xff00000000000036ull);                     /* broadcast */
    set_redir(r, 7, 0x0300000000000937ull);                     /* lowest priority, logical */
    set_redir(r, 8, 0x0700000000000038ull);                     /* nobody */
    lapic_write(r, 0, 0xd0, 0x01000000);
    lapic_write(r, 1, 0xd0, 0x02000000);
    for (uint32_t gsi = 4; gsi < 9; gsi++) {
        line(r, gsi, 1);
    }
    line(r, 4, 0);
    line(r, 4, 1);
    line(r, 5, 0);
    line(r, 5, 1);
    line(r, 7, 0);
    line(r, 7, 1);
    show_ioapic(r);
    show_lapic(r, 0);
    show_lapic(r, 1);
    set_redir(r, 5, 0x0100000000018035ull);
    set_redir(r, 5, 0x0100000000008035ull);
    show_ioapic(r);
}

static void messages(struct run *r)
{
    start(r);
    msi(r, 0xfee00000, 0, 0x41);
    msi(r, 0xfee01000, 0, 0x42);
    msi(r, 0xfee01000, 0, 0x42);
    msi(r, 0xfeeff000, 0, 0x43);
    msi(r, 0xfee02000, 0, 0x44);
    msi(r, 0xfee01000, 0, 0xc045);
    msi(r, 0xfee01000, 0, 0x8046);
    lapic_write(r, 0, 0xd0, 0x01000000);
    lapic_write(r, 1, 0xd0, 0x02000000);
    msi(r, 0xfee02004, 0, 0x47);
    msi(r, 0xfee03004, 0, 0x48);
    msi(r, 0xfee03008 | 4, 0, 0x149);
    msi(r, 0xfee03008 | 4, 0, 0x14a);
    lapic_write(r, 0, 0xe0, 0x0fffffff); /* cluster model */
    lapic_write(r, 1, 0xe0, 0x0fffffff);
    lapic_write(r, 0, 0xd0, 0x11000000);
    lapic_write(r, 1, 0xd0, 0x12000000);
    msi(r, 0xfee13004, 0, 0x4b);
    msi(r, 0xfee21004, 0, 0x4c);
    msi(r, 0xfee12004, 0, 0x4d);
    show_lapic(r, 0);
    show_lapic(r, 1);
    lapic_write(r, 1, 0xf0, 0xff); /* software-disabled */
    msi(r, 0xfee01000, 0, 0x4e);
    show_lapic(r, 1);
}

static void routes(struct run *r)
{
    const struct kvm_irq_routing_entry pic = {.gsi = 3, .type = KVM_IRQ_ROUTING_IRQCHIP,
                                              .u.irqchip = {.irqchip = 0, .pin = 3}};
    const struct kvm_irq_routing_entry io = {.gsi = 3, .type = KVM_IRQ_ROUTING_IRQCHIP,
                                             .u.irqchip = {.irqchip = 2, .pin = 20}};
    const struct kvm_irq_routing_entry mi = {.gsi = 30, .type = KVM_IRQ_ROUTING_MSI,
                                             .u.msi = {.address_lo = 0xfee00000, .data = 0x51}};
    struct kvm_irq_routing_entry e[8];

    start(r);
    e[0] = pic, e[1] = io, e[2] = mi;
    say(r, "three %d\n", set_routes(r, 3, e));
    line(r, 3, 1);
    line(r, 30, 1);
    line(r, 30, 0);
    line(r, 4, 1);
    show_pic(r);
    show_ioapic(r);
    show_lapic(r, 0);
    e[1] = pic;
    say(r, "same chip twice %d\n", set_routes(r, 2, e));
    e[1] = mi, e[1].gsi = 3;
    say(r, "chip and msi %d\n", set_routes(r, 2, e));
    e[0] = mi, e[1] = mi;
    say(r, "msi twice %d\n", set_routes(r, 2, e));
    e[0] = pic, e[0].u.irqchip.pin = 8;
    say(r, "pic pin 8 %d\n", set_routes(r, 1, e));
    e[0] = io, e[0].u.irqchip.pin = 24;
    say(r, "pin 24 %d\n", set_routes(r, 1, e));
    e[0] = io, e[0].u.irqchip.irqchip = 3;
    say(r, "chip 3 %d\n", set_routes(r, 1, e));
    e[0] = mi, e[0].type = 7;
    say(r, "type 7 %d\n", set_routes(r, 1, e));
    e[0] = mi, e[0].flags = 4;
    say(r, "flag %d\n", set_routes(r, 1, e));
    e[0] = mi, e[0].gsi = 4096;
    say(r, "gsi 4096 %d\n", set_routes(r, 1, e));
    e[0] = mi, e[0].gsi = 4095;
    say(r, "gsi 4095 %d\n", set_routes(r, 1, e));
    line(r, 4095, 1);
    say(r, "none %d\n", set_routes(r, 0, e));
    line(r, 3, 0);
}

static void pages(struct run *r, bool with_cpuid)
{
    static const uint32_t bases[] = {0xfee00d00, 0xfee00900, 0xfee00500, 0xfee00100, 0xfee00c00,
                                     0xfee00800, 0xfee00000, 0xfee00801, 0xfee00d00};
    struct kvm_sregs s;

    start(r);
    if (with_cpuid) {
        set_cpuid(r, r->vcpu[1]);
    }
    for (unsigned i = 0; i < sizeof(bases) / sizeof(bases[0]); i++) {
        assert_int_equal(accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_GET_SREGS, &s), 0);
        s.apic_base = bases[i] & ~0x100u;
        say(r, "base %x ret %d", bases[i], accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_SET_SREGS, &s));
        accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_GET_SREGS, &s);
        say(r, " now %llx\n", (unsigned long long)s.apic_base);
    }
    msi(r, 0xfee01000, 0, 0x61);
    show_lapic(r, 1);
    lapic_write(r, 1, 0x80, 0x50);
    lapic_write(r, 1, 0x320, 0x20033);
    lapic_write(r, 1, 0x3e0, 0xb);
    msi(r, 0xfee01000, 0, 0x33);
    show_lapic(r, 1);
    accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_GET_SREGS, &s);
    say(r, "cr8 %llx\n", (unsigned long long)s.cr8);
}

static void lapic_pages(struct run *r)
{
    pages(r, true);
}

static void plain_pages(struct run *r)
{
    pages(r, false);
}

static int ioevent(struct run *r, uint64_t addr, uint32_t len, int fd, uint32_t flags, uint64_t match)
{
    struct kvm_ioeventfd e = {.addr = addr, .len = len, .fd = fd, .flags = flags, .datamatch = match};

    return vm_ioctl(r, KVM_IOEVENTFD, &e);
}

#define DM  KVM_IOEVENTFD_FLAG_DATAMATCH
#define PIO KVM_IOEVENTFD_FLAG_PIO
#define DE  KVM_IOEVENTFD_FLAG_DEASSIGN

/* Every pair of shapes at one address: does the second collide with the first? And exact removal. */
static void eventfds(struct run *r)
{
    static const struct {
        uint32_t len, flags;
        uint64_t match;
    } shape[] = {{0, 0, 0}, {1, 0, 0}, {2, 0, 0},  {4, 0, 0},  {8, 0, 0},  {2, DM, 1},
                 {2, DM, 2}, {4, DM, 1}, {0, DM, 1}, {3, 0, 0}, {16, 0, 0}, {4, 8, 0},  {4, 16, 0}, {4, 32, 0}};
    int fd = eventfd(0, 0), other = eventfd(0, 0), twin = dup(fd);
    unsigned n = sizeof(shape) / sizeof(shape[0]);

    for (unsigned i = 0; i < n; i++) {
        say(r, "first %u: %d second", i, ioevent(r, 0xe0000000, shape[i].len, fd, shape[i].flags, shape[i].match));
        for (unsigned j = 0; j < n; j++) {
            int ret = ioevent(r, 0xe0000000, shape[j].len, other, shape[j].flags, shape[j].match);

            say(r, " %d", ret);
            if (ret == 0) {
                say(r, "/%d", ioevent(r, 0xe0000000, shape[j].len, other, shape[j].flags | DE, shape[j].match));
            }
        }
        say(r, " pio %d", ioevent(r, 0xe000, shape[i].len, other, shape[i].flags | PIO, shape[i].match));
        say(r, " %d", ioevent(r, 0xe000, shape[i].len, other, shape[i].flags | PIO | DE, shape[i].match));
        say(r, " wrong fd %d", ioevent(r, 0xe0000000, shape[i].len, other, shape[i].flags | DE, shape[i].match));
        say(r, " wrong match %d", ioevent(r, 0xe0000000, shape[i].len, fd, (shape[i].flags | DE) ^ DM, 1));
        say(r, " twin %d", ioevent(r, 0xe0000000, shape[i].len, twin, shape[i].flags | DE, shape[i].match));
        say(r, " again %d\n", ioevent(r, 0xe0000000, shape[i].len, fd, shape[i].flags | DE, shape[i].match));
    }
    say(r, "wraps %d", ioevent(r, UINT64_MAX - 2, 8, fd, 0, 0));
    say(r, " top %d", ioevent(r, UINT64_MAX - 3, 4, fd, 0, 0));
    say(r, " bad fd %d", ioevent(r, 0x1000, 4, 9999, 0, 0));
    say(r, " no eventfd %d\n", ioevent(r, 0x1000, 4, 0, 0, 0));
    close(fd);
    close(other);
    close(twin);
}

static int irqfd(struct run *r, int fd, uint32_t gsi, uint32_t flags, int resample)
{
    struct kvm_irqfd f = {.fd = (uint32_t)fd, .gsi = gsi, .flags = flags, .resamplefd = (uint32_t)resample};

    return vm_ioctl(r, KVM_IRQFD, &f);
}

static void irqfds(struct run *r)
{
    int a = eventfd(0, 0), b = eventfd(0, 0), c = eventfd(0, 0);
    uint64_t one = 1;

    say(r, "no chip %d\n", irqfd(r, a, 4, 0, 0));
    start(r);
    set_redir(r, 4, 0x34);
    set_redir(r, 5, 0x8035);
    say(r, "flags %d\n", irqfd(r, a, 4, 4, 0));
    say(r, "bad fd %d\n", irqfd(r, 9999, 4, 0, 0));
    say(r, "assign %d\n", irqfd(r, a, 4, 0, 0));
    say(r, "again %d\n", irqfd(r, a, 5, 0, 0));
    say(r, "resample bad %d\n", irqfd(r, b, 5, KVM_IRQFD_FLAG_RESAMPLE, 9999));
    say(r, "resample %d\n", irqfd(r, b, 5, KVM_IRQFD_FLAG_RESAMPLE, c));
    assert_int_equal(write(a, &one, 8), 8);
    assert_int_equal(write(b, &one, 8), 8);
    usleep(50000);
    show_ioapic(r);
    show_lapic(r, 0);
    say(r, "wrong gsi %d\n", irqfd(r, b, 6, KVM_IRQFD_FLAG_DEASSIGN, 0));
    show_ioapic(r);
    say(r, "deassign %d\n", irqfd(r, b, 5, KVM_IRQFD_FLAG_DEASSIGN, 0));
    usleep(20000);
    show_ioapic(r);
    say(r, "deassign %d\n", irqfd(r, a, 4, KVM_IRQFD_FLAG_DEASSIGN, 0));
    say(r, "assign %d\n", irqfd(r, a, 5, 0, 0));
    close(a);
    close(b);
    close(c);
}

static int zone(struct run *r, uint64_t addr, uint32_t size, uint32_t pio, bool add)
{
    struct kvm_coalesced_mmio_zone z = {.addr = addr, .size = size, .pio = pio};

    return vm_ioctl(r, add ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO, &z);
}

static void bus_limit(struct run *r)
{
    int fd = eventfd(0, 0), made = 0;

    say(r, "pio 2 %d\n", zone(r, 0x1000, 16, 2, true));
    while (made < 1100 && zone(r, 0x100000 + (uint64_t)made * 64, 64, 0, true) == 0) {
        made++;
    }
    say(r, "zones %d then %d\n", made, zone(r, 0x90000000, 8, 0, true));
    say(r, "ports %d\n", zone(r, 0x300, 8, 1, true));
    say(r, "eventfd when full %d\n", ioevent(r, 0xa0000000, 4, fd, 0, 0));
    say(r, "remove %d\n", zone(r, 0x100000, 64, 0, false));
    say(r, "eventfd %d\n", ioevent(r, 0xa0000000, 4, fd, 0, 0));
    say(r, "fill %d\n", zone(r, 0x90000000, 8, 0, true));
    say(r, "full %d\n", zone(r, 0x91000000, 8, 0, true));
    say(r, "remove what is not there %d\n", zone(r, 0x55550000, 8, 0, false));
    say(r, "remove inner %d\n", zone(r, 0x100000 + 64 + 8, 8, 0, false));
    say(r, "room %d\n", zone(r, 0x91000000, 8, 0, true));
    close(fd);
}

static void clocks(struct run *r)
{
    struct kvm_clock_data d = {.clock = 12345678000ull}, e;
    struct timespec ts;

    say(r, "get %d\n", vm_ioctl(r, KVM_GET_CLOCK, &e));
    say(r, "set %d\n", vm_ioctl(r, KVM_SET_CLOCK, &d));
    say(r, "get %d", vm_ioctl(r, KVM_GET_CLOCK, &e));
    say(r, " near %d\n", e.clock >= d.clock && e.clock - d.clock < 1000000000);
    d.flags = KVM_CLOCK_TSC_STABLE;
    say(r, "flag %d\n", vm_ioctl(r, KVM_SET_CLOCK, &d));
    d.flags = 1u << 31;
    say(r, "flag %d\n", vm_ioctl(r, KVM_SET_CLOCK, &d));
    d.flags = KVM_CLOCK_REALTIME;
    clock_gettime(CLOCK_REALTIME, &ts);
    d.realtime = (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec - 5000000000ull;
    say(r, "realtime %d", vm_ioctl(r, KVM_SET_CLOCK, &d));
    vm_ioctl(r, KVM_GET_CLOCK, &e);
    say(r, " near %d\n", e.clock >= d.clock + 5000000000ull && e.clock < d.clock + 6000000000ull);
}

static void split(struct run *r)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {4097}};
    struct kvm_irqchip c = {.chip_id = 2};
    struct kvm_irq_routing_entry e = {.gsi = 3, .type = KVM_IRQ_ROUTING_MSI,
                                      .u.msi = {.address_lo = 0xfee00000, .data = 0x55}};
    int fd = eventfd(0, 0);

    say(r, "4097 %d\n", vm_ioctl(r, KVM_ENABLE_CAP, &cap));
    cap.args[0] = 24;
    say(r, "24 %d\n", vm_ioctl(r, KVM_ENABLE_CAP, &cap));
    say(r, "again %d\n", vm_ioctl(r, KVM_ENABLE_CAP, &cap));
    say(r, "create %d\n", accel_ioctl(r->ep, r->vm, KVM_CREATE_IRQCHIP, 0));
    say(r, "get %d\n", vm_ioctl(r, KVM_GET_IRQCHIP, &c));
    add_vcpus(r, 2);
    set_cpuid(r, r->vcpu[1]);
    lapic_write(r, 0, 0xf0, 0x1ff);
    lapic_write(r, 1, 0xf0, 0x11ff);
    say(r, "routes %d\n", set_routes(r, 1, &e));
    line(r, 3, 1);
    e.type = KVM_IRQ_ROUTING_IRQCHIP;
    say(r, "chip route %d\n", set_routes(r, 1, &e));
    say(r, "irqfd %d\n", irqfd(r, fd, 3, 0, 0));
    say(r, "resample %d\n", irqfd(r, fd, 3, KVM_IRQFD_FLAG_RESAMPLE, fd));
    show_lapic(r, 0);
    show_lapic(r, 1);
    close(fd);
}

static void wide_ids(struct run *r)
{
    struct kvm_enable_cap cap = {.cap = KVM_CAP_X2APIC_API, .args = {4}};
    struct kvm_sregs s;

    say(r, "unknown flag %d\n", vm_ioctl(r, KVM_ENABLE_CAP, &cap));
    cap.args[0] = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    say(r, "both %d\n", vm_ioctl(r, KVM_ENABLE_CAP, &cap));
    start(r);
    set_cpuid(r, r->vcpu[1]);
    accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_GET_SREGS, &s);
    s.apic_base |= 0x400;
    say(r, "x2apic %d\n", accel_ioctl_ptr(r->ep, r->vcpu[1], KVM_SET_SREGS, &s));
    lapic_write(r, 0, 0xd0, 0x01000000);
    msi(r, 0xfee01000, 0, 0x71);
    msi(r, 0xfee01000, 0x100, 0x72);
    msi(r, 0xfee01000, 1, 0x73);
    msi(r, 0xfeeff000, 0, 0x74);
    msi(r, 0xfeeff000, 0xffffff00, 0x75);
    show_lapic(r, 0);
    show_lapic(r, 1);
    lapic_write(r, 1, 0x20, 5);
    lapic_write(r, 1, 0x20, 1);
}

/* ---- the two endpoints ---- */

static struct run soft, kernel;

static bool play(struct run *r, struct accel_endpoint *ep, void (*scenario)(struct run *r))
{
    memset(r, 0, sizeof(*r));
    r->ep = ep;
    r->sys = ep->ops->open_system(ep);
    if (r->sys < 0) {
        return false;
    }
    r->vm = accel_ioctl(ep, r->sys, KVM_CREATE_VM, 0);
    assert_true(r->vm >= 0);
    scenario(r);
    for (unsigned i = 0; i < r->nr_vcpus; i++) {
        ep->ops->close(ep, r->vcpu[i]);
    }
    ep->ops->close(ep, r->vm);
    ep->ops->close(ep, r->sys);
    return true;
}

/* Print the first lines that differ. */
static void differ(const char *a, const char *b)
{
    while (*a || *b) {
        size_t la = strcspn(a, "\n"), lb = strcspn(b, "\n");

        if (la != lb || memcmp(a, b, la) != 0) {
            print_error("kernel: %.*s\nsoft:   %.*s\n", (int)la, a, (int)lb, b);
        }
        a += la + (a[la] != 0);
        b += lb + (b[lb] != 0);
    }
}

static void both(void (*scenario)(struct run *r))
{
    struct accel_endpoint *s = accel_endpoint_soft_new(NULL, NULL), *k = accel_endpoint_kernel_new();

    assert_non_null(s);
    assert_true(play(&soft, s, scenario));
    s->ops->free(s);
    if (k && play(&kernel, k, scenario) && strcmp(kernel.text, soft.text) != 0) {
        differ(kernel.text, soft.text);
        fail_msg("the engine differs from /dev/kvm");
    }
    if (k) {
        k->ops->free(k);
    }
}

#define SCENARIO(name, sure)                                                                       \
    static void test_##name(void **state)                                                          \
    {                                                                                              \
        (void)state;                                                                               \
        both(name);                                                                                \
        assert_non_null(strstr(soft.text, sure));                                                  \
    }

SCENARIO(creation, "create 0\nagain -17\npit 0\npit again -17\n")
SCENARIO(late_creation, "create -22\n")
SCENARIO(lines, "line 1=1 ret 0 status 1\n")
SCENARIO(pins, "line 4=1 ret 0 status")
SCENARIO(messages, "msi fee00000 0 41 ret 1\n")
SCENARIO(routes, "same chip twice -22\nchip and msi -22\nmsi twice -22\n")
SCENARIO(plain_pages, "base fee00d00 ret -22 now fee00800\n")
SCENARIO(lapic_pages, "base fee00d00 ret 0 now fee00c00\n")
SCENARIO(eventfds, "first 0: 0 second -17 -17 -17 -17 -17 -17 -17 -17 -22")
SCENARIO(irqfds, "no chip -22\n")
SCENARIO(bus_limit, "zones 1000 then -28\n")
SCENARIO(clocks, "realtime 0 near 1\n")
SCENARIO(split, "4097 -22\n24 0\nagain -17\ncreate -17\n")
SCENARIO(wide_ids, "unknown flag -22\nboth 0\n")

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_creation),  cmocka_unit_test(test_late_creation),
        cmocka_unit_test(test_lines),     cmocka_unit_test(test_pins),
        cmocka_unit_test(test_messages),  cmocka_unit_test(test_routes),
        cmocka_unit_test(test_plain_pages), cmocka_unit_test(test_lapic_pages), cmocka_unit_test(test_eventfds),
        cmocka_unit_test(test_irqfds),    cmocka_unit_test(test_bus_limit),
        cmocka_unit_test(test_clocks),    cmocka_unit_test(test_split),
        cmocka_unit_test(test_wide_ids),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
