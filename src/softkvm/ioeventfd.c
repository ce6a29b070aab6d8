/*
 * ioeventfds: a guest's write to an address or port becomes a tick of an event counter, and the guest
 * goes on at once.
 *
 * Two of one bus collide when one write could tick both: same address, and either takes any length, or
 * the lengths are equal and a value is not asked for by either, or the same by both.
 *
 * The engine holds a duplicate of the descriptor; KVM_IOEVENTFD's deassign may name any descriptor of
 * the same open event counter.
 *
 * Locks: the list is under slots_lock; a write comes in a vCPU's read section, so that an eventfd is
 * closed only when no vCPU can be writing to it.
 */
#include "softkvm/bus.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "softkvm/eventfd.h"
#include "softkvm/vcpu.h"

/* Five bits are defined; the last is the kernel's own name for what a length of 0 means. */
#define KNOWN_FLAGS 0x1fu

/* A bus that x86 guests do not have: such eventfds are kept, and never tick. */
#define BUS_CCW (KVM_BUS_PORT + 1)

struct ioeventfd {
    struct list node;
    struct kvm_buses *buses;
    unsigned bus; /* enum kvm_bus_id, or BUS_CCW */
    uint64_t addr;
    uint32_t len; /* 0: any */
    bool wildcard;
    uint64_t match;
    int fd;
};

/* The low `len` bytes of data as a number. */
static uint64_t value_of(const void *data, unsigned len)
{
    uint64_t value = 0;

    memcpy(&value, data, len);
    return value;
}

static int ioeventfd_write(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, const void *data)
{
    struct ioeventfd *p = opaque;

    if (p->len != 0) {
        if (addr != p->addr || len != p->len) {
            return -EOPNOTSUPP;
        }
        if (!p->wildcard && value_of(data, len) != p->match) {
            return -EOPNOTSUPP;
        }
    }
    kvm_eventfd_signal(p->fd);
    __atomic_fetch_add(&p->buses->signalled, 1, __ATOMIC_RELAXED);
    return 0;
}

static const struct kvm_bus_ops ioeventfd_ops = {.write = ioeventfd_write};

static bool collides(const struct ioeventfd *a, const struct ioeventfd *b)
{
    if (a->bus != b->bus || a->addr != b->addr) {
        return false;
    }
    if (a->len == 0 || b->len == 0) {
        return true;
    }
    return a->len == b->len && (a->wildcard || b->wildcard || a->match == b->match);
}

static struct ioeventfd *find_collision(struct kvm_buses *buses, const struct ioeventfd *p)
{
    struct list *pos;

    list_for_each (pos, &buses->ioeventfds) {
        struct ioeventfd *other = list_entry(pos, struct ioeventfd, node);

        if (collides(other, p)) {
            return other;
        }
    }
    return NULL;
}

static void ioeventfd_free(struct ioeventfd *p)
{
    close(p->fd);
    free(p);
}

/* Lock: slots_lock held. */
static int assign_locked(struct kvm_vm *vm, struct ioeventfd *p)
{
    struct kvm_bus_range range = {
        .addr = p->addr, .len = p->len, .ops = &ioeventfd_ops, .opaque = p, .is_eventfd = true};
    int err;

    if (find_collision(vm->buses, p)) {
        return -EEXIST;
    }
    err = p->bus == BUS_CCW ? 0 : kvm_bus_register(vm, p->bus, &range);
    if (!err) {
        list_add_tail(&vm->buses->ioeventfds, &p->node);
    }
    return err;
}

static void fill(struct ioeventfd *p, struct kvm_vm *vm, const struct kvm_ioeventfd *args)
{
    p->buses = vm->buses;
    p->bus = args->flags & KVM_IOEVENTFD_FLAG_PIO                  ? KVM_BUS_PORT
             : args->flags & KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY ? BUS_CCW
                                                                  : KVM_BUS_MEM;
    p->addr = args->addr;
    p->len = args->len;
    p->wildcard = !(args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH);
    p->match = p->wildcard ? 0 : args->datamatch;
}

static int assign(struct kvm_vm *vm, const struct kvm_ioeventfd *args)
{
    struct ioeventfd *p = kvm_alloc(vm->s, sizeof(*p));
    int fd, err;

    if (!p) {
        return -ENOMEM;
    }
    fd = kvm_eventfd_get(args->fd);
    if (fd < 0) {
        free(p);
        return fd;
    }
    fill(p, vm, args);
    p->fd = fd;
    pthread_mutex_lock(&vm->slots_lock);
    err = assign_locked(vm, p);
    pthread_mutex_unlock(&vm->slots_lock);
    if (err) {
        ioeventfd_free(p);
    }
    return err;
}

/* Lock: slots_lock held. The one that is exactly this, or null. */
static struct ioeventfd *find_exact(struct kvm_buses *buses, const struct ioeventfd *like, int fd)
{
    struct list *pos;

    list_for_each (pos, &buses->ioeventfds) {
        struct ioeventfd *p = list_entry(pos, struct ioeventfd, node);

        if (p->bus == like->bus && p->addr == like->addr && p->len == like->len &&
            p->wildcard == like->wildcard && p->match == like->match && kvm_eventfd_same(p->fd, fd)) {
            return p;
        }
    }
    return NULL;
}

static int deassign(struct kvm_vm *vm, const struct kvm_ioeventfd *args)
{
    struct ioeventfd like, *p;
    int err = -ENOENT, fd = kvm_eventfd_get(args->fd);

    if (fd < 0) {
        return fd;
    }
    fill(&like, vm, args);
    pthread_mutex_lock(&vm->slots_lock);
    p = find_exact(vm->buses, &like, fd);
    if (p) {
        err = p->bus == BUS_CCW ? 0 : kvm_bus_unregister(vm, p->bus, p);
    }
    if (!err) {
        list_del(&p->node);
        ioeventfd_free(p);
    }
    pthread_mutex_unlock(&vm->slots_lock);
    close(fd);
    return err;
}

/* What may be assigned: 0 or -EINVAL. */
static int check_args(const struct kvm_ioeventfd *args)
{
    bool length_ok = args->len <= 8 && __builtin_popcount(args->len) <= 1;

    if (!length_ok || args->addr + args->len < args->addr || (args->flags & ~KNOWN_FLAGS)) {
        return -EINVAL;
    }
    return args->len == 0 && (args->flags & KVM_IOEVENTFD_FLAG_DATAMATCH) ? -EINVAL : 0;
}

/*
 * KVM_IOEVENTFD. Returns 0; -EINVAL: not an eventfd, or, when assigning, length not 0, 1, 2, 4, 8, range
 * wraps, unknown flag, a value to match without a length; -EBADF; -EEXIST: collides; -ENOENT: nothing
 * like that to deassign; -ENOMEM, -ENOSPC. Lock: takes slots_lock. Source: KVM eventfd.c.
 */
int kvm_ioeventfd_change(struct kvm_vm *vm, const struct kvm_ioeventfd *args)
{
    int err;

    if (args->flags & KVM_IOEVENTFD_FLAG_DEASSIGN) {
        return deassign(vm, args);
    }
    err = check_args(args);
    return err ? err : assign(vm, args);
}

void kvm_ioeventfd_release_all(struct kvm_buses *buses)
{
    struct list *pos, *tmp;

    list_for_each_safe (pos, tmp, &buses->ioeventfds) {
        list_del(pos);
        ioeventfd_free(list_entry(pos, struct ioeventfd, node));
    }
}
