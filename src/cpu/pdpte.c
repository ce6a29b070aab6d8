/*
 * PAE's four top entries, which are registers: loaded with CR3, not walked.
 *
 * Locks: the processor's own thread.
 */
#include <string.h>

#include "arch/paging.h"
#include "arch/regs.h"
#include "cpu/exception.h"
#include "cpu/guest_mem.h"
#include "cpu/shadow.h"
#include "cpu/walk.h"

/* CR3 was set from outside: its PDPTEs are loaded when they are needed, as memory may not have been there. One with
 * reserved bits, which MOV to CR3 would have refused, counts as not present. */
enum cpu_xlate_result cpu_reload_pdptes(struct cpu *cpu, struct cpu_xlate *x)
{
    uint64_t reserved = (~((UINT64_C(1) << cpu->maxphyaddr) - 1)) | UINT64_C(0x1e6);
    enum cpu_xlate_result res;
    uint8_t *host;

    res = cpu_gtab_host(cpu, x, cpu->cr3 & UINT64_C(0xffffffe0), false, &host);
    if (res != CPU_XLATE_OK) {
        return res;
    }
    for (unsigned i = 0; i < 4; i++) {
        uint64_t pdpte = cpu_guest_get64(host + 8 * i);

        cpu->pdptr[i] = pdpte & reserved ? 0 : pdpte;
    }
    cpu->pdptes_stale = 0;
    return CPU_XLATE_OK;
}

/*
 * PAE's four top entries; see walk.h.
 * Source: Intel, "PDPTE registers": loaded with CR3 or on changes of CR0 and CR4 that concern paging.
 */
bool cpu_load_pdptes(struct cpu *cpu, const struct cpu_op *op, uint64_t cr3)
{
    uint64_t reserved = (~((UINT64_C(1) << cpu->maxphyaddr) - 1)) | UINT64_C(0x1e6);
    struct cpu_xlate x = {.access = CPU_ACCESS_READ};
    enum cpu_xlate_result res;
    uint64_t pdpte[4];
    uint8_t *host;

    if (cpu->shadow.on) {
        if (!cpu_shadow_pdptes(cpu, op, cr3, pdpte)) {
            return false;
        }
        host = (uint8_t *)pdpte;
        res = CPU_XLATE_OK;
    } else {
        res = cpu_gtab_host(cpu, &x, cr3 & UINT64_C(0xffffffe0), false, &host);
    }
    if (res != CPU_XLATE_OK) {
        cpu_exit_second_stage(cpu, &x, res);
        cpu_sync_rip(cpu, op);
        return false;
    }
    for (unsigned i = 0; i < 4; i++) {
        pdpte[i] = cpu_guest_get64(host + 8 * i);
        if ((pdpte[i] & X86_PTE_P) && (pdpte[i] & reserved)) {
            return cpu_raise_code(cpu, op, X86_GP, 0);
        }
    }
    memcpy(cpu->pdptr, pdpte, sizeof(pdpte));
    cpu->pdptes_stale = 0;
    return true;
}
