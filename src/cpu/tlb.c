/*
 * Flushing and switching of translations; see tlb.h for the structures. Nothing here walks over the TLB but
 * the wrap of the 12-bit generations, once in 4,095 flushes.
 *
 * Locks: the processor's own thread.
 */
#include "cpu/tlb.h"

#include <stdlib.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/block.h"
#include "cpu/shadow.h"

#define GEN_MAX 4095u

struct cpu_mmu *cpu_mmu_new(void)
{
    struct cpu_mmu *mmu = aligned_alloc(64, (sizeof(*mmu) + 63) & ~(size_t)63);

    if (mmu) {
        memset(mmu, 0, sizeof(*mmu));
        mmu->next_gen = 1;
        mmu->next_key = 1;
        mmu->psc_key = 1;
        mmu->guest_key = 1;
        mmu->stage2_key = 1;
    }
    return mmu;
}

void cpu_mmu_free(struct cpu_mmu *mmu)
{
    free(mmu);
}

/* All generations are used up: make every tag that is in use invalid, and begin at 1. */
static void generations_wrap(struct cpu_mmu *mmu)
{
    memset(mmu->tlb, 0, sizeof(mmu->tlb));
    memset(mmu->itlb, 0, sizeof(mmu->itlb));
    memset(mmu->psc, 0, sizeof(mmu->psc));
    memset(mmu->pcids, 0, sizeof(mmu->pcids));
    mmu->next_gen = 1;
}

static void set_key(struct cpu *cpu, unsigned half, uint32_t key)
{
    cpu->code_key[half] = (uint64_t)key << 32 | cpu->mode;
}

static uint32_t fresh_key(struct cpu_mmu *mmu)
{
    /* A key that comes round after 2^32 flushes would have to meet a block not entered since. */
    if (++mmu->next_key == 0) {
        mmu->next_key = 1;
    }
    return mmu->next_key;
}

static void lower_renew(struct cpu *cpu, unsigned pcid)
{
    struct cpu_mmu *mmu = cpu->mmu;

    mmu->pcids[pcid].gen = mmu->next_gen++;
    mmu->pcids[pcid].key = fresh_key(mmu);
}

static void lower_use(struct cpu *cpu, unsigned pcid)
{
    struct cpu_mmu *mmu = cpu->mmu;
    uint32_t window = pcid % CPU_TLB_WINDOWS * CPU_TLB_STEP;

    if (cpu->tlb && cpu->tlb != mmu->tlb[CPU_TLB_NONE]) {
        cpu->tlb += (int64_t)window - mmu->window;
    }
    mmu->window = window;
    mmu->windows_used |= 1u << pcid % CPU_TLB_WINDOWS;
    mmu->pcid = (uint16_t)pcid;
    cpu->tlb_gen[0] = mmu->pcids[pcid].gen;
    set_key(cpu, 0, mmu->pcids[pcid].key);
}

static void upper_renew(struct cpu *cpu)
{
    struct cpu_mmu *mmu = cpu->mmu;

    cpu->tlb_gen[1] = mmu->next_gen++;
    set_key(cpu, 1, fresh_key(mmu));
    mmu->upper_has_local = false;
    mmu->windows_used = 1u << mmu->pcid % CPU_TLB_WINDOWS;
}

/* Make room for the two generations that one flush may take. True: everything was forgotten, and both
 * halves have new ones. */
static bool make_room(struct cpu *cpu)
{
    if (likely(cpu->mmu->next_gen + 2u <= GEN_MAX)) {
        return false;
    }
    generations_wrap(cpu->mmu);
    lower_renew(cpu, cpu->mmu->pcid);
    lower_use(cpu, cpu->mmu->pcid);
    upper_renew(cpu);
    return true;
}

/* What the paging-structure cache knows cannot even be checked any more. */
static void psc_drop(struct cpu_mmu *mmu)
{
    if (++mmu->guest_key == 0) {
        memset(mmu->psc, 0, sizeof(mmu->psc));
        mmu->guest_key = 1;
    }
}

/* Forget the guest's translations, global ones and all PCIDs included. Lock: own thread. */
void cpu_tlb_flush_guest(struct cpu *cpu)
{
    struct cpu_mmu *mmu = cpu->mmu;

    cpu->counters.tlb_flushes++;
    cpu_shadow_forget_grants(cpu);
    psc_drop(mmu);
    memset(mmu->pcids, 0, sizeof(mmu->pcids));
    memset(mmu->code_pages, 0, sizeof(mmu->code_pages));
    memset(mmu->large_pages, 0, sizeof(mmu->large_pages));
    mmu->has_1g = false;
    if (!make_room(cpu)) {
        lower_renew(cpu, mmu->pcid);
        lower_use(cpu, mmu->pcid);
        upper_renew(cpu);
    }
}

/* Forget everything, second stage included. Lock: own thread. */
void cpu_tlb_flush_all(struct cpu *cpu)
{
    memset(cpu->device_write_page, 0, sizeof(cpu->device_write_page)); /* the slots may be others */
    if (++cpu->mmu->stage2_key == 0) {
        memset(cpu->mmu->epsc, 0, sizeof(cpu->mmu->epsc));
        memset(cpu->mmu->gtab, 0, sizeof(cpu->mmu->gtab));
        cpu->mmu->stage2_key = 1;
    }
    cpu_tlb_flush_guest(cpu);
}

/* Where guest tables are must be looked at again. */
static void psc_renew(struct cpu_mmu *mmu)
{
    if (++mmu->psc_key == 0) {
        memset(mmu->psc, 0, sizeof(mmu->psc));
        mmu->psc_key = 1;
    }
}

/* Entries of the upper half that are not global belong to one address space; go if there are any. */
static void upper_switch(struct cpu *cpu)
{
    if (cpu->mmu->upper_has_local) {
        upper_renew(cpu);
    }
}

/* See tlb.h. Source: Intel, "Operations that invalidate TLBs": MOV to CR3. Lock: own thread. */
void cpu_tlb_load_cr3(struct cpu *cpu, uint64_t value)
{
    bool has_pcid = (cpu->cr4 & X86_CR4_PCIDE) != 0;
    unsigned pcid = has_pcid ? (unsigned)value & X86_CR3_PCID_MASK : 0;
    bool keep = has_pcid && (value & X86_CR3_NOFLUSH);

    cpu->cr3 = has_pcid ? value & ~X86_CR3_NOFLUSH : value;
    cpu_shadow_unload(cpu);
    if (make_room(cpu)) {
        keep = false;
    }
    if (!keep || cpu->mmu->pcids[pcid].gen == 0) {
        lower_renew(cpu, pcid);
        psc_renew(cpu->mmu);
    }
    lower_use(cpu, pcid);
    upper_switch(cpu);
}

/* INVPCID type 1. Source: Intel, INVPCID. Lock: own thread. */
void cpu_tlb_flush_pcid(struct cpu *cpu, unsigned pcid)
{
    struct cpu_mmu *mmu = cpu->mmu;

    if (pcid != mmu->pcid) {
        mmu->pcids[pcid & (CPU_PCIDS - 1)].gen = 0;
        return;
    }
    psc_renew(mmu);
    if (!make_room(cpu)) {
        lower_renew(cpu, pcid);
        lower_use(cpu, pcid);
        upper_switch(cpu);
    }
}

/* INVPCID type 3. Lock: own thread. */
void cpu_tlb_flush_local(struct cpu *cpu)
{
    memset(cpu->mmu->pcids, 0, sizeof(cpu->mmu->pcids));
    cpu_tlb_flush_pcid(cpu, cpu->mmu->pcid);
}

static unsigned filter_bit(uint64_t unit)
{
    return (unsigned)(unit ^ unit >> 12) & 4095;
}

static bool filter_has(const uint64_t *filter, uint64_t unit)
{
    return filter[filter_bit(unit) / 64] >> filter_bit(unit) % 64 & 1;
}

void cpu_tlb_note_code(struct cpu *cpu, uint64_t la)
{
    unsigned bit = filter_bit(la >> PAGE_SHIFT);

    cpu->mmu->code_pages[bit / 64] |= UINT64_C(1) << bit % 64;
}

void cpu_tlb_note_large(struct cpu *cpu, uint64_t la)
{
    unsigned bit = filter_bit(la >> 21);

    cpu->mmu->large_pages[bit / 64] |= UINT64_C(1) << bit % 64;
}

static inline void entry_drop(struct cpu_tlb_entry *e, uint64_t tag)
{
    if (e->tag_r == tag) {
        e->tag_r = 0;
        __atomic_store_n(&e->tag_w, 0, __ATOMIC_RELAXED);
    }
}

/* The lower half's generation is the PCID's, which has one window; the upper half's may be in all that were used. */
static void page_drop(struct cpu *cpu, uint64_t la)
{
    struct cpu_mmu *mmu = cpu->mmu;
    uint64_t tag = cpu_tlb_tag(cpu, la);

    for (unsigned set = 0; set < CPU_TLB_NONE; set++) {
        entry_drop(cpu_tlb_entry_of(cpu, set, la), tag);
    }
    if (la >> 63 && (mmu->windows_used & (mmu->windows_used - 1))) {
        for (unsigned set = 0; set < CPU_TLB_NONE; set++) {
            for (unsigned w = 0; w < CPU_TLB_WINDOWS; w++) {
                entry_drop(&mmu->tlb[set][w * CPU_TLB_STEP + cpu_tlb_index(la)], tag);
            }
        }
    }
}

/* New code key for a half: whatever was known of code there must be looked up again. */
static void code_drop(struct cpu *cpu, unsigned half)
{
    uint32_t key = fresh_key(cpu->mmu);

    set_key(cpu, half, key);
    if (half == 0) {
        cpu->mmu->pcids[cpu->mmu->pcid].key = key;
    }
    memset(cpu->mmu->itlb, 0, sizeof(cpu->mmu->itlb));
}

/* All of the 2 MiB at `first`; everything, if pages may be larger still. */
static void large_drop(struct cpu *cpu, uint64_t first)
{
    if (cpu->mmu->has_1g) {
        cpu_tlb_flush_guest(cpu);
        return;
    }
    for (uint64_t off = 0; off < UINT64_C(0x200000); off += PAGE_SIZE) {
        page_drop(cpu, first + off);
    }
    code_drop(cpu, first >> 63);
}

/* INVLPG; see tlb.h. Source: Intel, INVLPG: all structure caches of the PCID go too. Lock: own thread. */
void cpu_tlb_flush_page(struct cpu *cpu, uint64_t la)
{
    struct cpu_mmu *mmu = cpu->mmu;

    la &= PAGE_MASK;
    psc_renew(mmu);
    if (unlikely(filter_has(mmu->large_pages, la >> 21))) {
        large_drop(cpu, la & ~UINT64_C(0x1fffff));
        return;
    }
    page_drop(cpu, la);
    if (unlikely(filter_has(mmu->code_pages, la >> PAGE_SHIFT))) {
        code_drop(cpu, la >> 63);
    }
}

/* INVPCID type 0. Another PCID loses all its entries, which is allowed and rare. Lock: own thread. */
void cpu_tlb_flush_pcid_page(struct cpu *cpu, unsigned pcid, uint64_t la)
{
    if (pcid == cpu->mmu->pcid) {
        cpu_tlb_flush_page(cpu, la);
    } else {
        cpu_tlb_flush_pcid(cpu, pcid);
    }
}

/* Choose the TLB array for the privilege, and put the mode into the code keys. Lock: own thread. */
void cpu_mode_changed(struct cpu *cpu)
{
    enum cpu_tlb_set set = CPU_TLB_SUPER_AC;

    if (cpu->mode & CPU_MODE_TF) {
        set = CPU_TLB_NONE; /* data breakpoints */
    } else if (cpu->cpl == 3) {
        bool checks = (cpu->cr0 & X86_CR0_AM) && (cpu->rflags_rest & X86_AC);

        set = checks ? CPU_TLB_NONE : CPU_TLB_USER;
    } else if ((cpu->cr4 & X86_CR4_SMAP) && !(cpu->rflags_rest & X86_AC)) {
        set = CPU_TLB_SUPER;
    }
    cpu->tlb = &cpu->mmu->tlb[set][set == CPU_TLB_NONE ? 0 : cpu->mmu->window];
    set_key(cpu, 0, (uint32_t)(cpu->code_key[0] >> 32));
    set_key(cpu, 1, (uint32_t)(cpu->code_key[1] >> 32));
}
