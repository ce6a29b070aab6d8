/*
 * Hypercalls: the interrupt chips' own are theirs (irq.h); here is what is left, and the way to user space
 * and back.
 *
 * Locks: as exit.c's.
 */
#include <errno.h>
#include <string.h>

#include "cpu/run.h"
#include "softkvm/exit.h"
#include "softkvm/quirks.h"
#include "softkvm/vcpu.h"

/* KVM_HC_* numbers and answers that guests know from <linux/kvm_para.h>. */
#define HC_VAPIC_POLL_IRQ 1
#define HC_MAP_GPA_RANGE  12
#define HC_ENOSYS         UINT64_C(1000)
#define HC_EPERM          UINT64_C(1)
#define HC_EINVAL         UINT64_C(22)

/* A range of pages is to become private or shared: user space's decision. 0, or -EINVAL. */
static int map_gpa_range(struct kvm_vcpu *v, const uint64_t args[5])
{
    uint64_t first = args[1] >> PAGE_SHIFT;

    if (page_offset(args[1]) || !args[2] || first + args[2] <= first) {
        return -EINVAL;
    }
    memset(&v->run->hypercall, 0, sizeof(v->run->hypercall));
    v->run->hypercall.nr = HC_MAP_GPA_RANGE;
    v->run->hypercall.args[0] = args[1];
    v->run->hypercall.args[1] = args[2];
    v->run->hypercall.args[2] = args[3];
    v->run->hypercall.longmode = (v->cpu->mode & CPU_MODE_64) != 0;
    v->pending.kind = KVM_PENDING_HYPERCALL;
    return 0;
}

/*
 * VMCALL. Calls from user mode are refused; what nobody knows is answered ENOSYS; a conversion of pages is
 * user space's decision, if it has asked for it. Source: KVM's kvm_emulate_hypercall().
 */
int kvm_exit_hypercall(struct kvm_vcpu *v)
{
    uint64_t *r = v->cpu->regs;
    bool is_long = v->cpu->mode & CPU_MODE_64;
    uint64_t mask = is_long ? UINT64_MAX : UINT32_MAX;
    uint64_t args[5] = {r[CPU_RAX] & mask, r[CPU_RBX] & mask, r[CPU_RCX] & mask, r[CPU_RDX] & mask,
                        r[CPU_RSI] & mask};
    uint64_t ret = -HC_ENOSYS;

    if (kvm_quirk_hypercall(v) == KVM_GO_ON) {
        return KVM_GO_ON;
    }
    KVM_COUNT(&v->counters.hypercalls);
    if (v->cpu->cpl != 0) {
        ret = -HC_EPERM;
    } else if (args[0] == HC_VAPIC_POLL_IRQ) {
        kvm_vcpu_request(v, KVM_REQUEST_EVENT);
        ret = 0;
    } else if (args[0] == HC_MAP_GPA_RANGE && (v->vm->exit_hypercalls >> HC_MAP_GPA_RANGE & 1)) {
        if (!map_gpa_range(v, args)) {
            v->run->exit_reason = KVM_EXIT_HYPERCALL;
            return KVM_LEAVE;
        }
        ret = -HC_EINVAL;
    } else if (!v->vm->irq->hypercall(v, args, &ret)) {
        ret = -HC_ENOSYS;
    }
    r[CPU_RAX] = is_long ? ret : (uint32_t)ret;
    return kvm_exit_skip_insn(v);
}

/* User space has answered. */
int kvm_exit_complete_hypercall(struct kvm_vcpu *v)
{
    uint64_t ret = v->run->hypercall.ret;

    v->cpu->regs[CPU_RAX] = v->cpu->mode & CPU_MODE_64 ? ret : (uint32_t)ret;
    return kvm_exit_skip_insn(v);
}
