/*
 * Control registers: MOV to and from CRn, LMSW, SMSW, CLTS; which values and changes are legal, and what each
 * change makes of mode and translations.
 *
 * Invariants
 *  1. EFER.LMA = EFER.LME and CR0.PG, kept here and by writes of EFER (msr.c).
 *  2. CR0.PG implies CR0.PE; LMA implies CR4.PAE; CR4.PCIDE implies LMA.
 *
 * Source: Intel, "Control registers", "MOV to/from control registers", "Initializing IA-32e mode".
 * Locks: none.
 */
#include "cpu/ctrlreg.h"

#include "cpu/chain.h"

#include "cpu/opnd.h"
#include "cpu/seg.h"
#include "cpu/seg_emit.h"
#include "cpu/shadow.h"
#include "cpu/system.h"
#include "cpu/tlb.h"
#include "cpu/walk.h"

#define CR0_KNOWN                                                                                  \
    (X86_CR0_PE | X86_CR0_MP | X86_CR0_EM | X86_CR0_TS | X86_CR0_ET | X86_CR0_NE | X86_CR0_WP |    \
     X86_CR0_AM | X86_CR0_NW | X86_CR0_CD | X86_CR0_PG)
#define CR4_PLAIN                                                                                  \
    (X86_CR4_VME | X86_CR4_PVI | X86_CR4_TSD | X86_CR4_DE | X86_CR4_PSE | X86_CR4_PAE |            \
     X86_CR4_MCE | X86_CR4_PGE | X86_CR4_PCE | X86_CR4_OSFXSR | X86_CR4_OSXMMEXCPT)
#define CR4_PAGING                                                                                 \
    (X86_CR4_PSE | X86_CR4_PAE | X86_CR4_PGE | X86_CR4_LA57 | X86_CR4_PCIDE | X86_CR4_SMEP |       \
     X86_CR4_SMAP | X86_CR4_PKE)

/* Bits of CR4 that exist, by cpu->features. Source: Intel, "CR4"; VMXE and SMXE are never there. */
uint64_t cpu_cr4_valid(const struct cpu *cpu)
{
    static const struct {
        uint32_t feature, bit;
    } map[] = {
        {CPU_FEAT_UMIP, X86_CR4_UMIP},         {CPU_FEAT_LA57, X86_CR4_LA57},
        {CPU_FEAT_FSGSBASE, X86_CR4_FSGSBASE}, {CPU_FEAT_PCID, X86_CR4_PCIDE},
        {CPU_FEAT_XSAVE, X86_CR4_OSXSAVE},     {CPU_FEAT_SMEP, X86_CR4_SMEP},
        {CPU_FEAT_SMAP, X86_CR4_SMAP},         {CPU_FEAT_PKU, X86_CR4_PKE},
    };
    uint64_t valid = CR4_PLAIN;
    unsigned i;

    for (i = 0; i < ARRAY_LEN(map); i++) {
        valid |= cpu->features & map[i].feature ? map[i].bit : 0;
    }
    return valid;
}

/* CR0 rules that hold in every mode: upper half zero, PG implies PE, NW implies CD. */
bool cpu_cr0_is_legal(uint64_t cr0)
{
    return !(cr0 >> 32) && !((cr0 & X86_CR0_PG) && !(cr0 & X86_CR0_PE)) &&
           !((cr0 & X86_CR0_NW) && !(cr0 & X86_CR0_CD));
}

static bool gp0(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu_raise_code(cpu, op, X86_GP, 0);
}

/* PAE paging outside long mode keeps four entries in the processor. */
static bool load_pdptes(struct cpu *cpu, const struct cpu_op *op, uint64_t cr3)
{
    if (cpu_load_pdptes(cpu, op, cr3)) {
        return true;
    }
    return cpu->exit.reason != CPU_EXIT_NONE || cpu->fault.type != CPU_EVENT_NONE ? false : gp0(cpu, op);
}

/* Turning paging on or off; decides LMA. */
static bool check_paging_change(struct cpu *cpu, const struct cpu_op *op, uint64_t cr0, uint64_t *efer)
{
    if (cr0 & X86_CR0_PG) {
        if (cpu->efer & X86_EFER_LME) {
            if (!(cpu->cr4 & X86_CR4_PAE) || cpu->seg[CPU_CS].l) {
                return gp0(cpu, op);
            }
            *efer |= X86_EFER_LMA;
            return true;
        }
        return cpu->cr4 & X86_CR4_PAE ? load_pdptes(cpu, op, cpu->cr3) : true;
    }
    if ((cpu->mode & CPU_MODE_64) || (cpu->cr4 & X86_CR4_PCIDE)) {
        return gp0(cpu, op);
    }
    *efer &= ~(uint64_t)X86_EFER_LMA;
    return true;
}

/*
 * Load CR0. v: the whole register; unknown low bits are ignored, ET stays set.
 * Faults: #GP(0) for what the header's invariants forbid.
 */
bool cpu_write_cr0(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    uint64_t efer = cpu->efer;
    uint64_t changed;

    if (!cpu_cr0_is_legal(v)) {
        return gp0(cpu, op);
    }
    v = (v & CR0_KNOWN) | X86_CR0_ET;
    changed = v ^ cpu->cr0;
    if ((changed & X86_CR0_PG) && !check_paging_change(cpu, op, v, &efer)) {
        return false;
    }
    cpu->cr0 = v;
    cpu->efer = efer;
    if (changed & (X86_CR0_PG | X86_CR0_WP | X86_CR0_PE)) {
        cpu_tlb_flush_guest(cpu);
        if (cpu->shadow.on) {
            cpu_shadow_cr_written(cpu, 0, v);
        }
    }
    cpu_update_mode(cpu);
    return true;
}

/* Load CR3, with bit 63 as "keep" when PCIDs are on. */
bool cpu_write_cr3(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    uint64_t addr = v;

    if (cpu_is_long(cpu)) {
        if (cpu->cr4 & X86_CR4_PCIDE) {
            addr &= ~X86_CR3_NOFLUSH;
        }
        if (addr >> cpu->maxphyaddr) {
            return gp0(cpu, op);
        }
    } else {
        v = (uint32_t)v;
        if ((cpu->cr0 & X86_CR0_PG) && (cpu->cr4 & X86_CR4_PAE) && !load_pdptes(cpu, op, v)) {
            return false;
        }
    }
    cpu_tlb_load_cr3(cpu, v);
    if (cpu->shadow.on) {
        cpu_shadow_cr_written(cpu, 3, v);
    }
    return true;
}

/* Load CR4. */
bool cpu_write_cr4(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    uint64_t changed = v ^ cpu->cr4;
    uint64_t old = cpu->cr4;
    bool legacy_paging = (cpu->cr0 & X86_CR0_PG) && !cpu_is_long(cpu);

    if (v & ~cpu_cr4_valid(cpu)) {
        return gp0(cpu, op);
    }
    if (cpu_is_long(cpu)) {
        if (!(v & X86_CR4_PAE) || (changed & X86_CR4_LA57)) {
            return gp0(cpu, op);
        }
        if ((v & changed & X86_CR4_PCIDE) && (cpu->cr3 & X86_CR3_PCID_MASK)) {
            return gp0(cpu, op);
        }
    } else if (v & X86_CR4_PCIDE) {
        return gp0(cpu, op);
    }
    cpu->cr4 = v;
    if (legacy_paging && (v & X86_CR4_PAE) && (changed & (X86_CR4_PAE | X86_CR4_PGE | X86_CR4_PSE | X86_CR4_SMEP)) &&
        !load_pdptes(cpu, op, cpu->cr3)) {
        cpu->cr4 = old;
        return false;
    }
    if (changed & CR4_PAGING) {
        cpu_tlb_flush_guest(cpu);
        if (cpu->shadow.on) {
            cpu_shadow_cr_written(cpu, 4, v);
        }
    }
    cpu_update_mode(cpu);
    return true;
}

/* CR8: the hypervisor holds the real task-priority register. */
static bool write_cr8(struct cpu *cpu, const struct cpu_op *op, uint64_t v)
{
    if (v >> 4) {
        return gp0(cpu, op);
    }
    if (v != cpu->cr8) {
        cpu->cr8 = v;
        cpu->exit.reason = CPU_EXIT_CR8;
        cpu->exit.insn_len = 0;
        cpu->exit.cr8 = v;
    }
    return true;
}

/* Register number in src (control) and dst (general). */
static void op_mov_to_cr(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t v = cpu->regs[op->dst];
    bool ok;

    if (!cpu_need_cpl0(cpu, op)) {
        return;
    }
    if (!(cpu->mode & CPU_MODE_64)) {
        v = (uint32_t)v;
    }
    switch (op->src) {
    case 0:
        ok = cpu_write_cr0(cpu, op, v);
        break;
    case 2:
        cpu->cr2 = v;
        ok = true;
        break;
    case 3:
        ok = cpu_write_cr3(cpu, op, v);
        if (ok && !cpu->shadow.on) {
            cpu_continue(cpu, op);
            return;
        }
        break;
    case 4:
        ok = cpu_write_cr4(cpu, op, v);
        break;
    default:
        ok = write_cr8(cpu, op, v);
    }
    if (ok) {
        cpu_end_block(cpu, op);
    }
}

static uint64_t read_cr(const struct cpu *cpu, unsigned n)
{
    switch (n) {
    case 0:
        return cpu->cr0;
    case 2:
        return cpu->cr2;
    case 3:
        return cpu->cr3;
    case 4:
        return cpu->cr4;
    default:
        return cpu->cr8;
    }
}

static void op_mov_from_cr(struct cpu *cpu, const struct cpu_op *op)
{
    uint64_t v;

    if (!cpu_need_cpl0(cpu, op)) {
        return;
    }
    v = read_cr(cpu, op->src);
    cpu->regs[op->dst] = cpu->mode & CPU_MODE_64 ? v : (uint32_t)v;
    cpu_next(cpu, op);
}

/* CR0, CR2, CR3, CR4, and CR8 in 64-bit mode. Others do not exist: #UD. */
static int cr_number(const struct cpu_emit *e, ZydisRegister r)
{
    int n = (int)r - ZYDIS_REGISTER_CR0;

    if (n == 8) {
        return e->mode & CPU_MODE_64 ? n : -1;
    }
    return n == 0 || (n >= 2 && n <= 4) ? n : -1;
}

static int emit_mov_cr(struct cpu_emit *e, bool to)
{
    int n = cr_number(e, e->opnd[to ? 0 : 1].reg.value);
    struct cpu_op *op;

    if (n < 0) {
        return -EINVAL;
    }
    op = cpu_opnd_emit_plain(e, to ? op_mov_to_cr : op_mov_from_cr, to);
    if (!op) {
        return -ENOSPC;
    }
    op->src = (uint8_t)n;
    op->dst = cpu_emit_reg(e->opnd[to ? 1 : 0].reg.value);
    return 0;
}

/* MOV with a segment, control or debug register. */
int cpu_emit_mov_system(struct cpu_emit *e)
{
    unsigned i;

    for (i = 0; i < 2; i++) {
        if (e->opnd[i].type != ZYDIS_OPERAND_TYPE_REGISTER) {
            continue;
        }
        switch (ZydisRegisterGetClass(e->opnd[i].reg.value)) {
        case ZYDIS_REGCLASS_SEGMENT:
            return i == 0 ? cpu_emit_mov_seg_to(e) : cpu_emit_mov_seg_from(e);
        case ZYDIS_REGCLASS_CONTROL:
            return emit_mov_cr(e, i == 0);
        case ZYDIS_REGCLASS_DEBUG:
            return i == 0 ? cpu_emit_mov_to_dr(e) : cpu_emit_mov_from_dr(e);
        default:
            break;
        }
    }
    return -ENOSYS;
}

static void op_lmsw(struct cpu *cpu, const struct cpu_op *op)
{
    uint16_t v;

    if (!cpu_need_cpl0(cpu, op) || !cpu_opnd_get16(cpu, op, &v)) {
        return;
    }
    /* PE can be set this way, not cleared. */
    if (cpu_write_cr0(cpu, op, (cpu->cr0 & ~UINT64_C(0xe)) | (v & 0xf))) {
        cpu_end_block(cpu, op);
    }
}

static void op_smsw(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu->cpl > 0 && (cpu->cr4 & X86_CR4_UMIP)) {
        (void)!gp0(cpu, op);
        return;
    }
    if (cpu_opnd_put_word(cpu, op, cpu->cr0)) {
        cpu_end_block(cpu, op);
    }
}

static void op_clts(struct cpu *cpu, const struct cpu_op *op)
{
    if (cpu_need_cpl0(cpu, op)) {
        cpu->cr0 &= ~(uint64_t)X86_CR0_TS;
        cpu_end_block(cpu, op);
    }
}

static int emit_rm(struct cpu_emit *e, cpu_op_fn *fn)
{
    struct cpu_op *op = cpu_opnd_emit_plain(e, fn, true);

    if (!op) {
        return -ENOSPC;
    }
    cpu_opnd_set(e, op, 0);
    return 0;
}

int cpu_emit_lmsw(struct cpu_emit *e)
{
    return emit_rm(e, op_lmsw);
}

int cpu_emit_smsw(struct cpu_emit *e)
{
    return emit_rm(e, op_smsw);
}

int cpu_emit_clts(struct cpu_emit *e)
{
    return cpu_opnd_emit_plain(e, op_clts, true) ? 0 : -ENOSPC;
}
