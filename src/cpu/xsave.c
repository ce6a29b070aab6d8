/*
 * Saving and restoring the floating-point state as a whole: FXSAVE, FXRSTOR, the XSAVE family and XGETBV.
 * Components are x87 (0) and SSE (1): all that the processor has. Both lie in the legacy area, so the
 * standard and the compacted form differ only in the header and in the rules for MXCSR.
 *
 *   0     24     32          160          416       512        576
 *   x87 . MXCSR . ST0 to ST7 . XMM0 to 15 . unused . header
 *                                                     +0 XSTATE_BV +8 XCOMP_BV +16 zero
 *
 * An area is probed before it is written, and read whole before anything is loaded. No locks.
 * Source: the manual's chapter on the XSAVE feature set.
 */
#include "cpu/simd.h"

#include <errno.h>
#include <string.h>

#define COMP_X87     UINT64_C(1)
#define COMP_SSE     UINT64_C(2)
#define COMP_ALL     (COMP_X87 | COMP_SSE)
#define COMPACTED    (UINT64_C(1) << 63)
#define OFF_MXCSR    24u
#define OFF_ST       32u
#define OFF_XMM      160u
#define OFF_HEADER   512u
#define LEGACY_BYTES 512u
#define AREA_BYTES   576u

/* aux of the operations. */
#define AUX_WIDE    1u /* REX.W: 64-bit pointers */
#define AUX_COMPACT 2u /* XSAVEC, XSAVES: compacted form */
#define AUX_INITOPT 4u /* components in their initial state are not written */
#define AUX_SYSTEM  8u /* XSAVES, XRSTORS */

static unsigned xmm_bytes(const struct cpu *cpu)
{
    return cpu->mode & CPU_MODE_64 ? 256 : 128;
}

/* Without REX.W a pointer is 32 bits and a selector, which reads as zero here. */
static void narrow_pointers(uint8_t *area, const struct cpu *cpu)
{
    uint32_t selectors[2] = {cpu->x87.fcs, cpu->x87.fds};

    memcpy(area + 12, &selectors[0], 4);
    memcpy(area + 20, &selectors[1], 4);
}

static void build_legacy(struct cpu *cpu, const struct cpu_op *op, uint8_t *area)
{
    cpu_mxcsr_sync(cpu);
    cpu_fxsave_image(cpu, area);
    if (!(op->aux & AUX_WIDE)) {
        narrow_pointers(area, cpu);
    }
}

static bool is_all_zero(const void *p, size_t n)
{
    const uint8_t *b = p;

    for (size_t i = 0; i < n; i++) {
        if (b[i]) {
            return false;
        }
    }
    return true;
}

/* Components not in their initial configuration. */
static uint64_t in_use(const struct cpu *cpu)
{
    const struct cpu_x87 *x87 = &cpu->x87;
    struct cpu_x87 init = {.fcw = CPU_FCW_DEFAULT};
    bool fp = x87->fcw != init.fcw || x87->fsw || x87->top || x87->ftw || x87->fop || x87->fip ||
              x87->fdp || !is_all_zero(x87->st, sizeof(x87->st));

    return (fp ? COMP_X87 : 0) | (is_all_zero(cpu->xmm, xmm_bytes(cpu)) ? 0 : COMP_SSE);
}

static bool area_address(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool write, uint64_t *la)
{
    unsigned align = size == LEGACY_BYTES ? 16 : 64;

    if (!cpu_ea(cpu, op, size, write, la)) {
        return false;
    }
    return *la & (align - 1) ? cpu_raise_code(cpu, op, X86_GP, 0) : true;
}

/* FXSAVE and FXRSTOR. */

static bool fx_ready(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu->cr0 & (X86_CR0_EM | X86_CR0_TS) ? cpu_raise(cpu, op, X86_NM) : true;
}

CPU_SIMD_OP(op_fxsave)
{
    uint8_t area[LEGACY_BYTES];
    uint64_t la;

    if (!fx_ready(cpu, op) || !area_address(cpu, op, LEGACY_BYTES, true, &la)) {
        return false;
    }
    build_legacy(cpu, op, area);
    if (!cpu_store_bytes(cpu, op, la, area, OFF_XMM + xmm_bytes(cpu))) {
        return false;
    }
    return true;
}

/* Components named in `which` from area; the rest keeps its values. */
static void load_components(struct cpu *cpu, const struct cpu_op *op, uint8_t *area, uint64_t which)
{
    union cpu_xmm keep[16];
    struct cpu_x87 x87 = cpu->x87;
    uint32_t mxcsr = cpu->mxcsr;
    static const uint8_t zero4[4];

    memcpy(keep, cpu->xmm, sizeof(keep));
    if (!(op->aux & AUX_WIDE)) {
        memcpy(area + 12, zero4, 4);
        memcpy(area + 20, zero4, 4);
    }
    memcpy(area + OFF_MXCSR, zero4, 4);
    if (cpu_fxrstor_image(cpu, area) < 0) {
        return; /* not with MXCSR zero */
    }
    cpu->mxcsr = mxcsr;
    if (!(which & COMP_X87)) {
        cpu->x87 = x87;
    }
    if (!(which & COMP_SSE)) {
        memcpy(cpu->xmm, keep, sizeof(keep));
    } else if (!(cpu->mode & CPU_MODE_64)) {
        memcpy(cpu->xmm + 8, keep + 8, 128);
    }
}

static void set_mxcsr(struct cpu *cpu, uint32_t v)
{
    cpu->mxcsr = v;
    cpu_mxcsr_changed(cpu);
}

static uint32_t area_mxcsr(const uint8_t *area)
{
    uint32_t v;

    memcpy(&v, area + OFF_MXCSR, 4);
    return v;
}

CPU_SIMD_OP(op_fxrstor)
{
    uint8_t area[LEGACY_BYTES];
    uint32_t mxcsr;
    uint64_t la;

    if (!fx_ready(cpu, op) || !area_address(cpu, op, LEGACY_BYTES, false, &la) ||
        !cpu_load_bytes(cpu, op, la, area, LEGACY_BYTES)) {
        return false;
    }
    mxcsr = area_mxcsr(area);
    if (mxcsr & ~CPU_MXCSR_VALID) {
        cpu_raise_code(cpu, op, X86_GP, 0);
        return false;
    }
    load_components(cpu, op, area, COMP_ALL);
    set_mxcsr(cpu, mxcsr);
    return true;
}

/* The XSAVE family. */

static bool x_ready(struct cpu *cpu, const struct cpu_op *op)
{
    if (!(cpu->cr4 & X86_CR4_OSXSAVE)) {
        return cpu_raise(cpu, op, X86_UD);
    }
    if (cpu->cr0 & X86_CR0_TS) {
        return cpu_raise(cpu, op, X86_NM);
    }
    if ((op->aux & AUX_SYSTEM) && cpu->cpl) {
        return cpu_raise_code(cpu, op, X86_GP, 0);
    }
    return true;
}

static uint64_t requested(const struct cpu *cpu)
{
    uint64_t mask = cpu->regs[CPU_RDX] << 32 | (uint32_t)cpu->regs[CPU_RAX];

    return mask & cpu->xcr0 & COMP_ALL;
}

/* Store the pieces of the legacy area that belong to the components in `which`, and MXCSR if wanted. */
static bool store_pieces(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const uint8_t *area,
                         uint64_t which)
{
    if ((which & COMP_X87) && (!cpu_store_bytes(cpu, op, la, area, OFF_MXCSR) ||
                               !cpu_store_bytes(cpu, op, la + OFF_ST, area + OFF_ST, 128))) {
        return false;
    }
    return !(which & COMP_SSE) ||
           cpu_store_bytes(cpu, op, la + OFF_XMM, area + OFF_XMM, xmm_bytes(cpu));
}

/* The header after a save of `rfbm`; in the standard form other components' bits stay. */
static bool store_header(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint64_t rfbm,
                         uint64_t used)
{
    uint64_t header[2] = {rfbm & used, rfbm | COMPACTED}, old;

    if (op->aux & AUX_COMPACT) {
        return cpu_store_bytes(cpu, op, la + OFF_HEADER, header, 16);
    }
    if (!cpu_load64(cpu, op, la + OFF_HEADER, &old)) {
        return false;
    }
    return cpu_store64(cpu, op, la + OFF_HEADER, (old & ~rfbm) | header[0]);
}

CPU_SIMD_OP(op_xsave)
{
    uint64_t rfbm = requested(cpu), used = in_use(cpu), la, which;
    uint8_t area[LEGACY_BYTES];
    bool mxcsr;

    if (!x_ready(cpu, op) || !area_address(cpu, op, AREA_BYTES, true, &la) ||
        !cpu_probe_write(cpu, op, la, AREA_BYTES)) {
        return false;
    }
    build_legacy(cpu, op, area);
    if ((op->aux & AUX_COMPACT) && cpu->mxcsr != CPU_MXCSR_DEFAULT) {
        used |= COMP_SSE;
    }
    which = op->aux & AUX_INITOPT ? rfbm & used : rfbm;
    mxcsr = op->aux & AUX_COMPACT ? (which & COMP_SSE) != 0 : (rfbm & COMP_SSE) != 0;
    if (!store_pieces(cpu, op, la, area, which) ||
        (mxcsr && !cpu_store_bytes(cpu, op, la + OFF_MXCSR, area + OFF_MXCSR, 8)) ||
        !store_header(cpu, op, la, rfbm, used)) {
        return false;
    }
    return true;
}

/* The standard form looks at 24 bytes of the header, the compacted one at all. */
static bool header_is_valid(const struct cpu *cpu, const struct cpu_op *op, const uint8_t *area)
{
    uint64_t allowed = cpu->xcr0 | (op->aux & AUX_SYSTEM ? cpu->xss : 0), bv, comp;

    memcpy(&bv, area + OFF_HEADER, 8);
    memcpy(&comp, area + OFF_HEADER + 8, 8);
    if (comp & COMPACTED) {
        return !(comp & ~(allowed | COMPACTED)) && !(bv & ~comp) &&
               is_all_zero(area + OFF_HEADER + 16, 48);
    }
    return !(op->aux & AUX_SYSTEM) && !comp && !(bv & ~allowed) &&
           is_all_zero(area + OFF_HEADER + 16, 8);
}

/* A component that is asked for but not in the area gets its initial value. */
static void init_components(struct cpu *cpu, uint64_t which)
{
    if (which & COMP_X87) {
        cpu_x87_init(&cpu->x87);
        memset(cpu->x87.st, 0, sizeof(cpu->x87.st));
    }
    if (which & COMP_SSE) {
        memset(cpu->xmm, 0, xmm_bytes(cpu));
    }
}

CPU_SIMD_OP(op_xrstor)
{
    uint64_t rfbm = requested(cpu), la, bv, comp;
    uint8_t area[AREA_BYTES];
    uint32_t mxcsr;

    if (!x_ready(cpu, op) || !area_address(cpu, op, AREA_BYTES, false, &la) ||
        !cpu_load_bytes(cpu, op, la, area, AREA_BYTES)) {
        return false;
    }
    memcpy(&bv, area + OFF_HEADER, 8);
    memcpy(&comp, area + OFF_HEADER + 8, 8);
    mxcsr = area_mxcsr(area);
    if ((comp & COMPACTED) && !(bv & COMP_SSE)) {
        mxcsr = CPU_MXCSR_DEFAULT;
    }
    if (!header_is_valid(cpu, op, area) || ((rfbm & COMP_SSE) && (mxcsr & ~CPU_MXCSR_VALID))) {
        cpu_raise_code(cpu, op, X86_GP, 0);
        return false;
    }
    cpu_mxcsr_sync(cpu);
    load_components(cpu, op, area, rfbm & bv);
    init_components(cpu, rfbm & ~bv);
    if (rfbm & COMP_SSE) {
        set_mxcsr(cpu, mxcsr);
    }
    return true;
}

CPU_SIMD_OP(op_xgetbv)
{
    uint32_t index = (uint32_t)cpu->regs[CPU_RCX];
    uint64_t v = cpu->xcr0;

    if (!(cpu->cr4 & X86_CR4_OSXSAVE)) {
        cpu_raise(cpu, op, X86_UD);
        return false;
    }
    if (index > 1) {
        cpu_raise_code(cpu, op, X86_GP, 0);
        return false;
    }
    if (index) {
        cpu_mxcsr_sync(cpu);
        v &= in_use(cpu) | (cpu->mxcsr != CPU_MXCSR_DEFAULT ? COMP_SSE : 0);
    }
    cpu->regs[CPU_RAX] = (uint32_t)v;
    cpu->regs[CPU_RDX] = v >> 32;
    return true;
}

static const struct {
    uint16_t mnemonic;
    uint8_t aux;
    cpu_op_fn *fn;
} rows[] = {
    {ZYDIS_MNEMONIC_FXSAVE, 0, op_fxsave},
    {ZYDIS_MNEMONIC_FXSAVE64, AUX_WIDE, op_fxsave},
    {ZYDIS_MNEMONIC_FXRSTOR, 0, op_fxrstor},
    {ZYDIS_MNEMONIC_FXRSTOR64, AUX_WIDE, op_fxrstor},
    {ZYDIS_MNEMONIC_XSAVE, 0, op_xsave},
    {ZYDIS_MNEMONIC_XSAVE64, AUX_WIDE, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT, AUX_INITOPT, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEOPT64, AUX_INITOPT | AUX_WIDE, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEC, AUX_INITOPT | AUX_COMPACT, op_xsave},
    {ZYDIS_MNEMONIC_XSAVEC64, AUX_INITOPT | AUX_COMPACT | AUX_WIDE, op_xsave},
    {ZYDIS_MNEMONIC_XSAVES, AUX_INITOPT | AUX_COMPACT | AUX_SYSTEM, op_xsave},
    {ZYDIS_MNEMONIC_XSAVES64, AUX_INITOPT | AUX_COMPACT | AUX_SYSTEM | AUX_WIDE, op_xsave},
    {ZYDIS_MNEMONIC_XRSTOR, 0, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTOR64, AUX_WIDE, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS, AUX_SYSTEM, op_xrstor},
    {ZYDIS_MNEMONIC_XRSTORS64, AUX_SYSTEM | AUX_WIDE, op_xrstor},
    {ZYDIS_MNEMONIC_XGETBV, 0, op_xgetbv},
};

/* Emit one instruction of the rows above. Returns 0, or as cpu_emit_fn. */
int cpu_emit_xsave(struct cpu_emit *e)
{
    struct cpu_op *op;
    unsigned i = 0;

    while (i < ARRAY_LEN(rows) && rows[i].mnemonic != e->in.mnemonic) {
        i++;
    }
    if (i == ARRAY_LEN(rows)) {
        return -ENOSYS;
    }
    op = cpu_emit_op(e, rows[i].fn);
    if (!op) {
        return -ENOSPC;
    }
    op->aux = rows[i].aux;
    if (e->in.mnemonic != ZYDIS_MNEMONIC_XGETBV) {
        cpu_emit_mem(e, op, &e->opnd[0]);
    }
    return 0;
}
