/*
 * KVM_RUN: requests, event injection, the guest, exits, sleep.
 *
 *   complete the last user exit -> { requests -> inject -> cpu_run() -> exit }* -> user space
 *                                       \-> halted: sleep until there is work
 *
 * Invariants
 *  1. Requests are looked at after `reader` is entered and before each guest entry; one that comes
 *     later is followed by a kick, which makes cpu_run() return.
 *  2. The read section is open around exit handling and injection only: not in the guest, asleep, or in
 *     user space.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "softkvm/cpuid.h"
#include "softkvm/exit.h"
#include "softkvm/mmu_pml.h"
#include "softkvm/msr_filter.h"
#include "softkvm/shadow/shadow.h"
#include "softkvm/sigmask.h"
#include "softkvm/state.h"
#include "softkvm/vcpu.h"

static uint64_t now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- requests ---- */

static void serve_init_sipi(struct kvm_vcpu *v)
{
    if (kvm_vcpu_take_request(v, KVM_REQUEST_INIT)) {
        kvm_vcpu_reset(v, true);
        atomic_store(&v->mp_state, v->id == v->vm->bsp_id ? KVM_MP_STATE_RUNNABLE
                                                          : KVM_MP_STATE_INIT_RECEIVED);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_SIPI) &&
        atomic_load(&v->mp_state) == KVM_MP_STATE_INIT_RECEIVED) {
        cpu_sipi(v->cpu, (uint8_t)atomic_load(&v->sipi_vector));
        atomic_store(&v->mp_state, KVM_MP_STATE_RUNNABLE);
    }
}

/* Attention from outside: a kick ends KVM_RUN if immediate_exit or a signal says so, an interruption always. */
static int serve_user(struct kvm_vcpu *v)
{
    bool kicked = kvm_vcpu_take_request(v, KVM_REQUEST_USER) &&
                  (__atomic_load_n(&v->run->immediate_exit, __ATOMIC_RELAXED) ||
                   (v->sigmask_set && kvm_sigmask_pending(v)));

    if (kvm_vcpu_take_request(v, KVM_REQUEST_SIGNAL) || kicked) {
        KVM_COUNT(&v->counters.signal_exits);
        v->run->exit_reason = KVM_EXIT_INTR;
        return -EINTR;
    }
    return KVM_GO_ON;
}

static int serve_requests(struct kvm_vcpu *v)
{
    const struct kvm_irq_ops *irq = v->vm->irq;
    uint32_t r = atomic_load(&v->requests);

    if (r & KVM_REQUEST_DEAD) {
        return -EIO;
    }
    if (r & (KVM_REQUEST_INIT | KVM_REQUEST_SIPI)) {
        serve_init_sipi(v);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_TRIPLE_FAULT)) {
        v->run->exit_reason = KVM_EXIT_SHUTDOWN;
        return KVM_LEAVE;
    }
    if (r & (KVM_REQUEST_CLOCK | KVM_REQUEST_STEAL)) {
        atomic_fetch_and(&v->requests, ~(KVM_REQUEST_CLOCK | KVM_REQUEST_STEAL));
        irq->clock_update(v);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_TIMER)) {
        irq->timer_expired(v);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_MMU)) {
        v->vm->mmu.ops->load(v);
        cpu_state_changed(v->cpu);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_MSR_FILTER)) {
        kvm_msr_filter_load(v);
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_APIC_EXIT) && irq->user_exit(v)) {
        return KVM_LEAVE;
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_UNHALT)) {
        v->unhalted = true; /* until the next HLT: a waiter may be kicked just before it halts */
    }
    if (r & KVM_REQUEST_NMI) {
        atomic_fetch_and(&v->requests, ~KVM_REQUEST_NMI);
    }
    return serve_user(v);
}

/* ---- events ---- */

static void inject(struct kvm_vcpu *v, enum cpu_event_type type, int vector)
{
    struct cpu_event ev = {.type = (uint8_t)type, .vector = (uint8_t)vector};

    cpu_inject(v->cpu, &ev);
}

static bool inject_nmi(struct kvm_vcpu *v)
{
    if (!atomic_load_explicit(&v->nmi_queued, memory_order_relaxed)) {
        return false;
    }
    if (!cpu_nmi_allowed(v->cpu)) {
        v->cpu->want_nmi_window = 1;
        return false;
    }
    atomic_fetch_sub(&v->nmi_queued, 1);
    inject(v, CPU_EVENT_NMI, X86_NMI);
    KVM_COUNT(&v->counters.nmi_injections);
    return true;
}

static int peek_interrupt(struct kvm_vcpu *v)
{
    return v->extint_vector >= 0 ? v->extint_vector : v->vm->irq->pending_vector(v);
}

static int take_interrupt(struct kvm_vcpu *v)
{
    int vector = v->extint_vector;

    if (vector >= 0) {
        v->extint_vector = -1;
        return vector;
    }
    return v->vm->irq->ack_vector(v);
}

/* Put one event on its way, or ask to be told when it can be. */
static void inject_events(struct kvm_vcpu *v)
{
    int vector;

    if (v->cpu->event.type != CPU_EVENT_NONE) {
        v->cpu->want_intr_window = 1; /* look again when this one is delivered */
        return;
    }
    if (unlikely(v->debug.control & KVM_GUESTDBG_BLOCKIRQ)) {
        return; /* KVM_SET_GUEST_DEBUG asks for events anew */
    }
    if (inject_nmi(v) || peek_interrupt(v) < 0) {
        return;
    }
    if (!cpu_interrupt_allowed(v->cpu)) {
        v->cpu->want_intr_window = 1;
        return;
    }
    vector = take_interrupt(v);
    if (vector < 0) {
        return;
    }
    inject(v, CPU_EVENT_INTR, vector);
    KVM_COUNT(&v->counters.irq_injections);
    if (peek_interrupt(v) >= 0) {
        v->cpu->want_intr_window = 1;
    }
}

/* May user space's own interrupt controller put an interrupt in now? */
static bool user_can_inject(struct kvm_vcpu *v)
{
    return !v->lapic && v->extint_vector < 0 && v->cpu->event.type == CPU_EVENT_NONE &&
           cpu_interrupt_allowed(v->cpu);
}

/* User space waits to inject: leave as soon as that is possible. */
static int check_user_window(struct kvm_vcpu *v)
{
    if (v->lapic || !v->run->request_interrupt_window) {
        return KVM_GO_ON;
    }
    if (user_can_inject(v)) {
        KVM_COUNT(&v->counters.request_irq_exits);
        v->run->exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
        return KVM_LEAVE;
    }
    v->cpu->want_intr_window = 1;
    return KVM_GO_ON;
}

/* ---- sleep ---- */

static bool has_work(struct kvm_vcpu *v)
{
    if (atomic_load(&v->requests) & ~KVM_REQUEST_EVENT) {
        return true;
    }
    if (atomic_load(&v->mp_state) != KVM_MP_STATE_HALTED) {
        return false;
    }
    return v->unhalted || atomic_load(&v->nmi_queued) || v->extint_vector >= 0 ||
           v->vm->irq->has_work(v);
}

static void sleep_until(struct kvm_vcpu *v, uint32_t seen, uint64_t deadline)
{
    struct timespec ts = {(time_t)(deadline / 1000000000u), (long)(deadline % 1000000000u)};

    syscall(SYS_futex, &v->wake, FUTEX_WAIT_BITSET_PRIVATE, seen,
            deadline == UINT64_MAX ? NULL : &ts, NULL, FUTEX_BITSET_MATCH_ANY);
}

/* Sleep until a request, an event, or this vCPU's own timer. One round: the caller looks around. */
static void block(struct kvm_vcpu *v)
{
    bool halted = atomic_load(&v->mp_state) == KVM_MP_STATE_HALTED;
    uint64_t deadline = halted ? v->vm->irq->next_timer(v) : UINT64_MAX;
    uint64_t start;
    uint32_t seen;

    atomic_store(&v->blocked, 1);
    seen = atomic_load(&v->wake);
    if (halted) {
        /* What it announced is looked at below; left set, the next sender would not wake us. */
        atomic_fetch_and(&v->requests, ~KVM_REQUEST_EVENT);
    }
    if (!has_work(v)) {
        start = now_ns();
        kvm_read_end(v);
        sleep_until(v, seen, deadline);
        kvm_read_begin(v);
        v->memory_touched = true;
        KVM_COUNT_ADD(&v->counters.halt_ns, now_ns() - start);
    }
    atomic_store(&v->blocked, 0);
    if (deadline != UINT64_MAX && deadline <= now_ns()) {
        v->vm->irq->timer_expired(v);
    }
    if (halted && has_work(v) && atomic_load(&v->mp_state) == KVM_MP_STATE_HALTED) {
        uint32_t wakers = KVM_REQUEST_UNHALT | KVM_REQUEST_NMI;

        if ((atomic_load(&v->requests) & wakers) || v->unhalted || atomic_load(&v->nmi_queued) ||
            v->extint_vector >= 0 || v->vm->irq->has_work(v)) {
            atomic_fetch_and(&v->requests, ~KVM_REQUEST_UNHALT);
            v->unhalted = false;
            atomic_store(&v->mp_state, KVM_MP_STATE_RUNNABLE);
            kvm_vcpu_request(v, KVM_REQUEST_EVENT);
            KVM_COUNT(&v->counters.halt_wakeups);
        }
    }
}

/* ---- the loop ---- */

/*
 *   requester                     vCPU
 *   requests |= bits  (seq_cst)   in_guest = 1   (seq_cst)
 *   in_guest? kick                requests? stay out
 *
 * One of the two sees the other, so a request needs a kick only while in_guest is set.
 */
static enum cpu_exit_reason enter_guest(struct kvm_vcpu *v)
{
    enum cpu_exit_reason reason = CPU_EXIT_NONE;

    kvm_read_end(v);
    if (unlikely(v->spun)) {
        v->spun = false;
        sched_yield();
    }
    kvm_pml_enter(v);
    atomic_store_explicit(&v->in_guest, 1, memory_order_relaxed);
    cpu_enter(v->cpu); /* the barrier between in_guest and requests */
    if (likely(!atomic_load(&v->requests))) {
        KVM_COUNT(&v->counters.entries);
        reason = v->memory_touched ? cpu_run(v->cpu) : cpu_resume(v->cpu);
        v->memory_touched = false;
        KVM_COUNT(&v->counters.exits);
    } else {
        cpu_leave(v->cpu);
    }
    atomic_store_explicit(&v->in_guest, 0, memory_order_release);
    kvm_read_begin(v);
    kvm_pml_leave(v);
    return reason;
}

/* One round. KVM_GO_ON, KVM_LEAVE or an error. */
static int run_once(struct kvm_vcpu *v)
{
    uint32_t pending = atomic_load_explicit(&v->requests, memory_order_relaxed);
    int r;

    if (unlikely(kvm_ring_is_soft_full(v)) && !(pending & KVM_REQUEST_DEAD)) {
        v->run->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
        return KVM_LEAVE;
    }
    if (unlikely(pending & ~KVM_REQUEST_EVENT)) {
        r = serve_requests(v);
        if (r != KVM_GO_ON) {
            return r;
        }
    }
    if (unlikely(atomic_load_explicit(&v->mp_state, memory_order_relaxed) !=
                 KVM_MP_STATE_RUNNABLE)) {
        block(v);
        return KVM_GO_ON;
    }
    if (kvm_vcpu_take_request(v, KVM_REQUEST_EVENT) || v->extint_vector >= 0 ||
        atomic_load_explicit(&v->nmi_queued, memory_order_relaxed)) {
        inject_events(v);
    }
    r = kvm_shadow_enter(v);
    if (unlikely(r < 0)) {
        return r;
    }
    r = check_user_window(v);
    return r == KVM_GO_ON ? kvm_exit_handle(v, enter_guest(v)) : r;
}

static int loop(struct kvm_vcpu *v)
{
    int r;

    do {
        r = run_once(v);
    } while (r == KVM_GO_ON);
    return r;
}

/*
 * The instruction whose device access has just been answered is done before KVM_RUN returns for immediate_exit, so that
 * the state that user space then saves is one between instructions. KVM_GO_ON: it is done.
 */
static int finish_access(struct kvm_vcpu *v)
{
    int r = KVM_GO_ON;

    while (r == KVM_GO_ON && cpu_must_finish(v->cpu)) {
        enum cpu_exit_reason reason;

        kvm_read_end(v);
        atomic_store(&v->in_guest, 1);
        reason = cpu_finish(v->cpu);
        atomic_store_explicit(&v->in_guest, 0, memory_order_release);
        kvm_read_begin(v);
        r = kvm_exit_handle(v, reason);
    }
    return r;
}

/* What user space reads beside the exit itself. */
static void fill_run(struct kvm_vcpu *v)
{
    struct kvm_run *run = v->run;

    run->if_flag = (v->cpu->rflags_rest & X86_IF) != 0;
    run->flags = 0;
    run->cr8 = kvm_state_cr8(v);
    run->apic_base = kvm_state_apic_base(v);
    run->ready_for_interrupt_injection = v->lapic ? 1 : user_can_inject(v);
    if (run->kvm_valid_regs & KVM_SYNC_X86_REGS) {
        kvm_state_get_regs(v, &run->s.regs.regs);
    }
    if (run->kvm_valid_regs & KVM_SYNC_X86_SREGS) {
        kvm_state_get_sregs(v, &run->s.regs.sregs);
    }
    if (run->kvm_valid_regs & KVM_SYNC_X86_EVENTS) {
        kvm_state_get_events(v, &run->s.regs.events);
    }
}

static int take_run(struct kvm_vcpu *v)
{
    struct kvm_run *run = v->run;
    uint64_t dirty = run->kvm_dirty_regs;

    if ((run->kvm_valid_regs | dirty) & ~(uint64_t)KVM_SYNC_X86_VALID_FIELDS) {
        return -EINVAL;
    }
    if (unlikely(dirty)) {
        run->kvm_dirty_regs = 0;
        if (dirty & KVM_SYNC_X86_REGS) {
            kvm_state_set_regs(v, &run->s.regs.regs);
        }
        if ((dirty & KVM_SYNC_X86_SREGS) && kvm_state_set_sregs(v, &run->s.regs.sregs) < 0) {
            return -EINVAL;
        }
        if ((dirty & KVM_SYNC_X86_EVENTS) && kvm_state_set_events(v, &run->s.regs.events) < 0) {
            return -EINVAL;
        }
    }
    if (!v->lapic && run->cr8 != v->cpu->cr8) {
        if (run->cr8 > 15) {
            return -EINVAL;
        }
        v->cpu->cr8 = run->cr8;
    }
    return 0;
}

/* KVM_RUN renews the guest's steal time, as vcpu_load() does; one that is 100 us old is new enough. */
static void renew_steal(struct kvm_vcpu *v)
{
    uint64_t now = __rdtsc();

    if (now - v->steal_renewed > v->vm->s->tsc_khz / 10) {
        v->steal_renewed = now;
        kvm_vcpu_request(v, KVM_REQUEST_STEAL);
    }
}

/* From the second half of the last exit to the next exit. */
static int run_whole(struct kvm_vcpu *v)
{
    int r;

    if (unlikely(v->steal_on)) {
        renew_steal(v);
    }
    kvm_read_begin(v);
    r = v->pending.kind == KVM_PENDING_NONE ? KVM_GO_ON : kvm_exit_complete(v);
    if (r == KVM_GO_ON) {
        if (__atomic_load_n(&v->run->immediate_exit, __ATOMIC_RELAXED)) {
            r = finish_access(v);
            r = r == KVM_GO_ON ? -EINTR : r; /* the exit reason stays that of the exit just completed */
        } else {
            v->run->exit_reason = KVM_EXIT_UNKNOWN;
            r = loop(v);
        }
    }
    kvm_read_end(v);
    fill_run(v);
    KVM_COUNT(&v->counters.user_exits);
    return r;
}

/* Run with the vCPU's own signal mask, if it has one. */
static int run_masked(struct kvm_vcpu *v)
{
    sigset_t old;
    int r;

    if (likely(!v->sigmask_set)) {
        return run_whole(v);
    }
    kvm_sigmask_enter(v, &old);
    r = run_whole(v);
    kvm_sigmask_leave(v, &old);
    return r;
}

/*
 * KVM_RUN. Returns 0 with run->exit_reason set; -EINTR (immediate_exit), -EINVAL (run page),
 * -EFAULT and the like for memory that the host does not give, -EIO for a dead VM.
 * Lock: vcpu->lock held. Source: KVM's kvm_arch_vcpu_ioctl_run().
 */
int kvm_vcpu_run(struct kvm_vcpu *v)
{
    int r = take_run(v);

    if (r < 0) {
        return r;
    }
    if (unlikely(v->quirks_seen != atomic_load_explicit(&v->vm->disabled_quirks, memory_order_relaxed))) {
        kvm_cpuid_changed(v);
    }
    v->has_run = true;
    v->memory_touched = true;
    if (unlikely(v->sigmask_set) && kvm_sigmask_pending(v)) {
        v->run->exit_reason = KVM_EXIT_INTR;
        return -EINTR;
    }
    return run_masked(v);
}
