/*
 * The guest's paging as its registers say: what the walk over its tables obeys, the roles of the pages that shadow
 * them, and the control registers that the processor's own walk obeys.
 *
 * Differs from KVM: a page's role also carries what KVM keeps in the vCPU's extended role and entries depend on (PSE,
 * long mode, depth, 1 GiB pages), so that tables read in two ways never share a page.
 *
 * Locks: the vCPU's thread.
 */
#include <string.h>

#include "arch/regs.h"
#include "softkvm/shadow/shadow.h"

static uint64_t above(unsigned bits)
{
    return ~((UINT64_C(1) << bits) - 1) & X86_PTE_ADDR_MASK;
}

/* PAE's PDPTEs after a change from outside: read now, those with reserved bits count as absent. */
static void load_stale_pdptes(struct kvm_vcpu *v)
{
    struct cpu *cpu = v->cpu;
    uint64_t reserved = ~((UINT64_C(1) << cpu->maxphyaddr) - 1) | UINT64_C(0x1e6);
    uint64_t pdpte[4];

    if (kvm_guest_read(v->vm, gpa(cpu->cr3 & UINT64_C(0xffffffe0)), pdpte, sizeof(pdpte)) < 0) {
        memset(pdpte, 0, sizeof(pdpte));
    }
    for (unsigned i = 0; i < 4; i++) {
        cpu->pdptr[i] = pdpte[i] & reserved ? 0 : pdpte[i];
    }
    cpu->pdptes_stale = 0;
}

/* The levels and the entries of the guest's tables. */
static void mode_format(const struct cpu *cpu, struct kvm_guest_mode *m)
{
    m->entry_size = 8;
    m->reserved = above(cpu->maxphyaddr) | (m->nx ? 0 : X86_PTE_NX);
    if (!(cpu->cr0 & X86_CR0_PG)) {
        m->levels = 0;
    } else if (m->lma) {
        m->levels = cpu->cr4 & X86_CR4_LA57 ? 5 : 4;
    } else if (cpu->cr4 & X86_CR4_PAE) {
        m->levels = 3;
        m->reserved |= UINT64_C(0x7ff0000000000000);
    } else {
        m->levels = 2;
        m->entry_size = 4;
        m->reserved = 0;
    }
}

/*
 * Fill *m from the vCPU's registers. Lock: vcpu->lock, in the read section. Source: KVM's vcpu_to_role_regs() and
 * kvm_calc_cpu_role().
 */
void kvm_shadow_mode(struct kvm_vcpu *v, struct kvm_guest_mode *m)
{
    struct cpu *cpu = v->cpu;
    bool paged = (cpu->cr0 & X86_CR0_PG) != 0;

    memset(m, 0, sizeof(*m));
    m->lma = (cpu->efer & X86_EFER_LMA) != 0;
    m->wp = (cpu->cr0 & X86_CR0_WP) != 0;
    m->nx = (cpu->efer & X86_EFER_NX) && (cpu->cr4 & X86_CR4_PAE);
    m->smep = paged && (cpu->cr4 & X86_CR4_SMEP);
    m->smap = paged && (cpu->cr4 & X86_CR4_SMAP);
    m->pse = (cpu->cr4 & X86_CR4_PSE) != 0;
    m->pke = m->lma && (cpu->cr4 & X86_CR4_PKE);
    m->has_1g = (cpu->features & CPU_FEAT_1G) != 0;
    m->pkru = cpu->pkru;
    mode_format(cpu, m);
    if (m->levels == 3 && cpu->pdptes_stale) {
        load_stale_pdptes(v);
    }
    m->cr3 = m->levels >= 4 ? cpu->cr3 & X86_PTE_ADDR_MASK : cpu->cr3 & UINT64_C(0xfffff000);
    memcpy(m->pdptr, cpu->pdptr, sizeof(m->pdptr));
}

/* The bits that all roles of a mode share, with access for everything. Source: KVM's kvm_calc_shadow_root_page_role_common(). */
union kvm_role kvm_shadow_base_role(const struct kvm_guest_mode *m)
{
    union kvm_role role = {.word = 0};

    role.access = KVM_ACC_ALL;
    if (m->levels == 0) {
        role.direct = 1;
        return role;
    }
    role.has_4_byte = m->entry_size == 4;
    role.nx = m->nx;
    role.wp = m->wp;
    role.smep_no_wp = m->smep && !m->wp;
    role.smap_no_wp = m->smap && !m->wp;
    role.paged = 1;
    role.pse = m->entry_size == 4 && m->pse;
    role.long_mode = m->levels >= 4;
    role.top = m->levels;
    role.has_1g = m->levels >= 4 && m->has_1g;
    return role;
}

/*
 * What a page's guest entries mean, from its role. v: for the physical width. Not filled: cr3, pdptr, pkru.
 */
void kvm_role_mode(const struct kvm_vcpu *v, union kvm_role role, struct kvm_guest_mode *m)
{
    memset(m, 0, sizeof(*m));
    m->levels = (uint8_t)role.top;
    m->entry_size = role.has_4_byte ? 4 : 8;
    m->nx = role.nx;
    m->wp = role.wp;
    m->pse = role.pse;
    m->lma = role.long_mode;
    m->has_1g = role.has_1g;
    m->smep = role.smep_no_wp;
    m->smap = role.smap_no_wp;
    if (!role.has_4_byte) {
        m->reserved = above(v->cpu->maxphyaddr) | (m->nx ? 0 : X86_PTE_NX) |
                      (role.long_mode ? 0 : UINT64_C(0x7ff0000000000000));
    }
}

/*
 * The control registers for the processor's walk: paging and write protection on, NX on; SMEP and SMAP as the guest has
 * them while it pages (its entries are user ones before). Protection keys stay off: entries carry none.
 * Source: KVM's vmx_set_cr0(), vmx_set_cr4(), vmx_set_efer() without EPT.
 */
void kvm_shadow_hw_regs(const struct kvm_vcpu *v, const struct kvm_guest_mode *m, struct cpu_shadow_root *r)
{
    r->cr0 = v->cpu->cr0 | X86_CR0_PE | X86_CR0_PG | X86_CR0_WP;
    r->cr4 = (v->cpu->cr4 & ~(uint64_t)(X86_CR4_PKE | X86_CR4_PCIDE)) | X86_CR4_PAE;
    r->efer = v->cpu->efer | X86_EFER_NX;
    if (!m->smep) {
        r->cr4 &= ~(uint64_t)X86_CR4_SMEP;
    }
    if (!m->smap) {
        r->cr4 &= ~(uint64_t)X86_CR4_SMAP;
    }
    r->levels = m->levels >= 4 ? m->levels : 3;
}
