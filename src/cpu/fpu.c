/*
 * Floating-point state: MXCSR on the host while a processor runs, the x87 status and tag words, reset,
 * and the FXSAVE image. See fpu.h and state.h. No locks; the processor's own thread only.
 *
 * Invariants
 *  1. x87.fsw never contains TOP (x87.top does), and its ES and B are derived when it is read whole.
 *  2. Between enter and leave, the flags in cpu->mxcsr may lag behind the host's MXCSR, which has them.
 */
#include "cpu/fpu.h"

#include <errno.h>
#include <string.h>

static void host_mxcsr_set(uint32_t v)
{
    __asm__ volatile("ldmxcsr %0" : : "m"(v));
}

static uint32_t host_mxcsr(void)
{
    uint32_t v;

    __asm__ volatile("stmxcsr %0" : "=m"(v));
    return v;
}

/*
 * Put the guest's floating-point controls on the host; *host keeps the host's own.
 * No exception is ever unmasked on the host. Source: own.
 */
void cpu_fpu_enter(const struct cpu *cpu, struct cpu_fpu_host *host)
{
    static const uint16_t fcw = CPU_FCW_DEFAULT;

    host->mxcsr = host_mxcsr();
    __asm__ volatile("fnstcw %0" : "=m"(host->fcw));
    if (host->fcw != fcw) {
        __asm__ volatile("fldcw %0" : : "m"(fcw));
    }
    cpu_mxcsr_changed(cpu);
}

/* Take the flags from the host's MXCSR and restore the host's controls. */
void cpu_fpu_leave(struct cpu *cpu, const struct cpu_fpu_host *host)
{
    cpu_mxcsr_sync(cpu);
    host_mxcsr_set(host->mxcsr);
    if (host->fcw != CPU_FCW_DEFAULT) {
        __asm__ volatile("fldcw %0" : : "m"(host->fcw));
    }
}

/* Gather the flags that operations have left in the host's MXCSR. */
void cpu_mxcsr_sync(struct cpu *cpu)
{
    cpu->mxcsr |= host_mxcsr() & CPU_MXCSR_FLAGS;
}

/* Make the host follow cpu->mxcsr. */
void cpu_mxcsr_changed(const struct cpu *cpu)
{
    host_mxcsr_set((cpu->mxcsr & CPU_MXCSR_VALID) | CPU_MXCSR_MASKS);
}

/* FNINIT: control, status, tags and pointers to their initial values; register contents stay. */
void cpu_x87_init(struct cpu_x87 *x87)
{
    x87->fcw = CPU_FCW_DEFAULT;
    x87->fsw = 0;
    x87->top = 0;
    x87->ftw = 0;
    x87->fop = 0;
    x87->fip = x87->fdp = 0;
    x87->fcs = x87->fds = 0;
}

/* The whole status word: TOP in place, ES and B telling whether an unmasked exception is pending. */
uint16_t cpu_x87_fsw(const struct cpu_x87 *x87)
{
    unsigned fsw = x87->fsw & ~(CPU_FSW_TOP | CPU_FSW_ES | CPU_FSW_B);

    fsw |= (unsigned)(x87->top & 7) << 11;
    return (uint16_t)(cpu_x87_pending(x87) ? fsw | CPU_FSW_ES | CPU_FSW_B : fsw);
}

/* Take a whole status word apart. fcw must be in place already. */
void cpu_x87_set_fsw(struct cpu_x87 *x87, uint16_t fsw)
{
    x87->top = (fsw & CPU_FSW_TOP) >> 11;
    x87->fsw = (uint16_t)(fsw & ~(CPU_FSW_TOP | CPU_FSW_ES | CPU_FSW_B));
}

static unsigned tag_of(uint64_t mant, uint16_t se)
{
    unsigned exp = se & 0x7fff;

    if (exp == 0 && mant == 0) {
        return 1;
    }
    return exp == 0 || exp == 0x7fff || !(mant >> 63) ? 2 : 0;
}

/* Two bits a physical register: 0 valid, 1 zero, 2 special, 3 empty. Source: the manual's "x87 tag word". */
uint16_t cpu_x87_full_tags(const struct cpu_x87 *x87)
{
    unsigned tags = 0;

    for (unsigned i = 0; i < 8; i++) {
        tags |= (x87->ftw >> i & 1 ? tag_of(x87->st[i].mant, x87->st[i].se) : 3) << i * 2;
    }
    return (uint16_t)tags;
}

/* The abridged tags: bit n set when physical register n is not empty. */
uint8_t cpu_x87_abridge_tags(uint16_t full)
{
    unsigned tags = 0;

    for (unsigned i = 0; i < 8; i++) {
        tags |= (unsigned)((full >> i * 2 & 3) != 3) << i;
    }
    return (uint8_t)tags;
}

/*
 * State after reset: x87 as FNINIT leaves it with registers cleared, XMM zero, MXCSR at its default.
 * Source: the manual's table of register values after reset (we take FNINIT's control word, as KVM does).
 */
void cpu_fpu_reset(struct cpu *cpu)
{
    cpu_x87_init(&cpu->x87);
    memset(cpu->x87.st, 0, sizeof(cpu->x87.st));
    memset(cpu->xmm, 0, sizeof(cpu->xmm));
    cpu->mxcsr = CPU_MXCSR_DEFAULT;
}

/* The 64-bit FXSAVE image. The pointers are offsets alone in this form: no selectors. */
struct image {
    uint16_t fcw, fsw;
    uint8_t ftw, reserved;
    uint16_t fop;
    uint64_t fip, fdp;
    uint32_t mxcsr, mxcsr_mask;
    struct {
        uint64_t mant;
        uint16_t se;
        uint8_t pad[6];
    } st[8];
    union cpu_xmm xmm[16];
    uint8_t unused[96];
};
_Static_assert(sizeof(struct image) == 512, "FXSAVE image");

/*
 * Write the 64-bit FXSAVE image of cpu. image: 512 bytes, any alignment, fully written.
 * Inside cpu_run() the caller has called cpu_mxcsr_sync().
 */
void cpu_fxsave_image(const struct cpu *cpu, void *image)
{
    const struct cpu_x87 *x87 = &cpu->x87;
    struct image im = {.fcw = x87->fcw, .fsw = cpu_x87_fsw(x87), .ftw = x87->ftw, .fop = x87->fop,
                       .fip = x87->fip, .fdp = x87->fdp, .mxcsr = cpu->mxcsr,
                       .mxcsr_mask = CPU_MXCSR_VALID};

    for (unsigned i = 0; i < 8; i++) {
        unsigned r = (x87->top + i) & 7;

        im.st[i].mant = x87->st[r].mant;
        im.st[i].se = x87->st[r].se;
    }
    memcpy(im.xmm, cpu->xmm, sizeof(im.xmm));
    memcpy(image, &im, sizeof(im));
}

/*
 * Load a 64-bit FXSAVE image, 512 bytes at any alignment.
 * Returns 0; -EINVAL when MXCSR has reserved bits set (nothing changed).
 */
int cpu_fxrstor_image(struct cpu *cpu, const void *image)
{
    struct cpu_x87 *x87 = &cpu->x87;
    struct image im;

    memcpy(&im, image, sizeof(im));
    if (im.mxcsr & ~CPU_MXCSR_VALID) {
        return -EINVAL;
    }
    x87->fcw = cpu_x87_fcw(im.fcw);
    cpu_x87_set_fsw(x87, im.fsw);
    x87->ftw = im.ftw;
    x87->fop = im.fop & 0x7ff;
    x87->fip = im.fip;
    x87->fdp = im.fdp;
    x87->fcs = x87->fds = 0;
    for (unsigned i = 0; i < 8; i++) {
        unsigned r = (x87->top + i) & 7;

        x87->st[r].mant = im.st[i].mant;
        x87->st[r].se = im.st[i].se;
    }
    memcpy(cpu->xmm, im.xmm, sizeof(im.xmm));
    cpu->mxcsr = im.mxcsr;
    return 0;
}
