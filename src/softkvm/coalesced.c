/*
 * Coalesced zones: writes that nobody waits for go into a ring that user space drains when it comes by.
 *
 *     first (user space moves)        last (the engine moves)
 *       v                                v
 *     | w | w | w | w |   |   |   |   ...         170 entries, one always empty
 *
 * A zone is a device on the bus that refuses what it cannot take: an access not wholly inside, a full
 * ring, an index that user space has spoilt. Then the write exits as usual, in order.
 *
 * One ring per VM, in the third page of every vCPU's mapping: the first vCPU's page is mapped again
 * over those of the others.
 *
 * Locks: zones under slots_lock; the ring's producer side under `ring_busy`, a spin lock held for one
 * entry's copy.
 */
#include "softkvm/bus.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "softkvm/coalesced.h"
#include "softkvm/vcpu.h"

struct kvm_coalesced_zone {
    struct list node;
    struct kvm_buses *buses;
    struct kvm_coalesced_mmio_zone zone;
};

static struct kvm_coalesced_mmio_ring *ring_page(const struct kvm_vcpu *v)
{
    return (void *)((char *)v->run + KVM_VCPU_RING_PAGE * PAGE_SIZE);
}

int kvm_coalesced_share_ring(struct kvm_vcpu *v)
{
    struct kvm_coalesced_mmio_ring *mine = ring_page(v), *none = NULL;
    struct kvm_coalesced_mmio_ring *ring = atomic_load(&v->vm->buses->ring);

    if (!ring) {
        atomic_compare_exchange_strong(&v->vm->buses->ring, &none, mine);
        return 0;
    }
    /* An old size of 0 makes a second mapping of shared pages. */
    if (mremap(ring, 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, mine) == MAP_FAILED) {
        return -ENOMEM;
    }
    return 0;
}

void kvm_coalesced_forget_ring(struct kvm_vcpu *v)
{
    struct kvm_coalesced_mmio_ring *mine = v->run ? ring_page(v) : NULL;

    if (mine && v->vm->buses) {
        atomic_compare_exchange_strong(&v->vm->buses->ring, &mine, NULL);
    }
}

static void ring_lock(struct kvm_buses *buses)
{
    while (atomic_flag_test_and_set_explicit(&buses->ring_busy, memory_order_acquire)) {
        __builtin_ia32_pause();
    }
}

/* Append one write. 0, or -EOPNOTSUPP when there is no room. */
static int ring_append(struct kvm_buses *buses, const struct kvm_coalesced_mmio *entry)
{
    struct kvm_coalesced_mmio_ring *ring = atomic_load_explicit(&buses->ring, memory_order_acquire);
    uint32_t first, last, next;
    int ret = -EOPNOTSUPP;

    if (!ring) {
        return ret;
    }
    ring_lock(buses);
    /* Both are in user space's hands: read once, and trusted no further than this. */
    first = __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE);
    last = __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
    next = last + 1 == KVM_COALESCED_MMIO_MAX ? 0 : last + 1;
    if (last < KVM_COALESCED_MMIO_MAX && next != first) {
        ring->coalesced_mmio[last] = *entry;
        __atomic_store_n(&ring->last, next, __ATOMIC_RELEASE);
        __atomic_store_n(&buses->coalesced, buses->coalesced + 1, __ATOMIC_RELAXED);
        ret = 0;
    }
    atomic_flag_clear_explicit(&buses->ring_busy, memory_order_release);
    return ret;
}

static int zone_write(void *opaque, struct kvm_vcpu *v, uint64_t addr, unsigned len, const void *data)
{
    struct kvm_coalesced_zone *z = opaque;
    struct kvm_coalesced_mmio entry = {.phys_addr = addr, .len = len, .pio = z->zone.pio};

    if (len > sizeof(entry.data)) {
        return -EOPNOTSUPP;
    }
    memcpy(entry.data, data, len);
    return ring_append(z->buses, &entry);
}

static const struct kvm_bus_ops zone_ops = {.write = zone_write};

static enum kvm_bus_id bus_of(const struct kvm_coalesced_mmio_zone *zone)
{
    return zone->pio ? KVM_BUS_PORT : KVM_BUS_MEM;
}

/*
 * KVM_REGISTER_COALESCED_MMIO. 0; -EINVAL: pio is neither 0 nor 1, or an empty or wrapping range; -ENOSPC,
 * -ENOMEM. Lock: takes slots_lock. Source: KVM coalesced_mmio.c.
 */
int kvm_coalesced_register(struct kvm_vm *vm, const struct kvm_coalesced_mmio_zone *zone)
{
    struct kvm_coalesced_zone *z;
    struct kvm_bus_range range;
    int err;

    if (zone->pio > 1) {
        return -EINVAL;
    }
    z = kvm_alloc(vm->s, sizeof(*z));
    if (!z) {
        return -ENOMEM;
    }
    z->buses = vm->buses;
    z->zone = *zone;
    range = (struct kvm_bus_range){
        .addr = zone->addr, .len = zone->size, .ops = &zone_ops, .opaque = z};
    pthread_mutex_lock(&vm->slots_lock);
    err = kvm_bus_register(vm, bus_of(zone), &range);
    if (err) {
        free(z);
    } else {
        list_add_tail(&vm->buses->zones, &z->node);
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return err;
}

static bool zone_contains(const struct kvm_coalesced_mmio_zone *outer,
                          const struct kvm_coalesced_mmio_zone *inner)
{
    return outer->pio == inner->pio && inner->addr >= outer->addr &&
           inner->addr + inner->size >= inner->addr &&
           inner->addr + inner->size <= outer->addr + outer->size;
}

/*
 * KVM_UNREGISTER_COALESCED_MMIO: every zone that contains the given range goes. 0 also when there is
 * none; -EINVAL: pio is neither 0 nor 1; -ENOMEM: some may have gone. Lock: takes slots_lock.
 */
int kvm_coalesced_unregister(struct kvm_vm *vm, const struct kvm_coalesced_mmio_zone *zone)
{
    struct list *pos, *tmp;
    int err = 0;

    if (zone->pio > 1) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->slots_lock);
    list_for_each_safe (pos, tmp, &vm->buses->zones) {
        struct kvm_coalesced_zone *z = list_entry(pos, struct kvm_coalesced_zone, node);

        if (!zone_contains(&z->zone, zone)) {
            continue;
        }
        err = kvm_bus_unregister(vm, bus_of(zone), z);
        if (err) {
            break;
        }
        list_del(&z->node);
        free(z);
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return err;
}

void kvm_coalesced_release_all(struct kvm_buses *buses)
{
    struct list *pos, *tmp;

    list_for_each_safe (pos, tmp, &buses->zones) {
        list_del(pos);
        free(list_entry(pos, struct kvm_coalesced_zone, node));
    }
}
