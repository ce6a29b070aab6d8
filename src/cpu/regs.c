/*
 * Registers from outside: see regs.h. Checks are those of KVM_SET_SREGS: only combinations that make the
 * processor's own rules impossible are refused. Locks: none, the processor's own thread, outside cpu_run().
 */
#include "cpu/regs.h"

#include <errno.h>
#include <string.h>

#include "cpu/ctrlreg.h"
#include "cpu/flags.h"
#include "cpu/fpu.h"
#include "cpu/run.h"
#include "cpu/system.h"

/* RIP, general registers and whole RFLAGS. */
void cpu_get_regs(const struct cpu *cpu, struct cpu_regs *out)
{
    memcpy(out->gpr, cpu->regs, sizeof(out->gpr));
    out->rip = cpu->rip;
    out->rflags = cpu_get_rflags(cpu);
}

/* Source: KVM_SET_REGS, which takes what it is given and sets the bit that is always one. */
void cpu_set_regs(struct cpu *cpu, const struct cpu_regs *in)
{
    memcpy(cpu->regs, in->gpr, sizeof(in->gpr));
    cpu->rip = in->rip;
    cpu_set_rflags(cpu, in->rflags);
    cpu_update_mode(cpu);
}

/* Segments with their hidden parts, tables, control registers, EFER. */
void cpu_get_sregs(const struct cpu *cpu, struct cpu_sregs *out)
{
    memcpy(out->seg, cpu->seg, sizeof(out->seg));
    out->ldtr = cpu->ldtr;
    out->tr = cpu->tr;
    out->gdtr = cpu->gdtr;
    out->idtr = cpu->idtr;
    out->cr0 = cpu->cr0;
    out->cr2 = cpu->cr2;
    out->cr3 = cpu->cr3;
    out->cr4 = cpu->cr4;
    out->cr8 = cpu->cr8;
    out->efer = cpu->efer;
}

/* Source: KVM's rules for sregs: long mode whole or not at all, CR4 and CR0 legal. */
static bool sregs_are_legal(const struct cpu *cpu, const struct cpu_sregs *in)
{
    if (!cpu_cr0_is_legal(in->cr0) || (in->cr4 & ~cpu_cr4_valid(cpu)) || in->cr8 >> 4) {
        return false;
    }
    if ((in->efer & X86_EFER_LME) && (in->cr0 & X86_CR0_PG)) {
        return (in->cr4 & X86_CR4_PAE) && (in->efer & X86_EFER_LMA) && !(in->cr3 >> cpu->maxphyaddr);
    }
    return !(in->efer & X86_EFER_LMA) && !in->seg[CPU_CS].l;
}

/*
 * Load them all, forget translations, derive the mode.
 * in: KVM_SET_SREGS' content. Returns 0, or -EINVAL with nothing changed for a combination that cannot be.
 */
int cpu_set_sregs(struct cpu *cpu, const struct cpu_sregs *in)
{
    if (!sregs_are_legal(cpu, in)) {
        return -EINVAL;
    }
    memcpy(cpu->seg, in->seg, sizeof(cpu->seg));
    cpu->ldtr = in->ldtr;
    cpu->tr = in->tr;
    cpu->gdtr = in->gdtr;
    cpu->idtr = in->idtr;
    cpu->cr0 = in->cr0 | X86_CR0_ET;
    cpu->cr2 = in->cr2;
    cpu->cr3 = in->cr3;
    cpu->cr4 = in->cr4;
    cpu->cr8 = in->cr8;
    cpu->efer = in->efer;
    /* PDPTEs are not in struct kvm_sregs: the first walk reads them from memory. */
    cpu->pdptes_stale = 1;
    cpu_state_changed(cpu);
    return 0;
}

/* The guest's own debug registers, whatever a debugger outside has put in their place. */
void cpu_get_dregs(const struct cpu *cpu, struct cpu_dregs *out)
{
    memcpy(out->db, cpu->dr, sizeof(out->db));
    out->dr6 = cpu->dr6;
    out->dr7 = cpu->dr7;
}

/* Load them; fixed bits are fixed. 0, or -EINVAL for DR6 or DR7 above 32 bits. Source: KVM_SET_DEBUGREGS. */
int cpu_set_dregs(struct cpu *cpu, const struct cpu_dregs *in)
{
    if (in->dr6 >> 32 || in->dr7 >> 32) {
        return -EINVAL;
    }
    memcpy(cpu->dr, in->db, sizeof(cpu->dr));
    cpu->dr6 = (in->dr6 & 0xe00f) | 0xffff0ff0;
    cpu->dr7 = (in->dr7 & 0xffff23ff) | 0x400;
    cpu_update_mode(cpu);
    return 0;
}

/* Source: KVM_SET_GUEST_DEBUG. The guest's own debug registers keep their contents meanwhile. */
void cpu_set_guest_debug(struct cpu *cpu, const struct cpu_guest_debug *in)
{
    cpu->single_step = in->single_step;
    cpu->trap_int3 = in->int3;
    cpu->has_host_dr = in->breakpoints;
    memcpy(cpu->host_dr, in->db, sizeof(cpu->host_dr));
    cpu->host_dr7 = in->dr7;
    cpu_update_mode(cpu);
}

/* What waits for delivery, and what forbids interrupts. */
void cpu_get_events(const struct cpu *cpu, struct cpu_events *out)
{
    /* A fault that waits for delivery is as good as one injected. */
    out->event = cpu->fault.type != CPU_EVENT_NONE ? cpu->fault : cpu->event;
    out->interrupt_shadow = cpu->interrupt_shadow;
    out->nmi_blocked = cpu->nmi_blocked;
}

/* Replace it. Source: KVM_SET_VCPU_EVENTS. */
void cpu_set_events(struct cpu *cpu, const struct cpu_events *in)
{
    cpu->event = in->event;
    cpu->fault.type = cpu->deferred.type = CPU_EVENT_NONE;
    cpu->interrupt_shadow = in->interrupt_shadow;
    cpu->nmi_blocked = in->nmi_blocked;
}

/* Source: Intel, "XSETBV". This processor has x87 and SSE state. */
int cpu_set_xcr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    if (index != 0 || !(value & 1) || (value & ~UINT64_C(3))) {
        return -EINVAL;
    }
    cpu->xcr0 = value;
    return 0;
}
