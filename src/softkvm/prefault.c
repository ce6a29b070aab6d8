/*
 * KVM_PRE_FAULT_MEMORY: the second stage of a range filled before the guest asks, by the same way that a
 * fault goes. Pages are mapped as a read would: in a logging slot nothing becomes dirty.
 */
#include "softkvm/prefault.h"

#include <errno.h>
#include <sched.h>

#include "softkvm/attributes.h"
#include "softkvm/kvm_abi.h"
#include "softkvm/mmu_entry.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

/* Bytes from addr to the end of the page that maps it now. */
static uint64_t mapped_size(struct kvm_vm *vm, gpa_t addr)
{
    uint64_t size;
    unsigned level;

    pthread_rwlock_rdlock(&vm->mmu.lock);
    kvm_pte_find_leaf(vm, gpa_to_gfn(addr), &level);
    size = pt_leaf_size(level);
    pthread_rwlock_unlock(&vm->mmu.lock);
    return size - (addr.v & (size - 1));
}

/* One page. *done: bytes. Leaves and re-enters the read section while slots change. */
static int map_page(struct kvm_vcpu *v, uint64_t addr, uint64_t *done)
{
    struct kvm_vm *vm = v->vm;
    int error = 0;

    if (kvm_vm_has_shared_bit(vm) && !kvm_page_is_private(vm, gpa_to_gfn(gpa(addr)))) {
        addr |= KVM_SHARED_GFN_BIT << PAGE_SHIFT;
    }
    for (;;) {
        if (kvm_vcpu_take_request(v, KVM_REQUEST_SIGNAL)) {
            return -EINTR;
        }
        switch (kvm_mmu_fault(v, gpa(addr), EPT_VIOL_READ, &error)) {
        case KVM_FAULT_FIXED:
        case KVM_FAULT_SPURIOUS:
            *done = mapped_size(vm, gpa(addr));
            return 0;
        case KVM_FAULT_EMULATE:
        case KVM_FAULT_WRITE_RO:
            return -ENOENT;
        case KVM_FAULT_ERROR:
            return error;
        case KVM_FAULT_RETRY:
            kvm_read_end(v);
            sched_yield();
            kvm_read_begin(v);
            break;
        }
    }
}

/*
 * KVM_PRE_FAULT_MEMORY. Moves gpa and size on by what was mapped. Returns 0 when that is anything; else
 * -EFAULT (argument, no host memory, the other half's memory), -EINVAL (flags, unaligned, empty or wrapping
 * range), -EOPNOTSUPP (shadow paging), -ENOENT (no slot), -EINTR (a signal came first), -ENOMEM.
 * Source: KVM's kvm_vcpu_pre_fault_memory().
 */
int kvm_prefault(struct kvm_vcpu *v, void *arg)
{
    struct kvm_pre_fault_memory u;
    uint64_t full, done = 0;
    int r = kvm_user_read(&u, arg, sizeof(u));

    if (r < 0) {
        return r;
    }
    if (u.flags || page_offset(u.gpa) || page_offset(u.size) || u.gpa + u.size <= u.gpa) {
        return -EINVAL;
    }
    full = u.size;
    r = v->vm->s->options.mmu == SOFTKVM_MMU_SHADOW ? -EOPNOTSUPP : 0;
    while (r == 0 && u.size) {
        r = map_page(v, u.gpa, &done);
        if (r == 0) {
            done = done < u.size ? done : u.size;
            u.gpa += done;
            u.size -= done;
            kvm_read_end(v); /* slots may change between two pages */
            kvm_read_begin(v);
        }
    }
    if (kvm_user_write(arg, &u, sizeof(u)) < 0) {
        return -EFAULT;
    }
    return u.size < full ? 0 : r;
}
