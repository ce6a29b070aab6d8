/*
 * String instructions without ports: MOVS, STOS, LODS, CMPS, SCAS; plain and with REP, REPE, REPNE; all
 * element and address sizes, both directions.
 *
 *   repeat: while the counter is not zero
 *     run()  as many elements as lie in one page on both sides, through host pointers
 *     one()  a single element, for what run() cannot do: page crossings, devices, pages with code
 *     commit counter and pointers; stop when asked for attention, RIP then stays at the instruction
 *
 * Invariants
 *  1. After each commit the registers are those of an instruction interrupted at that element, so faults,
 *     exits and interrupts restart it with no other trace.
 *  2. The replay list holds accesses of the element at hand only.
 *
 * Locks: none. String I/O is in string_io.c.
 */
#include "cpu/string_op.h"

#include "cpu/flags.h"
#include "cpu/opnd.h"
#include "cpu/replay.h"
#include "cpu/seg.h"
#include "cpu/seg_emit.h"
#include "cpu/string_bulk.h"
#include "cpu/system.h"

/* Linear address of an element, or of a run if it is known to lie within its segment. */
bool cpu_str_linear(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, unsigned size,
                    uint64_t *la)
{
    uint64_t off = cpu->regs[side->reg] & cpu_str_mask(op);

    if (unlikely(cpu->mode & CPU_MODE_LEGACY)) {
        return cpu_seg_linear(cpu, op, side->seg, off, size, side->write, la);
    }
    *la = cpu->seg_base[side->seg] + off;
    if (!(cpu->mode & CPU_MODE_64)) {
        *la = (uint32_t)*la;
    }
    return true;
}

/* Write a pointer or the counter back: at the address size, as an instruction does. */
void cpu_str_add(struct cpu *cpu, const struct cpu_op *op, unsigned reg, int64_t n)
{
    uint64_t mask = cpu_str_mask(op);
    uint64_t v = (cpu->regs[reg] + (uint64_t)n) & mask;

    cpu->regs[reg] = mask == 0xffff ? (cpu->regs[reg] & ~mask) | v : v;
}

static bool load(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, uint64_t *v)
{
    uint8_t v8 = 0;
    uint16_t v16 = 0;
    uint32_t v32 = 0;
    bool ok;

    switch (size) {
    case 1:
        ok = cpu_load8(cpu, op, la, &v8);
        *v = v8;
        return ok;
    case 2:
        ok = cpu_load16(cpu, op, la, &v16);
        *v = v16;
        return ok;
    case 4:
        ok = cpu_load32(cpu, op, la, &v32);
        *v = v32;
        return ok;
    default:
        return cpu_load64(cpu, op, la, v);
    }
}

static bool store(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, uint64_t v)
{
    switch (size) {
    case 1:
        return cpu_store8(cpu, op, la, (uint8_t)v);
    case 2:
        return cpu_store16(cpu, op, la, (uint16_t)v);
    case 4:
        return cpu_store32(cpu, op, la, (uint32_t)v);
    default:
        return cpu_store64(cpu, op, la, v);
    }
}

static struct cpu_str_side source(const struct cpu_op *op)
{
    return (struct cpu_str_side){CPU_RSI, op->seg, false};
}

static struct cpu_str_side dest(bool write)
{
    return (struct cpu_str_side){CPU_RDI, CPU_ES, write};
}

/* Load or store one element of a side. */
bool cpu_str_load(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, uint64_t *v)
{
    unsigned size = cpu_str_size(op);
    uint64_t la;

    return cpu_str_linear(cpu, op, side, size, &la) && load(cpu, op, la, size, v);
}

/* Store one element; v is cut to its size. */
bool cpu_str_store(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, uint64_t v)
{
    unsigned size = cpu_str_size(op);
    uint64_t la;

    return cpu_str_linear(cpu, op, side, size, &la) && store(cpu, op, la, size, v);
}

/* The accumulator at the element's size. */
static uint64_t accumulator(const struct cpu *cpu, unsigned size)
{
    return size == 8 ? cpu->regs[CPU_RAX] : cpu->regs[CPU_RAX] & ((UINT64_C(1) << size * 8) - 1);
}

static void set_accumulator(struct cpu *cpu, unsigned size, uint64_t v)
{
    if (size == 1) {
        cpu->regs[CPU_RAX] = (cpu->regs[CPU_RAX] & ~UINT64_C(0xff)) | v;
    } else {
        cpu_opnd_put_reg(cpu, CPU_RAX, size, v);
    }
}

/* Flags of a - b. */
static void set_flags(struct cpu *cpu, unsigned size, uint64_t a, uint64_t b)
{
    uint64_t mask = size == 8 ? UINT64_MAX : (UINT64_C(1) << size * 8) - 1;

    cpu->cc_op = CPU_CC_SUB | (uint32_t)__builtin_ctz(size);
    cpu->cc_dst = (a - b) & mask;
    cpu->cc_src = b;
}

/* ---- one element ---- */

static bool movs_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side s = source(op), d = dest(true);
    uint64_t v;

    if (!cpu_str_load(cpu, op, &s, &v) || !cpu_str_store(cpu, op, &d, v)) {
        return false;
    }
    cpu_str_add(cpu, op, CPU_RSI, cpu_str_step(cpu, op));
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op));
    return true;
}

static bool stos_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side d = dest(true);

    if (!cpu_str_store(cpu, op, &d, cpu->regs[CPU_RAX])) {
        return false;
    }
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op));
    return true;
}

static bool lods_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side s = source(op);
    uint64_t v;

    if (!cpu_str_load(cpu, op, &s, &v)) {
        return false;
    }
    set_accumulator(cpu, cpu_str_size(op), v);
    cpu_str_add(cpu, op, CPU_RSI, cpu_str_step(cpu, op));
    return true;
}

static bool cmps_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side s = source(op), d = dest(false);
    uint64_t a, b;

    if (!cpu_str_load(cpu, op, &s, &a) || !cpu_str_load(cpu, op, &d, &b)) {
        return false;
    }
    set_flags(cpu, cpu_str_size(op), a, b);
    cpu_str_add(cpu, op, CPU_RSI, cpu_str_step(cpu, op));
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op));
    return true;
}

static bool scas_one(struct cpu *cpu, const struct cpu_op *op)
{
    struct cpu_str_side d = dest(false);
    uint64_t b;

    if (!cpu_str_load(cpu, op, &d, &b)) {
        return false;
    }
    set_flags(cpu, cpu_str_size(op), accumulator(cpu, cpu_str_size(op)), b);
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op));
    return true;
}

/* ---- runs within pages ---- */

/* Elements, at most n, that lie in one page and within the segment from a side's pointer on; 0: do one slowly. */
static unsigned run_fit(const struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, uint64_t n)
{
    unsigned size = cpu_str_size(op);
    uint64_t mask = cpu_str_mask(op);
    uint64_t off = cpu->regs[side->reg] & mask;
    uint64_t room, la = cpu->seg_base[side->seg] + off;
    bool down = cpu->rflags_rest & X86_DF;

    if (down) {
        uint64_t below = page_offset(la) + size;

        room = below > PAGE_SIZE ? 0 : below;
        room = room > off + size ? off + size : room;
    } else {
        room = PAGE_SIZE - page_offset(la);
        if (mask != UINT64_MAX && room > mask - off + 1) {
            room = mask - off + 1;
        }
    }
    if (n * size > room || n > PAGE_SIZE) {
        n = room / size;
    }
    if (n && (cpu->mode & CPU_MODE_LEGACY)) {
        uint64_t low = down ? off - (n - 1) * size : off;

        if (!cpu_seg_holds(&cpu->seg[side->seg], low, (unsigned)(n * size))) {
            return 0;
        }
    }
    return (unsigned)n;
}

/* What the TLB does not answer: a walk, or the news that this is no plain RAM. */
static __attribute__((noinline)) bool run_ptr_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t low, unsigned len,
                                                   bool write, uint64_t first, uint8_t **p)
{
    void *host;

    if (!cpu_host_ptr(cpu, op, low, len, write, &host)) {
        /* A descending run is looked up by its lowest byte; the fault is its first element's. */
        if (cpu->fault.type != CPU_EVENT_NONE && cpu->fault.vector == X86_VEC_PF) {
            cpu->fault.payload = first;
        }
        return false;
    }
    *p = host;
    return true;
}

/* Host pointer to the first element of a run. False: recorded; *p NULL: no plain RAM. */
static inline bool run_ptr(struct cpu *cpu, const struct cpu_op *op, const struct cpu_str_side *side, unsigned n,
                           uint8_t **p)
{
    unsigned size = cpu_str_size(op);
    unsigned back = cpu->rflags_rest & X86_DF ? (n - 1) * size : 0;
    uint64_t la;

    if (!cpu_str_linear(cpu, op, side, size, &la)) {
        return false;
    }
    *p = side->write ? cpu_fast_write(cpu, la - back, n * size) : cpu_fast_read(cpu, la - back, n * size);
    if (unlikely(!*p) && !run_ptr_slow(cpu, op, la - back, n * size, side->write, la, p)) {
        return false;
    }
    *p = *p ? *p + back : NULL;
    return true;
}

/* Result of a run: elements done (0: none could be), or -1 with a fault or exit recorded. `stop`: a
 * comparison has ended the repetition. */
struct run {
    uint64_t left; /* elements asked for */
    bool stop;
};

static int movs_run(struct cpu *cpu, const struct cpu_op *op, struct run *r)
{
    struct cpu_str_side s = source(op), d = dest(true);
    unsigned size = cpu_str_size(op);
    unsigned n = run_fit(cpu, op, &d, run_fit(cpu, op, &s, r->left));
    uint8_t *ps, *pd;

    if (n == 0) {
        return 0;
    }
    if (!run_ptr(cpu, op, &s, n, &ps) || (ps && !run_ptr(cpu, op, &d, n, &pd))) {
        return -1;
    }
    if (!ps || !pd) {
        return 0;
    }
    if (cpu->rflags_rest & X86_DF) {
        cpu_bulk_copy_down(pd, ps, n, size);
    } else {
        cpu_bulk_copy_up(pd, ps, n, size);
    }
    cpu_str_add(cpu, op, CPU_RSI, cpu_str_step(cpu, op) * n);
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op) * n);
    return (int)n;
}

static int stos_run(struct cpu *cpu, const struct cpu_op *op, struct run *r)
{
    struct cpu_str_side d = dest(true);
    unsigned size = cpu_str_size(op);
    unsigned n = run_fit(cpu, op, &d, r->left);
    uint8_t *pd;

    if (n == 0) {
        return 0;
    }
    if (!run_ptr(cpu, op, &d, n, &pd)) {
        return -1;
    }
    if (!pd) {
        return 0;
    }
    if (cpu->rflags_rest & X86_DF) {
        pd -= (n - 1) * size;
    }
    cpu_bulk_fill(pd, cpu->regs[CPU_RAX], n, size);
    cpu_str_add(cpu, op, CPU_RDI, cpu_str_step(cpu, op) * n);
    return (int)n;
}

static int lods_run(struct cpu *cpu, const struct cpu_op *op, struct run *r)
{
    struct cpu_str_side s = source(op);
    unsigned n = run_fit(cpu, op, &s, r->left);
    int64_t step = cpu_str_step(cpu, op);
    uint8_t *ps;

    if (n == 0) {
        return 0;
    }
    if (!run_ptr(cpu, op, &s, n, &ps)) {
        return -1;
    }
    if (!ps) {
        return 0;
    }
    set_accumulator(cpu, cpu_str_size(op), cpu_guest_get_sized(ps + step * (int64_t)(n - 1), cpu_str_size(op)));
    cpu_str_add(cpu, op, CPU_RSI, step * n);
    return (int)n;
}

static int compare_run(struct cpu *cpu, const struct cpu_op *op, struct run *r, struct cpu_bulk_cmp *c, unsigned n)
{
    unsigned done;

    c->size = cpu_str_size(op);
    c->stop_equal = op->flags & CPU_OPF_REPNE;
    done = cpu_bulk_compare(c, n);
    set_flags(cpu, c->size, c->last_a, c->last_b);
    r->stop = (c->last_a == c->last_b) == c->stop_equal;
    return (int)done;
}

static int cmps_run(struct cpu *cpu, const struct cpu_op *op, struct run *r)
{
    struct cpu_str_side s = source(op), d = dest(false);
    unsigned n = run_fit(cpu, op, &d, run_fit(cpu, op, &s, r->left));
    int step = (int)cpu_str_step(cpu, op);
    uint8_t *ps, *pd;
    struct cpu_bulk_cmp c;
    int done;

    if (n == 0) {
        return 0;
    }
    if (!run_ptr(cpu, op, &s, n, &ps) || (ps && !run_ptr(cpu, op, &d, n, &pd))) {
        return -1;
    }
    if (!ps || !pd) {
        return 0;
    }
    c = (struct cpu_bulk_cmp){.a = ps, .b = pd, .step_a = step, .step_b = step};
    done = compare_run(cpu, op, r, &c, n);
    cpu_str_add(cpu, op, CPU_RSI, (int64_t)step * done);
    cpu_str_add(cpu, op, CPU_RDI, (int64_t)step * done);
    return done;
}

static int scas_run(struct cpu *cpu, const struct cpu_op *op, struct run *r)
{
    struct cpu_str_side d = dest(false);
    unsigned n = run_fit(cpu, op, &d, r->left);
    int step = (int)cpu_str_step(cpu, op);
    uint64_t acc = cpu->regs[CPU_RAX];
    uint8_t *pd;
    struct cpu_bulk_cmp c;
    int done;

    if (n == 0) {
        return 0;
    }
    if (!run_ptr(cpu, op, &d, n, &pd)) {
        return -1;
    }
    if (!pd) {
        return 0;
    }
    c = (struct cpu_bulk_cmp){.a = (const uint8_t *)&acc, .b = pd, .step_b = step};
    done = compare_run(cpu, op, r, &c, n);
    cpu_str_add(cpu, op, CPU_RDI, (int64_t)step * done);
    return done;
}

/* ---- repetition ---- */

typedef bool one_fn(struct cpu *cpu, const struct cpu_op *op);
typedef int run_fn(struct cpu *cpu, const struct cpu_op *op, struct run *r);

/* One element the slow way; `compares`: the flags may end the repetition. */
static int repeat_one(struct cpu *cpu, const struct cpu_op *op, one_fn *one, struct run *r)
{
    if (!one(cpu, op)) {
        return -1;
    }
    cpu_replay_reset(cpu);
    if (op->src) {
        r->stop = (cpu->cc_dst == 0) == !!(op->flags & CPU_OPF_REPNE);
    }
    return 1;
}

/* A counter of zero at an address size of 32 bits in 64-bit mode: Intel's processors cut the counter, and the
 * pointers that MOVS and STOS write. Source: observed; KVM reproduces it too. */
static void nothing_to_do(struct cpu *cpu, const struct cpu_op *op, run_fn *run)
{
    if (!(cpu->mode & CPU_MODE_64) || !(op->flags & CPU_OPF_EA32)) {
        return;
    }
    cpu->regs[CPU_RCX] = 0;
    if (run == movs_run) {
        cpu->regs[CPU_RSI] = (uint32_t)cpu->regs[CPU_RSI];
    }
    if (run == movs_run || run == stos_run) {
        cpu->regs[CPU_RDI] = (uint32_t)cpu->regs[CPU_RDI];
    }
}

/* The elements. */
static bool repeat_from(struct cpu *cpu, const struct cpu_op *op, one_fn *one, run_fn *run, struct run *r)
{
    bool single = cpu->mode & CPU_MODE_TF;
    int n;

    if (unlikely(r->left == 0)) {
        nothing_to_do(cpu, op, run);
    }
    while (r->left > 0) {
        n = single ? 0 : run(cpu, op, r);
        if (n == 0) {
            n = repeat_one(cpu, op, one, r);
        }
        if (n < 0) {
            cpu_flags_restore(cpu);
            return false;
        }
        r->left -= (unsigned)n;
        cpu_str_add(cpu, op, CPU_RCX, -(int64_t)n);
        if (r->stop) {
            return true;
        }
        if (r->left > 0 && unlikely(single || cpu_must_leave(cpu))) {
            cpu_sync_rip(cpu, op);
            cpu->icount += single; /* each element is traced as an instruction of its own */
            return false;
        }
    }
    return true;
}

/*
 * The repetition. True: the instruction is done, the next one may follow. False: RIP is synchronised.
 * src of the operation: it compares.
 */
static __attribute__((noinline)) bool repeat(struct cpu *cpu, const struct cpu_op *op, one_fn *one, run_fn *run)
{
    struct run r = {.left = cpu->regs[CPU_RCX] & cpu_str_mask(op)};
    const struct cpu_op *was = cpu_at_begin(cpu, op);
    bool done;

    cpu_flags_save(cpu);
    done = repeat_from(cpu, op, one, run, &r);
    cpu->cc_before.valid = 0;
    cpu_at_end(cpu, was);
    return done;
}

static __attribute__((noinline)) bool single(struct cpu *cpu, const struct cpu_op *op, one_fn *one)
{
    return one(cpu, op);
}

#define STRING_OPS(name)                                                                           \
    static void op_##name(struct cpu *cpu, const struct cpu_op *op)                                \
    {                                                                                              \
        if (likely(single(cpu, op, name##_one))) {                                                 \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }                                                                                              \
    static void op_rep_##name(struct cpu *cpu, const struct cpu_op *op)                            \
    {                                                                                              \
        if (likely(repeat(cpu, op, name##_one, name##_run))) {                                     \
            cpu_next(cpu, op);                                                                     \
        }                                                                                          \
    }

STRING_OPS(movs)
STRING_OPS(stos)
STRING_OPS(lods)
STRING_OPS(cmps)
STRING_OPS(scas)

/* ---- emitters ---- */

/* Append with element size, address size, repetition and source segment taken from the instruction. */
struct cpu_op *cpu_str_emit(struct cpu_emit *e, cpu_op_fn *plain, cpu_op_fn *rep)
{
    bool repne = e->in.attributes & ZYDIS_ATTRIB_HAS_REPNE;
    bool repeats = repne || (e->in.attributes & (ZYDIS_ATTRIB_HAS_REP | ZYDIS_ATTRIB_HAS_REPE));
    struct cpu_op *op = cpu_emit_op(e, repeats ? rep : plain);
    unsigned i;

    if (!op) {
        return NULL;
    }
    op->flags &= (uint8_t)~(CPU_OPF_EA_MASK | CPU_OPF_REP | CPU_OPF_REPNE);
    op->flags |= e->in.address_width == 16 ? CPU_OPF_EA16 : e->in.address_width == 32 ? CPU_OPF_EA32 : 0;
    op->flags |= repne ? CPU_OPF_REPNE : repeats ? CPU_OPF_REP : 0;
    op->seg = CPU_DS;
    op->src = 0;
    for (i = 0; i < e->in.operand_count; i++) {
        const ZydisDecodedOperand *o = &e->opnd[i];

        if (o->type != ZYDIS_OPERAND_TYPE_MEMORY) {
            continue;
        }
        op->aux = (uint8_t)__builtin_ctz(o->size / 8u);
        if (cpu_emit_reg(o->mem.base) == CPU_RSI) {
            op->seg = (uint8_t)cpu_seg_number(o->mem.segment);
        }
    }
    return op;
}

static int emit(struct cpu_emit *e, cpu_op_fn *plain, cpu_op_fn *rep, uint8_t compares)
{
    struct cpu_op *op = cpu_str_emit(e, plain, rep);

    if (!op) {
        return -ENOSPC;
    }
    op->src = compares;
    return 0;
}

/* Emitters that system.def or system.h names. 0; -ENOSPC: the block is full; -EINVAL: undefined, #UD. */
int cpu_emit_movs(struct cpu_emit *e)
{
    return emit(e, op_movs, op_rep_movs, 0);
}

int cpu_emit_stos(struct cpu_emit *e)
{
    return emit(e, op_stos, op_rep_stos, 0);
}

int cpu_emit_lods(struct cpu_emit *e)
{
    return emit(e, op_lods, op_rep_lods, 0);
}

int cpu_emit_cmps(struct cpu_emit *e)
{
    return emit(e, op_cmps, op_rep_cmps, 1);
}

int cpu_emit_scas(struct cpu_emit *e)
{
    return emit(e, op_scas, op_rep_scas, 1);
}
