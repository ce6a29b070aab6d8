/*
 * The worker of the NX mitigation: what was split because code ran in it is given back bit by bit, as code
 * moves on; what still runs is split again at its next fetch.
 *
 * Each period a ratio-th part of the split tables goes (at least one). Without a period of its own it is an hour
 * divided by the ratio, so that all of what no longer runs is back after about an hour.
 * Locks: own mutex for stopping; kvm_mmu_nx_recover() takes mmu.lock. Source: KVM's nx_lpage_recovery.
 */
#include "softkvm/mmu_nx.h"

#include <errno.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_RATIO 60u
#define HOUR_MS       3600000u

struct kvm_nx_worker {
    struct kvm_vm *vm;
    unsigned period_ms, ratio;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    bool stop; /* under lock */
};

static unsigned share(const struct kvm_nx_worker *w)
{
    int64_t n = atomic_load_explicit(&w->vm->mmu.nx_split, memory_order_relaxed);

    return n > 0 ? (unsigned)((uint64_t)n + w->ratio - 1) / w->ratio : 0;
}

/* Until the period is over, or stop. True: stop. Lock: held. */
static bool wait_period(struct kvm_nx_worker *w)
{
    struct timespec until;

    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += w->period_ms / 1000;
    until.tv_nsec += (long)(w->period_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    while (!w->stop && pthread_cond_timedwait(&w->wake, &w->lock, &until) != ETIMEDOUT) {
    }
    return w->stop;
}

static void *worker(void *opaque)
{
    struct kvm_nx_worker *w = opaque;

    pthread_mutex_lock(&w->lock);
    while (!wait_period(w)) {
        pthread_mutex_unlock(&w->lock);
        if (share(w)) {
            kvm_mmu_nx_recover(w->vm, share(w));
        }
        pthread_mutex_lock(&w->lock);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

int kvm_nx_start(struct kvm_vm *vm)
{
    const struct softkvm_options *o = &vm->s->options;
    struct kvm_nx_worker *w = kvm_alloc(vm->s, sizeof(*w));
    pthread_condattr_t attr;
    sigset_t all, old;
    int err;

    if (!w) {
        return -ENOMEM;
    }
    w->vm = vm;
    w->ratio = o->nx_recovery_ratio ? o->nx_recovery_ratio : DEFAULT_RATIO;
    w->period_ms = o->nx_recovery_period ? o->nx_recovery_period : HOUR_MS / w->ratio + 1;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &attr);
    pthread_condattr_destroy(&attr);
    sigfillset(&all); /* the embedding program's signals are not for this thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&w->thread, NULL, worker, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (err) {
        pthread_mutex_destroy(&w->lock);
        pthread_cond_destroy(&w->wake);
        free(w);
        return -err;
    }
    vm->mmu.nx_worker = w;
    return 0;
}

/* May this process reboot the machine? Then it may also expose it to what the mitigation is for. */
static bool may_reboot(void)
{
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2] = {{0}};

    return syscall(SYS_capget, &head, data) == 0 && (data[0].effective >> CAP_SYS_BOOT & 1);
}

/*
 * KVM_CAP_VM_DISABLE_NX_HUGE_PAGES: this VM's huge pages are executable. 0; -EPERM without CAP_SYS_BOOT; -EINVAL
 * once there is a vCPU. Lock: vm->lock.
 */
int kvm_nx_disable(struct kvm_vm *vm)
{
    if (!may_reboot()) {
        return -EPERM;
    }
    if (kvm_vm_nr_vcpus(vm)) {
        return -EINVAL;
    }
    vm->mmu.nx_huge = false;
    return 0;
}

void kvm_nx_stop(struct kvm_vm *vm)
{
    struct kvm_nx_worker *w = vm->mmu.nx_worker;

    if (!w) {
        return;
    }
    pthread_mutex_lock(&w->lock);
    w->stop = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    pthread_mutex_destroy(&w->lock);
    pthread_cond_destroy(&w->wake);
    free(w);
    vm->mmu.nx_worker = NULL;
}
