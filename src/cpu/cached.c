/*
 * What a processor remembers of the second stage, told to who checks it: frames in the TLB, tables in the
 * second-stage structure cache. Entries of generations that can no longer match are left out, and so is
 * everything while a flush is asked for.
 *
 * Locks: the processor does not run meanwhile (the caller's affair).
 */
#include "cpu/run.h"

#include <string.h>

#include "cpu/request.h"
#include "cpu/tlb.h"
#include "host/frame.h"

/* Can a tag still match? */
struct live {
    bool lower[4096];
    uint16_t upper;
};

static void live_generations(const struct cpu *cpu, struct live *live)
{
    memset(live, 0, sizeof(*live));
    for (unsigned i = 0; i < CPU_PCIDS; i++) {
        live->lower[cpu->mmu->pcids[i].gen & 4095] = true;
    }
    live->lower[0] = false;
    live->upper = (uint16_t)cpu->tlb_gen[1];
}

static bool is_live(const struct live *live, uint64_t tag)
{
    unsigned gen = (unsigned)tag & 4095;

    return tag && (tag >> 63 ? gen == live->upper : live->lower[gen]);
}

/* See run.h. Lock: the processor is outside cpu_run() and stays there. */
void cpu_cached_for_each(const struct cpu *cpu, cpu_cached_fn *fn, void *opaque)
{
    const struct cpu_mmu *mmu = cpu->mmu;
    struct live live;

    if (atomic_load_explicit(&cpu->inbox.requests, memory_order_seq_cst) & CPU_REQ_FLUSH) {
        return;
    }
    live_generations(cpu, &live);
    for (unsigned set = 0; set < CPU_TLB_NONE; set++) {
        for (unsigned i = 0; i < CPU_TLB_SIZE; i++) {
            const struct cpu_tlb_entry *e = &mmu->tlb[set][i];

            if (is_live(&live, e->tag_r)) {
                bool writable = __atomic_load_n(&e->tag_w, __ATOMIC_RELAXED) == e->tag_r || (e->info & CPU_TLBI_CODE_W);

                fn(opaque, writable ? CPU_CACHED_WRITE : CPU_CACHED_READ, e->info >> PAGE_SHIFT);
            }
        }
    }
    for (unsigned i = 0; i < 2 * CPU_ITLB_SIZE; i++) {
        const struct cpu_itlb_entry *e = &mmu->itlb[i / CPU_ITLB_SIZE][i % CPU_ITLB_SIZE];

        if (is_live(&live, e->tag)) {
            fn(opaque, CPU_CACHED_READ, e->pfn);
        }
    }
    for (unsigned i = 0; i < CPU_EPSC_SIZE; i++) {
        const struct cpu_epsc_entry *e = &mmu->epsc[i];

        if (e->tag && e->key == mmu->stage2_key) {
            fn(opaque, CPU_CACHED_TABLE, host_table_hpa(cpu->mem, e->table).v >> PAGE_SHIFT);
        }
    }
}
