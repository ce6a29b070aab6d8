/*
 * The memory path of the processor: linear address to byte. access.c has the slow half.
 *
 * Every function here returns true when done. False means: a fault or an exit is recorded in the cpu
 * with RIP synchronised to op's instruction, and the operation must return at once without having
 * changed architectural state.
 *
 * `ea` arguments are linear addresses already (segment base added and, in legacy modes, limit checked)
 * as cpu_ea() returns them. Sizes are 1, 2, 4, 8, 10 or 16 bytes; any alignment.
 */
#ifndef STRATA_CPU_ACCESS_H
#define STRATA_CPU_ACCESS_H

#include "cpu/guard.h"
#include "cpu/guest_mem.h"
#include "cpu/op.h"
#include "cpu/tlb.h"

/* Linear address of op's memory operand. size: bytes that will be accessed (limit check in legacy modes);
 * write: for the segment type check. */
bool cpu_ea(struct cpu *cpu, const struct cpu_op *op, unsigned size, bool write, uint64_t *la) must_check;

/* Linear address of offset `off` in segment `seg` with all legacy checks; for stacks and strings. */
bool cpu_seg_linear(struct cpu *cpu, const struct cpu_op *op, enum cpu_segreg seg, uint64_t off,
                    unsigned size, bool write, uint64_t *la) must_check;

/* A host address that no TLB entry makes null, so that nobody compares it once more. */
static always_inline void *cpu_not_null(uint64_t addr)
{
    if (addr == 0) {
        __builtin_unreachable();
    }
    return (void *)(uintptr_t)addr;
}

/*
 * The fast halves, for operations with a body of their own for the slow case (mem_op.h): host pointer to
 * `size` bytes at la if the TLB has the page and they lie in it, else NULL. A pointer for writing may be read too.
 */
static always_inline void *cpu_fast_read(const struct cpu *cpu, uint64_t la, unsigned size)
{
    const struct cpu_tlb_entry *e = &cpu->tlb[cpu_tlb_index(la)];
    uint64_t tag = ((la + size - 1) & PAGE_MASK) | cpu->tlb_gen[la >> 63];

    return likely(e->tag_r == tag) ? cpu_not_null(la + e->addend) : NULL;
}

static always_inline void *cpu_fast_write(const struct cpu *cpu, uint64_t la, unsigned size)
{
    const struct cpu_tlb_entry *e = &cpu->tlb[cpu_tlb_index(la)];
    uint64_t tag = ((la + size - 1) & PAGE_MASK) | cpu->tlb_gen[la >> 63];

    return likely(__atomic_load_n(&e->tag_w, __ATOMIC_RELAXED) == tag) ? cpu_not_null(la + e->addend) : NULL;
}

/* The slow halves. size: 1 to 8 bytes. A load returns its value in a register, not through a pointer,
 * so that the caller can still end in a tail call. The 16-byte forms use cpu->scratch. _rw: what is read will be
 * written by the same instruction, so it must be writable. */
struct cpu_word {
    uint64_t v;
    uint64_t ok;
};

struct cpu_word cpu_load_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size);
struct cpu_word cpu_load_rw_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size);
bool cpu_store_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint64_t v, unsigned size) must_check;
bool cpu_load128_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la) must_check;
bool cpu_store128_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la) must_check;

/* Guest loads and stores at the current privilege. The names tell the size in bits. */
#define CPU_ACCESS_FUNCTIONS(bits)                                                                 \
    must_check static always_inline bool cpu_load##bits(struct cpu *cpu, const struct cpu_op *op,  \
                                                        uint64_t la, uint##bits##_t *v)            \
    {                                                                                              \
        const void *p = cpu_fast_read(cpu, la, bits / 8);                                          \
                                                                                                   \
        if (unlikely(!p)) {                                                                        \
            struct cpu_word w = cpu_load_slow(cpu, op, la, bits / 8);                              \
                                                                                                   \
            *v = (uint##bits##_t)w.v;                                                              \
            return w.ok;                                                                           \
        }                                                                                          \
        CPU_PIN(op);                                                                               \
        *v = cpu_guest_get##bits(p);                                                               \
        CPU_PIN(op);                                                                               \
        return true;                                                                               \
    }                                                                                              \
    must_check static always_inline bool cpu_store##bits(struct cpu *cpu, const struct cpu_op *op, \
                                                         uint64_t la, uint##bits##_t v)            \
    {                                                                                              \
        void *p = cpu_fast_write(cpu, la, bits / 8);                                               \
                                                                                                   \
        if (unlikely(!p)) {                                                                        \
            return cpu_store_slow(cpu, op, la, v, bits / 8);                                       \
        }                                                                                          \
        CPU_PIN(op);                                                                               \
        cpu_guest_put##bits(p, v);                                                                 \
        CPU_PIN(op);                                                                               \
        return true;                                                                               \
    }

CPU_ACCESS_FUNCTIONS(8)
CPU_ACCESS_FUNCTIONS(16)
CPU_ACCESS_FUNCTIONS(32)
CPU_ACCESS_FUNCTIONS(64)

must_check static always_inline bool cpu_load128(struct cpu *cpu, const struct cpu_op *op, uint64_t la,
                                                 union cpu_xmm *v)
{
    const uint8_t *p = cpu_fast_read(cpu, la, 16);

    if (unlikely(!p)) {
        if (!cpu_load128_slow(cpu, op, la)) {
            return false;
        }
        *v = cpu->scratch;
        return true;
    }
    CPU_PIN(op);
    v->u64[0] = cpu_guest_get64(p);
    v->u64[1] = cpu_guest_get64(p + 8);
    CPU_PIN(op);
    return true;
}

must_check static always_inline bool cpu_store128(struct cpu *cpu, const struct cpu_op *op, uint64_t la,
                                                  const union cpu_xmm *v)
{
    uint8_t *p = cpu_fast_write(cpu, la, 16);

    if (unlikely(!p)) {
        cpu->scratch = *v;
        return cpu_store128_slow(cpu, op, la);
    }
    CPU_PIN(op);
    cpu_guest_put64(p, v->u64[0]);
    cpu_guest_put64(p + 8, v->u64[1]);
    CPU_PIN(op);
    return true;
}

/* Any number of bytes up to 4096 (FXSAVE, XSAVE images, descriptor tables): faults before any byte is
 * stored when a later page is not accessible. */
bool cpu_load_bytes(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf, unsigned len) must_check;
bool cpu_store_bytes(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len) must_check;

/* The same as an implicit supervisor access, whatever CPL is (descriptor tables, TSS, IDT). */
bool cpu_sys_load(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf, unsigned len) must_check;
bool cpu_sys_store(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len) must_check;

/* True if a store of len bytes would succeed now (no fault, plain RAM, still there on the host); for instructions
 * that must not fault after their first effect (ENTER, far calls, task switch). Records the fault otherwise. */
bool cpu_probe_write(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned len) must_check;

/*
 * Host pointer to len bytes of plain guest RAM within one page, checked for reading and (if write) writing, dirty
 * and code tracking done; *p is NULL (and true returned) when the bytes are a device's or cross a page. For LOCKed
 * read-modify-write, and for string operations that run over whole pages. Valid until the operation ends.
 * NULL also for writing to lines that hold decoded code: those go through cpu_store*().
 */
bool cpu_host_ptr(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned len, bool write, void **p) must_check;

/*
 * For LOCKed read-modify-write. begin: host pointer to size bytes that may be changed by host atomics, or, when
 * no host atomic can do it (device, page crossing), NULL in ->host and the old value in ->old under a lock
 * that all processors share; store the new one with cpu_locked_put(). end: always after a begin
 * that returned true, and after the change.
 */
struct cpu_locked {
    void *host;
    uint64_t pfn;
    union cpu_xmm old;
    uint64_t la;
    unsigned size;
    bool has_code, granted;
    uint64_t gpa; /* granted: by the hypervisor's leave, who must hear of the write (shadow.h) */
};

bool cpu_locked_begin(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size,
                      struct cpu_locked *l) must_check;
bool cpu_locked_put(struct cpu *cpu, const struct cpu_op *op, struct cpu_locked *l, const void *v) must_check;
void cpu_locked_end(struct cpu *cpu, struct cpu_locked *l);

/* Code page at linear address la for the current privilege: host pointer of the page's first byte and pfn.
 * False: fault or exit recorded, RIP untouched. */
bool cpu_fetch_page(struct cpu *cpu, uint64_t la, const uint8_t **host, uint64_t *pfn) must_check;

/* Port access. Out of the permission bitmap's or IOPL's allowance: #GP recorded. */
bool cpu_io_in(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size, uint32_t *v) must_check;
bool cpu_io_out(struct cpu *cpu, const struct cpu_op *op, uint16_t port, unsigned size, uint32_t v) must_check;

#endif
