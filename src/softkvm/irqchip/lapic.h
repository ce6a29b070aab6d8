/*
 * The local APIC of a vCPU. Registers are kept as the 1 KiB page of KVM_GET_LAPIC has them, one atomic
 * word per 16 bytes.
 *
 * Who writes: the owner (the vCPU's thread, or who holds vcpu->lock) everything but IRR and TMR, which
 * senders set with atomic read-modify-writes. Who reads: anyone (destination matching, priorities).
 *
 *     sender                          owner
 *     IRR |= vector    (seq_cst)      publishes "in guest" or "asleep"   (seq_cst, kvm_vcpu)
 *     kvm_vcpu_request                reads IRR
 */
#ifndef STRATA_SOFTKVM_IRQCHIP_LAPIC_H
#define STRATA_SOFTKVM_IRQCHIP_LAPIC_H

#include <linux/kvm.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "softkvm/irqchip/chips.h"
#include "softkvm/timer.h"

/* Register offsets in the page. */
#define APIC_ID     0x020u
#define APIC_LVR    0x030u
#define APIC_TPR    0x080u
#define APIC_APR    0x090u
#define APIC_PPR    0x0a0u
#define APIC_EOI    0x0b0u
#define APIC_RRR    0x0c0u
#define APIC_LDR    0x0d0u
#define APIC_DFR    0x0e0u
#define APIC_SPIV   0x0f0u
#define APIC_ISR    0x100u
#define APIC_TMR    0x180u
#define APIC_IRR    0x200u
#define APIC_ESR    0x280u
#define APIC_ICR    0x300u
#define APIC_ICR2   0x310u
#define APIC_LVTT   0x320u
#define APIC_LVTTHMR 0x330u
#define APIC_LVTPC  0x340u
#define APIC_LVT0   0x350u
#define APIC_LVT1   0x360u
#define APIC_LVTERR 0x370u
#define APIC_TMICT  0x380u
#define APIC_TMCCT  0x390u
#define APIC_TDCR   0x3e0u
#define APIC_SELF   0x3f0u

#define APIC_SPIV_ENABLED   0x100u
#define APIC_SPIV_NO_BCAST  0x1000u /* EOI broadcast suppressed */
#define APIC_LVT_MASKED     0x10000u
#define APIC_LVT_MODE(lvt)  (((lvt) >> 8) & 7)
#define APIC_TIMER_PERIODIC 0x20000u
#define APIC_TIMER_DEADLINE 0x40000u
#define APIC_TIMER_MODES    (APIC_TIMER_PERIODIC | APIC_TIMER_DEADLINE)
#define APIC_ICR_BUSY       0x1000u
#define APIC_LVR_NO_BCAST   0x1000000u

#define APIC_BASE_BSP    0x100u
#define APIC_BASE_X2APIC 0x400u
#define APIC_BASE_ENABLE 0x800u
#define APIC_DEFAULT_BASE UINT64_C(0xfee00000)
#define APIC_PAGE_LEN     0x1000u

struct kvm_lapic {
    struct kvm_vcpu *vcpu;
    struct kvm_chips *chips;
    _Atomic uint64_t base;     /* IA32_APIC_BASE */
    _Atomic uint32_t reg[64];  /* offset >> 4 */
    _Atomic int32_t eoi_exit;  /* vector to report, -1: none */
    _Atomic bool nmi_watchdog; /* LINT0 is an NMI */

    /* the owner's */
    struct {
        struct kvm_timer host; /* makes the vCPU look */
        bool armed, backstop;  /* backstop: the host timer is set later than `target` */
        uint32_t divide;       /* 1 to 128 */
        uint64_t period;       /* ns; one-shot and periodic modes */
        uint64_t target;       /* ns of CLOCK_MONOTONIC; all modes */
        uint64_t deadline;     /* guest TSC, deadline mode; 0: off */
    } timer;
    struct {
        uint64_t msr;          /* MSR_KVM_PV_EOI_EN */
        bool set;              /* the guest may end the interrupt in service in memory */
    } pv_eoi;
    uint64_t vapic_addr;       /* gpa of the virtual APIC word; 0: none */
    struct {
        bool reports;          /* KVM_TPR_ACCESS_REPORTING is on */
        bool pending, is_write;
        uint64_t rip;          /* of the accessing instruction */
    } tpr;
    uint64_t timer_fires, timer_late_ns; /* counters */
};

static inline uint32_t kvm_lapic_reg(const struct kvm_lapic *apic, unsigned offset)
{
    return atomic_load_explicit(&apic->reg[offset >> 4], memory_order_relaxed);
}

static inline void kvm_lapic_put(struct kvm_lapic *apic, unsigned offset, uint32_t value)
{
    atomic_store_explicit(&apic->reg[offset >> 4], value, memory_order_relaxed);
}

static inline uint64_t kvm_lapic_base(const struct kvm_lapic *apic)
{
    return atomic_load_explicit(&apic->base, memory_order_relaxed);
}

static inline bool kvm_lapic_hw_enabled(const struct kvm_lapic *apic)
{
    return kvm_lapic_base(apic) & APIC_BASE_ENABLE;
}

static inline bool kvm_lapic_is_x2apic(const struct kvm_lapic *apic)
{
    return kvm_lapic_base(apic) & APIC_BASE_X2APIC;
}

/* Hardware- and software-enabled. */
static inline bool kvm_lapic_enabled(const struct kvm_lapic *apic)
{
    return kvm_lapic_hw_enabled(apic) && (kvm_lapic_reg(apic, APIC_SPIV) & APIC_SPIV_ENABLED);
}

/* 256-bit registers: vector's word of the array at `first`, and its bit in it. */
static inline unsigned kvm_lapic_vector_reg(unsigned first, uint8_t vector)
{
    return first + (vector >> 5 << 4);
}

static inline uint32_t kvm_lapic_vector_bit(uint8_t vector)
{
    return 1u << (vector & 31);
}

/* Highest vector of ISR, TMR or IRR, or -1. */
int kvm_lapic_highest(const struct kvm_lapic *apic, unsigned first);

/* ---- lapic.c: life, registers ---- */

/* 0 with v->lapic set, -ENOMEM or -EAGAIN. */
int kvm_lapic_new(struct kvm_vcpu *v) must_check;
void kvm_lapic_free(struct kvm_lapic *apic);
void kvm_lapic_reset(struct kvm_lapic *apic, bool init);

/* LINT0 may have become, or ceased to be, an NMI. */
void kvm_lapic_update_watchdog(struct kvm_lapic *apic);

/* The version register. */
uint32_t kvm_lapic_version(const struct kvm_lapic *apic);

/* Register access as by a 32-bit access to the page, or its x2APIC MSR. 0, or -EINVAL: no such register (or
 * bits) in this mode. */
int kvm_lapic_read(struct kvm_lapic *apic, unsigned offset, uint32_t *value);
int kvm_lapic_write(struct kvm_lapic *apic, unsigned offset, uint32_t value);

/* An MMIO access of v: 0 done, -EOPNOTSUPP: not in the page of its LAPIC. */
int kvm_lapic_mmio(struct kvm_lapic *apic, const struct kvm_bus_access *a);

/* ---- lapic_irq.c: priorities, acceptance, end of interrupt ---- */

/* The processor priority of now; also stored in PPR. Any thread may ask, the owner stores. */
uint32_t kvm_lapic_ppr(const struct kvm_lapic *apic);

/* Highest requested vector above PPR, or -1. Any thread. */
int kvm_lapic_pending(struct kvm_lapic *apic);
/* Take it: IRR to ISR. Owner. */
int kvm_lapic_ack(struct kvm_lapic *apic);

/* Take one message. False when this LAPIC ignores it. Any thread. */
bool kvm_lapic_accept(struct kvm_lapic *apic, const struct kvm_apic_msg *msg);
/* The owner looks for interrupts before the guest goes on; for changes that it makes itself. */
void kvm_lapic_look_again(struct kvm_lapic *apic);
/* MSR_KVM_PV_EOI_EN. 0 or -EINVAL. */
int kvm_lapic_set_pv_eoi(struct kvm_lapic *apic, uint64_t value);

/* A local interrupt (LVT at `lvt`): true when delivered. Any thread. */
bool kvm_lapic_deliver_lvt(struct kvm_lapic *apic, unsigned lvt);

/* Is the PIC's output wired to this vCPU? Any thread. */
bool kvm_lapic_takes_pic(const struct kvm_lapic *apic);

/* EOI of the highest vector in service. Owner. */
void kvm_lapic_eoi(struct kvm_lapic *apic);

/* Send what ICR says. Owner. */
void kvm_lapic_send_icr(struct kvm_lapic *apic, uint32_t low, uint32_t high);

/* PIT ticks as NMI watchdog, to all LINT0 in NMI mode. */
void kvm_lapic_pit_watchdogs(struct kvm_vm *vm);

/* ---- lapic_tpr.c ---- */

/* KVM_SET_VAPIC_ADDR: 0, or -EINVAL where there is no memory, or not aligned. addr 0 ends it. */
int kvm_lapic_set_vapic(struct kvm_lapic *apic, uint64_t addr);
/* Take the task priority from the virtual APIC word; put the state there. Owner, in a read section. */
void kvm_lapic_from_vapic(struct kvm_lapic *apic);
void kvm_lapic_to_vapic(struct kvm_lapic *apic);
/* The guest accesses TPR in the page: user space is told if it asked to be. */
void kvm_lapic_report_tpr(struct kvm_lapic *apic, bool is_write);
/* Fill the run page for KVM_EXIT_TPR_ACCESS. False: nothing to tell. */
bool kvm_lapic_tpr_exit(struct kvm_lapic *apic);

/* ---- lapic_timer.c ---- */

void kvm_lapic_timer_init(struct kvm_lapic *apic);
void kvm_lapic_timer_stop(struct kvm_lapic *apic);  /* off, and not firing any more */
void kvm_lapic_timer_off(struct kvm_lapic *apic);   /* off */
void kvm_lapic_timer_set_lvtt(struct kvm_lapic *apic, uint32_t lvtt);
void kvm_lapic_timer_set_divide(struct kvm_lapic *apic, uint32_t tdcr);
/* Count from `count` (TMICT, or after a restore TMCCT) on. */
void kvm_lapic_timer_start(struct kvm_lapic *apic, uint32_t count);
uint32_t kvm_lapic_timer_count(struct kvm_lapic *apic);
void kvm_lapic_timer_set_deadline(struct kvm_lapic *apic, uint64_t tsc);
uint64_t kvm_lapic_timer_deadline(const struct kvm_lapic *apic);
/* The vCPU goes to sleep on its own timer, and is awake again. asleep: returns when to wake, in ns of
 * CLOCK_MONOTONIC, UINT64_MAX if never; the timer thread looks `slack` ns later than that meanwhile. */
uint64_t kvm_lapic_timer_asleep(struct kvm_lapic *apic, uint64_t slack);
void kvm_lapic_timer_awake(struct kvm_lapic *apic);
/* Deliver what is due. Owner. */
void kvm_lapic_timer_check(struct kvm_lapic *apic);
/* The TSC's relation to the host's has changed. */
void kvm_lapic_timer_rearm(struct kvm_lapic *apic);

/* ---- lapic_state.c: what user space and MSRs see ---- */

int kvm_lapic_get_state(struct kvm_lapic *apic, struct kvm_lapic_state *out);
int kvm_lapic_set_state(struct kvm_lapic *apic, const struct kvm_lapic_state *in);
int kvm_lapic_set_base(struct kvm_lapic *apic, uint64_t value, bool by_host);
int kvm_lapic_read_msr(struct kvm_lapic *apic, uint32_t index, uint64_t *value);
int kvm_lapic_write_msr(struct kvm_lapic *apic, uint32_t index, uint64_t value);
/* What the vCPU's CPUID grants; without any CPUID nothing. */
bool kvm_lapic_has_x2apic(const struct kvm_lapic *apic);
bool kvm_lapic_has_deadline(const struct kvm_lapic *apic);

#endif
