/*
 * The first registers of processor 0: from the boot protocol's words (accel/cpu.h) to struct kvm_sregs
 * and struct kvm_regs. Everything not named keeps the engine's reset value.
 */
#include "accel/internal.h"

#include <errno.h>
#include <string.h>

#include "accel/cpu.h"

#define CR0_PE   0x1u
#define CR0_NE   0x20u
#define CR0_WP   0x10000u
#define CR0_PG   0x80000000u
#define CR4_PAE  0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u

#define TYPE_CODE 0xbu /* execute, read, accessed */
#define TYPE_DATA 0x3u /* read, write, accessed */
#define TYPE_TSS  0xbu /* busy task state */

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool is_long)
{
    return (struct kvm_segment){
        .base = 0,
        .limit = 0xffffffff,
        .selector = selector,
        .type = type,
        .present = 1,
        .dpl = 0,
        .db = !is_long,
        .s = 1,
        .l = is_long,
        .g = 1,
    };
}

static void set_flat(struct kvm_sregs *s, const struct accel_boot_state *b)
{
    bool is_long = b->mode == ACCEL_MODE_LONG64;
    struct kvm_segment data = flat_segment(b->data, TYPE_DATA, false);

    s->cs = flat_segment(b->code, TYPE_CODE, is_long);
    s->ds = s->es = s->fs = s->gs = s->ss = data;
    s->tr = (struct kvm_segment){.limit = 0x67, .type = TYPE_TSS, .present = 1};
    s->gdt.base = b->gdt_base;
    s->gdt.limit = b->gdt_limit;
    s->idt.base = 0;
    s->idt.limit = 0;
    s->cr0 = (s->cr0 & ~(uint64_t)0x60000000) | CR0_PE | CR0_NE;
    if (is_long) {
        s->cr3 = b->cr3;
        s->cr4 |= CR4_PAE;
        s->cr0 |= CR0_PG | CR0_WP;
        s->efer |= EFER_LME | EFER_LMA;
    }
}

static void set_real(struct kvm_sregs *s, const struct accel_boot_state *b)
{
    uint16_t selector = b->rip >> 4;
    struct kvm_segment *data[] = {&s->ds, &s->es, &s->fs, &s->gs, &s->ss};
    unsigned i;

    s->cs.selector = selector;
    s->cs.base = (uint64_t)selector << 4;
    for (i = 0; i < ARRAY_LEN(data); i++) {
        data[i]->selector = 0;
        data[i]->base = 0;
    }
}

/*
 * Write processor 0's first registers.
 * state: mode and registers; a real-mode rip is linear and below 1 MiB.
 * Returns: 0; -errno of the refused ioctl. Lock: none; vCPUs are stopped. Source: KVM_SET_SREGS, KVM_SET_REGS.
 */
int accel_boot_cpu_set(struct accel *a, const struct accel_boot_state *state, struct base_error *err)
{
    struct accel_vcpu *v = &a->vcpus[0];
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    int ret;

    if (state->mode == ACCEL_MODE_RESET) {
        return 0;
    }
    ret = accel_ioctl_ptr(a->ep, v->fd, KVM_GET_SREGS, &sregs);
    if (ret < 0) {
        return base_error_set(err, -ret, "KVM_GET_SREGS: %s", strerror(-ret));
    }
    memset(&regs, 0, sizeof(regs));
    regs.rflags = 2;
    regs.rip = state->rip;
    regs.rsp = state->rsp;
    regs.rax = state->rax;
    regs.rbx = state->rbx;
    regs.rsi = state->rsi;
    if (state->mode == ACCEL_MODE_REAL) {
        set_real(&sregs, state);
        regs.rip = state->rip & 0xf;
    } else {
        set_flat(&sregs, state);
    }
    ret = accel_ioctl_ptr(a->ep, v->fd, KVM_SET_SREGS, &sregs);
    if (ret < 0) {
        return base_error_set(err, -ret, "KVM_SET_SREGS: %s", strerror(-ret));
    }
    ret = accel_ioctl_ptr(a->ep, v->fd, KVM_SET_REGS, &regs);
    if (ret < 0) {
        return base_error_set(err, -ret, "KVM_SET_REGS: %s", strerror(-ret));
    }
    return 0;
}

static void show_one(struct accel *a, struct accel_vcpu *v, FILE *to)
{
    struct kvm_sregs s;
    struct kvm_regs r;

    if (accel_ioctl_ptr(a->ep, v->fd, KVM_GET_REGS, &r) < 0 ||
        accel_ioctl_ptr(a->ep, v->fd, KVM_GET_SREGS, &s) < 0) {
        fprintf(to, "vCPU %u: registers not to be had\n", v->index);
        return;
    }
    fprintf(to, "vCPU %u\nRAX=%016llx RBX=%016llx RCX=%016llx RDX=%016llx\n", v->index, r.rax, r.rbx,
            r.rcx, r.rdx);
    fprintf(to, "RSI=%016llx RDI=%016llx RBP=%016llx RSP=%016llx\n", r.rsi, r.rdi, r.rbp, r.rsp);
    fprintf(to, "R8 =%016llx R9 =%016llx R10=%016llx R11=%016llx\n", r.r8, r.r9, r.r10, r.r11);
    fprintf(to, "R12=%016llx R13=%016llx R14=%016llx R15=%016llx\n", r.r12, r.r13, r.r14, r.r15);
    fprintf(to, "RIP=%016llx RFL=%08llx CS=%04x SS=%04x DS=%04x TR=%04x\n", r.rip, r.rflags,
            s.cs.selector, s.ss.selector, s.ds.selector, s.tr.selector);
    fprintf(to, "CR0=%08llx CR2=%016llx CR3=%016llx CR4=%08llx EFER=%016llx\n", s.cr0, s.cr2, s.cr3,
            s.cr4, s.efer);
    fprintf(to, "GDT=%016llx %04x IDT=%016llx %04x FS.base=%016llx GS.base=%016llx\n", s.gdt.base,
            s.gdt.limit, s.idt.base, s.idt.limit, s.fs.base, s.gs.base);
}

/* Write every vCPU's registers. to: an open stream. Lock: none; vCPUs are stopped. Source: own. */
void accel_registers_show(struct accel *a, FILE *to)
{
    unsigned i;

    for (i = 0; i < a->vcpu_count; i++) {
        show_one(a, &a->vcpus[i], to);
    }
}
