/*
 * What the SIMD families share: the gate that every instruction passes, operand loads with their
 * alignment rule, the shape of a computing kernel, and rows from which emitters choose operations.
 *
 * A kernel is a static function of two 16-byte values and an immediate. It executes the very
 * instruction on the host processor, so results, NaN payloads and MXCSR flags are the silicon's own. The host
 * must therefore have what the guest is told it has (x86-64-v2). Operations around it load, check and
 * commit. Nothing is generated at run time.
 *
 * MXCSR: inside cpu_run() the host's MXCSR holds the guest's controls with every exception masked
 * (fpu.h). Kernels run under it; flags gather there. Only when the guest has unmasked an exception are
 * flags examined after each operation (cpu_simd_fp_checked()).
 */
#ifndef STRATA_CPU_SIMD_H
#define STRATA_CPU_SIMD_H

#include "cpu/access.h"
#include "cpu/emit.h"
#include "cpu/exception.h"
#include "cpu/fpu.h"
#include "cpu/insn.h"

typedef long long simd_vec __attribute__((vector_size(16), may_alias));

typedef void cpu_simd_kernel(union cpu_xmm *d, const union cpu_xmm *s, unsigned imm);

/* One instruction in its regular form: xmm, xmm/m[, imm8]. */
struct cpu_simd_row {
    uint16_t mnemonic; /* ZydisMnemonic */
    cpu_op_fn *reg;
    struct mem_fns mem; /* null: no memory form */
};

/* Raise what forbids SSE (#UD, #NM), or for MMX also a pending x87 exception. Always false. */
bool cpu_simd_refuse(struct cpu *cpu, const struct cpu_op *op);
bool cpu_mmx_begin(struct cpu *cpu, const struct cpu_op *op) must_check;

/* Run a floating-point kernel for a guest with unmasked exceptions: d is changed and true returned
 * only when none of them is raised; otherwise MXCSR has its flags and #XM (or #UD) is recorded. */
bool cpu_simd_fp_checked(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k,
                         union cpu_xmm *d, const union cpu_xmm *s) must_check;

/* Load a partial memory operand of 1, 2, 4, 8 or 16 bytes, zero-extended; into op's destination register. */
bool cpu_simd_load_register(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool aligned) must_check;
bool cpu_simd_load_part(struct cpu *cpu, const struct cpu_op *op, unsigned size, union cpu_xmm *v) must_check;

/* A row's memory operation the slow way, with all checks. True: done. */
bool cpu_simd_slow_mem(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k, unsigned size, bool fp);

/* Append the operation of e's mnemonic found in rows, for an XMM destination. -ENOSYS if not there. */
int cpu_simd_emit_rows(struct cpu_emit *e, const struct cpu_simd_row *rows, unsigned n);

/* The same instruction on MMX registers (mmx.c). */
int cpu_mmx_emit(struct cpu_emit *e);

static always_inline bool cpu_simd_is_on(const struct cpu *cpu)
{
    return likely(!(cpu->cr0 & (X86_CR0_EM | X86_CR0_TS)) && (cpu->cr4 & X86_CR4_OSFXSR));
}

static always_inline bool cpu_simd_ready(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu_simd_is_on(cpu) || cpu_simd_refuse(cpu, op);
}

static always_inline bool cpu_simd_is_masked(const struct cpu *cpu)
{
    return likely((cpu->mxcsr & CPU_MXCSR_MASKS) == CPU_MXCSR_MASKS);
}

static always_inline bool cpu_simd_fp_run(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k,
                                          union cpu_xmm *d, const union cpu_xmm *s)
{
    if (!cpu_simd_is_masked(cpu)) {
        return cpu_simd_fp_checked(cpu, op, k, d, s);
    }
    k(d, s, (unsigned)op->imm & 0xff);
    return true;
}

/* Load 16 bytes that must lie on a 16-byte boundary: #GP(0) otherwise. */
static always_inline bool cpu_simd_load(struct cpu *cpu, const struct cpu_op *op, union cpu_xmm *v)
{
    uint64_t la;

    if (!cpu_ea(cpu, op, 16, false, &la)) {
        return false;
    }
    if (unlikely(la & 15)) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    return cpu_load128(cpu, op, la, v);
}

static always_inline bool cpu_simd_operand(struct cpu *cpu, const struct cpu_op *op, unsigned size,
                                           union cpu_xmm *v)
{
    return size == 16 ? cpu_simd_load(cpu, op, v) : cpu_simd_load_part(cpu, op, size, v);
}

struct cpu_simd_bytes {
    uint8_t b[16];
} __attribute__((may_alias));

/* `size` bytes at p, zero-extended. Sixteen are one access, as on the processors that are imitated. */
static always_inline union cpu_xmm cpu_simd_get(const void *p, unsigned size)
{
    union cpu_xmm v = {.u64 = {0, 0}};
    simd_vec whole;

    if (size < 16) {
        v.u64[0] = cpu_guest_get_sized(p, size);
        return v;
    }
    __asm__ volatile("movups %1, %0" : "=x"(whole) : "m"(*(const struct cpu_simd_bytes *)p));
    *(simd_vec *)&v = whole;
    return v;
}

static always_inline void cpu_simd_put(void *p, const union cpu_xmm *v)
{
    __asm__ volatile("movups %1, %0"
                     : "=m"(*(struct cpu_simd_bytes *)p)
                     : "x"(*(const simd_vec *)v));
}

/*
 * An operation whose locals are seen by other functions: its body, which follows the macro, is a function of
 * its own that returns true when the next operation may follow, so that the operation can end in a jump.
 */
#define CPU_SIMD_OP(name)                                                                          \
    static __attribute__((noinline)) bool name##_body(struct cpu *cpu, const struct cpu_op *op);   \
    static void name(struct cpu *cpu, const struct cpu_op *op)                                     \
    {                                                                                              \
        if (likely(name##_body(cpu, op))) {                                                        \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }                                                                                              \
    static bool name##_body(struct cpu *cpu, const struct cpu_op *op)

/* Bodies of the operations that a row is made of; those with memory are for MEM_OP (insn.h). */

static always_inline void cpu_simd_do_reg(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k)
{
    if (!cpu_simd_ready(cpu, op)) {
        return;
    }
    k(&cpu->xmm[op->dst], &cpu->xmm[op->src], (unsigned)op->imm & 0xff);
    cpu_next(cpu, op);
}

static always_inline void cpu_simd_do_fp_reg(struct cpu *cpu, const struct cpu_op *op, cpu_simd_kernel *k)
{
    if (!cpu_simd_ready(cpu, op) ||
        !cpu_simd_fp_run(cpu, op, k, &cpu->xmm[op->dst], &cpu->xmm[op->src])) {
        return;
    }
    cpu_next(cpu, op);
}

/* far: the kernel is a function of its own, so its operand must not be a local. */
static always_inline void cpu_simd_mem_body(struct cpu *cpu, const struct cpu_op *op, enum mem_path path,
                                            cpu_op_fn *slow, cpu_simd_kernel *k, unsigned size, bool fp, bool far)
{
    struct cpu_word la;
    const uint8_t *p;
    union cpu_xmm v;

    if (path == MEM_SLOW) {
        if (cpu_simd_slow_mem(cpu, op, k, size, fp)) {
            cpu_next(cpu, op);
        }
        return;
    }
    la = mem_ea(cpu, op, path, size, false);
    p = cpu_fast_read(cpu, la.v, size);
    if (unlikely(!p || (size == 16 && (la.v & 15))) || !cpu_simd_is_on(cpu) ||
        (fp && !cpu_simd_is_masked(cpu))) {
        slow(cpu, op);
        return;
    }
    if (far) {
        CPU_PIN(op);
        cpu->scratch = cpu_simd_get(p, size);
        CPU_PIN(op);
        k(&cpu->xmm[op->dst], &cpu->scratch, (unsigned)op->imm & 0xff);
    } else {
        CPU_PIN(op);
        v = cpu_simd_get(p, size);
        CPU_PIN(op);
        k(&cpu->xmm[op->dst], &v, (unsigned)op->imm & 0xff);
    }
    cpu_next(cpu, op);
}

/*
 * A kernel whose immediate is part of the instruction: 256 copies of it, 16 bytes apart, one for each
 * value of `simd_imm8`; the host jumps to the right one. Operands are i (the immediate, 64 bits,
 * destroyed) and t (a scratch register); the rest is given by the user.
 */
#define CPU_SIMD_IMM8(insn, ...)                                                                   \
    __asm__ volatile("lea 1f(%%rip), %[t]\n\t"                                                     \
                     "shl $4, %[i]\n\t"                                                            \
                     "add %[i], %[t]\n\t"                                                          \
                     "jmp *%[t]\n\t"                                                               \
                     ".balign 16\n1:\n\t"                                                          \
                     ".set simd_imm8, 0\n\t"                                                       \
                     ".rept 256\n\t"                                                               \
                     ".balign 16\n\t" insn "\n\t"                                                  \
                     "jmp 2f\n\t"                                                                  \
                     ".set simd_imm8, simd_imm8 + 1\n\t"                                           \
                     ".endr\n2:\n" __VA_ARGS__)

/* The family's emitters. */
#define CPU_INSN(mnemonic, fn) cpu_emit_fn fn;
#include "cpu/simd.def"
#undef CPU_INSN

#endif
