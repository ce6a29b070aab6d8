/*
 * Ioctls of a VM descriptor: arguments in, the right function, results out.
 */
#include <errno.h>
#include <string.h>

#include "softkvm/attributes.h"
#include "softkvm/cap.h"
#include "softkvm/dirty.h"
#include "softkvm/gmem.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/msr_filter.h"
#include "softkvm/ring.h"
#include "softkvm/slot_transaction.h"
#include "softkvm/slots.h"
#include "softkvm/stats.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"
#include "softkvm/vm.h"

/* The older call's structure is the newer one's beginning; it knows two flags. */
static int set_user_memory_region(struct kvm_vm *vm, const void *arg)
{
    struct kvm_userspace_memory_region2 m = {0};
    int r = kvm_user_read(&m, arg, sizeof(struct kvm_userspace_memory_region));

    if (r < 0) {
        return r;
    }
    return m.flags & ~(uint32_t)(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY) ? -EINVAL
                                                                             : kvm_slots_set_region(vm, &m);
}

static int set_user_memory_region2(struct kvm_vm *vm, const void *arg)
{
    struct kvm_userspace_memory_region2 m;
    int r = kvm_user_read(&m, arg, sizeof(m));

    return r < 0 ? r : kvm_slots_set_region(vm, &m);
}

static int get_dirty_log(struct kvm_vm *vm, const void *arg)
{
    struct kvm_dirty_log log;
    int r = kvm_user_read(&log, arg, sizeof(log));

    return r < 0 ? r : kvm_dirty_get_log(vm, &log);
}

static int clear_dirty_log(struct kvm_vm *vm, const void *arg)
{
    struct kvm_clear_dirty_log log;
    int r = kvm_user_read(&log, arg, sizeof(log));

    return r < 0 ? r : kvm_dirty_clear_log(vm, &log);
}

static int enable_cap(struct kvm_vm *vm, const void *arg)
{
    struct kvm_enable_cap cap;
    int r = kvm_user_read(&cap, arg, sizeof(cap));

    return r < 0 ? r : kvm_cap_enable(vm, &cap);
}

/* The task-state and identity-map pages are KVM's help for real mode on processors that need it; here
 * the addresses are only remembered. */
/* No kind of device is made this way here. */
static int create_device(const void *arg)
{
    struct kvm_create_device args;
    int r = kvm_user_read(&args, arg, sizeof(args));

    return r < 0 ? r : -ENODEV;
}

static int set_tss_addr(struct kvm_vm *vm, uint64_t addr)
{
    if (addr > UINT32_MAX - 3 * PAGE_SIZE + 1) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->lock);
    vm->tss_addr = addr;
    pthread_mutex_unlock(&vm->lock);
    return 0;
}

static int set_identity_map(struct kvm_vm *vm, const void *arg)
{
    uint64_t addr;
    int r = kvm_user_read(&addr, arg, sizeof(addr));

    if (r < 0) {
        return r;
    }
    pthread_mutex_lock(&vm->lock);
    r = kvm_vm_nr_vcpus(vm) ? -EINVAL : 0;
    if (r == 0) {
        vm->identity_addr = addr ? addr : 0xfffbc000;
    }
    pthread_mutex_unlock(&vm->lock);
    return r;
}

/* The budget is for shadow pages, of which two-stage paging has none. */
static int set_nr_mmu_pages(struct kvm_vm *vm, uint64_t pages)
{
    if (pages < 64) {
        return -EINVAL;
    }
    if (vm->mmu.ops->set_limit) {
        vm->mmu.ops->set_limit(vm, pages);
    }
    return 0;
}

static int set_boot_cpu(struct kvm_vm *vm, uint64_t id)
{
    int r = 0;

    pthread_mutex_lock(&vm->lock);
    if (kvm_vm_nr_vcpus(vm)) {
        r = -EBUSY;
    } else {
        vm->bsp_id = (uint32_t)id;
    }
    pthread_mutex_unlock(&vm->lock);
    return r;
}

static int set_tsc_khz(struct kvm_vm *vm, uint64_t khz)
{
    if (khz > UINT32_MAX / 2) {
        return -EINVAL;
    }
    pthread_mutex_lock(&vm->lock);
    vm->tsc_khz = khz ? (uint32_t)khz : vm->s->tsc_khz;
    pthread_mutex_unlock(&vm->lock);
    return 0;
}

int kvm_vm_ioctl(struct kvm_vm *vm, unsigned long request, void *arg)
{
    uint64_t number = (uintptr_t)arg;
    int r;

    if (atomic_load_explicit(&vm->dead, memory_order_relaxed)) {
        return -EIO;
    }
    switch (request) {
    case KVM_CREATE_VCPU:
        return kvm_vcpu_create(vm, number);
    case KVM_CREATE_DEVICE:
        return create_device(arg);
    case KVM_SET_USER_MEMORY_REGION:
        return set_user_memory_region(vm, arg);
    case KVM_SET_USER_MEMORY_REGION2:
        return set_user_memory_region2(vm, arg);
    case KVM_CREATE_GUEST_MEMFD:
        return kvm_gmem_create(vm, arg);
    case KVM_SET_MEMORY_ATTRIBUTES:
        return kvm_attributes_set(vm, arg);
    case SOFTKVM_SLOT_TRANSACTION:
        return kvm_slots_transaction(vm, arg);
    case SOFTKVM_POPULATE_PRIVATE:
        return kvm_gmem_populate(vm, arg);
    case KVM_GET_DIRTY_LOG:
        return get_dirty_log(vm, arg);
    case KVM_CLEAR_DIRTY_LOG:
        return clear_dirty_log(vm, arg);
    case KVM_CHECK_EXTENSION:
        return kvm_cap_check(vm->s, vm, (long)(intptr_t)arg);
    case KVM_ENABLE_CAP:
        return enable_cap(vm, arg);
    case KVM_SET_TSS_ADDR:
        return set_tss_addr(vm, number);
    case KVM_SET_IDENTITY_MAP_ADDR:
        return set_identity_map(vm, arg);
    case KVM_SET_NR_MMU_PAGES:
        return set_nr_mmu_pages(vm, number);
    case KVM_GET_NR_MMU_PAGES:
        return 0;
    case KVM_SET_BOOT_CPU_ID:
        return set_boot_cpu(vm, number);
    case KVM_RESET_DIRTY_RINGS:
        return kvm_ring_reset_all(vm);
    case KVM_X86_SET_MSR_FILTER:
        return kvm_msr_filter_set(vm, arg);
    case KVM_SET_TSC_KHZ:
        return set_tsc_khz(vm, number);
    case KVM_GET_TSC_KHZ:
        return (int)vm->tsc_khz;
    case KVM_GET_STATS_FD:
        return kvm_stats_open(vm, NULL);
    default:
        r = vm->irq->vm_ioctl(vm, request, arg);
        return r != -ENOTTY ? r : kvm_inspect_vm(vm, request, arg);
    }
}
