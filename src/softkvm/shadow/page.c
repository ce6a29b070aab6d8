/*
 * Shadow pages: found by (guest frame, role), made, taken out of use, recycled.
 *
 *   get: hash -> same role? -> up to date? -> found
 *                  \-> none: from the reserve; the guest's table is write-protected, processors flushed
 *   zap: entries go -> parents' entries go -> out of the hash -> dead list, or invalid while it is a root
 *   commit: processors flush, then dead pages are freed
 *
 * Invariants: shadow.h, 1 and 6. Locks: mmu.lock exclusive, but the reserve's filling.
 * Differs from KVM: unsync children of a zapped page stay in the hash; who gets one brings it up to date first.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/buddy.h"
#include "softkvm/shadow/shadow.h"

#define LIMIT_PER_MILLE 20
#define LIMIT_MIN       64

/* ---- the reserve ---- */

void kvm_shadow_page_free(struct kvm_vm *vm, struct kvm_shadow_page *sp)
{
    if (sp->table.v) {
        host_table_free(vm->s->hm, sp->table);
    }
    free(sp->gfns);
    free(sp);
}

static struct kvm_shadow_page *page_new(struct kvm_vm *vm)
{
    struct kvm_shadow_page *sp = kvm_alloc(vm->s, sizeof(*sp));

    if (!sp) {
        return NULL;
    }
    sp->gfns = kvm_alloc(vm->s, PT_ENTRIES * sizeof(*sp->gfns));
    if (!sp->gfns || host_table_alloc(vm->s->hm, HOST_FRAME_TABLE, &sp->table) < 0) {
        sp->table = hpa(0);
        kvm_shadow_page_free(vm, sp);
        return NULL;
    }
    sp->spt = host_table_at(vm->s->hm, sp->table);
    return sp;
}

/*
 * Fill the vCPU's reserve to the brim. 0 or -ENOMEM (what is there stays). Lock: none of the MMU's.
 * Source: KVM's mmu_topup_memory_caches().
 */
int kvm_shadow_top_up(struct kvm_vcpu *v)
{
    struct kvm_shadow_cache *c = &v->shadow->cache;
    struct softkvm *s = v->vm->s;

    for (; c->nr_pages < ARRAY_LEN(c->pages); c->nr_pages++) {
        c->pages[c->nr_pages] = page_new(v->vm);
        if (!c->pages[c->nr_pages]) {
            return -ENOMEM;
        }
    }
    for (; c->nr_blocks < ARRAY_LEN(c->blocks); c->nr_blocks++) {
        c->blocks[c->nr_blocks] = kvm_alloc(s, sizeof(*c->blocks[0]));
        if (!c->blocks[c->nr_blocks]) {
            return -ENOMEM;
        }
    }
    for (; c->nr_chunks < ARRAY_LEN(c->chunks); c->nr_chunks++) {
        c->chunks[c->nr_chunks] = kvm_alloc(s, sizeof(*c->chunks[0]));
        if (!c->chunks[c->nr_chunks]) {
            return -ENOMEM;
        }
    }
    return 0;
}

void kvm_shadow_cache_drain(struct kvm_vm *vm, struct kvm_shadow_cache *c)
{
    while (c->nr_pages) {
        kvm_shadow_page_free(vm, c->pages[--c->nr_pages]);
    }
    while (c->nr_blocks) {
        free(c->blocks[--c->nr_blocks]);
    }
    while (c->nr_chunks) {
        free(c->chunks[--c->nr_chunks]);
    }
}

/* ---- the hash ---- */

static unsigned bucket_of(gfn_t f)
{
    return (unsigned)(f.v ^ f.v >> KVM_SHADOW_HASH_BITS) & ((1u << KVM_SHADOW_HASH_BITS) - 1);
}

/* First of the pages whose frames hash as f does; the callers compare. */
struct kvm_shadow_page *kvm_shadow_hash_first(const struct kvm_shadow *sh, gfn_t f)
{
    return sh->hash[bucket_of(f)];
}

static void hash_remove(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    struct kvm_shadow_page **at = &sh->hash[bucket_of(sp->gfn)];

    while (*at != sp) {
        at = &(*at)->hash_next;
    }
    *at = sp->hash_next;
}

/* ---- getting ---- */

/* A guest table that is to be followed closely: nobody may write it unseen from here on. */
static void protect_now(struct kvm_shadow *sh, gfn_t f)
{
    if (kvm_spte_protect_gfn(sh, f, false) || sh->stale) {
        sh->flush = true;
    }
    kvm_shadow_commit(sh);
}

static struct kvm_shadow_page *page_make(struct kvm_vcpu *v, gfn_t f, union kvm_role role)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_shadow_cache *c = &v->shadow->cache;
    struct kvm_shadow_page *sp;

    check(c->nr_pages > 0);
    sp = c->pages[--c->nr_pages];
    sp->gfn = f;
    sp->role = role;
    sp->generation = sh->generation;
    sp->hash_next = sh->hash[bucket_of(f)];
    sh->hash[bucket_of(f)] = sp;
    list_add_head(&sh->active, &sp->node);
    sh->by_pfn[sp->table.v >> PAGE_SHIFT] = sp;
    sh->nr_pages++;
    atomic_fetch_add_explicit(&v->vm->mmu.tables, 1, memory_order_relaxed);
    KVM_SHADOW_COUNT(&sh->counters.pages_new);
    if (!role.direct) {
        kvm_shadow_account(sh, c, sp, 1);
        protect_now(sh, f);
    }
    TRACE(&v->vm->s->trace, shadow_page_new, "gfn %llx level %llu role %llx", f.v, role.level, role.word);
    return sp;
}

/* Make an unsync page that is wanted a synced one. False: it had to go. */
static bool page_sync(struct kvm_vcpu *v, struct kvm_shadow_page *sp)
{
    protect_now(kvm_shadow(v->vm), sp->gfn);
    return kvm_shadow_sync_page(v, sp);
}

/*
 * The page that shadows f in `role`: an existing one, brought up to date, or a new one. An unsync page of the same frame
 * goes when the frame is to be followed as an upper-level table.
 * Lock: exclusive, with a full reserve. Source: KVM's kvm_mmu_get_shadow_page().
 */
struct kvm_shadow_page *kvm_shadow_page_get(struct kvm_vcpu *v, gfn_t f, union kvm_role role)
{
    struct kvm_shadow *sh = kvm_shadow(v->vm);
    struct kvm_shadow_page *sp, *next;

    for (sp = kvm_shadow_hash_first(sh, f); sp; sp = next) {
        next = sp->hash_next;
        if (sp->gfn.v != f.v) {
            continue;
        }
        if (sp->role.word != role.word) {
            if (role.level > 1 && !role.direct && sp->unsync) {
                kvm_shadow_page_zap(sh, sp);
            }
            continue;
        }
        if (sp->unsync && !page_sync(v, sp)) {
            continue;
        }
        list_del(&sp->node);
        list_add_head(&sh->active, &sp->node);
        sp->writes = 0;
        KVM_SHADOW_COUNT(&sh->counters.pages_found);
        return sp;
    }
    return page_make(v, f, role);
}

/* ---- going ---- */

static void page_bury(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    list_del(&sp->node);
    list_add_head(&sh->dead, &sp->node);
    sh->flush = true;
}

/*
 * Take a page out of use. A root that vCPUs hold stays, empty and invalid, until they have let go, which they are
 * asked to. Lock: exclusive. Source: KVM's kvm_mmu_prepare_zap_page().
 */
void kvm_shadow_page_zap(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    uint64_t *parent;

    if (sp->role.invalid) {
        return;
    }
    KVM_SHADOW_COUNT(&sh->counters.pages_zapped);
    TRACE(&sh->vm->s->trace, shadow_page_zap, "gfn %llx level %llu roots %llu", sp->gfn.v, sp->role.level,
          sp->root_count);
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        if (kvm_spte_load(&sp->spt[i])) {
            kvm_spte_clear(sh, &sp->spt[i]);
        }
    }
    while ((parent = kvm_rmap_first(&sp->parents)) != NULL) {
        kvm_spte_clear(sh, parent);
    }
    hash_remove(sh, sp);
    if (!sp->role.direct) {
        kvm_shadow_account(sh, NULL, sp, -1);
    }
    sp->role.invalid = 1;
    sp->unsync = false;
    sh->nr_pages--;
    atomic_fetch_sub_explicit(&sh->vm->mmu.tables, 1, memory_order_relaxed);
    if (sp->root_count == 0) {
        page_bury(sh, sp);
    } else {
        kvm_vm_request_all(sh->vm, KVM_REQUEST_MMU);
    }
}

void kvm_shadow_root_put(struct kvm_shadow *sh, struct kvm_shadow_page *sp)
{
    check(sp->root_count > 0);
    if (--sp->root_count == 0 && sp->role.invalid) {
        page_bury(sh, sp);
    }
}

static void free_dead(struct kvm_shadow *sh)
{
    struct list *at, *next;

    list_for_each_safe (at, next, &sh->dead) {
        struct kvm_shadow_page *sp = list_entry(at, struct kvm_shadow_page, node);

        list_del(at);
        sh->by_pfn[sp->table.v >> PAGE_SHIFT] = NULL;
        kvm_shadow_page_free(sh->vm, sp);
    }
}

/*
 * End of a change: processors forget what they must, then dead pages are freed. Flushing under the lock is what makes
 * "no entry has W" mean "nobody writes": a processor in the guest never takes the lock.
 * Lock: exclusive. Source: KVM's kvm_mmu_commit_zap_page().
 */
void kvm_shadow_commit(struct kvm_shadow *sh)
{
    if (sh->flush) {
        KVM_SHADOW_COUNT(&sh->counters.flushes);
        kvm_mmu_flush(sh->vm);
        sh->flush = false;
        sh->stale = false;
    }
    free_dead(sh);
}

void kvm_shadow_commit_all(struct kvm_shadow *sh)
{
    sh->flush |= sh->stale;
    kvm_shadow_commit(sh);
}

/* ---- the limit ---- */

static void add_pages(void *opaque, struct kvm_memslot *slot)
{
    *(uint64_t *)opaque += slot->npages;
}

static void renew_limit(struct kvm_shadow *sh)
{
    uint64_t gen = atomic_load(&sh->vm->slots.generation), pages = 0;

    if (sh->limit_slots == gen) {
        return;
    }
    sh->limit_slots = gen;
    kvm_slots_for_each(kvm_slots_active(&sh->vm->slots), add_pages, &pages);
    pages = pages * LIMIT_PER_MILLE / 1000;
    sh->max_pages = pages < LIMIT_MIN ? LIMIT_MIN : pages;
}

/*
 * See to it that a fault may make pages: those that have not been got for the longest time go. Roots in use stay.
 * Lock: exclusive, in the read section. Source: KVM's make_mmu_pages_available(), kvm_mmu_change_mmu_pages().
 */
void kvm_shadow_make_room(struct kvm_shadow *sh)
{
    uint64_t max;
    struct list *at, *prev;

    renew_limit(sh);
    max = sh->user_limit ? sh->user_limit : sh->max_pages;
    if (sh->nr_pages + KVM_SHADOW_RESERVE <= max) {
        return;
    }
    max = max > 4 * KVM_SHADOW_RESERVE ? max - 3 * KVM_SHADOW_RESERVE : KVM_SHADOW_RESERVE;
    for (at = sh->active.prev; at != &sh->active && sh->nr_pages > max; at = prev) {
        struct kvm_shadow_page *sp = list_entry(at, struct kvm_shadow_page, node);

        prev = at->prev;
        if (sp->root_count == 0 && !sp->role.invalid) {
            KVM_SHADOW_COUNT(&sh->counters.pages_recycled);
            kvm_shadow_page_zap(sh, sp);
        }
    }
    kvm_shadow_commit(sh);
}

/*
 * Begin anew: every page of now is obsolete; roots in use are left when their vCPUs reload.
 * Lock: exclusive; the caller commits. Source: KVM's kvm_mmu_zap_all_fast().
 */
void kvm_shadow_zap_all(struct kvm_shadow *sh)
{
    struct list *at, *next;

    sh->generation++;
    list_for_each_safe (at, next, &sh->active) {
        KVM_SHADOW_COUNT(&sh->counters.pages_obsolete);
        kvm_shadow_page_zap(sh, list_entry(at, struct kvm_shadow_page, node));
    }
}
