/*
 * Time stamp counters of a VM's processors: writes that are meant to agree are made to agree, and the offset as a device
 * attribute of the vCPU.
 *
 * User space that restores or hot-plugs processors writes each counter in turn. A write of 0, or of what a processor
 * written a moment ago shows now, give or take a second, gets that processor's offset, so that the counters are equal.
 *
 * Locks: vcpu->lock for the vCPU, tsc.lock of the VM for what the last write was.
 */
#include "softkvm/tsc.h"

#include <errno.h>
#include <x86intrin.h>

#include "base/range.h"
#include "softkvm/timer.h"
#include "softkvm/user.h"

static uint64_t scaled(const struct kvm_vcpu *v, uint64_t host_tsc)
{
    return (uint64_t)(((u128)host_tsc * v->cpu->tsc_ratio) >> 32);
}

/* Lock: tsc.lock. Source: __kvm_synchronize_tsc(). */
static void write_offset(struct kvm_vcpu *v, int64_t offset, uint64_t value, uint64_t ns)
{
    struct kvm_tsc_sync *t = &v->vm->tsc;

    t->last_ns = ns;
    t->last_write = value;
    t->last_khz = v->tsc_khz;
    t->offset = offset;
    v->cpu->tsc_offset = offset;
    kvm_vcpu_request(v, KVM_REQUEST_CLOCK);
}

/* Is the value what the counter written last shows by now, a second more or less? */
static bool continues(const struct kvm_tsc_sync *t, const struct kvm_vcpu *v, uint64_t value, uint64_t ns)
{
    uint64_t second = (uint64_t)v->tsc_khz * 1000;
    uint64_t expected = t->last_write + (uint64_t)((u128)(ns - t->last_ns) * v->tsc_khz / 1000000);

    return value < expected + second && value + second > expected;
}

/*
 * User space writes the counter, or the vCPU has just been made (value 0). Source: kvm_synchronize_tsc().
 */
void kvm_tsc_synchronize(struct kvm_vcpu *v, uint64_t value)
{
    struct kvm_tsc_sync *t = &v->vm->tsc;
    int64_t offset = (int64_t)(value - scaled(v, __rdtsc()));
    uint64_t ns = kvm_timer_now();

    pthread_mutex_lock(&t->lock);
    if (t->last_khz == v->tsc_khz && (value == 0 || continues(t, v, value, ns))) {
        offset = t->offset;
    }
    write_offset(v, offset, value, ns);
    pthread_mutex_unlock(&t->lock);
}

/* One attribute, KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET: int64_t, guest = scaled host counter + offset. */
static int get_offset(const struct kvm_vcpu *v, uint64_t addr)
{
    uint64_t offset = (uint64_t)v->cpu->tsc_offset;

    return kvm_user_write((void *)(uintptr_t)addr, &offset, sizeof(offset));
}

static int set_offset(struct kvm_vcpu *v, uint64_t addr)
{
    struct kvm_tsc_sync *t = &v->vm->tsc;
    uint64_t offset;
    int r = kvm_user_read(&offset, (void *)(uintptr_t)addr, sizeof(offset));

    if (r < 0) {
        return r;
    }
    pthread_mutex_lock(&t->lock);
    write_offset(v, (int64_t)offset, scaled(v, __rdtsc()) + offset, kvm_timer_now());
    pthread_mutex_unlock(&t->lock);
    return 0;
}

/*
 * KVM_HAS_, KVM_GET_ and KVM_SET_DEVICE_ATTR of a vCPU. Returns 0; -ENXIO (no such group or attribute); -EFAULT.
 * Lock: vcpu->lock. Source: kvm_vcpu_ioctl_device_attr().
 */
int kvm_tsc_device_attr(struct kvm_vcpu *v, unsigned long request, const void *arg)
{
    struct kvm_device_attr attr;
    int r = kvm_user_read(&attr, arg, sizeof(attr));

    if (r < 0) {
        return r;
    }
    if (attr.group != KVM_VCPU_TSC_CTRL || attr.attr != KVM_VCPU_TSC_OFFSET) {
        return -ENXIO;
    }
    return request == KVM_HAS_DEVICE_ATTR ? 0 : request == KVM_GET_DEVICE_ATTR ? get_offset(v, attr.addr)
                                                                                : set_offset(v, attr.addr);
}
