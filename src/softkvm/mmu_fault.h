/* A second-stage fault in flight, between the files that serve it. */
#ifndef STRATA_SOFTKVM_MMU_FAULT_H
#define STRATA_SOFTKVM_MMU_FAULT_H

#include "softkvm/mmu_entry.h"
#include "softkvm/vcpu.h"

struct kvm_fault {
    /* constant inputs */
    struct kvm_vcpu *v;
    struct kvm_vm *vm;
    gfn_t gfn;       /* in the second stage, the bit for shared memory included */
    gfn_t frame;     /* in slots */
    uint32_t access; /* EPT_VIOL_READ | WRITE | FETCH */
    /* derived */
    struct kvm_memslot *slot;
    const struct kvm_memslot *half; /* the slot, or its private half */
    bool is_private;                /* the half that the guest means */
    hva_t hva;
    uint64_t inv_seq;
    struct host_page page;
    unsigned goal;  /* the largest leaf that the rules allow */
    unsigned level; /* of the leaf to make: less than the goal where code runs under the NX mitigation */
    bool relinked;  /* a table was made on the way: the leaf under it may allow the access by that alone */
    /* output */
    int error;
};

static inline bool kvm_fault_is_write(const struct kvm_fault *f)
{
    return f->access & EPT_VIOL_WRITE;
}

/* Without asking the host and without a lock: the entry allows the access already, is only write-protected by
 * us, or its use is watched. FIXED, SPURIOUS, or RETRY for "the slow way". */
enum kvm_fault_result kvm_fault_fast(struct kvm_fault *f);

/* Map small neighbours of the leaf just made, where that costs nothing. Lock: mmu.lock shared. */
void kvm_fault_prefetch(struct kvm_fault *f, uint64_t *leaf);

/* What the entry of page (4 KiB frame `page->pfn` at guest frame `at`) is at `level`. write: for a write. */
uint64_t kvm_fault_leaf(const struct kvm_fault *f, const struct host_page *page, unsigned level, bool write);

/* ---- mmu_split.c ---- */

/*
 * Replace the huge leaf `old` at e by a table of leaves one level down with the same rights; `table` is zeroed
 * and becomes the VM's. nx: it is given up for execution. False: e changed meanwhile, the table is zeroed again.
 * Lock: mmu.lock. Nothing to flush: what a processor has cached of the leaf stays true.
 */
bool kvm_pte_split(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, hpa_t table, bool nx) must_check;

/* Of kvm_mmu_tdp. */
void kvm_tdp_split_range(struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t first, gfn_t last);
void kvm_tdp_recover_huge(struct kvm_vm *vm, const struct kvm_memslot *slot, struct kvm_dead_tables *dead);

#endif
