/*
 * The door of src/cpu: make a processor, run it, ask things of it from other threads.
 */
#ifndef STRATA_CPU_RUN_H
#define STRATA_CPU_RUN_H

#include "cpu/state.h"

/*
 * A processor in its reset state, with physical memory `mem` (borrowed; outlives it).
 * index: unique in the VM. peers: the set of processors whose code caches must hear of each other's writes.
 * Returns NULL when memory is short.
 */
struct cpu_peers *cpu_peers_new(void);
void cpu_peers_free(struct cpu_peers *peers);
struct cpu *cpu_new(struct host_memory *mem, struct cpu_peers *peers, unsigned index);
void cpu_free(struct cpu *cpu);

/* Architectural reset (RESET#) or INIT: registers, not the caches' contents. */
void cpu_reset(struct cpu *cpu, bool init);

/* SIPI: start in real mode at vector << 12. */
void cpu_sipi(struct cpu *cpu, uint8_t vector);

/*
 * Run until something needs the hypervisor; fills cpu->exit and returns its reason.
 * A pending cpu->event is delivered first. Called by the one thread that owns the processor.
 */
enum cpu_exit_reason cpu_run(struct cpu *cpu);

/*
 * The same, for a caller that has served the last exit itself, in this thread, and knows that nobody but virtual
 * processors has written guest memory since: spares the verification of code that cpu_run() starts with.
 */
enum cpu_exit_reason cpu_resume(struct cpu *cpu);

/*
 * Announce, with a full barrier, that cpu_run() or cpu_resume() will follow, so that the caller can look for requests of its
 * own in between and pay for one barrier only; and that it will not after all. cpu_run() leaves by itself.
 */
void cpu_enter(struct cpu *cpu);
void cpu_leave(struct cpu *cpu);

/* Complete the device read that the last exit asked for; data: size bytes, little-endian. */
void cpu_complete_read(struct cpu *cpu, const void *data, unsigned size);

/* Complete a CPU_EXIT_IO for reading; data: io.size * count bytes, 1 <= count <= io.count. */
void cpu_complete_in(struct cpu *cpu, const void *data, unsigned count);

/*
 * Run an instruction whose device read has been answered to its end, and nothing else: no event is delivered. Returns
 * CPU_EXIT_KICK when it is done or there was none, else what it needs next, as cpu_run().
 */
enum cpu_exit_reason cpu_finish(struct cpu *cpu);
bool cpu_must_finish(const struct cpu *cpu);

/* Step over the instruction at which the exit left RIP (CPUID, RDMSR, WRMSR, HYPERCALL, ...). */
void cpu_skip_insn(struct cpu *cpu);

/* Inject an event to be delivered at the next cpu_run(). At most one; the caller asks cpu->event first. */
void cpu_inject(struct cpu *cpu, const struct cpu_event *ev);

/* May an external interrupt (an NMI) be taken now? IF set, no shadow, no event on its way. */
bool cpu_interrupt_allowed(const struct cpu *cpu);
bool cpu_nmi_allowed(const struct cpu *cpu);

/* After a caller has written control registers, EFER, segments or the EPT pointer from outside: derive
 * mode, CPL, segment base copies anew and flush what depends on them. */
void cpu_state_changed(struct cpu *cpu);

/*
 * From any thread. kick: cpu_run() returns CPU_EXIT_KICK soon. flush_*: done before the next guest
 * instruction. The _wait form returns when the processor no longer uses an old translation (it has
 * looked at the request or is outside cpu_run()); must not be called from the processor's own thread
 * while inside cpu_run(), nor with a lock held that the processor's thread may take while inside.
 */
void cpu_kick(struct cpu *cpu);
void cpu_request_flush(struct cpu *cpu);
void cpu_request_flush_wait(struct cpu *cpu);

/*
 * What the processor has cached of the second stage, for checks: frames that it may read or also write without a
 * walk, and tables that it may enter in the middle of one. Nothing while a flush is pending.
 */
enum cpu_cached_kind { CPU_CACHED_READ, CPU_CACHED_WRITE, CPU_CACHED_TABLE };
typedef void cpu_cached_fn(void *opaque, enum cpu_cached_kind kind, uint64_t pfn);
void cpu_cached_for_each(const struct cpu *cpu, cpu_cached_fn *fn, void *opaque);

/* Translate as the guest would at the given access (bits of X86_PFEC_W, _U, _F); no side effects.
 * 0; -EFAULT guest fault (*gpa untouched). */
int cpu_translate(struct cpu *cpu, gva_t va, uint32_t access, gpa_t *out);

#endif
