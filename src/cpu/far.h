/*
 * Far transfers: what jumps, calls, returns and task switches share. False: a fault or an exit is
 * recorded, nothing changed.
 */
#ifndef STRATA_CPU_FAR_H
#define STRATA_CPU_FAR_H

#include "cpu/seg.h"

/* Where a transfer goes. */
struct cpu_far {
    uint64_t rip;
    uint16_t sel;
    uint8_t size; /* of the operand, bytes: 2, 4, 8 */
};

bool cpu_far_check_rip(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *cs, uint64_t rip) must_check;
bool cpu_far_check_real(struct cpu *cpu, const struct cpu_op *op, struct cpu_far *to) must_check;
void cpu_far_enter_real(struct cpu *cpu, const struct cpu_far *to);
bool cpu_far_check_code(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *cs) must_check;
void cpu_far_enter(struct cpu *cpu, const struct cpu_desc *cs, unsigned cpl, uint64_t rip);
bool cpu_far_read_gate(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *gate, struct cpu_far *to,
                       struct cpu_desc *cs) must_check;
bool cpu_far_task(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d, bool call) must_check;

/* far_ret.c: back to what was popped, for RETF and IRET. */
struct cpu_far_return {
    uint64_t rip, rsp, cs, ss;
    struct cpu_desc cs_desc, ss_desc;
    bool outer;   /* to a less privileged level */
    bool has_ss;  /* SS:RSP were popped */
    bool to_long; /* the target is 64-bit code */
};

bool cpu_far_check_return_cs(struct cpu *cpu, const struct cpu_op *op, struct cpu_far_return *r) must_check;
bool cpu_far_check_return_ss(struct cpu *cpu, const struct cpu_op *op, struct cpu_far_return *r) must_check;
void cpu_far_commit_return(struct cpu *cpu, const struct cpu_far_return *r, const struct cpu_stack *from,
                           unsigned release);

/* Load RFLAGS as POPF and IRET do: size bytes of value, what CPL and IOPL allow (flags_insn.c). */
void cpu_load_flags(struct cpu *cpu, uint64_t value, unsigned size, bool is_iret);

#endif
