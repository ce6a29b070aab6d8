/*
 * The block cache of one processor: find, verify, kill; see block.h for the idea and its invariants.
 *
 * Memory is one arena that only grows; when it is full the run loop empties it. So a dead block can still be
 * looked at through a pointer that an old jump holds.
 *
 *   code page (pfn) --- blocks of the page, to kill those that a store hits
 *   hash of (pfn, offset, mode) --- the block
 *
 * Locks: the processor's own thread; peers->code_lines is shared and atomic.
 */
#include "cpu/block.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "cpu/access.h"
#include "cpu/chain.h"
#include "cpu/peers.h"
#include "cpu/request.h"

#define ARENA_BYTES     (UINT64_C(96) << 20)
#define ARENA_RESERVE   (UINT64_C(1) << 16)
#define HASH_BITS       17
#define PAGE_HASH_BITS  12
#define IDLE_HITS_MAX   64u   /* stores to marked lines that met no block: the marks are old */
#define QUIET_HITS_MAX  4096u /* stores beside the marked lines: perhaps no code any more */

/* A frame that holds decoded code of this processor. */
struct cpu_code_page {
    uint64_t pfn;
    struct cpu_code_page *next;
    struct cpu_block *blocks;
    uint32_t idle_hits, quiet_hits;
};

struct cpu_block_cache {
    unsigned char *arena;
    uint64_t used;
    struct cpu_block *hash[1u << HASH_BITS];
    struct cpu_code_page *pages[1u << PAGE_HASH_BITS];
};

const struct cpu_block cpu_block_dead = {.va_pc = 1};

struct cpu_block_cache *cpu_block_cache_new(void)
{
    struct cpu_block_cache *bc = calloc(1, sizeof(*bc));

    if (!bc) {
        return NULL;
    }
    bc->arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (bc->arena == MAP_FAILED) {
        free(bc);
        return NULL;
    }
    return bc;
}

void cpu_block_cache_free(struct cpu_block_cache *bc)
{
    if (bc) {
        munmap(bc->arena, ARENA_BYTES);
        free(bc);
    }
}

/* See block.h. Blocks begin at multiples of 64 in the arena, their operations right behind the header. In signal
 * handlers, too. */
bool cpu_block_owns(const struct cpu *cpu, const struct cpu_op *op)
{
    uintptr_t at = (uintptr_t)op - (uintptr_t)cpu->blocks->arena;

    return at < cpu->blocks->used && at >= sizeof(struct cpu_block) &&
           (at - sizeof(struct cpu_block)) % sizeof(struct cpu_op) == 0 && op->pgoff < PAGE_SIZE &&
           op->len >= 1 && op->len <= 15 && op->nth != 0;
}

void cpu_block_flush(struct cpu *cpu)
{
    struct cpu_block_cache *bc = cpu->blocks;

    bc->used = 0;
    memset(bc->hash, 0, sizeof(bc->hash));
    memset(bc->pages, 0, sizeof(bc->pages));
    for (unsigned i = 0; i < 1u << CPU_JUMP_CACHE_BITS; i++) {
        cpu->jump_cache_own[i] = (struct cpu_block *)&cpu_block_dead;
        cpu->jump_cache_none[i] = (struct cpu_block *)&cpu_block_dead;
    }
}

bool cpu_block_is_full(const struct cpu *cpu)
{
    return cpu->blocks->used + ARENA_RESERVE > ARENA_BYTES;
}

static void *arena_take(struct cpu_block_cache *bc, uint64_t size)
{
    void *p = bc->arena + bc->used;

    if (bc->used + size > ARENA_BYTES) {
        return NULL;
    }
    bc->used += (size + 63) & ~UINT64_C(63);
    return p;
}

struct cpu_block *cpu_block_alloc(struct cpu *cpu, unsigned nops, unsigned nbytes)
{
    uint64_t ops = sizeof(struct cpu_block) + nops * sizeof(struct cpu_op);
    struct cpu_block *b = arena_take(cpu->blocks, ops + nbytes);

    if (b) {
        memset(b, 0, sizeof(*b));
        b->bytes = (uint8_t *)b + ops;
        b->nops = (uint16_t)nops;
        b->len = (uint16_t)nbytes;
    }
    return b;
}

static struct cpu_block **hash_slot(struct cpu_block_cache *bc, uint64_t pfn, unsigned pgoff, uint32_t mode)
{
    uint64_t h = (pfn << PAGE_SHIFT | pgoff) * UINT64_C(0x9e3779b97f4a7c15) + mode * UINT64_C(0x85ebca6b);

    return &bc->hash[h >> (64 - HASH_BITS)];
}

static struct cpu_code_page **page_slot(struct cpu_block_cache *bc, uint64_t pfn)
{
    return &bc->pages[pfn * UINT64_C(0x9e3779b97f4a7c15) >> (64 - PAGE_HASH_BITS)];
}

static struct cpu_code_page *page_find(struct cpu_block_cache *bc, uint64_t pfn)
{
    struct cpu_code_page *page = *page_slot(bc, pfn);

    while (page && page->pfn != pfn) {
        page = page->next;
    }
    return page;
}

static struct cpu_code_page *page_get(struct cpu_block_cache *bc, uint64_t pfn)
{
    struct cpu_code_page *page = page_find(bc, pfn), **slot = page_slot(bc, pfn);

    if (!page) {
        page = arena_take(bc, sizeof(*page));
        if (page) {
            *page = (struct cpu_code_page){.pfn = pfn, .next = *slot};
            *slot = page;
        }
    }
    return page;
}

/* Lines of 64 bytes that a range of a page touches, as a mask. len: at least 1. */
static uint64_t lines_of(unsigned off, unsigned len)
{
    unsigned first = off / 64, last = (off + len - 1) / 64;
    uint64_t upto = last == 63 ? ~UINT64_C(0) : (UINT64_C(1) << (last + 1)) - 1;

    return upto & ~((UINT64_C(1) << first) - 1);
}

bool cpu_frame_has_code(const struct cpu *cpu, uint64_t pfn)
{
    return atomic_load_explicit(&cpu->peers->code_lines[pfn], memory_order_relaxed) != 0;
}

/* Mark lines as code: full barrier, then nobody may store there without looking (invariant 3). */
static void lines_mark(struct cpu *cpu, uint64_t pfn, unsigned off, unsigned len)
{
    _Atomic uint64_t *lines = &cpu->peers->code_lines[pfn];
    uint64_t want = lines_of(off, len);

    if (len == 0 || (atomic_load_explicit(lines, memory_order_relaxed) & want) == want) {
        return;
    }
    if (atomic_fetch_or(lines, want) == 0) {
        cpu_peers_drop_write(cpu, pfn);
    }
}

static void block_mark(struct cpu *cpu, const struct cpu_block *b)
{
    lines_mark(cpu, b->pfn[0], b->pgoff, b->len - b->straddles);
    if (b->straddles) {
        lines_mark(cpu, b->pfn[1], 0, b->straddles);
    }
}

static bool bytes_equal(const struct cpu_block *b, const uint8_t *page0, const uint8_t *page1)
{
    unsigned first = b->len - b->straddles;

    return cpu_guest_equal(b->bytes, page0 + b->pgoff, first) &&
           (!b->straddles || cpu_guest_equal(b->bytes + first, page1, b->straddles));
}

static void list_remove(struct cpu_block **head, struct cpu_block *b, size_t link)
{
    while (*head && *head != b) {
        head = (struct cpu_block **)(void *)((unsigned char *)*head + link);
    }
    if (*head) {
        *head = *(struct cpu_block **)(void *)((unsigned char *)b + link);
    }
}

/*
 * A code page's list holds a block by page_next[0] if it begins there, by page_next[1] if it only ends
 * there; the two kinds are in one list, told apart by pfn[0].
 */
static struct cpu_block **page_link(struct cpu_block *b, uint64_t pfn)
{
    return &b->page_next[b->pfn[0] == pfn ? 0 : 1];
}

static void page_list_remove(struct cpu_code_page *page, struct cpu_block *b)
{
    struct cpu_block **at = &page->blocks;

    while (*at && *at != b) {
        at = page_link(*at, page->pfn);
    }
    if (*at) {
        *at = *page_link(b, page->pfn);
    }
}

/* Never enter it again; if it is running now, its next instruction returns to the run loop. */
static void block_kill(struct cpu *cpu, struct cpu_block *b)
{
    struct cpu_block_cache *bc = cpu->blocks;

    b->epoch = 0;
    for (unsigned i = 0; i < b->nops; i++) {
        if (b->ops[i].flags & CPU_OPF_FIRST) {
            b->ops[i].fn = cpu_op_stale;
        }
    }
    list_remove(hash_slot(bc, b->pfn[0], b->pgoff, b->mode), b, offsetof(struct cpu_block, hash_next));
    for (unsigned i = 0; i < (b->straddles && b->pfn[1] != b->pfn[0] ? 2u : 1u); i++) {
        struct cpu_code_page *page = page_find(bc, b->pfn[i]);

        if (page) {
            page_list_remove(page, b);
        }
    }
    cpu->counters.blocks_stale++;
}

static bool block_overlaps(const struct cpu_block *b, uint64_t pfn, unsigned off, unsigned len)
{
    unsigned first = b->len - b->straddles;

    if (b->pfn[0] == pfn && off < b->pgoff + first && b->pgoff < off + len) {
        return true;
    }
    return b->straddles && b->pfn[1] == pfn && off < b->straddles;
}

/* The marks of a page seem to be old: take them away. Who still has code there marks it anew when it verifies
 * its blocks, which the new epochs make everybody do. */
static void page_unmark(struct cpu *cpu, uint64_t pfn)
{
    atomic_store(&cpu->peers->code_lines[pfn], 0);
    cpu_epoch_change(cpu);
    cpu_peers_code_changed(cpu);
}

static void page_count_hit(struct cpu *cpu, struct cpu_code_page *page, uint64_t pfn, bool idle)
{
    uint32_t *hits;

    page = page ? page : page_get(cpu->blocks, pfn);
    if (!page) {
        return;
    }
    hits = idle ? &page->idle_hits : &page->quiet_hits;
    if (++*hits >= (idle ? IDLE_HITS_MAX : QUIET_HITS_MAX)) {
        *hits = 0;
        page_unmark(cpu, pfn);
    }
}

void cpu_code_written(struct cpu *cpu, uint64_t pfn, unsigned off, unsigned len)
{
    struct cpu_code_page *page = page_find(cpu->blocks, pfn);
    struct cpu_block *b, *next;
    bool met = false;

    cpu->counters.smc_writes++;
    atomic_thread_fence(memory_order_seq_cst);
    if (!(atomic_load_explicit(&cpu->peers->code_lines[pfn], memory_order_relaxed) & lines_of(off, len))) {
        page_count_hit(cpu, page, pfn, false);
        return;
    }
    for (b = page ? page->blocks : NULL; b; b = next) {
        next = *page_link(b, pfn);
        if (block_overlaps(b, pfn, off, len)) {
            block_kill(cpu, b);
            met = true;
        }
    }
    cpu_peers_code_changed(cpu);
    if (!met) {
        page_count_hit(cpu, page, pfn, true);
    }
}

static struct cpu_block *hash_find(struct cpu_block_cache *bc, uint64_t pfn, unsigned pgoff, uint32_t mode)
{
    struct cpu_block *b = *hash_slot(bc, pfn, pgoff, mode);

    while (b && (b->pfn[0] != pfn || b->pgoff != pgoff || b->mode != mode)) {
        b = b->hash_next;
    }
    return b;
}

/* A lookup in flight. */
struct lookup {
    uint64_t la;
    uint32_t mode;
    const uint8_t *page[2]; /* host pointers */
    uint64_t pfn[2];
    bool has_second;
};

/* The page behind, for an instruction that straddles. */
static bool second_page(struct cpu *cpu, struct lookup *l)
{
    uint64_t la = (l->la & PAGE_MASK) + PAGE_SIZE;

    if (!l->has_second) {
        l->has_second = cpu_fetch_page(cpu, cpu->mode & CPU_MODE_64 ? la : (uint32_t)la, &l->page[1], &l->pfn[1]);
    }
    return l->has_second;
}

static bool block_insert(struct cpu *cpu, struct cpu_block *b)
{
    struct cpu_block **slot = hash_slot(cpu->blocks, b->pfn[0], b->pgoff, b->mode);

    for (unsigned i = 0; i < (b->straddles && b->pfn[1] != b->pfn[0] ? 2u : 1u); i++) {
        struct cpu_code_page *page = page_get(cpu->blocks, b->pfn[i]);

        if (!page) {
            return false;
        }
        *page_link(b, b->pfn[i]) = page->blocks;
        page->blocks = b;
        page->quiet_hits = 0;
    }
    b->hash_next = *slot;
    *slot = b;
    return true;
}

/* Decode at l; again if the bytes changed before the lines were marked. */
static struct cpu_block *block_make(struct cpu *cpu, struct lookup *l)
{
    unsigned pgoff = (unsigned)page_offset(l->la), room = (unsigned)PAGE_SIZE - pgoff;
    uint8_t code[CPU_BLOCK_MAX_INSNS * 15 + 16];
    struct cpu_block *b;

    do {
        unsigned n = room < sizeof(code) ? room : (unsigned)sizeof(code), extra = 0;

        cpu_guest_read(code, l->page[0] + pgoff, n);
        if (n < 15 && !cpu_decode_fits(code, n, l->mode)) {
            if (!second_page(cpu, l)) {
                return NULL;
            }
            extra = 15;
            cpu_guest_read(code + n, l->page[1], extra);
        }
        b = cpu_block_decode(cpu, code, n + extra, pgoff, l->mode);
        if (!b) {
            return NULL;
        }
        b->straddles = b->len > room ? (uint16_t)(b->len - room) : 0;
        b->pfn[0] = l->pfn[0];
        b->pfn[1] = b->straddles ? l->pfn[1] : 0;
        block_mark(cpu, b);
    } while (!bytes_equal(b, l->page[0], l->page[1]));
    return block_insert(cpu, b) ? b : NULL;
}

/* Is the block what memory says now? Kills it if not. */
static bool block_verify(struct cpu *cpu, struct lookup *l, struct cpu_block *b)
{
    cpu->counters.blocks_verified++;
    block_mark(cpu, b);
    if (bytes_equal(b, l->page[0], l->page[1])) {
        return true;
    }
    block_kill(cpu, b);
    return false;
}

/*
 * The block that was last found at la, if under today's key: its translation is still true then, as every change of a
 * mapping changes the key, and only its bytes are in doubt. NULL: none, or no longer what memory says.
 */
static struct cpu_block *block_renew(struct cpu *cpu, uint64_t la, uint32_t epoch)
{
    struct cpu_block *b = cpu->jump_cache[cpu_jump_hash(la)];

    if (b->va_pc != la || b->va_key != cpu->code_key[la >> 63] || b->epoch == 0 || b->straddles) {
        return NULL;
    }
    cpu->counters.blocks_verified++;
    block_mark(cpu, b);
    if (unlikely(!cpu_guest_equal(b->bytes, b->host + b->pgoff, b->len))) {
        block_kill(cpu, b);
        return NULL;
    }
    b->epoch = epoch;
    return b;
}

/* See block.h. The epoch is read before the bytes, so a write that is announced later is not lost. */
struct cpu_block *cpu_block_find(struct cpu *cpu, uint64_t la, uint32_t mode)
{
    uint32_t epoch = atomic_load_explicit(&cpu->inbox.epoch, memory_order_acquire);
    struct lookup l = {.la = la, .mode = mode};
    struct cpu_block *b = block_renew(cpu, la, epoch);

    if (b) {
        return b;
    }
    if (!cpu_fetch_page(cpu, la, &l.page[0], &l.pfn[0])) {
        return NULL;
    }
    b = hash_find(cpu->blocks, l.pfn[0], (unsigned)page_offset(la), mode);
    if (b && b->straddles) {
        if (!second_page(cpu, &l)) {
            return NULL;
        }
        if (b->pfn[1] != l.pfn[1]) {
            block_kill(cpu, b);
            b = NULL;
        }
    }
    if (b && b->epoch != epoch && !block_verify(cpu, &l, b)) {
        b = NULL;
    }
    if (!b) {
        b = block_make(cpu, &l);
        if (!b) {
            return NULL;
        }
    }
    b->epoch = epoch;
    b->host = l.page[0];
    b->va_pc = la;
    b->va_key = cpu->code_key[la >> 63];
    if (!cpu->alone) {
        cpu->jump_cache[cpu_jump_hash(la)] = b;
    }
    return b;
}
