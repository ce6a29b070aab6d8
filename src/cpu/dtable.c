/*
 * Descriptor-table registers and the task register: LGDT, LIDT, SGDT, SIDT, LLDT, SLDT, LTR, STR. UMIP keeps the
 * reading ones from user mode. Source: Intel, the instructions' pages. Locks: none.
 */
#include <string.h>

#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/system.h"

/* CR4.UMIP: the tables' addresses are none of user mode's business. */
static bool umip_allows(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu->cpl > 0 && (cpu->cr4 & X86_CR4_UMIP) ? cpu_raise_code(cpu, op, X86_GP, 0) : true;
}

static unsigned image_bytes(const struct cpu *cpu)
{
    return cpu->mode & CPU_MODE_64 ? 10 : 6;
}

/* src: 0 GDTR, 1 IDTR. */
static void op_load_table(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_dtable *t = op->src ? &cpu->idtr : &cpu->gdtr;
    unsigned len = image_bytes(cpu);
    uint8_t raw[10];
    uint64_t la, base = 0;

    if (!cpu_need_cpl0(cpu, op) || !cpu_ea(cpu, op, len, false, &la) ||
        !cpu_load_bytes(cpu, op, la, raw, len)) {
        return;
    }
    memcpy(&base, raw + 2, len - 2);
    if (len == 10 && !cpu_is_canonical(cpu, base)) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    /* A 16-bit operand loads 24 bits of base. */
    t->base = len == 6 && (op->aux & CPU_OPND_SIZE) == 2 ? base & 0xffffff : base;
    memcpy(&t->limit, raw, 2);
    cpu_end_block(cpu, op);
}

static void op_store_table(struct cpu *cpu, const struct cpu_op *op)
{
    const struct cpu_dtable *t = op->src ? &cpu->idtr : &cpu->gdtr;
    unsigned len = image_bytes(cpu);
    uint8_t raw[10];
    uint64_t la;

    memcpy(raw, &t->limit, 2);
    memcpy(raw + 2, &t->base, 8);
    if (umip_allows(cpu, op) && cpu_ea(cpu, op, len, true, &la) && cpu_store_bytes(cpu, op, la, raw, len)) {
        cpu_end_block(cpu, op);
    }
}

static int emit_table(struct cpu_emit *e, cpu_op_fn *fn, uint8_t which)
{
    struct cpu_op *op;

    if (e->opnd[0].type != ZYDIS_OPERAND_TYPE_MEMORY) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, true);
    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, 0);
    op->src = which;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_lgdt(struct cpu_emit *e)
{
    return emit_table(e, op_load_table, 0);
}

int cpu_emit_lidt(struct cpu_emit *e)
{
    return emit_table(e, op_load_table, 1);
}

int cpu_emit_sgdt(struct cpu_emit *e)
{
    return emit_table(e, op_store_table, 0);
}

int cpu_emit_sidt(struct cpu_emit *e)
{
    return emit_table(e, op_store_table, 1);
}

/* Find the system descriptor for LLDT or LTR: in the GDT, of one of the types given, present, whole. */
static bool find_system(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, uint32_t types, struct cpu_desc *d)
{
    if (sel & 4) {
        return cpu_raise_code(cpu, op, X86_GP, sel & 0xfffcu);
    }
    if (!cpu_desc_read(cpu, op, sel, X86_GP, d)) {
        return false;
    }
    if (!(types >> cpu_desc_stype(d) & 1)) {
        return cpu_raise_code(cpu, op, X86_GP, sel & 0xfffcu);
    }
    if (!cpu_desc_is_present(d)) {
        return cpu_raise_code(cpu, op, X86_NP, sel & 0xfffcu);
    }
    return cpu_is_long(cpu) ? cpu_desc_read_upper(cpu, op, d) : true;
}

static void op_lldt(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_desc d;
    uint16_t sel;

    if (!cpu_need_cpl0(cpu, op) || !cpu_opnd_get16(cpu, op, &sel)) {
        return;
    }
    if (cpu_sel_is_null(sel)) {
        cpu_seg_set_null(&cpu->ldtr, sel);
    } else {
        if (!find_system(cpu, op, sel, 1u << CPU_SYS_LDT, &d)) {
            return;
        }
        cpu_desc_to_seg(&d, &cpu->ldtr);
    }
    cpu_end_block(cpu, op);
}

static void op_ltr(struct cpu *cpu, const struct cpu_op *op)
{
    uint32_t types = 1u << CPU_SYS_TSS32 | (cpu_is_long(cpu) ? 0 : 1u << CPU_SYS_TSS16);
    struct cpu_desc d;
    uint16_t sel;

    if (!cpu_need_cpl0(cpu, op) || !cpu_opnd_get16(cpu, op, &sel)) {
        return;
    }
    if (cpu_sel_is_null(sel)) {
        (void)!cpu_raise_code(cpu, op, X86_GP, 0);
        return;
    }
    if (!find_system(cpu, op, sel, types, &d) || !cpu_desc_set_bits(cpu, op, &d, 0x200, 0)) {
        return;
    }
    cpu_desc_to_seg(&d, &cpu->tr);
    cpu_end_block(cpu, op);
}

static void op_sldt(struct cpu *cpu, const struct cpu_op *op)
{
    if (umip_allows(cpu, op) && cpu_opnd_put_word(cpu, op, cpu->ldtr.sel)) {
        cpu_end_block(cpu, op);
    }
}

static void op_str(struct cpu *cpu, const struct cpu_op *op)
{
    if (umip_allows(cpu, op) && cpu_opnd_put_word(cpu, op, cpu->tr.sel)) {
        cpu_end_block(cpu, op);
    }
}

static int emit_word(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op;

    if (e->mode & (CPU_MODE_REAL | CPU_MODE_V86)) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, fn, true);
    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, 0);
    return 0;
}

int cpu_emit_lldt(struct cpu_emit *e)
{
    return emit_word(e, op_lldt);
}

int cpu_emit_ltr(struct cpu_emit *e)
{
    return emit_word(e, op_ltr);
}

int cpu_emit_sldt(struct cpu_emit *e)
{
    return emit_word(e, op_sldt);
}

int cpu_emit_str(struct cpu_emit *e)
{
    return emit_word(e, op_str);
}
