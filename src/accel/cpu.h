/*
 * What a processor starts with, in words that need no KVM header: the machine says where and in which
 * mode the first instruction is; accel/boot_state.c makes struct kvm_sregs and kvm_regs of it.
 */
#ifndef STRATA_ACCEL_CPU_H
#define STRATA_ACCEL_CPU_H

#include <stdint.h>

enum accel_mode {
    ACCEL_MODE_RESET,  /* leave the architectural reset state */
    ACCEL_MODE_REAL,   /* 16-bit real mode at segment:0 given by rip (segment = rip >> 4) */
    ACCEL_MODE_PROT32, /* flat 32-bit protected mode, paging off */
    ACCEL_MODE_LONG64, /* flat 64-bit mode, paging on with cr3 */
};

struct accel_boot_state {
    enum accel_mode mode;
    uint64_t rip, rsp;
    uint64_t rax, rbx, rsi; /* what the boot protocol passes */
    uint64_t cr3;           /* LONG64 */
    uint64_t gdt_base;      /* gpa of a table laid out as ACCEL_GDT; PROT32 and LONG64 */
    uint16_t gdt_limit;
    uint16_t code, data; /* selectors */
};

#endif
