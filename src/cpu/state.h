/*
 * The state of one processor: what its registers are, and what the interpreter keeps beside them.
 * Siblings in src/cpu share this struct; src/softkvm reaches it only through run.h and regs.h.
 *
 * Invariants
 *  1. While an operation runs, RIP is not in `rip`: it is regs[CPU_IP_PAGE] + op->pgoff (truncated to
 *     the code size). cpu_sync_rip() writes it back; every fault, exit and block end does.
 *  2. regs[CPU_ZERO] is 0, always: an absent base or index register costs nothing.
 *  3. Arithmetic flags are lazy (flags.h); cpu_get_rflags() makes them whole.
 *  4. Outside cpu_run() everything is architectural: rip, flags and segments are whole.
 *
 * Locks: none. One host thread runs a processor; others touch only the fields of `struct cpu_inbox`,
 * which are atomic (request.h).
 */
#ifndef STRATA_CPU_STATE_H
#define STRATA_CPU_STATE_H

#include <stdatomic.h>
#include <stdint.h>

#include "base/addr.h"
#include "base/compiler.h"
#include "cpu/exit.h"

struct host_memory;
struct cpu_block;
struct cpu_block_cache;
struct cpu_mmu;
struct cpu_op;
struct cpu_tlb_entry;

/* Register file: 0-15 in encoding order, then registers of the interpreter's own. */
enum cpu_reg {
    CPU_RAX, CPU_RCX, CPU_RDX, CPU_RBX, CPU_RSP, CPU_RBP, CPU_RSI, CPU_RDI,
    CPU_R8, CPU_R9, CPU_R10, CPU_R11, CPU_R12, CPU_R13, CPU_R14, CPU_R15,
    CPU_ZERO,    /* always 0 */
    CPU_IP_PAGE, /* RIP of the first byte of the current code page (may wrap below 0 off CS base) */
    CPU_TMP0, CPU_TMP1, /* scratch inside one instruction that needs several operations */
    CPU_NREGS
};

enum cpu_segreg { CPU_ES, CPU_CS, CPU_SS, CPU_DS, CPU_FS, CPU_GS, CPU_NSEGS };

/* A segment register with its hidden part. */
struct cpu_seg {
    uint64_t base;
    uint32_t limit;   /* bytes, inclusive, granularity applied */
    uint16_t sel;
    uint8_t type;     /* 4 bits of the descriptor */
    uint8_t s, dpl, p, avl, l, db, g;
    uint8_t unusable; /* a null selector */
};

struct cpu_dtable {
    uint64_t base;
    uint16_t limit;
};

union cpu_xmm {
    uint8_t u8[16];
    uint16_t u16[8];
    uint32_t u32[4];
    uint64_t u64[2];
    float f32[4];
    double f64[2];
} __attribute__((aligned(16)));

/* x87 and MXCSR. Physical registers st[0..7] hold 80-bit values; `top` selects ST(0). MMX registers
 * are the low 64 bits of the physical ones. Tags are kept in the abridged form (1 = not empty). */
struct cpu_x87 {
    struct {
        uint64_t mant;
        uint16_t se; /* sign and exponent */
    } st[8];
    uint16_t fcw, fsw; /* fsw without TOP, which is in `top` */
    uint8_t top, ftw;
    uint16_t fop;
    uint64_t fip, fdp;
    uint16_t fcs, fds;
};

/* What the decoder and the block cache must know to give bytes a meaning. Part of a block's key. */
#define CPU_MODE_64     0x01u /* CS.L with long mode active */
#define CPU_MODE_CS32   0x02u /* CS.D: 32-bit operands and addresses */
#define CPU_MODE_SS32   0x04u /* SS.B: 32-bit stack pointer */
#define CPU_MODE_USER   0x08u /* CPL 3 */
#define CPU_MODE_LEGACY 0x10u /* a segment that is not flat may be in use: check limits, add bases */
#define CPU_MODE_REAL   0x20u /* real mode (CR0.PE clear) */
#define CPU_MODE_V86    0x40u
#define CPU_MODE_TF     0x80u /* single-step: blocks of one instruction */

/* Written by other threads; read at block boundaries (request.h explains the protocol). */
struct cpu_inbox {
    _Atomic uint32_t epoch;    /* changes: look at requests, and verify blocks again before use */
    _Atomic uint32_t requests; /* CPU_REQ_* */
    _Atomic uint32_t in_guest; /* 1 inside cpu_run() */
    _Atomic uint32_t flush_asked; /* tickets of flush requests; the last one that has been served */
    _Atomic uint32_t flush_done;
} __attribute__((aligned(64)));

/* Pages that one instruction can meet by its data and by the tables on the way to them. */
#define CPU_DEVICE_WRITES 12

/* Entries of a page-modification log. */
#define CPU_PML_ENTRIES 512u

/* All host addresses that were ever guest RAM lie in [start, end). Written by the hypervisor, growing only; read by
 * the handler of host faults (guard.h). */
struct cpu_host_ram {
    _Atomic uint64_t start, end;
};

/* Leave for one instruction to touch a page in a way that the tables do not allow; shadow.h. */
struct cpu_grant {
    uint64_t page; /* linear address of the page */
    uint64_t gpa;  /* guest-physical address of the page */
    uint64_t pfn;  /* frame of the page; 0: none, a device's */
    bool user;     /* for accesses of privilege 3, else for the supervisor's */
    bool device;   /* the access is a device's: it goes by the replay list */
};

#define CPU_GRANTS       4
#define CPU_TABLE_WRITES 8

/* Shadow paging: the tables that are walked are the hypervisor's, and so are the registers that the walk obeys. */
struct cpu_shadow {
    bool on;
    uint8_t levels;          /* 3: PAE by pdptr[]; 4; 5 */
    uint64_t root;           /* frame address of the top table (4, 5 levels), not 0 when loaded; 0: none */
    uint64_t pdptr[4];
    uint64_t cr0, cr4, efer; /* what the walk obeys */
    bool pdptes_given;       /* the next load of PDPTEs from pdptes_cr3 takes pdptes[] */
    uint64_t pdptes_cr3, pdptes[4];
    uint64_t grant_rip;      /* the instruction that grants are for */
    uint8_t nr_grants, next_grant, nr_writes;
    struct cpu_grant grant[CPU_GRANTS];
    struct {
        uint64_t gpa;
        uint32_t len;        /* bytes, within a page */
    } write[CPU_TABLE_WRITES];
};

/* What is left of a task switch whose new task could not be entered for an exit: the second half is tried again. */
enum cpu_task_left { CPU_TASK_WHOLE, CPU_TASK_SEGMENTS, CPU_TASK_ERROR_CODE };

struct cpu_task_rest {
    uint8_t left;            /* enum cpu_task_left */
    uint8_t reason;          /* enum cpu_task_reason */
    bool trap;
    uint16_t ldt, sel[CPU_NSEGS];
    uint32_t eip, eflags;
};

struct cpu {
    /* Hot: the operations' own. */
    uint64_t regs[CPU_NREGS];
    uint64_t cc_dst, cc_src; /* lazy arithmetic flags, flags.h */
    uint32_t cc_op;
    uint32_t rflags_rest;    /* RFLAGS without the arithmetic flags (DF, IF, TF, IOPL, NT, AC, ...) */
    struct cpu_tlb_entry *tlb; /* the entries for the current privilege, tlb.h */
    uint64_t tlb_gen[2];     /* low 12 bits of valid tags, for the lower and the upper half of addresses */
    uint64_t code_key[2];    /* the same for code: address-space key << 32 | mode, block.h */
    struct cpu_block **jump_cache; /* one of the two below */
    uint64_t seg_base[8];    /* bases for address arithmetic: in 64-bit mode 0 but for FS and GS; [6], [7] are 0 */
    uint64_t rip;            /* invariant 1 */
    uint32_t mode;           /* CPU_MODE_* */
    uint32_t cpl;
    uint64_t icount;         /* instructions retired */
    struct cpu_inbox inbox;
    const struct cpu_op *at_op;   /* whom a host fault would interrupt, guard.h */
    const struct cpu_op *running_op;
    const struct cpu_op *next_op; /* builds without tail calls: what cpu_next() asks the run loop for */
    union cpu_xmm scratch;   /* slow memory paths hand 16-byte values over here */

    union cpu_xmm xmm[16];
    uint32_t mxcsr;
    struct cpu_x87 x87;

    struct cpu_seg seg[CPU_NSEGS];
    struct cpu_seg ldtr, tr;
    struct cpu_dtable gdtr, idtr;

    uint64_t cr0, cr2, cr3, cr4, cr8, efer, xcr0, xss;
    uint64_t dr[4], dr6, dr7;
    uint64_t pdptr[4]; /* PAE: loaded with CR3 */
    uint8_t pdptes_stale; /* CR3 came from outside: the next walk loads them */
    struct {
        uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
        uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
        uint64_t tsc_aux, pat, debugctl, misc_enable, spec_ctrl;
    } msr;
    int64_t tsc_offset;     /* guest TSC = (host TSC * tsc_ratio >> 32) + tsc_offset */
    uint64_t tsc_ratio;     /* 32.32 fixed point; 1 << 32 = as the host */

    /* Event delivery. */
    struct cpu_event event;      /* being injected or delivered; type CPU_EVENT_NONE if none */
    struct cpu_event fault;      /* raised by the operation at hand, delivered by the run loop */
    uint8_t interrupt_shadow;    /* 1: no interrupt before the next instruction has retired (STI, MOV SS) */
    uint8_t nmi_blocked;
    uint8_t want_intr_window;    /* exit as soon as an interrupt could be taken */
    uint8_t want_nmi_window;
    uint8_t single_step;         /* KVM_GUESTDBG_SINGLESTEP: exit after one instruction */
    uint8_t trap_int3;           /* INT3 is the hypervisor's breakpoint: exit instead of #BP */
    uint8_t has_host_dr;         /* breakpoints are the hypervisor's (host_dr), not the guest's */
    uint8_t exit_msrs;           /* RDMSR and WRMSR of the processor's own registers exit as well */
    uint64_t host_dr[4], host_dr7;
    uint32_t db_pending;         /* DR6 bits of the #DB trap that the instruction at hand has earned */
    uint8_t restart_alone;       /* run the instruction at RIP by itself, before anything else: replay.h */
    uint8_t finish_only;         /* cpu_finish(): leave when the instruction to restart is done */
    uint8_t alone;               /* the block that runs is one instruction and leads nowhere */
    uint8_t pause_count;         /* PAUSEs met since the last one that ended in an exit */

    /* Second stage. */
    struct host_memory *mem;
    uint64_t eptp;               /* EPT pointer: root hpa | EPTP_*; with npt_levels the root alone; 0: no second stage */
    uint64_t *pml;               /* page-modification log (EPT with accessed and dirty bits), or null: none is kept */
    uint64_t device_write_page[CPU_DEVICE_WRITES]; /* guest frames + 1 whose refused writes are a device's, for the
                                                    * instruction at hand; 0 free */
    uint16_t pml_index;          /* entry that the next page goes to: 511 down; above: full */
    uint8_t npt_levels;          /* 4 or 5: the second stage has AMD's format; 0: Intel's */
    struct cpu_shadow shadow;
    struct cpu_task_rest task_rest;
    unsigned maxphyaddr;         /* guest-physical width, bits */
    struct cpu_mmu *mmu;         /* TLB and translation caches, tlb.h */
    const struct cpu_host_ram *host_ram; /* where faults are the guest RAM's, guard.h; NULL: nowhere. Borrowed */
    uint8_t holds_split_lock;
    struct {
        uint64_t dst, src;
        uint32_t op;
        uint8_t valid;
    } cc_before;                 /* flags before a repeated instruction: a fault in its middle gives them back */
    struct {
        uint64_t icount;
        uint8_t tf, traced, shadow;
    } alone_from;                /* what was so before the instruction that runs alone */
    uint32_t pkru;
    uint32_t features;           /* CPU_FEAT_*: what CPUID grants, where behaviour depends on it */
    unsigned index;              /* of this processor in its VM; small, unique */
    struct cpu_peers *peers;     /* the processors that share `mem`, for self-modifying code */

    struct cpu_exit exit;        /* why cpu_run() came back */
    struct cpu_replay replay;    /* device accesses of the instruction at hand that are done */
    struct cpu_ahead ahead;      /* elements of a REP INS that have been read already */
    uint64_t device_rip;         /* of the instruction that wrote to a device last */
    struct cpu_block_cache *blocks;
    struct cpu_block **jump_cache_own, **jump_cache_none; /* the second stays empty: for instructions run alone */
    struct cpu_event deferred;   /* an injected event that must wait for a fault met before it */
    struct cpu_counters counters;
};

#define CPU_FEAT_PCID     0x1u
#define CPU_FEAT_1G       0x2u
#define CPU_FEAT_SMEP     0x4u
#define CPU_FEAT_SMAP     0x8u
#define CPU_FEAT_NX       0x10u
#define CPU_FEAT_FSGSBASE 0x20u
#define CPU_FEAT_LA57     0x40u
#define CPU_FEAT_PKU      0x80u
#define CPU_FEAT_LM       0x100u
#define CPU_FEAT_UMIP     0x200u
#define CPU_FEAT_RDTSCP   0x400u
#define CPU_FEAT_RDPID    0x800u
#define CPU_FEAT_INVPCID  0x1000u
#define CPU_FEAT_XSAVE    0x2000u
#define CPU_FEAT_MWAIT    0x4000u /* MONITOR and MWAIT: MWAIT ends at once */
#define CPU_FEAT_MWAIT_MISC 0x8000u /* the same while MISC_ENABLE's bit 18 is set */

#endif
