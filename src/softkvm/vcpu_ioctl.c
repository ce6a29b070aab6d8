/*
 * Ioctls of a vCPU descriptor. All run under vcpu->lock; those that read guest memory or slots are in a
 * read section, as KVM_RUN itself is.
 */
#include <errno.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/run.h"
#include "softkvm/cpuid.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/msr.h"
#include "softkvm/prefault.h"
#include "softkvm/sigmask.h"
#include "softkvm/state.h"
#include "softkvm/stats.h"
#include "softkvm/tsc.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

/* ---- state, by structure ---- */

/* A request whose whole work is to copy one structure out, or in. */
#define STATE_GET(name, type, fn)                                                                  \
    static int name(struct kvm_vcpu *v, void *arg)                                                 \
    {                                                                                              \
        type x;                                                                                    \
                                                                                                   \
        memset(&x, 0, sizeof(x));                                                                  \
        fn(v, &x);                                                                                 \
        return kvm_user_write(arg, &x, sizeof(x));                                                 \
    }

#define STATE_SET(name, type, fn)                                                                  \
    static int name(struct kvm_vcpu *v, void *arg)                                                 \
    {                                                                                              \
        type x;                                                                                    \
        int r = kvm_user_read(&x, arg, sizeof(x));                                                 \
                                                                                                   \
        return r < 0 ? r : fn(v, &x);                                                              \
    }

static int set_regs_checked(struct kvm_vcpu *v, const struct kvm_regs *r)
{
    kvm_state_set_regs(v, r);
    return 0;
}

STATE_GET(get_regs, struct kvm_regs, kvm_state_get_regs)
STATE_SET(set_regs, struct kvm_regs, set_regs_checked)
STATE_GET(get_sregs, struct kvm_sregs, kvm_state_get_sregs)
STATE_SET(set_sregs, struct kvm_sregs, kvm_state_set_sregs)
STATE_GET(get_sregs2, struct kvm_sregs2, kvm_state_get_sregs2)
STATE_SET(set_sregs2, struct kvm_sregs2, kvm_state_set_sregs2)
STATE_GET(get_fpu, struct kvm_fpu, kvm_state_get_fpu)
STATE_SET(set_fpu, struct kvm_fpu, kvm_state_set_fpu)
STATE_GET(get_xsave, struct kvm_xsave, kvm_state_get_xsave)
STATE_SET(set_xsave, struct kvm_xsave, kvm_state_set_xsave)
STATE_GET(get_xcrs, struct kvm_xcrs, kvm_state_get_xcrs)
STATE_SET(set_xcrs, struct kvm_xcrs, kvm_state_set_xcrs)
STATE_GET(get_debugregs, struct kvm_debugregs, kvm_state_get_debugregs)
STATE_SET(set_debugregs, struct kvm_debugregs, kvm_state_set_debugregs)
STATE_GET(get_events, struct kvm_vcpu_events, kvm_state_get_events)
STATE_SET(set_events, struct kvm_vcpu_events, kvm_state_set_events)
STATE_SET(set_guest_debug, struct kvm_guest_debug, kvm_state_set_guest_debug)

/* ---- MSRs ---- */

#define MAX_MSRS 256u /* KVM's MAX_IO_MSRS */

/* KVM_GET_MSRS, KVM_SET_MSRS: stops at the first that fails; returns how many were done. */
static int msrs(struct kvm_vcpu *v, struct kvm_msrs *user, bool is_set)
{
    struct kvm_msrs head;
    uint32_t i;
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    if (head.nmsrs >= MAX_MSRS) {
        return -E2BIG;
    }
    for (i = 0; i < head.nmsrs; i++) {
        struct kvm_msr_entry e;
        uint64_t value = 0;
        enum kvm_msr_result done;

        r = kvm_user_read(&e, &user->entries[i], sizeof(e));
        if (r < 0) {
            return r;
        }
        done = is_set ? kvm_msr_set(v, e.index, e.data, true) : kvm_msr_get(v, e.index, &value, true);
        if (done != KVM_MSR_DONE) {
            break;
        }
        e.data = value;
        if (!is_set && (r = kvm_user_write(&user->entries[i], &e, sizeof(e))) < 0) {
            return r;
        }
    }
    return (int)i;
}

/* ---- CPUID ---- */

static int set_cpuid2(struct kvm_vcpu *v, const struct kvm_cpuid2 *user)
{
    struct kvm_cpuid_entry2 entries[KVM_MAX_CPUID_ENTRIES];
    struct kvm_cpuid2 head;
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    if (head.nent > KVM_MAX_CPUID_ENTRIES) {
        return -E2BIG;
    }
    r = kvm_user_read(entries, user->entries, head.nent * sizeof(entries[0]));
    return r < 0 ? r : kvm_cpuid_set(v, entries, head.nent);
}

static int get_cpuid2(struct kvm_vcpu *v, struct kvm_cpuid2 *user)
{
    struct kvm_cpuid2 head;
    int r = kvm_user_read(&head, user, sizeof(head));

    if (r < 0) {
        return r;
    }
    if (head.nent < v->nr_cpuid) {
        return -E2BIG;
    }
    head.nent = v->nr_cpuid;
    r = kvm_user_write(user, &head, sizeof(head));
    return r < 0 ? r : kvm_user_write(user->entries, v->cpuid, v->nr_cpuid * sizeof(*v->cpuid));
}

/* ---- events and the rest ---- */

/* KVM_INTERRUPT: user space's own PIC injects a vector. */
static int interrupt(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_interrupt irq;
    int r = kvm_user_read(&irq, arg, sizeof(irq));

    if (r < 0) {
        return r;
    }
    if (irq.irq > 255) {
        return -EINVAL;
    }
    if (v->lapic) {
        return -ENXIO;
    }
    v->extint_vector = (int)irq.irq;
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return 0;
}

static int get_mp_state(struct kvm_vcpu *v, void *arg)
{
    struct kvm_mp_state s = {.mp_state = atomic_load(&v->mp_state)};

    return kvm_user_write(arg, &s, sizeof(s));
}

static int set_mp_state(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_mp_state s;
    int r = kvm_user_read(&s, arg, sizeof(s));

    if (r < 0) {
        return r;
    }
    if (s.mp_state > KVM_MP_STATE_SIPI_RECEIVED ||
        (!v->lapic && s.mp_state != KVM_MP_STATE_RUNNABLE)) {
        return -EINVAL;
    }
    if (s.mp_state == KVM_MP_STATE_SIPI_RECEIVED) {
        atomic_store(&v->mp_state, KVM_MP_STATE_INIT_RECEIVED);
        kvm_vcpu_request(v, KVM_REQUEST_SIPI);
    } else {
        atomic_store(&v->mp_state, s.mp_state);
    }
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return 0;
}

static int translate(struct kvm_vcpu *v, void *arg)
{
    struct kvm_translation t;
    int r = kvm_user_read(&t, arg, sizeof(t));

    if (r < 0) {
        return r;
    }
    kvm_state_translate(v, &t);
    return kvm_user_write(arg, &t, sizeof(t));
}

static int set_tsc_khz(struct kvm_vcpu *v, uint64_t khz)
{
    uint64_t now = kvm_vcpu_tsc(v);

    if (khz > UINT32_MAX / 2) {
        return -EINVAL;
    }
    v->tsc_khz = khz ? (uint32_t)khz : v->vm->s->tsc_khz;
    v->cpu->tsc_ratio = v->tsc_khz == v->vm->s->tsc_khz
                            ? UINT64_C(1) << 32
                            : ((uint64_t)v->tsc_khz << 32) / v->vm->s->tsc_khz;
    v->cpu->tsc_offset += (int64_t)(now - kvm_vcpu_tsc(v));
    kvm_vcpu_request(v, KVM_REQUEST_CLOCK);
    return 0;
}

/* KVM_X86_SETUP_MCE: how many banks, and which controls. */
static int setup_mce(struct kvm_vcpu *v, const void *arg)
{
    uint64_t cap;
    int r = kvm_user_read(&cap, arg, sizeof(cap));

    if (r < 0) {
        return r;
    }
    if (!(cap & 0xff) || (cap & 0xff) > 32 || (cap & ~UINT64_C(0x10001ff))) {
        return -EINVAL;
    }
    v->msr.mcg_cap = cap;
    if (cap & 1u << 8) {
        v->msr.mcg_ctl = UINT64_MAX;
    }
    for (unsigned i = 0; i < (cap & 0xff); i++) {
        v->msr.mce[i * 4] = UINT64_MAX;
    }
    return 0;
}

static int enable_cap(struct kvm_vcpu *v, const void *arg)
{
    struct kvm_enable_cap cap;
    int r = kvm_user_read(&cap, arg, sizeof(cap));

    if (r < 0) {
        return r;
    }
    if (cap.flags || cap.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID) {
        return -EINVAL;
    }
    v->pv_enforced = cap.args[0] != 0;
    return 0;
}

static int state_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    switch (request) {
    case KVM_GET_REGS:
        return get_regs(v, arg);
    case KVM_SET_REGS:
        return set_regs(v, arg);
    case KVM_GET_SREGS:
        return get_sregs(v, arg);
    case KVM_SET_SREGS:
        return set_sregs(v, arg);
    case KVM_GET_SREGS2:
        return get_sregs2(v, arg);
    case KVM_SET_SREGS2:
        return set_sregs2(v, arg);
    case KVM_GET_FPU:
        return get_fpu(v, arg);
    case KVM_SET_FPU:
        return set_fpu(v, arg);
    case KVM_GET_XSAVE:
    case KVM_GET_XSAVE2:
        return get_xsave(v, arg);
    case KVM_SET_XSAVE:
        return set_xsave(v, arg);
    case KVM_GET_XCRS:
        return get_xcrs(v, arg);
    case KVM_SET_XCRS:
        return set_xcrs(v, arg);
    case KVM_GET_DEBUGREGS:
        return get_debugregs(v, arg);
    case KVM_SET_DEBUGREGS:
        return set_debugregs(v, arg);
    case KVM_GET_VCPU_EVENTS:
        return get_events(v, arg);
    case KVM_SET_VCPU_EVENTS:
        return set_events(v, arg);
    case KVM_GET_MP_STATE:
        return get_mp_state(v, arg);
    case KVM_SET_MP_STATE:
        return set_mp_state(v, arg);
    default:
        return -ENOTTY;
    }
}

static int other_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    switch (request) {
    case KVM_GET_MSRS:
        return msrs(v, arg, false);
    case KVM_SET_MSRS:
        return msrs(v, arg, true);
    case KVM_SET_CPUID2:
        return set_cpuid2(v, arg);
    case KVM_GET_CPUID2:
        return get_cpuid2(v, arg);
    case KVM_INTERRUPT:
        return interrupt(v, arg);
    case KVM_NMI:
        kvm_vcpu_post_nmi(v);
        return 0;
    case KVM_SET_SIGNAL_MASK:
        return kvm_sigmask_set(v, arg);
    case KVM_SET_GUEST_DEBUG:
        return set_guest_debug(v, arg);
    case KVM_TRANSLATE:
        return translate(v, arg);
    case KVM_SET_TSC_KHZ:
        return set_tsc_khz(v, (uintptr_t)arg);
    case KVM_GET_TSC_KHZ:
        return (int)v->tsc_khz;
    case KVM_PRE_FAULT_MEMORY:
        return kvm_prefault(v, arg);
    case KVM_X86_SETUP_MCE:
        return setup_mce(v, arg);
    case KVM_HAS_DEVICE_ATTR:
    case KVM_GET_DEVICE_ATTR:
    case KVM_SET_DEVICE_ATTR:
        return kvm_tsc_device_attr(v, request, arg);
    case KVM_ENABLE_CAP:
        return enable_cap(v, arg);
    case KVM_GET_STATS_FD:
        return kvm_stats_open(v->vm, v);
    default:
        return -ENOTTY;
    }
}

/* Anything but KVM_RUN. In a read section. */
static int any_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    int r = state_ioctl(v, request, arg);

    if (r == -ENOTTY) {
        r = other_ioctl(v, request, arg);
    }
    if (r == -ENOTTY) {
        r = v->vm->irq->vcpu_ioctl(v, request, arg);
    }
    return r;
}

int kvm_vcpu_ioctl(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    int r;

    if (atomic_load_explicit(&v->vm->dead, memory_order_relaxed)) {
        return -EIO;
    }
    pthread_mutex_lock(&v->lock);
    if (request == KVM_RUN) {
        r = arg ? -EINVAL : kvm_vcpu_run(v);
    } else {
        kvm_read_begin(v);
        r = any_ioctl(v, request, arg);
        kvm_read_end(v);
        if (r == -ENOTTY) {
            r = kvm_inspect_vcpu(v, request, arg);
        }
        if (r == -ENOTTY) {
            r = -EINVAL; /* as the kernel answers on a vCPU, other than on a VM */
        }
    }
    pthread_mutex_unlock(&v->lock);
    return r;
}
