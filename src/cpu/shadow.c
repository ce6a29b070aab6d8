/*
 * Shadow paging, the silicon's side: roots, grants, and the exits that only it has; shadow.h tells the protocol.
 *
 * Invariant: exit.reason is changed from NONE alone, but a second table write of one instruction adds to the list.
 *
 * Locks: the processor's own thread.
 */
#include "cpu/shadow.h"

#include <string.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/exception.h"
#include "cpu/tlb.h"
#include "cpu/walk.h"

/* See shadow.h. Source: own; the switch that VMX makes by the "enable EPT" control. */
void cpu_shadow_enable(struct cpu *cpu, bool on)
{
    memset(&cpu->shadow, 0, sizeof(cpu->shadow));
    cpu->shadow.on = on;
    cpu->shadow.levels = 4;
    if (on) {
        cpu->eptp = 0;
    }
    cpu_tlb_flush_all(cpu);
}

/* See shadow.h. Source: VM entry, which loads the host's CR3 field and the PDPTEs. */
void cpu_shadow_load(struct cpu *cpu, const struct cpu_shadow_root *r)
{
    struct cpu_shadow *s = &cpu->shadow;

    s->levels = r->levels;
    s->root = r->levels == 3 ? 1 : r->root.v;
    memcpy(s->pdptr, r->pdptr, sizeof(s->pdptr));
    s->cr0 = r->cr0;
    s->cr4 = r->cr4;
    s->efer = r->efer;
}

void cpu_shadow_unload(struct cpu *cpu)
{
    cpu->shadow.root = 0;
    cpu_shadow_forget_grants(cpu);
}

void cpu_shadow_give_pdptes(struct cpu *cpu, uint64_t cr3, const uint64_t pdptes[4])
{
    cpu->shadow.pdptes_given = true;
    cpu->shadow.pdptes_cr3 = cr3;
    memcpy(cpu->shadow.pdptes, pdptes, sizeof(cpu->shadow.pdptes));
}

/* See shadow.h. Source: VMX's PDPTE fields, turned round: who has no second stage cannot read them. */
bool cpu_shadow_pdptes(struct cpu *cpu, const struct cpu_op *op, uint64_t cr3, uint64_t pdpte[4])
{
    cr3 &= UINT64_C(0xffffffe0);
    if (cpu->shadow.pdptes_given && cpu->shadow.pdptes_cr3 == cr3) {
        cpu->shadow.pdptes_given = false;
        memcpy(pdpte, cpu->shadow.pdptes, sizeof(cpu->shadow.pdptes));
        return true;
    }
    cpu->exit.reason = CPU_EXIT_PDPTES;
    cpu->exit.insn_len = 0;
    cpu->exit.cr.reg = 3;
    cpu->exit.cr.value = cr3;
    cpu_sync_rip(cpu, op);
    if (op->fn) {
        cpu->restart_alone = 1; /* before any interrupt, whose handler might change the entries */
    }
    return false;
}

/* See shadow.h. Source: own; a private view with the page writable, and the monitor trap flag. */
void cpu_shadow_grant(struct cpu *cpu, const struct cpu_grant *g)
{
    struct cpu_shadow *s = &cpu->shadow;

    if (s->grant_rip != cpu->rip) {
        cpu_shadow_forget_grants(cpu);
        s->grant_rip = cpu->rip;
    }
    s->grant[s->next_grant] = *g;
    s->next_grant = (uint8_t)((s->next_grant + 1) % CPU_GRANTS);
    if (s->nr_grants < CPU_GRANTS) {
        s->nr_grants++;
    }
}

static const struct cpu_grant *find(const struct cpu *cpu, uint64_t rip, uint64_t la, bool user)
{
    const struct cpu_shadow *s = &cpu->shadow;

    for (unsigned i = 0; i < s->nr_grants && s->grant_rip == rip; i++) {
        if (s->grant[i].page == (la & PAGE_MASK) && s->grant[i].user == user) {
            return &s->grant[i];
        }
    }
    return NULL;
}

bool cpu_shadow_is_granted(const struct cpu *cpu, uint64_t la, bool user)
{
    return find(cpu, cpu->rip, la, user) != NULL;
}

const struct cpu_grant *cpu_shadow_find_grant(const struct cpu *cpu, const struct cpu_op *op, uint64_t la, bool user)
{
    return find(cpu, cpu_op_rip(cpu, op), la, user);
}

/* See shadow.h. is_fault: x->error_code holds; else the tables name no frame that exists, or no root is loaded, which
 * the hypervisor cannot tell from an absent entry. */
void cpu_shadow_refused(struct cpu *cpu, const struct cpu_op *op, const struct cpu_xlate *x, bool is_fault)
{
    struct cpu_exit *ex = &cpu->exit;

    ex->reason = CPU_EXIT_PAGE_FAULT;
    ex->insn_len = 0;
    ex->pf.gva = gva(x->la);
    ex->pf.priv = x->priv;
    ex->pf.in_delivery = op && !op->fn;
    ex->pf.code = is_fault ? x->error_code
                           : (x->access & CPU_ACCESS_WRITE ? X86_PFEC_W : 0) |
                                 (x->access & CPU_ACCESS_FETCH ? X86_PFEC_F : 0) |
                                 (x->priv == CPU_PRIV_USER ? X86_PFEC_U : 0);
    if (cpu->replay.count) {
        cpu->restart_alone = 1;
    }
}

/* See shadow.h. Lock: own thread, outside cpu_run(). Source: KVM's kvm_inject_page_fault(). */
bool cpu_shadow_reflect(struct cpu *cpu, uint32_t code)
{
    struct cpu_event ev = {.type = CPU_EVENT_EXCEPTION, .vector = X86_VEC_PF, .has_error = 1, .error = code,
                           .payload = cpu->exit.pf.gva.v};

    cpu->fault = ev;
    cpu->task_rest.left = CPU_TASK_WHOLE;
    cpu->restart_alone = 0;
    cpu->replay.count = 0;
    cpu->replay.next = 0;
    return !cpu->exit.pf.in_delivery || cpu_join_fault(cpu);
}

bool cpu_shadow_may_write(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->alone && (cpu->exit.reason == CPU_EXIT_NONE || cpu->exit.reason == CPU_EXIT_TABLE_WRITE)) {
        return true;
    }
    cpu_sync_rip(cpu, op);
    cpu->restart_alone = 1;
    return false;
}

/* See shadow.h. A list that is full grows its last element: more is brought up to date then. */
void cpu_shadow_wrote(struct cpu *cpu, uint64_t addr, unsigned len)
{
    struct cpu_shadow *s = &cpu->shadow;

    if (cpu->exit.reason != CPU_EXIT_TABLE_WRITE) {
        cpu->exit.reason = CPU_EXIT_TABLE_WRITE;
        cpu->exit.insn_len = 0;
        s->nr_writes = 0;
    }
    if (s->nr_writes == CPU_TABLE_WRITES) {
        s->nr_writes--;
        addr = (s->write[s->nr_writes].gpa ^ addr) & PAGE_MASK ? addr : s->write[s->nr_writes].gpa;
        addr &= PAGE_MASK;
        len = (unsigned)PAGE_SIZE;
    }
    s->write[s->nr_writes].gpa = addr;
    s->write[s->nr_writes].len = len;
    s->nr_writes++;
}

void cpu_shadow_cr_written(struct cpu *cpu, unsigned reg, uint64_t value)
{
    cpu_shadow_unload(cpu);
    cpu->exit.reason = CPU_EXIT_CR_WRITE;
    cpu->exit.insn_len = 0;
    cpu->exit.cr.reg = reg;
    cpu->exit.cr.value = value;
}

void cpu_shadow_invalidated(struct cpu *cpu, unsigned type, unsigned pcid, uint64_t la)
{
    cpu_shadow_forget_grants(cpu);
    cpu->exit.reason = CPU_EXIT_INVALIDATE;
    cpu->exit.insn_len = 0;
    cpu->exit.inval.type = (uint8_t)type;
    cpu->exit.inval.pcid = (uint16_t)pcid;
    cpu->exit.inval.gva = gva(la);
}
