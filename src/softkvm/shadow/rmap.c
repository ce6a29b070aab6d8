/*
 * Reverse maps: from a guest frame to the entries that map it, and from a shadow page to the entries that name it.
 *
 *   head.v = 0              nobody
 *          = entry          one, inline
 *          = block | 1      a chain of blocks of 14; only the first has room
 *
 * Heads of frames lie in chunks of 2 MiB (struct kvm_rmap_chunk), found by a hash: guest memory that was never
 * mapped has none.
 *
 * Invariant: blocks after the first are full; no block is empty.
 * Locks: mmu.lock exclusive. Nothing is allocated here: blocks and chunks come from the vCPU's reserve.
 */
#include <stdlib.h>

#include "softkvm/shadow/shadow.h"

static struct kvm_rmap_block *block_of(const struct kvm_rmap *r)
{
    return r->v & 1 ? (struct kvm_rmap_block *)(r->v & ~(uintptr_t)1) : NULL;
}

bool kvm_rmap_is_empty(const struct kvm_rmap *r)
{
    return r->v == 0;
}

static struct kvm_rmap_block *block_take(struct kvm_shadow_cache *c)
{
    struct kvm_rmap_block *b;

    check(c && c->nr_blocks > 0);
    b = c->blocks[--c->nr_blocks];
    b->more = NULL;
    b->count = 0;
    return b;
}

/*
 * Put an entry on a chain. c: the reserve, needed when the chain holds one or a multiple of 14.
 * Lock: exclusive. Source: KVM's pte_list_add().
 */
void kvm_rmap_add(struct kvm_shadow_cache *c, struct kvm_rmap *r, uint64_t *spte)
{
    struct kvm_rmap_block *b = block_of(r);

    if (!r->v) {
        r->v = (uintptr_t)spte;
        return;
    }
    if (!b) {
        b = block_take(c);
        b->spte[b->count++] = (uint64_t *)r->v;
        r->v = (uintptr_t)b | 1;
    } else if (b->count == KVM_RMAP_BLOCK) {
        struct kvm_rmap_block *fresh = block_take(c);

        fresh->more = b;
        b = fresh;
        r->v = (uintptr_t)b | 1;
    }
    b->spte[b->count++] = spte;
}

/* Fill the hole at *at from the first block, which may then go. */
static void fill_hole(struct kvm_rmap *r, uint64_t **at)
{
    struct kvm_rmap_block *first = block_of(r);

    *at = first->spte[--first->count];
    if (first->count == 0) {
        r->v = first->more ? (uintptr_t)first->more | 1 : 0;
        free(first);
    } else if (first->count == 1 && !first->more) {
        r->v = (uintptr_t)first->spte[0];
        free(first);
    }
}

/*
 * Take an entry off. False: it was not there. Lock: exclusive. Source: KVM's pte_list_remove().
 */
bool kvm_rmap_remove(struct kvm_rmap *r, const uint64_t *spte)
{
    if (r->v == (uintptr_t)spte) {
        r->v = 0;
        return true;
    }
    for (struct kvm_rmap_block *b = block_of(r); b; b = b->more) {
        for (unsigned i = 0; i < b->count; i++) {
            if (b->spte[i] == spte) {
                fill_hole(r, &b->spte[i]);
                return true;
            }
        }
    }
    return false;
}

uint64_t *kvm_rmap_first(const struct kvm_rmap *r)
{
    const struct kvm_rmap_block *b = block_of(r);

    return b ? b->spte[0] : (uint64_t *)r->v;
}

uint64_t *kvm_rmap_next(const struct kvm_rmap *r, struct kvm_rmap_pos *pos)
{
    if (!pos->started) {
        pos->started = true;
        pos->block = block_of(r);
        if (!pos->block) {
            return (uint64_t *)r->v;
        }
    }
    if (pos->block && pos->i == pos->block->count) {
        pos->block = pos->block->more;
        pos->i = 0;
    }
    return pos->block ? pos->block->spte[pos->i++] : NULL;
}

/* ---- by frame ---- */

static unsigned bucket_of(uint64_t region)
{
    return (unsigned)(region ^ region >> KVM_RMAP_HASH_BITS) & ((1u << KVM_RMAP_HASH_BITS) - 1);
}

struct kvm_rmap_chunk *kvm_rmap_chunk(const struct kvm_shadow *sh, uint64_t region)
{
    struct kvm_rmap_chunk *c = sh->chunks[bucket_of(region)];

    while (c && c->region != region) {
        c = c->next;
    }
    return c;
}

struct kvm_rmap_chunk *kvm_rmap_chunk_make(struct kvm_shadow *sh, struct kvm_shadow_cache *cache, uint64_t region)
{
    struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, region);

    if (!c) {
        check(cache && cache->nr_chunks > 0);
        c = cache->chunks[--cache->nr_chunks];
        c->region = region;
        c->next = sh->chunks[bucket_of(region)];
        sh->chunks[bucket_of(region)] = c;
    }
    return c;
}

/* The reverse map of the leaves of `level` (1 or 2) that map f; null: none has ever been there. */
struct kvm_rmap *kvm_rmap_of(const struct kvm_shadow *sh, gfn_t f, unsigned level)
{
    struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, f.v >> PT_LEVEL_BITS);

    if (!c) {
        return NULL;
    }
    return level == 1 ? &c->small[f.v & (PT_ENTRIES - 1)] : &c->large;
}

static void chunk_range(struct kvm_shadow *sh, struct kvm_rmap_chunk *c, gfn_t first, gfn_t last, kvm_rmap_fn *fn,
                        void *opaque)
{
    uint64_t base = c->region << PT_LEVEL_BITS;
    unsigned lo = first.v > base ? (unsigned)(first.v - base) : 0;
    unsigned hi = last.v < base + PT_ENTRIES ? (unsigned)(last.v - base) : PT_ENTRIES - 1;

    if (!kvm_rmap_is_empty(&c->large)) {
        fn(sh, &c->large, gfn(base), 2, opaque);
    }
    for (unsigned i = lo; i <= hi; i++) {
        if (!kvm_rmap_is_empty(&c->small[i])) {
            fn(sh, &c->small[i], gfn(base + i), 1, opaque);
        }
    }
}

/*
 * Call fn for the reverse maps of [first, last]: by frame number where the range is short, else over all chunks, in no
 * order. Lock: exclusive.
 */
void kvm_rmap_for_range(struct kvm_shadow *sh, gfn_t first, gfn_t last, kvm_rmap_fn *fn, void *opaque)
{
    uint64_t lo = first.v >> PT_LEVEL_BITS, hi = last.v >> PT_LEVEL_BITS;

    if (hi - lo < (1u << KVM_RMAP_HASH_BITS)) {
        for (uint64_t region = lo; region <= hi; region++) {
            struct kvm_rmap_chunk *c = kvm_rmap_chunk(sh, region);

            if (c) {
                chunk_range(sh, c, first, last, fn, opaque);
            }
        }
        return;
    }
    for (unsigned i = 0; i < 1u << KVM_RMAP_HASH_BITS; i++) {
        for (struct kvm_rmap_chunk *c = sh->chunks[i]; c; c = c->next) {
            if (c->region >= lo && c->region <= hi) {
                chunk_range(sh, c, first, last, fn, opaque);
            }
        }
    }
}

/* The end of the MMU: chunks go; their chains are empty. */
void kvm_rmap_free_all(struct kvm_shadow *sh)
{
    for (unsigned i = 0; i < 1u << KVM_RMAP_HASH_BITS; i++) {
        while (sh->chunks[i]) {
            struct kvm_rmap_chunk *c = sh->chunks[i];

            sh->chunks[i] = c->next;
            free(c);
        }
    }
}
