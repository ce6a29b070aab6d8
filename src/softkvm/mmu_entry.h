/*
 * Second-stage entries: their software bits, how they are made, and the funnel that changes them.
 *
 *   63   62..59    58     57    56..52 51..12  11 10  9 8 7    6    5..3  2 1 0
 *   .    .         MMU-W  host-W  .    pfn     .  .   D A PS   IPAT mt    X W R     a page
 *   .    gen 18..8 (62..52)            gfn     .  gen 7..0 (10..3)        1 1 0     MMIO
 *   .    .                             pfn     .  .   . A .    .    .     1 1 1     a table
 *
 * MMU-W: the slot and the MMU allow writing, so the fast path may set W by itself; host-W: the host's
 * entry was writable when this one was made. An MMIO entry is a write-without-read combination, which
 * the processor reports as a misconfiguration.
 */
#ifndef STRATA_SOFTKVM_MMU_ENTRY_H
#define STRATA_SOFTKVM_MMU_ENTRY_H

#include "arch/paging.h"
#include "softkvm/vm.h"

#define KVM_EPT_HOST_W (UINT64_C(1) << 57)
#define KVM_EPT_MMU_W  (UINT64_C(1) << 58)

#define KVM_EPT_MMIO_VALUE (EPT_W | EPT_X)
#define KVM_EPT_GEN_LOW    (UINT64_C(0xff) << 3)
#define KVM_EPT_GEN_HIGH   (UINT64_C(0x7ff) << 52)
#define KVM_MMIO_GEN_BITS  19
#define KVM_MMIO_GEN_MASK  ((UINT64_C(1) << KVM_MMIO_GEN_BITS) - 1)

_Static_assert((KVM_EPT_HOST_W & KVM_EPT_MMU_W) == 0, "software bits overlap");
_Static_assert(((KVM_EPT_HOST_W | KVM_EPT_MMU_W) & (EPT_ADDR_MASK | 0xfff)) == 0,
               "software bits lie outside of what the processor reads");
_Static_assert(((KVM_EPT_GEN_LOW | KVM_EPT_GEN_HIGH) & (EPT_ADDR_MASK | EPT_RWX)) == 0,
               "generation bits spare frame and rights");

static inline bool kvm_ept_is_mmio(uint64_t e)
{
    return (e & EPT_RWX) == KVM_EPT_MMIO_VALUE;
}

static inline bool kvm_ept_is_present(uint64_t e)
{
    return (e & EPT_RWX) != 0;
}

/* Present, maps a page of memory. */
static inline bool kvm_ept_is_page(uint64_t e, unsigned level)
{
    return kvm_ept_is_present(e) && !kvm_ept_is_mmio(e) && (level == 1 || (e & EPT_PS));
}

static inline bool kvm_ept_is_table(uint64_t e, unsigned level)
{
    return level > 1 && kvm_ept_is_present(e) && !kvm_ept_is_mmio(e) && !(e & EPT_PS);
}

static inline uint64_t kvm_ept_mmio(gfn_t f, uint64_t generation)
{
    uint64_t gen = generation & KVM_MMIO_GEN_MASK;

    return KVM_EPT_MMIO_VALUE | f.v << PAGE_SHIFT | (gen & 0xff) << 3 | (gen >> 8) << 52;
}

static inline uint64_t kvm_ept_mmio_generation(uint64_t e)
{
    return (e & KVM_EPT_GEN_LOW) >> 3 | ((e & KVM_EPT_GEN_HIGH) >> 52) << 8;
}

static inline uint64_t kvm_ept_table(hpa_t table)
{
    return table.v | EPT_RWX | EPT_A;
}

static inline uint64_t kvm_ept_load(const uint64_t *e)
{
    return __atomic_load_n(e, __ATOMIC_ACQUIRE);
}

/* Does the entry allow an access of EPT_VIOL_READ/WRITE/FETCH bits? They lie as EPT's rights do. */
static inline bool kvm_ept_allows(uint64_t e, uint32_t access)
{
    return !kvm_ept_is_mmio(e) && (e & access & EPT_RWX) == (access & EPT_RWX);
}

static inline uint64_t *kvm_ept_slot(const struct kvm_vm *vm, hpa_t table, gfn_t f, unsigned level)
{
    uint64_t *t = host_table_at(vm->s->hm, table);

    return t + pt_index(f.v << PAGE_SHIFT, level);
}

/* The entry of `level` on the way to f, or null when the way ends above. Lock: shared or exclusive. */
uint64_t *kvm_ept_find(const struct kvm_vm *vm, gfn_t f, unsigned level);

/* The entry that ends the way to f: the leaf, or the first that is no table. Lock: as above. */
uint64_t *kvm_ept_find_leaf(const struct kvm_vm *vm, gfn_t f, unsigned *level);

/*
 * The funnel. Change an entry from `old` to `new`; false when it was not `old` any more (nothing done
 * then). Lock: shared. A table entry is never replaced this way.
 */
bool kvm_ept_exchange(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t old, uint64_t new)
    must_check;

/* The same under the exclusive lock: cannot fail; a table that goes is put on `dead` with all below
 * it. Sets dead->flush when processors may hold something of the old entry. Returns the old value. */
uint64_t kvm_ept_set(struct kvm_vm *vm, uint64_t *e, unsigned level, uint64_t new,
                     struct kvm_dead_tables *dead);

/* For arch/radix.h: pointer to a table; ctx is the struct host_memory. */
const void *kvm_ept_table_ptr(void *ctx, uint64_t addr, unsigned level);

#endif
