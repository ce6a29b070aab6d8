/*
 * Messages between APICs: who is meant, and handing over. Physical and logical destinations, flat and
 * cluster models, shorthands, lowest priority, MSI.
 *
 * Locks: none of its own. The vCPUs of a VM are only ever added, and a LAPIC lives as long as its vCPU.
 * A device's sender holds irq_lock.
 */
#include "softkvm/irqchip/chips.h"

#include <errno.h>

#include "softkvm/irqchip/lapic.h"

enum shorthand {
    TO_DESTINATION,
    TO_SELF,
    TO_ALL,
    TO_OTHERS,
};

#define XAPIC_BROADCAST  0xffu
#define X2APIC_BROADCAST UINT32_MAX

/* A destination of a device's message, or between modes, as the target's mode would write it. */
static uint32_t dest_as_seen(struct kvm_chips *chips, const struct kvm_lapic *dst,
                             const struct kvm_lapic *src, uint32_t dest)
{
    if (!src && dest == XAPIC_BROADCAST && kvm_lapic_is_x2apic(dst) &&
        !atomic_load_explicit(&chips->broadcast_quirk_off, memory_order_relaxed)) {
        return X2APIC_BROADCAST;
    }
    return dest;
}

static bool is_broadcast(const struct kvm_lapic *dst, uint32_t dest)
{
    return dest == (kvm_lapic_is_x2apic(dst) ? X2APIC_BROADCAST : XAPIC_BROADCAST);
}

static bool matches_physical(const struct kvm_lapic *dst, uint32_t dest)
{
    uint32_t id = dst->vcpu->id;

    if (is_broadcast(dst, dest)) {
        return true;
    }
    if (kvm_lapic_is_x2apic(dst)) {
        return dest == id;
    }
    /* A processor whose id does not fit the page's register can still be started by its full id. */
    return (id > 0xff && dest == id) || dest == kvm_lapic_reg(dst, APIC_ID) >> 24;
}

static bool matches_logical(const struct kvm_lapic *dst, uint32_t dest)
{
    uint32_t ldr = kvm_lapic_reg(dst, APIC_LDR);

    if (is_broadcast(dst, dest)) {
        return true;
    }
    if (kvm_lapic_is_x2apic(dst)) {
        return ldr >> 16 == dest >> 16 && (ldr & dest & 0xffff);
    }
    ldr >>= 24;
    if (kvm_lapic_reg(dst, APIC_DFR) >> 28 == 0xf) {
        return ldr & dest;
    }
    return kvm_lapic_reg(dst, APIC_DFR) >> 28 == 0 && ldr >> 4 == dest >> 4 && (ldr & dest & 0xf);
}

bool kvm_apic_is_target(struct kvm_chips *chips, struct kvm_lapic *dst, struct kvm_lapic *src,
                        const struct kvm_apic_msg *msg)
{
    uint32_t dest;

    switch (msg->shorthand) {
    case TO_SELF:
        return dst == src;
    case TO_ALL:
        return true;
    case TO_OTHERS:
        return dst != src;
    default:
        dest = dest_as_seen(chips, dst, src, msg->dest);
        return msg->logical ? matches_logical(dst, dest) : matches_physical(dst, dest);
    }
}

static bool wants_lowest(const struct kvm_apic_msg *msg)
{
    return msg->mode == KVM_APIC_LOWEST || msg->redirect_hint;
}

/* The n-th LAPIC that is addressed and enabled, or null; *count: how many there are up to it. */
static struct kvm_lapic *nth_target(struct kvm_chips *chips, struct kvm_lapic *src,
                                    const struct kvm_apic_msg *msg, uint32_t n, uint32_t *count)
{
    struct kvm_vcpu *v;
    uint32_t i;

    *count = 0;
    kvm_for_each_vcpu (i, v, chips->vm) {
        struct kvm_lapic *apic = v->lapic;

        if (apic && kvm_lapic_enabled(apic) && kvm_apic_is_target(chips, apic, src, msg)) {
            if ((*count)++ == n) {
                return apic;
            }
        }
    }
    return NULL;
}

/* To one of all addressed. The vector chooses which, so that each source keeps its processor. */
static int deliver_lowest(struct kvm_chips *chips, struct kvm_lapic *src, const struct kvm_apic_msg *msg)
{
    struct kvm_lapic *apic;
    uint32_t n, unused;

    nth_target(chips, src, msg, UINT32_MAX, &n);
    apic = n ? nth_target(chips, src, msg, msg->vector % n, &unused) : NULL;
    return apic ? kvm_lapic_accept(apic, msg) : 0;
}

/* The vCPU that a physical destination most likely names: ids are mostly indices. */
static struct kvm_lapic *guess_target(struct kvm_chips *chips, const struct kvm_apic_msg *msg)
{
    struct kvm_vcpu *v;

    if (msg->shorthand != TO_DESTINATION || msg->logical || msg->dest >= kvm_vm_nr_vcpus(chips->vm)) {
        return NULL;
    }
    v = kvm_vm_vcpu(chips->vm, msg->dest);
    if (!v->lapic || v->id != msg->dest || is_broadcast(v->lapic, msg->dest) ||
        (!kvm_lapic_is_x2apic(v->lapic) && kvm_lapic_reg(v->lapic, APIC_ID) >> 24 != msg->dest)) {
        return NULL;
    }
    return v->lapic;
}

int kvm_apic_deliver(struct kvm_chips *chips, struct kvm_lapic *src, const struct kvm_apic_msg *in)
{
    struct kvm_apic_msg msg = *in;
    struct kvm_lapic *apic;
    struct kvm_vcpu *v;
    uint32_t i;
    int ret = 0;

    if (msg.shorthand == TO_SELF && src) {
        msg.from_owner = true;
        return kvm_lapic_accept(src, &msg);
    }
    if (msg.mode == KVM_APIC_LOWEST && !msg.logical && msg.dest == XAPIC_BROADCAST) {
        msg.mode = KVM_APIC_FIXED; /* everybody: nothing to choose from */
    }
    if (wants_lowest(&msg)) {
        return deliver_lowest(chips, src, &msg);
    }
    apic = guess_target(chips, &msg);
    if (apic) {
        return kvm_lapic_hw_enabled(apic) ? kvm_lapic_accept(apic, &msg) : 0;
    }
    if (msg.dest == XAPIC_BROADCAST || msg.dest == X2APIC_BROADCAST) {
        ret = -1;
    }
    kvm_for_each_vcpu (i, v, chips->vm) {
        apic = v->lapic;
        if (apic && kvm_lapic_hw_enabled(apic) && kvm_apic_is_target(chips, apic, src, &msg)) {
            ret = (ret < 0 ? 0 : ret) + kvm_lapic_accept(apic, &msg);
        }
    }
    return ret;
}

/*
 * MSI: address 31:20 = 0xfee, 19:12 destination, 3 redirection hint, 2 logical; its upper half has the
 * other 24 bits of the destination where KVM_CAP_X2APIC_API says so. Bits 11:5 of the address are
 * ignored. Data: 7:0 vector, 10:8 mode, 15 level-triggered.
 */
int kvm_apic_deliver_msi(struct kvm_chips *chips, uint64_t address, uint32_t data)
{
    bool wide = atomic_load_explicit(&chips->x2apic_format, memory_order_relaxed);
    struct kvm_apic_msg msg = {
        .dest = (uint32_t)(address >> 12) & 0xff,
        .vector = (uint8_t)data,
        .mode = (data >> 8) & 7,
        .level_trig = data >> 15 & 1,
        .logical = address >> 2 & 1,
        .redirect_hint = address >> 3 & 1,
        .assert_level = true,
    };

    if (wide) {
        if ((address >> 32) & 0xff) {
            return -EINVAL;
        }
        msg.dest |= (uint32_t)(address >> 32);
    }
    {
        int ret = kvm_apic_deliver(chips, NULL, &msg);

        return ret < 0 || kvm_vm_nr_vcpus(chips->vm) ? ret : -EPERM; /* nobody at all: -1, as KVM says */
    }
}
