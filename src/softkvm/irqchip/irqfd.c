/*
 * irqfds: a tick of an event counter becomes an interrupt on a GSI.
 *
 *   write(eventfd) --> epoll thread --> edge on the GSI
 *                                  \--> with resampling: the line stays high until the guest acknowledges
 *                                       it; then it is lowered and the second descriptor ticks, so that
 *                                       a device whose line is still high ticks again
 *
 * One thread per VM, started by the first irqfd. It names irqfds by number, not by pointer, so that one
 * that goes while its event is on the way is simply not found.
 *
 * Locks: chips->irqfds_lock guards all of it and is outer to irq_lock.
 */
#include "softkvm/irqchip/chips.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/list.h"
#include "softkvm/eventfd.h"

#define STOP_ID 0

struct irqfd {
    struct list node;
    uint64_t id;
    uint32_t gsi;
    int fd;
    int resample_fd; /* -1: edge */
};

struct kvm_irqfds {
    struct kvm_chips *chips;
    pthread_t thread;
    int epoll_fd, stop_fd;
    uint64_t next_id;
    struct list all;
    uint32_t nr_resamplers;
};

/* Lock: irqfds_lock held. */
static struct irqfd *find_id(struct kvm_irqfds *set, uint64_t id)
{
    struct list *pos;

    list_for_each (pos, &set->all) {
        if (list_entry(pos, struct irqfd, node)->id == id) {
            return list_entry(pos, struct irqfd, node);
        }
    }
    return NULL;
}

/* An event counter has moved. */
static void irqfd_event(struct kvm_irqfds *set, uint64_t id)
{
    struct irqfd *p;

    pthread_mutex_lock(&set->chips->irqfds_lock);
    p = find_id(set, id);
    if (p && kvm_eventfd_take(p->fd) != 0) {
        if (p->resample_fd >= 0) {
            kvm_irq_set_line(set->chips, KVM_SOURCE_RESAMPLE, p->gsi, true);
        } else {
            kvm_irq_pulse(set->chips, KVM_SOURCE_USER, p->gsi);
        }
    }
    pthread_mutex_unlock(&set->chips->irqfds_lock);
}

static void *irqfd_thread(void *opaque)
{
    struct kvm_irqfds *set = opaque;
    struct epoll_event ev[16];

    for (;;) {
        int n = epoll_wait(set->epoll_fd, ev, (int)ARRAY_LEN(ev), -1);

        if (n < 0 && errno != EINTR) {
            return NULL;
        }
        for (int i = 0; i < n; i++) {
            if (ev[i].data.u64 == STOP_ID) {
                return NULL;
            }
            irqfd_event(set, ev[i].data.u64);
        }
    }
}

static int watch(struct kvm_irqfds *set, int fd, uint64_t id)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = id};

    return epoll_ctl(set->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

static void set_free(struct kvm_irqfds *set)
{
    if (set->epoll_fd >= 0) {
        close(set->epoll_fd);
    }
    if (set->stop_fd >= 0) {
        close(set->stop_fd);
    }
    free(set);
}

static int start_thread(struct kvm_irqfds *set)
{
    sigset_t all, old;
    int err;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    err = pthread_create(&set->thread, NULL, irqfd_thread, set);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -err;
}

/* The VM's set, made at the first use. Lock: irqfds_lock held. */
static int get_set(struct kvm_chips *chips, struct kvm_irqfds **out)
{
    struct kvm_irqfds *set = chips->irqfds;
    int err;

    if (set) {
        *out = set;
        return 0;
    }
    set = kvm_alloc(chips->vm->s, sizeof(*set));
    if (!set) {
        return -ENOMEM;
    }
    set->chips = chips;
    set->next_id = STOP_ID + 1;
    list_init(&set->all);
    set->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    set->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (set->epoll_fd < 0 || set->stop_fd < 0) {
        set_free(set);
        return -EMFILE;
    }
    err = watch(set, set->stop_fd, STOP_ID);
    if (!err) {
        err = start_thread(set);
    }
    if (err) {
        set_free(set);
        return err;
    }
    chips->irqfds = set;
    *out = set;
    return 0;
}

static void irqfd_free(struct irqfd *p)
{
    if (p->fd >= 0) {
        close(p->fd);
    }
    if (p->resample_fd >= 0) {
        close(p->resample_fd);
    }
    free(p);
}

/* Lock: irqfds_lock held. Descriptors are p's already. */
static int assign_locked(struct kvm_chips *chips, struct irqfd *p)
{
    struct kvm_irqfds *set;
    struct list *pos;
    int err = get_set(chips, &set);

    if (err) {
        return err;
    }
    list_for_each (pos, &set->all) {
        if (kvm_eventfd_same(list_entry(pos, struct irqfd, node)->fd, p->fd)) {
            return -EBUSY;
        }
    }
    p->id = set->next_id++;
    if (p->resample_fd >= 0) {
        kvm_chips_watch_ack(chips, p->gsi, true);
    }
    /* Last: events may come as soon as it is watched, and wait for the lock. */
    err = watch(set, p->fd, p->id);
    if (err) {
        if (p->resample_fd >= 0) {
            kvm_chips_watch_ack(chips, p->gsi, false);
        }
        return err;
    }
    set->nr_resamplers += p->resample_fd >= 0;
    list_add_tail(&set->all, &p->node);
    return 0;
}

static int assign(struct kvm_chips *chips, const struct kvm_irqfd *args)
{
    struct irqfd *p = kvm_alloc(chips->vm->s, sizeof(*p));
    int err = 0;

    if (!p) {
        return -ENOMEM;
    }
    p->gsi = args->gsi;
    p->resample_fd = -1;
    p->fd = kvm_eventfd_get((int)args->fd);
    if (p->fd < 0) {
        err = p->fd;
    } else if (args->flags & KVM_IRQFD_FLAG_RESAMPLE) {
        p->resample_fd = kvm_eventfd_get((int)args->resamplefd);
        err = p->resample_fd < 0 ? p->resample_fd : 0;
    }
    if (!err) {
        pthread_mutex_lock(&chips->irqfds_lock);
        err = assign_locked(chips, p);
        pthread_mutex_unlock(&chips->irqfds_lock);
    }
    if (err) {
        irqfd_free(p);
    }
    return err;
}

/* Lock: irqfds_lock held. */
static bool gsi_has_resampler(struct kvm_irqfds *set, uint32_t gsi)
{
    struct list *pos;

    list_for_each (pos, &set->all) {
        struct irqfd *p = list_entry(pos, struct irqfd, node);

        if (p->gsi == gsi && p->resample_fd >= 0) {
            return true;
        }
    }
    return false;
}

/* Lock: irqfds_lock held. */
static void remove_locked(struct kvm_irqfds *set, struct irqfd *p)
{
    epoll_ctl(set->epoll_fd, EPOLL_CTL_DEL, p->fd, NULL);
    list_del(&p->node);
    if (p->resample_fd >= 0) {
        set->nr_resamplers--;
        kvm_chips_watch_ack(set->chips, p->gsi, false);
        if (!gsi_has_resampler(set, p->gsi)) {
            kvm_irq_set_line(set->chips, KVM_SOURCE_RESAMPLE, p->gsi, false);
        }
    }
    irqfd_free(p);
}

static int deassign(struct kvm_chips *chips, const struct kvm_irqfd *args)
{
    int fd = kvm_eventfd_get((int)args->fd);
    struct list *pos, *tmp;

    if (fd < 0) {
        return fd;
    }
    pthread_mutex_lock(&chips->irqfds_lock);
    if (chips->irqfds) {
        list_for_each_safe (pos, tmp, &chips->irqfds->all) {
            struct irqfd *p = list_entry(pos, struct irqfd, node);

            if (p->gsi == args->gsi && kvm_eventfd_same(p->fd, fd)) {
                remove_locked(chips->irqfds, p);
            }
        }
    }
    pthread_mutex_unlock(&chips->irqfds_lock);
    close(fd);
    return 0;
}

/*
 * KVM_IRQFD. 0 (a deassign that finds nothing, too); -EINVAL: unknown flag, no chip that could take it,
 * not an eventfd, GSI out of range; -EBADF; -EBUSY: this counter is assigned already; -ENOMEM, -EMFILE.
 * Lock: takes irqfds_lock. Source: KVM eventfd.c.
 */
int kvm_irqfd_change(struct kvm_chips *chips, const struct kvm_irqfd *args)
{
    enum kvm_chips_mode mode = kvm_chips_mode(chips->vm);
    bool resample = args->flags & KVM_IRQFD_FLAG_RESAMPLE;

    if (args->flags & ~(uint32_t)(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE)) {
        return -EINVAL;
    }
    if (args->flags & KVM_IRQFD_FLAG_DEASSIGN) {
        return deassign(chips, args);
    }
    if (mode == KVM_CHIPS_NONE || (resample && mode != KVM_CHIPS_KERNEL)) {
        return -EINVAL;
    }
    return assign(chips, args);
}

void kvm_irqfds_ack(struct kvm_chips *chips, uint32_t gsi)
{
    struct list *pos;

    pthread_mutex_lock(&chips->irqfds_lock);
    if (chips->irqfds && gsi_has_resampler(chips->irqfds, gsi)) {
        kvm_irq_set_line(chips, KVM_SOURCE_RESAMPLE, gsi, false);
        list_for_each (pos, &chips->irqfds->all) {
            struct irqfd *p = list_entry(pos, struct irqfd, node);

            if (p->gsi == gsi && p->resample_fd >= 0) {
                kvm_eventfd_signal(p->resample_fd);
            }
        }
    }
    pthread_mutex_unlock(&chips->irqfds_lock);
}

void kvm_irqfds_stop(struct kvm_chips *chips)
{
    struct kvm_irqfds *set = chips->irqfds;
    struct list *pos, *tmp;

    if (!set) {
        return;
    }
    kvm_eventfd_signal(set->stop_fd);
    pthread_join(set->thread, NULL);
    pthread_mutex_lock(&chips->irqfds_lock);
    list_for_each_safe (pos, tmp, &set->all) {
        remove_locked(set, list_entry(pos, struct irqfd, node));
    }
    chips->irqfds = NULL;
    pthread_mutex_unlock(&chips->irqfds_lock);
    set_free(set);
}
