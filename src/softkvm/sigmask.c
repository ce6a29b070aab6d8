/*
 * KVM_SET_SIGNAL_MASK. The kernel swaps the thread's mask for the vCPU's while KVM_RUN lasts, ends the run when a
 * signal that the mask lets through is there, and swaps back before any handler could run: the signal stays pending,
 * for sigwait() or an unblocking later. A library that swapped masks would have the handler run, or the default
 * action end the process. So signals that the thread blocks stay blocked, and the run looks for them: when it starts,
 * when it is kicked, and every millisecond by a timer of the VM's, as nothing tells a thread of a signal that it blocks.
 *
 * Locks: vcpu->lock; vm->lock for making the timers.
 */
#include "softkvm/sigmask.h"

#include <errno.h>

#include "softkvm/user.h"

#define LOOK_NS UINT64_C(1000000)

static void look(void *opaque)
{
    struct kvm_vcpu *v = opaque;

    if (atomic_load_explicit(&v->sigmask_run, memory_order_relaxed)) {
        kvm_vcpu_request(v, KVM_REQUEST_USER);
        (void)kvm_timer_arm(v->vm->signal_timers, &v->signal_timer, kvm_timer_now() + LOOK_NS);
    }
}

/* The VM's timers, made with its first mask. 0, -ENOMEM or -EAGAIN (no thread). */
static int need_timers(struct kvm_vcpu *v)
{
    struct kvm_vm *vm = v->vm;
    int r = 0;

    pthread_mutex_lock(&vm->lock);
    if (!vm->signal_timers) {
        r = kvm_timers_new(&vm->signal_timers);
    }
    if (r == 0 && !v->signal_timer.fire) {
        r = kvm_timers_reserve(vm->signal_timers, 1);
        if (r == 0) {
            kvm_timer_init(&v->signal_timer, look, v);
        }
    }
    pthread_mutex_unlock(&vm->lock);
    return r;
}

/*
 * KVM_SET_SIGNAL_MASK; arg: struct kvm_signal_mask, or null for the thread's own mask again. Returns 0; -EINVAL (its
 * length is not 8); -EFAULT; -ENOMEM or -EAGAIN when its timer cannot be made. Lock: vcpu->lock, by the caller.
 * Source: kvm_vcpu_ioctl_set_sigmask().
 */
int kvm_sigmask_set(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_signal_mask mask;
    uint64_t bits;
    int r;

    if (!arg) {
        v->sigmask_set = false;
        return 0;
    }
    r = kvm_user_read(&mask, arg, sizeof(mask));
    if (r < 0) {
        return r;
    }
    if (mask.len != sizeof(bits)) {
        return -EINVAL;
    }
    r = kvm_user_read(&bits, (const char *)arg + sizeof(mask), sizeof(bits));
    r = r < 0 ? r : need_timers(v);
    if (r < 0) {
        return r;
    }
    sigemptyset(&v->sigmask);
    for (int sig = 1; sig <= 64; sig++) {
        if (bits >> (sig - 1) & 1) {
            sigaddset(&v->sigmask, sig);
        }
    }
    v->sigmask_set = true;
    return 0;
}

/* A signal is pending that the vCPU's mask lets through. On the vCPU's thread. */
bool kvm_sigmask_pending(const struct kvm_vcpu *v)
{
    sigset_t pending;

    sigemptyset(&pending);
    sigpending(&pending);
    for (int sig = 1; sig < NSIG; sig++) {
        if (sigismember(&pending, sig) == 1 && sigismember(&v->sigmask, sig) == 0) {
            return true;
        }
    }
    return false;
}

/* KVM_RUN begins: what the mask blocks is blocked too; *old is for kvm_sigmask_leave(). */
void kvm_sigmask_enter(struct kvm_vcpu *v, sigset_t *old)
{
    pthread_sigmask(SIG_BLOCK, &v->sigmask, old);
    atomic_store_explicit(&v->sigmask_run, true, memory_order_relaxed);
    (void)kvm_timer_arm(v->vm->signal_timers, &v->signal_timer, kvm_timer_now() + LOOK_NS);
}

/* KVM_RUN is over. */
void kvm_sigmask_leave(struct kvm_vcpu *v, const sigset_t *old)
{
    atomic_store_explicit(&v->sigmask_run, false, memory_order_relaxed);
    kvm_timer_cancel(v->vm->signal_timers, &v->signal_timer);
    pthread_sigmask(SIG_SETMASK, old, NULL);
}
