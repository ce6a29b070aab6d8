/*
 * The coalesced ring: writes that the engine queued instead of leaving KVM_RUN. Drained before any other
 * access reaches a device, so that devices see the guest's order. The ring page belongs to vCPU 0's
 * mapping. Its indices are shared with the guest-facing side: both are bounded here, not trusted.
 */
#include "accel/internal.h"

#define RING_BYTES 4096u
#define RING_ENTRIES                                                                               \
    ((RING_BYTES - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

/*
 * Hand every queued write to its device, oldest first.
 * Lock: the device lock held. Source: KVM's API document, KVM_REGISTER_COALESCED_MMIO.
 */
void accel_coalesced_drain(struct accel *a)
{
    struct kvm_coalesced_mmio_ring *ring;
    unsigned budget = RING_ENTRIES;

    if (!a->coalesced_page || a->vcpu_count == 0 || a->draining) {
        return;
    }
    a->draining = true;
    ring = (void *)((char *)a->vcpus[0].run + (size_t)a->coalesced_page * RING_BYTES);
    while (budget-- > 0) {
        uint32_t first = __atomic_load_n(&ring->first, __ATOMIC_RELAXED);
        uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
        struct kvm_coalesced_mmio entry;

        if (first == last || first >= RING_ENTRIES || last >= RING_ENTRIES) {
            break;
        }
        entry = ring->coalesced_mmio[first];
        if (entry.len >= 1 && entry.len <= sizeof(entry.data)) {
            if (entry.pio) {
                accel_bus_pio(a, entry.phys_addr, entry.data, entry.len, true);
            } else {
                accel_bus_mmio(a, entry.phys_addr, entry.data, entry.len, true);
            }
        }
        __atomic_store_n(&ring->first, (first + 1) % RING_ENTRIES, __ATOMIC_RELEASE);
    }
    a->draining = false;
}

/*
 * Deliver what is queued now, for a region that wants it before an access. A device called from the drain
 * may ask again: that finds `draining`. Another thread's exit that holds the device lock drains by itself
 * before its own access.
 * Lock: the device lock held by the caller, or by nobody. Source: QEMU kvm_flush_coalesced_mmio_buffer().
 */
void accel_coalesced_flush(struct accel *a)
{
    if (pthread_equal(atomic_load(&a->device_owner), pthread_self())) {
        accel_coalesced_drain(a);
    } else if (pthread_mutex_trylock(&a->device_lock) == 0) {
        atomic_store(&a->device_owner, pthread_self());
        accel_coalesced_drain(a);
        accel_unlock(a);
    }
}
