/*
 * A processor that executes nothing: the functions of cpu/run.h and cpu/regs.h that softkvm calls, so
 * that slots, second stage and ioctls can be tested without an interpreter. cpu_run() returns what
 * the test has put into fake_next.
 */
#include "fake_cpu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arch/regs.h"
#include "cpu/fpu.h"
#include "cpu/regs.h"

#include "cpu/run.h"
#include "cpu/shadow.h"

struct cpu_peers {
    int nothing;
};

struct fake_cpu_hooks fake_cpu;

struct cpu_peers *cpu_peers_new(void)
{
    return calloc(1, sizeof(struct cpu_peers));
}

void cpu_peers_free(struct cpu_peers *peers)
{
    free(peers);
}

struct cpu *cpu_new(struct host_memory *mem, struct cpu_peers *peers, unsigned index)
{
    struct cpu *cpu = aligned_alloc(64, (sizeof(*cpu) + 63) & ~(size_t)63);

    memset(cpu, 0, sizeof(*cpu));
    cpu->mem = mem;
    cpu->index = index;
    return cpu;
}

void cpu_free(struct cpu *cpu)
{
    free(cpu);
}

void cpu_reset(struct cpu *cpu, bool init)
{
    cpu->rip = 0xfff0;
    cpu->cr0 = 0x60000010;
}

void cpu_sipi(struct cpu *cpu, uint8_t vector)
{
    cpu->rip = (uint64_t)vector << 12;
}

void cpu_enter(struct cpu *cpu)
{
    atomic_store(&cpu->inbox.in_guest, 1);
}

void cpu_leave(struct cpu *cpu)
{
    atomic_store(&cpu->inbox.in_guest, 0);
}

enum cpu_exit_reason cpu_run(struct cpu *cpu)
{
    enum cpu_exit_reason reason = fake_cpu.run ? fake_cpu.run(cpu) : CPU_EXIT_HLT;

    cpu_leave(cpu);
    return reason;
}

enum cpu_exit_reason cpu_resume(struct cpu *cpu)
{
    return cpu_run(cpu);
}

void cpu_complete_read(struct cpu *cpu, const void *data, unsigned size)
{
    memcpy(cpu->replay.entry[0].data, data, size);
    cpu->replay.entry[0].size = (uint8_t)size;
}

void cpu_complete_in(struct cpu *cpu, const void *data, unsigned count)
{
    cpu_complete_read(cpu, data, cpu->exit.io.size * count);
}

enum cpu_exit_reason cpu_finish(struct cpu *cpu)
{
    return cpu_run(cpu);
}

bool cpu_must_finish(const struct cpu *cpu)
{
    (void)cpu;
    return false;
}

void cpu_skip_insn(struct cpu *cpu)
{
    cpu->rip += cpu->exit.insn_len;
}

void cpu_inject(struct cpu *cpu, const struct cpu_event *ev)
{
    cpu->event = *ev;
}

bool cpu_interrupt_allowed(const struct cpu *cpu)
{
    return (cpu->rflags_rest & 0x200) != 0;
}

bool cpu_nmi_allowed(const struct cpu *cpu)
{
    return !cpu->nmi_blocked;
}

void cpu_state_changed(struct cpu *cpu)
{
}

void cpu_kick(struct cpu *cpu)
{
}

void cpu_request_flush(struct cpu *cpu)
{
    if (fake_cpu.flush) {
        fake_cpu.flush(cpu);
    }
}

void cpu_cached_for_each(const struct cpu *cpu, cpu_cached_fn *fn, void *opaque)
{
}

void cpu_request_flush_wait(struct cpu *cpu)
{
}

int cpu_translate(struct cpu *cpu, gva_t va, uint32_t access, gpa_t *out)
{
    out->v = va.v;
    return 0;
}

void cpu_get_regs(const struct cpu *cpu, struct cpu_regs *out)
{
    memcpy(out->gpr, cpu->regs, sizeof(out->gpr));
    out->rip = cpu->rip;
    out->rflags = cpu->rflags_rest;
}

void cpu_set_regs(struct cpu *cpu, const struct cpu_regs *in)
{
    memcpy(cpu->regs, in->gpr, sizeof(in->gpr));
    cpu->rip = in->rip;
    cpu->rflags_rest = (uint32_t)in->rflags;
}

void cpu_get_sregs(const struct cpu *cpu, struct cpu_sregs *out)
{
    memset(out, 0, sizeof(*out));
    memcpy(out->seg, cpu->seg, sizeof(out->seg));
    out->cr0 = cpu->cr0;
    out->cr3 = cpu->cr3;
    out->cr4 = cpu->cr4;
    out->efer = cpu->efer;
}

int cpu_set_sregs(struct cpu *cpu, const struct cpu_sregs *in)
{
    memcpy(cpu->seg, in->seg, sizeof(in->seg));
    cpu->cr0 = in->cr0;
    cpu->cr3 = in->cr3;
    cpu->cr4 = in->cr4;
    cpu->efer = in->efer;
    return 0;
}

void cpu_get_dregs(const struct cpu *cpu, struct cpu_dregs *out)
{
    memset(out, 0, sizeof(*out));
}

int cpu_set_dregs(struct cpu *cpu, const struct cpu_dregs *in)
{
    return 0;
}

void cpu_set_guest_debug(struct cpu *cpu, const struct cpu_guest_debug *in)
{
    cpu->single_step = in->single_step;
}

void cpu_get_events(const struct cpu *cpu, struct cpu_events *out)
{
    *out = (struct cpu_events){.event = cpu->event, .nmi_blocked = cpu->nmi_blocked};
}

void cpu_set_events(struct cpu *cpu, const struct cpu_events *in)
{
    cpu->event = in->event;
    cpu->nmi_blocked = in->nmi_blocked;
}

int cpu_get_msr(const struct cpu *cpu, uint32_t index, uint64_t *value)
{
    return -ENOENT;
}

int cpu_set_msr_guest(struct cpu *cpu, uint32_t index, uint64_t value)
{
    return cpu_set_msr(cpu, index, value);
}

int cpu_set_msr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    return -ENOENT;
}

int cpu_set_xcr(struct cpu *cpu, uint32_t index, uint64_t value)
{
    cpu->xcr0 = value;
    return 0;
}

uint64_t cpu_read_tsc(const struct cpu *cpu)
{
    return 0;
}

void cpu_fxsave_image(const struct cpu *cpu, void *image)
{
    memset(image, 0, 512);
}

int cpu_fxrstor_image(struct cpu *cpu, const void *image)
{
    return 0;
}

/* ---- shadow paging: the silicon's side, as far as the hypervisor sees it (cpu/shadow.c) ---- */

void cpu_shadow_enable(struct cpu *cpu, bool on)
{
    memset(&cpu->shadow, 0, sizeof(cpu->shadow));
    cpu->shadow.on = on;
    cpu->shadow.levels = 4;
}

void cpu_shadow_load(struct cpu *cpu, const struct cpu_shadow_root *r)
{
    cpu->shadow.levels = r->levels;
    cpu->shadow.root = r->levels == 3 ? 1 : r->root.v;
    memcpy(cpu->shadow.pdptr, r->pdptr, sizeof(cpu->shadow.pdptr));
    cpu->shadow.cr0 = r->cr0;
    cpu->shadow.cr4 = r->cr4;
    cpu->shadow.efer = r->efer;
}

void cpu_shadow_unload(struct cpu *cpu)
{
    cpu->shadow.root = 0;
    cpu->shadow.nr_grants = 0;
}

void cpu_shadow_give_pdptes(struct cpu *cpu, uint64_t cr3, const uint64_t pdptes[4])
{
    cpu->shadow.pdptes_given = true;
    cpu->shadow.pdptes_cr3 = cr3;
    memcpy(cpu->shadow.pdptes, pdptes, sizeof(cpu->shadow.pdptes));
}

void cpu_shadow_grant(struct cpu *cpu, const struct cpu_grant *g)
{
    cpu->shadow.grant[cpu->shadow.nr_grants++ % CPU_GRANTS] = *g;
}

bool cpu_shadow_is_granted(const struct cpu *cpu, uint64_t la, bool user)
{
    for (unsigned i = 0; i < cpu->shadow.nr_grants && i < CPU_GRANTS; i++) {
        if (cpu->shadow.grant[i].page == (la & PAGE_MASK) && cpu->shadow.grant[i].user == user) {
            return true;
        }
    }
    return false;
}

bool cpu_shadow_reflect(struct cpu *cpu, uint32_t code)
{
    cpu->fault = (struct cpu_event){.type = CPU_EVENT_EXCEPTION, .vector = X86_VEC_PF, .has_error = 1, .error = code,
                                    .payload = cpu->exit.pf.gva.v};
    return true;
}
