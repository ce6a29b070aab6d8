/*
 * The local APIC from outside: KVM_GET/SET_LAPIC, IA32_APIC_BASE, and the x2APIC MSRs.
 *
 * The page has the ID in its top byte, as xAPIC has it, also in x2APIC mode, unless user space asked
 * for 32-bit IDs by KVM_CAP_X2APIC_API.
 *
 * Locks: the owner's thread, or vcpu->lock with the vCPU out of its run loop.
 */
#include "softkvm/irqchip/lapic.h"

#include <errno.h>
#include <string.h>

#include "arch/regs.h"

#define PAGE_REG(page, offset) ((page)->regs + (offset))

static uint32_t page_get(const struct kvm_lapic_state *page, unsigned offset)
{
    uint32_t value;

    memcpy(&value, PAGE_REG(page, offset), sizeof(value));
    return value;
}

static void page_put(struct kvm_lapic_state *page, unsigned offset, uint32_t value)
{
    memcpy(PAGE_REG(page, offset), &value, sizeof(value));
}

static bool shows_wide_id(const struct kvm_lapic *apic)
{
    return atomic_load_explicit(&apic->chips->x2apic_format, memory_order_relaxed);
}

int kvm_lapic_get_state(struct kvm_lapic *apic, struct kvm_lapic_state *out)
{
    memset(out, 0, sizeof(*out));
    for (unsigned offset = 0; offset < KVM_APIC_REG_SIZE; offset += 0x10) {
        page_put(out, offset, kvm_lapic_reg(apic, offset));
    }
    page_put(out, APIC_LVR, kvm_lapic_version(apic));
    page_put(out, APIC_PPR, kvm_lapic_ppr(apic));
    page_put(out, APIC_TMCCT, kvm_lapic_timer_count(apic));
    if (kvm_lapic_is_x2apic(apic) && !shows_wide_id(apic)) {
        page_put(out, APIC_ID, kvm_lapic_reg(apic, APIC_ID) << 24);
    }
    return 0;
}

static uint32_t x2apic_ldr(uint32_t id)
{
    return (id >> 4) << 16 | 1u << (id & 0xf);
}

/* The ID register that a page stands for. 0 or -EINVAL. */
static int page_id(const struct kvm_lapic *apic, const struct kvm_lapic_state *in, uint32_t *id)
{
    *id = page_get(in, APIC_ID);
    if (!kvm_lapic_is_x2apic(apic)) {
        return 0;
    }
    if (shows_wide_id(apic)) {
        return *id == apic->vcpu->id ? 0 : -EINVAL;
    }
    *id >>= 24;
    return 0;
}

static void restore_timer(struct kvm_lapic *apic, const struct kvm_lapic_state *in)
{
    uint32_t lvtt = page_get(in, APIC_LVTT);

    kvm_lapic_timer_off(apic);
    kvm_lapic_timer_set_lvtt(apic, lvtt);
    kvm_lapic_put(apic, APIC_LVTT, lvtt);
    kvm_lapic_put(apic, APIC_TMICT, page_get(in, APIC_TMICT));
    kvm_lapic_put(apic, APIC_TDCR, page_get(in, APIC_TDCR));
    kvm_lapic_timer_set_divide(apic, page_get(in, APIC_TDCR));
    kvm_lapic_timer_start(apic, page_get(in, APIC_TMCCT));
}

int kvm_lapic_set_state(struct kvm_lapic *apic, const struct kvm_lapic_state *in)
{
    uint32_t id;
    int err = page_id(apic, in, &id);

    if (err) {
        return err;
    }
    for (unsigned offset = 0; offset < KVM_APIC_REG_SIZE; offset += 0x10) {
        bool timer = offset == APIC_LVTT || offset == APIC_TMICT || offset == APIC_TDCR;

        if (!timer) {
            atomic_store(&apic->reg[offset >> 4], page_get(in, offset));
        }
    }
    kvm_lapic_put(apic, APIC_ID, id);
    if (kvm_lapic_is_x2apic(apic)) {
        kvm_lapic_put(apic, APIC_LDR, x2apic_ldr(apic->vcpu->id));
    }
    kvm_lapic_update_watchdog(apic);
    apic->vcpu->cpu->cr8 = (page_get(in, APIC_TPR) >> 4) & 0xf;
    restore_timer(apic, in);
    kvm_vcpu_request(apic->vcpu, KVM_REQUEST_EVENT);
    return 0;
}

static uint32_t cpuid_1_ecx(const struct kvm_lapic *apic)
{
    const struct kvm_cpuid_entry2 *e = kvm_vcpu_find_cpuid(apic->vcpu, 1, 0);

    return e ? e->ecx : 0;
}

bool kvm_lapic_has_x2apic(const struct kvm_lapic *apic)
{
    return cpuid_1_ecx(apic) >> 21 & 1;
}

bool kvm_lapic_has_deadline(const struct kvm_lapic *apic)
{
    return cpuid_1_ecx(apic) >> 24 & 1;
}

/* Bits of IA32_APIC_BASE that must be 0: a processor that does not say how wide it is has 36 bits. */
static uint64_t base_reserved(const struct kvm_lapic *apic)
{
    const struct kvm_cpuid_entry2 *e = kvm_vcpu_find_cpuid(apic->vcpu, 0x80000008, 0);
    unsigned width = e ? e->eax & 0xff : 36;
    uint64_t above = width < 64 ? ~UINT64_C(0) << width : 0;

    return above | 0x2ff | (kvm_lapic_has_x2apic(apic) ? 0 : APIC_BASE_X2APIC);
}

/* May the base go from `old` to `value`? The guest must step through the disabled state. */
static bool base_change_allowed(const struct kvm_lapic *apic, uint64_t old, uint64_t value, bool by_host)
{
    const uint64_t modes = APIC_BASE_ENABLE | APIC_BASE_X2APIC;

    if ((value & base_reserved(apic)) || (value & modes) == APIC_BASE_X2APIC) {
        return false;
    }
    if (by_host) {
        return true;
    }
    if ((old & modes) == modes && (value & modes) == APIC_BASE_ENABLE) {
        return false;
    }
    return (old & modes) != 0 || (value & modes) != modes;
}

int kvm_lapic_set_base(struct kvm_lapic *apic, uint64_t value, bool by_host)
{
    uint64_t old = kvm_lapic_base(apic);

    if (!base_change_allowed(apic, old, value, by_host)) {
        return -EINVAL;
    }
    atomic_store(&apic->base, value);
    if ((old ^ value) & APIC_BASE_ENABLE) {
        if (value & APIC_BASE_ENABLE) {
            kvm_lapic_put(apic, APIC_ID, apic->vcpu->id << 24);
        }
        kvm_vcpu_request(apic->vcpu, KVM_REQUEST_EVENT);
    }
    if ((old ^ value) & value & APIC_BASE_X2APIC) {
        kvm_lapic_put(apic, APIC_ID, apic->vcpu->id);
        kvm_lapic_put(apic, APIC_LDR, x2apic_ldr(apic->vcpu->id));
    }
    return 0;
}

int kvm_lapic_read_msr(struct kvm_lapic *apic, uint32_t index, uint64_t *value)
{
    unsigned offset = (index - X86_MSR_X2APIC_FIRST) << 4;
    uint32_t low;

    if (!kvm_lapic_is_x2apic(apic) || kvm_lapic_read(apic, offset, &low) < 0) {
        return -EINVAL;
    }
    *value = low;
    if (offset == APIC_ICR) {
        *value |= (uint64_t)kvm_lapic_reg(apic, APIC_ICR2) << 32;
    }
    return 0;
}

int kvm_lapic_write_msr(struct kvm_lapic *apic, uint32_t index, uint64_t value)
{
    unsigned offset = (index - X86_MSR_X2APIC_FIRST) << 4;

    if (!kvm_lapic_is_x2apic(apic)) {
        return -EINVAL;
    }
    if (offset == APIC_ICR) {
        kvm_lapic_put(apic, APIC_ICR2, (uint32_t)(value >> 32));
        return kvm_lapic_write(apic, APIC_ICR, (uint32_t)value);
    }
    if (value >> 32) {
        return -EINVAL;
    }
    return kvm_lapic_write(apic, offset, (uint32_t)value);
}
