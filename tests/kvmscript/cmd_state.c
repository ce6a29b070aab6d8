/* Commands on a vCPU's state beyond its registers, each printing what any endpoint must agree on. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "player.h"

typedef unsigned long long ull;

static int vcpu_ioctl(struct player *p, unsigned long request, void *arg)
{
    struct player_vcpu *v = player_cur(p);

    return v ? accel_ioctl_ptr(p->ep, v->fd, request, arg) : -ENODEV;
}

/* mp [set=N]: KVM_GET_MP_STATE or KVM_SET_MP_STATE. */
static int cmd_mp(struct player *p)
{
    struct kvm_mp_state mp = {.mp_state = (uint32_t)player_num(p, "set", 0)};
    bool set = player_has(p, "set");
    int ret = vcpu_ioctl(p, set ? KVM_SET_MP_STATE : KVM_GET_MP_STATE, &mp);

    if (ret == 0 && !set) {
        player_say(p, "mp %u", mp.mp_state);
    } else {
        player_result(p, ret);
    }
    return 0;
}

/* The fields of struct kvm_vcpu_events that scripts set and print. */
static const struct {
    const char *name;
    size_t offset, width;
} event_fields[] = {
#define F(text, field) {text, offsetof(struct kvm_vcpu_events, field), sizeof(((struct kvm_vcpu_events *)0)->field)}
    F("injected", exception.injected), F("nr", exception.nr), F("has_error", exception.has_error_code),
    F("pending", exception.pending), F("error", exception.error_code), F("int_injected", interrupt.injected),
    F("int_nr", interrupt.nr), F("int_soft", interrupt.soft), F("shadow", interrupt.shadow),
    F("nmi_injected", nmi.injected), F("nmi_pending", nmi.pending), F("nmi_masked", nmi.masked),
    F("sipi", sipi_vector), F("flags", flags), F("smm", smi.smm), F("smi_pending", smi.pending),
    F("triple", triple_fault.pending), F("has_payload", exception_has_payload), F("payload", exception_payload),
};

#define NR_FIELDS (sizeof(event_fields) / sizeof(event_fields[0]))

/* events [NAME=V...]: print KVM_GET_VCPU_EVENTS, or change the fields named and set them. Flags are kept
 * as read unless given. */
static int cmd_events(struct player *p)
{
    struct kvm_vcpu_events e;
    int ret = vcpu_ioctl(p, KVM_GET_VCPU_EVENTS, &e);
    bool set = false;
    char text[600] = "";
    size_t at = 0;

    for (size_t i = 0; ret == 0 && i < NR_FIELDS; i++) {
        char *field = (char *)&e + event_fields[i].offset;
        uint64_t v = 0;

        if (player_has(p, event_fields[i].name)) {
            v = player_num(p, event_fields[i].name, 0);
            memcpy(field, &v, event_fields[i].width);
            set = true;
        }
        memcpy(&v, field, event_fields[i].width);
        if (v && strcmp(event_fields[i].name, "flags") != 0) {
            at += (size_t)snprintf(text + at, sizeof(text) - at, " %s %llx", event_fields[i].name, (ull)v);
        }
    }
    if (ret == 0 && !set) {
        player_say(p, "events:%s", at ? text : " none");
    } else {
        player_result(p, ret < 0 ? ret : vcpu_ioctl(p, KVM_SET_VCPU_EVENTS, &e));
    }
    return 0;
}

/* lapic OFFSET [set=V]: one register of KVM_GET_LAPIC's page. */
static int cmd_lapic(struct player *p)
{
    struct kvm_lapic_state s;
    uint64_t off = player_arg(p, 1, 0) & 0x3fc;
    uint32_t v = (uint32_t)player_num(p, "set", 0);
    int ret = vcpu_ioctl(p, KVM_GET_LAPIC, &s);

    if (ret == 0 && player_has(p, "set")) {
        memcpy(s.regs + off, &v, 4);
        ret = vcpu_ioctl(p, KVM_SET_LAPIC, &s);
        player_result(p, ret);
    } else if (ret == 0) {
        memcpy(&v, s.regs + off, 4);
        player_say(p, "lapic %llx = %x", (ull)off, v);
    } else {
        player_result(p, ret);
    }
    return 0;
}

/* translate GVA: KVM_TRANSLATE. */
static int cmd_translate(struct player *p)
{
    struct kvm_translation t = {.linear_address = player_arg(p, 1, 0)};
    int ret = vcpu_ioctl(p, KVM_TRANSLATE, &t);

    if (ret < 0) {
        player_result(p, ret);
    } else if (t.valid) {
        player_say(p, "gpa %llx", (ull)t.physical_address);
    } else {
        player_say(p, "no translation");
    }
    return 0;
}

/* debugregs [NAME=V...]: db0..db3, dr6, dr7. */
static int cmd_debugregs(struct player *p)
{
    struct kvm_debugregs d;
    int ret = vcpu_ioctl(p, KVM_GET_DEBUGREGS, &d);
    static const char *const names[] = {"db0", "db1", "db2", "db3"};

    if (ret < 0) {
        player_result(p, ret);
        return 0;
    }
    if (p->nr_words == 1) {
        player_say(p, "db %llx %llx %llx %llx dr6 %llx dr7 %llx", (ull)d.db[0], (ull)d.db[1], (ull)d.db[2],
                   (ull)d.db[3], (ull)d.dr6, (ull)d.dr7);
        return 0;
    }
    for (int i = 0; i < 4; i++) {
        d.db[i] = player_num(p, names[i], d.db[i]);
    }
    d.dr6 = player_num(p, "dr6", d.dr6);
    d.dr7 = player_num(p, "dr7", d.dr7);
    d.flags = player_num(p, "flags", 0);
    player_result(p, vcpu_ioctl(p, KVM_SET_DEBUGREGS, &d));
    return 0;
}

/* xcr [V]: XCR0 printed or set. */
static int cmd_xcr(struct player *p)
{
    struct kvm_xcrs x = {.nr_xcrs = 1};
    int ret;

    if (p->nr_words > 1) {
        x.xcrs[0].value = player_arg(p, 1, 0);
        x.flags = (uint32_t)player_num(p, "flags", 0);
        x.nr_xcrs = (uint32_t)player_num(p, "count", 1);
        x.xcrs[0].xcr = (uint32_t)player_num(p, "xcr", 0);
        player_result(p, vcpu_ioctl(p, KVM_SET_XCRS, &x));
        return 0;
    }
    ret = vcpu_ioctl(p, KVM_GET_XCRS, &x);
    if (ret < 0) {
        player_result(p, ret);
    } else {
        player_say(p, "xcrs %u xcr0 %llx", x.nr_xcrs, (ull)x.xcrs[0].value);
    }
    return 0;
}

/* fpu [fcw= mxcsr=]: KVM_GET_FPU, the control words; or set them. */
static int cmd_fpu(struct player *p)
{
    struct kvm_fpu f;
    int ret = vcpu_ioctl(p, KVM_GET_FPU, &f);

    if (ret == 0 && p->nr_words > 1) {
        f.fcw = (uint16_t)player_num(p, "fcw", f.fcw);
        f.mxcsr = (uint32_t)player_num(p, "mxcsr", f.mxcsr);
        player_result(p, vcpu_ioctl(p, KVM_SET_FPU, &f));
    } else if (ret == 0) {
        player_say(p, "fcw %x fsw %x ftwx %x mxcsr %x", f.fcw, f.fsw, f.ftwx, f.mxcsr);
    } else {
        player_result(p, ret);
    }
    return 0;
}

/* setsregs NAME=V...: control registers, EFER, apic_base, and cs/ds/ss fields, of what is there. */
static int cmd_setsregs(struct player *p)
{
    struct kvm_sregs s;
    int ret = vcpu_ioctl(p, KVM_GET_SREGS, &s);

    if (ret == 0) {
        s.cr0 = player_num(p, "cr0", s.cr0);
        s.cr2 = player_num(p, "cr2", s.cr2);
        s.cr3 = player_num(p, "cr3", s.cr3);
        s.cr4 = player_num(p, "cr4", s.cr4);
        s.cr8 = player_num(p, "cr8", s.cr8);
        s.efer = player_num(p, "efer", s.efer);
        s.apic_base = player_num(p, "apic_base", s.apic_base);
        s.cs.base = player_num(p, "cs.base", s.cs.base);
        s.cs.selector = (uint16_t)player_num(p, "cs.sel", s.cs.selector);
        s.cs.db = (uint8_t)player_num(p, "cs.db", s.cs.db);
        s.cs.l = (uint8_t)player_num(p, "cs.l", s.cs.l);
        s.cs.type = (uint8_t)player_num(p, "cs.type", s.cs.type);
        s.gdt.base = player_num(p, "gdt", s.gdt.base);
        s.gdt.limit = (uint16_t)player_num(p, "gdtlimit", s.gdt.limit);
        s.idt.base = player_num(p, "idt", s.idt.base);
        s.idt.limit = (uint16_t)player_num(p, "idtlimit", s.idt.limit);
        if (player_has(p, "pending")) {
            uint64_t nr = player_num(p, "pending", 0);

            memset(s.interrupt_bitmap, 0, sizeof(s.interrupt_bitmap));
            s.interrupt_bitmap[(nr & 0xff) / 64] |= UINT64_C(1) << (nr & 63);
        }
        ret = vcpu_ioctl(p, KVM_SET_SREGS, &s);
    }
    player_result(p, ret);
    return 0;
}

/* inject NR: KVM_INTERRUPT. */
static int cmd_inject(struct player *p)
{
    struct kvm_interrupt i = {.irq = (uint32_t)player_arg(p, 1, 0)};

    player_result(p, vcpu_ioctl(p, KVM_INTERRUPT, &i));
    return 0;
}

/* runpage NAME...: fields of the run page after a run. */
static int cmd_runpage(struct player *p)
{
    struct player_vcpu *v = player_cur(p);

    if (!v) {
        return 2;
    }
    if (player_has(p, "request_window")) {
        v->run->request_interrupt_window = (uint8_t)player_num(p, "request_window", 0);
        return 0;
    }
    if (player_has(p, "cr8")) {
        v->run->cr8 = player_num(p, "cr8", 0);
        return 0;
    }
    player_say(p, "if %u ready %u", v->run->if_flag, v->run->ready_for_interrupt_injection);
    return 0;
}

const struct player_command player_state_commands[] = {
    {"mp", cmd_mp},   {"events", cmd_events},     {"lapic", cmd_lapic},   {"translate", cmd_translate},
    {"xcr", cmd_xcr}, {"debugregs", cmd_debugregs}, {"fpu", cmd_fpu},     {"setsregs", cmd_setsregs},
    {"inject", cmd_inject}, {"runpage", cmd_runpage}, {NULL, NULL},
};
