/*
 * Second-stage entries: their software bits, how they are made, and the funnel that changes them. The
 * formats differ in constants only: struct kvm_pte_format has them, one per kind of table.
 *
 *   63  62..59  58     57      56..54   51..12  11    10     9       8 7  6    5..3  2 1 0
 *   .   .       MMU-W  host-W  saved RX pfn     inuse .      D       A PS IPAT mt    X W R   EPT page
 *   NX  .       .      .       .        pfn     inuse MMU-W  host-W  . PS D    A . . U W P   NPT page
 *   .   .       .      .       .        pfn     inuse .      .       A .  .    .     1 1 1   a table
 *   .   generation 18..8                gfn     0     generation 7..0          .     1 1 0   MMIO, EPT
 *   .   generation 18..8               1 gfn    0     generation 7..0          .     1 1 1   MMIO, NPT
 *
 * inuse: this is a page or a table of ours; what the processor calls present is not asked, as an entry
 * whose use is watched (access tracking without accessed bits) has no rights. MMU-W: the slot and the
 * MMU allow writing, so the fast path may set W by itself; host-W: the host's entry was writable when
 * this one was made. An MMIO entry is one that the processor reports as odd: writable but not
 * readable (EPT), a reserved address bit (NPT, bit 51). Its gfn has five bits moved out of the way and set, so
 * that as an address it never names memory that exists (a processor may look ahead through it).
 *
 * Differs from KVM: no accessed-dirty kind per entry, as it is one for the whole VM.
 */
#ifndef STRATA_SOFTKVM_MMU_ENTRY_H
#define STRATA_SOFTKVM_MMU_ENTRY_H

#include "arch/paging.h"
#include "softkvm/vm.h"

#define KVM_PTE_IN_USE (UINT64_C(1) << 11)
#define KVM_PTE_W      EPT_W /* = X86_PTE_W */
/* Of a table: it stands for a huge leaf that was given up because code ran from it. */
#define KVM_PTE_NX_SPLIT (UINT64_C(1) << 52)

/* Constants of a format. `read`: all of these make an entry readable. */
struct kvm_pte_format {
    enum arch_format_id id;
    uint64_t read, exec, no_exec;
    uint64_t accessed, dirty;  /* 0: the processor keeps none */
    uint64_t table;            /* bits of an entry that points to a table, besides the address */
    uint64_t memory, uncached; /* bits of a page: ordinary memory, a device's own */
    uint64_t host_w, mmu_w;
    uint64_t track; /* rights taken away from a page whose use is watched; 0: accessed bits serve */
    unsigned track_shift;
    uint64_t mmio_mask, mmio_value, mmio_bits;
};

extern const struct kvm_pte_format kvm_pte_ept, kvm_pte_ept_no_ad, kvm_pte_npt;

#define KVM_PTE_GEN_LOW    (UINT64_C(0xff) << 3)
#define KVM_PTE_GEN_HIGH   (UINT64_C(0x7ff) << 52)
#define KVM_MMIO_GEN_BITS  19
#define KVM_MMIO_GEN_MASK  ((UINT64_C(1) << KVM_MMIO_GEN_BITS) - 1)

/* Address bits of an MMIO entry that are always set, and how far up their true values are. */
#define KVM_MMIO_MOVED_BITS  5
#define KVM_MMIO_MOVED_SHIFT (KVM_GUEST_PHYS_BITS - KVM_MMIO_MOVED_BITS)
#define KVM_MMIO_MOVED       (UINT64_C(0x1f) << KVM_MMIO_MOVED_SHIFT)
#define KVM_MMIO_GFN_BITS    (((UINT64_C(1) << KVM_GUEST_PHYS_BITS) - 1) & PAGE_MASK)

_Static_assert(EPT_W == X86_PTE_W && EPT_PS == X86_PTE_PS && EPT_ADDR_MASK == X86_PTE_ADDR_MASK,
               "these bits are where they are in every format");
_Static_assert((KVM_PTE_IN_USE & (EPT_ADDR_MASK | KVM_PTE_GEN_LOW | KVM_PTE_GEN_HIGH)) == 0,
               "an MMIO entry is not in use");
_Static_assert(((KVM_PTE_GEN_LOW | KVM_PTE_GEN_HIGH) & (EPT_ADDR_MASK | EPT_RWX)) == 0,
               "generation bits spare frame and rights");
_Static_assert(KVM_GUEST_PHYS_BITS + KVM_MMIO_MOVED_BITS <= 51, "moved bits spare bit 51");

static inline bool kvm_pte_is_mmio(const struct kvm_pte_format *fmt, uint64_t e)
{
    return (e & fmt->mmio_mask) == fmt->mmio_value;
}

static inline bool kvm_pte_in_use(uint64_t e)
{
    return (e & KVM_PTE_IN_USE) != 0;
}

/* Maps a page of memory. */
static inline bool kvm_pte_is_page(uint64_t e, unsigned level)
{
    return kvm_pte_in_use(e) && (level == 1 || (e & EPT_PS));
}

static inline bool kvm_pte_is_table(uint64_t e, unsigned level)
{
    return level > 1 && (e & (KVM_PTE_IN_USE | EPT_PS)) == KVM_PTE_IN_USE;
}

static inline uint64_t kvm_pte_mmio(const struct kvm_pte_format *fmt, gfn_t f, uint64_t generation)
{
    uint64_t gen = generation & KVM_MMIO_GEN_MASK, addr = f.v << PAGE_SHIFT & KVM_MMIO_GFN_BITS;

    return fmt->mmio_value | fmt->mmio_bits | addr | KVM_MMIO_MOVED |
           (addr & KVM_MMIO_MOVED) << KVM_MMIO_MOVED_BITS | (gen & 0xff) << 3 | (gen >> 8) << 52;
}

static inline uint64_t kvm_pte_mmio_generation(uint64_t e)
{
    return (e & KVM_PTE_GEN_LOW) >> 3 | ((e & KVM_PTE_GEN_HIGH) >> 52) << 8;
}

/* The guest frame that an MMIO entry stands for. */
static inline gfn_t kvm_pte_mmio_gfn(uint64_t e)
{
    uint64_t addr = (e & KVM_MMIO_GFN_BITS & ~KVM_MMIO_MOVED) |
                    (e >> KVM_MMIO_MOVED_BITS & KVM_MMIO_MOVED);

    return gfn(addr >> PAGE_SHIFT);
}

static inline uint64_t kvm_pte_load(const uint64_t *e)
{
    return __atomic_load_n(e, __ATOMIC_ACQUIRE);
}

/* Does a page's entry allow an access of EPT_VIOL_READ/WRITE/FETCH bits? */
static inline bool kvm_pte_allows(const struct kvm_pte_format *fmt, uint64_t e, uint32_t access)
{
    return (e & fmt->read) == fmt->read && (!(access & EPT_VIOL_WRITE) || (e & KVM_PTE_W)) &&
           (!(access & EPT_VIOL_FETCH) || ((e & fmt->exec) == fmt->exec && !(e & fmt->no_exec)));
}

/* Is the use of this page watched by way of having no rights? */
static inline bool kvm_pte_is_tracked(const struct kvm_pte_format *fmt, uint64_t e)
{
    return fmt->track && kvm_pte_in_use(e) && !(e & fmt->track);
}

static inline bool kvm_pte_is_young(const struct kvm_pte_format *fmt, uint64_t e)
{
    return fmt->track ? !kvm_pte_is_tracked(fmt, e) : (e & fmt->accessed) != 0;
}

/* The entry of a page not used until it is used again; and back, without W. */
static inline uint64_t kvm_pte_make_old(const struct kvm_pte_format *fmt, uint64_t e)
{
    if (!fmt->track) {
        return e & ~fmt->accessed;
    }
    return kvm_pte_is_tracked(fmt, e)
               ? e
               : (e & ~fmt->track) | (e & fmt->track & ~KVM_PTE_W) << fmt->track_shift;
}

static inline uint64_t kvm_pte_untrack(const struct kvm_pte_format *fmt, uint64_t e)
{
    uint64_t saved = (fmt->track & ~KVM_PTE_W) << fmt->track_shift;

    return kvm_pte_is_tracked(fmt, e) ? (e & ~saved) | (e & saved) >> fmt->track_shift : e;
}

static inline uint64_t *kvm_pte_slot(const struct kvm_vm *vm, hpa_t table, gfn_t f, unsigned level)
{
    uint64_t *t = host_table_at(vm->s->hm, table);

    return t + pt_index(f.v << PAGE_SHIFT, level);
}

/* The entry of `level` on the way to f, or null when the way ends above. Lock: shared or exclusive. */
uint64_t *kvm_pte_find(const struct kvm_vm *vm, gfn_t f, unsigned level);

/* The entry that ends the way to f: the leaf, or the first that is no table. Lock: as above, or a
 * walk section. */
uint64_t *kvm_pte_find_leaf(const struct kvm_vm *vm, gfn_t f, unsigned *level);

/*
 * The funnel. Change an entry from `old` to `new`; false when it was not `old` any more (nothing done
 * then). Lock: shared. A table entry is never replaced this way.
 */
bool kvm_pte_exchange(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, uint64_t new)
    must_check;

/* The same under the exclusive lock: cannot fail; a table that goes is put on `dead` with all below
 * it. Sets dead->flush when processors may hold something of the old entry. Returns the old value. */
uint64_t kvm_pte_set(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t new,
                     struct kvm_dead_tables *dead);

/* For arch/radix.h: pointer to a table; ctx is the struct host_memory. */
const void *kvm_pte_table_ptr(void *ctx, uint64_t addr, unsigned level);

#endif
