/*
 * The x87 instructions that compute: arithmetic, loads, stores, comparisons, constants, transcendental
 * functions, stack movements. Each is executed by the host's own x87 unit, in a state that is the guest's
 * down to TOP, tags, masks and flags: FRSTOR, the instruction, FNSAVE. So 80-bit results, stack faults,
 * C0 to C3 and unmasked responses are the silicon's.
 *
 * Place: emitter -> operation -> load memory operand -> execute() -> store memory operand -> commit().
 *
 * Invariants
 *  1. The host never waits on an x87 exception: an unmasked one is left pending by the instruction and
 *     wiped by FNSAVE, which does not wait. A guest state that has one pending already is refused before
 *     (#MF), or, with CR0.NE clear, run with everything masked.
 *  2. Guest state changes only in commit(), after the last memory access.
 *
 * FIP follows every instruction, FDP and FOP only those that raise an unmasked exception, and the
 * selectors read as zero, as in Intel's processors of the last decade. Control instructions are
 * x87_env.c's. No locks.
 */
#include "cpu/x87.h"

#include <errno.h>

#include "cpu/flags.h"

/* What FNSAVE stores in 32-bit protected and in 64-bit mode. */
struct image {
    uint32_t fcw, fsw, ftw, fip, fcs_fop, fdp, fds;
    struct {
        uint64_t mant;
        uint16_t se;
    } __attribute__((packed)) st[8];
} __attribute__((packed));
_Static_assert(sizeof(struct image) == 108, "FNSAVE image");

/* See x87.h. */
bool cpu_x87_ready(struct cpu *cpu, const struct cpu_op *op, bool waiting)
{
    if (unlikely(cpu->cr0 & (X86_CR0_EM | X86_CR0_TS))) {
        return cpu_raise(cpu, op, X86_NM);
    }
    if (unlikely(waiting && cpu_x87_pending(&cpu->x87)) && (cpu->cr0 & X86_CR0_NE)) {
        return cpu_raise(cpu, op, X86_MF);
    }
    return true;
}

static void to_image(const struct cpu_x87 *x87, struct image *im)
{
    uint16_t fcw = cpu_x87_pending(x87) ? x87->fcw | CPU_FSW_FLAGS : x87->fcw;

    *im = (struct image){.fcw = fcw, .fsw = x87->fsw | (uint32_t)x87->top << 11};
    for (unsigned i = 0; i < 8; i++) {
        unsigned r = (x87->top + i) & 7;

        im->st[i].mant = x87->st[r].mant;
        im->st[i].se = x87->st[r].se;
        im->ftw |= (x87->ftw >> i & 1 ? 0u : 3u) << i * 2;
    }
}

/* Offset of the memory operand in its segment, as FDP has it. */
static uint64_t operand_offset(const struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t off = cpu->regs[op->base] + (cpu->regs[op->index] << op->shift) + (uint64_t)(int64_t)op->disp;

    if (op->flags & CPU_OPF_EA16) {
        return (uint16_t)off;
    }
    return op->flags & CPU_OPF_EA32 ? (uint32_t)off : off;
}

/* Take the image after the instruction. */
static void commit(struct cpu *cpu, const struct cpu_op *op, const struct image *im, bool has_memory)
{
    struct cpu_x87 *x87 = &cpu->x87;

    cpu_x87_set_fsw(x87, (uint16_t)im->fsw);
    x87->ftw = cpu_x87_abridge_tags((uint16_t)im->ftw);
    for (unsigned i = 0; i < 8; i++) {
        unsigned r = (x87->top + i) & 7;

        x87->st[r].mant = im->st[i].mant;
        x87->st[r].se = im->st[i].se;
    }
    x87->fip = cpu_op_rip(cpu, op);
    if (unlikely(cpu_x87_pending(x87))) {
        x87->fop = (uint16_t)(op->dst << 8 | op->src);
        if (has_memory) {
            x87->fdp = operand_offset(cpu, op);
        }
    }
}

/*
 * Execute a register form, number = opcode * 64 + low six bits of ModRM, all 512 of which stand in a
 * table of eight-byte slots. ah: low byte of RFLAGS, for FCMOVcc; returns it as FCOMI leaves it.
 */
static __attribute__((noinline)) uint8_t execute_reg(struct image *im, unsigned number, uint8_t ah)
{
    uint64_t ax = (uint64_t)ah << 8, t = number;

    __asm__ volatile("lea 1f(%%rip), %%rcx\n\t"
                     "lea (%%rcx, %[t], 8), %[t]\n\t"
                     "frstor %[im]\n\t"
                     "sahf\n\t"
                     "jmp *%[t]\n\t"
                     ".balign 8\n1:\n\t"
                     ".set x87_opcode, 0xd8\n\t"
                     ".rept 8\n\t"
                     ".set x87_modrm, 0xc0\n\t"
                     ".rept 64\n\t"
                     ".balign 8\n\t"
                     ".byte x87_opcode, x87_modrm\n\t"
                     "jmp 2f\n\t"
                     ".set x87_modrm, x87_modrm + 1\n\t"
                     ".endr\n\t"
                     ".set x87_opcode, x87_opcode + 1\n\t"
                     ".endr\n"
                     "2:\n\t"
                     "fnsave %[im]\n\t"
                     "lahf"
                     : [im] "+m"(*im), "+a"(ax), [t] "+&r"(t)
                     :
                     : "rcx", "cc", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)",
                       "st(7)");
    return (uint8_t)(ax >> 8);
}

/* Execute a memory form, number = opcode * 8 + ModRM.reg, with its operand in buf. */
static __attribute__((noinline)) void execute_mem(struct image *im, unsigned number, uint8_t buf[16])
{
    uint64_t t = number;

    __asm__ volatile("lea 1f(%%rip), %%rcx\n\t"
                     "lea (%%rcx, %[t], 8), %[t]\n\t"
                     "frstor %[im]\n\t"
                     "jmp *%[t]\n\t"
                     ".balign 8\n1:\n\t"
                     ".set x87_opcode, 0xd8\n\t"
                     ".rept 8\n\t"
                     ".set x87_modrm, 0x02\n\t"
                     ".rept 8\n\t"
                     ".balign 8\n\t"
                     ".byte x87_opcode, x87_modrm\n\t" /* operand at (%rdx) */
                     "jmp 2f\n\t"
                     ".set x87_modrm, x87_modrm + 8\n\t"
                     ".endr\n\t"
                     ".set x87_opcode, x87_opcode + 1\n\t"
                     ".endr\n"
                     "2:\n\t"
                     "fnsave %[im]"
                     : [im] "+m"(*im), [t] "+&r"(t)
                     : "d"(buf)
                     : "rcx", "cc", "memory", "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)",
                       "st(6)", "st(7)");
}

/* Operations. dst and src: the two opcode bytes, for FOP; imm: number; aux: size of the operand. */

static X87_BODY bool run_reg(struct cpu *cpu, const struct cpu_op *op)
{
    struct image im;

    if (!cpu_x87_ready(cpu, op, true)) {
        return false;
    }
    to_image(&cpu->x87, &im);
    execute_reg(&im, (unsigned)op->imm, 0);
    commit(cpu, op, &im, false);
    return true;
}

static X87_BODY bool run_reg_flags(struct cpu *cpu, const struct cpu_op *op)
{
    struct image im;
    uint8_t flags;

    if (!cpu_x87_ready(cpu, op, true)) {
        return false;
    }
    to_image(&cpu->x87, &im);
    flags = execute_reg(&im, (unsigned)op->imm, (uint8_t)cpu_arith_flags(cpu));
    commit(cpu, op, &im, false);
    if (op->aux) {
        cpu_set_arith_flags(cpu, flags & (X86_ZF | X86_PF | X86_CF));
    }
    return true;
}

static X87_BODY bool run_load(struct cpu *cpu, const struct cpu_op *op)
{
    uint8_t buf[16];
    struct image im;
    uint64_t la;

    if (!cpu_x87_ready(cpu, op, true) || !cpu_ea(cpu, op, op->aux, false, &la) ||
        !cpu_load_bytes(cpu, op, la, buf, op->aux)) {
        return false;
    }
    to_image(&cpu->x87, &im);
    execute_mem(&im, (unsigned)op->imm, buf);
    commit(cpu, op, &im, true);
    return true;
}

/* An unmasked invalid operation, overflow or underflow suppresses the store, with all its checks; inexact
 * does not. */
static X87_BODY bool run_store(struct cpu *cpu, const struct cpu_op *op)
{
    uint8_t buf[16];
    struct image im;
    uint64_t la;

    if (!cpu_x87_ready(cpu, op, true)) {
        return false;
    }
    to_image(&cpu->x87, &im);
    execute_mem(&im, (unsigned)op->imm, buf);
    if (!(im.fsw & ~im.fcw & 0x1f) && (!cpu_ea(cpu, op, op->aux, true, &la) ||
                                       !cpu_store_bytes(cpu, op, la, buf, op->aux))) {
        return false;
    }
    commit(cpu, op, &im, true);
    return true;
}

#define OPERATION(name)                                                                            \
    static void x87_##name(struct cpu *cpu, const struct cpu_op *op)                               \
    {                                                                                              \
        if (run_##name(cpu, op)) {                                                                 \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }

OPERATION(reg)
OPERATION(reg_flags)
OPERATION(load)
OPERATION(store)

/* Memory forms by opcode and ModRM.reg: bytes of the operand, negative when it is stored; 0: not here. */
static const int8_t operand[8][8] = {
    {4, 4, 4, 4, 4, 4, 4, 4},         /* D8: arithmetic, m32 */
    {4, 0, -4, -4, 0, 0, 0, 0},       /* D9: FLD, FST, FSTP m32; control */
    {4, 4, 4, 4, 4, 4, 4, 4},         /* DA: arithmetic, m32 integer */
    {4, -4, -4, -4, 0, 10, 0, -10},   /* DB: FILD, FISTTP, FIST, FISTP m32; FLD, FSTP m80 */
    {8, 8, 8, 8, 8, 8, 8, 8},         /* DC: arithmetic, m64 */
    {8, -8, -8, -8, 0, 0, 0, 0},      /* DD: FLD m64, FISTTP, FST, FSTP; control */
    {2, 2, 2, 2, 2, 2, 2, 2},         /* DE: arithmetic, m16 integer */
    {2, -2, -2, -2, 10, 8, -10, -8},  /* DF: FILD, FISTTP, FIST, FISTP m16; FBLD, FILD m64, FBSTP, FISTP */
};

static int emit_mem_form(struct cpu_emit *e, unsigned opcode, unsigned reg)
{
    int size = operand[opcode][reg];
    struct cpu_op *op;

    if (!size) {
        return -ENOSYS;
    }
    op = cpu_emit_op(e, size > 0 ? x87_load : x87_store);
    if (!op) {
        return -ENOSPC;
    }
    for (unsigned o = 0; o < e->in.operand_count; o++) {
        if (e->opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            cpu_emit_mem(e, op, &e->opnd[o]);
        }
    }
    op->aux = (uint8_t)(size > 0 ? size : -size);
    op->imm = opcode * 8 + reg;
    op->dst = (uint8_t)opcode;
    op->src = (uint8_t)(e->in.raw.modrm.mod << 6 | reg << 3 | e->in.raw.modrm.rm);
    return 0;
}

/*
 * Emit an x87 instruction that computes. Its encoding, not its mnemonic, decides.
 * Returns 0, or as cpu_emit_fn.
 */
int cpu_emit_x87(struct cpu_emit *e)
{
    unsigned opcode = e->in.opcode & 7, reg = e->in.raw.modrm.reg, rm = e->in.raw.modrm.rm;
    bool moves, compares;
    struct cpu_op *op;

    if (e->in.raw.modrm.mod != 3) {
        return emit_mem_form(e, opcode, reg);
    }
    moves = (opcode == 2 || opcode == 3) && reg < 4;
    compares = (opcode == 3 || opcode == 7) && (reg == 5 || reg == 6);
    op = cpu_emit_op(e, moves || compares ? x87_reg_flags : x87_reg);
    if (!op) {
        return -ENOSPC;
    }
    op->imm = opcode * 64 + reg * 8 + rm;
    op->aux = compares;
    op->dst = (uint8_t)opcode;
    op->src = (uint8_t)(0xc0 | reg << 3 | rm);
    return 0;
}
