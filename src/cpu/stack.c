/*
 * Stacks of far transfers and events: the current one, an inner level's out of the TSS, and pushes and pops on
 * one that is still in preparation (struct cpu_stack).
 *
 * Flow: fill by cpu_stack_current() or cpu_stack_inner(); push or pop, which lends the processor the
 * stack's privilege; cpu_stack_commit(); cpu_update_mode() by the caller once CS and flags are in place too. All accesses
 * under the old privilege come before the first push.
 *
 * Invariant: a failing push or pop gives the lent privilege back. Pushes are single stores: one that
 * fails leaves the earlier ones in memory below the stack pointer, as silicon does.
 * Locks: none.
 */
#include <string.h>

#include "cpu/seg.h"
#include "cpu/system.h"

static uint64_t sp_mask(const struct cpu_stack *st)
{
    return st->is64 ? UINT64_MAX : st->ss.db ? UINT32_MAX : 0xffff;
}

/* The current stack of the current mode. */
void cpu_stack_current(const struct cpu *cpu, struct cpu_stack *st)
{
    st->ss = cpu->seg[CPU_SS];
    st->sp = cpu->regs[CPU_RSP];
    st->cpl = st->old_cpl = (uint8_t)cpu->cpl;
    st->err = 0;
    st->is64 = cpu->mode & CPU_MODE_64;
}

/* Move the stack pointer by n bytes, within its width. */
void cpu_stack_add(struct cpu_stack *st, int64_t n)
{
    uint64_t mask = sp_mask(st);

    st->sp = (st->sp & ~mask) | ((st->sp + (uint64_t)n) & mask);
}

/* Check size bytes at the stack pointer, and form their linear address. */
static bool linear(struct cpu *cpu, const struct cpu_op *op, const struct cpu_stack *st, unsigned size,
                   uint64_t *la)
{
    uint64_t off = st->sp & sp_mask(st);

    if (st->is64) {
        *la = off;
        if (unlikely(!cpu_is_canonical(cpu, off) || !cpu_is_canonical(cpu, off + size - 1))) {
            return cpu_raise_code(cpu, op, X86_SS, st->err);
        }
        return true;
    }
    *la = (uint32_t)(st->ss.base + off);
    if (unlikely(st->ss.unusable || !cpu_seg_holds(&st->ss, off, size))) {
        return cpu_raise_code(cpu, op, X86_SS, st->err);
    }
    return true;
}

static bool store(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, uint64_t v)
{
    if (size == 8) {
        return cpu_store64(cpu, op, la, v);
    }
    return size == 4 ? cpu_store32(cpu, op, la, (uint32_t)v) : cpu_store16(cpu, op, la, (uint16_t)v);
}

static bool load(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, uint64_t *v)
{
    uint16_t v16 = 0;
    uint32_t v32 = 0;
    bool ok;

    if (size == 8) {
        return cpu_load64(cpu, op, la, v);
    }
    ok = size == 4 ? cpu_load32(cpu, op, la, &v32) : cpu_load16(cpu, op, la, &v16);
    *v = size == 4 ? v32 : v16;
    return ok;
}

/* Push the low `size` bytes of value: 2, 4 or 8. */
bool cpu_stack_push(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size, uint64_t value)
{
    uint64_t la = 0;

    cpu_priv_set(cpu, st->cpl);
    cpu_stack_add(st, -(int64_t)size);
    if (!linear(cpu, op, st, size, &la) || !store(cpu, op, la, size, value)) {
        cpu_priv_set(cpu, st->old_cpl);
        return false;
    }
    return true;
}

/* Pop `size` bytes, zero-extended into *value. */
bool cpu_stack_pop(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size, uint64_t *value)
{
    uint64_t la = 0;

    cpu_priv_set(cpu, st->cpl);
    if (!linear(cpu, op, st, size, &la) || !load(cpu, op, la, size, value)) {
        cpu_priv_set(cpu, st->old_cpl);
        return false;
    }
    cpu_stack_add(st, size);
    return true;
}

/* Make it the processor's stack. The caller derives the mode afterwards. */
void cpu_stack_commit(struct cpu *cpu, const struct cpu_stack *st)
{
    uint64_t mask = sp_mask(st);

    cpu->seg[CPU_SS] = st->ss;
    if (mask == 0xffff) {
        /* The upper part of ESP is the TSS's or stays: both are in sp. */
        mask = UINT32_MAX;
    }
    cpu->regs[CPU_RSP] = st->sp & mask;
}

/*
 * The stack for privilege `cpl` that the legacy TSS names, with SS checked and its descriptor marked
 * accessed. Faults: #TS, or #SS when SS is not present.
 */
bool cpu_stack_inner(struct cpu *cpu, const struct cpu_op *op, unsigned cpl, struct cpu_stack *st)
{
    bool wide = cpu->tr.type & 8;
    unsigned off = wide ? 4 + cpl * 8 : 2 + cpl * 4;
    unsigned len = wide ? 6 : 4;
    uint8_t raw[6];
    struct cpu_desc d;
    uint32_t sp = 0;
    uint16_t sel;

    if (off + len - 1 > cpu->tr.limit) {
        return cpu_raise_code(cpu, op, X86_TS, cpu->tr.sel & 0xfffcu);
    }
    if (!cpu_sys_load(cpu, op, (uint32_t)(cpu->tr.base + off), raw, len)) {
        return false;
    }
    memcpy(&sp, raw, wide ? 4 : 2);
    memcpy(&sel, raw + (wide ? 4 : 2), 2);
    if (!cpu_desc_read(cpu, op, sel, X86_TS, &d) || !cpu_seg_check_ss(cpu, op, &d, cpl, X86_TS) ||
        !cpu_desc_set_accessed(cpu, op, &d)) {
        return false;
    }
    cpu_desc_to_seg(&d, &st->ss);
    st->sp = sp;
    st->cpl = (uint8_t)cpl;
    st->old_cpl = (uint8_t)cpu->cpl;
    st->err = sel & 0xfffcu;
    st->is64 = false;
    return true;
}

/*
 * A stack pointer out of the 64-bit TSS, at byte `off` (RSPn or ISTn). st->cpl is the caller's; SS is null
 * with that RPL. Faults: #TS(TR).
 */
bool cpu_stack_inner64(struct cpu *cpu, const struct cpu_op *op, unsigned off, struct cpu_stack *st)
{
    if (off + 7 > cpu->tr.limit) {
        return cpu_raise_code(cpu, op, X86_TS, cpu->tr.sel & 0xfffcu);
    }
    if (!cpu_sys_get(cpu, op, cpu->tr.base + off, &st->sp, 8)) {
        return false;
    }
    cpu_seg_set_null(&st->ss, st->cpl);
    st->ss.dpl = st->cpl;
    st->old_cpl = (uint8_t)cpu->cpl;
    st->err = 0;
    st->is64 = true;
    return true;
}
