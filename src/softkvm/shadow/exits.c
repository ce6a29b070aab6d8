/*
 * The processor's exits under shadow paging, and what must be done before it is entered.
 *
 * Locks: vcpu->lock, in the read section.
 */
#include <errno.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "softkvm/exit.h"
#include "softkvm/shadow/shadow.h"

/* MOV to CR0, CR3 or CR4, or a write of EFER, is done; the root for the new registers is loaded at the entry. */
static int handle_cr_write(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;

    TRACE(&v->vm->s->trace, shadow_cr_write, "register %llu value %llx", e->cr.reg, e->cr.value);
    if (e->cr.reg == 3) {
        kvm_shadow_cr3_written(v, e->cr.value);
        return KVM_GO_ON;
    }
    /* All translations went with these: no cached root may keep what it knew. */
    v->shadow->sync_wanted = true;
    kvm_shadow_forget_pcid(v, UINT32_MAX);
    return KVM_GO_ON;
}

static unsigned current_pcid(const struct kvm_vcpu *v)
{
    return v->cpu->cr4 & X86_CR4_PCIDE ? (unsigned)v->cpu->cr3 & X86_CR3_PCID_MASK : 0;
}

/* INVLPG and INVPCID. Source: KVM's handle_invlpg(), kvm_handle_invpcid(). */
static int handle_invalidate(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;

    switch (e->inval.type) {
    case CPU_INVALIDATE_PAGE:
        kvm_shadow_invlpg(v, e->inval.gva.v, true);
        break;
    case 0:
        if (e->inval.pcid == current_pcid(v)) {
            kvm_shadow_invlpg(v, e->inval.gva.v, false);
        }
        kvm_shadow_forget_pcid(v, e->inval.pcid);
        break;
    case 1:
        if (e->inval.pcid == current_pcid(v)) {
            kvm_shadow_sync_roots(v);
        }
        kvm_shadow_forget_pcid(v, e->inval.pcid);
        break;
    default:
        kvm_shadow_sync_roots(v);
        kvm_shadow_forget_pcid(v, UINT32_MAX);
    }
    return KVM_GO_ON;
}

/* PAE's PDPTEs for a load of CR3, or of CR0 or CR4 that turns PAE on. Not in memory: absent. */
static int handle_pdptes(struct kvm_vcpu *v)
{
    uint64_t cr3 = v->cpu->exit.cr.value, pdptes[4] = {0};

    if (kvm_guest_read(v->vm, gpa(cr3), pdptes, sizeof(pdptes)) < 0) {
        pdptes[0] = pdptes[1] = pdptes[2] = pdptes[3] = 0;
    }
    cpu_shadow_give_pdptes(v->cpu, cr3, pdptes);
    return KVM_GO_ON;
}

/* An instruction has written guest tables by grant. */
static int handle_table_write(struct kvm_vcpu *v)
{
    struct cpu_shadow *s = &v->cpu->shadow;
    unsigned n = s->nr_writes;

    s->nr_writes = 0;
    cpu_shadow_forget_grants(v->cpu);
    for (unsigned i = 0; i < n; i++) {
        kvm_shadow_table_written(v, gpa(s->write[i].gpa), s->write[i].len);
    }
    return KVM_GO_ON;
}

/*
 * An exit that only shadow paging has. KVM_GO_ON, KVM_LEAVE or -errno.
 * Lock: vcpu->lock, in the read section.
 */
int kvm_shadow_exit(struct kvm_vcpu *v)
{
    switch (v->cpu->exit.reason) {
    case CPU_EXIT_PAGE_FAULT:
        return kvm_shadow_page_fault(v);
    case CPU_EXIT_CR_WRITE:
        return handle_cr_write(v);
    case CPU_EXIT_INVALIDATE:
        return handle_invalidate(v);
    case CPU_EXIT_PDPTES:
        return handle_pdptes(v);
    case CPU_EXIT_TABLE_WRITE:
        return handle_table_write(v);
    default:
        kvm_vm_bug(v->vm, "an exit of shadow paging without it");
        return -EIO;
    }
}

/*
 * Before the guest is entered: a root must be loaded. 0 or -ENOMEM.
 * Lock: as above.
 */
int kvm_shadow_enter(struct kvm_vcpu *v)
{
    if (likely(!v->cpu->shadow.on || v->cpu->shadow.root)) {
        return 0;
    }
    return kvm_shadow_load(v);
}

/*
 * A device access at the end of a grant: is its page still none of memory's, or one that may not be written?
 */
bool kvm_shadow_is_device(struct kvm_vcpu *v)
{
    const struct cpu_exit *e = &v->cpu->exit;
    const struct kvm_memslot *slot = kvm_slots_find_vcpu(v, gpa_to_gfn(e->ept.gpa));

    return !slot || (e->ept.is_write && (slot->flags & KVM_MEM_READONLY));
}

/*
 * Where a supervisor's read at va would go by the guest's own tables; nothing is changed. 0 or -EFAULT.
 * Lock: vcpu->lock; enters a read section. Source: KVM's kvm_mmu_gva_to_gpa_system().
 */
int kvm_shadow_translate(struct kvm_vcpu *v, gva_t va, gpa_t *out)
{
    struct kvm_guest_mode mode;
    struct kvm_guest_walk w = {.mode = &mode, .la = va.v, .smap_exempt = true, .quiet = true};
    enum kvm_walk_result r;

    kvm_read_begin(v);
    kvm_shadow_mode(v, &mode);
    r = kvm_guest_walk(v, &w);
    kvm_read_end(v);
    if (r != KVM_WALK_OK) {
        return -EFAULT;
    }
    *out = gpa(w.gfn.v << PAGE_SHIFT | page_offset(va.v));
    return 0;
}
