/* Commands on descriptors and on the host's memory: several VMs, closing, dirty rings, discards, and a guest
 * that runs in the background while the script goes on. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "player.h"

/* usevm N: the N-th VM made (from 0) is current. */
static int cmd_usevm(struct player *p)
{
    uint64_t n = player_arg(p, 1, 0);

    if (n >= p->nr_vms) {
        return 2;
    }
    p->vm = p->vms[n];
    return 0;
}

/* close sys|vm|vcpu|run|event NAME: give the descriptor back (run: unmap the run page). Later commands on it
 * answer as they do for a descriptor that is closed. */
static int cmd_close(struct player *p)
{
    const char *what = p->nr_words > 1 ? p->word[1] : "";
    struct player_vcpu *v = player_cur(p);

    if (strcmp(what, "sys") == 0) {
        p->ep->ops->close(p->ep, p->sys);
        p->sys = -1;
    } else if (strcmp(what, "vm") == 0) {
        p->ep->ops->close(p->ep, p->vm);
        for (unsigned i = 0; i < p->nr_vms; i++) {
            p->vms[i] = p->vms[i] == p->vm ? -1 : p->vms[i];
        }
        p->vm = -1;
    } else if (strcmp(what, "vcpu") == 0 && v) {
        p->ep->ops->close(p->ep, v->fd);
        v->fd = -1;
    } else if (strcmp(what, "run") == 0 && v && v->run) {
        p->ep->ops->munmap(p->ep, v->run, p->run_size);
        v->run = NULL;
    } else if (strcmp(what, "event") == 0 && p->nr_words > 2) {
        for (unsigned i = 0; i < p->nr_events; i++) {
            if (strcmp(p->event[i].name, p->word[2]) == 0) {
                close(p->event[i].fd);
                p->event[i].fd = -1;
            }
        }
    } else {
        return 2;
    }
    return 0;
}

/* opensys: the system descriptor anew. */
static int cmd_opensys(struct player *p)
{
    p->sys = p->ep->ops->open_system(p->ep);
    player_result(p, p->sys < 0 ? p->sys : 0);
    return 0;
}

/* discard NAME+OFF LEN: madvise(MADV_DONTNEED). */
static int cmd_discard(struct player *p)
{
    void *at = p->nr_words > 1 ? player_addr(p, p->word[1]) : NULL;
    size_t len = player_arg(p, 2, 4096);

    if (!at || madvise(at, len, MADV_DONTNEED) < 0) {
        return 2;
    }
    if (p->ep->ops->memory_discarded) {
        p->ep->ops->memory_discarded(p->ep, at, len);
    }
    return 0;
}

/* dring [entries=N]: map the current vCPU's dirty ring, N entries of it. */
static int cmd_dring(struct player *p)
{
    struct player_vcpu *v = player_cur(p);
    int err = 0;

    if (!v) {
        return 2;
    }
    v->ring_entries = (uint32_t)player_num(p, "entries", 1024);
    v->ring = p->ep->ops->mmap(p->ep, v->fd, v->ring_entries * sizeof(*v->ring),
                               (off_t)KVM_DIRTY_LOG_PAGE_OFFSET * 4096, &err);
    if (!v->ring) {
        player_result(p, err);
    } else {
        player_say(p, "ok");
    }
    return 0;
}

static int compare_words(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

/* Which slot and pages, as runs; sorted, since two writes may be logged in either order. */
static void say_entries(struct player *p, uint64_t *keys, size_t n)
{
    char text[2000] = "";
    size_t at = 0, kept = 0;

    qsort(keys, n, sizeof(*keys), compare_words);
    for (size_t i = 0; i < n && player_has(p, "unique"); i++) {
        if (i == 0 || keys[i] != keys[i - 1]) {
            keys[kept++] = keys[i];
        }
    }
    n = player_has(p, "unique") ? kept : n;
    for (size_t i = 0; i < n; i++) {
        size_t first = i;

        while (i + 1 < n && keys[i + 1] == keys[i] + 1) {
            i++;
        }
        if (at < sizeof(text) - 60) {
            at += (size_t)snprintf(text + at, sizeof(text) - at, first == i ? " %llu:%llu" : " %llu:%llu-%llu",
                                   (unsigned long long)(keys[first] >> 40),
                                   (unsigned long long)(keys[first] & 0xffffffffff),
                                   (unsigned long long)(keys[i] & 0xffffffffff));
        }
    }
    player_say(p, "ring %zu:%s", n, n ? text : " empty");
}

/* harvest [max=N] [keep] [unique]: take the ring's entries and print them; keep: leave their flags as they
 * are; unique: each page once. */
static int cmd_harvest(struct player *p)
{
    struct player_vcpu *v = player_cur(p);
    uint64_t max = player_num(p, "max", UINT64_MAX), *keys;
    size_t n = 0;

    if (!v || !v->ring || !(keys = calloc(v->ring_entries, sizeof(*keys)))) {
        return 2;
    }
    while (n < max && n < v->ring_entries) {
        struct kvm_dirty_gfn *e = &v->ring[(v->ring_next + n) & (v->ring_entries - 1)];

        if (__atomic_load_n(&e->flags, __ATOMIC_ACQUIRE) != KVM_DIRTY_GFN_F_DIRTY) {
            break;
        }
        keys[n++] = (uint64_t)e->slot << 40 | e->offset;
        if (!player_has(p, "keep")) {
            __atomic_store_n(&e->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        }
    }
    if (!player_has(p, "keep")) {
        v->ring_next += (uint32_t)n;
    }
    say_entries(p, keys, n);
    free(keys);
    return 0;
}

/* reset [bool]: KVM_RESET_DIRTY_RINGS, how many; bool: whether it went well. */
static int cmd_reset(struct player *p)
{
    int ret = accel_ioctl(p->ep, p->vm, KVM_RESET_DIRTY_RINGS, 0);

    player_result(p, ret > 0 && player_has(p, "bool") ? 0 : ret);
    return 0;
}

static void *background(void *opaque)
{
    struct player_load *l = opaque;

    while (!__atomic_load_n(&l->stop, __ATOMIC_ACQUIRE)) {
        int ret = accel_ioctl(l->p->ep, l->v->fd, KVM_RUN, 0);

        if (ret == -EINTR || ret == -EAGAIN) {
            continue;
        }
        if (ret < 0) {
            l->error = ret;
            break;
        }
        if (l->v->run->exit_reason == KVM_EXIT_HLT || l->v->run->exit_reason == KVM_EXIT_SHUTDOWN ||
            l->v->run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
            l->reason = l->v->run->exit_reason;
            break;
        }
        if (l->v->run->exit_reason == KVM_EXIT_MMIO && !l->v->run->mmio.is_write) {
            memset(l->v->run->mmio.data, 0xff, 8);
        }
    }
    return NULL;
}

/* load: run the current vCPU in the background, whatever its exits. */
static int cmd_load(struct player *p)
{
    struct player_load *l = &p->load;

    if (l->running || !player_cur(p)) {
        return 2;
    }
    *l = (struct player_load){.p = p, .v = player_cur(p)};
    l->v->run->immediate_exit = 0;
    if (pthread_create(&l->thread, NULL, background, l) != 0) {
        return 2;
    }
    l->running = true;
    return 0;
}

/* What the guest was about when it was stopped is finished: an entry with immediate exit completes it. */
static void complete(struct player_load *l)
{
    for (int i = 0; i < 8; i++) {
        __atomic_store_n(&l->v->run->immediate_exit, 1, __ATOMIC_RELEASE);
        if (accel_ioctl(l->p->ep, l->v->fd, KVM_RUN, 0) < 0) {
            return;
        }
        if (l->v->run->exit_reason == KVM_EXIT_MMIO && !l->v->run->mmio.is_write) {
            memset(l->v->run->mmio.data, 0xff, 8);
        }
    }
}

/* settle: let threads of the endpoint that wait for descriptors do their work. */
static int cmd_settle(struct player *p)
{
    usleep(100000);
    return 0;
}

/* unload [wait]: end it (wait: when it ends by itself) and say how it ended. */
static int cmd_unload(struct player *p)
{
    struct player_load *l = &p->load;

    if (!l->running) {
        return 2;
    }
    while (!player_has(p, "wait")) {
        struct timespec soon;

        __atomic_store_n(&l->stop, true, __ATOMIC_RELEASE);
        __atomic_store_n(&l->v->run->immediate_exit, 1, __ATOMIC_RELEASE);
        p->ep->ops->kick(p->ep, l->v->fd, l->thread);
        clock_gettime(CLOCK_REALTIME, &soon);
        soon.tv_nsec += 20000000;
        soon.tv_sec += soon.tv_nsec / 1000000000;
        soon.tv_nsec %= 1000000000;
        if (pthread_timedjoin_np(l->thread, NULL, &soon) == 0) {
            break;
        }
    }
    if (player_has(p, "wait")) {
        pthread_join(l->thread, NULL);
    }
    l->running = false;
    if (!l->error && !l->reason) {
        complete(l);
    }
    l->v->run->immediate_exit = 0;
    if (l->error) {
        player_result(p, l->error);
    } else {
        player_say(p, l->reason == KVM_EXIT_HLT ? "hlt" : l->reason ? "ended by exit %u" : "stopped", l->reason);
    }
    return 0;
}

/* until NAME+OFF VALUE: wait for a byte of guest memory, at most 20 s; for guests in the background. */
static int cmd_until(struct player *p)
{
    volatile unsigned char *at = p->nr_words > 1 ? player_addr(p, p->word[1]) : NULL;
    uint64_t value = player_arg(p, 2, 1);

    for (int i = 0; at && *at != value; i++) {
        if (i == 20000) {
            player_say(p, "never came");
            return 0;
        }
        usleep(1000);
    }
    return at ? 0 : 2;
}

const struct player_command player_fd_commands[] = {
    {"usevm", cmd_usevm}, {"close", cmd_close},     {"opensys", cmd_opensys}, {"discard", cmd_discard},
    {"dring", cmd_dring}, {"harvest", cmd_harvest}, {"reset", cmd_reset},     {"load", cmd_load},
    {"unload", cmd_unload}, {"until", cmd_until},   {"settle", cmd_settle}, {NULL, NULL},
};
