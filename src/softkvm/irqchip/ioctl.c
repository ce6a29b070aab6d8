/*
 * The ioctls of chips, buses and clock. Arguments are copied in, checked, acted upon, and copied out.
 *
 * Locks: a VM's are called with none held; a vCPU's with vcpu->lock.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/bus.h"
#include "softkvm/irqchip/chips.h"
#include "softkvm/irqchip/lapic.h"
#include "softkvm/irqchip/pit.h"
#include "softkvm/kvmclock.h"
#include "softkvm/user.h"

/* Copy a structure in, or return -EFAULT. */
#define COPY_IN(local, arg)                                                                        \
    do {                                                                                           \
        if (kvm_user_read(&(local), (arg), sizeof(local)) < 0) {                                   \
            return -EFAULT;                                                                        \
        }                                                                                          \
    } while (0)

static int copy_out(void *arg, const void *local, size_t len)
{
    return kvm_user_write(arg, local, len) < 0 ? -EFAULT : 0;
}

/* One chip's state, there or back. -EINVAL: no such chip. */
static int chip_state(struct kvm_chips *chips, struct kvm_irqchip *c, bool set)
{
    bool is_ioapic = c->chip_id == KVM_IRQCHIP_IOAPIC;

    if (c->chip_id != KVM_IRQCHIP_PIC_MASTER && c->chip_id != KVM_IRQCHIP_PIC_SLAVE && !is_ioapic) {
        return -EINVAL;
    }
    kvm_chips_lock(chips);
    if (is_ioapic && set) {
        kvm_ioapic_set_state(&chips->ioapic, &c->chip.ioapic);
    } else if (is_ioapic) {
        kvm_ioapic_get_state(&chips->ioapic, &c->chip.ioapic);
    } else if (set) {
        kvm_pic_set_state(&chips->pic, c->chip_id, &c->chip.pic);
    } else {
        kvm_pic_get_state(&chips->pic, c->chip_id, &c->chip.pic);
    }
    kvm_chips_unlock(chips);
    return 0;
}

/* KVM_GET_IRQCHIP, KVM_SET_IRQCHIP. -EFAULT; -ENXIO: no chips in the kernel half; -EINVAL. */
static int irqchip(struct kvm_vm *vm, void *arg, bool set)
{
    struct kvm_irqchip c;
    int err;

    COPY_IN(c, arg);
    if (kvm_chips_mode(vm) != KVM_CHIPS_KERNEL) {
        return -ENXIO;
    }
    err = chip_state(vm->chips, &c, set);
    return err || set ? err : copy_out(arg, &c, sizeof(c));
}

static int create_pit(struct kvm_vm *vm, const struct kvm_pit_config *config)
{
    int err;

    pthread_mutex_lock(&vm->lock);
    pthread_mutex_lock(&vm->slots_lock);
    err = kvm_pit_create(vm, config->flags);
    pthread_mutex_unlock(&vm->slots_lock);
    pthread_mutex_unlock(&vm->lock);
    return err;
}

static int create_pit2(struct kvm_vm *vm, const void *arg)
{
    struct kvm_pit_config config;

    COPY_IN(config, arg);
    return create_pit(vm, &config);
}

static struct kvm_pit *get_pit(struct kvm_vm *vm)
{
    return atomic_load_explicit(&vm->chips->pit, memory_order_acquire);
}

/* KVM_GET_PIT has the first part of KVM_GET_PIT2's structure. */
static int get_pit_state(struct kvm_vm *vm, void *arg, size_t len)
{
    struct kvm_pit_state2 ps;

    if (!get_pit(vm)) {
        return -ENXIO;
    }
    kvm_pit_get_state(get_pit(vm), &ps);
    return copy_out(arg, &ps, len);
}

static int set_pit_state(struct kvm_vm *vm, const void *arg, size_t len)
{
    struct kvm_pit_state2 ps = {0};

    if (kvm_user_read(&ps, arg, len) < 0) {
        return -EFAULT;
    }
    if (!get_pit(vm)) {
        return -ENXIO;
    }
    kvm_pit_set_state(get_pit(vm), &ps);
    return 0;
}

static int reinject_control(struct kvm_vm *vm, const void *arg)
{
    struct kvm_reinject_control control;

    COPY_IN(control, arg);
    if (!get_pit(vm)) {
        return -ENXIO;
    }
    kvm_pit_set_reinject(get_pit(vm), control.pit_reinject);
    return 0;
}

static int irq_line(struct kvm_vm *vm, void *arg, bool want_status)
{
    struct kvm_irq_level line;
    int status;

    COPY_IN(line, arg);
    if (kvm_chips_mode(vm) == KVM_CHIPS_NONE) {
        return -ENXIO;
    }
    status = kvm_irq_set_line(vm->chips, KVM_SOURCE_USER, line.irq, line.level != 0);
    if (!want_status) {
        return 0;
    }
    line.status = status;
    return copy_out(arg, &line, sizeof(line));
}

static int set_gsi_routing(struct kvm_vm *vm, const void *arg)
{
    struct kvm_irq_routing routing;
    struct kvm_irq_routing_entry *entries;
    size_t len;
    int err;

    COPY_IN(routing, arg);
    if (kvm_chips_mode(vm) == KVM_CHIPS_NONE || routing.nr > KVM_MAX_IRQ_ROUTES || routing.flags) {
        return -EINVAL;
    }
    len = routing.nr * sizeof(*entries);
    entries = kvm_alloc(vm->s, len ? len : 1);
    if (!entries) {
        return -ENOMEM;
    }
    err = kvm_user_read(entries, (const char *)arg + sizeof(routing), len) < 0 ? -EFAULT : 0;
    if (!err) {
        err = kvm_routes_set(vm->chips, entries, routing.nr);
    }
    free(entries);
    return err;
}

static int signal_msi(struct kvm_vm *vm, const void *arg)
{
    struct kvm_msi msi;
    int ret;

    COPY_IN(msi, arg);
    if (kvm_chips_mode(vm) == KVM_CHIPS_NONE || (msi.flags & ~(uint32_t)KVM_MSI_VALID_DEVID)) {
        return -EINVAL;
    }
    kvm_chips_lock(vm->chips);
    ret = kvm_apic_deliver_msi(vm->chips, (uint64_t)msi.address_hi << 32 | msi.address_lo, msi.data);
    kvm_chips_unlock(vm->chips);
    return ret;
}

static int do_irqfd(struct kvm_vm *vm, const void *arg)
{
    struct kvm_irqfd args;

    COPY_IN(args, arg);
    return kvm_irqfd_change(vm->chips, &args);
}

static int do_ioeventfd(struct kvm_vm *vm, const void *arg)
{
    struct kvm_ioeventfd args;

    COPY_IN(args, arg);
    return kvm_ioeventfd_change(vm, &args);
}

static int do_coalesced(struct kvm_vm *vm, const void *arg, bool add)
{
    struct kvm_coalesced_mmio_zone zone;

    COPY_IN(zone, arg);
    return add ? kvm_coalesced_register(vm, &zone) : kvm_coalesced_unregister(vm, &zone);
}

static int get_clock(struct kvm_vm *vm, void *arg)
{
    struct kvm_clock_data data;

    kvm_clock_get(vm, &data);
    return copy_out(arg, &data, sizeof(data));
}

static int set_clock(struct kvm_vm *vm, const void *arg)
{
    struct kvm_clock_data data;

    COPY_IN(data, arg);
    return kvm_clock_set(vm, &data);
}

static int chip_ioctl(struct kvm_vm *vm, unsigned long request, void *arg)
{
    static const struct kvm_pit_config pit1 = {.flags = KVM_PIT_SPEAKER_DUMMY};

    switch (request) {
    case KVM_CREATE_IRQCHIP:
        return kvm_chips_create_irqchip(vm);
    case KVM_GET_IRQCHIP:
        return irqchip(vm, arg, false);
    case KVM_SET_IRQCHIP:
        return irqchip(vm, arg, true);
    case KVM_CREATE_PIT:
        return create_pit(vm, &pit1);
    case KVM_CREATE_PIT2:
        return create_pit2(vm, arg);
    case KVM_GET_PIT:
        return get_pit_state(vm, arg, sizeof(struct kvm_pit_state));
    case KVM_SET_PIT:
        return set_pit_state(vm, arg, sizeof(struct kvm_pit_state));
    case KVM_GET_PIT2:
        return get_pit_state(vm, arg, sizeof(struct kvm_pit_state2));
    case KVM_SET_PIT2:
        return set_pit_state(vm, arg, sizeof(struct kvm_pit_state2));
    case KVM_REINJECT_CONTROL:
        return reinject_control(vm, arg);
    default:
        return -ENOTTY;
    }
}

int kvm_chips_vm_ioctl(struct kvm_vm *vm, unsigned long request, void *arg)
{
    switch (request) {
    case KVM_IRQ_LINE:
        return irq_line(vm, arg, false);
    case KVM_IRQ_LINE_STATUS:
        return irq_line(vm, arg, true);
    case KVM_SIGNAL_MSI:
        return signal_msi(vm, arg);
    case KVM_SET_GSI_ROUTING:
        return set_gsi_routing(vm, arg);
    case KVM_IRQFD:
        return do_irqfd(vm, arg);
    case KVM_IOEVENTFD:
        return do_ioeventfd(vm, arg);
    case KVM_REGISTER_COALESCED_MMIO:
        return do_coalesced(vm, arg, true);
    case KVM_UNREGISTER_COALESCED_MMIO:
        return do_coalesced(vm, arg, false);
    case KVM_GET_CLOCK:
        return get_clock(vm, arg);
    case KVM_SET_CLOCK:
        return set_clock(vm, arg);
    default:
        return chip_ioctl(vm, request, arg);
    }
}

static int get_lapic(struct kvm_vcpu *v, void *arg)
{
    struct kvm_lapic_state page;

    if (!v->lapic) {
        return -EINVAL;
    }
    kvm_lapic_get_state(v->lapic, &page);
    return copy_out(arg, &page, sizeof(page));
}

static int set_lapic(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_lapic_state page;

    COPY_IN(page, arg);
    return v->lapic ? kvm_lapic_set_state(v->lapic, &page) : -EINVAL;
}

/* Also on a KVM whose processor has TPR in hardware this can be turned on; see lapic_tpr.c. */
static int tpr_access(struct kvm_vcpu *v, void *arg)
{
    struct kvm_tpr_access_ctl ctl;

    COPY_IN(ctl, arg);
    if (ctl.flags) {
        return -EINVAL;
    }
    if (v->lapic) {
        v->lapic->tpr.reports = ctl.enabled != 0;
    }
    return copy_out(arg, &ctl, sizeof(ctl));
}

static int set_vapic(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_vapic_addr where;

    if (!v->lapic) {
        return -EINVAL;
    }
    COPY_IN(where, arg);
    return kvm_lapic_set_vapic(v->lapic, where.vapic_addr);
}

int kvm_chips_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    switch (request) {
    case KVM_GET_LAPIC:
        return get_lapic(v, arg);
    case KVM_SET_LAPIC:
        return set_lapic(v, arg);
    case KVM_KVMCLOCK_CTRL:
        return kvm_pvclock_was_stopped(v);
    case KVM_TPR_ACCESS_REPORTING:
        return tpr_access(v, arg);
    case KVM_SET_VAPIC_ADDR:
        return set_vapic(v, arg);
    default:
        return -ENOTTY;
    }
}

int kvm_chips_enable_cap(struct kvm_vm *vm, uint32_t cap, const uint64_t *args)
{
    const uint64_t x2apic = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

    switch (cap) {
    case KVM_CAP_SPLIT_IRQCHIP:
        return kvm_chips_create_split(vm, args[0]);
    case KVM_CAP_X2APIC_API:
        if (args[0] & ~x2apic) {
            return -EINVAL;
        }
        if (args[0] & KVM_X2APIC_API_USE_32BIT_IDS) {
            atomic_store(&vm->chips->x2apic_format, true);
        }
        if (args[0] & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) {
            atomic_store(&vm->chips->broadcast_quirk_off, true);
        }
        return 0;
    default:
        return -EINVAL;
    }
}

int kvm_chips_check_extension(struct softkvm *s, struct kvm_vm *vm, long extension)
{
    (void)s;
    (void)vm;
    switch (extension) {
    case KVM_CAP_IRQCHIP:
    case KVM_CAP_PIT:
    case KVM_CAP_PIT2:
    case KVM_CAP_PIT_STATE2:
    case KVM_CAP_REINJECT_CONTROL:
    case KVM_CAP_IRQ_INJECT_STATUS:
    case KVM_CAP_SPLIT_IRQCHIP:
    case KVM_CAP_SIGNAL_MSI:
    case KVM_CAP_IRQFD:
    case KVM_CAP_IRQFD_RESAMPLE:
    case KVM_CAP_IOEVENTFD:
    case KVM_CAP_IOEVENTFD_NO_LENGTH:
    case KVM_CAP_IOEVENTFD_ANY_LENGTH:
    case KVM_CAP_COALESCED_PIO:
    case KVM_CAP_CLOCKSOURCE:
    case KVM_CAP_KVMCLOCK_CTRL:
    case KVM_CAP_TSC_DEADLINE_TIMER:
        return 1;
    case KVM_CAP_COALESCED_MMIO:
        return KVM_VCPU_RING_PAGE;
    case KVM_CAP_IRQ_ROUTING:
        return KVM_MAX_IRQ_ROUTES;
    case KVM_CAP_X2APIC_API:
        return KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    case KVM_CAP_ADJUST_CLOCK:
        return KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    default:
        return -ENOTTY;
    }
}
