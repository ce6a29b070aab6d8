/*
 * The chips of a VM: creation, their lock, and what has to follow a change once the lock is gone.
 *
 * kvm_chips_unlock() is the one place where the effects of a change leave: the PIC's output becomes
 * visible and wakes the vCPU wired to it, and GSIs that were acknowledged are told to who asked. Those
 * who are told may drive lines again, which takes the lock anew; each acknowledgement raises at most one
 * line, so this ends.
 *
 * Locks: see chips.h.
 */
#include "softkvm/irqchip/chips.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/bus.h"
#include "softkvm/irqchip/lapic.h"
#include "softkvm/irqchip/pit.h"

#define MAX_ACKS (16 + KVM_IOAPIC_NUM_PINS)

struct acks {
    unsigned count;
    uint16_t gsi[MAX_ACKS];
    bool timer_unmasked;
};

void kvm_chips_lock(struct kvm_chips *chips)
{
    pthread_mutex_lock(&chips->vm->irq_lock);
}

static void add_ack(struct kvm_chips *chips, struct acks *acks, int gsi)
{
    if (gsi < 0 || chips->ack_watch[gsi] == 0) {
        return;
    }
    for (unsigned i = 0; i < acks->count; i++) {
        if (acks->gsi[i] == gsi) {
            return;
        }
    }
    acks->gsi[acks->count++] = (uint16_t)gsi;
}

static void take_acks(struct kvm_chips *chips, struct acks *acks)
{
    for (uint32_t pins = chips->pic.acked; pins != 0; pins &= pins - 1) {
        add_ack(chips, acks, kvm_routes_gsi_of_pic(chips, (unsigned)__builtin_ctz(pins)));
    }
    for (uint32_t pins = chips->ioapic.acked; pins != 0; pins &= pins - 1) {
        add_ack(chips, acks, kvm_routes_gsi_of_ioapic(chips, (unsigned)__builtin_ctz(pins)));
    }
    chips->pic.acked = 0;
    chips->ioapic.acked = 0;
}

static bool gsi_masked(struct kvm_chips *chips, int gsi, bool ioapic)
{
    for (unsigned pin = 0; ioapic && pin < KVM_IOAPIC_NUM_PINS; pin++) {
        if (kvm_routes_gsi_of_ioapic(chips, pin) == gsi) {
            return chips->ioapic.redir[pin] >> 16 & 1;
        }
    }
    for (unsigned input = 0; !ioapic && input < 16; input++) {
        if (kvm_routes_gsi_of_pic(chips, input) == gsi) {
            return chips->pic.chip[input >> 3].imr >> (input & 7) & 1;
        }
    }
    return true;
}

/* Has the timer's line been unmasked in either chip since the last look? */
static bool timer_unmasked(struct kvm_chips *chips)
{
    bool ret = false;

    for (unsigned i = 0; i < 2; i++) {
        bool masked = gsi_masked(chips, KVM_PIT_GSI, i);

        ret |= chips->timer_masked[i] && !masked;
        chips->timer_masked[i] = masked;
    }
    return ret;
}

void kvm_chips_update_watch(struct kvm_chips *chips)
{
    uint32_t set[8] = {0};

    for (unsigned pin = 0; pin < KVM_IOAPIC_NUM_PINS; pin++) {
        int gsi = kvm_routes_gsi_of_ioapic(chips, pin);
        uint8_t vector = (uint8_t)chips->ioapic.redir[pin];

        if (gsi >= 0 && chips->ack_watch[gsi] != 0) {
            set[vector >> 5] |= 1u << (vector & 31);
        }
    }
    for (unsigned i = 0; i < 8; i++) {
        atomic_store_explicit(&chips->eoi_watch[i], set[i], memory_order_relaxed);
    }
    memset(set, 0, sizeof(set));
    kvm_routes_level_vectors(chips, chips->reserved_pins, set);
    for (unsigned i = 0; i < 8; i++) {
        atomic_store_explicit(&chips->eoi_exits[i], set[i], memory_order_relaxed);
    }
    chips->ioapic.changed = false;
}

/* The first vCPU that is wired to the PIC. */
static void wake_for_pic(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint32_t i;

    kvm_for_each_vcpu (i, v, vm) {
        if (v->lapic && kvm_lapic_takes_pic(v->lapic)) {
            kvm_vcpu_request(v, KVM_REQUEST_EVENT);
            return;
        }
    }
}

void kvm_chips_unlock(struct kvm_chips *chips)
{
    struct kvm_pit *pit = atomic_load_explicit(&chips->pit, memory_order_acquire);
    struct acks acks = {0};
    int32_t vector = kvm_pic_peek(&chips->pic);
    bool wake = vector >= 0 && vector != atomic_load_explicit(&chips->pic_vector, memory_order_relaxed);

    atomic_store(&chips->pic_vector, vector);
    if (chips->ioapic.changed) {
        kvm_chips_update_watch(chips);
    }
    if (chips->pic.acked | chips->ioapic.acked) {
        take_acks(chips, &acks);
    }
    acks.timer_unmasked = pit && timer_unmasked(chips);
    pthread_mutex_unlock(&chips->vm->irq_lock);

    if (wake) {
        wake_for_pic(chips->vm);
    }
    if (acks.timer_unmasked) {
        kvm_pit_unmasked(pit);
    }
    for (unsigned i = 0; i < acks.count; i++) {
        if (pit && acks.gsi[i] == KVM_PIT_GSI) {
            kvm_pit_acked(pit);
        }
        kvm_irqfds_ack(chips, acks.gsi[i]);
    }
}

void kvm_chips_watch_ack(struct kvm_chips *chips, uint32_t gsi, bool on)
{
    if (gsi >= KVM_MAX_IRQ_ROUTES) {
        return;
    }
    kvm_chips_lock(chips);
    chips->ack_watch[gsi] = (uint16_t)(chips->ack_watch[gsi] + (on ? 1 : -1));
    kvm_chips_update_watch(chips);
    kvm_chips_unlock(chips);
}

/* ---- on the buses ---- */

static int pic_port_read(void *opaque, struct kvm_vcpu *v, uint64_t port, unsigned len, void *data)
{
    struct kvm_chips *chips = opaque;

    memset(data, 0, len);
    if (len == 1) {
        kvm_chips_lock(chips);
        *(uint8_t *)data = kvm_pic_read(&chips->pic, (uint16_t)port);
        kvm_chips_unlock(chips);
    }
    return 0;
}

static int pic_port_write(void *opaque, struct kvm_vcpu *v, uint64_t port, unsigned len,
                          const void *data)
{
    struct kvm_chips *chips = opaque;

    if (len == 1) {
        kvm_chips_lock(chips);
        kvm_pic_write(&chips->pic, (uint16_t)port, *(const uint8_t *)data);
        kvm_chips_unlock(chips);
    }
    return 0;
}

static const struct kvm_bus_ops pic_ops = {.read = pic_port_read, .write = pic_port_write};

static int ioapic_mmio_read(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, void *data)
{
    struct kvm_chips *chips = opaque;
    uint32_t value;

    memset(data, 0, len);
    if ((addr & 0xf) == 0) {
        kvm_chips_lock(chips);
        value = kvm_ioapic_read(&chips->ioapic, (unsigned)(addr - KVM_IOAPIC_BASE));
        kvm_chips_unlock(chips);
        memcpy(data, &value, len < 4 ? len : 4);
    }
    return 0;
}

static int ioapic_mmio_write(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len,
                             const void *data)
{
    struct kvm_chips *chips = opaque;
    uint32_t value = 0;

    if ((addr & 0xf) == 0) {
        memcpy(&value, data, len < 4 ? len : 4);
        kvm_chips_lock(chips);
        kvm_ioapic_write(&chips->ioapic, (unsigned)(addr - KVM_IOAPIC_BASE), value);
        kvm_chips_unlock(chips);
    }
    return 0;
}

static const struct kvm_bus_ops ioapic_ops = {.read = ioapic_mmio_read, .write = ioapic_mmio_write};

/* A message of the IOAPIC. Lock: irq_lock held. */
static int ioapic_send(void *opaque, uint64_t entry)
{
    struct kvm_apic_msg msg = {
        .dest = (uint32_t)(entry >> 56),
        .vector = (uint8_t)entry,
        .mode = entry >> 8 & 7,
        .logical = entry >> 11 & 1,
        .level_trig = entry >> 15 & 1,
        .assert_level = true,
    };

    return kvm_apic_deliver(opaque, NULL, &msg);
}

/* Level interrupts that came back too often are given again after a pause. On the timer thread. */
static void resend_fired(void *opaque)
{
    struct kvm_chips *chips = opaque;

    kvm_chips_lock(chips);
    kvm_ioapic_resend(&chips->ioapic);
    kvm_chips_unlock(chips);
}

void kvm_chips_resend_later(struct kvm_chips *chips)
{
    (void)!kvm_timer_arm(chips->timers, &chips->resend, kvm_timer_now() + KVM_IOAPIC_PAUSE_NS);
}

/* ---- creation ---- */

static int start_timers(struct kvm_chips *chips)
{
    struct kvm_timers *timers;
    int err;

    if (atomic_load(&chips->timers)) {
        return 0;
    }
    err = kvm_timers_new(&timers);
    if (err) {
        return err;
    }
    err = kvm_timers_reserve(timers, 1);
    if (err) {
        kvm_timers_free(timers);
        return err;
    }
    atomic_store(&chips->timers, timers);
    return 0;
}

/* Lock: slots_lock held. */
static int register_devices(struct kvm_vm *vm)
{
    static const uint16_t port[] = {0x20, 0xa0, 0x4d0};
    struct kvm_bus_range r = {
        .addr = KVM_IOAPIC_BASE, .len = KVM_IOAPIC_LEN, .ops = &ioapic_ops, .opaque = vm->chips};
    int err = kvm_bus_register(vm, KVM_BUS_MEM, &r);

    for (unsigned i = 0; !err && i < ARRAY_LEN(port); i++) {
        r = (struct kvm_bus_range){.addr = port[i], .len = 2, .ops = &pic_ops, .opaque = vm->chips};
        err = kvm_bus_register(vm, KVM_BUS_PORT, &r);
    }
    if (err) {
        (void)!kvm_bus_unregister(vm, KVM_BUS_MEM, vm->chips);
        (void)!kvm_bus_unregister(vm, KVM_BUS_PORT, vm->chips);
    }
    return err;
}

/* Lock: vm->lock held. Why a chip cannot be made now, or 0. */
static int may_create(struct kvm_vm *vm, int err_vcpus)
{
    if (kvm_chips_mode(vm) != KVM_CHIPS_NONE) {
        return -EEXIST;
    }
    return kvm_vm_nr_vcpus(vm) ? err_vcpus : 0;
}

static int create_locked(struct kvm_vm *vm)
{
    struct kvm_chips *chips = vm->chips;
    int err = may_create(vm, -EINVAL);

    if (!err) {
        err = start_timers(chips);
    }
    if (!err) {
        err = kvm_routes_set_default(chips);
    }
    if (err) {
        return err;
    }
    kvm_pic_init(&chips->pic);
    kvm_ioapic_init(&chips->ioapic, ioapic_send, chips);
    pthread_mutex_lock(&vm->slots_lock);
    err = register_devices(vm);
    pthread_mutex_unlock(&vm->slots_lock);
    if (!err) {
        atomic_store_explicit(&chips->mode, KVM_CHIPS_KERNEL, memory_order_release);
    }
    return err;
}

int kvm_chips_create_irqchip(struct kvm_vm *vm)
{
    int err;

    pthread_mutex_lock(&vm->lock);
    err = create_locked(vm);
    pthread_mutex_unlock(&vm->lock);
    return err;
}

int kvm_chips_create_split(struct kvm_vm *vm, uint64_t pins)
{
    int err;

    if (pins > KVM_MAX_IRQ_ROUTES) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->lock);
    err = may_create(vm, -EEXIST);
    if (!err) {
        err = start_timers(vm->chips);
    }
    if (!err) {
        vm->chips->reserved_pins = (uint32_t)pins;
        atomic_store_explicit(&vm->chips->mode, KVM_CHIPS_SPLIT, memory_order_release);
    }
    pthread_mutex_unlock(&vm->lock);
    return err;
}

int kvm_chips_init(struct kvm_vm *vm)
{
    struct kvm_chips *chips = kvm_alloc(vm->s, sizeof(*chips));

    if (!chips) {
        return -ENOMEM;
    }
    chips->vm = vm;
    atomic_store(&chips->pic_vector, -1);
    pthread_mutex_init(&chips->irqfds_lock, NULL);
    kvm_timer_init(&chips->resend, resend_fired, chips);
    kvm_pic_init(&chips->pic);
    kvm_ioapic_init(&chips->ioapic, ioapic_send, chips);
    vm->chips = chips;
    return 0;
}

void kvm_chips_stop(struct kvm_vm *vm)
{
    struct kvm_chips *chips = vm->chips;

    if (chips) {
        kvm_irqfds_stop(chips);
        kvm_pit_stop(atomic_load(&chips->pit));
        kvm_timers_stop(atomic_load(&chips->timers));
    }
}

void kvm_chips_fini(struct kvm_vm *vm)
{
    struct kvm_chips *chips = vm->chips;

    if (!chips) {
        return;
    }
    kvm_pit_free(atomic_load(&chips->pit));
    kvm_timers_free(atomic_load(&chips->timers));
    kvm_routes_free(chips);
    pthread_mutex_destroy(&chips->irqfds_lock);
    free(chips);
    vm->chips = NULL;
}
