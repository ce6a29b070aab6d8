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
#include "cpu/access_impl.h"

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/block.h"
#include "cpu/exception.h"
#include "cpu/peers.h"
#include "cpu/shadow.h"
#include "cpu/system.h"

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
    struct cpu_tlb_entry *e = cpu_tlb_entry_of(cpu, set, x->la);
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

/* See access_impl.h. */
void cpu_access_refused(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res, const struct access *a,
                        const struct piece *p)
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
    struct cpu_tlb_entry *e = cpu_tlb_entry_of(cpu, a->set, p->la);
    struct cpu_xlate x = {.la = p->la, .access = (uint8_t)a->kind, .priv = (uint8_t)a->set};
    uint64_t tag = cpu_tlb_tag(cpu, p->la);
    enum cpu_xlate_result res;
    bool fast = __atomic_load_n(&e->tag_w, __ATOMIC_RELAXED) == tag;

    if (e->tag_r == tag && (a->kind == CPU_ACCESS_READ || fast || (e->info & CPU_TLBI_CODE_W))) {
        p->host = (uint8_t *)(uintptr_t)(p->la + e->addend);
        p->pfn = e->info >> PAGE_SHIFT;
        p->has_code = !fast;
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
    if (res == CPU_XLATE_CANONICAL) {
        return raise_noncanonical(cpu, a->op);
    }
    if (unlikely(cpu->shadow.on)) {
        return cpu_piece_shadow(a, p, &x, res);
    }
    if (res == CPU_XLATE_FAULT) {
        return cpu_raise_pf(cpu, a->op, p->la, x.error_code);
    }
    if (x.final && (res == CPU_XLATE_MISCONFIG ||
                    (res == CPU_XLATE_VIOLATION && a->kind == CPU_ACCESS_WRITE &&
                     cpu_is_device_write(cpu, x.gpa)))) {
        p->host = NULL;
        p->gpa = x.gpa;
        p->rom = res == CPU_XLATE_VIOLATION ? readable_bytes(cpu, p->la, a->set) : NULL;
        return true;
    }
    cpu_access_refused(cpu, &x, res, a, p);
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
    return a->kind == CPU_ACCESS_READ ? cpu_pieces_read(a) : cpu_pieces_write(a);
}

static bool access_checked(struct access *a, uint64_t la, unsigned len)
{
    if (unlikely(is_misaligned(a->cpu, la, len))) {
        return cpu_raise_code(a->cpu, a->op, X86_VEC_AC, 0);
    }
    if (unlikely(a->cpu->mode & CPU_MODE_TF)) {
        cpu_debug_data(a->cpu, la, len, a->kind == CPU_ACCESS_WRITE);
    }
    return access_do(a, la, len);
}

static bool access_now(struct access *a, uint64_t la, unsigned len)
{
    const struct cpu_op *was = cpu_at_begin(a->cpu, a->op);
    bool ok = access_checked(a, la, len);

    cpu_at_end(a->cpu, was);
    return ok;
}

/* The same as a system access: no alignment checks, no data breakpoints. */
static bool access_system(struct access *a, uint64_t la, unsigned len)
{
    const struct cpu_op *was = cpu_at_begin(a->cpu, a->op);
    bool ok = access_do(a, la, len);

    cpu_at_end(a->cpu, was);
    return ok;
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
    e = cpu_tlb_entry_of(cpu, set, la);
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

/* Slow halves of the sized accesses; see access.h. */
struct cpu_word cpu_load_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size)
{
    const struct cpu_op *was = cpu_at_begin(cpu, op);
    const void *p = refill(cpu, la, size, CPU_ACCESS_READ);
    struct cpu_word w = {0, 1};

    if (likely(p)) {
        w.v = cpu_guest_get_sized(p, size);
    } else {
        w.ok = load_buf(cpu, op, la, &w.v, size);
    }
    cpu_at_end(cpu, was);
    return w;
}

struct cpu_word cpu_load_rw_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned size)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu)};
    const struct cpu_op *was;
    struct cpu_word w = {0, 0};

    if (unlikely(is_misaligned(cpu, la, size))) {
        w.ok = cpu_raise_code(cpu, op, X86_VEC_AC, 0);
        return w;
    }
    was = cpu_at_begin(cpu, op);
    if (targets_find(&a, la, size)) {
        a.kind = CPU_ACCESS_READ;
        a.buf = (uint8_t *)&w.v;
        w.ok = cpu_pieces_read(&a);
    }
    cpu_at_end(cpu, was);
    return w;
}

bool cpu_store_slow(struct cpu *cpu, const struct cpu_op *op, uint64_t la, uint64_t v, unsigned size)
{
    const struct cpu_op *was = cpu_at_begin(cpu, op);
    void *p = refill(cpu, la, size, CPU_ACCESS_WRITE);
    bool ok = true;

    if (likely(p)) {
        cpu_guest_put_sized(p, size, v);
    } else {
        ok = store_buf(cpu, op, la, &v, size);
    }
    cpu_at_end(cpu, was);
    return ok;
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

    return access_system(&a, la, len);
}

bool cpu_sys_store(struct cpu *cpu, const struct cpu_op *op, uint64_t la, const void *buf, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_implicit(cpu), .buf = (uint8_t *)buf};

    return access_system(&a, la, len);
}

/* Write what is there: the host refuses now what it would refuse later (guard.h). */
static void pieces_touch(const struct access *a)
{
    for (unsigned i = 0; i < a->pieces; i++) {
        if (a->piece[i].host) {
            __atomic_fetch_or(a->piece[i].host, 0, __ATOMIC_RELAXED);
        }
    }
}

bool cpu_probe_write(struct cpu *cpu, const struct cpu_op *op, uint64_t la, unsigned len)
{
    struct access a = {.cpu = cpu, .op = op, .kind = CPU_ACCESS_WRITE, .set = set_now(cpu)};
    const struct cpu_op *was = cpu_at_begin(cpu, op);
    bool ok = targets_find(&a, la, len);

    if (ok) {
        pieces_touch(&a);
    }
    cpu_at_end(cpu, was);
    return ok;
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
    const struct cpu_op *was;
    bool ok;

    *p = NULL;
    if (unlikely(cpu->tlb == cpu->mmu->tlb[CPU_TLB_NONE]) || len > PAGE_SIZE - page_offset(la)) {
        return true;
    }
    was = cpu_at_begin(cpu, op);
    ok = targets_find(&a, la, len);
    cpu_at_end(cpu, was);
    if (!ok) {
        return false;
    }
    if (piece->granted) {
        return true;
    }
    if (write && piece->host && piece->has_code &&
        (atomic_load(&cpu->peers->code_lines[piece->pfn]) & lines_of((unsigned)page_offset(la), len))) {
        return true;
    }
    *p = piece->host;
    return true;
}

static void split_unlock(struct cpu *cpu)
{
    cpu->holds_split_lock = 0;
    pthread_mutex_unlock(&cpu->peers->split_lock);
}

/* See access.h; the caller has said for whom (guard.h). A page crossing or a device is done under the peers'
 * lock: correct among such accesses, which is all that a split lock on a device or two pages can count on here. */
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
    if (unlikely(a.piece[0].granted || (a.pieces > 1 && a.piece[1].granted)) && !cpu_shadow_may_write(cpu, op)) {
        return false;
    }
    if (likely(a.pieces == 1 && a.piece[0].host)) {
        l->granted = a.piece[0].granted;
        l->gpa = a.piece[0].gpa;
        l->host = a.piece[0].host;
        l->pfn = a.piece[0].pfn;
        l->has_code = a.piece[0].has_code;
        return true;
    }
    a.kind = CPU_ACCESS_READ;
    a.buf = l->old.u8;
    pieces_touch(&a);
    pthread_mutex_lock(&cpu->peers->split_lock);
    cpu->holds_split_lock = 1;
    if (!cpu_pieces_read(&a)) {
        split_unlock(cpu);
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
        split_unlock(cpu);
    } else if (l->has_code) {
        cpu_code_written(cpu, l->pfn, (unsigned)page_offset(l->la), l->size);
    }
    if (unlikely(l->granted)) {
        cpu_shadow_wrote(cpu, l->gpa, l->size);
    }
}
