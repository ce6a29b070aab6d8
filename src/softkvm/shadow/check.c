/*
 * Every invariant of the shadow MMU (shadow.h), asked of the state as it is. Tests run it after each step.
 *
 * Lock: mmu.lock exclusive; vCPUs may run, and only set accessed and dirty bits.
 */
#include "softkvm/inspect_impl.h"
#include "softkvm/shadow/shadow.h"

typedef unsigned long long ull;

static bool chain_has(const struct kvm_rmap *r, const uint64_t *spte, unsigned *times)
{
    struct kvm_rmap_pos pos = {0};
    uint64_t *at;

    *times = 0;
    while (r && (at = kvm_rmap_next(r, &pos)) != NULL) {
        *times += at == spte;
    }
    return *times == 1;
}

/* A leaf: in the reverse map once; not writable when its frame is a table that is followed. */
static void check_leaf(struct kvm_shadow *sh, struct kvm_checker *c, struct kvm_shadow_page *sp, unsigned i, uint64_t e)
{
    unsigned level = sp->role.level, times;
    gfn_t f = kvm_spte_gfn(sp, i);

    if (!chain_has(kvm_rmap_of(sh, f, level), &sp->spt[i], &times)) {
        kvm_breach(c, "leaf %u of gfn 0x%llx level %u maps 0x%llx and is in its reverse map %u times", i,
                   (ull)sp->gfn.v, level, (ull)f.v, times);
    }
    if (!(e & X86_PTE_W)) {
        return;
    }
    if (level > 1 && kvm_shadow_region_has_tables(sh, f)) {
        kvm_breach(c, "large leaf at 0x%llx is writable over a shadowed table", (ull)f.v);
    }
    if (level == 1 && kvm_shadow_is_tracked(sh, f)) {
        kvm_breach(c, "entry %u of gfn 0x%llx may write the table at gfn 0x%llx", i, (ull)sp->gfn.v, (ull)f.v);
    }
    for (struct kvm_shadow_page *t = kvm_shadow_hash_first(sh, f); t && level == 1; t = t->hash_next) {
        if (t->gfn.v == f.v && !t->role.direct && !t->unsync) {
            kvm_breach(c, "entry %u of gfn 0x%llx may write the synced table at gfn 0x%llx", i, (ull)sp->gfn.v,
                       (ull)f.v);
        }
    }
}

/* A table entry: its page exists, knows of it once, and its unsync state is known here. */
static void check_table(struct kvm_shadow *sh, struct kvm_checker *c, struct kvm_shadow_page *sp, unsigned i, uint64_t e)
{
    struct kvm_shadow_page *child = kvm_spte_child(sh, e);
    unsigned times;

    if (!child || child->role.invalid || child->role.level + 1 != sp->role.level) {
        kvm_breach(c, "entry %u of gfn 0x%llx level %u names no page that fits", i, (ull)sp->gfn.v, sp->role.level);
        return;
    }
    if (!chain_has(&child->parents, &sp->spt[i], &times)) {
        kvm_breach(c, "entry %u of gfn 0x%llx level %u is %u times among its child's parents", i, (ull)sp->gfn.v,
                   sp->role.level, times);
    }
    if ((child->unsync || child->nr_unsync_children) && !(sp->unsync_children[i / 64] >> i % 64 & 1)) {
        kvm_breach(c, "gfn 0x%llx level %u does not know that entry %u leads to unsync pages", (ull)sp->gfn.v,
                   sp->role.level, i);
    }
}

static uint64_t chain_length(const struct kvm_rmap *r)
{
    struct kvm_rmap_pos pos = {0};
    uint64_t n = 0;

    while (kvm_rmap_next(r, &pos)) {
        n++;
    }
    return n;
}

struct totals {
    uint64_t pages, leaves, tables, chained, roots, shadowed;
    int64_t by_level[4];
};

static void check_entries(struct kvm_shadow *sh, struct kvm_checker *c, struct kvm_shadow_page *sp, struct totals *t)
{
    unsigned level = sp->role.level;

    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        uint64_t e = kvm_spte_load(&sp->spt[i]);

        if (kvm_spte_is_table(e, level)) {
            t->tables++;
            check_table(sh, c, sp, i, e);
        } else if (kvm_spte_is_page(e, level)) {
            t->leaves++;
            t->by_level[level]++;
            check_leaf(sh, c, sp, i, e);
        } else if (kvm_spte_is_mmio(e)) {
            t->by_level[0]++;
        } else if (e) {
            kvm_breach(c, "entry %u of gfn 0x%llx level %u is nothing: 0x%llx", i, (ull)sp->gfn.v, level, (ull)e);
        }
    }
}

static unsigned bits_set(const uint64_t *map, unsigned words)
{
    unsigned n = 0;

    for (unsigned i = 0; i < words; i++) {
        n += (unsigned)__builtin_popcountll(map[i]);
    }
    return n;
}

/* One page: in the hash, alone of its kind; sound counts. */
static void check_page(struct kvm_shadow *sh, struct kvm_checker *c, struct kvm_shadow_page *sp, struct totals *t)
{
    unsigned same = 0;

    for (struct kvm_shadow_page *o = kvm_shadow_hash_first(sh, sp->gfn); o; o = o->hash_next) {
        same += o->gfn.v == sp->gfn.v && o->role.word == sp->role.word;
    }
    if (same != 1) {
        kvm_breach(c, "gfn 0x%llx role 0x%x is %u times in the hash", (ull)sp->gfn.v, sp->role.word, same);
    }
    if (sp->unsync && (sp->role.level != 1 || sp->role.direct)) {
        kvm_breach(c, "gfn 0x%llx level %u is unsync", (ull)sp->gfn.v, sp->role.level);
    }
    if (sp->unsync && kvm_shadow_is_tracked(sh, sp->gfn)) {
        kvm_breach(c, "gfn 0x%llx is unsync and tracked", (ull)sp->gfn.v);
    }
    if (sp->nr_unsync_children != bits_set(sp->unsync_children, PT_ENTRIES / 64)) {
        kvm_breach(c, "gfn 0x%llx: %u unsync children by count", (ull)sp->gfn.v, sp->nr_unsync_children);
    }
    if (sp->generation != sh->generation) {
        kvm_breach(c, "gfn 0x%llx is of generation %u", (ull)sp->gfn.v, sp->generation);
    }
    if (sh->by_pfn[sp->table.v >> PAGE_SHIFT] != sp) {
        kvm_breach(c, "gfn 0x%llx: its table is another's", (ull)sp->gfn.v);
    }
    t->pages++;
    t->roots += sp->root_count;
    t->shadowed += !sp->role.direct;
    t->chained += chain_length(&sp->parents);
    check_entries(sh, c, sp, t);
}

/* An invalid page is an empty root that somebody still holds. */
static void check_invalid(struct kvm_checker *c, const struct kvm_shadow_page *sp, struct totals *t)
{
    if (sp->root_count == 0 || !kvm_rmap_is_empty(&sp->parents)) {
        kvm_breach(c, "gfn 0x%llx is invalid and kept by nobody", (ull)sp->gfn.v);
    }
    for (unsigned i = 0; i < PT_ENTRIES; i++) {
        if (kvm_spte_load(&sp->spt[i])) {
            kvm_breach(c, "gfn 0x%llx is invalid and has an entry", (ull)sp->gfn.v);
        }
    }
    t->roots += sp->root_count;
}

/* Roots as the vCPUs hold them. */
static uint64_t held_roots(struct kvm_vm *vm)
{
    struct kvm_vcpu *v;
    uint64_t n = 0;
    uint32_t i;

    kvm_for_each_vcpu (i, v, vm) {
        const struct kvm_shadow_vcpu *s = v->shadow;

        n += s->root.sp != NULL;
        for (unsigned k = 0; k < KVM_PREV_ROOTS; k++) {
            n += s->prev[k].sp != NULL;
        }
        for (unsigned k = 0; k < 4; k++) {
            n += s->pae[k] != NULL;
        }
    }
    return n;
}

static void count_chain(struct kvm_shadow *sh, struct kvm_rmap *r, gfn_t f, unsigned level, void *opaque)
{
    *(uint64_t *)opaque += chain_length(r);
}

static void check_totals(struct kvm_shadow *sh, struct kvm_checker *c, const struct totals *t)
{
    struct kvm_vm *vm = sh->vm;
    uint64_t mapped = 0, shadowed = 0;

    kvm_rmap_for_range(sh, gfn(0), gfn(UINT64_MAX >> PAGE_SHIFT), count_chain, &mapped);
    for (unsigned i = 0; i < 1u << KVM_RMAP_HASH_BITS; i++) {
        for (const struct kvm_rmap_chunk *k = sh->chunks[i]; k; k = k->next) {
            shadowed += k->nr_shadowed;
        }
    }
    if (mapped != t->leaves || t->chained != t->tables) {
        kvm_breach(c, "%llu leaves, %llu in reverse maps; %llu table entries, %llu among parents", (ull)t->leaves,
                   (ull)mapped, (ull)t->tables, (ull)t->chained);
    }
    if (shadowed != t->shadowed || t->pages != sh->nr_pages) {
        kvm_breach(c, "%llu pages (%llu counted), %llu shadow tables (%llu counted)", (ull)t->pages,
                   (ull)sh->nr_pages, (ull)t->shadowed, (ull)shadowed);
    }
    if (t->roots != held_roots(vm)) {
        kvm_breach(c, "%llu roots by count, %llu held", (ull)t->roots, (ull)held_roots(vm));
    }
    for (unsigned level = 0; level < 3; level++) {
        if (t->by_level[level] != atomic_load(&vm->mmu.pages[level])) {
            kvm_breach(c, "%lld leaves of level %u, %lld counted", (long long)t->by_level[level], level,
                       (long long)atomic_load(&vm->mmu.pages[level]));
        }
    }
    if (sh->flush || !list_is_empty(&sh->dead)) {
        kvm_breach(c, "a change was not committed");
    }
}

/*
 * Verify; the first breach is reported by kvm_breach(). Lock: mmu.lock exclusive. Source: own.
 */
void kvm_shadow_check(struct kvm_vm *vm, struct kvm_checker *c)
{
    struct kvm_shadow *sh = kvm_shadow(vm);
    struct totals t = {0};
    struct list *at;

    list_for_each (at, &sh->active) {
        struct kvm_shadow_page *sp = list_entry(at, struct kvm_shadow_page, node);

        if (sp->role.invalid) {
            check_invalid(c, sp, &t);
        } else {
            check_page(sh, c, sp, &t);
        }
    }
    check_totals(sh, c, &t);
}
