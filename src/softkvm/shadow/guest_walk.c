/*
 * The walk over the guest's own tables: the judge of whose fault a page fault is. Rules are the processor's, applied to
 * the guest's registers; the entries are read in guest memory, and accessed and dirty bits set there.
 *
 * Invariants
 *  1. Accessed and dirty bits are set only for an access that is allowed, by compare-and-exchange on an entry that
 *     still is what was judged; a lost exchange starts the walk anew.
 *  2. A page of the guest is touched only while it is pinned.
 *
 * Source: Intel, "Paging"; AMD, "Page translation and protection"; what is done where is KVM's walk_addr_generic(). It
 * shares no code with the processor's walker, and tests hold the two against each other.
 * Lock: in the read section, none else: resolving a page may sleep.
 */
#include <errno.h>

#include "arch/regs.h"
#include "softkvm/exit.h"
#include "softkvm/shadow/shadow.h"
#include "softkvm/user.h"

/* ---- entries ---- */

/* Does an entry that is present at `level` map memory rather than a table? */
bool kvm_gpte_is_leaf(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level)
{
    if (level == 1) {
        return true;
    }
    if (!(gpte & X86_PTE_PS) || level > 3) {
        return false;
    }
    return m->entry_size == 8 || m->pse;
}

/* Are bits set that must be zero in a present entry? */
bool kvm_gpte_is_reserved(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level)
{
    uint64_t bad = m->reserved;

    if (m->entry_size == 4) {
        /* PSE-36: address bits 32 to 39 are in 13 to 20; 21 must be zero. */
        return level == 2 && kvm_gpte_is_leaf(m, gpte, level) && (gpte & (UINT64_C(1) << 21));
    }
    if (level > 3 || (level == 3 && !m->has_1g)) {
        bad |= X86_PTE_PS;
    } else if (level > 1 && (gpte & X86_PTE_PS)) {
        bad |= (pt_leaf_size(level) - 1) & ~UINT64_C(0x1fff);
    }
    return (gpte & bad) != 0;
}

/* KVM_ACC_* that one entry gives. */
uint8_t kvm_gpte_access(const struct kvm_guest_mode *m, uint64_t gpte)
{
    uint8_t acc = KVM_ACC_X;

    acc |= gpte & X86_PTE_W ? KVM_ACC_W : 0;
    acc |= gpte & X86_PTE_U ? KVM_ACC_U : 0;
    if (m->entry_size == 8 && (gpte & X86_PTE_NX)) {
        acc &= (uint8_t)~KVM_ACC_X;
    }
    return acc;
}

/* The first frame that a leaf maps, or the table that an entry names. */
gfn_t kvm_gpte_gfn(const struct kvm_guest_mode *m, uint64_t gpte, unsigned level)
{
    bool leaf = kvm_gpte_is_leaf(m, gpte, level);
    unsigned bits = leaf ? (level - 1) * (m->entry_size == 4 ? 10 : PT_LEVEL_BITS) : 0;
    uint64_t f;

    if (m->entry_size == 4) {
        f = (gpte & UINT64_C(0xffffffff)) >> PAGE_SHIFT;
        if (leaf && level == 2) {
            f = (f & ~UINT64_C(0x3ff)) | (gpte >> 13 & 0xff) << 20;
        }
        return gfn(f);
    }
    f = (gpte & X86_PTE_ADDR_MASK) >> PAGE_SHIFT;
    return gfn(f & ~((UINT64_C(1) << bits) - 1));
}

/* ---- the guest's pages ---- */

/* See shadow.h: the page of a table if it can be had at once. */
void kvm_table_view_get(struct kvm_vcpu *v, gfn_t f, struct kvm_table_view *view)
{
    struct host_frame *frame;

    view->ptr = NULL;
    view->slot = kvm_slots_find(kvm_slots_active(&v->vm->slots), f);
    if (!view->slot || (view->slot->flags & KVM_SLOT_INVALID) ||
        host_gup_fast(v->vm->s->mm, kvm_slot_hva(view->slot, f), HOST_FAULT_PIN, &view->page) < 0) {
        return;
    }
    frame = host_frame_at(v->vm->s->hm, view->page.pfn);
    view->ptr = frame ? host_frame_data(frame) : NULL;
    if (!view->ptr) {
        host_page_put(v->vm->s->mm, &view->page);
    }
}

void kvm_table_view_put(struct kvm_vcpu *v, struct kvm_table_view *view)
{
    if (view->ptr) {
        host_page_put(v->vm->s->mm, &view->page);
        view->ptr = NULL;
    }
}

/* The same for the walk, which may wait. -ENXIO: no slot there; -EFAULT: no memory behind the slot. */
static int page_get(struct kvm_vcpu *v, gfn_t f, unsigned flags, struct kvm_table_view *view)
{
    struct host_frame *frame;
    int r;

    view->ptr = NULL;
    view->slot = kvm_slots_find_vcpu(v, f);
    if (!view->slot) {
        return -ENXIO;
    }
    if (view->slot->flags & KVM_SLOT_INVALID) {
        return -EAGAIN;
    }
    r = host_gup(v->vm->s->mm, kvm_slot_hva(view->slot, f), flags | HOST_FAULT_PIN, &view->page);
    if (r < 0) {
        return r;
    }
    frame = host_frame_at(v->vm->s->hm, view->page.pfn);
    view->ptr = frame ? host_frame_data(frame) : NULL;
    if (!view->ptr) {
        host_page_put(v->vm->s->mm, &view->page);
        return -EFAULT;
    }
    return 0;
}

/* The host refused an access to a view's bytes: learn, and have the walk done again. */
static int view_gone(struct kvm_vcpu *v, struct kvm_table_view *view)
{
    hva_t at = ptr_to_hva((void *)(uintptr_t)view->ptr);
    int r;

    kvm_table_view_put(v, view);
    r = kvm_host_gone(v, at, false);
    return r < 0 ? r : -EAGAIN;
}

/* ---- the walk ---- */

static enum kvm_walk_result guest_fault(struct kvm_guest_walk *w, uint32_t code)
{
    const struct kvm_guest_mode *m = w->mode;

    code |= w->write ? X86_PFEC_W : 0;
    code |= w->user ? X86_PFEC_U : 0;
    if (w->fetch && (m->smep || m->nx)) {
        code |= X86_PFEC_F;
    }
    w->code = code;
    return KVM_WALK_GUEST_FAULT;
}

/* Protection keys forbid a data access to the leaf's page? */
static bool key_forbids(const struct kvm_guest_walk *w, uint64_t leaf, uint8_t access)
{
    const struct kvm_guest_mode *m = w->mode;
    uint32_t pair = m->pkru >> (leaf >> 59 & 0xf) * 2;

    if (!m->pke || w->fetch || !(access & KVM_ACC_U)) {
        return false;
    }
    return (pair & 1) || ((pair & 2) && w->write && (w->user || m->wp));
}

/* Rights: KVM_WALK_OK, or the fault. access: of all levels. */
static enum kvm_walk_result judge(struct kvm_guest_walk *w, uint64_t leaf, uint8_t access)
{
    const struct kvm_guest_mode *m = w->mode;
    bool user_page = access & KVM_ACC_U, bad;

    if (w->user) {
        bad = !user_page || (w->write && !(access & KVM_ACC_W)) || (w->fetch && m->nx && !(access & KVM_ACC_X));
    } else if (w->fetch) {
        bad = (m->nx && !(access & KVM_ACC_X)) || (m->smep && user_page);
    } else {
        bad = (m->smap && user_page && !w->smap_exempt) || (w->write && m->wp && !(access & KVM_ACC_W));
    }
    if (bad) {
        return guest_fault(w, X86_PFEC_P);
    }
    return key_forbids(w, leaf, access) ? guest_fault(w, X86_PFEC_P | X86_PFEC_PK) : KVM_WALK_OK;
}

static unsigned index_bits(const struct kvm_guest_mode *m)
{
    return m->entry_size == 4 ? 10 : PT_LEVEL_BITS;
}

/* Where the walk begins. False: PAE's PDPTE is absent. */
static bool walk_start(struct kvm_guest_walk *w, gfn_t *table)
{
    const struct kvm_guest_mode *m = w->mode;
    uint64_t pdpte = m->pdptr[w->la >> 30 & 3];

    w->top = m->levels == 3 ? 2 : m->levels;
    *table = gfn(m->cr3 >> PAGE_SHIFT);
    if (m->levels == 3) {
        *table = gfn((pdpte & X86_PTE_ADDR_MASK) >> PAGE_SHIFT);
        return pdpte & X86_PTE_P;
    }
    return true;
}

/* Read the entry at w->level of `table`. */
static int read_level(struct kvm_vcpu *v, struct kvm_guest_walk *w, gfn_t table)
{
    const struct kvm_guest_mode *m = w->mode;
    unsigned shift = PAGE_SHIFT + index_bits(m) * (w->level - 1), i = w->level - 1;
    uint64_t index = w->la >> shift & ((1u << index_bits(m)) - 1);
    struct kvm_table_view view;
    int r = page_get(v, table, 0, &view);

    if (r < 0) {
        return r;
    }
    w->table_gfn[i] = table;
    w->pte_gpa[i] = gpa((table.v << PAGE_SHIFT) + index * m->entry_size);
    if (kvm_user_get_entry(view.ptr + index * m->entry_size, m->entry_size, &w->pte[i]) < 0) {
        return view_gone(v, &view);
    }
    kvm_table_view_put(v, &view);
    KVM_SHADOW_COUNT(&kvm_shadow(v->vm)->counters.table_refs);
    return 0;
}

/* Set bits in the entry of level i + 1, which must still be what was judged. 1: changed, walk again; -errno. */
static int mark_level(struct kvm_vcpu *v, struct kvm_guest_walk *w, unsigned i, uint64_t bits)
{
    struct kvm_table_view view;
    int r, done;

    if ((w->pte[i] & bits) == bits) {
        return 0;
    }
    view.slot = kvm_slots_find_vcpu(v, w->table_gfn[i]);
    if (view.slot && (view.slot->flags & KVM_MEM_READONLY)) {
        return 0; /* cannot be set there, as with ROM on a machine */
    }
    r = page_get(v, w->table_gfn[i], HOST_FAULT_WRITE, &view);
    if (r < 0) {
        return r;
    }
    done = kvm_user_exchange_entry((uint8_t *)(uintptr_t)view.ptr + page_offset(w->pte_gpa[i].v),
                                   w->mode->entry_size, w->pte[i], w->pte[i] | bits);
    if (done < 0) {
        return view_gone(v, &view);
    }
    kvm_table_view_put(v, &view);
    if (!done) {
        return 1;
    }
    kvm_slot_mark_dirty(v, view.slot, w->table_gfn[i]);
    w->pte[i] |= bits;
    return 0;
}

static int mark_all(struct kvm_vcpu *v, struct kvm_guest_walk *w)
{
    for (unsigned i = w->top; i-- > w->level - 1;) {
        bool dirty = i == w->level - 1 && w->write;
        int r = mark_level(v, w, i, X86_PTE_A | (dirty ? X86_PTE_D : 0));

        if (r != 0) {
            return r;
        }
    }
    return 0;
}

static enum kvm_walk_result host_error(struct kvm_guest_walk *w, int error)
{
    if (error == -ENXIO) {
        return guest_fault(w, 0); /* a table outside memory reads as absent */
    }
    w->error = error;
    return KVM_WALK_ERROR;
}

/* The leaf has been found, allowed, and marked. */
static void take_leaf(struct kvm_guest_walk *w, uint8_t access)
{
    uint64_t pte = w->pte[w->level - 1];
    uint64_t pages = UINT64_C(1) << (index_bits(w->mode) * (w->level - 1));

    w->gfn = gfn(kvm_gpte_gfn(w->mode, pte, w->level).v | ((w->la >> PAGE_SHIFT) & (pages - 1)));
    w->access = access;
    if (!w->write && !(pte & X86_PTE_D)) {
        w->access &= (uint8_t)~KVM_ACC_W; /* so that the first write is seen */
    }
}

/* One attempt; *again: an entry changed meanwhile. */
static enum kvm_walk_result walk_once(struct kvm_vcpu *v, struct kvm_guest_walk *w, bool *again)
{
    uint8_t access = KVM_ACC_ALL;
    enum kvm_walk_result res;
    gfn_t table;

    if (!walk_start(w, &table)) {
        w->level = w->top;
        return guest_fault(w, 0);
    }
    for (w->level = w->top;; w->level--) {
        uint64_t pte;
        int r = read_level(v, w, table);

        if (r < 0) {
            return host_error(w, r);
        }
        pte = w->pte[w->level - 1];
        w->table_access[w->level - 1] = access;
        if (!(pte & X86_PTE_P)) {
            return guest_fault(w, 0);
        }
        if (kvm_gpte_is_reserved(w->mode, pte, w->level)) {
            return guest_fault(w, X86_PFEC_P | X86_PFEC_RSVD);
        }
        access &= kvm_gpte_access(w->mode, pte);
        if (kvm_gpte_is_leaf(w->mode, pte, w->level)) {
            break;
        }
        table = kvm_gpte_gfn(w->mode, pte, w->level);
    }
    res = judge(w, w->pte[w->level - 1], access);
    if (res == KVM_WALK_OK && !w->quiet) {
        int r = mark_all(v, w);

        *again = r > 0;
        if (r < 0) {
            return host_error(w, r);
        }
    }
    take_leaf(w, access);
    return res;
}

/*
 * Walk the guest's tables for the access that *w describes; see struct kvm_guest_walk for what is filled. Without paging
 * every address is itself. KVM_WALK_ERROR: w->error is -ENOMEM, -EAGAIN, -EHWPOISON, ... of the host.
 * Lock: in the read section; not under mmu.lock. Source: KVM's FNAME(walk_addr_generic)().
 */
enum kvm_walk_result kvm_guest_walk(struct kvm_vcpu *v, struct kvm_guest_walk *w)
{
    enum kvm_walk_result res;
    bool again;

    KVM_SHADOW_COUNT(&kvm_shadow(v->vm)->counters.walks);
    if (!w->mode->lma) {
        w->la = (uint32_t)w->la;
    }
    if (w->mode->levels == 0) {
        w->level = 0;
        w->top = 0;
        w->gfn = gfn(w->la >> PAGE_SHIFT);
        w->access = KVM_ACC_ALL;
        return KVM_WALK_OK;
    }
    do {
        again = false;
        res = walk_once(v, w, &again);
    } while (again);
    return res;
}
