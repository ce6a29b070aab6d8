/*
 * Quirks: see quirks.h. Locks: the vCPU's thread, or vcpu->lock.
 */
#include "softkvm/quirks.h"

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "softkvm/cpuid.h"
#include "softkvm/exit.h"

#define AMD_EBX   0x68747541u
#define HYGON_EBX 0x6f677948u

/*
 * Which of MONITOR and MWAIT's ways the processor goes: never #UD, as MISC_ENABLE says, or as CPUID says.
 * Source: kvm_emulate_monitor_mwait(), kvm_update_cpuid_runtime().
 */
uint32_t kvm_quirk_features(const struct kvm_vcpu *v)
{
    if (kvm_has_quirk(v->vm, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)) {
        return CPU_FEAT_MWAIT;
    }
    if (!kvm_has_quirk(v->vm, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)) {
        return CPU_FEAT_MWAIT_MISC;
    }
    return kvm_cpuid_has(v, 1, 2, 3) ? CPU_FEAT_MWAIT : 0;
}

static bool is_amd(const struct kvm_vcpu *v)
{
    uint32_t id[4];

    kvm_cpuid_read((struct kvm_vcpu *)v, 0, 0, id);
    return id[1] == AMD_EBX || id[1] == HYGON_EBX;
}

static int inject(struct kvm_vcpu *v, struct cpu_event ev)
{
    ev.type = CPU_EVENT_EXCEPTION;
    cpu_inject(v->cpu, &ev);
    return KVM_GO_ON;
}

/*
 * VMCALL and VMMCALL are each one vendor's. With the quirk on, the guest's instruction is replaced by its vendor's and
 * run again; a code page that cannot be written gives the guest its page fault. With the quirk off: #UD.
 * Returns KVM_LEAVE when the instruction is the right one already (the caller goes on with the hypercall), else KVM_GO_ON.
 * Source: emulator_fix_hypercall().
 */
int kvm_quirk_hypercall(struct kvm_vcpu *v)
{
    static const uint8_t insn[2][3] = {{0x0f, 0x01, 0xc1}, {0x0f, 0x01, 0xd9}};
    bool amd = is_amd(v), user = v->cpu->cpl == 3;
    gpa_t where;

    if (v->cpu->exit.hypercall.is_vmmcall == amd) {
        return KVM_LEAVE;
    }
    if (!kvm_has_quirk(v->vm, KVM_X86_QUIRK_FIX_HYPERCALL_INSN)) {
        return inject(v, (struct cpu_event){.vector = X86_UD});
    }
    for (unsigned i = 0; i < 3; i++) {
        uint64_t la = v->cpu->rip + v->cpu->seg_base[CPU_CS] + i;

        if (cpu_translate(v->cpu, gva(la), X86_PFEC_W | (user ? X86_PFEC_U : 0), &where) < 0 ||
            kvm_guest_write(v, where, &insn[amd][i], 1) < 0) {
            return inject(v, (struct cpu_event){.vector = X86_VEC_PF, .has_error = 1, .payload = la,
                                               .error = X86_PFEC_P | X86_PFEC_W | (user ? X86_PFEC_U : 0)});
        }
    }
    v->memory_touched = true;
    return KVM_GO_ON;
}

/* Source: guest_pv_has(). */
bool kvm_guest_pv_has(const struct kvm_vcpu *v, unsigned feature)
{
    return !v->pv_enforced || kvm_cpuid_has(v, 0x40000001, 0, feature);
}
