/*
 * The slow half of the memory path: what a TLB miss, a page crossing, a device or a page with code needs.
 *
 *   cpu_load_slow() / cpu_store_slow() / cpu_*_bytes()
 *     cut at the page end --> target_find() per piece: TLB, else both walks, fill --> all pieces are
 *     accessible --> RAM: copy, then code tracking; device: the replay list, exit
 *
 * Invariants
 *  1. No byte is stored before every piece is known to be accessible.
 *  2. A false return has recorded a fault or an exit, with RIP at the instruction.
 *
 * Locks: none; the entry's tag_w is the only field that another processor clears.
 */
#include "cpu/access.h"

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/block.h"
#include "cpu/exception.h"
#include "cpu/peers.h"
#include "cpu/replay.h"
#include "cpu/system.h"
#include "cpu/walk.h"

/* Accesses up to 4096 bytes touch at most two pages. */
#define MAX_PIECES 2

/* One piece of an access, within a page. */
struct piece {
    uint64_t la;
    unsigned off, len; /* in the access's buffer */
    uint8_t *host;     /* NULL: a device at gpa */
    const uint8_t *rom; /* host is NULL: where it can still be read, a refused write's page */
    uint64_t gpa, pfn;
    bool has_code;
};

/* An access in flight. */
struct access {
    struct cpu *cpu;
    const struct cpu_op *op;
    enum cpu_access kind;
    enum cpu_tlb_set set;
    uint8_t *buf;
    unsigned pieces;
    struct piece piece[MAX_PIECES];
};

/* The array of the current privilege, also while cpu->tlb is the empty one. */
static enum cpu_tlb_set set_now(const struct cpu *cpu)
{
    if (cpu->cpl == 3) {
        return CPU_TLB_USER;
    }
    return (cpu->cr4 & X86_CR4_SMAP) && !(cpu->rflags_rest & X86_AC) ? CPU_TLB_SUPER : CPU_TLB_SUPER_AC;
}

static enum cpu_tlb_set set_implicit(const struct cpu *cpu)
{
    return cpu->cr4 & X86_CR4_SMAP ? CPU_TLB_SUPER : CPU_TLB_SUPER_AC;
}

/*
 * Enter a finished translation. The write tag is stored before code_lines is read again: block.c marks
 * lines before it looks for write tags, so one of the two sees the other.
 */
static struct cpu_tlb_entry *tlb_fill(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_tlb_set set)
{
    struct cpu_tlb_entry *e = &cpu->mmu->tlb[set][cpu_tlb_index(x->la)];
    uint64_t tag = cpu_tlb_tag(cpu, x->la);
    bool may_write = (x->rights & CPU_RIGHT_W) && (x->rights & CPU_RIGHT_D) && (x->nested.rights & EPT_W);

    __atomic_store_n(&e->tag_w, 0, __ATOMIC_RELAXED);
    e->tag_r = tag;
    e->addend = (uint64_t)(uintptr_t)x->nested.host - (x->la & PAGE_MASK);
    __atomic_store_n(&e->info, x->nested.pfn << PAGE_SHIFT, __ATOMIC_RELAXED); /* peers.c reads it */
    if (may_write) {
        __atomic_store_n(&e->tag_w, tag, __ATOMIC_RELAXED);
        if (cpu->peers->count > 1) {
            atomic_thread_fence(memory_order_seq_cst);
        }
        if (cpu_frame_has_code(cpu, x->nested.pfn)) {
            __atomic_store_n(&e->tag_w, 0, __ATOMIC_RELAXED);
            __atomic_store_n(&e->info, e->info | CPU_TLBI_CODE_W, __ATOMIC_RELAXED);
        }
    }
    if (x->page_level > 1) {
        cpu_tlb_note_large(cpu, x->la);
        cpu->mmu->has_1g |= x->page_level > 2;
    }
    if (x->la >> 63 && !((x->rights & CPU_RIGHT_G) && (cpu->cr4 & X86_CR4_PGE))) {
        cpu->mmu->upper_has_local = true;
    }
    return e;
}

/* The second stage refused a piece: say so in cpu->exit, with the access for the hypervisor to emulate. */
static void exit_second_stage(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res,
                              const struct access *a, const struct piece *p)
{
    struct cpu_exit *ex = &cpu->exit;

    cpu_exit_second_stage(cpu, x, res);
    /* A read-modify-write that is at its reading has no buffer yet. */
    ex->ept.is_write = a->kind == CPU_ACCESS_WRITE && a->buf;
    if (ex->ept.is_write) {
        ex->ept.error_code |= NPF_WRITE;
    }
    if (x->final) {
        ex->ept.size = (uint8_t)(p->len > 16 ? 16 : p->len);
        if (ex->ept.is_write) {
            memcpy(ex->ept.data, a->buf + p->off, ex->ept.size);
        }
    }
}

static bool raise_noncanonical(struct cpu *cpu, const struct cpu_op *op)
{
    return cpu_raise_code(cpu, op, op->flags & CPU_OPF_STACK_SS ? X86_SS : X86_GP, 0);
}

/* The bytes that a read of la meets, or NULL: a read-modify-write of read-only memory reads it as memory. */
static const uint8_t *readable_bytes(struct cpu *cpu, uint64_t la, enum cpu_tlb_set set)
{
    struct cpu_xlate x = {.la = la, .access = CPU_ACCESS_READ, .priv = (uint8_t)set};

    return cpu_xlate(cpu, &x) == CPU_XLATE_OK ? (const uint8_t *)x.nested.host + page_offset(la) : NULL;
}

/* Find the host bytes of a piece, or that it is a device's. False: recorded. */
static bool target_find(struct access *a, struct piece *p)
{
    struct cpu *cpu = a->cpu;
    struct cpu_tlb_entry *e = &cpu->mmu->tlb[a->set][cpu_tlb_index(p->la)];
    struct cpu_xlate x = {.la = p->la, .access = (uint8_t)a->kind, .priv = (uint8_t)a->set};
    uint64_t tag = cpu_tlb_tag(cpu, p->la);
    enum cpu_xlate_result res;

    if (e->tag_r == tag && (a->kind == CPU_ACCESS_READ || e->tag_w == tag || (e->info & CPU_TLBI_CODE_W))) {
        p->host = (uint8_t *)(uintptr_t)(p->la + e->addend);
        p->pfn = e->info >> PAGE_SHIFT;
        p->has_code = e->tag_w != tag;
        return true;
    }
    cpu->counters.tlb_misses++;
    res = cpu_xlate(cpu, &x);
    if (likely(res == CPU_XLATE_OK)) {
        e = tlb_fill(cpu, &x, a->set);
        p->host = (uint8_t *)(uintptr_t)(p->la + e->addend);
        p->pfn = x.nested.pfn;
        p->has_code = (e->info & CPU_TLBI_CODE_W) != 0;
        return true;
    }
    if (res == CPU_XLATE_FAULT) {
        return cpu_raise_pf(cpu, a->op, p->la, x.error_code);
    }
    if (res == CPU_XLATE_CANONICAL) {
        return raise_noncanonical(cpu, a->op);
    }
    if (x.final && (res == CPU_XLATE_MISCONFIG ||
                    (res == CPU_XLATE_VIOLATION && a->kind == CPU_ACCESS_WRITE &&
                     cpu_is_device_write(cpu, x.gpa)))) {
        p->host = NULL;
        p->gpa = x.gpa;
        p->rom = res == CPU_XLATE_VIOLATION ? readable_bytes(cpu, p->la, a->set) : NULL;
        return true;
    }
    exit_second_stage(cpu, &x, res, a, p);
    cpu_sync_rip(cpu, a->op);
    return false;
}

/* Cut at the page end and find the targets. */
static bool targets_find(struct access *a, uint64_t la, unsigned len)
{
    unsigned first = (unsigned)(PAGE_SIZE - page_offset(la));
    bool is_long = (a->cpu->mode & CPU_MODE_64) != 0;

    a->pieces = 1;
    a->piece[0] = (struct piece){.la = la, .len = len};
    if (len > first) {
        a->piece[0].len = first;
        a->piece[1] = (struct piece){.la = la + first, .off = first, .len = len - first};
        if (!is_long) {
            a->piece[1].la = (uint32_t)a->piece[1].la;
        }
        a->pieces = 2;
    }
    for (unsigned i = 0; i < a->pieces; i++) {
        if (!target_find(a, &a->piece[i])) {
            return false;
        }
    }
    return true;
}

/* A device access of up to 8 bytes; false: recorded, or to be restarted. */
static bool device_read(struct access *a, const struct piece *p, unsigned done, unsigned n)
{
    struct cpu_xlate x = {.la = p->la + done, .gpa = p->gpa + done, .final = true};
    struct piece part = {.la = x.la, .off = p->off + done, .len = n};

    switch (cpu_replay_read(a->cpu, a->op, false, x.gpa, a->buf + part.off, n)) {
    case CPU_REPLAY_DONE:
        return true;
    case CPU_REPLAY_NEW:
        exit_second_stage(a->cpu, &x, CPU_XLATE_MISCONFIG, a, &part);
        return false;
    case CPU_REPLAY_RESTART:
        break;
    }
    return false;
}

static bool device_write(struct access *a, const struct piece *p, unsigned done, unsigned n)
{
    struct cpu_xlate x = {.la = p->la + done, .gpa = p->gpa + done, .final = true};
    struct piece part = {.la = x.la, .off = p->off + done, .len = n};

    switch (cpu_replay_write(a->cpu, a->op, false, x.gpa, a->buf + part.off, n)) {
    case CPU_REPLAY_DONE:
        return true;
    case CPU_REPLAY_NEW:
        exit_second_stage(a->cpu, &x, CPU_XLATE_MISCONFIG, a, &part);
        a->cpu->restart_alone = 0;
        return true;
    case CPU_REPLAY_RESTART:
        break;
    }
    return false;
}

/* Reads and writes of the natural sizes are one access each, as other processors must see them. */
static inline void ram_read(void *dst, const uint8_t *src, unsigned n)
{
    uint64_t v;

    switch (n) {
    case 1:
        v = cpu_guest_get8(src);
        break;
    case 2:
        v = cpu_guest_get16(src);
        break;
    case 4:
        v = cpu_guest_get32(src);
        break;
    case 8:
        v = cpu_guest_get64(src);
        break;
    default:
        cpu_guest_read(dst, src, n);
        return;
    }
    memcpy(dst, &v, n);
}

static inline void ram_write(uint8_t *dst, const void *src, unsigned n)
{
    uint64_t v = 0;

    if (n <= 8) {
        memcpy(&v, src, n);
    }
    switch (n) {
    case 1:
        cpu_guest_put8(dst, (uint8_t)v);
        break;
    case 2:
        cpu_guest_put16(dst, (uint16_t)v);
        break;
    case 4:
        cpu_guest_put32(dst, (uint32_t)v);
        break;
    case 8:
        cpu_guest_put64(dst, v);
        break;
    default:
        cpu_guest_write(dst, src, n);
    }
}

static bool pieces_read(struct access *a)
{
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        if (likely(p->host || p->rom)) {
            ram_read(a->buf + p->off, p->host ? p->host : p->rom, p->len);
            continue;
        }
        for (unsigned done = 0; done < p->len; done += 8) {
            if (!device_read(a, p, done, p->len - done > 8 ? 8 : p->len - done)) {
                return false;
            }
        }
    }
    return true;
}

/* A page that had code when its TLB entry was made: tell the blocks, or make the entry anew. */
static void code_page_written(struct access *a, const struct piece *p)
{
    struct cpu_tlb_entry *e = &a->cpu->mmu->tlb[a->set][cpu_tlb_index(p->la)];

    if (cpu_frame_has_code(a->cpu, p->pfn)) {
        cpu_code_written(a->cpu, p->pfn, (unsigned)page_offset(p->la), p->len);
    } else {
        e->tag_r = 0;
    }
}

/* Devices first: they can ask for a restart, and then RAM must not have been written. */
static bool pieces_write(struct access *a)
{
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        for (unsigned done = 0; !p->host && done < p->len; done += 8) {
            if (!device_write(a, p, done, p->len - done > 8 ? 8 : p->len - done)) {
                return false;
            }
        }
    }
    for (unsigned i = 0; i < a->pieces; i++) {
        struct piece *p = &a->piece[i];

        if (p->host) {
            ram_write(p->host, a->buf + p->off, p->len);
            if (unlikely(p->has_code)) {
                code_page_written(a, p);
            }
        }
    }
    return true;
}

/* #AC: only where cpu_mode_changed() sends every access the slow way. */
static bool is_misaligned(const struct cpu *cpu, uint64_t la, unsigned size)
{
    return cpu->tlb == cpu->mmu->tlb[CPU_TLB_NONE] && cpu->cpl == 3 && (cpu->cr0 & X86_CR0_AM) &&
           (cpu->rflags_rest & X86_AC) && size <= 16 && (size & (size - 1)) == 0 && (la & (size - 1)) != 0;
}

static bool access_do(struct access *a, uint64_t la, unsigned len)
{
    if (!targets_find(a, la, len)) {
        return false;
    }
    return a->kind == CPU_ACCESS_READ ? pieces_read(a) : pieces_write(a);
}

static bool access_now(struct access *a, uint64_t la, unsigned len)
{
    if (unlikely(is_misaligned(a->cpu, la, len))) {
        return cpu_raise_code(a->cpu, a->op, X86_VEC_AC, 0);
    }
    if (unlikely(a->cpu->mode & CPU_MODE_TF)) {
        cpu_debug_data(a->cpu, la, len, a->kind == CPU_ACCESS_WRITE);
    }
    return access_do(a, la, len);
}

static bool load_buf(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_READ, .set = set_now(cpu), .buf = buf};

    return access_now(&a, la, len);
}

static bool store_buf(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu), .buf = (uint8_t *)buf};

    return access_now(&a, la, len);
}

/*
 * The commonest reason for being here, a TLB miss within a page of RAM: fill and give the host pointer. NULL: anything
 * else; nothing is recorded, and the long way finds out again.
 */
static void *refill(struct cpu *cpu, uint64_t la, unsigned size, enum cpu_access kind)
{
    enum cpu_tlb_set set = set_now(cpu);
    struct cpu_xlate x = {.la = la, .access = (uint8_t)kind, .priv = (uint8_t)set};
    struct cpu_tlb_entry *e;

    if (page_offset(la) + size > PAGE_SIZE || cpu->tlb == cpu->mmu->tlb[CPU_TLB_NONE]) {
        return NULL;
    }
    e = &cpu->mmu->tlb[set][cpu_tlb_index(la)];
    if (e->tag_r == cpu_tlb_tag(cpu, la) && (kind == CPU_ACCESS_READ || (e->info & CPU_TLBI_CODE_W))) {
        return NULL;
    }
    if (cpu_xlate(cpu, &x) != CPU_XLATE_OK) {
        return NULL;
    }
    cpu->counters.tlb_misses++;
    e = tlb_fill(cpu, &x, set);
    if (kind == CPU_ACCESS_WRITE && unlikely(e->info & CPU_TLBI_CODE_W)) {
        return NULL;
    }
    return cpu_not_null(la + e->addend);
}

static uint64_t get_sized(const void *p, unsigned size)
{
    uint64_t v = 0;

    ram_read(&v, p, size);
    return v;
}

/* Slow halves of the sized accesses; see access.h. */
struct cpu_word cpu_load_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size)
{
    const void *p = refill(cpu, la, size, CPU_ACCESS_READ);
    struct cpu_word w = {0, 0};

    if (likely(p)) {
        return (struct cpu_word){get_sized(p, size), 1};
    }
    w.ok = load_buf(cpu, op, la, &w.v, size);
    return w;
}

struct cpu_word cpu_load_rw_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu)};
    struct cpu_word w = {0, 0};

    if (unlikely(is_misaligned(cpu, la, size))) {
        w.ok = cpu_raise_code(cpu, op, X86_VEC_AC, 0);
        return w;
    }
    if (targets_find(&a, la, size)) {
        a.kind = CPU_ACCESS_READ;
        a.buf = (uint8_t *)&w.v;
        w.ok = pieces_read(&a);
    }
    return w;
}

bool cpu_store_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint64_t v, unsigned size)
{
    void *p = refill(cpu, la, size, CPU_ACCESS_WRITE);

    if (likely(p)) {
        ram_write(p, &v, size);
        return true;
    }
    return store_buf(cpu, op, la, &v, size);
}

bool cpu_load128_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la)
{
    return load_buf(cpu, op, la, &cpu->scratch, 16);
}

bool cpu_store128_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la)
{
    return store_buf(cpu, op, la, &cpu->scratch, 16);
}

bool cpu_load_bytes(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf, unsigned len)
{
    return load_buf(cpu, op, la, buf, len);
}

bool cpu_store_bytes(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len)
{
    return store_buf(cpu, op, la, buf, len);
}

bool cpu_sys_load(struct cpu *cpu, const struct cpu_op *op, uint64_t la, void *buf, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_READ, .set = set_implicit(cpu), .buf = buf};

    return access_do(&a, la, len);
}

bool cpu_sys_store(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_implicit(cpu), .buf = (uint8_t *)buf};

    return access_do(&a, la, len);
}

bool cpu_probe_write(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu)};

    return targets_find(&a, la, len);
}

/* Lines of 64 bytes that a range of a page touches, as a mask. */
static uint64_t lines_of(unsigned off, unsigned len)
{
    unsigned first = off / 64, last = (off + len - 1) / 64;
    uint64_t upto = last == 63 ? ~UINT64_C(0) : (UINT64_C(1) << (last + 1)) - 1;

    return upto & ~((UINT64_C(1) << first) - 1);
}

bool cpu_host_ptr(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned len, bool write, void **p)
{
    struct access a = {.cpu = cpu, .op = op, .kind = write ? CPU_ACCESS_WRITE : CPU_ACCESS_READ, .set = set_now(cpu)};
    struct piece *piece = &a.piece[0];

    *p = NULL;
    if (unlikely(cpu->tlb == cpu->mmu->tlb[CPU_TLB_NONE]) || len > PAGE_SIZE - page_offset(la)) {
        return true;
    }
    if (!targets_find(&a, la, len)) {
        return false;
    }
    if (write && piece->host && piece->has_code &&
        (atomic_load(&cpu->peers->code_lines[piece->pfn]) & lines_of((unsigned)page_offset(la), len))) {
        return true;
    }
    *p = piece->host;
    return true;
}

/* See access.h. A page crossing or a device is done under the peers' lock: correct among such accesses, which
 * is all that a split lock on a device or two pages can count on here. */
bool cpu_locked_begin(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size, struct cpu_locked *l)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu)};

    *l = (struct cpu_locked){.la = la, .size = size};
    if (unlikely(is_misaligned(cpu, la, size))) {
        return cpu_raise_code(cpu, op, X86_VEC_AC, 0);
    }
    if (!targets_find(&a, la, size)) {
        return false;
    }
    if (likely(a.pieces == 1 && a.piece[0].host)) {
        l->host = a.piece[0].host;
        l->pfn = a.piece[0].pfn;
        l->has_code = a.piece[0].has_code;
        return true;
    }
    a.kind = CPU_ACCESS_READ;
    a.buf = l->old.u8;
    pthread_mutex_lock(&cpu->peers->split_lock);
    if (!pieces_read(&a)) {
        pthread_mutex_unlock(&cpu->peers->split_lock);
        return false;
    }
    return true;
}

bool cpu_locked_put(struct cpu *cpu, const struct cpu_op *op, struct cpu_locked *l, const void *v)
{
    return store_buf(cpu, op, l->la, v, l->size);
}

void cpu_locked_end(struct cpu *cpu, struct cpu_locked *l)
{
    if (!l->host) {
        pthread_mutex_unlock(&cpu->peers->split_lock);
    } else if (l->has_code) {
        cpu_code_written(cpu, l->pfn, (unsigned)page_offset(l->la), l->size);
    }
}
