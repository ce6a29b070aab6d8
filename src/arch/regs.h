/*
 * Bits of the architectural registers that the stack looks at: RFLAGS, CR0, CR4, EFER, exceptions,
 * page-fault error codes, MSR numbers. Names are the manuals' own. Data only.
 */
#ifndef STRATA_ARCH_REGS_H
#define STRATA_ARCH_REGS_H

#include <stdint.h>

/* RFLAGS */
#define X86_CF   0x1u
#define X86_RF1  0x2u /* always one */
#define X86_PF   0x4u
#define X86_AF   0x10u
#define X86_ZF   0x40u
#define X86_SF   0x80u
#define X86_TF   0x100u
#define X86_IF   0x200u
#define X86_DF   0x400u
#define X86_OF   0x800u
#define X86_IOPL 0x3000u
#define X86_NT   0x4000u
#define X86_RF   0x10000u
#define X86_VM   0x20000u
#define X86_AC   0x40000u
#define X86_VIF  0x80000u
#define X86_VIP  0x100000u
#define X86_ID   0x200000u
#define X86_ARITH_FLAGS (X86_CF | X86_PF | X86_AF | X86_ZF | X86_SF | X86_OF)

/* CR0 */
#define X86_CR0_PE 0x1u
#define X86_CR0_MP 0x2u
#define X86_CR0_EM 0x4u
#define X86_CR0_TS 0x8u
#define X86_CR0_ET 0x10u
#define X86_CR0_NE 0x20u
#define X86_CR0_WP 0x10000u
#define X86_CR0_AM 0x40000u
#define X86_CR0_NW 0x20000000u
#define X86_CR0_CD 0x40000000u
#define X86_CR0_PG 0x80000000u

/* CR3 and CR4 */
#define X86_CR3_PCID_MASK 0xfffu
#define X86_CR3_NOFLUSH   (UINT64_C(1) << 63)

#define X86_CR4_VME        0x1u
#define X86_CR4_PVI        0x2u
#define X86_CR4_TSD        0x4u
#define X86_CR4_DE         0x8u
#define X86_CR4_PSE        0x10u
#define X86_CR4_PAE        0x20u
#define X86_CR4_MCE        0x40u
#define X86_CR4_PGE        0x80u
#define X86_CR4_PCE        0x100u
#define X86_CR4_OSFXSR     0x200u
#define X86_CR4_OSXMMEXCPT 0x400u
#define X86_CR4_UMIP       0x800u
#define X86_CR4_LA57       0x1000u
#define X86_CR4_VMXE       0x2000u
#define X86_CR4_SMXE       0x4000u
#define X86_CR4_FSGSBASE   0x10000u
#define X86_CR4_PCIDE      0x20000u
#define X86_CR4_OSXSAVE    0x40000u
#define X86_CR4_SMEP       0x100000u
#define X86_CR4_SMAP       0x200000u
#define X86_CR4_PKE        0x400000u

/* EFER */
#define X86_EFER_SCE   0x1u
#define X86_EFER_LME   0x100u
#define X86_EFER_LMA   0x400u
#define X86_EFER_NX    0x800u
#define X86_EFER_SVME  0x1000u
#define X86_EFER_FFXSR 0x4000u

/* Exception vectors */
enum x86_vector {
    X86_DE = 0,
    X86_DB = 1,
    X86_NMI = 2,
    X86_BP = 3,
    X86_VEC_OF = 4,
    X86_BR = 5,
    X86_UD = 6,
    X86_NM = 7,
    X86_VEC_DF = 8,
    X86_TS = 10,
    X86_NP = 11,
    X86_SS = 12,
    X86_GP = 13,
    X86_VEC_PF = 14,
    X86_MF = 16,
    X86_VEC_AC = 17,
    X86_MC = 18,
    X86_XM = 19,
};

/* Page-fault error code */
#define X86_PFEC_P    0x1u
#define X86_PFEC_W    0x2u
#define X86_PFEC_U    0x4u
#define X86_PFEC_RSVD 0x8u
#define X86_PFEC_F    0x10u
#define X86_PFEC_PK   0x20u

/* MSRs */
#define X86_MSR_TSC            0x10u
#define X86_MSR_PLATFORM_ID    0x17u
#define X86_MISC_ENABLE_MWAIT  (UINT64_C(1) << 18)
#define X86_MSR_APIC_BASE      0x1bu
#define X86_MSR_FEATURE_CTRL   0x3au
#define X86_MSR_TSC_ADJUST     0x3bu
#define X86_MSR_SPEC_CTRL      0x48u
#define X86_MSR_PRED_CMD       0x49u
#define X86_MSR_BIOS_SIGN      0x8bu
#define X86_MSR_MTRRCAP        0xfeu
#define X86_MSR_ARCH_CAPS      0x10au
#define X86_MSR_SYSENTER_CS    0x174u
#define X86_MSR_SYSENTER_ESP   0x175u
#define X86_MSR_SYSENTER_EIP   0x176u
#define X86_MSR_MCG_CAP        0x179u
#define X86_MSR_MCG_STATUS     0x17au
#define X86_MSR_MCG_CTL        0x17bu
#define X86_MSR_MISC_ENABLE    0x1a0u
#define X86_MSR_DEBUGCTL       0x1d9u
#define X86_MSR_MTRR_PHYSBASE0 0x200u
#define X86_MSR_MTRR_FIX64K    0x250u
#define X86_MSR_MTRR_FIX16K_0  0x258u
#define X86_MSR_MTRR_FIX4K_0   0x268u
#define X86_MSR_PAT            0x277u
#define X86_MSR_MTRR_DEFTYPE   0x2ffu
#define X86_MSR_TSC_DEADLINE   0x6e0u
#define X86_MSR_X2APIC_FIRST   0x800u
#define X86_MSR_X2APIC_LAST    0x8ffu
#define X86_MSR_XSS            0xda0u
#define X86_MSR_EFER           0xc0000080u
#define X86_MSR_STAR           0xc0000081u
#define X86_MSR_LSTAR          0xc0000082u
#define X86_MSR_CSTAR          0xc0000083u
#define X86_MSR_SFMASK         0xc0000084u
#define X86_MSR_FS_BASE        0xc0000100u
#define X86_MSR_GS_BASE        0xc0000101u
#define X86_MSR_KERNEL_GS_BASE 0xc0000102u
#define X86_MSR_TSC_AUX        0xc0000103u

#endif
