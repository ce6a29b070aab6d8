/*
 * The replay list; replay.h and exit.h tell the protocol.
 *
 * Invariant: `count` entries are accesses of the instruction at RIP, in its order; the run loop sets `next`
 * to 0 before each attempt and empties the list when the instruction is done (run.c).
 *
 * Locks: the processor's own thread.
 */
#include "cpu/replay.h"

#include "cpu/run.h"

#include <stdio.h>
#include <string.h>

/* Is the next access on the list? Drops the rest of a list that tells another story, as after the
 * hypervisor has changed registers in between. */
static bool entry_take(struct cpu *cpu, bool is_io, bool is_write, uint64_t addr, unsigned size)
{
    struct cpu_replay *r = &cpu->replay;

    if (r->next >= r->count) {
        return false;
    }
    if (r->entry[r->next].addr != addr || r->entry[r->next].size != size ||
        r->entry[r->next].is_io != is_io || r->entry[r->next].is_write != is_write) {
        r->count = r->next;
        return false;
    }
    r->next++;
    return true;
}

/* More accesses than any real instruction makes to a device: the hypervisor is told. */
static enum cpu_replay_state too_many(struct cpu *cpu, const struct cpu_op *op)
{
    cpu->exit.reason = CPU_EXIT_ERROR;
    cpu->exit.error.len = 0;
    snprintf(cpu->exit.error.what, sizeof(cpu->exit.error.what), "too many device accesses");
    cpu_sync_rip(cpu, op);
    return CPU_REPLAY_RESTART;
}

enum cpu_replay_state cpu_replay_read(struct cpu *cpu, const struct cpu_op *op, bool is_io, uint64_t addr,
                                      void *data, unsigned size)
{
    if (entry_take(cpu, is_io, false, addr, size)) {
        memcpy(data, cpu->replay.entry[cpu->replay.next - 1].data, size);
        return CPU_REPLAY_DONE;
    }
    if (cpu->replay.count == CPU_REPLAY_MAX) {
        return too_many(cpu, op);
    }
    cpu_sync_rip(cpu, op);
    cpu->restart_alone = 1;
    return cpu->exit.reason == CPU_EXIT_NONE ? CPU_REPLAY_NEW : CPU_REPLAY_RESTART;
}

enum cpu_replay_state cpu_replay_write(struct cpu *cpu, const struct cpu_op *op, bool is_io, uint64_t addr,
                                       const void *data, unsigned size)
{
    struct cpu_replay *r = &cpu->replay;

    if (entry_take(cpu, is_io, true, addr, size)) {
        return CPU_REPLAY_DONE;
    }
    if (!cpu->alone || cpu->exit.reason != CPU_EXIT_NONE) {
        cpu_sync_rip(cpu, op);
        cpu->restart_alone = 1;
        return CPU_REPLAY_RESTART;
    }
    if (r->count == CPU_REPLAY_MAX) {
        return too_many(cpu, op);
    }
    r->entry[r->count].addr = addr;
    r->entry[r->count].size = (uint8_t)size;
    r->entry[r->count].is_io = is_io;
    r->entry[r->count].is_write = true;
    memcpy(r->entry[r->count].data, data, size);
    r->count++;
    r->next = r->count;
    cpu->device_rip = cpu_op_rip(cpu, op);
    return CPU_REPLAY_NEW;
}

/* One answered read at the end of the list; the instruction is to be restarted. */
static void answer(struct cpu *cpu, bool is_io, uint64_t addr, const void *data, unsigned size)
{
    struct cpu_replay *r = &cpu->replay;

    if (never(r->count >= CPU_REPLAY_MAX || size > sizeof(r->entry[0].data))) {
        return;
    }
    r->entry[r->count].addr = addr;
    r->entry[r->count].size = (uint8_t)size;
    r->entry[r->count].is_io = is_io;
    r->entry[r->count].is_write = false;
    memcpy(r->entry[r->count].data, data, size);
    r->count++;
}

/* See replay.h. */
void cpu_replay_answer(struct cpu *cpu, uint16_t port, const void *data, unsigned size)
{
    answer(cpu, true, port, data, size);
}

/*
 * Complete the device read that the last exit asked for.
 * data: size bytes, little-endian; size: that of the exit. Source: own.
 */
void cpu_complete_read(struct cpu *cpu, const void *data, unsigned size)
{
    bool is_io = cpu->exit.reason == CPU_EXIT_IO;

    answer(cpu, is_io, is_io ? cpu->exit.io.port : cpu->exit.ept.gpa.v, data, size);
    cpu->restart_alone = 1;
}

/* See run.h. What is beyond the first element waits in cpu->ahead. Source: KVM's complete_emulated_pio(). */
void cpu_complete_in(struct cpu *cpu, const void *data, unsigned count)
{
    struct cpu_ahead *a = &cpu->ahead;
    unsigned size = cpu->exit.io.size;

    if (never(count == 0 || count * size > sizeof(a->data))) {
        return;
    }
    a->port = cpu->exit.io.port;
    a->size = (uint8_t)size;
    a->pos = 0;
    a->end = (uint16_t)((count - 1) * size);
    memcpy(a->data, (const uint8_t *)data + size, a->end);
    cpu_complete_read(cpu, data, size);
}
