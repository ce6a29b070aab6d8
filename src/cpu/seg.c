/*
 * Descriptors and segment registers: look a selector up, judge what is found, load it.
 *
 * Invariants
 *  1. Nothing in the processor changes before the last access of memory; the accessed bit in the table is
 *     set before the register is loaded.
 *  2. A null segment register is `unusable`; in 64-bit mode FS and GS may still have a base, and a null SS has
 *     the DPL that stands for CPL.
 *
 * Locks: none. Leaves out: the checks of each use of a segment (access.c), and CS, which only control
 * transfers load (far.c).
 */
#include "cpu/seg.h"

#include <errno.h>
#include <string.h>

#include "cpu/system.h"

/*
 * Look a selector up in the GDT or LDT.
 * op: for faults of the table access itself; d: filled when found.
 * Returns CPU_DESC_OUTSIDE for a null selector of the GDT and for one beyond its table's limit.
 */
enum cpu_desc_found cpu_desc_find(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, struct cpu_desc *d)
{
    uint64_t base = cpu->gdtr.base;
    uint32_t limit = cpu->gdtr.limit;
    uint32_t raw[2];

    if (sel & 4) {
        if (cpu->ldtr.unusable) {
            return CPU_DESC_OUTSIDE;
        }
        base = cpu->ldtr.base;
        limit = cpu->ldtr.limit;
    } else if (cpu_sel_is_null(sel)) {
        return CPU_DESC_OUTSIDE;
    }
    if ((sel | 7u) > limit) {
        return CPU_DESC_OUTSIDE;
    }
    d->la = base + (sel & 0xfff8u);
    if (!cpu_is_long(cpu)) {
        d->la = (uint32_t)d->la;
    }
    if (!cpu_sys_get(cpu, op, d->la, raw, 8)) {
        return CPU_DESC_FAULT;
    }
    d->lo = raw[0];
    d->hi = raw[1];
    d->upper = 0;
    d->sel = sel;
    return CPU_DESC_FOUND;
}

/* Look a selector up; if it is null or outside, raise `vector` with the selector as error code. */
bool cpu_desc_read(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, enum x86_vector vector,
                   struct cpu_desc *d)
{
    enum cpu_desc_found found = cpu_desc_find(cpu, op, sel, d);

    if (found == CPU_DESC_OUTSIDE) {
        return cpu_raise_code(cpu, op, vector, sel & 0xfffcu);
    }
    return found == CPU_DESC_FOUND;
}

/* Read the second half of a 16-byte system descriptor: #GP(sel) when beyond the table or not zero where a
 * segment's type would be. */
bool cpu_desc_read_upper(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d)
{
    uint32_t limit = d->sel & 4 ? cpu->ldtr.limit : cpu->gdtr.limit;

    if ((d->sel | 7u) + 8 > limit) {
        return cpu_raise_code(cpu, op, X86_GP, d->sel & 0xfffcu);
    }
    if (!cpu_sys_load(cpu, op, d->la + 8, &d->upper, 8)) {
        return false;
    }
    if (d->upper >> 40 & 0x1f) {
        return cpu_raise_code(cpu, op, X86_GP, d->sel & 0xfffcu);
    }
    return true;
}

/* Change bits of the descriptor's second doubleword, here and in its table. */
bool cpu_desc_set_bits(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d, uint32_t set,
                       uint32_t clear)
{
    uint32_t hi;

    if (!cpu_sys_load(cpu, op, d->la + 4, &hi, 4)) {
        return false;
    }
    hi = (hi & ~clear) | set;
    if (!cpu_sys_store(cpu, op, d->la + 4, &hi, 4)) {
        return false;
    }
    d->hi = (d->hi & ~clear) | set;
    return true;
}

/* Set the accessed bit of a code or data descriptor, if it is clear. */
bool cpu_desc_set_accessed(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d)
{
    return d->hi & 0x100 ? true : cpu_desc_set_bits(cpu, op, d, 0x100, 0);
}

/* The hidden part that a descriptor gives. */
void cpu_desc_to_seg(const struct cpu_desc *d, struct cpu_seg *seg)
{
    *seg = (struct cpu_seg){
        .base = cpu_desc_base(d) | (d->upper & 0xffffffff) << 32,
        .limit = cpu_desc_limit(d),
        .sel = d->sel,
        .type = d->hi >> 8 & 0xf,
        .s = d->hi >> 12 & 1,
        .dpl = d->hi >> 13 & 3,
        .p = d->hi >> 15 & 1,
        .avl = d->hi >> 20 & 1,
        .l = d->hi >> 21 & 1,
        .db = d->hi >> 22 & 1,
        .g = d->hi >> 23 & 1,
    };
}

/* A null selector: nothing but its RPL remains. */
void cpu_seg_set_null(struct cpu_seg *seg, uint16_t sel)
{
    *seg = (struct cpu_seg){.sel = sel, .unusable = 1};
}

/* Real mode: selector and base alone; limit and attributes stay, as on silicon ("unreal" mode). */
void cpu_seg_set_real(struct cpu_seg *seg, uint16_t sel)
{
    seg->sel = sel;
    seg->base = (uint32_t)sel << 4;
    seg->unusable = 0;
}

/* Virtual-8086 mode: everything is fixed by the selector. */
void cpu_seg_set_v86(struct cpu_seg *seg, uint16_t sel)
{
    *seg = (struct cpu_seg){
        .base = (uint32_t)sel << 4, .limit = 0xffff, .sel = sel, .type = 3, .s = 1, .dpl = 3, .p = 1};
}

/* Are all of [off, off + size) within the segment? For legacy modes; off is already cut to its width. */
bool cpu_seg_holds(const struct cpu_seg *seg, uint64_t off, unsigned size)
{
    uint64_t last = off + size - 1;

    if ((seg->type & 0xc) == 4 && seg->s) {
        return off > seg->limit && last <= (seg->db ? UINT32_MAX : 0xffff);
    }
    return last <= seg->limit;
}

/*
 * May this descriptor become SS at privilege `cpl`? vector: #GP for instructions that name SS, #TS when a
 * TSS does. Source: Intel's rules for loading SS.
 */
bool cpu_seg_check_ss(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d, unsigned cpl,
                      enum x86_vector vector)
{
    if ((d->sel & 3u) != cpl || !cpu_desc_is_writable_data(d) || cpu_desc_dpl(d) != cpl) {
        return cpu_raise_code(cpu, op, vector, d->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(d)) {
        return cpu_raise_code(cpu, op, X86_SS, d->sel & 0xfffcu);
    }
    return true;
}

/* May this descriptor become DS, ES, FS or GS? */
static bool check_data(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d)
{
    unsigned rpl = d->sel & 3;
    unsigned dpl = cpu_desc_dpl(d);
    bool readable = cpu_desc_is_segment(d) && (!cpu_desc_is_code(d) || (d->hi & 0x200));

    if (!readable || (!cpu_desc_is_conforming(d) && (rpl > dpl || cpu->cpl > dpl))) {
        return cpu_raise_code(cpu, op, X86_GP, d->sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(d)) {
        return cpu_raise_code(cpu, op, X86_NP, d->sel & 0xfffcu);
    }
    return true;
}

/* A null selector goes into any data segment register; into SS only in 64-bit mode below CPL 3. */
static bool load_null(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg reg, uint16_t sel)
{
    if (reg == CPU_SS) {
        if (!(cpu->mode & CPU_MODE_64) || cpu->cpl == 3 || (sel & 3u) != cpu->cpl) {
            return cpu_raise_code(cpu, op, X86_GP, 0);
        }
        cpu_seg_set_null(&cpu->seg[CPU_SS], sel);
        cpu->seg[CPU_SS].dpl = (uint8_t)cpu->cpl;
        return true;
    }
    cpu_seg_set_null(&cpu->seg[reg], sel);
    return true;
}

/*
 * Load a segment register other than CS, in any mode, with all checks, as MOV, POP and LDS do.
 * On success the mode is derived anew; the caller ends its block, or not, as it likes (only decoding of
 * later instructions depends on it in legacy modes).
 * Source: Intel, "MOV" and "Segment registers in 64-bit mode"; a null selector clears the base of FS and GS.
 */
bool cpu_seg_load(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg reg, uint16_t sel)
{
    struct cpu_desc d;

    if (cpu->mode & CPU_MODE_REAL) {
        cpu_seg_set_real(&cpu->seg[reg], sel);
    } else if (cpu->mode & CPU_MODE_V86) {
        cpu_seg_set_v86(&cpu->seg[reg], sel);
    } else if (cpu_sel_is_null(sel)) {
        if (!load_null(cpu, op, reg, sel)) {
            return false;
        }
    } else {
        if (!cpu_desc_read(cpu, op, sel, X86_GP, &d) ||
            !(reg == CPU_SS ? cpu_seg_check_ss(cpu, op, &d, cpu->cpl, X86_GP) : check_data(cpu, op, &d)) ||
            !cpu_desc_set_accessed(cpu, op, &d)) {
            return false;
        }
        cpu_desc_to_seg(&d, &cpu->seg[reg]);
    }
    cpu_update_mode(cpu);
    return true;
}

/* After a return to outer privilege `cpl`: data segments that it may not use become null. */
void cpu_seg_drop_outer(struct cpu *cpu, unsigned cpl)
{
    static const uint8_t regs[] = {CPU_ES, CPU_DS, CPU_FS, CPU_GS};
    unsigned i;

    for (i = 0; i < ARRAY_LEN(regs); i++) {
        struct cpu_seg *s = &cpu->seg[regs[i]];

        if (!s->unusable && (s->type & 0xc) != 0xc && s->dpl < cpl) {
            cpu_seg_set_null(s, 0);
        }
    }
}
