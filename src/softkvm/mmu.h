/*
 * The MMU of a VM: from guest frames to host frames, in one of three ways that its `ops` name.
 *
 *   slots, dirty log, notifiers, inspection
 *        |  kvm_mmu_*(): lock, ask the kind, flush, free             (mmu.c: the same for all kinds)
 *        v
 *   struct kvm_mmu_ops: kvm_mmu_tdp  EPT, NPT: one tree of tables by guest-physical address (mmu_tdp.c)
 *                       shadow       tables derived from the guest's own, a reverse map by frame
 *
 *   EPT violation, #NPF -> kvm_mmu_fault: slot -> hva -> host page -> level -> tables -> leaf
 *
 * How another kind plugs in: a const struct kvm_mmu_ops with its own functions, chosen in
 * kvm_mmu_init(); its state in a struct that mmu->kind_data points to, made by init and freed by
 * fini; per-vCPU state by vcpu_init, vcpu_fini; load() sets what the processor is to use. Faults
 * that are not the second stage's (#PF, CR3 loads, INVLPG of a shadowed guest) are its own exits and
 * do not pass here.
 *
 * Locks: `lock` shared for faults (entries change by compare-exchange only), exclusive for zap,
 * write-protection, split. Tables are unlinked under the exclusive lock and freed after all
 * processors have dropped their translations; processors walk without any lock.
 */
#ifndef STRATA_SOFTKVM_MMU_H
#define STRATA_SOFTKVM_MMU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "arch/format.h"
#include "base/addr.h"
#include "base/compiler.h"
#include "host/mm.h"

struct kvm_vm;
struct kvm_vcpu;
struct kvm_memslot;
struct kvm_pte_format;

/* Table frames taken before the lock, so that nothing can fail under it. */
#define KVM_TABLE_CACHE 8
struct kvm_table_cache {
    hpa_t table[KVM_TABLE_CACHE];
    unsigned count;
};

/* Give cached tables back. */
void kvm_mmu_cache_drain(struct kvm_vm *vm, struct kvm_table_cache *c);

/* What serving a fault came to. */
enum kvm_fault_result {
    KVM_FAULT_FIXED,    /* an entry was made: let the guest retry */
    KVM_FAULT_SPURIOUS, /* the entry already allowed it */
    KVM_FAULT_RETRY,    /* something moved meanwhile: let the guest retry */
    KVM_FAULT_EMULATE,  /* no memory there: an MMIO entry was made or found */
    KVM_FAULT_WRITE_RO, /* a write to a read-only slot: the access goes to user space */
    KVM_FAULT_ERROR,    /* `error` in struct kvm_fault: KVM_RUN fails with it */
};

/* Table frames unlinked but not yet free: chained through the frames. */
struct kvm_dead_tables {
    uint64_t first; /* pfn, 0 if none */
    bool flush;     /* translations may be cached that were changed */
};

struct softkvm_explain;
struct kvm_checker;

/* One leaf that maps guest memory, or an MMIO entry, as inspection and checks see it. */
struct kvm_mmu_leaf {
    uint64_t gpa; /* first byte under the leaf */
    uint64_t entry;
    unsigned level;
    bool is_mmio;
    bool is_writable;  /* the entry allows writing */
    bool is_unnoticed; /* a processor may write without anybody's notice */
    bool is_watched;   /* aged by taking its rights, without a flush: a processor may go on as before */
};

/* False ends the walk. */
typedef bool kvm_mmu_leaf_fn(void *opaque, const struct kvm_mmu_leaf *leaf);

/*
 * A kind of MMU. All but `name` are called by mmu.c and by what mmu.h names; functions called *_locked
 * have mmu.lock held exclusively (`for_each_leaf_locked`, `explain_locked`: at least shared), may
 * not sleep or come back into src/host, and leave flushing and freeing to their caller: they set
 * dead->flush and chain tables on `dead`. Frames are guest frames, both ends inclusive.
 */
struct kvm_mmu_ops {
    const char *name;
    int (*init)(struct kvm_vm *vm) must_check; /* -ENOMEM; fini follows in any case */
    void (*fini)(struct kvm_vm *vm);           /* no vCPU exists any more; no leaf is left */
    int (*vcpu_init)(struct kvm_vcpu *v);      /* null: nothing to do */
    void (*vcpu_fini)(struct kvm_vcpu *v);     /* null: nothing to do */
    /* Point the processor at its tables: before its first run, and at KVM_REQUEST_MMU. */
    void (*load)(struct kvm_vcpu *v);

    /* KVM_SET_NR_MMU_PAGES: at most so many pages of tables from now on. Null: there is no limit. */
    void (*set_limit)(struct kvm_vm *vm, uint64_t pages);

    /* Remove every leaf that maps a frame of [first, last], MMIO entries too. */
    void (*zap_locked)(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead);
    void (*zap_mmio_locked)(struct kvm_vm *vm, struct kvm_dead_tables *dead);
    /* Was a leaf of [first, last] used since its accessed state was last cleared? `clear` clears. */
    bool (*age_locked)(struct kvm_vm *vm, gfn_t first, gfn_t last, bool clear);
    /* Take write access from all of the slot; from the pages of mask (bit i: base_gfn + offset + i).
     * True: a processor may still hold a writable translation. */
    bool (*protect_slot_locked)(struct kvm_vm *vm, const struct kvm_memslot *slot);
    bool (*protect_mask_locked)(struct kvm_vm *vm, const struct kvm_memslot *slot, uint64_t offset,
                                uint64_t mask);
    /* The slot's pages need not be small any more. */
    void (*recover_huge_locked)(struct kvm_vm *vm, const struct kvm_memslot *slot,
                                struct kvm_dead_tables *dead);

    /* Make small leaves of the slot's huge ones that touch [first, last], with the same rights. Takes mmu.lock
     * itself and lets go of it now and then; may give up when memory is short. Null: does not. */
    void (*split_range)(struct kvm_vm *vm, const struct kvm_memslot *slot, gfn_t first, gfn_t last);

    /* Call fn for the leaves of [first, last] in order of guest address. */
    void (*for_each_leaf_locked)(struct kvm_vm *vm, gfn_t first, gfn_t last, kvm_mmu_leaf_fn *fn,
                                 void *opaque);
    /* Follow addr; x may be null, else ept[], stages and page size are filled. The host-physical
     * address, 0: nothing mapped. */
    uint64_t (*explain_locked)(struct kvm_vm *vm, gpa_t addr, struct softkvm_explain *x);
    /* May processors remember what no entry allows any more, because the guest has yet to flush? Null: never. */
    bool (*is_stale_locked)(const struct kvm_vm *vm);
    /* The kind's own invariants, beyond those that hold for each leaf: report with kvm_breach(). */
    void (*check_locked)(struct kvm_vm *vm, struct kvm_checker *c);
};

extern const struct kvm_mmu_ops kvm_mmu_tdp;
extern const struct kvm_mmu_ops kvm_mmu_shadow;

struct kvm_mmu {
    /* constant after creation */
    const struct kvm_mmu_ops *ops; /* null until kvm_mmu_init() */
    void *kind_data;               /* of a kind that needs more than is here; its own */
    struct host_notifier notifier;
    bool notifier_registered;
    unsigned max_level; /* largest leaf */
    /* two-stage kinds: constant after creation */
    const struct kvm_pte_format *fmt;
    unsigned levels; /* 4 or 5 */
    bool pml;         /* processors log what they modify */
    bool eager_split; /* huge leaves are split when logging begins, not at the first write */
    bool nx_huge;     /* huge leaves are not executable; under vm->lock until the first vCPU exists */
    bool prefetch;    /* neighbours of a fault are mapped too */
    hpa_t root;
    uint64_t eptp; /* what the processor gets: EPT pointer, or nCR3 */

    pthread_rwlock_t lock;

    /* invalidate protocol; written under lock exclusive, inv_seq and inv_count read without */
    _Atomic uint64_t inv_seq;
    _Atomic uint32_t inv_count;
    uint64_t inv_start, inv_end; /* covers every invalidation that runs */

    _Atomic bool quiet; /* no walk section may begin: mmu_walk.h */

    /* atomics, for inspection and accounting */
    _Atomic int64_t pages[4];  /* leaves by level; [0] = MMIO entries */
    _Atomic int64_t tables;
    uint64_t nx_hand;              /* under lock: address where the next recovery begins */
    struct kvm_nx_worker *nx_worker; /* null: no mitigation */
    _Atomic int64_t nx_split; /* tables that stand for a huge leaf given up for execution */
};

/* The kind that the instance's options ask for, or null when this build has it not. */
const struct kvm_mmu_ops *kvm_mmu_kind(int mmu);

/* Lock, tables, notifier. -ENOMEM, -EOPNOTSUPP. */
int kvm_mmu_init(struct kvm_vm *vm) must_check;
/* The end: stop empties the tables and no notifier comes any more; then the vCPUs are freed; then fini. */
void kvm_mmu_stop(struct kvm_vm *vm);
void kvm_mmu_fini(struct kvm_vm *vm);

/* A vCPU comes and goes. init points it at its tables. -ENOMEM. */
int kvm_mmu_vcpu_init(struct kvm_vcpu *v) must_check;
void kvm_mmu_vcpu_fini(struct kvm_vcpu *v);

/* Serve an EPT violation. In the vCPU's read section. *error: -errno for KVM_FAULT_ERROR. */
enum kvm_fault_result kvm_mmu_fault(struct kvm_vcpu *v, gpa_t addr, uint32_t qualification, int *error);

/* After an EPT misconfiguration at addr: is the MMIO entry there current? False: serve it as a fault. */
bool kvm_mmu_mmio_is_fresh(struct kvm_vcpu *v, gpa_t addr);

/* Remove every leaf that maps [first, first + npages) and flush; used on slot delete and move. */
void kvm_mmu_zap_range(struct kvm_vm *vm, gfn_t first, uint64_t npages);
/* The same for frames [first, last], as part of more. Lock: exclusive; then kvm_mmu_finish(). */
void kvm_mmu_zap_frames_locked(struct kvm_vm *vm, gfn_t first, gfn_t last, struct kvm_dead_tables *dead);
/* Remove all MMIO entries: the generation wrapped. */
void kvm_mmu_zap_mmio(struct kvm_vm *vm);

/* Dirty logging went on for the slot: split huge leaves, then take write access (or, with PML, dirty bits) from
 * all of it, and flush. */
void kvm_mmu_protect_slot(struct kvm_vm *vm, struct kvm_memslot *slot);
/* Write-protect the pages whose bits are set in mask (bit 0 = base_gfn + offset). Lock: exclusive held
 * by the caller. Returns true if a flush is needed. */
bool kvm_mmu_protect_mask_locked(struct kvm_vm *vm, struct kvm_memslot *slot, uint64_t offset,
                                 uint64_t mask);
/* Logging went off: let huge pages come back. */
void kvm_mmu_recover_huge(struct kvm_vm *vm, struct kvm_memslot *slot);

/* Huge leaves of the slot's pages base_gfn + [first, first + npages) are split ahead of their protection. */
void kvm_mmu_split_slot(struct kvm_vm *vm, const struct kvm_memslot *slot, uint64_t first, uint64_t npages);

/* A vCPU's log of modified pages into the slots' bitmaps. In its read section. */
void kvm_mmu_pml_drain(struct kvm_vcpu *v);
/* What every vCPU has modified before this call is in the bitmaps when it returns. Not from a vCPU. */
void kvm_mmu_pml_sync(struct kvm_vm *vm);

/* NX mitigation: give up to `max` split regions back, so that huge leaves can come again. Returns how many. */
unsigned kvm_mmu_nx_recover(struct kvm_vm *vm, unsigned max);

/* All processors drop their translations; returns when none uses an old one. */
void kvm_mmu_flush(struct kvm_vm *vm);

/* Flush if needed and free the tables. No lock may be held but those that a processor in guest mode
 * never takes. */
void kvm_mmu_finish(struct kvm_vm *vm, struct kvm_dead_tables *dead);

#endif
