/*
 * The local APIC's register page (lapic.h): what may be read and written, and what a write sets off.
 *
 * Invariants:
 *  1. While the APIC is software-disabled every LVT entry is masked.
 *  2. In x2APIC mode ID and LDR follow from the vCPU's id and cannot be written.
 *
 * Left out: the thermal and performance LVTs hold their value but have no source; error status is
 * always 0, since no message is ever malformed on the way.
 */
#include "softkvm/irqchip/lapic.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LVT_COUNT    6
#define APIC_VERSION (0x14u | (LVT_COUNT - 1) << 16)

#define LVT_COMMON   (APIC_LVT_MASKED | 0x1000u | 0xffu)
#define LVT_LINT     (LVT_COMMON | 0x700u | 0x2000u | 0x4000u | 0x8000u)
#define LVT_COUNTERS (LVT_COMMON | 0x700u)

/* EOI broadcasts can be suppressed only where user space has the IOAPIC. */
uint32_t kvm_lapic_version(const struct kvm_lapic *apic)
{
    bool split = kvm_chips_mode(apic->vcpu->vm) == KVM_CHIPS_SPLIT;

    return split && kvm_lapic_has_x2apic(apic) ? APIC_VERSION | APIC_LVR_NO_BCAST : APIC_VERSION;
}

static void set_lvt(struct kvm_lapic *apic, unsigned offset, uint32_t value)
{
    static const uint32_t valid[LVT_COUNT] = {
        LVT_COMMON, LVT_COUNTERS, LVT_COUNTERS, LVT_LINT, LVT_LINT, LVT_COMMON,
    };

    if (!(kvm_lapic_reg(apic, APIC_SPIV) & APIC_SPIV_ENABLED)) {
        value |= APIC_LVT_MASKED;
    }
    if (offset == APIC_LVTT) {
        uint32_t modes = kvm_lapic_has_deadline(apic) ? APIC_TIMER_MODES : APIC_TIMER_PERIODIC;

        kvm_lapic_timer_set_lvtt(apic, value & (valid[0] | modes));
        return;
    }
    kvm_lapic_put(apic, offset, value & valid[(offset - APIC_LVTT) >> 4]);
}

void kvm_lapic_update_watchdog(struct kvm_lapic *apic)
{
    uint32_t lint0 = kvm_lapic_reg(apic, APIC_LVT0);
    bool on = !(lint0 & APIC_LVT_MASKED) && APIC_LVT_MODE(lint0) == KVM_APIC_NMI;

    if (on != atomic_exchange(&apic->nmi_watchdog, on)) {
        atomic_fetch_add(&apic->chips->nmi_watchdogs, on ? 1u : UINT32_MAX);
    }
}

static void set_spiv(struct kvm_lapic *apic, uint32_t value)
{
    uint32_t valid = 0x3ffu;

    if (kvm_lapic_version(apic) & APIC_LVR_NO_BCAST) {
        valid |= APIC_SPIV_NO_BCAST;
    }
    kvm_lapic_put(apic, APIC_SPIV, value & valid);
    if (!(value & APIC_SPIV_ENABLED)) {
        for (unsigned lvt = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 0x10) {
            kvm_lapic_put(apic, lvt, kvm_lapic_reg(apic, lvt) | APIC_LVT_MASKED);
        }
        kvm_lapic_update_watchdog(apic);
    }
}

static void set_tpr(struct kvm_lapic *apic, uint32_t value)
{
    kvm_lapic_put(apic, APIC_TPR, value & 0xff);
    kvm_lapic_put(apic, APIC_PPR, kvm_lapic_ppr(apic));
    apic->vcpu->cpu->cr8 = (value >> 4) & 0xf;
    kvm_lapic_look_again(apic);
}

/* Registers that exist only with the page, or only with MSRs. */
static int write_by_mode(struct kvm_lapic *apic, unsigned offset, uint32_t value)
{
    bool x2apic = kvm_lapic_is_x2apic(apic);

    if (x2apic != (offset == APIC_SELF)) {
        return -EINVAL;
    }
    switch (offset) {
    case APIC_ID:
        kvm_lapic_put(apic, APIC_ID, value & 0xff000000u);
        return 0;
    case APIC_LDR:
        kvm_lapic_put(apic, APIC_LDR, value & 0xff000000u);
        return 0;
    case APIC_DFR:
        kvm_lapic_put(apic, APIC_DFR, value | 0x0fffffffu);
        return 0;
    case APIC_ICR2:
        kvm_lapic_put(apic, APIC_ICR2, value & 0xff000000u);
        return 0;
    default: /* APIC_SELF */
        if (value & ~0xffu) {
            return -EINVAL;
        }
        kvm_lapic_send_icr(apic, 1u << 18 | value, 0);
        return 0;
    }
}

static void write_timer(struct kvm_lapic *apic, unsigned offset, uint32_t value)
{
    if (offset == APIC_TDCR) {
        kvm_lapic_put(apic, APIC_TDCR, value & 0xb);
        kvm_lapic_timer_set_divide(apic, value);
    } else if (!(kvm_lapic_reg(apic, APIC_LVTT) & APIC_TIMER_DEADLINE)) {
        kvm_lapic_put(apic, APIC_TMICT, value);
        kvm_lapic_timer_start(apic, value);
    }
}

int kvm_lapic_write(struct kvm_lapic *apic, unsigned offset, uint32_t value)
{
    switch (offset) {
    case APIC_ID:
    case APIC_LDR:
    case APIC_DFR:
    case APIC_ICR2:
    case APIC_SELF:
        return write_by_mode(apic, offset, value);
    case APIC_TPR:
        set_tpr(apic, value);
        return 0;
    case APIC_EOI:
        kvm_lapic_eoi(apic);
        return 0;
    case APIC_SPIV:
        set_spiv(apic, value);
        return 0;
    case APIC_ESR:
        return kvm_lapic_is_x2apic(apic) && value != 0 ? -EINVAL : 0;
    case APIC_ICR:
        value &= ~APIC_ICR_BUSY;
        kvm_lapic_put(apic, APIC_ICR, value);
        kvm_lapic_send_icr(apic, value, kvm_lapic_reg(apic, APIC_ICR2));
        return 0;
    case APIC_LVTT:
    case APIC_LVTTHMR:
    case APIC_LVTPC:
    case APIC_LVT0:
    case APIC_LVT1:
    case APIC_LVTERR:
        set_lvt(apic, offset, value);
        if (offset == APIC_LVT0) {
            kvm_lapic_update_watchdog(apic);
            kvm_lapic_look_again(apic); /* the 8259 may be waiting behind it */
        }
        return 0;
    case APIC_TMICT:
    case APIC_TDCR:
        write_timer(apic, offset, value);
        return 0;
    default:
        return -EINVAL;
    }
}

/* Offsets that can be read, one bit per 16 bytes. */
static bool is_readable(const struct kvm_lapic *apic, unsigned offset)
{
    static const uint64_t both =
        1ull << (APIC_ID >> 4) | 1ull << (APIC_LVR >> 4) | 1ull << (APIC_TPR >> 4) |
        1ull << (APIC_PPR >> 4) | 1ull << (APIC_LDR >> 4) | 1ull << (APIC_SPIV >> 4) |
        0xffull << (APIC_ISR >> 4) | 0xffull << (APIC_TMR >> 4) | 0xffull << (APIC_IRR >> 4) |
        1ull << (APIC_ESR >> 4) | 1ull << (APIC_ICR >> 4) | 0x3full << (APIC_LVTT >> 4) |
        1ull << (APIC_TMICT >> 4) | 1ull << (APIC_TMCCT >> 4) | 1ull << (APIC_TDCR >> 4);
    static const uint64_t page_only =
        1ull << (APIC_APR >> 4) | 1ull << (APIC_DFR >> 4) | 1ull << (APIC_ICR2 >> 4);
    uint64_t mask = kvm_lapic_is_x2apic(apic) ? both : both | page_only;

    return offset < 0x400 && (mask >> (offset >> 4) & 1);
}

int kvm_lapic_read(struct kvm_lapic *apic, unsigned offset, uint32_t *value)
{
    if (!is_readable(apic, offset)) {
        return -EINVAL;
    }
    switch (offset & ~0xfu) {
    case APIC_APR:
        *value = 0;
        break;
    case APIC_TMCCT:
        *value = kvm_lapic_timer_count(apic);
        break;
    case APIC_LVR:
        *value = kvm_lapic_version(apic);
        break;
    case APIC_PPR:
        *value = kvm_lapic_ppr(apic);
        break;
    default:
        *value = kvm_lapic_reg(apic, offset);
        break;
    }
    return 0;
}

/* A read of 1, 2 or 4 bytes within one register; anything else reads as nothing. */
static void mmio_read(struct kvm_lapic *apic, unsigned offset, const struct kvm_bus_access *a)
{
    uint32_t value = 0;

    memset(a->data, 0, a->size);
    if ((offset & 0xf) + a->size <= 4 && kvm_lapic_read(apic, offset & ~0xfu, &value) == 0) {
        value >>= 8 * (offset & 3);
        memcpy(a->data, &value, a->size);
    }
}

int kvm_lapic_mmio(struct kvm_lapic *apic, const struct kvm_bus_access *a)
{
    uint64_t base = kvm_lapic_base(apic);
    uint64_t offset = a->addr - (base & ~(uint64_t)(APIC_PAGE_LEN - 1));
    uint32_t value;

    if (offset >= APIC_PAGE_LEN || a->addr < (base & ~(uint64_t)(APIC_PAGE_LEN - 1))) {
        return -EOPNOTSUPP;
    }
    if (!(base & APIC_BASE_ENABLE) || (base & APIC_BASE_X2APIC)) {
        /* A hole of the bus while the page is not decoded. */
        if (!a->is_write) {
            memset(a->data, 0xff, a->size);
        }
        return 0;
    }
    if ((offset & ~UINT64_C(0xf)) == APIC_TPR) {
        kvm_lapic_report_tpr(apic, a->is_write);
    }
    if (!a->is_write) {
        mmio_read(apic, (unsigned)offset, a);
    } else if (a->size == 4 && (offset & 0xf) == 0) {
        memcpy(&value, a->data, 4);
        (void)kvm_lapic_write(apic, (unsigned)offset, value);
    }
    return 0;
}

static void reset_registers(struct kvm_lapic *apic)
{
    bool bsp = kvm_lapic_base(apic) & APIC_BASE_BSP;

    for (unsigned lvt = APIC_LVTT; lvt <= APIC_LVTERR; lvt += 0x10) {
        kvm_lapic_put(apic, lvt, APIC_LVT_MASKED);
    }
    if (bsp) {
        /* The 8259 reaches the boot processor before any software sets LINT0 up. */
        kvm_lapic_put(apic, APIC_LVT0, KVM_APIC_EXTINT << 8);
    }
    kvm_lapic_put(apic, APIC_DFR, UINT32_MAX);
    kvm_lapic_put(apic, APIC_SPIV, 0xff);
    kvm_lapic_put(apic, APIC_ESR, 0);
    kvm_lapic_put(apic, APIC_ICR, 0);
    if (!kvm_lapic_is_x2apic(apic)) {
        kvm_lapic_put(apic, APIC_LDR, 0);
        kvm_lapic_put(apic, APIC_ICR2, 0);
    }
    kvm_lapic_put(apic, APIC_TDCR, 0);
    kvm_lapic_put(apic, APIC_TMICT, 0);
    for (unsigned i = 0; i < 8; i++) {
        kvm_lapic_put(apic, APIC_ISR + i * 0x10, 0);
        atomic_store(&apic->reg[(APIC_TMR >> 4) + i], 0);
        atomic_store(&apic->reg[(APIC_IRR >> 4) + i], 0);
    }
    set_tpr(apic, 0);
}

void kvm_lapic_reset(struct kvm_lapic *apic, bool init)
{
    kvm_lapic_timer_off(apic);
    apic->timer.period = 0;
    apic->timer.deadline = 0;
    if (!init) {
        bool bsp = apic->vcpu->id == apic->vcpu->vm->bsp_id;

        atomic_store(&apic->base, APIC_DEFAULT_BASE | APIC_BASE_ENABLE | (bsp ? APIC_BASE_BSP : 0));
        kvm_lapic_put(apic, APIC_ID, apic->vcpu->id << 24);
    }
    reset_registers(apic);
    kvm_lapic_update_watchdog(apic);
    apic->timer.divide = 2;
    apic->pv_eoi.msr = 0;
    apic->pv_eoi.set = false;
    apic->vapic_addr = 0;
    atomic_store(&apic->eoi_exit, -1);
}

int kvm_lapic_new(struct kvm_vcpu *v)
{
    struct kvm_lapic *apic;
    int err = kvm_timers_reserve(v->vm->chips->timers, 1);

    if (err) {
        return err;
    }
    apic = kvm_alloc(v->vm->s, sizeof(*apic));
    if (!apic) {
        return -ENOMEM;
    }
    apic->vcpu = v;
    apic->chips = v->vm->chips;
    kvm_lapic_timer_init(apic);
    kvm_lapic_reset(apic, false);
    v->lapic = apic;
    return 0;
}

void kvm_lapic_free(struct kvm_lapic *apic)
{
    if (apic) {
        kvm_lapic_timer_stop(apic);
        free(apic);
    }
}
