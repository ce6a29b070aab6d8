/* Event descriptors and coalesced zones, told to the engine as the topology shows them. */
#include "accel/slots.h"

#include <errno.h>

/*
 * Assign or deassign an ioeventfd at an absolute address of memory or ports.
 * Lock: topology. Errors: accel_slots_fail() when an assignment is refused. Source: KVM_IOEVENTFD.
 */
void accel_eventfd_assign(struct accel_slots *s, const struct strata_eventfd *ev, bool is_pio, bool assign)
{
    struct kvm_ioeventfd args = {
        .datamatch = ev->match_data ? ev->data : 0,
        .addr = ev->addr,
        .len = ev->size,
        .fd = ev->fd,
        .flags = (ev->match_data ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
                 (is_pio ? KVM_IOEVENTFD_FLAG_PIO : 0) | (assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };
    int ret = accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd, KVM_IOEVENTFD, &args);

    if (ret < 0 && assign) {
        accel_slots_fail(s, ret, "event descriptor at %s 0x%llx, size %u, data 0x%llx, flags 0x%x",
                         is_pio ? "port" : "address", (unsigned long long)args.addr, args.len,
                         (unsigned long long)args.datamatch, args.flags);
    }
}

/*
 * Register or remove a coalesced zone. An engine without the ring keeps exiting, which is only slower.
 * Lock: topology. Source: KVM_REGISTER_COALESCED_MMIO.
 */
void accel_coalesced_zone(struct accel_slots *s, uint64_t start, uint64_t size, bool is_pio, bool add)
{
    struct kvm_coalesced_mmio_zone zone = {.addr = start, .size = (uint32_t)size, .pio = is_pio};

    if (s->accel->coalesced_page && size <= UINT32_MAX && (!is_pio || s->accel->has_coalesced_pio)) {
        accel_ioctl_ptr(s->accel->ep, s->accel->vm_fd,
                        add ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO, &zone);
    }
}
