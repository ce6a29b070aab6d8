/*
 * Model-specific registers. Three owners are asked in turn: the chips (APIC, clock), the processor,
 * and the hypervisor, whose own are a table of one line each and a few ranges.
 *
 * Lock: vcpu->lock. Leaves out: performance counters (CPUID says there are none), last-branch records.
 */
#include "softkvm/msr.h"

#include <errno.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/regs.h"
#include "softkvm/cpuid.h"
#include "softkvm/tsc.h"
#include "softkvm/vcpu.h"

/* RDCL, IBRS_ALL, no L1D flush needed, SSB, MDS, PSCHANGE_MC, TAA, SBDR_SSDP, FBSDP, PSDP, FB_CLEAR,
 * BHI, PBRSB, GDS, RFDS, ITS: nothing to mitigate. */
#define ARCH_CAPS_BITS                                                                             \
    (0x1u | 0x2u | 0x8u | 0x10u | 0x20u | 0x40u | 0x100u | 1u << 13 | 1u << 14 | 1u << 15 |        \
     1u << 17 | 1u << 20 | 1u << 24 | 1u << 26 | 1u << 27)
#define ARCH_CAPS_ITS_NO (UINT64_C(1) << 62)
#define ARCH_CAPS        (ARCH_CAPS_BITS | ARCH_CAPS_ITS_NO)

#define MCG_BANKS    32
#define MCG_CAP      (MCG_BANKS | 1u << 8 | 1u << 24) /* CTL_P, SER_P */
#define MSR_MC0_CTL  0x400u
#define MTRR_CAP     0x508u /* 8 variable ranges, fixed ranges, write-combining */
#define BIOS_SIGN_ID UINT64_C(0x100000000)

#define MSR_PLATFORM_INFO      0xceu
#define MSR_POWER_CTL          0x1fcu
#define MSR_MISC_FEATURES      0x140u
#define MSR_PERF_CAPS          0x345u
#define MSR_TEMPERATURE_TARGET 0x1a2u
#define MSR_P5_MC_ADDR         0x0u
#define MSR_P5_MC_TYPE         0x1u
#define MSR_SMI_COUNT          0x34u
#define MSR_PPIN_CTL           0x4eu
#define MSR_RAPL_UNIT          0x606u
#define MSR_MISC_PWR           0x1aau
#define MSR_BBL_CR_CTL3        0x11eu
#define MSR_EBL_CR_POWERON     0x2au
#define MSR_TEST_CTRL          0x33u
#define MSR_FLUSH_CMD          0x10bu
#define MSR_K7_HWCR            0xc0010015u
#define MSR_K8_SYSCFG          0xc0010010u
#define MSR_PERF_STATUS        0x198u
#define MSR_BIOS_UPDT_TRIG     0x79u

enum access {
    RW,       /* anybody reads and writes */
    RO,       /* a guest's write faults */
    CONST_RO, /* nobody writes: value is `fixed` */
    IGNORED,  /* reads as `fixed`, writes are dropped */
};

struct entry {
    uint32_t index;
    uint8_t access;
    uint16_t offset;  /* in struct kvm_vcpu; RW and RO */
    uint64_t mask;    /* writable bits: others fault */
    uint64_t fixed;
};

#define FIELD(f) offsetof(struct kvm_vcpu, f)

static const struct entry entries[] = {
    {MSR_P5_MC_ADDR, CONST_RO, 0, 0, 0},
    {MSR_P5_MC_TYPE, CONST_RO, 0, 0, 0},
    {X86_MSR_PLATFORM_ID, CONST_RO, 0, 0, 0},
    {X86_MSR_FEATURE_CTRL, RW, FIELD(msr.feature_ctrl), 0xff07, 0},
    {X86_MSR_BIOS_SIGN, RO, FIELD(msr.bios_sign), UINT64_MAX, 0},
    {X86_MSR_ARCH_CAPS, RO, FIELD(msr.arch_caps), UINT64_MAX, 0},
    {X86_MSR_MTRRCAP, CONST_RO, 0, 0, MTRR_CAP},
    {X86_MSR_MCG_CAP, RO, FIELD(msr.mcg_cap), UINT64_MAX, 0},
    {X86_MSR_MCG_STATUS, RW, FIELD(msr.mcg_status), UINT64_MAX, 0},
    {X86_MSR_MCG_CTL, RW, FIELD(msr.mcg_ctl), UINT64_MAX, 0},
    {X86_MSR_MTRR_DEFTYPE, RW, FIELD(msr.mtrr_def), 0xcff, 0},
    {MSR_PLATFORM_INFO, RO, FIELD(msr.platform_info), UINT64_MAX, 0},
    {MSR_MISC_FEATURES, RW, FIELD(msr.misc_features), 1, 0},
    {MSR_POWER_CTL, RW, FIELD(msr.power_ctl), UINT64_MAX, 0},
    {MSR_PERF_CAPS, RO, FIELD(msr.perf_caps), UINT64_MAX, 0},
    {MSR_SMI_COUNT, RO, FIELD(msr.smi_count), UINT64_MAX, 0},
    {MSR_EBL_CR_POWERON, IGNORED, 0, 0, 0},
    {MSR_BBL_CR_CTL3, IGNORED, 0, 0, 0xbe702111},
    {MSR_FLUSH_CMD, IGNORED, 0, 0, 0},
    {MSR_BIOS_UPDT_TRIG, IGNORED, 0, 0, 0},
    {MSR_K8_SYSCFG, IGNORED, 0, 0, 0},
    {MSR_K7_HWCR, IGNORED, 0, 0, 0},
    {MSR_RAPL_UNIT, CONST_RO, 0, 0, 0},
    {MSR_PERF_STATUS, CONST_RO, 0, 0, UINT64_C(1000) | UINT64_C(4) << 40},
};

static const struct entry *find_entry(uint32_t index)
{
    for (size_t i = 0; i < ARRAY_LEN(entries); i++) {
        if (entries[i].index == index) {
            return &entries[i];
        }
    }
    return NULL;
}

/* MTRRs, and machine-check banks: the place of a numbered one, or null. */
static uint64_t *find_ranged(struct kvm_vcpu *v, uint32_t index)
{
    if (index >= X86_MSR_MTRR_PHYSBASE0 && index < X86_MSR_MTRR_PHYSBASE0 + 16) {
        return &v->msr.mtrr_var[index - X86_MSR_MTRR_PHYSBASE0];
    }
    if (index == X86_MSR_MTRR_FIX64K) {
        return &v->msr.mtrr_fixed[0];
    }
    if (index == X86_MSR_MTRR_FIX16K_0 || index == X86_MSR_MTRR_FIX16K_0 + 1) {
        return &v->msr.mtrr_fixed[1 + index - X86_MSR_MTRR_FIX16K_0];
    }
    if (index >= X86_MSR_MTRR_FIX4K_0 && index < X86_MSR_MTRR_FIX4K_0 + 8) {
        return &v->msr.mtrr_fixed[3 + index - X86_MSR_MTRR_FIX4K_0];
    }
    if (index >= MSR_MC0_CTL && index < MSR_MC0_CTL + 4 * (v->msr.mcg_cap & 0xff)) {
        return &v->msr.mce[index - MSR_MC0_CTL];
    }
    return NULL;
}

static bool is_mtrr(uint32_t index)
{
    return index >= X86_MSR_MTRR_PHYSBASE0 && index <= X86_MSR_MTRR_DEFTYPE;
}

static bool mtrr_type_ok(unsigned type)
{
    return type < 8 && (1u << type & 0x73);
}

/* Addresses are as wide as the vCPU's CPUID says. */
static bool mtrr_value_ok(const struct kvm_vcpu *v, uint32_t index, uint64_t value)
{
    if (index >= X86_MSR_MTRR_FIX64K) {
        for (int i = 0; i < 8; i++) {
            if (!mtrr_type_ok(value >> (i * 8) & 0xff)) {
                return false;
            }
        }
        return true;
    }
    if (value >> v->cpu->maxphyaddr) {
        return false;
    }
    return index & 1 ? (value & 0x7ff) == 0 : mtrr_type_ok(value & 0xff) && !(value & 0xf00);
}

static enum kvm_msr_result get_own(struct kvm_vcpu *v, uint32_t index, uint64_t *value)
{
    const struct entry *e = find_entry(index);
    uint64_t *slot = e ? NULL : find_ranged(v, index);

    if (!e && !slot) {
        return KVM_MSR_UNKNOWN;
    }
    if (slot) {
        *value = *slot;
    } else if (e->access == CONST_RO || e->access == IGNORED) {
        *value = e->fixed;
    } else {
        memcpy(value, (const char *)v + e->offset, sizeof(*value));
    }
    return KVM_MSR_DONE;
}

static enum kvm_msr_result set_ranged(struct kvm_vcpu *v, uint64_t *slot, uint32_t index, uint64_t value,
                                      bool by_host)
{
    if (is_mtrr(index)) {
        if (!mtrr_value_ok(v, index, value)) {
            return KVM_MSR_FAULT;
        }
    } else if (!by_host && (index & 3) == 1 && value != 0) {
        return KVM_MSR_FAULT; /* a guest may only clear a bank's status */
    } else if ((index & 3) == 0 && value != 0 && value != UINT64_MAX && (value | 1u << 10) != UINT64_MAX) {
        return KVM_MSR_FAULT;
    }
    *slot = value;
    return KVM_MSR_DONE;
}

static enum kvm_msr_result set_own(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host)
{
    const struct entry *e = find_entry(index);
    uint64_t *slot = e ? NULL : find_ranged(v, index);

    if (slot) {
        return set_ranged(v, slot, index, value, by_host);
    }
    if (index == X86_MSR_MTRR_DEFTYPE && !mtrr_type_ok(value & 0xff)) {
        return KVM_MSR_FAULT;
    }
    if (!e) {
        return KVM_MSR_UNKNOWN;
    }
    if (index == X86_MSR_BIOS_SIGN && !by_host) {
        return KVM_MSR_DONE; /* zeroed before CPUID to have the revision loaded: it is there already */
    }
    if (e->access == IGNORED) {
        return KVM_MSR_DONE;
    }
    if (e->access == CONST_RO) {
        return by_host && value == e->fixed ? KVM_MSR_DONE : KVM_MSR_FAULT;
    }
    if ((e->access == RO && !by_host) || (value & ~e->mask)) {
        return KVM_MSR_FAULT;
    }
    memcpy((char *)v + e->offset, &value, sizeof(value));
    return KVM_MSR_DONE;
}

/* TSC_ADJUST moves the counter by as much as it changes. */
static void set_tsc_adjust(struct kvm_vcpu *v, uint64_t value, bool by_host)
{
    if (!by_host) {
        v->cpu->tsc_offset += (int64_t)(value - v->msr.tsc_adjust);
    }
    v->msr.tsc_adjust = value;
}

enum kvm_msr_result kvm_msr_get(struct kvm_vcpu *v, uint32_t index, uint64_t *value, bool by_host)
{
    enum kvm_msr_result r = v->vm->irq->get_msr(v, index, value, by_host);

    if (r != KVM_MSR_UNKNOWN) {
        return r;
    }
    if (cpu_get_msr(v->cpu, index, value) == 0) {
        return KVM_MSR_DONE;
    }
    if (index == X86_MSR_APIC_BASE) {
        *value = v->apic_base;
        return KVM_MSR_DONE;
    }
    if (index == X86_MSR_TSC_ADJUST) {
        *value = v->msr.tsc_adjust;
        return KVM_MSR_DONE;
    }
    if (index == MSR_PLATFORM_INFO && !by_host && v->vm->no_platform_info) {
        return KVM_MSR_FAULT;
    }
    return get_own(v, index, value);
}

enum kvm_msr_result kvm_msr_set(struct kvm_vcpu *v, uint32_t index, uint64_t value, bool by_host)
{
    enum kvm_msr_result r = v->vm->irq->set_msr(v, index, value, by_host);
    int e;

    if (r != KVM_MSR_UNKNOWN) {
        return r;
    }
    if (index == X86_MSR_TSC && by_host) {
        kvm_tsc_synchronize(v, value);
        return KVM_MSR_DONE;
    }
    if (index == X86_MSR_TSC) {
        uint64_t before = cpu_read_tsc(v->cpu);

        v->msr.tsc_adjust += value - before;
    }
    e = by_host || index == X86_MSR_TSC ? cpu_set_msr(v->cpu, index, value)
                                        : cpu_set_msr_guest(v->cpu, index, value);
    if (e != -ENOENT) {
        return e == 0 ? KVM_MSR_DONE : KVM_MSR_FAULT;
    }
    if (index == X86_MSR_APIC_BASE) {
        v->apic_base = value;
        return KVM_MSR_DONE;
    }
    if (index == X86_MSR_TSC_ADJUST) {
        set_tsc_adjust(v, value, by_host);
        return KVM_MSR_DONE;
    }
    return set_own(v, index, value, by_host);
}

void kvm_msr_reset(struct kvm_vcpu *v)
{
    memset(&v->msr, 0, sizeof(v->msr));
    v->msr.arch_caps = ARCH_CAPS;
    v->msr.bios_sign = BIOS_SIGN_ID;
    v->msr.mcg_cap = MCG_CAP;
    v->msr.feature_ctrl = 1; /* locked: no VMX */
}

/* ---- lists ---- */

static const uint32_t cpu_msrs[] = {
    X86_MSR_TSC,          X86_MSR_TSC_ADJUST,   X86_MSR_SPEC_CTRL,  X86_MSR_SYSENTER_CS,
    X86_MSR_SYSENTER_ESP, X86_MSR_SYSENTER_EIP, X86_MSR_MISC_ENABLE, X86_MSR_DEBUGCTL,
    X86_MSR_PAT,          X86_MSR_XSS,          X86_MSR_EFER,       X86_MSR_STAR,
    X86_MSR_LSTAR,        X86_MSR_CSTAR,        X86_MSR_SFMASK,     X86_MSR_KERNEL_GS_BASE,
    X86_MSR_TSC_AUX,      X86_MSR_MCG_STATUS,   X86_MSR_MCG_CTL,    X86_MSR_FEATURE_CTRL,
    X86_MSR_ARCH_CAPS,    MSR_PLATFORM_INFO,    MSR_MISC_FEATURES,  MSR_SMI_COUNT,
    MSR_POWER_CTL,
};

unsigned kvm_msr_list(uint32_t *out)
{
    const uint32_t *chips = kvm_irq_chips.msr_list;
    unsigned n = ARRAY_LEN(cpu_msrs);

    memcpy(out, cpu_msrs, sizeof(cpu_msrs));
    for (unsigned i = 0; chips && chips[i] && n < KVM_MSR_LIST_MAX; i++) {
        bool known = false;

        for (unsigned k = 0; k < n; k++) {
            known |= out[k] == chips[i];
        }
        if (!known) {
            out[n++] = chips[i];
        }
    }
    return n;
}

static const struct {
    uint32_t index;
    uint64_t value;
} feature_msrs[] = {
    {X86_MSR_ARCH_CAPS, ARCH_CAPS},
    {X86_MSR_BIOS_SIGN, BIOS_SIGN_ID},
    {MSR_PERF_CAPS, 0},
};

unsigned kvm_msr_feature_list(uint32_t *out)
{
    for (size_t i = 0; i < ARRAY_LEN(feature_msrs); i++) {
        out[i] = feature_msrs[i].index;
    }
    return ARRAY_LEN(feature_msrs);
}

int kvm_msr_feature(uint32_t index, uint64_t *value)
{
    for (size_t i = 0; i < ARRAY_LEN(feature_msrs); i++) {
        if (feature_msrs[i].index == index) {
            *value = feature_msrs[i].value;
            return 0;
        }
    }
    return -EINVAL;
}
