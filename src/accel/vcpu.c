/*
 * A vCPU: its descriptor, its run page and its thread. The thread enters KVM_RUN, answers the exit on
 * the spot (no other thread is involved: a hand-over costs more than most exits), and goes round.
 *
 * Kicks: a kicker sets run->immediate_exit, then has the endpoint break the call (the kernel's by a
 * signal whose handler does nothing). Set before the ioctl, the flag makes it return at once; later, the kick does. Either way the vCPU then looks
 * at gate_closed and stopping, and clears the flag only after it has seen them.
 *
 * Invariant: outside KVM_RUN `inside` is false, so a closed gate means that no guest instruction runs.
 */
#include "accel/internal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "softkvm/kvm_abi.h"
#include "base/addr.h"

static void kick_handler(int sig)
{
}

static void kick_signal_install(void)
{
    struct sigaction sa;

    memset(&sa, 0, sizeof(sa));
    sa.sa_handler = kick_handler;
    sigemptyset(&sa.sa_mask);
    sigaction(ACCEL_KICK_SIGNAL, &sa, NULL);
}

static int map_ring(struct accel_vcpu *v, struct base_error *err)
{
    struct accel *a = v->accel;
    int ret = -ENOMEM;

    v->ring = a->ep->ops->mmap(a->ep, v->fd, a->ring_entries * sizeof(*v->ring),
                               (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * (off_t)PAGE_SIZE, &ret);
    return v->ring ? 0
                   : base_error_set(err, -ret, "%s: mmap of the dirty ring of vCPU %u: %s", accel_engine(a),
                                    v->index, strerror(-ret));
}

/*
 * Create vCPU `index` and map its run page; a->vcpu_count grows by one.
 * index: equals a->vcpu_count, and is the APIC id.
 * Returns: 0 or -errno with the ioctl's name in err. Lock: none; before accel_start(). Source: own.
 */
int accel_vcpu_create(struct accel *a, unsigned index, struct base_error *err)
{
    struct accel_vcpu *v = &a->vcpus[index];
    int ret = accel_ioctl(a->ep, a->vm_fd, KVM_CREATE_VCPU, index);

    if (ret < 0) {
        return base_error_set(err, -ret, "%s: KVM_CREATE_VCPU %u: %s", accel_engine(a), index,
                              strerror(-ret));
    }
    v->accel = a;
    v->index = index;
    v->fd = ret;
    v->run = a->ep->ops->mmap(a->ep, v->fd, a->run_size, 0, &ret);
    if (!v->run) {
        a->ep->ops->close(a->ep, v->fd);
        return base_error_set(err, -ret, "%s: mmap of vCPU %u: %s", accel_engine(a), index,
                              strerror(-ret));
    }
    a->vcpu_count++;
    ret = a->ring_entries ? map_ring(v, err) : 0;
    return ret < 0 ? ret : accel_cpuid_apply(v, err);
}

/* Unmap and close; the thread has been joined. Lock: none. Source: own. */
void accel_vcpu_destroy(struct accel_vcpu *v)
{
    struct accel_endpoint *ep = v->accel->ep;

    if (v->ring) {
        ep->ops->munmap(ep, v->ring, v->accel->ring_entries * sizeof(*v->ring));
    }
    ep->ops->munmap(ep, v->run, v->accel->run_size);
    ep->ops->close(ep, v->fd);
}

/* Make v leave KVM_RUN, or not enter it, once. From any thread. Lock: none. Source: KVM's immediate_exit. */
void accel_vcpu_kick(struct accel_vcpu *v)
{
    __atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    if (v->thread_started && !pthread_equal(v->thread, pthread_self())) {
        v->accel->ep->ops->kick(v->accel->ep, v->fd, v->thread);
    }
}

static bool is_self(const struct accel_vcpu *v)
{
    return v->thread_started && pthread_equal(v->thread, pthread_self());
}

/*
 * Bring every vCPU out of KVM_RUN and keep them out. The caller's own vCPU, if it is one, is out already.
 * Lock: the device lock may be held: a vCPU that waits for it is not inside. Nests. Source: own.
 */
void accel_gate_close(struct accel *a)
{
    unsigned i;

    atomic_fetch_add(&a->gate_closed, 1);
    for (i = 0; i < a->vcpu_count; i++) {
        struct accel_vcpu *v = &a->vcpus[i];

        if (is_self(v)) {
            continue;
        }
        pthread_mutex_lock(&a->gate_lock);
        while (atomic_load(&v->inside)) {
            accel_vcpu_kick(v);
            pthread_cond_wait(&a->gate_cond, &a->gate_lock);
        }
        pthread_mutex_unlock(&a->gate_lock);
    }
}

/* Let them in again. Lock: as accel_gate_close(). Source: own. */
void accel_gate_open(struct accel *a)
{
    pthread_mutex_lock(&a->gate_lock);
    atomic_fetch_sub(&a->gate_closed, 1);
    pthread_cond_broadcast(&a->gate_cond);
    pthread_mutex_unlock(&a->gate_lock);
}

/* Leave: whoever closed the gate while we were inside hears of it. */
static void gate_leave(struct accel_vcpu *v)
{
    struct accel *a = v->accel;

    atomic_store(&v->inside, false);
    if (atomic_load(&a->gate_closed)) {
        pthread_mutex_lock(&a->gate_lock);
        pthread_cond_broadcast(&a->gate_cond);
        pthread_mutex_unlock(&a->gate_lock);
    }
}

/* Enter, waiting while the gate is closed; false when the vCPU is to stop instead. */
static bool gate_enter(struct accel_vcpu *v)
{
    struct accel *a = v->accel;

    for (;;) {
        if (atomic_load(&a->stopping)) {
            return false;
        }
        atomic_store(&v->inside, true);
        if (!atomic_load(&a->gate_closed) && !atomic_load(&a->stopping)) {
            return true;
        }
        gate_leave(v);
        pthread_mutex_lock(&a->gate_lock);
        while (atomic_load(&a->gate_closed) && !atomic_load(&a->stopping)) {
            pthread_cond_wait(&a->gate_cond, &a->gate_lock);
        }
        pthread_mutex_unlock(&a->gate_lock);
    }
}

/* Once round: run and answer. False: stop. */
static bool run_once(struct accel_vcpu *v)
{
    struct accel *a = v->accel;
    char text[96];
    int ret;

    accel_ring_throttle(v);
    if (!gate_enter(v)) {
        return false;
    }
    ret = accel_ioctl(a->ep, v->fd, KVM_RUN, 0);
    if (unlikely(__atomic_load_n(&v->run->immediate_exit, __ATOMIC_RELAXED))) {
        __atomic_store_n(&v->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    }
    gate_leave(v);
    if (ret == -EINTR || ret == -EAGAIN) {
        atomic_fetch_add_explicit(&v->interrupted, 1, memory_order_relaxed);
        return true;
    }
    if ((ret == -EFAULT || ret == -EHWPOISON) && v->run->exit_reason == KVM_EXIT_MEMORY_FAULT &&
        a->has_memory_faults) {
        return accel_exit_handle(v);
    }
    if (ret < 0) {
        snprintf(text, sizeof(text), "vCPU %u: KVM_RUN: %s", v->index, strerror(-ret));
        accel_tell_stop(a, ACCEL_STOP_INTERNAL_ERROR, text);
        return false;
    }
    return accel_exit_handle(v);
}

static void *vcpu_thread(void *opaque)
{
    struct accel_vcpu *v = opaque;
    char name[16];

    snprintf(name, sizeof(name), "vcpu-%u", v->index);
    pthread_setname_np(pthread_self(), name);
    while (run_once(v)) {
    }
    return NULL;
}

/*
 * Give every vCPU a thread and let it run.
 * Returns: 0; -errno when a thread cannot be had (those already started are stopped).
 * Lock: none. Source: own.
 */
int accel_start(struct accel *a, struct base_error *err)
{
    sigset_t all, old;
    unsigned i;
    int ret = 0;

    kick_signal_install();
    ret = accel_ring_start(a);
    if (ret) {
        return base_error_set(err, ret, "thread that collects the dirty rings: %s", strerror(ret));
    }
    atomic_store(&a->stopping, false);
    /* The program's own signals belong to its main thread; vCPU threads take the kick alone. */
    sigfillset(&all);
    sigdelset(&all, ACCEL_KICK_SIGNAL);
    pthread_sigmask(SIG_BLOCK, &all, &old);
    atomic_fetch_add(&a->gate_closed, 1);
    for (i = 0; i < a->vcpu_count && ret == 0; i++) {
        ret = pthread_create(&a->vcpus[i].thread, NULL, vcpu_thread, &a->vcpus[i]);
        if (ret == 0) {
            a->vcpus[i].thread_started = true;
        }
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (ret) {
        atomic_store(&a->stopping, true);
    }
    accel_gate_open(a);
    if (ret) {
        accel_stop(a);
        return base_error_set(err, ret, "thread of vCPU %u: %s", i - 1, strerror(ret));
    }
    return 0;
}

/* Ask all vCPUs to end; does not wait. Any thread. Lock: none. Source: own. */
void accel_request_stop(struct accel *a)
{
    unsigned i;

    atomic_store(&a->stopping, true);
    pthread_mutex_lock(&a->gate_lock);
    pthread_cond_broadcast(&a->gate_cond);
    pthread_mutex_unlock(&a->gate_lock);
    for (i = 0; i < a->vcpu_count; i++) {
        accel_vcpu_kick(&a->vcpus[i]);
    }
}

/* End and join all vCPU threads; harmless when none runs. Not from a vCPU thread, and not with the
 * device lock held. Lock: none. Source: own. */
void accel_stop(struct accel *a)
{
    unsigned i;

    accel_request_stop(a);
    for (i = 0; i < a->vcpu_count; i++) {
        struct accel_vcpu *v = &a->vcpus[i];

        if (v->thread_started) {
            pthread_join(v->thread, NULL);
        }
    }
    accel_ring_stop(a);
    /* Only now: a vCPU that was still running may have looked at its peers' flags. */
    for (i = 0; i < a->vcpu_count; i++) {
        a->vcpus[i].thread_started = false;
    }
}
