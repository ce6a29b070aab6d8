/*
 * Code pages: from linear address to the host's bytes for the decoder, and exits that the second stage causes, which
 * data accesses share.
 *
 * Invariant: a page that has been found is in the filter of code pages (tlb.h), so INVLPG knows of it.
 *
 * Locks: the processor's own thread.
 */
#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/access.h"
#include "cpu/shadow.h"
#include "cpu/walk.h"

/* EXITINFO1 of a nested page fault. Source: AMD, "Nested versus guest page faults, fault ordering". */
static uint64_t npf_code(const struct cpu_xlate *x, enum cpu_xlate_result res)
{
    uint64_t code = NPF_USER | (x->final ? NPF_FINAL : NPF_GUEST_TABLE);

    if (res == CPU_XLATE_MISCONFIG) {
        code |= NPF_PRESENT | NPF_RESERVED;
    } else if (x->nested.present) {
        code |= NPF_PRESENT;
    }
    code |= x->nested.qualification & EPT_VIOL_WRITE ? NPF_WRITE : 0;
    return code | (x->nested.qualification & EPT_VIOL_FETCH ? NPF_FETCH : 0);
}

/*
 * Record that the second stage refused a translation: reason, addresses, qualification. No access is described
 * (size 0): the caller adds it. An instruction that has begun to touch a device is to be restarted alone.
 */
void cpu_exit_second_stage(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res)
{
    static const enum cpu_exit_reason ept_reason[] = {
        [CPU_XLATE_VIOLATION] = CPU_EXIT_EPT_VIOLATION,
        [CPU_XLATE_MISCONFIG] = CPU_EXIT_EPT_MISCONFIG,
        [CPU_XLATE_PML_FULL] = CPU_EXIT_PML_FULL,
    };
    struct cpu_exit *ex = &cpu->exit;

    ex->reason = cpu->npt_levels ? CPU_EXIT_NPF : ept_reason[res];
    ex->ept.gpa = gpa(x->gpa);
    ex->ept.gva = gva(x->la);
    ex->ept.qualification = x->nested.qualification | EPT_VIOL_GVA | (x->final ? EPT_VIOL_FINAL : 0);
    ex->ept.error_code = npf_code(x, res);
    ex->ept.size = 0;
    ex->ept.is_write = false;
    if (res == CPU_XLATE_VIOLATION) {
        cpu->counters.ept_violations++;
    } else if (res == CPU_XLATE_MISCONFIG) {
        cpu->counters.ept_misconfigs++;
    }
    if (cpu->replay.count) {
        cpu->restart_alone = 1;
    }
}

/* Record what a fetch met; RIP is the caller's. */
static bool fetch_failed(struct cpu *cpu, const struct cpu_xlate *x, enum cpu_xlate_result res)
{
    if (unlikely(cpu->shadow.on) && res != CPU_XLATE_CANONICAL) {
        cpu_shadow_refused(cpu, NULL, x, res == CPU_XLATE_FAULT);
        return false;
    }
    if (res >= CPU_XLATE_VIOLATION) {
        cpu_exit_second_stage(cpu, x, res);
        return false;
    }
    cpu->fault = (struct cpu_event){.type = CPU_EVENT_EXCEPTION, .vector = X86_GP, .has_error = 1};
    if (res == CPU_XLATE_FAULT) {
        cpu->fault.vector = X86_VEC_PF;
        cpu->fault.error = x->error_code;
        cpu->fault.payload = x->la;
    }
    return false;
}

bool cpu_fetch_page(struct cpu *cpu, uint64_t la, const uint8_t **host, uint64_t *pfn)
{
    struct cpu_itlb_entry *e = &cpu->mmu->itlb[cpu->cpl == 3][(la >> PAGE_SHIFT) % CPU_ITLB_SIZE];
    struct cpu_xlate x = {.la = la, .access = CPU_ACCESS_FETCH,
                          .priv = cpu->cpl == 3 ? CPU_PRIV_USER : CPU_PRIV_SUPER_AC};
    uint64_t tag = cpu_tlb_tag(cpu, la);
    enum cpu_xlate_result res;

    if (unlikely(e->tag != tag)) {
        res = cpu_xlate(cpu, &x);
        if (unlikely(res != CPU_XLATE_OK)) {
            return fetch_failed(cpu, &x, res);
        }
        *e = (struct cpu_itlb_entry){tag, x.nested.host, x.nested.pfn};
        cpu_tlb_note_code(cpu, la);
        if (x.page_level > 1) {
            cpu_tlb_note_large(cpu, la);
            cpu->mmu->has_1g |= x.page_level > 2;
        }
        if (la >> 63 && !((x.rights & CPU_RIGHT_G) && (cpu->cr4 & X86_CR4_PGE))) {
            cpu->mmu->upper_has_local = true;
        }
    }
    *host = e->host;
    *pfn = e->pfn;
    return true;
}
