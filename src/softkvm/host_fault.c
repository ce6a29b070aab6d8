/*
 * Guest RAM that the embedding process took away without telling: what the processor met as a host fault
 * (cpu/guard.h) becomes what the kernel would make of it, the answer of get_user_pages.
 *
 *   host fault at an HVA -> ask the process's maps anew for that page: what changed is forgotten, notifiers
 *   take the mapping away -> the guest tries again -> second stage refuses -> no host page -> KVM_RUN: -EFAULT
 *
 * A page that the maps still show as it was (a file shorter than is known, a disk that is full) is given up after
 * a few tries.
 *
 * Locks: takes the mmap lock. In the vCPU's read section, outside the guest.
 */
#include <errno.h>

#include "cpu/guard.h"
#include "softkvm/exit.h"
#include "softkvm/vcpu.h"

#define MAX_TRIES 3

/*
 * All of a slot's memory is guest RAM from now on, for faults of the host there. Never taken back: what is too
 * much costs nothing. Lock: slots_lock; takes the mmap lock.
 */
void kvm_host_ram_note(struct kvm_vm *vm, uint64_t hva_start, uint64_t bytes)
{
    struct cpu_host_ram *ram = &vm->host_ram;
    uint64_t start = atomic_load(&ram->start);

    if (hva_start < start || !atomic_load(&ram->end)) {
        atomic_store(&ram->start, hva_start);
    }
    if (hva_start + bytes > atomic_load(&ram->end)) {
        atomic_store(&ram->end, hva_start + bytes);
    }
    if (hva_start) {
        /* What is known of this memory may be from an earlier life of its addresses. */
        (void)host_mm_recheck(vm->s->mm, hva(hva_start), hva(hva_start + bytes));
    }
}

/* Has anything changed, so that the guest should try again? 1, 0, or -ENOMEM. */
static int learn(struct kvm_vcpu *v, hva_t page, bool is_poison)
{
    struct host_mm *mm = v->vm->s->mm;

    if (is_poison && host_mm_poison(mm, page) == 0) {
        return 1; /* the next fault there gives -EHWPOISON */
    }
    return host_mm_recheck(mm, page, hva(page.v + PAGE_SIZE));
}

/*
 * Guest memory at `addr` could not be accessed: the processor met it, or an access of ours for this vCPU.
 * 0: look again, something has changed or may have; -EFAULT: the host does not give the page though its maps have
 * it; -ENOMEM. Lock: takes the mmap lock; the vCPU's thread.
 */
int kvm_host_gone(struct kvm_vcpu *v, hva_t addr, bool is_poison)
{
    hva_t page = hva(addr.v & PAGE_MASK);
    int learnt;

    KVM_COUNT(&v->counters.host_faults);
    if (v->host_fault_page != page.v) {
        v->host_fault_page = page.v;
        v->host_fault_tries = 0;
    }
    learnt = learn(v, page, is_poison);
    if (learnt == -ENOMEM) {
        return learnt;
    }
    if (learnt > 0 || ++v->host_fault_tries < MAX_TRIES) {
        return 0;
    }
    v->host_fault_page = 0;
    return host_mm_withdraw(v->vm->s->mm, page, hva(page.v + PAGE_SIZE)) == -ENOMEM ? -ENOMEM : -EFAULT;
}

/*
 * The processor's exit. KVM_GO_ON: the guest tries again; or what kvm_host_gone() says. Source: own; the outcome after KVM's kvm_handle_error_pfn().
 */
int kvm_exit_host_fault(struct kvm_vcpu *v)
{
    int r = kvm_host_gone(v, v->cpu->exit.host.addr, v->cpu->exit.host.is_poison);

    TRACE(&v->vm->s->trace, host_fault, "hva %llx rip %llx", v->cpu->exit.host.addr.v, v->cpu->rip);
    return r < 0 ? r : KVM_GO_ON;
}
