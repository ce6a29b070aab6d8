/*
 * CPUID. The model shown: an Intel processor of a recent family without what the interpreter does not
 * do, x86-64-v2 in instructions, and with the words that tell a kernel that it needs none of the
 * costly mitigations (there is no speculation here to mitigate).
 *
 * Bits that follow the guest's own state (OSXSAVE, APIC enabled, XSAVE size) are put in when read.
 * Lock: a vCPU's entries are under vcpu->lock.
 */
#include "softkvm/cpuid.h"

#include <errno.h>
#include <linux/kvm_para.h>
#include <stdlib.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "cpu/run.h"
#include "softkvm/quirks.h"
#include "softkvm/state.h"
#include "softkvm/vcpu.h"

#define BIT(n) (1u << (n))

/* Family 6, model 0x8f, stepping 8. */
#define SIGNATURE 0x000806f8u

/* The TSC-deadline timer is not here: user space adds it where it has an APIC of the kernel's, as
 * KVM_CAP_TSC_DEADLINE_TIMER says. */
#define LEAF1_ECX                                                                                  \
    (BIT(0) /* SSE3 */ | BIT(9) /* SSSE3 */ | BIT(13) /* CMPXCHG16B */ | BIT(17) /* PCID */ |     \
     BIT(19) /* SSE4.1 */ | BIT(20) /* SSE4.2 */ | BIT(21) /* x2APIC */ | BIT(23) /* POPCNT */ |  \
     BIT(26) /* XSAVE */ | BIT(31) /* hypervisor */)
#define LEAF1_EDX                                                                                  \
    (BIT(0) /* FPU */ | BIT(2) /* DE */ | BIT(3) /* PSE */ | BIT(4) /* TSC */ | BIT(5) /* MSR */ |\
     BIT(6) /* PAE */ | BIT(7) /* MCE */ | BIT(8) /* CX8 */ | BIT(9) /* APIC */ |                 \
     BIT(11) /* SEP */ | BIT(12) /* MTRR */ | BIT(13) /* PGE */ | BIT(14) /* MCA */ |             \
     BIT(15) /* CMOV */ | BIT(16) /* PAT */ | BIT(17) /* PSE36 */ | BIT(19) /* CLFLUSH */ |       \
     BIT(23) /* MMX */ | BIT(24) /* FXSR */ | BIT(25) /* SSE */ | BIT(26) /* SSE2 */ |            \
     BIT(27) /* self-snoop */)
#define LEAF7_EBX                                                                                  \
    (BIT(0) /* FSGSBASE */ | BIT(1) /* TSC_ADJUST */ | BIT(7) /* SMEP */ | BIT(9) /* ERMS */ |    \
     BIT(10) /* INVPCID */ | BIT(20) /* SMAP */)
#define LEAF7_ECX (BIT(2) /* UMIP */ | BIT(22) /* RDPID */)
#define LEAF7_EDX                                                                                  \
    (BIT(4) /* FSRM */ | BIT(10) /* MD_CLEAR */ | BIT(26) /* SPEC_CTRL */ | BIT(27) /* STIBP */ | \
     BIT(29) /* ARCH_CAPABILITIES */ | BIT(31) /* SSBD */)
#define LEAFD1_EAX  (BIT(0) /* XSAVEOPT */ | BIT(1) /* XSAVEC */ | BIT(2) /* XGETBV1 */ | BIT(3) /* XSAVES */)
#define EXT1_ECX    (BIT(0) /* LAHF64 */ | BIT(8) /* PREFETCHW */)
#define EXT1_EDX                                                                                   \
    (BIT(11) /* SYSCALL */ | BIT(20) /* NX */ | BIT(26) /* 1 GiB pages */ | BIT(27) /* RDTSCP */ |\
     BIT(29) /* long mode */)
/* KVM_FEATURE_* of the paravirtual leaf: what kvmclock.c and irqchip/ do. */
#define PV_FEATURES                                                                                \
    (BIT(KVM_FEATURE_CLOCKSOURCE) | BIT(KVM_FEATURE_NOP_IO_DELAY) | BIT(KVM_FEATURE_CLOCKSOURCE2) |\
     BIT(KVM_FEATURE_STEAL_TIME) | BIT(KVM_FEATURE_PV_EOI) | BIT(KVM_FEATURE_PV_UNHALT) |          \
     BIT(KVM_FEATURE_PV_SEND_IPI) | BIT(KVM_FEATURE_PV_SCHED_YIELD) |                             \
     BIT(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT))

#define INDEXED KVM_CPUID_FLAG_SIGNIFCANT_INDEX

/* Function, index, flags, registers. Brand and vendor strings are spelt in the registers' bytes. */
static const struct kvm_cpuid_entry2 table[] = {
    {0x0, 0, 0, 0xd, 0x756e6547, 0x6c65746e, 0x49656e69},
    {0x1, 0, 0, SIGNATURE, 0x00000800, LEAF1_ECX, LEAF1_EDX},
    {0x2, 0, 0, 0x00feff01, 0, 0, 0}, /* caches: leaf 4; prefetch: 64 bytes */
    {0x4, 0, INDEXED, 0x00000121, 0x02c0003f, 63, 0},     /* L1D 48 KiB as 12 ways: 64 sets, 12 ways */
    {0x4, 1, INDEXED, 0x00000122, 0x01c0003f, 63, 0},     /* L1I 32 KiB */
    {0x4, 2, INDEXED, 0x00000143, 0x03c0003f, 2047, 0},   /* L2 2 MiB, 16 ways */
    {0x4, 3, INDEXED, 0x00000163, 0x03c0003f, 16383, 4},  /* L3 16 MiB, 16 ways, inclusive bit 1 */
    {0x4, 4, INDEXED, 0, 0, 0, 0},
    {0x5, 0, 0, 0, 0, 0, 0},
    {0x6, 0, 0, BIT(2) /* APIC timer runs in deep sleep */, 0, 0, 0},
    {0x7, 0, INDEXED, 2, LEAF7_EBX, LEAF7_ECX, LEAF7_EDX},
    {0x7, 1, INDEXED, 0, 0, 0, 0},
    {0x7, 2, INDEXED, 0, 0, 0, BIT(4) /* BHI_CTRL: the kernel need not clear history in software */},
    {0xa, 0, 0, 0, 0, 0, 0},
    {0xb, 0, INDEXED, 0, 1, 0x100, 0},
    {0xb, 1, INDEXED, 0, 1, 0x201, 0},
    {0xb, 2, INDEXED, 0, 0, 2, 0},
    {0xd, 0, INDEXED, 3, 576, 576, 0},
    {0xd, 1, INDEXED, LEAFD1_EAX, 576, 0, 0},
    {0x40000000, 0, 0, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d},
    {0x40000001, 0, 0, PV_FEATURES, 0, 0, 0},
    {0x80000000, 0, 0, 0x80000008, 0, 0, 0},
    {0x80000001, 0, 0, 0, 0, EXT1_ECX, EXT1_EDX},
    /* "Strata software x86-64 processor" */
    {0x80000002, 0, 0, 0x61727453, 0x73206174, 0x7774666f, 0x20657261},
    {0x80000003, 0, 0, 0x2d363878, 0x70203436, 0x65636f72, 0x726f7373},
    {0x80000004, 0, 0, 0, 0, 0, 0},
    {0x80000005, 0, 0, 0, 0, 0, 0},
    {0x80000006, 0, 0, 0, 0, 0x08006040, 0},
    {0x80000007, 0, 0, 0, 0, 0, BIT(8) /* invariant TSC */},
    {0x80000008, 0, 0, KVM_GUEST_PHYS_BITS | 48 << 8, 0, 0, 0},
};

unsigned kvm_cpuid_supported(struct softkvm *s, struct kvm_cpuid_entry2 *out)
{
    _Static_assert(ARRAY_LEN(table) <= KVM_MAX_CPUID_ENTRIES, "the table fits a caller's room");
    memcpy(out, table, sizeof(table));
    return ARRAY_LEN(table);
}

const struct kvm_cpuid_entry2 *kvm_vcpu_find_cpuid(const struct kvm_vcpu *v, uint32_t function,
                                                   uint32_t index)
{
    for (uint32_t i = 0; i < v->nr_cpuid; i++) {
        const struct kvm_cpuid_entry2 *e = &v->cpuid[i];

        if (e->function == function && (!(e->flags & INDEXED) || e->index == index)) {
            return e;
        }
    }
    return NULL;
}

bool kvm_cpuid_has(const struct kvm_vcpu *v, uint32_t function, unsigned reg, unsigned bit)
{
    const struct kvm_cpuid_entry2 *e = kvm_vcpu_find_cpuid(v, function, 0);

    return e && ((&e->eax)[reg] >> bit & 1);
}

/*
 * Replace the entries. 0; -EINVAL when the vCPU has run and they differ, -ENOMEM. Under vcpu->lock.
 */
int kvm_cpuid_set(struct kvm_vcpu *v, const struct kvm_cpuid_entry2 *entries, uint32_t n)
{
    struct kvm_cpuid_entry2 *copy;

    if (v->has_run) {
        return n == v->nr_cpuid && (n == 0 || !memcmp(entries, v->cpuid, n * sizeof(*entries)))
                   ? 0
                   : -EINVAL;
    }
    copy = n ? kvm_alloc_array(v->vm->s, n, sizeof(*copy)) : NULL;
    if (n && !copy) {
        return -ENOMEM;
    }
    if (n) {
        memcpy(copy, entries, n * sizeof(*copy));
    }
    free(v->cpuid);
    v->cpuid = copy;
    v->nr_cpuid = n;
    kvm_cpuid_changed(v);
    return 0;
}

static const struct {
    uint32_t function;
    uint8_t reg, bit;
    uint32_t feature;
} features[] = {
    {1, 2, 17, CPU_FEAT_PCID},        {0x80000001, 3, 26, CPU_FEAT_1G},
    {7, 1, 7, CPU_FEAT_SMEP},         {7, 1, 20, CPU_FEAT_SMAP},
    {0x80000001, 3, 20, CPU_FEAT_NX}, {7, 1, 0, CPU_FEAT_FSGSBASE},
    {7, 2, 16, CPU_FEAT_LA57},        {7, 2, 3, CPU_FEAT_PKU},
    {0x80000001, 3, 29, CPU_FEAT_LM}, {7, 2, 2, CPU_FEAT_UMIP},
    {0x80000001, 3, 27, CPU_FEAT_RDTSCP}, {7, 2, 22, CPU_FEAT_RDPID},
    {7, 1, 10, CPU_FEAT_INVPCID},     {1, 2, 26, CPU_FEAT_XSAVE},
};

/* Features decide which bits of CR4 and EFER are reserved. Before user space has said anything, all
 * that the processor can do is on: KVM_SET_SREGS into long mode may come before KVM_SET_CPUID2. */
void kvm_cpuid_changed(struct kvm_vcpu *v)
{
    const struct kvm_cpuid_entry2 *e = kvm_vcpu_find_cpuid(v, 0x80000008, 0);
    uint32_t f = 0;

    for (size_t i = 0; i < ARRAY_LEN(features); i++) {
        if (kvm_cpuid_has(v, features[i].function, features[i].reg, features[i].bit)) {
            f |= features[i].feature;
        }
    }
    if (!v->nr_cpuid) {
        f = CPU_FEAT_PCID | CPU_FEAT_1G | CPU_FEAT_SMEP | CPU_FEAT_SMAP | CPU_FEAT_NX |
            CPU_FEAT_FSGSBASE | CPU_FEAT_LM | CPU_FEAT_UMIP | CPU_FEAT_RDTSCP | CPU_FEAT_RDPID |
            CPU_FEAT_INVPCID | CPU_FEAT_XSAVE;
    }
    if (v->cpu->shadow.on) {
        f &= ~CPU_FEAT_PKU; /* shadow entries carry no keys */
    }
    v->quirks_seen = atomic_load(&v->vm->disabled_quirks);
    v->cpu->features = f | kvm_quirk_features(v);
    v->cpu->maxphyaddr = KVM_GUEST_PHYS_BITS;
    if (e && (e->eax & 0xff) >= 36 && (e->eax & 0xff) <= 52) {
        v->cpu->maxphyaddr = e->eax & 0xff;
    }
    cpu_state_changed(v->cpu);
}

/* Bytes that XSAVE needs for the components of xcr0: x87 and SSE live in the legacy part. */
#define XSAVE_BYTES 576

static void dynamic_bits(struct kvm_vcpu *v, uint32_t function, uint32_t index, uint32_t out[4])
{
    if (function == 1) {
        if (!kvm_has_quirk(v->vm, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)) {
            out[2] = (out[2] & ~BIT(3)) | (v->cpu->msr.misc_enable & X86_MISC_ENABLE_MWAIT ? BIT(3) : 0);
        }
        out[2] = (out[2] & ~BIT(27)) | (v->cpu->cr4 & X86_CR4_OSXSAVE ? BIT(27) : 0);
        if (!(kvm_state_apic_base(v) & 0x800)) {
            out[3] &= ~BIT(9);
        }
    } else if (function == 7 && index == 0) {
        out[2] = (out[2] & ~BIT(4)) | (v->cpu->cr4 & X86_CR4_PKE ? BIT(4) : 0);
    } else if (function == 0xd && index <= 1 && out[1]) {
        out[1] = XSAVE_BYTES;
    }
}

/* The highest function of the range that `function` is in, 0 when there is none. */
static uint32_t range_limit(const struct kvm_vcpu *v, uint32_t function)
{
    const struct kvm_cpuid_entry2 *e;

    if (function >= 0x40000000 && function <= 0x4fffffff) {
        e = kvm_vcpu_find_cpuid(v, function & 0xffffff00, 0);
    } else {
        e = kvm_vcpu_find_cpuid(v, function & 0x80000000, 0);
    }
    return e ? e->eax : 0;
}

/* An Intel processor answers beyond its last basic leaf as if asked for that leaf. */
static const struct kvm_cpuid_entry2 *out_of_range(const struct kvm_vcpu *v, uint32_t function,
                                                   uint32_t index)
{
    const struct kvm_cpuid_entry2 *basic = kvm_vcpu_find_cpuid(v, 0, 0);

    if (!basic || basic->ebx == 0x68747541 /* AMD's answer is zeros */ ||
        function <= range_limit(v, function)) {
        return NULL;
    }
    return kvm_vcpu_find_cpuid(v, basic->eax, index);
}

void kvm_cpuid_read(struct kvm_vcpu *v, uint32_t function, uint32_t index, uint32_t out[4])
{
    const struct kvm_cpuid_entry2 *e = kvm_vcpu_find_cpuid(v, function, index);
    uint32_t asked = function;

    memset(out, 0, 4 * sizeof(*out));
    if (!e) {
        e = out_of_range(v, function, index);
    }
    if (e) {
        memcpy(out, &e->eax, 4 * sizeof(*out));
        dynamic_bits(v, e->function, index, out);
        return;
    }
    /* A topology subleaf that is not there still tells its number and the APIC id. */
    e = asked == 0xb || asked == 0x1f ? kvm_vcpu_find_cpuid(v, asked, 1) : NULL;
    if (e) {
        out[2] = index & 0xff;
        out[3] = e->edx;
    }
}
