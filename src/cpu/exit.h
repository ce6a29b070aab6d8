/*
 * Exits are data: what the silicon tells the hypervisor when a guest cannot go on by itself. The
 * processor never calls upward. Also the events that the hypervisor injects, and the replay list
 * that lets an instruction with device accesses be restarted until all its data are there.
 *
 * Device accesses. An instruction that reads a device cannot complete: it leaves no trace (all its
 * register changes come after its last access), cpu_run() returns CPU_EXIT_MMIO or CPU_EXIT_IO, the
 * hypervisor answers with cpu_complete_read(), and the next cpu_run() executes the instruction anew;
 * its n-th device access now finds entry n of the replay list and takes the data there. A device
 * write is put on the list as done at once, the instruction is run to its end, and only then
 * cpu_run() returns: so RIP and registers are past the instruction when a write exit is seen, and at
 * the instruction when a read exit is, as with KVM.
 */
#ifndef STRATA_CPU_EXIT_H
#define STRATA_CPU_EXIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/addr.h"

enum cpu_exit_reason {
    CPU_EXIT_NONE,
    CPU_EXIT_KICK,          /* cpu_kick(), or a request that only the hypervisor can serve */
    CPU_EXIT_HLT,           /* RIP past the instruction */
    CPU_EXIT_IO,            /* io: port access */
    CPU_EXIT_EPT_VIOLATION, /* ept: nothing, or not enough, mapped there; retry after repair */
    CPU_EXIT_EPT_MISCONFIG, /* ept: an entry with a reserved combination, as MMIO entries are; `mmio` tells the access */
    CPU_EXIT_CPUID,         /* leaf in EAX, subleaf in ECX; RIP at the instruction, insn_len long */
    CPU_EXIT_RDMSR,         /* msr: not one of the processor's own */
    CPU_EXIT_WRMSR,
    CPU_EXIT_INTR_WINDOW,
    CPU_EXIT_NMI_WINDOW,
    CPU_EXIT_HYPERCALL,     /* VMCALL or VMMCALL; RIP at the instruction */
    CPU_EXIT_TRIPLE_FAULT,
    CPU_EXIT_DEBUG,         /* debug: single step or breakpoint asked for by the hypervisor */
    CPU_EXIT_CR8,           /* value written to CR8 in `cr8` */
    CPU_EXIT_XSETBV,
    CPU_EXIT_PAUSE,         /* a spin loop: many PAUSEs without progress */
    CPU_EXIT_NPF,           /* ept: AMD's second stage refused, for rights or for reserved bits: error_code tells */
    CPU_EXIT_PML_FULL,      /* the log of modified pages has no room; retry after emptying it */
    CPU_EXIT_HOST_FAULT,    /* host: guest RAM that the host does not give any more; RIP at the instruction */
    /* Under shadow tables (shadow.h) only: */
    CPU_EXIT_PAGE_FAULT,    /* pf: the tables that are walked refuse; retry after repair, or reflect */
    CPU_EXIT_CR_WRITE,      /* cr: done, RIP past it; no root is loaded any more */
    CPU_EXIT_INVALIDATE,    /* inval: INVLPG or INVPCID, done, RIP past it */
    CPU_EXIT_PDPTES,        /* cr: the four PDPTEs at cr.value are wanted; RIP at the instruction */
    CPU_EXIT_TABLE_WRITE,   /* shadow.write[]: the instruction, now past, has used grants to write */
    CPU_EXIT_ERROR,         /* `error`: an instruction that the decoder or interpreter cannot do */
};

enum cpu_event_type {
    CPU_EVENT_NONE,
    CPU_EVENT_INTR,      /* external interrupt */
    CPU_EVENT_NMI,
    CPU_EVENT_EXCEPTION, /* hardware exception */
    CPU_EVENT_SOFT_INTR, /* INT n */
    CPU_EVENT_SOFT_EXC,  /* INT3, INTO */
    CPU_EVENT_PRIV_EXC,  /* INT1 */
};

struct cpu_event {
    uint8_t type; /* enum cpu_event_type */
    uint8_t vector;
    uint8_t has_error;
    uint8_t insn_len; /* software events: bytes to skip */
    uint32_t error;
    uint64_t payload; /* #PF: CR2; #DB: DR6 bits */
};

struct cpu_exit {
    enum cpu_exit_reason reason;
    uint8_t insn_len; /* where RIP is left at the instruction */
    union {
        struct {
            uint16_t port;
            uint8_t size;      /* 1, 2, 4 */
            bool is_in, is_string, has_rep;
            uint16_t count;    /* REP INS: so many elements may be answered at once; else 1 */
            uint32_t data;     /* OUT: what is written */
        } io;
        struct {
            gpa_t gpa;
            gva_t gva;
            uint32_t qualification; /* EPT_VIOL_* */
            uint64_t error_code;    /* NPF_*: of CPU_EXIT_NPF */
            /* The access that met it, for the hypervisor to emulate if the page is a device's. */
            uint8_t size;      /* bytes of this fragment, 1 to 16; 0: a table walk or a fetch */
            bool is_write;
            uint8_t data[16];  /* write: what is written, already on the replay list as done if misconfig */
        } ept;
        struct {
            bool is_vmmcall;
        } hypercall;
        struct {
            uint32_t index;
            uint64_t value;    /* WRMSR */
        } msr;
        struct {
            uint64_t dr6, pc;
            uint8_t vector;
        } debug;
        struct {
            uint32_t index;
            uint64_t value;
        } xcr;
        uint64_t cr8;
        struct {
            hva_t addr;
            bool is_poison;    /* its memory has failed */
        } host;
        struct {
            gva_t gva;
            uint32_t code;     /* X86_PFEC_*, as this processor's tables and registers make it */
            uint8_t priv;      /* enum cpu_priv: tells implicit and AC-exempt accesses apart */
            bool in_delivery;  /* met while cpu->event was delivered */
        } pf;
        struct {
            unsigned reg;      /* 0, 3, 4; CPU_CR_EFER */
            uint64_t value;    /* as the instruction had it: bit 63 of CR3 included */
        } cr;
        struct {
            uint8_t type;      /* INVPCID's 0 to 3; CPU_INVALIDATE_PAGE for INVLPG */
            uint16_t pcid;
            gva_t gva;
        } inval;
        struct {
            uint8_t bytes[15], len;
            char what[40];
        } error;
    };
};

#define CPU_CR_EFER         8u /* in exit.cr.reg: EFER, which no MOV to CR names */
#define CPU_INVALIDATE_PAGE 4u /* in exit.inval.type */

#define CPU_REPLAY_MAX 8

struct cpu_replay {
    uint8_t count, next; /* entries done; the one that the next device access takes */
    bool finishing;      /* a write was posted: run this instruction to its end, then exit */
    struct {
        uint64_t addr; /* gpa, or port */
        uint8_t size;
        bool is_io, is_write;
        uint8_t data[16];
    } entry[CPU_REPLAY_MAX];
};

/* What a hypervisor has read from a port ahead of a REP INS: later elements of the same instruction take it from
 * here. An instruction that stops for a fault drops it. */
#define CPU_AHEAD_BYTES 1024
struct cpu_ahead {
    uint16_t port, pos, end; /* bytes */
    uint8_t size;
    uint8_t data[CPU_AHEAD_BYTES];
};

/* Counted by the processor; read by anyone after cpu_run(). */
struct cpu_counters {
    uint64_t blocks_decoded, insns_decoded, insns_unknown, blocks_verified, blocks_stale;
    uint64_t tlb_misses, tlb_flushes, guest_walks, ept_walks, ept_violations, ept_misconfigs;
    uint64_t exceptions, interrupts, page_faults;
    uint64_t smc_writes;
    uint64_t exits[32]; /* by enum cpu_exit_reason */
};

#endif
