/*
 * Looking in: the ioctls of include/softkvm/inspect.h. What is explained is explain.c's, what is
 * verified is check.c's.
 *
 * Locks: slots_lock for slots; mmu.lock shared while second-stage tables are read.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/buddy.h"
#include "softkvm/inspect_impl.h"
#include "softkvm/stats.h"
#include "softkvm/user.h"
#include "softkvm/vcpu.h"

/* Structures begin with the size that the caller knows: no more than that goes back. */
static int read_sized(void *dst, size_t size, const void *user)
{
    uint32_t theirs;
    int r = kvm_user_read(&theirs, user, sizeof(theirs));

    if (r < 0) {
        return r;
    }
    if (theirs < 8) {
        return -EINVAL;
    }
    memset(dst, 0, size);
    return kvm_user_read(dst, user, theirs < size ? theirs : size);
}

static int write_sized(void *user, const void *src, size_t size)
{
    uint32_t theirs = *(const uint32_t *)src;

    return kvm_user_write(user, src, theirs < size ? theirs : size);
}

/* ---- counters ---- */

static int write_counters(const struct kvm_stat *stats, unsigned n, void *arg)
{
    struct softkvm_counters head;
    int r = read_sized(&head, sizeof(head), arg);
    uint32_t room = head.count;

    for (unsigned i = 0; r == 0 && i < n && i < room; i++) {
        struct softkvm_counter c = {.value = stats[i].value};

        snprintf(c.name, sizeof(c.name), "%s", stats[i].name);
        r = kvm_user_write((struct softkvm_counter *)(uintptr_t)head.counters + i, &c, sizeof(c));
    }
    head.count = n;
    return r < 0 ? r : write_sized(arg, &head, sizeof(head));
}

static int vm_counters(struct kvm_vm *vm, struct kvm_vcpu *v, void *arg)
{
    struct kvm_stat stats[KVM_STATS_MAX];
    unsigned n = kvm_stats_collect(vm, v, stats);

    return write_counters(stats, n, arg);
}

static int host_counters(struct softkvm *s, void *arg)
{
    struct host_memory_stats m;
    struct host_mm_stats x;
    uint64_t managed = 0, free_frames = 0;

    host_memory_get_stats(s->hm, &m);
    host_mm_get_stats(s->mm, &x);
    for (int i = 0; i < HOST_NR_ZONES; i++) {
        managed += m.zone[i].managed;
        free_frames += m.zone[i].free;
    }
    const struct kvm_stat stats[] = {
        {.name = "host_frames", .value = managed},
        {.name = "host_frames_free", .value = free_frames},
        {.name = "host_frames_table", .value = m.in_use[HOST_FRAME_TABLE]},
        {.name = "host_frames_host_pt", .value = m.in_use[HOST_FRAME_HOST_PT]},
        {.name = "host_frames_anon", .value = m.in_use[HOST_FRAME_ANON]},
        {.name = "host_frames_file", .value = m.in_use[HOST_FRAME_FILE]},
        {.name = "host_alloc_failures", .value = m.failures},
        {.name = "host_faults", .value = x.faults},
        {.name = "host_faults_minor", .value = x.faults_minor},
        {.name = "host_faults_error", .value = x.faults_error},
        {.name = "host_anon_4k", .value = x.anon_4k},
        {.name = "host_anon_2m", .value = x.anon_2m},
        {.name = "host_anon_1g", .value = x.anon_1g},
        {.name = "host_cow", .value = x.cow},
        {.name = "host_file_faults", .value = x.file_faults},
        {.name = "host_thp_fallback", .value = x.thp_fallback},
        {.name = "host_gup_fast", .value = x.gup_fast},
        {.name = "host_gup_slow", .value = x.gup_slow},
        {.name = "host_vma_imports", .value = x.imports},
        {.name = "host_unmapped", .value = x.unmapped},
        {.name = "host_splits", .value = x.splits},
        {.name = "host_collapses", .value = x.collapses},
        {.name = "host_notifies", .value = x.notifies},
        {.name = "host_faults_major", .value = x.faults_major},
        {.name = "host_past_end", .value = x.past_end},
        {.name = "host_migrated", .value = x.migrated},
        {.name = "host_compacted_blocks", .value = m.compact_blocks},
        {.name = "host_reclaim_runs", .value = x.reclaim_runs},
        {.name = "host_reclaim_scanned", .value = x.reclaim_scanned},
        {.name = "host_reclaim_young", .value = x.reclaim_young},
        {.name = "host_swap_out", .value = x.swap_out},
        {.name = "host_swap_in", .value = x.swap_in},
        {.name = "host_swap_same", .value = x.swap_same},
        {.name = "host_swap_watched", .value = x.swap_watched},
        {.name = "host_swap_pages", .value = x.swap_pages},
        {.name = "host_swap_bytes", .value = x.swap_bytes},
        {.name = "host_ksm_merged", .value = x.ksm_merged},
        {.name = "host_ksm_unmerged", .value = x.ksm_unmerged},
        {.name = "host_rss_anon", .value = x.rss_anon},
        {.name = "host_rss_file", .value = x.rss_file},
        {.name = "host_rss_tables", .value = x.rss_tables},
    };
    return write_counters(stats, ARRAY_LEN(stats), arg);
}

/* ---- slots ---- */

struct slot_walk {
    struct kvm_vm *vm;
    struct softkvm_slot *user;
    uint32_t room, count;
    int error;
};

static bool count_leaf(void *opaque, const struct kvm_mmu_leaf *leaf)
{
    struct softkvm_slot *o = opaque;

    if (!leaf->is_mmio) {
        o->mapped_4k += leaf->level == 1;
        o->mapped_2m += leaf->level == 2;
        o->mapped_1g += leaf->level == 3;
    }
    return true;
}

static void count_leaves(struct kvm_vm *vm, const struct kvm_memslot *slot, struct softkvm_slot *o)
{
    pthread_rwlock_rdlock(&vm->mmu.lock);
    vm->mmu.ops->for_each_leaf_locked(vm, gfn(slot->base_gfn),
                                      gfn(slot->base_gfn + slot->npages - 1), count_leaf, o);
    pthread_rwlock_unlock(&vm->mmu.lock);
}

static void put_slot(void *opaque, struct kvm_memslot *slot)
{
    struct slot_walk *w = opaque;
    struct softkvm_slot o = {.id = slot->id | (uint32_t)slot->as_id << 16, .flags = slot->flags,
                             .gpa = slot->base_gfn << PAGE_SHIFT, .size = slot->npages << PAGE_SHIFT,
                             .hva = slot->hva};
    uint32_t i = w->count++;

    if (i >= w->room || w->error < 0) {
        return;
    }
    count_leaves(w->vm, slot, &o);
    for (size_t k = 0; slot->dirty && k < slot->dirty_words; k++) {
        o.dirty += (uint64_t)__builtin_popcountll(atomic_load(&slot->dirty[k]));
    }
    w->error = kvm_user_write(&w->user[i], &o, sizeof(o));
}

static int list_slots(struct kvm_vm *vm, void *arg)
{
    struct softkvm_slots head;
    struct slot_walk w = {.vm = vm};
    int r = read_sized(&head, sizeof(head), arg);

    if (r < 0) {
        return r;
    }
    w.user = (struct softkvm_slot *)(uintptr_t)head.slots;
    w.room = head.count;
    pthread_mutex_lock(&vm->slots_lock);
    kvm_slots_for_each(kvm_slots_active(&vm->slots), put_slot, &w);
    head.generation = atomic_load(&vm->slots.generation);
    pthread_mutex_unlock(&vm->slots_lock);
    head.count = w.count;
    return w.error < 0 ? w.error : write_sized(arg, &head, sizeof(head));
}

/* ---- second-stage tables ---- */

#define EPT_BATCH 64

/* Leaves being read out. */
struct leaf_batch {
    struct softkvm_ept_leaf *out;
    uint32_t n, max;
    uint64_t next; /* where to go on, 0 at the end */
};

static bool put_leaf(void *opaque, const struct kvm_mmu_leaf *leaf)
{
    struct leaf_batch *b = opaque;

    if (b->n == b->max) {
        b->next = leaf->gpa;
        return false;
    }
    b->out[b->n++] = (struct softkvm_ept_leaf){.gpa = leaf->gpa, .value = leaf->entry,
                                               .level = (uint8_t)leaf->level, .is_mmio = leaf->is_mmio};
    return true;
}

/* Up to EPT_BATCH leaves from *gpa on; *gpa: where to go on, 0 at the end. */
static uint32_t read_leaves(struct kvm_vm *vm, uint64_t *at, uint32_t room,
                            struct softkvm_ept_leaf *out)
{
    struct leaf_batch b = {.out = out, .max = room < EPT_BATCH ? room : EPT_BATCH};
    gfn_t last = gfn((UINT64_C(1) << (KVM_GUEST_PHYS_BITS - PAGE_SHIFT)) - 1);

    pthread_rwlock_rdlock(&vm->mmu.lock);
    vm->mmu.ops->for_each_leaf_locked(vm, gpa_to_gfn(gpa(*at)), last, put_leaf, &b);
    pthread_rwlock_unlock(&vm->mmu.lock);
    *at = b.next;
    return b.n;
}

static int dump_ept(struct kvm_vm *vm, void *arg)
{
    struct softkvm_ept_leaf batch[EPT_BATCH];
    struct softkvm_ept head;
    uint32_t done = 0;
    int r = read_sized(&head, sizeof(head), arg);

    while (r == 0 && done < head.count) {
        uint64_t at = head.gpa;
        uint32_t n = read_leaves(vm, &at, head.count - done, batch);

        head.gpa = at;
        r = kvm_user_write((struct softkvm_ept_leaf *)(uintptr_t)head.leaves + done, batch,
                           n * sizeof(batch[0]));
        done += n;
        if (!head.gpa) {
            break;
        }
    }
    if (r < 0) {
        return r;
    }
    head.count = done;
    head.eptp = vm->mmu.eptp;
    head.tables = (uint64_t)atomic_load(&vm->mmu.tables);
    for (int i = 0; i < 4; i++) {
        head.pages[i] = (uint64_t)atomic_load(&vm->mmu.pages[i]);
    }
    return write_sized(arg, &head, sizeof(head));
}

/* ---- addresses, frames, check ---- */

struct hva_search {
    uint64_t hva;
    const struct kvm_memslot *found;
};

static void take_first(void *opaque, struct kvm_memslot *slot)
{
    struct hva_search *s = opaque;

    if (!s->found || slot->base_gfn < s->found->base_gfn) {
        s->found = slot;
    }
}

/* Turn x->hva into the lowest gpa that maps it. False: no slot does. */
static bool gpa_of_hva(struct kvm_vm *vm, struct softkvm_explain *x)
{
    struct hva_search s = {.hva = x->hva};

    kvm_slots_for_hva(kvm_slots_active(&vm->slots), hva(x->hva), hva(x->hva + 1), take_first, &s);
    if (s.found) {
        x->gpa = (s.found->base_gfn << PAGE_SHIFT) + (x->hva - s.found->hva);
    }
    return s.found != NULL;
}

static int explain(struct kvm_vm *vm, struct kvm_vcpu *v, unsigned long request, void *arg)
{
    struct softkvm_explain x;
    uint64_t gva_in, gpa_in, hva_in;
    int r = read_sized(&x, sizeof(x), arg);
    uint32_t size = x.size;

    if (r < 0) {
        return r;
    }
    gva_in = x.gva;
    gpa_in = x.gpa;
    hva_in = x.hva;
    memset(&x, 0, sizeof(x));
    x.size = size;
    pthread_mutex_lock(&vm->slots_lock);
    if (request == SOFTKVM_EXPLAIN_GVA) {
        x.gva = gva_in;
        kvm_explain_gva(v, &x);
    } else if (request == SOFTKVM_EXPLAIN_GPA) {
        x.gpa = gpa_in;
        kvm_explain_gpa(vm, &x);
    } else {
        x.hva = hva_in;
        if (gpa_of_hva(vm, &x)) {
            kvm_explain_gpa(vm, &x);
        }
    }
    pthread_mutex_unlock(&vm->slots_lock);
    return write_sized(arg, &x, sizeof(x));
}

static int show_frame(struct softkvm *s, void *arg)
{
    struct softkvm_frame f;
    int r = read_sized(&f, sizeof(f), arg);

    if (r < 0) {
        return r;
    }
    if (f.info.pfn >= s->hm->nr_frames) {
        return -EINVAL;
    }
    kvm_explain_frame(s, f.info.pfn, &f.info);
    return write_sized(arg, &f, sizeof(f));
}

static int run_check(struct kvm_vm *vm, void *arg)
{
    struct softkvm_check c;
    int r = read_sized(&c, sizeof(c), arg), verdict;

    if (r < 0) {
        return r;
    }
    verdict = kvm_check_vm(vm, c.text, sizeof(c.text));
    r = write_sized(arg, &c, sizeof(c));
    return r < 0 ? r : verdict;
}

int kvm_inspect_system(struct softkvm *s, unsigned long request, void *arg)
{
    return request == SOFTKVM_COUNTERS ? host_counters(s, arg) : -ENOTTY;
}

int kvm_inspect_vm(struct kvm_vm *vm, unsigned long request, void *arg)
{
    switch (request) {
    case SOFTKVM_EXPLAIN_GPA:
    case SOFTKVM_EXPLAIN_HVA:
        return explain(vm, NULL, request, arg);
    case SOFTKVM_SLOTS:
        return list_slots(vm, arg);
    case SOFTKVM_EPT:
        return dump_ept(vm, arg);
    case SOFTKVM_FRAME:
        return show_frame(vm->s, arg);
    case SOFTKVM_COUNTERS:
        return vm_counters(vm, NULL, arg);
    case SOFTKVM_CHECK:
        return run_check(vm, arg);
    default:
        return -ENOTTY;
    }
}

int kvm_inspect_vcpu(struct kvm_vcpu *v, unsigned long request, void *arg)
{
    switch (request) {
    case SOFTKVM_EXPLAIN_GVA:
        return explain(v->vm, v, request, arg);
    case SOFTKVM_COUNTERS:
        return vm_counters(v->vm, v, arg);
    default:
        return -ENOTTY;
    }
}
