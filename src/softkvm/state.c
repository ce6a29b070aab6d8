/*
 * Architectural state towards user space: registers, segments, FPU images, events. Translation
 * between the KVM ABI's structures and the processor's (cpu/regs.h), nothing more.
 *
 * Lock: all under vcpu->lock, with the processor outside of the guest.
 */
#include "softkvm/state.h"
#include "softkvm/shadow/shadow.h"

#include <errno.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/fpu.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "softkvm/msr.h"
#include "softkvm/vcpu.h"

#define APIC_BASE_RESET (UINT64_C(0xfee00000) | 0x800)
#define APIC_BASE_BSP   0x100
#define DR_RESERVED     UINT64_C(0xffffffff00000000)

/* ---- general registers ---- */

void kvm_state_get_regs(struct kvm_vcpu *v, struct kvm_regs *r)
{
    struct cpu_regs c;

    cpu_get_regs(v->cpu, &c);
    *r = (struct kvm_regs){
        .rax = c.gpr[CPU_RAX], .rbx = c.gpr[CPU_RBX], .rcx = c.gpr[CPU_RCX], .rdx = c.gpr[CPU_RDX],
        .rsi = c.gpr[CPU_RSI], .rdi = c.gpr[CPU_RDI], .rsp = c.gpr[CPU_RSP], .rbp = c.gpr[CPU_RBP],
        .r8 = c.gpr[8], .r9 = c.gpr[9], .r10 = c.gpr[10], .r11 = c.gpr[11],
        .r12 = c.gpr[12], .r13 = c.gpr[13], .r14 = c.gpr[14], .r15 = c.gpr[15],
        .rip = c.rip, .rflags = c.rflags,
    };
}

void kvm_state_set_regs(struct kvm_vcpu *v, const struct kvm_regs *r)
{
    struct cpu_regs c = {
        .gpr = {[CPU_RAX] = r->rax, [CPU_RBX] = r->rbx, [CPU_RCX] = r->rcx, [CPU_RDX] = r->rdx,
                [CPU_RSI] = r->rsi, [CPU_RDI] = r->rdi, [CPU_RSP] = r->rsp, [CPU_RBP] = r->rbp,
                [CPU_R8] = r->r8, [CPU_R9] = r->r9, [CPU_R10] = r->r10, [CPU_R11] = r->r11,
                [CPU_R12] = r->r12, [CPU_R13] = r->r13, [CPU_R14] = r->r14, [CPU_R15] = r->r15},
        .rip = r->rip,
        .rflags = r->rflags | X86_RF1,
    };

    cpu_set_regs(v->cpu, &c);
}

/* ---- segments and control registers ---- */

static void seg_out(struct kvm_segment *o, const struct cpu_seg *i)
{
    *o = (struct kvm_segment){.base = i->base, .limit = i->limit, .selector = i->sel, .type = i->type,
                              .present = i->p, .dpl = i->dpl, .db = i->db, .s = i->s, .l = i->l,
                              .g = i->g, .avl = i->avl, .unusable = i->unusable};
}

static void seg_in(struct cpu_seg *o, const struct kvm_segment *i)
{
    *o = (struct cpu_seg){.base = i->base, .limit = i->limit, .sel = i->selector,
                          .type = i->type & 15, .s = i->s & 1, .dpl = i->dpl & 3, .p = i->present & 1,
                          .avl = i->avl & 1, .l = i->l & 1, .db = i->db & 1, .g = i->g & 1,
                          .unusable = i->unusable || !i->present};
}

/* The part that both forms of the ABI begin with. */
static void sregs_out(struct kvm_vcpu *v, struct kvm_sregs2 *s)
{
    struct cpu_sregs c;

    cpu_get_sregs(v->cpu, &c);
    memset(s, 0, sizeof(*s));
    seg_out(&s->es, &c.seg[CPU_ES]);
    seg_out(&s->cs, &c.seg[CPU_CS]);
    seg_out(&s->ss, &c.seg[CPU_SS]);
    seg_out(&s->ds, &c.seg[CPU_DS]);
    seg_out(&s->fs, &c.seg[CPU_FS]);
    seg_out(&s->gs, &c.seg[CPU_GS]);
    seg_out(&s->ldt, &c.ldtr);
    seg_out(&s->tr, &c.tr);
    s->gdt = (struct kvm_dtable){.base = c.gdtr.base, .limit = c.gdtr.limit};
    s->idt = (struct kvm_dtable){.base = c.idtr.base, .limit = c.idtr.limit};
    s->cr0 = c.cr0;
    s->cr2 = c.cr2;
    s->cr3 = c.cr3;
    s->cr4 = c.cr4;
    s->cr8 = kvm_state_cr8(v);
    s->efer = c.efer;
    s->apic_base = kvm_state_apic_base(v);
}

static int set_apic_base(struct kvm_vcpu *v, uint64_t base)
{
    if (base == kvm_state_apic_base(v)) {
        return 0;
    }
    if ((base & 0x2ff) || base >> KVM_GUEST_PHYS_BITS) {
        return -EINVAL;
    }
    return kvm_msr_set(v, X86_MSR_APIC_BASE, base, true) == KVM_MSR_DONE ? 0 : -EINVAL;
}

static void set_cr8(struct kvm_vcpu *v, uint64_t cr8)
{
    v->cpu->cr8 = cr8 & 15;
    if (v->lapic) {
        v->vm->irq->set_cr8(v, cr8 & 15);
    }
}

static int sregs_in(struct kvm_vcpu *v, const struct kvm_sregs2 *s)
{
    struct cpu_sregs c;
    int r;

    cpu_get_sregs(v->cpu, &c);
    seg_in(&c.seg[CPU_ES], &s->es);
    seg_in(&c.seg[CPU_CS], &s->cs);
    seg_in(&c.seg[CPU_SS], &s->ss);
    seg_in(&c.seg[CPU_DS], &s->ds);
    seg_in(&c.seg[CPU_FS], &s->fs);
    seg_in(&c.seg[CPU_GS], &s->gs);
    seg_in(&c.ldtr, &s->ldt);
    seg_in(&c.tr, &s->tr);
    c.gdtr = (struct cpu_dtable){.base = s->gdt.base, .limit = s->gdt.limit};
    c.idtr = (struct cpu_dtable){.base = s->idt.base, .limit = s->idt.limit};
    c.cr0 = s->cr0;
    c.cr2 = s->cr2;
    c.cr3 = s->cr3;
    c.cr4 = s->cr4;
    c.cr8 = s->cr8 & 15;
    c.efer = s->efer;
    r = cpu_set_sregs(v->cpu, &c);
    if (r < 0) {
        return r;
    }
    r = set_apic_base(v, s->apic_base);
    if (r < 0) {
        return r;
    }
    if (s->cr8 <= 15) { /* one that cannot be is passed over, as by KVM */
        set_cr8(v, s->cr8);
    }
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return 0;
}

/* Both structures are equal up to and including apic_base. */
#define SREGS_COMMON offsetof(struct kvm_sregs, interrupt_bitmap)
_Static_assert(SREGS_COMMON == offsetof(struct kvm_sregs2, flags), "the two forms have one beginning");

void kvm_state_get_sregs(struct kvm_vcpu *v, struct kvm_sregs *s)
{
    struct kvm_sregs2 whole;
    const struct cpu_event *ev = &v->cpu->event;

    sregs_out(v, &whole);
    memset(s, 0, sizeof(*s));
    memcpy(s, &whole, SREGS_COMMON);
    if (ev->type == CPU_EVENT_INTR) {
        s->interrupt_bitmap[ev->vector / 64] |= UINT64_C(1) << (ev->vector % 64);
    } else if (v->extint_vector >= 0) {
        s->interrupt_bitmap[v->extint_vector / 64] |= UINT64_C(1) << (v->extint_vector % 64);
    }
}

int kvm_state_set_sregs(struct kvm_vcpu *v, const struct kvm_sregs *s)
{
    struct kvm_sregs2 whole;
    int r;

    kvm_state_get_sregs2(v, &whole);
    memcpy(&whole, s, SREGS_COMMON);
    r = sregs_in(v, &whole);
    if (r < 0) {
        return r;
    }
    for (int i = 0; i < 4; i++) {
        if (s->interrupt_bitmap[i]) {
            struct cpu_event ev = {.type = CPU_EVENT_INTR,
                                   .vector = (uint8_t)(i * 64 +
                                                       __builtin_ctzll(s->interrupt_bitmap[i]))};

            v->cpu->event = ev;
            break;
        }
    }
    return 0;
}

void kvm_state_get_sregs2(struct kvm_vcpu *v, struct kvm_sregs2 *s)
{
    sregs_out(v, s);
    if ((s->cr0 & X86_CR0_PG) && (s->cr4 & X86_CR4_PAE) && !(s->efer & X86_EFER_LMA)) {
        s->flags |= KVM_SREGS2_FLAGS_PDPTRS_VALID;
        memcpy(s->pdptrs, v->cpu->pdptr, sizeof(s->pdptrs));
    }
}

int kvm_state_set_sregs2(struct kvm_vcpu *v, const struct kvm_sregs2 *s)
{
    int r;

    if (s->flags & ~(uint64_t)KVM_SREGS2_FLAGS_PDPTRS_VALID) {
        return -EINVAL;
    }
    if ((s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID) &&
        (!(s->cr0 & X86_CR0_PG) || !(s->cr4 & X86_CR4_PAE) || (s->efer & X86_EFER_LMA))) {
        return -EINVAL;
    }
    r = sregs_in(v, s);
    if (r == 0 && (s->flags & KVM_SREGS2_FLAGS_PDPTRS_VALID)) {
        memcpy(v->cpu->pdptr, s->pdptrs, sizeof(v->cpu->pdptr));
        v->cpu->pdptes_stale = 0;
        cpu_state_changed(v->cpu);
    }
    return r;
}

uint64_t kvm_state_apic_base(struct kvm_vcpu *v)
{
    uint64_t base;

    if (v->lapic && v->vm->irq->get_msr(v, X86_MSR_APIC_BASE, &base, true) == KVM_MSR_DONE) {
        return base;
    }
    return v->apic_base;
}

uint64_t kvm_state_cr8(struct kvm_vcpu *v)
{
    return v->lapic ? v->vm->irq->get_cr8(v) : v->cpu->cr8;
}

/* ---- FPU ---- */

/* The FXSAVE image by fields, as KVM_GET_FPU orders them. */
struct fx_image {
    uint16_t fcw, fsw;
    uint8_t ftw, rsvd;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    uint8_t st[8][16], xmm[16][16];
    uint8_t rest[96];
};
_Static_assert(sizeof(struct fx_image) == 512, "an FXSAVE image has 512 bytes");

/* KVM's call leaves MXCSR out, in both directions: it reads as 0 (KVM_GET_XSAVE has it). */
void kvm_state_get_fpu(struct kvm_vcpu *v, struct kvm_fpu *f)
{
    struct fx_image fx;

    cpu_fxsave_image(v->cpu, &fx);
    memset(f, 0, sizeof(*f));
    memcpy(f->fpr, fx.st, sizeof(f->fpr));
    memcpy(f->xmm, fx.xmm, sizeof(f->xmm));
    f->fcw = fx.fcw;
    f->fsw = fx.fsw;
    f->ftwx = fx.ftw;
    f->last_opcode = fx.fop;
    f->last_ip = fx.fip;
    f->last_dp = fx.fdp;
}

int kvm_state_set_fpu(struct kvm_vcpu *v, const struct kvm_fpu *f)
{
    struct fx_image fx;

    cpu_fxsave_image(v->cpu, &fx);
    fx.fcw = f->fcw;
    fx.fsw = f->fsw;
    fx.ftw = f->ftwx;
    fx.fop = f->last_opcode;
    fx.fip = f->last_ip;
    fx.fdp = f->last_dp;
    memcpy(fx.st, f->fpr, sizeof(fx.st));
    memcpy(fx.xmm, f->xmm, sizeof(fx.xmm));
    return cpu_fxrstor_image(v->cpu, &fx);
}

#define XSTATE_BV_AT 64 /* index of the header's first 64-bit word, in 64-bit words */
#define XSTATE_OURS  UINT64_C(3)

void kvm_state_get_xsave(struct kvm_vcpu *v, struct kvm_xsave *x)
{
    uint64_t *w = (uint64_t *)x->region;

    memset(x, 0, sizeof(*x));
    cpu_fxsave_image(v->cpu, x->region);
    w[XSTATE_BV_AT] = XSTATE_OURS;
}

/* A component that XSTATE_BV leaves out goes to its initial state. */
int kvm_state_set_xsave(struct kvm_vcpu *v, const struct kvm_xsave *x)
{
    const uint64_t *w = (const uint64_t *)x->region;
    struct fx_image fx;
    uint64_t bv = w[XSTATE_BV_AT];

    if ((bv & ~XSTATE_OURS) || w[XSTATE_BV_AT + 1]) {
        return -EINVAL;
    }
    memcpy(&fx, x->region, sizeof(fx));
    if (fx.mxcsr & ~CPU_MXCSR_VALID) {
        return -EINVAL;
    }
    if (!(bv & 1)) {
        memset(&fx, 0, offsetof(struct fx_image, mxcsr));
        memset(fx.st, 0, sizeof(fx.st));
        fx.fcw = CPU_FCW_DEFAULT;
    }
    if (!(bv & 2)) {
        memset(fx.xmm, 0, sizeof(fx.xmm));
    }
    return cpu_fxrstor_image(v->cpu, &fx);
}

void kvm_state_get_xcrs(struct kvm_vcpu *v, struct kvm_xcrs *x)
{
    memset(x, 0, sizeof(*x));
    x->nr_xcrs = 1;
    x->xcrs[0].value = v->cpu->xcr0;
}

int kvm_state_set_xcrs(struct kvm_vcpu *v, const struct kvm_xcrs *x)
{
    if (x->nr_xcrs > KVM_MAX_XCRS || x->flags) {
        return -EINVAL;
    }
    for (uint32_t i = 0; i < x->nr_xcrs; i++) {
        if (x->xcrs[i].xcr == 0) {
            return cpu_set_xcr(v->cpu, 0, x->xcrs[i].value);
        }
    }
    return 0;
}

/* ---- debug registers, events ---- */

void kvm_state_get_debugregs(struct kvm_vcpu *v, struct kvm_debugregs *d)
{
    struct cpu_dregs c;

    cpu_get_dregs(v->cpu, &c);
    memset(d, 0, sizeof(*d));
    for (int i = 0; i < 4; i++) {
        d->db[i] = c.db[i];
    }
    d->dr6 = c.dr6;
    d->dr7 = c.dr7;
}

int kvm_state_set_debugregs(struct kvm_vcpu *v, const struct kvm_debugregs *d)
{
    struct cpu_dregs c = {.dr6 = d->dr6, .dr7 = d->dr7};

    if (d->flags || (d->dr6 & DR_RESERVED) || (d->dr7 & DR_RESERVED)) {
        return -EINVAL;
    }
    for (int i = 0; i < 4; i++) {
        c.db[i] = d->db[i];
    }
    return cpu_set_dregs(v->cpu, &c);
}

static bool is_exception(const struct cpu_event *ev)
{
    return ev->type == CPU_EVENT_EXCEPTION || ev->type == CPU_EVENT_SOFT_EXC ||
           ev->type == CPU_EVENT_PRIV_EXC;
}

void kvm_state_get_events(struct kvm_vcpu *v, struct kvm_vcpu_events *e)
{
    struct cpu_events c;

    cpu_get_events(v->cpu, &c);
    memset(e, 0, sizeof(*e));
    if (is_exception(&c.event)) {
        /* Still pending is one whose address or debug bits have not reached CR2 or DR6. */
        e->exception.pending = v->vm->exception_payload && c.event.payload;
        e->exception.injected = !e->exception.pending;
        e->exception_has_payload = e->exception.pending;
        e->exception_payload = e->exception.pending ? c.event.payload : 0;
        e->exception.nr = c.event.vector;
        e->exception.has_error_code = c.event.has_error;
        e->exception.error_code = c.event.error;
    }
    if (c.event.type == CPU_EVENT_INTR || c.event.type == CPU_EVENT_SOFT_INTR) {
        e->interrupt.injected = 1;
        e->interrupt.nr = c.event.vector;
        e->interrupt.soft = c.event.type == CPU_EVENT_SOFT_INTR;
    } else if (v->extint_vector >= 0) {
        e->interrupt.injected = 1;
        e->interrupt.nr = (uint8_t)v->extint_vector;
    }
    e->interrupt.shadow = c.interrupt_shadow ? KVM_X86_SHADOW_INT_STI : 0;
    e->nmi.injected = c.event.type == CPU_EVENT_NMI;
    e->nmi.pending = (uint8_t)atomic_load(&v->nmi_queued);
    e->nmi.masked = c.nmi_blocked;
    e->sipi_vector = atomic_load(&v->sipi_vector);
    e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
    if (v->vm->exception_payload) {
        e->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if (v->vm->triple_fault_event) {
        e->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        e->triple_fault.pending = (atomic_load(&v->requests) & KVM_REQUEST_TRIPLE_FAULT) != 0;
    }
}

static int check_events(const struct kvm_vcpu *v, const struct kvm_vcpu_events *e)
{
    uint32_t known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                     KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_PAYLOAD |
                     KVM_VCPUEVENT_VALID_TRIPLE_FAULT;

    if ((e->flags & ~known) ||
        ((e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) && !v->vm->exception_payload) ||
        ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && !v->vm->triple_fault_event)) {
        return -EINVAL;
    }
    if ((e->exception.injected || e->exception.pending) &&
        (e->exception.nr > 31 || e->exception.nr == X86_NMI)) {
        return -EINVAL;
    }
    return 0;
}

int kvm_state_set_events(struct kvm_vcpu *v, const struct kvm_vcpu_events *e)
{
    struct cpu_events c;

    if (check_events(v, e) < 0) {
        return -EINVAL;
    }
    cpu_get_events(v->cpu, &c);
    c.event = (struct cpu_event){.type = CPU_EVENT_NONE};
    if (e->exception.injected || e->exception.pending) {
        c.event = (struct cpu_event){.type = CPU_EVENT_EXCEPTION, .vector = e->exception.nr,
                                     .has_error = e->exception.has_error_code,
                                     .error = e->exception.error_code,
                                     .payload = e->exception_payload};
    } else if (e->interrupt.injected) {
        c.event = (struct cpu_event){.type = e->interrupt.soft ? CPU_EVENT_SOFT_INTR : CPU_EVENT_INTR,
                                     .vector = e->interrupt.nr};
    } else if (e->nmi.injected) {
        c.event = (struct cpu_event){.type = CPU_EVENT_NMI, .vector = X86_NMI};
    }
    if (e->flags & KVM_VCPUEVENT_VALID_SHADOW) {
        c.interrupt_shadow = e->interrupt.shadow != 0;
    }
    if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING) {
        atomic_store(&v->nmi_queued, e->nmi.pending > 2 ? 2 : e->nmi.pending);
    }
    c.nmi_blocked = e->nmi.masked != 0;
    if (e->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) {
        atomic_store(&v->sipi_vector, e->sipi_vector & 0xff);
    }
    v->extint_vector = -1;
    cpu_set_events(v->cpu, &c);
    if ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && e->triple_fault.pending) {
        kvm_vcpu_request(v, KVM_REQUEST_TRIPLE_FAULT);
    }
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return 0;
}

/* Hand the debugger's wishes to the processor. */
static void guest_debug_apply(struct kvm_vcpu *v)
{
    const struct kvm_guest_debug *d = &v->debug;
    struct cpu_guest_debug g = {.single_step = (d->control & KVM_GUESTDBG_SINGLESTEP) != 0,
                                .int3 = (d->control & KVM_GUESTDBG_USE_SW_BP) != 0,
                                .breakpoints = (d->control & KVM_GUESTDBG_USE_HW_BP) != 0,
                                .dr7 = d->arch.debugreg[7]};

    memcpy(g.db, d->arch.debugreg, sizeof(g.db));
    cpu_set_guest_debug(v->cpu, &g);
}

int kvm_state_set_guest_debug(struct kvm_vcpu *v, const struct kvm_guest_debug *d)
{
    if (d->control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) {
        if (v->cpu->event.type != CPU_EVENT_NONE) {
            return -EBUSY;
        }
        v->cpu->event = (struct cpu_event){
            .type = d->control & KVM_GUESTDBG_INJECT_DB ? CPU_EVENT_EXCEPTION : CPU_EVENT_SOFT_EXC,
            .vector = d->control & KVM_GUESTDBG_INJECT_DB ? X86_DB : X86_BP};
    }
    v->debug = *d;
    if (!(d->control & KVM_GUESTDBG_ENABLE)) {
        memset(&v->debug, 0, sizeof(v->debug));
    }
    guest_debug_apply(v);
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
    return 0;
}

/* ---- reset ---- */

void kvm_vcpu_reset(struct kvm_vcpu *v, bool init)
{
    cpu_reset(v->cpu, init);
    v->cpu->cr8 = 0;
    guest_debug_apply(v);
    v->pending.kind = KVM_PENDING_NONE;
    v->extint_vector = -1;
    atomic_store(&v->nmi_queued, 0);
    if (!init) {
        v->apic_base = APIC_BASE_RESET | (v->id == v->vm->bsp_id ? APIC_BASE_BSP : 0);
        kvm_msr_reset(v);
    }
    if (v->lapic) {
        v->vm->irq->vcpu_reset(v, init);
    }
    kvm_vcpu_request(v, KVM_REQUEST_EVENT);
}
