/*
 * The timer of the local APIC: one-shot, periodic and TSC-deadline.
 *
 * The state is the owner's alone. A host timer (timer.h) only posts KVM_REQUEST_TIMER; the owner then
 * looks at its own clock, and delivers, or arms the host timer anew when it came early. So there is no
 * race between a guest that re-programs the timer and a timer that fires, and a deadline is exact in
 * guest TSC: never delivered before it, and TSC-deadline reads 0 once delivered.
 *
 * The input clock is 1 GHz, as KVM's: a count is a nanosecond times the divider. Periods below 200 us
 * are stretched. Periods missed altogether (a busy host) merge into one interrupt; the phase is kept.
 */
#include "softkvm/irqchip/lapic.h"

#define APIC_MIN_PERIOD_NS UINT64_C(200000)

/* On the timer thread. */
static void host_fired(void *opaque)
{
    struct kvm_lapic *apic = opaque;

    kvm_vcpu_request(apic->vcpu, KVM_REQUEST_TIMER);
}

void kvm_lapic_timer_init(struct kvm_lapic *apic)
{
    kvm_timer_init(&apic->timer.host, host_fired, apic);
    apic->timer.divide = 2;
}

void kvm_lapic_timer_off(struct kvm_lapic *apic)
{
    if (apic->timer.armed) {
        apic->timer.armed = false;
        kvm_timer_cancel(apic->chips->timers, &apic->timer.host);
    }
}

void kvm_lapic_timer_stop(struct kvm_lapic *apic)
{
    apic->timer.armed = false;
    kvm_timer_cancel_sync(apic->chips->timers, &apic->timer.host);
}

static void arm(struct kvm_lapic *apic, uint64_t target)
{
    apic->timer.backstop = false;
    apic->timer.target = target;
    apic->timer.armed = true;
    /* Room was reserved when the LAPIC was made. */
    (void)!kvm_timer_arm(apic->chips->timers, &apic->timer.host, target);
}

static bool is_deadline(const struct kvm_lapic *apic)
{
    return kvm_lapic_reg(apic, APIC_LVTT) & APIC_TIMER_DEADLINE;
}

/* Nanoseconds until the guest's counter reaches `tsc`; 0 when it has. Rounded up: never early. */
static uint64_t ns_until(const struct kvm_lapic *apic, uint64_t tsc)
{
    uint64_t now = kvm_vcpu_tsc(apic->vcpu), khz = apic->vcpu->tsc_khz;
    unsigned __int128 ns;

    if (tsc <= now) {
        return 0;
    }
    ns = ((unsigned __int128)(tsc - now) * 1000000 + khz - 1) / khz;
    return ns > UINT64_MAX / 2 ? UINT64_MAX / 2 : (uint64_t)ns;
}

static bool is_periodic(const struct kvm_lapic *apic)
{
    return (kvm_lapic_reg(apic, APIC_LVTT) & APIC_TIMER_MODES) == APIC_TIMER_PERIODIC;
}

static uint64_t period_of(const struct kvm_lapic *apic, uint32_t count)
{
    uint64_t ns = (uint64_t)count * apic->timer.divide;

    return is_periodic(apic) && ns != 0 && ns < APIC_MIN_PERIOD_NS ? APIC_MIN_PERIOD_NS : ns;
}

void kvm_lapic_timer_start(struct kvm_lapic *apic, uint32_t count)
{
    kvm_lapic_timer_off(apic);
    if (is_deadline(apic)) {
        kvm_lapic_timer_set_deadline(apic, apic->timer.deadline);
        return;
    }
    apic->timer.period = period_of(apic, kvm_lapic_reg(apic, APIC_TMICT));
    if (apic->timer.period != 0) {
        arm(apic, kvm_timer_now() + period_of(apic, count));
    }
}

uint32_t kvm_lapic_timer_count(struct kvm_lapic *apic)
{
    uint64_t now, left;

    if (is_deadline(apic) || !apic->timer.armed || apic->timer.period == 0) {
        return 0;
    }
    now = kvm_timer_now();
    left = apic->timer.target > now ? apic->timer.target - now : 0;
    if (left == 0 && is_periodic(apic)) {
        /* Overdue: the count has been reloaded meanwhile. */
        left = apic->timer.period - (now - apic->timer.target) % apic->timer.period;
    }
    return (uint32_t)(left / apic->timer.divide);
}

void kvm_lapic_timer_set_divide(struct kvm_lapic *apic, uint32_t tdcr)
{
    uint32_t code = (tdcr & 3) | (tdcr & 8) >> 1;
    uint32_t left = kvm_lapic_timer_count(apic);
    bool was_armed = apic->timer.armed && !is_deadline(apic);

    apic->timer.divide = 1u << ((code + 1) & 7);
    if (was_armed) {
        /* What is left to count is counted at the new rate. */
        kvm_lapic_timer_start(apic, left);
    }
}

void kvm_lapic_timer_set_lvtt(struct kvm_lapic *apic, uint32_t lvtt)
{
    uint32_t old = kvm_lapic_reg(apic, APIC_LVTT);

    kvm_lapic_put(apic, APIC_LVTT, lvtt);
    if ((old ^ lvtt) & APIC_TIMER_DEADLINE) {
        kvm_lapic_timer_off(apic);
        kvm_lapic_put(apic, APIC_TMICT, 0);
        apic->timer.period = 0;
        apic->timer.deadline = 0;
    } else if (is_periodic(apic) && apic->timer.period != 0 &&
               apic->timer.period < APIC_MIN_PERIOD_NS) {
        apic->timer.period = APIC_MIN_PERIOD_NS;
    }
}

void kvm_lapic_timer_set_deadline(struct kvm_lapic *apic, uint64_t tsc)
{
    if (!is_deadline(apic)) {
        return;
    }
    kvm_lapic_timer_off(apic);
    apic->timer.deadline = tsc;
    if (tsc != 0) {
        uint64_t ns = ns_until(apic, tsc), now = kvm_timer_now();

        if (ns == 0) {
            apic->timer.armed = true;
            apic->timer.target = now;
            kvm_lapic_timer_check(apic);
        } else {
            arm(apic, now + ns);
        }
    }
}

uint64_t kvm_lapic_timer_deadline(const struct kvm_lapic *apic)
{
    return is_deadline(apic) ? apic->timer.deadline : 0;
}

void kvm_lapic_timer_rearm(struct kvm_lapic *apic)
{
    if (is_deadline(apic) && apic->timer.deadline != 0) {
        kvm_lapic_timer_set_deadline(apic, apic->timer.deadline);
    }
}

uint64_t kvm_lapic_timer_asleep(struct kvm_lapic *apic, uint64_t slack)
{
    uint64_t target = apic->timer.target;

    if (!apic->timer.armed) {
        return UINT64_MAX;
    }
    /* Two threads need not wake for one tick; should this one not come, the other does. */
    if (!apic->timer.backstop) {
        apic->timer.backstop = true;
        (void)!kvm_timer_arm(apic->chips->timers, &apic->timer.host, target + slack);
    }
    return target;
}

void kvm_lapic_timer_awake(struct kvm_lapic *apic)
{
    if (apic->timer.backstop && apic->timer.armed) {
        arm(apic, apic->timer.target);
    }
}

static void fire(struct kvm_lapic *apic, uint64_t late)
{
    uint32_t lvtt = kvm_lapic_reg(apic, APIC_LVTT);
    struct kvm_apic_msg msg = {.vector = (uint8_t)lvtt, .from_owner = true};

    apic->timer_fires++;
    apic->timer_late_ns += late;
    if (!(lvtt & APIC_LVT_MASKED)) {
        kvm_lapic_accept(apic, &msg);
    }
}

void kvm_lapic_timer_check(struct kvm_lapic *apic)
{
    uint64_t now, left;

    if (!apic->timer.armed) {
        return;
    }
    now = kvm_timer_now();
    if (is_deadline(apic)) {
        left = ns_until(apic, apic->timer.deadline);
        if (left != 0) {
            arm(apic, now + left);
            return;
        }
        kvm_lapic_timer_off(apic);
        apic->timer.deadline = 0;
        fire(apic, now > apic->timer.target ? now - apic->timer.target : 0);
        return;
    }
    if (now < apic->timer.target) {
        arm(apic, apic->timer.target);
        return;
    }
    left = now - apic->timer.target;
    if (is_periodic(apic)) {
        arm(apic, apic->timer.target + (left / apic->timer.period + 1) * apic->timer.period);
    } else {
        kvm_lapic_timer_off(apic);
    }
    fire(apic, left);
}
