/*
 * Segments: reading descriptors, judging them, loading them into segment registers; and stacks that are
 * not (yet) the current one, onto which gates and events push.
 *
 * Functions that return bool follow access.h: false means that a fault or an exit is recorded.
 */
#ifndef STRATA_CPU_SEG_H
#define STRATA_CPU_SEG_H

#include "cpu/access.h"
#include "cpu/exception.h"

/* A descriptor as read, with where it came from. */
struct cpu_desc {
    uint64_t la;     /* linear address of its first byte */
    uint32_t lo, hi; /* first and second doubleword */
    uint64_t upper;  /* second half of a 16-byte system descriptor, if read */
    uint16_t sel;
};

static inline unsigned cpu_desc_type(const struct cpu_desc *d)
{
    return d->hi >> 8 & 0xf;
}

/* S and type together: system descriptors are 0 to 15, segments 16 to 31. */
static inline unsigned cpu_desc_stype(const struct cpu_desc *d)
{
    return d->hi >> 8 & 0x1f;
}

static inline bool cpu_desc_is_segment(const struct cpu_desc *d)
{
    return d->hi & 0x1000;
}

static inline unsigned cpu_desc_dpl(const struct cpu_desc *d)
{
    return d->hi >> 13 & 3;
}

static inline bool cpu_desc_is_present(const struct cpu_desc *d)
{
    return d->hi & 0x8000;
}

static inline bool cpu_desc_is_code(const struct cpu_desc *d)
{
    return (d->hi & 0x1800) == 0x1800;
}

static inline bool cpu_desc_is_conforming(const struct cpu_desc *d)
{
    return (d->hi & 0x1c00) == 0x1c00;
}

static inline bool cpu_desc_is_writable_data(const struct cpu_desc *d)
{
    return (d->hi & 0x1a00) == 0x1200;
}

static inline bool cpu_desc_is_long(const struct cpu_desc *d)
{
    return d->hi & 0x200000;
}

static inline uint32_t cpu_desc_limit(const struct cpu_desc *d)
{
    uint32_t limit = (d->lo & 0xffff) | (d->hi & 0xf0000);

    return d->hi & 0x800000 ? limit << 12 | 0xfff : limit;
}

static inline uint32_t cpu_desc_base(const struct cpu_desc *d)
{
    return d->lo >> 16 | (d->hi & 0xff) << 16 | (d->hi & 0xff000000);
}

/* System descriptor and gate types. */
enum cpu_sys_type {
    CPU_SYS_TSS16 = 1,
    CPU_SYS_LDT = 2,
    CPU_SYS_TSS16_BUSY = 3,
    CPU_SYS_CALL16 = 4,
    CPU_SYS_TASK_GATE = 5,
    CPU_SYS_INT16 = 6,
    CPU_SYS_TRAP16 = 7,
    CPU_SYS_TSS32 = 9, /* 64-bit TSS in long mode */
    CPU_SYS_TSS32_BUSY = 11,
    CPU_SYS_CALL32 = 12,
    CPU_SYS_INT32 = 14,
    CPU_SYS_TRAP32 = 15,
};

static inline bool cpu_sel_is_null(uint16_t sel)
{
    return !(sel & 0xfffc);
}

static inline bool cpu_is_long(const struct cpu *cpu)
{
    return cpu->efer & X86_EFER_LMA;
}

/* Canonical for the paging depth in use. */
static inline bool cpu_is_canonical(const struct cpu *cpu, uint64_t la)
{
    unsigned shift = cpu->cr4 & X86_CR4_LA57 ? 7 : 16;

    return (uint64_t)((int64_t)(la << shift) >> shift) == la;
}

/* 64-bit mode: size bytes at a stack pointer, whose address raises #SS(0) when it is not canonical, also in an
 * instruction whose memory operand would raise #GP. */
must_check static inline bool cpu_stack_allowed(struct cpu *cpu, const struct cpu_op *op, uint64_t sp, unsigned size)
{
    if (likely(cpu_is_canonical(cpu, sp) && cpu_is_canonical(cpu, sp + size - 1))) {
        return true;
    }
    return cpu_raise_code(cpu, op, X86_SS, 0);
}

/* cpu_sys_load() of a small constant length, with the TLB asked first. */
must_check static always_inline bool cpu_sys_get(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf,
                                                 unsigned len)
{
    unsigned set = cpu->cr4 & X86_CR4_SMAP ? CPU_TLB_SUPER : CPU_TLB_SUPER_AC;
    const struct cpu_tlb_entry *e = cpu_tlb_entry_of(cpu, set, la);
    uint64_t tag = ((la + len - 1) & PAGE_MASK) | cpu->tlb_gen[la >> 63];
    const struct cpu_op *was;

    if (unlikely(e->tag_r != tag)) {
        return cpu_sys_load(cpu, op, la, buf, len);
    }
    was = cpu_at_begin(cpu, op);
    cpu_guest_read(buf, (const void *)(uintptr_t)(la + e->addend), len);
    cpu_at_end(cpu, was);
    return true;
}

/* Outcome of looking a selector up. */
enum cpu_desc_found {
    CPU_DESC_FOUND,
    CPU_DESC_OUTSIDE, /* null, or beyond the limit of its table */
    CPU_DESC_FAULT,   /* recorded */
};

enum cpu_desc_found cpu_desc_find(struct cpu *cpu, const struct cpu_op *op, uint16_t sel,
                                  struct cpu_desc *d) must_check;
bool cpu_desc_read(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, enum x86_vector vector,
                   struct cpu_desc *d) must_check;
bool cpu_desc_read_upper(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d) must_check;
bool cpu_desc_set_bits(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d, uint32_t set,
                       uint32_t clear) must_check;
bool cpu_desc_set_accessed(struct cpu *cpu, const struct cpu_op *op, struct cpu_desc *d) must_check;
void cpu_desc_to_seg(const struct cpu_desc *d, struct cpu_seg *seg);

bool cpu_seg_load(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg reg, uint16_t sel) must_check;
bool cpu_seg_check_ss(struct cpu *cpu, const struct cpu_op *op, const struct cpu_desc *d, unsigned cpl,
                      enum x86_vector vector) must_check;
void cpu_seg_set_null(struct cpu_seg *seg, uint16_t sel);
void cpu_seg_set_real(struct cpu_seg *seg, uint16_t sel);
void cpu_seg_set_v86(struct cpu_seg *seg, uint16_t sel);
bool cpu_seg_holds(const struct cpu_seg *seg, uint64_t off, unsigned size);
void cpu_seg_drop_outer(struct cpu *cpu, unsigned cpl);

/*
 * A stack in preparation: the segment as it will be, the pointer, and whose privilege its accesses have.
 * `sp` changes by pushes and pops; nothing of it is in the processor before cpu_stack_commit().
 */
struct cpu_stack {
    struct cpu_seg ss;
    uint64_t sp;
    uint8_t cpl;     /* lent to the processor by the first push or pop; a failing one gives it back */
    uint8_t old_cpl;
    uint16_t err;    /* error code of #SS for it */
    bool is64;
};

void cpu_stack_current(const struct cpu *cpu, struct cpu_stack *st);
bool cpu_stack_push(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size,
                    uint64_t value) must_check;
bool cpu_stack_pop(struct cpu *cpu, const struct cpu_op *op, struct cpu_stack *st, unsigned size,
                   uint64_t *value) must_check;
void cpu_stack_add(struct cpu_stack *st, int64_t n);
void cpu_stack_commit(struct cpu *cpu, const struct cpu_stack *st);
bool cpu_stack_inner(struct cpu *cpu, const struct cpu_op *op, unsigned cpl, struct cpu_stack *st) must_check;
bool cpu_stack_inner64(struct cpu *cpu, const struct cpu_op *op, unsigned off, struct cpu_stack *st) must_check;

/* mode.c: lend a privilege for stack accesses. */
void cpu_priv_set(struct cpu *cpu, unsigned cpl);

/* task.c */
enum cpu_task_reason { CPU_TASK_JMP, CPU_TASK_CALL, CPU_TASK_IRET, CPU_TASK_EVENT };

bool cpu_task_finish(struct cpu *cpu, const struct cpu_op *op) must_check;
void cpu_task_resume(struct cpu *cpu);
bool cpu_task_switch(struct cpu *cpu, const struct cpu_op *op, uint16_t sel, enum cpu_task_reason reason,
                     uint64_t next_rip) must_check;

#endif
