/* Hooks into the processor of fake_cpu.c. */
#ifndef TESTS_SOFTKVM_FAKE_CPU_H
#define TESTS_SOFTKVM_FAKE_CPU_H

#include "cpu/state.h"

struct fake_cpu_hooks {
    enum cpu_exit_reason (*run)(struct cpu *cpu);
    void (*flush)(struct cpu *cpu);
};

extern struct fake_cpu_hooks fake_cpu;

#endif
