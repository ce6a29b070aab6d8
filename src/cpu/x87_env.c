/*
 * The x87 instructions that handle the unit rather than compute: control and status words, environment
 * and whole state in their four formats, initialisation, FWAIT. They touch no host x87 state.
 * No locks. The formats, as 16- or 32-bit slots:
 *
 *   protected  FCW FSW FTW FIP FCS(+FOP in 32) FDP FDS
 *   real, V86  FCW FSW FTW FIP[15:0] FIP[..:16]<<12|FOP FDP[15:0] FDP[..:16]<<12
 *
 * and for FNSAVE and FRSTOR eight registers of ten bytes behind, ST(0) first.
 */
#include <errno.h>
#include <string.h>

#include "cpu/x87.h"

#define ENV_SLOTS 7

/* aux of the operations here. */
#define ENV_WIDE 1u  /* 32-bit slots */
#define ENV_STATE 2u /* registers too */

static bool is_real_format(const struct cpu *cpu)
{
    return (cpu->mode & (CPU_MODE_REAL | CPU_MODE_V86)) != 0;
}

static unsigned env_size(const struct cpu_op *op)
{
    return ENV_SLOTS * (op->aux & ENV_WIDE ? 4 : 2) + (op->aux & ENV_STATE ? 80 : 0);
}

static void fill_slots(const struct cpu *cpu, bool wide, uint32_t slot[ENV_SLOTS])
{
    const struct cpu_x87 *x87 = &cpu->x87;
    uint32_t fip = (uint32_t)x87->fip, fdp = (uint32_t)x87->fdp;

    slot[0] = 0xffff0000u | x87->fcw;
    slot[1] = 0xffff0000u | cpu_x87_fsw(x87);
    slot[2] = 0xffff0000u | cpu_x87_full_tags(x87);
    if (is_real_format(cpu)) {
        slot[3] = fip & 0xffff;
        slot[4] = fip >> 16 << 12 | (x87->fop & 0x7ff);
        slot[5] = fdp & 0xffff;
        slot[6] = fdp >> 16 << 12;
    } else {
        slot[3] = fip;
        slot[4] = x87->fcs | (wide ? (uint32_t)(x87->fop & 0x7ff) << 16 : 0);
        slot[5] = fdp;
        slot[6] = 0xffff0000u | x87->fds;
    }
}

static void take_slots(struct cpu *cpu, bool wide, const uint32_t slot[ENV_SLOTS])
{
    struct cpu_x87 *x87 = &cpu->x87;
    uint32_t high = wide ? 0x0ffff000u : 0xf000u;

    x87->fcw = cpu_x87_fcw(slot[0]);
    cpu_x87_set_fsw(x87, (uint16_t)slot[1]);
    x87->ftw = cpu_x87_abridge_tags((uint16_t)slot[2]);
    x87->fcs = x87->fds = 0;
    if (is_real_format(cpu)) {
        x87->fip = (slot[3] & 0xffff) | (slot[4] & high) << 4;
        x87->fop = slot[4] & 0x7ff;
        x87->fdp = (slot[5] & 0xffff) | (slot[6] & high) << 4;
        return;
    }
    x87->fip = slot[3];
    x87->fdp = slot[5];
    x87->fop = wide ? slot[4] >> 16 & 0x7ff : 0;
}

static void pack(uint8_t *buf, bool wide, const uint32_t slot[ENV_SLOTS])
{
    for (unsigned i = 0; i < ENV_SLOTS; i++) {
        memcpy(buf + i * (wide ? 4 : 2), &slot[i], wide ? 4 : 2);
    }
}

static void unpack(const uint8_t *buf, bool wide, uint32_t slot[ENV_SLOTS])
{
    for (unsigned i = 0; i < ENV_SLOTS; i++) {
        slot[i] = 0;
        memcpy(&slot[i], buf + i * (wide ? 4 : 2), wide ? 4 : 2);
    }
}

/* FNSTENV masks all exceptions after storing; FNSAVE initialises. */
static X87_BODY bool store_env(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_x87 *x87 = &cpu->x87;
    bool wide = op->aux & ENV_WIDE;
    uint32_t slot[ENV_SLOTS];
    uint8_t buf[128];
    uint64_t la;

    if (!cpu_x87_ready(cpu, op, false) || !cpu_ea(cpu, op, env_size(op), true, &la)) {
        return false;
    }
    fill_slots(cpu, wide, slot);
    pack(buf, wide, slot);
    for (unsigned i = 0; i < 8; i++) {
        uint8_t *p = buf + ENV_SLOTS * (wide ? 4 : 2) + 10 * i;

        memcpy(p, &x87->st[(x87->top + i) & 7].mant, 8);
        memcpy(p + 8, &x87->st[(x87->top + i) & 7].se, 2);
    }
    if (!cpu_store_bytes(cpu, op, la, buf, env_size(op))) {
        return false;
    }
    if (op->aux & ENV_STATE) {
        cpu_x87_init(x87);
    } else {
        x87->fcw |= CPU_FSW_FLAGS;
    }
    return true;
}

static X87_BODY bool load_env(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_x87 *x87 = &cpu->x87;
    bool wide = op->aux & ENV_WIDE;
    uint32_t slot[ENV_SLOTS];
    uint8_t buf[128];
    uint64_t la;

    if (!cpu_x87_ready(cpu, op, true) || !cpu_ea(cpu, op, env_size(op), false, &la) ||
        !cpu_load_bytes(cpu, op, la, buf, env_size(op))) {
        return false;
    }
    unpack(buf, wide, slot);
    take_slots(cpu, wide, slot);
    for (unsigned i = 0; i < 8 && (op->aux & ENV_STATE); i++) {
        const uint8_t *p = buf + ENV_SLOTS * (wide ? 4 : 2) + 10 * i;

        memcpy(&x87->st[(x87->top + i) & 7].mant, p, 8);
        memcpy(&x87->st[(x87->top + i) & 7].se, p + 8, 2);
    }
    return true;
}

static X87_BODY bool load_fcw(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t la;
    uint16_t v;

    if (!cpu_x87_ready(cpu, op, true) || !cpu_ea(cpu, op, 2, false, &la) ||
        !cpu_load16(cpu, op, la, &v)) {
        return false;
    }
    cpu->x87.fcw = cpu_x87_fcw(v);
    return true;
}

static X87_BODY bool store_fcw(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t la;

    return cpu_x87_ready(cpu, op, false) && cpu_ea(cpu, op, 2, true, &la) &&
           cpu_store16(cpu, op, la, cpu->x87.fcw);
}

static X87_BODY bool store_fsw(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t la;

    return cpu_x87_ready(cpu, op, false) && cpu_ea(cpu, op, 2, true, &la) &&
           cpu_store16(cpu, op, la, cpu_x87_fsw(&cpu->x87));
}

static X87_BODY bool fsw_to_ax(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_x87_ready(cpu, op, false)) {
        return false;
    }
    cpu->regs[CPU_RAX] = (cpu->regs[CPU_RAX] & ~UINT64_C(0xffff)) | cpu_x87_fsw(&cpu->x87);
    return true;
}

static X87_BODY bool clear_exceptions(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_x87_ready(cpu, op, false)) {
        return false;
    }
    cpu->x87.fsw &= (uint16_t)~(CPU_FSW_FLAGS | CPU_FSW_SF);
    return true;
}

static X87_BODY bool initialise(struct cpu *cpu, const struct cpu_op *op)
{
    if (!cpu_x87_ready(cpu, op, false)) {
        return false;
    }
    cpu_x87_init(&cpu->x87);
    return true;
}

/* The 8087's and 287's own control instructions do nothing. */
static X87_BODY bool nothing(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu_x87_ready(cpu, op, false);
}

/* FWAIT: unlike the rest it minds CR0.TS only together with CR0.MP, and not CR0.EM. */
static X87_BODY bool wait(struct cpu *cpu, const struct cpu_op *op)
{
    if ((cpu->cr0 & (X86_CR0_TS | X86_CR0_MP)) == (X86_CR0_TS | X86_CR0_MP)) {
        return cpu_raise(cpu, op, X86_NM);
    }
    if (cpu_x87_pending(&cpu->x87) && (cpu->cr0 & X86_CR0_NE)) {
        return cpu_raise(cpu, op, X86_MF);
    }
    return true;
}

#define OPERATION(name)                                                                            \
    static void op_##name(struct cpu *cpu, const struct cpu_op *op)                                \
    {                                                                                              \
        if (name(cpu, op)) {                                                                       \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }

OPERATION(store_env)
OPERATION(load_env)
OPERATION(load_fcw)
OPERATION(store_fcw)
OPERATION(store_fsw)
OPERATION(fsw_to_ax)
OPERATION(clear_exceptions)
OPERATION(initialise)
OPERATION(nothing)
OPERATION(wait)

static const struct {
    uint16_t mnemonic;
    uint8_t aux;
    cpu_op_fn *fn;
} rows[] = {
    {ZYDIS_MNEMONIC_FNSTENV, 0, op_store_env},
    {ZYDIS_MNEMONIC_FLDENV, 0, op_load_env},
    {ZYDIS_MNEMONIC_FNSAVE, ENV_STATE, op_store_env},
    {ZYDIS_MNEMONIC_FRSTOR, ENV_STATE, op_load_env},
    {ZYDIS_MNEMONIC_FLDCW, 0, op_load_fcw},
    {ZYDIS_MNEMONIC_FNSTCW, 0, op_store_fcw},
    {ZYDIS_MNEMONIC_FNSTSW, 0, op_store_fsw},
    {ZYDIS_MNEMONIC_FNCLEX, 0, op_clear_exceptions},
    {ZYDIS_MNEMONIC_FNINIT, 0, op_initialise},
    {ZYDIS_MNEMONIC_FENI8087_NOP, 0, op_nothing},
    {ZYDIS_MNEMONIC_FDISI8087_NOP, 0, op_nothing},
    {ZYDIS_MNEMONIC_FSETPM287_NOP, 0, op_nothing},
    {ZYDIS_MNEMONIC_FWAIT, 0, op_wait},
};

/* Emit one instruction of the rows above; FNSTSW also to AX. Returns 0, or as cpu_emit_fn. */
int cpu_emit_x87_env(struct cpu_emit *e)
{
    cpu_op_fn *fn = NULL;
    struct cpu_op *op;
    unsigned i = 0;

    while (i < ARRAY_LEN(rows) && rows[i].mnemonic != e->in.mnemonic) {
        i++;
    }
    if (i == ARRAY_LEN(rows)) {
        return -ENOSYS;
    }
    fn = e->in.opcode == 0xdf ? op_fsw_to_ax : rows[i].fn;
    op = cpu_emit_op(e, fn);
    if (!op) {
        return -ENOSPC;
    }
    for (unsigned o = 0; o < e->in.operand_count; o++) {
        if (e->opnd[o].type == ZYDIS_OPERAND_TYPE_MEMORY) {
            cpu_emit_mem(e, op, &e->opnd[o]);
        }
    }
    op->aux = (uint8_t)(rows[i].aux | (e->in.operand_width == 16 ? 0 : ENV_WIDE));
    return 0;
}
