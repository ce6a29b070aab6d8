/*
 * The answers of a VM without chips and clocks: nobody is there, nothing is pending.
 */
#include <errno.h>

#include "softkvm/irq.h"

static int no_extension(struct softkvm *s, struct kvm_vm *vm, long extension)
{
    return -ENOTTY;
}

static int vm_init(struct kvm_vm *vm)
{
    return 0;
}

static void vm_nothing(struct kvm_vm *vm)
{
}

static int vcpu_init(struct kvm_vcpu *v)
{
    return 0;
}

static void vcpu_nothing(struct kvm_vcpu *v)
{
}

static void vcpu_reset(struct kvm_vcpu *v, bool init)
{
}

static int no_vm_ioctl(struct kvm_vm *vm, unsigned long request, void *arg)
{
    return -ENOTTY;
}

static int no_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    return -ENOTTY;
}

static int no_cap(struct kvm_vm *vm, uint32_t cap, const uint64_t *args)
{
    return -EINVAL;
}

static int no_vector(struct kvm_vcpu *v)
{
    return -1;
}

static bool no(struct kvm_vcpu *v)
{
    return false;
}

static uint64_t no_timer(struct kvm_vcpu *v)
{
    return UINT64_MAX;
}

static void no_set_cr8(struct kvm_vcpu *v, uint64_t cr8)
{
}

static uint64_t no_get_cr8(struct kvm_vcpu *v)
{
    return 0;
}

static int no_bus(struct kvm_vcpu *v, const struct kvm_bus_access *a)
{
    return -ENXIO;
}

static enum kvm_msr_result no_get_msr(struct kvm_vcpu *v, uint32_t index, uint64_t *value, bool by_host)
{
    return KVM_MSR_UNKNOWN;
}

static enum kvm_msr_result no_set_msr(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host)
{
    return KVM_MSR_UNKNOWN;
}

static bool no_hypercall(struct kvm_vcpu *v, const uint64_t args[5], uint64_t *ret)
{
    return false;
}

const struct kvm_irq_ops kvm_irq_none = {
    .check_extension = no_extension,
    .vm_init = vm_init,
    .vm_stop = vm_nothing,
    .vm_fini = vm_nothing,
    .vcpu_init = vcpu_init,
    .vcpu_fini = vcpu_nothing,
    .vcpu_reset = vcpu_reset,
    .vm_ioctl = no_vm_ioctl,
    .vcpu_ioctl = no_vcpu_ioctl,
    .enable_cap = no_cap,
    .pending_vector = no_vector,
    .ack_vector = no_vector,
    .has_work = no,
    .next_timer = no_timer,
    .timer_expired = vcpu_nothing,
    .clock_update = vcpu_nothing,
    .user_exit = no,
    .set_cr8 = no_set_cr8,
    .get_cr8 = no_get_cr8,
    .bus_access = no_bus,
    .get_msr = no_get_msr,
    .set_msr = no_set_msr,
    .hypercall = no_hypercall,
};
